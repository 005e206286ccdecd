//! The settings as they are written in a file: what each means, and what it is when nobody sets it.
//!
//! This is the one source: the reference page, `casbah config init` and the check for unknown keys are made of these
//! structs and their comments. The first sentence of a comment is the summary.

use std::borrow::Cow;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::resolve::{Compression, ListenAddress, LogFormat, LogLevel, RebalancePolicy, Services, SyncPolicy};
use super::units::{ByteSize, TimeSpan};

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    /// The node itself.
    pub node: NodeSection,
    /// The blob store.
    pub store: StoreSection,
    /// The Remote Asset index.
    pub index: IndexSection,
    /// How much the node takes on at once.
    ///
    /// What is more waits its turn, the clients one after the other, and is told to come again (UNAVAILABLE) when that takes too
    /// long.
    pub limits: LimitsSection,
    /// The cluster that the node is a part of.
    ///
    /// Without `[peers]` the node is a cluster of one.
    pub cluster: ClusterSection,
    /// How copies get to the nodes that should have them: after a node was away or lost, and when nodes come, go or change.
    pub repair: RepairSection,
    /// The address for the other nodes of the cluster, over mutual TLS 1.3.
    ///
    /// `address`, `tls` and `authorities` are set together; without them the node is a cluster of one.
    pub peers: PeersSection,
    /// The pod of a Kubernetes StatefulSet that the node runs in.
    pub kubernetes: KubernetesSection,
    /// What is written to standard error.
    pub log: LogSection,
    /// The admin port: probes, metrics and a status page, in plain HTTP.
    ///
    /// Whoever reaches it may look. The cluster is changed there too (`casbah node drain` and its like), but only from this
    /// machine.
    pub admin: AdminSection,
    /// The addresses that clients connect to, one `[[listener]]` each.
    ///
    /// Without any, the node listens on `localhost:8980` in plaintext, where this machine alone reaches it, and
    /// everybody there may read and write.
    pub listener: Vec<ListenerSection>,
    /// The instance names that clients may send, one `[[instance]]` each.
    ///
    /// Results of actions and assets of one instance are not seen in another; blobs are shared by all. Without any, every
    /// name is served. With some, calls for other names are refused with INVALID_ARGUMENT.
    pub instance: Vec<InstanceSection>,
}

/// The node itself.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NodeSection {
    /// How people call it: letters, digits, `.`, `-` and `_`. Default: the host name.
    #[schemars(example = "node-1")]
    pub name: Option<String>,
    /// The directory that holds everything the node keeps; it is made if it is not there. Default:
    /// `$STATE_DIRECTORY` (which systemd sets), or else `/var/lib/casbah` for root and
    /// `$XDG_DATA_HOME/casbah` or `~/.local/share/casbah` for others.
    #[schemars(example = "/var/lib/casbah")]
    pub dir: Option<FilePath>,
}

/// The blob store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StoreSection {
    /// Bytes of disk that blobs may take. When they are used up, the least recently used blobs go.
    pub capacity: ByteSize,
    /// A blob used within this time is not evicted, so that a client that was told of it still finds it. Bazel counts
    /// on three hours. A store that is full of such blobs refuses uploads; 0s evicts whatever is oldest.
    pub retention_floor: TimeSpan,
    /// When written bytes are forced to the disk: at least this often, `"always"` (before every answer) or
    /// `"never"` (when the operating system sees fit). It is what a power failure may cost; a crash of the
    /// program costs nothing either way.
    pub sync_interval: SyncInterval,
    /// How new blobs are stored. With `"zstd"`, those that get an eighth smaller at least take less of the disk and of
    /// the capacity, and more time to store (about 5 s of CPU a GiB) and to read (about 1 s). What is stored already is
    /// read either way.
    pub compression: Compression,
}

/// The Remote Asset index.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IndexSection {
    /// Assets kept at the most, and as many results of actions; the least recently used go first.
    pub capacity: u64,
    /// Whether assets are fetched from what this node knows while the cluster has no leader, which may be behind. Without
    /// it, such fetches fail with UNAVAILABLE; pushes do either way.
    pub stale_reads: bool,
}

