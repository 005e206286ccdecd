//! What a store knows, and its decisions: what is here, what has room, what is evicted. No IO.
//!
//! Every change of the index is written into the journal's queue in the same breath, so that the order of records is
//! the order of changes. Whoever makes a change writes the queue out afterwards (see [`super::journal`]) and only then
//! tells anyone of it; a blob being stored stays hidden until then.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use casbah_cluster::digest::Digest;

use super::error::ReadOnlyReason;
use super::index::{Found, Index, Mark, Slot};
use super::journal::HEADER_BYTES;
use super::key::{Key, Place, Stored};
use super::limits::{CLOCK_SLACK_SECONDS, EVICT_BATCH, GARBAGE_SHARE, MAX_GARBAGE_BYTES};
use super::lost::Lost;
use super::order::Search;
use super::record::{DiskEntry, DiskPlace, Position, Record};
use super::segments::{Room, SegmentFile, Segments};

/// The state of a store, behind one lock that is never held across IO.
pub struct State {
    /// All blobs.
    pub index: Index,
    /// The files of small blobs.
    pub segments: Segments,
    /// Bytes promised to uploads under way.
    pub reserved_bytes: u64,
    /// Bytes that blobs may take.
    pub capacity_bytes: u64,
    /// The same, or less when the disk has not as much.
    pub usable_bytes: u64,
    /// Seconds for which a used blob is kept; 0: none.
    pub retention_seconds: u32,
    /// Records that are not yet in the journal's file.
    pub queue: Queue,
    /// Bytes of journals that were replayed at the start, and not yet replaced by a snapshot.
    pub replayed_bytes: u64,
    /// Blobs whose copies were damaged.
    pub lost: Lost,
    /// Blobs that are here and are being stored again, and by how many uploads.
    pub again: HashMap<Key, u32>,
    /// Files to be removed.
    pub garbage: Vec<Garbage>,
    /// Bytes of files of evicted blobs, and of segments that are of no more use, that are not removed yet.
    pub garbage_bytes: u64,
    /// Names of blobs' files that are being given or taken away, by whoever put them here. Nobody else gives such a name
    /// to a file or removes the file that has it.
    pub changing: HashSet<(Key, u8)>,
    /// Blobs stored or moved since the last sync began.
    pub unsynced: Vec<Key>,
    /// Blobs whose sync has failed. What the page cache has of them may not be what the disk has, and another sync would
    /// not say so.
    pub suspects: Vec<Key>,
    /// Blobs used since their uses were last journaled come after this.
    pub touched: Mark,
    /// Why no writes are taken.
    pub read_only: Option<ReadOnlyReason>,
    /// No writes are taken any more.
    pub closed: bool,
    /// What has happened so far.
    pub counters: Counters,
}

/// Journal records on their way to the file.
#[derive(Debug)]
pub struct Queue {
    /// The journal's generation.
    pub generation: u64,
    /// The sequence at which this generation began.
    pub start: u64,
    /// The sequence of the end of the queue: bytes of records ever queued.
    pub end: u64,
    /// The records.
    pub bytes: Vec<u8>,
}

/// A file to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Garbage {
    /// Which.
    pub file: GarbageFile,
    /// Bytes of disk that it frees; 0 for what is not counted.
    pub bytes: u64,
    /// The sequence that must be on disk before.
    pub after: u64,
}

/// Which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GarbageFile {
    /// A blob's.
    Blob(Key, u8),
    /// A segment.
    Segment(u32),
    /// An upload's.
    Upload(u64),
}

/// What has happened since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Blobs evicted.
    pub evicted_blobs: u64,
    /// Their bytes.
    pub evicted_bytes: u64,
    /// Blobs dropped as damaged.
    pub damaged_blobs: u64,
    /// Those of them that were stored again.
    pub repaired_blobs: u64,
    /// Those of them that turned out to be nowhere.
    pub given_up_blobs: u64,
    /// Bytes the scrubber has checked.
    pub scrubbed_bytes: u64,
}

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// Not even in an empty store.
    LargerThanStore,
    /// Uploads under way have reserved too much, or the files of what was evicted are not removed yet.
    Reserved,
    /// Everything has been used too recently.
    InUse(Duration),
    /// There may be, once more has been evicted: call again.
    NotYet,
    /// What would have to go was used later than what is to come.
    Outlived,
}

// === impl Queue ===

impl Queue {
    /// Adds a record.
    pub fn push(&mut self, record: &Record) {
        let position =
            Position { generation: self.generation, offset_bytes: HEADER_BYTES as u64 + (self.end - self.start) };
        let before = self.bytes.len();
        record.encode(position, &mut self.bytes);
        self.end += (self.bytes.len() - before) as u64;
    }
}

// === impl State ===

impl State {
    /// The visible blob of this digest.
    pub fn find(&self, digest: &Digest) -> Option<(Slot, Found)> {
        let slot = self.index.find(&Key::of(digest))?;
        let found = self.index.get(slot)?;
        (!found.hidden && found.stored.size_bytes == digest.size_bytes()).then_some((slot, found))
    }

