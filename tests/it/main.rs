//! Tests with sockets and processes, named after guarantees (docs/guarantees.md) and after users' situations.

mod access;
mod action_cache;
mod artifact_server;
mod asset;
mod bazel;
mod blob_verify;
mod buildstream;
mod bytestream;
mod capabilities;
mod cas;
mod chunks;
mod cli;
mod compression;
mod contract;
mod deploy;
mod digest_functions;
mod health;
mod limits;
mod quota;
mod reading;
mod restart;
mod takeover;
mod tree;