/// How much the node takes on at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSection {
    /// Bytes of memory that all calls under way may hold together: messages, pieces of blobs, what waits to be sent. In a cluster,
    /// a third of it is for what other nodes ask. One client may have half of what the others leave. The indexes and some caches
    /// come on top. Default: a quarter of the memory of this machine or container, from 256MiB to 2GiB.
    #[schemars(example = "1GiB")]
    pub memory: Option<ByteSize>,
    /// Calls that may wait for memory. Beyond that, calls are told at once to come again.
    pub waiting: u64,
    /// How long a call may wait for memory.
    pub patience: TimeSpan,
    /// How long a client may take nothing of an answer, or send nothing in the middle of a request, before the call is ended. A
    /// client takes something if it takes 256 KiB in this time.
    pub stall: TimeSpan,
}

/// The cluster that the node is a part of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterSection {
    /// Its name: letters, digits, `.`, `-` and `_`. Nodes that are told of different names never become one cluster.
    pub name: String,
    /// How many nodes keep a copy of each blob, where the cluster has as many. What the cluster was formed with counts.
    pub copies: u64,
    /// How many of them have a blob before its upload is acknowledged: that many less one may be lost at once without the
    /// loss of a blob. What the cluster was formed with counts. Default: more than half of `copies`.
    #[schemars(example = 2)]
    pub write_quorum: Option<u64>,
    /// How many fresh nodes, this one included, find one another before they form a cluster. All of them are told the
    /// same number. 1 forms a cluster of this node alone, 0 never forms one. Default: 0 where `join` is set, or else 1.
    #[schemars(example = 3)]
    pub bootstrap_expect: Option<u64>,
    /// Where other nodes of the cluster, or those that are to form it, may be found, `HOST:PORT` each. A name may stand for
    /// any number of addresses; the node's own may be among them.
    pub join: Vec<ListenAddress>,
    /// What fails together has the same zone, such as a rack or a building: letters, digits, `.`, `-` and `_`. Copies go to
    /// different zones where there are as many.
    pub zone: String,
    /// The node's share of the blobs, relative to that of others.
    pub weight: u64,
    /// When blobs are moved to a node that has joined, or for another weight or zone: `automatic` at once, `on_apply` when
    /// `casbah ring apply` says so. A node that leaves or is lost gives its part to others at once. What the cluster was
    /// formed with counts.
    pub rebalance: RebalancePolicy,
    /// How long a node is out of everybody's reach before its part of the blobs is given to others. It gets one again when it
    /// returns. `0s` never gives a node up. What the node that leads goes by counts: set it alike on all.
    pub lost_after: TimeSpan,
    /// How many nodes, beside those that vote, keep the assets and the log of their changes: each costs disk there, and the
    /// leader a stream. Nodes beyond these ask others for assets. At most 12; what the leading node is told counts.
    pub learners: u64,
}

/// How copies get to the nodes that should have them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RepairSection {
    /// Bytes that this node fetches from others, or gives them, in a second. While it has much to do for clients it takes less,
    /// down to an eighth.
    pub rate: ByteSize,
    /// How often the node compares what it has with what other nodes have. What it knows to be amiss it mends at once.
    pub interval: TimeSpan,
}

/// The address for the other nodes of the cluster.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PeersSection {
    /// `HOST:PORT` to listen on, `[::]` or `0.0.0.0` for every address of this machine. Default: none.
    #[schemars(example = "0.0.0.0:7980")]
    pub address: Option<ListenAddress>,
    /// `HOST:PORT` by which the others reach it. A name is looked up again whenever a connection is made. Default: the node's
    /// name, and the port of `address`.
    #[schemars(example = "node-1.example.org:7980")]
    pub advertise: Option<ListenAddress>,
    /// The source address of connections to other nodes, such as `10.0.0.1`: of use where a machine has several, and firewalls
    /// expect one of them. Default: the system's choice.
    #[schemars(example = "10.0.0.1")]
    pub dial_from: Option<IpAddr>,
    /// The certificate the node shows to others, as their server and as their client, `{ certificate = "peer.crt", key =
    /// "peer.key" }`. Both files are read again when they change.
    pub tls: Option<TlsSection>,
    /// PEM certificates of the authorities for nodes: who holds a certificate that one of them issued is a peer, whatever
    /// name is in it. They issue no certificates for clients. Read again when it changes.
    #[schemars(example = "peers-ca.crt")]
    pub authorities: Option<FilePath>,
}

