//! The name of an asset, in canonical bytes.

use serde::{Deserialize, Serialize};

use crate::digest::DigestFunction;

/// The longest canonical key. A key is held in memory and on disk for every asset; no real URI comes near this.
pub const MAX_KEY_BYTES: usize = 64 << 10;

const KEY_VERSION: u8 = 1;

/// Begins a key of another function than SHA-256: the function's number and a key of [`KEY_VERSION`] follow.
const FUNCTION_KEY_VERSION: u8 = 2;

/// What an asset stands for. Blobs and directories are separate name spaces: one URI may name both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AssetKind {
    /// One blob.
    Blob,
    /// A directory tree, named by the digest of its root `Directory`.
    Directory,
}

/// A name and a value that an asset is told apart by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Qualifier {
    /// As the client gave it.
    pub name: String,
    /// As the client gave it.
    pub value: String,
}

/// Why a request names no asset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The URI is empty.
    #[error("a URI of the request is empty")]
    EmptyUri,
    /// The whole key is longer than [`MAX_KEY_BYTES`].
    #[error("instance name, URI and qualifiers take {length} bytes together where at most {MAX_KEY_BYTES} are allowed")]
    TooLong {
        /// Bytes of the canonical key.
        length: usize,
    },
}

/// The name of an asset: instance, kind, URI and the *set* of qualifiers, neither their order nor repetitions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AssetKey {
    bytes: Vec<u8>,
}

impl AssetKey {
    /// The canonical key: a version, then every part behind its length, qualifiers sorted and without repetitions.
    ///
    /// # Errors
    /// [`KeyError`] when the URI is empty or the key too long.
    pub fn new(
        instance: &str,
        kind: AssetKind,
        uri: &str,
        qualifiers: impl IntoIterator<Item = Qualifier>,
    ) -> Result<AssetKey, KeyError> {
        if uri.is_empty() {
            return Err(KeyError::EmptyUri);
        }
        let mut qualifiers: Vec<Qualifier> = qualifiers.into_iter().collect();
        qualifiers.sort_unstable();
        qualifiers.dedup();
        let mut bytes = vec![KEY_VERSION, u8::from(kind == AssetKind::Directory)];
        append(&mut bytes, instance);
        append(&mut bytes, uri);
        for qualifier in &qualifiers {
            append(&mut bytes, &qualifier.name);
            append(&mut bytes, &qualifier.value);
        }
        match bytes.len() {
            length if length > MAX_KEY_BYTES => Err(KeyError::TooLong { length }),
            _ => Ok(AssetKey { bytes }),
        }
    }

    /// The same name as one that is known by digests of this function. Clients of two functions may share a name, and
    /// neither could use the other's digest. SHA-256 is what is meant where nobody says anything, and leaves the key as
    /// it is.
    pub fn of_function(mut self, function: DigestFunction) -> AssetKey {
        if function != DigestFunction::Sha256 {
            let mut bytes = vec![FUNCTION_KEY_VERSION, function.number()];
            bytes.append(&mut self.bytes);
            self.bytes = bytes;
        }
        self
    }

    /// The canonical bytes, equal exactly when the keys are.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn append(bytes: &mut Vec<u8>, part: &str) {
    bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
    bytes.extend_from_slice(part.as_bytes());
}

#[cfg(test)]
#[path = "key_mutation_test.rs"]
mod mutation_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn key(instance: &str, kind: AssetKind, uri: &str, qualifiers: &[(&str, &str)]) -> AssetKey {
        let qualifiers =
            qualifiers.iter().map(|(name, value)| Qualifier { name: (*name).into(), value: (*value).into() });
        AssetKey::new(instance, kind, uri, qualifiers).unwrap()
    }

    #[test]
    fn the_order_and_repetition_of_qualifiers_do_not_matter() {
        let one = key("", AssetKind::Blob, "urn:x", &[("a", "1"), ("b", "2")]);
        assert_eq!(one, key("", AssetKind::Blob, "urn:x", &[("b", "2"), ("a", "1")]));
        assert_eq!(one, key("", AssetKind::Blob, "urn:x", &[("b", "2"), ("a", "1"), ("b", "2")]));
    }

    #[test]
    fn everything_else_matters() {
        let one = key("i", AssetKind::Blob, "urn:x", &[("a", "1")]);
        for other in [
            key("j", AssetKind::Blob, "urn:x", &[("a", "1")]),
            key("i", AssetKind::Directory, "urn:x", &[("a", "1")]),
            key("i", AssetKind::Blob, "urn:X", &[("a", "1")]),
            key("i", AssetKind::Blob, "urn:x", &[]),
            key("i", AssetKind::Blob, "urn:x", &[("a", "2")]),
            key("i", AssetKind::Blob, "urn:x", &[("a", "1"), ("a", "2")]),
            key("i", AssetKind::Blob, "urn:x", &[("a", "1"), ("b", "")]),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn one_name_in_two_functions_is_two_keys() {
        let key = || key("i", AssetKind::Blob, "urn:x", &[("a", "1")]);
        assert_eq!(key().of_function(DigestFunction::Sha256), key());
        let keys: HashSet<_> = DigestFunction::ALL.iter().map(|function| key().of_function(*function)).collect();
        assert_eq!(keys.len(), DigestFunction::ALL.len());
    }

    #[test]
    fn parts_cannot_run_into_each_other() {
        assert_ne!(key("a", AssetKind::Blob, "bc", &[]), key("ab", AssetKind::Blob, "c", &[]));
        assert_ne!(key("", AssetKind::Blob, "u", &[("ab", "c")]), key("", AssetKind::Blob, "u", &[("a", "bc")]));
        assert_ne!(
            key("", AssetKind::Blob, "u", &[("a", "b"), ("c", "d")]),
            key("", AssetKind::Blob, "u", &[("a", "c"), ("b", "d")])
        );
    }

    #[test]
    fn an_empty_uri_and_an_endless_one_are_refused() {
        assert_eq!(AssetKey::new("", AssetKind::Blob, "", []), Err(KeyError::EmptyUri));
        let uri = "u".repeat(MAX_KEY_BYTES);
        let error = AssetKey::new("", AssetKind::Blob, &uri, []).unwrap_err();
        assert!(matches!(error, KeyError::TooLong { .. }), "{error}");
    }
}
