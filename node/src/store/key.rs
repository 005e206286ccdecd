//! What the index keeps of a blob: its key, and where it lies, packed into one word.

use casbah_cluster::digest::{Digest, DigestFunction};
use sha2::Digest as _;

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

/// A blob as the index knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub key: Key,
    /// Its size.
    pub size_bytes: u64,
    /// Where it lies.
    pub place: Place,
}

/// Function, size and place of a blob, and whether it is visible yet, in 64 bits:
/// bit 63 file, bit 62 hidden, bits 58-61 function, and then for a file serial (4) and size (54), for a segment
/// slot (18), offset in units of 64 bytes (22) and size (18).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed(u64);

const FILE: u64 = 1 << 63;
const HIDDEN: u64 = 1 << 62;
const FUNCTION_SHIFT: u32 = 58;
const FUNCTION_MASK: u64 = 0xf;
const SERIAL_SHIFT: u32 = 54;
const SLOT_SHIFT: u32 = 40;
const OFFSET_SHIFT: u32 = 18;

/// The largest blob a segment takes.
pub const MAX_SEGMENT_BLOB_BYTES: u64 = (1 << 18) - 1;
/// The largest segment.
pub const MAX_SEGMENT_BYTES: u64 = (1 << 22) * RECORD_ALIGN;
/// The most segments.
pub const MAX_SEGMENTS: u32 = 1 << 18;
/// The largest blob at all.
pub const MAX_BLOB_BYTES: u64 = (1 << 54) - 1;

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
    /// Bytes of disk that a blob of this size takes here.
    pub fn charge_bytes(&self, size_bytes: u64) -> u64 {
        match self {
            Place::Segment { .. } => super::segment::record_bytes(size_bytes),
            Place::File { .. } => super::blob_file::file_bytes(size_bytes),
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
        let common = u64::from(stored.key.function) << FUNCTION_SHIFT | if hidden { HIDDEN } else { 0 };
        match stored.place {
            Place::File { serial } => {
                let fits = stored.size_bytes <= MAX_BLOB_BYTES && serial < super::limits::FILE_SERIALS;
                fits.then_some(Packed(FILE | common | u64::from(serial) << SERIAL_SHIFT | stored.size_bytes))
            }
            Place::Segment { slot, offset_bytes } => {
                let fits = stored.size_bytes <= MAX_SEGMENT_BLOB_BYTES
                    && offset_bytes < MAX_SEGMENT_BYTES
                    && offset_bytes % RECORD_ALIGN == 0
                    && slot < MAX_SEGMENTS;
                let place = u64::from(slot) << SLOT_SHIFT | (offset_bytes / RECORD_ALIGN) << OFFSET_SHIFT;
                fits.then_some(Packed(common | place | stored.size_bytes))
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
        self.0 & if self.0 & FILE != 0 { MAX_BLOB_BYTES } else { MAX_SEGMENT_BLOB_BYTES }
    }

    /// Where the blob lies.
    pub fn place(self) -> Place {
        if self.0 & FILE != 0 {
            Place::File { serial: (self.0 >> SERIAL_SHIFT & 0xf) as u8 }
        } else {
            let offset_bytes = (self.0 >> OFFSET_SHIFT & ((1 << 22) - 1)) * RECORD_ALIGN;
            Place::Segment { slot: (self.0 >> SLOT_SHIFT & ((1 << 18) - 1)) as u32, offset_bytes }
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
        Stored { key: Key { function: 1, hash: [7; 32] }, size_bytes, place }
    }

    #[test]
    fn a_place_survives_packing_at_the_ends_of_its_ranges() {
        let places = [
            (0, Place::Segment { slot: 0, offset_bytes: 0 }),
            (
                MAX_SEGMENT_BLOB_BYTES,
                Place::Segment { slot: MAX_SEGMENTS - 1, offset_bytes: MAX_SEGMENT_BYTES - RECORD_ALIGN },
            ),
            (0, Place::File { serial: 0 }),
            (MAX_BLOB_BYTES, Place::File { serial: 15 }),
        ];
        for (size, place) in places {
            for hidden in [false, true] {
                let packed = Packed::new(&stored(size, place), hidden).unwrap();
                let packed = Packed::from_halves(packed.halves());
                assert_eq!((packed.size_bytes(), packed.place(), packed.is_hidden()), (size, place, hidden));
                assert_eq!(packed.function(), 1);
                assert!(packed.is_blob() && !packed.revealed().is_hidden());
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_not_packed() {
        let bad = [
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
