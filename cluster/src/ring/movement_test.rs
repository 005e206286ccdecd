//! How even loads are, and how much moves when a node comes or goes, from 3 to 100 nodes. `-- --nocapture` shows figures.

use std::collections::BTreeMap;

use rand::RngExt as _;

use super::*;
use crate::membership::NodeId;
use crate::testing::{plain_layout, random, seed};

/// The largest load, as a multiple of the fair share.
fn worst_load(placement: &Placement, nodes: u64) -> f64 {
    let fair = (PARTITIONS * placement.owner_count()) as f64 / nodes as f64;
    *placement.loads().values().max().unwrap() as f64 / fair
}

/// What is moved from one placement to the other, as a multiple of what the node that came or went holds when it is there.
fn moved(old: &Placement, new: &Placement, larger_nodes: u64) -> f64 {
    let ideal = (PARTITIONS * new.owner_count()) as f64 / larger_nodes as f64;
    Plan::between(old, new).copies_moved() as f64 / ideal
}

#[test]
fn loads_are_even_and_a_change_moves_little_at_every_size() {
    for copies in [2, 3] {
        let placement = |nodes: u64| Placement::of(&plain_layout(1, 1..=nodes), copies);
        let mut before = placement(u64::from(copies));
        let mut worst = BTreeMap::new();
        for nodes in u64::from(copies) + 1..=100 {
            let now = placement(nodes);
            let gone = nodes / 2 + 1;
            let without = Placement::of(&plain_layout(1, (1..=nodes).filter(|id| *id != gone)), copies);

            let load = worst_load(&now, nodes);
            let (join, leave) = (moved(&before, &now, nodes), moved(&now, &without, nodes));
            assert!(load <= 1.06, "{copies} copies, {nodes} nodes: a load of {load:.4}");
            let bound = if nodes <= 24 { 1.15 } else { 1.5 };
            assert!(join <= bound, "{copies} copies, {nodes} nodes: the last one's join moves {join:.3}");
            assert!(leave <= bound, "{copies} copies, {nodes} nodes: {gone}'s leaving moves {leave:.3}");
            let size = if nodes <= 24 { 24 } else { 100 };
            let worst: &mut [f64; 3] = worst.entry(size).or_default();
            for (worst, value) in worst.iter_mut().zip([load, join, leave]) {
                *worst = worst.max(value);
            }
            before = now;
        }
        for (size, [load, join, leave]) in worst {
            println!("{copies} copies, up to {size} nodes: load {load:.4}, join {join:.3}, leave {leave:.3}");
        }
    }
}

#[test]
fn it_does_not_take_particular_ids() {
    let mut random = random(seed());
    for _ in 0..12 {
        let copies = random.random_range(2..=3);
        let nodes = random.random_range(4..=24_u64);
        let ids: Vec<u64> = (0..nodes).map(|at| 1000 * at + random.random_range(0..1000)).collect();
        let gone = ids[random.random_range(0..ids.len())];
        let with = Placement::of(&plain_layout(1, ids.clone()), copies);
        let without = Placement::of(&plain_layout(1, ids.iter().copied().filter(|id| *id != gone)), copies);
        assert!(worst_load(&with, nodes) <= 1.06, "{ids:?}");
        let (leave, join) = (moved(&with, &without, nodes), moved(&without, &with, nodes));
        // Twice three standard deviations of what was measured over many: 1.03 in the mean at 24 nodes, 1.09 at the worst.
        assert!(leave.max(join) <= 1.2, "{copies} copies, {ids:?} without {gone}: {leave:.3} {join:.3}");
    }
}

#[test]
fn a_plan_says_who_gains_and_who_gives_up() {
    let old = Placement::of(&plain_layout(1, 1..=3), 2);
    let new = Placement::of(&plain_layout(2, 1..=4), 2);
    let plan = Plan::between(&old, &new);
    let joined = plan.nodes[&NodeId(4)];
    assert_eq!((joined.gained, joined.lost), (new.loads()[&NodeId(4)], 0));
    for (node, load) in old.loads() {
        let change = plan.nodes.get(&node).copied().unwrap_or_default();
        assert_eq!(load + change.gained - change.lost, new.loads()[&node]);
    }
    for partition in 0..PARTITIONS {
        let sorted = |placement: &Placement| {
            let mut owners = placement.owners(partition).to_vec();
            owners.sort_unstable();
            owners
        };
        assert_eq!(plan.partitions.contains(&partition), sorted(&old) != sorted(&new));
    }
    assert_eq!(Plan::between(&old, &old), Plan::default());
}
