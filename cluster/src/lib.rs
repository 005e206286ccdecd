//! The decisions of casbah: plain structs, events in, commands out, time passed in, no IO.
//!
//! What is here can be tested and simulated without a runtime. `node` runs what is decided here.

pub mod asset;
pub mod chunking;
pub mod codec;
pub mod consensus;
pub mod digest;
pub mod inventory;
pub mod membership;
pub mod repair;
pub mod replication;
pub mod ring;
pub mod split;
#[cfg(test)]
mod testing;
pub mod view;
