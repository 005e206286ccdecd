//! What the index keeps of a blob: its key, and where it lies, packed into one word.

use casbah_cluster::digest::{Digest, DigestFunction};
use sha2::Digest as _;

use super::limits::DISK_BLOCK_BYTES;
use super::segment::HEADER_BYTES;

/// Bytes that the index keeps of a hash. A longer one is folded into them.
pub const KEY_HASH_BYTES: usize = 32;

/// Bytes that a folded hash begins with as they are: they tell the partition, and are what uses are journaled by.
const PLAIN_BYTES: usize = 8;

/// Partitions of the key space, by the first 12 bits of the hash.
pub const PARTITIONS: usize = 4096;

/// Segment records begin at multiples of this.
pub const RECORD_ALIGN: u64 = 64;

/// The name of a blob in the index: its function and its hash, or what a long hash is folded into. The size is not part of it, since
/// two sizes under one hash cannot both be verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The digest function's number, below 15.
    pub function: u8,
    /// The hash, then zeros. Of a hash longer than this its first 8 bytes, and 24 of its SHA-256: cut, it would be found
    /// under every hash that begins like it, and whoever asks for one of those would be told a lie.
    pub hash: [u8; KEY_HASH_BYTES],
}

/// Where a blob lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// In a segment, from a multiple of [`RECORD_ALIGN`] on.
    Segment {
        /// The segment's position in the table of segments.
        slot: u32,
        /// Where its record begins.
        offset_bytes: u64,
    },
    /// In a file of its own.
    File {
        /// Tells files of the same blob apart while an old one waits to be removed.
        serial: u8,
    },
}

/// How a blob lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// As it is.
    Plain,
    /// Compressed. It takes this share of the disk that it would take as it is, in [`SEGMENT_SHARES`] or [`FILE_SHARES`]:
    /// the index has no bits for the length itself.
    Zstd {
        /// At least 1.
        share: u16,
    },
}

/// A blob as the index knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub key: Key,
    /// Its size.
    pub size_bytes: u64,
    /// Where it lies.
    pub place: Place,
    /// How it lies there.
    pub form: Form,
}

/// Function, size, place and form of a blob, and whether it is visible yet, in 64 bits:
/// bit 63 file, bit 62 hidden, bits 58-61 function, and then for a file serial (4), share (10) and size (44), for a segment
/// share (4), slot (15), offset in units of 64 bytes (22) and size less one (17). A share of 0 is for what is not compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed(u64);

const FILE: u64 = 1 << 63;
const HIDDEN: u64 = 1 << 62;
const FUNCTION_SHIFT: u32 = 58;
const FUNCTION_MASK: u64 = 0xf;
const SERIAL_SHIFT: u32 = 54;
const FILE_SHARE_SHIFT: u32 = 44;
const SEGMENT_SHARE_SHIFT: u32 = 54;
const SLOT_SHIFT: u32 = 39;
const OFFSET_SHIFT: u32 = 17;

/// Of these many parts of a small blob's bytes, the share of a compressed one is so many.
pub const SEGMENT_SHARES: u64 = 16;
/// The same for large blobs. The largest share is more than all of them, since a compressed file may be a little larger.
pub const FILE_SHARES: u64 = 1000;
const MAX_SEGMENT_SHARE: u16 = 15;
const MAX_FILE_SHARE: u16 = 1023;

/// The largest blob a segment takes.
pub const MAX_SEGMENT_BLOB_BYTES: u64 = 1 << 17;
/// The largest segment.
pub const MAX_SEGMENT_BYTES: u64 = (1 << 22) * RECORD_ALIGN;
/// The most segments.
pub const MAX_SEGMENTS: u32 = 1 << 15;
/// The largest blob at all: 16 TiB.
pub const MAX_BLOB_BYTES: u64 = (1 << 44) - 1;

// === impl Key ===

impl Key {
    /// The key of a digest.
    pub fn of(digest: &Digest) -> Key {
        Key::new(digest.function(), digest.hash())
    }

    /// The key of a hash.
    pub fn new(function: DigestFunction, hash: &[u8]) -> Key {
        let mut kept = [0; KEY_HASH_BYTES];
        match kept.get_mut(..hash.len()) {
            Some(whole) => whole.copy_from_slice(hash),
            None => {
                let folded = sha2::Sha256::digest(hash);
                let bytes = hash.iter().take(PLAIN_BYTES).chain(&folded);
                kept.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            }
        }
        Key { function: function.number(), hash: kept }
    }

