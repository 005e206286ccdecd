//! What a node compares and pulls, in each situation.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Peer;
use super::summary::Summary;
use super::sync::{Pull, Pulled, Step, Sync};
use crate::membership::{Epoch, Layout, NodeId};
use crate::ring::PARTITIONS;
use crate::testing::{plain_layout, state};
use crate::view::View;

const INTERVAL_MS: u64 = 60_000;
const HERE: NodeId = NodeId(1);

/// Node 1, and what it and the others hold.
struct Node {
    sync: Sync,
    view: Arc<View>,
    peers: BTreeMap<NodeId, Peer>,
    mine: RefCell<BTreeMap<u16, u128>>,
    theirs: BTreeMap<(NodeId, u16), u128>,
    now_ms: u64,
}

fn summary(blobs: u128) -> Summary {
    Summary { count: blobs.count_ones().into(), mark: blobs }
}

impl Node {
    fn new(layouts: Vec<Layout>) -> Node {
        let view = Arc::new(View::new(HERE, state(2, 2, layouts)));
        let mut node = Node {
            sync: Sync::new(INTERVAL_MS),
            view: Arc::new(View::none()),
            peers: BTreeMap::new(),
            mine: RefCell::default(),
            theirs: BTreeMap::new(),
            now_ms: 1000,
        };
        node.adopt(view);
        node
    }

    /// Goes over to a view, which everybody has.
    fn adopt(&mut self, view: Arc<View>) {
        for id in view.state().members.keys() {
            self.peers.insert(*id, Peer { is_reachable: true, epoch: view.epoch() });
        }
        self.view = view;
        self.look();
    }

    fn adopt_layouts(&mut self, layouts: Vec<Layout>) {
        self.adopt(Arc::new(self.view.next(state(2, 2, layouts))));
    }

    fn look(&mut self) {
        let peers = self.peers.clone();
        self.sync.look(&self.view, |node| peers[&node], self.now_ms);
    }

    fn set(&mut self, node: u64, is_reachable: bool, epoch: u64) {
        self.peers.insert(NodeId(node), Peer { is_reachable, epoch: Epoch(epoch) });
        self.look();
    }

    fn next(&mut self) -> Option<Step> {
        let Node { sync, mine, now_ms, .. } = self;
        sync.next(&|partition| summary(mine.borrow().get(&partition).copied().unwrap_or(0)), *now_ms)
    }

    fn compare(&mut self, source: NodeId, partitions: &[u16]) {
        let theirs = |partition: &u16| self.theirs.get(&(source, *partition)).copied().unwrap_or(0);
        let told: Vec<_> = partitions.iter().map(|partition| (*partition, summary(theirs(partition)))).collect();
        let epoch = self.peers[&source].epoch;
        let Node { sync, mine, now_ms, .. } = self;
        let mine = |partition| summary(mine.borrow().get(&partition).copied().unwrap_or(0));
        sync.compared(source, epoch, &told, &mine, *now_ms);
    }

    fn pulled(&mut self, pull: &Pull, outcome: Pulled) {
        let Node { sync, mine, now_ms, .. } = self;
        sync.pulled(pull, outcome, &|partition| summary(mine.borrow().get(&partition).copied().unwrap_or(0)), *now_ms);
    }

    /// Makes the copies of a pull.
    fn pull(&mut self, pull: &Pull) {
        let theirs = self.theirs.get(&(pull.source, pull.partition)).copied().unwrap_or(0);
        let copies = {
            let mut mine = self.mine.borrow_mut();
            let mine = mine.entry(pull.partition).or_default();
            let missing = theirs & !*mine;
            *mine |= theirs;
            missing.count_ones().into()
        };
        self.pulled(pull, Pulled::All { copies });
    }

    /// Does all that there is to do now; what it was.
    fn run(&mut self) -> (Vec<NodeId>, Vec<(NodeId, u16)>) {
        let (mut compares, mut pulls) = (Vec::new(), Vec::new());
        while let Some(step) = self.next() {
            match step {
                Step::Compare { source, partitions } => {
                    self.compare(source, &partitions);
                    compares.push(source);
                }
                Step::Pull(pull) => {
                    self.pull(&pull);
                    pulls.push((pull.source, pull.partition));
                }
            }
        }
        (compares, pulls)
    }

