//! The ActionCache's index: results of actions by instance, digest function and action.

use std::path::Path;

use casbah_cluster::digest::Digest;

use crate::index::records::{IndexCounts, IndexError, Records};

const VERSION: u8 = 1;

/// The results of actions on this node. Cheap to clone.
#[derive(Clone)]
pub struct ActionIndex {
    records: Records,
}

// === impl ActionIndex ===

impl ActionIndex {
    /// Opens the index at `path`, or makes it. Keeps at most `capacity` results. Blocks on the disk.
    ///
    /// # Errors
    /// [`IndexError`] when the file is no index, has another format, or the disk fails.
    pub fn open(path: &Path, capacity: u64) -> Result<ActionIndex, IndexError> {
        Ok(ActionIndex { records: Records::open(path, capacity)? })
    }

    /// The encoded `ActionResult` of this action. Counts as no use: see [`ActionIndex::used`].
    ///
    /// # Errors
    /// [`IndexError`] when the database fails.
    pub fn get(&self, instance: &str, action: &Digest) -> Result<Option<Vec<u8>>, IndexError> {
        self.records.get(&key(instance, action))
    }

    /// Notes that this result was of use, so that it stays longer.
    pub fn used(&self, instance: &str, action: &Digest) {
        self.records.used(&key(instance, action));
    }

    /// Keeps the encoded `ActionResult`, in place of an earlier one. When this returns it is on disk.
    ///
    /// # Errors
    /// [`IndexError::Busy`] when too many writes wait; others when it could not be written, and then nothing changed.
    ///
    /// # Cancel safety
    /// Dropped half-way, the update may or may not happen.
    pub async fn update(&self, instance: &str, action: &Digest, result: Vec<u8>) -> Result<(), IndexError> {
        self.records.put(key(instance, action), result, None).await
    }

    /// The index in numbers. May wait for the disk.
    pub fn counts(&self) -> IndexCounts {
        self.records.counts()
    }

    /// Writes what waits. Later updates fail with [`IndexError::Closed`]. Blocks until done.
    pub fn close(&self) {
        self.records.close();
    }
}

/// Version, function, size, hash, and last the instance name: every part but the last has a known length.
fn key(instance: &str, action: &Digest) -> Vec<u8> {
    let mut key = vec![VERSION, action.function().number()];
    key.extend_from_slice(&action.size_bytes().to_be_bytes());
    key.extend_from_slice(action.hash());
    key.extend_from_slice(instance.as_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use casbah_cluster::digest::DigestFunction;

    #[tokio::test]
    async fn results_are_told_apart_by_instance_and_action() {
        let folder = tempfile::tempdir().unwrap();
        let index = ActionIndex::open(&folder.path().join("actions.redb"), 10).unwrap();
        let action = |text: &str| Digest::of(DigestFunction::Sha256, text.as_bytes());
        index.update("main", &action("a"), b"result".to_vec()).await.unwrap();
        assert_eq!(index.get("main", &action("a")).unwrap().as_deref(), Some(&b"result"[..]));
        assert_eq!(index.get("", &action("a")).unwrap(), None);
        assert_eq!(index.get("main/x", &action("a")).unwrap(), None);
        assert_eq!(index.get("main", &action("b")).unwrap(), None);
    }
}
