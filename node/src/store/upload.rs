//! Writes: bytes are hashed as they come, and nothing is visible before they are all there and right.

use std::collections::hash_map::Entry;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use casbah_cluster::digest::{Digest, Hasher};

use super::blob_writer::BlobFileWriter;
use super::commit::Payload;
use super::error::{Mismatch, WriteError};
use super::gathered::Gathered;
use super::health;
use super::key::{Form, Key, MAX_BLOB_BYTES, Place};
use super::limits::{
    DISK_BLOCK_BYTES, INLINE_COMPRESSED_BYTES, ROOM_ATTEMPTS, SMALL_BLOB_BYTES, SPACE_PATIENCE, ZSTD_FRAME_BYTES,
    ZSTD_SLACK_SHARE,
};
use super::shared::{Job, JobError, Reservation, Shared};
use super::state::{GarbageFile, NoRoom, State};
use super::{commit, compact};

/// An upload under way. Dropping it aborts it: its space is given back and no file is left.
pub struct Upload {
    shared: Arc<Shared>,
    digest: Digest,
    given: Given,
    received_bytes: u64,
    /// Bytes that no job has been given yet.
    gathered: Gathered,
    work: Work,
}

/// How the bytes of a blob come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given {
    /// Who has hashed them.
    pub trust: Trust,
    /// When the blob was last used, in Unix seconds, if this is a copy of one that is kept elsewhere; `None`: it is used now.
    pub used: Option<u32>,
}

/// Whose word it is that the bytes are those of the digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Nobody's: they are hashed here.
    Nobody,
    /// That of another node, which has hashed them: they are counted here.
    Peer,
}

/// Where an upload's hasher and file are.
enum Work {
    /// Here.
    Idle(Box<Incoming>),
    /// With a job that adds a piece.
    Running(Job<Box<Incoming>>),
    /// Lost to an error.
    Failed,
}

/// What has arrived of a blob.
pub struct Incoming {
    /// `None`: another node has done it.
    hasher: Option<Hasher>,
    target: Target,
}

/// Where the bytes go.
enum Target {
    /// Nowhere: the blob is here already, and they are only verified.
    Nowhere { _again: Option<Again> },
    /// Into a segment, once they are all there.
    Memory(Reservation),
    /// Into a file.
    File(BlobFileWriter, UploadFile, Reservation),
}

/// The file of an upload, removed on drop.
pub struct UploadFile {
    shared: Arc<Shared>,
    number: Option<u64>,
}

/// What is set aside for an upload.
enum Room {
    /// Bytes.
    Reserved(Reservation),
    /// None are needed.
    Here(Again),
}

/// That a blob that is here is being stored again, so that it is not removed as one that others have.
struct Again {
    shared: Arc<Shared>,
    key: Key,
}

/// Stores a whole blob.
pub async fn put(shared: &Arc<Shared>, digest: &Digest, data: Bytes, given: Given) -> Result<(), WriteError> {
    if digest.size_bytes() > SMALL_BLOB_BYTES || data.len() as u64 != digest.size_bytes() {
        let mut upload = begin(shared, digest, given).await?;
        upload.write(data).await?;
        return upload.commit().await;
    }
    let answer = store_small(shared, *digest, std::slice::from_ref(&data), None, given).await?;
    wait(*digest, answer).await
}

/// Begins an upload.
pub async fn begin(shared: &Arc<Shared>, digest: &Digest, given: Given) -> Result<Upload, WriteError> {
    let digest = *digest;
    let target = if digest.is_empty_blob() {
        Target::Nowhere { _again: None }
    } else {
        choose_target(shared, digest, given).await?
    };
    let hasher = (given.trust == Trust::Nobody).then(|| digest.function().hasher());
    let incoming = Box::new(Incoming { hasher, target });
    Ok(Upload {
        shared: Arc::clone(shared),
        digest,
        given,
        received_bytes: 0,
        gathered: Gathered::new(&shared.gathered),
        work: Work::Idle(incoming),
    })
}

