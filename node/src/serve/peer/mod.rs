//! The services for other nodes of the cluster: blobs and results of actions of this node alone, the Raft group's traffic, and
//! who belongs to the cluster.
//!
//! Nothing here asks another node: whoever calls has decided that this one is to answer, and a request hops once at most.
//! `gate` stands in front of all of them and lets through what comes from a member of this cluster and is meant for this node.

mod actions;
mod blobs;
mod gate;
mod inventories;
mod membership;
mod raft;
mod services;

pub use gate::{Caller, Gate};
pub use membership::{Members, MembersError};
pub use raft::RaftGroup;
pub use services::{Parts, services};
