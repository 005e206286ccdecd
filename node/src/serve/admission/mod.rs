//! Who is let in when: a node takes on no more calls than its memory can carry (G10).
//!
//! A call is charged with what it may hold at the most, which follows from its method and from the length of its first message,
//! and it keeps that charge until the last byte of its answer has left. Where there is no room it waits, for a while and in a
//! line that is bounded; then it is told to come again (UNAVAILABLE, with a time). Whoever has little gets a place before those
//! who have much: `turns` decides that, by client. Calls that cost nothing are always let in, so that a node that is busy is not
//! taken for dead. What other nodes ask has a share of its own, and waits for no other node: two that are full do not wait for
//! each other.
//!
//! From the outside in: `entry` stands in front of the services; `costs` says what a call may hold; `places` has the places
//! and who waits for them; `request` is what comes, `answer` what goes, `reader` whether it is taken.

mod answer;
mod costs;
mod entry;
mod first;
mod places;
mod reader;
mod request;
mod turns;

pub use entry::{Door, Entry};
pub use places::{Admission, Bounds};
pub use reader::{READER, Reader};
