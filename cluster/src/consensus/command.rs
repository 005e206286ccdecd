//! What can be done to the index and to the cluster, and what comes of it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::asset::Moment;
use crate::membership::{ClusterState, Epoch, Joiner, NodeId, Part, Protocol, Refusal};

/// Bytes that one command may take, keys and records counted: the largest asset has some 800 KB.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;

/// Commands of one entry: enough that the disk's and the network's latency is shared by many, few enough to answer soon.
pub const COMMANDS_PER_ENTRY_MAX: usize = 256;

/// Bytes that the commands of one entry may take together: an entry fits a record of the codec, and a message, whole.
pub const ENTRY_BYTES_MAX: usize = 1 << 20;

/// What a command takes beside its keys and records, roughly.
const OVERHEAD_BYTES: usize = 64;

/// One thing to do. Part of the format of the log: see [`encode_entry`](super::encode_entry). A new one stands behind all others,
/// and is proposed when all nodes know it: see [`Command::since`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Records an asset under each of these keys, in place of what is there. A use of it.
    PutAssets {
        /// Canonical keys.
        keys: Vec<Vec<u8>>,
        /// The encoded record.
        record: Vec<u8>,
        /// From when on it may be removed.
        ends_at: Option<Moment>,
    },
    /// Makes these the assets used last, in this order. Those that are not there are passed over.
    TouchAssets {
        /// Canonical keys.
        keys: Vec<Vec<u8>>,
    },
    /// Removes assets that have ended, a bounded number of them.
    ExpireAssets {
        /// By the clock of whoever proposes it.
        now: Moment,
    },
    /// Changes what the nodes agree on about themselves.
    Member(MemberCommand),
}

/// A change of the cluster's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberCommand {
    /// The first state there is. Changes nothing in a cluster that has one.
    Form {
        /// The cluster as it begins.
        state: ClusterState,
    },
    /// Lets a node in: [`ClusterState::admit`].
    Admit {
        /// Who it is.
        joiner: Joiner,
        /// The member whose place it may take, as it is gone.
        replaces: Option<NodeId>,
    },
    /// Takes a node out: [`ClusterState::remove`].
    Remove {
        /// Which one.
        node: NodeId,
        /// Even if it has a part of the blobs.
        force: bool,
    },
    /// Places blobs on the members there are: [`ClusterState::begin`].
    Begin,
    /// A node has all that a layout gives it: [`ClusterState::synced`].
    Synced {
        /// Which one.
        node: NodeId,
        /// The layout.
        epoch: Epoch,
    },
    /// Notes a node's part in the group: [`ClusterState::set_part`].
    SetPart {
        /// Which one.
        node: NodeId,
        /// What it is.
        part: Part,
    },
    /// Asks a node to leave: [`ClusterState::drain`].
    Drain {
        /// Which one.
        node: NodeId,
    },
    /// Has it stay: [`ClusterState::undrain`].
    Undrain {
        /// Which one.
        node: NodeId,
    },
    /// Gives up a node: [`ClusterState::lost`].
    Lost {
        /// Which one.
        node: NodeId,
    },
    /// It is there again: [`ClusterState::returned`].
    Returned {
        /// Which one.
        node: NodeId,
    },
    /// Makes the layout that was planned: [`ClusterState::apply`].
    Apply {
        /// As which it was planned.
        epoch: Epoch,
    },
}

/// The commands of one entry, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Batch {
    /// Assets that are kept, by the configuration of the leader that has written the entry: all nodes evict alike.
    pub index_capacity: u64,
    /// At most [`COMMANDS_PER_ENTRY_MAX`] of at most [`ENTRY_BYTES_MAX`].
    pub commands: Vec<Command>,
}

/// What came of one command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// How many assets were there and are gone.
    Removed {
        /// Of those named, or of those that had ended.
        count: u64,
    },
    /// Of a change of the cluster's state.
    Member(MemberReply),
}

/// What came of a change of the cluster's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberReply {
    /// It is as asked for.
    Done,
    /// The cluster has been formed before, and remains as it is.
    FormedAlready,
    /// There is no cluster yet.
    NotFormed,
    /// A node is in, under this id.
    Admitted {
        /// New, or the one that it had.
        node: NodeId,
    },
    /// It remains as it is.
    Refused(Refusal),
}

/// What came of the commands of one entry, in their order. Empty for entries without commands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Replies {
    /// One each.
    pub replies: Vec<Reply>,
}

// === impl Command ===

