//! What fuzzers call: the readers of what lies on disk, given any bytes. Each panics when a reader does not keep its word.
//!
//! A checksum turns most of what a fuzzer tries away at once; so each reader is also given the same bytes with checksums
//! that are right, as a bug of a writer would leave them. `fuzz/` has the targets for cargo-fuzz; a test beside this file
//! gives each reader some thousand mutations.

use std::fs::File;
use std::io::{Cursor, Write as _};

use super::blob_file::{self, Frames, Layout};
use super::codecs::Codecs;
use super::disk::Disk;
use super::journal::{self, FoundJournal};
use super::key::{KEY_HASH_BYTES, Key, RECORD_ALIGN};
use super::limits::{PIECE_BYTES, ZSTD_FRAME_BYTES};
use super::record::{DiskEntry, ENTRY_BYTES, Position, RECORD_HEADER_BYTES, Record};
use super::segment::{self, HEADER_BYTES, RecordHeader};
use super::segment_walk::SegmentWalk;
use super::segments::SegmentFile;
use super::snapshot;

const GENERATION: u64 = 7;
const SEGMENT: u32 = 3;

/// The reader of journals. It goes through all bytes, and what it takes for a record is one, to the bit.
pub fn journal(data: &[u8]) {
    read_journal(data.to_vec());
    let header = journal::header(GENERATION, &[1; 16]);
    read_journal([&header, data].concat());
    let mut bytes = header.to_vec();
    for piece in pieces(data) {
        let Some((kind, payload)) = piece.split_first() else { continue };
        let position = Position { generation: GENERATION, offset_bytes: bytes.len() as u64 };
        Record::seal(*kind, payload, position, &mut bytes);
    }
    read_journal(bytes);
}

fn read_journal(bytes: Vec<u8>) {
    let Some(mut journal) = FoundJournal::new(bytes.clone()) else { return };
    let generation = journal.generation;
    loop {
        let at = journal.offset_bytes();
        let Some(record) = journal.next() else {
            if !journal.skip_damage() {
                break;
            }
            assert!(journal.offset_bytes() > at, "damage is passed over");
            continue;
        };
        let mut encoded = Vec::new();
        record.encode(Position { generation, offset_bytes: at }, &mut encoded);
        assert!(encoded.len() >= RECORD_HEADER_BYTES, "a record has a header");
        let found = bytes.get(at as usize..journal.offset_bytes() as usize);
        assert_eq!(found, Some(encoded.as_slice()), "a record is written in one way");
    }
    assert!(journal.offset_bytes() as usize + journal.tail_bytes() <= bytes.len(), "a tail ends with the file");
}

/// The reader of snapshots. What it says is there was written, in this order.
pub fn snapshot(data: &[u8]) {
    read_snapshot(data, 0);
    read_snapshot(&[&snapshot::header(GENERATION)[..], data].concat(), GENERATION);
    let mut bytes = snapshot::header(GENERATION).to_vec();
    let mut blocks: Vec<&[u8]> = pieces(data).collect();
    blocks.push(&[]);
    for (block, entries) in (0..).zip(&blocks) {
        let whole = entries.len() - entries.len() % ENTRY_BYTES;
        bytes.extend(snapshot::block(GENERATION, block, entries.get(..whole).unwrap_or_default()));
    }
    read_snapshot(&bytes, GENERATION);
}

fn read_snapshot(bytes: &[u8], generation: u64) {
    let mut from = snapshot::HEADER_BYTES;
    let read = snapshot::read(Cursor::new(bytes), generation, |entry: DiskEntry| {
        let encoded = entry.encode();
        let rest = bytes.get(from..).unwrap_or_default();
        let at = rest.windows(ENTRY_BYTES).position(|window| window == encoded);
        from += at.expect("an entry was written, after the one before") + ENTRY_BYTES;
    });
    assert!(read.is_err() || from < bytes.len(), "what is whole has an end");
}

