//! Names of nodes, clusters and layouts that are never used twice.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A node's number: given by a committed entry of the log, kept on the node's volume, never given again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct NodeId(pub u64);

/// The version of a layout. Larger is newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Epoch(pub u64);

/// A cluster's name, drawn at random when it is formed. Nothing merges two of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub [u8; 16]);

/// A directory's name, drawn at random when it was made: an empty directory under a node's old name has another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VolumeId(pub [u8; 16]);

/// A text that is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no id of 32 hexadecimal digits")]
pub struct IdError {
    /// As given, shortened.
    text: String,
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for ClusterId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<ClusterId, IdError> {
        sixteen(text).map(ClusterId)
    }
}

impl FromStr for VolumeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<VolumeId, IdError> {
        sixteen(text).map(VolumeId)
    }
}

fn sixteen(text: &str) -> Result<[u8; 16], IdError> {
    let error = || IdError { text: text.chars().take(40).collect() };
    let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = digits.then(|| u128::from_str_radix(text, 16).ok()).flatten().ok_or_else(error)?;
    Ok(number.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_printed_and_nothing_else_is() {
        let id = ClusterId([7; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in ["", "07", "+7070707070707070707070707070707", &"0".repeat(33), &"g".repeat(32)] {
            assert!(text.parse::<ClusterId>().is_err(), "{text}");
        }
    }
}
