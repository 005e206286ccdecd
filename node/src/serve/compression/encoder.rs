//! Pieces of a blob in, compressed bytes out.
//!
//! Every piece becomes a frame of its own: nothing is kept from one to the next, so that a reader which has stalled holds
//! no encoder, and there are as many of those as threads that work. A megabyte is large enough for that to cost a few
//! hundredths in size.

use std::io;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use zstd::bulk::Compressor;

/// The level of compression.
const LEVEL: i32 = 1;

/// Why a piece was not compressed.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The encoder said no.
    #[error("compressing failed")]
    Zstd(#[source] io::Error),
    /// The job did not come to its end.
    #[error("the encoder failed")]
    Job(#[source] tokio::task::JoinError),
}

/// Encoders that wait for work; their tables cost more to make than a small blob to compress.
pub struct Encoders {
    idle: Mutex<Vec<Encoder>>,
    idle_max: usize,
}

/// An encoder, and room for what it makes.
struct Encoder {
    compressor: Compressor<'static>,
    room: Vec<u8>,
}

// === impl Encoders ===

impl Encoders {
    /// None yet. So many are kept when they have nothing to do.
    pub fn new(idle_max: usize) -> Encoders {
        Encoders { idle: Mutex::default(), idle_max }
    }

    /// The bytes as one frame.
    ///
    /// # Errors
    /// The encoder's.
    pub fn compress(&self, piece: &[u8]) -> io::Result<Bytes> {
        let idle = self.lock().pop();
        let mut encoder = match idle {
            Some(encoder) => encoder,
            None => Encoder { compressor: Compressor::new(LEVEL)?, room: Vec::new() },
        };
        encoder.room.clear();
        encoder.room.reserve(zstd::zstd_safe::compress_bound(piece.len()));
        encoder.compressor.compress_to_buffer(piece, &mut encoder.room)?;
        let compressed = Bytes::copy_from_slice(&encoder.room);
        let mut idle = self.lock();
        if idle.len() < self.idle_max {
            idle.push(encoder);
        }
        Ok(compressed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Encoder>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
