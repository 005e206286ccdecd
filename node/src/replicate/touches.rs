//! Uses that other nodes are to know of: a blob that was read from one node is not to be evicted by the others (G4).

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use casbah_cluster::digest::Digest;
use casbah_cluster::membership::NodeId;
use futures_util::future::join_all;

use crate::replicate::nodes::Nodes;

/// How long uses are gathered before they are told. Blobs stay for hours after their last use.
const INTERVAL: Duration = Duration::from_secs(1);

/// Uses that wait to be told, 80 bytes each. Beyond this they are told by the next read.
const WAITING_MAX: usize = 64 << 10;

/// Uses that wait to be told.
#[derive(Debug, Default)]
pub(super) struct Touches {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    count: usize,
    by_node: HashMap<NodeId, HashSet<Digest>>,
}

// === impl Touches ===

impl Touches {
    /// Has these nodes be told of a use, with others that come soon.
    pub(super) fn add(&self, nodes: &Nodes, digest: &Digest, others: impl Iterator<Item = NodeId>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let was_idle = waiting.count == 0;
        for node in others {
            if waiting.count < WAITING_MAX && waiting.by_node.entry(node).or_default().insert(*digest) {
                waiting.count += 1;
            }
        }
        if was_idle && waiting.count > 0 {
            let nodes = nodes.clone();
            nodes.clone().spawn(async move {
                tokio::time::sleep(INTERVAL).await;
                nodes.touches().tell(&nodes).await;
            });
        }
    }

    async fn tell(&self, nodes: &Nodes) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        join_all(waiting.by_node.into_iter().map(|(node, digests)| async move {
            let digests: Vec<Digest> = digests.into_iter().collect();
            if let Err(error) = nodes.remote().find(node, &digests, true).await {
                tracing::debug!(%node, %error, "uses of blobs could not be told");
            }
        }))
        .await;
    }
}
