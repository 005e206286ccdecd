//! Where blobs are: every owner is asked, so that each of them takes those that it has for used (G4).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use casbah_cluster::digest::Digest;
use casbah_cluster::membership::{Epoch, NodeId};
use casbah_cluster::replication::WriteDecision;
use casbah_cluster::ring::partition_of;
use casbah_cluster::view::View;
use futures_util::FutureExt as _;
use futures_util::future::join_all;

use crate::forward::PeerError;
use crate::replicate::Nodes;
use crate::route::error::{NodeError, ReadError};
use crate::route::rounds::{Outcome, Sought, seek};
use crate::store::Presence;

/// How often blobs are looked for when the layout changes meanwhile: it does so seldom.
const ATTEMPTS: usize = 3;

/// What is known of blobs, which go by their positions in what was asked for.
pub(super) struct Found {
    /// Whether a node has said just now that it has it.
    pub(super) present: Vec<bool>,
    /// Those of the others that may be on a node that does not answer.
    pub(super) in_doubt: Vec<(usize, Option<NodeError>)>,
}

/// What owners have said of the blobs that they were asked for.
type Answers = Vec<(NodeId, Vec<usize>, Result<Vec<Presence>, PeerError>)>;

/// Who has said nothing of a blob that counts.
#[derive(Default)]
struct Silent {
    /// Those that have not answered at all.
    nodes: Vec<(NodeId, NodeError)>,
    /// Those that cannot say of a blob.
    of_blobs: HashSet<(NodeId, usize)>,
}

/// Looks for blobs on all of their owners, and then, where an owner does not answer, on those that stand in for it. They are
/// used now, wherever they are.
pub(super) async fn look_up(nodes: &Nodes, digests: &[Digest]) -> Found {
    for _ in 0..ATTEMPTS {
        let view = nodes.view();
        let (found, answered_by) = look_up_by(nodes, &view, digests).await;
        if answered_by <= view.epoch() {
            return found;
        }
        // What is where has changed meanwhile: neither what is there nor what is not is certain.
        if nodes.caught_up(answered_by).await.is_none() {
            break;
        }
    }
    let in_doubt = (0..digests.len()).map(|position| (position, None)).collect();
    Found { present: vec![false; digests.len()], in_doubt }
}

/// The same by one view, and the newest layout that a node has answered by.
async fn look_up_by(nodes: &Nodes, view: &View, digests: &[Digest]) -> (Found, Epoch) {
    let here = nodes.store().look_up(digests, true);
    let mut present: Vec<bool> = here.iter().map(|presence| *presence == Presence::Here).collect();
    if view.is_single() {
        return (Found { present, in_doubt: Vec::new() }, view.epoch());
    }
    let mut silent = Silent::default();
    silent.hear(view.self_id(), &(0..digests.len()).collect::<Vec<usize>>(), &here);
    for (digest, present) in digests.iter().zip(&mut present) {
        // A copy that a layout has left behind here is none that others would find.
        *present &= digest.is_empty_blob() || view.candidates(partition_of(digest)).contains(&view.self_id());
    }
    // How many of the owners have it.
    let mut copies: Vec<usize> = digests
        .iter()
        .zip(&present)
        .map(|(digest, here)| usize::from(*here && view.owns(view.self_id(), partition_of(digest))))
        .collect();
    let mut holders: Vec<Option<NodeId>> = present.iter().map(|here| here.then_some(view.self_id())).collect();
    let mut lacking: Vec<(usize, NodeId)> = Vec::new();
    let mut answered_by = nodes.epoch_of(view.self_id());
    for (node, positions, answer) in ask_owners(nodes, view, digests).await {
        answered_by = answered_by.max(nodes.epoch_of(node));
        match answer {
            Ok(has) => {
                silent.hear(node, &positions, &has);
                positions.into_iter().zip(has).for_each(|(position, has)| {
                    match (has, holders.get_mut(position), copies.get_mut(position)) {
                        (Presence::Here, Some(holder), Some(copies)) => {
                            *holder = holder.or(Some(node));
                            *copies += 1;
                        }
                        _ => lacking.push((position, node)),
                    }
                });
            }
            Err(error) => silent.nodes.push((node, NodeError { node, source: Arc::new(error) })),
        }
    }
    present.iter_mut().zip(&holders).for_each(|(present, holder)| *present = holder.is_some());
    let mut found = Found { present, in_doubt: Vec::new() };
    if answered_by <= view.epoch() {
        mend(nodes, view, digests, &holders, lacking);
        if !silent.is_empty() {
            seek_further(nodes, view, digests, &silent, &mut found).await;
        }
    }
    for ((digest, present), copies) in digests.iter().zip(&found.present).zip(copies) {
        let owners = view.owners(partition_of(digest));
        // Where an owner lacks it or is away, another node may have it in its place; and the owner is to know when it is back.
        if *present && copies < owners.len() && !digest.is_empty_blob() {
            let is_silent = |node: &NodeId| silent.nodes.iter().any(|(other, _)| other == node);
            let told: Vec<NodeId> = owners.iter().copied().filter(|node| !is_silent(node)).collect();
            nodes.touch_the_rest(view, digest, &told);
        }
    }
    (found, answered_by)
}

/// Whether as many nodes say that they have the blob as make an upload of it acknowledged.
pub(super) async fn is_held(nodes: &Nodes, digest: &Digest) -> bool {
    let digests = std::slice::from_ref(digest);
    let is_here = nodes.store().touch(digests) == [true];
    let view = nodes.view();
    if view.is_single() || digest.is_empty_blob() {
        return is_here;
    }
    let mut decision = WriteDecision::new(&view, partition_of(digest), |_| false);
    if is_here {
        decision.acknowledged(view.self_id());
    }
    for (node, _, answer) in ask_owners(nodes, &view, digests).await {
        decision.heard(nodes.epoch_of(node));
        if matches!(answer.as_deref(), Ok([Presence::Here])) {
            decision.acknowledged(node);
        }
    }
    decision.is_acknowledged()
}

