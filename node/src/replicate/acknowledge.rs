//! Has something done on nodes until enough of them have done it.

use std::collections::BTreeMap;

use casbah_cluster::membership::{Epoch, NodeId};
use casbah_cluster::replication::{Next, WriteDecision};
use casbah_cluster::view::View;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::replicate::error::CopyError;
use crate::replicate::nodes::Nodes;
use crate::replicate::spread::LAGGARD_PATIENCE;

/// Outcomes that wait to be looked at: those of a round or two.
const OUTCOMES: usize = 16;

/// What a node did with each of the things that it was given.
type Told = (NodeId, Vec<usize>, Vec<Result<(), CopyError>>);

/// One thing that is to be done on several nodes.
struct Item {
    decision: WriteDecision,
    /// `Some` once it is known.
    outcome: Option<Result<(), Option<CopyError>>>,
    /// The most telling so far.
    error: Option<CopyError>,
    /// A node has answered by this layout, which it is to be decided by.
    behind: Option<Epoch>,
}

/// Has each of the things done, which go by their position, on nodes until it is acknowledged. Each node is given all of its
/// things at once. When this returns, some nodes may not be ready yet; what they do is finished without being waited for.
///
/// # Errors
/// For each thing: why a node did not do it, if any said so.
///
/// # Cancel safety
/// Dropped half-way, what was begun goes on to its end.
pub(crate) async fn acknowledge(
    nodes: &Nodes,
    decisions: Vec<WriteDecision>,
    give: impl Fn(NodeId, Vec<usize>) -> BoxFuture<'static, Vec<Result<(), CopyError>>>,
) -> Vec<Result<(), Option<CopyError>>> {
    let mut items: Vec<Item> = decisions.into_iter().map(Item::new).collect();
    let (tell, mut told) = mpsc::channel::<Told>(OUTCOMES);
    let mut round: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
    for (position, item) in items.iter_mut().enumerate() {
        item.decision.targets().for_each(|node| round.entry(node).or_default().push(position));
        let next = item.decision.go_on();
        item.act(next, position, &mut round);
    }
    let mut under_way: Vec<(NodeId, Vec<usize>)> = Vec::new();
    loop {
        for (node, positions) in std::mem::take(&mut round) {
            let (given, tell) = (give(node, positions.clone()), tell.clone());
            under_way.push((node, positions.clone()));
            nodes.spawn(async move {
                let outcomes = given.await;
                // Nobody is waiting any more once all is acknowledged.
                drop(tell.send((node, positions, outcomes)).await);
            });
        }
        if items.iter().all(|item| item.outcome.is_some()) {
            break;
        }
        if let Some(epoch) = items.iter().filter_map(|item| item.behind).max() {
            let view = nodes.caught_up(epoch).await;
            for (position, item) in items.iter_mut().enumerate() {
                item.go_on_by(nodes, view.as_deref(), position, &mut round);
            }
            continue;
        }
        match timeout(LAGGARD_PATIENCE, told.recv()).await {
            Ok(Some((node, positions, outcomes))) => {
                under_way.retain(|(other, theirs)| *other != node || *theirs != positions);
                let epoch = nodes.epoch_of(node);
                for (position, outcome) in positions.into_iter().zip(outcomes) {
                    if let Some(item) = items.get_mut(position) {
                        item.hear((node, epoch), outcome, position, &mut round);
                    }
                }
            }
            // `tell` is held here.
            Ok(None) => break,
            Err(_elapsed) => {
                for (position, item) in items.iter_mut().enumerate() {
                    let with = under_way.iter().filter(|(_, positions)| positions.contains(&position));
                    let laggards: Vec<NodeId> = with.map(|(node, _)| *node).collect();
                    item.go_on_without(&laggards, position, &mut round);
                }
            }
        }
    }
    items.into_iter().map(|item| item.outcome.unwrap_or(Err(item.error))).collect()
}

// === impl Item ===

impl Item {
    fn new(decision: WriteDecision) -> Item {
        Item { decision, outcome: None, error: None, behind: None }
    }

    fn hear(
        &mut self,
        (node, epoch): (NodeId, Epoch),
        outcome: Result<(), CopyError>,
        position: usize,
        round: &mut BTreeMap<NodeId, Vec<usize>>,
    ) {
        self.decision.heard(epoch);
        let next = match outcome {
            Ok(()) => self.decision.acknowledged(node),
            Err(error) => {
                self.error = Some(error.or(self.error.take()));
                self.decision.failed(node)
            }
        };
        self.act(next, position, round);
    }

    fn act(&mut self, next: Next, position: usize, round: &mut BTreeMap<NodeId, Vec<usize>>) {
        let mut next = next;
        while self.outcome.is_none() {
            match next {
                Next::Wait => return,
                // What is to be copied is still at hand.
                Next::CopyTo(node) => round.entry(node).or_default().push(position),
                Next::Done => self.outcome = Some(Ok(())),
                Next::Fail => self.outcome = Some(Err(self.error.take())),
                Next::Behind(epoch) => {
                    self.behind = Some(epoch);
                    return;
                }
            }
            next = self.decision.go_on();
        }
    }

    /// Decides anew by a view that has the layout that a node has answered by, if there is one.
    fn go_on_by(
        &mut self,
        nodes: &Nodes,
        view: Option<&View>,
        position: usize,
        round: &mut BTreeMap<NodeId, Vec<usize>>,
    ) {
        if self.behind.take().is_none() || self.outcome.is_some() {
            return;
        }
        match view {
            Some(view) => {
                let next = self.decision.revise(view, |node| nodes.is_away(view, node));
                self.act(next, position, round);
            }
            None => self.outcome = Some(Err(Some(self.error.take().unwrap_or(CopyError::InDoubt)))),
        }
    }

    /// Has other nodes do it in place of those that take long, if there are others.
    fn go_on_without(&mut self, laggards: &[NodeId], position: usize, round: &mut BTreeMap<NodeId, Vec<usize>>) {
        if self.outcome.is_some() || laggards.is_empty() {
            return;
        }
        let mut without = self.decision.clone();
        let mut others: Vec<NodeId> = Vec::new();
        for laggard in laggards {
            if let Next::CopyTo(node) = without.failed(*laggard) {
                others.push(node);
            }
        }
        while let Next::CopyTo(node) = without.go_on() {
            others.push(node);
        }
        if !others.is_empty() {
            self.decision = without;
            others.into_iter().for_each(|node| round.entry(node).or_default().push(position));
        }
    }
}
