//! Why another node did not do what it was asked: one enum, by what the caller can do about it.

use std::sync::Arc;
use std::time::Duration;

use casbah_proto::google::rpc;
use prost::Message as _;
use tonic::{Code, Status};

use crate::forward::channel::CallError;
use crate::forward::dial::DialError;
use crate::forward::framing::FramingError;

const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";

/// When to try again where the other node has not said.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Why another node did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// What was asked for is not there, and the other node is sure of it.
    #[error("it is not there")]
    NotFound,
    /// The blob is larger than the caller takes, or than the other node can ever store.
    #[error("the blob is too large: {}", .0.message())]
    TooLarge(#[source] Box<Status>),
    /// It is not there, and the other node has lost copies to damage: it may have been, and be elsewhere.
    #[error("the node has lost it, or cannot say so")]
    Unsure,
    /// The read begins past the blob's end; or a copy was last used before all that would make room for it.
    #[error("it is past the end of the blob, or past its time")]
    OutOfRange,
    /// The other node is of another cluster, or another node than was meant, or does not know this one: it is not to be asked.
    #[error("the node does not answer this one: {}", .0.message())]
    Refused(#[source] Box<Status>),
    /// It cannot now: nothing may be evicted, or too much waits already.
    #[error("the node cannot do it now: {}", .source.message())]
    Full {
        /// When it may be able to.
        retry_after: Duration,
        /// What it says.
        #[source]
        source: Box<Status>,
    },
    /// It takes no writes until its disk works again.
    #[error("the node takes no writes: {}", .0.message())]
    ReadOnly(#[source] Box<Status>),
    /// It has not heard of the layout by which it was asked.
    #[error("the node has not heard of the layout that it was asked by: {}", .0.message())]
    Stale(#[source] Box<Status>),
    /// It cannot be reached, or it went away before it answered; what it was asked for may have been done.
    #[error("the node cannot be reached")]
    Unreachable(#[source] Unreachable),
    /// It did not answer in time; what it was asked for may have been done.
    #[error("the node did not answer in time")]
    TimedOut,
    /// It failed: its disk, or what it sent makes no sense.
    #[error("the node failed: {}", .0.message())]
    Broken(#[source] Box<Status>),
}

/// Why a node cannot be reached.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unreachable {
    /// No connection could be made.
    #[error("no connection could be made")]
    NoConnection(#[source] Arc<DialError>),
    /// The connection ended before the answer did.
    #[error("the connection broke")]
    Broken(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// It has been silent for too long.
    #[error("it has been silent for too long")]
    Silent,
    /// It is no member of the cluster.
    #[error("it is no member of the cluster")]
    NoMember,
    /// This node is in no cluster.
    #[error("this node is in no cluster")]
    Alone,
}

// === impl PeerError ===

impl PeerError {
    /// Of a status that another node has answered with, or that stands for an answer that did not come.
    pub(super) fn of(status: Status) -> PeerError {
        if let Some(error) = cause::<CallError>(&status) {
            return PeerError::Unreachable(error.clone().into());
        }
        // What came over the wire has no causes; what has one was made here of a connection that broke.
        if std::error::Error::source(&status).is_some() {
            return PeerError::Unreachable(Unreachable::Broken(Arc::new(status)));
        }
        PeerError::answered(status)
    }

    /// Of a status that another node has answered with.
    pub(super) fn answered(status: Status) -> PeerError {
        let status = Box::new(status);
        match status.code() {
            Code::NotFound => PeerError::NotFound,
            Code::DataLoss => PeerError::Unsure,
            Code::OutOfRange => PeerError::OutOfRange,
            Code::ResourceExhausted => PeerError::TooLarge(status),
            Code::FailedPrecondition | Code::Unauthenticated => PeerError::Refused(status),
            Code::PermissionDenied => PeerError::ReadOnly(status),
            Code::Aborted => PeerError::Stale(status),
            Code::Unavailable => PeerError::Full { retry_after: retry_after(&status), source: status },
            Code::DeadlineExceeded => PeerError::TimedOut,
            Code::Cancelled => PeerError::Unreachable(Unreachable::Broken(Arc::new(*status))),
            _ => PeerError::Broken(status),
        }
    }

    /// Of an outcome within a batch.
    pub(super) fn outcome(code: u32, message: String, retry_after_ms: u64) -> PeerError {
        let code = i32::try_from(code).map_or(Code::Unknown, Code::from_i32);
        let status = Status::new(code, message);
        match PeerError::answered(status) {
            PeerError::Full { source, .. } if retry_after_ms > 0 => {
                PeerError::Full { retry_after: Duration::from_millis(retry_after_ms), source }
            }
            error => error,
        }
    }

    /// What does not fit this protocol.
    pub(super) fn nonsense(what: &'static str) -> PeerError {
        PeerError::Broken(Box::new(Status::internal(what)))
    }

    /// Whether the node may have done what it was asked for all the same.
    pub fn is_in_doubt(&self) -> bool {
        matches!(self, PeerError::Unreachable(_) | PeerError::TimedOut | PeerError::Broken(_))
    }
}

impl From<FramingError> for PeerError {
    fn from(error: FramingError) -> PeerError {
        match error {
            FramingError::Status(status) => PeerError::of(*status),
            FramingError::Cut => PeerError::Unreachable(Unreachable::Broken(Arc::new(error))),
            FramingError::Nonsense(what) => PeerError::nonsense(what),
        }
    }
}

impl From<CallError> for PeerError {
    fn from(error: CallError) -> PeerError {
        PeerError::Unreachable(error.into())
    }
}

impl From<CallError> for Unreachable {
    fn from(error: CallError) -> Unreachable {
        match error {
            CallError::Alone => Unreachable::Alone,
            CallError::Dial(error) => Unreachable::NoConnection(error),
            CallError::Silent => Unreachable::Silent,
            CallError::Broken(error) => Unreachable::Broken(error),
        }
    }
}

/// The first cause of this type.
fn cause<E: std::error::Error + 'static>(status: &Status) -> Option<&E> {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

fn retry_after(status: &Status) -> Duration {
    let details = rpc::Status::decode(status.details()).unwrap_or_default().details;
    let info = details.iter().find(|detail| detail.type_url == RETRY_INFO);
    let info = info.and_then(|detail| rpc::RetryInfo::decode(&*detail.value).ok());
    let delay = info.and_then(|info| info.retry_delay).and_then(|delay| Duration::try_from(delay).ok());
    delay.unwrap_or(RETRY_AFTER)
}