    /// Partitions that node 1 and this one own.
    fn shared_with(&self, node: u64) -> Vec<u16> {
        let both = |partition: &usize| self.view.owns(HERE, *partition) && self.view.owns(NodeId(node), *partition);
        (0..PARTITIONS).filter(both).map(|partition| partition as u16).collect()
    }

    fn put(&mut self, node: u64, partition: u16, blobs: u128) {
        self.theirs.insert((NodeId(node), partition), blobs);
    }
}

fn nodes(ids: &[u64]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

#[test]
fn a_cluster_of_one_has_nobody_to_ask_and_is_synced() {
    let mut node = Node::new(vec![plain_layout(1, [1])]);
    assert_eq!(node.run(), (vec![], vec![]));
    assert_eq!(node.sync.synced(), Some(Epoch(1)));
    assert_eq!(node.sync.report(None), Some(Epoch(1)));
    assert_eq!(node.sync.wake_ms(), None);
}

#[test]
fn a_node_without_a_cluster_is_synced_to_nothing() {
    assert_eq!(Sync::new(INTERVAL_MS).synced(), None);
    assert_eq!(Node::new(vec![]).sync.synced(), None);
}

#[test]
fn all_sources_are_asked_once_for_all_that_they_may_have_and_then_once_in_the_interval() {
    let mut node = Node::new(vec![plain_layout(1, 1..=3)]);
    let Some(Step::Compare { source, partitions }) = node.next() else { unreachable!("somebody is to be asked") };
    let owned = (0..PARTITIONS).filter(|partition| node.view.owns(HERE, *partition)).count();
    assert_eq!((source, partitions.len()), (NodeId(2), owned), "the third node too may have copies of everything");
    assert_eq!(node.sync.synced(), None);
    node.compare(source, &partitions);
    assert_eq!(node.run(), (nodes(&[3]), vec![]));
    assert_eq!(node.sync.synced(), Some(Epoch(1)));
    node.now_ms += INTERVAL_MS - 1;
    assert_eq!(node.run().0, []);
    assert_eq!(node.sync.wake_ms(), Some(node.now_ms + 1));
    node.now_ms += 1;
    assert_eq!(node.run().0, nodes(&[2, 3]));
}

#[test]
fn what_differs_is_pulled_and_what_does_not_is_not() {
    let mut node = Node::new(vec![plain_layout(1, 1..=3)]);
    let [one, two, three] = node.shared_with(2)[..3] else { unreachable!() };
    node.put(2, one, 0b11);
    node.put(2, two, 0b11);
    node.mine.borrow_mut().extend([(two, 0b11), (three, 0b11)]);
    assert_eq!(node.run(), (nodes(&[2, 3]), vec![(NodeId(2), one)]), "a source that has nothing has nothing to give");
    assert_eq!(node.mine.borrow()[&one], 0b11);
    assert_eq!(node.sync.synced(), Some(Epoch(1)));
}

#[test]
fn what_one_source_has_given_is_not_asked_of_the_next() {
    let mut node = Node::new(vec![plain_layout(1, 1..=4)]);
    let partition = node.shared_with(2)[0];
    let others: Vec<NodeId> = node.view.candidates(usize::from(partition)).to_vec();
    for other in others.iter().filter(|other| **other != HERE) {
        node.put(other.0, partition, 0b111);
    }
    assert_eq!(node.run().1.len(), 1);
    assert_eq!(node.sync.synced(), Some(Epoch(1)));
}

#[test]
fn a_partition_is_pulled_from_one_source_at_a_time() {
    let mut node = Node::new(vec![plain_layout(1, 1..=3)]);
    let partition = node.shared_with(2)[0];
    node.put(2, partition, 0b01);
    node.put(3, partition, 0b10);
    let mut pull = None;
    while let Some(step) = node.next() {
        match step {
            Step::Compare { source, partitions } => node.compare(source, &partitions),
            Step::Pull(next) => assert_eq!(pull.replace(next), None),
        }
    }
    assert_eq!(node.sync.left(&|_| Summary::default()).entries, 1);
    node.pull(&pull.unwrap());
    assert_eq!(node.run().1, [(NodeId(3), partition)]);
    assert_eq!(node.mine.borrow()[&partition], 0b11);
}

#[test]
fn partitions_with_the_fewest_living_owners_come_first() {
    let mut node = Node::new(vec![plain_layout(1, 1..=3)]);
    node.set(3, false, 1);
    // Node 2 stands in where node 3 is the other owner.
    let [with_two, with_three] = [2, 3].map(|other| node.shared_with(other)[..20].to_vec());
    for partition in with_two.iter().chain(&with_three) {
        node.put(2, *partition, 1);
    }
    let order: Vec<u16> = node.run().1.into_iter().map(|(_, partition)| partition).collect();
    assert_eq!(order, [with_three, with_two].concat());
}

#[test]
fn what_a_source_has_is_not_gone_through_again_until_it_changes() {
    let mut node = Node::new(vec![plain_layout(1, 1..=3)]);
    let partition = node.shared_with(2)[0];
    node.put(2, partition, 0b111);
    assert_eq!(node.run().1, [(NodeId(2), partition)]);
    // One of them has been evicted here.
    node.mine.borrow_mut().insert(partition, 0b110);
    node.now_ms += INTERVAL_MS;
    assert_eq!(node.run(), (nodes(&[2, 3]), vec![]));
    node.put(2, partition, 0b1111);
    node.now_ms += INTERVAL_MS;
    assert_eq!(node.run().1, [(NodeId(2), partition)]);
}

#[test]
fn a_list_that_was_of_no_use_is_fetched_less_and_less_often() {
    let mut node = Node::new(vec![plain_layout(1, 1..=3)]);
    let partition = node.shared_with(2)[0];
    let mut pulls = Vec::new();
    for minute in 0..400_u64 {
        // It has another blob each time, which this node would evict next.
        node.put(2, partition, 1 << (minute % 120));
        while let Some(step) = node.next() {
            match step {
                Step::Compare { source, partitions } => node.compare(source, &partitions),
                Step::Pull(pull) => {
                    pulls.push(minute);
                    node.pulled(&pull, Pulled::All { copies: 0 });
                }
            }
        }
        assert_eq!(node.sync.synced(), Some(Epoch(1)));
        node.now_ms += INTERVAL_MS;
    }
    assert_eq!(pulls[..7], [0, 2, 6, 14, 30, 62, 122]);
    assert!(pulls[6..].windows(2).all(|two| two[1] - two[0] == 60), "{pulls:?}");
}

#[test]
fn a_list_that_was_of_no_use_is_fetched_all_the_same_when_a_newer_layout_asks_for_it() {
    let mut node = Node::new(vec![plain_layout(1, 1..=3)]);
    let partition = node.shared_with(2)[0];
    node.put(2, partition, 0b1);
    while let Some(step) = node.next() {
        match step {
            Step::Compare { source, partitions } => node.compare(source, &partitions),
            Step::Pull(pull) => node.pulled(&pull, Pulled::All { copies: 0 }),
        }
    }
    node.put(2, partition, 0b10);
    node.adopt_layouts(vec![plain_layout(1, 1..=3), plain_layout(2, 1..=4)]);
    let kept = node.view.placements()[0].owners(usize::from(partition)).contains(&HERE);
    assert_eq!(node.run().1.contains(&(NodeId(2), partition)), kept);
}

#[test]
fn a_source_that_is_away_is_asked_as_soon_as_it_is_back_and_holds_up_being_synced() {
    let mut node = Node::new(vec![plain_layout(1, 1..=3)]);
    node.set(3, false, 1);
    assert_eq!(node.run().0, nodes(&[2]));
    assert_eq!(node.sync.synced(), None);
    assert_eq!(node.sync.left(&|_| Summary::default()).waits_for, nodes(&[3]));
    node.now_ms += 5;
    node.set(3, true, 1);
    assert_eq!(node.run().0, nodes(&[3]));
    assert_eq!(node.sync.synced(), Some(Epoch(1)));
    // And again whenever it was away: it may have been given what it was to hand over.
    node.set(3, false, 1);
    node.set(3, true, 1);
    assert_eq!(node.run().0, nodes(&[3]));
}

#[test]
fn what_a_source_told_before_it_had_adopted_the_layout_does_not_count() {
    let mut node = Node::new(vec![plain_layout(1, 1..=3)]);
    node.run();
    node.view = Arc::new(node.view.next(state(2, 2, vec![plain_layout(1, 1..=3), plain_layout(2, 1..=4)])));
    node.peers.insert(NodeId(4), Peer { is_reachable: true, epoch: Epoch(2) });
    node.set(2, true, 2);
    assert_eq!(node.run().0, nodes(&[2, 4]), "node 3 has not heard of it");
    node.now_ms += INTERVAL_MS;
    assert_eq!(node.run().0, nodes(&[2, 3, 4]));
    assert_eq!(node.sync.synced(), None);
    assert_eq!(node.sync.left(&|_| Summary::default()).waits_for, nodes(&[3]));
    node.set(3, true, 2);
    assert_eq!(node.run().0, nodes(&[3]));
    assert_eq!(node.sync.synced(), Some(Epoch(2)));
}

#[test]
fn a_newer_layout_has_everything_compared_anew_and_nothing_pulled_that_was() {
    let mut node = Node::new(vec![plain_layout(1, 1..=3)]);
    let partition = node.shared_with(2)[0];
    node.put(2, partition, 0b11);
    node.run();
    node.mine.borrow_mut().insert(partition, 0b01);
    node.adopt_layouts(vec![plain_layout(1, 1..=3), plain_layout(2, 1..=4)]);
    assert_eq!(node.sync.synced(), None);
    assert_eq!(node.run(), (nodes(&[2, 3, 4]), vec![]));
    assert_eq!(node.sync.synced(), Some(Epoch(2)));
    // A change that moves nothing asks for nothing.
    node.adopt(Arc::new(node.view.next(node.view.state().clone())));
    assert_eq!(node.run(), (vec![], vec![]));
    assert_eq!(node.sync.synced(), Some(Epoch(2)));
}

#[test]
fn a_partition_that_is_gained_is_pulled_from_those_who_had_it() {
    let mut node = Node::new(vec![plain_layout(1, 2..=4)]);
    let owners = |node: &Node, partition: usize, at: usize| node.view.placements()[at].owners(partition).to_vec();
    assert_eq!(node.run(), (vec![], vec![]));
    node.adopt_layouts(vec![plain_layout(1, 2..=4), plain_layout(2, 1..=4)]);
    let gained: Vec<usize> = (0..PARTITIONS).filter(|p| owners(&node, *p, 0).contains(&HERE)).collect();
    for partition in &gained {
        for owner in owners(&node, *partition, 1) {
            node.put(owner.0, *partition as u16, 0b1);
        }
    }
    let pulls = node.run().1;
    assert_eq!(pulls.len(), gained.len());
    assert!(pulls.iter().all(|(source, partition)| owners(&node, usize::from(*partition), 1).contains(source)));
    assert_eq!(node.sync.synced(), Some(Epoch(2)));
}

#[test]
fn a_node_that_the_newest_layout_gives_nothing_is_synced_at_once() {
    let mut node = Node::new(vec![plain_layout(1, 1..=3)]);
    node.adopt_layouts(vec![plain_layout(1, 1..=3), plain_layout(2, 2..=3)]);
    node.set(2, false, 2);
    assert_eq!(node.sync.synced(), Some(Epoch(2)));
    let mut removed = state(2, 2, vec![plain_layout(1, 1..=3), plain_layout(2, 2..=3)]);
    removed.members.remove(&HERE);
    node.adopt(Arc::new(node.view.next(removed)));
    assert_eq!(node.sync.synced(), None, "it is no member, and nobody waits for it");
}

#[test]
fn whoever_is_no_member_any_more_is_not_waited_for() {
    let mut node = Node::new(vec![plain_layout(1, 1..=3)]);
    node.set(3, false, 1);
    node.run();
    assert_eq!(node.sync.synced(), None);
    let mut removed = state(2, 2, vec![plain_layout(1, 1..=3)]);
    removed.members.remove(&NodeId(3));
    node.view = Arc::new(node.view.next(removed));
    node.look();
    assert_eq!(node.sync.synced(), Some(Epoch(1)));
}

#[test]
fn a_source_that_breaks_off_is_left_alone_for_a_while_and_then_tried_again() {
    let mut node = Node::new(vec![plain_layout(1, 1..=3)]);
    let partition = node.shared_with(2)[0];
    node.put(2, partition, 0b1);
    let mut attempts = Vec::new();
    while node.now_ms < 21_000 {
        match node.next() {
            Some(Step::Compare { source, partitions }) => node.compare(source, &partitions),
            Some(Step::Pull(pull)) => {
                attempts.push(node.now_ms);
                node.pulled(&pull, Pulled::Broken);
                assert_eq!(node.sync.synced(), None);
            }
            None => node.now_ms = node.sync.wake_ms().unwrap(),
        }
    }
    assert_eq!(attempts, [1000, 1500, 2500, 4500, 8500, 16_500]);
    // Back from the dead, it is asked at once.
    node.set(2, false, 1);
    node.set(2, true, 1);
    assert_eq!(node.run(), (nodes(&[2]), vec![(NodeId(2), partition)]));
    assert_eq!(node.sync.synced(), Some(Epoch(1)));
}

#[test]
fn a_source_that_does_not_tell_is_asked_again_later() {
    let mut node = Node::new(vec![plain_layout(1, 1..=3)]);
    let Some(Step::Compare { source, .. }) = node.next() else { unreachable!() };
    node.sync.not_compared(source, node.now_ms);
    assert_eq!(node.run().0, nodes(&[3]));
    node.now_ms += 499;
    assert_eq!(node.run().0, []);
    node.now_ms += 1;
    assert_eq!(node.run().0, nodes(&[2]));
}

#[test]
fn a_node_that_is_full_pulls_nothing_for_a_while() {
    let mut node = Node::new(vec![plain_layout(1, 1..=3)]);
    let [one, two] = node.shared_with(2)[..2] else { unreachable!() };
    node.put(2, one, 0b1);
    node.put(2, two, 0b1);
    loop {
        match node.next() {
            Some(Step::Compare { source, partitions }) => node.compare(source, &partitions),
            Some(Step::Pull(pull)) => break node.pulled(&pull, Pulled::Full),
            None => unreachable!("there is something to pull"),
        }
    }
    assert_eq!(node.run().1, []);
    assert_eq!(node.sync.wake_ms(), Some(node.now_ms + 10_000));
    assert_eq!(node.sync.synced(), None);
    node.now_ms += 10_000;
    assert_eq!(node.run().1.len(), 2);
    assert_eq!(node.sync.synced(), Some(Epoch(1)));
}

#[test]
fn what_comes_up_while_a_list_is_gone_through_is_found_afterwards() {
    let mut node = Node::new(vec![plain_layout(1, 1..=3)]);
    let partition = node.shared_with(2)[0];
    node.put(2, partition, 0b1);
    let pull = loop {
        match node.next() {
            Some(Step::Compare { source, partitions }) => node.compare(source, &partitions),
            Some(Step::Pull(pull)) => break pull,
            None => unreachable!(),
        }
    };
    // A newer layout, and more blobs, while it is under way.
    node.adopt_layouts(vec![plain_layout(1, 1..=3), plain_layout(2, 1..=3)]);
    node.put(2, partition, 0b11);
    assert_eq!(node.run().1, []);
    assert_eq!(node.sync.synced(), None);
    node.mine.borrow_mut().insert(partition, 0b1);
    node.pulled(&pull, Pulled::All { copies: 1 });
    assert_eq!(node.sync.synced(), None, "it was begun by the older one");
    assert_eq!(node.run().1, [(NodeId(2), partition)]);
    assert_eq!(node.sync.synced(), Some(Epoch(2)));
}

#[test]
fn a_pull_of_a_partition_that_was_lost_and_gained_again_meanwhile_does_not_count() {
    let mut node = Node::new(vec![plain_layout(1, 1..=2)]);
    let partition = node.shared_with(2)[0];
    node.put(2, partition, 0b1);
    let pull = loop {
        match node.next() {
            Some(Step::Compare { source, partitions }) => node.compare(source, &partitions),
            Some(Step::Pull(pull)) => break pull,
            None => unreachable!(),
        }
    };
    node.adopt_layouts(vec![plain_layout(2, [2])]);
    node.adopt_layouts(vec![plain_layout(2, [2]), plain_layout(3, 1..=2)]);
    node.pulled(&pull, Pulled::All { copies: 1 });
    assert_eq!(node.sync.synced(), None);
    assert_eq!(node.run().1, [(NodeId(2), partition)]);
    assert_eq!(node.sync.synced(), Some(Epoch(3)));
}

#[test]
fn what_is_in_doubt_is_compared_and_pulled_again() {
    let mut node = Node::new(vec![plain_layout(1, 1..=3)]);
    let partition = node.shared_with(2)[0];
    node.put(2, partition, 0b11);
    node.run();
    node.mine.borrow_mut().insert(partition, 0b01);
    node.sync.doubt(partition, node.now_ms);
    assert_eq!(node.run(), (nodes(&[2, 3]), vec![(NodeId(2), partition)]));
    assert_eq!(node.mine.borrow()[&partition], 0b11);
    node.sync.doubt(4095, node.now_ms);
    node.sync.doubt(u16::MAX, node.now_ms);
}

#[test]
fn nothing_is_told_twice_or_while_something_goes_on_by_an_older_view() {
    let mut node = Node::new(vec![plain_layout(1, 1..=3), plain_layout(2, 1..=3)]);
    assert_eq!(node.sync.report(None), None);
    node.run();
    assert_eq!(node.sync.report(Some(Epoch(1))), None);
    assert_eq!(node.sync.report(Some(Epoch(2))), Some(Epoch(2)));
    assert_eq!(node.sync.report(None), Some(Epoch(2)));
    let mut told = node.view.state().clone();
    told.members.get_mut(&HERE).unwrap().synced = Epoch(2);
    node.adopt(Arc::new(node.view.next(told)));
    assert_eq!(node.sync.report(None), None);
}

#[test]
fn what_is_left_is_counted_down() {
    let mut node = Node::new(vec![plain_layout(1, 1..=3)]);
    let [one, two] = node.shared_with(2)[..2] else { unreachable!() };
    node.put(2, one, 0b111);
    node.put(3, one, 0b1);
    node.put(2, two, 0b11);
    let owned = (0..PARTITIONS).filter(|partition| node.view.owns(HERE, *partition)).count();
    let left = node.sync.left(&|_| Summary::default());
    assert_eq!((left.partitions, left.pulls, left.entries, left.completed_ms), (owned, 0, 0, None));
    let first = loop {
        match node.next() {
            Some(Step::Compare { source, partitions }) => node.compare(source, &partitions),
            Some(Step::Pull(pull)) => break pull,
            None => unreachable!(),
        }
    };
    let left = node.sync.left(&|_| Summary::default());
    assert_eq!((left.partitions, left.pulls, left.entries), (2, 2, 5), "of two sources the one that has more counts");
    node.pull(&first);
    node.run();
    let left = node.sync.left(&|_| summary(0b111));
    assert_eq!((left.partitions, left.pulls, left.entries, left.completed_ms), (0, 0, 0, Some(node.now_ms)));
}

#[test]
fn what_was_all_in_doubt_is_sure_when_all_of_it_was_compared_and_pulled_again() {
    let mut node = Node::new(vec![plain_layout(1, 1..=3)]);
    let partition = node.shared_with(2)[0];
    node.put(2, partition, 0b11);
    node.set(3, false, 1);
    node.run();
    node.sync.doubt_all(node.now_ms);
    node.mine.borrow_mut().clear();
    assert_eq!(node.run(), (nodes(&[2]), vec![(NodeId(2), partition)]));
    assert!(!node.sync.is_sure(), "node 3 may have something");
    node.set(3, true, 1);
    node.run();
    assert!(node.sync.is_sure());
    assert_eq!(node.mine.borrow()[&partition], 0b11);
}

#[test]
fn what_comes_into_doubt_while_a_list_is_gone_through_is_gone_through_again() {
    let mut node = Node::new(vec![plain_layout(1, 1..=3)]);
    let partition = node.shared_with(2)[0];
    node.put(2, partition, 0b11);
    let pull = loop {
        match node.next() {
            Some(Step::Compare { source, partitions }) => node.compare(source, &partitions),
            Some(Step::Pull(pull)) => break pull,
            None => unreachable!(),
        }
    };
    node.sync.doubt_all(node.now_ms);
    // What the list had been through is lost, and the list comes to its end.
    node.mine.borrow_mut().insert(partition, 0b10);
    node.pulled(&pull, Pulled::All { copies: 2 });
    assert!(!node.sync.is_sure());
    assert_eq!(node.run().1, [(NodeId(2), partition)]);
    assert!(node.sync.is_sure());
}
