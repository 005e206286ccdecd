//! SplitBlob and SpliceBlob: blobs in chunks, so that clients move only those that the other side lacks.
//!
//! A spliced blob is stored like any other, beside its chunks, and so a blob that was split takes its space twice until
//! one or the other is evicted. What is saved is the way over the network. Blob and chunks live apart from then on, as
//! the API allows, which is why every answer looks for all of them anew.

use std::collections::HashSet;

use bytes::{Bytes, BytesMut};
use casbah_cluster::chunking::{self, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES};
use casbah_cluster::digest::{Digest, DigestFunction};
use casbah_cluster::split::Split;
use casbah_proto::build::bazel::remote::execution::v2 as api;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::{Code, Status};

use crate::index::SplitIndex;
use crate::route::Blobs;
use crate::serve::cas::{digest_of, to_message};
use crate::serve::status_map;

/// Blobs that are cut or put together at once. Each holds some chunks and a piece or two, some 12 MB together, and keeps a
/// core busy while its bytes are in the page cache.
const WORK_MAX: usize = 8;

/// Bytes of chunks that are stored or read at once, so that a round of calls to their nodes is for several of them.
const CHUNKS_BYTES: usize = 4 << 20;

/// Chunks that are read at once, however small they are.
const CHUNKS_READ: usize = 1024;

/// Bytes of digests in one answer: clients take messages of 4 MiB. It is a blob of some 25 GB in chunks of SHA-256.
const ANSWER_BYTES: usize = 4_000_000;

/// Bytes of a digest in a message beyond the hash: tags, lengths and the size.
const DIGEST_OVERHEAD_BYTES: usize = 16;

/// Missing chunks that a message names.
const NAMED_MAX: usize = 10;

const FAST_CDC: i32 = api::chunking_function::Value::FastCdc2020 as i32;

/// Cuts blobs, and puts them together.
pub struct Chunks {
    blobs: Blobs,
    splits: SplitIndex,
    capacity_bytes: u64,
    work: Semaphore,
}

// === impl Chunks ===

impl Chunks {
    /// On these blobs, of which this node may take so many bytes, and with what was split before.
    pub fn new(blobs: Blobs, splits: SplitIndex, capacity_bytes: u64) -> Chunks {
        Chunks { blobs, splits, capacity_bytes, work: Semaphore::new(WORK_MAX) }
    }

    /// The chunks of a blob, all of them present.
    ///
    /// # Errors
    /// `NOT_FOUND` when the blob is absent or has more chunks than an answer takes, `RESOURCE_EXHAUSTED` when there is
    /// no room for its chunks.
    ///
    /// # Cancel safety
    /// Dropped half-way, some of the chunks may be stored.
    pub(super) async fn split(
        &self,
        function: DigestFunction,
        request: api::SplitBlobRequest,
    ) -> Result<api::SplitBlobResponse, Status> {
        let blob = blob(function, request.blob_digest.as_ref())?;
        if !self.are_present(&[blob]).await? {
            return Err(Status::not_found(format!("the blob {blob} is not in the store")));
        }
        if blob.size_bytes() < MAX_CHUNK_BYTES as u64 {
            return Ok(answer(&Split { chunking: FAST_CDC, chunks: vec![blob] }));
        }
        if let Some(split) = self.remembered(&blob, request.chunking_function).await? {
            return Ok(answer(&split));
        }
        let _permit = self.permit().await?;
        // Another call may have made it while this one waited.
        if let Some(split) = self.remembered(&blob, request.chunking_function).await? {
            return Ok(answer(&split));
        }
        let split = Split { chunking: FAST_CDC, chunks: self.cut(&blob).await? };
        self.remember(&blob, &split).await;
        Ok(answer(&split))
    }

