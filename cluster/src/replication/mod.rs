//! Copies of blobs: which nodes a write goes to and when it is acknowledged, which nodes a read asks and when a miss is a
//! fact, which of two action results is the later one.
//!
//! The invariant (policy.rs): an acknowledged blob lies, by every layout that its writer knew to be in force, on W distinct
//! nodes of the partition's walk, one of them an owner; and nothing is called missing that may lie so.

mod policy;
mod read;
mod version;
mod write;

#[cfg(test)]
mod model_test;
#[cfg(test)]
mod read_test;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod write_test;

pub use read::{MISS_WITHIN_MS, ReadDecision, Verdict};
pub use version::{MAX_CLOCK_AHEAD_MS, Version, VersionClock, VersionError};
pub use write::{Next, WriteDecision};
