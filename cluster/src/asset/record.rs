//! What is known of an asset, in its versioned form on disk.

use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::digest::{Digest, DigestFunction};

/// Blobs and directories that one asset may refer to beside itself: BuildStream names a handful.
pub const MAX_REFERENCES: usize = 10_000;

const RECORD_VERSION: u8 = 1;

/// A point in time: nanoseconds since 1970-01-01T00:00:00Z, negative before it. Covers the years 1 to 9999 that the API allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment(pub i128);

/// What an asset stands for, since when and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssetRecord {
    /// The blob, or the root `Directory` of the tree.
    pub target: Digest,
    /// Blobs that must be there for the asset to be of use.
    pub referenced_blobs: Vec<Digest>,
    /// Roots of trees that must be there for the asset to be of use.
    pub referenced_directories: Vec<Digest>,
    /// When it was pushed.
    pub pushed_at: Moment,
    /// From when on it must not be served; `None`: never ends.
    pub expires_at: Option<Moment>,
}

/// Version 1 on disk.
#[derive(Serialize, Deserialize)]
struct RecordV1 {
    target: DigestV1,
    referenced_blobs: Vec<DigestV1>,
    referenced_directories: Vec<DigestV1>,
    pushed_at: Moment,
    expires_at: Option<Moment>,
}

#[derive(Serialize, Deserialize)]
struct DigestV1 {
    function: u8,
    size_bytes: u64,
    hash: Vec<u8>,
}

impl AssetRecord {
    /// The record as it is kept.
    ///
    /// # Errors
    /// [`CodecError::Encode`] when it has more references than one record holds.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        let list = |digests: &[Digest]| digests.iter().map(DigestV1::from).collect();
        codec::encode(
            RECORD_VERSION,
            &RecordV1 {
                target: DigestV1::from(&self.target),
                referenced_blobs: list(&self.referenced_blobs),
                referenced_directories: list(&self.referenced_directories),
                pushed_at: self.pushed_at,
                expires_at: self.expires_at,
            },
        )
    }

    /// The record of these bytes; `Ok(None)` when it names a digest function that this version does not compute.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are no record of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Option<AssetRecord>, CodecError> {
        let record: RecordV1 = codec::decode(RECORD_VERSION, bytes)?;
        let list = |digests: &[DigestV1]| digests.iter().map(DigestV1::digest).collect::<Option<Vec<_>>>();
        let known = || {
            Some(AssetRecord {
                target: record.target.digest()?,
                referenced_blobs: list(&record.referenced_blobs)?,
                referenced_directories: list(&record.referenced_directories)?,
                pushed_at: record.pushed_at,
                expires_at: record.expires_at,
            })
        };
        Ok(known())
    }

    /// Whether it must no longer be served.
    pub fn is_expired(&self, now: Moment) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }
}

impl From<&Digest> for DigestV1 {
    fn from(digest: &Digest) -> DigestV1 {
        DigestV1 { function: digest.function().number(), size_bytes: digest.size_bytes(), hash: digest.hash().to_vec() }
    }
}

impl DigestV1 {
    fn digest(&self) -> Option<Digest> {
        Digest::from_raw(DigestFunction::from_number(self.function)?, &self.hash, self.size_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> AssetRecord {
        let digest = |text: &str| Digest::of(DigestFunction::Sha256, text.as_bytes());
        AssetRecord {
            target: digest("target"),
            referenced_blobs: vec![digest("one"), digest("two")],
            referenced_directories: vec![digest("tree")],
            pushed_at: Moment(1_800_000_000_000_000_000),
            expires_at: Some(Moment(1_800_000_000_000_000_001)),
        }
    }

    #[test]
    fn a_record_survives_the_round_trip() {
        assert_eq!(AssetRecord::decode(&record().encode().unwrap()).unwrap(), Some(record()));
    }

    #[test]
    fn a_record_cut_anywhere_is_refused() {
        let bytes = record().encode().unwrap();
        for length in 0..bytes.len() {
            assert!(AssetRecord::decode(&bytes[..length]).is_err(), "cut to {length} bytes");
        }
    }

    #[test]
    fn a_record_expires_at_its_moment_and_not_before() {
        let record = record();
        assert!(!record.is_expired(Moment(1_800_000_000_000_000_000)));
        assert!(record.is_expired(Moment(1_800_000_000_000_000_001)));
        assert!(!AssetRecord { expires_at: None, ..record }.is_expired(Moment(i128::MAX)));
    }

    #[test]
    fn a_record_stays_readable_by_later_versions() {
        // Golden: this is what version 1 wrote. If this fails, the format changed and needs a new version.
        let empty = AssetRecord {
            target: Digest::of(DigestFunction::Sha256, b""),
            referenced_blobs: vec![],
            referenced_directories: vec![],
            pushed_at: Moment(1),
            expires_at: None,
        };
        let mut golden = vec![1, 1, 0, 32];
        golden.extend_from_slice(empty.target.hash());
        golden.extend_from_slice(&[0, 0, 2, 0]);
        assert_eq!(empty.encode().unwrap(), golden);
    }
}
