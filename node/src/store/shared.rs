//! What all parts of an open store share.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, Semaphore, oneshot, watch};

use crate::config::Compression;

use super::buffers::Buffers;
use super::clock::Clock;
use super::codecs::Codecs;
use super::disk::Disk;
use super::gathered::GatheredTotal;
use super::journal::Journal;
use super::key::{Key, Place};
use super::limits::{BLOCKING_JOBS, BLOCKING_QUEUE, SLOW_PERIOD, SLOW_WRITE};
use super::maintenance::Maintenance;
use super::options::StoreOptions;
use super::paths::Paths;
use super::segments::SegmentFile;
use super::state::{GarbageFile, State};
use super::sync::Sync;

/// An open store, without its threads.
pub struct Shared {
    /// As opened.
    pub options: StoreOptions,
    /// Where files are.
    pub paths: Paths,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// The file system.
    pub disk: Arc<Disk>,
    /// Taken for short, never across IO.
    pub state: Mutex<State>,
    /// The changes of the state, on disk.
    pub journal: Journal,
    /// What is not yet forced to the disk.
    pub sync: Sync,
    /// How maintenance is stopped.
    pub maintenance: Maintenance,
    /// Whether small writes may be made where they are asked for.
    pub pace: Pace,
    /// Memory for readers.
    pub buffers: Arc<Buffers>,
    /// zstd.
    pub codecs: Arc<Codecs>,
    /// Told when reserved bytes are given back or become evictable.
    pub space: Notify,
    /// Names this run's uploads.
    pub run: u64,
    /// Uploads so far.
    pub uploads: AtomicU64,
    /// Bytes that uploads have gathered.
    pub gathered: GatheredTotal,
    /// How often something was lost.
    pub losses: watch::Sender<u64>,
    jobs: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// Tells whether writes to the page cache block at present, as they do when the disk cannot keep up. While they do not,
/// small ones are made on the threads of the runtime, since the way to another thread costs several times as much.
#[derive(Debug)]
pub struct Pace {
    start: Instant,
    /// Milliseconds after the start.
    slow_until: AtomicU64,
}

/// Bytes set aside, given back on drop.
pub struct Reservation {
    shared: Arc<Shared>,
    bytes: u64,
}

/// Why a job was not done.
#[derive(Debug)]
pub enum JobError {
    /// Too many wait already.
    Busy,
    /// It failed.
    Io(io::Error),
}

/// Locks; a lock whose holder panicked is taken all the same, since a panic ends the process.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Shared ===

impl Shared {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Shared {
        Shared {
            sync: Sync::new(parts.options.sync),
            options: parts.options,
            paths: parts.paths,
            clock: parts.clock,
            disk: parts.disk,
            state: Mutex::new(parts.state),
            journal: parts.journal,
            maintenance: Maintenance::default(),
            pace: Pace::new(),
            buffers: Arc::default(),
            codecs: Arc::default(),
            space: Notify::new(),
            run: parts.run,
            uploads: AtomicU64::new(0),
            gathered: GatheredTotal::default(),
            losses: watch::Sender::new(0),
            jobs: Arc::new(Semaphore::new(BLOCKING_JOBS)),
            waiting: AtomicUsize::new(0),
        }
    }

    /// What compresses new blobs, if anything does.
    pub fn compression(&self) -> Option<&Arc<Codecs>> {
        match self.options.compression {
            Compression::None => None,
            Compression::Zstd => Some(&self.codecs),
        }
    }

    /// The state.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The time of day, in Unix seconds.
    pub fn now(&self) -> u32 {
        self.clock.unix_seconds()
    }

    /// Writes queued records up to this sequence to the journal.
    pub fn flush(&self, sequence: u64) -> io::Result<()> {
        self.journal.flush(&self.disk, &self.state, sequence)
    }

    /// Runs something that may block on a thread of the pool.
    ///
    /// # Cancel safety
    /// Dropped half-way, the job runs to its end.
    pub async fn blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, JobError> {
        self.start_blocking(job).await?.join().await
    }

