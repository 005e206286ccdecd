//! The file of a large blob: its bytes from offset 0 on, a table of checksums, and a trailer that says whose they are.
//!
//! ```text
//! bytes | zeros up to a multiple of 8 | CRC-32C of each frame of 64 KiB, 4 bytes each | trailer, 104 bytes
//! ```
//! Numbers are little-endian. The file has this form and its final name or is not the store's.

use std::fs::File;
use std::io;

use bytes::Bytes;
use casbah_cluster::digest::{Digest, DigestFunction};

use super::disk::Disk;
use super::error::Damage;
use super::limits::{DISK_BLOCK_BYTES, FRAME_BYTES};

/// Length of the trailer.
pub const TRAILER_BYTES: usize = 104;
const MAGIC: &[u8; 8] = b"casbahBF";
const VERSION: u32 = 1;

/// Writes a blob's file piece by piece, from its first byte to its trailer.
#[derive(Debug)]
pub struct BlobFileWriter {
    file: File,
    checksums: Vec<u8>,
    frame_checksum: u32,
    frame_filled: usize,
    written_bytes: u64,
}

/// Where the parts of a blob's file lie.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    size_bytes: u64,
}

/// Bytes of disk that the file of a blob of this size takes.
pub fn file_bytes(size_bytes: u64) -> u64 {
    Layout::new(size_bytes).end().next_multiple_of(DISK_BLOCK_BYTES)
}

// === impl Layout ===

impl Layout {
    /// For a blob of this size.
    pub fn new(size_bytes: u64) -> Layout {
        Layout { size_bytes }
    }

    /// Where the checksum of the frame is.
    pub fn checksum_offset(self, frame: u64) -> u64 {
        self.size_bytes.next_multiple_of(8) + 4 * frame
    }

    /// Where the trailer is.
    pub fn trailer_offset(self) -> u64 {
        self.checksum_offset(self.size_bytes.div_ceil(FRAME_BYTES as u64))
    }

    /// The length of the file.
    pub fn end(self) -> u64 {
        self.trailer_offset() + TRAILER_BYTES as u64
    }
}

// === impl BlobFileWriter ===

impl BlobFileWriter {
    /// Begins a blob of this size in a new file.
    pub fn new(disk: &Disk, file: File, size_bytes: u64) -> io::Result<BlobFileWriter> {
        disk.allocate(&file, Layout::new(size_bytes).end())?;
        Ok(BlobFileWriter { file, checksums: Vec::new(), frame_checksum: 0, frame_filled: 0, written_bytes: 0 })
    }

    /// Adds the next bytes.
    pub fn write(&mut self, disk: &Disk, pieces: &[Bytes]) -> io::Result<()> {
        disk.write_at(&self.file, pieces, self.written_bytes)?;
        for piece in pieces {
            self.add_checksums(piece);
            self.written_bytes += piece.len() as u64;
        }
        Ok(())
    }

    /// Writes what follows the bytes, once all have been written.
    pub fn finish(mut self, disk: &Disk, digest: &Digest) -> io::Result<File> {
        if self.frame_filled > 0 {
            self.checksums.extend(self.frame_checksum.to_le_bytes());
        }
        let padding = self.written_bytes.next_multiple_of(8) - self.written_bytes;
        let mut tail = vec![0; padding as usize];
        tail.append(&mut self.checksums);
        tail.extend(trailer(digest));
        disk.write_all_at(&self.file, &tail, self.written_bytes)?;
        Ok(self.file)
    }

    fn add_checksums(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(FRAME_BYTES - self.frame_filled));
            self.frame_checksum = crc32c::crc32c_append(self.frame_checksum, now);
            self.frame_filled += now.len();
            if self.frame_filled == FRAME_BYTES {
                self.checksums.extend(self.frame_checksum.to_le_bytes());
                (self.frame_checksum, self.frame_filled) = (0, 0);
            }
            bytes = later;
        }
    }
}

/// The trailer of a blob's file: magic (8), version (4), frame size (4), blob size (8), function (1), hash length (1),
/// zeros (2), hash and zeros (64), zeros (8), checksum of all before (4).
pub fn trailer(digest: &Digest) -> [u8; TRAILER_BYTES] {
    let mut bytes = Vec::with_capacity(TRAILER_BYTES);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((FRAME_BYTES as u32).to_le_bytes());
    bytes.extend(digest.size_bytes().to_le_bytes());
    bytes.push(digest.function().number());
    bytes.push(digest.hash().len() as u8);
    bytes.extend([0; 2]);
    bytes.extend(digest.hash());
    bytes.resize(TRAILER_BYTES - 4, 0);
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes.try_into().expect("a trailer has TRAILER_BYTES bytes")
}

/// The digest that a trailer names; `None` when it is no trailer.
pub fn digest_in_trailer(found: &[u8; TRAILER_BYTES]) -> Option<Digest> {
    let size_bytes = u64::from_le_bytes(found.get(16..24)?.try_into().ok()?);
    let function = DigestFunction::from_number(*found.get(24)?)?;
    let hash = found.get(28..)?.get(..function.hash_len())?;
    Digest::from_raw(function, hash, size_bytes).filter(|digest| trailer(digest) == *found)
}

/// Whether a file of this length with this trailer is the blob's.
pub fn check_label(digest: &Digest, length: u64, found: &[u8]) -> Result<(), Damage> {
    if length != Layout::new(digest.size_bytes()).end() {
        return Err(Damage::Short);
    }
    if found == trailer(digest) { Ok(()) } else { Err(Damage::Label) }
}

/// Checks whole frames (the last may be short) against their checksums.
pub fn check_frames(bytes: &[u8], checksums: &[u8]) -> Result<(), Damage> {
    let frames = bytes.chunks(FRAME_BYTES);
    if frames.len() * 4 != checksums.len() {
        return Err(Damage::Short);
    }
    let equal = |(frame, checksum): (&[u8], &[u8])| crc32c::crc32c(frame).to_le_bytes() == checksum;
    if frames.zip(checksums.chunks(4)).all(equal) { Ok(()) } else { Err(Damage::Checksum) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trailer_gives_its_digest_back_whatever_the_function() {
        for function in DigestFunction::ALL {
            let digest = Digest::of(*function, b"x");
            let mut bytes = trailer(&digest);
            assert_eq!(digest_in_trailer(&bytes), Some(digest));
            for bit in 0..8 * bytes.len() {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(digest_in_trailer(&bytes), None, "{function:?} bit {bit}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }
}
