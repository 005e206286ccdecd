//! Reads: every byte is checked against its checksum before it is returned.

use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use casbah_cluster::digest::Digest;

use super::blob_file::{self, Layout, TRAILER_BYTES};
use super::error::{Damage, ReadError};
use super::key::{Key, Place};
use super::limits::{FRAME_BYTES, PIECE_BYTES};
use super::segment::{self, RecordHeader};
use super::segments::SegmentFile;
use super::shared::{AsMutBytes, JobError, Shared};

/// A read under way. Pieces come in order; dropping it ends the read.
pub struct Reader {
    shared: Arc<Shared>,
    digest: Digest,
    source: Source,
    /// The next byte to return.
    offset: u64,
    /// Where the read ends.
    end: u64,
}

/// Where a blob is read from.
enum Source {
    /// Nowhere: the empty blob.
    Nowhere,
    /// A segment, from this offset on. Holding the file, the read goes on when the blob is evicted or moved.
    Segment { slot: u32, offset_bytes: u64, file: Arc<SegmentFile> },
    /// A file of its own, once it is open.
    File { serial: u8, file: Option<Arc<File>> },
}

/// The whole blob.
pub async fn get(shared: &Arc<Shared>, digest: &Digest, limit_bytes: u64) -> Result<Bytes, ReadError> {
    let mut reader = find(shared, digest)?;
    let digest = reader.digest;
    let too_large = ReadError::TooLarge { digest, limit_bytes };
    if digest.size_bytes() > limit_bytes {
        return Err(too_large);
    }
    match reader.source {
        Source::Nowhere => Ok(Bytes::new()),
        Source::Segment { .. } => reader.record().await,
        Source::File { .. } => {
            let Ok(size) = usize::try_from(digest.size_bytes()) else { return Err(too_large) };
            let file = reader.open().await?;
            Ok(Bytes::from(reader.read_frames(&file, vec![0; size], 0).await?))
        }
    }
}

/// A range of a blob.
pub fn read(shared: &Arc<Shared>, digest: &Digest, offset: u64, length: Option<u64>) -> Result<Reader, ReadError> {
    let digest = *digest;
    let reader = find(shared, &digest)?;
    let rest = digest.size_bytes().checked_sub(offset).ok_or(ReadError::OutOfRange { digest, offset })?;
    let end = offset + length.unwrap_or(rest).min(rest);
    Ok(Reader { offset, end, ..reader })
}

/// A reader of the whole blob, which is used now.
fn find(shared: &Arc<Shared>, digest: &Digest) -> Result<Reader, ReadError> {
    let digest = *digest;
    let source = if digest.is_empty_blob() {
        Source::Nowhere
    } else {
        let now = shared.now();
        let mut state = shared.lock();
        let found = state.find_and_touch(&digest, now).ok_or(ReadError::NotFound { digest })?;
        match found.stored.place {
            Place::File { serial } => Source::File { serial, file: None },
            Place::Segment { slot, offset_bytes } => {
                let file = state.segments.file(slot).ok_or(ReadError::NotFound { digest })?;
                Source::Segment { slot, offset_bytes, file: Arc::clone(file) }
            }
        }
    };
    Ok(Reader { shared: Arc::clone(shared), digest, source, offset: 0, end: digest.size_bytes() })
}

// === impl Reader ===

impl Reader {
    /// Bytes that are still to come.
    pub fn remaining(&self) -> u64 {
        self.end - self.offset
    }