    /// The same, without waiting for the end.
    pub async fn start_blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<Job<T>, JobError> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= BLOCKING_QUEUE {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(JobError::Busy);
        }
        let waiting = Waiting(&self.waiting);
        let permit = Arc::clone(&self.jobs).acquire_owned().await.expect("the semaphore is never closed");
        drop(waiting);
        let (done, outcome) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            // A result that nobody waits for is dropped here, while the job still counts as running. One that somebody
            // waits for holds nothing: its owner may be a client that has stalled.
            drop(done.send(job()));
            drop(permit);
        });
        Ok(Job(outcome))
    }

    /// Waits until no job is running.
    #[cfg(test)]
    pub async fn quiet(&self) {
        drop(self.jobs.acquire_many(BLOCKING_JOBS as u32).await.unwrap());
    }

    /// Reads until the buffer is full: what the page cache has at once, the rest on a thread of the pool.
    pub async fn read_exact<B>(&self, file: &Arc<File>, buffer: B, offset: u64) -> Result<B, JobError>
    where
        B: AsMutBytes + Send + 'static,
    {
        let mut buffer = buffer;
        let bytes = buffer.as_mut_bytes();
        let wanted = bytes.len();
        let filled = self.disk.read_cached(file, bytes, offset).map_err(JobError::Io)?;
        if filled == wanted {
            return Ok(buffer);
        }
        let (disk, file) = (Arc::clone(&self.disk), Arc::clone(file));
        self.blocking(move || {
            let rest = buffer.as_mut_bytes().get_mut(filled..).unwrap_or_default();
            disk.read_exact_at(&file, rest, offset + filled as u64)?;
            Ok(buffer)
        })
        .await
    }

    /// Drops a damaged copy; `false` when it is gone or has been replaced. The journal is written later; the copy would be
    /// found damaged again. A copy in a segment comes with the segment that it was read from.
    pub fn drop_damaged(&self, key: &Key, place: Place, segment: Option<&SegmentFile>) -> bool {
        let mut state = self.lock();
        if segment.is_some_and(|segment| !state.segments.is_in(place, segment)) {
            return false;
        }
        let found = state.index.find(key).and_then(|slot| Some((slot, state.index.get(slot)?)));
        let Some((slot, _)) = found.filter(|(_, found)| found.stored.place == place && !found.hidden) else {
            return false;
        };
        state.lose(slot);
        let losses = state.lost.losses();
        drop(state);
        self.losses.send_replace(losses);
        self.sync.wake();
        true
    }

    /// Removes a file soon.
    pub fn discard(&self, file: GarbageFile) {
        self.lock().discard(file);
        self.sync.wake();
    }
}

/// A job on a thread of the pool.
pub struct Job<T>(oneshot::Receiver<io::Result<T>>);

// === impl Job ===

impl<T> Job<T> {
    /// Waits for its end.
    pub async fn join(self) -> Result<T, JobError> {
        match self.0.await {
            Ok(result) => result.map_err(JobError::Io),
            Err(_) => Err(JobError::Io(io::Error::other("the job panicked"))),
        }
    }
}

// === impl Pace ===

impl Pace {
    fn new() -> Pace {
        Pace { start: Instant::now(), slow_until: AtomicU64::new(0) }
    }

    /// Whether writes do not block.
    pub fn is_calm(&self) -> bool {
        self.slow_until.load(Ordering::Relaxed) <= self.start.elapsed().as_millis() as u64
    }

    /// Takes note of a write that began then and has ended now.
    pub fn note(&self, started: Instant) {
        if started.elapsed() > SLOW_WRITE {
            let until = self.start.elapsed() + SLOW_PERIOD;
            self.slow_until.store(until.as_millis() as u64, Ordering::Relaxed);
        }
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a store is put together from.
pub struct Parts {
    /// As opened.
    pub options: StoreOptions,
    /// Where files are.
    pub paths: Paths,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// The file system.
    pub disk: Arc<Disk>,
    /// As recovered.
    pub state: State,
    /// As begun.
    pub journal: Journal,
    /// Names this run's uploads.
    pub run: u64,
}

// === impl Reservation ===

impl Reservation {
    /// Takes over bytes that [`State::reserve`] has set aside.
    pub fn new(shared: &Arc<Shared>, bytes: u64) -> Reservation {
        Reservation { shared: Arc::clone(shared), bytes }
    }

    /// Gives the bytes back to the state that the caller has locked.
    pub fn release(mut self, state: &mut State) {
        state.reserved_bytes -= self.bytes;
        self.bytes = 0;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.shared.lock().reserved_bytes -= self.bytes;
        }
        self.shared.space.notify_waiters();
    }
}

/// Owned memory that can be read into.
pub trait AsMutBytes {
    /// All of it.
    fn as_mut_bytes(&mut self) -> &mut [u8];
}

impl AsMutBytes for Vec<u8> {
    fn as_mut_bytes(&mut self) -> &mut [u8] {
        self
    }
}

impl AsMutBytes for super::buffers::Buffer {
    fn as_mut_bytes(&mut self) -> &mut [u8] {
        self.bytes_mut()
    }
}
