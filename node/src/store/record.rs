//! The records of the journal and of snapshots, as bytes.
//!
//! A journal record is its kind (1), zero (1), the length of its payload (2), a checksum (4) and the payload. The
//! checksum covers the journal's generation, the record's offset in the file, kind, length and payload, so that bytes
//! left over from elsewhere are no record. Numbers are little-endian.

use super::key::{Form, KEY_HASH_BYTES, Key, Place};

/// Length of an entry: function (1), kind of place (1: file, 2: segment), serial of a file (1), zero (1), last use in Unix
/// seconds (4), size (8), segment number (4), offset in the segment (4), key (32). Compressed blobs have the kinds 3 (file)
/// and 4 (segment), and their share of the disk: a file's in the place of the segment number, a segment's in that of the
/// serial.
pub const ENTRY_BYTES: usize = 56;

/// Bytes of a journal record before its payload.
pub const RECORD_HEADER_BYTES: usize = 8;

/// A blob as it is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskEntry {
    /// Its name.
    pub key: Key,
    /// Its last use, in Unix seconds.
    pub used: u32,
    /// Its size.
    pub size_bytes: u64,
    /// Where it lies.
    pub place: DiskPlace,
    /// How it lies there.
    pub form: Form,
}

/// Where a blob lies, in names that last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskPlace {
    /// In a file of its own.
    File {
        /// Part of the file's name.
        serial: u8,
    },
    /// In a segment.
    Segment {
        /// The segment's number, never used again.
        number: u32,
        /// Where the blob's record begins.
        offset_bytes: u32,
    },
}

/// A change of the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A blob was stored, and is the most recently used one.
    Put(DiskEntry),
    /// A copy of a blob was stored that was last used some time ago: it has its place by that.
    Copy(DiskEntry),
    /// A blob lies elsewhere now; its use is as it was.
    Move(DiskEntry),
    /// A blob is gone.
    Remove(Key),
    /// A blob is gone, since its copy was damaged. Whether others have it is not known.
    Lost {
        /// Its name.
        key: Key,
        /// Its size.
        size_bytes: u64,
    },
    /// A blob that was lost is known to be nowhere.
    Found(Key),
    /// Anything may have been lost from now on, or: what has been was found.
    Unsure(bool),
    /// Blobs were used, in this order. They are named by the first eight bytes of their hashes.
    Touch {
        /// When, in Unix seconds.
        used: u32,
        /// At most [`super::limits::WALK_BATCH`].
        prefixes: Vec<[u8; 8]>,
    },
    /// All records of this journal up to this offset, and the bytes they name, are on the disk.
    Synced {
        /// Offset in the journal's file.
        offset_bytes: u64,
    },
}

/// Where a journal record is, which its checksum covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The journal's generation.
    pub generation: u64,
    /// The record's offset in the journal's file.
    pub offset_bytes: u64,
}

const PUT: u8 = 1;
const MOVE: u8 = 2;
const REMOVE: u8 = 3;
const TOUCH: u8 = 4;
const SYNCED: u8 = 5;
const COPY: u8 = 6;
const LOST: u8 = 7;
const FOUND: u8 = 8;
const UNSURE: u8 = 9;

// === impl DiskEntry ===

impl DiskEntry {
    /// The entry's bytes.
    pub fn encode(&self) -> [u8; ENTRY_BYTES] {
        let share = self.form.share();
        let (kind, serial, number, offset_bytes) = match (self.place, self.form) {
            (DiskPlace::File { serial }, Form::Plain) => (1, serial, 0, 0),
            (DiskPlace::Segment { number, offset_bytes }, Form::Plain) => (2, 0, number, offset_bytes),
            (DiskPlace::File { serial }, Form::Zstd { .. }) => (3, serial, u32::from(share), 0),
            (DiskPlace::Segment { number, offset_bytes }, Form::Zstd { .. }) => (4, share as u8, number, offset_bytes),
        };
        let mut fields = Fields::<ENTRY_BYTES>::new();
        fields.add(&[self.key.function, kind, serial, 0]);
        fields.add(&self.used.to_le_bytes());
        fields.add(&self.size_bytes.to_le_bytes());
        fields.add(&number.to_le_bytes());
        fields.add(&offset_bytes.to_le_bytes());
        fields.add(&self.key.hash);
        fields.bytes
    }

