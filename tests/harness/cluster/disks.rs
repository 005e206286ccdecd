//! Disks that something else has filled.

use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::Cluster;

/// Written at once to a disk that is to be full.
const BALLAST_BYTES: usize = 64 << 10;

impl Cluster {
    /// Fills the rest of a node's disk, which has to be its own.
    ///
    /// # Errors
    /// When it is not.
    pub fn fill_disk(&mut self, place: usize) -> Result<()> {
        let path = self.ballast(place)?;
        ensure!(!self.disks.is_empty(), "the nodes share a disk");
        let mut file = std::fs::File::create(path)?;
        loop {
            match file.write_all(&[0; BALLAST_BYTES]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Gives back what [`fill_disk`](Cluster::fill_disk) has taken.
    ///
    /// # Errors
    /// When nothing has been taken.
    pub fn free_disk(&mut self, place: usize) -> Result<()> {
        Ok(std::fs::remove_file(self.ballast(place)?)?)
    }

    pub(super) fn ballast(&self, place: usize) -> Result<PathBuf> {
        Ok(self.node(place)?.data.join("ballast"))
    }
}
