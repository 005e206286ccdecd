//! The log on disk: entries and the vote in a redb file, written by one thread, which gathers what waits into one
//! transaction with one fsync. Entries written last are also in memory, where appliers and followers find them.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use casbah_cluster::consensus::{self, Entry, LogId, TypeConfig, Vote};
use casbah_cluster::membership::NodeId;
use futures_util::Stream;
use openraft::entry::RaftEntry as _;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt as _;
use openraft::{LogState, OptionalSend};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use crate::index::raft::error::GroupError;
use crate::index::raft::log_writer::{self, Work};

/// The file's name in the node's directory.
pub(super) const FILE: &str = "raft-log.redb";

/// The format of the file: 1 knew no standings of members, 2 no versions of the protocol. Another one is refused, never guessed at.
const FORMAT: u64 = 3;

/// Page cache of the database. Entries are read from it only by those that are far behind.
const CACHE_BYTES: usize = 8 << 20;

/// What waits for the writer's thread; openraft has one of each kind under way, and a few appends.
const WORK_MAX: usize = 64;

/// Entries that are in memory beside those that are not on disk yet: what a follower that keeps up and the state machine ask for.
const RECENT_BYTES: usize = 4 << 20;

/// Entries read at once, for a message or for a step of applying.
const READ_BYTES: usize = consensus::ENTRY_BYTES_MAX;

pub(super) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
/// Index to entry.
pub(super) const ENTRIES: TableDefinition<u64, &[u8]> = TableDefinition::new("entries");

/// Keys of [`META`]: the format (8 bytes, big-endian), the node (the same), and records of the codec.
const META_FORMAT: &str = "format";
const META_NODE: &str = "node";
pub(super) const META_VOTE: &str = "vote";
pub(super) const META_COMMITTED: &str = "committed";
pub(super) const META_PURGED: &str = "purged";

/// The log of this node. Cheap to clone; all clones are one log.
#[derive(Clone)]
pub(super) struct Log {
    inner: Arc<Inner>,
}

struct Inner {
    database: Arc<Database>,
    /// `None` once closed. Dropping the last sender ends the writer's thread.
    work: Mutex<Option<mpsc::Sender<Work>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    memory: Mutex<Memory>,
    /// What was appended since the last purge, and what was there at the start.
    bytes: AtomicU64,
}

/// What is known without reading the file.
#[derive(Default)]
struct Memory {
    recent: Recent,
    vote: Option<Vote>,
    committed: Option<LogId>,
    last: Option<LogId>,
    purged: Option<LogId>,
}

/// The last entries of the log, without a gap. Those behind `on_disk` are nowhere else yet.
#[derive(Default)]
struct Recent {
    entries: VecDeque<(Arc<Entry>, usize)>,
    bytes: usize,
    /// The index behind the last entry that is on disk.
    on_disk: u64,
}

// === impl Recent ===

impl Recent {
    fn first(&self) -> Option<u64> {
        self.entries.front().map(|(entry, _)| entry.index())
    }

    fn push(&mut self, entry: Arc<Entry>, bytes: usize) {
        // There is no gap by openraft's promise, and no overlap either: what it replaces it has had removed before.
        self.truncate(entry.index());
        self.bytes += bytes;
        self.entries.push_back((entry, bytes));
    }

    /// Everything before this index is on disk; what is more than enough leaves.
    fn reached_disk(&mut self, end: u64) {
        self.on_disk = self.on_disk.max(end);
        while self.bytes > RECENT_BYTES && self.first().is_some_and(|first| first < self.on_disk) {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        if let Some((_, bytes)) = self.entries.pop_front() {
            self.bytes -= bytes;
        }
    }

    fn truncate(&mut self, end: u64) {
        while self.entries.back().is_some_and(|(entry, _)| entry.index() >= end) {
            if let Some((_, bytes)) = self.entries.pop_back() {
                self.bytes -= bytes;
            }
        }
        self.on_disk = self.on_disk.min(end);
    }

    fn purge(&mut self, upto: u64) {
        while self.first().is_some_and(|first| first <= upto) {
            self.pop_front();
        }
    }

    /// The entries of `start..end` that are here, in order.
    fn range(&self, start: u64, end: u64) -> impl Iterator<Item = &(Arc<Entry>, usize)> {
        let skip = self.first().map_or(0, |first| usize::try_from(start.saturating_sub(first)).unwrap_or(usize::MAX));
        self.entries.iter().skip(skip).take_while(move |(entry, _)| entry.index() < end)
    }
}

// === impl Log ===

impl Log {
    /// Opens the log in this directory, or makes it. Blocks on the disk.
    ///
    /// # Errors
    /// [`GroupError`] when it is another node's, of another format, or the disk fails.
    pub(super) fn open(directory: &Path, node: NodeId) -> Result<Log, GroupError> {
        let path = directory.join(FILE);
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(&path).map_err(redb::Error::from)?;
        Log::of(database, &path, node)
    }

