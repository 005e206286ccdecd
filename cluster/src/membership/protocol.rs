//! Versions of what nodes say to each other, so that a cluster of old and new programs is one.
//!
//! A program speaks a range of versions. A cluster works by one of them, which every member speaks: the [`ClusterState`] has it,
//! and it is raised, never lowered, when all members have said that they speak a newer one. What is new in a version is neither
//! sent nor written before. So old programs may be replaced by new ones node by node, and a new one by an old one again until
//! the last old one has gone.
//!
//! [`ClusterState`]: super::ClusterState

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A version of the peer protocol: of the calls between nodes, of the commands of the log, and of what is kept of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Protocol(pub u32);

/// The versions that a program speaks: all from the oldest to the newest. Part of the format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protocols {
    /// What it speaks with the oldest programs that it can be in one cluster with.
    pub oldest: Protocol,
    /// What it would speak if all did.
    pub newest: Protocol,
}

/// What is no range of versions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolsError {
    /// A version is none.
    #[error("a version is a number")]
    Number(#[from] ParseIntError),
    /// There is nothing in it, or version 0, which is none.
    #[error("versions are 1 or later, the oldest one first")]
    Empty,
}

impl Protocols {
    /// What this program speaks. The rules for both numbers are in docs/decisions/0014-versions.md.
    pub const SPOKEN: Protocols = Protocols { oldest: Protocol(1), newest: Protocol(1) };

    /// From the oldest to the newest.
    ///
    /// # Errors
    /// [`ProtocolsError::Empty`].
    pub fn new(oldest: Protocol, newest: Protocol) -> Result<Protocols, ProtocolsError> {
        match oldest >= Protocol(1) && oldest <= newest {
            true => Ok(Protocols { oldest, newest }),
            false => Err(ProtocolsError::Empty),
        }
    }

    /// The range of a list of versions, as it is told.
    ///
    /// # Errors
    /// [`ProtocolsError::Empty`] when it has none.
    pub fn of_list(versions: &[u32]) -> Result<Protocols, ProtocolsError> {
        let (oldest, newest) = (versions.iter().min(), versions.iter().max());
        let (Some(oldest), Some(newest)) = (oldest, newest) else { return Err(ProtocolsError::Empty) };
        Protocols::new(Protocol(*oldest), Protocol(*newest))
    }

    /// Whether it is one of them.
    pub fn speak(&self, version: Protocol) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }

    /// Whether two programs have one in common.
    pub fn meet(&self, other: &Protocols) -> bool {
        self.oldest <= other.newest && other.oldest <= self.newest
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `1`, or `1-2`.
impl fmt::Display for Protocols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.oldest == self.newest {
            true => self.newest.fmt(f),
            false => write!(f, "{}-{}", self.oldest, self.newest),
        }
    }
}

impl FromStr for Protocol {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Protocol, ParseIntError> {
        text.parse().map(Protocol)
    }
}

impl FromStr for Protocols {
    type Err = ProtocolsError;

    fn from_str(text: &str) -> Result<Protocols, ProtocolsError> {
        let (oldest, newest) = text.split_once('-').unwrap_or((text, text));
        Protocols::new(oldest.parse()?, newest.parse()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protocols(text: &str) -> Protocols {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_survives_its_way_as_text_and_as_a_list() {
        for text in ["1", "1-2", "3-7"] {
            assert_eq!(protocols(text).to_string(), text);
        }
        assert_eq!(Protocols::of_list(&[2, 1, 3]), Ok(protocols("1-3")));
        assert_eq!(Protocols::of_list(&[4]), Ok(protocols("4")));
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in ["", "x", "0", "0-1", "2-1", "1-", "1-2-3"] {
            assert!(text.parse::<Protocols>().is_err(), "{text}");
        }
        assert_eq!(Protocols::of_list(&[]), Err(ProtocolsError::Empty));
        assert_eq!(Protocols::of_list(&[0, 1]), Err(ProtocolsError::Empty));
    }

    #[test]
    fn programs_meet_where_their_ranges_do() {
        for (one, other, meet) in [("1", "1", true), ("1", "1-2", true), ("1-2", "2-3", true), ("1", "2", false)] {
            assert_eq!(protocols(one).meet(&protocols(other)), meet, "{one} and {other}");
            assert_eq!(protocols(other).meet(&protocols(one)), meet, "{other} and {one}");
        }
        assert!(protocols("1-3").speak(Protocol(2)));
        assert!(!protocols("2-3").speak(Protocol(1)) && !protocols("2-3").speak(Protocol(4)));
    }
}
