//! The file of a large blob: its bytes from offset 0 on, a table of checksums, and a trailer that says whose they are.
//!
//! ```text
//! as it is:    bytes  | zeros up to a multiple of 8 | CRC-32C of each frame of 64 KiB, 4 bytes each | trailer, 104 bytes
//! compressed:  frames | zeros up to a multiple of 8 | for each frame its end (8) and its CRC-32C (4)  | trailer, 104 bytes
//! ```
//! Compressed, each 256 KiB of the blob are a zstd frame of their own, and all frames together are one of the blob. Numbers
//! are little-endian. The file has this form and its final name or is not the store's.

use std::fs::File;
use std::io;
use std::ops::Range;

use bytes::Bytes;
use casbah_cluster::digest::{Digest, DigestFunction};

use super::codecs::{Codecs, most_frame_bytes};
use super::disk::Disk;
use super::error::Damage;
use super::key::Form;
use super::limits::{DISK_BLOCK_BYTES, FRAME_BYTES, ZSTD_FRAME_BYTES};

/// Length of the trailer.
pub const TRAILER_BYTES: usize = 104;
const MAGIC: &[u8; 8] = b"casbahBF";
const VERSION: u32 = 1;
/// Where the trailer says how long the frames are.
const FRAMES_LENGTH_AT: Range<usize> = 92..100;
/// Bytes of the table for each zstd frame.
const FRAME_ENTRY_BYTES: usize = 12;

/// Where the parts of a blob's file lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    size_bytes: u64,
    /// Length of all zstd frames; 0 for a blob that is stored as it is.
    frames_bytes: u64,
}

/// Some frames of a compressed blob, which match their checksums.
#[derive(Debug)]
pub struct Frames {
    bytes: Vec<u8>,
    /// Where each ends, and how many bytes of the blob it makes.
    ends: Vec<(usize, usize)>,
}

/// Bytes of disk that the file of a blob of this size takes as it is.
pub fn file_bytes(size_bytes: u64) -> u64 {
    Layout::plain(size_bytes).end().next_multiple_of(DISK_BLOCK_BYTES)
}

// === impl Layout ===

impl Layout {
    /// For a blob of this size, as it is.
    pub fn plain(size_bytes: u64) -> Layout {
        Layout { size_bytes, frames_bytes: 0 }
    }

    /// For a blob of this size in zstd frames of this length.
    pub fn zstd(size_bytes: u64, frames_bytes: u64) -> Layout {
        Layout { size_bytes, frames_bytes }
    }

    /// Whether the blob is compressed.
    pub fn is_zstd(self) -> bool {
        self.frames_bytes > 0
    }

    /// How the blob lies; `None` for what no store writes.
    pub fn form(self) -> Option<Form> {
        if self.is_zstd() { Form::in_file(self.size_bytes, self.end()) } else { Some(Form::Plain) }
    }

    /// Bytes that are stored of the blob.
    pub fn stored_bytes(self) -> u64 {
        if self.is_zstd() { self.frames_bytes } else { self.size_bytes }
    }

    /// How many zstd frames there are, or would be.
    pub fn zstd_frames(self) -> u64 {
        self.size_bytes.div_ceil(ZSTD_FRAME_BYTES as u64)
    }

    /// Where the checksum of a frame of a blob that is not compressed is.
    pub fn checksum_offset(self, frame: u64) -> u64 {
        self.table_offset() + 4 * frame
    }

    /// Where the trailer is.
    pub fn trailer_offset(self) -> u64 {
        if self.is_zstd() {
            self.table_offset() + self.zstd_frames() * FRAME_ENTRY_BYTES as u64
        } else {
            self.checksum_offset(self.size_bytes.div_ceil(FRAME_BYTES as u64))
        }
    }

    /// The length of the file.
    pub fn end(self) -> u64 {
        self.trailer_offset() + TRAILER_BYTES as u64
    }

    fn table_offset(self) -> u64 {
        self.stored_bytes().next_multiple_of(8)
    }
}

/// The trailer of a blob's file: magic (8), version (4), frame size (4), blob size (8), function (1), hash length (1),
/// zeros (2), hash and zeros (64), length of the zstd frames or 0 (8), checksum of all before (4).
pub fn trailer(digest: &Digest, layout: Layout) -> [u8; TRAILER_BYTES] {
    let frame_bytes = if layout.is_zstd() { ZSTD_FRAME_BYTES } else { FRAME_BYTES };
    let mut bytes = Vec::with_capacity(TRAILER_BYTES);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((frame_bytes as u32).to_le_bytes());
    bytes.extend(digest.size_bytes().to_le_bytes());
    bytes.push(digest.function().number());
    bytes.push(digest.hash().len() as u8);
    bytes.extend([0; 2]);
    bytes.extend(digest.hash());
    bytes.resize(FRAMES_LENGTH_AT.start, 0);
    bytes.extend(layout.frames_bytes.to_le_bytes());
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes.try_into().expect("a trailer has TRAILER_BYTES bytes")
}

/// The digest that a trailer names; `None` when it is no trailer.
pub fn digest_in_trailer(found: &[u8; TRAILER_BYTES]) -> Option<Digest> {
    let size_bytes = u64::from_le_bytes(found.get(16..24)?.try_into().ok()?);
    let function = DigestFunction::from_number(*found.get(24)?)?;
    let hash = found.get(28..)?.get(..function.hash_len())?;
    let layout = Layout::zstd(size_bytes, frames_in_trailer(found));
    Digest::from_raw(function, hash, size_bytes).filter(|digest| trailer(digest, layout) == *found)
}

