//! The checked configuration.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Everything a node needs to know to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The node itself.
    pub node: NodeConfig,
    /// The blob store.
    pub store: StoreConfig,
    /// The Remote Asset index.
    pub index: IndexConfig,
    /// How much it takes on at once.
    pub limits: LimitsConfig,
    /// The cluster that the node is a part of.
    pub cluster: ClusterConfig,
    /// How copies get to the nodes that should have them.
    pub repair: RepairConfig,
    /// How it reaches the other nodes, and they it; `None`: it is a cluster of one.
    pub peers: Option<PeersConfig>,
    /// The pod that it runs in, if it is to leave its cluster with it; `None`: every stop is a restart.
    pub pod: Option<PodConfig>,
    /// At least one.
    pub listeners: Vec<ListenerConfig>,
    /// The instance names that are served.
    pub instances: InstanceNames,
    /// What is written to standard error.
    pub log: LogConfig,
    /// Where the admin port is; `None`: there is none.
    pub admin: Option<ListenAddress>,
}

/// The node itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// How people call it.
    pub name: String,
    /// The directory that holds everything the node keeps. One process owns it at a time.
    pub dir: PathBuf,
}

/// The blob store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// Bytes of disk that blobs may take.
    pub capacity_bytes: u64,
    /// A blob used within this time is not evicted.
    pub retention_floor: Duration,
    /// When written bytes are forced to the disk.
    pub sync: SyncPolicy,
    /// How new blobs are stored.
    pub compression: Compression,
}

/// How new blobs are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As they are.
    None,
    /// Compressed with zstd, those that get an eighth smaller at least.
    Zstd,
}

/// When written bytes are forced to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncPolicy {
    /// Before every answer.
    Always,
    /// In groups, at least this often.
    Interval(Duration),
    /// When the operating system sees fit.
    Never,
}

/// The Remote Asset index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexConfig {
    /// Assets kept at the most; the least recently fetched go first.
    pub capacity: u64,
    /// Whether assets are fetched from what this node knows while no leader can be found.
    pub stale_reads: bool,
}

/// How much a node takes on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitsConfig {
    /// What all calls under way may hold.
    pub memory_bytes: u64,
    /// How many calls may wait for it.
    pub waiting: usize,
    /// How long each may.
    pub patience: Duration,
    /// How long a client may take nothing of an answer, or send nothing in the middle of a request.
    pub stall: Duration,
}

/// The cluster that a node is a part of, as it is told; what the cluster was formed with counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Nodes of two names never become one cluster.
    pub name: String,
    /// Copies of a blob, where there are as many nodes; at least 1.
    pub copies: u8,
    /// Copies that make an upload acknowledged; from 1 to `copies`.
    pub write_quorum: u8,
    /// Fresh nodes that form a cluster together; 0: this one never forms one.
    pub bootstrap_expect: u32,
    /// Where others may be found. Each may stand for several nodes, this one among them.
    pub join: Vec<ListenAddress>,
    /// What fails together with the node; may be empty.
    pub zone: String,
    /// The node's share, relative to others; at least 1.
    pub weight: u32,
    /// When blobs are moved.
    pub rebalance: RebalancePolicy,
    /// How long a node is out of reach before it is given up; `None`: for ever.
    pub lost_after: Option<Duration>,
    /// Nodes that have the log and do not vote, at the most, where this node leads.
    pub learners: u32,
}

/// How copies get to the nodes that should have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairConfig {
    /// Bytes that are moved in a second.
    pub rate_bytes: u64,
    /// How often everything is compared.
    pub interval: Duration,
}

/// When blobs are moved to where members want them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RebalancePolicy {
    /// At once.
    Automatic,
    /// When `casbah ring apply` says so.
    OnApply,
}

/// How a node reaches its peers, and they it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeersConfig {
    /// Where it listens.
    pub address: ListenAddress,
    /// By what the others reach it: a name or an address, and a port that is not 0.
    pub advertise: ListenAddress,
    /// The source address of connections to other nodes; `None`: the system's choice.
    pub dial_from: Option<IpAddr>,
    /// The certificate it shows, as a server and as a client.
    pub tls: TlsConfig,
    /// PEMs of the authorities for nodes. Read again when it changes.
    pub authorities: PathBuf,
}

/// The pod of a StatefulSet that a node runs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodConfig {
    /// The name of the StatefulSet.
    pub stateful_set: String,
    /// The number of the pod in it.
    pub ordinal: u32,
    /// How long the node may take to leave.
    pub drain_deadline: Duration,
}

/// One address that clients connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Where.
    pub address: ListenAddress,
    /// `None`: plaintext.
    pub tls: Option<TlsConfig>,
    /// Who may connect.
    pub clients: Clients,
    /// What they may do.
    pub allow: Permissions,
    /// What is served.
    pub services: Services,
    /// Whether the services describe themselves.
    pub reflection: bool,
    /// After about how long a client is asked to connect again; `None`: never.
    pub connection_age: Option<Duration>,
}

/// The instance names that are served.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum InstanceNames {
    /// Every one.
    #[default]
    Any,
    /// These.
    Listed(BTreeSet<String>),
}

/// A host and a port. `localhost` stands for both loopback addresses; port 0 for any free one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenAddress {
    /// A name or an IP address, without brackets.
    pub host: String,
    /// 0: any free port, the same on every address the host stands for.
    pub port: u16,
}

/// The certificate a listener or a node shows. Both files are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// PEM, the chain with the server's own certificate first.
    pub certificate: PathBuf,
    /// PEM, PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// Who may connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clients {
    /// No certificate is asked for.
    Anyone,
    /// A certificate that these files know; at least one is given.
    Certificate {
        /// PEMs one after the other: each is accepted itself, and so is one that it signed.
        authorized: Option<PathBuf>,
        /// PEMs of certificate authorities: one that they issued is accepted.
        authorities: Option<PathBuf>,
    },
}

/// What the clients of a listener may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Permissions {
    /// Find, read and fetch.
    pub read: bool,
    /// Upload, update and push.
    pub write: bool,
    /// Operate the node.
    pub admin: bool,
}

/// What a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Services {
    /// Blobs and assets.
    All,
    /// Blobs alone.
    Storage,
    /// Assets alone; the blobs they name live elsewhere.
    Index,
}

/// What is written to standard error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// The least severe level that is written.
    pub level: LogLevel,
    /// For eyes or for machines.
    pub format: LogFormat,
}

/// Severity, most severe first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Something was lost or refused that should not have been.
    Error,
    /// Something is off, and it was worked around.
    Warn,
    /// What an operator wants to have seen.
    Info,
    /// One line a request.
    Debug,
    /// Everything.
    Trace,
}

/// For eyes or for machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line of text.
    Text,
    /// A line of JSON.
    Json,
}

impl std::fmt::Display for ListenAddress {
    /// As written in a URL: IPv6 addresses in brackets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}
