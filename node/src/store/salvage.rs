//! What is done when the index is damaged: what the files themselves say is taken for what there is.
//!
//! Records of segments and files of blobs say whose they are, but where a header is damaged, records are looked for in
//! what may be the bytes of a blob, which a client has chosen. So only that counts whose bytes are those that its digest
//! names. What cannot be read is passed over. Blobs that had been evicted may come back, which harms nobody: they are the
//! first to go again. This reads all segments and the files that the index does not have, and is needed only after
//! damage.

use std::fs::{self, DirEntry};
use std::io;
use std::path::Path;

use casbah_cluster::digest::DigestFunction;

use super::blob_file::{Layout, TRAILER_BYTES, check_label, digest_in_trailer};
use super::codecs::Codecs;
use super::disk::Disk;
use super::index::Index;
use super::key::{Key, Place, Stored};
use super::paths::{Paths, parse_blob_name};
use super::segment::RecordHeader;
use super::segment_walk::SegmentWalk;
use super::segments::SegmentFile;
use super::verify;

/// Adds what is in a segment and not in the index, as used before all else. Returns the number of blobs added.
pub fn segment(disk: &Disk, codecs: &Codecs, index: &mut Index, slot: u32, file: &SegmentFile) -> u64 {
    let length = file.file.metadata().map(|metadata| metadata.len());
    let length = length.inspect_err(|error| tracing::error!(segment = file.number, %error, "a segment cannot be read"));
    let mut walk = SegmentWalk::new(disk, file, length.unwrap_or(0));
    let mut found = Vec::new();
    loop {
        let header = match walk.next() {
            Ok(Some(header)) => header,
            Ok(None) => break,
            Err(error) => {
                tracing::error!(segment = file.number, %error, "a part of a segment cannot be read");
                continue;
            }
        };
        match walk.blob(&header) {
            Ok(Some(bytes)) if is_named(codecs, &header, bytes) => found.extend(header.stored(slot)),
            Ok(_) => walk.distrust(&header),
            Err(error) => {
                tracing::error!(segment = file.number, %error, "a part of a segment cannot be read");
                walk.distrust(&header);
            }
        }
    }
    // The last first: of two copies, that is the one that stays.
    found.iter().rev().filter(|stored| index.insert_oldest(stored).is_some()).count() as u64
}

/// Whether this is what is stored of the blob that the header names.
fn is_named(codecs: &Codecs, header: &RecordHeader, bytes: &[u8]) -> bool {
    let mut decoded = Vec::new();
    let blob = if header.frame_bytes == 0 {
        bytes
    } else {
        decoded.resize(header.size_bytes as usize, 0);
        if codecs.decompress(bytes, &mut decoded).is_err() {
            return false;
        }
        &decoded
    };
    DigestFunction::from_number(header.key.function).is_some_and(|function| {
        let mut hasher = function.hasher();
        hasher.update(blob);
        Key::of(&hasher.finish()) == header.key
    })
}

/// Adds what has a file of its own and is not in the index, as used before all else. Returns the number of blobs added.
pub fn files(disk: &Disk, codecs: &Codecs, paths: &Paths, index: &mut Index) -> u64 {
    let mut added = 0;
    for directory in list(&paths.blobs()) {
        for entry in list(&directory.path()) {
            let Some((key, serial)) = entry.file_name().to_str().and_then(parse_blob_name) else { continue };
            if index.find(&key).is_some() {
                continue;
            }
            match check(disk, codecs, paths, (&entry.path(), key, serial)) {
                Ok(Some(stored)) => added += u64::from(index.insert_oldest(&stored).is_some()),
                Ok(None) => {}
                Err(error) => tracing::error!(path = %entry.path().display(), %error, "a file cannot be read"),
            }
        }
    }
    added
}

/// What is in a directory, as far as that can be read.
fn list(path: &Path) -> Vec<DirEntry> {
    let entries = fs::read_dir(path).and_then(|entries| entries.collect::<io::Result<Vec<DirEntry>>>());
    entries.unwrap_or_else(|error| {
        tracing::error!(path = %path.display(), %error, "a directory cannot be read");
        Vec::new()
    })
}

/// The blob of a file; `None` when its bytes are not those that its name says.
fn check(
    disk: &Disk,
    codecs: &Codecs,
    paths: &Paths,
    (path, key, serial): (&Path, Key, u8),
) -> io::Result<Option<Stored>> {
    let file = disk.open(path)?;
    let length = file.metadata()?.len();
    let Some(at) = length.checked_sub(TRAILER_BYTES as u64) else { return Ok(None) };
    let mut trailer = [0; TRAILER_BYTES];
    disk.read_exact_at(&file, &mut trailer, at)?;
    let Some(digest) = digest_in_trailer(&trailer).filter(|digest| Key::of(digest) == key) else { return Ok(None) };
    let layout = check_label(&digest, length, &trailer).ok();
    let Some(form) = layout.and_then(Layout::form) else { return Ok(None) };
    let stored = Stored { key, size_bytes: digest.size_bytes(), place: Place::File { serial }, form };
    let mut hasher = digest.function().hasher();
    match verify::check_and_show(disk, paths, codecs, (&stored, None), |bytes| hasher.update(bytes)) {
        Ok(()) => Ok((hasher.finish() == digest).then_some(stored)),
        Err(verify::Finding::Io(error)) => Err(error),
        Err(_) => Ok(None),
    }
}
