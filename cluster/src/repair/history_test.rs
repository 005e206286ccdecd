//! Random histories of one owner and its sources: it is never synced without what it has to have, and in the end it has all.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::RngExt as _;
use rand::rngs::SmallRng;

use super::{Peer, Pull, Pulled, Step, Summary, Sync};
use crate::membership::{Epoch, Layout, NodeId};
use crate::ring::PARTITIONS;
use crate::testing::{plain_layout, random, seed, state};
use crate::view::View;

const HERE: NodeId = NodeId(1);
const NODES: u64 = 5;
const HISTORIES: u64 = 10;
const STEPS: usize = 200;

/// Partitions that blobs are written to; the others are compared all the same.
const WRITTEN: [u16; 8] = [0, 1, 700, 1500, 2222, 3000, 4000, 4095];

struct History {
    random: SmallRng,
    now_ms: u64,
    /// The views that there have been, the newest last.
    views: Vec<Arc<View>>,
    sync: Sync,
    /// By node: which view it has adopted, whether others reach it, and what it has.
    adopted: BTreeMap<NodeId, usize>,
    reachable: BTreeMap<NodeId, bool>,
    blobs: BTreeMap<(NodeId, u16), u128>,
    /// What a source had when it adopted a view.
    at_adoption: BTreeMap<(usize, NodeId), BTreeMap<u16, u128>>,
    compares: Vec<(NodeId, Epoch, Vec<u16>)>,
    pulls: Vec<Pull>,
    blob: u32,
    /// Nothing goes wrong any more.
    is_calm: bool,
}

fn summary(blobs: u128) -> Summary {
    Summary { count: blobs.count_ones().into(), mark: blobs }
}

fn all_layouts() -> Vec<Vec<Layout>> {
    let layout = |epoch, nodes: &[u64]| plain_layout(epoch, nodes.iter().copied());
    let (one, two) = (layout(1, &[2, 3, 4]), layout(2, &[1, 2, 3, 4]));
    let (three, four) = (layout(3, &[2, 3, 5]), layout(4, &[1, 2, 3, 5]));
    vec![
        vec![one.clone()],
        vec![one.clone(), two.clone()],
        vec![one, two.clone(), three.clone()],
        vec![two.clone(), three.clone()],
        vec![two, three.clone(), four.clone()],
        vec![three, four.clone()],
        vec![four],
    ]
}

fn all_views() -> Vec<Arc<View>> {
    let mut views: Vec<Arc<View>> = Vec::new();
    for layouts in all_layouts() {
        let mut state = state(2, 2, layouts);
        // All are members all the time.
        let everybody = crate::testing::state(2, 2, vec![plain_layout(1, 1..=NODES)]);
        state.members = everybody.members;
        views.push(Arc::new(match views.last() {
            Some(last) => last.next(state),
            None => View::new(HERE, state),
        }));
    }
    views
}

impl History {
    fn new(seed: u64, views: Vec<Arc<View>>) -> History {
        let ids = || (1..=NODES).map(NodeId);
        History {
            random: random(seed),
            now_ms: 0,
            views,
            sync: Sync::new(60_000),
            adopted: ids().map(|id| (id, 0)).collect(),
            reachable: ids().map(|id| (id, true)).collect(),
            blobs: BTreeMap::new(),
            at_adoption: BTreeMap::new(),
            compares: Vec::new(),
            pulls: Vec::new(),
            blob: 0,
            is_calm: false,
        }
    }

    fn node(&mut self) -> NodeId {
        NodeId(self.random.random_range(2..=NODES))
    }

    fn has(&self, node: NodeId, partition: u16) -> u128 {
        self.blobs.get(&(node, partition)).copied().unwrap_or(0)
    }

    fn view(&self) -> Arc<View> {
        Arc::clone(&self.views[self.adopted[&HERE]])
    }

