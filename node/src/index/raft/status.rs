//! The group in numbers, as it is seen from this node.

use std::collections::{BTreeMap, BTreeSet};

use casbah_cluster::membership::{NodeId, Part};
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver as _;

use crate::index::raft::group::Group;

/// A node's part in the group at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Leads.
    Leader,
    /// Votes and follows.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Has the log and does not vote, or is in no cluster yet.
    Learner,
    /// Does not have the log, and asks others.
    Watcher,
    /// Has stopped, or has failed.
    Stopped,
}

/// The group in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// This node.
    pub node: NodeId,
    /// Its part.
    pub role: Role,
    /// The term.
    pub term: u64,
    /// Who leads, as far as is known here.
    pub leader: Option<NodeId>,
    /// The last entry of the log here.
    pub last_log: Option<u64>,
    /// The last one that is known here to be committed.
    pub committed: Option<u64>,
    /// The last one that reads here see.
    pub applied: Option<u64>,
    /// The last one that the state machine has on disk, and which the log may be cut behind.
    pub snapshot: Option<u64>,
    /// The last one that was cut off.
    pub purged: Option<u64>,
    /// What the log takes on disk, roughly.
    pub log_bytes: u64,
    /// Who votes.
    pub voters: BTreeSet<NodeId>,
    /// Who has the log and does not vote.
    pub learners: BTreeSet<NodeId>,
    /// By how many entries the others are behind, where this node leads; `None`: nothing is known of it yet.
    pub behind: BTreeMap<NodeId, Option<u64>>,
}

// === impl Group ===

impl Group {
    /// The group in numbers, as it is seen from this node.
    #[must_use]
    pub fn status(&self) -> GroupStatus {
        let core = &self.inner.core;
        let metrics = core.raft.metrics().borrow_watched().clone();
        let role = match metrics.state {
            _ if metrics.running_state.is_err() => Role::Stopped,
            ServerState::Leader => Role::Leader,
            ServerState::Follower => Role::Follower,
            ServerState::Candidate => Role::Candidate,
            ServerState::Learner => Role::Learner,
            ServerState::Shutdown => Role::Stopped,
        };
        let last = metrics.last_log_index.unwrap_or(0);
        let others = metrics.replication.iter().flatten().filter(|(node, _)| **node != core.node.0);
        let behind = others.map(|(node, matched)| (NodeId(*node), matched.map(|id| last.saturating_sub(id.index()))));
        let membership = metrics.membership_config.membership();
        let has_log = self.has_log();
        let (position, known) = core.state.known().unzip();
        let by_state = |part: Part| {
            let members = known.iter().flat_map(|state| &state.members);
            members.filter(|(_, member)| member.part == part).map(|(node, _)| *node).collect()
        };
        let role = match role {
            Role::Leader | Role::Stopped => role,
            _ if has_log => role,
            _ => Role::Watcher,
        };
        GroupStatus {
            node: core.node,
            role,
            term: metrics.current_term,
            leader: core.leader(),
            last_log: metrics.last_log_index,
            committed: metrics.local_committed.map(|id| id.index()),
            applied: if has_log { core.state.applied().borrow().map(|id| id.index()) } else { position },
            snapshot: metrics.snapshot.map(|id| id.index()),
            purged: metrics.purged.map(|id| id.index()),
            log_bytes: core.log.size_bytes(),
            voters: if has_log { membership.voter_ids().map(NodeId).collect() } else { by_state(Part::Voter) },
            learners: if has_log { membership.learner_ids().map(NodeId).collect() } else { by_state(Part::Learner) },
            behind: behind.collect(),
        }
    }
}
