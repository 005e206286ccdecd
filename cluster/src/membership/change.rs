//! Changes of the cluster's state: each is a committed command, and does the same on every node.
//!
//! Layouts follow from members by one rule, [`ClusterState::settle`]: whenever the newest layout is not what the members make,
//! another one is appended, and the older ones stay in force until every member has synced to it. A cluster begins without
//! a layout: the first one is made when the expected members are there, so that no blob ever lies by fewer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ids::{ClusterId, Epoch, NodeId};
use super::introduction::Joiner;
use super::state::{ClusterState, Layout, LayoutNode, Member, Part};

/// Nodes of a cluster, at the most. What placement and the group are made and tested for.
pub const MEMBERS_MAX: usize = 100;

/// Layouts in force at one time, at the most: each has to be asked on a miss. Further changes wait for one to be retired, and
/// then go into one layout together.
pub const LAYOUTS_MAX: usize = 4;

/// For how long a leader waits for the expected members before it begins with those who have come. They were all there when
/// the cluster was formed, and join within a moment; one that was lost in it must not keep the others from serving.
pub const FIRST_LAYOUT_PATIENCE_MS: u64 = 60_000;

/// Why the cluster's state is not changed. Part of the format of answers between nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// A node is of another cluster.
    #[error("the cluster's name is \"{name}\"")]
    ClusterName {
        /// This cluster's.
        name: String,
    },
    /// It has a name that a node has that is there.
    #[error("node {node} has the name \"{name}\", and another directory")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        node: NodeId,
    },
    /// It does not say its name.
    #[error("a node needs a name")]
    NoName,
    /// There are as many nodes as there can be.
    #[error("a cluster has {MEMBERS_MAX} nodes at the most")]
    Full,
    /// There is no such node.
    #[error("there is no node {node}")]
    UnknownNode {
        /// As asked for.
        node: NodeId,
    },
    /// It would leave nobody.
    #[error("node {node} is the last one of the cluster")]
    LastNode {
        /// As asked for.
        node: NodeId,
    },
    /// Nothing moves to a layout that is not in force.
    #[error("the layout of epoch {epoch} is not in force")]
    UnknownLayout {
        /// As reported.
        epoch: Epoch,
    },
}

impl ClusterState {
    /// A cluster that its founder forms, of itself alone; so many members are expected before blobs are placed.
    pub fn formed(
        id: ClusterId,
        name: String,
        (copies, write_quorum): (u8, u8),
        expected_members: u32,
        founder: Joiner,
    ) -> ClusterState {
        let mut state = ClusterState {
            id,
            name,
            copies,
            write_quorum,
            next_node_id: NodeId(1),
            expected_members,
            members: BTreeMap::new(),
            layouts: Vec::new(),
        };
        let founder = state.add(founder);
        state.set_part(founder, Part::Voter);
        state
    }

