//! What all nodes of a cluster agree on beside its assets: who belongs to it, and by which layouts blobs are placed.
//!
//! It is a part of the Raft state machine: changed by committed commands only, and the same on every node that has
//! applied the same entries.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Joiner;
use super::ids::{ClusterId, Epoch, NodeId, VolumeId};
use super::protocol::{Protocol, Protocols};
use crate::codec::{self, CodecError};

/// The cluster as of one position of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    /// Drawn when the cluster was formed.
    pub id: ClusterId,
    /// As configured.
    pub name: String,
    /// Copies of a blob, where there are as many nodes (N).
    pub copies: u8,
    /// Copies that make an upload acknowledged, where there are as many nodes (W).
    pub write_quorum: u8,
    /// The version that it works by: every member speaks it. It is never lowered.
    pub protocol: Protocol,
    /// The next node's id. Ids that are gone are not used again.
    pub next_node_id: NodeId,
    /// How many members there are to be before blobs are placed for the first time.
    pub expected_members: u32,
    /// When members that have joined, or have another weight or zone than before, get their part of the blobs.
    pub rebalance: Rebalance,
    /// The epoch that the next layout will have. While a change waits to be applied it grows with all that would make another
    /// layout, so that it tells one plan from another.
    pub planned: Epoch,
    /// Every node that belongs to the cluster.
    pub members: BTreeMap<NodeId, Member>,
    /// The layouts in force, oldest first: the last is the one that blobs move to, the others are those that some blobs still
    /// lie by. Empty until the expected members are there.
    pub layouts: Vec<Layout>,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// As configured; one member at most has it.
    pub name: String,
    /// Where its peers reach it, `HOST:PORT`; empty for a cluster of one that has no peers.
    pub address: String,
    /// The directory that it keeps its data in.
    pub volume: VolumeId,
    /// As configured.
    pub zone: String,
    /// As configured.
    pub weight: u32,
    /// What its program speaks.
    pub protocols: Protocols,
    /// Its part in the Raft group.
    pub part: Part,
    /// The newest layout that it has reported to hold all of its part of.
    pub synced: Epoch,
    /// Whether blobs are placed on it.
    pub standing: Standing,
    /// It has been asked to leave: what it goes back to should it be lost, and return.
    pub leaves: bool,
    /// What layouts are made with; `None` for a node that has joined and waits for its part of the blobs.
    pub placed: Option<LayoutNode>,
}

/// Whether blobs are placed on a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// They are.
    Serving,
    /// It is asked to leave: what it has goes to others. It still takes any request.
    Draining,
    /// It has been gone for so long that others are given what it had. Nobody waits for it.
    Lost,
}

/// When a change of members moves blobs. That a node leaves or is lost always does, at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Rebalance {
    /// At once.
    #[default]
    Automatic,
    /// When somebody has looked at what would move, and says so.
    OnApply,
}

/// A member's part in the Raft group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// Votes.
    Voter,
    /// Has the log, and does not vote.
    Learner,
    /// Asks others.
    Watcher,
}

/// By which nodes hold what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Which one of the cluster's layouts it is.
    pub epoch: Epoch,
    /// The nodes that hold blobs.
    pub nodes: BTreeMap<NodeId, LayoutNode>,
}

/// A node that holds blobs, or is to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutNode {
    /// What fails together with it.
    pub zone: String,
    /// Its share, relative to others.
    pub weight: u32,
}

/// Of a state that travels by itself. In the log and in snapshots it is part of records with versions of their own.
const VERSION: u8 = 3;

impl ClusterState {
    /// As it travels.
    ///
    /// # Errors
    /// [`CodecError`] when it is larger than any record may be.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode(VERSION, self)
    }

    /// The state of these bytes.
    ///
    /// # Errors
    /// [`CodecError`] when they are none of a version that is known here.
    pub fn decode(bytes: &[u8]) -> Result<ClusterState, CodecError> {
        codec::decode(VERSION, bytes)
    }

    /// The member that has this directory.
    pub fn by_volume(&self, volume: VolumeId) -> Option<(NodeId, &Member)> {
        self.members.iter().find(|(_, member)| member.volume == volume).map(|(id, member)| (*id, member))
    }

    /// The member that has this name.
    pub fn by_name(&self, name: &str) -> Option<(NodeId, &Member)> {
        self.members.iter().find(|(_, member)| member.name == name).map(|(id, member)| (*id, member))
    }
}

impl Member {
    /// What a layout would be made with, as it is configured now.
    pub fn configured(&self) -> LayoutNode {
        LayoutNode { zone: self.zone.clone(), weight: self.weight }
    }

    /// Whether all that a node says of itself is known already.
    pub fn is_as(&self, joiner: &Joiner) -> bool {
        let Joiner { name, address, volume, zone, weight, protocols } = joiner;
        (&self.name, &self.address, self.volume) == (name, address, *volume)
            && (&self.zone, self.weight, &self.protocols) == (zone, *weight, protocols)
    }
}
