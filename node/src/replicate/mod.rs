//! Copies of blobs and of results of actions: on which nodes they are made, and when they are enough.

mod error;
mod nodes;
mod upload;

pub use error::WriteError;
pub use nodes::Nodes;
pub use upload::Upload;