    /// Lets a node in: under its old id if its directory is known, and then by what it says now of its name, address, zone and
    /// weight; under a new one otherwise. `replaces` is a member that is known to be gone: whose name it may take, and whose
    /// place it takes.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub fn admit(&mut self, joiner: Joiner, replaces: Option<NodeId>) -> Result<NodeId, Refusal> {
        if joiner.name.is_empty() {
            return Err(Refusal::NoName);
        }
        let known = self.members.iter().find(|(_, member)| member.volume == joiner.volume).map(|(id, _)| *id);
        let namesake = self.members.iter().find(|(id, member)| member.name == joiner.name && Some(**id) != known);
        let namesake = namesake.map(|(id, _)| *id);
        match namesake {
            Some(node) if replaces != Some(node) => return Err(Refusal::NameTaken { name: joiner.name, node }),
            None if known.is_none() && self.members.len() >= MEMBERS_MAX => return Err(Refusal::Full),
            _ => {}
        }
        if let Some(node) = namesake {
            self.members.remove(&node);
        }
        let id = match known.and_then(|id| Some((id, self.members.get_mut(&id)?))) {
            Some((id, member)) => {
                let Joiner { name, address, volume, zone, weight } = joiner;
                *member = Member { name, address, volume, zone, weight, part: member.part, synced: member.synced };
                id
            }
            None => self.add(joiner),
        };
        self.settle();
        Ok(id)
    }

    /// Takes a node out. It is not let in again under this id.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub fn remove(&mut self, node: NodeId) -> Result<(), Refusal> {
        if !self.members.contains_key(&node) {
            return Err(Refusal::UnknownNode { node });
        }
        if self.members.len() == 1 {
            return Err(Refusal::LastNode { node });
        }
        self.members.remove(&node);
        self.retire();
        self.settle();
        Ok(())
    }

    /// Places blobs on the members that there are, without waiting for others. For a founder whose peers are late.
    pub fn begin(&mut self) {
        if self.layouts.is_empty() {
            self.expected_members = 0;
            self.settle();
        }
    }

    /// A node has all that the layout of this epoch gives it, and decides by nothing older. When every member has, the older
    /// layouts are retired: also those members that hold nothing, as they decide too.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub fn synced(&mut self, node: NodeId, epoch: Epoch) -> Result<(), Refusal> {
        if !self.layouts.iter().any(|layout| layout.epoch == epoch) {
            return Err(Refusal::UnknownLayout { epoch });
        }
        let member = self.members.get_mut(&node).ok_or(Refusal::UnknownNode { node })?;
        member.synced = member.synced.max(epoch);
        self.retire();
        self.settle();
        Ok(())
    }

    /// Notes what part a node has in the Raft group.
    pub fn set_part(&mut self, node: NodeId, part: Part) {
        if let Some(member) = self.members.get_mut(&node) {
            member.part = part;
        }
    }

    fn add(&mut self, joiner: Joiner) -> NodeId {
        let id = self.next_node_id;
        self.next_node_id = NodeId(id.0 + 1);
        let Joiner { name, address, volume, zone, weight } = joiner;
        let member = Member { name, address, volume, zone, weight, part: Part::Watcher, synced: Epoch::default() };
        self.members.insert(id, member);
        self.settle();
        id
    }

    /// Appends the layout that the members make, if it is another one than the newest and there is room for it.
    fn settle(&mut self) {
        let is_forming = self.layouts.is_empty() && (self.members.len() as u64) < u64::from(self.expected_members);
        let node = |member: &Member| LayoutNode { zone: member.zone.clone(), weight: member.weight };
        let nodes: BTreeMap<NodeId, LayoutNode> = self.members.iter().map(|(id, m)| (*id, node(m))).collect();
        let newest = self.layouts.last();
        if is_forming || newest.is_some_and(|layout| layout.nodes == nodes) || self.layouts.len() >= LAYOUTS_MAX {
            return;
        }
        let epoch = Epoch(newest.map_or(0, |layout| layout.epoch.0) + 1);
        self.layouts.push(Layout { epoch, nodes });
    }

    /// Drops the layouts before the newest one that all members have synced to.
    fn retire(&mut self) {
        let all_synced = |epoch| self.members.values().all(|member| member.synced >= epoch);
        if let Some(at) = self.layouts.iter().rposition(|layout| all_synced(layout.epoch)) {
            self.layouts.drain(..at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::VolumeId;

    fn joiner(name: &str, volume: u8) -> Joiner {
        let address = format!("{name}.test:7980");
        Joiner { name: name.to_owned(), address, volume: VolumeId([volume; 16]), zone: String::new(), weight: 100 }
    }

    fn formed(expected: u32) -> ClusterState {
        ClusterState::formed(ClusterId([1; 16]), "farm".to_owned(), (2, 2), expected, joiner("a", 1))
    }

    /// Formed of three.
    fn three() -> ClusterState {
        let mut state = formed(3);
        state.admit(joiner("b", 2), None).unwrap();
        state.admit(joiner("c", 3), None).unwrap();
        state
    }

    fn layouts(state: &ClusterState) -> Vec<(u64, Vec<u64>)> {
        let nodes = |layout: &Layout| layout.nodes.keys().map(|node| node.0).collect();
        state.layouts.iter().map(|layout| (layout.epoch.0, nodes(layout))).collect()
    }

    #[test]
    fn a_cluster_of_one_places_blobs_at_once() {
        for expected in [0, 1] {
            let state = formed(expected);
            assert_eq!(layouts(&state), [(1, vec![1])]);
            assert_eq!(state.members[&NodeId(1)].part, Part::Voter);
        }
    }

    #[test]
    fn a_cluster_of_several_begins_with_one_layout_of_all() {
        let mut state = formed(3);
        assert_eq!(layouts(&state), []);
        assert_eq!(state.admit(joiner("b", 2), None), Ok(NodeId(2)));
        assert_eq!(layouts(&state), []);
        assert_eq!(state.admit(joiner("c", 3), None), Ok(NodeId(3)));
        assert_eq!(layouts(&state), [(1, vec![1, 2, 3])]);
        assert_eq!(state, three());
    }

    #[test]
    fn a_founder_may_begin_with_those_who_came() {
        let mut state = formed(3);
        state.admit(joiner("b", 2), None).unwrap();
        state.begin();
        assert_eq!(layouts(&state), [(1, vec![1, 2])]);
        state.begin();
        state.admit(joiner("c", 3), None).unwrap();
        assert_eq!(layouts(&state), [(1, vec![1, 2]), (2, vec![1, 2, 3])]);
    }

    #[test]
    fn a_node_whose_directory_is_known_gets_its_old_id_and_says_anew_where_it_is() {
        let mut state = three();
        let moved = Joiner { address: "elsewhere.test:7980".to_owned(), ..joiner("b", 2) };
        assert_eq!(state.admit(moved, None), Ok(NodeId(2)));
        assert_eq!(state.members[&NodeId(2)].address, "elsewhere.test:7980");
        assert_eq!(layouts(&state).len(), 1, "an address is no matter of layouts");
        let heavier = Joiner { weight: 300, name: "b2".to_owned(), ..joiner("b", 2) };
        assert_eq!(state.admit(heavier, None), Ok(NodeId(2)));
        assert_eq!(layouts(&state).len(), 2);
        assert_eq!(state.layouts[1].nodes[&NodeId(2)].weight, 300);
        assert_eq!(state.next_node_id, NodeId(4));
    }

    #[test]
    fn a_node_that_comes_back_with_an_empty_directory_takes_the_place_of_the_old_one() {
        let mut state = three();
        assert_eq!(state.admit(joiner("b", 9), Some(NodeId(2))), Ok(NodeId(4)));
        assert_eq!(state.members.keys().map(|id| id.0).collect::<Vec<_>>(), [1, 3, 4]);
        // The old one's place stays asked for until the new one has been filled.
        assert_eq!(layouts(&state), [(1, vec![1, 2, 3]), (2, vec![1, 3, 4])]);
    }

    #[test]
    fn a_name_is_not_taken_from_a_node_that_is_there() {
        let mut state = three();
        let before = state.clone();
        let taken = Refusal::NameTaken { name: "b".to_owned(), node: NodeId(2) };
        assert_eq!(state.admit(joiner("b", 9), None), Err(taken.clone()));
        assert_eq!(state.admit(joiner("b", 9), Some(NodeId(3))), Err(taken.clone()));
        assert_eq!(state.admit(joiner("b", 3), None), Err(taken), "nor by a member");
        assert_eq!(state.admit(joiner("", 9), None), Err(Refusal::NoName));
        assert_eq!(state, before);
    }

    #[test]
    fn a_member_that_is_gone_is_replaced_only_by_its_name() {
        let mut state = three();
        assert_eq!(state.admit(joiner("d", 9), Some(NodeId(2))), Ok(NodeId(4)));
        assert!(state.members.contains_key(&NodeId(2)));
    }

    #[test]
    fn an_id_is_never_given_again() {
        let mut state = three();
        state.remove(NodeId(3)).unwrap();
        assert_eq!(state.admit(joiner("c", 3), None), Ok(NodeId(4)));
        assert_eq!(layouts(&state), [(1, vec![1, 2, 3]), (2, vec![1, 2]), (3, vec![1, 2, 4])]);
    }

    #[test]
    fn neither_a_stranger_nor_the_last_node_is_removed() {
        let mut state = formed(1);
        assert_eq!(state.remove(NodeId(7)), Err(Refusal::UnknownNode { node: NodeId(7) }));
        assert_eq!(state.remove(NodeId(1)), Err(Refusal::LastNode { node: NodeId(1) }));
        assert_eq!(state, formed(1));
    }

    #[test]
    fn an_older_layout_is_retired_when_all_have_synced_and_not_before() {
        let mut state = three();
        state.admit(joiner("d", 4), None).unwrap();
        for node in [1, 2, 3] {
            state.synced(NodeId(node), Epoch(2)).unwrap();
            state.synced(NodeId(node), Epoch(2)).unwrap();
            assert_eq!(state.layouts.len(), 2);
        }
        state.synced(NodeId(4), Epoch(1)).unwrap();
        assert_eq!(state.layouts.len(), 2);
        state.synced(NodeId(4), Epoch(2)).unwrap();
        assert_eq!(layouts(&state), [(2, vec![1, 2, 3, 4])]);
    }

    #[test]
    fn a_node_that_is_removed_is_not_waited_for() {
        let mut state = three();
        state.admit(joiner("d", 4), None).unwrap();
        for node in [1, 2, 3] {
            state.synced(NodeId(node), Epoch(2)).unwrap();
        }
        state.remove(NodeId(4)).unwrap();
        assert_eq!(layouts(&state), [(2, vec![1, 2, 3, 4]), (3, vec![1, 2, 3])]);
    }

    #[test]
    fn nobody_syncs_to_a_layout_that_is_not_in_force() {
        let mut state = three();
        assert_eq!(state.synced(NodeId(1), Epoch(2)), Err(Refusal::UnknownLayout { epoch: Epoch(2) }));
        assert_eq!(state.synced(NodeId(8), Epoch(1)), Err(Refusal::UnknownNode { node: NodeId(8) }));
        assert_eq!(state, three());
    }

    #[test]
    fn beyond_so_many_layouts_changes_wait_and_then_go_into_one() {
        let mut state = formed(1);
        for at in 2..=9_u8 {
            state.admit(joiner(&format!("n{at}"), at), None).unwrap();
        }
        assert_eq!(state.members.len(), 9);
        assert_eq!(state.layouts.len(), LAYOUTS_MAX);
        let newest = state.layouts.last().unwrap();
        assert_eq!((newest.epoch, newest.nodes.len()), (Epoch(4), 4));
        for node in 1..=9 {
            state.synced(NodeId(node), Epoch(4)).unwrap();
        }
        assert_eq!(layouts(&state), [(4, (1..=4).collect()), (5, (1..=9).collect())]);
    }

    #[test]
    fn a_cluster_has_an_end() {
        let mut state = formed(1);
        let name = |at: usize| format!("n{at}");
        for at in 1..MEMBERS_MAX {
            state.admit(joiner(&name(at), u8::try_from(at + 1).unwrap()), None).unwrap();
        }
        assert_eq!(state.admit(joiner("more", 200), None), Err(Refusal::Full));
        assert_eq!(state.admit(joiner(&name(1), 201), Some(NodeId(2))), Ok(NodeId(101)), "one for another");
        assert!(state.admit(joiner("a", 1), None).is_ok(), "those who are in it");
    }
}
