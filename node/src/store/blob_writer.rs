//! Writes the file of a large blob, piece by piece, from its first byte to its trailer.
//!
//! With compression, the first 256 KiB decide: if they shrink enough, the blob is stored in zstd frames, and else as it is.

use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use casbah_cluster::digest::Digest;

use super::blob_file::{Layout, trailer};
use super::codecs::{Codecs, pays};
use super::disk::Disk;
use super::limits::{FRAME_BYTES, ZSTD_FRAME_BYTES};

/// A blob's file on its way.
#[derive(Debug)]
pub struct BlobFileWriter {
    file: File,
    size_bytes: u64,
    /// Bytes of the file so far.
    written_bytes: u64,
    /// What will follow the bytes.
    table: Vec<u8>,
    method: Method,
}

#[derive(Debug)]
enum Method {
    /// As they come.
    Plain { checksum: u32, filled: usize },
    /// In frames; the blob's next one is gathered.
    Zstd { codecs: Arc<Codecs>, frame: Vec<u8> },
}

const PLAIN: Method = Method::Plain { checksum: 0, filled: 0 };

// === impl BlobFileWriter ===

impl BlobFileWriter {
    /// Begins a blob of this size in a new file. It is compressed if there are codecs and it pays.
    pub fn new(disk: &Disk, file: File, size_bytes: u64, codecs: Option<Arc<Codecs>>) -> io::Result<BlobFileWriter> {
        disk.allocate(&file, Layout::plain(size_bytes).end())?;
        let method = codecs.map_or(PLAIN, |codecs| Method::Zstd { codecs, frame: Vec::new() });
        Ok(BlobFileWriter { file, size_bytes, written_bytes: 0, table: Vec::new(), method })
    }

    /// Adds the next bytes.
    pub fn write(&mut self, disk: &Disk, pieces: &[Bytes]) -> io::Result<()> {
        if let Method::Plain { .. } = self.method {
            return self.write_plain(disk, pieces);
        }
        for (at, piece) in pieces.iter().enumerate() {
            let mut piece = piece.clone();
            while let Method::Zstd { frame, .. } = &mut self.method
                && !piece.is_empty()
            {
                let now = piece.split_to(piece.len().min(ZSTD_FRAME_BYTES - frame.len()));
                frame.extend_from_slice(&now);
                if frame.len() == ZSTD_FRAME_BYTES {
                    self.end_frame(disk)?;
                }
            }
            if let Method::Plain { .. } = self.method {
                // All the rest at once.
                let rest: Vec<Bytes> = std::iter::once(piece).chain(pieces.iter().skip(at + 1).cloned()).collect();
                return self.write_plain(disk, &rest);
            }
        }
        Ok(())
    }

    /// Writes what follows the bytes, once all have been written.
    pub fn finish(mut self, disk: &Disk, digest: &Digest) -> io::Result<(File, Layout)> {
        if let Method::Zstd { frame, .. } = &self.method
            && !frame.is_empty()
        {
            self.end_frame(disk)?;
        }
        let layout = match self.method {
            Method::Plain { checksum, filled } => {
                if filled > 0 {
                    self.table.extend(checksum.to_le_bytes());
                }
                Layout::plain(self.size_bytes)
            }
            Method::Zstd { .. } => Layout::zstd(self.size_bytes, self.written_bytes),
        };
        let padding = self.written_bytes.next_multiple_of(8) - self.written_bytes;
        let mut tail = vec![0; padding as usize];
        tail.append(&mut self.table);
        tail.extend(trailer(digest, layout));
        disk.write_all_at(&self.file, &tail, self.written_bytes)?;
        if layout.is_zstd() {
            // Room for the whole blob had been allocated.
            disk.truncate(&self.file, layout.end())?;
        }
        Ok((self.file, layout))
    }

    fn write_plain(&mut self, disk: &Disk, pieces: &[Bytes]) -> io::Result<()> {
        disk.write_at(&self.file, pieces, self.written_bytes)?;
        for piece in pieces {
            self.add_checksums(piece);
            self.written_bytes += piece.len() as u64;
        }
        Ok(())
    }

    fn end_frame(&mut self, disk: &Disk) -> io::Result<()> {
        let Method::Zstd { codecs, frame } = &mut self.method else { return Ok(()) };
        let compressed = codecs.compress(frame)?;
        if self.written_bytes == 0 && !pays(compressed.len() as u64, frame.len() as u64) {
            let first = Bytes::from(std::mem::take(frame));
            self.method = PLAIN;
            return self.write_plain(disk, &[first]);
        }
        frame.clear();
        disk.write_all_at(&self.file, &compressed, self.written_bytes)?;
        self.written_bytes += compressed.len() as u64;
        self.table.extend(self.written_bytes.to_le_bytes());
        self.table.extend(crc32c::crc32c(&compressed).to_le_bytes());
        Ok(())
    }

    fn add_checksums(&mut self, mut bytes: &[u8]) {
        let Method::Plain { checksum, filled } = &mut self.method else { return };
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(FRAME_BYTES - *filled));
            *checksum = crc32c::crc32c_append(*checksum, now);
            *filled += now.len();
            if *filled == FRAME_BYTES {
                self.table.extend(checksum.to_le_bytes());
                (*checksum, *filled) = (0, 0);
            }
            bytes = later;
        }
    }
}
