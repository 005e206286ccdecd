//! zstd, with what it needs to work with kept for the next time: that is most of the cost of a small blob.

use std::io;
use std::sync::Mutex;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{compress_bound, get_frame_content_size};

use super::error::Damage;
use super::limits::{COMPRESSION_LEVEL, IDLE_CODECS, MIN_COMPRESSED_BLOB_BYTES, PAYING_SHARE};
use super::shared::lock;

/// Compresses and decompresses, on any number of threads.
pub struct Codecs {
    level: i32,
    compressors: Mutex<Vec<Encoder>>,
    decompressors: Mutex<Vec<Decompressor<'static>>>,
}

/// A compressor, and room for what it makes: fresh memory costs as much to touch as some bytes to compress.
struct Encoder {
    compressor: Compressor<'static>,
    room: Vec<u8>,
}

/// Whether it is worth it to keep so many bytes instead of that many: they are at least an eighth less.
pub fn pays(stored_bytes: u64, size_bytes: u64) -> bool {
    stored_bytes <= size_bytes - size_bytes / PAYING_SHARE
}

/// The most that a frame of so many bytes can take.
pub fn most_frame_bytes(size_bytes: usize) -> usize {
    compress_bound(size_bytes)
}

// === impl Codecs ===

impl Codecs {
    /// That compress at this level of zstd's.
    pub fn new(level: i32) -> Codecs {
        Codecs { level, compressors: Mutex::default(), decompressors: Mutex::default() }
    }

    /// Makes one frame of these bytes, which says how many they are.
    ///
    /// # Errors
    /// When zstd has no memory.
    pub fn compress(&self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let idle = lock(&self.compressors).pop();
        let mut encoder = match idle {
            Some(encoder) => encoder,
            None => Encoder { compressor: Compressor::new(self.level)?, room: Vec::new() },
        };
        encoder.room.clear();
        encoder.room.reserve(compress_bound(bytes.len()));
        encoder.compressor.compress_to_buffer(bytes, &mut encoder.room)?;
        let frame = encoder.room.clone();
        give_back(&self.compressors, encoder);
        Ok(frame)
    }

    /// The same; `None` when the frame would not be worth it.
    ///
    /// # Errors
    /// As [`Codecs::compress`].
    pub fn compress_if_it_pays(&self, bytes: &[u8]) -> io::Result<Option<Vec<u8>>> {
        if (bytes.len() as u64) < MIN_COMPRESSED_BLOB_BYTES {
            return Ok(None);
        }
        let frame = self.compress(bytes)?;
        Ok(pays(frame.len() as u64, bytes.len() as u64).then_some(frame))
    }

    /// Decodes one frame into a buffer, which it must fill.
    ///
    /// # Errors
    /// [`Damage::Frame`] when it does not, or is no frame; the buffer may hold anything then.
    pub fn decompress(&self, frame: &[u8], out: &mut [u8]) -> Result<(), Damage> {
        // Bounded by the buffer whatever the frame says; but one that says something else is not what was stored.
        if get_frame_content_size(frame).ok().flatten() != Some(out.len() as u64) {
            return Err(Damage::Frame);
        }
        let idle = lock(&self.decompressors).pop();
        let mut decompressor = match idle {
            Some(decompressor) => decompressor,
            None => Decompressor::new().map_err(|_| Damage::Frame)?,
        };
        let decoded = decompressor.decompress_to_buffer(frame, out);
        let is_all = decoded.is_ok_and(|length| length == out.len());
        give_back(&self.decompressors, decompressor);
        if is_all { Ok(()) } else { Err(Damage::Frame) }
    }
}

/// For blobs at rest.
impl Default for Codecs {
    fn default() -> Codecs {
        Codecs::new(COMPRESSION_LEVEL)
    }
}

impl std::fmt::Debug for Codecs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Codecs").finish_non_exhaustive()
    }
}

fn give_back<T>(idle: &Mutex<Vec<T>>, codec: T) {
    let mut idle = lock(idle);
    if idle.len() < IDLE_CODECS {
        idle.push(codec);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{blob, text};

    #[test]
    fn a_frame_decodes_to_what_it_was_made_of_and_to_nothing_else() {
        let codecs = Codecs::default();
        let bytes = text(1, 10_000);
        let frame = codecs.compress_if_it_pays(&bytes).unwrap().unwrap();
        assert!(frame.len() < 8_000 && frame.len() <= most_frame_bytes(bytes.len()));
        let mut out = vec![0; bytes.len()];
        codecs.decompress(&frame, &mut out).unwrap();
        assert_eq!(out, bytes);
        for length in [0, 1, bytes.len() - 1, bytes.len() + 1] {
            assert_eq!(codecs.decompress(&frame, &mut vec![0; length]), Err(Damage::Frame));
        }
        for length in 0..frame.len() {
            assert_eq!(codecs.decompress(&frame[..length], &mut out), Err(Damage::Frame));
        }
        let two = [&frame[..], &frame].concat();
        assert_eq!(codecs.decompress(&two, &mut out), Err(Damage::Frame), "one frame, and nothing behind it");
        assert_eq!(codecs.decompress(b"not a frame", &mut out), Err(Damage::Frame));
    }

    #[test]
    fn what_cannot_be_compressed_or_is_tiny_is_left_alone() {
        let codecs = Codecs::default();
        assert_eq!(codecs.compress_if_it_pays(&blob(1, 100_000)).unwrap(), None);
        assert_eq!(codecs.compress_if_it_pays(&[b'a'; 100]).unwrap(), None);
        assert!(codecs.compress_if_it_pays(&[b'a'; 1000]).unwrap().is_some());
        assert!(pays(875, 1000) && !pays(876, 1000));
    }
}
