//! What happens at leisure, on a thread of its own: snapshots, compaction, scrubbing, and the sweep of files that nothing names.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use super::key::Place;
use super::limits::{MAINTENANCE_INTERVAL, SNAPSHOT_JOURNAL_BYTES};
use super::paths::{parse_blob_name, parse_generation};
use super::record::ENTRY_BYTES;
use super::scrub::Scrub;
use super::segments::SegmentFile;
use super::shared::{Shared, lock};
use super::state::GarbageFile;
use super::{compact, segment, snapshot, sync};
use super::{health, journal};

/// How the thread is told to stop.
#[derive(Debug, Default)]
pub struct Maintenance {
    stop: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
    /// Held while a snapshot is made.
    snapshot: Mutex<()>,
    /// Held while a segment is made.
    spare: Mutex<()>,
    /// Held while segments are compacted.
    pub compaction: Mutex<()>,
}

// === impl Maintenance ===

impl Maintenance {
    /// Ends [`run`] and whatever it is at.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let _held = lock(&self.lock);
        self.wake.notify_all();
    }

    /// Whether to stop.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn wait(&self) -> bool {
        let held = lock(&self.lock);
        if !self.is_stopped() {
            drop(self.wake.wait_timeout(held, MAINTENANCE_INTERVAL).unwrap_or_else(PoisonError::into_inner));
        }
        !self.is_stopped()
    }
}

/// The maintenance thread.
pub fn run(shared: &Shared) {
    if let Err(error) = sweep(shared) {
        tracing::warn!(%error, "looking for files that nothing names failed");
    }
    let mut scrub = Scrub::default();
    loop {
        health::watch(shared);
        if let Err(error) = compact::run(shared) {
            tracing::warn!(%error, "compacting a segment failed");
        }
        if shared.lock().segments.wants_spare()
            && let Err(error) = make_spare(shared)
        {
            tracing::warn!(%error, "making a segment failed");
        }
        if is_snapshot_due(shared)
            && let Err(error) = take_snapshot(shared)
        {
            tracing::error!(%error, "writing a snapshot of the index failed");
        }
        scrub.step(shared);
        if !shared.maintenance.wait() {
            break;
        }
    }
}

fn is_snapshot_due(shared: &Shared) -> bool {
    let state = shared.lock();
    let journal = state.queue.end - state.queue.start + state.replayed_bytes;
    journal > SNAPSHOT_JOURNAL_BYTES.max(state.index.blobs() * ENTRY_BYTES as u64 / 2)
}

/// Makes a segment for later, if there is none.
pub fn make_spare(shared: &Shared) -> io::Result<()> {
    let _held = lock(&shared.maintenance.spare);
    let (number, size_bytes) = {
        let mut state = shared.lock();
        if state.segments.has_spare() {
            return Ok(());
        }
        if state.segments.is_full() {
            // Evicting helps, as it does on a full disk.
            return Err(io::ErrorKind::StorageFull.into());
        }
        (state.segments.take_number(), state.segments.segment_bytes())
    };
    let path = shared.paths.segment(number);
    let file = shared.disk.create(&path)?;
    let made = shared.disk.allocate(&file, size_bytes);
    let made = made.and_then(|()| shared.disk.write_all_at(&file, &segment::header(number), 0));
    if let Err(error) = made.and_then(|()| shared.disk.sync_dir(&shared.paths.segments())) {
        shared.discard(GarbageFile::Segment(number));
        return Err(error);
    }
    shared.lock().segments.add_spare(SegmentFile::new(number, file));
    Ok(())
}

/// Begins a new journal and writes a snapshot to go with it; what came before is removed.
pub fn take_snapshot(shared: &Shared) -> io::Result<()> {
    let _held = lock(&shared.maintenance.snapshot);
    let (disk, paths) = (&shared.disk, &shared.paths);
    let generation = shared.lock().queue.generation + 1;
    let file = disk.create_over(&paths.journal(generation))?;
    disk.write_all_at(&file, &journal::header(generation, &journal::boot_id()), 0)?;
    disk.sync(&file)?;
    disk.sync_dir(&paths.index())?;
    sync::rotate_journal(shared, file, generation)?;
    let unfinished = paths.snapshot_unfinished();
    snapshot::write(shared, &disk.create_over(&unfinished)?, generation)?;
    // What the snapshot names must be on disk before it counts.
    sync::pass(shared)?;
    if !shared.lock().suspects.is_empty() {
        return Err(io::Error::other("blobs whose sync has failed are still to be checked"));
    }
    disk.rename(&unfinished, &paths.snapshot(generation))?;
    disk.sync_dir(&paths.index())?;
    shared.lock().replayed_bytes = 0;
    remove_before(shared, generation)
}

fn remove_before(shared: &Shared, generation: u64) -> io::Result<()> {
    for entry in fs::read_dir(shared.paths.index())? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let found = parse_generation(name, "journal").or_else(|| parse_generation(name, "snapshot"));
        if found.is_some_and(|found| found < generation) {
            shared.disk.remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes the files of uploads of earlier runs, and those of blobs that the index does not have.
pub fn sweep(shared: &Shared) -> io::Result<()> {
    let this_run = format!("{}-", shared.run);
    for_each_file(shared, &shared.paths.incoming(), |name| !name.starts_with(&this_run))?;
    for_each_file(shared, &shared.paths.segments(), |name| {
        let state = shared.lock();
        name.parse().is_ok_and(|number| state.segments.is_orphan(number))
    })?;
    for directory in fs::read_dir(shared.paths.blobs())? {
        for_each_file(shared, &directory?.path(), |name| {
            let Some((key, serial)) = parse_blob_name(name) else { return false };
            let mut state = shared.lock();
            let found = state.index.find(&key).and_then(|slot| state.index.get(slot));
            if found.is_none_or(|found| found.stored.place != Place::File { serial })
                && !state.changing.contains(&(key, serial))
            {
                // The sync thread removes it, as it does what was evicted.
                state.discard_orphan(&key, serial);
            }
            false
        })?;
    }
    shared.sync.wake();
    Ok(())
}

fn for_each_file(shared: &Shared, directory: &Path, is_orphan: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if shared.maintenance.is_stopped() {
            return Ok(());
        }
        if entry.file_name().to_str().is_some_and(&is_orphan) {
            tracing::debug!(path = %entry.path().display(), "removing a file that nothing names");
            shared.disk.remove(&entry.path())?;
        }
    }
    Ok(())
}
