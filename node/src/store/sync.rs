//! Group sync: forces what was written to the disk, data before the journal that names it, and then removes what the
//! journal has let go.
//!
//! One thread does this for all writers. A pass takes what is dirty, syncs the files, then the directories, then the
//! journal, and leaves a mark in the journal: whatever is named before the mark survives the loss of power, and what is
//! named after it is verified at the next start if the machine went down.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::config::SyncPolicy;

use super::health;
use super::index::Slot;
use super::journal::HEADER_BYTES;
use super::limits::{DIRTY_FILES, IDLE_SYNC_INTERVAL, QUEUE_BYTES, SYNC_PATIENCE, TOUCH_INTERVAL, WALK_BATCH};
use super::record::Record;
use super::segments::SegmentFile;
use super::shared::{Shared, lock};
use super::state::{Garbage, GarbageFile};

/// What waits for the sync thread.
#[derive(Debug)]
pub struct Sync {
    policy: SyncPolicy,
    dirty: Mutex<Dirty>,
    /// There is something to do.
    is_work: AtomicBool,
    /// Told when there is something to do or to stop for.
    work: Condvar,
    /// Told when a pass has ended.
    passed: Condvar,
    /// Held for a pass.
    pass: Mutex<Pass>,
}

#[derive(Debug, Default)]
struct Dirty {
    files: Vec<Arc<File>>,
    segments: Vec<Arc<SegmentFile>>,
    /// First bytes of the hashes of files that got their names.
    directories: BTreeSet<u8>,
    reveals: Vec<Reveal>,
    stop: bool,
}

#[derive(Debug, Default)]
struct Pass {
    /// The sequence at the end of the last pass.
    end: u64,
}

/// A blob to be shown once it is on the disk.
#[derive(Debug)]
pub struct Reveal {
    /// The hidden blob; `None` when another shows it.
    pub slot: Option<Slot>,
    /// Told how it went.
    pub answer: oneshot::Sender<io::Result<()>>,
}

// === impl Sync ===

impl Sync {
    /// Nothing is dirty.
    pub fn new(policy: SyncPolicy) -> Sync {
        Sync {
            policy,
            dirty: Mutex::default(),
            is_work: AtomicBool::new(false),
            work: Condvar::new(),
            passed: Condvar::new(),
            pass: Mutex::default(),
        }
    }

    /// Whether writers wait for the disk.
    pub fn is_always(&self) -> bool {
        self.policy == SyncPolicy::Always
    }

    /// Has a file, and the directory that its name was entered in, synced soon. Waits while too many are.
    pub fn add_file(&self, file: Arc<File>, directory: Option<u8>) {
        if self.policy == SyncPolicy::Never {
            return;
        }
        let mut dirty = lock(&self.dirty);
        if dirty.files.len() >= DIRTY_FILES && !dirty.stop {
            // Not for ever, or a disk that fails would take all threads of the pool.
            let waited = self.passed.wait_timeout(dirty, SYNC_PATIENCE);
            dirty = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        dirty.files.push(file);
        dirty.directories.extend(directory);
    }

    /// Has a segment synced soon. Call it after each write to the segment.
    pub fn add_segment(&self, segment: &Arc<SegmentFile>) {
        if self.policy != SyncPolicy::Never && !segment.dirty.swap(true, Ordering::AcqRel) {
            lock(&self.dirty).segments.push(Arc::clone(segment));
        }
    }

    /// Has a blob shown after the next pass that begins.
    pub fn add_reveal(&self, reveal: Reveal) {
        lock(&self.dirty).reveals.push(reveal);
        self.wake();
    }

    /// There is something to do.
    pub fn wake(&self) {
        if !self.is_work.swap(true, Ordering::AcqRel) {
            // Whoever is about to wait holds the lock from looking at the flag until it waits.
            let _held = lock(&self.dirty);
            self.work.notify_all();
        }
    }

    /// Ends [`run`].
    pub fn stop(&self) {
        lock(&self.dirty).stop = true;
        self.work.notify_all();
        self.passed.notify_all();
    }

    /// Waits for work; `false` when it is time to stop. Returns at least every [`TOUCH_INTERVAL`].
    fn wait(&self) -> bool {
        let mut dirty = lock(&self.dirty);
        if !self.is_work.load(Ordering::Acquire) && !dirty.stop {
            dirty = self.pause(dirty, TOUCH_INTERVAL);
        }
        let interval = match self.policy {
            SyncPolicy::Always => Duration::ZERO,
            SyncPolicy::Interval(interval) => interval,
            SyncPolicy::Never => IDLE_SYNC_INTERVAL,
        };
        let end = Instant::now() + interval;
        while !dirty.stop && Instant::now() < end {
            dirty = self.pause(dirty, end.saturating_duration_since(Instant::now()));
        }
        self.is_work.store(false, Ordering::Release);
        !dirty.stop
    }

    fn pause<'a>(&self, dirty: std::sync::MutexGuard<'a, Dirty>, time: Duration) -> std::sync::MutexGuard<'a, Dirty> {
        self.work.wait_timeout(dirty, time).unwrap_or_else(std::sync::PoisonError::into_inner).0
    }
}

/// The sync thread: passes until stopped. A pass that fails is tried again.
pub fn run(shared: &Shared) {
    let mut touched = Instant::now();
    while shared.sync.wait() {
        if touched.elapsed() >= TOUCH_INTERVAL {
            journal_touches(shared);
            touched = Instant::now();
        }
        if let Err(error) = pass(shared) {
            tracing::error!(%error, "forcing blobs to the disk failed");
        }
    }
}