/// The pod of a Kubernetes StatefulSet that the node runs in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KubernetesSection {
    /// How long a node may take to leave its cluster when its pod is removed for good: when it is told to stop, and the StatefulSet
    /// has no place for it any more, as the API server says. What the node has is then moved to others, and it is taken out of the
    /// cluster. `node.name` is the name of the pod, such as `casbah-3`. 0s: nobody is asked, and every stop is a restart.
    pub drain_deadline: TimeSpan,
}

/// What is written to standard error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// The least severe level that is written. The environment variable `CASBAH_LOG` overrides it with finer
    /// filters, such as `info,casbah::store=trace`.
    pub level: LogLevel,
    /// For eyes or for machines.
    pub format: LogFormat,
}

/// The admin port: probes, metrics and a status page, in plain HTTP.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdminSection {
    /// `HOST:PORT`, as for listeners. An address that other machines reach shows them names, addresses and numbers, but no
    /// blob. Default: none, and there is no such port.
    #[schemars(example = "localhost:8982")]
    pub address: Option<ListenAddress>,
}

/// An address that clients connect to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ListenerSection {
    /// `HOST:PORT`. `localhost` stands for 127.0.0.1 and ::1, `[::]` for every address of this machine, port 0 for any
    /// free one.
    pub address: ListenAddress,
    /// The certificate this listener shows, `{ certificate = "server.crt", key = "server.key" }`. Both files are read
    /// again when they change. Default: none, and the listener speaks plaintext.
    pub tls: Option<TlsSection>,
    /// Who may connect.
    pub clients: ClientPolicy,
    /// PEM certificates one after the other, of which each is accepted, and so is one that it signed. Read again when it
    /// changes. Only with `clients = "certificate"`.
    #[schemars(example = "authorized.crt")]
    pub authorized: Option<FilePath>,
    /// PEM certificates of authorities: a client certificate that one of them issued is accepted. Read again when it
    /// changes. Only with `clients = "certificate"`.
    #[schemars(example = "ca.crt")]
    pub authorities: Option<FilePath>,
    /// What clients may do here.
    pub allow: Vec<Permission>,
    /// What is served.
    pub services: Services,
    /// Whether clients that may read can ask for the descriptions of the services (gRPC reflection, v1 and v1alpha), as
    /// grpcurl does.
    pub reflection: bool,
    /// After about this time (10 % more or less, drawn for each connection), a client is asked to connect again; what is
    /// under way on the old connection is finished first. Clients behind a balancer come to other nodes in this way, for
    /// which `1h` is enough. Some clients, those that are made with tonic among them, let one call fail then, which they
    /// have to try again. 0s: never.
    pub connection_age: TimeSpan,
    /// Allows plaintext with more than reading on an address that other machines reach. Anybody on the network can then
    /// replace what is in the cache.
    pub insecure: bool,
}

/// An instance name.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InstanceSection {
    /// As clients send it (Bazel: `--remote_instance_name`). It may have slashes. `""` is the name of clients that send
    /// none.
    #[schemars(example = "team/a")]
    pub name: Option<String>,
}

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSection {
    /// PEM, the server's own certificate first, then those between it and its authority.
    #[schemars(example = "server.crt")]
    pub certificate: Option<FilePath>,
    /// PEM: PKCS#8, PKCS#1 or SEC1.
    #[schemars(example = "server.key")]
    pub key: Option<FilePath>,
}

/// Who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientPolicy {
    /// No certificate is asked for.
    Anyone,
    /// Clients show a certificate that `authorized` or `authorities` knows.
    Certificate,
}

/// A thing clients may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    /// Find, read and fetch.
    Read,
    /// Upload, update and push.
    Write,
    /// Operate the node.
    Admin,
}

/// A path. In a file it is relative to the directory of that file, elsewhere to the current directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct FilePath(PathBuf);

