//! The public services: Capabilities, ContentAddressableStorage, ByteStream, ActionCache, Remote Asset, health.
//!
//! Every service trusts the layers above it to have decided what the caller may do ([`Access`]) and the store to
//! verify what it takes in. What a service adds is the letter of the API: forms, limits, and the right code for
//! everything that can go wrong (`status_map`).

mod access;
mod action_cache;
mod admission;
mod asset_fetch;
mod asset_push;
mod asset_request;
mod bytestream;
mod bytestream_read;
mod capabilities;
mod cas;
mod chunks;
mod completeness;
mod compression;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod instances;
mod partial_uploads;
pub mod peer;
mod resource_name;
mod services;
mod status_map;
mod tree;
mod wire;

pub use access::Access;
pub use admission::{READER, Reader};
pub use services::{HEALTH_NAMES, Parts, Served, services};
pub use status_map::unavailable;
