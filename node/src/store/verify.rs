//! Checks stored copies: against their checksums while the store is in use, and against their digests offline.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use casbah_cluster::digest::{Digest, DigestFunction, Hasher};

use super::blob_file::{self, Frames, Layout, TRAILER_BYTES};
use super::codecs::Codecs;
use super::disk::Disk;
use super::error::{Damage, OpenError};
use super::key::{Form, Key, Place, Stored};
use super::limits::{FRAME_BYTES, PIECE_BYTES, ZSTD_FRAME_BYTES};
use super::paths::Paths;
use super::recover::{Loaded, Recovery};
use super::segment::{HEADER_BYTES, RecordHeader};
use super::segments::SegmentFile;

/// What is wrong with a copy.
#[derive(Debug, thiserror::Error)]
pub enum Finding {
    /// It is damaged.
    #[error("it is damaged: {0}")]
    Damaged(#[from] Damage),
    /// Its bytes match their checksums, but not its digest.
    #[error("its bytes are not those that its digest names")]
    Hash,
    /// It could not be read.
    #[error("it cannot be read")]
    Io(#[source] io::Error),
}

/// What [`verify`] has found.
#[derive(Debug, Default)]
pub struct VerifyReport {
    /// Blobs that are as they should be.
    pub good_blobs: u64,
    /// Bytes of them.
    pub good_bytes: u64,
    /// The others; a hash stands for a digest of a function that this casbah does not know.
    pub bad: Vec<(String, Finding)>,
    /// Some of the index could not be read; what is missing from it was looked for in all files.
    pub index_damaged: bool,
}

/// Reads every blob of a store that no process has open, and compares it with its digest. Changes nothing.
///
/// `progress` is told of each blob: how many are done, and how many there are.
///
/// # Errors
/// [`OpenError`] when the directory is no store, or its index cannot be read.
pub fn verify(dir: &Path, mut progress: impl FnMut(u64, u64)) -> Result<VerifyReport, OpenError> {
    let paths = Paths::new(PathBuf::from(dir));
    let (disk, codecs) = (Disk::default(), Codecs::default());
    let Loaded { index, segments, damaged } = Recovery::load_only(&disk, &paths)?;
    let mut report = VerifyReport { index_damaged: damaged, ..VerifyReport::default() };
    let mut done = 0;
    for found in (0..index.slots()).filter_map(|slot| index.get(slot)) {
        let stored = found.stored;
        let file = match stored.place {
            Place::Segment { slot, .. } => segments.file(slot).map(|file| &**file),
            Place::File { .. } => None,
        };
        let mut hasher = DigestFunction::from_number(stored.key.function).map(DigestFunction::hasher);
        let checked = check_and_show(&disk, &paths, &codecs, (&stored, file), |bytes| {
            if let Some(hasher) = &mut hasher {
                hasher.update(bytes);
            }
        });
        // A function that is not known here cannot be checked further.
        let is_named = hasher.map(Hasher::finish).is_none_or(|digest| Key::of(&digest) == stored.key);
        match checked {
            Ok(()) if is_named => {
                report.good_blobs += 1;
                report.good_bytes += stored.size_bytes;
            }
            Ok(()) => report.bad.push((name(&stored), Finding::Hash)),
            Err(finding) => report.bad.push((name(&stored), finding)),
        }
        done += 1;
        progress(done, index.blobs());
    }
    Ok(report)
}

fn name(stored: &Stored) -> String {
    stored.key.digest(stored.size_bytes).map_or_else(|| stored.key.hash_hex(), |digest| digest.to_string())
}

/// Reads a copy and compares what is stored with its checksums. A blob in a segment needs the segment's file.
///
/// # Errors
/// [`Finding`].
pub fn check(disk: &Disk, paths: &Paths, segment: Option<&SegmentFile>, stored: &Stored) -> Result<(), Finding> {
    walk(disk, paths, (stored, segment), |_, _| Ok(()))
}

/// The same; the blob's bytes are shown as they come.
///
/// # Errors
/// [`Finding`].
pub fn check_and_show(
    disk: &Disk,
    paths: &Paths,
    codecs: &Codecs,
    (stored, segment): (&Stored, Option<&SegmentFile>),
    mut bytes_are: impl FnMut(&[u8]),
) -> Result<(), Finding> {
    let mut decoded = Vec::new();
    walk(disk, paths, (stored, segment), |bytes, frame_of| {
        match frame_of {
            None => bytes_are(bytes),
            Some(size) => {
                decoded.resize(size, 0);
                codecs.decompress(bytes, &mut decoded)?;
                bytes_are(&decoded);
            }
        }
        Ok(())
    })
}

/// Goes through what is stored of a blob: pieces of it, or frames of so many of its bytes each.
fn walk(
    disk: &Disk,
    paths: &Paths,
    (stored, segment): (&Stored, Option<&SegmentFile>),
    mut piece: impl FnMut(&[u8], Option<usize>) -> Result<(), Damage>,
) -> Result<(), Finding> {
    let read = |file: &File, buffer: &mut [u8], offset| disk.read_exact_at(file, buffer, offset).map_err(finding);
    let serial = match stored.place {
        Place::File { serial } => serial,
        Place::Segment { offset_bytes, .. } => {
            let segment = segment.ok_or(Damage::Gone)?;
            let (mut header, mut bytes) = ([0; HEADER_BYTES], vec![0; stored.record_payload_bytes() as usize]);
            read(&segment.file, &mut header, offset_bytes)?;
            read(&segment.file, &mut bytes, offset_bytes + HEADER_BYTES as u64)?;
            let length = RecordHeader::check(&header, &bytes, stored, segment.number)?;
            let frame_of = (stored.form != Form::Plain).then_some(stored.size_bytes as usize);
            return Ok(piece(bytes.get(..length).unwrap_or_default(), frame_of)?);
        }
    };
    let file = disk.open(&paths.blob(&stored.key, serial)).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Finding::Damaged(Damage::Gone),
        _ => Finding::Io(error),
    })?;
    let layout = label(disk, &file, stored)?;
    let step = (PIECE_BYTES / ZSTD_FRAME_BYTES) as u64;
    if layout.is_zstd() {
        for first in (0..layout.zstd_frames()).step_by(step as usize) {
            let frames = first..(first + step).min(layout.zstd_frames());
            let frames = Frames::read(disk, &file, layout, frames).map_err(finding)??;
            frames.each().try_for_each(|(frame, size)| piece(frame, Some(size)))?;
        }
        return Ok(());
    }
    let (mut offset, mut bytes, mut sums) = (0, Vec::new(), Vec::new());
    while offset < stored.size_bytes {
        let length = (stored.size_bytes - offset).min(PIECE_BYTES as u64) as usize;
        bytes.resize(length, 0);
        sums.resize(4 * length.div_ceil(FRAME_BYTES), 0);
        read(&file, &mut bytes, offset)?;
        read(&file, &mut sums, layout.checksum_offset(offset / FRAME_BYTES as u64))?;
        blob_file::check_frames(&bytes, &sums)?;
        piece(&bytes, None)?;
        offset += length as u64;
    }
    Ok(())
}

