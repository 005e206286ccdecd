//! What all compressed reads and uploads of a node share: threads to work on, and memory for decoders.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinError;

use super::buffers::{Buffer, Buffers};
use super::decoder::Decoder;
use super::frames::DecodeError;
use crate::store::Codecs;

/// Bytes that are worked on where the call is: at 0.3 to 1 GB/s that takes as long as a few messages of the transport. More
/// than this goes to a thread of the pool.
pub const INLINE_BYTES: usize = 64 << 10;

/// Memory of all decoders together. An upload at the usual levels takes 2.5 MiB, so that about a hundred of them are under
/// way at once; smaller blobs take less.
const DECODER_MEMORY_BYTES: u64 = 256 << 20;

/// The unit in which it is given out.
const MEMORY_UNIT_BYTES: u64 = 64 << 10;

/// How long an upload waits for others to give back their memory.
const MEMORY_PATIENCE: Duration = Duration::from_secs(10);

/// The level of compression on the wire: at level 3, a tenth less is sent for half as much work again.
const LEVEL: i32 = 1;

/// Why a piece was not compressed.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The encoder said no.
    #[error("compressing failed")]
    Zstd(#[source] io::Error),
    /// The job did not come to its end.
    #[error("the encoder failed")]
    Job(#[source] JoinError),
}

/// Compresses and decompresses. Cheap to clone; its clones share their bounds.
#[derive(Clone)]
pub struct Compression {
    /// One for each processor: more jobs at once would only take turns.
    jobs: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    codecs: Arc<Codecs>,
    buffers: Arc<Buffers>,
}

/// Memory that a decoder holds.
pub struct Memory {
    permit: OwnedSemaphorePermit,
}

// === impl Compression ===

impl Compression {
    /// With the bounds of this machine.
    pub fn new() -> Compression {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Compression {
            jobs: Arc::new(Semaphore::new(processors)),
            memory: Arc::new(Semaphore::new((DECODER_MEMORY_BYTES / MEMORY_UNIT_BYTES) as usize)),
            codecs: Arc::new(Codecs::new(LEVEL)),
            buffers: Arc::default(),
        }
    }

    /// A decoder of a blob of this size, of which the first bytes are here already.
    pub fn decoder(&self, size_bytes: u64, decoded_bytes: u64) -> Decoder {
        Decoder::new(self.clone(), size_bytes, decoded_bytes)
    }

    /// The bytes as one frame. Nothing is kept from one piece to the next, so that a reader which has stalled holds no
    /// encoder; in pieces of a megabyte, that costs a few hundredths in size.
    ///
    /// # Errors
    /// [`EncodeError`].
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn compress(&self, piece: Bytes) -> Result<Bytes, EncodeError> {
        let codecs = Arc::clone(&self.codecs);
        let compressed = if piece.len() <= INLINE_BYTES {
            codecs.compress(&piece)
        } else {
            self.run(move || codecs.compress(&piece)).await.map_err(EncodeError::Job)?
        };
        compressed.map(Bytes::from).map_err(EncodeError::Zstd)
    }

    /// All that these frames make, for a blob of this size.
    ///
    /// # Errors
    /// [`DecodeError`].
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn decompress(&self, size_bytes: u64, frames: Bytes) -> Result<Bytes, DecodeError> {
        let mut decoder = self.decoder(size_bytes, 0);
        decoder.push(frames)?;
        let first = decoder.next().await?.unwrap_or_default();
        let mut rest = Vec::new();
        while let Some(piece) = decoder.next().await? {
            rest.extend_from_slice(&piece);
        }
        decoder.finish()?;
        Ok(if rest.is_empty() { first } else { [first, rest.into()].concat().into() })
    }

    /// Runs something that takes long on a thread of the pool, when it is its turn.
    ///
    /// # Cancel safety
    /// Dropped half-way, the job runs to its end.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
        let permit = Arc::clone(&self.jobs).acquire_owned().await.expect("the semaphore is never closed");
        let run = move || {
            let outcome = job();
            drop(permit);
            outcome
        };
        tokio::task::spawn_blocking(run).await
    }

    /// Sets memory aside for a decoder, when others have given back enough of theirs.
    ///
    /// # Errors
    /// [`DecodeError::Busy`] when they do not.
    pub async fn memory(&self, bytes: u64) -> Result<Memory, DecodeError> {
        let units = u32::try_from(bytes.div_ceil(MEMORY_UNIT_BYTES)).map_err(|_| DecodeError::Busy)?;
        let permit = tokio::time::timeout(MEMORY_PATIENCE, Arc::clone(&self.memory).acquire_many_owned(units)).await;
        let permit = permit.map_err(|_elapsed| DecodeError::Busy)?.expect("the semaphore is never closed");
        Ok(Memory { permit })
    }

    /// Room for a piece of so many bytes.
    pub fn buffer(&self, room_bytes: usize) -> Buffer {
        self.buffers.take(room_bytes)
    }

    /// Memory that no decoder holds.
    #[cfg(any(test, fuzzing))]
    pub fn idle_memory_bytes(&self) -> u64 {
        self.memory.available_permits() as u64 * MEMORY_UNIT_BYTES
    }
}

// === impl Memory ===

impl Memory {
    /// As much as it is.
    pub fn bytes(&self) -> u64 {
        self.permit.num_permits() as u64 * MEMORY_UNIT_BYTES
    }
}
