//! The Raft group's messages to other nodes: what they mean is not known here.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use casbah_cluster::membership::NodeId;
use casbah_proto::peer::v1 as api;
use casbah_proto::peer::v1::raft_client::RaftClient;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use http_body::Frame;
use http_body_util::StreamBody;
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::body::Body;

use crate::config::limits;
use crate::forward::channel::{Channel, within};
use crate::forward::error::PeerError;
use crate::forward::framing::{self, Messages, message_frame};
use crate::forward::peers::{Peers, origin};

/// Pieces of a snapshot that wait to be taken by the connection.
const WAITING_PIECES: usize = 2;

const INSTALL_SNAPSHOT: &str = "/casbah.peer.v1.Raft/InstallSnapshot";

/// The methods with one message each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RaftMethod {
    /// A batch of entries, or a heartbeat.
    Append,
    /// A request for a vote.
    Vote,
    /// The leader asks a node to take over.
    TransferLeader,
    /// Commits commands.
    Propose,
    /// The position that a linearizable read has to wait for.
    ReadIndex,
    /// Reads for a node that does not have the log.
    Read,
}

/// What a node tells of the cluster's state, as it comes.
pub type StateStream = BoxStream<'static, Result<api::WatchResponse, PeerError>>;

// === impl Peers ===

impl Peers {
    /// One message to a node and one back.
    ///
    /// # Errors
    /// [`PeerError`]; the node may have acted on the message if [`PeerError::is_in_doubt`].
    pub async fn raft(
        &self,
        node: NodeId,
        method: RaftMethod,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, PeerError> {
        let link = self.inner().link(node)?;
        let mut client = raft(self.inner().control(&link));
        let request = api::RaftRequest { payload };
        let call = async {
            match method {
                RaftMethod::Append => client.append(request).await,
                RaftMethod::Vote => client.vote(request).await,
                RaftMethod::TransferLeader => client.transfer_leader(request).await,
                RaftMethod::Propose => client.propose(request).await,
                RaftMethod::ReadIndex => client.read_index(request).await,
                RaftMethod::Read => client.read(request).await,
            }
        };
        match tokio::time::timeout(deadline, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner().payload),
            Ok(Err(status)) => Err(PeerError::of(status)),
            Err(_elapsed) => Err(PeerError::TimedOut),
        }
    }

    /// What a node tells of the cluster's state. It has no deadline, and may fall silent when the node does.
    ///
    /// # Errors
    /// [`PeerError`], when it does not begin.
    ///
    /// # Cancel safety
    /// Dropped, the node is told.
    pub async fn watch_state(&self, node: NodeId) -> Result<StateStream, PeerError> {
        let link = self.inner().link(node)?;
        let parts = within(raft(self.inner().control(&link)).watch(api::WatchRequest {})).await?;
        Ok(parts.map(|part| part.map_err(PeerError::of)).boxed())
    }

    /// A snapshot to a node: its head, and its bytes as they come. The deadline is for each piece to be taken, and for the answer
    /// behind the last one. When the data ends with an error, the stream is broken off.
    ///
    /// # Errors
    /// [`PeerError`].
    ///
    /// # Cancel safety
    /// Dropped, the stream is broken off.
    pub async fn send_snapshot(
        &self,
        node: NodeId,
        head: Bytes,
        data: BoxStream<'static, io::Result<Bytes>>,
        deadline: Duration,
    ) -> Result<Bytes, PeerError> {
        use api::snapshot_request::Part;
        let link = self.inner().link(node)?;
        // Over a connection for blobs: heartbeats do not wait behind it.
        let channel = self.inner().bulk(&link);
        let (frames, waiting) = mpsc::channel::<Frame<Bytes>>(WAITING_PIECES);
        let whole = Arc::new(AtomicBool::new(false));
        let is_whole = Arc::clone(&whole);
        let body = stream::unfold(Some(waiting), move |waiting| {
            let is_whole = Arc::clone(&is_whole);
            async move {
                let mut waiting = waiting?;
                match waiting.recv().await {
                    Some(frame) => Some((Ok(frame), Some(waiting))),
                    None if is_whole.load(Ordering::Acquire) => None,
                    // A stream that ends is taken for whole; this one is reset.
                    None => Some((Err(io::Error::from(io::ErrorKind::BrokenPipe)), None)),
                }
            }
        });
        let answered = async {
            let response = channel.begin(INSTALL_SNAPSHOT, Body::new(StreamBody::new(body))).await?;
            let mut messages = Messages::answer(response.into_body());
            let Some(first) = messages.next().await? else { return Err(PeerError::nonsense("an answer is missing")) };
            match first {
                framing::Part::Message(message) => api::RaftResponse::decode(message)
                    .map(|response| response.payload)
                    .map_err(|_| PeerError::nonsense("an answer cannot be decoded")),
                framing::Part::Data { .. } => Err(PeerError::nonsense("an answer is none of the group")),
            }
        };
        let feed = async {
            let message = |part| message_frame(&api::SnapshotRequest { part: Some(part) });
            let head = stream::iter([Ok(Part::Head(head))]);
            let mut parts = head.chain(data.map(|piece| piece.map(Part::Data)));
            while let Some(part) = parts.next().await {
                let part = part.map_err(|_unreadable| PeerError::nonsense("the snapshot cannot be read"))?;
                match tokio::time::timeout(deadline, frames.send(message(part))).await {
                    Ok(Ok(())) => {}
                    // The answer says why nothing more is taken.
                    Ok(Err(_closed)) => return Ok(()),
                    Err(_elapsed) => return Err(PeerError::TimedOut),
                }
            }
            whole.store(true, Ordering::Release);
            drop(frames);
            Ok(())
        };
        tokio::pin!(answered);
        tokio::select! {
            answer = answered.as_mut() => return answer,
            fed = feed => fed?,
        }
        match tokio::time::timeout(deadline, answered).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(PeerError::TimedOut),
        }
    }
}

fn raft(channel: Channel) -> RaftClient<Channel> {
    RaftClient::with_origin(channel, origin())
        .max_decoding_message_size(limits::PEER_MESSAGE_BYTES)
        .max_encoding_message_size(limits::PEER_MESSAGE_BYTES)
}
