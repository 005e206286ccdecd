//! Which segments there are, and how much of each is live. Decisions only; files are made and removed elsewhere.
//!
//! One segment is active: records are appended to it, at offsets that are handed out here, so that writers need not wait
//! for each other. A full one is sealed. A sealed segment without live records goes; one with few is compacted.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::key::{MAX_SEGMENTS, Place};
use super::limits::{DEAD_SEGMENTS, DEAD_SHARE, MAX_SEGMENT_FILE_BYTES, MIN_SEGMENT_FILE_BYTES, SEGMENTS_PER_STORE};
use super::segment::HEADER_BYTES;

/// All segments of a store.
#[derive(Debug)]
pub struct Segments {
    table: Vec<Option<Segment>>,
    active: Option<u32>,
    /// Ready to become active.
    spare: Option<Arc<SegmentFile>>,
    next_number: u32,
    /// The first number of this run.
    first_number: u32,
    segment_bytes: u64,
    /// Of all segments: bytes of records, live or dead.
    used_bytes: u64,
    live_bytes: u64,
}

/// A segment's file.
#[derive(Debug)]
pub struct SegmentFile {
    /// Its number, never used again.
    pub number: u32,
    /// Open to read and write.
    pub file: File,
    /// Whether it waits to be synced.
    pub dirty: AtomicBool,
}

#[derive(Debug)]
struct Segment {
    file: Arc<SegmentFile>,
    /// Where the next record would go.
    end: u64,
    live_bytes: u64,
    /// Records being written, which neither are live yet nor will be dead.
    pending: u32,
    /// Some of it cannot be read: it is not compacted.
    aside: bool,
}

/// Room for a record.
#[derive(Debug, Clone)]
pub struct Room {
    /// The segment's position in the table.
    pub slot: u32,
    /// Where the record begins.
    pub offset_bytes: u64,
    /// The segment's file.
    pub file: Arc<SegmentFile>,
}

/// The size of segments in a store of this capacity: small enough that dead space in a few of them is a small part of
/// the store, large enough that there are not too many of them.
pub fn segment_bytes(capacity_bytes: u64) -> u64 {
    let share = capacity_bytes / SEGMENTS_PER_STORE;
    share.clamp(MIN_SEGMENT_FILE_BYTES, MAX_SEGMENT_FILE_BYTES).next_multiple_of(4096)
}

// === impl SegmentFile ===

impl SegmentFile {
    /// A file that is not dirty.
    pub fn new(number: u32, file: File) -> Arc<SegmentFile> {
        Arc::new(SegmentFile { number, file, dirty: AtomicBool::new(false) })
    }
}

// === impl Segments ===

impl Segments {
    /// No segments.
    pub fn new(capacity_bytes: u64) -> Segments {
        Segments {
            table: Vec::new(),
            active: None,
            spare: None,
            next_number: 1,
            first_number: 1,
            segment_bytes: segment_bytes(capacity_bytes),
            used_bytes: 0,
            live_bytes: 0,
        }
    }

    /// The size of a new segment's file.
    pub fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// Bytes of records that are no longer live.
    pub fn dead_bytes(&self) -> u64 {
        // Records that salvage found in one another count twice.
        self.used_bytes.saturating_sub(self.live_bytes)
    }

    /// Bytes of files: what is used, and the unused rest of the active one and the spare.
    pub fn file_bytes(&self) -> u64 {
        let spare = if self.spare.is_some() { self.segment_bytes } else { 0 };
        let active = self.active.and_then(|slot| self.get(slot));
        self.used_bytes + spare + active.map_or(0, |active| self.segment_bytes.saturating_sub(active.end))
    }

    /// How much may be dead before segments are compacted.
    pub fn dead_limit_bytes(&self) -> u64 {
        (DEAD_SEGMENTS * self.segment_bytes).max(self.live_bytes / DEAD_SHARE)
    }

    /// A number for a new segment.
    pub fn take_number(&mut self) -> u32 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    /// Numbers up to this one have been used.
    pub fn skip_number(&mut self, used: u32) {
        self.next_number = self.next_number.max(used.saturating_add(1));
    }

