//! Uploads that were cut off, kept for a while so that the client can go on where it was.
//!
//! An upload is told apart by its uuid *and* its digest: clients use one uuid for many blobs. And by its form, although
//! what is kept are the bytes of the blob in either: those that a compressed upload has made. It goes on with a new frame
//! at that byte, as the API has it, so that nothing of a decoder is kept.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use casbah_cluster::digest::Digest;
use tokio::sync::Notify;

use crate::serve::compression::Form;
use crate::store::Upload;

/// Interrupted uploads that are kept at once. Each holds the space of its blob and an open file.
const KEPT_MAX: usize = 256;

/// How long an interrupted upload is kept: clients come back within seconds, their longest back-off is a minute or two.
const KEPT_FOR: Duration = Duration::from_secs(300);

/// How long a call that wants to go on with an upload waits for the one that has it: a message or two.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(2);

/// The name of an upload.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct UploadName {
    pub(super) uuid: String,
    pub(super) form: Form,
    pub(super) digest: Digest,
}

/// What is known of uploads that have not been committed.
#[derive(Clone)]
pub(super) struct PartialUploads {
    /// Bytes that the blobs of interrupted uploads may have together.
    kept_bytes_max: u64,
    uploads: Arc<Mutex<HashMap<UploadName, Entry>>>,
}

enum Entry {
    /// Bytes are arriving.
    Active(Arc<Progress>),
    /// Cut off at this time.
    Kept(Upload, Instant),
}

/// What others may know of an upload while its bytes arrive.
struct Progress {
    /// Bytes that are there.
    written: AtomicU64,
    /// Another call wants to go on with it.
    wanted: Notify,
    /// It is active no more.
    over: Notify,
}

/// An upload while its bytes arrive. Dropped, it is kept for the client to go on with; committed, it is not.
pub(super) struct ActiveUpload {
    name: UploadName,
    uploads: PartialUploads,
    /// `None` only after [`ActiveUpload::finish`].
    upload: Option<Upload>,
    progress: Arc<Progress>,
}

// === impl PartialUploads ===

impl PartialUploads {
    /// None yet. The blobs of those that are kept may have so many bytes together.
    pub(super) fn new(kept_bytes_max: u64) -> PartialUploads {
        PartialUploads { kept_bytes_max, uploads: Arc::default() }
    }

    /// The bytes that are here of an upload that is not committed.
    pub(super) fn written_bytes(&self, name: &UploadName) -> Option<u64> {
        match self.lock().get(name)? {
            Entry::Active(progress) => Some(progress.written.load(Ordering::Relaxed)),
            Entry::Kept(upload, _) => Some(upload.written_bytes()),
        }
    }

    /// The interrupted upload of this name, if there is one: it is the caller's now.
    pub(super) fn take(&self, name: &UploadName) -> Option<Upload> {
        let mut uploads = self.lock();
        match uploads.remove(name)? {
            Entry::Kept(upload, _) => Some(upload),
            active @ Entry::Active(_) => {
                uploads.insert(name.clone(), active);
                None
            }
        }
    }

    /// The upload of this name that stands at this byte: an interrupted one, or else one that the server still takes for
    /// active, because its client's connection is dead and nobody has said so. Its call ends, and it is the caller's now.
    ///
    /// # Cancel safety
    /// Dropped half-way, the upload is kept for the next one who asks.
    pub(super) async fn take_at(&self, name: &UploadName, offset: u64) -> Option<Upload> {
        let active = match self.lock().get(name)? {
            Entry::Active(progress) if progress.written.load(Ordering::Relaxed) == offset => Some(Arc::clone(progress)),
            _ => None,
        };
        if let Some(progress) = active {
            progress.wanted.notify_one();
            // Late or not: what counts is whether it is there.
            drop(tokio::time::timeout(HANDOVER_PATIENCE, progress.over.notified()).await);
        }
        self.take(name)
    }

