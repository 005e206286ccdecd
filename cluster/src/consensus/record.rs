//! Openraft's values as records of our own: what is written to the log, the state machine and snapshots.

use std::collections::BTreeSet;

use openraft::entry::EntryPayload;
use openraft::entry::RaftEntry as _;
use serde::{Deserialize, Serialize};

use super::command::{Batch, Command};
use super::types::{Entry, LeaderId, LogId, Membership, StoredMembership, Vote};
use crate::codec::{self, CodecError};

/// Version 1 knew no standings of members, version 2 no versions of the protocol.
const ENTRY_VERSION: u8 = 3;
const LOG_ID_VERSION: u8 = 1;
const VOTE_VERSION: u8 = 1;
const MEMBERSHIP_VERSION: u8 = 1;

/// A position of the log. Version 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LogIdV1 {
    term: u64,
    leader: u64,
    index: u64,
}

/// A vote. Version 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VoteV1 {
    term: u64,
    node: u64,
    committed: bool,
}

/// Voters, in two sets during a change, and everybody. Version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MembershipV1 {
    voters: Vec<BTreeSet<u64>>,
    nodes: BTreeSet<u64>,
}

/// The last membership, and where in the log it stands. Version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredMembershipV1 {
    log_id: Option<LogIdV1>,
    membership: MembershipV1,
}

/// An entry. Version 1.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct EntryV1 {
    log_id: LogIdV1,
    payload: PayloadV1,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum PayloadV1 {
    Blank,
    Commands { index_capacity: u64, commands: Vec<Command> },
    Membership(MembershipV1),
}

/// [`EntryV1`], to be written: the same bytes without copying the commands.
#[derive(Serialize)]
pub(super) struct EntryRefV1<'e> {
    log_id: LogIdV1,
    payload: PayloadRefV1<'e>,
}

#[derive(Serialize)]
enum PayloadRefV1<'e> {
    Blank,
    Commands { index_capacity: u64, commands: &'e [Command] },
    Membership(MembershipV1),
}

/// An entry as it is written.
///
/// # Errors
/// [`CodecError::Encode`] when it is too large.
pub fn encode_entry(entry: &Entry) -> Result<Vec<u8>, CodecError> {
    codec::encode(ENTRY_VERSION, &EntryRefV1::from(entry))
}

/// The entry of these bytes.
///
/// # Errors
/// [`CodecError`] when the bytes are none.
pub fn decode_entry(bytes: &[u8]) -> Result<Entry, CodecError> {
    codec::decode::<EntryV1>(ENTRY_VERSION, bytes).map(Entry::from)
}

/// A position as it is written.
///
/// # Errors
/// None that can happen.
pub fn encode_log_id(log_id: &LogId) -> Result<Vec<u8>, CodecError> {
    codec::encode(LOG_ID_VERSION, &LogIdV1::from(log_id))
}

/// The position of these bytes.
///
/// # Errors
/// [`CodecError`] when the bytes are none.
pub fn decode_log_id(bytes: &[u8]) -> Result<LogId, CodecError> {
    codec::decode::<LogIdV1>(LOG_ID_VERSION, bytes).map(LogId::from)
}

/// A vote as it is written.
///
/// # Errors
/// None that can happen.
pub fn encode_vote(vote: &Vote) -> Result<Vec<u8>, CodecError> {
    codec::encode(VOTE_VERSION, &VoteV1::from(vote))
}

/// The vote of these bytes.
///
/// # Errors
/// [`CodecError`] when the bytes are none.
pub fn decode_vote(bytes: &[u8]) -> Result<Vote, CodecError> {
    codec::decode::<VoteV1>(VOTE_VERSION, bytes).map(Vote::from)
}

/// A membership as it is written.
///
/// # Errors
/// [`CodecError::Encode`] when it is too large.
pub fn encode_membership(membership: &StoredMembership) -> Result<Vec<u8>, CodecError> {
    codec::encode(MEMBERSHIP_VERSION, &StoredMembershipV1::from(membership))
}

/// The membership of these bytes.
///
/// # Errors
/// [`CodecError`] when the bytes are none.
pub fn decode_membership(bytes: &[u8]) -> Result<StoredMembership, CodecError> {
    codec::decode::<StoredMembershipV1>(MEMBERSHIP_VERSION, bytes).map(StoredMembership::from)
}

// === conversions ===

impl From<&LogId> for LogIdV1 {
    fn from(id: &LogId) -> LogIdV1 {
        let leader = id.committed_leader_id();
        LogIdV1 { term: leader.term, leader: leader.node_id, index: id.index() }
    }
}

impl From<LogIdV1> for LogId {
    fn from(id: LogIdV1) -> LogId {
        LogId::new(LeaderId { term: id.term, node_id: id.leader }, id.index)
    }
}

