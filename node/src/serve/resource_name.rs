//! The resource names of ByteStream, as the Remote Execution API lays them out.
//!
//! ```text
//! [instance/]blobs/[function/]hash/size                                        read
//! [instance/]compressed-blobs/compressor/[function/]hash/size                  read
//! [instance/]uploads/uuid/blobs/[function/]hash/size[/anything]                write
//! [instance/]uploads/uuid/compressed-blobs/compressor/[function/]hash/size[/anything]
//! ```
//!
//! The function may be left out where the length of the hash implies it, and so never for BLAKE3.
//!
//! An instance name may have slashes but none of these keywords as a segment, so the first keyword ends it.

use casbah_cluster::digest::{Digest, DigestError, DigestFunction};
use casbah_proto::build::bazel::remote::execution::v2 as api;

use crate::config::RESERVED_SEGMENTS as KEYWORDS;
use crate::serve::compression::{Form, OFFERED};

/// The longest resource name that is looked at. A real one has an instance name and some 200 characters.
const MAX_NAME_BYTES: usize = 4096;

/// The blob that a ByteStream call is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceName {
    /// May be empty, may have slashes.
    pub instance: String,
    /// What an upload is told apart by; empty in names for reading.
    pub uuid: String,
    /// In which form its bytes travel.
    pub form: Form,
    /// The blob, uncompressed.
    pub digest: Digest,
}

/// Why a resource name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not laid out as above.
    #[error("the resource name \"{name}\" is not of the form {form}")]
    Form {
        /// As given, cut to 300 characters.
        name: String,
        /// What it should look like.
        form: &'static str,
    },
    /// Hash or size are malformed.
    #[error("the resource name \"{name}\" names no digest")]
    Digest {
        /// As given, cut to 300 characters.
        name: String,
        /// What is wrong.
        #[source]
        source: DigestError,
    },
    /// A digest function of the API that is not computed here.
    #[error(
        "the resource name \"{name}\" asks for the digest function \"{function}\", which this server does not offer"
    )]
    Function {
        /// As given, cut to 300 characters.
        name: String,
        /// As given.
        function: String,
    },
    /// A compressor that is not advertised.
    #[error("the resource name \"{name}\" asks for the compressor \"{compressor}\"; what is offered is {OFFERED}")]
    Compressor {
        /// As given, cut to 300 characters.
        name: String,
        /// As given, cut too.
        compressor: String,
    },
}

const READ_FORM: &str = "[instance/]blobs/[function/]hash/size or \
    [instance/]compressed-blobs/zstd/[function/]hash/size";
const WRITE_FORM: &str = "[instance/]uploads/uuid/blobs/[function/]hash/size or \
    [instance/]uploads/uuid/compressed-blobs/zstd/[function/]hash/size";

/// No digest function of the API has a longer name.
const FUNCTION_NAME_BYTES: usize = 16;

impl ResourceName {
    /// A name to read from.
    ///
    /// # Errors
    /// [`NameError`] when it has another form.
    pub fn for_reading(name: &str) -> Result<ResourceName, NameError> {
        let form = || NameError::Form { name: shortened(name), form: READ_FORM };
        let (instance, segments) = split(name).ok_or_else(form)?;
        let (travels_as, digest, rest) = blob(name, &segments, form)?;
        match rest {
            [] => Ok(ResourceName { instance, uuid: String::new(), form: travels_as, digest }),
            _ => Err(form()),
        }
    }

    /// A name to write to. What follows the size is the client's own business.
    ///
    /// # Errors
    /// [`NameError`] when it has another form.
    pub fn for_writing(name: &str) -> Result<ResourceName, NameError> {
        let form = || NameError::Form { name: shortened(name), form: WRITE_FORM };
        let (instance, segments) = split(name).ok_or_else(form)?;
        let ["uploads", uuid, blob_segments @ ..] = segments.as_slice() else { return Err(form()) };
        if uuid.is_empty() {
            return Err(form());
        }
        let (travels_as, digest, _anything) = blob(name, blob_segments, form)?;
        Ok(ResourceName { instance, uuid: (*uuid).to_owned(), form: travels_as, digest })
    }
}

