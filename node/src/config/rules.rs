//! From the settings as written to the checked configuration: what must hold between them.

use std::collections::BTreeSet;
use std::time::Duration;

use super::cluster_rules::BrokenCluster;
use super::error::{ConfigError, Problem};
use super::file::{ClientPolicy, File, FilePath, ListenerSection, Permission, TlsSection};
use super::keys::{KeyPath, Segment};
use super::layers::Layers;
use super::resolve::{
    Clients, Config, IndexConfig, InstanceNames, LimitsConfig, ListenAddress, ListenerConfig, LogConfig, NodeConfig,
    Permissions, StoreConfig, SyncPolicy, TlsConfig,
};
use super::units::ByteSize;

/// A store below this size holds no build: its own segments would not fit.
pub const STORE_CAPACITY_MIN: ByteSize = ByteSize::from_bytes(1_000_000);

/// Writes that wait longer than this for the disk are better told so by name: `"never"`.
const SYNC_INTERVAL_MAX_SECONDS: u64 = 60;

/// With less memory for calls, the largest messages would not fit, and hardly two clients would have a place.
pub const LIMITS_MEMORY_MIN: ByteSize = ByteSize::from_bytes(32 << 20);

/// Clients on busy machines pause for as long.
const STALL_MIN: Duration = Duration::from_secs(1);

/// A connection that ends sooner than this costs more than it is good for.
const CONNECTION_AGE_MIN: Duration = Duration::from_secs(1);

/// Instance names are part of every key of the indexes.
const INSTANCE_NAME_BYTES_MAX: usize = 255;

/// Segments that no instance name may have: in resource names they end it.
pub const RESERVED_SEGMENTS: [&str; 8] =
    ["blobs", "uploads", "actions", "actionResults", "operations", "capabilities", "compressed-blobs", "executions"];

/// Longer names do not fit where names of hosts go.
const NODE_NAME_MAX: usize = 253;

/// A rule that is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// A name that cannot be part of a host name or of a path.
    #[error("\"{name}\" is not a name for a node")]
    NodeName {
        /// As it was given.
        name: String,
    },
    /// Too small a store.
    #[error("{given} is less than the smallest store, {STORE_CAPACITY_MIN}")]
    CapacityTooSmall {
        /// As it was given.
        given: ByteSize,
    },
    /// An index that keeps nothing.
    #[error("an index for 0 assets keeps nothing")]
    IndexEmpty,
    /// Too little memory for calls.
    #[error("{given} is less than calls need, {LIMITS_MEMORY_MIN}")]
    LimitsMemory {
        /// As it was given.
        given: ByteSize,
    },
    /// No pause at all.
    #[error("clients may pause for {}s at least", STALL_MIN.as_secs())]
    Stall,
    /// No time between two writes to the disk, or too much.
    #[error("the interval is not between 1ms and {SYNC_INTERVAL_MAX_SECONDS}s")]
    SyncInterval,
    /// Half of a TLS configuration.
    #[error("tls has no {missing}")]
    TlsHalf {
        /// `certificate` or `key`.
        missing: &'static str,
    },
    /// Client certificates over plaintext.
    #[error("clients cannot show certificates without tls")]
    ClientsNeedTls,
    /// Client certificates that nobody vouches for.
    #[error("no client certificate is known, so nobody could connect")]
    ClientsUnknown,
    /// A trust file that is not used.
    #[error("{key} has no effect where anyone may connect")]
    TrustUnused {
        /// `authorized` or `authorities`.
        key: &'static str,
    },
    /// No permission at all.
    #[error("nothing is allowed here")]
    NothingAllowed,
    /// Anybody on the network could replace what is in the cache.
    #[error("{address} is plaintext, can be reached from other machines, and allows {allowed}")]
    PlaintextWriting {
        /// The address.
        address: ListenAddress,
        /// `write` or `admin`.
        allowed: &'static str,
    },
    /// Connections that end as soon as they are made.
    #[error("connections cannot be younger than {}s", CONNECTION_AGE_MIN.as_secs())]
    ConnectionAge,
    /// An instance without a name.
    #[error("the instance has no name")]
    InstanceNameless,
    /// An instance that no resource name could name.
    #[error("\"{name}\" is not a name for an instance")]
    InstanceName {
        /// As it was given.
        name: String,
    },
    /// An instance that is there twice.
    #[error("the instance \"{name}\" is there already")]
    InstanceTwice {
        /// As it was given.
        name: String,
    },
    /// What concerns the cluster and its peers.
    #[error(transparent)]
    Cluster(#[from] BrokenCluster),
    /// Two listeners that cannot both be.
    #[error("{address} is taken by the {what} on {other}")]
    AddressTaken {
        /// The second.
        address: ListenAddress,
        /// What is there.
        what: &'static str,
        /// The first.
        other: ListenAddress,
    },
}

