//! Where things are in a store's directory.
//!
//! ```text
//! format                    "casbah store 1"
//! index/journal-<generation>   changes, in order
//! index/snapshot-<generation>  all blobs as of the beginning of the journal of that generation
//! segments/<number>            small blobs
//! blobs/<first byte>/<function>-<key>-<serial>   large blobs
//! incoming/<run>-<number>      uploads under way
//! ```

use std::path::{Path, PathBuf};

use super::key::{KEY_HASH_BYTES, Key};

/// Where the store is in a node's directory.
pub const DIRECTORY: &str = "store";

/// What `format` says.
pub const FORMAT: &str = "casbah store 1\n";

/// The paths of a store.
#[derive(Debug, Clone)]
pub struct Paths {
    root: PathBuf,
}

// === impl Paths ===

impl Paths {
    /// Below this directory.
    pub fn new(root: PathBuf) -> Paths {
        Paths { root }
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file that names the format.
    pub fn format(&self) -> PathBuf {
        self.root.join("format")
    }

    /// The directory of journals and snapshots.
    pub fn index(&self) -> PathBuf {
        self.root.join("index")
    }

    /// A journal.
    pub fn journal(&self, generation: u64) -> PathBuf {
        self.index().join(format!("journal-{generation}"))
    }

    /// A snapshot.
    pub fn snapshot(&self, generation: u64) -> PathBuf {
        self.index().join(format!("snapshot-{generation}"))
    }

    /// A snapshot being written.
    pub fn snapshot_unfinished(&self) -> PathBuf {
        self.index().join("snapshot-unfinished")
    }

    /// The directory of the directories of large blobs.
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// The directory of large blobs whose hashes begin with this byte.
    pub fn blobs_of(&self, first: u8) -> PathBuf {
        self.blobs().join(format!("{first:02x}"))
    }

    /// The file of a large blob.
    pub fn blob(&self, key: &Key, serial: u8) -> PathBuf {
        let [first, ..] = key.hash;
        self.blobs_of(first).join(format!("{:02x}-{}-{serial:x}", key.function, key.hash_hex()))
    }

    /// The directory of segments.
    pub fn segments(&self) -> PathBuf {
        self.root.join("segments")
    }

    /// A segment.
    pub fn segment(&self, number: u32) -> PathBuf {
        self.segments().join(number.to_string())
    }

    /// The directory of uploads under way.
    pub fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    /// A file that is written to see whether the disk works.
    pub fn probe(&self) -> PathBuf {
        self.incoming().join("0-probe")
    }

    /// An upload under way.
    pub fn upload(&self, run: u64, number: u64) -> PathBuf {
        self.incoming().join(format!("{run}-{number}"))
    }
}

/// The key and serial in the name of a blob's file; `None` for any other name.
pub fn parse_blob_name(name: &str) -> Option<(Key, u8)> {
    let mut parts = name.split('-');
    let (function, hash, serial) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || function.len() != 2 || hash.len() != 2 * KEY_HASH_BYTES || serial.len() != 1 {
        return None;
    }
    let mut key = Key { function: u8::from_str_radix(function, 16).ok()?, hash: [0; KEY_HASH_BYTES] };
    for (byte, pair) in key.hash.iter_mut().zip(hash.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some((key, u8::from_str_radix(serial, 16).ok()?))
}

/// The generation in the name of a journal or snapshot.
pub fn parse_generation(name: &str, prefix: &str) -> Option<u64> {
    name.strip_prefix(prefix)?.strip_prefix('-')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_blob_file_gives_its_key_back() {
        let paths = Paths::new("/x".into());
        let key = Key { function: 1, hash: std::array::from_fn(|at| at as u8 * 7) };
        let path = paths.blob(&key, 11);
        assert_eq!(parse_blob_name(path.file_name().unwrap().to_str().unwrap()), Some((key, 11)));
        for bad in ["", "01-00-0", "lost+found", "01-zz-0-0"] {
            assert_eq!(parse_blob_name(bad), None);
        }
    }
}