/// The instance name, and the segments from the first keyword on.
fn split(name: &str) -> Option<(String, Vec<&str>)> {
    if name.len() > MAX_NAME_BYTES {
        return None;
    }
    // A leading slash comes from clients that join an empty instance name with one.
    let segments: Vec<&str> = name.strip_prefix('/').unwrap_or(name).split('/').collect();
    let start = segments.iter().position(|segment| KEYWORDS.contains(segment))?;
    let (instance, rest) = segments.split_at_checked(start)?;
    if instance.iter().any(|segment| segment.is_empty()) {
        return None;
    }
    Some((instance.join("/"), rest.to_vec()))
}

/// The form and the digest at the start of these segments, and what follows them.
fn blob<'s, 'n>(
    name: &str,
    segments: &'s [&'n str],
    form: impl Fn() -> NameError,
) -> Result<(Form, Digest, &'s [&'n str]), NameError> {
    let (travels_as, digest_segments) = match segments {
        ["blobs", rest @ ..] => (Form::Identity, rest),
        ["compressed-blobs", compressor, rest @ ..] => match Form::by_name(compressor) {
            Some(travels_as) => (travels_as, rest),
            None => {
                return Err(NameError::Compressor { name: shortened(name), compressor: shortened(compressor) });
            }
        },
        _ => return Err(form()),
    };
    let (function, digest_segments) = match digest_segments {
        [first, rest @ ..] if is_function(first) => match DigestFunction::from_name(first) {
            Some(function) => (function, rest),
            None => return Err(NameError::Function { name: shortened(name), function: (*first).to_owned() }),
        },
        // A hash of no function's length is refused as a digest of the one that every client knows.
        [hash, ..] => (DigestFunction::implied_by(hash.len()).unwrap_or(DigestFunction::Sha256), digest_segments),
        [] => return Err(form()),
    };
    let [hash, size, rest @ ..] = digest_segments else { return Err(form()) };
    let digest = Digest::parse(function, hash, size);
    let digest = digest.map_err(|source| NameError::Digest { name: shortened(name), source })?;
    Ok((travels_as, digest, rest))
}

/// Whether a segment is the name of a digest function of the API.
fn is_function(segment: &str) -> bool {
    // Also keeps a hash, which is longer, from being copied.
    segment.len() <= FUNCTION_NAME_BYTES
        && segment.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        && api::digest_function::Value::from_str_name(&segment.to_uppercase())
            .is_some_and(|value| value != api::digest_function::Value::Unknown)
}

fn shortened(name: &str) -> String {
    name.chars().take(300).collect()
}

