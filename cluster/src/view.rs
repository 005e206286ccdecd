//! A node's view of the cluster: the state that it has applied, and the tables that follow from it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::membership::{ClusterId, ClusterState, Epoch, Member, NodeId, Protocol, Rebalance, Standing};
use crate::ring::{PARTITIONS, Placement};

/// The cluster as one node sees it at one position of the log. Never changed: a change of the state makes another one, and
/// whoever works by the old one goes on with it. To be shared by `Arc`; look-ups take no memory.
#[derive(Debug)]
pub struct View {
    self_id: NodeId,
    state: ClusterState,
    /// One for each layout in force, the newest first.
    placements: Vec<Arc<Placement>>,
    /// Of all layouts together; `None` where there is one, whose own table will do.
    joint: Option<Arc<Joint>>,
}

/// Owners and candidates of each partition by several layouts together.
#[derive(Debug)]
struct Joint {
    /// For each partition: where its row begins, where its owners end, where it ends.
    rows: Vec<[usize; 3]>,
    nodes: Vec<NodeId>,
}

impl View {
    /// The view of a node by a state. Makes a table for each layout: some milliseconds each.
    pub fn new(self_id: NodeId, state: ClusterState) -> View {
        View::made(self_id, state, &[], None)
    }

    /// The view of a node that knows of no cluster: nobody owns anything, and nothing can be said.
    pub fn none() -> View {
        let state = ClusterState {
            id: ClusterId([0; 16]),
            name: String::new(),
            copies: 1,
            write_quorum: 1,
            protocol: Protocol::default(),
            next_node_id: NodeId(0),
            expected_members: 0,
            rebalance: Rebalance::Automatic,
            planned: Epoch::default(),
            members: BTreeMap::new(),
            layouts: Vec::new(),
        };
        View::new(NodeId(0), state)
    }

    /// Whether blobs have a place: the cluster has its first members, and this node knows of them.
    pub fn is_settled(&self) -> bool {
        !self.placements.is_empty()
    }

    /// The view by a later state. Tables of layouts that are still in force are kept.
    pub fn next(&self, state: ClusterState) -> View {
        let kept = if state.copies == self.state.copies { self.placements.as_slice() } else { &[] };
        View::made(self.self_id, state, kept, self.joint.as_ref())
    }

    /// The view of a node by a state, with tables that have been made already of some of its layouts.
    pub fn with_tables(self_id: NodeId, state: ClusterState, tables: &[Arc<Placement>]) -> View {
        View::made(self_id, state, tables, None)
    }

    /// The same as another node sees it that has applied the same.
    pub fn seen_by(&self, node: NodeId) -> View {
        let (state, placements, joint) = (self.state.clone(), self.placements.clone(), self.joint.clone());
        View { self_id: node, state, placements, joint }
    }

    fn made(self_id: NodeId, state: ClusterState, kept: &[Arc<Placement>], joint: Option<&Arc<Joint>>) -> View {
        let placement = |epoch: Epoch| kept.iter().find(|placement| placement.epoch() == epoch).cloned();
        let placements: Vec<Arc<Placement>> = state
            .layouts
            .iter()
            .rev()
            .map(|layout| placement(layout.epoch).unwrap_or_else(|| Arc::new(Placement::of(layout, state.copies))))
            .collect();
        let unchanged = placements.len() == kept.len() && placements.iter().zip(kept).all(|(a, b)| Arc::ptr_eq(a, b));
        let joint = match joint {
            Some(joint) if unchanged => Some(joint.clone()),
            _ if placements.len() > 1 => Some(Arc::new(Joint::of(&placements))),
            _ => None,
        };
        View { self_id, state, placements, joint }
    }

    /// The node whose view it is.
    pub fn self_id(&self) -> NodeId {
        self.self_id
    }

    /// What the cluster has agreed on.
    pub fn state(&self) -> &ClusterState {
        &self.state
    }

    /// The tables of the layouts in force, the newest first.
    pub fn placements(&self) -> &[Arc<Placement>] {
        &self.placements
    }

