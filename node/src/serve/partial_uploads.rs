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

use crate::serve::compression::Form;
use crate::store::Upload;

/// Interrupted uploads that are kept at once. Each holds the space of its blob and an open file.
const KEPT_MAX: usize = 256;

/// How long an interrupted upload is kept: clients come back within seconds, their longest back-off is a minute or two.
const KEPT_FOR: Duration = Duration::from_secs(300);

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
    /// Bytes are arriving; so many are there.
    Active(Arc<AtomicU64>),
    /// Cut off at this time.
    Kept(Upload, Instant),
}

/// An upload while its bytes arrive. Dropped, it is kept for the client to go on with; committed, it is not.
pub(super) struct ActiveUpload {
    name: UploadName,
    uploads: PartialUploads,
    /// `None` only after [`ActiveUpload::finish`].
    upload: Option<Upload>,
    written: Arc<AtomicU64>,
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
            Entry::Active(written) => Some(written.load(Ordering::Relaxed)),
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

    /// Makes it known that bytes of this upload arrive.
    pub(super) fn activate(&self, name: UploadName, upload: Upload) -> ActiveUpload {
        let written = Arc::new(AtomicU64::new(upload.written_bytes()));
        self.lock().insert(name.clone(), Entry::Active(Arc::clone(&written)));
        ActiveUpload { name, uploads: self.clone(), upload: Some(upload), written }
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
        self.written.store(written, Ordering::Relaxed);
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
                Some(Entry::Active(written)) if Arc::ptr_eq(written, &self.written) => {
                    uploads.remove(&self.name);
                }
                _ => return,
            }
        }
        if let Some(upload) = self.upload.take().filter(|upload| upload.written_bytes() > 0) {
            self.uploads.keep(self.name.clone(), upload);
        }
    }
}
