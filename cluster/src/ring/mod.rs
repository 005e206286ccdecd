//! Which nodes hold what: a consistent hash ring, walked once per layout into a table that look-ups read.
//!
//! A digest falls into one of [`PARTITIONS`] partitions; the [`Placement`] of a layout says which nodes own each of them,
//! and in which order others stand in for owners that are away. It follows from the layout and the number of copies alone:
//! every node, on every architecture, and every later version of the program must come to the same table.

mod placement;
mod plan;
#[expect(clippy::module_inception, reason = "the folder is placement, the file the ring that it walks")]
mod ring;
mod share;
mod token;

#[cfg(test)]
mod golden_test;
#[cfg(test)]
mod movement_test;
#[cfg(test)]
mod placement_test;

pub use placement::{FALLBACKS, PARTITIONS, Placement, partition_of};
pub use plan::{Change, Plan};