    /// Whether a new segment will be needed soon and there is none.
    pub fn wants_spare(&self) -> bool {
        let active = self.active.and_then(|slot| self.get(slot));
        self.spare.is_none() && active.is_some_and(|active| active.end > self.segment_bytes / 2)
    }

    /// Whether there is a segment for later.
    pub fn has_spare(&self) -> bool {
        self.spare.is_some()
    }

    /// Whether a file of this number was there at the start and is not in use.
    pub fn is_orphan(&self, number: u32) -> bool {
        number < self.first_number && !self.table.iter().flatten().any(|segment| segment.file.number == number)
    }

    /// Whether the table has no place for one more segment: terabytes of small blobs are there then.
    pub fn is_full(&self) -> bool {
        self.table.len() >= MAX_SEGMENTS as usize && self.table.iter().all(Option::is_some)
    }

    /// A segment for later.
    pub fn add_spare(&mut self, file: Arc<SegmentFile>) {
        self.spare = Some(file);
    }

    /// Takes the segments found at the start, each in its slot, with nothing live in them yet.
    pub fn restore(&mut self, found: Vec<Option<Arc<SegmentFile>>>) {
        for file in found {
            let end = HEADER_BYTES as u64;
            let segment = file.map(|file| Segment { file, end, live_bytes: 0, pending: 0, aside: false });
            if let Some(segment) = &segment {
                self.used_bytes += segment.end;
                self.live_bytes += segment.end;
                self.skip_number(segment.file.number);
            }
            self.table.push(segment);
        }
    }

    /// Counts a live record of a segment found at the start.
    pub fn count_found(&mut self, slot: u32, offset_bytes: u64, bytes: u64) {
        let Some(segment) = self.table.get_mut(slot as usize).and_then(Option::as_mut) else { return };
        segment.live_bytes += bytes;
        self.live_bytes += bytes;
        self.used_bytes -= segment.end;
        segment.end = segment.end.max(offset_bytes + bytes);
        self.used_bytes += segment.end;
    }

    /// Ends the start: forgets segments in which nothing is live, and goes on with the newest one, of which what
    /// follows its last live record is free.
    pub fn resume(&mut self) {
        self.first_number = self.next_number;
        for slot in 0..self.table.len() as u32 {
            // The sweep removes the file.
            let _ = self.drop_if_empty(slot);
        }
        let slots = self.table.iter().enumerate();
        let newest = slots.filter_map(|(slot, segment)| Some((slot, segment.as_ref()?.file.number)));
        self.active = newest.max_by_key(|(_, number)| *number).and_then(|(slot, _)| u32::try_from(slot).ok());
    }

    /// The file of a segment.
    pub fn file(&self, slot: u32) -> Option<&Arc<SegmentFile>> {
        self.get(slot).map(|segment| &segment.file)
    }

    /// The number of a segment; 0, which is no segment's, for a slot that has none.
    pub fn number(&self, slot: u32) -> u32 {
        self.get(slot).map_or(0, |segment| segment.file.number)
    }

    /// Whether a place, which was looked up before, is still in this segment: its slot may be another segment's by now.
    pub fn is_in(&self, place: Place, file: &SegmentFile) -> bool {
        matches!(place, Place::Segment { slot, .. } if self.number(slot) == file.number)
    }

    /// Room for a record, which counts as pending until [`Segments::settle`]. `None` when a new segment is needed first.
    /// Numbers of segments that are of no more use are added to `gone`.
    pub fn allocate(&mut self, bytes: u64, gone: &mut Vec<u32>) -> Option<Room> {
        if let Some(room) = self.allocate_active(bytes) {
            return Some(room);
        }
        if let Some(full) = self.active.take() {
            gone.extend(self.drop_if_empty(full));
        }
        let spare = self.spare.take()?;
        self.active = Some(self.add(spare)?);
        self.allocate_active(bytes)
    }

    /// A record has been written, and is live or dead. Returns the segment's number if it is of no more use.
    pub fn settle(&mut self, slot: u32, live_bytes: u64) -> Option<u32> {
        if let Some(segment) = self.table.get_mut(slot as usize).and_then(Option::as_mut) {
            segment.pending -= 1;
            segment.live_bytes += live_bytes;
            self.live_bytes += live_bytes;
        }
        self.drop_if_empty(slot)
    }

