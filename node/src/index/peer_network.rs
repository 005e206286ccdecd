//! The group's messages over connections between nodes.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use casbah_cluster::membership::NodeId;
use casbah_proto::peer::v1 as api;
use futures_util::stream::{BoxStream, StreamExt as _};

use crate::forward::{PeerError, Peers, RaftMethod, Unreachable};
use crate::index::{Network, NetworkError, RaftCall, WatchPart, WatchParts};

#[tonic::async_trait]
impl Network for Peers {
    async fn call(
        &self,
        target: NodeId,
        call: RaftCall,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, NetworkError> {
        let method = match call {
            RaftCall::Append => RaftMethod::Append,
            RaftCall::Vote => RaftMethod::Vote,
            RaftCall::TransferLeader => RaftMethod::TransferLeader,
            RaftCall::Propose => RaftMethod::Propose,
            RaftCall::ReadIndex => RaftMethod::ReadIndex,
            RaftCall::Read => RaftMethod::Read,
        };
        self.raft(target, method, payload, deadline).await.map_err(|error| network_error(target, error))
    }

    async fn watch(&self, target: NodeId) -> Result<WatchParts, NetworkError> {
        let parts = self.watch_state(target).await.map_err(|error| network_error(target, error))?;
        let part = move |part: Result<api::WatchResponse, PeerError>| {
            let part = part.map_err(|error| network_error(target, error))?;
            let api::WatchResponse { position, state, leader, is_current } = part;
            let leader = Some(NodeId(leader)).filter(|leader| leader.0 > 0);
            Ok(WatchPart { position, state: Some(state).filter(|state| !state.is_empty()), leader, is_current })
        };
        Ok(parts.map(part).boxed())
    }

    async fn send_snapshot(
        &self,
        target: NodeId,
        head: Bytes,
        data: BoxStream<'static, io::Result<Bytes>>,
        deadline: Duration,
    ) -> Result<Bytes, NetworkError> {
        let sent = self.send_snapshot(target, head, data, deadline).await;
        sent.map_err(|error| network_error(target, error))
    }
}

fn network_error(node: NodeId, error: PeerError) -> NetworkError {
    match error {
        PeerError::TimedOut => NetworkError::TimedOut { node },
        // It was not sent, or not let in by the node's gate.
        PeerError::Unreachable(Unreachable::NoConnection(_) | Unreachable::NoMember | Unreachable::Alone)
        | PeerError::Refused(_) => NetworkError::Unreachable { node, source: Box::new(error) },
        error => NetworkError::Failed { node, source: Box::new(error) },
    }
}
