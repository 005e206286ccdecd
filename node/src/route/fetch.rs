//! Whole blobs, many at once: those that are here from here, the others from their nodes, by one call to each.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use casbah_cluster::digest::Digest;
use casbah_cluster::membership::NodeId;
use casbah_cluster::view::View;
use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _};
use tonic::Status;

use crate::config::limits::PEER_BATCH_BYTES;
use crate::forward::{Form, PeerError};
use crate::replicate::Nodes;
use crate::route::error::ReadError;
use crate::route::flights::{Flight, Flights, Seat};
use crate::route::reading::Reader;
use crate::route::rounds::{Answer, Outcome, Sought, seek};
use crate::store;

/// Blobs of one batch that this node's store works on at once, so that they share the disk's latency.
const BATCH_PARALLEL: usize = 16;

/// Blobs too large for a batch that are read from other nodes at once.
const LARGE_PARALLEL: usize = 2;

/// A blob, whole.
pub(super) type Whole = (Bytes, Form);

/// How blobs are wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// None may be larger.
    pub(super) limit_bytes: u64,
    /// Zstd frames will do.
    pub(super) takes_zstd: bool,
}

/// A blob that is not here.
struct Absent {
    position: usize,
    digest: Digest,
    /// What this node's store says.
    error: store::ReadError,
}

/// The whole blobs, in the order asked for.
pub(super) async fn get_many(
    nodes: &Nodes,
    flights: &Flights,
    digests: &[Digest],
    wanted: Wanted,
) -> Vec<Result<Whole, ReadError>> {
    let reads = stream::iter(digests.to_vec()).map(|digest| get_here(nodes, digest, wanted));
    let here: Vec<Result<Whole, store::ReadError>> = reads.buffered(BATCH_PARALLEL).collect().await;
    let view = nodes.view();
    if view.is_single() {
        return here.into_iter().map(|outcome| Ok(outcome?)).collect();
    }
    let mut outcomes: Vec<Result<Whole, ReadError>> = Vec::with_capacity(digests.len());
    let mut absent = Vec::new();
    for (position, (digest, outcome)) in digests.iter().zip(here).enumerate() {
        outcomes.push(match outcome {
            Ok(whole) => {
                nodes.touch_others(&view, digest, view.self_id());
                Ok(whole)
            }
            Err(error) if !may_be_elsewhere(&error) => Err(error.into()),
            Err(error) => {
                absent.push(Absent { position, digest: *digest, error });
                Err(ReadError::NotFound { digest: *digest })
            }
        });
    }
    for (position, outcome) in get_elsewhere(nodes, &view, flights, absent, wanted).await {
        if let Some(place) = outcomes.get_mut(position) {
            *place = outcome;
        }
    }
    outcomes
}

/// One whole blob.
pub(super) async fn get(nodes: &Nodes, flights: &Flights, digest: &Digest, wanted: Wanted) -> Result<Whole, ReadError> {
    let error = match get_here(nodes, *digest, wanted).await {
        Ok(whole) => {
            let view = nodes.view();
            nodes.touch_others(&view, digest, view.self_id());
            return Ok(whole);
        }
        Err(error) => error,
    };
    let view = nodes.view();
    if view.is_single() || !may_be_elsewhere(&error) {
        return Err(error.into());
    }
    let absent = vec![Absent { position: 0, digest: *digest, error }];
    let outcomes = get_elsewhere(nodes, &view, flights, absent, wanted).await;
    let outcome = outcomes.into_iter().next().map(|(_, outcome)| outcome);
    outcome.unwrap_or(Err(ReadError::Unavailable { digest: *digest, source: None }))
}

/// Whether another node may do better.
pub(super) fn may_be_elsewhere(error: &store::ReadError) -> bool {
    !matches!(error, store::ReadError::OutOfRange { .. } | store::ReadError::TooLarge { .. })
}

async fn get_here(nodes: &Nodes, digest: Digest, wanted: Wanted) -> Result<Whole, store::ReadError> {
    let Wanted { limit_bytes, takes_zstd } = wanted;
    let store = nodes.store();
    if takes_zstd
        && digest.size_bytes() <= limit_bytes
        && let Some(frames) = store.read_stored(&digest).await?
    {
        return Ok((frames.whole().await?, Form::Zstd));
    }
    Ok((store.get(&digest, limit_bytes).await?, Form::Identity))
}

