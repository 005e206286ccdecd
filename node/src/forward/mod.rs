//! Calls handed to other processes: to the one that owns the directory, when two instances are on one; and to the other nodes
//! of the cluster, who answer from their own disks and hand nothing on.
//!
//! `Peers` is the face of the other nodes. Under it: `link` keeps connections to one of them, which `dial` makes; `health` decides
//! whether it is there, by what `heartbeat` and all other calls bring; `framing` has blobs pass without being copied.

mod batches;
mod channel;
mod dial;
mod discovery;
mod error;
mod framing;
mod health;
mod heartbeat;
mod link;
mod messages;
mod metadata;
mod peer_inventories;
mod peer_read;
mod peer_upload;
mod peers;
mod raft;
mod socket;
mod upstream;

pub use channel::for_repair;
pub use dial::{DialError, Dialler, PeerTls};
pub use discovery::{Discovery, DiscoveryError, Found};
pub use error::{PeerError, Unreachable};
pub use framing::{FramingError, Messages, Part, bytes_frames, data_frames, message_frame};
pub use health::Health;
pub use heartbeat::CLOCK_SKEW_MAX_MS;
pub use messages::{digest_from_message, digest_to_message};
pub use metadata::{CLUSTER, EPOCH, HOP, NODE, PEER, PROTOCOL, PURPOSE, PURPOSE_REPAIR};
pub use peer_read::{Form, PeerRead};
pub use peer_upload::PeerUpload;
pub use peers::{Copy, Peers, PeersParts, Report};
pub use raft::{RaftMethod, StateStream};
pub use socket::{ShortPath, socket_path};
pub use upstream::{Upstream, UpstreamError};
