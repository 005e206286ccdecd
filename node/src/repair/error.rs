//! Why something was not moved.

use casbah_cluster::digest::Digest;

use crate::forward::PeerError;
use crate::index::IndexError;
use crate::store;

/// Why something was not moved, by who failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum MoveError {
    /// The other node did not answer, or broke off.
    #[error("the other node failed")]
    There(#[from] PeerError),
    /// What it sent is not what it should be.
    #[error("the other node sent other bytes than those of {digest}")]
    Wrong {
        /// Of which blob.
        digest: Digest,
        /// What is wrong.
        #[source]
        source: store::WriteError,
    },
    /// This node's store did not take it.
    #[error("this node's store failed")]
    Store(#[source] store::WriteError),
    /// This node's store cannot be read.
    #[error("this node's store cannot be read")]
    Read(#[source] store::ReadError),
    /// This node's list of blobs cannot be read.
    #[error("this node's blobs cannot be listed")]
    List(#[source] std::io::Error),
    /// This node's index did not take it.
    #[error("this node's index failed")]
    Index(#[from] IndexError),
    /// This node is about to end.
    #[error("this node ends")]
    Ended,
}

// === impl MoveError ===

impl MoveError {
    /// Of a blob that came from another node and was not stored.
    pub(super) fn of_write(error: store::WriteError) -> MoveError {
        match error {
            store::WriteError::Mismatch { expected, .. } => MoveError::Wrong { digest: expected, source: error },
            error => MoveError::Store(error),
        }
    }

    /// Whether it was this node that failed.
    pub(super) fn is_here(&self) -> bool {
        !matches!(self, MoveError::There(_) | MoveError::Wrong { .. })
    }
}
