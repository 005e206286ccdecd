//! openraft's types, as this program uses them.

use openraft::EmptyNode;
use openraft::type_config::RaftTypeConfig;

use super::command::{Batch, Replies};

openraft::declare_raft_types!(
    /// Entries are batches of commands. Nodes are numbers: where they are reached, the state of the cluster says.
    pub TypeConfig:
        D = Batch,
        R = Replies,
        NodeId = u64,
        Node = EmptyNode,
);

/// A leader: its term and its node.
pub type LeaderId = <TypeConfig as RaftTypeConfig>::LeaderId;

/// A position in the log, and the leader who wrote there.
pub type LogId = openraft::LogId<LeaderId>;

/// A vote, for whom it is, and whether a quorum has given it.
pub type Vote = openraft::Vote<LeaderId>;

/// An entry of the log.
pub type Entry = <TypeConfig as RaftTypeConfig>::Entry;

/// Who votes and who learns.
pub type Membership = openraft::Membership<u64, EmptyNode>;

/// The same, and the entry that has made it so.
pub type StoredMembership = openraft::StoredMembership<LeaderId, u64, EmptyNode>;

/// What a snapshot is of.
pub type SnapshotMeta = openraft::SnapshotMeta<LeaderId, u64, EmptyNode>;
