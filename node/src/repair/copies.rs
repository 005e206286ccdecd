//! Blobs on their way between this node and another one: small ones in batches, large ones in streams, at the rate of repair.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_cluster::inventory::ListedBlob;
use casbah_cluster::membership::NodeId;
use casbah_cluster::repair::Room;
use futures_util::stream::{self, StreamExt as _};
use tonic::Status;

use super::error::MoveError;
use super::progress::Moved;
use crate::config::limits::PEER_BATCH_BYTES;
use crate::forward::{Copy, PeerError};
use crate::replicate::Nodes;
use crate::store;

/// Blobs of one batch that this node's store works on at once, so that they share the disk's latency.
const BATCH_PARALLEL: usize = 16;

/// Blobs in one batch: with the smallest of blobs, a batch is not to take all of a node's attention.
const BATCH_COUNT: usize = 4096;

/// Bytes of a batch. Half of what a message takes, as several are under way.
const BATCH_BYTES: u64 = PEER_BATCH_BYTES / 2;

/// Bytes that are sent at once of a large blob.
const PIECE_BYTES: usize = 1 << 20;

/// The way of blobs between this node and another one.
pub(super) struct Way<'a> {
    pub(super) nodes: &'a Nodes,
    pub(super) moved: &'a Moved,
    pub(super) other: NodeId,
    /// For how long what was used stays, on any node.
    pub(super) floor: Duration,
}

/// Blobs that go together, or one alone that is too large for that.
pub(super) enum Load {
    Batch(Vec<ListedBlob>),
    Alone(ListedBlob),
}

/// In the same order as they are in.
pub(super) fn loads(blobs: Vec<ListedBlob>) -> Vec<Load> {
    let mut loads = Vec::new();
    let (mut batch, mut bytes): (Vec<ListedBlob>, u64) = (Vec::new(), 0);
    for blob in blobs {
        let size_bytes = blob.digest.size_bytes();
        if size_bytes > BATCH_BYTES {
            loads.push(Load::Alone(blob));
            continue;
        }
        if !batch.is_empty() && (bytes + size_bytes > BATCH_BYTES || batch.len() >= BATCH_COUNT) {
            loads.push(Load::Batch(std::mem::take(&mut batch)));
            bytes = 0;
        }
        bytes += size_bytes;
        batch.push(blob);
    }
    if !batch.is_empty() {
        loads.push(Load::Batch(batch));
    }
    loads
}

// === impl Way ===

