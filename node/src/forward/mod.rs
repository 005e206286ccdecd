//! Calls handed to another process that owns the data: the second of two instances on one directory serves its port
//! through the first.

mod upstream;

pub use upstream::{Upstream, UpstreamError};
