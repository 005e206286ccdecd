//! Reads: every byte is checked against its checksum before it is returned.

use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use casbah_cluster::digest::Digest;

use super::blob_file::{self, Frames, Layout, TRAILER_BYTES};
use super::error::{Damage, ReadError};
use super::key::{Form, Key, Place, Stored};
use super::limits::{FRAME_BYTES, PIECE_BYTES, ZSTD_FRAME_BYTES};
use super::segment::{HEADER_BYTES, RecordHeader};
use super::segments::SegmentFile;
use super::shared::{AsMutBytes, JobError, Shared};
use super::state::State;

/// A read under way. Pieces come in order; dropping it ends the read.
pub struct Reader {
    shared: Arc<Shared>,
    digest: Digest,
    /// How it lies there.
    form: Form,
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
    File { serial: u8, file: Option<Opened> },
}

/// A blob's file, which says that it is the blob's.
#[derive(Clone)]
struct Opened {
    file: Arc<File>,
    layout: Layout,
}

/// A read of a compressed blob as it is stored. Pieces come in order; dropping it ends the read.
pub struct StoredReader {
    reader: Reader,
    /// The next frame to return.
    next: u64,
}

/// The whole blob.
pub async fn get(shared: &Arc<Shared>, digest: &Digest, limit_bytes: u64, is_use: bool) -> Result<Bytes, ReadError> {
    let mut reader = find(shared, digest, is_use)?;
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
            let opened = reader.open().await?;
            Ok(Bytes::from(reader.read_frames(&opened, vec![0; size], 0).await?))
        }
    }
}

/// The whole blob as it is stored, if that is compressed.
pub fn read_stored(shared: &Arc<Shared>, digest: &Digest) -> Result<Option<StoredReader>, ReadError> {
    {
        let state = shared.lock();
        let found = state.find(digest).map(|(_, found)| found.stored.form);
        if digest.is_empty_blob() || found == Some(Form::Plain) {
            return Ok(None);
        }
    }
    let reader = find(shared, digest, true)?;
    Ok((reader.form != Form::Plain).then_some(StoredReader { reader, next: 0 }))
}

/// A range of a blob.
pub fn read(
    shared: &Arc<Shared>,
    digest: &Digest,
    (offset, length): (u64, Option<u64>),
    is_use: bool,
) -> Result<Reader, ReadError> {
    let digest = *digest;
    let reader = find(shared, &digest, is_use)?;
    let rest = digest.size_bytes().checked_sub(offset).ok_or(ReadError::OutOfRange { digest, offset })?;
    let end = offset + length.unwrap_or(rest).min(rest);
    Ok(Reader { offset, end, ..reader })
}

/// A reader of the whole blob, which is used now if `is_use`.
fn find(shared: &Arc<Shared>, digest: &Digest, is_use: bool) -> Result<Reader, ReadError> {
    let digest = *digest;
    let (source, form) = if digest.is_empty_blob() {
        (Source::Nowhere, Form::Plain)
    } else {
        let now = shared.now();
        let mut state = shared.lock();
        let found = match is_use {
            true => state.find_and_touch(&digest, now),
            false => state.find(&digest).map(|(_, found)| found),
        };
        let found = found.ok_or_else(|| not_here(&state, digest))?;
        let source = match found.stored.place {
            Place::File { serial } => Source::File { serial, file: None },
            Place::Segment { slot, offset_bytes } => {
                let file = state.segments.file(slot).ok_or(ReadError::NotFound { digest })?;
                Source::Segment { slot, offset_bytes, file: Arc::clone(file) }
            }
        };
        (source, found.stored.form)
    };
    Ok(Reader { shared: Arc::clone(shared), digest, form, source, offset: 0, end: digest.size_bytes() })
}

