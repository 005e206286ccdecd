//! What a node compares and pulls until it has all that the layouts in force give it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::source::{Peer, Source};
use super::summary::Summary;
use crate::membership::{Epoch, NodeId};
use crate::ring::PARTITIONS;
use crate::view::View;

/// For how long what a source has is taken for known after all that was wanted of it was pulled, if it stays the same; and how
/// long a list that was of no use is not fetched again, at the most. What a node has lost otherwise than it knows of, or has
/// room for again, is found when this is over.
const KNOWN_FOR_MS: u64 = 3_600_000;

/// For how long nothing is pulled after the node itself could not take something.
const FULL_PAUSE_MS: u64 = 10_000;

/// What a node has to do to hold all that it should: which other nodes it asks what they have of which partitions, and which of
/// their lists it goes through.
///
/// A pair of a partition and a source is *settled* by an epoch when everything that the source had of the partition, after it had
/// adopted that layout, is here. Summaries that are equal settle a pair, and so does a list that was gone through to its end.
#[derive(Debug, Clone)]
pub struct Sync {
    interval_ms: u64,
    view: Arc<View>,
    sources: BTreeMap<NodeId, Source>,
    pairs: BTreeMap<(NodeId, u16), Pair>,
    /// Pairs whose lists are to be gone through, those of partitions with the fewest living owners first.
    queue: BTreeSet<(usize, u16, NodeId)>,
    /// Partitions that are pulled from some source now. From one at a time: others may have the same blobs.
    busy: BTreeMap<u16, u64>,
    next_ticket: u64,
    /// Until when this node takes nothing.
    full_until_ms: u64,
    /// When all that was known to differ had been pulled last.
    completed_ms: Option<u64>,
}

/// A partition of a source.
#[derive(Debug, Clone, Default)]
struct Pair {
    /// The newest layout gives the partition to this node.
    is_wanted: bool,
    /// What the source has told last.
    seen: Option<Seen>,
    /// The last that was gone through, and when.
    known: Option<(Summary, u64)>,
    /// The newest epoch by which it is settled.
    settled: Option<Epoch>,
    /// The list is to be gone through.
    is_to_pull: bool,
    /// It has been settled since what is here was in doubt.
    is_sure: bool,
    /// What is here came into doubt while the list was being gone through.
    is_doubted: bool,
    /// The list that is being gone through, and what the source had told before.
    under_way: Option<(u64, Seen)>,
    /// How often in a row a list was of no use, and until when no other one is fetched for that.
    fruitless: u32,
    quiet_until_ms: u64,
}

/// What a source had, by a layout that it had adopted before.
#[derive(Debug, Clone, Copy)]
struct Seen {
    theirs: Summary,
    epoch: Epoch,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Ask this node for its summaries of these partitions, and tell [`Sync::compared`], or [`Sync::not_compared`].
    Compare {
        /// Whom to ask.
        source: NodeId,
        /// In order.
        partitions: Vec<u16>,
    },
    /// Go through a list, and tell [`Sync::pulled`].
    Pull(Pull),
}

/// A list that is to be gone through: everything on it that is missing here is to be copied, if it would stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pull {
    /// Whose list it is.
    pub source: NodeId,
    /// Of which partition.
    pub partition: u16,
    /// Owners that have been so for long and can be reached, but for this node: with none, these may be the last copies.
    pub living: usize,
    ticket: u64,
}

/// What came of a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulled {
    /// The list was gone through to its end, and so many copies were made.
    All {
        /// How many.
        copies: u64,
    },
    /// The source did not answer, or broke off.
    Broken,
    /// This node could not take something.
    Full,
}

/// What is still to be done, as far as is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Left {
    /// Partitions of the newest layout that have not been compared with all of their sources by it.
    pub partitions: usize,
    /// Partitions that are known to differ, and are to be pulled.
    pub pulls: usize,
    /// How much more their sources have of them: the least that is to be copied, where nothing was evicted.
    pub entries: u64,
    /// Sources that hold it up: they cannot be reached, or have not adopted the newest layout.
    pub waits_for: Vec<NodeId>,
    /// When there was nothing left to pull last, after others had been asked.
    pub completed_ms: Option<u64>,
}

/// What this node has of a partition now.
type Mine<'a> = &'a dyn Fn(u16) -> Summary;

// === impl Sync ===

impl Sync {
    /// A node that knows of no cluster yet, and compares everything once in this time.
    pub fn new(interval_ms: u64) -> Sync {
        Sync {
            interval_ms,
            view: Arc::new(View::none()),
            sources: BTreeMap::new(),
            pairs: BTreeMap::new(),
            queue: BTreeSet::new(),
            busy: BTreeMap::new(),
            next_ticket: 0,
            full_until_ms: 0,
            completed_ms: None,
        }
    }

