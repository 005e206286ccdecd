//! What members of the Raft group send each other: payloads of the peers' Raft service.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::command::{Command, Reply};
use super::record::{EntryRefV1, EntryV1, LogIdV1, StoredMembershipV1, VoteV1};
use super::types::{Entry, LogId, SnapshotMeta, StoredMembership, Vote};
use crate::codec::{self, CodecError};

/// Of all payloads. A node that gets one of a version it does not know refuses it. Version 1 knew no standings of members,
/// version 2 no versions of the protocol.
const VERSION: u8 = 3;

/// A batch of entries, or a heartbeat.
#[derive(Debug, Clone, PartialEq)]
pub struct AppendCall {
    /// The leader's.
    pub vote: Vote,
    /// What stands before the entries.
    pub previous: Option<LogId>,
    /// In order, without a gap.
    pub entries: Vec<Entry>,
    /// Up to where the leader knows the log to be committed.
    pub committed: Option<LogId>,
}

/// What became of an [`AppendCall`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppendAnswer {
    /// All of it is on disk.
    Done,
    /// It is on disk up to here.
    UpTo(Option<LogId>),
    /// What stands before the entries is not what the log here has.
    Conflict,
    /// A newer leader is known here.
    HigherVote(Vote),
}

/// Asks for a vote, or, before the term is raised, whether there would be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VoteCall {
    /// Only asks.
    pub is_pre_vote: bool,
    /// The candidate's.
    pub vote: Vote,
    /// The last entry of the candidate's log.
    pub last: Option<LogId>,
    /// The leader has asked the candidate to take over.
    pub is_transfer: bool,
}

/// The answer to a [`VoteCall`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VoteAnswer {
    /// The highest vote known here.
    pub vote: Vote,
    /// Whether the candidate has it.
    pub is_granted: bool,
    /// The last entry of the log here.
    pub last: Option<LogId>,
}

/// The leader hands over to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferCall {
    /// The leader's.
    pub from: Vote,
    /// To whom.
    pub to: u64,
    /// What that node must have.
    pub last: Option<LogId>,
}

/// What became of a [`TransferCall`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransferAnswer {
    /// Taken note of.
    Done,
    /// Another leader is known here.
    VoteChanged {
        /// The caller's.
        expected: Vote,
        /// The one known here.
        actual: Vote,
    },
    /// Not everything is on disk here.
    NotFlushed {
        /// What the caller asks for.
        expected: Option<LogId>,
        /// What is on disk.
        actual: Option<LogId>,
    },
}

/// What a snapshot is of, and by whom it is sent.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotHead {
    /// The leader's.
    pub vote: Vote,
    /// What it is of.
    pub meta: SnapshotMeta,
}

/// What became of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotAnswer {
    /// The highest vote known here: that of the sender, if it was taken.
    pub vote: Vote,
}

/// A part of a snapshot. The cluster's state comes first, then assets in the order of their use, then the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotPart {
    /// What the nodes agree on about themselves.
    Cluster {
        /// Encoded; `None` before the cluster is formed.
        state: Option<Vec<u8>>,
    },
    /// Some of the assets.
    Assets {
        /// The one used least recently first.
        records: Vec<SnapshotRecord>,
    },
    /// Nothing follows.
    End {
        /// How many there were.
        assets: u64,
    },
}

/// An asset of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Its canonical key.
    pub key: Vec<u8>,
    /// Its encoded record.
    pub record: Vec<u8>,
    /// From when on it may be removed, in nanoseconds since 1970-01-01T00:00:00Z.
    pub ends_at: Option<i128>,
}

/// Commands to be committed as one entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// In order.
    pub commands: Vec<Command>,
}

/// What became of a [`Proposal`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProposalAnswer {
    /// Committed and applied.
    Done {
        /// One for each command.
        replies: Vec<Reply>,
    },
    /// This node does not lead. Nothing has been done.
    NotLeader {
        /// Who does, as far as is known here.
        leader: Option<u64>,
    },
    /// Too much waits here. Nothing has been done.
    Busy,
    /// The leader has changed meanwhile: it may or may not have been done.
    Unknown,
}

