//! The hash of an upload, made beside its way to the nodes.

use bytes::Bytes;
use casbah_cluster::digest::{Digest, Hasher};
use tokio::task::JoinHandle;

/// Fewer bytes are hashed where they are: it takes less time than the way to another thread and back.
const INLINE_BYTES: usize = 64 << 10;

/// What has been hashed so far, here or with a job.
pub(super) enum Hashing {
    /// Here.
    Idle(Box<Hasher>),
    /// With a job that adds pieces.
    Running(JoinHandle<Box<Hasher>>),
    /// The process is ending, or a job has panicked.
    Lost,
}

// === impl Hashing ===

impl Hashing {
    pub(super) fn new(digest: &Digest) -> Hashing {
        Hashing::Idle(Box::new(digest.function().hasher()))
    }

    /// Adds the next pieces, after those before; if they are long, without waiting for it.
    ///
    /// # Cancel safety
    /// Dropped half-way, the hash is lost.
    pub(super) async fn add(&mut self, pieces: Vec<Bytes>) {
        let Some(mut hasher) = self.take().await else { return };
        let is_short = pieces.iter().map(Bytes::len).sum::<usize>() <= INLINE_BYTES;
        let add = move || {
            pieces.iter().for_each(|piece| hasher.update(piece));
            hasher
        };
        *self = if is_short { Hashing::Idle(add()) } else { Hashing::Running(tokio::task::spawn_blocking(add)) };
    }

    /// The digest of all that was added; `None` if it is not known.
    pub(super) async fn finish(&mut self) -> Option<Digest> {
        Some(self.take().await?.finish())
    }

    async fn take(&mut self) -> Option<Box<Hasher>> {
        match std::mem::replace(self, Hashing::Lost) {
            Hashing::Idle(hasher) => Some(hasher),
            Hashing::Running(job) => job.await.ok(),
            Hashing::Lost => None,
        }
    }
}
