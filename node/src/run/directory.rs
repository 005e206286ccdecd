//! Who owns a directory: the process that holds the lock on a file in it. The kernel gives the lock back when the
//! process ends, however it ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use rustix::fs::FlockOperation;
use tokio::sync::oneshot;

/// The ownership of a directory, until it is dropped or the process ends.
pub(super) struct Ownership {
    _lock: File,
}

// === impl Ownership ===

impl Ownership {
    /// From now on the directory is this process's until it ends. Tasks and threads that write there may outlive
    /// whoever waits for them; the process they do not outlive.
    pub(super) fn until_exit(self) {
        std::mem::forget(self);
    }
}

/// Makes the directory if it is not there: this user's to write, its group's to look into, closed to all others.
pub(super) fn create(directory: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(directory)
}

/// The ownership of this directory; `None` when another process has it.
pub(super) fn claim(directory: &Path) -> io::Result<Option<Ownership>> {
    let lock = lock_file(directory)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Ownership { _lock: lock })),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The ownership of this directory, once the process that has it ends.
///
/// # Cancel safety
/// Dropped, a thread goes on waiting, and lets the directory go again when it gets it.
pub(super) async fn claim_next(directory: &Path) -> io::Result<Ownership> {
    let lock = lock_file(directory)?;
    let (claimed, outcome) = oneshot::channel();
    // The kernel has no other way to wait for a lock. The thread ends with the process at the latest.
    std::thread::Builder::new().name("directory-lock".into()).spawn(move || {
        let outcome = rustix::io::retry_on_intr(|| rustix::fs::flock(&lock, FlockOperation::LockExclusive));
        drop(claimed.send(outcome.map(|()| Ownership { _lock: lock }).map_err(io::Error::from)));
    })?;
    outcome.await.unwrap_or_else(|_| Err(io::Error::other("the thread that waits for the directory ended")))
}

fn lock_file(directory: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(directory.join("lock"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn a_directory_has_one_owner_and_the_next_waits() {
        let folder = tempfile::tempdir().unwrap();
        let first = claim(folder.path()).unwrap().unwrap();
        assert!(claim(folder.path()).unwrap().is_none());
        let next = claim_next(folder.path());
        tokio::pin!(next);
        assert!(next.as_mut().now_or_never().is_none());
        drop(first);
        next.await.unwrap();
    }

    #[test]
    fn what_is_owned_until_exit_nobody_gets_before() {
        let folder = tempfile::tempdir().unwrap();
        claim(folder.path()).unwrap().unwrap().until_exit();
        assert!(claim(folder.path()).unwrap().is_none());
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(create(&file.join("below")).is_err());
        assert!(claim(&file).is_err());
    }
}