impl Command {
    /// Commands that put this record under all these keys, each within [`COMMAND_BYTES_MAX`].
    #[must_use]
    pub fn put_assets(keys: Vec<Vec<u8>>, record: &[u8], ends_at: Option<Moment>) -> Vec<Command> {
        let whole = |keys| Command::PutAssets { keys, record: record.to_vec(), ends_at };
        cut(keys, COMMAND_BYTES_MAX.saturating_sub(record.len() + OVERHEAD_BYTES)).into_iter().map(whole).collect()
    }

    /// Commands that touch all these keys, each within [`COMMAND_BYTES_MAX`].
    #[must_use]
    pub fn touch_assets(keys: Vec<Vec<u8>>) -> Vec<Command> {
        let cut = cut(keys, COMMAND_BYTES_MAX.saturating_sub(OVERHEAD_BYTES));
        cut.into_iter().map(|keys| Command::TouchAssets { keys }).collect()
    }

    /// The version of the peer protocol since which nodes know it: it is not proposed in a cluster that works by an older one.
    #[must_use]
    pub fn since(&self) -> Protocol {
        match self {
            Command::PutAssets { .. } | Command::TouchAssets { .. } | Command::ExpireAssets { .. } => Protocol(1),
            Command::Member(command) => command.since(),
        }
    }

    /// What it takes of [`COMMAND_BYTES_MAX`] and [`ENTRY_BYTES_MAX`].
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let keys_bytes = |keys: &[Vec<u8>]| keys.iter().map(|key| key_bytes(key)).sum::<usize>();
        OVERHEAD_BYTES
            + match self {
                Command::PutAssets { keys, record, .. } => keys_bytes(keys) + record.len(),
                Command::TouchAssets { keys } => keys_bytes(keys),
                Command::ExpireAssets { .. } => 0,
                Command::Member(command) => command.size_bytes(),
            }
    }
}

/// A key takes its length as well.
fn key_bytes(key: &[u8]) -> usize {
    key.len() + size_of::<u64>()
}

