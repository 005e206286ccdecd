//! The results of actions in the cluster.

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_cluster::membership::NodeId;

use crate::index::{ActionIndex, IndexError};

/// The results of actions in the cluster. Cheap to clone.
#[derive(Clone)]
pub struct Actions {
    index: ActionIndex,
}

// === impl Actions ===

impl Actions {
    /// Those of this node.
    pub fn new(index: ActionIndex) -> Actions {
        Actions { index }
    }

    /// The encoded `ActionResult` of this action. Counts as no use: see [`Actions::used`].
    ///
    /// # Errors
    /// When it cannot be said.
    pub async fn get(&self, instance: &str, action: &Digest) -> Result<Option<Bytes>, IndexError> {
        Ok(self.index.get(instance, action)?.map(|(_, result)| result))
    }

    /// Notes that this result was of use, so that it stays longer.
    pub fn used(&self, instance: &str, action: &Digest) {
        self.index.used(instance, action);
    }

    /// Keeps the encoded `ActionResult`, in place of an earlier one.
    ///
    /// # Errors
    /// When it was not written to enough nodes.
    ///
    /// # Cancel safety
    /// Dropped half-way, the update may or may not happen.
    pub async fn update(&self, instance: &str, action: &Digest, result: Bytes) -> Result<(), IndexError> {
        let version = self.index.next_version(NodeId::default(), instance, action)?;
        self.index.put_if_newer(instance, action, version, result).await
    }
}