/// Up to where a node must have applied the log, to read what is newest now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadIndexAnswer {
    /// This position.
    Done {
        /// An index of the log.
        index: u64,
    },
    /// This node does not lead.
    NotLeader {
        /// Who does, as far as is known here.
        leader: Option<u64>,
    },
    /// This node led, but cannot reach enough of the others to be sure of it.
    NoQuorum,
}

// === the forms in which they are sent ===

#[derive(Serialize)]
struct AppendRefV1<'e> {
    vote: VoteV1,
    previous: Option<LogIdV1>,
    entries: Vec<EntryRefV1<'e>>,
    committed: Option<LogIdV1>,
}

#[derive(Deserialize)]
struct AppendV1 {
    vote: VoteV1,
    previous: Option<LogIdV1>,
    entries: Vec<EntryV1>,
    committed: Option<LogIdV1>,
}

#[derive(Serialize, Deserialize)]
enum AppendAnswerV1 {
    Done,
    UpTo(Option<LogIdV1>),
    Conflict,
    HigherVote(VoteV1),
}

#[derive(Serialize, Deserialize)]
struct VoteCallV1 {
    is_pre_vote: bool,
    vote: VoteV1,
    last: Option<LogIdV1>,
    is_transfer: bool,
}

#[derive(Serialize, Deserialize)]
struct VoteAnswerV1 {
    vote: VoteV1,
    is_granted: bool,
    last: Option<LogIdV1>,
}

#[derive(Serialize, Deserialize)]
struct TransferV1 {
    from: VoteV1,
    to: u64,
    last: Option<LogIdV1>,
}

#[derive(Serialize, Deserialize)]
enum TransferAnswerV1 {
    Done,
    VoteChanged { expected: VoteV1, actual: VoteV1 },
    NotFlushed { expected: Option<LogIdV1>, actual: Option<LogIdV1> },
}

#[derive(Serialize, Deserialize)]
struct SnapshotHeadV1 {
    vote: VoteV1,
    last: Option<LogIdV1>,
    membership: StoredMembershipV1,
}

#[derive(Serialize, Deserialize)]
struct SnapshotAnswerV1 {
    vote: VoteV1,
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    codec::encode(VERSION, value)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    codec::decode(VERSION, bytes)
}

fn sent(id: Option<&LogId>) -> Option<LogIdV1> {
    id.map(LogIdV1::from)
}

fn got(id: Option<LogIdV1>) -> Option<LogId> {
    id.map(LogId::from)
}

// === impl AppendCall ===

impl AppendCall {
    /// As it is sent.
    ///
    /// # Errors
    /// [`CodecError::Encode`] when the entries are too many.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        encode(&AppendRefV1 {
            vote: VoteV1::from(&self.vote),
            previous: sent(self.previous.as_ref()),
            entries: self.entries.iter().map(EntryRefV1::from).collect(),
            committed: sent(self.committed.as_ref()),
        })
    }

    /// As it was sent.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<AppendCall, CodecError> {
        let call: AppendV1 = decode(bytes)?;
        Ok(AppendCall {
            vote: Vote::from(call.vote),
            previous: got(call.previous),
            entries: call.entries.into_iter().map(Entry::from).collect(),
            committed: got(call.committed),
        })
    }
}

// === impl AppendAnswer ===

impl AppendAnswer {
    /// As it is sent.
    ///
    /// # Errors
    /// None that can happen.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        encode(&match self {
            AppendAnswer::Done => AppendAnswerV1::Done,
            AppendAnswer::UpTo(id) => AppendAnswerV1::UpTo(sent(id.as_ref())),
            AppendAnswer::Conflict => AppendAnswerV1::Conflict,
            AppendAnswer::HigherVote(vote) => AppendAnswerV1::HigherVote(VoteV1::from(vote)),
        })
    }

    /// As it was sent.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<AppendAnswer, CodecError> {
        Ok(match decode(bytes)? {
            AppendAnswerV1::Done => AppendAnswer::Done,
            AppendAnswerV1::UpTo(id) => AppendAnswer::UpTo(got(id)),
            AppendAnswerV1::Conflict => AppendAnswer::Conflict,
            AppendAnswerV1::HigherVote(vote) => AppendAnswer::HigherVote(Vote::from(vote)),
        })
    }
}

