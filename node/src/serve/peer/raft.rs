//! The Raft group's traffic with other nodes.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use casbah_proto::peer::v1 as api;
use futures_util::stream::{BoxStream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::index::{GroupError, RaftCall, WatchPart};
use crate::serve::status_map;

/// What answers the group's messages on this node.
#[tonic::async_trait]
pub trait RaftGroup: Send + Sync {
    /// Answers a message.
    ///
    /// # Errors
    /// [`GroupError`] when there is no answer.
    async fn answer(&self, call: RaftCall, payload: Bytes) -> Result<Bytes, GroupError>;

    /// Tells of the cluster's state, as it is and as it changes, until the node stops.
    ///
    /// # Errors
    /// [`GroupError`] when the node does not have the log.
    fn watch(&self) -> Result<BoxStream<'static, WatchPart>, GroupError>;

    /// Takes in a snapshot: its head, and its bytes as they come. A stream that ends with an error changes nothing.
    ///
    /// # Errors
    /// [`GroupError`] when it was not taken in.
    ///
    /// # Cancel safety
    /// Dropped when the sender goes away in the middle, which then changes nothing.
    async fn install_snapshot(
        &self,
        head: Bytes,
        data: BoxStream<'static, io::Result<Bytes>>,
    ) -> Result<Bytes, GroupError>;
}

/// The Raft service.
pub(super) struct Raft {
    pub(super) group: Arc<dyn RaftGroup>,
}

// === impl Raft ===

impl Raft {
    async fn answer(
        &self,
        call: RaftCall,
        request: Request<api::RaftRequest>,
    ) -> Result<Response<api::RaftResponse>, Status> {
        let payload = self.group.answer(call, request.into_inner().payload).await;
        let payload = payload.map_err(|error| status_map::group(&error))?;
        Ok(Response::new(api::RaftResponse { payload }))
    }
}

#[tonic::async_trait]
impl api::raft_server::Raft for Raft {
    async fn append(&self, request: Request<api::RaftRequest>) -> Result<Response<api::RaftResponse>, Status> {
        self.answer(RaftCall::Append, request).await
    }

    async fn vote(&self, request: Request<api::RaftRequest>) -> Result<Response<api::RaftResponse>, Status> {
        self.answer(RaftCall::Vote, request).await
    }

    async fn transfer_leader(&self, request: Request<api::RaftRequest>) -> Result<Response<api::RaftResponse>, Status> {
        self.answer(RaftCall::TransferLeader, request).await
    }

    async fn propose(&self, request: Request<api::RaftRequest>) -> Result<Response<api::RaftResponse>, Status> {
        self.answer(RaftCall::Propose, request).await
    }

    async fn read_index(&self, request: Request<api::RaftRequest>) -> Result<Response<api::RaftResponse>, Status> {
        self.answer(RaftCall::ReadIndex, request).await
    }

    async fn read(&self, request: Request<api::RaftRequest>) -> Result<Response<api::RaftResponse>, Status> {
        self.answer(RaftCall::Read, request).await
    }

    type WatchStream = BoxStream<'static, Result<api::WatchResponse, Status>>;

    async fn watch(&self, _: Request<api::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let parts = self.group.watch().map_err(|error| status_map::group(&error))?;
        let message = |part: WatchPart| {
            let WatchPart { position, state, leader, is_current } = part;
            let (state, leader) = (state.unwrap_or_default(), leader.map_or(0, |leader| leader.0));
            Ok(api::WatchResponse { position, state, leader, is_current })
        };
        Ok(Response::new(parts.map(message).boxed()))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<api::SnapshotRequest>>,
    ) -> Result<Response<api::RaftResponse>, Status> {
        use api::snapshot_request::Part;
        let mut parts = request.into_inner();
        let head = match parts.message().await?.and_then(|message| message.part) {
            Some(Part::Head(head)) => head,
            _ => return Err(Status::invalid_argument("the stream does not begin with what the snapshot is of")),
        };
        let data = parts.map(|part| match part.map_err(io::Error::other)?.part {
            Some(Part::Data(data)) => Ok(data),
            _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
        });
        let payload = self.group.install_snapshot(head, data.boxed()).await;
        let payload = payload.map_err(|error| status_map::group(&error))?;
        Ok(Response::new(api::RaftResponse { payload }))
    }
}
