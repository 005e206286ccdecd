//! Who is in the cluster, as far as calls between nodes need it.

use std::collections::BTreeMap;

use super::ids::{ClusterId, Epoch, NodeId};
use super::protocol::{Protocol, Protocols};
use super::state::ClusterState;

/// The members of a node's cluster and their addresses, by the state that it has applied last. A node that is in no cluster
/// yet has an empty one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Roster {
    here: Option<(ClusterId, NodeId)>,
    epoch: Epoch,
    protocol: Protocol,
    members: BTreeMap<NodeId, String>,
    next_node_id: NodeId,
}

/// What a roster says of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Belonging {
    /// It is a member.
    Member,
    /// It has been one, or its id was never given.
    Gone,
    /// Its id is newer than what is known here.
    Newer,
}

// === impl Roster ===

impl Roster {
    /// The roster of this node by a state.
    pub fn of(node: NodeId, state: &ClusterState) -> Roster {
        Roster {
            here: Some((state.id, node)),
            epoch: state.layouts.last().map_or(Epoch::default(), |layout| layout.epoch),
            protocol: state.protocol,
            members: state.members.iter().map(|(id, member)| (*id, member.address.clone())).collect(),
            next_node_id: state.next_node_id,
        }
    }

    /// The roster of a node that was let in, and has not heard of the others.
    pub fn joined(cluster: ClusterId, node: NodeId) -> Roster {
        Roster { here: Some((cluster, node)), protocol: Protocols::SPOKEN.oldest, ..Roster::default() }
    }

    /// The cluster and this node's id in it; `None` before it is in one.
    pub fn here(&self) -> Option<(ClusterId, NodeId)> {
        self.here
    }

    /// Of the newest layout; 0 before there is one.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The version that the cluster works by; 0 before there is one.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Where a member is reached, `HOST:PORT`.
    pub fn address(&self, node: NodeId) -> Option<&str> {
        self.members.get(&node).map(String::as_str)
    }

    /// Every member but this one.
    pub fn others(&self) -> impl Iterator<Item = (NodeId, &str)> {
        let own = self.here.map(|(_, node)| node);
        let others = self.members.iter().filter(move |(id, _)| Some(**id) != own);
        others.map(|(id, address)| (*id, address.as_str()))
    }

    /// Whether a node belongs to the cluster.
    pub fn belonging(&self, node: NodeId) -> Belonging {
        if self.members.contains_key(&node) {
            Belonging::Member
        } else if node < self.next_node_id {
            Belonging::Gone
        } else {
            Belonging::Newer
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::{Layout, Member, Part, Rebalance, Standing, VolumeId};

    fn state() -> ClusterState {
        let member = |number: u8| Member {
            name: format!("node-{number}"),
            address: format!("node-{number}:7980"),
            volume: VolumeId([number; 16]),
            zone: String::new(),
            weight: 100,
            protocols: Protocols::SPOKEN,
            part: Part::Voter,
            synced: Epoch(0),
            standing: Standing::Serving,
            leaves: false,
            placed: None,
        };
        ClusterState {
            id: ClusterId([7; 16]),
            name: "casbah".into(),
            copies: 2,
            write_quorum: 2,
            protocol: Protocol(3),
            next_node_id: NodeId(5),
            members: BTreeMap::from([1, 2, 4].map(|number| (NodeId(u64::from(number)), member(number)))),
            expected_members: 0,
            rebalance: Rebalance::Automatic,
            planned: Epoch(5),
            layouts: [3, 4].map(|epoch| Layout { epoch: Epoch(epoch), nodes: BTreeMap::new() }).to_vec(),
        }
    }

    #[test]
    fn a_roster_has_every_member_and_the_newest_layouts_epoch() {
        let roster = Roster::of(NodeId(2), &state());
        assert_eq!(roster.here(), Some((ClusterId([7; 16]), NodeId(2))));
        assert_eq!(roster.epoch(), Epoch(4));
        assert_eq!((roster.protocol(), Roster::default().protocol()), (Protocol(3), Protocol(0)));
        assert_eq!(roster.address(NodeId(4)), Some("node-4:7980"));
        assert_eq!(roster.address(NodeId(3)), None);
        let others: Vec<_> = roster.others().collect();
        assert_eq!(others, [(NodeId(1), "node-1:7980"), (NodeId(4), "node-4:7980")]);
    }

    #[test]
    fn a_node_that_is_gone_is_told_from_one_that_is_to_come() {
        let roster = Roster::of(NodeId(2), &state());
        assert_eq!(roster.belonging(NodeId(1)), Belonging::Member);
        assert_eq!(roster.belonging(NodeId(3)), Belonging::Gone);
        assert_eq!(roster.belonging(NodeId(0)), Belonging::Gone);
        assert_eq!(roster.belonging(NodeId(5)), Belonging::Newer);
        assert_eq!(Roster::default().belonging(NodeId(1)), Belonging::Newer);
    }
}
