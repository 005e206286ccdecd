//! The Remote Asset index on disk.