    /// Puts a blob together of chunks, unless it is here.
    ///
    /// # Errors
    /// `NOT_FOUND` names chunks that are absent, `INVALID_ARGUMENT`: they do not make up the blob, `ALREADY_EXISTS`: the
    /// blob is here and chunks of it are not.
    ///
    /// # Cancel safety
    /// Dropped half-way, the blob may be stored or not.
    pub(super) async fn splice(
        &self,
        function: DigestFunction,
        request: api::SpliceBlobRequest,
    ) -> Result<api::SpliceBlobResponse, Status> {
        let blob = blob(function, request.blob_digest.as_ref())?;
        let digests = request.chunk_digests.iter().map(|chunk| digest_of(function, chunk));
        let chunks: Vec<Digest> = digests.collect::<Result<_, _>>().map_err(|error| status_map::digest(&error))?;
        let total_bytes = chunks.iter().fold(0_u64, |sum, chunk| sum.saturating_add(chunk.size_bytes()));
        if total_bytes != blob.size_bytes() {
            let message =
                format!("the chunks have {total_bytes} bytes together, which does not make up the blob {blob}");
            return Err(Status::invalid_argument(message));
        }
        let missing = self.missing(&chunks).await?;
        if self.are_present(&[blob]).await? {
            return match missing.as_slice() {
                [] => Ok(api::SpliceBlobResponse { blob_digest: Some(to_message(&blob)) }),
                missing => Err(absent(Code::AlreadyExists, &format!("the blob {blob} is here, but"), missing)),
            };
        }
        if !missing.is_empty() {
            return Err(absent(Code::NotFound, &format!("the blob {blob} cannot be put together:"), &missing));
        }
        let _permit = self.permit().await?;
        self.join(&blob, &chunks).await?;
        self.remember(&blob, &Split { chunking: request.chunking_function, chunks }).await;
        Ok(api::SpliceBlobResponse { blob_digest: Some(to_message(&blob)) })
    }

    /// Cuts the blob, and stores its chunks.
    async fn cut(&self, blob: &Digest) -> Result<Vec<Digest>, Status> {
        let (function, max_chunks) = (blob.function(), max_chunks(blob.function()));
        let too_long =
            || Status::not_found(format!("no split of the blob {blob} is known: it has more than {max_chunks} chunks"));
        if blob.size_bytes() / MAX_CHUNK_BYTES as u64 > max_chunks as u64 {
            return Err(too_long());
        }
        // Sooner than evicting all else for chunks that then evict their blob.
        if blob.size_bytes().saturating_mul(2) > self.capacity_bytes {
            return Err(no_room(blob));
        }
        let mut reader = self.blobs.read(blob, 0, None).await.map_err(|error| status_map::read(&error))?;
        let mut chunks = Vec::new();
        let mut cut = Vec::new();
        let mut cut_bytes = 0;
        let mut rest = BytesMut::with_capacity(2 * MAX_CHUNK_BYTES);
        let mut is_last = false;
        while !(is_last && rest.is_empty()) {
            while !is_last && rest.len() < MAX_CHUNK_BYTES {
                match reader.next().await.map_err(|error| status_map::read(&error))? {
                    Some(piece) => rest.extend_from_slice(&piece),
                    None => is_last = true,
                }
            }
            if rest.is_empty() {
                break;
            }
            let window = rest.get(..rest.len().min(MAX_CHUNK_BYTES)).unwrap_or_default();
            let length = chunking::first_chunk_bytes(window);
            // Cutting and hashing take a millisecond or two, between which others shall have their turn.
            tokio::task::consume_budget().await;
            let chunk = rest.split_to(length).freeze();
            let digest = Digest::of(function, &chunk);
            chunks.push(digest);
            if chunks.len() > max_chunks {
                return Err(too_long());
            }
            cut_bytes += chunk.len();
            cut.push((digest, chunk));
            if cut_bytes + MAX_CHUNK_BYTES > CHUNKS_BYTES {
                self.keep(std::mem::take(&mut cut)).await?;
                cut_bytes = 0;
            }
        }
        self.keep(cut).await?;
        // With little room, the last ones have evicted the first ones, or the blob.
        if !self.are_present(&[*blob]).await? || !self.are_present(&chunks).await? {
            return Err(no_room(blob));
        }
        Ok(chunks)
    }

    /// Stores those of the chunks that are not there.
    async fn keep(&self, mut chunks: Vec<(Digest, Bytes)>) -> Result<(), Status> {
        let digests: Vec<Digest> = chunks.iter().map(|(digest, _)| *digest).collect();
        let mut present = self.blobs.find(&digests).await.into_iter();
        chunks.retain(|_| !present.next().unwrap_or(false));
        let outcomes = self.blobs.put_many(chunks).await;
        outcomes.into_iter().try_for_each(|outcome| outcome.map_err(|error| status_map::write(&error)))
    }

