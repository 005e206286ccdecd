//! What other nodes of the group ask of this one.

use bytes::Bytes;
use casbah_cluster::consensus::{
    AppendAnswer, AppendCall, COMMANDS_PER_ENTRY_MAX, Command, Proposal, ProposalAnswer, ReadCall, SnapshotAnswer,
    SnapshotHead, TransferAnswer, TransferCall, VoteAnswer, VoteCall,
};
use futures_util::Stream;
use openraft::errors::RaftError;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, VoteRequest,
};

use crate::index::raft::core::ended;
use crate::index::raft::error::GroupError;
use crate::index::raft::group::Group;
use crate::index::raft::network::RaftCall;
use crate::index::raft::snapshot::{self, snapshot};

// === impl Group ===

impl Group {
    /// The answer to a call of another node, by [`Network::call`](super::Network::call) there.
    ///
    /// # Errors
    /// [`GroupError`] when the payload cannot be read, and when the group is closed or has failed here.
    ///
    /// # Cancel safety
    /// May be dropped: as for calls whose answer is lost, what was asked for may be done all the same.
    pub async fn answer(&self, call: RaftCall, payload: Bytes) -> Result<Bytes, GroupError> {
        let answer = match call {
            RaftCall::Append => self.append(AppendCall::decode(&payload)?).await?.encode()?,
            RaftCall::Vote => self.vote(VoteCall::decode(&payload)?).await?.encode()?,
            RaftCall::TransferLeader => self.take_over(TransferCall::decode(&payload)?).await?.encode()?,
            RaftCall::Propose => self.commit_for_another(Proposal::decode(&payload)?).await?.encode()?,
            RaftCall::ReadIndex => self.inner.core.read_index().await?.encode()?,
            RaftCall::Read => self.read_for_another(ReadCall::decode(&payload)?).await?.encode()?,
        };
        Ok(Bytes::from(answer))
    }

    /// The answer to a snapshot that another node sends, by [`Network::send_snapshot`](super::Network::send_snapshot) there.
    ///
    /// # Errors
    /// [`GroupError::Busy`] while another one is taken in, [`GroupError::Snapshot`] when this one is not whole: nothing has
    /// changed then. Others when the data fails.
    ///
    /// # Cancel safety
    /// Dropped before all of it is here, nothing has changed; later, it may be installed all the same.
    pub async fn answer_snapshot<E>(
        &self,
        head: Bytes,
        data: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<Bytes, GroupError> {
        let SnapshotHead { vote, meta } = SnapshotHead::decode(&head)?;
        let _one = self.inner.receiving.try_lock().map_err(|_| GroupError::Busy)?;
        let received = snapshot::receive(&self.inner.dir, data).await?;
        let installed = self.inner.core.raft.install_full_snapshot(vote, snapshot(meta, received)).await;
        let response = installed.map_err(|fatal| ended(&fatal))?;
        self.inner.core.watching.is_fed();
        Ok(Bytes::from(SnapshotAnswer { vote: response.vote }.encode()?))
    }

    async fn append(&self, call: AppendCall) -> Result<AppendAnswer, GroupError> {
        let AppendCall { vote, previous: prev_log_id, entries, committed: leader_commit } = call;
        let request = AppendEntriesRequest { vote, prev_log_id, entries, leader_commit };
        let answer = self.inner.core.raft.append_entries(request).await.map_err(fatal)?;
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            self.inner.core.watching.is_fed();
        }
        Ok(match answer {
            AppendEntriesResponse::Success => AppendAnswer::Done,
            AppendEntriesResponse::PartialSuccess(last) => AppendAnswer::UpTo(last),
            AppendEntriesResponse::Conflict => AppendAnswer::Conflict,
            AppendEntriesResponse::HigherVote(vote) => AppendAnswer::HigherVote(vote),
        })
    }

    async fn vote(&self, call: VoteCall) -> Result<VoteAnswer, GroupError> {
        let VoteCall { is_pre_vote, vote, last: last_log_id, is_transfer: leadership_transfer } = call;
        let request = VoteRequest { vote, last_log_id, leadership_transfer };
        let raft = &self.inner.core.raft;
        let answer = if is_pre_vote { raft.pre_vote(request).await } else { raft.vote(request).await };
        let answer = answer.map_err(fatal)?;
        Ok(VoteAnswer { vote: answer.vote, is_granted: answer.vote_granted, last: answer.last_log_id })
    }

    async fn take_over(&self, call: TransferCall) -> Result<TransferAnswer, GroupError> {
        let request = TransferLeaderRequest::new(call.from, call.to, call.last);
        let answer = self.inner.core.raft.handle_transfer_leader(request).await.map_err(|fatal| ended(&fatal))?;
        Ok(match answer {
            Ok(()) => TransferAnswer::Done,
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                TransferAnswer::VoteChanged { expected, actual }
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                TransferAnswer::NotFlushed { expected, actual }
            }
        })
    }

    async fn commit_for_another(&self, proposal: Proposal) -> Result<ProposalAnswer, GroupError> {
        let Ok(_permit) = self.inner.remote.try_acquire() else { return Ok(ProposalAnswer::Busy) };
        let size_bytes: usize = proposal.commands.iter().map(Command::size_bytes).sum();
        let limit_bytes = casbah_cluster::consensus::ENTRY_BYTES_MAX;
        if proposal.commands.len() > COMMANDS_PER_ENTRY_MAX || size_bytes > limit_bytes {
            return Err(GroupError::TooLarge { size_bytes, limit_bytes });
        }
        self.inner.core.commit(proposal.commands).await
    }
}

fn fatal(error: RaftError<casbah_cluster::consensus::TypeConfig>) -> GroupError {
    match error {
        RaftError::Fatal(fatal) => ended(&fatal),
        RaftError::APIError(never) => match never {},
    }
}
