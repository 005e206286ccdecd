//! The one writer of the index: batches what waits into one transaction, and keeps the index within its bounds.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use casbah_cluster::asset::{AssetKey, AssetRecord, Moment};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _};
use redb::{Table, WriteTransaction};
use tokio::sync::oneshot;

use crate::index::database::{ASSETS, ENDS, IndexError, USES, now};

/// Pushes that wait for the writer. Each is at most an asset's key and record; beyond this one is told to come back.
const WAITING_MAX: usize = 1024;

/// Pushes of one transaction: enough that the disk's own latency is shared by many, few enough to answer soon.
const BATCH_MAX: usize = 256;

/// How long uses of assets may wait before they are written, and expired assets before they are removed. Uses only
/// order eviction, and an expired asset is never served.
const IDLE: Duration = Duration::from_secs(1);

/// Assets whose use waits to be written. Beyond this, uses are forgotten: they only order eviction.
const USES_MAX: usize = 16 << 10;

/// Expired assets removed by one transaction, so that no push waits for a long sweep.
const SWEEP_MAX: usize = 256;

/// One push on its way to the disk.
pub(super) struct Push {
    key: AssetKey,
    record: Vec<u8>,
    expires_at: Option<Moment>,
    done: oneshot::Sender<Result<(), IndexError>>,
}

/// The writer's thread and the way to it.
pub(super) struct Writer {
    pushes: SyncSender<Push>,
    uses: Arc<Mutex<HashSet<AssetKey>>>,
    thread: JoinHandle<()>,
}

/// The tables of one transaction, which belong together: an asset is in `uses` once, and in `ends` if it has an end.
struct Tables<'t> {
    assets: Table<'t, &'static [u8], (u64, &'static [u8])>,
    uses: Table<'t, u64, &'static [u8]>,
    ends: Table<'t, (i128, &'static [u8]), ()>,
    next_use: u64,
}

// === impl Push ===

impl Push {
    /// A push, and where its outcome will be told.
    pub(super) fn new(
        key: AssetKey,
        record: &AssetRecord,
    ) -> Result<(Push, oneshot::Receiver<Result<(), IndexError>>), IndexError> {
        let (done, outcome) = oneshot::channel();
        Ok((Push { key, record: record.encode()?, expires_at: record.expires_at, done }, outcome))
    }
}

// === impl Writer ===

impl Writer {
    pub(super) fn start(database: Arc<Database>, capacity: u64) -> Result<Writer, IndexError> {
        let (pushes, waiting) = sync_channel(WAITING_MAX);
        let uses = Arc::new(Mutex::new(HashSet::new()));
        let noted = Arc::clone(&uses);
        let thread = std::thread::Builder::new()
            .name("index-writer".into())
            .spawn(move || run(&database, capacity.max(1), &waiting, &noted))
            .map_err(redb::Error::Io)?;
        Ok(Writer { pushes, uses, thread })
    }

    pub(super) fn push(&self, push: Push) -> Result<(), IndexError> {
        self.pushes.try_send(push).map_err(|error| match error {
            TrySendError::Full(_) => IndexError::Busy,
            TrySendError::Disconnected(_) => IndexError::Closed,
        })
    }

    pub(super) fn used(&self, key: &AssetKey) {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        if uses.len() < USES_MAX {
            uses.insert(key.clone());
        }
    }

    /// Waits until everything is written.
    pub(super) fn finish(self) {
        drop(self.pushes);
        if self.thread.join().is_err() {
            tracing::error!("the writer of the asset index panicked");
        }
    }
}

fn run(database: &Database, capacity: u64, waiting: &Receiver<Push>, noted: &Mutex<HashSet<AssetKey>>) {
    let mut open = true;
    while open {
        let mut batch = Vec::new();
        match waiting.recv_timeout(IDLE) {
            Ok(push) => batch.push(push),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => open = false,
        }
        batch.extend(waiting.try_iter().take(BATCH_MAX));
        let uses = std::mem::take(&mut *noted.lock().unwrap_or_else(PoisonError::into_inner));
        let now = now();
        if batch.is_empty() && uses.is_empty() && !something_has_ended(database, now) {
            continue;
        }
        let outcome = write(database, capacity, &batch, &uses, now).map_err(Arc::new);
        if let Err(error) = &outcome {
            tracing::error!(%error, "the asset index could not be written");
        }
        for push in batch {
            // A client that went away does not wait for the outcome.
            drop(push.done.send(outcome.clone().map_err(IndexError::Database)));
        }
    }
}