/// The layout of a file of this length with this trailer, if it is the blob's.
///
/// # Errors
/// What is wrong with it.
pub fn check_label(digest: &Digest, length: u64, found: &[u8]) -> Result<Layout, Damage> {
    let frames_bytes = frames_in_trailer(found);
    if frames_bytes > length {
        return Err(Damage::Label);
    }
    let layout = Layout::zstd(digest.size_bytes(), frames_bytes);
    if found != trailer(digest, layout) {
        return Err(Damage::Label);
    }
    if length == layout.end() { Ok(layout) } else { Err(Damage::Short) }
}

fn frames_in_trailer(found: &[u8]) -> u64 {
    found.get(FRAMES_LENGTH_AT).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Checks whole frames of a blob that is not compressed (the last may be short) against their checksums.
pub fn check_frames(bytes: &[u8], checksums: &[u8]) -> Result<(), Damage> {
    let frames = bytes.chunks(FRAME_BYTES);
    if frames.len() * 4 != checksums.len() {
        return Err(Damage::Short);
    }
    let equal = |(frame, checksum): (&[u8], &[u8])| crc32c::crc32c(frame).to_le_bytes() == checksum;
    if frames.zip(checksums.chunks(4)).all(equal) { Ok(()) } else { Err(Damage::Checksum) }
}

// === impl Frames ===

impl Frames {
    /// Reads zstd frames, and compares them with their checksums. Where the table of frames is damaged, nothing matches.
    ///
    /// # Errors
    /// What the disk says; inside, what is wrong with the frames.
    pub fn read(disk: &Disk, file: &File, layout: Layout, frames: Range<u64>) -> io::Result<Result<Frames, Damage>> {
        let before = frames.start.saturating_sub(1);
        let mut table = vec![0; (frames.end - before) as usize * FRAME_ENTRY_BYTES];
        disk.read_exact_at(file, &mut table, layout.table_offset() + before * FRAME_ENTRY_BYTES as u64)?;
        let entries = table.as_chunks::<FRAME_ENTRY_BYTES>().0.iter().map(|entry| {
            let (end, checksum) = entry.split_at(8);
            let end = end.try_into().map_or(0, u64::from_le_bytes);
            (end, checksum.try_into().map_or(0, u32::from_le_bytes))
        });
        let mut entries = entries.collect::<Vec<(u64, u32)>>().into_iter();
        let start = if frames.start == 0 { 0 } else { entries.next().map_or(0, |(end, _)| end) };
        // What the table says is bounded before it is believed.
        let (mut at, mut ends, mut checksums) = (start, Vec::new(), Vec::new());
        for (frame, (end, checksum)) in frames.clone().zip(entries) {
            let rest = layout.size_bytes.saturating_sub(frame * ZSTD_FRAME_BYTES as u64);
            let size = rest.min(ZSTD_FRAME_BYTES as u64) as usize;
            let is_last = frame + 1 == layout.zstd_frames();
            let fits = end > at && end - at <= most_frame_bytes(size) as u64 && end <= layout.frames_bytes;
            if !fits || is_last && end != layout.frames_bytes {
                return Ok(Err(Damage::Checksum));
            }
            at = end;
            ends.push(((end - start) as usize, size));
            checksums.push(checksum);
        }
        let mut bytes = vec![0; (at - start) as usize];
        disk.read_exact_at(file, &mut bytes, start)?;
        let found = Frames { bytes, ends };
        let is_good = found.each().zip(checksums).all(|((frame, _), checksum)| crc32c::crc32c(frame) == checksum);
        Ok(if is_good { Ok(found) } else { Err(Damage::Checksum) })
    }

    /// Each frame, and how many bytes of the blob it makes.
    pub fn each(&self) -> impl Iterator<Item = (&[u8], usize)> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|(end, _)| *end));
        starts.zip(&self.ends).map(|(start, (end, size))| (self.bytes.get(start..*end).unwrap_or_default(), *size))
    }

    /// Decodes all of them into a buffer that they fill.
    ///
    /// # Errors
    /// [`Damage::Frame`].
    pub fn decode(&self, codecs: &Codecs, mut out: &mut [u8]) -> Result<(), Damage> {
        for (frame, size) in self.each() {
            let (now, later) = out.split_at_mut_checked(size).ok_or(Damage::Frame)?;
            codecs.decompress(frame, now)?;
            out = later;
        }
        if out.is_empty() { Ok(()) } else { Err(Damage::Frame) }
    }

    /// All of them as they are stored.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trailer_gives_its_digest_back_whatever_the_function() {
        for function in DigestFunction::ALL {
            let digest = Digest::of(*function, b"x");
            let layout = Layout::zstd(1, if function.number() % 2 == 0 { 99 } else { 0 });
            let mut bytes = trailer(&digest, layout);
            assert_eq!(digest_in_trailer(&bytes), Some(digest));
            assert_eq!(check_label(&digest, layout.end(), &bytes), Ok(layout));
            assert_eq!(check_label(&digest, layout.end() + 8, &bytes), Err(Damage::Short));
            for bit in 0..8 * bytes.len() {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(digest_in_trailer(&bytes), None, "{function:?} bit {bit}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }
}
