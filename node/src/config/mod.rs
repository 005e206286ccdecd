//! Settings: default < file < environment < flag, resolved once into a checked tree that nothing changes afterwards.
//!
//! [`Config`] is what the rest of the program sees. It holds no string that still has to be parsed and no path whose
//! form is in doubt; a `Config` that exists is one that can be run (as far as can be known without opening a socket).

pub mod limits;
mod resolve;

pub use resolve::{
    Clients, Config, IndexConfig, ListenAddress, ListenerConfig, LogConfig, LogFormat, LogLevel, NodeConfig,
    Permissions, Services, StoreConfig, SyncPolicy, TlsConfig,
};