impl From<&Vote> for VoteV1 {
    fn from(vote: &Vote) -> VoteV1 {
        VoteV1 { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
    }
}

impl From<VoteV1> for Vote {
    fn from(vote: VoteV1) -> Vote {
        Vote { leader_id: LeaderId { term: vote.term, node_id: vote.node }, committed: vote.committed }
    }
}

impl From<&Membership> for MembershipV1 {
    fn from(membership: &Membership) -> MembershipV1 {
        let nodes = membership.nodes().map(|(id, _)| *id).collect();
        MembershipV1 { voters: membership.get_joint_config().clone(), nodes }
    }
}

impl From<MembershipV1> for Membership {
    fn from(membership: MembershipV1) -> Membership {
        Membership::new_with_defaults(membership.voters, membership.nodes)
    }
}

impl From<&StoredMembership> for StoredMembershipV1 {
    fn from(stored: &StoredMembership) -> StoredMembershipV1 {
        StoredMembershipV1 {
            log_id: stored.log_id().as_ref().map(LogIdV1::from),
            membership: MembershipV1::from(stored.membership()),
        }
    }
}

impl From<StoredMembershipV1> for StoredMembership {
    fn from(stored: StoredMembershipV1) -> StoredMembership {
        StoredMembership::new(stored.log_id.map(LogId::from), Membership::from(stored.membership))
    }
}

impl<'e> From<&'e Entry> for EntryRefV1<'e> {
    fn from(entry: &'e Entry) -> EntryRefV1<'e> {
        let payload = match &entry.payload {
            EntryPayload::Blank => PayloadRefV1::Blank,
            EntryPayload::Normal(Batch { index_capacity, commands }) => {
                PayloadRefV1::Commands { index_capacity: *index_capacity, commands }
            }
            EntryPayload::Membership(membership) => PayloadRefV1::Membership(MembershipV1::from(membership)),
        };
        EntryRefV1 { log_id: LogIdV1::from(&entry.log_id), payload }
    }
}

impl From<EntryV1> for Entry {
    fn from(entry: EntryV1) -> Entry {
        let payload = match entry.payload {
            PayloadV1::Blank => EntryPayload::Blank,
            PayloadV1::Commands { index_capacity, commands } => {
                EntryPayload::Normal(Batch { index_capacity, commands })
            }
            PayloadV1::Membership(membership) => EntryPayload::Membership(Membership::from(membership)),
        };
        Entry::new(LogId::from(entry.log_id), payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::asset::Moment;

    fn id(index: u64) -> LogId {
        LogId::new(LeaderId { term: 3, node_id: 2 }, index)
    }

    fn entries() -> [Entry; 3] {
        let put =
            Command::PutAssets { keys: vec![b"key".to_vec()], record: b"record".to_vec(), ends_at: Some(Moment(5)) };
        let membership = Membership::new_with_defaults(vec![[1, 2].into(), [2, 3].into()], [1, 2, 3, 9]);
        [
            Entry::new(id(1), EntryPayload::Blank),
            Entry::new(id(2), EntryPayload::Normal(Batch { index_capacity: 9, commands: vec![put] })),
            Entry::new(id(3), EntryPayload::Membership(membership)),
        ]
    }

    #[test]
    fn entries_of_all_kinds_survive_the_round_trip() {
        for entry in entries() {
            assert_eq!(decode_entry(&encode_entry(&entry).unwrap()).unwrap(), entry);
        }
    }

    #[test]
    fn the_bytes_of_an_entry_are_these() {
        let [_, entry, _] = entries();
        // Version; term, leader, index; commands with a capacity of 9: one, a put: one key, the record, an end at 5 (zigzag: 10).
        let bytes = [&[3, 3, 2, 2, 1, 9, 1, 0, 1, 3][..], b"key", &[6], b"record", &[1, 10]].concat();
        assert_eq!(encode_entry(&entry).unwrap(), bytes);
    }

    #[test]
    fn an_entry_cut_anywhere_is_refused() {
        for entry in entries() {
            let bytes = encode_entry(&entry).unwrap();
            for length in 0..bytes.len() {
                assert!(decode_entry(&bytes[..length]).is_err(), "cut to {length} bytes");
            }
        }
    }

    #[test]
    fn votes_and_positions_and_memberships_survive_the_round_trip() {
        let vote = Vote { leader_id: LeaderId { term: 7, node_id: 1 }, committed: true };
        assert_eq!(decode_vote(&encode_vote(&vote).unwrap()).unwrap(), vote);
        assert_eq!(decode_log_id(&encode_log_id(&id(9)).unwrap()).unwrap(), id(9));
        let stored = StoredMembership::new(Some(id(4)), Membership::new_with_defaults(vec![[1].into()], [2]));
        assert_eq!(decode_membership(&encode_membership(&stored).unwrap()).unwrap(), stored);
        assert_eq!(
            decode_membership(&encode_membership(&StoredMembership::default()).unwrap()).unwrap(),
            StoredMembership::default()
        );
    }
}