/// [`SyncPolicy`] as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncInterval(pub SyncPolicy);

// === defaults ===

impl Default for StoreSection {
    fn default() -> StoreSection {
        StoreSection {
            capacity: ByteSize::from_bytes(50 << 30),
            retention_floor: TimeSpan::from_hours(3),
            sync_interval: SyncInterval(SyncPolicy::Interval(TimeSpan::from_millis(50).duration())),
            compression: Compression::None,
        }
    }
}

impl Default for IndexSection {
    fn default() -> IndexSection {
        IndexSection { capacity: 1_000_000, stale_reads: true }
    }
}

impl Default for LimitsSection {
    fn default() -> LimitsSection {
        LimitsSection {
            memory: None,
            waiting: 1024,
            patience: TimeSpan::from_millis(10_000),
            stall: TimeSpan::from_millis(60_000),
        }
    }
}

impl Default for ClusterSection {
    fn default() -> ClusterSection {
        ClusterSection {
            name: "casbah".into(),
            copies: 2,
            write_quorum: None,
            bootstrap_expect: None,
            join: Vec::new(),
            zone: String::new(),
            weight: 100,
            rebalance: RebalancePolicy::Automatic,
            lost_after: TimeSpan::from_millis(10 * 60 * 1000),
            learners: 12,
        }
    }
}

impl Default for RepairSection {
    fn default() -> RepairSection {
        RepairSection { rate: ByteSize::from_bytes(64 << 20), interval: TimeSpan::from_millis(60_000) }
    }
}

impl Default for KubernetesSection {
    fn default() -> KubernetesSection {
        KubernetesSection { drain_deadline: TimeSpan::from_millis(0) }
    }
}

impl Default for LogSection {
    fn default() -> LogSection {
        LogSection { level: LogLevel::Info, format: LogFormat::Text }
    }
}

impl Default for ListenerSection {
    fn default() -> ListenerSection {
        ListenerSection {
            address: ListenAddress { host: "localhost".into(), port: 8980 },
            tls: None,
            clients: ClientPolicy::Anyone,
            authorized: None,
            authorities: None,
            allow: vec![Permission::Read],
            services: Services::All,
            reflection: false,
            connection_age: TimeSpan::from_millis(0),
            insecure: false,
        }
    }
}

// === impl FilePath ===

impl FilePath {
    /// This path.
    pub fn new(path: impl Into<PathBuf>) -> FilePath {
        FilePath(path.into())
    }

    /// As the standard library has it.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl<'de> Deserialize<'de> for FilePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<FilePath, D::Error> {
        let path = PathBuf::deserialize(deserializer)?;
        if path.as_os_str().is_empty() {
            return Err(de::Error::custom("a path cannot be empty"));
        }
        if path.starts_with("~") {
            return Err(de::Error::custom("`~` is not expanded here; write the whole path"));
        }
        Ok(FilePath(path))
    }
}

impl JsonSchema for FilePath {
    fn schema_name() -> Cow<'static, str> {
        "FilePath".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "path" })
    }
}

// === impl SyncInterval ===

impl Serialize for SyncInterval {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            SyncPolicy::Always => serializer.serialize_str("always"),
            SyncPolicy::Never => serializer.serialize_str("never"),
            SyncPolicy::Interval(interval) => {
                let millis = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
                serializer.collect_str(&TimeSpan::from_millis(millis))
            }
        }
    }
}

impl<'de> Deserialize<'de> for SyncInterval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SyncInterval, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        match text.as_ref() {
            "always" => Ok(SyncInterval(SyncPolicy::Always)),
            "never" => Ok(SyncInterval(SyncPolicy::Never)),
            interval => {
                let span: TimeSpan = interval.parse().map_err(|_| {
                    de::Error::custom(format_args!(
                        "\"{text}\" is neither a time such as 50ms, nor \"always\" or \"never\""
                    ))
                })?;
                Ok(SyncInterval(SyncPolicy::Interval(span.duration())))
            }
        }
    }
}

impl JsonSchema for SyncInterval {
    fn schema_name() -> Cow<'static, str> {
        "SyncInterval".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "duration, always or never" })
    }
}
