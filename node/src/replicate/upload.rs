//! An upload that goes to every node that is to hold the blob.

use bytes::Bytes;
use casbah_cluster::digest::Digest;

use crate::replicate::error::WriteError;
use crate::replicate::nodes::Nodes;
use crate::store::{self, Store};

/// An upload under way. Dropping it aborts it on every node.
pub struct Upload {
    digest: Digest,
    store: Store,
    here: store::Upload,
}

// === impl Upload ===

impl Upload {
    /// Begins to store a blob.
    ///
    /// # Errors
    /// [`WriteError`].
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn begin(nodes: &Nodes, digest: &Digest) -> Result<Upload, WriteError> {
        let here = nodes.store().upload(digest).await?;
        Ok(Upload { digest: *digest, store: nodes.store().clone(), here })
    }

    /// Bytes taken so far.
    pub fn written_bytes(&self) -> u64 {
        self.here.written_bytes()
    }

    /// Whether somebody else has stored the blob meanwhile, so that the rest need not come.
    pub fn is_overtaken(&self) -> bool {
        self.store.contains(&self.digest)
    }

    /// Adds the next bytes.
    ///
    /// # Errors
    /// [`WriteError`]; of a mismatch as soon as there are more bytes than the digest says. The upload can only be dropped
    /// then.
    ///
    /// # Cancel safety
    /// Dropped half-way, the upload can only be dropped too.
    pub async fn write(&mut self, data: Bytes) -> Result<(), WriteError> {
        Ok(self.here.write(data).await?)
    }

    /// Verifies the blob and makes it visible.
    ///
    /// # Errors
    /// [`WriteError`].
    ///
    /// # Cancel safety
    /// Dropped half-way, the blob may be stored or not.
    pub async fn commit(self) -> Result<(), WriteError> {
        Ok(self.here.commit().await?)
    }
}
