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

/// Bytes a node may send another on one stream before they were taken in: two pieces of blobs.
pub const PEER_STREAM_WINDOW_BYTES: u32 = 2 << 20;

/// The same for one connection between nodes, all streams together: the most that the protocol allows, so that a client that
/// stops reading what comes from another node, or a blob that waits for a disk, stops its own stream alone. What all of them
/// hold is bounded by the calls that are let in.
pub const PEER_CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;

/// Bytes that wait, encrypted, to be sent on one connection between nodes; as many leave with one call of the system.
pub const PEER_TLS_BUFFER_BYTES: usize = 256 << 10;

/// Bytes that are read at once from a connection between nodes. TLS itself asks for 4 KiB at a time.
pub const PEER_READ_BYTES: usize = 256 << 10;

/// Connections of the peer port: a hundred nodes have three each, and some more while they connect again.
pub const PEER_CONNECTIONS_MAX: usize = 1024;

/// Calls under way on one connection between nodes.
pub const PEER_STREAMS_MAX: u32 = 4096;

/// Connections to each peer that carry blobs and results of actions. One keeps one processor busy with encryption.
pub const PEER_DATA_CONNECTIONS: usize = 2;

/// Calls under way to one peer, for blobs and results of actions. Further ones wait, and fail when their time is over. More than
/// clients that do not take their answers can have at once, since each of them may have one open.
pub const PEER_CALLS_MAX: usize = 2048;

/// After this silence, a connection between nodes is asked whether it lives.
pub const PEER_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);

/// A connection between nodes that does not answer within this time is closed.
pub const PEER_KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a connection to another node may take to be made, the handshake included. The nodes of a cluster are near.
pub const PEER_CONNECT_DEADLINE: Duration = Duration::from_secs(1);

/// After a connection to another node could not be made, calls fail for this long without another attempt.
pub const PEER_RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// How often each node asks each other one how it is.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);

/// A node that has answered nothing for this long, heartbeats or other calls, is away: three heartbeats.
pub const AWAY_AFTER: Duration = Duration::from_millis(1500);

/// How long another node may take to answer a call that fits a message, or to begin an answer that does not.
pub const PEER_CALL_DEADLINE: Duration = Duration::from_secs(5);

/// How long a stream from another node may stand still.
pub const PEER_STALL_DEADLINE: Duration = Duration::from_secs(5);

/// How long another node may take to store what it has got, or to take more of it: one whose store is full waits up to ten
/// seconds for room. Whoever sends to several nodes does not wait for the slowest.
pub const PEER_STORE_DEADLINE: Duration = Duration::from_secs(15);

/// How long a call that was made by a newer layout, or by a newer member, waits for this node to hear of it.
pub const PEER_CATCH_UP: Duration = Duration::from_secs(1);

/// The largest message between nodes that is taken in: a log entry or a batch of blobs, with room for what is around them.
pub const PEER_MESSAGE_BYTES: usize = 16 << 20;

/// Bytes of blobs in one batch between nodes.
pub const PEER_BATCH_BYTES: u64 = 4 << 20;

/// Digests in one batch between nodes, and in one question which blobs are there: some 3 MiB.
pub const PEER_DIGESTS_MAX: usize = 1 << 16;

/// One part in so many of the memory for calls is that of other nodes, so that the clients of two nodes that are full do not
/// wait for each other. A cluster of one has none.
pub const PEER_MEMORY_SHARE: u64 = 3;

/// Calls of other nodes that may wait for memory.
pub const PEER_WAITING_MAX: usize = 1024;

/// How long each of them may wait: less than [`PEER_CALL_DEADLINE`], so that the caller hears why.
pub const PEER_PATIENCE: Duration = Duration::from_secs(2);

/// How long another node may send nothing in the middle of a blob. Uploads that were interrupted stay open for five minutes.
pub const PEER_WRITE_STALL: Duration = Duration::from_secs(600);

/// Entries in one page of a list of what a node holds: some 2 MiB, gathered in a few milliseconds. A partition of a store of a
/// hundred million blobs has two of them.
pub const PEER_LIST_MAX: usize = 16 << 10;

/// Bytes of such a page beyond which it ends: names of instances may be long.
pub const PEER_LIST_BYTES: usize = 4 << 20;

/// How long requests under way may take to finish once the process was told to stop; then they are cut. Below the
/// 30 s that Kubernetes gives, and the 90 s of systemd.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(25);

/// The last part of that, in which requests of other instances on the same directory are finished. Until it begins they
/// are served as ever; new ones then wait for the next owner, which takes over when this process has ended.
pub const INSTANCE_DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// How long what other nodes have under way here may take when the node stops. They go on elsewhere.
pub const PEER_DRAIN_DEADLINE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TimeSpan;

    /// Handing leadership over, and closing the store and the indexes, once everything else has ended.
    const CLOSE: Duration = Duration::from_secs(10);

    /// A number of seconds in what is shipped for Kubernetes.
    fn seconds(manifest: &str, key: &str) -> Duration {
        let found = manifest.lines().find_map(|line| line.trim().strip_prefix(key)).expect("it is there");
        Duration::from_secs(found.trim().parse().expect("it is a number"))
    }

    #[test]
    fn a_pod_has_the_time_that_a_node_takes_to_end() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/k8s/base/statefulset.yaml");
        let manifest = std::fs::read_to_string(path).unwrap();
        let grace = seconds(&manifest, "terminationGracePeriodSeconds:");
        let pre_stop = manifest.split_once("preStop:").expect("it has one").1;
        let wait = seconds(pre_stop, "seconds:");
        let leave = manifest.split_once("DRAIN_DEADLINE\n").expect("it has one").1;
        let leave =
            leave.trim_start().strip_prefix("value: ").and_then(|rest| rest.lines().next()).expect("it is there");
        let leave = leave.parse::<TimeSpan>().unwrap().duration();
        let end = DRAIN_DEADLINE + 2 * PEER_DRAIN_DEADLINE + CLOSE;
        assert_eq!(end.as_secs(), 39, "END_SECONDS in deploy/k8s/check/objects.py, and a comment in the manifest");
        assert!(
            grace >= wait + leave + end,
            "{grace:?} for {wait:?} before SIGTERM, {leave:?} to leave and {end:?} to end"
        );
    }
}
