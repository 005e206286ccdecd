//! What the nodes of a cluster agree on one after the other: commands, in a log that openraft replicates.
//!
//! Everything of openraft's that is written to disk or sent is turned into records of our own here, so that a new version
//! of it changes no format. Applying a command reads no clock and no random number: all nodes come to the same state.

mod command;
mod messages;
mod reading;
mod record;
mod types;

pub use command::{
    Batch, COMMAND_BYTES_MAX, COMMANDS_PER_ENTRY_MAX, Command, ENTRY_BYTES_MAX, MemberCommand, MemberReply, Replies,
    Reply, apply_member,
};
pub use messages::{
    AppendAnswer, AppendCall, Proposal, ProposalAnswer, ReadIndexAnswer, SnapshotAnswer, SnapshotHead, SnapshotPart,
    SnapshotRecord, TransferAnswer, TransferCall, VoteAnswer, VoteCall,
};
pub use reading::{ReadAnswer, ReadCall};
pub use record::{
    decode_entry, decode_log_id, decode_membership, decode_vote, encode_entry, encode_log_id, encode_membership,
    encode_vote,
};
pub use types::{Entry, LeaderId, LogId, Membership, SnapshotMeta, StoredMembership, TypeConfig, Vote};