    /// Takes note of the cluster as it is seen now, and of how the others are. To be called before [`Sync::next`], and as soon as
    /// something of it changes.
    pub fn look(&mut self, view: &Arc<View>, peer: impl Fn(NodeId) -> Peer, now_ms: u64) {
        let mut is_changed = !Arc::ptr_eq(view, &self.view);
        if is_changed {
            self.adopt(view, now_ms);
        }
        let newest = self.view.epoch();
        let mut back = Vec::new();
        for (node, source) in &mut self.sources {
            let was_reachable = source.peer.is_reachable;
            if source.look(peer(*node), newest, now_ms) {
                back.push(*node);
            }
            is_changed |= was_reachable != source.peer.is_reachable;
        }
        for node in back {
            // What it has now is not what it had.
            of_source(&mut self.pairs, node).for_each(|(_, pair)| pair.listen());
        }
        if is_changed {
            self.order();
        }
    }

    /// What is to be done next; it is then taken to be under way. At the caller's choice several steps are, up to one for each
    /// source and partition.
    pub fn next(&mut self, mine: Mine<'_>, now_ms: u64) -> Option<Step> {
        self.next_compare(now_ms).or_else(|| self.next_pull(mine, now_ms).map(Step::Pull))
    }

    /// A source has told its summaries. `epoch` is of a layout that it had adopted before it was asked, or answered by.
    pub fn compared(
        &mut self,
        source: NodeId,
        epoch: Epoch,
        summaries: &[(u16, Summary)],
        mine: Mine<'_>,
        now_ms: u64,
    ) {
        match self.sources.get_mut(&source) {
            Some(known) => known.answered(),
            None => return,
        }
        for (partition, theirs) in summaries {
            if let Some(pair) = self.pairs.get_mut(&(source, *partition)) {
                pair.seen = Some(Seen { theirs: *theirs, epoch });
                self.weigh(source, *partition, mine, now_ms);
            }
        }
        self.note_completion(now_ms);
    }

    /// A source has not told its summaries.
    pub fn not_compared(&mut self, source: NodeId, now_ms: u64) {
        if let Some(source) = self.sources.get_mut(&source) {
            source.did_not_answer(now_ms);
        }
    }

    /// A pull has come to its end.
    pub fn pulled(&mut self, pull: &Pull, outcome: Pulled, mine: Mine<'_>, now_ms: u64) {
        let Pull { source, partition, ticket, .. } = *pull;
        if self.busy.get(&partition) == Some(&ticket) {
            self.busy.remove(&partition);
        }
        match outcome {
            Pulled::All { .. } => {}
            Pulled::Broken => {
                if let Some(source) = self.sources.get_mut(&source) {
                    source.failed(now_ms);
                }
            }
            Pulled::Full => self.full_until_ms = now_ms.saturating_add(FULL_PAUSE_MS),
        }
        // The layouts may have taken the partition from this node, and given it back, meanwhile.
        let Some(pair) = self.pairs.get_mut(&(source, partition)) else { return };
        let Some((_, begun_by)) = pair.under_way.take_if(|(theirs, _)| *theirs == ticket) else { return };
        if let Pulled::All { copies } = outcome {
            pair.settle(begun_by.epoch);
            if std::mem::take(&mut pair.is_doubted) {
                pair.is_sure = false;
            } else {
                pair.known = Some((begun_by.theirs, now_ms));
            }
            pair.fruitless = if copies == 0 { pair.fruitless.saturating_add(1) } else { 0 };
            pair.quiet_until_ms = match pair.fruitless {
                0 => 0,
                often => now_ms.saturating_add(self.interval_ms.saturating_mul(1 << often.min(16)).min(KNOWN_FOR_MS)),
            };
        }
        // It may have told something else meanwhile.
        self.weigh(source, partition, mine, now_ms);
        self.note_completion(now_ms);
    }

    /// Something of a partition may have been lost here: what was pulled before is no longer taken to be here.
    pub fn doubt(&mut self, partition: u16, now_ms: u64) {
        for (node, source) in &mut self.sources {
            if let Some(pair) = self.pairs.get_mut(&(*node, partition)) {
                pair.doubt();
                source.is_due(now_ms);
            }
        }
    }

    /// Anything may have been lost here.
    pub fn doubt_all(&mut self, now_ms: u64) {
        self.pairs.values_mut().for_each(Pair::doubt);
        self.sources.values_mut().for_each(|source| source.is_due(now_ms));
    }

    /// Whether all that this node is to have has been pulled from all that may have it since [`Sync::doubt_all`].
    pub fn is_sure(&self) -> bool {
        self.view.is_settled() && self.pairs.values().all(|pair| pair.is_sure)
    }