    /// Makes it known that bytes of this upload arrive.
    pub(super) fn activate(&self, name: UploadName, upload: Upload) -> ActiveUpload {
        let written = AtomicU64::new(upload.written_bytes());
        let progress = Arc::new(Progress { written, wanted: Notify::new(), over: Notify::new() });
        self.lock().insert(name.clone(), Entry::Active(Arc::clone(&progress)));
        ActiveUpload { name, uploads: self.clone(), upload: Some(upload), progress }
    }

    /// Gives up every interrupted upload, so that the space they hold can be used.
    pub(super) fn discard_all(&self) {
        self.discard(|_| true);
    }

    /// Gives up the interrupted uploads that nobody came back for.
    pub(super) fn discard_old(&self, now: Instant) {
        self.discard(|since| now.duration_since(since) >= KEPT_FOR);
    }

    fn discard(&self, given_up: impl Fn(Instant) -> bool) {
        self.lock().retain(|_, entry| match entry {
            Entry::Active(_) => true,
            Entry::Kept(_, since) => !given_up(*since),
        });
    }

    /// Keeps an upload, in place of the oldest ones where they are too many or too large together.
    fn keep(&self, name: UploadName, upload: Upload) {
        let mut uploads = self.lock();
        let kept = uploads.iter().filter_map(|(name, entry)| match entry {
            Entry::Kept(_, since) => Some((*since, name.clone())),
            Entry::Active(_) => None,
        });
        let mut kept: Vec<(Instant, UploadName)> = kept.collect();
        kept.sort_unstable_by_key(|(since, _)| *since);
        let size_bytes = |name: &UploadName| name.digest.size_bytes();
        let mut total_bytes = size_bytes(&name) + kept.iter().map(|(_, name)| size_bytes(name)).sum::<u64>();
        let mut count = kept.len() + 1;
        for (_, oldest) in kept {
            if count <= KEPT_MAX && total_bytes <= self.kept_bytes_max {
                break;
            }
            count -= 1;
            total_bytes -= size_bytes(&oldest);
            uploads.remove(&oldest);
        }
        if total_bytes <= self.kept_bytes_max {
            uploads.insert(name, Entry::Kept(upload, Instant::now()));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<UploadName, Entry>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl ActiveUpload ===

impl ActiveUpload {
    /// The upload, to write to.
    pub(super) fn upload(&mut self) -> &mut Upload {
        self.upload.as_mut().expect("only finish takes it, and consumes self")
    }

    /// Makes the bytes that are here known to [`PartialUploads::written_bytes`].
    pub(super) fn note_progress(&mut self) {
        let written = self.upload().written_bytes();
        self.progress.written.store(written, Ordering::Relaxed);
    }

    /// Returns when another call wants to go on with this upload.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn wanted(&self) {
        self.progress.wanted.notified().await;
    }

    /// What is being uploaded.
    pub(super) fn digest(&self) -> Digest {
        self.name.digest
    }

    /// Drops the upload: nothing is kept.
    pub(super) fn give_up(mut self) {
        self.upload = None;
    }

    /// Takes the upload out, to be committed. Nothing is kept.
    pub(super) fn finish(mut self) -> Upload {
        self.upload.take().expect("only finish takes it, and consumes self")
    }
}

impl Drop for ActiveUpload {
    fn drop(&mut self) {
        {
            // Another upload of the same name may have begun meanwhile: its entry stays.
            let mut uploads = self.uploads.lock();
            match uploads.get(&self.name) {
                Some(Entry::Active(progress)) if Arc::ptr_eq(progress, &self.progress) => {
                    uploads.remove(&self.name);
                }
                _ => return,
            }
        }
        if let Some(upload) = self.upload.take().filter(|upload| upload.written_bytes() > 0) {
            self.uploads.keep(self.name.clone(), upload);
        }
        self.progress.over.notify_one();
    }
}
