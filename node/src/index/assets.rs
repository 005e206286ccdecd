//! The Remote Asset index: assets by their key.

use std::path::Path;

use casbah_cluster::asset::{AssetKey, AssetRecord};

use crate::index::records::{IndexCounts, IndexError, Records};

/// The Remote Asset index of this node. Cheap to clone.
#[derive(Clone)]
pub struct AssetIndex {
    records: Records,
}

// === impl AssetIndex ===

impl AssetIndex {
    /// Opens the index at `path`, or makes it. Keeps at most `capacity` assets. Blocks on the disk.
    ///
    /// # Errors
    /// [`IndexError`] when the file is no index, has another format, or the disk fails.
    pub fn open(path: &Path, capacity: u64) -> Result<AssetIndex, IndexError> {
        Ok(AssetIndex { records: Records::open(path, capacity)? })
    }

    /// What is known of this asset, expired or not. Counts as no use: see [`AssetIndex::used`].
    ///
    /// # Errors
    /// [`IndexError`] when the database fails or the record is damaged.
    pub fn get(&self, key: &AssetKey) -> Result<Option<AssetRecord>, IndexError> {
        match self.records.get(key.as_bytes())? {
            Some(bytes) => Ok(AssetRecord::decode(&bytes)?),
            None => Ok(None),
        }
    }

    /// Notes that this asset was fetched, so that it stays longer.
    pub fn used(&self, key: &AssetKey) {
        self.records.used(key.as_bytes());
    }

    /// Records the asset, in place of what was known under its key. When this returns it is on disk.
    ///
    /// # Errors
    /// [`IndexError::Busy`] when too many pushes wait; others when it could not be written, and then nothing changed.
    ///
    /// # Cancel safety
    /// Dropped half-way, the push may or may not happen.
    pub async fn push(&self, key: &AssetKey, record: &AssetRecord) -> Result<(), IndexError> {
        self.records.put(key.as_bytes().to_vec(), record.encode()?, record.expires_at).await
    }

    /// The index in numbers. May wait for the disk.
    pub fn counts(&self) -> IndexCounts {
        self.records.counts()
    }

    /// Writes what waits. Later pushes fail with [`IndexError::Closed`]. Blocks until done.
    pub fn close(&self) {
        self.records.close();
    }
}
