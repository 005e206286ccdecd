//! The one writer of the log: what waits goes into one transaction, in order, and is answered when it is on disk.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use casbah_cluster::consensus::TypeConfig;
use openraft::storage::IOFlushed;
use redb::{Database, Durability, ReadableTable as _, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use crate::index::raft::log::{ENTRIES, META, META_COMMITTED, META_PURGED, META_VOTE};

/// What one transaction takes in at most, so that the first of it does not wait for long.
const TOGETHER_MAX: usize = 64;

/// Something to write, and who is told when it is on disk.
pub(super) enum Work {
    /// Entries from `first` on, without a gap.
    Append {
        first: u64,
        records: Vec<Vec<u8>>,
        /// Known to be committed by then; goes along.
        committed: Option<Vec<u8>>,
        /// Called before `done`.
        on_disk: Box<dyn FnOnce() + Send>,
        done: IOFlushed<TypeConfig>,
    },
    /// The vote.
    Vote { bytes: Vec<u8>, done: IOFlushed<TypeConfig> },
    /// Removes the entries from `end` on.
    Truncate { end: u64, done: IOFlushed<TypeConfig> },
    /// Removes the entries up to `upto`, that one included; how many bytes those were is told too.
    Purge { upto: u64, bytes: Vec<u8>, sized: oneshot::Sender<u64>, done: IOFlushed<TypeConfig> },
}

/// Starts the thread. It ends when the last sender is gone and everything is written.
pub(super) fn start(database: Arc<Database>, waiting: mpsc::Receiver<Work>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("raft-log".into()).spawn(move || run(&database, waiting))
}

fn run(database: &Database, mut waiting: mpsc::Receiver<Work>) {
    while let Some(first) = waiting.blocking_recv() {
        let mut together = vec![first];
        while together.len() < TOGETHER_MAX
            && let Ok(next) = waiting.try_recv()
        {
            together.push(next);
        }
        match write(database, &together) {
            Ok(purged) => together.into_iter().zip(purged).for_each(|(work, purged)| work.answer(Ok(purged))),
            Err(error) => {
                tracing::error!(%error, "the log of the group could not be written");
                let error = Arc::new(error);
                together.into_iter().for_each(|work| work.answer(Err(Arc::clone(&error))));
            }
        }
    }
}

/// All of it in one transaction, or nothing. How much was purged, for each piece of work.
fn write(database: &Database, together: &[Work]) -> Result<Vec<u64>, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    // Entries that come back after a crash are purged again.
    if together.iter().all(|work| matches!(work, Work::Purge { .. })) {
        transaction.set_durability(Durability::None)?;
    }
    let purged = together.iter().map(|work| put(&transaction, work)).collect::<Result<Vec<u64>, redb::Error>>()?;
    transaction.commit()?;
    Ok(purged)
}

/// How many bytes were purged.
fn put(transaction: &WriteTransaction, work: &Work) -> Result<u64, redb::Error> {
    match work {
        Work::Append { first, records, committed, .. } => {
            let mut entries = transaction.open_table(ENTRIES)?;
            for (index, record) in (*first..).zip(records) {
                entries.insert(index, record.as_slice())?;
            }
            if let Some(committed) = committed {
                transaction.open_table(META)?.insert(META_COMMITTED, committed.as_slice())?;
            }
        }
        Work::Vote { bytes, .. } => {
            transaction.open_table(META)?.insert(META_VOTE, bytes.as_slice())?;
        }
        Work::Truncate { end, .. } => {
            let mut entries = transaction.open_table(ENTRIES)?;
            // From the last one on, so that there is never a gap.
            while entries.last()?.is_some_and(|(index, _)| index.value() >= *end) {
                entries.pop_last()?;
            }
        }
        Work::Purge { upto, bytes, .. } => {
            let mut entries = transaction.open_table(ENTRIES)?;
            let mut removed = 0;
            while entries.first()?.is_some_and(|(index, _)| index.value() <= *upto) {
                removed += entries.pop_first()?.map_or(0, |(_, record)| record.value().len() as u64);
            }
            transaction.open_table(META)?.insert(META_PURGED, bytes.as_slice())?;
            return Ok(removed);
        }
    }
    Ok(0)
}

// === impl Work ===

impl Work {
    fn answer(self, outcome: Result<u64, Arc<redb::Error>>) {
        let purged = *outcome.as_ref().unwrap_or(&0);
        let result = outcome.map(|_| ()).map_err(io::Error::other);
        match self {
            Work::Append { on_disk, done, .. } => {
                if result.is_ok() {
                    on_disk();
                }
                done.io_completed(result);
            }
            Work::Vote { done, .. } | Work::Truncate { done, .. } => done.io_completed(result),
            Work::Purge { sized, done, .. } => {
                // Whoever does not listen any more does not count.
                let _ = sized.send(purged);
                done.io_completed(result);
            }
        }
    }
}