    /// Puts the blob together, verifies and stores it.
    async fn join(&self, blob: &Digest, chunks: &[Digest]) -> Result<(), Status> {
        let mut upload = self.blobs.upload(blob).await.map_err(|error| status_map::write(&error))?;
        let mut rest = chunks;
        while let Some((batch, after)) = next_batch(rest) {
            rest = after;
            if let [chunk] = batch {
                let mut reader = self.blobs.read(chunk, 0, None).await.map_err(|error| status_map::read(&error))?;
                while let Some(piece) = reader.next().await.map_err(|error| status_map::read(&error))? {
                    upload.write(piece).await.map_err(|error| status_map::write(&error))?;
                }
                continue;
            }
            for read in self.blobs.get_many(batch, CHUNKS_BYTES as u64, false).await {
                let (piece, _as_it_is) = read.map_err(|error| status_map::read(&error))?;
                upload.write(piece).await.map_err(|error| status_map::write(&error))?;
            }
        }
        upload.commit().await.map_err(|error| status_map::write(&error))
    }

    /// The split that is known of a blob, if it is of the kind that is wanted and all its chunks are here. Those are used
    /// now.
    async fn remembered(&self, blob: &Digest, wanted: i32) -> Result<Option<Split>, Status> {
        let known = self.splits.get(blob).unwrap_or_else(|error| {
            // The blob can be cut again.
            tracing::warn!(%blob, %error, "the split of a blob is taken for unknown");
            None
        });
        match known.filter(|split| wanted != FAST_CDC || split.chunking == FAST_CDC) {
            Some(split) if self.are_present(&split.chunks).await? => Ok(Some(split)),
            _ => Ok(None),
        }
    }

    /// Remembers a split that was verified. A client may name chunks as small as it likes; a list that is long for its
    /// blob is not kept, so that what is kept stays a small part of what it is about.
    async fn remember(&self, blob: &Digest, split: &Split) {
        let fits = blob.size_bytes() / MIN_CHUNK_BYTES as u64 + 1;
        let length = split.chunks.len();
        if length as u64 > fits || length > max_chunks(blob.function()) || blob.size_bytes() < MAX_CHUNK_BYTES as u64 {
            return;
        }
        if let Err(error) = self.splits.put(blob, split).await {
            tracing::warn!(%blob, %error, "the split of a blob is not remembered");
        }
    }

    /// Whether all of these are there; they are used now.
    async fn are_present(&self, digests: &[Digest]) -> Result<bool, Status> {
        Ok(self.missing(digests).await?.is_empty())
    }

    /// Those of the chunks that are nowhere, each once; the others are used now.
    async fn missing(&self, chunks: &[Digest]) -> Result<Vec<Digest>, Status> {
        let mut seen = HashSet::new();
        let mut missing = self.blobs.absent(chunks).await.map_err(|error| status_map::read(&error))?;
        missing.retain(|chunk| seen.insert(*chunk));
        Ok(missing)
    }

    async fn permit(&self) -> Result<SemaphorePermit<'_>, Status> {
        self.work.acquire().await.map_err(|_closed| status_map::unavailable("this process is ending"))
    }
}

/// The first of these chunks, as many as are read at once, and the rest.
fn next_batch(chunks: &[Digest]) -> Option<(&[Digest], &[Digest])> {
    let mut bytes = 0_u64;
    let fits = chunks.iter().take(CHUNKS_READ).take_while(|chunk| {
        bytes = bytes.saturating_add(chunk.size_bytes());
        bytes <= CHUNKS_BYTES as u64
    });
    let length = fits.count().max(1);
    chunks.split_at_checked(length)
}

/// The most chunks of a split, by what an answer takes.
fn max_chunks(function: DigestFunction) -> usize {
    ANSWER_BYTES / (2 * function.hash_len() + DIGEST_OVERHEAD_BYTES)
}

fn blob(function: DigestFunction, digest: Option<&api::Digest>) -> Result<Digest, Status> {
    let digest = digest.ok_or_else(|| Status::invalid_argument("the request has no blob_digest"))?;
    digest_of(function, digest).map_err(|error| status_map::digest(&error))
}

fn answer(split: &Split) -> api::SplitBlobResponse {
    api::SplitBlobResponse {
        chunk_digests: split.chunks.iter().map(to_message).collect(),
        chunking_function: split.chunking,
    }
}

fn no_room(blob: &Digest) -> Status {
    Status::resource_exhausted(format!("there is no room for the blob {blob} and its chunks beside each other"))
}

/// Names what is absent, the first few of it.
fn absent(code: Code, what: &str, missing: &[Digest]) -> Status {
    let named = missing.iter().take(NAMED_MAX).map(Digest::to_string).collect::<Vec<_>>().join(", ");
    let more = match missing.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Status::new(code, format!("{what} these chunks are not in the store: {named}{more}"))
}
