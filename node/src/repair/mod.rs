//! The one way for blobs and results of actions to get to where they belong: an owner pulls what it lacks, and whoever holds
//! what it does not own hands it over.
//!
//! What is compared with whom, in which order and at which rate, is decided in `casbah_cluster::repair`; here it is carried out.
//! Nothing of it is kept on disk: what there is to do is the difference between layouts and stores, and is found again after
//! a crash.
//!
//! From the outside in: `conduct` begins what is to be done, some things at once, and tells the cluster when this node has all
//! that it should; `compare` and `pull` are the owner's side, `hand_over` the other one; `copies` moves blobs, and `progress`
//! counts.

mod compare;
mod conduct;
mod copies;
mod error;
mod hand_over;
mod progress;
mod pull;

pub use conduct::{Repair, RepairParts, Tell, TellError};
