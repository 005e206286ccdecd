//! The one writer of a table of records: batches what waits into one transaction, and keeps the table within its bounds.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use casbah_cluster::asset::Moment;
use redb::{Database, ReadableDatabase as _, ReadableTable as _};
use tokio::sync::oneshot;

use crate::index::records::{IndexError, now};
use crate::index::tables::{Change, ENDS, Tables};

/// Records that wait for the writer; beyond this, one is told to come back.
const WAITING_MAX: usize = 1024;

/// Records of one transaction: enough that the disk's own latency is shared by many, few enough to answer soon.
const BATCH_MAX: usize = 256;

/// How long uses may wait before they are written, and ended records before they are removed. Uses only order
/// eviction, and an ended record is never served.
const IDLE: Duration = Duration::from_secs(1);

/// Records whose use waits to be written. Beyond this, uses are forgotten: they only order eviction.
const USES_MAX: usize = 16 << 10;

/// One change on its way to the disk.
pub(super) struct Put {
    pub(super) key: Vec<u8>,
    pub(super) what: What,
    pub(super) done: oneshot::Sender<Result<(), IndexError>>,
}

/// What is to be under a key.
pub(super) enum What {
    /// This record.
    Record {
        value: Vec<u8>,
        ends_at: Option<Moment>,
        /// So many of the first bytes say which of two records is the later one; 0: that which comes later.
        ordered_by: usize,
    },
    /// None, if the one that is there begins like this.
    Nothing { head: Vec<u8> },
}

/// Hears of changes.
pub(super) type Tell = Box<dyn Fn(&[Change]) + Send>;

/// Somebody who wants to know what comes and goes.
pub(super) struct Watcher {
    /// How many of the first bytes of each record.
    pub(super) head_bytes: usize,
    /// Told of each transaction once it is on disk, and before those who wait for it.
    pub(super) tell: Tell,
}

/// The writer's thread and the way to it.
pub(super) struct Writer {
    puts: SyncSender<Put>,
    uses: Arc<Mutex<HashSet<Vec<u8>>>>,
    thread: JoinHandle<()>,
}

/// Records that the writer has removed by itself since it began.
#[derive(Debug, Default)]
pub(super) struct Gone {
    evicted: AtomicU64,
    expired: AtomicU64,
}

/// The same for one transaction.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Removed {
    pub(super) evicted: u64,
    pub(super) expired: u64,
}

// === impl Writer ===

impl Writer {
    pub(super) fn start(
        database: Arc<Database>,
        capacity: u64,
        gone: Arc<Gone>,
        watcher: Option<Watcher>,
    ) -> Result<Writer, IndexError> {
        let (puts, waiting) = sync_channel(WAITING_MAX);
        let uses = Arc::new(Mutex::new(HashSet::new()));
        let noted = Arc::clone(&uses);
        let thread = std::thread::Builder::new()
            .name("index-writer".into())
            .spawn(move || run((&database, capacity.max(1)), &waiting, &noted, &gone, watcher.as_ref()))
            .map_err(redb::Error::Io)?;
        Ok(Writer { puts, uses, thread })
    }

    pub(super) fn put(&self, put: Put) -> Result<(), IndexError> {
        self.puts.try_send(put).map_err(|error| match error {
            TrySendError::Full(_) => IndexError::Busy,
            TrySendError::Disconnected(_) => IndexError::Closed,
        })
    }

    pub(super) fn used(&self, key: &[u8]) {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        if uses.len() < USES_MAX {
            uses.insert(key.to_vec());
        }
    }

    /// Waits until everything is written.
    pub(super) fn finish(self) {
        drop(self.puts);
        if self.thread.join().is_err() {
            tracing::error!("the writer of an index panicked");
        }
    }
}

// === impl Gone ===

impl Gone {
    pub(super) fn add(&self, removed: Removed) {
        self.evicted.fetch_add(removed.evicted, Ordering::Relaxed);
        self.expired.fetch_add(removed.expired, Ordering::Relaxed);
    }

    /// Evicted, and expired.
    pub(super) fn so_far(&self) -> (u64, u64) {
        (self.evicted.load(Ordering::Relaxed), self.expired.load(Ordering::Relaxed))
    }
}

fn run(
    (database, capacity): (&Database, u64),
    waiting: &Receiver<Put>,
    noted: &Mutex<HashSet<Vec<u8>>>,
    gone: &Gone,
    watcher: Option<&Watcher>,
) {
    let mut open = true;
    while open {
        let mut batch = Vec::new();
        match waiting.recv_timeout(IDLE) {
            Ok(put) => batch.push(put),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => open = false,
        }
        batch.extend(waiting.try_iter().take(BATCH_MAX));
        let uses = std::mem::take(&mut *noted.lock().unwrap_or_else(PoisonError::into_inner));
        let now = now();
        if batch.is_empty() && uses.is_empty() && !something_has_ended(database, now) {
            continue;
        }
        let outcome = write((database, capacity), &batch, &uses, now, watcher).map_err(Arc::new);
        let outcome = outcome.map(|(removed, changes)| {
            gone.add(removed);
            if let Some(watcher) = watcher {
                (watcher.tell)(&changes);
            }
        });
        if let Err(error) = &outcome {
            tracing::error!(%error, "an index could not be written");
        }
        for put in batch {
            // A client that went away does not wait for the outcome.
            drop(put.done.send(outcome.clone().map_err(IndexError::Database)));
        }
    }
}

fn something_has_ended(database: &Database, now: Moment) -> bool {
    let look = || -> Result<bool, redb::Error> {
        let ends = database.begin_read()?.open_table(ENDS)?;
        let first = ends.first()?.map(|(end, _)| end.value().0);
        Ok(first.is_some_and(|end| end <= now.0))
    };
    // A database that fails says so at the next write.
    look().unwrap_or(false)
}

/// All of it in one transaction, or nothing.
fn write(
    (database, capacity): (&Database, u64),
    puts: &[Put],
    uses: &HashSet<Vec<u8>>,
    now: Moment,
    watcher: Option<&Watcher>,
) -> Result<(Removed, Vec<Change>), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    let written = {
        let mut tables = Tables::open(&transaction)?;
        if let Some(watcher) = watcher {
            tables.watch(watcher.head_bytes);
        }
        for key in uses {
            tables.touch(key)?;
        }
        for put in puts {
            match &put.what {
                What::Record { value, ordered_by, .. } if tables.is_below(&put.key, value, *ordered_by)? => {}
                What::Record { value, ends_at, .. } => tables.insert(&put.key, value, *ends_at)?,
                What::Nothing { head } if tables.begins_with(&put.key, head)? => drop(tables.remove(&put.key)?),
                What::Nothing { .. } => {}
            }
        }
        let removed = Removed { expired: tables.sweep(now)?, evicted: tables.shrink_to(capacity)? };
        (removed, tables.changes())
    };
    transaction.commit()?;
    Ok(written)
}
