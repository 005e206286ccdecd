//! The name of a blob: a digest function, a hash and a size, parsed, printed and computed.
//!
//! A digest is only made by [`Digest::new`] and [`Digest::parse`], which check the hash's form, so that every
//! `Digest` in the program is well formed; whether bytes match it is what [`Hasher::finish`] says.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use sha2::Digest as _;

/// The longest hash of any digest function of the API, in bytes (SHA-512).
pub const MAX_HASH_BYTES: usize = 64;

/// A digest function of the Remote Execution API that this cache computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DigestFunction {
    /// SHA-256 (FIPS 180-4), 32 bytes.
    Sha256,
    /// BLAKE3, 32 bytes.
    Blake3,
    /// SHA-384 (FIPS 180-4), 48 bytes.
    Sha384,
    /// SHA-512 (FIPS 180-4), 64 bytes.
    Sha512,
    /// SHA-1 (FIPS 180-4), 20 bytes. Whoever wants to can make two blobs with one hash.
    Sha1,
    /// MD5 (RFC 1321), 16 bytes. As weak as SHA-1, and weaker.
    Md5,
}

impl DigestFunction {
    /// Every function, in the order in which they are advertised: the one that every client knows comes first.
    pub const ALL: &[DigestFunction] = &[
        DigestFunction::Sha256,
        DigestFunction::Blake3,
        DigestFunction::Sha384,
        DigestFunction::Sha512,
        DigestFunction::Sha1,
        DigestFunction::Md5,
    ];

    /// The length of this function's hash, in bytes.
    pub const fn hash_len(self) -> usize {
        match self {
            DigestFunction::Sha256 | DigestFunction::Blake3 => 32,
            DigestFunction::Sha384 => 48,
            DigestFunction::Sha512 => MAX_HASH_BYTES,
            DigestFunction::Sha1 => 20,
            DigestFunction::Md5 => 16,
        }
    }

    /// The number of this function in `DigestFunction.Value` of the Remote Execution API, which is also its number
    /// on disk.
    pub const fn number(self) -> u8 {
        match self {
            DigestFunction::Sha256 => 1,
            DigestFunction::Sha1 => 2,
            DigestFunction::Md5 => 3,
            DigestFunction::Sha384 => 5,
            DigestFunction::Sha512 => 6,
            DigestFunction::Blake3 => 9,
        }
    }

    /// The name of this function in resource names: that of the API's enum in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            DigestFunction::Sha256 => "sha256",
            DigestFunction::Sha1 => "sha1",
            DigestFunction::Md5 => "md5",
            DigestFunction::Sha384 => "sha384",
            DigestFunction::Sha512 => "sha512",
            DigestFunction::Blake3 => "blake3",
        }
    }

    /// The function with this API number; `None` for one that is not computed here.
    pub fn from_number(number: u8) -> Option<DigestFunction> {
        DigestFunction::ALL.iter().copied().find(|function| function.number() == number)
    }

    /// The function with this name in resource names; `None` for one that is not computed here.
    pub fn from_name(name: &str) -> Option<DigestFunction> {
        DigestFunction::ALL.iter().copied().find(|function| function.name() == name)
    }

    /// The function that a hash of so many hexadecimal characters implies where none is named. The API has this for the
    /// functions that are older than its naming of functions, so never for BLAKE3.
    pub fn implied_by(hash_characters: usize) -> Option<DigestFunction> {
        let implied = DigestFunction::ALL.iter().copied().filter(|function| *function != DigestFunction::Blake3);
        implied.into_iter().find(|function| 2 * function.hash_len() == hash_characters)
    }

    /// A hasher for bytes of this function.
    pub fn hasher(self) -> Hasher {
        let state = match self {
            DigestFunction::Sha256 => State::Sha256(sha2::Sha256::new()),
            DigestFunction::Blake3 => State::Blake3(Box::new(blake3::Hasher::new())),
            DigestFunction::Sha384 => State::Sha384(sha2::Sha384::new()),
            DigestFunction::Sha512 => State::Sha512(sha2::Sha512::new()),
            DigestFunction::Sha1 => State::Sha1(sha1::Sha1::new()),
            DigestFunction::Md5 => State::Md5(md5::Md5::new()),
        };
        Hasher { function: self, state, size_bytes: 0 }
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
    /// A text that has not the form of a digest.
    #[error("\"{text}\" is no digest, which is HASH/SIZE, or blake3/HASH/SIZE with the name of the digest function")]
    Text {
        /// As given, cut to 160 characters.
        text: String,
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

/// The empty blob's name in each function: it is asked for too often to be hashed each time.
static EMPTY_BLOBS: LazyLock<Vec<Digest>> =
    LazyLock::new(|| DigestFunction::ALL.iter().map(|function| Digest::of(*function, b"")).collect());

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
        self.size_bytes == 0 && EMPTY_BLOBS.contains(self)
    }
}