    /// The entry of these bytes; `None` when they are none.
    pub fn decode(bytes: &[u8]) -> Option<DiskEntry> {
        let bytes: &[u8; ENTRY_BYTES] = bytes.try_into().ok()?;
        let (head, hash) = bytes.split_at(ENTRY_BYTES - KEY_HASH_BYTES);
        let [function, kind, serial, 0, used @ ..] = head else { return None };
        let (used, rest) = used.split_first_chunk()?;
        let (size, rest) = rest.split_first_chunk()?;
        let (number, offset) = rest.split_first_chunk()?;
        let (number, offset_bytes) = (u32::from_le_bytes(*number), u32::from_le_bytes(offset.try_into().ok()?));
        let (place, share) = match (kind, serial, number, offset_bytes) {
            (1, serial, 0, 0) => (DiskPlace::File { serial: *serial }, 0),
            (2, 0, number, offset_bytes) => (DiskPlace::Segment { number, offset_bytes }, 0),
            (3, serial, 1.., 0) => (DiskPlace::File { serial: *serial }, u16::try_from(number).ok()?),
            (4, 1.., number, offset_bytes) => (DiskPlace::Segment { number, offset_bytes }, u16::from(*serial)),
            _ => return None,
        };
        let of = match place {
            DiskPlace::File { serial } => Place::File { serial },
            DiskPlace::Segment { .. } => Place::Segment { slot: 0, offset_bytes: 0 },
        };
        Some(DiskEntry {
            key: Key { function: *function, hash: hash.try_into().ok()? },
            used: u32::from_le_bytes(*used),
            size_bytes: u64::from_le_bytes(*size),
            place,
            form: Form::from_share(share, &of)?,
        })
    }
}

// === impl Record ===

impl Record {
    /// Appends the record's bytes.
    pub fn encode(&self, position: Position, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([0; RECORD_HEADER_BYTES]);
        let kind = match self {
            Record::Put(entry) => {
                out.extend(entry.encode());
                PUT
            }
            Record::Copy(entry) => {
                out.extend(entry.encode());
                COPY
            }
            Record::Move(entry) => {
                out.extend(entry.encode());
                MOVE
            }
            Record::Remove(key) => {
                out.extend([key.function, 0, 0, 0]);
                out.extend(key.hash);
                REMOVE
            }
            Record::Lost { key, size_bytes } => {
                out.extend([key.function, 0, 0, 0]);
                out.extend(key.hash);
                out.extend(size_bytes.to_le_bytes());
                LOST
            }
            Record::Found(key) => {
                out.extend([key.function, 0, 0, 0]);
                out.extend(key.hash);
                FOUND
            }
            Record::Unsure(is_unsure) => {
                out.extend([u8::from(*is_unsure), 0, 0, 0]);
                UNSURE
            }
            Record::Touch { used, prefixes } => {
                out.extend(used.to_le_bytes());
                prefixes.iter().for_each(|prefix| out.extend(prefix));
                TOUCH
            }
            Record::Synced { offset_bytes } => {
                out.extend(offset_bytes.to_le_bytes());
                SYNCED
            }
        };
        if let Some(record) = out.get_mut(start..) {
            seal(kind, position, record);
        }
    }

    /// Appends a record of this kind with any payload, for fuzzers.
    #[cfg(any(test, fuzzing))]
    pub fn seal(kind: u8, payload: &[u8], position: Position, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([0; RECORD_HEADER_BYTES]);
        out.extend(payload);
        seal(kind, position, out.get_mut(start..).unwrap_or_default());
    }

    /// The record at the beginning of these bytes, and its length. `None` when there is none, or not all of it.
    pub fn decode(position: Position, bytes: &[u8]) -> Option<(Record, usize)> {
        let (header, rest) = bytes.split_first_chunk::<RECORD_HEADER_BYTES>()?;
        let [kind, 0, low, high, sum @ ..] = *header else { return None };
        let payload = rest.get(..usize::from(u16::from_le_bytes([low, high])))?;
        if checksum(position, [kind, 0, low, high], payload) != u32::from_le_bytes(sum) {
            return None;
        }
        let record = match kind {
            PUT => Record::Put(DiskEntry::decode(payload)?),
            COPY => Record::Copy(DiskEntry::decode(payload)?),
            MOVE => Record::Move(DiskEntry::decode(payload)?),
            REMOVE => Record::Remove(decode_key(payload)?),
            LOST => {
                let (key, size_bytes) = payload.split_last_chunk()?;
                Record::Lost { key: decode_key(key)?, size_bytes: u64::from_le_bytes(*size_bytes) }
            }
            FOUND => Record::Found(decode_key(payload)?),
            UNSURE => match payload {
                [is_unsure @ (0 | 1), 0, 0, 0] => Record::Unsure(*is_unsure == 1),
                _ => return None,
            },
            TOUCH => {
                let (used, prefixes) = payload.split_first_chunk()?;
                let (prefixes, []) = prefixes.as_chunks() else { return None };
                Record::Touch { used: u32::from_le_bytes(*used), prefixes: prefixes.to_vec() }
            }
            SYNCED => Record::Synced { offset_bytes: u64::from_le_bytes(payload.try_into().ok()?) },
            _ => return None,
        };
        Some((record, RECORD_HEADER_BYTES + payload.len()))
    }
}

