//! openraft's calls to other nodes, as messages over [`Network`].

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use casbah_cluster::codec::CodecError;
use casbah_cluster::consensus::{
    AppendAnswer, AppendCall, SnapshotAnswer, SnapshotHead, TransferAnswer, TransferCall, TypeConfig, Vote, VoteAnswer,
    VoteCall,
};
use casbah_cluster::membership::NodeId;
use openraft::errors::{self, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, OptionalSend};

use crate::index::raft::network::{Network, NetworkError, RaftCall};
use crate::index::raft::snapshot::{Snapshot, SnapshotData};
use crate::observe::with_causes;

/// Makes what openraft calls a network: the way to one node.
pub(super) struct Transport {
    pub(super) node: NodeId,
    pub(super) network: Arc<dyn Network>,
    /// For each piece of a snapshot to be taken, and for it to be installed.
    pub(super) snapshot_deadline: Duration,
}

/// The way to one node.
pub(super) struct Way {
    node: NodeId,
    target: NodeId,
    network: Arc<dyn Network>,
    snapshot_deadline: Duration,
}

impl RaftNetworkFactory<TypeConfig> for Transport {
    type Network = Way;

    async fn new_client(&mut self, target: u64, _: &EmptyNode) -> Way {
        let Transport { node, network, snapshot_deadline } = self;
        Way { node: *node, target: NodeId(target), network: Arc::clone(network), snapshot_deadline: *snapshot_deadline }
    }
}

// === impl Way ===

impl Way {
    async fn call(&self, call: RaftCall, payload: Vec<u8>, option: &RPCOption) -> Result<Bytes, RPCError<TypeConfig>> {
        let deadline = option.soft_ttl();
        let outcome = self.network.call(self.target, call, Bytes::from(payload), deadline).await;
        outcome.map_err(|error| self.failed(error, call, deadline))
    }

    fn failed(&self, error: NetworkError, call: RaftCall, timeout: Duration) -> RPCError<TypeConfig> {
        match error {
            NetworkError::Unreachable { .. } => RPCError::Unreachable(Unreachable::from_string(with_causes(&error))),
            NetworkError::Failed { .. } => RPCError::Network(errors::NetworkError::from_string(with_causes(&error))),
            NetworkError::TimedOut { .. } => {
                let action = match call {
                    RaftCall::Vote => RPCTypes::Vote,
                    RaftCall::TransferLeader => RPCTypes::TransferLeader,
                    RaftCall::Append | RaftCall::Propose | RaftCall::ReadIndex | RaftCall::Read => {
                        RPCTypes::AppendEntries
                    }
                };
                RPCError::Timeout(errors::Timeout { action, id: self.node.0, target: self.target.0, timeout })
            }
        }
    }

    async fn ask(&self, is_pre_vote: bool, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> VoteOutcome {
        let VoteRequest { vote, last_log_id: last, leadership_transfer: is_transfer } = rpc;
        let payload = VoteCall { is_pre_vote, vote, last, is_transfer }.encode().map_err(unusable)?;
        let answer = self.call(RaftCall::Vote, payload, &option).await?;
        let VoteAnswer { vote, is_granted, last } = VoteAnswer::decode(&answer).map_err(unusable)?;
        Ok(VoteResponse::new(vote, last, is_granted))
    }
}

type VoteOutcome = Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>>;

/// What cannot be written or read will not be the next time either: the node is left alone for a while.
fn unusable(error: CodecError) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(with_causes(&error)))
}

impl RaftNetworkV2<TypeConfig> for Way {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let AppendEntriesRequest { vote, prev_log_id: previous, entries, leader_commit: committed } = rpc;
        let payload = AppendCall { vote, previous, entries, committed }.encode().map_err(unusable)?;
        let answer = self.call(RaftCall::Append, payload, &option).await?;
        Ok(match AppendAnswer::decode(&answer).map_err(unusable)? {
            AppendAnswer::Done => AppendEntriesResponse::Success,
            AppendAnswer::UpTo(last) => AppendEntriesResponse::PartialSuccess(last),
            AppendAnswer::Conflict => AppendEntriesResponse::Conflict,
            AppendAnswer::HigherVote(vote) => AppendEntriesResponse::HigherVote(vote),
        })
    }

    async fn vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> VoteOutcome {
        self.ask(false, rpc, option).await
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> VoteOutcome {
        self.ask(true, rpc, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let head = SnapshotHead { vote, meta: snapshot.meta }.encode().map_err(unusable)?;
        let data = snapshot.snapshot.into_stream();
        let deadline = self.snapshot_deadline;
        let sent = self.network.send_snapshot(self.target, Bytes::from(head), data, deadline);
        let answer = tokio::select! {
            answer = sent => answer.map_err(|error| self.failed(error, RaftCall::Append, deadline))?,
            closed = cancel => return Err(closed.into()),
        };
        let SnapshotAnswer { vote } = SnapshotAnswer::decode(&answer).map_err(unusable)?;
        Ok(SnapshotResponse::new(vote))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (from, to, last) = (*request.from_leader(), *request.to_node_id(), request.last_log_id().copied());
        let payload = TransferCall { from, to, last }.encode().map_err(unusable)?;
        let answer = self.call(RaftCall::TransferLeader, payload, &option).await?;
        Ok(match TransferAnswer::decode(&answer).map_err(unusable)? {
            TransferAnswer::Done => Ok(()),
            TransferAnswer::VoteChanged { expected, actual } => {
                Err(TransferLeaderError::VoteChanged { expected, actual })
            }
            TransferAnswer::NotFlushed { expected, actual } => {
                Err(TransferLeaderError::LogNotFlushed { expected, actual })
            }
        })
    }
}
