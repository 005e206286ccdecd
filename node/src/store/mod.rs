//! The blob store of one node: bytes by digest, on disk, within a capacity.
//!
//! What is acknowledged survives `kill -9` of the process at any point, and after the loss of power all but the last
//! sync interval is there. No byte is returned that does not match its checksum, and nothing is named by its digest that
//! has not been verified against it. The least recently used blobs make room for new ones. `docs/reference/disk-format.md`
//! describes the files.
//!
//! From the outside in: `store` is the face; `upload` and `commit` write, `reader` reads; `state` decides and
//! `index` remembers; `journal` and `snapshot` make that last, `sync` forces it to the disk, `maintenance` tidies
//! up with `compact`, and `recover` brings it back.

mod blob_file;
mod blob_writer;
mod buffers;
mod clock;
mod codecs;
mod commit;
mod compact;
#[cfg(test)]
mod copies_test;
mod disk;
mod error;
#[cfg(test)]
mod fault_test;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod full_disk_test;
#[cfg(test)]
mod functions_test;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
mod fuzzing_test;
mod gathered;
mod health;
mod index;
#[cfg(test)]
mod index_test;
mod journal;
mod key;
#[cfg(test)]
mod kill_test;
mod limits;
mod list;
#[cfg(test)]
mod list_test;
mod lost;
#[cfg(test)]
mod lost_test;
mod maintenance;
#[cfg(test)]
mod model_test;
mod options;
mod order;
#[cfg(test)]
mod order_test;
mod paths;
mod presence;
mod reader;
mod record;
mod recover;
#[cfg(test)]
mod restart_test;
mod salvage;
mod scrub;
mod segment;
#[cfg(test)]
mod segment_test;
mod segment_walk;
mod segments;
mod shared;
mod snapshot;
mod state;
#[expect(clippy::module_inception, reason = "the folder is the store, the file its face")]
mod store;
#[cfg(test)]
mod store_test;
#[cfg(test)]
mod stress_test;
mod sync;
#[cfg(test)]
pub(crate) mod testing;
mod upload;
mod verify;
#[cfg(test)]
mod verify_test;
#[cfg(test)]
mod zstd_test;

pub use clock::{Clock, SystemClock};
pub use codecs::Codecs;
pub use error::{Damage, Mismatch, OpenError, ReadError, ReadOnlyReason, WriteError};
pub use options::{StoreOptions, Surroundings};
pub use paths::DIRECTORY;
pub use presence::Presence;
pub use reader::{Reader, StoredReader};
pub use store::{Store, StoreStatus};
pub use upload::Upload;
pub use verify::{Finding, VerifyReport, verify};