    /// The same, used now.
    pub fn find_and_touch(&mut self, digest: &Digest, now: u32) -> Option<Found> {
        let (slot, found) = self.find(digest)?;
        self.index.touch(slot, now);
        Some(found)
    }

    /// Sets bytes aside, and evicts for them.
    ///
    /// # Errors
    /// [`NoRoom`]; nothing was set aside then.
    /// For a copy that was last `used` then, nothing is evicted that was used later.
    pub fn reserve(&mut self, charge_bytes: u64, used: Option<u32>, now: u32) -> Result<(), NoRoom> {
        if charge_bytes > self.capacity_bytes {
            return Err(NoRoom::LargerThanStore);
        }
        let wanted = charge_bytes + self.reserved_bytes;
        let removing = self.garbage_bytes > MAX_GARBAGE_BYTES.max(self.capacity_bytes / GARBAGE_SHARE);
        if wanted > self.usable_bytes || removing {
            return Err(NoRoom::Reserved);
        }
        if used.is_some_and(|used| self.outlives(self.usable_bytes - wanted, used)) {
            return Err(NoRoom::Outlived);
        }
        self.evict_down_to(self.usable_bytes - wanted, now)?;
        self.reserved_bytes += charge_bytes;
        Ok(())
    }

    /// Whether something that was used then would have to go before blobs take no more than this. A batch is looked at: what
    /// is beyond is as old or not, and is found out when it is evicted.
    fn outlives(&mut self, bytes: u64, used: u32) -> bool {
        let mut charged = self.index.charged_bytes();
        if charged <= bytes {
            return false;
        }
        let mark = self.index.mark_oldest();
        let mut has_older = true;
        for _ in 0..EVICT_BATCH {
            if charged <= bytes {
                break;
            }
            let Some(found) = self.index.advance(&mark, None).and_then(|slot| self.index.get(slot)) else { break };
            has_older = found.used < used;
            if !has_older {
                break;
            }
            charged -= found.stored.charge_bytes();
        }
        self.index.remove_mark(mark);
        !has_older
    }

    /// Evicts until blobs take no more than this, or a batch of them has gone.
    ///
    /// # Errors
    /// [`NoRoom`] when what is left may not go, or not in this call.
    pub fn evict_down_to(&mut self, bytes: u64, now: u32) -> Result<(), NoRoom> {
        for evicted in 0.. {
            if self.index.charged_bytes() <= bytes {
                break;
            }
            let slot = self.index.oldest().ok_or(NoRoom::Reserved)?;
            let found = self.index.get(slot).filter(|found| !found.hidden).ok_or(NoRoom::Reserved)?;
            if found.used > now.saturating_add(CLOCK_SLACK_SECONDS) {
                // The clock was ahead. All at once, or each blob would be kept for its own while.
                self.index.clamp_uses(now);
            }
            let idle = now.saturating_sub(found.used);
            // A use long after now is from a time when the clock was wrong.
            let is_kept = idle <= self.retention_seconds && found.used <= now.saturating_add(self.retention_seconds);
            if self.retention_seconds > 0 && is_kept {
                return Err(NoRoom::InUse(Duration::from_secs(u64::from(self.retention_seconds - idle) + 1)));
            }
            if evicted == EVICT_BATCH {
                return Err(NoRoom::NotYet);
            }
            self.counters.evicted_blobs += 1;
            self.counters.evicted_bytes += found.stored.size_bytes;
            self.forget(slot);
        }
        Ok(())
    }

    /// The file of the segment that a blob lies in; `None` for a blob with a file of its own.
    pub fn segment_of(&self, stored: &Stored) -> Option<Arc<SegmentFile>> {
        match stored.place {
            Place::Segment { slot, .. } => self.segments.file(slot).cloned(),
            Place::File { .. } => None,
        }
    }

    /// Adds a blob that is not to be seen yet, and queues its record. `None` when the blob is here, hidden or not; the
    /// new copy is abandoned then.
    pub fn insert_hidden(&mut self, stored: &Stored, now: u32) -> Option<Slot> {
        let slot = self.index.insert(stored, now, true);
        self.note_inserted(stored, slot, |entry| Record::Put(DiskEntry { used: now, ..entry }))
    }

    /// The same for a copy that was last used when the search says.
    pub fn insert_copy_hidden(&mut self, stored: &Stored, search: Search) -> Option<Slot> {
        let used = search.used();
        let slot = self.index.insert_at(stored, search, true);
        self.note_inserted(stored, slot, |entry| Record::Copy(DiskEntry { used, ..entry }))
    }