/// The kind of place for a blob of this size.
pub fn place_for(size_bytes: u64) -> Place {
    if size_bytes <= SMALL_BLOB_BYTES { Place::Segment { slot: 0, offset_bytes: 0 } } else { Place::File { serial: 0 } }
}

/// The most that a blob of this size may come to take.
fn most_charge_bytes(shared: &Shared, size_bytes: u64) -> u64 {
    let plain = place_for(size_bytes).charge_bytes(size_bytes);
    // A few frames are never larger than the blob, since the first one pays.
    if shared.compression().is_none() || size_bytes <= 64 * ZSTD_FRAME_BYTES as u64 {
        return plain;
    }
    plain + (plain / ZSTD_SLACK_SHARE).next_multiple_of(DISK_BLOCK_BYTES)
}

async fn choose_target(shared: &Arc<Shared>, digest: Digest, given: Given) -> Result<Target, WriteError> {
    let size_bytes = digest.size_bytes();
    let capacity_bytes = shared.options.capacity_bytes;
    if size_bytes > MAX_BLOB_BYTES {
        return Err(WriteError::LargerThanStore { digest, capacity_bytes });
    }
    let reservation = match reserve(shared, digest, most_charge_bytes(shared, size_bytes), given).await? {
        Room::Reserved(reservation) => reservation,
        Room::Here(again) => return Ok(Target::Nowhere { _again: Some(again) }),
    };
    if size_bytes <= SMALL_BLOB_BYTES {
        return Ok(Target::Memory(reservation));
    }
    let (file, upload_file) = with_room(shared, (digest, given), size_bytes, move |to| create(to, size_bytes)).await?;
    Ok(Target::File(file, upload_file, reservation))
}

/// Does something that allocates on the disk. If that is full in spite of the reservation, blobs are evicted and it is
/// done again.
async fn with_room<T: Send + 'static>(
    shared: &Arc<Shared>,
    (digest, given): (Digest, Given),
    bytes: u64,
    job: impl Fn(&Arc<Shared>) -> io::Result<T> + Send + Sync + 'static,
) -> Result<T, WriteError> {
    let to = Arc::clone(shared);
    // For a copy nothing goes that may have been used later.
    let room_attempts = if given.used.is_some() { 0 } else { ROOM_ATTEMPTS };
    let attempts = move || {
        let mut result = job(&to);
        for _ in 0..room_attempts {
            match &result {
                Err(error) if health::is_full(error) => health::make_room(&to, bytes)?,
                _ => break,
            }
            result = job(&to);
        }
        result
    };
    shared.blocking(attempts).await.map_err(|error| failed(shared, digest, error))
}

/// Sets bytes aside. Waits a little while uploads under way hold the space.
async fn reserve(shared: &Arc<Shared>, digest: Digest, charge: u64, given: Given) -> Result<Room, WriteError> {
    match try_reserve(shared, digest, charge, given) {
        Err(WriteError::Full { retry_after, .. }) if retry_after <= SPACE_PATIENCE => {}
        other => return other,
    }
    let patience = tokio::time::sleep(SPACE_PATIENCE);
    tokio::pin!(patience);
    loop {
        let space = shared.space.notified();
        tokio::pin!(space);
        space.as_mut().enable();
        let refused = match try_reserve(shared, digest, charge, given) {
            Err(refused @ WriteError::Full { .. }) => refused,
            other => return other,
        };
        tokio::select! {
            () = &mut space => {}
            () = &mut patience => return Err(refused),
        }
    }
}