    /// The next piece, of up to a megabyte; `None` at the end.
    ///
    /// # Errors
    /// [`ReadError`]. After an error no piece follows.
    ///
    /// # Cancel safety
    /// May be dropped half-way; the next call returns the same piece.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        if self.remaining() == 0 {
            return Ok(None);
        }
        if let Source::Segment { .. } = self.source {
            let bytes = self.record().await?.slice(self.offset as usize..self.end as usize);
            self.offset = self.end;
            return Ok(Some(bytes));
        }
        let file = self.open().await?;
        // Whole frames are read, since only those can be verified, up to the next multiple of a piece.
        let frame = FRAME_BYTES as u64;
        let start = self.offset / frame * frame;
        let piece = PIECE_BYTES as u64;
        let end = (start / piece + 1) * piece;
        let end = end.min(self.end.next_multiple_of(frame)).min(self.digest.size_bytes());
        let buffer = self.shared.buffers.take((end - start) as usize);
        let buffer = self.read_frames(&file, buffer, start).await?;
        let upto = end.min(self.end);
        let bytes = buffer.freeze().slice((self.offset - start) as usize..(upto - start) as usize);
        self.offset = upto;
        Ok(Some(bytes))
    }

    /// The whole blob out of its segment, verified.
    async fn record(&self) -> Result<Bytes, ReadError> {
        let Source::Segment { file, offset_bytes, .. } = &self.source else { return Err(self.damaged(Damage::Gone)) };
        let at = *offset_bytes;
        let (mut header, mut blob) = ([0; segment::HEADER_BYTES], vec![0; self.digest.size_bytes() as usize]);
        let cached = self.shared.disk.read_record_cached(&file.file, &mut header, &mut blob, at);
        if !cached.map_err(|error| self.failed(JobError::Io(error)))? {
            let (disk, file) = (Arc::clone(&self.shared.disk), Arc::clone(file));
            let job = move || {
                disk.read_exact_at(&file.file, &mut header, at)?;
                disk.read_exact_at(&file.file, &mut blob, at + segment::HEADER_BYTES as u64)?;
                Ok((header, blob))
            };
            (header, blob) = self.shared.blocking(job).await.map_err(|error| self.failed(error))?;
        }
        let (key, place) = (Key::of(&self.digest), (file.number, at as u32));
        RecordHeader::check(&header, &blob, &key, place).map_err(|reason| self.damaged(reason))?;
        Ok(Bytes::from(blob))
    }

    /// Fills a buffer from a frame's beginning on and verifies it.
    async fn read_frames<B>(&self, file: &Arc<File>, buffer: B, start: u64) -> Result<B, ReadError>
    where
        B: AsMutBytes + Send + 'static,
    {
        let mut buffer = self.shared.read_exact(file, buffer, start).await.map_err(|error| self.failed(error))?;
        let layout = Layout::new(self.digest.size_bytes());
        let bytes = buffer.as_mut_bytes();
        let frames = bytes.len().div_ceil(FRAME_BYTES);
        let offset = layout.checksum_offset(start / FRAME_BYTES as u64);
        let sums = self.shared.read_exact(file, vec![0; 4 * frames], offset).await;
        let sums = sums.map_err(|error| self.failed(error))?;
        blob_file::check_frames(buffer.as_mut_bytes(), &sums).map_err(|reason| self.damaged(reason))?;
        Ok(buffer)
    }

    async fn open(&mut self) -> Result<Arc<File>, ReadError> {
        let serial = match &self.source {
            Source::File { file: Some(file), .. } => return Ok(Arc::clone(file)),
            Source::File { serial, file: None } => *serial,
            _ => return Err(self.damaged(Damage::Gone)),
        };
        let path = self.shared.paths.blob(&Key::of(&self.digest), serial);
        let cached = self.shared.disk.open_cached(&path).map_err(|error| self.failed(JobError::Io(error)))?;
        let file = match cached {
            Some(file) => file,
            None => {
                let disk = Arc::clone(&self.shared.disk);
                self.shared.blocking(move || disk.open(&path)).await.map_err(|error| self.failed(error))?
            }
        };
        let length = file.metadata().map_err(|error| self.failed(JobError::Io(error)))?.len();
        let file = Arc::new(file);
        let layout = Layout::new(self.digest.size_bytes());
        let trailer = self.shared.read_exact(&file, vec![0; TRAILER_BYTES], layout.trailer_offset()).await;
        let trailer = trailer.map_err(|error| self.failed(error))?;
        blob_file::check_label(&self.digest, length, &trailer).map_err(|reason| self.damaged(reason))?;
        self.source = Source::File { serial, file: Some(Arc::clone(&file)) };
        Ok(file)
    }

    fn failed(&self, error: JobError) -> ReadError {
        let digest = self.digest;
        match error {
            JobError::Busy => ReadError::Busy { digest },
            JobError::Io(error) if error.kind() == io::ErrorKind::NotFound => self.damaged(Damage::Gone),
            JobError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.damaged(Damage::Short),
            JobError::Io(source) => ReadError::Io { digest, source },
        }
    }

    fn damaged(&self, reason: Damage) -> ReadError {
        let digest = self.digest;
        let (place, segment) = match &self.source {
            Source::Segment { slot, offset_bytes, file } => {
                (Place::Segment { slot: *slot, offset_bytes: *offset_bytes }, Some(&**file))
            }
            Source::File { serial, .. } => (Place::File { serial: *serial }, None),
            Source::Nowhere => return ReadError::NotFound { digest },
        };
        if self.shared.drop_damaged(&Key::of(&digest), place, segment) {
            tracing::error!(%digest, %reason, "a stored blob is damaged and was dropped");
            return ReadError::Damaged { digest, reason };
        }
        // It was evicted, or replaced, or another reader has found it already.
        if matches!(reason, Damage::Gone) {
            ReadError::NotFound { digest }
        } else {
            ReadError::Damaged { digest, reason }
        }
    }
}