// === impl VoteCall ===

impl VoteCall {
    /// As it is sent.
    ///
    /// # Errors
    /// None that can happen.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        encode(&VoteCallV1 {
            is_pre_vote: self.is_pre_vote,
            vote: VoteV1::from(&self.vote),
            last: sent(self.last.as_ref()),
            is_transfer: self.is_transfer,
        })
    }

    /// As it was sent.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<VoteCall, CodecError> {
        let VoteCallV1 { is_pre_vote, vote, last, is_transfer } = decode(bytes)?;
        Ok(VoteCall { is_pre_vote, vote: Vote::from(vote), last: got(last), is_transfer })
    }
}

// === impl VoteAnswer ===

impl VoteAnswer {
    /// As it is sent.
    ///
    /// # Errors
    /// None that can happen.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        let VoteAnswer { vote, is_granted, last } = self;
        encode(&VoteAnswerV1 { vote: VoteV1::from(vote), is_granted: *is_granted, last: sent(last.as_ref()) })
    }

    /// As it was sent.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<VoteAnswer, CodecError> {
        let VoteAnswerV1 { vote, is_granted, last } = decode(bytes)?;
        Ok(VoteAnswer { vote: Vote::from(vote), is_granted, last: got(last) })
    }
}

// === impl TransferCall ===

impl TransferCall {
    /// As it is sent.
    ///
    /// # Errors
    /// None that can happen.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        encode(&TransferV1 { from: VoteV1::from(&self.from), to: self.to, last: sent(self.last.as_ref()) })
    }

    /// As it was sent.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<TransferCall, CodecError> {
        let TransferV1 { from, to, last } = decode(bytes)?;
        Ok(TransferCall { from: Vote::from(from), to, last: got(last) })
    }
}

// === impl TransferAnswer ===

impl TransferAnswer {
    /// As it is sent.
    ///
    /// # Errors
    /// None that can happen.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        encode(&match self {
            TransferAnswer::Done => TransferAnswerV1::Done,
            TransferAnswer::VoteChanged { expected, actual } => {
                TransferAnswerV1::VoteChanged { expected: VoteV1::from(expected), actual: VoteV1::from(actual) }
            }
            TransferAnswer::NotFlushed { expected, actual } => {
                TransferAnswerV1::NotFlushed { expected: sent(expected.as_ref()), actual: sent(actual.as_ref()) }
            }
        })
    }

    /// As it was sent.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<TransferAnswer, CodecError> {
        Ok(match decode(bytes)? {
            TransferAnswerV1::Done => TransferAnswer::Done,
            TransferAnswerV1::VoteChanged { expected, actual } => {
                TransferAnswer::VoteChanged { expected: Vote::from(expected), actual: Vote::from(actual) }
            }
            TransferAnswerV1::NotFlushed { expected, actual } => {
                TransferAnswer::NotFlushed { expected: got(expected), actual: got(actual) }
            }
        })
    }
}

// === impl SnapshotHead ===

impl SnapshotHead {
    /// As it is sent.
    ///
    /// # Errors
    /// [`CodecError::Encode`] when it is too large.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        encode(&SnapshotHeadV1 {
            vote: VoteV1::from(&self.vote),
            last: sent(self.meta.last_log_id.as_ref()),
            membership: StoredMembershipV1::from(&self.meta.last_membership),
        })
    }

    /// As it was sent.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<SnapshotHead, CodecError> {
        let SnapshotHeadV1 { vote, last, membership } = decode(bytes)?;
        let meta = SnapshotMeta { last_log_id: got(last), last_membership: StoredMembership::from(membership) };
        Ok(SnapshotHead { vote: Vote::from(vote), meta })
    }
}

// === impl SnapshotAnswer ===

