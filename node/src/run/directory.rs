//! Who owns a directory: the process that holds the lock on a file in it. The kernel gives the lock back when the
//! process ends, however it ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::Path;

use rustix::fs::FlockOperation;
use tokio::sync::oneshot;

/// The file that is locked.
const LOCK: &str = "lock";

/// The ownership of a directory, until it is dropped or the process ends.
pub(super) struct Ownership {
    _lock: File,
}

/// What is found of a directory by somebody who only looks.
pub enum Look {
    /// No process runs a node on it, and none will before this is dropped.
    Stopped(Stopped),
    /// A node runs on it.
    Running {
        /// Its process, where the system tells.
        pid: Option<u32>,
    },
}

/// Keeps processes that want to run a node on a directory waiting. Others may look at the same time.
pub struct Stopped {
    /// `None` when no node has ever run there, as on a copy without its lock file.
    _lock: Option<File>,
}

// === impl Look ===

impl Look {
    /// Looks at a directory, in which nothing is changed.
    ///
    /// # Errors
    /// When its lock cannot be read.
    pub fn at(directory: &Path) -> io::Result<Look> {
        let lock = match File::open(directory.join(LOCK)) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Look::Stopped(Stopped { _lock: None }));
            }
            Err(error) => return Err(error),
        };
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Look::Stopped(Stopped { _lock: Some(lock) })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(Look::Running { pid: holder(&lock) }),
            Err(error) => Err(error.into()),
        }
    }
}

/// The process that has an exclusive lock on a file, as far as the system tells: not when it is in another container.
fn holder(lock: &File) -> Option<u32> {
    let inode = lock.metadata().ok()?.ino();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| holder_in(line, inode))
}

/// Reads `1: FLOCK ADVISORY WRITE 1234 fd:01:5678 0 EOF` (proc(5)). One that waits has `->` after its number.
fn holder_in(line: &str, inode: u64) -> Option<u32> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, "FLOCK", _, "WRITE", pid, file, ..] = fields.as_slice() else { return None };
    let is_it = file.rsplit(':').next().and_then(|found| found.parse::<u64>().ok()) == Some(inode);
    pid.parse().ok().filter(|pid| is_it && *pid != 0)
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
    OpenOptions::new().create(true).truncate(false).write(true).open(directory.join(LOCK))
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
    fn who_looks_is_told_of_the_process_that_runs_there_and_keeps_others_from_it() {
        let folder = tempfile::tempdir().unwrap();
        let look = || Look::at(folder.path()).unwrap();
        assert!(matches!(look(), Look::Stopped(_)));
        assert!(!folder.path().join(LOCK).exists(), "looking makes no file");
        let owner = claim(folder.path()).unwrap().unwrap();
        let Look::Running { pid } = look() else { panic!("it has an owner") };
        assert_eq!(pid, Some(std::process::id()));
        drop(owner);
        let (Look::Stopped(one), Look::Stopped(other)) = (look(), look()) else { panic!("it has no owner") };
        drop(one);
        assert!(claim(folder.path()).unwrap().is_none());
        drop(other);
        assert!(claim(folder.path()).unwrap().is_some());
        assert!(Look::at(&folder.path().join("nowhere")).is_ok());
    }

    #[test]
    fn only_the_one_who_has_a_lock_counts() {
        assert_eq!(holder_in("2: FLOCK  ADVISORY  WRITE 1234 00:2f:56 0 EOF", 56), Some(1234));
        assert_eq!(holder_in("2: FLOCK  ADVISORY  WRITE 1234 00:2f:57 0 EOF", 56), None);
        assert_eq!(holder_in("2: -> FLOCK  ADVISORY  WRITE 1234 00:2f:56 0 EOF", 56), None);
        assert_eq!(holder_in("2: FLOCK  ADVISORY  WRITE 0 00:2f:56 0 EOF", 56), None);
        assert_eq!(holder_in("2: POSIX  ADVISORY  WRITE 1234 00:2f:56 0 EOF", 56), None);
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
