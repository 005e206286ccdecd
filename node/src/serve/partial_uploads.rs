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

use crate::route::Upload;
use crate::serve::compression::Form;

/// Interrupted uploads that are kept at once. Each holds the space of its blob and an open file.
const KEPT_MAX: usize = 256;

/// How long an interrupted upload is kept: clients come back within seconds, their longest back-off is a minute or two.
const KEPT_FOR: Duration = Duration::from_secs(300);

/// How long a call may take to end once another one goes on with its upload: it has a piece to write at the most.
const END_PATIENCE: Duration = Duration::from_secs(1);

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
    Active(Arc<Call>),
    /// Cut off at this time.
    Kept(Box<Upload>, Instant),
}

/// A call that brings the bytes of an upload.
#[derive(Default)]
pub(super) struct Call {
    /// So many are there.
    written: AtomicU64,
    /// Another call goes on with the upload.
    superseded: Notify,
    /// The upload is no longer this call's.
    ended: Notify,
}

/// An upload while its bytes arrive. Dropped, it is kept for the client to go on with; committed, it is not.
pub(super) struct ActiveUpload {
    name: UploadName,
    uploads: PartialUploads,
    /// `None` only after [`ActiveUpload::finish`].
    upload: Option<Upload>,
    call: Arc<Call>,
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
            Entry::Active(call) => Some(call.written.load(Ordering::Relaxed)),
            Entry::Kept(upload, _) => Some(upload.written_bytes()),
        }
    }

    /// The interrupted upload of this name, if there is one: it is the caller's now.
    pub(super) fn take(&self, name: &UploadName) -> Option<Upload> {
        let mut uploads = self.lock();
        match uploads.remove(name)? {
            Entry::Kept(upload, _) => Some(*upload),
            active @ Entry::Active(_) => {
                uploads.insert(name.clone(), active);
                None
            }
        }
    }

    /// Has the call end whose upload of this name stands at so many bytes. A client notices first that its connection
    /// broke, and comes back with another one while the call is still waited on here.
    ///
    /// # Cancel safety
    /// May be dropped at any time; the call ends all the same.
    pub(super) async fn end_call_at(&self, name: &UploadName, written_bytes: u64) {
        let call = match self.lock().get(name) {
            Some(Entry::Active(call)) if call.written.load(Ordering::Relaxed) == written_bytes => Arc::clone(call),
            _ => return,
        };
        let ended = call.ended.notified();
        tokio::pin!(ended);
        // From here on no end is missed; one that came before is seen in the entry.
        ended.as_mut().enable();
        let is_active = match self.lock().get(name) {
            Some(Entry::Active(active)) => Arc::ptr_eq(active, &call),
            _ => false,
        };
        if is_active {
            call.superseded.notify_one();
            let _elapsed = tokio::time::timeout(END_PATIENCE, ended).await;
        }
    }

    /// Makes it known that bytes of this upload arrive.
    pub(super) fn activate(&self, name: UploadName, upload: Upload) -> ActiveUpload {
        let call = Arc::new(Call { written: AtomicU64::new(upload.written_bytes()), ..Call::default() });
        self.lock().insert(name.clone(), Entry::Active(Arc::clone(&call)));
        ActiveUpload { name, uploads: self.clone(), upload: Some(upload), call }
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
            uploads.insert(name, Entry::Kept(Box::new(upload), Instant::now()));
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
        self.call.written.store(written, Ordering::Relaxed);
    }

    /// The call, which is to end when it is [`Call::superseded`].
    pub(super) fn call(&self) -> Arc<Call> {
        Arc::clone(&self.call)
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

    /// Leaves the upload to whoever comes back for it, if it is still this call's.
    fn leave(&mut self) {
        {
            // Another upload of the same name may have begun meanwhile: its entry stays.
            let mut uploads = self.uploads.lock();
            match uploads.get(&self.name) {
                Some(Entry::Active(call)) if Arc::ptr_eq(call, &self.call) => {
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

impl Drop for ActiveUpload {
    fn drop(&mut self) {
        self.leave();
        self.call.ended.notify_waiters();
    }
}

// === impl Call ===

impl Call {
    /// Comes when another call goes on with the upload.
    ///
    /// # Cancel safety
    /// May be dropped at any time and asked for again.
    pub(super) async fn superseded(&self) {
        self.superseded.notified().await;
    }
}
