//! Checks stored copies: against their checksums while the store is in use, and against their digests offline.

use std::io;
use std::path::{Path, PathBuf};

use casbah_cluster::digest::{Digest, DigestFunction, Hasher};

use super::blob_file::{self, Layout, TRAILER_BYTES};
use super::disk::Disk;
use super::error::{Damage, OpenError};
use super::key::{Key, Place, Stored};
use super::limits::{FRAME_BYTES, PIECE_BYTES};
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
    let disk = Disk::default();
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
        let checked = check(&disk, &paths, file, &stored, |bytes| {
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

/// Reads a copy and compares it with its checksums; the bytes that match are shown as they come. A blob in a segment needs
/// the segment's file.
///
/// # Errors
/// [`Finding`].
pub fn check(
    disk: &Disk,
    paths: &Paths,
    segment: Option<&SegmentFile>,
    stored: &Stored,
    mut bytes_are: impl FnMut(&[u8]),
) -> Result<(), Finding> {
    let read = |file: &std::fs::File, buffer: &mut [u8], offset| match disk.read_exact_at(file, buffer, offset) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Finding::Damaged(Damage::Short)),
        other => other.map_err(Finding::Io),
    };
    let serial = match stored.place {
        Place::File { serial } => serial,
        Place::Segment { offset_bytes, .. } => {
            let segment = segment.ok_or(Damage::Gone)?;
            let (mut header, mut blob) = ([0; HEADER_BYTES], vec![0; stored.size_bytes as usize]);
            read(&segment.file, &mut header, offset_bytes)?;
            read(&segment.file, &mut blob, offset_bytes + HEADER_BYTES as u64)?;
            RecordHeader::check(&header, &blob, &stored.key, (segment.number, offset_bytes as u32))?;
            bytes_are(&blob);
            return Ok(());
        }
    };
    let file = disk.open(&paths.blob(&stored.key, serial)).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Finding::Damaged(Damage::Gone),
        _ => Finding::Io(error),
    })?;
    check_label(disk, &file, stored)?;
    let layout = Layout::new(stored.size_bytes);
    let (mut offset, mut bytes, mut sums) = (0, Vec::new(), Vec::new());
    while offset < stored.size_bytes {
        let length = (stored.size_bytes - offset).min(PIECE_BYTES as u64) as usize;
        bytes.resize(length, 0);
        sums.resize(4 * length.div_ceil(FRAME_BYTES), 0);
        read(&file, &mut bytes, offset)?;
        read(&file, &mut sums, layout.checksum_offset(offset / FRAME_BYTES as u64))?;
        blob_file::check_frames(&bytes, &sums)?;
        bytes_are(&bytes);
        offset += length as u64;
    }
    Ok(())
}

/// Whether a file is this blob's, by its length and trailer.
pub fn check_label(disk: &Disk, file: &std::fs::File, stored: &Stored) -> Result<(), Finding> {
    let length = file.metadata().map_err(Finding::Io)?.len();
    let mut trailer = [0; TRAILER_BYTES];
    let Some(offset) = length.checked_sub(TRAILER_BYTES as u64) else { return Err(Damage::Short.into()) };
    disk.read_exact_at(file, &mut trailer, offset).map_err(Finding::Io)?;
    let named = blob_file::digest_in_trailer(&trailer);
    let digest = named.filter(|digest| Key::of(digest) == stored.key && digest.size_bytes() == stored.size_bytes);
    Ok(blob_file::check_label(&digest.ok_or(Damage::Label)?, length, &trailer)?)
}

/// The digest of a stored blob, which the index has only in part when its hash is long: from the bytes of a blob in a
/// segment, and from the trailer of one with a file. `None` when the copy is damaged, or gone.
///
/// # Errors
/// When it cannot be read.
pub fn digest(
    disk: &Disk,
    paths: &Paths,
    segment: Option<&SegmentFile>,
    stored: &Stored,
) -> io::Result<Option<Digest>> {
    if let Some(digest) = stored.key.digest(stored.size_bytes) {
        return Ok(Some(digest));
    }
    let Some(function) = DigestFunction::from_number(stored.key.function) else { return Ok(None) };
    let mut found = None;
    let checked = match stored.place {
        Place::Segment { .. } => {
            let mut hasher = function.hasher();
            let checked = check(disk, paths, segment, stored, |bytes| hasher.update(bytes));
            found = Some(hasher.finish());
            checked
        }
        Place::File { serial } => match disk.open(&paths.blob(&stored.key, serial)) {
            Ok(file) => {
                let mut trailer = [0; TRAILER_BYTES];
                let layout = Layout::new(stored.size_bytes);
                let read = disk.read_exact_at(&file, &mut trailer, layout.trailer_offset());
                found = blob_file::digest_in_trailer(&trailer);
                read.map_err(Finding::Io)
            }
            Err(error) => Err(Finding::Io(error)),
        },
    };
    match checked {
        Ok(()) => Ok(found.filter(|digest| Key::of(digest) == stored.key && digest.size_bytes() == stored.size_bytes)),
        Err(Finding::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(Finding::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(Finding::Io(error)) => Err(error),
        Err(Finding::Damaged(_) | Finding::Hash) => Ok(None),
    }
}
