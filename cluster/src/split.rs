//! The chunks that a blob was found to be made of, in their versioned form on disk.

use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::digest::{Digest, DigestFunction};

const RECORD_VERSION: u8 = 1;

/// The chunks of a blob, in their order, all of the blob's digest function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// The number in the API's `ChunkingFunction.Value` of what the chunks were cut by, as whoever cut them says.
    pub chunking: i32,
    /// The chunks.
    pub chunks: Vec<Digest>,
}

/// Version 1 on disk. The hashes stand behind each other: a list of lists would take more, on disk and in memory.
#[derive(Serialize, Deserialize)]
struct SplitV1 {
    chunking: i32,
    function: u8,
    sizes_bytes: Vec<u64>,
    hashes: Vec<u8>,
}

impl Split {
    /// The split as it is kept.
    ///
    /// # Errors
    /// [`CodecError::Encode`] when it has more chunks than one record holds.
    pub fn encode(&self, function: DigestFunction) -> Result<Vec<u8>, CodecError> {
        codec::encode(
            RECORD_VERSION,
            &SplitV1 {
                chunking: self.chunking,
                function: function.number(),
                sizes_bytes: self.chunks.iter().map(Digest::size_bytes).collect(),
                hashes: self.chunks.iter().flat_map(|chunk| chunk.hash().iter().copied()).collect(),
            },
        )
    }

    /// The split of these bytes; `Ok(None)` when it is of a digest function that this version does not compute, or its
    /// parts do not fit each other.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are no split of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Option<Split>, CodecError> {
        let record: SplitV1 = codec::decode(RECORD_VERSION, bytes)?;
        let Some(function) = DigestFunction::from_number(record.function) else { return Ok(None) };
        let hashes = record.hashes.chunks(function.hash_len());
        if hashes.len() != record.sizes_bytes.len() {
            return Ok(None);
        }
        let chunks = hashes.zip(&record.sizes_bytes).map(|(hash, size)| Digest::from_raw(function, hash, *size));
        let chunks = chunks.collect::<Option<Vec<_>>>();
        Ok(chunks.map(|chunks| Split { chunking: record.chunking, chunks }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(function: DigestFunction) -> Split {
        let chunks = [&b"one"[..], b"two", b"", b"two"].map(|chunk| Digest::of(function, chunk)).to_vec();
        Split { chunking: 1, chunks }
    }

    #[test]
    fn a_split_of_every_function_survives_the_round_trip() {
        for function in DigestFunction::ALL {
            let bytes = split(*function).encode(*function).unwrap();
            assert_eq!(Split::decode(&bytes).unwrap(), Some(split(*function)));
        }
    }

    #[test]
    fn a_split_cut_anywhere_is_refused() {
        let bytes = split(DigestFunction::Sha256).encode(DigestFunction::Sha256).unwrap();
        for length in 0..bytes.len() {
            assert!(!matches!(Split::decode(&bytes[..length]), Ok(Some(_))), "cut to {length} bytes");
        }
    }

    #[test]
    fn hashes_of_another_length_than_the_functions_are_no_split() {
        let bytes = split(DigestFunction::Md5).encode(DigestFunction::Sha256).unwrap();
        assert_eq!(Split::decode(&bytes).unwrap(), None);
    }

    #[test]
    fn a_split_stays_readable_by_later_versions() {
        // Golden: this is what version 1 wrote. If this fails, the format changed and needs a new version.
        let one = Split { chunking: 1, chunks: vec![Digest::of(DigestFunction::Md5, b"abc")] };
        let mut golden = vec![1, 2, 3, 1, 3, 16];
        golden.extend_from_slice(one.chunks[0].hash());
        assert_eq!(one.encode(DigestFunction::Md5).unwrap(), golden);
    }
}