#[cfg(test)]
#[path = "resource_name_mutation_test.rs"]
mod mutation_tests;

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_for_reading_are_understood() {
        for (name, instance) in [
            (format!("blobs/{HASH}/0"), ""),
            (format!("/blobs/{HASH}/0"), ""),
            (format!("main/blobs/{HASH}/0"), "main"),
            (format!("team/a/blobs/{HASH}/0"), "team/a"),
            (format!("team/a/blobs/sha256/{HASH}/0"), "team/a"),
            (format!("compressed-blobs/identity/{HASH}/0"), ""),
            (format!("team/a/compressed-blobs/zstd/{HASH}/0"), "team/a"),
            (format!("compressed-blobs/zstd/sha256/{HASH}/0"), ""),
        ] {
            let parsed = ResourceName::for_reading(&name).unwrap();
            assert_eq!((parsed.instance.as_str(), parsed.digest.hash_hex().as_str()), (instance, HASH), "{name}");
            let form = if name.contains("zstd") { Form::Zstd } else { Form::Identity };
            assert_eq!(parsed.form, form, "{name}");
        }
    }

    #[test]
    fn names_for_writing_are_understood() {
        for (name, instance, uuid) in [
            (format!("uploads/u-1/blobs/{HASH}/7"), "", "u-1"),
            (format!("team/a/uploads/u-1/blobs/{HASH}/7"), "team/a", "u-1"),
            (format!("uploads/u-1/blobs/{HASH}/7/some/path.txt"), "", "u-1"),
            (format!("uploads/u-1/blobs/sha256/{HASH}/7"), "", "u-1"),
            (format!("team/a/uploads/u-1/compressed-blobs/zstd/{HASH}/7/x"), "team/a", "u-1"),
        ] {
            let parsed = ResourceName::for_writing(&name).unwrap();
            assert_eq!((parsed.instance.as_str(), parsed.uuid.as_str()), (instance, uuid), "{name}");
            assert_eq!(parsed.digest.size_bytes(), 7);
            assert_eq!(parsed.form == Form::Zstd, name.contains("zstd"), "{name}");
        }
    }

    #[test]
    fn the_function_is_the_one_that_is_named_or_that_the_length_implies() {
        let digests = DigestFunction::ALL.iter().map(|function| Digest::of(*function, b"1234567"));
        for digest in digests {
            let function = digest.function().name();
            let named =
                [format!("main/blobs/{function}/{digest}"), format!("compressed-blobs/identity/{function}/{digest}")];
            for name in named {
                assert_eq!(ResourceName::for_reading(&name).unwrap().digest, digest, "{name}");
            }
            for name in
                [format!("uploads/u/blobs/{function}/{digest}/x"), format!("i/uploads/u/blobs/{function}/{digest}")]
            {
                assert_eq!(ResourceName::for_writing(&name).unwrap().digest, digest, "{name}");
            }
            let implied = ResourceName::for_reading(&format!("blobs/{digest}")).unwrap().digest;
            assert_eq!(implied.hash(), digest.hash());
            let expected = match digest.function() {
                DigestFunction::Blake3 => DigestFunction::Sha256,
                function => function,
            };
            assert_eq!(implied.function(), expected);
        }
    }

    #[test]
    fn a_function_that_is_not_offered_or_does_not_fit_its_hash_is_refused() {
        for function in ["vso", "murmur3", "sha256tree", "gitsha1"] {
            let error = ResourceName::for_reading(&format!("blobs/{function}/{HASH}/0")).unwrap_err();
            assert!(matches!(error, NameError::Function { .. }), "{error}");
        }
        for function in ["md5", "sha1", "sha384", "sha512", "SHA256", "unknown", "sha3"] {
            assert!(ResourceName::for_reading(&format!("blobs/{function}/{HASH}/0")).is_err(), "{function}");
        }
    }

    #[test]
    fn malformed_names_are_refused_and_named() {
        for name in [
            String::new(),
            "/".into(),
            "blobs".into(),
            format!("blobs/{HASH}"),
            format!("blobs/{HASH}/"),
            format!("blobs/{HASH}/-1"),
            format!("blobs/{HASH}/x"),
            format!("blobs/{HASH}/0/more"),
            format!("blobs/{}/0", &HASH[1..]),
            format!("blobs/{}/0", HASH.to_uppercase()),
            format!("blob/{HASH}/0"),
            format!("a//blobs/{HASH}/0"),
            format!("//blobs/{HASH}/0"),
            format!("actions/blobs/{HASH}/0"),
            format!("uploads/u/blobs/{HASH}/0"),
            format!("compressed-blobs/deflate/{HASH}/0"),
            format!("compressed-blobs/ZSTD/{HASH}/0"),
            format!("compressed-blobs//{HASH}/0"),
            format!("compressed-blobs/zstd/{HASH}"),
            format!("compressed-blobs/zstd/zstd/{HASH}/0"),
            format!("compressed-blobs/{HASH}/0"),
            format!("{}/blobs/{HASH}/0", "i".repeat(MAX_NAME_BYTES)),
        ] {
            let error = ResourceName::for_reading(&name).unwrap_err();
            assert!(error.to_string().contains(&shortened(&name)), "{error}");
        }
        for name in [
            format!("blobs/{HASH}/0"),
            format!("uploads//blobs/{HASH}/0"),
            format!("uploads/blobs/{HASH}/0"),
            format!("uploads/u/{HASH}/0"),
            format!("uploads/u/blobs/{HASH}"),
            format!("uploads/u/compressed-blobs/brotli/{HASH}/0"),
            format!("uploads/u/uploads/u/blobs/{HASH}/0"),
        ] {
            assert!(ResourceName::for_writing(&name).is_err(), "{name}");
        }
    }

    #[test]
    fn who_asks_for_another_compressor_is_told_what_is_offered() {
        let error = ResourceName::for_reading(&format!("compressed-blobs/deflate/{HASH}/0")).unwrap_err().to_string();
        assert!(error.contains("\"deflate\"") && error.contains("zstd"), "{error}");
    }
}
