//! What a node holds and does not own: when it looks after it, and when it may drop it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::source::Retry;
use super::summary::Summary;
use crate::membership::{Epoch, NodeId};
use crate::ring::PARTITIONS;
use crate::view::View;

/// How long after something has changed the owners are asked: by then one that was away has pulled what it lacked itself, and
/// need only say so.
const DELAY_MS: u64 = 1_000;

/// For how long all owners have to have had something before it is dropped here. A read asks one node after the other: one that
/// has asked an owner before it was given a copy must still find that copy here when it comes to ask this node. Longer than any
/// search may take that says that there is nothing ([`MISS_WITHIN_MS`](crate::replication::MISS_WITHIN_MS)).
pub const DROP_AFTER_MS: u64 = 60_000;

/// The partitions that a node holds something of and owns by no layout in force: copies made for owners that were away, and
/// what a layout has left behind.
#[derive(Debug, Clone)]
pub struct HandOvers {
    interval_ms: u64,
    view: Arc<View>,
    partitions: BTreeMap<u16, Held>,
    reachable: BTreeSet<NodeId>,
}

#[derive(Debug, Clone)]
struct Held {
    summary: Summary,
    at_ms: u64,
    /// What it held when it began to look after it.
    begun: Option<Summary>,
    /// Since when all owners have had all of it, and what it was.
    whole: Option<(u64, Summary)>,
    retry: Retry,
}

/// What an owner has said of something that another node holds for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// Nothing, or that it cannot say.
    Nothing,
    /// It has it.
    Has,
    /// It does not have it.
    Lacks,
    /// It would evict it next: it is full of what was used later, and nothing is promised of the copy any more (see
    /// [`Room`](super::Room)).
    WouldEvict,
}

/// Something that a node holds and does not own.
#[derive(Debug, Clone)]
pub struct Surplus {
    epoch: Epoch,
    owners: Vec<(NodeId, Said)>,
    /// Somebody has answered by a newer layout, by which others may be owners.
    is_behind: bool,
}

// === impl HandOvers ===

impl HandOvers {
    /// A node that looks after everything once in this time, whatever happens.
    pub fn new(interval_ms: u64) -> HandOvers {
        HandOvers { interval_ms, view: Arc::new(View::none()), partitions: BTreeMap::new(), reachable: BTreeSet::new() }
    }

    /// Takes note of the cluster as it is seen now, of who is there, and of what this node holds.
    pub fn look(
        &mut self,
        view: &Arc<View>,
        is_reachable: impl Fn(NodeId) -> bool,
        mine: impl Fn(u16) -> Summary,
        now_ms: u64,
    ) {
        let is_new = self.view.epoch() != view.epoch() || self.view.placements().len() != view.placements().len();
        self.view = Arc::clone(view);
        if !view.is_settled() {
            self.partitions.clear();
            return;
        }
        let there: BTreeSet<NodeId> = view.state().members.keys().copied().filter(|node| is_reachable(*node)).collect();
        let back: Vec<NodeId> = there.difference(&self.reachable).copied().collect();
        self.reachable = there;
        let here = view.self_id();
        for partition in 0..PARTITIONS {
            let Ok(number) = u16::try_from(partition) else { continue };
            let summary = if view.owns(here, partition) { Summary::default() } else { mine(number) };
            if summary.count == 0 {
                self.partitions.remove(&number);
                continue;
            }
            let soon_ms = now_ms.saturating_add(DELAY_MS);
            let held = self.partitions.entry(number).or_insert(Held {
                summary,
                at_ms: soon_ms,
                begun: None,
                whole: None,
                retry: Retry::default(),
            });
            let has_more = held.summary != summary && held.summary.count <= summary.count;
            held.summary = summary;
            let is_back = back.iter().any(|node| view.owners(partition).contains(node));
            if is_new {
                held.whole = None;
            }
            if is_new || is_back {
                (held.retry, held.at_ms) = (Retry::default(), soon_ms);
            } else if has_more {
                held.at_ms = held.at_ms.min(soon_ms);
            }
        }
    }

