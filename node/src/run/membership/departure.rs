//! How far this node is with leaving its cluster, on disk: its directory may be used again, by a pod of the same name.

use std::fs;
use std::io;
use std::path::Path;

use super::identity::IDENTITY_FILES;
use super::whole;
use crate::index::{ACTIONS_FILE, GROUP_FILES, SPLITS_FILE};
use crate::store;

/// Its name in the node's directory.
const FILE: &str = "departure";

/// What the file says.
const BEGUN: &[u8] = b"begun\n";
const DONE: &[u8] = b"done\n";

/// How far a node is with leaving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::run) enum Departure {
    /// It has asked its cluster to do without it. If it is started again, it is to stay after all.
    Begun,
    /// All it had is with others, and it is taken out of the cluster, or about to be. What lies in the directory is of no use to
    /// anybody: if a node is started there, it is a new one.
    Done,
}

// === impl Departure ===

impl Departure {
    /// What the directory says.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(in crate::run) fn of(dir: &Path) -> io::Result<Option<Departure>> {
        match fs::read(dir.join(FILE)) {
            Ok(bytes) if bytes == DONE => Ok(Some(Departure::Done)),
            // The safe one of the two: nothing is dropped for it.
            Ok(_) => Ok(Some(Departure::Begun)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes it down: when this returns, it is there after a loss of power.
    ///
    /// # Errors
    /// When it cannot be written; what was there before is there still.
    pub(super) fn keep(self, dir: &Path) -> io::Result<()> {
        let says = match self {
            Departure::Begun => BEGUN,
            Departure::Done => DONE,
        };
        whole::write(dir, FILE, says)
    }

    /// The node stays.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn revoke(dir: &Path) -> io::Result<()> {
        remove(&dir.join(FILE))
    }

    /// Before anything in the directory is opened: empties that of a node that has left, so that it is a new one. It is then as
    /// if it had begun to leave, since who takes the place of one that leaves would leave as well.
    ///
    /// # Errors
    /// When the disk fails. It may be called again.
    pub(in crate::run) fn begin_anew(dir: &Path) -> io::Result<()> {
        if Departure::of(dir)? != Some(Departure::Done) {
            return Ok(());
        }
        tracing::info!(dir = %dir.display(), "the node that was here has left its cluster: it begins anew, without what it had");
        for name in IDENTITY_FILES.iter().chain(&GROUP_FILES).chain(&[ACTIONS_FILE, SPLITS_FILE]) {
            remove(&dir.join(name))?;
        }
        match fs::remove_dir_all(dir.join(store::DIRECTORY)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Departure::Begun.keep(dir)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_knows_how_far_its_node_is_with_leaving() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Departure::of(dir.path()).unwrap(), None);
        for departure in [Departure::Begun, Departure::Done] {
            departure.keep(dir.path()).unwrap();
            assert_eq!(Departure::of(dir.path()).unwrap(), Some(departure));
        }
        Departure::revoke(dir.path()).unwrap();
        Departure::revoke(dir.path()).unwrap();
        assert_eq!(Departure::of(dir.path()).unwrap(), None);
    }

    #[test]
    fn only_who_has_left_begins_anew_and_leaves_no_more_than_it_must() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at(store::DIRECTORY).join("files")).unwrap();
        for name in ["store/files/blob", "identity", "raft-log.redb", "assets.redb", "actions.redb", "lost"] {
            fs::write(at(name), "x").unwrap();
        }
        let there = || fs::read_dir(dir.path()).unwrap().count();
        Departure::begin_anew(dir.path()).unwrap();
        Departure::Begun.keep(dir.path()).unwrap();
        Departure::begin_anew(dir.path()).unwrap();
        assert_eq!(there(), 7, "it has not left");
        Departure::Done.keep(dir.path()).unwrap();
        Departure::begin_anew(dir.path()).unwrap();
        assert_eq!(there(), 2);
        assert!(at("lost").exists(), "it is not the node's");
        assert_eq!(Departure::of(dir.path()).unwrap(), Some(Departure::Begun));
    }

    #[test]
    fn what_cannot_be_understood_drops_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for damaged in [b"".as_slice(), b"don", b"done\ndone\n"] {
            fs::write(dir.path().join(FILE), damaged).unwrap();
            assert_eq!(Departure::of(dir.path()).unwrap(), Some(Departure::Begun));
        }
    }
}
