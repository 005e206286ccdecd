//! Remote assets: what names one, and what is known of it.
//!
//! An asset is a URI with qualifiers that stands for a blob or a directory tree in the CAS. Its [`AssetKey`] is
//! canonical: two requests that mean the same asset have the same key, byte for byte.

mod key;
mod record;

pub use key::{AssetKey, AssetKind, KeyError, MAX_KEY_BYTES, Qualifier};
pub use record::{AssetRecord, MAX_REFERENCES, Moment};