fn decode_key(payload: &[u8]) -> Option<Key> {
    let ([function, 0, 0, 0], hash) = payload.split_first_chunk::<4>()? else { return None };
    Some(Key { function: *function, hash: hash.try_into().ok()? })
}

/// Writes the header of a record whose payload is in place.
fn seal(kind: u8, position: Position, record: &mut [u8]) {
    let Some((header, payload)) = record.split_first_chunk_mut::<RECORD_HEADER_BYTES>() else { return };
    let [low, high] = u16::try_from(payload.len()).expect("a batch of touches is limited").to_le_bytes();
    let [a, b, c, d] = checksum(position, [kind, 0, low, high], payload).to_le_bytes();
    *header = [kind, 0, low, high, a, b, c, d];
}

fn checksum(position: Position, head: [u8; 4], payload: &[u8]) -> u32 {
    let mut prefix = Fields::<20>::new();
    prefix.add(&position.generation.to_le_bytes());
    prefix.add(&position.offset_bytes.to_le_bytes());
    prefix.add(&head);
    crc32c::crc32c_append(crc32c::crc32c(&prefix.bytes), payload)
}

/// Fills an array field by field.
pub struct Fields<const N: usize> {
    /// What has been added, then zeros.
    pub bytes: [u8; N],
    filled: usize,
}

// === impl Fields ===

impl<const N: usize> Fields<N> {
    /// All zeros.
    pub fn new() -> Fields<N> {
        Fields { bytes: [0; N], filled: 0 }
    }

    /// Adds the next field.
    pub fn add(&mut self, field: &[u8]) {
        let end = self.filled + field.len();
        self.bytes.get_mut(self.filled..end).expect("the fields fit").copy_from_slice(field);
        self.filled = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Position = Position { generation: 3, offset_bytes: 64 };

    fn entry(place: DiskPlace) -> DiskEntry {
        DiskEntry { key: Key { function: 1, hash: [9; 32] }, used: 77, size_bytes: 1 << 40, place, form: Form::Plain }
    }

    fn records() -> Vec<Record> {
        vec![
            Record::Put(entry(DiskPlace::File { serial: 3 })),
            Record::Put(entry(DiskPlace::Segment { number: 7, offset_bytes: 640 })),
            Record::Move(entry(DiskPlace::Segment { number: u32::MAX, offset_bytes: u32::MAX })),
            Record::Copy(entry(DiskPlace::Segment { number: 1, offset_bytes: 64 })),
            Record::Put(DiskEntry { form: Form::Zstd { share: 1023 }, ..entry(DiskPlace::File { serial: 15 }) }),
            Record::Move(DiskEntry {
                form: Form::Zstd { share: 1 },
                ..entry(DiskPlace::Segment { number: 7, offset_bytes: 640 })
            }),
            Record::Remove(Key { function: 1, hash: [1; 32] }),
            Record::Lost { key: Key { function: 5, hash: [1; 32] }, size_bytes: 1 << 40 },
            Record::Found(Key { function: 1, hash: [1; 32] }),
            Record::Unsure(true),
            Record::Unsure(false),
            Record::Touch { used: 5, prefixes: vec![[1; 8], [2; 8]] },
            Record::Touch { used: 5, prefixes: vec![] },
            Record::Synced { offset_bytes: 99 },
        ]
    }

    #[test]
    fn a_record_survives_encoding() {
        for record in records() {
            let mut bytes = Vec::new();
            record.encode(HERE, &mut bytes);
            let length = bytes.len();
            bytes.extend([1, 2, 3]);
            assert_eq!(Record::decode(HERE, &bytes), Some((record, length)));
        }
    }

    #[test]
    fn a_record_truncated_flipped_or_elsewhere_is_none() {
        for record in records() {
            let mut bytes = Vec::new();
            record.encode(HERE, &mut bytes);
            for length in 0..bytes.len() {
                assert_eq!(Record::decode(HERE, &bytes[..length]), None);
            }
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Record::decode(HERE, &flipped), None, "{record:?} bit {bit}");
            }
            assert_eq!(Record::decode(Position { generation: 4, ..HERE }, &bytes), None);
            assert_eq!(Record::decode(Position { offset_bytes: 65, ..HERE }, &bytes), None);
        }
    }
}
