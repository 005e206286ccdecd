//! What a call may hold of this node's memory, at the most and about: known when its first message begins to come.
//!
//! What has bounds of its own is not counted here: bytes on their way to slow nodes, decoders, blobs that are split.

use casbah_proto::build::bazel::remote::execution::v2 as api;
use casbah_proto::peer::v1 as peer;
use prost::Message as _;

use crate::config::limits;
use crate::observe::labels::Method;
use crate::serve::admission::first::First;
use crate::serve::admission::turns::Cost;
use crate::serve::cas::MAX_BATCH_BYTES;
use crate::serve::resource_name::ResourceName;

/// What every call holds: a stream of HTTP/2, some tasks, headers.
const CALL_BYTES: u64 = 32 << 10;

/// A list of digests, as messages, parsed, and in the questions to other nodes: so many times what came.
const DIGESTS_FACTOR: u64 = 4;

/// A batch of blobs: what came, and the copy that goes to another node.
const BATCH_FACTOR: u64 = 2;

/// A walk of a tree: a batch of directories, what they name, and what has been seen.
const WALK_BYTES: u64 = 4 << 20;

/// A page of a tree, twice: as directories and as a message.
const TREE_BYTES: u64 = 8 << 20;

/// The chunks of a blob that is split or put together.
const CHUNKS_BYTES: u64 = 8 << 20;

/// A piece of a blob that is on its way, and the next one.
const PIECES_BYTES: u64 = 2 << 20;

/// What another node sends of a blob on the average before it is taken in. At once it may be a window of 2 MiB; but uploads
/// that were interrupted, and are waited for, hold nothing for minutes, and the sender bounds what it has on its way.
const STORED_BYTES: u64 = 512 << 10;

/// The result of an action, as it is looked up, walked and answered.
const RESULT_BYTES: u64 = 128 << 10;

/// Batches of blobs that are asked for in a message longer than this are taken for full ones, without a look.
const LOOKED_AT_BYTES: u64 = 16 << 10;

/// What a call of a client may hold. `has_peers`: blobs may come from other nodes.
pub(super) fn of_client(method: Method, first: &First, has_peers: bool) -> Cost {
    let message = first.message_bytes();
    // What another node has sent before it was asked to wait.
    let window = if has_peers { u64::from(limits::PEER_STREAM_WINDOW_BYTES) } else { 0 };
    let further = match method {
        Method::FindMissingBlobs => message * DIGESTS_FACTOR,
        Method::BatchUpdateBlobs => message * BATCH_FACTOR,
        Method::BatchReadBlobs => message + batch_bytes(first) * BATCH_FACTOR,
        Method::Read => size_bytes(first).saturating_mul(2).min(PIECES_BYTES + window),
        Method::Write => message + size_bytes(first).min(u64::from(limits::STREAM_WINDOW_BYTES)),
        Method::GetTree => message + TREE_BYTES,
        Method::SplitBlob | Method::SpliceBlob => message + CHUNKS_BYTES,
        Method::GetActionResult => message + RESULT_BYTES,
        Method::FetchBlob | Method::FetchDirectory | Method::PushBlob | Method::PushDirectory => message + WALK_BYTES,
        Method::UpdateActionResult
        | Method::QueryWriteStatus
        | Method::Check
        | Method::Watch
        | Method::List
        | Method::Reflection
        | Method::GetCapabilities
        | Method::Other => message * BATCH_FACTOR,
    };
    let to_come = if method == Method::Write { size_bytes(first) } else { 0 };
    Cost { held_bytes: CALL_BYTES + further, sent_bytes: sent_bytes(message.max(to_come)) }
}

/// What a client may have sent of this before it is read.
fn sent_bytes(bytes: u64) -> u64 {
    CALL_BYTES + bytes.min(u64::from(limits::STREAM_WINDOW_BYTES))
}