    fn epoch(&self, node: NodeId) -> Epoch {
        self.views[self.adopted[&node]].epoch()
    }

    fn adopt(&mut self, node: NodeId) {
        let next = self.adopted[&node] + 1;
        if next < self.views.len() {
            self.adopted.insert(node, next);
            let has: BTreeMap<u16, u128> = WRITTEN.iter().map(|at| (*at, self.has(node, *at))).collect();
            self.at_adoption.insert((next, node), has);
        }
    }

    fn look(&mut self) {
        let peer = |node| Peer { is_reachable: self.reachable[&node], epoch: self.epoch(node) };
        let peers: BTreeMap<NodeId, Peer> = self.adopted.keys().map(|node| (*node, peer(*node))).collect();
        let view = self.view();
        self.sync.look(&view, |node| peers[&node], self.now_ms);
    }

    fn with_mine<T>(&mut self, act: impl FnOnce(&mut Sync, &dyn Fn(u16) -> Summary, u64) -> T) -> T {
        let History { sync, blobs, now_ms, .. } = self;
        act(sync, &|partition| summary(blobs.get(&(HERE, partition)).copied().unwrap_or(0)), *now_ms)
    }

    /// A source answers, or does not, some time after it was asked.
    fn answer(&mut self, at: usize) {
        let (source, epoch, partitions) = self.compares.swap_remove(at);
        if !self.reachable[&source] {
            self.sync.not_compared(source, self.now_ms);
            return;
        }
        let told: Vec<_> =
            partitions.iter().map(|partition| (*partition, summary(self.has(source, *partition)))).collect();
        self.with_mine(|sync, mine, now_ms| sync.compared(source, epoch, &told, mine, now_ms));
    }

    /// A list has been gone through, or was not.
    fn finish(&mut self, at: usize) {
        let pull = self.pulls.swap_remove(at);
        let luck = if self.is_calm { 2 } else { self.random.random_range(0..8) };
        let outcome = match luck {
            _ if !self.reachable[&pull.source] => Pulled::Broken,
            0 => Pulled::Broken,
            1 => Pulled::Full,
            _ => {
                let theirs = self.has(pull.source, pull.partition);
                let mine = self.blobs.entry((HERE, pull.partition)).or_default();
                let copies = (theirs & !*mine).count_ones().into();
                *mine |= theirs;
                Pulled::All { copies }
            }
        };
        self.with_mine(|sync, mine, now_ms| sync.pulled(&pull, outcome, mine, now_ms));
    }

    fn step(&mut self) {
        match self.random.random_range(0..20) {
            0 => {
                let node = self.node();
                self.reachable.entry(node).and_modify(|is_reachable| *is_reachable = !*is_reachable);
            }
            1 => self.adopt(HERE),
            2 | 3 => {
                let node = self.node();
                self.adopt(node);
            }
            4..8 if self.blob < 128 => {
                let (node, at) = (self.node(), self.random.random_range(0..WRITTEN.len()));
                *self.blobs.entry((node, WRITTEN[at])).or_default() |= 1 << self.blob;
                self.blob += 1;
            }
            8 => {
                // A copy is found to be damaged.
                let partition = WRITTEN[self.random.random_range(0..WRITTEN.len())];
                let mine = self.blobs.entry((HERE, partition)).or_default();
                *mine &= mine.wrapping_sub(1);
                self.sync.doubt(partition, self.now_ms);
                // What was had before does not count: from here on it is another history.
                for ((_, _), has) in &mut self.at_adoption {
                    has.remove(&partition);
                }
            }
            9 => self.now_ms += self.random.random_range(0..70_000),
            10..13 if !self.compares.is_empty() => {
                let at = self.random.random_range(0..self.compares.len());
                self.answer(at);
            }
            13..15 if !self.pulls.is_empty() => {
                let at = self.random.random_range(0..self.pulls.len());
                self.finish(at);
            }
            _ => {
                self.now_ms += 100;
                self.begin();
            }
        }
        self.look();
        self.check();
    }

