//! Who this directory is, on disk: what may never be forgotten, and never be shared by two nodes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use casbah_cluster::codec::{self, CodecError};
use casbah_cluster::membership::{ClusterId, NodeId, Pledge, VolumeId};
use serde::{Deserialize, Serialize};

use super::whole;

/// Its name in the node's directory.
const FILE: &str = "identity";

/// All there may be of it.
pub(super) const IDENTITY_FILES: [&str; 2] = [FILE, "identity.new"];

const VERSION: u8 = 1;

/// Why the identity cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The disk.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// As a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It was written by another version, or is damaged.
    #[error("{} does not say who this node is", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: CodecError,
    },
}

/// Who this directory is. Version 1 on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// Drawn when the directory was made.
    pub(super) volume: VolumeId,
    /// Its word to help to form one cluster and no other.
    pub(super) pledge: Option<Pledge>,
    /// What it is, once it is in a cluster. For good.
    pub(super) member: Option<Membership>,
}

/// A node's place in a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Membership {
    pub(super) cluster: ClusterId,
    pub(super) node: NodeId,
    /// It is the first node of the cluster, which it forms, or has formed.
    pub(super) founder: bool,
}

// === impl Identity ===

impl Identity {
    /// The directory's, drawn anew if it has none.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub(super) fn of(dir: &Path) -> Result<Identity, IdentityError> {
        let path = dir.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => codec::decode(VERSION, &bytes).map_err(|source| IdentityError::Record { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let identity = Identity { volume: VolumeId(rand::random()), pledge: None, member: None };
                identity.keep(dir)?;
                Ok(identity)
            }
            Err(source) => Err(IdentityError::Io { action: "read", path, source }),
        }
    }

    /// Writes it down: when this returns, it is there after a loss of power.
    ///
    /// # Errors
    /// [`IdentityError`]; what was there before is there still.
    pub(super) fn keep(&self, dir: &Path) -> Result<(), IdentityError> {
        let path = dir.join(FILE);
        let bytes = codec::encode(VERSION, self);
        let bytes = bytes.map_err(|source| IdentityError::Record { path: path.clone(), source })?;
        whole::write(dir, FILE, &bytes).map_err(|source| IdentityError::Io { action: "write", path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_who_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let fresh = Identity::of(dir.path()).unwrap();
        assert_eq!(Identity::of(dir.path()).unwrap(), fresh);
        let member = Membership { cluster: ClusterId([7; 16]), node: NodeId(3), founder: false };
        let pledge = Pledge { cluster: ClusterId([7; 16]), founder: VolumeId([1; 16]), founder_name: "a".into() };
        let known = Identity { pledge: Some(pledge), member: Some(member), ..fresh };
        known.keep(dir.path()).unwrap();
        assert_eq!(Identity::of(dir.path()).unwrap(), known);
    }

    #[test]
    fn two_directories_are_two() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_ne!(Identity::of(one.path()).unwrap().volume, Identity::of(other.path()).unwrap().volume);
    }

    #[test]
    fn what_is_damaged_is_told_and_not_drawn_anew() {
        let dir = tempfile::tempdir().unwrap();
        Identity::of(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(Identity::of(dir.path()), Err(IdentityError::Record { .. })), "cut to {length}");
        }
    }

    #[test]
    fn a_write_that_was_cut_off_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let known = Identity::of(dir.path()).unwrap();
        fs::write(dir.path().join("identity.new"), b"half").unwrap();
        assert_eq!(Identity::of(dir.path()).unwrap(), known);
    }
}