/// Whether a call of a client is let in whatever there is to do: it costs next to nothing, and whoever asks takes the node for
/// dead when nobody answers. What is not offered is refused at once.
pub(super) fn is_free(method: Method) -> bool {
    match method {
        Method::Check | Method::Watch | Method::List | Method::Reflection | Method::GetCapabilities | Method::Other => {
            true
        }
        Method::FindMissingBlobs
        | Method::BatchUpdateBlobs
        | Method::BatchReadBlobs
        | Method::GetTree
        | Method::SplitBlob
        | Method::SpliceBlob
        | Method::GetActionResult
        | Method::UpdateActionResult
        | Method::Read
        | Method::Write
        | Method::QueryWriteStatus
        | Method::FetchBlob
        | Method::FetchDirectory
        | Method::PushBlob
        | Method::PushDirectory => false,
    }
}

/// What a call of another node may hold.
pub(super) fn of_node(path: &str, first: &First) -> Cost {
    let message = first.message_bytes();
    let further = match path {
        "/casbah.peer.v1.Blobs/Find" => message * DIGESTS_FACTOR,
        "/casbah.peer.v1.Blobs/Read" => (peer_read_bytes(first) * 2).min(PIECES_BYTES),
        "/casbah.peer.v1.Blobs/ReadBatch" => message + limits::PEER_BATCH_BYTES * BATCH_FACTOR,
        "/casbah.peer.v1.Blobs/Store" => peer_store_bytes(first).min(STORED_BYTES),
        "/casbah.peer.v1.Blobs/StoreBatch" => message * BATCH_FACTOR,
        "/casbah.peer.v1.Inventories/ListBlobs" | "/casbah.peer.v1.Inventories/ListActions" => {
            message + limits::PEER_LIST_BYTES as u64 * BATCH_FACTOR
        }
        _ => message * BATCH_FACTOR + PIECES_BYTES,
    };
    Cost { held_bytes: CALL_BYTES + further, sent_bytes: sent_bytes(message) }
}

/// Whether a call of another node is let in whatever there is to do: the log and the membership, without which nothing goes on.
pub(super) fn is_free_for_nodes(path: &str) -> bool {
    path.starts_with("/casbah.peer.v1.Raft/") || path.starts_with("/casbah.peer.v1.Membership/")
}

/// The size of the blob that a ByteStream call is about; that of a large one if it cannot be told.
fn size_bytes(first: &First) -> u64 {
    let name = |name: &str| {
        let parsed = ResourceName::for_reading(name).or_else(|_| ResourceName::for_writing(name));
        // What is no name is refused soon.
        parsed.map_or(0, |name| name.digest.size_bytes())
    };
    first.name().map_or(u64::MAX, name)
}

/// The size of the blob that another node reads.
fn peer_read_bytes(first: &First) -> u64 {
    let request = first.whole().and_then(|whole| peer::ReadRequest::decode(whole).ok());
    request.and_then(|request| request.digest).map_or(PIECES_BYTES, |digest| digest.size_bytes.min(PIECES_BYTES))
}

/// The size of the blob that another node sends.
fn peer_store_bytes(first: &First) -> u64 {
    let request = first.whole().and_then(|whole| peer::StoreRequest::decode(whole).ok());
    match request.and_then(|request| request.part) {
        Some(peer::store_request::Part::Begin(begin)) => begin.digest.map_or(0, |digest| digest.size_bytes),
        _ => STORED_BYTES,
    }
}