    /// Whether blobs lie as by another view: the same layouts are in force.
    pub fn is_placed_as(&self, other: &View) -> bool {
        let epochs = |view: &View| view.placements.iter().map(|placement| placement.epoch()).collect::<Vec<_>>();
        epochs(self) == epochs(other)
    }

    /// The newest layout's.
    pub fn epoch(&self) -> Epoch {
        self.placements.first().map_or(Epoch::default(), |placement| placement.epoch())
    }

    /// How many copies of a blob are kept: as configured, or as many as there are nodes to hold them.
    pub fn copies(&self) -> usize {
        self.placements.first().map_or(0, |placement| placement.owner_count())
    }

    /// How many copies make a write acknowledged: as configured, or as many as there are copies.
    pub fn write_quorum(&self) -> usize {
        self.placements.first().map_or(1, |placement| self.write_quorum_by(placement))
    }

    /// The same by one of the layouts in force.
    pub fn write_quorum_by(&self, placement: &Placement) -> usize {
        usize::from(self.state.write_quorum).min(placement.owner_count()).max(1)
    }

    /// The owners of a partition by all layouts in force, the newest layout's first.
    pub fn owners(&self, partition: usize) -> &[NodeId] {
        match &self.joint {
            Some(joint) => joint.row(partition, |[start, owners, _]| start..owners),
            None => self.placements.first().map_or(&[], |placement| placement.owners(partition)),
        }
    }

    /// All nodes that may hold a blob of a partition: the owners by all layouts in force, then the fallbacks.
    pub fn candidates(&self, partition: usize) -> &[NodeId] {
        match &self.joint {
            Some(joint) => joint.row(partition, |[start, _, end]| start..end),
            None => self.placements.first().map_or(&[], |placement| placement.walk(partition)),
        }
    }

    /// The nodes from which a blob of a partition can be had: the candidates that are members and are not lost.
    pub fn sources(&self, partition: usize) -> impl Iterator<Item = NodeId> {
        let is_there = |node: &&NodeId| self.member(**node).is_some_and(|member| member.standing != Standing::Lost);
        self.candidates(partition).iter().filter(is_there).copied()
    }

    /// Whether a node owns a partition by any layout in force.
    pub fn owns(&self, node: NodeId, partition: usize) -> bool {
        self.owners(partition).contains(&node)
    }

    /// A member of the cluster.
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.state.members.get(&id)
    }

    /// The zone of a node: what fails together with it. Empty if unknown.
    pub fn zone(&self, id: NodeId) -> &str {
        self.member(id).map_or("", |member| member.zone.as_str())
    }

    /// Whether it is a cluster of one, which holds all there is itself. Not one that is being formed: that holds nothing yet.
    pub fn is_single(&self) -> bool {
        let holders = self.placements.iter().map(|placement| placement.walk(0));
        self.state.members.len() <= 1
            && !self.placements.is_empty()
            && holders.flatten().all(|node| *node == self.self_id)
    }
}

impl Joint {
    fn of(placements: &[Arc<Placement>]) -> Joint {
        let mut joint = Joint { rows: Vec::with_capacity(PARTITIONS), nodes: Vec::new() };
        for partition in 0..PARTITIONS {
            let start = joint.nodes.len();
            placements.iter().for_each(|placement| joint.extend(start, placement.owners(partition)));
            let owners = joint.nodes.len();
            placements.iter().for_each(|placement| joint.extend(start, placement.walk(partition)));
            joint.rows.push([start, owners, joint.nodes.len()]);
        }
        joint
    }

    /// Adds those that the row from `start` on does not have.
    fn extend(&mut self, start: usize, nodes: &[NodeId]) {
        for node in nodes {
            if !self.nodes.iter().skip(start).any(|other| other == node) {
                self.nodes.push(*node);
            }
        }
    }

    fn row(&self, partition: usize, part: impl Fn([usize; 3]) -> std::ops::Range<usize>) -> &[NodeId] {
        self.rows.get(partition).and_then(|row| self.nodes.get(part(*row))).unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "view_test.rs"]
mod tests;