    /// The newest epoch, if this node holds all that its layout gives it. With all its operations that decide by an older one
    /// ended, the cluster may be told.
    pub fn synced(&self) -> Option<Epoch> {
        let newest = self.view.epoch();
        let is_member = self.view.member(self.view.self_id()).is_some();
        let is_settled = |pair: &Pair| !pair.is_wanted || pair.settled >= Some(newest);
        (self.view.is_settled() && is_member && self.pairs.values().all(is_settled)).then_some(newest)
    }

    /// The epoch that the cluster is to be told that this node has synced to; `None` when there is nothing to tell.
    /// `oldest` is of the oldest view by which an operation of this node goes on.
    pub fn report(&self, oldest: Option<Epoch>) -> Option<Epoch> {
        let told = self.view.member(self.view.self_id()).map(|member| member.synced)?;
        // Whoever has told it already need not be asked again whether it is so.
        if told >= self.view.epoch() || oldest.is_some_and(|oldest| oldest < self.view.epoch()) {
            return None;
        }
        self.synced()
    }

    /// What is still to be done.
    pub fn left(&self, mine: Mine<'_>) -> Left {
        let newest = self.view.epoch();
        let mut left = Left { completed_ms: self.completed_ms, ..Left::default() };
        let (mut unsettled, mut waits_for) = (BTreeSet::new(), BTreeSet::new());
        for ((source, partition), pair) in &self.pairs {
            if pair.is_wanted && pair.settled < Some(newest) {
                unsettled.insert(*partition);
                let peer = self.sources.get(source).map(|source| source.peer);
                if peer.is_none_or(|peer| !peer.is_reachable || peer.epoch < newest) {
                    waits_for.insert(*source);
                }
            }
        }
        let mut more: BTreeMap<u16, u64> = BTreeMap::new();
        let queued = self.queue.iter().map(|(_, partition, source)| (*source, *partition));
        let under_way = self.pairs.iter().filter(|(_, pair)| pair.under_way.is_some()).map(|(key, _)| *key);
        for (source, partition) in queued.chain(under_way) {
            let theirs = self.pairs.get(&(source, partition)).and_then(|pair| pair.seen).map_or(0, |s| s.theirs.count);
            let lacking = theirs.saturating_sub(mine(partition).count);
            let most = more.entry(partition).or_default();
            *most = lacking.max(*most);
        }
        left.partitions = unsettled.len();
        left.pulls = more.len();
        left.entries = more.values().fold(0, |all, more| all.saturating_add(*more));
        left.waits_for = waits_for.into_iter().collect();
        left
    }

    /// When [`Sync::next`] is worth calling again, if nothing happens meanwhile.
    pub fn wake_ms(&self) -> Option<u64> {
        let compares = self.sources.values().filter_map(Source::next_ms);
        let pulls = self.queue.iter().filter_map(|(_, partition, source)| {
            let source = self.sources.get(source).filter(|source| source.peer.is_reachable)?;
            (!self.busy.contains_key(partition)).then(|| source.open_ms().max(self.full_until_ms))
        });
        compares.chain(pulls).min()
    }

    fn next_compare(&mut self, now_ms: u64) -> Option<Step> {
        let interval_ms = self.interval_ms;
        let mut sources = self.sources.iter_mut();
        let source = sources.find_map(|(node, source)| source.begin(interval_ms, now_ms).then_some(*node))?;
        let partitions = of_source(&mut self.pairs, source).map(|(partition, _)| partition).collect();
        Some(Step::Compare { source, partitions })
    }

    fn next_pull(&mut self, mine: Mine<'_>, now_ms: u64) -> Option<Pull> {
        if now_ms < self.full_until_ms {
            return None;
        }
        while let Some((living, partition, source)) = self.first_open(now_ms) {
            self.queue.remove(&(living, partition, source));
            // Another source may have had it all.
            self.weigh(source, partition, mine, now_ms);
            if !self.queue.remove(&(living, partition, source)) {
                self.note_completion(now_ms);
                continue;
            }
            let ticket = self.next_ticket;
            if let Some(pair) = self.pairs.get_mut(&(source, partition))
                && let Some(seen) = pair.seen
            {
                self.next_ticket += 1;
                (pair.under_way, pair.is_to_pull) = (Some((ticket, seen)), false);
                self.busy.insert(partition, ticket);
                return Some(Pull { source, partition, living, ticket });
            }
        }
        None
    }

    /// The first of the queue whose source can be asked, and whose partition no other one is asked for.
    fn first_open(&self, now_ms: u64) -> Option<(usize, u16, NodeId)> {
        let is_open = |source: &NodeId| self.sources.get(source).is_some_and(|source| source.is_open(now_ms));
        let mut queue = self.queue.iter();
        queue.find(|(_, partition, source)| is_open(source) && !self.busy.contains_key(partition)).copied()
    }