/// Bytes of the blobs that a batch is to bring.
fn batch_bytes(first: &First) -> u64 {
    if first.message_bytes() > LOOKED_AT_BYTES {
        return MAX_BATCH_BYTES;
    }
    let Some(request) = first.whole().and_then(|whole| api::BatchReadBlobsRequest::decode(whole).ok()) else {
        return MAX_BATCH_BYTES;
    };
    let sizes = request.digests.iter().map(|digest| u64::try_from(digest.size_bytes).unwrap_or(0));
    sizes.fold(0, u64::saturating_add).min(MAX_BATCH_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use casbah_proto::google::bytestream;

    const HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn first(message: &impl prost::Message) -> First {
        let bytes = message.encode_to_vec();
        let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
        First { bytes: [[0].as_slice(), &length, &bytes].concat().into() }
    }

    fn read(size: u64) -> First {
        first(&bytestream::ReadRequest { resource_name: format!("x/blobs/{HASH}/{size}"), ..Default::default() })
    }

    #[test]
    fn small_blobs_cost_little_and_large_ones_no_more_than_their_pieces() {
        let cost = |size| of_client(Method::Read, &read(size), false).held_bytes - CALL_BYTES;
        assert_eq!((cost(0), cost(1000), cost(1 << 40)), (0, 2000, PIECES_BYTES));
        assert!(of_client(Method::Read, &read(1 << 40), true).held_bytes > CALL_BYTES + PIECES_BYTES);
    }

    #[test]
    fn an_upload_costs_its_message_and_its_window() {
        let write = |size: u64, message: usize| {
            let resource_name = format!("uploads/1/blobs/{HASH}/{size}");
            let write = bytestream::WriteRequest { resource_name, data: vec![1; message].into(), ..Default::default() };
            of_client(Method::Write, &first(&write), false).held_bytes
        };
        assert!(write(1000, 1000) < CALL_BYTES + 3000);
        assert!(write(1 << 40, 2 << 20) > 4 << 20);
    }

    #[test]
    fn what_waits_is_what_was_sent_and_not_what_is_asked_for() {
        assert_eq!(
            of_client(Method::Read, &read(1 << 40), true).sent_bytes,
            CALL_BYTES + read(1 << 40).message_bytes()
        );
        let resource_name = format!("uploads/1/blobs/{HASH}/{}", 1_u64 << 40);
        let write = first(&bytestream::WriteRequest { resource_name, ..Default::default() });
        let window = u64::from(limits::STREAM_WINDOW_BYTES);
        assert_eq!(of_client(Method::Write, &write, true).sent_bytes, CALL_BYTES + window);
    }

    #[test]
    fn a_batch_that_is_asked_for_costs_what_it_brings() {
        let batch = |count: usize, size_bytes| {
            let digest = api::Digest { hash: HASH.into(), size_bytes };
            let request = api::BatchReadBlobsRequest { digests: vec![digest; count], ..Default::default() };
            of_client(Method::BatchReadBlobs, &first(&request), false).held_bytes
        };
        assert!(batch(10, 100) < CALL_BYTES + 4000);
        assert!(batch(10, i64::MAX) < CALL_BYTES + (10 << 20));
        assert!(batch(10, -1) < CALL_BYTES + 4000);
        assert!(batch(10_000, 1) > 8 << 20, "not looked at");
    }

    #[test]
    fn what_is_no_request_costs_as_much_as_a_large_one_or_is_refused_soon() {
        let nothing = First { bytes: Bytes::from_static(b"\0\0\0\0\x02\xff\xff") };
        assert_eq!(of_client(Method::Read, &nothing, false).held_bytes, CALL_BYTES + PIECES_BYTES);
        assert_eq!(of_client(Method::BatchReadBlobs, &nothing, false).held_bytes, CALL_BYTES + 2 + 2 * MAX_BATCH_BYTES);
        assert_eq!(of_client(Method::FindMissingBlobs, &First::default(), false).held_bytes, CALL_BYTES);
        let longest = First { bytes: Bytes::from_static(b"\0\xff\xff\xff\xff") };
        for method in [Method::FindMissingBlobs, Method::Write, Method::BatchUpdateBlobs] {
            assert!(of_client(method, &longest, true).held_bytes >= u64::from(u32::MAX));
        }
    }

    #[test]
    fn the_log_and_the_membership_are_always_let_in() {
        for path in ["/casbah.peer.v1.Raft/Append", "/casbah.peer.v1.Membership/Heartbeat"] {
            assert!(is_free_for_nodes(path));
        }
        assert!(!is_free_for_nodes("/casbah.peer.v1.Blobs/Find"));
        assert!(is_free(Method::Check) && is_free(Method::GetCapabilities) && !is_free(Method::FindMissingBlobs));
    }
}
