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
use super::shared::{AsMutBytes, JobError, Shared};

/// A read under way. Pieces come in order; dropping it ends the read.
pub struct Reader {
    shared: Arc<Shared>,
    digest: Digest,
    place: Place,
    file: Option<Arc<File>>,
    /// The next byte to return.
    offset: u64,
    /// Where the read ends.
    end: u64,
}

/// The whole blob.
pub async fn get(shared: &Arc<Shared>, digest: &Digest, limit_bytes: u64) -> Result<Bytes, ReadError> {
    let digest = *digest;
    if digest.is_empty_blob() {
        return Ok(Bytes::new());
    }
    let now = shared.now();
    let found = shared.lock().find_and_touch(&digest, now).ok_or(ReadError::NotFound { digest })?;
    if digest.size_bytes() > limit_bytes {
        return Err(ReadError::TooLarge { digest, limit_bytes });
    }
    let size = usize::try_from(digest.size_bytes()).map_err(|_| ReadError::TooLarge { digest, limit_bytes })?;
    let mut reader = Reader::new(shared, digest, found.stored.place, 0, digest.size_bytes());
    let file = reader.open().await?;
    let bytes = reader.read_frames(&file, vec![0; size], 0).await?;
    Ok(Bytes::from(bytes))
}

/// A range of a blob.
pub fn read(shared: &Arc<Shared>, digest: &Digest, offset: u64, length: Option<u64>) -> Result<Reader, ReadError> {
    let digest = *digest;
    let place = if digest.is_empty_blob() {
        Place::File { serial: 0 }
    } else {
        let now = shared.now();
        let found = shared.lock().find_and_touch(&digest, now).ok_or(ReadError::NotFound { digest })?;
        found.stored.place
    };
    let rest = digest.size_bytes().checked_sub(offset).ok_or(ReadError::OutOfRange { digest, offset })?;
    let end = offset + length.unwrap_or(rest).min(rest);
    Ok(Reader::new(shared, digest, place, offset, end))
}

// === impl Reader ===

impl Reader {
    fn new(shared: &Arc<Shared>, digest: Digest, place: Place, offset: u64, end: u64) -> Reader {
        Reader { shared: Arc::clone(shared), digest, place, file: None, offset, end }
    }

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
        if let Some(file) = &self.file {
            return Ok(Arc::clone(file));
        }
        let Place::File { serial } = self.place else { return Err(self.damaged(Damage::Gone)) };
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
        self.file = Some(Arc::clone(&file));
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
        if self.shared.drop_damaged(&Key::of(&digest), self.place) {
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
