//! The decisions of a whole cluster under faults, by seed: see docs/simulation.md.
#![cfg(test)]

mod calls;
mod disk;
mod engine;
mod faults;
mod members;
mod network;
mod node;
mod oracle;
mod read;
mod repair;
mod run;
mod settings;
mod trace;
mod workload;
mod world;
mod write;
