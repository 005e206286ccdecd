//! A log that was closed, since the disk did not take what had to be written: it is opened by a start anew.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use super::place::Place;
use crate::index::{Group, Role};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);

/// What the disk has to take before anything is begun anew: many times what the log and the state write at once.
const PROBE_BYTES: usize = 8 << 20;

/// In the node's directory, for a moment.
const PROBE: &str = "probe";

impl Place {
    /// Waits until the group's log was closed and the disk takes something again. Until then the node serves what it has: a process
    /// that ended earlier would not come up.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub(in crate::run) async fn may_start_anew(&self, group: &Group) {
        loop {
            tokio::time::sleep(PAUSE).await;
            if group.status().role != Role::Stopped {
                continue;
            }
            self.waits_for(Some("room on the disk: the log of the cluster is closed until then".to_owned()));
            let dir = self.inner.dir.clone();
            let taken = tokio::task::spawn_blocking(move || takes(&dir)).await;
            match taken.map_err(io::Error::other).flatten() {
                Ok(()) => return,
                Err(error) => tracing::debug!(%error, "the disk takes nothing yet"),
            }
        }
    }
}

/// Writes something, and takes it away.
fn takes(dir: &Path) -> io::Result<()> {
    let path = dir.join(PROBE);
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(&vec![0; PROBE_BYTES])?;
        file.sync_all()
    });
    let removed = std::fs::remove_file(&path);
    written.and(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_takes_something_is_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        takes(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_disk_that_is_not_there_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(takes(&dir.path().join("gone")).is_err());
    }
}
