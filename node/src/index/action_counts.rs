//! The inventories of results of actions by partition, in memory. What was on disk at the start is counted on a thread of its
//! own while the node serves already; what comes and goes meanwhile is added to it, in whatever order.

use std::ops::{Bound, ControlFlow};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use casbah_cluster::inventory::Inventory;
use casbah_cluster::ring::PARTITIONS;

use crate::index::action_keys::{VERSION_BYTES, decode_version, first_key, parse_key, sum};
use crate::index::records::{FoundRecords, IndexError, scan};
use crate::index::tables::Change;

/// Results that are summed up under one hold of the lock, and between two looks whether to stop.
const STEP: usize = 256;

/// The inventories, and the thread that counts. Dropped, it stops.
pub(super) struct ActionCounts {
    inventories: Arc<Inventories>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

pub(super) struct Inventories {
    of: Mutex<Vec<Inventory>>,
    /// What was there at the start is in them.
    is_whole: AtomicBool,
    stop: AtomicBool,
}

// === impl ActionCounts ===

impl ActionCounts {
    /// Begins to count what is there.
    pub(super) fn start(inventories: Arc<Inventories>, found: FoundRecords) -> Result<ActionCounts, IndexError> {
        let counted = Arc::clone(&inventories);
        let thread = std::thread::Builder::new().name("index-count".into()).spawn(move || counted.count(&found));
        let thread = thread.map_err(|error| IndexError::from(redb::Error::Io(error)))?;
        Ok(ActionCounts { inventories, thread: Mutex::new(Some(thread)) })
    }

    /// A partition's inventory; `None` as long as it is being counted.
    pub(super) fn inventory(&self, partition: usize) -> Option<Inventory> {
        let is_whole = self.inventories.is_whole.load(Ordering::Acquire);
        is_whole.then(|| self.inventories.lock().get(partition).copied().unwrap_or_default())
    }

    /// Stops counting.
    pub(super) fn stop(&self) {
        self.inventories.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that counts results of actions panicked");
        }
    }
}

impl Drop for ActionCounts {
    fn drop(&mut self) {
        self.stop();
    }
}

// === impl Inventories ===

impl Inventories {
    /// Nothing is counted yet.
    pub(super) fn new() -> Inventories {
        let of = Mutex::new(vec![Inventory::default(); PARTITIONS]);
        Inventories { of, is_whole: AtomicBool::new(false), stop: AtomicBool::new(false) }
    }

    /// Results have come and gone.
    pub(super) fn note(&self, changes: &[Change]) {
        let sums = changes.iter().filter_map(|change| {
            let (partition, sum) = summed(&change.key, &change.head)?;
            Some((partition, sum, change.has_come))
        });
        let sums: Vec<_> = sums.collect();
        let mut inventories = self.lock();
        for (partition, sum, has_come) in sums {
            if let Some(inventory) = inventories.get_mut(partition) {
                if has_come { inventory.add(&sum) } else { inventory.take(&sum) }
            }
        }
    }

    fn count(&self, found: &FoundRecords) {
        let begun = Instant::now();
        let (mut sums, mut results) = (Vec::with_capacity(STEP), 0_u64);
        let (first, end) = (first_key(0), [first_key(0).first().map_or(0, |version| version + 1)]);
        let keys = (Bound::Included(first.as_slice()), Bound::Excluded(end.as_slice()));
        let scanned = scan(found, keys, |key, value| {
            sums.extend(summed(key, value.get(..VERSION_BYTES).unwrap_or_default()));
            results += 1;
            if sums.len() >= STEP {
                self.add(&mut sums);
            }
            if self.stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        self.add(&mut sums);
        match scanned {
            Ok(()) if self.stop.load(Ordering::Relaxed) => {}
            Ok(()) => {
                self.is_whole.store(true, Ordering::Release);
                tracing::debug!(results, took = ?begun.elapsed(), "results of actions were counted");
            }
            // What it has cannot be compared with that of others before the next start.
            Err(error) => tracing::error!(%error, "results of actions could not be counted"),
        }
    }

    fn add(&self, sums: &mut Vec<(usize, [u8; 32])>) {
        let mut inventories = self.lock();
        for (partition, sum) in sums.drain(..) {
            if let Some(inventory) = inventories.get_mut(partition) {
                inventory.add(&sum);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Inventory>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The partition and the sum of a result; `None` of a record that is none.
fn summed(key: &[u8], head: &[u8]) -> Option<(usize, [u8; 32])> {
    let (partition, ..) = parse_key(key)?;
    decode_version(head)?;
    Some((partition, sum(key, head)))
}
