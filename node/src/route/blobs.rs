//! The blobs of the cluster.

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use futures_util::stream::{self, StreamExt as _};

use crate::replicate::{Nodes, Upload, WriteError};
use crate::route::error::ReadError;
use crate::route::reading::{Form, Pieces, Reader, StoredReader};

/// Blobs of one batch that this node's store works on at once, so that they share the disk's latency.
const BATCH_PARALLEL: usize = 16;

/// The blobs of the cluster. Cheap to clone.
#[derive(Clone)]
pub struct Blobs {
    nodes: Nodes,
}

// === impl Blobs ===

impl Blobs {
    /// The blobs of these nodes.
    pub fn new(nodes: Nodes) -> Blobs {
        Blobs { nodes }
    }

    /// Which of the blobs a node has said just now that it has; those are used now, wherever they are. The others may be
    /// somewhere all the same.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn find(&self, digests: &[Digest]) -> Vec<bool> {
        self.nodes.store().touch(digests)
    }

    /// Those of the blobs that are nowhere, for a fact. The others are used now.
    ///
    /// # Errors
    /// When it cannot be said of one.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn absent(&self, digests: &[Digest]) -> Result<Vec<Digest>, ReadError> {
        let present = self.nodes.store().touch(digests);
        Ok(digests.iter().zip(present).filter(|(_, present)| !present).map(|(digest, _)| *digest).collect())
    }

    /// Whether as many nodes have the blob as an upload must reach, so that one of it can end early. It is used now.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn is_held(&self, digest: &Digest) -> bool {
        self.nodes.store().touch(std::slice::from_ref(digest)).iter().all(|present| *present)
    }

    /// The whole blob, if it is not larger than the limit. A use of it.
    ///
    /// # Errors
    /// [`ReadError`].
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn get(&self, digest: &Digest, limit_bytes: u64) -> Result<Bytes, ReadError> {
        Ok(self.nodes.store().get(digest, limit_bytes).await?)
    }

    /// The whole blobs, each of which is not to be larger than the limit, in the order asked for. Where zstd is taken, those
    /// come so that are stored so. A use of them.
    ///
    /// # Errors
    /// [`ReadError`], for each blob.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn get_many(
        &self,
        digests: &[Digest],
        limit_bytes: u64,
        takes_zstd: bool,
    ) -> Vec<Result<(Bytes, Form), ReadError>> {
        let reads = stream::iter(digests.to_vec()).map(|digest| self.get_here(digest, limit_bytes, takes_zstd));
        reads.buffered(BATCH_PARALLEL).collect().await
    }

    /// A range of a blob, to its end when no length is given. A use of it.
    ///
    /// # Errors
    /// [`ReadError`]; an offset past the end is out of range, one at the end is an empty read.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn read(&self, digest: &Digest, offset: u64, length: Option<u64>) -> Result<Reader, ReadError> {
        Ok(Reader::new(self.nodes.store().read(digest, offset, length).await?))
    }

    /// The whole blob, in zstd frames if it is stored so. A use of it.
    ///
    /// # Errors
    /// [`ReadError`].
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn read_as_stored(&self, digest: &Digest) -> Result<Pieces, ReadError> {
        match self.nodes.store().read_stored(digest).await? {
            Some(frames) => Ok(Pieces::Frames(StoredReader::new(frames))),
            None => Ok(Pieces::Blob(self.read(digest, 0, None).await?)),
        }
    }

    /// Stores whole blobs; the outcomes are in the order of the blobs. What is there already is verified and used all the
    /// same.
    ///
    /// # Errors
    /// [`WriteError`], for each blob.
    ///
    /// # Cancel safety
    /// Dropped half-way, each blob may be stored or not.
    pub async fn put_many(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<(), WriteError>> {
        let store = self.nodes.store();
        let puts = stream::iter(blobs).map(|(digest, data)| async move { Ok(store.put(&digest, data).await?) });
        puts.buffered(BATCH_PARALLEL).collect().await
    }

    /// Begins to store a blob.
    ///
    /// # Errors
    /// [`WriteError`].
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn upload(&self, digest: &Digest) -> Result<Upload, WriteError> {
        Upload::begin(&self.nodes, digest).await
    }

    async fn get_here(&self, digest: Digest, limit_bytes: u64, takes_zstd: bool) -> Result<(Bytes, Form), ReadError> {
        let store = self.nodes.store();
        if takes_zstd
            && digest.size_bytes() <= limit_bytes
            && let Some(frames) = store.read_stored(&digest).await?
        {
            return Ok((frames.whole().await?, Form::Zstd));
        }
        Ok((store.get(&digest, limit_bytes).await?, Form::Identity))
    }
}
