//! What is known by name: the Remote Asset index, the ActionCache's and that of blobs' chunks, each in one embedded database on disk.
//!
//! What a write has returned for survives a crash and a power loss. Both are bounded: the least recently used records
//! go first.

mod actions;
mod assets;
mod peer_network;
mod raft;
mod records;
mod splits;
mod writer;

pub use actions::ActionIndex;
pub use assets::AssetIndex;
pub use raft::{GroupError, Network, NetworkError, RaftCall};
pub use records::{IndexCounts, IndexError, now};
pub use splits::SplitIndex;