impl fmt::Display for Digest {
    /// `hash/size`, as in a resource name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.hash_hex(), self.size_bytes)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    /// As it is printed, with the function's name and a slash before it where the length of the hash does not say it:
    /// `HASH/SIZE` or `blake3/HASH/SIZE`.
    fn from_str(text: &str) -> Result<Digest, DigestError> {
        let shape = || DigestError::Text { text: shortened(text) };
        let mut parts = text.rsplitn(3, '/');
        let (size, hash) = (parts.next().unwrap_or_default(), parts.next().ok_or_else(shape)?);
        let function = match parts.next() {
            Some(name) => DigestFunction::from_name(name),
            None => DigestFunction::implied_by(hash.len()),
        };
        Digest::parse(function.ok_or_else(shape)?, hash, size)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Computes a digest over bytes as they arrive.
pub struct Hasher {
    function: DigestFunction,
    state: State,
    size_bytes: u64,
}

enum State {
    Sha256(sha2::Sha256),
    /// Two kilobytes, which the others shall not have to carry.
    Blake3(Box<blake3::Hasher>),
    Sha384(sha2::Sha384),
    Sha512(sha2::Sha512),
    Sha1(sha1::Sha1),
    Md5(md5::Md5),
}

impl Hasher {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.size_bytes += bytes.len() as u64;
        match &mut self.state {
            State::Sha256(state) => state.update(bytes),
            State::Blake3(state) => drop(state.update(bytes)),
            State::Sha384(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
            State::Sha1(state) => state.update(bytes),
            State::Md5(state) => state.update(bytes),
        }
    }

    /// The digest of all bytes so far.
    pub fn finish(self) -> Digest {
        let (function, size_bytes) = (self.function, self.size_bytes);
        let digest =
            |hash: &[u8]| Digest::from_raw(function, hash, size_bytes).expect("a function's hash has its length");
        match self.state {
            State::Sha256(state) => digest(&state.finalize()),
            State::Blake3(state) => digest(state.finalize().as_bytes()),
            State::Sha384(state) => digest(&state.finalize()),
            State::Sha512(state) => digest(&state.finalize()),
            State::Sha1(state) => digest(&state.finalize()),
            State::Md5(state) => digest(&state.finalize()),
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

    /// Function, hash of no bytes, hash of "abc": FIPS 180-4 examples, RFC 1321 A.5, BLAKE3's reference implementation.
    const PUBLISHED: [(DigestFunction, &str, &str); 6] = [
        (DigestFunction::Sha256, EMPTY, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (
            DigestFunction::Blake3,
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
            "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
        ),
        (
            DigestFunction::Sha384,
            "38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da274edebfe76f65fbd51ad2f14898b95b",
            "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
        ),
        (
            DigestFunction::Sha512,
            "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce\
             47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
             2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ),
        (DigestFunction::Sha1, "da39a3ee5e6b4b0d3255bfef95601890afd80709", "a9993e364706816aba3e25717850c26c9cd0d89d"),
        (DigestFunction::Md5, "d41d8cd98f00b204e9800998ecf8427e", "900150983cd24fb0d6963f7d28e17f72"),
    ];

    #[test]
    fn every_function_makes_the_published_hashes() {
        assert_eq!(PUBLISHED.map(|(function, ..)| function), *DigestFunction::ALL);
        for (function, empty, abc) in PUBLISHED {
            assert_eq!(Digest::of(function, b"").hash_hex(), empty);
            assert_eq!(Digest::of(function, b"abc").hash_hex(), abc);
            assert_eq!(Digest::of(function, b"abc").hash().len(), function.hash_len());
        }
    }

    #[test]
    fn bytes_that_come_in_pieces_have_the_same_hash() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();
        for function in DigestFunction::ALL {
            let mut hasher = function.hasher();
            bytes.chunks(777).for_each(|piece| hasher.update(piece));
            assert_eq!(hasher.finish(), Digest::of(*function, &bytes));
        }
    }

    #[test]
    fn the_empty_blob_is_known_by_its_published_hash() {
        for (function, empty, abc) in PUBLISHED {
            let digest = Digest::new(function, empty, 0).unwrap();
            assert!(digest.is_empty_blob());
            assert_eq!(digest.to_string(), format!("{empty}/0"));
            assert!(!Digest::new(function, empty, 1).unwrap().is_empty_blob());
            assert!(!Digest::new(function, abc, 0).unwrap().is_empty_blob());
        }
        // One function's hash of nothing is another one's hash of something else.
        assert!(!Digest::new(DigestFunction::Blake3, EMPTY, 0).unwrap().is_empty_blob());
    }

    #[test]
    fn digests_of_two_functions_are_never_equal() {
        let one = Digest::new(DigestFunction::Sha256, EMPTY, 3).unwrap();
        assert_ne!(one, Digest::new(DigestFunction::Blake3, EMPTY, 3).unwrap());
    }

    #[test]
    fn functions_are_found_by_their_numbers_and_names() {
        for function in DigestFunction::ALL {
            assert_eq!(DigestFunction::from_number(function.number()), Some(*function));
            assert_eq!(DigestFunction::from_name(function.name()), Some(*function));
        }
        for number in [0, 4, 7, 8, 10, 255] {
            assert_eq!(DigestFunction::from_number(number), None);
        }
        for name in ["", "SHA256", "vso", "sha256tree", "gitsha1"] {
            assert_eq!(DigestFunction::from_name(name), None);
        }
    }

    #[test]
    fn the_length_of_a_hash_implies_a_function_and_never_blake3() {
        let implied = [32, 40, 64, 96, 128].map(DigestFunction::implied_by);
        let functions = [
            DigestFunction::Md5,
            DigestFunction::Sha1,
            DigestFunction::Sha256,
            DigestFunction::Sha384,
            DigestFunction::Sha512,
        ];
        assert_eq!(implied, functions.map(Some));
        assert_eq!([0, 31, 33, 63, 65, 256].map(DigestFunction::implied_by), [None; 6]);
    }

    #[test]
    fn a_digest_survives_printing_and_parsing() {
        for function in DigestFunction::ALL {
            let digest = Digest::of(*function, b"casbah");
            let again = Digest::parse(*function, &digest.hash_hex(), "6").unwrap();
            assert_eq!(digest, again);
            assert_eq!(Digest::from_raw(*function, digest.hash(), 6), Some(digest));
        }
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
