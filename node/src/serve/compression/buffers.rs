//! Room for decoded pieces that is used again. Fresh memory costs more to touch than a piece to decode.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// The rooms that are used again, and one byte more than the largest piece, which shows that there would be more.
pub const ROOM_BYTES: usize = (1 << 20) + 1;

/// Rooms that are kept while nobody uses them: 16 MiB.
const IDLE_MAX: usize = 16;

/// Rooms that wait to be used.
#[derive(Default)]
pub struct Buffers(Mutex<Vec<Vec<u8>>>);

/// A room in use.
pub struct Buffer {
    bytes: Vec<u8>,
    home: Arc<Buffers>,
}

// === impl Buffers ===

impl Buffers {
    /// An empty room for exactly so many bytes: what is decoded into it stops there.
    pub fn take(self: &Arc<Self>, room_bytes: usize) -> Buffer {
        let idle = match room_bytes {
            ROOM_BYTES => self.0.lock().unwrap_or_else(PoisonError::into_inner).pop(),
            _ => None,
        };
        let mut bytes = idle.unwrap_or_else(|| Vec::with_capacity(room_bytes));
        bytes.clear();
        Buffer { bytes, home: Arc::clone(self) }
    }
}

// === impl Buffer ===

impl Buffer {
    /// What is in it, to be added to.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The bytes as they are now. They keep the room for themselves until their last clone is gone, but for a few in much.
    pub fn freeze(self) -> Bytes {
        if self.bytes.len() < self.bytes.capacity() / 2 {
            return Bytes::copy_from_slice(&self.bytes);
        }
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes.capacity() != ROOM_BYTES {
            return;
        }
        let mut idle = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_is_used_again_when_its_bytes_are_gone_and_begins_empty() {
        let buffers = Arc::new(Buffers::default());
        let mut room = buffers.take(ROOM_BYTES);
        room.bytes().resize(ROOM_BYTES - 100, 1);
        let place = room.as_ref().as_ptr();
        let bytes = room.freeze();
        let clone = bytes.clone();
        drop(bytes);
        let other = buffers.take(ROOM_BYTES);
        assert_ne!(other.as_ref().as_ptr(), place, "somebody has it still");
        drop(clone);
        let again = buffers.take(ROOM_BYTES);
        assert_eq!((again.as_ref().as_ptr(), again.as_ref().len()), (place, 0));
    }

    #[test]
    fn a_few_bytes_do_not_keep_a_large_room() {
        let buffers = Arc::new(Buffers::default());
        let mut room = buffers.take(ROOM_BYTES);
        room.bytes().extend([1; 10]);
        let place = room.as_ref().as_ptr();
        let few = room.freeze();
        assert_eq!(buffers.take(ROOM_BYTES).as_ref().as_ptr(), place);
        assert_eq!(few, [1; 10].as_slice());
    }

    #[test]
    fn a_smaller_room_has_no_more_than_was_asked_for() {
        let buffers = Arc::new(Buffers::default());
        drop(buffers.take(ROOM_BYTES));
        assert_eq!(buffers.take(1000).bytes().capacity(), 1000);
        drop(buffers.take(1000));
        assert_eq!(buffers.take(ROOM_BYTES).bytes().capacity(), ROOM_BYTES);
    }
}
