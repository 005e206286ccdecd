//! What all parts of a group share: openraft, the data, the way to others, and who leads.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use casbah_cluster::codec::CodecError;
use casbah_cluster::consensus::{Batch, Command, ProposalAnswer, ReadIndexAnswer, TypeConfig};
use casbah_cluster::membership::NodeId;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, Fatal, LinearizableReadError, RaftError};
use openraft::raft::ReadPolicy;
use tokio::time::{Instant, timeout, timeout_at};

use crate::index::raft::error::GroupError;
use crate::index::raft::group::Timing;
use crate::index::raft::log::Log;
use crate::index::raft::network::Network;
use crate::index::raft::state::State;
use crate::index::raft::watching::Watching;

pub(super) type Raft = openraft::Raft<TypeConfig, State>;

/// The pause before a leader that could not be reached is tried again, where no change of leaders ends it earlier.
const LEADER_PAUSE: Duration = Duration::from_millis(50);

/// Shared by the tasks of a group.
pub(super) struct Core {
    pub(super) node: NodeId,
    pub(super) raft: Raft,
    pub(super) log: Log,
    pub(super) state: State,
    pub(super) network: Arc<dyn Network>,
    pub(super) timing: Timing,
    pub(super) capacity: u64,
    /// Whom this node asks while it does not have the log.
    pub(super) watching: Watching,
}

// === impl Core ===

impl Core {
    /// Who leads, as far as is known here.
    pub(super) fn leader(&self) -> Option<NodeId> {
        if self.has_log() { self.leader_by_log() } else { *self.watching.leader().borrow() }
    }

    fn leader_by_log(&self) -> Option<NodeId> {
        self.raft.server_metrics().borrow_watched().current_leader.map(NodeId)
    }

    /// Whether this node leads, as far as it knows: nobody else can tell it.
    pub(super) fn is_leader(&self) -> bool {
        self.leader_by_log() == Some(self.node)
    }

    /// Waits until somebody leads who is not `not`, or until the pause after which that one may be asked again.
    pub(super) async fn leader_changes(&self, not: Option<NodeId>, deadline: Instant) {
        let until = if not.is_some() { deadline.min(Instant::now() + LEADER_PAUSE) } else { deadline };
        // Whether it was the change or the time does not matter: the caller looks again.
        drop(timeout_at(until, self.another_leads(not)).await);
    }

    /// Waits until somebody leads who is not `not`.
    pub(super) async fn another_leads(&self, not: Option<NodeId>) {
        let (mut metrics, mut told) = (self.raft.server_metrics(), self.watching.leader());
        loop {
            metrics.borrow_and_update();
            told.borrow_and_update();
            let leader = self.leader();
            if leader.is_some() && leader != not {
                return;
            }
            let changed = tokio::select! {
                changed = metrics.changed() => changed.is_ok(),
                changed = told.changed() => changed.is_ok(),
            };
            if !changed {
                // openraft has ended; whoever tries again is told.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Commits commands as one entry, if this node leads.
    ///
    /// # Errors
    /// [`GroupError::Closed`] or [`GroupError::Failed`] when openraft has ended.
    pub(super) async fn commit(&self, commands: Vec<Command>) -> Result<ProposalAnswer, GroupError> {
        let batch = Batch { index_capacity: self.capacity, commands };
        let Ok(written) = timeout(self.timing.proposal, self.raft.client_write(batch)).await else {
            return Ok(ProposalAnswer::Unknown);
        };
        match written {
            Ok(response) => Ok(ProposalAnswer::Done { replies: response.data.replies }),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Ok(ProposalAnswer::NotLeader { leader: forward.leader_id })
            }
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => Ok(ProposalAnswer::Unknown),
            // Of changes of the membership, and of conditions that nobody has set.
            Err(RaftError::APIError(_)) => Ok(ProposalAnswer::Unknown),
            Err(RaftError::Fatal(fatal)) => Err(ended(&fatal)),
        }
    }

    /// The position that a linearizable read has to wait for, if this node leads and is sure of it.
    ///
    /// # Errors
    /// [`GroupError::Closed`] or [`GroupError::Failed`] when openraft has ended.
    pub(super) async fn read_index(&self) -> Result<ReadIndexAnswer, GroupError> {
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(ReadIndexAnswer::Done { index: linearizer.read_log_id().index() }),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Ok(ReadIndexAnswer::NotLeader { leader: forward.leader_id })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Ok(ReadIndexAnswer::NoQuorum),
            Err(RaftError::Fatal(fatal)) => Err(ended(&fatal)),
        }
    }

    /// Waits until reads here see the effects of this entry.
    ///
    /// # Errors
    /// [`GroupError::NoLog`] when they do not within the time that is waited for a leader: the log does not come, or not as
    /// fast as it grows.
    pub(super) async fn applied(&self, index: u64) -> Result<(), GroupError> {
        let mut applied = self.state.applied();
        let reached = applied.wait_for(|last| last.is_some_and(|last| last.index() >= index));
        match timeout(self.timing.leader_wait, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(GroupError::Closed),
            Err(_) => Err(GroupError::NoLog),
        }
    }
}

/// What openraft's end means.
pub(super) fn ended(fatal: &Fatal<TypeConfig>) -> GroupError {
    match fatal {
        Fatal::Stopped => GroupError::Closed,
        Fatal::StorageError(_) | Fatal::Panicked => GroupError::Failed,
    }
}

/// Runs something that blocks on the disk.
///
/// # Errors
/// Those of `work`, and [`GroupError::Failed`] when it panicked.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, GroupError> + Send + 'static,
) -> Result<T, GroupError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(GroupError::Failed))
}

/// An answer of another node that cannot be read: as if it had not come.
pub(super) fn unreadable(error: &CodecError, node: NodeId) {
    tracing::warn!(%node, %error, "an answer cannot be read; is the node of another version?");
}

/// A future that is waited for together with others.
pub(super) type Boxed<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;
