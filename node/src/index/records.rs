//! A bounded table of records on disk: reads go straight to the database, writes to the one writer.

use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use casbah_cluster::asset::Moment;
use casbah_cluster::codec::CodecError;
use redb::{Database, ReadOnlyTable, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _};
use tokio::sync::oneshot;

use crate::index::raft::GroupError;
use crate::index::tables::{self, Entry, RECORDS, USES};
use crate::index::writer::{Gone, Put, Watcher, What, Writer};

/// The format of the whole database. Another one is refused, never guessed at.
const FORMAT: u64 = 1;

/// Why the index could not answer.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// More writes are waiting than are taken in. Worth another try, a little later.
    #[error("the index has too many writes waiting")]
    Busy,
    /// The node is stopping.
    #[error("the index is closed")]
    Closed,
    /// The database is of a format that this version does not know.
    #[error("the index {} has format {found}, but this version of casbah reads format {FORMAT}", path.display())]
    Format {
        /// The database.
        path: PathBuf,
        /// As found.
        found: u64,
    },
    /// The record cannot be written or was damaged.
    #[error("a record of the index cannot be used")]
    Record(#[from] CodecError),
    /// Another process has the database open.
    #[error("the index is in use by another process")]
    InUse,
    /// The database failed; the disk may be full or broken.
    #[error("the index failed")]
    Database(#[source] Arc<redb::Error>),
    /// The cluster's nodes do not agree at the moment, or this node fails at its part.
    #[error(transparent)]
    Group(#[from] GroupError),
}

impl From<redb::Error> for IndexError {
    fn from(error: redb::Error) -> IndexError {
        match error {
            redb::Error::DatabaseAlreadyOpen => IndexError::InUse,
            error => IndexError::Database(Arc::new(error)),
        }
    }
}

/// The records as they are at one moment, whatever is written later.
pub(super) type FoundRecords = ReadOnlyTable<&'static [u8], Entry<'static>>;

/// An index in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexCounts {
    /// Records, ended ones that were not swept yet included; `None` when the database fails.
    pub records: Option<u64>,
    /// Records that made room for others since the index was opened.
    pub evicted: u64,
    /// Records that were removed because they had ended, since the index was opened.
    pub expired: u64,
}

/// A table of records on disk, bounded: the least recently used go first. Cheap to clone.
#[derive(Clone)]
pub struct Records {
    database: Arc<Database>,
    /// `None` once closed. Dropping the last sender ends the writer.
    writer: Arc<Mutex<Option<Writer>>>,
    gone: Arc<Gone>,
    capacity: u64,
}

// === impl Records ===

impl Records {
    /// Opens the database at `path`, or makes it. Keeps at most `capacity` records. Blocks on the disk.
    ///
    /// # Errors
    /// [`IndexError`] when the file is no database, has another format, or the disk fails.
    pub fn open(path: &Path, capacity: u64) -> Result<Records, IndexError> {
        Ok(Records::open_watched(path, capacity, None)?.0)
    }

    /// The same; the watcher is told of all that comes and goes beyond what is found now.
    pub(super) fn open_watched(
        path: &Path,
        capacity: u64,
        watcher: Option<Watcher>,
    ) -> Result<(Records, FoundRecords), IndexError> {
        let (database, found) = tables::create(path, FORMAT)?;
        if found != FORMAT {
            return Err(IndexError::Format { path: path.to_owned(), found });
        }
        let database = Arc::new(database);
        let found = as_it_is(&database)?;
        let gone = Arc::new(Gone::default());
        let writer = Writer::start(Arc::clone(&database), capacity, Arc::clone(&gone), watcher)?;
        Ok((Records { database, writer: Arc::new(Mutex::new(Some(writer))), gone, capacity }, found))
    }

    /// The record under this key, ended or not. Counts as no use: see [`Records::used`].
    ///
    /// # Errors
    /// [`IndexError`] when the database fails.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        let look = || -> Result<_, redb::Error> {
            // The table holds the transaction, without which the writer may free the pages that the entry lies in.
            let table = self.database.begin_read()?.open_table(RECORDS)?;
            let entry = table.get(key)?;
            Ok(entry.map(|entry| entry.value().2.to_vec()))
        };
        Ok(look()?)
    }

    /// The record that makes room for the next one; `None` while there is room without. Blocks on the disk.
    ///
    /// # Errors
    /// [`IndexError`] when the database fails.
    pub(super) fn next_to_go(&self) -> Result<Option<Vec<u8>>, IndexError> {
        let look = || -> Result<_, redb::Error> {
            let moment = self.database.begin_read()?;
            let (records, uses) = (moment.open_table(RECORDS)?, moment.open_table(USES)?);
            if records.len()? < self.capacity {
                return Ok(None);
            }
            let Some((_, key)) = uses.first()? else { return Ok(None) };
            Ok(records.get(key.value())?.map(|entry| entry.value().2.to_vec()))
        };
        Ok(look()?)
    }

    /// Notes that this record was used, so that it stays longer. Written with the next batch; when too much waits to be
    /// written the note is dropped, since it only orders eviction.
    pub fn used(&self, key: &[u8]) {
        if let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            writer.used(key);
        }
    }

    /// Writes the record, in place of what is under its key. When this returns it is on disk.
    ///
    /// # Errors
    /// [`IndexError::Busy`] when too many writes wait; others when it could not be written, and then nothing changed.
    ///
    /// # Cancel safety
    /// Dropped half-way, the record may or may not be written.
    pub async fn put(&self, key: Vec<u8>, value: Vec<u8>, ends_at: Option<Moment>) -> Result<(), IndexError> {
        let (done, outcome) = oneshot::channel();
        self.start(Put { key, what: What::Record { value, ends_at, ordered_by: 0 }, done })?;
        outcome.await.unwrap_or(Err(IndexError::Closed))
    }

    /// The same, unless the first `ordered_by` bytes of the record that is there are above those of this one: that one stays
    /// then, as if this one had been written before it.
    ///
    /// # Errors
    /// As [`Records::put`].
    ///
    /// # Cancel safety
    /// As [`Records::put`].
    pub async fn put_unless_below(&self, key: Vec<u8>, value: Vec<u8>, ordered_by: usize) -> Result<(), IndexError> {
        let (done, outcome) = oneshot::channel();
        self.start(Put { key, what: What::Record { value, ends_at: None, ordered_by }, done })?;
        outcome.await.unwrap_or(Err(IndexError::Closed))
    }

    /// Removes the record under this key, if it still begins like this.
    ///
    /// # Errors
    /// As [`Records::put`].
    ///
    /// # Cancel safety
    /// As [`Records::put`].
    pub async fn remove_if(&self, key: Vec<u8>, head: Vec<u8>) -> Result<(), IndexError> {
        let (done, outcome) = oneshot::channel();
        self.start(Put { key, what: What::Nothing { head }, done })?;
        outcome.await.unwrap_or(Err(IndexError::Closed))
    }

    /// Shows records in the order of their keys, as they are at one moment, until told to stop. Counts as no use. Blocks on
    /// the disk.
    ///
    /// # Errors
    /// [`IndexError`] when the database fails.
    pub fn scan(
        &self,
        keys: (Bound<&[u8]>, Bound<&[u8]>),
        show: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), IndexError> {
        Ok(scan(&as_it_is(&self.database)?, keys, show)?)
    }

    fn start(&self, put: Put) -> Result<(), IndexError> {
        match self.writer.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(writer) => writer.put(put),
            None => Err(IndexError::Closed),
        }
    }

    /// The table in numbers. May wait for the disk.
    pub fn counts(&self) -> IndexCounts {
        let (evicted, expired) = self.gone.so_far();
        IndexCounts { records: self.len().ok(), evicted, expired }
    }

    fn len(&self) -> Result<u64, redb::Error> {
        Ok(self.database.begin_read()?.open_table(RECORDS)?.len()?)
    }

    /// Writes what waits and ends the writer. Later writes fail with [`IndexError::Closed`]. Blocks until done.
    pub fn close(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            writer.finish();
        }
    }
}

fn as_it_is(database: &Database) -> Result<FoundRecords, redb::Error> {
    Ok(database.begin_read()?.open_table(RECORDS)?)
}

/// Shows records in the order of their keys, until told to stop.
pub(super) fn scan(
    records: &FoundRecords,
    keys: (Bound<&[u8]>, Bound<&[u8]>),
    mut show: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
) -> Result<(), redb::Error> {
    for entry in records.range::<&[u8]>(keys)? {
        let (key, entry) = entry?;
        if show(key.value(), entry.value().2).is_break() {
            break;
        }
    }
    Ok(())
}

/// The time of the machine's clock.
pub fn now() -> Moment {
    let nanoseconds = |duration: std::time::Duration| i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX);
    Moment(match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => nanoseconds(since),
        Err(before) => -nanoseconds(before.duration()),
    })
}

#[cfg(test)]
#[path = "records_test.rs"]
mod tests;