    pub(super) fn of(database: Database, path: &Path, node: NodeId) -> Result<Log, GroupError> {
        let (format, owner) = prepare(&database, node)?;
        if format != FORMAT {
            return Err(GroupError::Format { path: path.to_owned(), found: format, expected: FORMAT });
        }
        if owner != node.0 {
            return Err(GroupError::OtherNode { path: path.to_owned(), found: NodeId(owner), expected: node });
        }
        let (memory, bytes) = load(&database)?;
        let database = Arc::new(database);
        let (work, waiting) = mpsc::channel(WORK_MAX);
        let writer = log_writer::start(Arc::clone(&database), waiting)?;
        let inner = Inner {
            database,
            work: Mutex::new(Some(work)),
            writer: Mutex::new(Some(writer)),
            memory: Mutex::new(memory),
            bytes: AtomicU64::new(bytes),
        };
        Ok(Log { inner: Arc::new(inner) })
    }

    /// What the log takes, roughly: a reason to make it shorter.
    pub(super) fn size_bytes(&self) -> u64 {
        self.inner.bytes.load(Ordering::Relaxed)
    }

    /// Writes what waits and ends the writer. Blocks until done.
    pub(super) fn close(&self) {
        drop(self.inner.work.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the writer of the log panicked");
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.inner.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, work: Work) -> io::Result<()> {
        let sender = self.inner.work.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sender = sender.ok_or_else(closed)?;
        sender.send(work).await.map_err(|_| closed())
    }

    /// Has it written, and waits until it is on disk.
    async fn written(&self, work: impl FnOnce(IOFlushed<TypeConfig>) -> Work) -> io::Result<()> {
        let (done, outcome) = TypeConfig::oneshot();
        self.send(work(IOFlushed::signal(done))).await?;
        outcome.await.map_err(|_| closed())?
    }

    /// Entries of `start..end`, from the first one on, as many as are few enough; all of them without a limit.
    async fn read(&self, start: u64, end: u64, limit_bytes: usize) -> io::Result<Vec<Entry>> {
        if start >= end {
            return Ok(Vec::new());
        }
        // Memory first: what is not there when it is looked into is on disk by then.
        let (recent, from) = {
            let memory = self.memory();
            let from = memory.recent.first().unwrap_or(u64::MAX).clamp(start, end);
            let mut bytes = 0_usize;
            let few = memory.recent.range(from, end).take_while(|(_, size)| {
                let is_within = bytes == 0 || bytes.saturating_add(*size) <= limit_bytes;
                bytes = bytes.saturating_add(*size);
                is_within
            });
            (few.cloned().collect::<Vec<_>>(), from)
        };
        let (mut entries, mut bytes) = (Vec::new(), 0_usize);
        if start < from {
            let database = Arc::clone(&self.inner.database);
            let read = move || read_entries(&database, start, from, limit_bytes);
            let is_all;
            (entries, is_all, bytes) = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
            if !is_all {
                return Ok(entries);
            }
        }
        for (entry, size) in recent {
            if !entries.is_empty() && bytes.saturating_add(size) > limit_bytes {
                break;
            }
            bytes = bytes.saturating_add(size);
            entries.push(Entry::clone(&entry));
        }
        Ok(entries)
    }
}

fn closed() -> io::Error {
    io::Error::other("the log is closed")
}

fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// Makes the tables if there are none; the format of the file, and whose it is.
fn prepare(database: &Database, node: NodeId) -> Result<(u64, u64), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    let mut meta = transaction.open_table(META)?;
    let format = meta.get(META_FORMAT)?.map(|bytes| number(bytes.value()).unwrap_or(0));
    let owner = meta.get(META_NODE)?.map(|bytes| number(bytes.value()).unwrap_or(0));
    if format.is_none() {
        meta.insert(META_FORMAT, FORMAT.to_be_bytes().as_slice())?;
        meta.insert(META_NODE, node.0.to_be_bytes().as_slice())?;
        transaction.open_table(ENTRIES)?;
    }
    drop(meta);
    transaction.commit()?;
    Ok((format.unwrap_or(FORMAT), owner.unwrap_or(node.0)))
}

/// What there is at the start: the votes and ends of the log, and how many bytes it takes.
fn load(database: &Database) -> Result<(Memory, u64), GroupError> {
    let look = || -> Result<_, redb::Error> {
        let transaction = database.begin_read()?;
        let meta = transaction.open_table(META)?;
        let of =
            |key| -> Result<Option<Vec<u8>>, redb::Error> { Ok(meta.get(key)?.map(|bytes| bytes.value().to_vec())) };
        let (vote, committed, purged) = (of(META_VOTE)?, of(META_COMMITTED)?, of(META_PURGED)?);
        let entries = transaction.open_table(ENTRIES)?;
        let last = entries.last()?.map(|(_, entry)| entry.value().to_vec());
        let mut bytes = 0;
        for entry in entries.iter()? {
            bytes += entry?.1.value().len() as u64;
        }
        Ok((vote, committed, purged, last, bytes))
    };
    let (vote, committed, purged, last, bytes) = look()?;
    let purged = purged.map(|bytes| consensus::decode_log_id(&bytes)).transpose()?;
    let last = last.map(|bytes| consensus::decode_entry(&bytes)).transpose()?.map(|entry| entry.log_id()).or(purged);
    let on_disk = last.map_or(0, |last| last.index() + 1);
    let memory = Memory {
        recent: Recent { on_disk, ..Recent::default() },
        vote: vote.map(|bytes| consensus::decode_vote(&bytes)).transpose()?,
        committed: committed.map(|bytes| consensus::decode_log_id(&bytes)).transpose()?,
        last,
        purged,
    };
    Ok((memory, bytes))
}

/// Entries of the file, whether those are all of the range, and their size.
fn read_entries(
    database: &Database,
    start: u64,
    end: u64,
    limit_bytes: usize,
) -> io::Result<(Vec<Entry>, bool, usize)> {
    let mut found = Vec::new();
    let mut bytes = 0;
    let mut look = || -> Result<bool, redb::Error> {
        let entries = database.begin_read()?.open_table(ENTRIES)?;
        for entry in entries.range(start..end)? {
            let entry = entry?.1;
            if bytes + entry.value().len() > limit_bytes && !found.is_empty() {
                return Ok(false);
            }
            bytes += entry.value().len();
            found.push(entry.value().to_vec());
        }
        Ok(true)
    };
    let is_all = look().map_err(io::Error::other)?;
    let entries = found.iter().map(|bytes| consensus::decode_entry(bytes)).collect::<Result<Vec<_>, _>>();
    Ok((entries.map_err(io::Error::other)?, is_all, bytes))
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, READ_BYTES).await
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let steps = futures_util::stream::try_unfold((self.clone(), start), move |(log, start)| async move {
            let entries = log.read(start, end, READ_BYTES).await?;
            let next = entries.last().map(|last| last.index() + 1);
            Ok::<_, io::Error>(next.map(|next| (futures_util::stream::iter(entries.into_iter().map(Ok)), (log, next))))
        });
        Box::pin(futures_util::TryStreamExt::try_flatten(steps))
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.memory().vote)
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Log;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let memory = self.memory();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last })
    }

    async fn get_log_reader(&mut self) -> Log {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let bytes = consensus::encode_vote(vote).map_err(io::Error::other)?;
        self.written(|done| Work::Vote { bytes, done }).await?;
        self.memory().vote = Some(*vote);
        Ok(())
    }

    /// Written with the next entries: it costs no fsync, and what is lost with it is applied again when a leader says so.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.memory().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.memory().committed)
    }

    async fn append<I>(&mut self, entries: I, done: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        let mut appended = Vec::new();
        for entry in entries {
            let bytes = consensus::encode_entry(&entry).map_err(io::Error::other)?;
            appended.push((Arc::new(entry), bytes.len()));
            records.push(bytes);
        }
        let Some(first) = appended.first().map(|(entry, _)| entry.index()) else {
            done.io_completed(Ok(()));
            return Ok(());
        };
        let added: usize = appended.iter().map(|(_, bytes)| bytes).sum();
        self.inner.bytes.fetch_add(added as u64, Ordering::Relaxed);
        let committed = {
            let mut memory = self.memory();
            memory.last = appended.last().map(|(entry, _)| entry.log_id());
            for (entry, bytes) in appended {
                memory.recent.push(entry, bytes);
            }
            memory.committed.map(|id| consensus::encode_log_id(&id)).transpose().map_err(io::Error::other)?
        };
        let end = first + records.len() as u64;
        let log = Arc::downgrade(&self.inner);
        let on_disk = Box::new(move || {
            if let Some(inner) = log.upgrade() {
                inner.memory.lock().unwrap_or_else(PoisonError::into_inner).recent.reached_disk(end);
            }
        });
        self.send(Work::Append { first, records, committed, on_disk, done }).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let end = last.map_or(0, |last| last.index() + 1);
        {
            let mut memory = self.memory();
            memory.recent.truncate(end);
            memory.last = memory.last.min(last).max(memory.purged);
        }
        self.written(|done| Work::Truncate { end, done }).await?;
        // Once more: appends that were under way have said since that they are on disk, and are not any more.
        self.memory().recent.truncate(end);
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let bytes = consensus::encode_log_id(&upto).map_err(io::Error::other)?;
        {
            let mut memory = self.memory();
            memory.recent.purge(upto.index());
            memory.purged = Some(upto);
            memory.last = memory.last.max(Some(upto));
        }
        let (sized, size) = oneshot::channel();
        self.written(|done| Work::Purge { upto: upto.index(), bytes, sized, done }).await?;
        if let Ok(removed) = size.await {
            let fewer = |bytes: u64| Some(bytes.saturating_sub(removed));
            let _ = self.inner.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
        }
        Ok(())
    }
}
