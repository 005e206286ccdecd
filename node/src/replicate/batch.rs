//! Many small blobs at once: one message to each node, and not one for each blob.

use std::sync::Arc;

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_cluster::membership::NodeId;
use casbah_cluster::replication::WriteDecision;
use casbah_cluster::ring::partition_of;
use casbah_cluster::view::View;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};

use crate::config::limits::PEER_BATCH_BYTES;
use crate::replicate::acknowledge::acknowledge;
use crate::replicate::copy::{self, Sink, there};
use crate::replicate::error::{CopyError, WriteError};
use crate::replicate::hashing::Hashing;
use crate::replicate::nodes::{Nodes, Room};
use crate::replicate::spread::PIECE_BYTES;
use crate::store::{self, Mismatch, Store};

/// Blobs of one batch that this node's store works on at once, so that they share the disk's latency.
const BATCH_PARALLEL: usize = 16;

/// Blobs on their way, until all of their nodes have them or were given up.
struct Blobs {
    blobs: Vec<(Digest, Bytes)>,
    _room: Option<Room>,
}

/// Stores whole blobs on their nodes; the outcomes are in the order of the blobs.
///
/// # Errors
/// [`WriteError`], for each blob.
///
/// # Cancel safety
/// Dropped half-way, each blob may be stored or not.
pub async fn put_many(nodes: &Nodes, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<(), WriteError>> {
    let view = nodes.view();
    if view.is_single() {
        // The store hashes as it writes.
        let store = nodes.store();
        let digests: Vec<Digest> = blobs.iter().map(|(digest, _)| *digest).collect();
        let puts = stream::iter(blobs).map(|(digest, data)| async move { Ok(store.put(&digest, data).await?) });
        let outcomes = puts.buffered(BATCH_PARALLEL).collect().await;
        return share_if_joined(nodes, &digests, outcomes).await;
    }
    let mut outcomes: Vec<Result<(), WriteError>> = Vec::with_capacity(blobs.len());
    let mut verified = Vec::with_capacity(blobs.len());
    let mut positions = Vec::with_capacity(blobs.len());
    for (position, (digest, data)) in blobs.into_iter().enumerate() {
        let outcome = verify(&digest, &data).await;
        if outcome.is_ok() && !digest.is_empty_blob() {
            verified.push((digest, data));
            positions.push(position);
        }
        outcomes.push(outcome.map_err(WriteError::from));
    }
    let digests: Vec<Digest> = verified.iter().map(|(digest, _)| *digest).collect();
    let spread = spread(nodes, &view, verified).await;
    for ((position, digest), outcome) in positions.into_iter().zip(digests).zip(spread) {
        if let (Some(to), Err(error)) = (outcomes.get_mut(position), outcome) {
            *to = Err(WriteError::too_few(digest, error));
        }
    }
    outcomes
}

/// What a node that was alone has stored it has not stored well enough if others have joined it meanwhile, and may hold what
/// they have compared with it before.
pub(super) async fn share_if_joined(
    nodes: &Nodes,
    digests: &[Digest],
    outcomes: Vec<Result<(), WriteError>>,
) -> Vec<Result<(), WriteError>> {
    let view = nodes.view();
    if view.is_single() {
        return outcomes;
    }
    let here = view.self_id();
    let stored = |(digest, outcome): &(&Digest, &Result<(), WriteError>)| outcome.is_ok() && !digest.is_empty_blob();
    let shared: Vec<Digest> = digests.iter().zip(&outcomes).filter(stored).map(|(digest, _)| *digest).collect();
    let decision = |digest: &Digest| WriteDecision::new(&view, partition_of(digest), |node| nodes.is_away(&view, node));
    let decisions = shared.iter().map(decision).collect();
    let given = Arc::new(shared);
    let shared = acknowledge(nodes, decisions, |node, positions| {
        let (nodes, given) = (nodes.clone(), Arc::clone(&given));
        async move {
            let mut outcomes = Vec::with_capacity(positions.len());
            for digest in positions.iter().filter_map(|position| given.get(*position)) {
                outcomes.push(match node == here {
                    true => Ok(()),
                    false => copy::copy(&nodes, here, node, here, digest).await,
                });
            }
            outcomes
        }
        .boxed()
    })
    .await;
    let mut shared =
        given.iter().zip(shared).map(|(digest, outcome)| outcome.map_err(|error| WriteError::too_few(*digest, error)));
    let again = |(digest, outcome): (&Digest, Result<(), WriteError>)| match outcome {
        Ok(()) if !digest.is_empty_blob() => shared.next().unwrap_or(Ok(())),
        outcome => outcome,
    };
    digests.iter().zip(outcomes).map(again).collect()
}

async fn spread(nodes: &Nodes, view: &View, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<(), Option<CopyError>>> {
    let is_away = |node| nodes.is_away(view, node);
    let decision = |digest: &Digest| WriteDecision::new(view, partition_of(digest), is_away);
    let decisions = blobs.iter().map(|(digest, _)| decision(digest)).collect();
    let bytes = blobs.iter().map(|(_, data)| data.len()).sum();
    let blobs = Arc::new(Blobs { blobs, _room: nodes.room(bytes).await });
    let here = view.self_id();
    acknowledge(nodes, decisions, |node, positions| {
        let (nodes, blobs) = (nodes.clone(), Arc::clone(&blobs));
        async move {
            let given = positions.iter().filter_map(|position| blobs.blobs.get(*position).cloned()).collect();
            match node == here {
                true => store_here(nodes.store(), given).await,
                false => store_there(&nodes, node, here, given).await,
            }
        }
        .boxed()
    })
    .await
}

async fn store_here(store: &Store, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<(), CopyError>> {
    let puts = stream::iter(blobs);
    let puts = puts.map(|(digest, data)| async move { Ok(store.put_verified(&digest, data).await?) });
    puts.buffered(BATCH_PARALLEL).collect().await
}

/// In one batch, but for those that are too large for one.
async fn store_there(
    nodes: &Nodes,
    node: NodeId,
    here: NodeId,
    blobs: Vec<(Digest, Bytes)>,
) -> Vec<Result<(), CopyError>> {
    let is_large = |data: &Bytes| data.len() as u64 > PEER_BATCH_BYTES;
    let small: Vec<_> = blobs.iter().filter(|(_, data)| !is_large(data)).cloned().collect();
    let count = small.len();
    let batch = async {
        match small.is_empty() {
            true => Vec::new(),
            false => match nodes.remote().store_batch(node, small).await {
                Ok(outcomes) => {
                    outcomes.into_iter().map(|outcome| outcome.map_err(|error| there(node, error))).collect()
                }
                Err(error) => {
                    let error = Arc::new(error);
                    let failed = |_| Err(CopyError::There { node, source: Arc::clone(&error) });
                    (0..count).map(failed).collect()
                }
            },
        }
    };
    let large = blobs.iter().filter(|(_, data)| is_large(data));
    let large = join_all(large.map(|(digest, data)| stream_there(nodes, node, here, digest, data)));
    let (batch, large) = futures_util::future::join(batch, large).await;
    let (mut batch, mut large) = (batch.into_iter(), large.into_iter());
    let outcome = |data: &Bytes| if is_large(data) { large.next() } else { batch.next() };
    blobs
        .iter()
        .map(|(_, data)| data)
        .map(outcome)
        .map(|outcome| outcome.unwrap_or(Err(CopyError::GivenUp { node })))
        .collect()
}

async fn stream_there(
    nodes: &Nodes,
    node: NodeId,
    here: NodeId,
    digest: &Digest,
    data: &Bytes,
) -> Result<(), CopyError> {
    let mut sink = Sink::open(nodes, node, here, digest).await?;
    let mut rest = data.clone();
    while !rest.is_empty() {
        sink.send(rest.split_to(rest.len().min(PIECE_BYTES))).await?;
    }
    sink.commit().await
}

/// Whether these are the bytes of the digest.
async fn verify(digest: &Digest, data: &Bytes) -> Result<(), store::WriteError> {
    let (expected, received_bytes) = (*digest, data.len() as u64);
    let mismatch = match received_bytes.cmp(&digest.size_bytes()) {
        std::cmp::Ordering::Less => Mismatch::TooShort { received_bytes },
        std::cmp::Ordering::Greater => Mismatch::TooLong { received_bytes },
        std::cmp::Ordering::Equal => {
            // Hashing takes a while, between which others shall have their turn.
            tokio::task::consume_budget().await;
            let mut hashing = Hashing::new(digest);
            hashing.add(vec![data.clone()]).await;
            match hashing.finish().await {
                Some(actual) if actual == expected => return Ok(()),
                Some(actual) => Mismatch::Hash { actual: Box::new(actual) },
                None => return Err(store::WriteError::Closed { digest: expected }),
            }
        }
    };
    Err(store::WriteError::Mismatch { expected, mismatch })
}
