//! What a node without the log asks one that has it: payloads of the peers' Raft service.

use serde::{Deserialize, Serialize};

use super::command::ENTRY_BYTES_MAX;
use crate::codec::{self, CodecError};

/// Of both payloads. A node that gets one of a version it does not know refuses it.
const VERSION: u8 = 1;

/// Reads the index of a node that has the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadCall {
    /// Canonical keys, of at most [`ENTRY_BYTES_MAX`] together. None, for the cluster's state alone.
    pub keys: Vec<Vec<u8>>,
    /// The answer may be behind what was acknowledged: no leader can be found.
    pub is_stale: bool,
}

/// What comes of a [`ReadCall`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadAnswer {
    /// What is known there: with all that was acknowledged before the call came, unless it is stale.
    Done {
        /// Of the first of the keys, one at least: as many as fit. The others are to be asked for again.
        records: Vec<Option<Vec<u8>>>,
        /// The position of the log that the cluster's state is of.
        position: u64,
        /// The cluster's state, encoded, where no keys were asked for.
        state: Option<Vec<u8>>,
    },
    /// The node finds no leader that a majority follows.
    NoLeader,
    /// The node does not have the log, or not all of it yet: another one is to be asked.
    NoLog,
    /// Too many reads of others are under way there.
    Busy,
}

// === impl ReadCall ===

impl ReadCall {
    /// A call for as many of these keys as fit, one at least.
    #[must_use]
    pub fn of<'k>(keys: impl IntoIterator<Item = &'k [u8]>, is_stale: bool) -> ReadCall {
        let (mut fitting, mut bytes) = (Vec::new(), 0);
        for key in keys {
            bytes += key.len() + size_of::<u64>();
            if bytes > ENTRY_BYTES_MAX && !fitting.is_empty() {
                break;
            }
            fitting.push(key.to_vec());
        }
        ReadCall { keys: fitting, is_stale }
    }

    /// As it is sent.
    ///
    /// # Errors
    /// [`CodecError::Encode`] when it is too large.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode(VERSION, self)
    }

    /// As it was sent.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<ReadCall, CodecError> {
        codec::decode(VERSION, bytes)
    }
}

// === impl ReadAnswer ===

impl ReadAnswer {
    /// As it is sent.
    ///
    /// # Errors
    /// [`CodecError::Encode`] when it is too large.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode(VERSION, self)
    }

    /// As it was sent.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<ReadAnswer, CodecError> {
        codec::decode(VERSION, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_and_its_answers_survive_the_round_trip() {
        let call = ReadCall::of([&b"a"[..], b"b"], true);
        assert_eq!(call.keys, [b"a", b"b"]);
        assert_eq!(ReadCall::decode(&call.encode().unwrap()).unwrap(), call);
        let done = ReadAnswer::Done { records: vec![None, Some(vec![1])], position: 7, state: Some(vec![2]) };
        for answer in [done, ReadAnswer::NoLeader, ReadAnswer::NoLog, ReadAnswer::Busy] {
            assert_eq!(ReadAnswer::decode(&answer.encode().unwrap()).unwrap(), answer);
        }
    }

    #[test]
    fn a_call_takes_as_many_keys_as_fit_and_one_at_least() {
        let keys: Vec<Vec<u8>> = (0..10).map(|_| vec![0; ENTRY_BYTES_MAX / 4]).collect();
        assert_eq!(ReadCall::of(keys.iter().map(Vec::as_slice), false).keys.len(), 3);
        let huge = vec![0; ENTRY_BYTES_MAX + 1];
        assert_eq!(ReadCall::of([huge.as_slice(), &huge], false).keys.len(), 1);
    }

    #[test]
    fn what_is_no_call_is_refused() {
        let bytes = ReadCall::of([&b"key"[..]], false).encode().unwrap();
        for length in 0..bytes.len() {
            assert!(ReadCall::decode(&bytes[..length]).is_err(), "cut to {length} bytes");
        }
        assert!(ReadAnswer::decode(&[1, 9]).is_err());
    }
}
