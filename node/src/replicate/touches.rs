//! Uses that other nodes are to know of: a blob that was read from one node, or found on one, is not to be evicted by the others
//! (G4). A node that is away is told when it is back.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use casbah_cluster::digest::Digest;
use casbah_cluster::membership::NodeId;
use futures_util::future::join_all;

use crate::replicate::nodes::Nodes;

/// How long uses are gathered before they are told. Blobs stay for hours after their last use.
const INTERVAL: Duration = Duration::from_secs(1);

/// Uses that wait to be told, some 100 bytes each, most of them to nodes that are away. Beyond this they are told by the next use
/// alone.
const WAITING_MAX: usize = 128 << 10;

/// Uses that wait to be told.
#[derive(Debug, Default)]
pub(super) struct Touches {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    count: usize,
    by_node: HashMap<NodeId, HashSet<Digest>>,
    /// A task is about to tell them.
    is_to_be_told: bool,
    /// Some were forgotten, which is told once.
    has_overflowed: bool,
}

// === impl Touches ===

impl Touches {
    /// Has these nodes be told of a use, with others that come soon.
    pub(super) fn add(&self, nodes: &Nodes, digest: &Digest, others: impl Iterator<Item = NodeId>) {
        let mut waiting = self.lock();
        let mut is_new = false;
        for node in others {
            is_new |= waiting.add(node, *digest);
        }
        if is_new && !std::mem::replace(&mut waiting.is_to_be_told, true) {
            let nodes = nodes.clone();
            nodes.clone().spawn(async move {
                tokio::time::sleep(INTERVAL).await;
                nodes.touches().tell(&nodes).await;
            });
        }
    }

    /// Tells all nodes that are there what waits for them.
    pub(super) async fn tell(&self, nodes: &Nodes) {
        let view = nodes.view();
        let told: HashMap<NodeId, HashSet<Digest>> = {
            let mut waiting = self.lock();
            waiting.is_to_be_told = false;
            let (told, kept): (HashMap<_, _>, HashMap<_, _>) = std::mem::take(&mut waiting.by_node)
                .into_iter()
                .filter(|(node, _)| view.member(*node).is_some())
                .partition(|(node, _)| nodes.remote().health(*node).reachable);
            waiting.by_node = kept;
            waiting.count = waiting.by_node.values().map(HashSet::len).sum();
            told
        };
        join_all(told.into_iter().map(|(node, digests)| async move {
            let asked: Vec<Digest> = digests.into_iter().collect();
            if let Err(error) = nodes.remote().find(node, &asked, true).await {
                tracing::debug!(%node, %error, "uses of blobs could not be told yet");
                let mut waiting = self.lock();
                for digest in asked {
                    waiting.add(node, digest);
                }
            }
        }))
        .await;
    }

    /// Tells what was left, for as long as this is polled: nodes come back while nobody uses anything.
    pub(super) async fn keep_telling(&self, nodes: &Nodes) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let waits = {
                let waiting = self.lock();
                waiting.count > 0 && !waiting.is_to_be_told
            };
            if waits {
                self.tell(nodes).await;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Waiting ===

impl Waiting {
    /// Whether it was added.
    fn add(&mut self, node: NodeId, digest: Digest) -> bool {
        if self.count >= WAITING_MAX {
            if !std::mem::replace(&mut self.has_overflowed, true) {
                tracing::warn!(%node, "more blobs are used than nodes that are away can be told of when they are back");
            }
            return false;
        }
        let is_new = self.by_node.entry(node).or_default().insert(digest);
        self.count += usize::from(is_new);
        is_new
    }
}
