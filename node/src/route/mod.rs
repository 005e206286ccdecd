//! The whole cluster's blobs and results of actions, as if they were here.
//!
//! Whoever asks does not see where something lies. Three answers are told apart: here it is, verified; it is nowhere, which
//! is said only when those who may have it have looked; and it cannot be said at present.

mod actions;
mod blobs;
mod error;
mod reading;

pub use actions::Actions;
pub use blobs::Blobs;
pub use error::ReadError;
pub use reading::{Form, Pieces, Reader, StoredReader};

pub use crate::replicate::{Nodes, Upload, WriteError};