/// Cuts a list of keys into parts of at most so many bytes, each of one key at least.
fn cut(keys: Vec<Vec<u8>>, part_bytes: usize) -> Vec<Vec<Vec<u8>>> {
    let mut parts = Vec::new();
    let (mut part, mut bytes) = (Vec::new(), 0);
    for key in keys {
        let more = key_bytes(&key);
        if !part.is_empty() && bytes + more > part_bytes {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        bytes += more;
        part.push(key);
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

// === impl MemberCommand ===

impl MemberCommand {
    fn since(&self) -> Protocol {
        match self {
            MemberCommand::Form { .. }
            | MemberCommand::Admit { .. }
            | MemberCommand::Remove { .. }
            | MemberCommand::Begin
            | MemberCommand::Synced { .. }
            | MemberCommand::SetPart { .. }
            | MemberCommand::Drain { .. }
            | MemberCommand::Undrain { .. }
            | MemberCommand::Lost { .. }
            | MemberCommand::Returned { .. }
            | MemberCommand::Apply { .. } => Protocol(1),
        }
    }

    fn size_bytes(&self) -> usize {
        match self {
            MemberCommand::Form { state } => {
                let members =
                    state.members.values().map(|member| member.name.len() + member.address.len() + member.zone.len());
                let nodes = state.layouts.iter().flat_map(|layout| layout.nodes.values()).map(|node| node.zone.len());
                members.chain(nodes).map(|bytes| bytes + OVERHEAD_BYTES).sum::<usize>() + state.name.len()
            }
            MemberCommand::Admit { joiner, .. } => joiner.name.len() + joiner.address.len() + joiner.zone.len(),
            MemberCommand::Remove { .. }
            | MemberCommand::Begin
            | MemberCommand::Synced { .. }
            | MemberCommand::SetPart { .. }
            | MemberCommand::Drain { .. }
            | MemberCommand::Undrain { .. }
            | MemberCommand::Lost { .. }
            | MemberCommand::Returned { .. }
            | MemberCommand::Apply { .. } => 0,
        }
    }
}

/// What a change makes of the cluster's state: the state that follows, if it changes, and the reply.
#[must_use]
pub fn apply_member(state: Option<&ClusterState>, command: &MemberCommand) -> (Option<ClusterState>, MemberReply) {
    let Some(before) = state else {
        return match command {
            MemberCommand::Form { state } => (Some(state.clone()), MemberReply::Done),
            _ => (None, MemberReply::NotFormed),
        };
    };
    let mut after = before.clone();
    let done = |()| MemberReply::Done;
    let outcome = match command {
        MemberCommand::Form { .. } => Ok(MemberReply::FormedAlready),
        MemberCommand::Admit { joiner, replaces } => {
            after.admit(joiner.clone(), *replaces).map(|node| MemberReply::Admitted { node })
        }
        MemberCommand::Remove { node, force } => after.remove(*node, *force).map(done),
        MemberCommand::Drain { node } => after.drain(*node).map(done),
        MemberCommand::Undrain { node } => after.undrain(*node).map(done),
        MemberCommand::Lost { node } => after.lost(*node).map(done),
        MemberCommand::Returned { node } => after.returned(*node).map(done),
        MemberCommand::Apply { epoch } => after.apply(*epoch).map(done),
        MemberCommand::Synced { node, epoch } => after.synced(*node, *epoch).map(done),
        MemberCommand::Begin => {
            after.begin();
            Ok(MemberReply::Done)
        }
        MemberCommand::SetPart { node, part } => {
            after.set_part(*node, *part);
            Ok(MemberReply::Done)
        }
    };
    let changed = after != *before;
    (changed.then_some(after), outcome.unwrap_or_else(MemberReply::Refused))
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} commands", self.commands.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::{ClusterId, Protocols, VolumeId};

    fn keys(count: usize, bytes: usize) -> Vec<Vec<u8>> {
        (0..count).map(|number| vec![u8::try_from(number % 256).unwrap(); bytes]).collect()
    }

    #[test]
    fn a_push_of_many_long_keys_is_cut_and_loses_none() {
        let all = keys(1_000, 60_000);
        let commands = Command::put_assets(all.clone(), &vec![1; 800_000], None);
        assert!(commands.iter().all(|command| command.size_bytes() <= COMMAND_BYTES_MAX));
        let put: Vec<Vec<u8>> = commands
            .into_iter()
            .flat_map(|command| match command {
                Command::PutAssets { keys, .. } => keys,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(put, all);
    }

    #[test]
    fn short_keys_stay_together_and_none_make_no_command() {
        assert_eq!(Command::touch_assets(keys(1_000, 100)).len(), 1);
        assert_eq!(Command::touch_assets(Vec::new()), []);
        assert_eq!(Command::put_assets(keys(3, 10), b"record", None).len(), 1);
    }

    #[test]
    fn what_is_done_to_the_cluster_is_answered_and_what_changes_nothing_makes_no_state() {
        let joiner = |name: &str| Joiner {
            name: name.to_owned(),
            address: format!("{name}.test:7980"),
            volume: VolumeId([u8::try_from(name.len()).unwrap(); 16]),
            zone: String::new(),
            weight: 100,
            protocols: Protocols::SPOKEN,
        };
        let formed = ClusterState::formed(ClusterId([1; 16]), "farm".to_owned(), (2, 2), 1, joiner("a"));
        let admit = MemberCommand::Admit { joiner: joiner("bb"), replaces: None };
        assert_eq!(apply_member(None, &admit), (None, MemberReply::NotFormed));
        let form = MemberCommand::Form { state: formed.clone() };
        assert_eq!(apply_member(None, &form), (Some(formed.clone()), MemberReply::Done));
        assert_eq!(apply_member(Some(&formed), &form), (None, MemberReply::FormedAlready));

        let (two, reply) = apply_member(Some(&formed), &admit);
        let two = two.unwrap();
        assert_eq!((two.layouts.len(), reply), (2, MemberReply::Admitted { node: NodeId(2) }));
        assert_eq!(apply_member(Some(&two), &admit), (None, MemberReply::Admitted { node: NodeId(2) }));
        let refused = MemberReply::Refused(Refusal::UnknownNode { node: NodeId(9) });
        assert_eq!(apply_member(Some(&two), &MemberCommand::Remove { node: NodeId(9), force: true }), (None, refused));
        let part = MemberCommand::SetPart { node: NodeId(2), part: Part::Learner };
        assert_eq!(apply_member(Some(&two), &part).0.unwrap().members[&NodeId(2)].part, Part::Learner);
        for node in [NodeId(1), NodeId(2)] {
            let synced = MemberCommand::Synced { node, epoch: Epoch(2) };
            assert_eq!(apply_member(Some(&two), &synced).1, MemberReply::Done);
        }
        assert_eq!(apply_member(Some(&two), &MemberCommand::Begin), (None, MemberReply::Done));
    }

    #[test]
    fn the_largest_key_and_record_fit_one_command() {
        let commands = Command::put_assets(keys(1, crate::asset::MAX_KEY_BYTES), &vec![1; 900_000], None);
        assert!(commands.iter().all(|command| command.size_bytes() <= COMMAND_BYTES_MAX));
    }
}
