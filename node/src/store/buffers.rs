//! Buffers that readers fill and that come back when their last reader lets go.
//!
//! Fresh memory costs about as much to touch as a read from the page cache, and a copy to an odd address several times
//! more than one to an aligned address; so pieces are read into aligned memory that is used again.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::limits::{IDLE_BUFFERS, PIECE_BYTES};

/// Alignment of a buffer: a page, so that the kernel's copy is aligned with the page it copies from.
const ALIGN: usize = 4096;

/// A stock of idle buffers of [`PIECE_BYTES`] each.
#[derive(Debug, Default)]
pub struct Buffers(Mutex<Vec<Vec<u8>>>);

/// A buffer in use.
#[derive(Debug)]
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
    home: Arc<Buffers>,
}

// === impl Buffers ===

impl Buffers {
    /// A buffer of this length, at most [`PIECE_BYTES`]; what is in it is left over from before.
    pub fn take(self: &Arc<Self>, length: usize) -> Buffer {
        let idle = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let memory = idle.unwrap_or_else(|| vec![0; PIECE_BYTES + ALIGN]);
        let start = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        Buffer { memory, start, length: length.min(PIECE_BYTES), home: Arc::clone(self) }
    }
}

// === impl Buffer ===

impl Buffer {
    /// The bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.get_mut(self.start..self.start + self.length).unwrap_or_default()
    }

    /// The bytes as they are now, without a copy; the buffer goes home when all its clones are gone.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.memory.get(self.start..self.start + self.length).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut idle = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_BUFFERS {
            idle.push(std::mem::take(&mut self.memory));
        }
    }
}