    /// The digest that has this key and size, as far as the key tells: `None` for functions that are not known here or
    /// whose hash is folded. Of a folded one, only the blob or the trailer of its file tells the whole.
    pub fn digest(&self, size_bytes: u64) -> Option<Digest> {
        let function = DigestFunction::from_number(self.function)?;
        Digest::from_raw(function, self.hash.get(..function.hash_len())?, size_bytes)
    }

    /// The partition, by the first 12 bits of the hash.
    pub fn partition(&self) -> usize {
        let [first, second, ..] = self.hash;
        partition_of([first, second])
    }

    /// The first eight bytes of the hash, which name a blob where a wrong guess does no harm.
    pub fn prefix(&self) -> [u8; 8] {
        let [a, b, c, d, e, f, g, h, ..] = self.hash;
        [a, b, c, d, e, f, g, h]
    }

    /// The bytes of `hash` in lower-case hexadecimal.
    pub fn hash_hex(&self) -> String {
        use std::fmt::Write as _;
        let mut text = String::with_capacity(2 * KEY_HASH_BYTES);
        for byte in self.hash {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

/// The partition of a hash that begins with these bytes.
pub fn partition_of([first, second]: [u8; 2]) -> usize {
    usize::from(first) << 4 | usize::from(second >> 4)
}

/// What the hash tables of the index use: a mix of the first eight bytes of which neither end is the same all over a
/// partition. No secret is needed; only bytes that hash to a key get in, and 64-bit prefixes are dear to forge.
pub fn bucket_of(prefix: [u8; 8]) -> u64 {
    u64::from_le_bytes(prefix).rotate_right(16).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

// === impl Place ===

impl Place {
    /// Bytes of disk that a blob of this size takes here as it is.
    pub fn charge_bytes(&self, size_bytes: u64) -> u64 {
        match self {
            Place::Segment { .. } => super::segment::record_bytes(size_bytes),
            Place::File { .. } => super::blob_file::file_bytes(size_bytes),
        }
    }
}

// === impl Form ===

impl Form {
    /// Of a compressed blob in a segment; `None` when that takes no less than the blob as it is.
    pub fn in_segment(size_bytes: u64, stored_bytes: u64) -> Option<Form> {
        let padded = size_bytes.next_multiple_of(RECORD_ALIGN).max(RECORD_ALIGN);
        let share = stored_bytes.checked_mul(SEGMENT_SHARES)?.div_ceil(padded).max(1);
        let share = u16::try_from(share).ok().filter(|share| *share <= MAX_SEGMENT_SHARE)?;
        (payload_bytes(size_bytes, share) < padded).then_some(Form::Zstd { share })
    }

    /// Of a compressed blob in a file of this length; `None` when that is much more than the blob as it is.
    pub fn in_file(size_bytes: u64, file_bytes: u64) -> Option<Form> {
        let plain = super::blob_file::file_bytes(size_bytes) / DISK_BLOCK_BYTES;
        let share = file_bytes.div_ceil(DISK_BLOCK_BYTES).checked_mul(FILE_SHARES)?.div_ceil(plain).max(1);
        let share = u16::try_from(share).ok().filter(|share| *share <= MAX_FILE_SHARE)?;
        Some(Form::Zstd { share })
    }

    /// With the share in a number; `None` when the place has no such share.
    pub fn from_share(share: u16, place: &Place) -> Option<Form> {
        let most = match place {
            Place::Segment { .. } => MAX_SEGMENT_SHARE,
            Place::File { .. } => MAX_FILE_SHARE,
        };
        match share {
            0 => Some(Form::Plain),
            share => (share <= most).then_some(Form::Zstd { share }),
        }
    }

    /// The share; 0 for what is not compressed.
    pub fn share(self) -> u16 {
        match self {
            Form::Plain => 0,
            Form::Zstd { share } => share,
        }
    }
}

/// Bytes of a segment that a compressed blob takes, besides its header.
fn payload_bytes(size_bytes: u64, share: u16) -> u64 {
    let padded = size_bytes.next_multiple_of(RECORD_ALIGN).max(RECORD_ALIGN);
    (padded * u64::from(share)).div_ceil(SEGMENT_SHARES).next_multiple_of(RECORD_ALIGN)
}

// === impl Stored ===

impl Stored {
    /// Bytes of disk that it takes, as far as the capacity is concerned.
    pub fn charge_bytes(&self) -> u64 {
        match (self.place, self.form) {
            (place, Form::Plain) => place.charge_bytes(self.size_bytes),
            (Place::Segment { .. }, Form::Zstd { .. }) => HEADER_BYTES as u64 + self.record_payload_bytes(),
            (Place::File { .. }, Form::Zstd { share }) => {
                let plain = super::blob_file::file_bytes(self.size_bytes) / DISK_BLOCK_BYTES;
                (plain * u64::from(share)).div_ceil(FILE_SHARES) * DISK_BLOCK_BYTES
            }
        }
    }

    /// Bytes that follow the header of its record in a segment, all of which may be its own.
    pub fn record_payload_bytes(&self) -> u64 {
        match self.form {
            Form::Plain => self.size_bytes,
            Form::Zstd { share } => payload_bytes(self.size_bytes, share),
        }
    }
}

// === impl Packed ===

impl Packed {
    /// Packs a blob; `None` when a part is out of its range.
    pub fn new(stored: &Stored, hidden: bool) -> Option<Packed> {
        if stored.key.function == 0 || stored.key.function >= 15 {
            return None;
        }
        Form::from_share(stored.form.share(), &stored.place).filter(|form| *form == stored.form)?;
        let share = u64::from(stored.form.share());
        let common = u64::from(stored.key.function) << FUNCTION_SHIFT | if hidden { HIDDEN } else { 0 };
        match stored.place {
            Place::File { serial } => {
                let fits = stored.size_bytes <= MAX_BLOB_BYTES && serial < super::limits::FILE_SERIALS;
                let place = u64::from(serial) << SERIAL_SHIFT | share << FILE_SHARE_SHIFT;
                fits.then_some(Packed(FILE | common | place | stored.size_bytes))
            }
            Place::Segment { slot, offset_bytes } => {
                let fits = (1..=MAX_SEGMENT_BLOB_BYTES).contains(&stored.size_bytes)
                    && offset_bytes < MAX_SEGMENT_BYTES
                    && offset_bytes % RECORD_ALIGN == 0
                    && slot < MAX_SEGMENTS;
                let place = u64::from(slot) << SLOT_SHIFT | (offset_bytes / RECORD_ALIGN) << OFFSET_SHIFT;
                fits.then(|| Packed(common | share << SEGMENT_SHARE_SHIFT | place | (stored.size_bytes - 1)))
            }
        }
    }

    /// Whether this is a blob; all zeros, which free slots and marks of the index hold, are none.
    pub fn is_blob(self) -> bool {
        self.function() != 0
    }

    /// Whether the blob may not be seen yet.
    pub fn is_hidden(self) -> bool {
        self.0 & HIDDEN != 0
    }

    /// The same, visible.
    pub fn revealed(self) -> Packed {
        Packed(self.0 & !HIDDEN)
    }

    /// The digest function's number; 0 for no blob.
    pub fn function(self) -> u8 {
        (self.0 >> FUNCTION_SHIFT & FUNCTION_MASK) as u8
    }

    /// The blob's size.
    pub fn size_bytes(self) -> u64 {
        if self.0 & FILE != 0 { self.0 & MAX_BLOB_BYTES } else { (self.0 & (MAX_SEGMENT_BLOB_BYTES - 1)) + 1 }
    }

    /// How the blob lies.
    pub fn form(self) -> Form {
        let share = if self.0 & FILE != 0 {
            self.0 >> FILE_SHARE_SHIFT & u64::from(MAX_FILE_SHARE)
        } else {
            self.0 >> SEGMENT_SHARE_SHIFT & u64::from(MAX_SEGMENT_SHARE)
        };
        if share == 0 { Form::Plain } else { Form::Zstd { share: share as u16 } }
    }

    /// Where the blob lies.
    pub fn place(self) -> Place {
        if self.0 & FILE != 0 {
            Place::File { serial: (self.0 >> SERIAL_SHIFT & 0xf) as u8 }
        } else {
            let offset_bytes = (self.0 >> OFFSET_SHIFT & ((1 << 22) - 1)) * RECORD_ALIGN;
            Place::Segment { slot: (self.0 >> SLOT_SHIFT & u64::from(MAX_SEGMENTS - 1)) as u32, offset_bytes }
        }
    }

    /// Both halves, for storage without padding.
    pub fn halves(self) -> [u32; 2] {
        [(self.0 >> 32) as u32, self.0 as u32]
    }

    /// From both halves.
    pub fn from_halves([high, low]: [u32; 2]) -> Packed {
        Packed(u64::from(high) << 32 | u64::from(low))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(size_bytes: u64, place: Place) -> Stored {
        Stored { key: Key { function: 1, hash: [7; 32] }, size_bytes, place, form: Form::Plain }
    }

    fn forms(place: &Place) -> Vec<Form> {
        (0..1024).filter_map(|share| Form::from_share(share, place)).collect()
    }

    #[test]
    fn a_place_survives_packing_at_the_ends_of_its_ranges() {
        let places = [
            (1, Place::Segment { slot: 0, offset_bytes: 0 }),
            (
                MAX_SEGMENT_BLOB_BYTES,
                Place::Segment { slot: MAX_SEGMENTS - 1, offset_bytes: MAX_SEGMENT_BYTES - RECORD_ALIGN },
            ),
            (0, Place::File { serial: 0 }),
            (MAX_BLOB_BYTES, Place::File { serial: 15 }),
        ];
        for (size, place) in places {
            for (hidden, form) in
                [false, true].into_iter().flat_map(|hidden| forms(&place).into_iter().map(move |form| (hidden, form)))
            {
                let packed = Packed::new(&Stored { form, ..stored(size, place) }, hidden).unwrap();
                let packed = Packed::from_halves(packed.halves());
                assert_eq!(packed.form(), form);
                assert_eq!((packed.size_bytes(), packed.place(), packed.is_hidden()), (size, place, hidden));
                assert_eq!(packed.function(), 1);
                assert!(packed.is_blob() && !packed.revealed().is_hidden());
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_not_packed() {
        let bad = [
            (0, Place::Segment { slot: 0, offset_bytes: 0 }),
            (MAX_SEGMENT_BLOB_BYTES + 1, Place::Segment { slot: 0, offset_bytes: 0 }),
            (0, Place::Segment { slot: MAX_SEGMENTS, offset_bytes: 0 }),
            (0, Place::Segment { slot: 0, offset_bytes: MAX_SEGMENT_BYTES }),
            (0, Place::Segment { slot: 0, offset_bytes: 63 }),
            (MAX_BLOB_BYTES + 1, Place::File { serial: 0 }),
            (0, Place::File { serial: 16 }),
        ];
        for (size, place) in bad {
            assert_eq!(Packed::new(&stored(size, place), false), None);
        }
        assert!(!Packed(0).is_blob());
        for (place, share) in [(Place::Segment { slot: 0, offset_bytes: 0 }, 16), (Place::File { serial: 0 }, 1024)] {
            assert_eq!(Form::from_share(share, &place), None);
            assert_eq!(Packed::new(&Stored { form: Form::Zstd { share }, ..stored(9000, place) }, false), None);
        }
    }

    #[test]
    fn a_share_holds_what_is_stored_and_little_more() {
        let segment = Place::Segment { slot: 0, offset_bytes: 0 };
        for size in [1, 64, 100, 129, 1000, 4096, 5000, 65_537, MAX_SEGMENT_BLOB_BYTES] {
            for length in (1..=size).step_by((size / 50).max(1) as usize) {
                let Some(form) = Form::in_segment(size, length) else {
                    let padded = size.next_multiple_of(64);
                    assert!(length + padded / 16 + 64 >= padded, "{length} of {size}");
                    continue;
                };
                let stored = Stored { form, ..stored(size, segment) };
                assert!(stored.record_payload_bytes() >= length);
                assert!(stored.record_payload_bytes() <= length + size / 16 + 128, "{length} of {size}");
                assert!(stored.charge_bytes() < segment.charge_bytes(size));
            }
        }
        let file = Place::File { serial: 0 };
        for size in [131_073, 1 << 20, 3 << 30, MAX_BLOB_BYTES] {
            let plain = file.charge_bytes(size);
            for part in 1..=100 {
                let length = plain / 100 * part;
                let stored = Stored { form: Form::in_file(size, length).unwrap(), ..stored(size, file) };
                assert!((length..=length + plain / 1000 + 8192).contains(&stored.charge_bytes()), "{part} of {size}");
            }
            assert_eq!(Form::in_file(size, plain / 10 * 11), None);
        }
    }

    #[test]
    fn a_key_gives_its_digest_back() {
        for function in DigestFunction::ALL {
            let digest = Digest::of(*function, b"x");
            let told = (function.hash_len() <= KEY_HASH_BYTES).then_some(digest);
            assert_eq!(Key::of(&digest).digest(1), told);
        }
        assert_eq!(Key { function: 14, hash: [0; 32] }.digest(1), None);
    }

    #[test]
    fn one_hash_in_two_functions_is_two_keys() {
        let hash = Digest::of(DigestFunction::Sha256, b"x");
        assert_ne!(Key::new(DigestFunction::Sha256, hash.hash()), Key::new(DigestFunction::Blake3, hash.hash()));
    }

    #[test]
    fn every_bit_of_a_long_hash_counts_and_its_beginning_stays() {
        for function in [DigestFunction::Sha384, DigestFunction::Sha512] {
            let digest = Digest::of(function, b"x");
            let key = Key::of(&digest);
            assert_eq!(key.hash[..PLAIN_BYTES], digest.hash()[..PLAIN_BYTES]);
            for bit in 0..8 * digest.hash().len() {
                let mut other = digest.hash().to_vec();
                other[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(Key::new(function, &other), key, "{function:?} bit {bit}");
            }
        }
    }
}
