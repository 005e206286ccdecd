//! Why a write was not acknowledged.

use std::sync::Arc;

use casbah_cluster::digest::Digest;
use casbah_cluster::membership::NodeId;

use crate::forward::PeerError;
use crate::index::IndexError;
use crate::store;

/// Why a blob was not stored on enough nodes. It may lie on some of them.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// This node's store says why: the bytes are wrong, or it could not take them and was one of those that had to.
    #[error(transparent)]
    Here(#[from] store::WriteError),
    /// Too few of the nodes that are to have the blob took it.
    #[error("too few nodes could store the blob {digest}")]
    TooFew {
        /// The blob.
        digest: Digest,
        /// Why one of the others did not.
        #[source]
        source: Box<CopyError>,
    },
}

/// Why one copy was not made.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// This node's store says why.
    #[error(transparent)]
    Here(#[from] store::WriteError),
    /// This node's index says why.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Another node does, or says nothing.
    #[error("node {node} did not take it")]
    There {
        /// Which.
        node: NodeId,
        /// What became of it.
        #[source]
        source: Arc<PeerError>,
    },
    /// It was to be copied from a node that could not be read from.
    #[error("it could not be read from node {node}")]
    Source {
        /// Which.
        node: NodeId,
        /// What became of it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Its sender went away before it was whole, or it was too slow.
    #[error("node {node} was given up before it had all of it")]
    GivenUp {
        /// Which.
        node: NodeId,
    },
    /// It may be that it belongs elsewhere by now.
    #[error("this node does not hear what the others have agreed on")]
    InDoubt,
    /// None of the nodes that may have it is known to be there.
    #[error("none of its nodes can be reached")]
    Nobody,
}

// === impl WriteError ===

impl WriteError {
    /// Of a write for which there were too few nodes, by what is known of one of them.
    pub(super) fn too_few(digest: Digest, error: Option<CopyError>) -> WriteError {
        match error {
            Some(CopyError::Here(error)) => WriteError::Here(error),
            error => WriteError::TooFew { digest, source: Box::new(error.unwrap_or(CopyError::Nobody)) },
        }
    }
}

// === impl CopyError ===

impl CopyError {
    /// Of the reasons why several nodes did not take something, the one that says most: a client that is told of a full node
    /// is told when to come back.
    pub(crate) fn or(self, earlier: Option<CopyError>) -> CopyError {
        let weight = |error: &CopyError| match error {
            CopyError::Here(_) | CopyError::Index(_) => 3,
            CopyError::There { source, .. } if !source.is_in_doubt() => 2,
            CopyError::There { .. } => 1,
            CopyError::Source { .. } | CopyError::GivenUp { .. } | CopyError::InDoubt | CopyError::Nobody => 0,
        };
        match earlier {
            Some(earlier) if weight(&earlier) >= weight(&self) => earlier,
            _ => self,
        }
    }
}
