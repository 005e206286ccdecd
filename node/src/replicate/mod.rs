//! Copies of blobs and of results of actions: on which nodes they are made, and when there are enough of them.
//!
//! What goes where, and when it is acknowledged, is decided in `casbah_cluster::replication`; here it is carried out. A blob is
//! streamed to all of its nodes at once and hashed on the way, and none of them keeps it before its hash is known to be
//! right. What is not waited for any more goes on in tasks that `background` owns.
//!
//! From the outside in: `upload` takes one blob as it comes, and `spread` sends it to several nodes; `batch` takes many small
//! ones; `acknowledge` has something done on nodes until enough of them have done it; `copy` moves a blob from one node to
//! another, and `restore` those back that were damaged; `nodes` is what all share, with `views`, by which it is known when nobody
//! decides by an older layout any more, and `pacing`, the rate of what no client waits for; `remote` is what other nodes can be
//! asked.

mod acknowledge;
mod background;
mod batch;
mod copy;
mod error;
mod hashing;
mod nodes;
mod pacing;
mod promises;
mod remote;
mod restore;
mod spread;
mod touches;
mod upload;
mod views;

pub(crate) use acknowledge::acknowledge;
pub use batch::put_many;
pub use error::{CopyError, WriteError};
pub use nodes::{Doubt, Nodes};
pub use pacing::Pacing;
pub use remote::{Remote, RemoteRead, RemoteUpload};
pub use restore::restore;
#[cfg(test)]
pub(crate) use restore::restore_all;
pub use upload::Upload;
