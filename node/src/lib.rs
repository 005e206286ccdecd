//! casbah: a build cache that does not go down.
//!
//! The modules are the way of a request; each imports only those below it:
//!
//! ```text
//! cli > run > accept > authenticate > serve > route > repair > replicate > index > forward > store > observe > config
//! ```

pub mod accept;
pub mod authenticate;
pub mod cli;
pub mod config;
pub mod forward;
pub mod index;
pub mod observe;
pub mod repair;
pub mod replicate;
pub mod route;
pub mod run;
pub mod serve;
pub mod store;
