//! Every write that may be acknowledged against every read: exhaustively, in small clusters.
//!
//! What must hold (G1, G3): a blob that was acknowledged is never called missing, whichever nodes do not answer; it is found
//! when one of its holders answers; and a blob that nobody has is called missing when fewer than W nodes do not answer.

use std::collections::BTreeSet;

use super::testing::{members, subsets, view, view_by};
use super::{Next, ReadDecision, Verdict, WriteDecision};
use crate::membership::NodeId;
use crate::ring::{PARTITIONS, Plan};
use crate::testing::plain_layout;
use crate::view::View;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Found,
    Missing,
    Unavailable,
}

/// Whether a writer with this view answers when these nodes, and no others, have said that they have the blob.
fn is_acknowledged(view: &View, partition: usize, holders: &[NodeId]) -> bool {
    let mut write = WriteDecision::new(view, partition, |_| false);
    for node in holders {
        write.acknowledged(*node);
    }
    write.is_acknowledged()
}

/// A read by this view, where the blob lies on these nodes and those do not answer; `away` ones are known not to.
fn read(view: &View, partition: usize, holders: &[NodeId], failing: &[NodeId], away: &[NodeId]) -> Outcome {
    let mut read = ReadDecision::new(view, partition, |node| (!away.contains(&node)).then_some(node.0));
    let mut asked = BTreeSet::new();
    loop {
        match read.verdict() {
            Verdict::Ask(node) => {
                assert!(asked.insert(node), "node {node} is asked twice");
                if failing.contains(&node) {
                    read.failed(node);
                } else if holders.contains(&node) {
                    return Outcome::Found;
                } else {
                    read.answered_no(node);
                }
            }
            Verdict::Missing => return Outcome::Missing,
            Verdict::Unavailable => return Outcome::Unavailable,
            other => panic!("{other:?}, and nothing is under way"),
        }
    }
}

/// All that must hold between a writer's view and a reader's. Returns how many cases there were.
fn check(writer: &View, reader: &View, partition: usize) -> usize {
    let candidates: Vec<NodeId> =
        writer.candidates(partition).iter().chain(reader.candidates(partition)).copied().collect();
    let candidates: Vec<NodeId> = candidates.iter().collect::<BTreeSet<_>>().into_iter().copied().collect();
    let quorum = reader.placements().iter().map(|placement| reader.write_quorum_by(placement)).min().unwrap();
    let mut cases = 0;
    for holders in subsets(candidates.len()) {
        let holders = members(holders, &candidates);
        let acknowledged = is_acknowledged(writer, partition, &holders);
        if !acknowledged && !holders.is_empty() {
            continue;
        }
        for failing in subsets(candidates.len()) {
            let failing = members(failing, &candidates);
            for away in [&[], failing.as_slice()] {
                cases += 1;
                let outcome = read(reader, partition, &holders, &failing, away);
                let case = || format!("on {holders:?}, silent {failing:?}, away {away:?}");
                let lost = holders.iter().filter(|node| failing.contains(node)).count();
                if acknowledged {
                    assert_ne!(outcome, Outcome::Missing, "{}", case());
                    assert!(outcome == Outcome::Found || lost >= quorum, "{}", case());
                } else if failing.len() < quorum {
                    assert_eq!(outcome, Outcome::Missing, "{}", case());
                }
            }
        }
    }
    cases
}

#[test]
fn what_was_acknowledged_is_found_or_unavailable_and_never_missing() {
    for nodes in 1..=6 {
        for copies in 1..=3 {
            for write_quorum in 1..=copies {
                let view = view(nodes, copies, write_quorum);
                assert!(check(&view, &view, 17) > 0);
            }
        }
    }
}

#[test]
fn it_is_so_too_while_a_layout_is_changed() {
    let sizes: [(&[u64], &[u64]); 6] = [
        (&[1], &[1, 2]),
        (&[1, 2], &[1, 2, 3]),
        (&[1, 2, 3], &[1, 2, 3, 4]),
        (&[1, 2, 3, 4], &[1, 2, 3]),
        (&[1, 2, 3], &[1, 2, 4]),
        (&[1, 2, 3], &[4, 5, 6]),
    ];
    for (old, new) in sizes {
        let (old, new) = (plain_layout(1, old.iter().copied()), plain_layout(2, new.iter().copied()));
        let before = view_by(2, 2, vec![old.clone()]);
        let during = view_by(2, 2, vec![old, new.clone()]);
        let after = view_by(2, 2, vec![new]);
        let plan = Plan::between(&before.placements()[0], &after.placements()[0]);
        let unmoved = (0..PARTITIONS).find(|partition| !plan.partitions.contains(partition));
        for partition in plan.partitions.iter().copied().step_by(1000).chain(unmoved).take(3) {
            for (writer, reader) in [(&before, &during), (&during, &before), (&during, &during)] {
                check(writer, reader, partition);
            }
            for (writer, reader) in [(&during, &after), (&after, &during)] {
                check(writer, reader, partition);
            }
        }
    }
}

#[test]
fn a_write_ends_acknowledged_or_failed_whatever_the_nodes_do() {
    for nodes in 1..=6_u64 {
        for copies in 1..=3 {
            for write_quorum in 1..=copies {
                let view = view(nodes, copies, write_quorum);
                let candidates = view.candidates(17).to_vec();
                for failing in subsets(candidates.len()) {
                    let failing = members(failing, &candidates);
                    for away in [&[], failing.as_slice()] {
                        let (next, holders) = write(&view, &failing, away);
                        let living: Vec<NodeId> =
                            candidates.iter().copied().filter(|node| !failing.contains(node)).collect();
                        let possible = is_acknowledged(&view, 17, &living);
                        let case = format!("{nodes} nodes, {copies}/{write_quorum}, {failing:?} fail, {away:?} away");
                        assert_eq!(next == Next::Done, possible, "{case}");
                        assert_eq!(is_acknowledged(&view, 17, &holders), possible, "{case}");
                    }
                }
            }
        }
    }
}

/// A write to the end. Nodes answer in the order in which they were written to.
fn write(view: &View, failing: &[NodeId], away: &[NodeId]) -> (Next, Vec<NodeId>) {
    let mut write = WriteDecision::new(view, 17, |node| away.contains(&node));
    let mut under_way: Vec<NodeId> = write.targets().collect();
    assert!(under_way.iter().all(|node| !away.contains(node)));
    let mut next = write.go_on();
    loop {
        match next {
            Next::Wait => {
                let node = under_way.remove(0);
                next = if failing.contains(&node) { write.failed(node) } else { write.acknowledged(node) };
            }
            Next::CopyTo(node) => {
                assert!(write.holders().next().is_some(), "there is nothing to copy");
                under_way.push(node);
                next = write.go_on();
            }
            Next::Done | Next::Fail => return (next, write.holders().collect()),
            Next::Behind(epoch) => panic!("behind {epoch}"),
        }
    }
}