impl Way<'_> {
    /// Copies blobs from the other node to this one; how many. Those that the other one does not have any more, and those that
    /// would be evicted here next, are left out.
    pub(super) async fn fetch(&self, load: Load) -> Result<u64, MoveError> {
        match load {
            Load::Batch(batch) => {
                let staying: Vec<ListedBlob> = batch.into_iter().filter(|blob| self.would_stay(blob)).collect();
                self.fetch_batch(&staying).await
            }
            Load::Alone(blob) if self.would_stay(&blob) => self.fetch_alone(&blob).await,
            Load::Alone(_) => Ok(0),
        }
    }

    async fn fetch_batch(&self, batch: &[ListedBlob]) -> Result<u64, MoveError> {
        let digests: Vec<Digest> = batch.iter().map(|blob| blob.digest).collect();
        let bytes = digests.iter().map(Digest::size_bytes).sum();
        self.nodes.pacing().take(bytes).await;
        let read = self.nodes.remote().read_copies(self.other, &digests).await?;
        let mut read_blobs: Vec<(ListedBlob, Bytes)> = Vec::with_capacity(batch.len());
        let mut failed = None;
        for (blob, outcome) in batch.iter().zip(read) {
            match outcome {
                Ok((data, _identity)) => read_blobs.push((*blob, data)),
                // Evicted, or found to be damaged: it has none.
                Err(PeerError::NotFound | PeerError::Unsure) => {}
                Err(error) => failed = Some(error),
            }
        }
        let puts = stream::iter(read_blobs).map(|(blob, data)| self.keep(blob, data));
        let mut puts = puts.buffered(BATCH_PARALLEL);
        let mut copies = 0;
        while let Some(kept) = puts.next().await {
            copies += u64::from(kept?);
        }
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(copies),
        }
    }

    async fn keep(&self, blob: ListedBlob, data: Bytes) -> Result<bool, MoveError> {
        let bytes = data.len() as u64;
        match self.nodes.store().put_copy(&blob.digest, data, blob.used_ms).await {
            Ok(()) => {
                self.moved.pulled(bytes);
                Ok(true)
            }
            Err(error) if self.is_of_no_use(&blob, &error) => Ok(false),
            Err(error) => Err(MoveError::of_write(error)),
        }
    }

    async fn fetch_alone(&self, blob: &ListedBlob) -> Result<u64, MoveError> {
        let digest = &blob.digest;
        // First, so that nothing comes that would not stay.
        let mut upload = match self.nodes.store().upload_copy(digest, blob.used_ms).await {
            Err(error) if self.is_of_no_use(blob, &error) => return Ok(0),
            upload => upload.map_err(MoveError::of_write)?,
        };
        let mut read = match self.nodes.remote().read_copy(self.other, digest).await {
            Err(PeerError::NotFound | PeerError::Unsure) => return Ok(0),
            read => read?,
        };
        while let Some(piece) = read.next().await? {
            self.nodes.pacing().take(piece.len() as u64).await;
            upload.write(piece).await.map_err(MoveError::of_write)?;
        }
        upload.commit().await.map_err(MoveError::of_write)?;
        self.moved.pulled(digest.size_bytes());
        Ok(1)
    }

    /// Whether this node has room for the blob, or would evict others before it. The store decides; what it would refuse need not
    /// come.
    fn would_stay(&self, blob: &ListedBlob) -> bool {
        let status = self.nodes.store().status();
        let room_bytes = status.usable_bytes.saturating_sub(status.bytes + status.reserved_bytes);
        let oldest_use = status.oldest_use.and_then(|used| used.duration_since(UNIX_EPOCH).ok());
        let horizon_ms = oldest_use.map(|since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        let floor_ms = u64::try_from(self.floor.as_millis()).unwrap_or(u64::MAX);
        let has_room = blob.digest.size_bytes() < room_bytes;
        let room = Room { horizon_ms: horizon_ms.filter(|_| !has_room), floor_ms };
        !room.would_evict(blob.used_ms, unix_ms())
    }

    /// Whether this node refuses a copy that it need not have: it would be the next to go, or does not fit whatever goes.
    fn is_of_no_use(&self, blob: &ListedBlob, error: &store::WriteError) -> bool {
        match error {
            store::WriteError::Outlived { .. } => !is_promised(blob, self.floor),
            store::WriteError::LargerThanStore { .. } => true,
            _ => false,
        }
    }

    /// Gives blobs that are here to the other node; what became of each, in the order of `load`.
    pub(super) async fn give(&self, load: &Load) -> Result<Vec<Result<(), PeerError>>, MoveError> {
        match load {
            Load::Batch(batch) => self.give_batch(batch).await,
            Load::Alone(blob) => Ok(vec![self.give_alone(blob).await?]),
        }
    }

    async fn give_batch(&self, batch: &[ListedBlob]) -> Result<Vec<Result<(), PeerError>>, MoveError> {
        let bytes = batch.iter().map(|blob| blob.digest.size_bytes()).sum();
        self.nodes.pacing().take(bytes).await;
        let mut blobs = Vec::with_capacity(batch.len());
        let mut is_here = Vec::with_capacity(batch.len());
        for blob in batch {
            let read = self.nodes.store().get_unused(&blob.digest, PEER_BATCH_BYTES).await;
            is_here.push(read.is_ok());
            match read {
                Ok(data) => blobs.push(Copy { digest: blob.digest, data, used_ms: blob.used_ms }),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(MoveError::Read(error)),
            }
        }
        let sizes: Vec<u64> = blobs.iter().map(|copy| copy.data.len() as u64).collect();
        let mut stored = self.nodes.remote().store_copies(self.other, blobs).await?.into_iter().zip(sizes);
        let outcomes = is_here.into_iter().map(|is_here| match is_here.then(|| stored.next()).flatten() {
            Some((outcome, bytes)) => {
                if outcome.is_ok() {
                    self.moved.given(bytes);
                }
                outcome
            }
            None => Err(gone()),
        });
        Ok(outcomes.collect())
    }

    async fn give_alone(&self, blob: &ListedBlob) -> Result<Result<(), PeerError>, MoveError> {
        let digest = &blob.digest;
        let mut reader = match self.nodes.store().read_unused(digest, 0, None).await {
            Err(error) if is_gone(&error) => return Ok(Err(gone())),
            reader => reader.map_err(MoveError::Read)?,
        };
        let mut upload = self.nodes.remote().store_copy(self.other, digest, blob.used_ms).await?;
        while let Some(piece) = reader.next().await.map_err(MoveError::Read)? {
            let mut piece = piece;
            while !piece.is_empty() {
                let part = piece.split_to(piece.len().min(PIECE_BYTES));
                self.nodes.pacing().take(part.len() as u64).await;
                if let Err(error) = upload.send(part).await {
                    return Ok(Err(error));
                }
            }
        }
        let outcome = upload.commit().await;
        if outcome.is_ok() {
            self.moved.given(digest.size_bytes());
        }
        Ok(outcome)
    }
}

