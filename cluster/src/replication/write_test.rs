//! Writes, step by step.

use super::testing::{view, view_by};
use super::{Next, WriteDecision};
use crate::membership::{Epoch, NodeId};
use crate::ring::PARTITIONS;
use crate::testing::{layout, plain_layout};

fn targets(write: &WriteDecision) -> Vec<NodeId> {
    write.targets().collect()
}

#[test]
fn a_write_goes_to_the_owners_and_is_done_when_enough_have_it() {
    let view = view(5, 3, 2);
    let owners = view.owners(9);
    let mut write = WriteDecision::new(&view, 9, |_| false);
    assert_eq!(targets(&write), owners);
    assert_eq!(write.acknowledged(owners[2]), Next::Wait);
    assert_eq!(write.acknowledged(owners[2]), Next::Wait, "one node's word counts once");
    assert_eq!(write.acknowledged(owners[0]), Next::Done);
    assert_eq!(targets(&write), [owners[1]], "the third may be finished");
    assert_eq!(write.failed(owners[1]), Next::Done);
}

#[test]
fn the_next_node_of_the_walk_takes_the_place_of_an_owner_that_is_away() {
    let view = view(5, 2, 2);
    let walk = view.candidates(9);
    let mut write = WriteDecision::new(&view, 9, |node| node == walk[0]);
    assert_eq!(targets(&write), [walk[1], walk[2]]);
    assert_eq!(write.acknowledged(walk[2]), Next::Wait);
    assert_eq!(write.acknowledged(walk[1]), Next::Done);
}

#[test]
fn a_node_that_cannot_be_reached_at_all_is_replaced_before_the_stream_begins() {
    let view = view(5, 2, 2);
    let walk = view.candidates(9);
    let mut write = WriteDecision::new(&view, 9, |_| false);
    assert_eq!(write.replace(walk[0]), Some(walk[2]));
    assert_eq!(targets(&write), [walk[1], walk[2]]);
    let others = [write.replace(walk[2]), write.replace(walk[3]), write.replace(walk[4])];
    assert_eq!(others, [Some(walk[3]), Some(walk[4]), None]);
}

#[test]
fn a_write_that_lost_a_node_midway_is_copied_from_one_that_has_it() {
    let view = view(5, 2, 2);
    let walk = view.candidates(9);
    let mut write = WriteDecision::new(&view, 9, |_| false);
    assert_eq!(write.failed(walk[0]), Next::Wait, "there is nothing to copy yet");
    assert_eq!(write.acknowledged(walk[1]), Next::CopyTo(walk[2]));
    assert_eq!(write.go_on(), Next::Wait);
    assert_eq!(write.failed(walk[2]), Next::CopyTo(walk[3]));
    assert_eq!(write.acknowledged(walk[3]), Next::Done);
}

#[test]
fn a_copy_on_an_owner_there_must_be() {
    let view = view(5, 2, 2);
    let walk = view.candidates(9);
    let mut write = WriteDecision::new(&view, 9, |node| walk[..2].contains(&node));
    assert_eq!(targets(&write), [walk[2], walk[3]]);
    // Two have it, and neither is an owner: the owners are tried although they are said to be away.
    assert_eq!(write.acknowledged(walk[2]), Next::CopyTo(walk[0]));
    assert_eq!(write.acknowledged(walk[3]), Next::Wait);
    assert_eq!(write.failed(walk[0]), Next::CopyTo(walk[1]));
    assert_eq!(write.failed(walk[1]), Next::Fail);
}

#[test]
fn a_write_fails_when_nobody_has_it() {
    let view = view(5, 2, 2);
    let walk = view.candidates(9);
    let mut write = WriteDecision::new(&view, 9, |_| false);
    assert_eq!(write.failed(walk[0]), Next::Wait);
    assert_eq!(write.failed(walk[1]), Next::Fail);
}

#[test]
fn a_cluster_of_one_needs_itself() {
    let view = view(1, 3, 2);
    assert_eq!((view.copies(), view.write_quorum(), view.is_single()), (1, 1, true));
    let mut write = WriteDecision::new(&view, 9, |_| false);
    assert_eq!(targets(&write), [NodeId(1)]);
    assert_eq!(write.acknowledged(NodeId(1)), Next::Done);
}

#[test]
fn a_stand_in_is_taken_from_a_zone_that_has_no_copy() {
    let zones = [(1, "a"), (2, "a"), (3, "a"), (4, "a"), (5, "b"), (6, "b")];
    let view = view_by(2, 2, vec![layout(1, zones.map(|(id, zone)| (id, zone, 100)))]);
    for partition in (0..PARTITIONS).step_by(37) {
        for owner in view.owners(partition) {
            let write = WriteDecision::new(&view, partition, |node| node == *owner);
            let zones: Vec<&str> = write.targets().map(|node| view.zone(node)).collect();
            assert_eq!(zones.len(), 2);
            assert_ne!(zones[0], zones[1], "partition {partition} without {owner}");
        }
    }
}

#[test]
fn during_a_change_a_write_is_acknowledged_by_both_layouts() {
    let view = view_by(2, 2, vec![plain_layout(1, [1, 2, 3]), plain_layout(2, [4, 5, 6])]);
    let mut write = WriteDecision::new(&view, 9, |_| false);
    let (new, old) = (view.placements()[0].owners(9), view.placements()[1].owners(9));
    assert_eq!(targets(&write), [new, old].concat());
    assert_eq!(write.acknowledged(new[0]), Next::Wait);
    assert_eq!(write.acknowledged(new[1]), Next::Wait, "readers by the old layout would not find it");
    assert_eq!(write.acknowledged(old[1]), Next::Wait);
    assert_eq!(write.acknowledged(old[0]), Next::Done);
}

#[test]
fn an_answer_by_a_newer_layout_is_not_counted_before_the_view_has_it() {
    let (old, new) = (plain_layout(1, [1, 2, 3]), plain_layout(2, [4, 5, 6]));
    let view = view_by(2, 2, vec![old.clone()]);
    let owners = view.owners(9).to_vec();
    let mut write = WriteDecision::new(&view, 9, |_| false);
    write.heard(Epoch(1));
    assert_eq!(write.acknowledged(owners[0]), Next::Wait);
    write.heard(Epoch(2));
    assert_eq!(write.acknowledged(owners[1]), Next::Behind(Epoch(2)));
    assert!(!write.is_acknowledged());

    let later = view_by(2, 2, vec![old, new]);
    let new_owners = later.placements()[0].owners(9);
    assert_eq!(write.revise(&later, |_| false), Next::CopyTo(new_owners[0]));
    assert_eq!(write.go_on(), Next::CopyTo(new_owners[1]));
    assert_eq!(write.go_on(), Next::Wait);
    assert_eq!(write.acknowledged(new_owners[0]), Next::Wait);
    assert_eq!(write.acknowledged(new_owners[1]), Next::Done);
}

#[test]
fn without_nodes_nothing_is_acknowledged() {
    let view = view_by(2, 2, vec![plain_layout(1, [])]);
    let mut write = WriteDecision::new(&view, 9, |_| false);
    assert_eq!(write.go_on(), Next::Fail);
}

#[test]
fn nodes_that_are_no_candidates_do_not_count() {
    let view = view(9, 2, 2);
    let owners = view.owners(9);
    let stranger = (1..=9).map(NodeId).find(|node| !view.candidates(9).contains(node)).unwrap();
    let mut write = WriteDecision::new(&view, 9, |_| false);
    assert_eq!(write.acknowledged(stranger), Next::Wait);
    assert_eq!(write.acknowledged(owners[0]), Next::Wait);
}
