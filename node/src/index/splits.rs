//! The splits of blobs: of which chunks a blob can be put together, so that it need not be cut again.

use std::path::Path;

use casbah_cluster::digest::Digest;
use casbah_cluster::split::Split;

use crate::index::records::{IndexError, Records};

/// Its name in the node's directory.
pub const SPLITS_FILE: &str = "splits.redb";

const VERSION: u8 = 1;

/// Splits that are remembered. One of a blob of a gigabyte takes some 80 KB, and one that is forgotten is made again.
const SPLITS_MAX: u64 = 10_000;

/// The splits of this node's blobs. Cheap to clone.
#[derive(Clone)]
pub struct SplitIndex {
    records: Records,
}

// === impl SplitIndex ===

impl SplitIndex {
    /// Opens the index at `path`, or makes it. Blocks on the disk.
    ///
    /// # Errors
    /// [`IndexError`] when the file is no index, has another format, or the disk fails.
    pub fn open(path: &Path) -> Result<SplitIndex, IndexError> {
        Ok(SplitIndex { records: Records::open(path, SPLITS_MAX)? })
    }

    /// The split of this blob, whose chunks may have gone since. A use of it.
    ///
    /// # Errors
    /// [`IndexError`] when the database fails or the record is damaged.
    pub fn get(&self, blob: &Digest) -> Result<Option<Split>, IndexError> {
        let key = key(blob);
        let Some(bytes) = self.records.get(&key)? else { return Ok(None) };
        self.records.used(&key);
        Ok(Split::decode(&bytes)?)
    }

    /// Keeps a split that was found to make up the blob, in place of an earlier one. When this returns it is on disk.
    ///
    /// # Errors
    /// [`IndexError::Busy`] when too many writes wait; others when it could not be written, and then nothing changed.
    ///
    /// # Cancel safety
    /// Dropped half-way, the split may or may not be kept.
    pub async fn put(&self, blob: &Digest, split: &Split) -> Result<(), IndexError> {
        self.records.put(key(blob), split.encode(blob.function())?, None).await
    }

    /// Writes what waits. Later writes fail with [`IndexError::Closed`]. Blocks until done.
    pub fn close(&self) {
        self.records.close();
    }
}

/// Version, function, size and hash.
fn key(blob: &Digest) -> Vec<u8> {
    let mut key = vec![VERSION, blob.function().number()];
    key.extend_from_slice(&blob.size_bytes().to_be_bytes());
    key.extend_from_slice(blob.hash());
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use casbah_cluster::digest::DigestFunction;

    #[tokio::test]
    async fn splits_are_told_apart_by_function_and_blob_and_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("splits.redb");
        let index = SplitIndex::open(&path).unwrap();
        let sha256 = Digest::of(DigestFunction::Sha256, b"blob");
        let blake3 = Digest::from_raw(DigestFunction::Blake3, sha256.hash(), sha256.size_bytes()).unwrap();
        let split = Split { chunking: 1, chunks: vec![sha256; 3] };
        index.put(&sha256, &split).await.unwrap();
        assert_eq!(index.get(&blake3).unwrap(), None);
        index.close();
        drop(index);
        let index = SplitIndex::open(&path).unwrap();
        assert_eq!(index.get(&sha256).unwrap(), Some(split));
        assert_eq!(index.get(&blake3).unwrap(), None);
    }
}