    /// A live record has died. Returns the segment's number if it is of no more use.
    pub fn release(&mut self, slot: u32, bytes: u64) -> Option<u32> {
        if let Some(segment) = self.table.get_mut(slot as usize).and_then(Option::as_mut) {
            segment.live_bytes -= bytes;
            self.live_bytes -= bytes;
        }
        self.drop_if_empty(slot)
    }

    /// Has a segment not compacted again in this run, since some of it cannot be read.
    pub fn set_aside(&mut self, slot: u32, file: &SegmentFile) {
        let place = self.table.get_mut(slot as usize).and_then(Option::as_mut);
        if let Some(segment) = place.filter(|segment| segment.file.number == file.number) {
            segment.aside = true;
        }
    }

    /// Whether the segment in this slot is not to be compacted.
    pub fn is_set_aside(&self, slot: u32) -> bool {
        self.get(slot).is_some_and(|segment| segment.aside)
    }

    /// The sealed segment with the largest dead share that is not set aside: its slot, file, and end.
    pub fn sparsest(&self) -> Option<(u32, Arc<SegmentFile>, u64)> {
        let sealed = self.table.iter().zip(0_u32..).filter(|(_, slot)| Some(*slot) != self.active);
        let idle =
            sealed.filter_map(|(segment, slot)| Some((slot, segment.as_ref().filter(|s| s.pending == 0 && !s.aside)?)));
        let dead = idle.filter(|(_, segment)| segment.live_bytes + (HEADER_BYTES as u64) < segment.end);
        let sparsest = dead.min_by_key(|(_, segment)| segment.live_bytes.saturating_mul(1000) / segment.end.max(1));
        sparsest.map(|(slot, segment)| (slot, Arc::clone(&segment.file), segment.end))
    }

    /// Bytes of live records in a segment.
    pub fn live_bytes_in(&self, slot: u32) -> u64 {
        self.get(slot).map_or(0, |segment| segment.live_bytes)
    }

    /// Seals the active segment, as if it were full. For the tests of compaction.
    #[cfg(test)]
    pub fn seal(&mut self) {
        self.active = None;
    }

    fn get(&self, slot: u32) -> Option<&Segment> {
        self.table.get(slot as usize)?.as_ref()
    }

    fn add(&mut self, file: Arc<SegmentFile>) -> Option<u32> {
        let free = self.table.iter().position(Option::is_none).unwrap_or(self.table.len());
        let slot = u32::try_from(free).ok().filter(|slot| *slot < MAX_SEGMENTS)?;
        let segment = Segment { file, end: HEADER_BYTES as u64, live_bytes: 0, pending: 0, aside: false };
        self.used_bytes += segment.end;
        // The header is neither live nor dead; it counts as live so that dead bytes are what compaction can win.
        self.live_bytes += segment.end;
        match self.table.get_mut(free) {
            Some(place) => *place = Some(segment),
            None => self.table.push(Some(segment)),
        }
        Some(slot)
    }

    fn allocate_active(&mut self, bytes: u64) -> Option<Room> {
        let slot = self.active?;
        let segment = self.table.get_mut(slot as usize)?.as_mut()?;
        if segment.end + bytes > self.segment_bytes {
            return None;
        }
        let room = Room { slot, offset_bytes: segment.end, file: Arc::clone(&segment.file) };
        segment.end += bytes;
        segment.pending += 1;
        self.used_bytes += bytes;
        Some(room)
    }

    fn drop_if_empty(&mut self, slot: u32) -> Option<u32> {
        if self.active == Some(slot) {
            return None;
        }
        let place = self.table.get_mut(slot as usize)?;
        let segment = place.as_ref().filter(|segment| segment.live_bytes == 0 && segment.pending == 0)?;
        let number = segment.file.number;
        self.used_bytes -= segment.end;
        self.live_bytes -= HEADER_BYTES as u64;
        *place = None;
        Some(number)
    }
}
