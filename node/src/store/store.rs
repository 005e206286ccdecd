//! The store as its users see it.

use std::io;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_cluster::inventory::{Inventory, ListedBlob, Page};
use tokio::sync::watch;

use super::error::{OpenError, ReadError, ReadOnlyReason, WriteError};
use super::key::Key;
use super::limits::{FOLDED_PAGE, LOOKUP_BATCH, MINIMUM_CAPACITY_BYTES};
use super::options::{StoreOptions, Surroundings};
use super::presence::Presence;
use super::reader::{self, Reader, StoredReader};
use super::shared::{JobError, Shared, lock};
use super::upload::{self, Given, Upload};
use super::{list, maintenance, recover, sync, verify};

/// The blobs of one node. Cheap to clone. When the last clone is dropped without [`Store::close`], the store ends as if
/// the process had been killed, which loses nothing that was acknowledged.
#[derive(Clone)]
pub struct Store {
    threads: Arc<Threads>,
}

/// The shared part, and the threads that end with the last [`Store`].
struct Threads {
    shared: Arc<Shared>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

/// A store in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreStatus {
    /// Blobs, the empty one not counted.
    pub blobs: u64,
    /// Bytes of disk that they take.
    pub bytes: u64,
    /// Bytes of disk that they may take.
    pub capacity_bytes: u64,
    /// The same, or less when the disk has no room for as much.
    pub usable_bytes: u64,
    /// Bytes of files that small blobs lie in, live or dead.
    pub segment_bytes: u64,
    /// Bytes of them that are dead.
    pub dead_bytes: u64,
    /// Bytes set aside for uploads under way.
    pub reserved_bytes: u64,
    /// Blobs evicted since the start.
    pub evicted_blobs: u64,
    /// Bytes of them.
    pub evicted_bytes: u64,
    /// Blobs found damaged and dropped since the start.
    pub damaged_blobs: u64,
    /// Those of them that are here again.
    pub repaired_blobs: u64,
    /// Those of them that turned out to be nowhere.
    pub given_up_blobs: u64,
    /// Those that may be elsewhere, as far as is known.
    pub lost_blobs: u64,
    /// Whether anything that is not here may have been here, and be elsewhere.
    pub is_unsure: bool,
    /// Bytes checked at leisure since the start.
    pub scrubbed_bytes: u64,
    /// When the least recently used blob was used; `None` when there is none.
    pub oldest_use: Option<SystemTime>,
    /// Why no writes are taken.
    pub read_only: Option<ReadOnlyReason>,
    /// Bytes of memory that the index takes.
    pub index_memory_bytes: u64,
}

// === impl Store ===

impl Store {
    /// Opens the store in a directory, which is made when absent. The caller holds the directory's lock.
    ///
    /// # Errors
    /// [`OpenError`].
    ///
    /// # Cancel safety
    /// Dropped half-way, the opening goes on for a while on its thread: give up the directory's lock only after it.
    pub async fn open(options: StoreOptions) -> Result<Store, OpenError> {
        Store::open_in(options, Surroundings::default()).await
    }

