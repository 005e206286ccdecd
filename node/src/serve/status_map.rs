//! The one place where errors become gRPC statuses.
//!
//! `NOT_FOUND` says that a blob is not here, and nothing else does; what may be better a little later is
//! `UNAVAILABLE` and says when to come back (RetryInfo); what the caller must mend is `INVALID_ARGUMENT`.

use std::error::Error;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use casbah_cluster::digest::{Digest, DigestError};
use casbah_proto::google::rpc;
use prost::Message as _;
use prost_types::Any;
use tonic::{Code, Status};

use crate::forward::PeerError;
use crate::index::{GroupError, IndexError};
use crate::observe::with_causes;
use crate::route::{ActionError, CopyError, ReadError, WriteError};
use crate::serve::completeness::Incomplete;
use crate::serve::compression::{DecodeError, EncodeError};
use crate::serve::peer::MembersError;
use crate::serve::resource_name::NameError;
use crate::store;

/// When to try again after something that passes by itself: long enough not to make it worse, short enough that a
/// build does not notice.
const RETRY_AFTER: Duration = Duration::from_millis(500);

const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";

/// `UNAVAILABLE`, to be tried again soon.
pub fn unavailable(message: impl Into<String>) -> Status {
    with_retry(message, RETRY_AFTER)
}

/// The same, to be tried again after this time.
pub(super) fn unavailable_for(message: impl Into<String>, after: Duration) -> Status {
    with_retry(message, after)
}

fn with_retry(message: impl Into<String>, after: Duration) -> Status {
    let message = message.into();
    let info = rpc::RetryInfo { retry_delay: prost_types::Duration::try_from(after).ok() };
    let details = rpc::Status {
        code: Code::Unavailable as i32,
        message: message.clone(),
        details: vec![Any { type_url: RETRY_INFO.into(), value: info.encode_to_vec() }],
    };
    Status::with_details(Code::Unavailable, message, Bytes::from(details.encode_to_vec()))
}

/// The status as it stands inside a message, for one blob of a batch.
pub(super) fn in_message(outcome: Result<(), Status>) -> rpc::Status {
    match outcome {
        Ok(()) => rpc::Status::default(),
        Err(status) => rpc::Status {
            code: status.code() as i32,
            message: status.message().to_owned(),
            details: rpc::Status::decode(status.details()).map(|status| status.details).unwrap_or_default(),
        },
    }
}

/// The request is malformed; the message is the error with all its causes.
pub(super) fn invalid(error: &dyn Error) -> Status {
    Status::invalid_argument(with_causes(error))
}

pub(super) fn digest(error: &DigestError) -> Status {
    invalid(error)
}

pub(super) fn name(error: &NameError) -> Status {
    invalid(error)
}

/// Of a read that has not begun to answer.
pub(super) fn read(error: &ReadError) -> Status {
    let text = with_causes(error);
    match error {
        // Where the only copy was damaged and is gone this is a miss for the caller, and an upload heals it.
        error if error.is_miss() => Status::not_found(text),
        ReadError::Here(store::ReadError::OutOfRange { .. }) => Status::out_of_range(text),
        ReadError::Here(store::ReadError::TooLarge { .. }) => Status::invalid_argument(text),
        ReadError::Here(_) | ReadError::NotFound { .. } | ReadError::Unavailable { .. } => unavailable(text),
    }
}

/// Of a read that has answered with some bytes already: the caller should try again, and will then be told the truth.
pub(super) fn read_midway(error: &ReadError) -> Status {
    unavailable(with_causes(error))
}

pub(super) fn write(error: &WriteError) -> Status {
    let text = with_causes(error);
    match error {
        WriteError::Here(store::WriteError::Mismatch { .. } | store::WriteError::LargerThanStore { .. }) => {
            Status::invalid_argument(text)
        }
        // Not RESOURCE_EXHAUSTED: buildbox takes that for "the remote has it all" and pushes an asset without blobs.
        WriteError::Here(store::WriteError::Full { retry_after, .. }) => with_retry(text, *retry_after),
        WriteError::Here(_) => unavailable(text),
        WriteError::TooFew { source, .. } => copy(source, text),
    }
}

/// Of something that too few nodes have taken, by what one of them says.
fn copy(error: &CopyError, text: String) -> Status {
    match error {
        CopyError::There { source, .. } => match &**source {
            PeerError::TooLarge(_) => Status::invalid_argument(text),
            PeerError::Full { retry_after, .. } => with_retry(text, *retry_after),
            _ => unavailable(text),
        },
        _ => unavailable(text),
    }
}

/// Of the result of an action.
pub(super) fn action(error: &ActionError) -> Status {
    match error {
        ActionError::Here(error) => index(error),
        ActionError::Unavailable { .. } => unavailable(with_causes(error)),
        ActionError::TooFew { source, .. } => copy(source, with_causes(error)),
    }
}