    fn begin(&mut self) -> bool {
        let step = self.with_mine(|sync, mine, now_ms| sync.next(mine, now_ms));
        match step {
            Some(Step::Compare { source, partitions }) => {
                assert!(self.compares.iter().all(|(other, ..)| *other != source), "one question at a time");
                let epoch = self.epoch(source);
                self.compares.push((source, epoch, partitions));
            }
            Some(Step::Pull(pull)) => {
                assert!(self.pulls.iter().all(|other| other.partition != pull.partition || self.was_lost(other)));
                self.pulls.push(pull);
            }
            None => return false,
        }
        true
    }

    /// Whether a pull is one of a partition that was taken from this node after it had begun.
    fn was_lost(&self, pull: &Pull) -> bool {
        self.views.iter().any(|view| !view.owns(HERE, usize::from(pull.partition)))
    }

    /// Whoever is synced has all that its sources had when they adopted the layout.
    fn check(&self) {
        if self.sync.synced().is_none() {
            return;
        }
        let view = self.view();
        let at_view = |node: NodeId| {
            // The first view by this epoch.
            (0..self.views.len()).find(|at| self.views[*at].epoch() == view.epoch()).map(|at| (at, node))
        };
        for partition in WRITTEN {
            let owners = view.placements()[0].owners(usize::from(partition));
            for source in view.candidates(usize::from(partition)).iter().filter(|source| **source != HERE) {
                if !owners.contains(&HERE) {
                    continue;
                }
                assert!(self.epoch(*source) >= view.epoch(), "{source} has not adopted it");
                let had =
                    at_view(*source).and_then(|key| self.at_adoption.get(&key)).and_then(|has| has.get(&partition));
                let missing = had.copied().unwrap_or(0) & !self.has(HERE, partition);
                assert_eq!(missing, 0, "of {partition}, which {source} had");
            }
        }
    }

    /// From here on nothing goes wrong.
    fn settle(&mut self) {
        for node in (1..=NODES).map(NodeId) {
            self.reachable.insert(node, true);
            while self.adopted[&node] + 1 < self.views.len() {
                self.adopt(node);
            }
        }
        self.look();
        self.is_calm = true;
        // What was known before is known no longer than an hour.
        let until_ms = self.now_ms + 3_700_000;
        loop {
            while let Some(at) = self.compares.len().checked_sub(1) {
                self.answer(at);
            }
            while let Some(at) = self.pulls.len().checked_sub(1) {
                self.finish(at);
            }
            if self.begin() {
                continue;
            }
            if self.now_ms >= until_ms {
                break;
            }
            let wake_ms = self.sync.wake_ms().unwrap();
            assert!(wake_ms > self.now_ms, "it is awake and does nothing");
            self.now_ms = wake_ms;
        }
        assert_eq!(self.sync.synced(), Some(self.view().epoch()));
        for partition in WRITTEN.iter().filter(|partition| self.view().owns(HERE, usize::from(**partition))) {
            for source in self.view().candidates(usize::from(*partition)) {
                assert_eq!(
                    self.has(*source, *partition) & !self.has(HERE, *partition),
                    0,
                    "of {partition} on {source}"
                );
            }
        }
        let left = self.with_mine(|sync, mine, _| sync.left(mine));
        assert_eq!((left.partitions, left.pulls, left.waits_for), (0, 0, vec![]));
    }
}

#[test]
fn whatever_happens_a_synced_node_has_all_and_every_node_is_synced_in_the_end() {
    let seed = seed();
    let views = all_views();
    assert!(WRITTEN.iter().all(|partition| usize::from(*partition) < PARTITIONS));
    for history in 0..HISTORIES {
        let mut history = History::new(seed.wrapping_add(history), views.clone());
        history.look();
        (0..STEPS).for_each(|_| history.step());
        history.settle();
    }
}
