//! Compaction: the live records of a segment that is mostly dead go to the active one, and the segment goes.
//!
//! The segment is read from one end to the other; what the index says to be there is live. A record that is damaged costs
//! its blob and no other. Where the disk fails, what cannot be read stays, and the segment is left alone from then on, so
//! that it does not keep others from being compacted. The old segment is removed after the sync that puts the copies, and the journal that names them,
//! on disk; readers of the old one go on, since they hold its file.
//!
//! The old segment's slot may be another segment's before its end: whatever is decided under a new hold of the lock is
//! decided for the segment of this number, not for whatever is in the slot.

use std::io;
use std::sync::Arc;

use super::error::Damage;
use super::index::Found;
use super::key::{Place, Stored};
use super::maintenance::make_spare;
use super::segment::{HEADER_BYTES, RecordHeader};
use super::segment_walk::SegmentWalk;
use super::segments::{Room, SegmentFile};
use super::shared::{Shared, lock};

/// Makes a segment for blobs to be stored. If compaction has fallen behind, it comes first: so dead bytes are bounded.
pub fn make_segment(shared: &Shared) -> io::Result<()> {
    let is_behind = {
        let state = shared.lock();
        state.segments.dead_bytes() > 2 * state.segments.dead_limit_bytes()
    };
    if is_behind && let Err(error) = run(shared) {
        tracing::warn!(%error, "compacting a segment failed");
    }
    make_spare(shared)
}

/// Compacts segments while too much is dead in them.
pub fn run(shared: &Shared) -> io::Result<()> {
    let _held = lock(&shared.maintenance.compaction);
    while !shared.maintenance.is_stopped() {
        let victim = {
            let state = shared.lock();
            let due = state.segments.dead_bytes() > state.segments.dead_limit_bytes();
            if due { state.segments.sparsest() } else { None }
        };
        let Some((slot, file, end)) = victim else { break };
        compact(shared, slot, &file, end)?;
        if has_live(shared, slot, &file) && !shared.lock().segments.is_set_aside(slot) {
            // Some blobs in it are not visible yet: it is compacted next time.
            break;
        }
    }
    Ok(())
}

/// Moves what is live out of a sealed segment.
pub fn compact(shared: &Shared, slot: u32, file: &Arc<SegmentFile>, end: u64) -> io::Result<()> {
    let mut walk = SegmentWalk::new(&shared.disk, file, end);
    loop {
        let header = match walk.next() {
            Ok(Some(header)) => header,
            Ok(None) => break,
            Err(error) => {
                // What it leads to is looked for below.
                tracing::warn!(segment = file.number, %error, "a segment cannot be read from end to end");
                break;
            }
        };
        if shared.maintenance.is_stopped() {
            return Ok(());
        }
        let Some(stored) = header.stored(slot) else { continue };
        if is_live(shared, &stored, file) {
            match walk.blob(&header) {
                Ok(Some(blob)) => move_record(shared, &stored, file, &header, blob)?,
                Ok(None) => drop_damaged(shared, &stored, file, Damage::Checksum),
                // It is tried once more below.
                Err(_) => {}
            }
        }
    }
    if has_live(shared, slot, file) {
        move_missed(shared, slot, file)?;
    }
    shared.sync.wake();
    Ok(())
}

/// Whether anything in the segment is live, hidden blobs included.
fn has_live(shared: &Shared, slot: u32, file: &SegmentFile) -> bool {
    let state = shared.lock();
    state.segments.number(slot) == file.number && state.segments.live_bytes_in(slot) > 0
}

fn is_live(shared: &Shared, stored: &Stored, file: &SegmentFile) -> bool {
    let state = shared.lock();
    if !state.segments.is_in(stored.place, file) {
        return false;
    }
    let found = state.index.find(&stored.key).and_then(|slot| state.index.get(slot));
    found.is_some_and(|found| found.stored == *stored)
}

fn move_record(
    shared: &Shared,
    from: &Stored,
    old: &SegmentFile,
    header: &RecordHeader,
    blob: &[u8],
) -> io::Result<()> {
    let room = loop {
        let room = shared.lock().allocate(from.charge_bytes());
        match room {
            Some(room) => break room,
            None => make_spare(shared)?,
        }
    };
    let Room { slot, offset_bytes, file } = room;
    let place = Place::Segment { slot, offset_bytes };
    let header = RecordHeader { segment: file.number, offset_bytes: offset_bytes as u32, ..*header };
    let mut record = Vec::with_capacity(HEADER_BYTES + blob.len());
    record.extend(header.encode());
    record.extend(blob);
    if let Err(error) = shared.disk.write_all_at(&file.file, &record, offset_bytes) {
        shared.lock().abandon(&from.key, place);
        return Err(error);
    }
    shared.sync.add_segment(&file);
    let mut state = shared.lock();
    if state.segments.is_in(from.place, old) {
        state.relocate(from, place);
    } else {
        state.abandon(&from.key, place);
    }
    Ok(())
}

/// What is live by the index and was not come by: headers that cannot be read, or that something stale led past.
fn move_missed(shared: &Shared, slot: u32, file: &SegmentFile) -> io::Result<()> {
    let slots = shared.lock().index.slots();
    for entry in 0..slots {
        let found = {
            let state = shared.lock();
            if state.segments.number(slot) != file.number {
                return Ok(());
            }
            state.index.get(entry)
        };
        let Some(Found { stored, hidden: false, .. }) = found else { continue };
        let Place::Segment { slot: here, offset_bytes } = stored.place else { continue };
        if here != slot {
            continue;
        }
        let (mut header, mut blob) = ([0; HEADER_BYTES], vec![0; stored.record_payload_bytes() as usize]);
        let read = shared.disk.read_exact_at(&file.file, &mut header, offset_bytes);
        let read =
            read.and_then(|()| shared.disk.read_exact_at(&file.file, &mut blob, offset_bytes + HEADER_BYTES as u64));
        match read {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                drop_damaged(shared, &stored, file, Damage::Short);
                continue;
            }
            Err(error) => {
                tracing::warn!(hash = stored.key.hash_hex(), %error, "a blob cannot be read and stays where it is");
                shared.lock().segments.set_aside(slot, file);
                continue;
            }
        }
        let checked = RecordHeader::check(&header, &blob, &stored, file.number);
        match (checked, RecordHeader::decode(&header)) {
            (Ok(length), Some(header)) => {
                move_record(shared, &stored, file, &header, blob.get(..length).unwrap_or_default())?;
            }
            (checked, _) => drop_damaged(shared, &stored, file, checked.err().unwrap_or(Damage::Label)),
        }
    }
    Ok(())
}

fn drop_damaged(shared: &Shared, stored: &Stored, file: &SegmentFile, reason: Damage) {
    if shared.drop_damaged(&stored.key, stored.place, Some(file)) {
        tracing::error!(hash = stored.key.hash_hex(), %reason, "a stored blob is damaged and was dropped");
    }
}
