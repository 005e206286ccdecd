//! The name of a blob: a digest function, a hash and a size, parsed, printed and computed.
//!
//! A digest is only made by [`Digest::new`] and [`Digest::parse`], which check the hash's form, so that every
//! `Digest` in the program is well formed; whether bytes match it is what [`Hasher::finish`] says.

use std::fmt;

use sha2::Digest as _;

/// The longest hash of any digest function of the API, in bytes (SHA-512).
pub const MAX_HASH_BYTES: usize = 64;

/// A digest function of the Remote Execution API that this cache computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DigestFunction {
    /// SHA-256 (FIPS 180-4), 32 bytes.
    Sha256,
}

impl DigestFunction {
    /// Every function, in the order in which they are advertised.
    pub const ALL: &[DigestFunction] = &[DigestFunction::Sha256];

    /// The length of this function's hash, in bytes.
    pub const fn hash_len(self) -> usize {
        match self {
            DigestFunction::Sha256 => 32,
        }
    }

    /// The number of this function in `DigestFunction.Value` of the Remote Execution API, which is also its number
    /// on disk.
    pub const fn number(self) -> u8 {
        match self {
            DigestFunction::Sha256 => 1,
        }
    }

    /// The function with this API number; `None` for one that is not computed here.
    pub fn from_number(number: u8) -> Option<DigestFunction> {
        DigestFunction::ALL.iter().copied().find(|function| function.number() == number)
    }

    /// A hasher for bytes of this function.
    pub fn hasher(self) -> Hasher {
        match self {
            DigestFunction::Sha256 => Hasher { state: State::Sha256(sha2::Sha256::new()), size_bytes: 0 },
        }
    }
}

/// Why a digest was refused. The message names the digest as it was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The hash has not the length of its function.
    #[error("the hash \"{hash}\" has {} characters where {expected} are needed", hash.len())]
    HashLength {
        /// As given, cut to 160 characters.
        hash: String,
        /// The number of hexadecimal characters of the function.
        expected: usize,
    },
    /// The hash is not lower-case hexadecimal.
    #[error("the hash \"{hash}\" is not lower-case hexadecimal")]
    HashForm {
        /// As given.
        hash: String,
    },
    /// The size is below zero or not a number.
    #[error("the size \"{size}\" of {hash} is not a number from 0 to 9223372036854775807")]
    Size {
        /// The hash as given.
        hash: String,
        /// The size as given.
        size: String,
    },
}

/// The name of a blob. 80 bytes, `Copy`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    function: DigestFunction,
    size_bytes: u64,
    /// The hash, then zeros.
    hash: [u8; MAX_HASH_BYTES],
}

impl Digest {
    /// A digest from its parts as the API's `Digest` message carries them.
    ///
    /// # Errors
    /// [`DigestError`] when the hash is not lower-case hexadecimal of the function's length or the size is negative.
    pub fn new(function: DigestFunction, hash: &str, size_bytes: i64) -> Result<Digest, DigestError> {
        let size = u64::try_from(size_bytes)
            .map_err(|_| DigestError::Size { hash: shortened(hash), size: size_bytes.to_string() })?;
        Ok(Digest { function, size_bytes: size, hash: parse_hash(function, hash)? })
    }

