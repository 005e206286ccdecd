//! How the group reaches other nodes: a trait, which whoever has connections implements.

use std::error::Error;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use casbah_cluster::membership::NodeId;
use futures_util::stream::BoxStream;

/// The calls with one message each way: as the peers' Raft service names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RaftCall {
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

/// What a node with the log tells one without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchPart {
    /// The position of the log that the state is of.
    pub position: u64,
    /// The cluster's state, encoded; `None` in a sign of life.
    pub state: Option<Bytes>,
    /// Who leads, as far as the node knows.
    pub leader: Option<NodeId>,
    /// In a sign of life: a leader has confirmed, just now, that the node has all that is committed.
    pub is_current: bool,
}

/// Such parts as they come, until the stream breaks.
pub type WatchParts = BoxStream<'static, Result<WatchPart, NetworkError>>;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The node was not reached: it is known that it has not got the call.
    #[error("node {node} cannot be reached")]
    Unreachable {
        /// Which.
        node: NodeId,
        /// What is known of it.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// No answer within the deadline. The node may have got the call, and may have acted on it.
    #[error("node {node} did not answer in time")]
    TimedOut {
        /// Which.
        node: NodeId,
    },
    /// The call broke on its way, or the node failed at it. The node may have got the call, and may have acted on it.
    #[error("the call to node {node} failed")]
    Failed {
        /// Which.
        node: NodeId,
        /// What is known of it.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

/// The way to other nodes of the cluster. Payloads are opaque: what the other end gets is handed to its
/// `Group::answer`, and what that returns is handed back.
///
/// An implementation finds a node's address by its id in the cluster's state. It does not try twice: whoever calls knows
/// whether that is right.
#[tonic::async_trait]
pub trait Network: Send + Sync + 'static {
    /// One message there and one back, within the deadline.
    ///
    /// # Errors
    /// [`NetworkError`]; `Unreachable` only if the node cannot have got it.
    ///
    /// # Cancel safety
    /// Dropped, the node may or may not get it.
    async fn call(
        &self,
        target: NodeId,
        call: RaftCall,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, NetworkError>;

    /// What [`Group::watch`](super::Group::watch) gives there.
    ///
    /// # Errors
    /// [`NetworkError`], also when the node does not have the log. The caller sets the deadlines.
    ///
    /// # Cancel safety
    /// May be dropped, and the stream too.
    async fn watch(&self, target: NodeId) -> Result<WatchParts, NetworkError>;

    /// A snapshot: its head, and then its bytes as they come, in pieces of some hundred KB. The deadline is not for all of it,
    /// but for each piece to be taken and for the answer behind the last one.
    ///
    /// # Errors
    /// [`NetworkError`]. When the data ends with an error the stream is broken off, so that the node does not take it for whole.
    ///
    /// # Cancel safety
    /// Dropped, the stream is broken off.
    async fn send_snapshot(
        &self,
        target: NodeId,
        head: Bytes,
        data: BoxStream<'static, io::Result<Bytes>>,
        deadline: Duration,
    ) -> Result<Bytes, NetworkError>;
}
