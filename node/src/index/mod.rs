//! The Remote Asset index on disk.
//!
//! [`AssetIndex`] maps an asset's key to its record in one embedded database. What [`AssetIndex::push`] has
//! returned for survives a crash and a power loss. The index is bounded: the least recently fetched assets go first.

mod database;
mod writer;

pub use database::{AssetIndex, IndexError, now};