/// The readers of segments. They end, and show no bytes but those that a record's checksum covers.
pub fn segment(data: &[u8]) {
    if let Some(header) = data.first_chunk().and_then(RecordHeader::decode) {
        assert_eq!(Some(&header.encode()), data.first_chunk(), "a header is written in one way");
    }
    read_segment(data);
    read_segment(&[&segment::header(SEGMENT)[..], data].concat());
    let mut bytes = segment::header(SEGMENT).to_vec();
    for piece in pieces(data) {
        // A record that may lie about its blob's length.
        let Some(([low, high, function, ..], blob)) = piece.split_first_chunk::<4>() else { continue };
        let lie = u32::from(u16::from_le_bytes([*low, *high]));
        let header = RecordHeader {
            key: Key { function: *function, hash: [*low; KEY_HASH_BYTES] },
            size_bytes: if *function % 2 == 0 { lie } else { blob.len() as u32 },
            frame_bytes: if *function % 3 == 0 { blob.len() as u32 } else { 0 },
            checksum: crc32c::crc32c(blob),
            segment: SEGMENT,
            offset_bytes: bytes.len() as u32,
        };
        bytes.extend(header.encode());
        bytes.extend(blob);
        bytes.resize(bytes.len().next_multiple_of(RECORD_ALIGN as usize), 0);
    }
    read_segment(&bytes);
}

fn read_segment(bytes: &[u8]) {
    let (disk, file) = (Disk::default(), SegmentFile::new(SEGMENT, in_memory(bytes)));
    let mut walk = SegmentWalk::new(&disk, &file, bytes.len() as u64);
    let mut last = 0;
    while let Some(header) = walk.next().expect("memory can be read") {
        let at = header.offset_bytes as usize;
        assert!(at > last, "a walk goes on");
        last = at;
        assert_eq!(bytes.get(at..at + HEADER_BYTES), Some(&header.encode()[..]), "a header is where it says");
        let Some(blob) = walk.blob(&header).expect("memory can be read").map(<[u8]>::to_vec) else {
            walk.distrust(&header);
            continue;
        };
        let found = bytes.get(at + HEADER_BYTES..at + HEADER_BYTES + header.stored_bytes() as usize);
        assert_eq!(found, Some(blob.as_slice()), "a blob follows its header");
        let stored = header.stored(0).expect("a header that is found describes a record");
        let checked = RecordHeader::check(&header.encode(), &blob, &stored, SEGMENT);
        assert_eq!(checked, Ok(blob.len()), "what the walk takes for good, a read does");
    }
}

/// The reader of compressed files. Whatever the table of frames says, it reads no more than the frames of the blob can be,
/// and makes as many bytes of them as the blob has.
pub fn frames(data: &[u8]) {
    if let Some(found) = data.last_chunk()
        && let Some(digest) = blob_file::digest_in_trailer(found)
        && let Ok(layout) = blob_file::check_label(&digest, data.len() as u64, found)
    {
        read_frames(data, layout);
    }
    let Some(([a, b, c, d], rest)) = data.split_first_chunk::<4>() else { return };
    let size_bytes = u64::from(u32::from_le_bytes([*a, *b, *c, 0])) + 1;
    // The frames' length may be anything, and the file then is as long as it has to be.
    let layout = Layout::zstd(size_bytes, rest.len() as u64 * u64::from(*d) / 256 + 1);
    let mut bytes = rest.to_vec();
    bytes.resize(layout.end() as usize, *d);
    read_frames(&bytes, layout);
}

fn read_frames(bytes: &[u8], layout: Layout) {
    let (disk, codecs, file) = (Disk::default(), Codecs::default(), in_memory(bytes));
    let step = (PIECE_BYTES / ZSTD_FRAME_BYTES) as u64;
    for first in (0..layout.zstd_frames()).step_by(step as usize) {
        let frames = first..(first + step).min(layout.zstd_frames());
        let Ok(frames) = Frames::read(&disk, &file, layout, frames).expect("memory can be read") else { continue };
        let sizes: usize = frames.each().map(|(_, size)| size).sum();
        assert!(sizes <= PIECE_BYTES, "a piece at a time");
        let mut out = vec![0; sizes];
        // Junk with a checksum that is right is no frame; what is one fills the buffer.
        let _ = frames.decode(&codecs, &mut out);
    }
}

fn in_memory(bytes: &[u8]) -> File {
    let memory = rustix::fs::memfd_create("fuzzed", rustix::fs::MemfdFlags::CLOEXEC).expect("there is memory");
    let mut file = File::from(memory);
    file.write_all(bytes).expect("there is memory");
    file
}

/// Cuts any bytes into pieces: a byte says how long the next one is, in units that make some of them large.
fn pieces(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = data.split_first()?;
        let (piece, rest) = rest.split_at(rest.len().min(usize::from(*length) * 3));
        data = rest;
        Some(piece)
    })
}
