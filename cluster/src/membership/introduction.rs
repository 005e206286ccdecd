//! What a node says of itself to nodes that do not know it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::ids::{ClusterId, NodeId, VolumeId};
use super::protocol::Protocols;

/// Who a node is, as it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// As configured: nodes of two names never become one cluster.
    pub cluster_name: String,
    /// What it would be a member as.
    pub joiner: Joiner,
    /// How many fresh nodes it waits for before a cluster is formed of them; 0: it takes no part in forming one.
    pub bootstrap_expect: u32,
    /// The cluster that it is in, and its id there.
    pub identity: Option<(ClusterId, NodeId)>,
    /// The cluster that it helps to form, if it is in none.
    pub pledge: Option<Pledge>,
    /// Fresh nodes that it has heard from lately. For people to look at.
    pub fresh_peers: BTreeSet<VolumeId>,
}

/// A node that wants to be a member. Part of the format of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joiner {
    /// As configured; unique in a cluster.
    pub name: String,
    /// Where its peers reach it, `HOST:PORT`; empty for a node without peers.
    pub address: String,
    /// The directory that it keeps its data in.
    pub volume: VolumeId,
    /// As configured.
    pub zone: String,
    /// As configured.
    pub weight: u32,
    /// What its program speaks.
    pub protocols: Protocols,
}

/// A fresh node's word, kept on its volume, that of all clusters it helps to form this one only: until it knows that its
/// founder has given it up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pledge {
    /// Drawn at random by the founder, and never used for another attempt.
    pub cluster: ClusterId,
    /// The founder's directory.
    pub founder: VolumeId,
    /// The founder's name.
    pub founder_name: String,
}

impl Introduction {
    /// Whether it is in no cluster, and is there to form one.
    pub fn is_fresh(&self) -> bool {
        self.identity.is_none() && self.bootstrap_expect > 0
    }

    /// The cluster that it is in.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.identity.map(|(cluster, _)| cluster)
    }

    /// The cluster that it is about to found.
    pub fn founding(&self) -> Option<ClusterId> {
        let own = |pledge: &&Pledge| pledge.founder == self.joiner.volume;
        self.pledge.as_ref().filter(own).map(|pledge| pledge.cluster)
    }
}
