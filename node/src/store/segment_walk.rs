//! A segment read from one end to the other, without the index.

use std::io;

use super::disk::Disk;
use super::key::RECORD_ALIGN;
use super::limits::{DISK_BLOCK_BYTES, PIECE_BYTES};
use super::segment::{HEADER_BYTES, RecordHeader};
use super::segments::SegmentFile;

/// Where a walk is. Large parts of the segment are read at a time.
pub struct SegmentWalk<'a> {
    disk: &'a Disk,
    file: &'a SegmentFile,
    /// Where the segment ends.
    end: u64,
    /// The next record.
    at: u64,
    /// What has been read, and from where on.
    window: Vec<u8>,
    start: u64,
    /// Up to here, no more is read at a time than is asked for: somewhere in it the disk fails.
    careful_until: u64,
}

// === impl SegmentWalk ===

impl<'a> SegmentWalk<'a> {
    /// From the first record on, up to this offset.
    pub fn new(disk: &'a Disk, file: &'a SegmentFile, end: u64) -> SegmentWalk<'a> {
        SegmentWalk { disk, file, end, at: HEADER_BYTES as u64, window: Vec::new(), start: 0, careful_until: 0 }
    }

    /// The next record that says it is here; its blob may be damaged. Where no record is, the next place is tried. A file
    /// that is too short ends the walk.
    ///
    /// # Errors
    /// What the disk said of this place; the next call goes on behind it.
    pub fn next(&mut self) -> io::Result<Option<RecordHeader>> {
        while self.at + (HEADER_BYTES as u64) <= self.end {
            let at = self.at;
            let number = self.file.number;
            let header = match self.read(at, HEADER_BYTES) {
                Ok(bytes) => bytes.first_chunk().and_then(RecordHeader::decode),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.at = self.end;
                    return Ok(None);
                }
                Err(error) => {
                    self.at = (at + 1).next_multiple_of(DISK_BLOCK_BYTES);
                    return Err(error);
                }
            };
            let here = header.filter(|header| header.segment == number && u64::from(header.offset_bytes) == at);
            let Some(header) = here else {
                self.at += RECORD_ALIGN;
                continue;
            };
            self.at += header.record_bytes();
            return Ok(Some(header));
        }
        Ok(None)
    }

    /// What is stored of the blob of a record, if it is all there and matches its checksum.
    ///
    /// # Errors
    /// What the disk said of this blob; the walk may go on.
    pub fn blob(&mut self, header: &RecordHeader) -> io::Result<Option<&[u8]>> {
        let length = header.stored_bytes() as usize;
        let blob = match self.read(u64::from(header.offset_bytes) + HEADER_BYTES as u64, length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        };
        Ok((blob.len() == length && crc32c::crc32c(blob) == header.checksum).then_some(blob))
    }

    /// Looks for records right behind this one's header again, since its blob is not what it says.
    pub fn distrust(&mut self, header: &RecordHeader) {
        self.at = u64::from(header.offset_bytes) + RECORD_ALIGN;
    }

    fn read(&mut self, at: u64, length: usize) -> io::Result<&[u8]> {
        let length = length.min(usize::try_from(self.end.saturating_sub(at)).unwrap_or(0));
        if at < self.start || at + length as u64 > self.start + self.window.len() as u64 {
            let wanted = (self.end.saturating_sub(at)).min(length.max(PIECE_BYTES) as u64) as usize;
            if at < self.careful_until || self.fill(at, wanted).is_err() {
                self.careful_until = self.careful_until.max(at + wanted as u64);
                self.fill(at, length)?;
            }
        }
        let from = (at - self.start) as usize;
        Ok(self.window.get(from..from + length).unwrap_or_default())
    }

    fn fill(&mut self, at: u64, length: usize) -> io::Result<()> {
        self.window.resize(length, 0);
        self.start = at;
        // What is not all there is not to be taken for what has been read.
        self.disk.read_exact_at(&self.file.file, &mut self.window, at).inspect_err(|_| self.window.clear())
    }
}
