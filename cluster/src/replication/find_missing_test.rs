//! FindMissingBlobs over several nodes.

use std::collections::BTreeMap;

use super::testing::{view, view_by};
use super::{FindMissing, Found};
use crate::membership::NodeId;
use crate::testing::plain_layout;

#[test]
fn every_owner_is_asked_once_for_all_that_it_owns() {
    let view = view(5, 2, 2);
    let partitions = [3, 900, 3, 4000, 77];
    let find = FindMissing::new(&view, partitions.into_iter());
    let calls: BTreeMap<NodeId, Vec<u32>> = find.calls().map(|(node, digests)| (node, digests.to_vec())).collect();
    assert_eq!(calls.len(), find.calls().count());
    for (position, partition) in (0..).zip(partitions) {
        for node in (1..=5).map(NodeId) {
            let asked = calls.get(&node).is_some_and(|digests| digests.contains(&position));
            assert_eq!(asked, view.owners(partition).contains(&node));
        }
    }
}

#[test]
fn a_digest_is_present_when_one_owner_says_so_and_the_other_one_is_named() {
    let view = view(3, 2, 2);
    let owners = view.owners(3);
    let mut find = FindMissing::new(&view, [3, 3, 3].into_iter());
    find.answered(owners[0], [1, 2]);
    find.answered(owners[1], [0, 2]);
    let lacking = vec![(1, owners[0]), (0, owners[1])];
    assert_eq!(find.finish(), Found { missing: vec![2], lacking });
}

#[test]
fn a_node_that_says_nothing_makes_nothing_present() {
    let view = view(3, 2, 2);
    let owners = view.owners(3);
    let find = FindMissing::new(&view, [3, 3].into_iter());
    assert_eq!(find.finish(), Found { missing: vec![0, 1], lacking: vec![] });
    let mut find = FindMissing::new(&view, [3, 3].into_iter());
    find.answered(owners[1], [1]);
    assert_eq!(find.finish(), Found { missing: vec![1], lacking: vec![] });
    let mut find = FindMissing::new(&view, [3].into_iter());
    let stranger = (1..=3).map(NodeId).find(|node| !owners.contains(node)).unwrap();
    find.answered(stranger, []);
    assert_eq!(find.finish().missing, [0]);
}

#[test]
fn during_a_change_the_owners_by_both_layouts_are_asked() {
    let view = view_by(2, 2, vec![plain_layout(1, [1, 2]), plain_layout(2, [3, 4])]);
    let mut find = FindMissing::new(&view, [3].into_iter());
    assert_eq!(find.calls().count(), 4);
    for node in [3, 4, 1] {
        find.answered(NodeId(node), [0]);
    }
    find.answered(NodeId(2), []);
    assert_eq!(find.finish().missing, []);
}
