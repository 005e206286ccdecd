//! Reads, step by step.

use super::testing::{view, view_by};
use std::time::Duration;

use super::{MISS_WITHIN_MS, ReadDecision, Verdict};
use crate::membership::{Epoch, NodeId};
use crate::ring::PARTITIONS;
use crate::testing::plain_layout;

fn near(node: NodeId) -> Option<u64> {
    Some(node.0)
}

#[test]
fn owners_are_asked_first_the_nearest_first() {
    let view = view(5, 3, 2);
    let owners = view.owners(9);
    let far_first = |node: NodeId| Some(owners.iter().rev().position(|owner| *owner == node).map_or(0, |at| at as u64));
    let mut read = ReadDecision::new(&view, 9, far_first);
    let mut asked = Vec::new();
    while let Verdict::Ask(node) = read.verdict() {
        asked.push(node);
        read.answered_no(node);
    }
    let mut expected: Vec<NodeId> = owners.iter().rev().copied().collect();
    expected.sort_by_key(|node| *node != NodeId(1)); // its own store is the nearest
    assert_eq!(asked, expected);
    assert_eq!(read.verdict(), Verdict::Missing);
}

#[test]
fn while_owners_answer_no_fallback_is_asked() {
    let view = view(6, 2, 2);
    let owners = view.owners(9);
    let mut read = ReadDecision::new(&view, 9, near);
    let asked = [read.ask_next(), read.ask_next()];
    assert!(owners.iter().all(|owner| asked.contains(&Some(*owner))));
    assert_eq!(read.ask_next(), None);
    assert_eq!(read.verdict(), Verdict::Wait);
    read.answered_no(owners[0]);
    assert_eq!((read.ask_next(), read.verdict()), (None, Verdict::Wait));
    read.answered_no(owners[1]);
    assert_eq!(read.verdict(), Verdict::Missing);
}

#[test]
fn when_an_owner_does_not_answer_the_fallbacks_are_asked() {
    let view = view(6, 2, 2);
    let walk = view.candidates(9);
    let mut read = ReadDecision::new(&view, 9, near);
    read.failed(walk[0]);
    read.answered_no(walk[1]);
    for _ in &walk[2..] {
        let Verdict::Ask(node) = read.verdict() else { panic!("{:?}", read.verdict()) };
        assert!(walk[2..].contains(&node));
        read.answered_no(node);
    }
    // One has not answered, and an acknowledged blob would lie on two.
    assert_eq!(read.verdict(), Verdict::Missing);
}

#[test]
fn as_many_silent_nodes_as_a_quorum_has_are_no_miss() {
    let view = view(6, 2, 2);
    let walk = view.candidates(9);
    let mut read = ReadDecision::new(&view, 9, near);
    walk[..2].iter().for_each(|node| read.failed(*node));
    walk[2..].iter().for_each(|node| read.answered_no(*node));
    assert_eq!(read.verdict(), Verdict::Unavailable);
}

#[test]
fn a_silent_fallback_is_no_matter_when_all_owners_have_answered() {
    let view = view(6, 2, 1);
    let walk = view.candidates(9);
    let mut read = ReadDecision::new(&view, 9, near);
    walk[2..].iter().for_each(|node| read.failed(*node));
    walk[..2].iter().for_each(|node| read.answered_no(*node));
    assert_eq!(read.verdict(), Verdict::Missing);
}

#[test]
fn a_node_that_is_away_is_asked_only_if_its_word_is_needed() {
    let view = view(6, 2, 2);
    // A node is never away for itself.
    let partition = (0..PARTITIONS).find(|partition| view.owners(*partition)[0] != view.self_id()).unwrap();
    let walk = view.candidates(partition);
    // One is away: the others' words suffice.
    let mut read = ReadDecision::new(&view, partition, |node| near(node).filter(|_| node != walk[0]));
    while let Verdict::Ask(node) = read.verdict() {
        assert_ne!(node, walk[0]);
        read.answered_no(node);
    }
    assert_eq!(read.verdict(), Verdict::Missing);
    // Another one fails: now they do not.
    let mut read = ReadDecision::new(&view, partition, |node| near(node).filter(|_| node != walk[0]));
    while let Verdict::Ask(node) = read.verdict() {
        if node == walk[0] {
            break;
        }
        if node == walk[1] { read.failed(node) } else { read.answered_no(node) }
    }
    assert_eq!(read.verdict(), Verdict::Ask(walk[0]));
    read.answered_no(walk[0]);
    assert_eq!(read.verdict(), Verdict::Missing);
}

#[test]
fn during_a_change_the_owners_by_both_layouts_are_asked() {
    let view = view_by(2, 2, vec![plain_layout(1, [1, 2, 3]), plain_layout(2, [4, 5, 6])]);
    let owners = view.owners(9);
    assert_eq!(owners.len(), 4);
    let mut read = ReadDecision::new(&view, 9, near);
    for _ in owners {
        let Verdict::Ask(node) = read.verdict() else { panic!("{:?}", read.verdict()) };
        assert!(owners.contains(&node));
        read.answered_no(node);
    }
    assert_eq!(read.verdict(), Verdict::Missing);
}

#[test]
fn a_no_by_a_newer_layout_is_no_fact_before_the_view_has_it() {
    let (old, new) = (plain_layout(1, [1, 2, 3]), plain_layout(2, [4, 5, 6]));
    let view = view_by(2, 2, vec![old]);
    let mut read = ReadDecision::new(&view, 9, near);
    read.heard(Epoch(2));
    view.owners(9).iter().for_each(|node| read.answered_no(*node));
    assert_eq!(read.verdict(), Verdict::Behind(Epoch(2)));
    let later = view_by(2, 2, vec![new]);
    read.revise(&later, near);
    let Verdict::Ask(node) = read.verdict() else { panic!("{:?}", read.verdict()) };
    assert!(later.owners(9).contains(&node));
}

#[test]
fn without_nodes_nothing_is_a_fact() {
    let view = view_by(2, 2, vec![plain_layout(1, [])]);
    assert_eq!(ReadDecision::new(&view, 9, near).verdict(), Verdict::Unavailable);
}

#[test]
fn a_search_that_took_long_does_not_say_that_there_is_nothing() {
    let view = view(5, 2, 2);
    let mut read = ReadDecision::new(&view, 9, |node| Some(node.0));
    while let Some(node) = read.ask_next() {
        read.answered_no(node);
    }
    assert_eq!(read.verdict_after(Duration::from_millis(MISS_WITHIN_MS)), Verdict::Missing);
    assert_eq!(read.verdict_after(Duration::from_millis(MISS_WITHIN_MS + 1)), Verdict::Unavailable);
}
