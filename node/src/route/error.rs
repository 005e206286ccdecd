//! Why a read was not answered with bytes.

use std::sync::Arc;

use casbah_cluster::digest::Digest;
use casbah_cluster::membership::NodeId;

use crate::forward::PeerError;
use crate::index::IndexError;
use crate::replicate::CopyError;
use crate::store;

/// Why a blob was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// This node's store says why, and there is nobody else to ask.
    #[error(transparent)]
    Here(#[from] store::ReadError),
    /// The blob is nowhere, for a fact.
    #[error("the blob {digest} is not in the store")]
    NotFound {
        /// The blob.
        digest: Digest,
    },
    /// A node that may have the blob could not be asked.
    #[error("whether the blob {digest} is there cannot be said: a node that may have it does not answer")]
    Unavailable {
        /// The blob.
        digest: Digest,
        /// What became of one of them.
        #[source]
        source: Option<NodeError>,
    },
}

/// What became of a call to another node.
#[derive(Debug, Clone, thiserror::Error)]
#[error("node {node} did not answer")]
pub struct NodeError {
    /// Which.
    pub node: NodeId,
    /// What became of the call.
    #[source]
    pub source: Arc<PeerError>,
}

/// Why the result of an action could not be told or kept.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    /// This node's index says why.
    #[error(transparent)]
    Here(#[from] IndexError),
    /// Nodes that may have the result could not be asked.
    #[error(
        "whether the result of the action {action} is known cannot be said: a node that may have it does not answer"
    )]
    Unavailable {
        /// The action.
        action: Digest,
        /// What became of one of them.
        #[source]
        source: Option<NodeError>,
    },
    /// Too few of the nodes that are to have it took it.
    #[error("too few nodes could keep the result of the action {action}")]
    TooFew {
        /// The action.
        action: Digest,
        /// Why one of the others did not.
        #[source]
        source: Box<CopyError>,
    },
}

// === impl ReadError ===

impl ReadError {
    /// Whether the blob is nowhere, for a fact.
    pub fn is_miss(&self) -> bool {
        use store::ReadError::{Damaged, Lost, NotFound};
        // A copy that was damaged is dropped. This is told of it only where nobody else may have one.
        matches!(self, ReadError::NotFound { .. } | ReadError::Here(NotFound { .. } | Damaged { .. } | Lost { .. }))
    }

    /// Whether the caller would have to take more bytes.
    pub fn is_too_large(&self) -> bool {
        matches!(self, ReadError::Here(store::ReadError::TooLarge { .. }))
    }
}