/// Checks everything.
pub(super) fn check(file: &File, layers: &Layers) -> Result<Config, Vec<ConfigError>> {
    let mut checker = Checker { layers, errors: Vec::new() };
    let config = Config {
        node: checker.node(file),
        store: checker.store(file),
        index: checker.index(file),
        limits: checker.limits(file),
        cluster: checker.cluster(file),
        repair: checker.repair(file),
        peers: checker.peers(file),
        pod: checker.pod(file),
        listeners: checker.listeners(file),
        instances: checker.instances(file),
        log: LogConfig { level: file.log.level, format: file.log.format },
        admin: file.admin.address.clone(),
    };
    if checker.errors.is_empty() { Ok(config) } else { Err(checker.errors) }
}

pub(super) struct Checker<'a> {
    pub(super) layers: &'a Layers,
    errors: Vec<ConfigError>,
}

// === impl Broken ===

impl Broken {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Broken::NodeName { .. } => "use letters, digits, `.`, `-` and `_`".into(),
            Broken::CapacityTooSmall { .. } => "a few GB hold a project, some hundred GB a team's builds".into(),
            Broken::IndexEmpty => "leave it out for 1000000".into(),
            Broken::LimitsMemory { .. } => "leave it out for a quarter of what there is".into(),
            Broken::Stall => "leave it out for a minute".into(),
            Broken::SyncInterval => {
                "write \"always\" to sync before every answer, \"never\" to leave it to the system".into()
            }
            Broken::TlsHalf { .. } | Broken::ClientsNeedTls => {
                "set tls = { certificate = \"server.crt\", key = \"server.key\" }".into()
            }
            Broken::ClientsUnknown => {
                "set authorized to a file of client certificates, or authorities to one of their \
                                       authorities"
                    .into()
            }
            Broken::TrustUnused { .. } => "set clients = \"certificate\" too".into(),
            Broken::NothingAllowed => "set allow = [\"read\"] or allow = [\"read\", \"write\"]".into(),
            Broken::PlaintextWriting { .. } => {
                "set tls, or listen on localhost; or set insecure = true, if everybody on \
                                                the network may replace what is in the cache"
                    .into()
            }
            Broken::ConnectionAge => "write \"0s\" to let connections grow as old as they will".into(),
            Broken::InstanceNameless => "set name = \"team/a\", or name = \"\" for clients that send none".into(),
            Broken::InstanceName { .. } => format!(
                "use at most {INSTANCE_NAME_BYTES_MAX} bytes, no slash at either end or beside another, and none of {} \
                 between slashes",
                RESERVED_SEGMENTS.join(", ")
            ),
            Broken::InstanceTwice { .. } => "give each instance a name of its own".into(),
            Broken::Cluster(broken) => broken.hint(),
            Broken::AddressTaken { .. } => "give each a port of its own".into(),
        }
    }
}

// === impl Checker ===

