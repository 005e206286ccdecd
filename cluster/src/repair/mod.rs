//! How copies get to where they belong: what a node compares with whom, pulls, hands over, and when it has all it should.
//!
//! Nothing here outlives the process: what there is to do is the difference between what the layouts in force say and what lies
//! in the stores, and is found anew after a crash. [`Sync`] is the side of an owner, who pulls what it lacks from whoever may
//! have it; [`HandOvers`] and [`Surplus`] are the side of a node that holds what it does not own; [`Pace`] bounds the bytes
//! that both move.

mod hand_over;
#[cfg(test)]
mod hand_over_test;
#[cfg(test)]
mod history_test;
mod pace;
mod room;
mod source;
mod summary;
mod sync;
#[cfg(test)]
mod sync_test;

pub use hand_over::{DROP_AFTER_MS, HandOvers, Said, Surplus};
pub use pace::Pace;
pub use room::Room;
pub use source::Peer;
pub use summary::Summary;
pub use sync::{Left, Pull, Pulled, Step, Sync};
