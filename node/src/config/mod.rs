//! Settings: default < file < environment < flag, resolved once into a checked tree that nothing changes afterwards.
//!
//! [`Config`] is what the rest of the program sees. It holds no string that still has to be parsed and no path whose
//! form is in doubt; a `Config` that exists is one that can be run (as far as can be known without opening a socket).

mod address;
mod cluster_rules;
mod error;
pub mod file;
mod keys;
mod layers;
pub mod limits;
mod lines;
mod machine;
pub mod reference;
mod resolve;
mod rules;
mod sources;
mod units;

pub use address::AddressError;
pub use cluster_rules::BrokenCluster;
pub use error::{ConfigError, ConfigErrors, Origin, Problem};
pub use keys::{Choice, Form, Key, KeyPath, Kind, Segment, root};
pub use layers::Layers;
pub use machine::Machine;
pub use resolve::{
    Clients, ClusterConfig, Compression, Config, IndexConfig, InstanceNames, LimitsConfig, ListenAddress,
    ListenerConfig, LogConfig, LogFormat, LogLevel, NodeConfig, PeersConfig, Permissions, PodConfig, RebalancePolicy,
    RepairConfig, Services, StoreConfig, SyncPolicy, TlsConfig,
};
pub use rules::{Broken, LIMITS_MEMORY_MIN, RESERVED_SEGMENTS, STORE_CAPACITY_MIN};
pub use sources::{Assignment, Loaded, Sources};
pub use units::{ByteSize, TimeSpan, UnitError};