fn finding(error: io::Error) -> Finding {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Finding::Damaged(Damage::Short),
        _ => Finding::Io(error),
    }
}

/// The layout of a file that is this blob's, by its length and trailer.
fn label(disk: &Disk, file: &File, stored: &Stored) -> Result<Layout, Finding> {
    let length = file.metadata().map_err(Finding::Io)?.len();
    let mut trailer = [0; TRAILER_BYTES];
    let Some(offset) = length.checked_sub(TRAILER_BYTES as u64) else { return Err(Damage::Short.into()) };
    disk.read_exact_at(file, &mut trailer, offset).map_err(Finding::Io)?;
    let named = blob_file::digest_in_trailer(&trailer);
    let digest = named.filter(|digest| Key::of(digest) == stored.key && digest.size_bytes() == stored.size_bytes);
    let layout = blob_file::check_label(&digest.ok_or(Damage::Label)?, length, &trailer)?;
    if layout.form() == Some(stored.form) { Ok(layout) } else { Err(Damage::Label.into()) }
}

/// The digest of a stored blob, which the index has only in part when its hash is long: from the bytes of a blob in a
/// segment, and from the trailer of one with a file. `None` when the copy is damaged, or gone.
///
/// # Errors
/// When it cannot be read.
pub fn digest(
    disk: &Disk,
    paths: &Paths,
    codecs: &Codecs,
    (stored, segment): (&Stored, Option<&SegmentFile>),
) -> io::Result<Option<Digest>> {
    if let Some(digest) = stored.key.digest(stored.size_bytes) {
        return Ok(Some(digest));
    }
    let Some(function) = DigestFunction::from_number(stored.key.function) else { return Ok(None) };
    let mut found = None;
    let checked = match stored.place {
        Place::Segment { .. } => {
            let mut hasher = function.hasher();
            let checked = check_and_show(disk, paths, codecs, (stored, segment), |bytes| hasher.update(bytes));
            found = Some(hasher.finish());
            checked
        }
        Place::File { serial } => disk.open(&paths.blob(&stored.key, serial)).map_err(Finding::Io).and_then(|file| {
            let mut trailer = [0; TRAILER_BYTES];
            let length = file.metadata().map_err(Finding::Io)?.len();
            let at = length.checked_sub(TRAILER_BYTES as u64).ok_or(Damage::Short)?;
            disk.read_exact_at(&file, &mut trailer, at).map_err(Finding::Io)?;
            found = blob_file::digest_in_trailer(&trailer);
            Ok(())
        }),
    };
    match checked {
        Ok(()) => Ok(found.filter(|digest| Key::of(digest) == stored.key && digest.size_bytes() == stored.size_bytes)),
        Err(Finding::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(Finding::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(Finding::Io(error)) => Err(error),
        Err(Finding::Damaged(_) | Finding::Hash) => Ok(None),
    }
}
