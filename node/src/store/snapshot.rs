//! Snapshots: all blobs in the order of their use, so that a start need not replay every change ever made.
//!
//! Header, 64 bytes: magic (8), version (4), zero (4), generation (8), zeros (36), checksum (4). Then blocks: number of
//! entries (4), checksum (4), entries; the checksum covers generation, position of the block, number and entries. The
//! last block has no entries; without it the snapshot is not whole.
//!
//! A snapshot is written while blobs come and go. It names every blob that is there from its beginning to its end; what
//! comes, goes or moves meanwhile is in the journal of the same generation, which begins before the snapshot does, and
//! records may be replayed onto what they have already made.

use std::fs::File;
use std::io::{self, BufReader, Read};

use super::disk::Disk;
use super::index::{Mark, Slot};
use super::limits::WALK_BATCH;
use super::record::{DiskEntry, ENTRY_BYTES, Fields};
use super::shared::Shared;
use super::state::State;

/// Length of a snapshot's header.
pub const HEADER_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"casbahSN";
const VERSION: u32 = 1;
/// Entries in a block at the most.
const BLOCK_ENTRIES: usize = WALK_BATCH;

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It could not be read.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    /// Its bytes are not those that were written.
    #[error("it is damaged from block {block} on")]
    Damaged {
        /// Blocks before it were good.
        block: u64,
    },
}

/// Writes a snapshot of the index into a new file, and syncs it.
pub fn write(shared: &Shared, file: &File, generation: u64) -> io::Result<()> {
    let mut out = Writer { disk: &shared.disk, file, generation, offset: 0, block: 0 };
    out.put(&header(generation))?;
    let (walk, end) = {
        let mut state = shared.lock();
        (state.index.mark_oldest(), state.index.mark_newest())
    };
    let result = write_entries(shared, &mut out, &walk, &end);
    let mut state = shared.lock();
    state.index.remove_mark(walk);
    state.index.remove_mark(end);
    drop(state);
    result?;
    out.put_block(&[])?;
    shared.disk.sync(file)
}

/// First everything that is not used meanwhile, in order; then the rest, whose order the journal has.
fn write_entries(shared: &Shared, out: &mut Writer<'_>, walk: &Mark, end: &Mark) -> io::Result<()> {
    let mut seen = Seen::default();
    loop {
        let block = {
            let mut state = shared.lock();
            let state = &mut *state;
            let slots = std::iter::from_fn(|| state.index.advance(walk, Some(end)));
            let slots: Vec<Slot> = slots.take(BLOCK_ENTRIES).collect();
            slots.iter().for_each(|slot| seen.add(*slot));
            entries(state, &slots)
        };
        if block.is_empty() {
            break;
        }
        out.put_block(&block)?;
    }
    let (mut next, slots) = (0, shared.lock().index.slots());
    while next < slots {
        let block = {
            let state = shared.lock();
            let upto = slots.min(next.saturating_add(BLOCK_ENTRIES as u32));
            let unseen: Vec<Slot> = (next..upto).filter(|slot| !seen.has(*slot)).collect();
            next = upto;
            entries(&state, &unseen)
        };
        if !block.is_empty() {
            out.put_block(&block)?;
        }
    }
    Ok(())
}

fn entries(state: &State, slots: &[Slot]) -> Vec<DiskEntry> {
    let found = slots.iter().filter_map(|slot| state.index.get(*slot));
    found.map(|found| state.disk_entry(&found.stored, found.used)).collect()
}

/// Reads a snapshot, entry by entry, the least recently used first. What was read before an error was good.
///
/// # Errors
/// [`SnapshotError`].
pub fn read(file: impl Read, generation: u64, mut entry: impl FnMut(DiskEntry)) -> Result<(), SnapshotError> {
    let mut input = BufReader::with_capacity(1024 * 1024, file);
    let mut found = [0; HEADER_BYTES];
    let damaged = |block| {
        move |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => SnapshotError::Damaged { block },
            _ => SnapshotError::Io(error),
        }
    };
    input.read_exact(&mut found).map_err(damaged(0))?;
    if found != header(generation) {
        return Err(SnapshotError::Damaged { block: 0 });
    }
    let mut bytes = Vec::with_capacity(BLOCK_ENTRIES * ENTRY_BYTES);
    for block in 0.. {
        let (mut count, mut sum) = ([0; 4], [0; 4]);
        input.read_exact(&mut count).map_err(damaged(block))?;
        input.read_exact(&mut sum).map_err(damaged(block))?;
        let entries = u32::from_le_bytes(count) as usize;
        if entries > BLOCK_ENTRIES {
            return Err(SnapshotError::Damaged { block });
        }
        bytes.resize(entries * ENTRY_BYTES, 0);
        input.read_exact(&mut bytes).map_err(damaged(block))?;
        if checksum(generation, block, &bytes) != u32::from_le_bytes(sum) {
            return Err(SnapshotError::Damaged { block });
        }
        if entries == 0 {
            break;
        }
        for encoded in bytes.chunks(ENTRY_BYTES) {
            entry(DiskEntry::decode(encoded).ok_or(SnapshotError::Damaged { block })?);
        }
    }
    Ok(())
}

/// The header of a snapshot.
pub fn header(generation: u64) -> [u8; HEADER_BYTES] {
    let mut fields = Fields::<HEADER_BYTES>::new();
    fields.add(MAGIC);
    fields.add(&VERSION.to_le_bytes());
    fields.add(&[0; 4]);
    fields.add(&generation.to_le_bytes());
    fields.add(&[0; 36]);
    let checksum = crc32c::crc32c(fields.bytes.split_last_chunk::<4>().map_or(&[], |(front, _)| front));
    fields.add(&checksum.to_le_bytes());
    fields.bytes
}

fn checksum(generation: u64, block: u64, entries: &[u8]) -> u32 {
    let mut fields = Fields::<24>::new();
    fields.add(&generation.to_le_bytes());
    fields.add(&block.to_le_bytes());
    fields.add(&(entries.len() as u64).to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&fields.bytes), entries)
}

/// A block of entries.
pub fn block(generation: u64, block: u64, entries: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + entries.len());
    bytes.extend(((entries.len() / ENTRY_BYTES) as u32).to_le_bytes());
    bytes.extend(checksum(generation, block, entries).to_le_bytes());
    bytes.extend(entries);
    bytes
}

struct Writer<'a> {
    disk: &'a Disk,
    file: &'a File,
    generation: u64,
    offset: u64,
    block: u64,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_all_at(self.file, bytes, self.offset)?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn put_block(&mut self, entries: &[DiskEntry]) -> io::Result<()> {
        let encoded: Vec<u8> = entries.iter().flat_map(DiskEntry::encode).collect();
        let bytes = block(self.generation, self.block, &encoded);
        self.block += 1;
        self.put(&bytes)
    }
}

/// Which slots have been written, a bit each.
#[derive(Default)]
struct Seen(Vec<u64>);

impl Seen {
    fn add(&mut self, slot: Slot) {
        let word = slot as usize / 64;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        if let Some(word) = self.0.get_mut(word) {
            *word |= 1 << (slot % 64);
        }
    }

    fn has(&self, slot: Slot) -> bool {
        self.0.get(slot as usize / 64).is_some_and(|word| word & 1 << (slot % 64) != 0)
    }
}
