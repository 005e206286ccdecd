//! What a change of layout moves.

use std::collections::BTreeMap;

use super::placement::{PARTITIONS, Placement};
use crate::membership::NodeId;

/// The difference between two placements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Partitions that do not have the same owners in both. An order is no difference.
    pub partitions: Vec<usize>,
    /// What it is for each node that it touches.
    pub nodes: BTreeMap<NodeId, Change>,
}

/// What a plan is for a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// Partitions that it gets.
    pub gained: usize,
    /// Partitions that it gives up.
    pub lost: usize,
}

impl Plan {
    /// What has to move for `new` to hold where `old` held.
    pub fn between(old: &Placement, new: &Placement) -> Plan {
        let mut plan = Plan::default();
        for partition in 0..PARTITIONS {
            let (before, after) = (old.owners(partition), new.owners(partition));
            let gained = after.iter().filter(|node| !before.contains(node));
            let lost = before.iter().filter(|node| !after.contains(node));
            gained.clone().for_each(|node| plan.nodes.entry(*node).or_default().gained += 1);
            lost.clone().for_each(|node| plan.nodes.entry(*node).or_default().lost += 1);
            if gained.count() + lost.count() > 0 {
                plan.partitions.push(partition);
            }
        }
        plan
    }

    /// How many copies of a partition are made.
    pub fn copies_moved(&self) -> usize {
        self.nodes.values().map(|change| change.gained).sum()
    }
}