    /// The next partition whose owners are to be asked. It is then taken to be under way.
    pub fn next(&mut self, now_ms: u64) -> Option<u16> {
        let is_due = |held: &&mut Held| held.begun.is_none() && now_ms >= held.at_ms && held.retry.is_over(now_ms);
        let mut partitions = self.partitions.iter_mut();
        let (partition, held) =
            partitions.find_map(|(partition, held)| Some((*partition, Some(held).filter(is_due)?)))?;
        held.begun = Some(held.summary);
        // What comes up meanwhile makes it due again.
        held.at_ms = now_ms.saturating_add(self.interval_ms);
        Some(partition)
    }

    /// Whether what all owners have of a partition that is being looked after may be dropped. Not the first time that they are
    /// found to have it: see [`DROP_AFTER_MS`].
    pub fn may_drop(&self, partition: u16, now_ms: u64) -> bool {
        let held = self.partitions.get(&partition);
        held.is_some_and(|held| {
            let is_old = |(since_ms, _): &(u64, Summary)| now_ms >= since_ms.saturating_add(DROP_AFTER_MS);
            held.whole.as_ref().is_some_and(|whole| is_old(whole) && Some(whole.1) == held.begun)
        })
    }

    /// All that the node holds of a partition has been looked after. Where owners did not answer or took nothing,
    /// `has_failed`, and it is tried again sooner. Otherwise all owners have all that was held when it began.
    pub fn done(&mut self, partition: u16, has_failed: bool, now_ms: u64) {
        if let Some(held) = self.partitions.get_mut(&partition) {
            let begun = held.begun.take();
            match has_failed {
                true => {
                    held.whole = None;
                    held.at_ms = held.at_ms.min(now_ms);
                    held.retry.failed(now_ms);
                }
                false => {
                    held.retry = Retry::default();
                    let before = held.whole.filter(|(_, whole)| Some(*whole) == begun);
                    held.whole = before.or_else(|| Some((now_ms, begun?)));
                    // Where it was not dropped this time it may be then.
                    let drop_ms = held.whole.map(|(since_ms, _)| since_ms.saturating_add(DROP_AFTER_MS));
                    let drop_ms = drop_ms.filter(|drop_ms| *drop_ms > now_ms);
                    held.at_ms = drop_ms.map_or(held.at_ms, |drop_ms| held.at_ms.min(drop_ms));
                }
            }
        }
    }

    /// How much the node holds that it does not own.
    pub fn held(&self) -> u64 {
        self.partitions.values().map(|held| held.summary.count).sum()
    }

    /// When [`HandOvers::next`] is worth calling again, if nothing happens meanwhile.
    pub fn wake_ms(&self) -> Option<u64> {
        let idle = self.partitions.values().filter(|held| held.begun.is_none());
        idle.map(|held| held.at_ms.max(held.retry.at_ms())).min()
    }
}

// === impl Surplus ===

impl Surplus {
    /// Something of this partition, which the node whose view it is holds.
    pub fn new(view: &View, partition: u16) -> Surplus {
        let owners = view.owners(usize::from(partition)).iter();
        Surplus { epoch: view.epoch(), owners: owners.map(|node| (*node, Said::Nothing)).collect(), is_behind: false }
    }

    /// An owner has said something. `epoch` is of a layout that it had adopted before it was asked, or answered by.
    pub fn heard(&mut self, node: NodeId, epoch: Epoch, said: Said) {
        self.is_behind |= epoch > self.epoch;
        // One that has not heard of the newest layout may yet act by older ones alone.
        let said = if epoch < self.epoch && said == Said::Has { Said::Nothing } else { said };
        if let Some((_, known)) = self.owners.iter_mut().find(|(owner, _)| *owner == node) {
            *known = said;
        }
    }

    /// The owners to which it is to be given.
    pub fn lacking(&self) -> impl Iterator<Item = NodeId> {
        self.owners.iter().filter(|(_, said)| *said == Said::Lacks).map(|(node, _)| *node)
    }

    /// Whether the copy is of no more use: every owner, by all layouts in force, has one, or would have evicted it by now.
    pub fn may_drop(&self) -> bool {
        let is_done = |said: Said| matches!(said, Said::Has | Said::WouldEvict);
        !self.is_behind && !self.owners.is_empty() && self.owners.iter().all(|(_, said)| is_done(*said))
    }
}
