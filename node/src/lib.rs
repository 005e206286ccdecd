//! casbah: a build cache that does not go down.
//!
//! The modules are the way of a request; each imports only those below it:
//!
//! ```text
//! cli > run > accept > authenticate > serve > index > store > observe > config
//! ```

pub mod store;