fn try_reserve(shared: &Arc<Shared>, digest: Digest, charge: u64, given: Given) -> Result<Room, WriteError> {
    let now = shared.now();
    loop {
        let mut state = shared.lock();
        if state.closed {
            return Err(WriteError::Closed { digest });
        }
        if given.is_here(&mut state, &digest, now) {
            return Ok(Room::Here(Again::new(shared, &mut state, &digest)));
        }
        if let Some(reason) = state.read_only {
            return Err(WriteError::ReadOnly { digest, reason });
        }
        let reserved = state.reserve(charge, given.used.map(|used| used.min(now)), now);
        drop(state);
        return match reserved {
            Ok(()) => Ok(Room::Reserved(Reservation::new(shared, charge))),
            Err(NoRoom::NotYet) => {
                health::flush_evictions(shared);
                continue;
            }
            Err(NoRoom::LargerThanStore) => {
                Err(WriteError::LargerThanStore { digest, capacity_bytes: shared.options.capacity_bytes })
            }
            Err(NoRoom::Outlived) => Err(WriteError::Outlived { digest }),
            Err(NoRoom::Reserved) => Err(WriteError::Full { digest, retry_after: Duration::from_secs(1) }),
            Err(NoRoom::InUse(retry_after)) => Err(WriteError::Full { digest, retry_after }),
        };
    }
}

fn create(shared: &Arc<Shared>, size_bytes: u64) -> io::Result<(BlobFileWriter, UploadFile)> {
    let number = shared.uploads.fetch_add(1, Ordering::Relaxed);
    let file = shared.disk.create(&shared.paths.upload(shared.run, number))?;
    let upload_file = UploadFile { shared: Arc::clone(shared), number: Some(number) };
    Ok((BlobFileWriter::new(&shared.disk, file, size_bytes, shared.compression().cloned())?, upload_file))
}

fn failed(shared: &Shared, digest: Digest, error: JobError) -> WriteError {
    match error {
        JobError::Busy => WriteError::Busy { digest },
        JobError::Io(error) if health::is_full(&error) => {
            WriteError::Full { digest, retry_after: Duration::from_secs(1) }
        }
        JobError::Io(source) => {
            health::note_error(shared, &source);
            WriteError::Io { digest, source }
        }
    }
}

// === impl Upload ===

impl Upload {
    /// Bytes taken so far.
    pub fn written_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// Adds the next bytes.
    ///
    /// # Errors
    /// [`WriteError`]; [`Mismatch::TooLong`] as soon as there are more bytes than the digest says. The upload can only
    /// be dropped then.
    ///
    /// # Cancel safety
    /// Dropped half-way, the upload can only be dropped too.
    pub async fn write(&mut self, data: Bytes) -> Result<(), WriteError> {
        let received_bytes = self.received_bytes + data.len() as u64;
        if received_bytes > self.digest.size_bytes() {
            self.work = Work::Failed;
            return Err(self.mismatch(Mismatch::TooLong { received_bytes }));
        }
        self.received_bytes = received_bytes;
        self.gathered.push(data);
        if self.digest.size_bytes() <= SMALL_BLOB_BYTES {
            self.gathered.join_many();
        } else if self.gathered.is_due() {
            self.start().await?;
        }
        Ok(())
    }

    /// Verifies the blob and makes it visible. When this has returned, it survives the end of the process, and with
    /// sync `always` the loss of power.
    ///
    /// # Errors
    /// [`WriteError`]; the blob is not stored then.
    ///
    /// # Cancel safety
    /// Dropped half-way, the blob may be stored or not.
    pub async fn commit(mut self) -> Result<(), WriteError> {
        if matches!(self.work, Work::Failed) || self.received_bytes < self.digest.size_bytes() {
            let received_bytes = self.received_bytes;
            return Err(self.mismatch(Mismatch::TooShort { received_bytes }));
        }
        let digest = self.digest;
        let incoming = self.idle().await?;
        let pieces = self.gathered.take();
        let answer = if digest.size_bytes() <= SMALL_BLOB_BYTES {
            store_small(&self.shared, digest, &pieces, incoming.target.into_reservation(), self.given).await?
        } else {
            let (shared, given) = (Arc::clone(&self.shared), self.given);
            let ended = self.shared.blocking(move || finish(&shared, (digest, given), *incoming, &pieces)).await;
            ended.map_err(|error| failed(&self.shared, digest, error))??
        };
        wait(digest, answer).await
    }