    /// Decides what the last that a source has told of a partition comes to: it is settled, is to be pulled, or can wait.
    fn weigh(&mut self, source: NodeId, partition: u16, mine: Mine<'_>, now_ms: u64) {
        let newest = self.view.epoch();
        let Some(pair) = self.pairs.get_mut(&(source, partition)) else { return };
        let was_to_pull = pair.is_to_pull;
        let Some(seen) = pair.seen.filter(|_| pair.under_way.is_none()) else { return };
        let is_known = |(known, at_ms)| known == seen.theirs && now_ms.saturating_sub(at_ms) < KNOWN_FOR_MS;
        pair.is_to_pull =
            if seen.theirs.count == 0 || seen.theirs == mine(partition) || pair.known.is_some_and(is_known) {
                pair.settle(seen.epoch);
                false
            } else {
                let is_due = pair.is_wanted && pair.settled < Some(newest);
                is_due || now_ms >= pair.quiet_until_ms
            };
        let is_there = self.sources.get(&source).is_some_and(|source| source.peer.is_reachable);
        if pair.is_to_pull && is_there {
            self.queue.insert((self.living(partition), partition, source));
        } else if was_to_pull {
            self.queue.remove(&(self.living(partition), partition, source));
        }
    }

    /// Goes over to another view: pairs that are in both stay as they are.
    fn adopt(&mut self, view: &Arc<View>, now_ms: u64) {
        self.view = Arc::clone(view);
        let here = view.self_id();
        let newest = view.placements().first();
        let mut before = std::mem::take(&mut self.pairs);
        for partition in (0..PARTITIONS).filter(|partition| view.owns(here, *partition)) {
            let is_wanted = newest.is_some_and(|placement| placement.owners(partition).contains(&here));
            let Ok(number) = u16::try_from(partition) else { continue };
            for source in view.sources(partition).filter(|source| *source != here) {
                let mut pair = before.remove(&(source, number)).unwrap_or_default();
                pair.is_wanted = is_wanted;
                self.pairs.insert((source, number), pair);
            }
        }
        let mut awaited: BTreeMap<NodeId, bool> = BTreeMap::new();
        for ((source, _), pair) in &self.pairs {
            *awaited.entry(*source).or_default() |= pair.is_wanted && pair.settled < Some(view.epoch());
        }
        self.sources.retain(|node, _| awaited.contains_key(node));
        for (node, awaits_epoch) in awaited {
            let source = self.sources.entry(node);
            let source = source.or_insert_with(|| Source::new(now_ms.saturating_add(self.interval_ms)));
            source.awaits_epoch = awaits_epoch;
        }
    }

    /// Queues anew, by who is there now.
    fn order(&mut self) {
        self.queue.clear();
        let mut living: BTreeMap<u16, usize> = BTreeMap::new();
        for ((source, partition), pair) in &self.pairs {
            let is_there = self.sources.get(source).is_some_and(|source| source.peer.is_reachable);
            if is_there && pair.is_to_pull {
                let living = *living.entry(*partition).or_insert_with(|| self.living(*partition));
                self.queue.insert((living, *partition, *source));
            }
        }
    }

    /// Owners by the oldest layout, who have had the time to get everything, that are there.
    fn living(&self, partition: u16) -> usize {
        let oldest = self.view.placements().last();
        let owners = oldest.map_or(&[][..], |placement| placement.owners(usize::from(partition)));
        let is_there = |node: &&NodeId| self.sources.get(node).is_some_and(|source| source.peer.is_reachable);
        owners.iter().filter(is_there).count()
    }

    fn note_completion(&mut self, now_ms: u64) {
        if self.queue.is_empty() && self.busy.is_empty() {
            self.completed_ms = Some(now_ms);
        }
    }
}

// === impl Pair ===

impl Pair {
    fn settle(&mut self, epoch: Epoch) {
        self.settled = self.settled.max(Some(epoch));
        self.is_sure = true;
    }

    /// What was pulled before is no longer taken to be here.
    fn doubt(&mut self) {
        (self.known, self.is_sure) = (None, false);
        // A list that is being gone through was perhaps passed where something was lost since.
        self.is_doubted = self.under_way.is_some();
        self.listen();
    }

    /// The next difference counts.
    fn listen(&mut self) {
        self.fruitless = 0;
        self.quiet_until_ms = 0;
    }
}

fn of_source(pairs: &mut BTreeMap<(NodeId, u16), Pair>, source: NodeId) -> impl Iterator<Item = (u16, &mut Pair)> {
    pairs.range_mut((source, 0)..=(source, u16::MAX)).map(|((_, partition), pair)| (*partition, pair))
}
