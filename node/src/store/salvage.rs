//! What is done when the index is damaged: what the files themselves say is taken for what there is.
//!
//! Records of segments and files of blobs say whose they are. Only whole ones count: a record must match its checksum, a
//! file must have its length and trailer (its bytes are checked when they are read). Blobs that had been evicted may come
//! back, which harms nobody. This reads all segments and opens all files, and is needed only after damage.

use std::fs;
use std::io;

use super::blob_file::{TRAILER_BYTES, size_in_trailer};
use super::disk::Disk;
use super::index::Index;
use super::key::{Place, Stored};
use super::paths::{Paths, parse_blob_name};
use super::segment_walk::SegmentWalk;
use super::segments::SegmentFile;
use super::verify;

/// Adds what is in a segment and not in the index. Returns the number of blobs added.
pub fn segment(disk: &Disk, index: &mut Index, slot: u32, file: &SegmentFile, now: u32) -> io::Result<u64> {
    let mut walk = SegmentWalk::new(disk, file, file.file.metadata()?.len());
    let mut added = 0;
    while let Some(header) = walk.next()? {
        if walk.blob(&header)?.is_none() {
            walk.distrust(&header);
            continue;
        }
        let place = Place::Segment { slot, offset_bytes: u64::from(header.offset_bytes) };
        let stored = Stored { key: header.key, size_bytes: u64::from(header.size_bytes), place };
        added += u64::from(index.insert(&stored, now, false).is_some());
    }
    Ok(added)
}

/// Adds what has a file of its own and is not in the index. Returns the number of blobs added.
pub fn files(disk: &Disk, paths: &Paths, index: &mut Index, now: u32) -> io::Result<u64> {
    let mut added = 0;
    for directory in fs::read_dir(paths.blobs())? {
        for entry in fs::read_dir(directory?.path())? {
            let entry = entry?;
            let Some((key, serial)) = entry.file_name().to_str().and_then(parse_blob_name) else { continue };
            if index.find(&key).is_some() {
                continue;
            }
            let file = disk.open(&entry.path())?;
            let Some(at) = file.metadata()?.len().checked_sub(TRAILER_BYTES as u64) else { continue };
            let mut trailer = [0; TRAILER_BYTES];
            disk.read_exact_at(&file, &mut trailer, at)?;
            let stored = Stored { key, size_bytes: size_in_trailer(&trailer), place: Place::File { serial } };
            if verify::check_label(disk, &file, &stored).is_ok() {
                added += u64::from(index.insert(&stored, now, false).is_some());
            }
        }
    }
    Ok(added)
}