/// Has owners that lack a blob get it from one that has it.
fn mend(nodes: &Nodes, view: &View, digests: &[Digest], holders: &[Option<NodeId>], mut lacking: Vec<(usize, NodeId)>) {
    // This node's own lack shows in what it did not find.
    let here = view.self_id();
    for (position, (digest, holder)) in digests.iter().zip(holders).enumerate() {
        if holder.is_some_and(|holder| holder != here) && view.owns(here, partition_of(digest)) {
            lacking.push((position, here));
        }
    }
    for (position, node) in lacking {
        if let (Some(digest), Some(Some(holder))) = (digests.get(position), holders.get(position)) {
            nodes.mend(view, *digest, *holder, node);
        }
    }
}

/// Asks every owner but this node for what it owns, all at once.
async fn ask_owners(nodes: &Nodes, view: &View, digests: &[Digest]) -> Answers {
    let mut calls: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
    for (position, digest) in digests.iter().enumerate() {
        // Everybody has the empty blob.
        if digest.is_empty_blob() {
            continue;
        }
        for node in view.owners(partition_of(digest)) {
            if *node != view.self_id() {
                calls.entry(*node).or_default().push(position);
            }
        }
    }
    let calls = calls.into_iter().map(|(node, positions)| async move {
        let wanted = pick(digests, &positions);
        let answer = nodes.remote().find(node, &wanted, true).await;
        (node, positions, answer)
    });
    join_all(calls).await
}

/// Asks those that stand in for owners that do not answer.
async fn seek_further(nodes: &Nodes, view: &View, digests: &[Digest], silent: &Silent, found: &mut Found) {
    let mut sought = Vec::new();
    for (position, digest) in digests.iter().enumerate() {
        let owners = view.owners(partition_of(digest));
        if found.present.get(position) == Some(&true) || !owners.iter().any(|node| silent.of(*node, position).is_some())
        {
            continue;
        }
        let mut blob = Sought::new(nodes, view, position, digest);
        blob.heard(nodes.epoch_of(view.self_id()));
        let others = owners.iter().filter(|owner| **owner != view.self_id());
        for node in others.chain([&view.self_id()]) {
            match silent.of(*node, position) {
                Some(error) => blob.is_perhaps_on(*node, error),
                None => blob.is_not_on(*node),
            }
        }
        sought.push(blob);
    }
    let ask = |node, positions: Vec<usize>| {
        async move {
            let has = nodes.remote().find(node, &pick(digests, &positions), true).await?;
            let outcome = |has| match has {
                Presence::Here => Ok(()),
                Presence::Absent => Err(PeerError::NotFound),
                Presence::Unsure => Err(PeerError::Unsure),
            };
            Ok(has.into_iter().map(outcome).collect())
        }
        .boxed()
    };
    for (position, outcome) in seek(nodes, sought, ask).await {
        match outcome {
            Outcome::Found(..) => {
                if let Some(present) = found.present.get_mut(position) {
                    *present = true;
                }
            }
            Outcome::Missing => {}
            Outcome::Unavailable(error) => found.in_doubt.push((position, error)),
        }
    }
}

fn pick(digests: &[Digest], positions: &[usize]) -> Vec<Digest> {
    positions.iter().filter_map(|position| digests.get(*position).copied()).collect()
}

// === impl Silent ===

impl Silent {
    fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.of_blobs.is_empty()
    }

    /// Takes note of what a node cannot say.
    fn hear(&mut self, node: NodeId, positions: &[usize], has: &[Presence]) {
        let unsure = positions.iter().zip(has).filter(|(_, has)| **has == Presence::Unsure);
        self.of_blobs.extend(unsure.map(|(position, _)| (node, *position)));
    }

    /// Whether a node has said nothing of a blob, and why, if that is known.
    fn of(&self, node: NodeId, position: usize) -> Option<Option<NodeError>> {
        let is_unsure = !self.of_blobs.is_empty() && self.of_blobs.contains(&(node, position));
        let silence = self.nodes.iter().find(|(other, _)| *other == node).map(|(_, error)| Some(error.clone()));
        silence.or_else(|| is_unsure.then_some(None))
    }
}

// === impl Found ===

impl Found {
    /// Takes note of what a client is told by it.
    pub(super) fn told(self, nodes: &Nodes, digests: &[Digest]) -> Found {
        let mut in_doubt = self.in_doubt.iter().map(|(position, _)| *position).collect::<Vec<usize>>();
        in_doubt.sort_unstable();
        for (position, (digest, present)) in digests.iter().zip(&self.present).enumerate() {
            if *present {
                nodes.promise(digest);
            } else if in_doubt.binary_search(&position).is_err() {
                nodes.is_missing(digest);
            }
        }
        self
    }

    /// Those of the blobs that are nowhere.
    ///
    /// # Errors
    /// When it cannot be said of one.
    pub(super) fn absent(self, digests: &[Digest]) -> Result<Vec<Digest>, ReadError> {
        if let Some((position, source)) = self.in_doubt.into_iter().next()
            && let Some(digest) = digests.get(position)
        {
            return Err(ReadError::Unavailable { digest: *digest, source });
        }
        Ok(digests.iter().zip(self.present).filter(|(_, present)| !present).map(|(digest, _)| *digest).collect())
    }
}
