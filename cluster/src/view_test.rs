//! Views: what several layouts come to together.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::View;
use crate::membership::{Epoch, NodeId, Standing};
use crate::ring::PARTITIONS;
use crate::testing::{plain_layout, state};

#[test]
fn with_one_layout_a_view_has_its_owners_and_candidates() {
    let view = View::new(NodeId(2), state(2, 2, vec![plain_layout(7, 1..=6)]));
    assert_eq!((view.epoch(), view.copies(), view.write_quorum()), (Epoch(7), 2, 2));
    for partition in [0, 99, PARTITIONS - 1] {
        assert_eq!(view.owners(partition), view.placements()[0].owners(partition));
        assert_eq!(view.candidates(partition), view.placements()[0].walk(partition));
    }
    assert!(view.owners(PARTITIONS).is_empty());
    assert!(!view.is_single());
}

#[test]
fn with_several_it_has_those_of_all_the_newest_first_and_each_once() {
    let layouts = vec![plain_layout(1, [1, 2, 3]), plain_layout(2, 1..=4), plain_layout(5, 2..=6)];
    let view = View::new(NodeId(2), state(2, 2, layouts));
    assert_eq!(view.epoch(), Epoch(5));
    let placements = view.placements();
    for partition in 0..PARTITIONS {
        let (owners, candidates) = (view.owners(partition), view.candidates(partition));
        assert!(owners.starts_with(placements[0].owners(partition)));
        assert!(candidates.starts_with(owners));
        let all = |of: fn(&crate::ring::Placement, usize) -> &[NodeId]| -> BTreeSet<NodeId> {
            placements.iter().flat_map(|placement| of(placement, partition)).copied().collect()
        };
        assert_eq!(owners.iter().copied().collect::<BTreeSet<_>>(), all(crate::ring::Placement::owners));
        assert_eq!(candidates.iter().copied().collect::<BTreeSet<_>>(), all(crate::ring::Placement::walk));
        assert_eq!(candidates.iter().collect::<BTreeSet<_>>().len(), candidates.len());
    }
    assert!(view.owners(PARTITIONS).is_empty() && view.candidates(usize::MAX).is_empty());
}

#[test]
fn a_later_view_keeps_the_tables_that_are_still_in_force() {
    let (one, two) = (plain_layout(1, [1, 2, 3]), plain_layout(2, [1, 2, 3, 4]));
    let first = View::new(NodeId(2), state(2, 2, vec![one.clone()]));
    let second = first.next(state(2, 2, vec![one, two.clone()]));
    assert!(Arc::ptr_eq(&first.placements()[0], &second.placements()[1]));
    assert_eq!(second.self_id(), NodeId(2));
    let third = second.next(state(2, 2, vec![two.clone()]));
    assert!(Arc::ptr_eq(&second.placements()[0], &third.placements()[0]));
    assert_eq!(third.owners(8), third.placements()[0].owners(8));
    let more_copies = third.next(state(3, 2, vec![two]));
    assert_eq!(more_copies.owners(8).len(), 3);
}

#[test]
fn quorums_are_capped_by_the_nodes_there_are() {
    let quorum = |nodes: u64, copies, write_quorum| {
        View::new(NodeId(1), state(copies, write_quorum, vec![plain_layout(1, 1..=nodes)])).write_quorum()
    };
    assert_eq!([quorum(1, 3, 2), quorum(2, 3, 3), quorum(5, 3, 2), quorum(5, 2, 9), quorum(0, 2, 2)], [1, 2, 2, 2, 1]);
}

#[test]
fn a_cluster_is_single_when_its_only_node_holds_everything() {
    let single = |layouts| View::new(NodeId(1), state(2, 2, layouts)).is_single();
    assert!(single(vec![plain_layout(1, [1])]));
    assert!(!single(vec![plain_layout(1, [1, 2])]));
    assert!(!single(vec![]), "it is being formed");
    let mut shrunk = state(2, 2, vec![plain_layout(1, [1, 2]), plain_layout(2, [1])]);
    shrunk.members.remove(&NodeId(2));
    assert!(!View::new(NodeId(1), shrunk).is_single(), "the other one may still hold blobs");
}

#[test]
fn while_a_cluster_is_formed_nobody_holds_anything() {
    let view = View::new(NodeId(1), state(2, 2, vec![]));
    assert_eq!((view.epoch(), view.copies()), (Epoch(0), 0));
    assert!(view.owners(0).is_empty() && view.candidates(0).is_empty());
}

#[test]
fn blobs_are_had_from_all_candidates_but_those_lost_or_gone() {
    let mut state = state(2, 2, vec![plain_layout(1, [1, 2, 3]), plain_layout(2, 1..=4)]);
    state.members.get_mut(&NodeId(2)).unwrap().standing = Standing::Lost;
    state.members.get_mut(&NodeId(4)).unwrap().standing = Standing::Draining;
    state.members.remove(&NodeId(3));
    let view = View::new(NodeId(1), state);
    for partition in 0..PARTITIONS {
        let sources: Vec<NodeId> = view.sources(partition).collect();
        let all = view.candidates(partition).iter().filter(|node| ![NodeId(2), NodeId(3)].contains(node));
        assert_eq!(sources, all.copied().collect::<Vec<_>>());
    }
    assert_eq!(view.sources(PARTITIONS).count(), 0);
}
