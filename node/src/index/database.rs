//! The index as the services see it: reads go straight to the database, writes to the one writer.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use casbah_cluster::asset::{AssetKey, AssetRecord, Moment};
use casbah_cluster::codec::CodecError;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _, TableDefinition};

use crate::index::writer::{Push, Writer};

/// The format of the whole database. Another one is refused, never guessed at.
const FORMAT: u64 = 1;

/// Page cache of the database. The index of a busy farm is some hundred MB; its upper pages fit here.
const CACHE_BYTES: usize = 32 << 20;

pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Key to (sequence number of its last use, record).
pub(super) const ASSETS: TableDefinition<&[u8], (u64, &[u8])> = TableDefinition::new("assets");
/// Sequence number of its last use to key, least recent first.
pub(super) const USES: TableDefinition<u64, &[u8]> = TableDefinition::new("uses");
/// (End, key) of assets that have one, next to end first.
pub(super) const ENDS: TableDefinition<(i128, &[u8]), ()> = TableDefinition::new("ends");

/// Why the index could not answer.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// More pushes are waiting than are taken in. Worth another try, a little later.
    #[error("the asset index has too many pushes waiting")]
    Busy,
    /// The node is stopping.
    #[error("the asset index is closed")]
    Closed,
    /// The database is of a format that this version does not know.
    #[error("the asset index {} has format {found}, but this version of casbah reads format {FORMAT}", path.display())]
    Format {
        /// The database.
        path: PathBuf,
        /// As found.
        found: u64,
    },
    /// The record cannot be written or was damaged.
    #[error("an asset's record cannot be used")]
    Record(#[from] CodecError),
    /// The database failed; the disk may be full or broken.
    #[error("the asset index failed")]
    Database(#[source] Arc<redb::Error>),
}

impl From<redb::Error> for IndexError {
    fn from(error: redb::Error) -> IndexError {
        IndexError::Database(Arc::new(error))
    }
}

/// The Remote Asset index of this node. Cheap to clone.
#[derive(Clone)]
pub struct AssetIndex {
    database: Arc<Database>,
    /// `None` once closed. Dropping the last sender ends the writer.
    writer: Arc<Mutex<Option<Writer>>>,
}

// === impl AssetIndex ===

impl AssetIndex {
    /// Opens the database at `path`, or makes it. Keeps at most `capacity` assets. Blocks on the disk.
    ///
    /// # Errors
    /// [`IndexError`] when the file is no database, has another format, or the disk fails.
    pub fn open(path: &Path, capacity: u64) -> Result<AssetIndex, IndexError> {
        let (database, found) = create(path)?;
        if found != FORMAT {
            return Err(IndexError::Format { path: path.to_owned(), found });
        }
        let database = Arc::new(database);
        let writer = Writer::start(Arc::clone(&database), capacity)?;
        Ok(AssetIndex { database, writer: Arc::new(Mutex::new(Some(writer))) })
    }

    /// What is known of this asset, expired or not. Counts as no use: see [`AssetIndex::used`].
    ///
    /// # Errors
    /// [`IndexError`] when the database fails or the record is damaged.
    pub fn get(&self, key: &AssetKey) -> Result<Option<AssetRecord>, IndexError> {
        let look = || -> Result<_, redb::Error> {
            let assets = self.database.begin_read()?.open_table(ASSETS)?;
            Ok(assets.get(key.as_bytes())?)
        };
        match look()? {
            Some(entry) => Ok(AssetRecord::decode(entry.value().1)?),
            None => Ok(None),
        }
    }

    /// Notes that this asset was fetched, so that it stays longer. Written with the next batch; when too much waits to be
    /// written the note is dropped, since it only orders eviction.
    pub fn used(&self, key: &AssetKey) {
        if let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            writer.used(key);
        }
    }

    /// Records the asset, in place of what was known under its key. When this returns it is on disk.
    ///
    /// # Errors
    /// [`IndexError::Busy`] when too many pushes wait; others when it could not be written, and then nothing changed.
    ///
    /// # Cancel safety
    /// Dropped half-way, the push may or may not happen.
    pub async fn push(&self, key: AssetKey, record: &AssetRecord) -> Result<(), IndexError> {
        let (push, done) = Push::new(key, record)?;
        match self.writer.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(writer) => writer.push(push)?,
            None => return Err(IndexError::Closed),
        }
        done.await.unwrap_or(Err(IndexError::Closed))
    }

    /// The number of assets, expired ones that were not swept yet included.
    ///
    /// # Errors
    /// [`IndexError::Database`] when the database fails.
    pub fn len(&self) -> Result<u64, IndexError> {
        let look = || -> Result<u64, redb::Error> { Ok(self.database.begin_read()?.open_table(ASSETS)?.len()?) };
        Ok(look()?)
    }

    /// Whether there is no asset.
    ///
    /// # Errors
    /// [`IndexError::Database`] when the database fails.
    pub fn is_empty(&self) -> Result<bool, IndexError> {
        Ok(self.len()? == 0)
    }

    /// Writes what waits and ends the writer. Later pushes fail with [`IndexError::Closed`]. Blocks until done.
    pub fn close(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            writer.finish();
        }
    }
}

/// The database with all its tables, and the format it has.
fn create(path: &Path) -> Result<(Database, u64), redb::Error> {
    let database = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
    let mut transaction = database.begin_write()?;
    // Without this, the first start after a kill would read the whole database.
    transaction.set_quick_repair(true);
    let mut meta = transaction.open_table(META)?;
    let found = meta.get("format")?.map(|format| format.value());
    if found.is_none() {
        meta.insert("format", FORMAT)?;
        transaction.open_table(ASSETS)?;
        transaction.open_table(USES)?;
        transaction.open_table(ENDS)?;
    }
    drop(meta);
    transaction.commit()?;
    Ok((database, found.unwrap_or(FORMAT)))
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
#[path = "database_test.rs"]
mod tests;
