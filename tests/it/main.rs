//! Tests with sockets and processes, named after guarantees (docs/guarantees.md) and after users' situations.

mod access;
mod action_cache;
mod artifact_server;
mod asset;
mod buildstream;
mod bytestream;
mod calls;
mod capabilities;
mod cas;
mod cli;
mod compression;
mod connections;
mod contract;
mod deploy;
mod digest_functions;
mod health;
mod instances;
mod limits;
mod quota;
mod reading;
mod reflection;
mod restart;
mod takeover;
mod tree;