fn not_here(state: &State, digest: Digest) -> ReadError {
    match state.lost.is_in_doubt(&Key::of(&digest)) {
        true => ReadError::Lost { digest },
        false => ReadError::NotFound { digest },
    }
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
        let opened = self.open().await?;
        // Whole frames are read, since only those can be verified, up to the next multiple of a piece.
        let frame = if opened.layout.is_zstd() { ZSTD_FRAME_BYTES as u64 } else { FRAME_BYTES as u64 };
        let start = self.offset / frame * frame;
        let piece = PIECE_BYTES as u64;
        let end = (start / piece + 1) * piece;
        let end = end.min(self.end.next_multiple_of(frame)).min(self.digest.size_bytes());
        let buffer = self.shared.buffers.take((end - start) as usize);
        let buffer = self.read_frames(&opened, buffer, start).await?;
        let upto = end.min(self.end);
        let bytes = buffer.freeze().slice((self.offset - start) as usize..(upto - start) as usize);
        self.offset = upto;
        Ok(Some(bytes))
    }

    /// The whole blob out of its segment, verified.
    async fn record(&self) -> Result<Bytes, ReadError> {
        let stored = self.stored_record().await?;
        if self.form == Form::Plain {
            return Ok(stored);
        }
        let mut blob = vec![0; self.digest.size_bytes() as usize];
        // At most 128 KiB, which takes less time than the way to another thread and back.
        self.shared.codecs.decompress(&stored, &mut blob).map_err(|reason| self.damaged(reason))?;
        Ok(Bytes::from(blob))
    }

    /// What is stored of the blob in its segment, verified.
    async fn stored_record(&self) -> Result<Bytes, ReadError> {
        let Source::Segment { slot, file, offset_bytes } = &self.source else {
            return Err(self.damaged(Damage::Gone));
        };
        let at = *offset_bytes;
        let place = Place::Segment { slot: *slot, offset_bytes: at };
        let (key, size_bytes) = (Key::of(&self.digest), self.digest.size_bytes());
        let stored = Stored { key, size_bytes, place, form: self.form };
        let (mut header, mut blob) = ([0; HEADER_BYTES], vec![0; stored.record_payload_bytes() as usize]);
        let cached = self.shared.disk.read_record_cached(&file.file, &mut header, &mut blob, at);
        if !cached.map_err(|error| self.failed(JobError::Io(error)))? {
            let (disk, file) = (Arc::clone(&self.shared.disk), Arc::clone(file));
            let job = move || {
                disk.read_exact_at(&file.file, &mut header, at)?;
                disk.read_exact_at(&file.file, &mut blob, at + HEADER_BYTES as u64)?;
                Ok((header, blob))
            };
            (header, blob) = self.shared.blocking(job).await.map_err(|error| self.failed(error))?;
        }
        let length = RecordHeader::check(&header, &blob, &stored, file.number);
        blob.truncate(length.map_err(|reason| self.damaged(reason))?);
        Ok(Bytes::from(blob))
    }

    /// Fills a buffer from a frame's beginning on and verifies it.
    async fn read_frames<B>(&self, opened: &Opened, buffer: B, start: u64) -> Result<B, ReadError>
    where
        B: AsMutBytes + Send + 'static,
    {
        let Opened { file, layout } = opened;
        if layout.is_zstd() {
            return self.decode_frames(opened, buffer, start).await;
        }
        let mut buffer = self.shared.read_exact(file, buffer, start).await.map_err(|error| self.failed(error))?;
        let bytes = buffer.as_mut_bytes();
        let frames = bytes.len().div_ceil(FRAME_BYTES);
        let offset = layout.checksum_offset(start / FRAME_BYTES as u64);
        let sums = self.shared.read_exact(file, vec![0; 4 * frames], offset).await;
        let sums = sums.map_err(|error| self.failed(error))?;
        blob_file::check_frames(buffer.as_mut_bytes(), &sums).map_err(|reason| self.damaged(reason))?;
        Ok(buffer)
    }

    /// The same for compressed frames, on a thread of the pool: decoding a piece takes a millisecond.
    async fn decode_frames<B>(&self, opened: &Opened, mut buffer: B, start: u64) -> Result<B, ReadError>
    where
        B: AsMutBytes + Send + 'static,
    {
        let Opened { file, layout } = opened.clone();
        let (disk, codecs) = (Arc::clone(&self.shared.disk), Arc::clone(&self.shared.codecs));
        let job = move || {
            let mut next = start / ZSTD_FRAME_BYTES as u64;
            // A part at a time, so that a large blob does not lie in memory twice.
            for part in buffer.as_mut_bytes().chunks_mut(PIECE_BYTES) {
                let after = next + part.len().div_ceil(ZSTD_FRAME_BYTES) as u64;
                let frames = match Frames::read(&disk, &file, layout, next..after)? {
                    Ok(frames) => frames,
                    Err(reason) => return Ok(Err(reason)),
                };
                if let Err(reason) = frames.decode(&codecs, part) {
                    return Ok(Err(reason));
                }
                next = after;
            }
            Ok(Ok(buffer))
        };
        let decoded = self.shared.blocking(job).await.map_err(|error| self.failed(error))?;
        decoded.map_err(|reason| self.damaged(reason))
    }

    async fn open(&mut self) -> Result<Opened, ReadError> {
        let serial = match &self.source {
            Source::File { file: Some(opened), .. } => return Ok(opened.clone()),
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
        let Some(at) = length.checked_sub(TRAILER_BYTES as u64) else { return Err(self.damaged(Damage::Short)) };
        let trailer = self.shared.read_exact(&file, vec![0; TRAILER_BYTES], at).await;
        let trailer = trailer.map_err(|error| self.failed(error))?;
        let layout = blob_file::check_label(&self.digest, length, &trailer).map_err(|reason| self.damaged(reason))?;
        if layout.form() != Some(self.form) {
            return Err(self.damaged(Damage::Label));
        }
        let opened = Opened { file, layout };
        self.source = Source::File { serial, file: Some(opened.clone()) };
        Ok(opened)
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
            not_here(&self.shared.lock(), digest)
        } else {
            ReadError::Damaged { digest, reason }
        }
    }
}

