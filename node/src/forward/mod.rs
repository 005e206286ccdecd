//! Calls handed to another process that owns the data.