    fn note_inserted(
        &mut self,
        stored: &Stored,
        slot: Option<Slot>,
        record: impl Fn(DiskEntry) -> Record,
    ) -> Option<Slot> {
        let Some(slot) = slot else {
            self.abandon(&stored.key, stored.place);
            return None;
        };
        if let Place::Segment { slot, .. } = stored.place {
            let gone = self.segments.settle(slot, stored.charge_bytes());
            self.discard_segments(gone);
        }
        let record = record(self.disk_entry(stored, 0));
        self.queue.push(&record);
        self.unsynced.push(stored.key);
        Some(slot)
    }

    /// Takes a blob out, queues its record and what it leaves behind.
    pub fn forget(&mut self, slot: Slot) -> Option<Found> {
        let found = self.index.remove(slot)?;
        let Stored { key, size_bytes, .. } = found.stored;
        // What was in doubt before it was stored, and could not be, still is.
        let is_lost = self.lost.is_lost(&key);
        self.queue.push(&if is_lost { Record::Lost { key, size_bytes } } else { Record::Remove(key) });
        match found.stored.place {
            Place::File { serial } => {
                let bytes = found.stored.charge_bytes();
                self.garbage_bytes += bytes;
                self.discard_blob(&found.stored.key, serial, bytes);
            }
            Place::Segment { slot, .. } => {
                let charge = found.stored.charge_bytes();
                let gone = self.segments.release(slot, charge);
                self.discard_segments(gone);
            }
        }
        Some(found)
    }

    /// Takes a blob out that others have, unless it was used since then or is being stored again. Whether it has gone.
    pub fn remove(&mut self, digest: &Digest, unused_since: u32) -> bool {
        let Some((slot, found)) = self.find(digest) else { return false };
        let is_wanted = found.used >= unused_since || self.again.contains_key(&found.stored.key);
        !is_wanted && self.forget(slot).is_some()
    }

    /// Room for a record in a segment, pending until it is inserted or abandoned. `None`: a segment must be made first.
    pub fn allocate(&mut self, bytes: u64) -> Option<Room> {
        let mut gone = Vec::new();
        let room = self.segments.allocate(bytes, &mut gone);
        self.discard_segments(gone);
        room
    }

    /// Leaves a copy alone that has been written and will not be in the index.
    pub fn abandon(&mut self, key: &Key, place: Place) {
        match place {
            Place::File { serial } => self.discard_blob(key, serial, 0),
            Place::Segment { slot, .. } => {
                let gone = self.segments.settle(slot, 0);
                self.discard_segments(gone);
            }
        }
    }

    /// Gives a blob a place in another segment. `false` when it is no longer where it was; the copy is abandoned then.
    pub fn relocate(&mut self, from: &Stored, to: Place) -> bool {
        let here = self.index.find(&from.key).and_then(|slot| Some((slot, self.index.get(slot)?)));
        let (Place::Segment { slot: old, .. }, Place::Segment { slot: new, .. }, Some((slot, found))) =
            (from.place, to, here.filter(|(_, found)| found.stored == *from))
        else {
            self.abandon(&from.key, to);
            return false;
        };
        let moved = Stored { place: to, ..*from };
        let charge = moved.charge_bytes();
        self.index.relocate(slot, &moved);
        let record = Record::Move(self.disk_entry(&moved, found.used));
        self.queue.push(&record);
        self.unsynced.push(from.key);
        let gone = self.segments.settle(new, charge).into_iter().chain(self.segments.release(old, charge));
        self.discard_segments(gone.collect::<Vec<u32>>());
        true
    }

    fn discard_segments(&mut self, numbers: impl IntoIterator<Item = u32>) {
        for number in numbers {
            // They wait for the next sync as evicted files do, and are counted with them: or many small blobs that come and go
            // while the disk is slow would take any amount of it.
            let bytes = self.segments.segment_bytes();
            self.garbage_bytes += bytes;
            self.garbage.push(Garbage { file: GarbageFile::Segment(number), bytes, after: self.queue.end });
        }
    }

    /// Has a blob's file removed that the index does not name.
    pub fn discard_orphan(&mut self, key: &Key, serial: u8) {
        self.discard_blob(key, serial, 0);
    }

    fn discard_blob(&mut self, key: &Key, serial: u8, bytes: u64) {
        self.changing.insert((*key, serial));
        self.garbage.push(Garbage { file: GarbageFile::Blob(*key, serial), bytes, after: self.queue.end });
    }

    /// Has a file removed once what is queued now is on disk.
    pub fn discard(&mut self, file: GarbageFile) {
        self.garbage.push(Garbage { file, bytes: 0, after: self.queue.end });
    }

    /// A blob as it is written down.
    pub fn disk_entry(&self, stored: &Stored, used: u32) -> DiskEntry {
        let place = match stored.place {
            Place::File { serial } => DiskPlace::File { serial },
            Place::Segment { slot, offset_bytes } => {
                DiskPlace::Segment { number: self.segments.number(slot), offset_bytes: offset_bytes as u32 }
            }
        };
        DiskEntry { key: stored.key, used, size_bytes: stored.size_bytes, place, form: stored.form }
    }
}