    /// The same, with another clock or file system.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open_in(options: StoreOptions, around: Surroundings) -> Result<Store, OpenError> {
        let (capacity_bytes, minimum_bytes) = (options.capacity_bytes, MINIMUM_CAPACITY_BYTES);
        if capacity_bytes < minimum_bytes {
            return Err(OpenError::Capacity { capacity_bytes, minimum_bytes });
        }
        let dir = options.dir.clone();
        let io = move |source| OpenError::Io { action: "open", path: dir, source };
        let threads = around.threads;
        let opened = tokio::task::spawn_blocking(move || Store::start(recover::open(options, around)?, threads));
        opened.await.map_err(|error| io(std::io::Error::other(error)))?
    }

    fn start(shared: Shared, run_threads: bool) -> Result<Store, OpenError> {
        let shared = Arc::new(shared);
        let path = shared.paths.root().to_owned();
        let threads = Arc::new(Threads { shared: Arc::clone(&shared), handles: Mutex::default() });
        let begin = |name: &str, body: fn(&Shared)| {
            let shared = Arc::clone(&shared);
            let spawned = thread::Builder::new().name(name.to_owned()).spawn(move || body(&shared));
            spawned.map_err(|source| OpenError::Io { action: "start a thread for", path: path.clone(), source })
        };
        if run_threads {
            lock(&threads.handles).push(begin("store-sync", sync::run)?);
            lock(&threads.handles).push(begin("store-keep", maintenance::run)?);
        }
        Ok(Store { threads })
    }

    /// For how long a blob stays after its last use.
    pub fn retention_floor(&self) -> Duration {
        self.shared().options.retention_floor
    }

    /// Whether the blob is here; not a use of it.
    pub fn contains(&self, digest: &Digest) -> bool {
        digest.is_empty_blob() || self.shared().lock().find(digest).is_some()
    }

    /// Which of the blobs are here; those are used now. No IO.
    pub fn touch(&self, digests: &[Digest]) -> Vec<bool> {
        let now = self.shared().now();
        let mut here = Vec::with_capacity(digests.len());
        for batch in digests.chunks(LOOKUP_BATCH) {
            let mut state = self.shared().lock();
            here.extend(
                batch.iter().map(|digest| state.find_and_touch(digest, now).is_some() || digest.is_empty_blob()),
            );
        }
        here
    }

    /// The same, for other nodes: where copies were damaged, that a blob is not here is no fact. Those that are here are used now if
    /// `touch` says so.
    pub fn look_up(&self, digests: &[Digest], touch: bool) -> Vec<Presence> {
        let now = self.shared().now();
        let mut found = Vec::with_capacity(digests.len());
        for batch in digests.chunks(LOOKUP_BATCH) {
            let mut state = self.shared().lock();
            found.extend(batch.iter().map(|digest| {
                let is_here = match touch {
                    true => state.find_and_touch(digest, now).is_some(),
                    false => state.find(digest).is_some(),
                };
                match is_here || digest.is_empty_blob() {
                    true => Presence::Here,
                    false if state.lost.is_in_doubt(&Key::of(digest)) => Presence::Unsure,
                    false => Presence::Absent,
                }
            }));
        }
        found
    }

    /// Blobs that were here until their copies were found damaged, and that may be elsewhere; those of functions with long hashes
    /// are not told. Each is in here until it is stored again or given up, over restarts.
    pub fn lost(&self) -> Vec<Digest> {
        self.shared().lock().lost.digests()
    }

    /// How often something was lost, now and later. What is in [`Store::lost`] after the start counts as well.
    pub fn losses(&self) -> watch::Receiver<u64> {
        self.shared().losses.subscribe()
    }

    /// Forgets a lost blob that is nowhere else either, as all have said that may have it: from then on it is not here for a fact.
    pub fn give_up(&self, digest: &Digest) {
        if self.shared().lock().give_up(digest) {
            tracing::error!(%digest, "a blob whose copy was damaged is nowhere else; it is gone");
            self.shared().sync.wake();
        }
    }

    /// Whether anything that is not here may have been here: more was lost than is remembered, or the index was damaged. The number
    /// is for [`Store::is_sure`].
    pub fn unsure(&self) -> Option<u64> {
        let state = self.shared().lock();
        state.lost.is_unsure().then(|| state.lost.losses())
    }

    /// All that this node is to have has been fetched from all that may have it, and that was begun after [`Store::unsure`] had told
    /// this number. If nothing was lost since, what is not here is not here for a fact again.
    pub fn is_sure(&self, losses: u64) {
        if self.shared().lock().be_sure(losses) {
            tracing::info!("what was lost has been made up for");
            self.shared().sync.wake();
        }
    }

    /// The whole blob, if it is not larger than the limit. A use of it.
    ///
    /// # Errors
    /// [`ReadError`].
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn get(&self, digest: &Digest, limit_bytes: u64) -> Result<Bytes, ReadError> {
        reader::get(self.shared(), digest, limit_bytes, true).await
    }

    /// The same, of a blob that a copy is made of by the time of its last use. No use of it.
    ///
    /// # Errors
    /// [`ReadError`].
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn get_unused(&self, digest: &Digest, limit_bytes: u64) -> Result<Bytes, ReadError> {
        reader::get(self.shared(), digest, limit_bytes, false).await
    }

    /// A range of a blob, to its end when no length is given. A use of it.
    ///
    /// # Errors
    /// [`ReadError`]; an offset past the end is out of range, one at the end is an empty read.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn read(&self, digest: &Digest, offset: u64, length: Option<u64>) -> Result<Reader, ReadError> {
        reader::read(self.shared(), digest, (offset, length), true)
    }

    /// The same, as [`Store::get_unused`].
    ///
    /// # Errors
    /// [`ReadError`].
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn read_unused(&self, digest: &Digest, offset: u64, length: Option<u64>) -> Result<Reader, ReadError> {
        reader::read(self.shared(), digest, (offset, length), false)
    }

    /// The whole blob as it is stored, if it is stored compressed: zstd frames, one after the other, each of which says how
    /// many bytes it makes. `None` when it is stored as it is, which is no use of it. Otherwise a use of it.
    ///
    /// # Errors
    /// [`ReadError`].
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn read_stored(&self, digest: &Digest) -> Result<Option<StoredReader>, ReadError> {
        reader::read_stored(self.shared(), digest)
    }

    /// Stores a whole blob. One that is here is verified and used all the same.
    ///
    /// # Errors
    /// [`WriteError`].
    ///
    /// # Cancel safety
    /// Dropped half-way, the blob may be stored or not.
    pub async fn put(&self, digest: &Digest, data: Bytes) -> Result<(), WriteError> {
        upload::put(self.shared(), digest, data, Given::NOW).await
    }

    /// Begins to store a blob: sets its space aside, and evicts for it if need be.
    ///
    /// # Errors
    /// [`WriteError`].
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn upload(&self, digest: &Digest) -> Result<Upload, WriteError> {
        upload::begin(self.shared(), digest, Given::NOW).await
    }

    /// As [`Store::put`], of bytes that another node has found to be those of the digest: they are counted and not hashed.
    ///
    /// # Errors
    /// [`WriteError`].
    ///
    /// # Cancel safety
    /// Dropped half-way, the blob may be stored or not.
    pub(crate) async fn put_verified(&self, digest: &Digest, data: Bytes) -> Result<(), WriteError> {
        upload::put(self.shared(), digest, data, Given::VERIFIED).await
    }

    /// As [`Store::upload`], of bytes that another node hashes as it sends them: they are counted and not hashed, and only to be
    /// committed on that node's word. It says so over a connection on which nothing can be changed on the way.
    ///
    /// # Errors
    /// [`WriteError`].
    ///
    /// # Cancel safety
    /// May be dropped.
    pub(crate) async fn upload_verified(&self, digest: &Digest) -> Result<Upload, WriteError> {
        upload::begin(self.shared(), digest, Given::VERIFIED).await
    }

    /// Stores a copy of a blob that another node has, and that was last used there so many milliseconds after the beginning of 1970:
    /// it takes its place among the others by that, and is kept no longer for having been copied. It is hashed. If the blob is
    /// here, it stays as it is.
    ///
    /// # Errors
    /// [`WriteError`]; [`WriteError::Outlived`] when all that would have to make room for it was used later.
    ///
    /// # Cancel safety
    /// Dropped half-way, the blob may be stored or not.
    pub async fn put_copy(&self, digest: &Digest, data: Bytes, used_ms: u64) -> Result<(), WriteError> {
        upload::put(self.shared(), digest, data, Given::copy(used_ms)).await
    }

    /// Begins to store such a copy.
    ///
    /// # Errors
    /// As [`Store::put_copy`].
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn upload_copy(&self, digest: &Digest, used_ms: u64) -> Result<Upload, WriteError> {
        upload::begin(self.shared(), digest, Given::copy(used_ms)).await
    }

    /// Removes blobs that other nodes have: those that were not used since, so that nobody was told of late that they are here,
    /// and that nobody is about to store again. Returns how many have gone. Reads under way go on.
    pub fn remove(&self, digests: &[Digest], unused_since_ms: u64) -> usize {
        let since = u32::try_from(unused_since_ms / 1000).unwrap_or(u32::MAX);
        let mut removed = 0;
        for batch in digests.chunks(LOOKUP_BATCH) {
            let mut state = self.shared().lock();
            removed += batch.iter().filter(|digest| state.remove(digest, since)).count();
        }
        if removed > 0 {
            self.shared().sync.wake();
            self.shared().space.notify_waiters();
        }
        removed
    }

    /// The visible blobs of a partition (the first 12 bits of the hash) in short. No walk.
    pub fn inventory(&self, partition: usize) -> Inventory {
        self.shared().lock().index.inventory(partition)
    }

    /// The visible blobs of a partition, in no particular order: those whose digests the index has whole. The others,
    /// of functions with long hashes, are in [`Store::partition_folded`].
    pub fn partition(&self, partition: usize) -> Vec<Digest> {
        let state = self.shared().lock();
        let digests = state.index.partition(partition).filter_map(|stored| stored.key.digest(stored.size_bytes));
        digests.collect()
    }

    /// The visible blobs of a partition whose hashes the index has only folded, in no particular order. Each is read to
    /// learn its digest; what is damaged or goes meanwhile is left out. No use of them.
    ///
    /// # Errors
    /// When one cannot be read, or too much is read already.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn partition_folded(&self, partition: usize) -> io::Result<Vec<Digest>> {
        let copies: Vec<_> = {
            let state = self.shared().lock();
            let folded =
                state.index.partition(partition).filter(|stored| stored.key.digest(stored.size_bytes).is_none());
            folded.map(|stored| (stored, state.segment_of(&stored))).collect()
        };
        let mut digests = Vec::with_capacity(copies.len());
        for (stored, segment) in copies {
            let shared = Arc::clone(self.shared());
            let read =
                move || verify::digest(&shared.disk, &shared.paths, &shared.codecs, (&stored, segment.as_deref()));
            match self.shared().blocking(read).await {
                Ok(digest) => digests.extend(digest),
                Err(JobError::Busy) => return Err(io::ErrorKind::ResourceBusy.into()),
                Err(JobError::Io(error)) => return Err(error),
            }
        }
        Ok(digests)
    }

    /// Up to `limit` visible blobs of a partition that come after this one, with their last uses, in the order of
    /// [`ListedBlob`]. No use of them. Those of functions with long hashes are read, and left out if they are damaged.
    ///
    /// # Errors
    /// When one cannot be read, or too much is read already.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn list(&self, partition: usize, after: Option<&Digest>, limit: usize) -> io::Result<Page<ListedBlob>> {
        list::page(self.shared(), partition, after, (limit, FOLDED_PAGE)).await
    }

    /// The store in numbers.
    pub fn status(&self) -> StoreStatus {
        let state = self.shared().lock();
        let oldest = state.index.oldest().and_then(|slot| state.index.get(slot));
        StoreStatus {
            blobs: state.index.blobs(),
            bytes: state.index.charged_bytes(),
            capacity_bytes: state.capacity_bytes,
            usable_bytes: state.usable_bytes,
            segment_bytes: state.segments.file_bytes(),
            dead_bytes: state.segments.dead_bytes(),
            reserved_bytes: state.reserved_bytes,
            evicted_blobs: state.counters.evicted_blobs,
            evicted_bytes: state.counters.evicted_bytes,
            damaged_blobs: state.counters.damaged_blobs,
            repaired_blobs: state.counters.repaired_blobs,
            given_up_blobs: state.counters.given_up_blobs,
            lost_blobs: state.lost.count() as u64,
            is_unsure: state.lost.is_unsure(),
            scrubbed_bytes: state.counters.scrubbed_bytes,
            oldest_use: oldest.map(|found| UNIX_EPOCH + Duration::from_secs(u64::from(found.used))),
            read_only: state.read_only,
            index_memory_bytes: state.index.memory_bytes(),
        }
    }

    /// Takes no more writes, forces everything to the disk and ends the store's threads. Reads still work.
    ///
    /// # Cancel safety
    /// Dropped half-way, it goes on.
    pub async fn close(&self) {
        let threads = Arc::clone(&self.threads);
        let closed = tokio::task::spawn_blocking(move || threads.close()).await;
        if let Err(error) = closed {
            tracing::error!(%error, "closing the store failed");
        }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.threads.shared
    }
}

// === impl Threads ===

impl Threads {
    fn close(&self) {
        self.shared.lock().closed = true;
        self.stop();
        sync::journal_touches(&self.shared);
        if let Err(error) = sync::pass(&self.shared) {
            tracing::error!(%error, "forcing blobs to the disk failed");
        }
    }

    fn stop(&self) {
        self.shared.lock().closed = true;
        self.shared.maintenance.stop();
        self.shared.sync.stop();
        for handle in std::mem::take(&mut *lock(&self.handles)) {
            if handle.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}
