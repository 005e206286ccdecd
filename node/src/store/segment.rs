//! The bytes of segments: files that hold many small blobs, one record after the other.
//!
//! A segment begins with a header of 64 bytes: magic (8), version (4), number (4), zeros (44), checksum (4). Records
//! follow at multiples of 64: a header of 64 bytes, and the blob. Numbers are little-endian. The record's header is magic
//! (4), function (1), zeros (3), size (4), CRC-32C of the blob (4), the key (32), the segment's
//! number (4), the record's offset (4), zeros (4), checksum of the header (4). So a record says what and where it is, and
//! a segment can be read without the index: where there is no header, the next multiple of 64 is tried.

use super::error::Damage;
use super::key::{KEY_HASH_BYTES, Key, RECORD_ALIGN};
use super::record::Fields;

/// Bytes before the first record, and before each record's blob.
pub const HEADER_BYTES: usize = 64;

const SEGMENT_MAGIC: &[u8; 8] = b"casbahSG";
const VERSION: u32 = 1;
const RECORD_MAGIC: &[u8; 4] = b"cbR1";

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// Whose record it is.
    pub key: Key,
    /// The blob's size.
    pub size_bytes: u32,
    /// The blob's CRC-32C.
    pub checksum: u32,
    /// The segment's number.
    pub segment: u32,
    /// Where the record begins.
    pub offset_bytes: u32,
}

/// Bytes of disk that the record of a blob of this size takes.
pub fn record_bytes(size_bytes: u64) -> u64 {
    HEADER_BYTES as u64 + size_bytes.next_multiple_of(RECORD_ALIGN)
}

/// The header of a segment.
pub fn header(number: u32) -> [u8; HEADER_BYTES] {
    let mut fields = Fields::<HEADER_BYTES>::new();
    fields.add(SEGMENT_MAGIC);
    fields.add(&VERSION.to_le_bytes());
    fields.add(&number.to_le_bytes());
    fields.add(&[0; 44]);
    sealed(fields)
}

fn sealed(mut fields: Fields<HEADER_BYTES>) -> [u8; HEADER_BYTES] {
    let checksum = crc32c::crc32c(fields.bytes.split_last_chunk::<4>().map_or(&[], |(front, _)| front));
    fields.add(&checksum.to_le_bytes());
    fields.bytes
}

// === impl RecordHeader ===

impl RecordHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut fields = Fields::<HEADER_BYTES>::new();
        fields.add(RECORD_MAGIC);
        fields.add(&[self.key.function, 0, 0, 0]);
        fields.add(&self.size_bytes.to_le_bytes());
        fields.add(&self.checksum.to_le_bytes());
        fields.add(&self.key.hash);
        fields.add(&self.segment.to_le_bytes());
        fields.add(&self.offset_bytes.to_le_bytes());
        fields.add(&[0; 4]);
        sealed(fields)
    }

    /// The header of these bytes; `None` when they are none.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<RecordHeader> {
        let rest = bytes.strip_prefix(RECORD_MAGIC)?;
        let ([function, ..], rest) = rest.split_first_chunk::<4>()?;
        let (size, rest) = rest.split_first_chunk()?;
        let (checksum, rest) = rest.split_first_chunk()?;
        let (hash, rest) = rest.split_first_chunk::<KEY_HASH_BYTES>()?;
        let (segment, rest) = rest.split_first_chunk()?;
        let (offset, _) = rest.split_first_chunk()?;
        let header = RecordHeader {
            key: Key { function: *function, hash: *hash },
            size_bytes: u32::from_le_bytes(*size),
            checksum: u32::from_le_bytes(*checksum),
            segment: u32::from_le_bytes(*segment),
            offset_bytes: u32::from_le_bytes(*offset),
        };
        (header.encode() == *bytes).then_some(header)
    }

    /// Checks a record that was read for this blob from this place.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(found: &[u8; HEADER_BYTES], blob: &[u8], key: &Key, place: (u32, u32)) -> Result<(), Damage> {
        let header = RecordHeader::decode(found).ok_or(Damage::Label)?;
        if header.key != *key
            || (header.segment, header.offset_bytes) != place
            || header.size_bytes as usize != blob.len()
        {
            return Err(Damage::Label);
        }
        if crc32c::crc32c(blob) == header.checksum { Ok(()) } else { Err(Damage::Checksum) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_encoding_and_no_flip() {
        let header = RecordHeader {
            key: Key { function: 1, hash: [5; 32] },
            size_bytes: 3,
            checksum: crc32c::crc32c(b"abc"),
            segment: 8,
            offset_bytes: 640,
        };
        let bytes = header.encode();
        assert_eq!(RecordHeader::decode(&bytes), Some(header));
        assert_eq!(RecordHeader::check(&bytes, b"abc", &header.key, (8, 640)), Ok(()));
        assert_eq!(RecordHeader::check(&bytes, b"abd", &header.key, (8, 640)), Err(Damage::Checksum));
        assert_eq!(RecordHeader::check(&bytes, b"abc", &header.key, (8, 704)), Err(Damage::Label));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHeader::decode(&flipped), None);
        }
    }
}
