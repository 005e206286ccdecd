//! The Raft group of a cluster: one log of commands on all its nodes, and the state that follows from it.
//!
//! [`Group`] is the way in. What is committed has been written to the disks of most voters; what was applied is seen by
//! reads through every node. openraft decides; here are its log and its state machine on disk, its messages to other nodes,
//! and the queues in front of it, all bounded.

mod answer;
mod core;
mod error;
mod group;
mod keeper;
mod log;
mod log_writer;
mod network;
mod proposals;
mod reads;
mod snapshot;
mod state;
mod status;
mod transport;
mod watched;
mod watching;

#[cfg(test)]
mod assets_test;
#[cfg(test)]
mod group_test;
#[cfg(test)]
mod history_test;
#[cfg(test)]
mod storage_test;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod watching_test;

pub use error::GroupError;
pub use group::{GROUP_FILES, Group, GroupOptions, Timing};
pub use network::{Network, NetworkError, RaftCall, WatchPart, WatchParts};
pub use status::{GroupStatus, Role};
