//! The last step of a write: a blob whose bytes are right gets its name, its record in the journal, and is shown.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use tokio::sync::oneshot;

use super::error::WriteError;
use super::health;
use super::key::{Form, Key, Place, Stored};
use super::limits::{FILE_SERIALS, SEARCH_HOLDS};
use super::order::Search;
use super::segment::RecordHeader;
use super::shared::{Reservation, Shared};
use super::sync::{self, Reveal};
use super::upload::{Given, UploadFile};

/// With sync `always`, tells when the blob is on disk and visible.
pub type Answer = Option<oneshot::Receiver<io::Result<()>>>;

/// A blob that was here when its upload began has been verified.
pub fn present(shared: &Shared, digest: &Digest, given: Given) -> Result<(), WriteError> {
    let now = shared.now();
    let mut state = shared.lock();
    if state.closed {
        return Err(WriteError::Closed { digest: *digest });
    }
    if digest.is_empty_blob() || given.is_here(&mut state, digest, now) {
        return Ok(());
    }
    // It has been evicted since, and its bytes were not kept: the next attempt finds it missing from the start.
    Err(WriteError::Full { digest: *digest, retry_after: Duration::ZERO })
}

/// A blob's file has been written.
pub fn file(
    shared: &Arc<Shared>,
    (digest, given): (&Digest, Given),
    (file, form): (File, Form),
    upload: UploadFile,
    reservation: Reservation,
) -> io::Result<Result<Answer, WriteError>> {
    let key = Key::of(digest);
    let serial = name(shared, &key, upload)?;
    let [first, ..] = key.hash;
    shared.sync.add_file(Arc::new(file), Some(first));
    let stored = Stored { key, size_bytes: digest.size_bytes(), place: Place::File { serial }, form };
    record(shared, (digest, given), &stored, Some(reservation))
}

/// Gives an uploaded file a blob's name, and keeps the name from others until it is recorded.
fn name(shared: &Shared, key: &Key, upload: UploadFile) -> io::Result<u8> {
    let Some(number) = upload.number() else { return Err(io::ErrorKind::NotFound.into()) };
    let from = shared.paths.upload(shared.run, number);
    for _ in 0..2 {
        for serial in 0..FILE_SERIALS {
            if !shared.lock().changing.insert((*key, serial)) {
                continue;
            }
            let renamed = rename(shared, &from, key, serial);
            if renamed.is_ok() {
                upload.renamed();
                return Ok(serial);
            }
            shared.lock().changing.remove(&(*key, serial));
            match renamed {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        // All names are those of files that wait to be removed.
        sync::pass(shared)?;
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// The directories of blobs' files are made when they are first needed.
fn rename(shared: &Shared, from: &Path, key: &Key, serial: u8) -> io::Result<()> {
    let [first, ..] = key.hash;
    let to = shared.paths.blob(key, serial);
    match shared.disk.rename_new(from, &to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            shared.disk.make_dir(&shared.paths.blobs_of(first))?;
            shared.disk.sync_dir(&shared.paths.blobs())?;
            shared.disk.rename_new(from, &to)
        }
        other => other,
    }
}

/// What is to be stored of a small blob, which is right.
#[derive(Debug, Clone)]
pub struct Payload {
    /// One after the other.
    pub pieces: Vec<Bytes>,
    /// They are the blob, or a frame of it.
    pub form: Form,
}

/// Writes a small blob into a segment, and records it. `None`: a segment must be made first.
pub fn small(
    shared: &Arc<Shared>,
    (digest, given): (&Digest, Given),
    payload: &Payload,
    reservation: &mut Option<Reservation>,
) -> io::Result<Option<Result<Answer, WriteError>>> {
    let (key, size_bytes) = (Key::of(digest), digest.size_bytes());
    let Payload { pieces, form } = payload;
    let mut stored = Stored { key, size_bytes, place: Place::Segment { slot: 0, offset_bytes: 0 }, form: *form };
    let Some(room) = shared.lock().allocate(stored.charge_bytes()) else { return Ok(None) };
    let place = Place::Segment { slot: room.slot, offset_bytes: room.offset_bytes };
    stored.place = place;
    let length: usize = pieces.iter().map(Bytes::len).sum();
    let header = RecordHeader {
        key,
        size_bytes: size_bytes as u32,
        frame_bytes: if *form == Form::Plain { 0 } else { length as u32 },
        checksum: pieces.iter().fold(0, |sum, piece| crc32c::crc32c_append(sum, piece)),
        segment: room.file.number,
        offset_bytes: room.offset_bytes as u32,
    };
    if let Err(error) = shared.disk.write_record(&room.file.file, &header.encode(), pieces, room.offset_bytes) {
        shared.lock().abandon(&key, place);
        return Err(error);
    }
    shared.sync.add_segment(&room.file);
    let reservation = reservation.take();
    record(shared, (digest, given), &stored, reservation).map(Some)
}

/// Records a blob whose bytes are in place, and shows it.
fn record(
    shared: &Arc<Shared>,
    (digest, given): (&Digest, Given),
    stored: &Stored,
    reservation: Option<Reservation>,
) -> io::Result<Result<Answer, WriteError>> {
    let now = shared.now();
    let search = given.used.map(|used| search(shared, used.min(now)));
    let (slot, sequence) = {
        let mut state = shared.lock();
        if let Place::File { serial } = stored.place {
            state.changing.remove(&(stored.key, serial));
        }
        if let Some(reservation) = reservation {
            reservation.release(&mut state);
        }
        if state.closed {
            state.abandon(&stored.key, stored.place);
            search.into_iter().for_each(|search| state.index.end_search(search));
            return Ok(Err(WriteError::Closed { digest: *digest }));
        }
        // `None`: another upload of the same blob was faster.
        let slot = match search {
            None => state.insert_hidden(stored, now),
            Some(mut search) => {
                // Little has changed since it came to its place.
                state.index.search(&mut search);
                state.insert_copy_hidden(stored, search)
            }
        };
        (slot, state.queue.end)
    };
    let flushed = shared.flush(sequence);
    if let Err(error) = &flushed {
        health::note_journal_error(shared, error);
    }
    let Some(slot) = slot else {
        // The faster one's record was queued before; so it is written now, and with sync `always`, synced below.
        flushed?;
        return Ok(Ok(shared.sync.is_always().then(|| wait_for_pass(shared, None))));
    };
    if let Err(error) = flushed {
        shared.lock().forget(slot);
        return Err(error);
    }
    if shared.sync.is_always() {
        return Ok(Ok(Some(wait_for_pass(shared, Some(slot)))));
    }
    shared.lock().reveal(slot);
    shared.space.notify_waiters();
    shared.sync.wake();
    Ok(Ok(None))
}

/// Looks for the place of what was last used then, and never holds the lock for long.
fn search(shared: &Shared, used: u32) -> Search {
    let mut search = shared.lock().index.begin_search(used);
    for _ in 0..SEARCH_HOLDS {
        if shared.lock().index.search(&mut search) {
            break;
        }
    }
    search
}

fn wait_for_pass(shared: &Shared, slot: Option<u32>) -> oneshot::Receiver<io::Result<()>> {
    let (answer, receiver) = oneshot::channel();
    shared.sync.add_reveal(Reveal { slot, answer });
    receiver
}