impl SnapshotAnswer {
    /// As it is sent.
    ///
    /// # Errors
    /// None that can happen.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        encode(&SnapshotAnswerV1 { vote: VoteV1::from(&self.vote) })
    }

    /// As it was sent.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<SnapshotAnswer, CodecError> {
        let SnapshotAnswerV1 { vote } = decode(bytes)?;
        Ok(SnapshotAnswer { vote: Vote::from(vote) })
    }
}

// === impl SnapshotPart ===

impl SnapshotPart {
    /// As it is sent.
    ///
    /// # Errors
    /// [`CodecError::Encode`] when it is too large.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        encode(self)
    }

    /// As it was sent.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<SnapshotPart, CodecError> {
        decode(bytes)
    }
}

// === impl Proposal, ProposalAnswer, ReadIndexAnswer ===

impl Proposal {
    /// As it is sent.
    ///
    /// # Errors
    /// [`CodecError::Encode`] when it is too large.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        encode(self)
    }

    /// As it was sent.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<Proposal, CodecError> {
        decode(bytes)
    }
}

impl ProposalAnswer {
    /// As it is sent.
    ///
    /// # Errors
    /// [`CodecError::Encode`] when it is too large.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        encode(self)
    }

    /// As it was sent.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<ProposalAnswer, CodecError> {
        decode(bytes)
    }
}

impl ReadIndexAnswer {
    /// As it is sent.
    ///
    /// # Errors
    /// None that can happen.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        encode(self)
    }

    /// As it was sent.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<ReadIndexAnswer, CodecError> {
        decode(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::types::{LeaderId, Membership};
    use openraft::entry::{EntryPayload, RaftEntry as _};

    fn id(index: u64) -> LogId {
        LogId::new(LeaderId { term: 1, node_id: 2 }, index)
    }

    fn vote() -> Vote {
        Vote { leader_id: LeaderId { term: 1, node_id: 2 }, committed: true }
    }

    #[test]
    fn messages_survive_the_round_trip() {
        let append = AppendCall {
            vote: vote(),
            previous: Some(id(4)),
            entries: vec![Entry::new(id(5), EntryPayload::Blank)],
            committed: None,
        };
        assert_eq!(AppendCall::decode(&append.encode().unwrap()).unwrap(), append);
        let answers = [
            AppendAnswer::Done,
            AppendAnswer::UpTo(Some(id(3))),
            AppendAnswer::Conflict,
            AppendAnswer::HigherVote(vote()),
        ];
        for answer in answers {
            assert_eq!(AppendAnswer::decode(&answer.encode().unwrap()).unwrap(), answer);
        }
        let asked = VoteCall { is_pre_vote: true, vote: vote(), last: Some(id(8)), is_transfer: false };
        assert_eq!(VoteCall::decode(&asked.encode().unwrap()).unwrap(), asked);
        let granted = VoteAnswer { vote: vote(), is_granted: true, last: None };
        assert_eq!(VoteAnswer::decode(&granted.encode().unwrap()).unwrap(), granted);
        let transfer = TransferCall { from: vote(), to: 3, last: Some(id(1)) };
        assert_eq!(TransferCall::decode(&transfer.encode().unwrap()).unwrap(), transfer);
        for answer in [TransferAnswer::Done, TransferAnswer::NotFlushed { expected: Some(id(2)), actual: None }] {
            assert_eq!(TransferAnswer::decode(&answer.encode().unwrap()).unwrap(), answer);
        }
        let membership = Membership::new_with_defaults(vec![[1, 2].into()], [3]);
        let last_membership = StoredMembership::new(Some(id(1)), membership);
        let head = SnapshotHead { vote: vote(), meta: SnapshotMeta { last_log_id: Some(id(9)), last_membership } };
        assert_eq!(SnapshotHead::decode(&head.encode().unwrap()).unwrap(), head);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let bytes = Proposal { commands: vec![Command::TouchAssets { keys: vec![vec![1; 30]] }] }.encode().unwrap();
        for length in 0..bytes.len() {
            assert!(Proposal::decode(&bytes[..length]).is_err(), "cut to {length} bytes");
        }
        assert!(ProposalAnswer::decode(&[3, 1]).is_err());
        assert!(AppendCall::decode(b"").is_err());
    }
}
