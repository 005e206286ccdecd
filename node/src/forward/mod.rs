//! Calls handed to another process that owns the data: the second of two instances on one directory serves its port
//! through the first.

mod socket;
mod upstream;

pub use socket::{ShortPath, socket_path};
pub use upstream::{Upstream, UpstreamError};