/// Queues the uses since the last call.
pub fn journal_touches(shared: &Shared) {
    let used = shared.now();
    let batches = shared.lock().index.blobs() / WALK_BATCH as u64 + 1;
    for _ in 0..batches {
        let mut state = shared.lock();
        let state = &mut *state;
        if state.queue.bytes.len() > QUEUE_BYTES {
            break;
        }
        let mut prefixes = Vec::new();
        while prefixes.len() < WALK_BATCH {
            let Some(slot) = state.index.advance(&state.touched, None) else { break };
            prefixes.extend(state.index.get(slot).map(|found| found.stored.key.prefix()));
        }
        if prefixes.is_empty() {
            break;
        }
        state.queue.push(&Record::Touch { used, prefixes });
    }
}

/// Goes over to the journal of the next generation, between two passes: the last one still has to be synced.
pub fn rotate_journal(shared: &Shared, file: File, generation: u64) -> io::Result<()> {
    let _held = lock(&shared.sync.pass);
    let last = shared.journal.rotate(&shared.disk, &shared.state, file, generation)?;
    lock(&shared.sync.dirty).files.push(last);
    Ok(())
}

/// Syncs what is dirty now, shows what waited for it and removes what may go.
///
/// # Errors
/// What the disk said. What was dirty still is then; what waited to be shown is dropped and its writers are told.
pub fn pass(shared: &Shared) -> io::Result<()> {
    let mut pass = lock(&shared.sync.pass);
    let (end, garbage, unsynced) = {
        let mut state = shared.lock();
        (state.queue.end, std::mem::take(&mut state.garbage), std::mem::take(&mut state.unsynced))
    };
    let mut dirty = {
        let mut dirty = lock(&shared.sync.dirty);
        let stop = dirty.stop;
        std::mem::replace(&mut *dirty, Dirty { stop, ..Dirty::default() })
    };
    let reveals = std::mem::take(&mut dirty.reveals);
    let changed = !dirty.files.is_empty() || !dirty.segments.is_empty() || !reveals.is_empty() || end > pass.end;
    let result = if changed { sync(shared, &dirty, end) } else { Ok(()) };
    if let Err(error) = result {
        let mut now = lock(&shared.sync.dirty);
        now.files.append(&mut dirty.files);
        now.segments.append(&mut dirty.segments);
        now.directories.append(&mut dirty.directories);
        drop(now);
        let mut state = shared.lock();
        state.garbage.extend(garbage);
        state.suspects.extend(unsynced);
        drop(state);
        health::note_journal_error(shared, &error);
        fail(shared, reveals, &error);
        shared.sync.passed.notify_all();
        return Err(error);
    }
    if changed {
        pass.end = leave_mark(shared, end);
    }
    show(shared, reveals);
    shared.sync.passed.notify_all();
    remove(shared, garbage);
    Ok(())
}

fn sync(shared: &Shared, dirty: &Dirty, end: u64) -> io::Result<()> {
    shared.flush(end)?;
    if shared.sync.policy == SyncPolicy::Never {
        return Ok(());
    }
    for file in &dirty.files {
        shared.disk.sync(file)?;
    }
    for segment in &dirty.segments {
        // Cleared first: a write that comes now may make it into this sync, and is in the next one.
        segment.dirty.store(false, Ordering::Release);
        shared.disk.sync(&segment.file)?;
    }
    for first in &dirty.directories {
        shared.disk.sync_dir(&shared.paths.blobs_of(*first))?;
    }
    shared.journal.sync(&shared.disk)
}

fn leave_mark(shared: &Shared, synced: u64) -> u64 {
    let mut state = shared.lock();
    let after = state.queue.end;
    let is_durable = shared.sync.policy != SyncPolicy::Never && state.suspects.is_empty();
    if is_durable && synced >= state.queue.start {
        let offset_bytes = HEADER_BYTES as u64 + (synced - state.queue.start);
        state.queue.push(&Record::Synced { offset_bytes });
    }
    // If more has queued meanwhile, the next pass has work; if only the mark has, it has not.
    let end = if after == synced { state.queue.end } else { synced };
    let upto = state.queue.end;
    drop(state);
    // The mark may be lost: then more is verified after a loss of power.
    let _ = shared.flush(upto);
    end
}

fn show(shared: &Shared, reveals: Vec<Reveal>) {
    for batch in reveals.chunks(WALK_BATCH) {
        let mut state = shared.lock();
        batch.iter().filter_map(|reveal| reveal.slot).for_each(|slot| state.reveal(slot));
    }
    shared.space.notify_waiters();
    for reveal in reveals {
        let _ = reveal.answer.send(Ok(()));
    }
}

fn fail(shared: &Shared, reveals: Vec<Reveal>, error: &io::Error) {
    for reveal in reveals {
        reveal.slot.and_then(|slot| shared.lock().forget(slot));
        let _ = reveal.answer.send(Err(io::Error::new(error.kind(), error.to_string())));
    }
}

fn remove(shared: &Shared, garbage: Vec<Garbage>) {
    let mut kept = Vec::new();
    for garbage in garbage {
        let path = match garbage.file {
            GarbageFile::Blob(key, serial) => shared.paths.blob(&key, serial),
            GarbageFile::Segment(number) => shared.paths.segment(number),
            GarbageFile::Upload(number) => shared.paths.upload(shared.run, number),
        };
        if let Err(error) = shared.disk.remove(&path) {
            tracing::warn!(path = %path.display(), %error, "a file that is no longer needed could not be removed");
            kept.push(Garbage { bytes: 0, ..garbage });
        } else if let GarbageFile::Blob(key, serial) = garbage.file {
            shared.lock().changing.remove(&(key, serial));
        }
        if garbage.bytes > 0 {
            shared.lock().garbage_bytes -= garbage.bytes;
            shared.space.notify_waiters();
        }
    }
    shared.lock().garbage.extend(kept);
}
