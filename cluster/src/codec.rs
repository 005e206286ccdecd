//! The one place where values become bytes for disk or wire, and back.
//!
//! Every encoding is a version byte and then the value in bincode 2's standard form. A version is a type of its own:
//! no field is ever added to one that has been written. Decoding is bounded, so that a forged length cannot make it
//! allocate more than [`MAX_ENCODED_BYTES`].

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest encoding that is read or written: far above any record, far below what would hurt.
pub const MAX_ENCODED_BYTES: usize = 4 << 20;

/// Why bytes could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The value does not fit [`MAX_ENCODED_BYTES`].
    #[error("the record would take more than {MAX_ENCODED_BYTES} bytes")]
    Encode(#[source] bincode::error::EncodeError),
    /// Bytes that were never written by this program, or were damaged since.
    #[error("the record is damaged")]
    Decode(#[source] bincode::error::DecodeError),
    /// Bytes behind the value.
    #[error("the record is followed by {count} bytes that do not belong to it")]
    Trailing {
        /// How many.
        count: usize,
    },
    /// No bytes at all.
    #[error("the record is empty")]
    Empty,
    /// Written by a version of this program that is not known here.
    #[error("the record has version {found}, but this program reads version {expected}")]
    Version {
        /// As found.
        found: u8,
        /// As this program writes it.
        expected: u8,
    },
}

fn configuration() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_ENCODED_BYTES>()
}

/// The version byte, then the value.
///
/// # Errors
/// [`CodecError::Encode`] when the value is too large.
pub fn encode<T: Serialize>(version: u8, value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![version];
    bincode::serde::encode_into_std_write(value, &mut bytes, configuration()).map_err(CodecError::Encode)?;
    if bytes.len() > MAX_ENCODED_BYTES {
        return Err(CodecError::Encode(bincode::error::EncodeError::UnexpectedEnd));
    }
    Ok(bytes)
}

/// The value of an encoding of this version.
///
/// # Errors
/// [`CodecError`] when the bytes are not exactly one value of that version.
pub fn decode<T: DeserializeOwned>(version: u8, bytes: &[u8]) -> Result<T, CodecError> {
    let (found, body) = bytes.split_first().ok_or(CodecError::Empty)?;
    if *found != version {
        return Err(CodecError::Version { found: *found, expected: version });
    }
    let (value, used) = bincode::serde::decode_from_slice(body, configuration()).map_err(CodecError::Decode)?;
    match body.len().saturating_sub(used) {
        0 => Ok(value),
        count => Err(CodecError::Trailing { count }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_survives_the_round_trip() {
        let value = (String::from("casbah"), vec![1_u64, u64::MAX], Some(-5_i64));
        let bytes = encode(7, &value).unwrap();
        assert_eq!(bytes.first(), Some(&7));
        assert_eq!(decode::<(String, Vec<u64>, Option<i64>)>(7, &bytes).unwrap(), value);
    }

    #[test]
    fn another_version_is_refused_and_named() {
        let bytes = encode(2, &1_u8).unwrap();
        let error = decode::<u8>(1, &bytes).unwrap_err();
        assert!(matches!(error, CodecError::Version { found: 2, expected: 1 }), "{error}");
        assert!(matches!(decode::<u8>(1, &[]), Err(CodecError::Empty)));
    }

    #[test]
    fn a_record_cut_anywhere_is_refused() {
        let bytes = encode(1, &(String::from("some text"), 300_u64)).unwrap();
        for length in 0..bytes.len() {
            assert!(decode::<(String, u64)>(1, &bytes[..length]).is_err(), "cut to {length} bytes");
        }
    }

    #[test]
    fn bytes_behind_a_record_are_refused() {
        let mut bytes = encode(1, &5_u8).unwrap();
        bytes.push(0);
        assert!(matches!(decode::<u8>(1, &bytes), Err(CodecError::Trailing { count: 1 })));
    }

    #[test]
    fn a_forged_length_allocates_nothing_large() {
        // Version, the marker of a 64-bit length, then a length of 2^60.
        let bytes = [1, 253, 0, 0, 0, 0, 0, 0, 0, 16];
        assert!(matches!(decode::<Vec<u64>>(1, &bytes), Err(CodecError::Decode(_))));
    }

    #[test]
    fn a_value_too_large_is_refused() {
        assert!(matches!(encode(1, &vec![0_u8; MAX_ENCODED_BYTES]), Err(CodecError::Encode(_))));
    }
}