async fn get_elsewhere(
    nodes: &Nodes,
    view: &View,
    flights: &Flights,
    absent: Vec<Absent>,
    wanted: Wanted,
) -> Vec<(usize, Result<Whole, ReadError>)> {
    let limit_bytes = wanted.limit_bytes;
    let (too_large, absent): (Vec<_>, Vec<_>) =
        absent.into_iter().partition(|blob| blob.digest.size_bytes() > limit_bytes);
    let too_large = too_large.into_iter().map(|Absent { position, digest, .. }| {
        (position, Err(store::ReadError::TooLarge { digest, limit_bytes }.into()))
    });
    let mut outcomes: Vec<_> = too_large.collect();
    let (small, large): (Vec<_>, Vec<_>) =
        absent.into_iter().partition(|blob| blob.digest.size_bytes() <= PEER_BATCH_BYTES);
    let mut pilots: Vec<(Absent, Option<Flight>)> = Vec::new();
    let mut passengers = Vec::new();
    for blob in small {
        match flights.board(&blob.digest, wanted.takes_zstd) {
            Seat::Pilot(flight) => pilots.push((blob, Some(flight))),
            Seat::Passenger(passenger) => passengers.push((blob, passenger)),
        }
    }
    outcomes.extend(fetch(nodes, view, pilots, wanted).await);
    let mut left_behind = Vec::new();
    for (blob, passenger) in passengers {
        match passenger.wait().await {
            Some(whole) => outcomes.push((blob.position, Ok(whole))),
            None => left_behind.push((blob, None)),
        }
    }
    outcomes.extend(fetch(nodes, view, left_behind, wanted).await);
    let large = stream::iter(large).map(|blob| async move {
        let Absent { position, digest, error } = blob;
        (position, collect(Reader::elsewhere(nodes, &digest, 0, digest.size_bytes(), error).await).await)
    });
    outcomes.extend(large.buffer_unordered(LARGE_PARALLEL).collect::<Vec<_>>().await);
    outcomes
}

/// Reads small blobs from their nodes.
async fn fetch(
    nodes: &Nodes,
    view: &View,
    mut blobs: Vec<(Absent, Option<Flight>)>,
    wanted: Wanted,
) -> Vec<(usize, Result<Whole, ReadError>)> {
    if blobs.is_empty() {
        return Vec::new();
    }
    let sought =
        blobs.iter().enumerate().map(|(at, (blob, _))| Sought::not_here(nodes, view, at, &blob.digest, &blob.error));
    let sought = sought.collect();
    let digests: Arc<Vec<Digest>> = Arc::new(blobs.iter().map(|(blob, _)| blob.digest).collect());
    let ask = |node, positions| {
        let (nodes, digests) = (nodes.clone(), Arc::clone(&digests));
        async move { read_batch(&nodes, node, &digests, positions, wanted).await }.boxed()
    };
    let mut outcomes = Vec::with_capacity(blobs.len());
    for (at, outcome) in seek(nodes, sought, ask).await {
        let Some((blob, flight)) = blobs.get_mut(at) else { continue };
        let outcome = match outcome {
            Outcome::Found(node, (data, form)) => {
                if let Some(flight) = flight.take() {
                    flight.land(&data, form);
                }
                if is_lost(&blob.error) {
                    nodes.mend(view, blob.digest, node, view.self_id());
                }
                nodes.touch_others(view, &blob.digest, node);
                Ok((data, form))
            }
            refused => {
                let digest = blob.digest;
                let error = std::mem::replace(&mut blob.error, store::ReadError::NotFound { digest });
                Err(refused.refusal(&digest, Some(error)))
            }
        };
        outcomes.push((blob.position, outcome));
    }
    outcomes
}

/// Whether this node has no copy.
pub(super) fn is_lost(error: &store::ReadError) -> bool {
    use store::ReadError::{Damaged, Lost, NotFound};
    matches!(error, NotFound { .. } | Damaged { .. } | Lost { .. })
}

async fn read_batch(
    nodes: &Nodes,
    node: NodeId,
    digests: &[Digest],
    positions: Vec<usize>,
    wanted: Wanted,
) -> Answer<Whole> {
    let digests: Vec<Digest> = positions.iter().filter_map(|position| digests.get(*position).copied()).collect();
    let read = nodes.remote().read_batch(node, &digests, wanted.limit_bytes, wanted.takes_zstd).await?;
    let check = |(digest, outcome): (&Digest, Result<Whole, PeerError>)| match outcome {
        Ok((data, Form::Identity)) if data.len() as u64 != digest.size_bytes() => {
            Err(PeerError::Broken(Box::new(Status::data_loss("a blob came with another length than its own"))))
        }
        outcome => outcome,
    };
    Ok(digests.iter().zip(read).map(check).collect())
}

/// The whole of what is read.
pub(super) async fn collect(reader: Result<Reader, ReadError>) -> Result<Whole, ReadError> {
    let mut reader = reader?;
    // Not all at once: what does not come is not held.
    let mut whole = BytesMut::new();
    while let Some(piece) = reader.next().await? {
        whole.extend_from_slice(&piece);
    }
    Ok((whole.freeze(), Form::Identity))
}