    /// Has the pieces so far added by a job, after the one under way.
    async fn start(&mut self) -> Result<(), WriteError> {
        let mut incoming = self.idle().await?;
        let pieces = self.gathered.take();
        let shared = Arc::clone(&self.shared);
        let job = move || {
            incoming.add(&shared, &pieces)?;
            Ok(incoming)
        };
        let started = self.shared.start_blocking(job).await;
        self.work = Work::Running(started.map_err(|error| failed(&self.shared, self.digest, error))?);
        Ok(())
    }

    /// Waits for the job under way, if any.
    async fn idle(&mut self) -> Result<Box<Incoming>, WriteError> {
        match std::mem::replace(&mut self.work, Work::Failed) {
            Work::Idle(incoming) => Ok(incoming),
            Work::Running(job) => job.join().await.map_err(|error| failed(&self.shared, self.digest, error)),
            Work::Failed => {
                let received_bytes = self.received_bytes;
                Err(self.mismatch(Mismatch::TooShort { received_bytes }))
            }
        }
    }

    fn mismatch(&self, mismatch: Mismatch) -> WriteError {
        WriteError::Mismatch { expected: self.digest, mismatch }
    }
}

/// Waits for the pass of the sync thread that puts a blob on disk, if there is one to wait for.
async fn wait(digest: Digest, answer: commit::Answer) -> Result<(), WriteError> {
    let Some(answer) = answer else { return Ok(()) };
    match answer.await {
        Ok(result) => result.map_err(|source| WriteError::Io { digest, source }),
        // The sync thread has ended.
        Err(_) => Err(WriteError::Closed { digest }),
    }
}

/// What the last job of a large upload does.
fn finish(
    shared: &Arc<Shared>,
    (digest, given): (Digest, Given),
    mut incoming: Incoming,
    pieces: &[Bytes],
) -> io::Result<Result<commit::Answer, WriteError>> {
    incoming.add(shared, pieces)?;
    if let Some(hasher) = incoming.hasher
        && let Err(error) = verify(digest, hasher)
    {
        return Ok(Err(error));
    }
    match incoming.target {
        Target::Nowhere { .. } | Target::Memory(_) => Ok(commit::present(shared, &digest, given).map(|()| None)),
        Target::File(writer, file, reservation) => {
            let (written, layout) = writer.finish(&shared.disk, &digest)?;
            // Frames are never much larger than what they are made of.
            let form = layout.form().ok_or(io::ErrorKind::InvalidData)?;
            commit::file(shared, (&digest, given), (written, form), file, reservation)
        }
    }
}

/// Verifies (unless that has been done) and stores a small blob, on this thread: it takes less time than the way to another.
async fn store_small(
    shared: &Arc<Shared>,
    digest: Digest,
    pieces: &[Bytes],
    mut reservation: Option<Reservation>,
    given: Given,
) -> Result<commit::Answer, WriteError> {
    if given.trust == Trust::Nobody {
        let mut hasher = digest.function().hasher();
        pieces.iter().for_each(|piece| hasher.update(piece));
        verify(digest, hasher)?;
    }
    if digest.is_empty_blob() {
        return Ok(None);
    }
    if reservation.is_none() {
        match reserve(shared, digest, most_charge_bytes(shared, digest.size_bytes()), given).await? {
            Room::Reserved(reserved) => reservation = Some(reserved),
            Room::Here(_again) => return Ok(None),
        }
    }
    let payload = payload(shared, digest, pieces).await?;
    loop {
        let stored = if shared.pace.is_calm() {
            let started = Instant::now();
            let stored = commit::small(shared, (&digest, given), &payload, &mut reservation);
            shared.pace.note(started);
            stored.map_err(JobError::Io)
        } else {
            let (to, payload) = (Arc::clone(shared), payload.clone());
            let mut taken = reservation.take();
            let job = move || Ok((commit::small(&to, (&digest, given), &payload, &mut taken)?, taken));
            shared.blocking(job).await.map(|(stored, taken)| {
                reservation = taken;
                stored
            })
        };
        if let Some(answer) = stored.map_err(|error| failed(shared, digest, error))? {
            return answer;
        }
        let bytes = 2 * shared.lock().segments.segment_bytes();
        with_room(shared, (digest, given), bytes, |to| compact::make_segment(to)).await?;
    }
}

