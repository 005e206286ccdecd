//! This node's place in a cluster: how it finds one, and what it does as a member of it.
//!
//! `identity` is what the directory is, for good; `search` finds or forms a cluster, by the decisions of
//! [`casbah_cluster::membership::Formation`]; `place` is what is known of it from then on, which `members` tells other nodes
//! and lets new ones in by, and `condition` how it is; `lead` keeps the Raft group in shape while this node leads it, and
//! `losses` gives members up that nobody reaches. `sure` says whether this node may go by what it knows, and `closed_log` when it has
//! to be started anew. `orders` does what people ask for, and `leave` has this node leave by itself, whose
//! `departure` its directory keeps.

mod closed_log;
mod condition;
mod departure;
mod identity;
mod lead;
mod leave;
mod losses;
mod members;
mod orders;
mod place;
mod search;
mod sure;
mod whole;
mod words;

pub(super) use condition::Condition;
pub(super) use departure::Departure;
pub(super) use place::{Place, PlaceError, PlaceParts};
pub(super) use words::repair_from_message;