fn something_has_ended(database: &Database, now: Moment) -> bool {
    let look = || -> Result<bool, redb::Error> {
        let ends = database.begin_read()?.open_table(ENDS)?;
        let first = ends.first()?.map(|(end, _)| end.value().0);
        Ok(first.is_some_and(|end| end <= now.0))
    };
    // A database that fails says so at the next push.
    look().unwrap_or(false)
}

/// All of it in one transaction, or nothing.
fn write(
    database: &Database,
    capacity: u64,
    pushes: &[Push],
    uses: &HashSet<AssetKey>,
    now: Moment,
) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    {
        let mut tables = Tables::open(&transaction)?;
        for key in uses {
            tables.touch(key.as_bytes())?;
        }
        for push in pushes {
            tables.insert(push)?;
        }
        tables.sweep(now)?;
        tables.shrink_to(capacity)?;
    }
    transaction.commit()?;
    Ok(())
}

// === impl Tables ===

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Tables<'t>, redb::Error> {
        let uses = transaction.open_table(USES)?;
        let next_use = uses.last()?.map_or(0, |(last, _)| last.value() + 1);
        Ok(Tables { assets: transaction.open_table(ASSETS)?, uses, ends: transaction.open_table(ENDS)?, next_use })
    }

    /// Makes this the asset used last. Nothing happens when there is none.
    fn touch(&mut self, key: &[u8]) -> Result<(), redb::Error> {
        let Some((used, record)) = self.assets.get(key)?.map(|entry| (entry.value().0, entry.value().1.to_vec())) else {
            return Ok(());
        };
        self.uses.remove(used)?;
        self.uses.insert(self.next_use, key)?;
        self.assets.insert(key, (self.next_use, record.as_slice()))?;
        self.next_use += 1;
        Ok(())
    }

    fn insert(&mut self, push: &Push) -> Result<(), redb::Error> {
        let key = push.key.as_bytes();
        self.remove(key)?;
        self.assets.insert(key, (self.next_use, push.record.as_slice()))?;
        self.uses.insert(self.next_use, key)?;
        if let Some(end) = push.expires_at {
            self.ends.insert((end.0, key), ())?;
        }
        self.next_use += 1;
        Ok(())
    }

    fn remove(&mut self, key: &[u8]) -> Result<(), redb::Error> {
        let Some(entry) = self.assets.remove(key)? else { return Ok(()) };
        let (used, record) = entry.value();
        self.uses.remove(used)?;
        // A record that cannot be read has no end that could be swept; were one left in `ends`, the sweep removes it.
        let end = AssetRecord::decode(record).ok().flatten().and_then(|record| record.expires_at);
        if let Some(end) = end {
            self.ends.remove((end.0, key))?;
        }
        Ok(())
    }

    /// Removes assets that have ended.
    fn sweep(&mut self, now: Moment) -> Result<(), redb::Error> {
        for _ in 0..SWEEP_MAX {
            let Some((end, key)) = self.ends.first()?.map(|(end, _)| (end.value().0, end.value().1.to_vec())) else {
                break;
            };
            if end > now.0 {
                break;
            }
            self.remove(&key)?;
            self.ends.remove((end, key.as_slice()))?;
        }
        Ok(())
    }

    /// Removes the assets used least recently until no more than `capacity` are left.
    fn shrink_to(&mut self, capacity: u64) -> Result<(), redb::Error> {
        while self.assets.len()? > capacity {
            let Some(key) = self.uses.first()?.map(|(_, key)| key.value().to_vec()) else { break };
            self.remove(&key)?;
        }
        Ok(())
    }
}