/// Whether a blob was used so lately that it has been promised to stay (G4).
pub(super) fn is_promised(blob: &ListedBlob, floor: Duration) -> bool {
    let floor_ms = u64::try_from(floor.as_millis()).unwrap_or(u64::MAX);
    !Room { horizon_ms: Some(u64::MAX), floor_ms }.would_evict(blob.used_ms, unix_ms())
}

/// By this node's clock.
pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn is_gone(error: &store::ReadError) -> bool {
    use store::ReadError::{Damaged, Lost, NotFound};
    matches!(error, NotFound { .. } | Damaged { .. } | Lost { .. })
}

/// What was to be given is not here any more.
fn gone() -> PeerError {
    PeerError::Broken(Box::new(Status::not_found("the blob is not here any more")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use casbah_cluster::digest::DigestFunction;

    fn blob(at: u64, size_bytes: u64) -> ListedBlob {
        let hash = Digest::of(DigestFunction::Sha256, &at.to_be_bytes());
        let digest = Digest::from_raw(DigestFunction::Sha256, hash.hash(), size_bytes).unwrap();
        ListedBlob { digest, used_ms: at }
    }

    #[test]
    fn what_is_small_goes_together_and_what_is_large_alone_and_all_of_it_goes() {
        let sizes = [1, BATCH_BYTES, BATCH_BYTES + 1, 5, 5, BATCH_BYTES - 9, 9];
        let blobs: Vec<ListedBlob> = (0..).zip(sizes).map(|(at, size)| blob(at, size)).collect();
        let loads = loads(blobs);
        let counts: Vec<usize> = loads
            .iter()
            .map(|load| match load {
                Load::Batch(batch) => {
                    assert!(batch.iter().map(|blob| blob.digest.size_bytes()).sum::<u64>() <= BATCH_BYTES);
                    batch.len()
                }
                Load::Alone(_) => 0,
            })
            .collect();
        assert_eq!(counts, [1, 0, 1, 2, 2]);
    }

    #[test]
    fn even_of_empty_blobs_a_batch_has_an_end() {
        let blobs: Vec<ListedBlob> = (0..10_000).map(|at| blob(at, 0)).collect();
        let counts = loads(blobs).into_iter().map(|load| match load {
            Load::Batch(batch) => batch.len(),
            Load::Alone(_) => 0,
        });
        assert_eq!(counts.collect::<Vec<_>>(), [4096, 4096, 1808]);
    }
}
