//! One copy of a blob: the way to a node, and from one node to another.

use std::sync::Arc;

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_cluster::membership::NodeId;

use crate::forward::PeerError;
use crate::replicate::error::CopyError;
use crate::replicate::nodes::Nodes;
use crate::replicate::remote::{RemoteRead, RemoteUpload};
use crate::store;

/// The way of a blob to a node. Dropped, nothing is stored there.
pub(super) enum Sink {
    /// To this one.
    Here(Box<store::Upload>),
    /// To another one.
    There(NodeId, Box<dyn RemoteUpload>),
}

/// Where a blob comes from.
enum Source {
    Here(store::Reader),
    There(Box<dyn RemoteRead>),
}

/// Copies a blob from a node that has it.
///
/// # Errors
/// [`CopyError`].
pub(super) async fn copy(
    nodes: &Nodes,
    from: NodeId,
    to: NodeId,
    here: NodeId,
    digest: &Digest,
) -> Result<(), CopyError> {
    let mut source = Source::open(nodes, from, here, digest).await?;
    // What comes from another node is hashed when it is stored here, as everything is that came from outside.
    let mut sink = match to == here {
        true => Sink::Here(Box::new(nodes.store().upload(digest).await?)),
        false => Sink::there(nodes, to, digest).await?,
    };
    while let Some(piece) = source.next(from).await? {
        sink.send(piece).await?;
    }
    sink.commit().await
}

// === impl Sink ===

impl Sink {
    /// The way to a node of bytes that this node hashes.
    pub(super) async fn open(nodes: &Nodes, to: NodeId, here: NodeId, digest: &Digest) -> Result<Sink, CopyError> {
        match to == here {
            true => Ok(Sink::Here(Box::new(nodes.store().upload_verified(digest).await?))),
            false => Sink::there(nodes, to, digest).await,
        }
    }

    async fn there(nodes: &Nodes, to: NodeId, digest: &Digest) -> Result<Sink, CopyError> {
        let upload = nodes.remote().store(to, digest).await;
        Ok(Sink::There(to, upload.map_err(|error| there(to, error))?))
    }

    pub(super) async fn send(&mut self, data: Bytes) -> Result<(), CopyError> {
        match self {
            Sink::Here(upload) => Ok(upload.write(data).await?),
            Sink::There(node, upload) => upload.send(data).await.map_err(|error| there(*node, error)),
        }
    }

    /// To be called only when the bytes have been found to be those of the digest.
    pub(super) async fn commit(self) -> Result<(), CopyError> {
        match self {
            Sink::Here(upload) => Ok(upload.commit().await?),
            Sink::There(node, upload) => upload.commit().await.map_err(|error| there(node, error)),
        }
    }
}

/// Another node did not take it.
pub(super) fn there(node: NodeId, error: PeerError) -> CopyError {
    CopyError::There { node, source: Arc::new(error) }
}

// === impl Source ===

impl Source {
    async fn open(nodes: &Nodes, from: NodeId, here: NodeId, digest: &Digest) -> Result<Source, CopyError> {
        match from == here {
            true => nodes.store().read(digest, 0, None).await.map(Source::Here).map_err(|error| unread(from, error)),
            false => {
                let read = nodes.remote().read(from, digest, 0, None, false).await;
                read.map(Source::There).map_err(|error| unread(from, error))
            }
        }
    }

    async fn next(&mut self, from: NodeId) -> Result<Option<Bytes>, CopyError> {
        match self {
            Source::Here(reader) => reader.next().await.map_err(|error| unread(from, error)),
            Source::There(read) => read.next().await.map_err(|error| unread(from, error)),
        }
    }
}

fn unread(node: NodeId, error: impl std::error::Error + Send + Sync + 'static) -> CopyError {
    CopyError::Source { node, source: Box::new(error) }
}
