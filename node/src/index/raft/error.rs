//! Why the group did not do what it was asked for.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use casbah_cluster::codec::CodecError;
use casbah_cluster::membership::{NodeId, Protocol};

/// Why the group did not do what it was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GroupError {
    /// Too much waits already. Nothing was done; worth another try, a little later.
    #[error("too many commands wait for the group")]
    Busy,
    /// No leader is known, or the one that is cannot reach enough voters. Nothing was done.
    #[error("the group has no leader that a majority of its voters follows")]
    NoLeader,
    /// This node does not lead, which the call asks for. Nothing was done.
    #[error("this node does not lead the group")]
    NotLeader {
        /// Who does, as far as is known here.
        leader: Option<NodeId>,
    },
    /// This node does not have the log, or not all of it. Nothing was done; another node has it.
    #[error("this node does not have all of the log of the group")]
    NoLog,
    /// The leader changed or did not answer in time: the command may or may not have been done, or be done yet.
    #[error("the leader of the group changed or was lost; whether it has done this is not known")]
    Unknown,
    /// A command is larger than one may be. Nothing was done.
    #[error("the command takes {size_bytes} bytes where {limit_bytes} are allowed")]
    TooLarge {
        /// Its size.
        size_bytes: usize,
        /// The largest one.
        limit_bytes: usize,
    },
    /// Not all nodes know the command yet. Nothing was done.
    #[error(
        "nodes of the cluster do not know this yet: it works by version {protocol} of the peer protocol, which is older than {since}"
    )]
    TooEarly {
        /// By which version the cluster works.
        protocol: Protocol,
        /// Since which one the command is known.
        since: Protocol,
    },
    /// The node is stopping.
    #[error("the group is closed on this node")]
    Closed,
    /// The log or the state machine could not be written: this node takes no part any more until it is started again.
    #[error("the group has failed on this node")]
    Failed,
    /// A change of voters was asked for that cannot be.
    #[error("the voters cannot be changed so: {reason}")]
    Voters {
        /// As openraft has it.
        reason: Arc<str>,
    },
    /// What another node sent or what is on disk cannot be read.
    #[error("a record of the group cannot be used")]
    Record(#[source] Arc<CodecError>),
    /// A snapshot that does not hold what it should: cut off, or damaged.
    #[error("the snapshot is not whole")]
    Snapshot,
    /// A database or a file failed; the disk may be full or broken.
    #[error("the group's data failed")]
    Database(#[source] Arc<redb::Error>),
    /// A file failed; the disk may be full or broken.
    #[error("the group's files failed")]
    Io(#[source] Arc<io::Error>),
    /// Another process has the data open.
    #[error("the group's data is in use by another process")]
    InUse,
    /// The data is of a format that this version does not know.
    #[error("{} has format {found}, but this version of casbah reads format {expected}", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// As found.
        found: u64,
        /// As read.
        expected: u64,
    },
    /// The data is that of another node.
    #[error("{} is of node {found}, but this is node {expected}", path.display())]
    OtherNode {
        /// Which file.
        path: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who wants it.
        expected: NodeId,
    },
}

impl From<redb::Error> for GroupError {
    fn from(error: redb::Error) -> GroupError {
        match error {
            redb::Error::DatabaseAlreadyOpen => GroupError::InUse,
            error => GroupError::Database(Arc::new(error)),
        }
    }
}

impl From<CodecError> for GroupError {
    fn from(error: CodecError) -> GroupError {
        GroupError::Record(Arc::new(error))
    }
}

impl From<io::Error> for GroupError {
    fn from(error: io::Error) -> GroupError {
        GroupError::Io(Arc::new(error))
    }
}
