//! What the store does when its disk is full or fails.
//!
//! The capacity that is used follows the space there is: when the file system has less left than the store was promised,
//! blobs are evicted as if the capacity were smaller, and it grows back when there is room. A disk that fails a write or a
//! sync makes the store read-only; it is tried every second, and the store takes writes again when it works.

use std::io;

use super::error::ReadOnlyReason;
use super::key::Place;
use super::limits::{PROBE_BYTES, RECOVERY_STEPS};
use super::shared::Shared;
use super::state::{NoRoom, State};
use super::{sync, verify};

/// Whether the error says that there is no room.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Takes note of a failed write or sync. What is the disk's fault makes the store read-only.
pub fn note_error(shared: &Shared, error: &io::Error) {
    let ours = [
        io::ErrorKind::NotFound,
        io::ErrorKind::AlreadyExists,
        io::ErrorKind::Interrupted,
        io::ErrorKind::OutOfMemory,
        io::ErrorKind::InvalidInput,
        io::ErrorKind::Unsupported,
    ];
    // Too many open files (EMFILE, ENFILE) is the process's or the system's fault.
    let files = error.raw_os_error().is_some_and(|errno| [23, 24].contains(&errno));
    if is_full(error) || files || ours.contains(&error.kind()) {
        return;
    }
    set_read_only(shared, ReadOnlyReason::DiskFailed(error.kind()), error);
}

/// The journal could not be written: nothing can be stored or evicted.
pub fn note_journal_error(shared: &Shared, error: &io::Error) {
    if is_full(error) {
        set_read_only(shared, ReadOnlyReason::DiskFull, error);
    } else {
        note_error(shared, error);
    }
}

fn set_read_only(shared: &Shared, reason: ReadOnlyReason, error: &io::Error) {
    let before = shared.lock().read_only.replace(reason);
    if before.is_none() {
        tracing::error!(%reason, %error, "the store is read-only");
    }
}

/// Evicts to make room for this many bytes on a disk that is full.
///
/// # Errors
/// `StorageFull` when nothing may be evicted, or what the disk says.
pub fn make_room(shared: &Shared, bytes: u64) -> io::Result<()> {
    let now = shared.now();
    let before = shared.lock().index.charged_bytes();
    evict_down_to(shared, before.saturating_sub(bytes), now);
    {
        let mut state = shared.lock();
        let after = state.index.charged_bytes();
        if after >= before {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.usable_bytes = state.usable_bytes.min(after + state.reserved_bytes + bytes);
    }
    sync::pass(shared)
}

/// Evicts until blobs take no more than this, or the rest may not go.
fn evict_down_to(shared: &Shared, bytes: u64, now: u32) {
    loop {
        let evicted = shared.lock().evict_down_to(bytes, now);
        if evicted != Err(NoRoom::NotYet) {
            break;
        }
        flush_evictions(shared);
    }
}

/// Writes out the records of many evictions, so that they do not pile up in memory.
pub fn flush_evictions(shared: &Shared) {
    let end = shared.lock().queue.end;
    if let Err(error) = shared.flush(end) {
        note_journal_error(shared, &error);
    }
}

/// Called every second: adapts to the space there is, and tries a disk that has failed.
pub fn watch(shared: &Shared) {
    match shared.disk.free_bytes(shared.paths.root()) {
        Ok(free_bytes) => {
            let mut state = shared.lock();
            adapt(&mut state, shared.options.capacity_bytes, free_bytes);
            let bytes = state.usable_bytes.saturating_sub(state.reserved_bytes);
            drop(state);
            evict_down_to(shared, bytes, shared.now());
        }
        Err(error) => note_error(shared, &error),
    }
    let read_only = shared.lock().read_only;
    if read_only.is_some() && probe(shared).is_ok() {
        check_suspects(shared);
        shared.lock().read_only = None;
        tracing::info!("the disk works again, and the store takes writes");
    }
}

/// Sets the bytes that blobs may take to what is configured or what there is room for, whichever is less. Growing is
/// gradual, since a limit that the file system does not tell (a quota) is only found by running into it.
fn adapt(state: &mut State, capacity_bytes: u64, free_bytes: u64) {
    // Two segments are kept free for compaction and the index. What is about to be freed is counted as free, or more
    // would be evicted for the same want.
    let kept = 2 * state.segments.segment_bytes();
    let freed = state.garbage_bytes + state.segments.dead_bytes();
    let room = (state.index.charged_bytes() + free_bytes + freed).saturating_sub(kept);
    let grown = state.usable_bytes.saturating_add(capacity_bytes / RECOVERY_STEPS);
    let usable_bytes = capacity_bytes.min(room).min(grown);
    if usable_bytes < capacity_bytes && state.usable_bytes == capacity_bytes {
        tracing::warn!(capacity_bytes, usable_bytes, free_bytes, "the disk has less room than the store may take");
    }
    state.usable_bytes = usable_bytes;
}

/// Reads again, from the disk, what was being forced to it when it failed. What the disk does not have is dropped.
fn check_suspects(shared: &Shared) {
    let suspects = std::mem::take(&mut shared.lock().suspects);
    for key in suspects {
        let (stored, segment) = {
            let state = shared.lock();
            let Some(found) = state.index.find(&key).and_then(|slot| state.index.get(slot)) else { continue };
            (found.stored, state.segment_of(&found.stored))
        };
        let forgotten = match (&segment, stored.place) {
            (Some(segment), _) => shared.disk.forget_cached(&segment.file),
            (None, Place::File { serial }) => {
                let file = shared.disk.open(&shared.paths.blob(&key, serial));
                file.and_then(|file| shared.disk.forget_cached(&file))
            }
            (None, Place::Segment { .. }) => Ok(()),
        };
        let checked = verify::check(&shared.disk, &shared.paths, segment.as_deref(), &stored);
        if (forgotten.is_err() || checked.is_err()) && shared.drop_damaged(&key, stored.place, segment.as_deref()) {
            tracing::error!(hash = key.hash_hex(), "a blob did not make it to the disk and was dropped");
        }
    }
}

/// Whether the disk takes what is waiting for it, and something new.
fn probe(shared: &Shared) -> io::Result<()> {
    let path = shared.paths.probe();
    let probe = || {
        let file = shared.disk.create_over(&path)?;
        shared.disk.write_all_at(&file, &[0; PROBE_BYTES], 0)?;
        shared.disk.sync(&file)
    };
    let worked = probe();
    shared.disk.remove(&path).and(worked)?;
    sync::pass(shared)
}
