//! What a store is opened with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Compression, SyncPolicy};

use super::clock::{Clock, SystemClock};
use super::disk::Disk;

/// The settings of a store.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The store's directory; made when absent. The caller holds its lock.
    pub dir: PathBuf,
    /// Bytes that blobs may take.
    pub capacity_bytes: u64,
    /// A blob used within this time is not evicted; zero: any may go.
    pub retention_floor: Duration,
    /// When written bytes are forced to the disk.
    pub sync: SyncPolicy,
    /// How new blobs are stored; what is there is read either way.
    pub compression: Compression,
}

/// What a store finds around it.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// The file system.
    pub disk: Arc<Disk>,
    /// Whether the store's threads run; without them, tests say when their work is done.
    pub threads: bool,
}

// === impl Surroundings ===

impl Default for Surroundings {
    fn default() -> Surroundings {
        Surroundings { clock: Arc::new(SystemClock), disk: Arc::default(), threads: true }
    }
}