impl Checker<'_> {
    pub(super) fn broken(&mut self, key: KeyPath, rule: impl Into<Broken>) {
        let rule = rule.into();
        let origin = self.layers.origin_around(&key);
        self.errors.push(ConfigError { key: Some(key), origin, problem: Problem::Rule(rule) });
    }

    fn node(&mut self, file: &File) -> NodeConfig {
        let name = file.node.name.clone().unwrap_or_default();
        if !is_name(&name) {
            self.broken(KeyPath::from_dotted("node.name"), Broken::NodeName { name: name.clone() });
        }
        NodeConfig { name, dir: path(&file.node.dir).unwrap_or_default() }
    }

    fn store(&mut self, file: &File) -> StoreConfig {
        let store = &file.store;
        if store.capacity < STORE_CAPACITY_MIN {
            let key = KeyPath::from_dotted("store.capacity");
            self.broken(key, Broken::CapacityTooSmall { given: store.capacity });
        }
        if let SyncPolicy::Interval(interval) = store.sync_interval.0
            && (interval.is_zero() || interval.as_secs() > SYNC_INTERVAL_MAX_SECONDS)
        {
            self.broken(KeyPath::from_dotted("store.sync_interval"), Broken::SyncInterval);
        }
        StoreConfig {
            capacity_bytes: store.capacity.bytes(),
            retention_floor: store.retention_floor.duration(),
            sync: store.sync_interval.0,
            compression: store.compression,
        }
    }

    fn index(&mut self, file: &File) -> IndexConfig {
        let index = &file.index;
        if index.capacity == 0 {
            self.broken(KeyPath::from_dotted("index.capacity"), Broken::IndexEmpty);
        }
        IndexConfig { capacity: index.capacity, stale_reads: index.stale_reads }
    }

    fn limits(&mut self, file: &File) -> LimitsConfig {
        let limits = &file.limits;
        let memory = limits.memory.unwrap_or(LIMITS_MEMORY_MIN);
        if memory < LIMITS_MEMORY_MIN {
            self.broken(KeyPath::from_dotted("limits.memory"), Broken::LimitsMemory { given: memory });
        }
        if limits.stall.duration() < STALL_MIN {
            self.broken(KeyPath::from_dotted("limits.stall"), Broken::Stall);
        }
        LimitsConfig {
            memory_bytes: memory.bytes(),
            waiting: usize::try_from(limits.waiting).unwrap_or(usize::MAX),
            patience: limits.patience.duration(),
            stall: limits.stall.duration(),
        }
    }

    fn listeners(&mut self, file: &File) -> Vec<ListenerConfig> {
        let mut checked: Vec<ListenerConfig> = Vec::new();
        for (index, listener) in file.listener.iter().enumerate() {
            let at = KeyPath::from_dotted("listener").join(Segment::Index(index));
            // What is known to be wrong would only bring up further errors that are none.
            if self.layers.is_broken(&at) {
                continue;
            }
            let config = self.listener(&at, listener);
            if let Some(other) = checked.iter().find(|other| other.address.overlaps(&config.address)) {
                let (address, other) = (config.address.clone(), other.address.clone());
                self.broken(at.name("address"), Broken::AddressTaken { address, what: "listener", other });
            }
            for (what, other) in [("admin port", &file.admin.address), ("peer port", &file.peers.address)] {
                if let Some(other) = other.as_ref().filter(|other| other.overlaps(&config.address)) {
                    let (address, other) = (config.address.clone(), other.clone());
                    self.broken(at.name("address"), Broken::AddressTaken { address, what, other });
                }
            }
            checked.push(config);
        }
        checked
    }

    fn listener(&mut self, at: &KeyPath, listener: &ListenerSection) -> ListenerConfig {
        let allowed = |permission| listener.allow.contains(&permission);
        let allow = Permissions {
            read: allowed(Permission::Read),
            write: allowed(Permission::Write),
            admin: allowed(Permission::Admin),
        };
        if allow == Permissions::default() {
            self.broken(at.name("allow"), Broken::NothingAllowed);
        }
        let dangerous = if allow.write { Some("write") } else { allow.admin.then_some("admin") };
        if let (Some(allowed), None) = (dangerous, &listener.tls)
            && !listener.insecure
            && !listener.address.is_loopback()
        {
            self.broken(at.clone(), Broken::PlaintextWriting { address: listener.address.clone(), allowed });
        }
        ListenerConfig {
            address: listener.address.clone(),
            tls: listener.tls.as_ref().map(|tls| self.tls(at, tls)),
            clients: self.clients(at, listener),
            allow,
            services: listener.services,
            reflection: listener.reflection,
            connection_age: self.connection_age(at, listener),
        }
    }

    fn connection_age(&mut self, at: &KeyPath, listener: &ListenerSection) -> Option<Duration> {
        let age = listener.connection_age.duration();
        if !age.is_zero() && age < CONNECTION_AGE_MIN {
            self.broken(at.name("connection_age"), Broken::ConnectionAge);
        }
        Some(age).filter(|age| !age.is_zero())
    }

    fn instances(&mut self, file: &File) -> InstanceNames {
        let mut names = BTreeSet::new();
        for (index, instance) in file.instance.iter().enumerate() {
            let at = KeyPath::from_dotted("instance").join(Segment::Index(index));
            if self.layers.is_broken(&at) {
                continue;
            }
            match &instance.name {
                None => self.broken(at, Broken::InstanceNameless),
                Some(name) if !is_instance_name(name) => {
                    self.broken(at.name("name"), Broken::InstanceName { name: name.clone() });
                }
                Some(name) => {
                    if !names.insert(name.clone()) {
                        self.broken(at.name("name"), Broken::InstanceTwice { name: name.clone() });
                    }
                }
            }
        }
        if file.instance.is_empty() { InstanceNames::Any } else { InstanceNames::Listed(names) }
    }

    pub(super) fn tls(&mut self, at: &KeyPath, tls: &TlsSection) -> TlsConfig {
        for (value, missing) in [(&tls.certificate, "certificate"), (&tls.key, "key")] {
            if value.is_none() {
                self.broken(at.name("tls"), Broken::TlsHalf { missing });
            }
        }
        let or_none = |value| path(value).unwrap_or_default();
        TlsConfig { certificate: or_none(&tls.certificate), key: or_none(&tls.key) }
    }

    fn clients(&mut self, at: &KeyPath, listener: &ListenerSection) -> Clients {
        let trust = [(&listener.authorized, "authorized"), (&listener.authorities, "authorities")];
        match listener.clients {
            ClientPolicy::Anyone => {
                for (_, key) in trust.into_iter().filter(|(file, _)| file.is_some()) {
                    self.broken(at.name(key), Broken::TrustUnused { key });
                }
                Clients::Anyone
            }
            ClientPolicy::Certificate => {
                if listener.tls.is_none() {
                    self.broken(at.name("clients"), Broken::ClientsNeedTls);
                }
                if trust.iter().all(|(file, _)| file.is_none()) {
                    self.broken(at.name("clients"), Broken::ClientsUnknown);
                }
                Clients::Certificate {
                    authorized: path(&listener.authorized),
                    authorities: path(&listener.authorities),
                }
            }
        }
    }
}

fn is_instance_name(name: &str) -> bool {
    let fits = |segment: &str| !segment.is_empty() && !RESERVED_SEGMENTS.contains(&segment);
    name.is_empty() || (name.len() <= INSTANCE_NAME_BYTES_MAX && name.split('/').all(fits))
}

/// Whether it can be part of a host name or of a path.
pub(super) fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !name.is_empty() && name.len() <= NODE_NAME_MAX && name.chars().all(fits) && !matches!(name, "." | "..")
}

pub(super) fn path(path: &Option<FilePath>) -> Option<std::path::PathBuf> {
    path.as_ref().map(|path| path.as_path().to_path_buf())
}