    /// A digest from the two path segments of a resource name, hash and decimal size.
    ///
    /// # Errors
    /// [`DigestError`], as for [`Digest::new`].
    pub fn parse(function: DigestFunction, hash: &str, size: &str) -> Result<Digest, DigestError> {
        let plain = !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_digit());
        match size.parse::<i64>() {
            Ok(size_bytes) if plain => Digest::new(function, hash, size_bytes),
            _ => {
                parse_hash(function, hash)?;
                Err(DigestError::Size { hash: shortened(hash), size: shortened(size) })
            }
        }
    }

    /// A digest from raw hash bytes, as they are on disk; `None` when their length is not the function's.
    pub fn from_raw(function: DigestFunction, hash: &[u8], size_bytes: u64) -> Option<Digest> {
        if hash.len() != function.hash_len() {
            return None;
        }
        let mut padded = [0; MAX_HASH_BYTES];
        padded.get_mut(..hash.len())?.copy_from_slice(hash);
        Some(Digest { function, size_bytes, hash: padded })
    }

    /// The digest of these bytes.
    pub fn of(function: DigestFunction, bytes: &[u8]) -> Digest {
        let mut hasher = function.hasher();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The function that made the hash.
    pub fn function(&self) -> DigestFunction {
        self.function
    }

    /// The hash, [`DigestFunction::hash_len`] bytes.
    pub fn hash(&self) -> &[u8] {
        self.hash.get(..self.function.hash_len()).expect("a hash is at most MAX_HASH_BYTES long")
    }

    /// The hash in lower-case hexadecimal, as the API's `Digest` message carries it.
    pub fn hash_hex(&self) -> String {
        use fmt::Write as _;
        let mut text = String::with_capacity(2 * self.function.hash_len());
        for byte in self.hash() {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    /// The size of the blob.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whether this names the empty blob, which every cache holds.
    pub fn is_empty_blob(&self) -> bool {
        self.size_bytes == 0 && *self == Digest::of(self.function, b"")
    }
}

impl fmt::Display for Digest {
    /// `hash/size`, as in a resource name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.hash_hex(), self.size_bytes)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Computes a digest over bytes as they arrive.
pub struct Hasher {
    state: State,
    size_bytes: u64,
}

enum State {
    Sha256(sha2::Sha256),
}

impl Hasher {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.size_bytes += bytes.len() as u64;
        match &mut self.state {
            State::Sha256(state) => state.update(bytes),
        }
    }

    /// The digest of all bytes so far.
    pub fn finish(self) -> Digest {
        match self.state {
            State::Sha256(state) => Digest::from_raw(DigestFunction::Sha256, &state.finalize(), self.size_bytes)
                .expect("SHA-256 makes 32 bytes"),
        }
    }
}

fn parse_hash(function: DigestFunction, hash: &str) -> Result<[u8; MAX_HASH_BYTES], DigestError> {
    let expected = 2 * function.hash_len();
    if hash.len() != expected {
        return Err(DigestError::HashLength { hash: shortened(hash), expected });
    }
    let mut bytes = [0; MAX_HASH_BYTES];
    for (byte, pair) in bytes.iter_mut().zip(hash.as_bytes().chunks_exact(2)) {
        let [high, low] = pair else { continue };
        match (nibble(*high), nibble(*low)) {
            (Some(high), Some(low)) => *byte = high << 4 | low,
            _ => return Err(DigestError::HashForm { hash: hash.to_owned() }),
        }
    }
    Ok(bytes)
}

fn nibble(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(160).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_empty_blob_is_known_by_its_published_hash() {
        let digest = Digest::new(DigestFunction::Sha256, EMPTY, 0).unwrap();
        assert!(digest.is_empty_blob());
        assert_eq!(digest.to_string(), format!("{EMPTY}/0"));
        assert!(!Digest::new(DigestFunction::Sha256, EMPTY, 1).unwrap().is_empty_blob());
    }

    #[test]
    fn a_digest_survives_printing_and_parsing() {
        let digest = Digest::of(DigestFunction::Sha256, b"casbah");
        let again = Digest::parse(DigestFunction::Sha256, &digest.hash_hex(), "6").unwrap();
        assert_eq!(digest, again);
        assert_eq!(Digest::from_raw(DigestFunction::Sha256, digest.hash(), 6), Some(digest));
    }

    #[test]
    fn a_malformed_hash_is_refused_and_named() {
        for bad in ["", "abc", &EMPTY[1..], &EMPTY.to_uppercase(), &EMPTY.replace('e', "g"), &EMPTY.replace("e3", "é")]
        {
            let error = Digest::new(DigestFunction::Sha256, bad, 0).unwrap_err();
            assert!(error.to_string().contains(bad), "{error}");
        }
    }

    #[test]
    fn a_malformed_size_is_refused_and_named() {
        assert!(Digest::new(DigestFunction::Sha256, EMPTY, -1).is_err());
        for bad in ["", "-1", "+1", "1.0", "0x1", "9223372036854775808", " 1"] {
            let error = Digest::parse(DigestFunction::Sha256, EMPTY, bad).unwrap_err();
            assert!(matches!(error, DigestError::Size { .. }), "{bad}: {error}");
        }
    }

    #[test]
    fn a_raw_hash_of_the_wrong_length_is_no_digest() {
        assert_eq!(Digest::from_raw(DigestFunction::Sha256, &[0; 31], 0), None);
        assert_eq!(Digest::from_raw(DigestFunction::Sha256, &[0; 64], 0), None);
    }
}
