//! What is known by name: the Remote Asset index, the same for all nodes of a cluster, the ActionCache's and that of blobs'
//! chunks, each in embedded databases on disk.
//!
//! What a write has returned for survives a crash and a power loss. All are bounded: the least recently used records go
//! first.

mod action_counts;
mod action_keys;
mod actions;
mod assets;
mod peer_network;
mod raft;
mod records;
mod splits;
mod tables;
mod writer;

pub use actions::{ACTIONS_FILE, ActionIndex};
pub use assets::{AssetIndex, AssetView};
pub use raft::{
    GROUP_FILES, Group, GroupError, GroupOptions, GroupStatus, Network, NetworkError, RaftCall, Role, Timing,
    WatchPart, WatchParts,
};
pub use records::{IndexCounts, IndexError, now};
pub use splits::{SPLITS_FILE, SplitIndex};
