//! The names of what each call between nodes carries: see `proto/peer/v1/membership.proto`.

use http::{HeaderMap, HeaderName, HeaderValue};

use casbah_cluster::membership::{ClusterId, Epoch, NodeId, Protocol};

/// The version of the protocol that the call is in.
pub const PROTOCOL: HeaderName = HeaderName::from_static("casbah-protocol");
/// The cluster's id.
pub const CLUSTER: HeaderName = HeaderName::from_static("casbah-cluster");
/// The caller's node id.
pub const NODE: HeaderName = HeaderName::from_static("casbah-node");
/// The node id of the node that is meant.
pub const PEER: HeaderName = HeaderName::from_static("casbah-peer");
/// The epoch of the layout that the caller has decided by; in an answer, the callee's.
pub const EPOCH: HeaderName = HeaderName::from_static("casbah-epoch");
/// How often the request was forwarded.
pub const HOP: HeaderName = HeaderName::from_static("casbah-hop");
/// What the call is for, where that makes a difference.
pub const PURPOSE: HeaderName = HeaderName::from_static("casbah-purpose");

/// The value of [`PURPOSE`] for copies that no client waits for.
pub const PURPOSE_REPAIR: &str = "repair";

/// Adds what every call carries.
pub(super) fn add_to_every(headers: &mut HeaderMap) {
    headers.insert(HOP, HeaderValue::from_static("1"));
}

/// Adds what calls from member to member carry.
pub(super) fn add(
    headers: &mut HeaderMap,
    (cluster, node): (ClusterId, NodeId),
    protocol: Protocol,
    peer: NodeId,
    epoch: Option<Epoch>,
) {
    add_to_every(headers);
    headers.insert(PROTOCOL, HeaderValue::from(protocol.0));
    headers.insert(CLUSTER, value(&cluster));
    headers.insert(NODE, HeaderValue::from(node.0));
    headers.insert(PEER, HeaderValue::from(peer.0));
    if let Some(epoch) = epoch {
        headers.insert(EPOCH, HeaderValue::from(epoch.0));
    }
}

fn value(id: &ClusterId) -> HeaderValue {
    HeaderValue::from_str(&id.to_string()).expect("hexadecimal digits make a header value")
}

/// The epoch of an answer.
pub(super) fn epoch(headers: &HeaderMap) -> Option<Epoch> {
    headers.get(EPOCH)?.to_str().ok()?.parse().ok().map(Epoch)
}