/// Of compressed bytes that were to become this blob.
pub(super) fn decode(digest: &Digest, error: &DecodeError) -> Status {
    let text = format!("the compressed bytes are not those of {digest}: {}", with_causes(error));
    match error {
        DecodeError::Busy => unavailable(with_causes(error)),
        DecodeError::Job(_) => Status::internal(text),
        _ => Status::invalid_argument(text),
    }
}

/// Of a blob that was to be sent compressed.
pub(super) fn encode(error: &EncodeError) -> Status {
    Status::internal(with_causes(error))
}

pub(super) fn index(error: &IndexError) -> Status {
    let text = with_causes(error);
    match error {
        IndexError::Record(_) | IndexError::Format { .. } => Status::internal(text),
        IndexError::Group(GroupError::TooLarge { .. }) => Status::invalid_argument(text),
        IndexError::Group(GroupError::Record(_) | GroupError::Format { .. } | GroupError::OtherNode { .. }) => {
            Status::internal(text)
        }
        IndexError::Busy | IndexError::Closed | IndexError::InUse | IndexError::Database(_) | IndexError::Group(_) => {
            unavailable(text)
        }
    }
}

/// Of an asset that is being pushed.
pub(super) fn incomplete(error: &Incomplete) -> Status {
    match error {
        Incomplete::Store(source) => read(source),
        Incomplete::Missing { .. } | Incomplete::Malformed { .. } | Incomplete::TooLarge { .. } => {
            Status::failed_precondition(with_causes(error))
        }
    }
}

// === for other nodes ===
//
// They act on codes alone: see `docs/reference/peer-protocol.md`.

/// Of a read that another node asked for.
pub(super) fn peer_read(error: &store::ReadError) -> Status {
    let text = with_causes(error);
    match error {
        store::ReadError::NotFound { .. } => Status::not_found(text),
        // An upload may have been acknowledged because of this copy.
        store::ReadError::Damaged { .. } | store::ReadError::Lost { .. } => Status::data_loss(text),
        store::ReadError::OutOfRange { .. } => Status::out_of_range(text),
        store::ReadError::TooLarge { .. } => Status::resource_exhausted(text),
        store::ReadError::Io { .. } => Status::internal(text),
        store::ReadError::Busy { .. } => unavailable(text),
    }
}

/// Of one that has been answered with some bytes already: the copy is no good, and nothing is said about whether it is there.
pub(super) fn peer_read_midway(error: &store::ReadError) -> Status {
    match error {
        store::ReadError::Busy { .. } => peer_read(error),
        _ => Status::internal(with_causes(error)),
    }
}

/// Of a write that another node asked for.
pub(super) fn peer_write(error: &store::WriteError) -> Status {
    let text = with_causes(error);
    match error {
        store::WriteError::Mismatch { .. } => Status::invalid_argument(text),
        store::WriteError::LargerThanStore { .. } => Status::resource_exhausted(text),
        store::WriteError::Outlived { .. } => Status::out_of_range(text),
        store::WriteError::Full { retry_after, .. } => with_retry(text, *retry_after),
        store::WriteError::ReadOnly { .. } => Status::permission_denied(text),
        store::WriteError::Io { .. } => Status::internal(text),
        store::WriteError::Busy { .. } | store::WriteError::Closed { .. } => unavailable(text),
    }
}

/// Of a list of blobs that another node asked for.
pub(super) fn listing(error: &io::Error) -> Status {
    match error.kind() {
        io::ErrorKind::ResourceBusy => unavailable("too many reads wait for the disk"),
        _ => Status::internal(with_causes(error)),
    }
}

/// When to try again, of a status made here; 0 where that is not said.
pub(super) fn retry_after_ms(status: &Status) -> u64 {
    let details = rpc::Status::decode(status.details()).unwrap_or_default().details;
    let info = details.iter().find(|detail| detail.type_url == RETRY_INFO);
    let info = info.and_then(|detail| rpc::RetryInfo::decode(&*detail.value).ok());
    let delay = info.and_then(|info| info.retry_delay).and_then(|delay| Duration::try_from(delay).ok());
    delay.map_or(0, |delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX))
}

/// Of a message to the Raft group.
pub(super) fn group(error: &GroupError) -> Status {
    let text = with_causes(error);
    match error {
        GroupError::Busy
        | GroupError::NoLeader
        | GroupError::NotLeader { .. }
        | GroupError::NoLog
        | GroupError::Closed => unavailable(text),
        _ => Status::internal(text),
    }
}

/// Of a question about who belongs to the cluster.
pub(super) fn members(error: &MembersError) -> Status {
    let text = with_causes(error);
    match error {
        MembersError::Misfit { .. } => Status::failed_precondition(text),
        MembersError::NoCluster | MembersError::NotNow { .. } => unavailable(text),
    }
}
