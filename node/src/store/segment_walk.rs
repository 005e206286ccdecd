//! A segment read from one end to the other, without the index.

use std::io;

use super::disk::Disk;
use super::key::RECORD_ALIGN;
use super::limits::PIECE_BYTES;
use super::segment::{HEADER_BYTES, RecordHeader, record_bytes};
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
}

// === impl SegmentWalk ===

impl<'a> SegmentWalk<'a> {
    /// From the first record on, up to this offset.
    pub fn new(disk: &'a Disk, file: &'a SegmentFile, end: u64) -> SegmentWalk<'a> {
        SegmentWalk { disk, file, end, at: HEADER_BYTES as u64, window: Vec::new(), start: 0 }
    }

    /// The next record that says it is here; its blob may be damaged. Where no record is, the next place is tried.
    pub fn next(&mut self) -> io::Result<Option<RecordHeader>> {
        while self.at + (HEADER_BYTES as u64) <= self.end {
            let at = self.at;
            let number = self.file.number;
            let header = self.read(at, HEADER_BYTES)?.first_chunk().and_then(RecordHeader::decode);
            let here = header.filter(|header| header.segment == number && u64::from(header.offset_bytes) == at);
            let Some(header) = here else {
                self.at += RECORD_ALIGN;
                continue;
            };
            self.at += record_bytes(u64::from(header.size_bytes));
            return Ok(Some(header));
        }
        Ok(None)
    }

    /// The blob of a record, if it is all there and matches its checksum.
    pub fn blob(&mut self, header: &RecordHeader) -> io::Result<Option<&[u8]>> {
        let length = header.size_bytes as usize;
        let blob = self.read(u64::from(header.offset_bytes) + HEADER_BYTES as u64, length)?;
        Ok((blob.len() == length && crc32c::crc32c(blob) == header.checksum).then_some(blob))
    }

    /// Looks for records right behind this one's header again, since its blob is not what it says.
    pub fn distrust(&mut self, header: &RecordHeader) {
        self.at = u64::from(header.offset_bytes) + RECORD_ALIGN;
    }

    fn read(&mut self, at: u64, length: usize) -> io::Result<&[u8]> {
        let length = length.min(usize::try_from(self.end.saturating_sub(at)).unwrap_or(0));
        if at < self.start || at + length as u64 > self.start + self.window.len() as u64 {
            let wanted = (self.end - at).min(length.max(PIECE_BYTES) as u64) as usize;
            self.window.resize(wanted, 0);
            self.start = at;
            self.disk.read_exact_at(&self.file.file, &mut self.window, at)?;
        }
        let from = (at - self.start) as usize;
        Ok(self.window.get(from..from + length).unwrap_or_default())
    }
}
