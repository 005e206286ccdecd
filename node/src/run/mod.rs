//! Builds a node from its configuration and runs it until it is told to stop.
//!
//! One process owns a node's directory: store and index are open there and nowhere else. A further process on the same
//! directory serves its own listeners through the owner, and becomes the owner when that one goes.

mod assemble;
mod backend;
mod cluster_report;
mod descriptors;
mod directory;
mod membership;
mod owned;
mod pod;
mod relayed;
mod report;
mod signals;
mod spoken;

pub use assemble::{RunError, serve};
pub use directory::{Look, Stopped};
