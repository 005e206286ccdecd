//! The blobs of the cluster.

use bytes::Bytes;
use casbah_cluster::digest::Digest;

use crate::forward::Form;
use crate::replicate::{Nodes, Upload, WriteError, put_many};
use crate::route::error::ReadError;
use crate::route::fetch::{self, Wanted};
use crate::route::flights::Flights;
use crate::route::lookup;
use crate::route::reading::{Pieces, Reader};

/// Blobs up to this size that are read whole from another node are fetched once for all that want them at the same time.
const MERGED_BYTES_MAX: u64 = 256 << 10;

/// The blobs of the cluster. Cheap to clone.
#[derive(Clone)]
pub struct Blobs {
    nodes: Nodes,
    flights: Flights,
}

// === impl Blobs ===

impl Blobs {
    /// The blobs of these nodes.
    pub fn new(nodes: Nodes) -> Blobs {
        Blobs { nodes, flights: Flights::default() }
    }

    /// Which of the blobs a node has said just now that it has; those are used now, wherever they are. The others may be
    /// somewhere all the same.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn find(&self, digests: &[Digest]) -> Vec<bool> {
        lookup::look_up(&self.nodes, digests).await.told(&self.nodes, digests).present
    }

    /// Those of the blobs that are nowhere, for a fact. The others are used now.
    ///
    /// # Errors
    /// When it cannot be said of one.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn absent(&self, digests: &[Digest]) -> Result<Vec<Digest>, ReadError> {
        lookup::look_up(&self.nodes, digests).await.told(&self.nodes, digests).absent(digests)
    }

    /// Whether as many nodes have the blob as an upload must reach, so that one of it can end early. It is used now.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn is_held(&self, digest: &Digest) -> bool {
        let is_held = lookup::is_held(&self.nodes, digest).await;
        if is_held {
            self.nodes.promise(digest);
        }
        is_held
    }

    /// The whole blob, if it is not larger than the limit. A use of it.
    ///
    /// # Errors
    /// [`ReadError`].
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn get(&self, digest: &Digest, limit_bytes: u64) -> Result<Bytes, ReadError> {
        let wanted = Wanted { limit_bytes, takes_zstd: false };
        let (data, _as_it_is) = self.told(digest, fetch::get(&self.nodes, &self.flights, digest, wanted).await)?;
        Ok(data)
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
        let wanted = Wanted { limit_bytes, takes_zstd };
        let read = fetch::get_many(&self.nodes, &self.flights, digests, wanted).await;
        digests.iter().zip(read).map(|(digest, read)| self.told(digest, read)).collect()
    }

    /// A range of a blob, to its end when no length is given. A use of it.
    ///
    /// # Errors
    /// [`ReadError`]; an offset past the end is out of range, one at the end is an empty read.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn read(&self, digest: &Digest, offset: u64, length: Option<u64>) -> Result<Reader, ReadError> {
        let is_small = offset == 0 && length.is_none() && digest.size_bytes() <= MERGED_BYTES_MAX;
        if is_small && !self.nodes.store().contains(digest) {
            return Ok(Reader::of(&self.nodes, digest, self.get(digest, MERGED_BYTES_MAX).await?));
        }
        self.told(digest, Reader::open(&self.nodes, digest, offset, length).await)
    }

    /// The whole blob, in zstd frames if it is stored so. A use of it.
    ///
    /// # Errors
    /// [`ReadError`].
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn read_as_stored(&self, digest: &Digest) -> Result<Pieces, ReadError> {
        self.told(digest, Pieces::open(&self.nodes, digest).await)
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
        let digests: Vec<Digest> = blobs.iter().map(|(digest, _)| *digest).collect();
        let stored = put_many(&self.nodes, blobs).await;
        digests
            .iter()
            .zip(&stored)
            .filter(|(_, stored)| stored.is_ok())
            .for_each(|(digest, _)| self.nodes.promise(digest));
        stored
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

    /// Takes note of what a client is told of a blob.
    fn told<T>(&self, digest: &Digest, read: Result<T, ReadError>) -> Result<T, ReadError> {
        match &read {
            Ok(_) => self.nodes.promise(digest),
            Err(error) if error.is_miss() => self.nodes.is_missing(digest),
            Err(_) => {}
        }
        read
    }
}
