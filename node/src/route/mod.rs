//! The whole cluster's blobs and results of actions, as if they were here.
//!
//! Whoever asks does not see where something lies. Three answers are told apart: here it is, verified; it is nowhere, which
//! is said only when those who may have it have looked (G3); and it cannot be said at present. Which nodes are asked, and when
//! a miss is a fact, is decided in `casbah_cluster::replication`; here it is carried out.
//!
//! From the outside in: `blobs` and `actions` are the faces; `lookup` finds, `fetch` reads many small blobs, `reading` one of
//! any size; `rounds` has each node asked once for all that it is asked for, and `flights` has what several want fetched once.

mod actions;
#[cfg(test)]
mod actions_test;
mod blobs;
#[cfg(test)]
mod damage_test;
#[cfg(test)]
mod epochs_test;
mod error;
mod fetch;
mod flights;
mod lookup;
#[cfg(test)]
mod read_test;
mod reading;
#[cfg(test)]
mod repair_test;
mod rounds;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod touch_test;
#[cfg(test)]
mod write_test;

pub use actions::Actions;
pub use blobs::Blobs;
pub use error::{ActionError, NodeError, ReadError};
pub use reading::{Pieces, Reader, StoredReader};

pub use crate::forward::Form;
pub use crate::replicate::{CopyError, Doubt, Nodes, Remote, Upload, WriteError};
