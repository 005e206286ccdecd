//! The journal's file: the changes of the index in the order in which they were made.
//!
//! Changes queue in [`State`] and are written out by whoever needs them written; one write takes all that have queued,
//! so that callers who come together share it. A journal belongs to a generation; a new one begins with each start and
//! each snapshot, and none is ever appended to after a restart.
//!
//! Header, 64 bytes: magic (8), version (4), zero (4), generation (8), boot id (16), zeros (20), checksum (4).

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::disk::Disk;
use super::limits::JOURNAL_STEP_BYTES;
use super::record::{Fields, Position, Record};
use super::shared::lock;
use super::state::State;

/// Length of a journal's header.
pub const HEADER_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"casbahJN";
const VERSION: u32 = 1;

/// Names a boot of the operating system: what was in the page cache is still there if it has not changed.
pub type BootId = [u8; 16];

/// The journal being written.
#[derive(Debug)]
pub struct Journal {
    open: Mutex<OpenJournal>,
    /// The sequence up to which records are in the file.
    written: AtomicU64,
}

#[derive(Debug)]
struct OpenJournal {
    file: Arc<File>,
    /// The sequence at which the file begins.
    start: u64,
    /// The length of the file, of which zeros follow the records.
    allocated: u64,
}

/// A journal as it was found.
#[derive(Debug)]
pub struct FoundJournal {
    /// From its header.
    pub generation: u64,
    /// From its header.
    pub boot: BootId,
    bytes: Vec<u8>,
    at: usize,
}

/// This boot; all zeros where the system does not tell.
pub fn boot_id() -> BootId {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: Vec<u8> = text.bytes().filter_map(|byte| char::from(byte).to_digit(16)).map(|d| d as u8).collect();
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair.iter().fold(0, |byte, digit| byte << 4 | digit);
    }
    id
}

/// The header of a journal.
pub fn header(generation: u64, boot: &BootId) -> [u8; HEADER_BYTES] {
    let mut fields = Fields::<HEADER_BYTES>::new();
    fields.add(MAGIC);
    fields.add(&VERSION.to_le_bytes());
    fields.add(&[0; 4]);
    fields.add(&generation.to_le_bytes());
    fields.add(boot);
    fields.add(&[0; 20]);
    let checksum = crc32c::crc32c(fields.bytes.split_last_chunk::<4>().map_or(&[], |(front, _)| front));
    fields.add(&checksum.to_le_bytes());
    fields.bytes
}

// === impl Journal ===

impl Journal {
    /// Goes on with this file, which has nothing but a header; its records begin at sequence 0.
    pub fn new(file: File) -> Journal {
        Journal {
            open: Mutex::new(OpenJournal { file: Arc::new(file), start: 0, allocated: 0 }),
            written: AtomicU64::new(0),
        }
    }

    /// Writes out what is queued, if the records up to this sequence are not written already.
    ///
    /// # Errors
    /// What the disk said; the records are queued again then, and the next call writes them to the same place.
    pub fn flush(&self, disk: &Disk, state: &Mutex<State>, sequence: u64) -> io::Result<()> {
        if self.written.load(Ordering::Acquire) >= sequence {
            return Ok(());
        }
        let mut open = lock(&self.open);
        if self.written.load(Ordering::Acquire) >= sequence {
            return Ok(());
        }
        self.write_queue(disk, state, &mut open)
    }

    /// Forces the file to the disk.
    pub fn sync(&self, disk: &Disk) -> io::Result<()> {
        let file = Arc::clone(&lock(&self.open).file);
        disk.sync(&file)
    }

    /// Goes over to the journal of the next generation. Returns the file of the last one, which is still to be synced.
    pub fn rotate(&self, disk: &Disk, state: &Mutex<State>, file: File, generation: u64) -> io::Result<Arc<File>> {
        let mut open = lock(&self.open);
        self.write_queue(disk, state, &mut open)?;
        // Little can have queued since, so that the lock of the state is held for one small write at most.
        let mut state = lock(state);
        let before = state.queue.end - state.queue.bytes.len() as u64;
        disk.write_all_at(&open.file, &state.queue.bytes, HEADER_BYTES as u64 + (before - open.start))?;
        state.queue.bytes.clear();
        state.queue.generation = generation;
        state.queue.start = state.queue.end;
        let lost: Vec<Record> = state.lost.records().collect();
        self.written.store(state.queue.end, Ordering::Release);
        open.start = state.queue.end;
        open.allocated = 0;
        // No snapshot has them.
        lost.iter().for_each(|record| state.queue.push(record));
        Ok(std::mem::replace(&mut open.file, Arc::new(file)))
    }

    fn write_queue(&self, disk: &Disk, state: &Mutex<State>, open: &mut OpenJournal) -> io::Result<()> {
        let (bytes, end) = {
            let mut state = lock(state);
            (std::mem::take(&mut state.queue.bytes), state.queue.end)
        };
        let before = end - bytes.len() as u64;
        open.allocate(disk, HEADER_BYTES as u64 + (end - open.start));
        let result = disk.write_all_at(&open.file, &bytes, HEADER_BYTES as u64 + (before - open.start));
        if result.is_err() {
            let mut state = lock(state);
            let later = std::mem::replace(&mut state.queue.bytes, bytes);
            state.queue.bytes.extend(later);
            return result;
        }
        self.written.store(end, Ordering::Release);
        Ok(())
    }
}

// === impl OpenJournal ===

impl OpenJournal {
    /// Allocates ahead of the records. Where that fails, what was allocated before is used up first.
    fn allocate(&mut self, disk: &Disk, end: u64) {
        if end + JOURNAL_STEP_BYTES / 2 > self.allocated {
            let wanted = end + JOURNAL_STEP_BYTES;
            if disk.allocate(&self.file, wanted).is_ok() {
                self.allocated = wanted;
            }
        }
    }
}

// === impl FoundJournal ===

impl FoundJournal {
    /// A journal's bytes; `None` when they do not begin with a journal's header.
    pub fn new(bytes: Vec<u8>) -> Option<FoundJournal> {
        let found = bytes.first_chunk::<HEADER_BYTES>()?;
        let (generation, rest) = found.get(16..)?.split_first_chunk()?;
        let generation = u64::from_le_bytes(*generation);
        let boot = *rest.first_chunk()?;
        (*found == header(generation, &boot)).then_some(FoundJournal { generation, boot, bytes, at: HEADER_BYTES })
    }

    /// Where the next record begins; after the last one, where the torn or unknown tail does.
    pub fn offset_bytes(&self) -> u64 {
        self.at as u64
    }

    /// Goes on behind damage: at the next record that is whole, if there is one.
    pub fn skip_damage(&mut self) -> bool {
        let is_record = |at: &usize| {
            let position = Position { generation: self.generation, offset_bytes: *at as u64 };
            let bytes = self.bytes.get(*at..).unwrap_or_default();
            // Most places are told by their first byte.
            bytes.first().is_some_and(|kind| *kind != 0) && Record::decode(position, bytes).is_some()
        };
        let found = (self.at + 1..self.bytes.len()).find(is_record);
        self.at = found.unwrap_or(self.at);
        found.is_some()
    }

    /// Bytes that are neither records nor zeros, once [`Iterator::next`] has said that there are no more.
    pub fn tail_bytes(&self) -> usize {
        let tail = self.bytes.get(self.at..).unwrap_or_default();
        tail.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
    }
}

impl Iterator for FoundJournal {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        let position = Position { generation: self.generation, offset_bytes: self.at as u64 };
        let (record, length) = Record::decode(position, self.bytes.get(self.at..)?)?;
        self.at += length;
        Some(record)
    }
}
