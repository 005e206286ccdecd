//! Copies that were damaged here are made good from other nodes at once: until then this node cannot say of their blobs whether they
//! are there, and one more loss may be one too many.

use std::time::Duration;

use casbah_cluster::digest::Digest;
use casbah_cluster::membership::NodeId;
use casbah_cluster::ring::partition_of;
use futures_util::stream::{self, StreamExt as _};

use crate::replicate::copy;
use crate::replicate::nodes::Nodes;
use crate::store::Presence;

/// Blobs that are made good at once, so that they leave room for what clients ask.
const RESTORED_AT_ONCE: usize = 4;

/// The pause before what could not be made good is tried again, ...
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// ... which doubles up to this: nodes that are away come back, or are marked lost.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What has become of a lost blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It is here again, or known not to be anywhere.
    Settled,
    /// A node that may have it has not answered.
    InDoubt,
}

/// Makes good what is lost, now and later. Never ends by itself.
///
/// # Cancel safety
/// May be dropped.
pub async fn restore(nodes: Nodes) {
    let mut losses = nodes.store().losses();
    let mut pause = FIRST_PAUSE;
    loop {
        losses.borrow_and_update();
        let is_settled = restore_all(&nodes).await;
        pause = if is_settled { FIRST_PAUSE } else { (2 * pause).min(LONGEST_PAUSE) };
        tokio::select! {
            changed = losses.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause), if !is_settled => {}
        }
    }
}

/// Tries to make good all that is lost now. Whether nothing is in doubt any more.
pub(crate) async fn restore_all(nodes: &Nodes) -> bool {
    let lost = stream::iter(nodes.store().lost()).map(|digest| restore_one(nodes, digest));
    let outcomes = lost.buffer_unordered(RESTORED_AT_ONCE);
    outcomes.fold(true, |all, outcome| async move { all && outcome == Outcome::Settled }).await
}

async fn restore_one(nodes: &Nodes, digest: Digest) -> Outcome {
    let view = nodes.view();
    if view.is_single() {
        // There is nobody to ask, and nobody who asks: the blob is missing, and this is remembered in case that there will be.
        return Outcome::InDoubt;
    }
    let here = view.self_id();
    let candidates = view.candidates(partition_of(&digest));
    let mut others: Vec<NodeId> = candidates.iter().copied().filter(|node| *node != here).collect();
    others.sort_by_key(|node| nodes.distance(&view, *node).unwrap_or(u64::MAX));
    let mut is_in_doubt = false;
    for node in others {
        match nodes.remote().find(node, &[digest], false).await.as_deref() {
            Ok([Presence::Here]) => match copy::copy(nodes, node, here, here, &digest).await {
                Ok(()) => {
                    tracing::info!(%digest, from = %node, "a damaged copy of a blob has been replaced");
                    return Outcome::Settled;
                }
                Err(error) => {
                    is_in_doubt = true;
                    tracing::warn!(%digest, from = %node, %error, "a damaged copy of a blob could not be replaced");
                }
            },
            // One that has lost it too has it no more than one that never had it.
            Ok([Presence::Absent | Presence::Unsure]) => {}
            Ok(_) | Err(_) => is_in_doubt = true,
        }
    }
    if is_in_doubt {
        return Outcome::InDoubt;
    }
    nodes.store().give_up(&digest);
    Outcome::Settled
}
