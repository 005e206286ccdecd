//! Bounds that no setting changes, each with its reason. A bound that belongs to one file alone stands there.

use std::time::Duration;

/// Connections of one listener. A farm of 1,000 machines with a few clients each fits; beyond it, further clients wait
/// in the kernel's queue instead of costing memory here.
pub const CONNECTIONS_MAX: usize = 8192;

/// Requests under way on one connection; clients open some hundreds.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 1024;

/// Connections of other instances on the same directory. Each instance has one, and for a moment a second when it
/// connects again.
pub const INSTANCE_CONNECTIONS_MAX: usize = 128;

/// Bytes a client may send on one stream before they were taken in: two messages of 1 MiB. The protocol's default of
/// 64 KiB costs two to five times the CPU.
pub const STREAM_WINDOW_BYTES: u32 = 2 << 20;

/// Bytes a client may send on one connection before they were taken in, all streams together.
pub const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// As [`CONNECTION_WINDOW_BYTES`], between instances on one directory, where one connection carries every client of an
/// instance: the most that the protocol allows, so that clients that stop reading stop their own streams alone, which
/// [`STREAM_WINDOW_BYTES`] bounds.
pub const INSTANCE_CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;

/// Requests under way on that connection: more than the clients of an instance can have, each at its own bound.
pub const INSTANCE_STREAMS_MAX: u32 = 16 << 20;

/// The largest HTTP/2 frame that is taken in. Large frames cost less per byte.
pub const FRAME_BYTES: u32 = 1 << 20;

/// Headers of one request; gRPC metadata has some hundred bytes.
pub const HEADERS_BYTES: u32 = 64 << 10;

/// After this silence, a connection is asked whether it lives.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);

/// A connection that does not answer within this time is closed.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long requests under way may take to finish once the process was told to stop; then they are cut. Below the
/// 30 s that Kubernetes gives, and the 90 s of systemd.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(25);

/// The last part of that, in which requests of other instances on the same directory are finished. Until it begins they
/// are served as ever; new ones then wait for the next owner, which takes over when this process has ended.
pub const INSTANCE_DRAIN_DEADLINE: Duration = Duration::from_secs(2);
