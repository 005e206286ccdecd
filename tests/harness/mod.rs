//! What the tests stand on: real processes, throw-away certificates, clients of the API, and seeded traffic with a
//! checker.
//!
//! Nothing here knows how the server is made: a test says what a client sends and what it must see.

pub mod admin;
pub mod authority;
pub mod bazel;
pub mod bst;
pub mod bst_remote;
pub mod clients;
pub mod cluster;
pub mod deadline;
pub mod faults;
pub mod files;
pub mod history;
pub mod home;
pub mod kubernetes;
pub mod load;
pub mod nemesis;
pub mod packets;
pub mod process;
pub mod proxy;
pub mod register;
pub mod retry;
pub mod target;
pub mod trees;
mod trust;
pub mod workload;
