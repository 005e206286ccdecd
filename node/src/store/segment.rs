//! The bytes of segments: files that hold many small blobs, one record after the other.
//!
//! A segment begins with a header of 64 bytes: magic (8), version (4), number (4), zeros (44), checksum (4). Records
//! follow at multiples of 64: a header of 64 bytes, and the blob, as it is or as one zstd frame. Numbers are little-endian.
//! The record's header is magic (4), function (1), zeros (3), size of the blob (4), CRC-32C of the bytes that follow (4), the
//! key (32), the segment's number (4), the record's offset (4), length of the frame or 0 (4), checksum of the header (4). So
//! a record says what and where it is, and a segment can be read without the index: where there is no header, the next
//! multiple of 64 is tried.

use super::error::Damage;
use super::key::{Form, KEY_HASH_BYTES, Key, MAX_SEGMENT_BLOB_BYTES, Place, RECORD_ALIGN, Stored};
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
    /// The length of the zstd frame that the blob is stored as; 0 when it is stored as it is.
    pub frame_bytes: u32,
    /// The CRC-32C of what is stored.
    pub checksum: u32,
    /// The segment's number.
    pub segment: u32,
    /// Where the record begins.
    pub offset_bytes: u32,
}

/// Bytes of disk that the record of a blob of this size takes when it is stored as it is.
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
        fields.add(&self.frame_bytes.to_le_bytes());
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
        let (offset, rest) = rest.split_first_chunk()?;
        let (frame, _) = rest.split_first_chunk()?;
        let header = RecordHeader {
            key: Key { function: *function, hash: *hash },
            size_bytes: u32::from_le_bytes(*size),
            frame_bytes: u32::from_le_bytes(*frame),
            checksum: u32::from_le_bytes(*checksum),
            segment: u32::from_le_bytes(*segment),
            offset_bytes: u32::from_le_bytes(*offset),
        };
        (header.encode() == *bytes && header.form().is_some()).then_some(header)
    }

    /// How the blob lies in the segment; `None` for what no record says of itself.
    pub fn form(&self) -> Option<Form> {
        match self.frame_bytes {
            0 => Some(Form::Plain),
            _ if u64::from(self.size_bytes) > MAX_SEGMENT_BLOB_BYTES => None,
            length => Form::in_segment(u64::from(self.size_bytes), u64::from(length)),
        }
    }

    /// The blob of this record, in the segment of this slot.
    pub fn stored(&self, slot: u32) -> Option<Stored> {
        let place = Place::Segment { slot, offset_bytes: u64::from(self.offset_bytes) };
        Some(Stored { key: self.key, size_bytes: u64::from(self.size_bytes), place, form: self.form()? })
    }

    /// Bytes that are stored of the blob.
    pub fn stored_bytes(&self) -> u32 {
        if self.frame_bytes == 0 { self.size_bytes } else { self.frame_bytes }
    }

    /// Bytes of the segment that the record takes.
    pub fn record_bytes(&self) -> u64 {
        self.stored(0).map_or(HEADER_BYTES as u64, |stored| stored.charge_bytes())
    }

    /// Checks a record that was read for this blob from the segment of this number. What follows the header comes with it,
    /// and may be longer than what is stored, whose length is returned.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(found: &[u8; HEADER_BYTES], payload: &[u8], stored: &Stored, segment: u32) -> Result<usize, Damage> {
        let header = RecordHeader::decode(found).ok_or(Damage::Label)?;
        let Place::Segment { slot, .. } = stored.place else { return Err(Damage::Label) };
        if header.segment != segment || header.stored(slot) != Some(*stored) {
            return Err(Damage::Label);
        }
        let length = header.stored_bytes() as usize;
        let bytes = payload.get(..length).ok_or(Damage::Label)?;
        if crc32c::crc32c(bytes) == header.checksum { Ok(length) } else { Err(Damage::Checksum) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> RecordHeader {
        RecordHeader {
            key: Key { function: 1, hash: [5; 32] },
            size_bytes: 3,
            frame_bytes: 0,
            checksum: crc32c::crc32c(b"abc"),
            segment: 8,
            offset_bytes: 640,
        }
    }

    #[test]
    fn a_header_survives_encoding_and_no_flip() {
        for header in [header(), RecordHeader { size_bytes: 1000, frame_bytes: 3, ..header() }] {
            let bytes = header.encode();
            assert_eq!(RecordHeader::decode(&bytes), Some(header));
            let stored = header.stored(2).unwrap();
            assert_eq!(RecordHeader::check(&bytes, b"abc", &stored, 8), Ok(3));
            assert_eq!(RecordHeader::check(&bytes, b"abd", &stored, 8), Err(Damage::Checksum));
            assert_eq!(RecordHeader::check(&bytes, b"ab", &stored, 8), Err(Damage::Label));
            assert_eq!(RecordHeader::check(&bytes, b"abc", &stored, 9), Err(Damage::Label));
            let elsewhere = Stored { place: Place::Segment { slot: 2, offset_bytes: 704 }, ..stored };
            assert_eq!(RecordHeader::check(&bytes, b"abc", &elsewhere, 8), Err(Damage::Label));
            let otherwise = Stored { form: Form::Zstd { share: 9 }, ..stored };
            assert_eq!(RecordHeader::check(&bytes, b"abc", &otherwise, 8), Err(Damage::Label));
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes;
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(RecordHeader::decode(&flipped), None);
                assert_eq!(RecordHeader::check(&flipped, b"abc", &stored, 8), Err(Damage::Label));
            }
        }
    }

    #[test]
    fn a_frame_that_is_no_smaller_than_its_blob_is_no_record() {
        for (size_bytes, frame_bytes) in [(3, 3), (1000, 1000), (u32::MAX, 5), (1000, u32::MAX), (0, 1)] {
            let header = RecordHeader { size_bytes, frame_bytes, ..header() };
            assert_eq!(RecordHeader::decode(&header.encode()), None);
        }
    }
}
