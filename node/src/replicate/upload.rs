//! An upload that goes to every node that is to hold the blob.

use bytes::Bytes;
use casbah_cluster::digest::Digest;

use crate::replicate::batch::share_if_joined;
use crate::replicate::error::WriteError;
use crate::replicate::nodes::Nodes;
use crate::replicate::spread::Spread;
use crate::store;

/// An upload under way. Dropping it aborts it on every node.
///
/// It may be kept for a while and gone on with. To other nodes it is a stream each, which stays open meanwhile: if all of
/// them have ended, it is no longer [alive](Upload::is_alive), and the client has to begin again. One of them is enough to go on:
/// what the others lack is copied to others at the end.
pub struct Upload {
    nodes: Nodes,
    digest: Digest,
    way: Way,
}

enum Way {
    /// To this node alone, whose store hashes as it writes.
    Here { upload: Box<store::Upload> },
    /// To several nodes, or another one.
    Spread(Box<Spread>),
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
        let view = nodes.view();
        if view.is_single() || digest.is_empty_blob() {
            let way = Way::Here { upload: Box::new(nodes.store().upload(digest).await?) };
            return Ok(Upload { nodes: nodes.clone(), digest: *digest, way });
        }
        let way = Way::Spread(Box::new(Spread::begin(nodes, &view, *digest)));
        Ok(Upload { nodes: nodes.clone(), digest: *digest, way })
    }

    /// Bytes taken so far.
    pub fn written_bytes(&self) -> u64 {
        match &self.way {
            Way::Here { upload } => upload.written_bytes(),
            Way::Spread(spread) => spread.written_bytes(),
        }
    }

    /// Whether somebody else has stored the blob meanwhile, so that the rest need not come.
    pub fn is_overtaken(&self) -> bool {
        match &self.way {
            Way::Here { .. } => self.nodes.store().contains(&self.digest),
            Way::Spread(spread) => spread.is_overtaken(),
        }
    }

    /// Whether it can be gone on with.
    pub fn is_alive(&self) -> bool {
        match &self.way {
            Way::Here { .. } => true,
            Way::Spread(spread) => spread.is_alive(),
        }
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
        match &mut self.way {
            Way::Here { upload } => Ok(upload.write(data).await?),
            Way::Spread(spread) => spread.write(data).await,
        }
    }

    /// Verifies the blob and makes it visible. When this has returned, as many nodes have it as make it acknowledged; others may
    /// get it later.
    ///
    /// # Errors
    /// [`WriteError`]; some nodes may have it all the same.
    ///
    /// # Cancel safety
    /// Dropped half-way, the blob may be stored or not.
    pub async fn commit(self) -> Result<(), WriteError> {
        match self.way {
            Way::Here { upload } => {
                upload.commit().await?;
                let outcomes = share_if_joined(&self.nodes, &[self.digest], vec![Ok(())]).await;
                outcomes.into_iter().collect::<Result<(), WriteError>>()?;
            }
            Way::Spread(spread) => spread.commit().await?,
        }
        self.nodes.promise(&self.digest);
        Ok(())
    }
}