/// What is stored of a small blob: a frame of it, if blobs are compressed and it pays, and otherwise the blob.
async fn payload(shared: &Arc<Shared>, digest: Digest, pieces: &[Bytes]) -> Result<Payload, WriteError> {
    let plain = Payload { pieces: pieces.to_vec(), form: Form::Plain };
    let Some(codecs) = shared.compression() else { return Ok(plain) };
    let size_bytes = digest.size_bytes();
    let whole = match pieces {
        [piece] => piece.clone(),
        pieces => Bytes::from(pieces.concat()),
    };
    let frame = if size_bytes <= INLINE_COMPRESSED_BYTES {
        codecs.compress_if_it_pays(&whole).map_err(JobError::Io)
    } else {
        let codecs = Arc::clone(codecs);
        shared.blocking(move || codecs.compress_if_it_pays(&whole)).await
    };
    let Some(frame) = frame.map_err(|error| failed(shared, digest, error))? else { return Ok(plain) };
    let form = Form::in_segment(size_bytes, frame.len() as u64);
    Ok(form.map_or(plain, |form| Payload { pieces: vec![Bytes::from(frame)], form }))
}

fn verify(expected: Digest, hasher: Hasher) -> Result<(), WriteError> {
    let actual = hasher.finish();
    if actual == expected {
        return Ok(());
    }
    Err(WriteError::Mismatch { expected, mismatch: Mismatch::Hash { actual: Box::new(actual) } })
}

// === impl Given ===

impl Given {
    /// By whoever wants it kept.
    pub const NOW: Given = Given { trust: Trust::Nobody, used: None };
    /// By another node, which has hashed it.
    pub const VERIFIED: Given = Given { trust: Trust::Peer, used: None };

    /// A copy of what is kept elsewhere, last used so many milliseconds after the beginning of 1970.
    pub fn copy(used_ms: u64) -> Given {
        Given { trust: Trust::Nobody, used: Some(u32::try_from(used_ms / 1000).unwrap_or(u32::MAX)) }
    }

    /// Whether the blob is here. It is used now, unless a copy of it was to be stored.
    pub fn is_here(self, state: &mut State, digest: &Digest, now: u32) -> bool {
        match self.used {
            None => state.find_and_touch(digest, now).is_some(),
            Some(_) => state.find(digest).is_some(),
        }
    }
}

// === impl Target ===

impl Target {
    fn into_reservation(self) -> Option<Reservation> {
        match self {
            Target::Nowhere { .. } => None,
            Target::Memory(reservation) | Target::File(_, _, reservation) => Some(reservation),
        }
    }
}

// === impl Incoming ===

impl Incoming {
    fn add(&mut self, shared: &Shared, pieces: &[Bytes]) -> io::Result<()> {
        if let Some(hasher) = &mut self.hasher {
            pieces.iter().for_each(|piece| hasher.update(piece));
        }
        match &mut self.target {
            Target::Nowhere { .. } | Target::Memory(_) => Ok(()),
            Target::File(writer, ..) => writer.write(&shared.disk, pieces),
        }
    }
}

// === impl Again ===

impl Again {
    fn new(shared: &Arc<Shared>, state: &mut State, digest: &Digest) -> Again {
        let key = Key::of(digest);
        *state.again.entry(key).or_default() += 1;
        Again { shared: Arc::clone(shared), key }
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Entry::Occupied(mut uploads) = state.again.entry(self.key) {
            *uploads.get_mut() -= 1;
            if *uploads.get() == 0 {
                uploads.remove();
            }
        }
    }
}

// === impl UploadFile ===

impl UploadFile {
    /// The upload's number.
    pub fn number(&self) -> Option<u64> {
        self.number
    }

    /// The file has another name now.
    pub fn renamed(mut self) {
        self.number = None;
    }
}

impl Drop for UploadFile {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.shared.discard(GarbageFile::Upload(number));
        }
    }
}