// === impl StoredReader ===

impl StoredReader {
    /// The next frames, about a megabyte of them; `None` at the end.
    ///
    /// # Errors
    /// [`ReadError`]. After an error no piece follows.
    ///
    /// # Cancel safety
    /// May be dropped half-way; the next call returns the same piece.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        let reader = &mut self.reader;
        if let Source::Segment { .. } = reader.source {
            if self.next > 0 {
                return Ok(None);
            }
            let record = reader.stored_record().await?;
            self.next = 1;
            return Ok(Some(record));
        }
        let Opened { file, layout } = reader.open().await?;
        let step = (PIECE_BYTES / ZSTD_FRAME_BYTES) as u64;
        let frames = self.next..(self.next + step).min(layout.zstd_frames());
        if frames.is_empty() {
            return Ok(None);
        }
        let (disk, wanted) = (Arc::clone(&reader.shared.disk), frames.clone());
        let read = reader.shared.blocking(move || Frames::read(&disk, &file, layout, wanted)).await;
        let read = read.map_err(|error| reader.failed(error))?.map_err(|reason| reader.damaged(reason))?;
        self.next = frames.end;
        Ok(Some(read.into_bytes()))
    }

    /// All of them.
    ///
    /// # Errors
    /// [`ReadError`].
    ///
    /// # Cancel safety
    /// May be dropped half-way.
    pub async fn whole(mut self) -> Result<Bytes, ReadError> {
        let mut pieces = Vec::new();
        while let Some(piece) = self.next().await? {
            pieces.push(piece);
        }
        Ok(match <[Bytes; 1]>::try_from(pieces) {
            Ok([piece]) => piece,
            Err(pieces) => Bytes::from(pieces.concat()),
        })
    }
}
