//! How a node leaves its cluster by itself, as its pod is removed for good; and how it stays after all.

use std::future::Future;
use std::io;
use std::time::Duration;

use casbah_cluster::membership::NodeId;
use tokio::time::{Instant, timeout_at};

use super::departure::Departure;
use super::place::Place;
use crate::index::Group;
use crate::observe::orders::{Order, OrderError};
use crate::store::Store;

/// Between two looks at what is left, and two attempts at an order.
const PAUSE: Duration = Duration::from_millis(250);

/// Between two lines about what is left.
const LINE_PAUSE: Duration = Duration::from_secs(10);

/// How long being taken out may take once nothing is left: the log agrees on it within a moment, or the leader changes.
const REMOVE_PATIENCE: Duration = Duration::from_secs(5);

/// Why a node has not left.
#[derive(Debug, thiserror::Error)]
enum Remains {
    /// The others have not got all of it within the time.
    #[error("it has had no more time")]
    NoTime,
    /// The cluster does not let it go: it is the last one, for instance.
    #[error("the cluster does not let it go: {reason}")]
    Refused {
        /// In a sentence.
        reason: String,
    },
    /// The disk.
    #[error("its directory cannot be written")]
    Disk(#[from] io::Error),
}

impl Place {
    /// Gives all that this node has to others, and its vote, and has it taken out of the cluster; within `deadline`, or not at all.
    /// Goes back on it when `is_wanted` comes first. What came of it is written to the log.
    ///
    /// # Cancel safety
    /// May be dropped: the node then goes on leaving while it is away, and stays when it is started again.
    pub(in crate::run) async fn leave(
        &self,
        group: &Group,
        store: &Store,
        deadline: Duration,
        is_wanted: impl Future<Output = ()>,
    ) {
        let (node, until) = (group.node(), Instant::now() + deadline);
        tracing::info!(%node, seconds = deadline.as_secs(), "this pod is removed for good: what the node has is moved to others");
        let outcome = tokio::select! {
            outcome = timeout_at(until, self.give_all(group, store)) => outcome.unwrap_or(Err(Remains::NoTime)),
            () = is_wanted => {
                tracing::info!(%node, "this pod is not removed after all: the node stays in its cluster");
                return self.stay(group).await;
            }
        };
        let status = store.status();
        if let Err(error) = outcome {
            tracing::warn!(
                %node, %error, blobs = status.blobs, bytes = status.bytes,
                "this node ends, and could not give away all it has. Others have further copies and make new ones of them; what else there is \
                 lies on its volume: scale up again to have it back, and keep the volume until then"
            );
            return;
        }
        match timeout_at(until.max(Instant::now() + REMOVE_PATIENCE), self.go(group)).await {
            Ok(Ok(())) => {
                tracing::info!(%node, "all that this node had is with others, and it is no member of the cluster any more")
            }
            Ok(Err(_)) | Err(_) => tracing::warn!(
                %node,
                "all that this node had is with others, but nobody has said that it is no member any more: casbah node list tells, on another \
                 node, and casbah node remove takes it out"
            ),
        }
    }

    /// Has a node that began to leave, and was started again, stay.
    ///
    /// # Cancel safety
    /// May be dropped: it is done when the node is started the next time.
    pub(in crate::run) async fn come_back(&self, group: &Group) {
        match Departure::of(&self.inner.dir) {
            Ok(None) => {}
            Ok(Some(_)) => self.stay(group).await,
            Err(error) => tracing::warn!(%error, "it is not known whether this node was about to leave"),
        }
    }

    /// Until nothing that counts is here.
    async fn give_all(&self, group: &Group, store: &Store) -> Result<(), Remains> {
        let node = group.node();
        Departure::Begun.keep(&self.inner.dir)?;
        loop {
            match self.carry_out(group, Order::Drain { node: node.0 }).await {
                Ok(()) => break,
                Err(OrderError::Refused { reason }) => return Err(Remains::Refused { reason }),
                Err(OrderError::NotNow { reason }) => {
                    tracing::debug!(reason, "the cluster does not hear yet that this node leaves")
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        let mut told = Instant::now();
        while self.counts(group, node) {
            if told.elapsed() >= LINE_PAUSE {
                let status = store.status();
                tracing::info!(%node, blobs = status.blobs, bytes = status.bytes, "the others are not yet given all that this node had");
                told = Instant::now();
            }
            tokio::time::sleep(PAUSE).await;
        }
        // Before it is taken out: nobody can tell afterwards whether it was.
        Ok(Departure::Done.keep(&self.inner.dir)?)
    }

    /// Whether anybody would miss this node: it has a part of the blobs, or a vote.
    fn counts(&self, group: &Group, node: NodeId) -> bool {
        let holds = group.state().borrow().as_ref().is_none_or(|state| state.holds_blobs(node));
        holds || group.is_leader() || group.status().voters.contains(&node)
    }

    /// Has it taken out.
    async fn go(&self, group: &Group) -> Result<(), OrderError> {
        let node = group.node();
        let order = || Order::Remove { node: node.0, force: false };
        loop {
            match self.carry_out(group, order()).await {
                Err(OrderError::NotNow { reason }) => {
                    tracing::debug!(reason, "the cluster does not hear yet that this node has left")
                }
                outcome => return outcome,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Has the cluster keep it, for as long as that takes.
    async fn stay(&self, group: &Group) {
        let order = Order::Undrain { node: group.node().0 };
        loop {
            match self.carry_out(group, order.clone()).await {
                Ok(()) => break,
                Err(error) => tracing::debug!(%error, "the cluster does not hear yet that this node stays"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        match Departure::revoke(&self.inner.dir) {
            Ok(()) => tracing::info!(node = %group.node(), "this node was about to leave, and stays"),
            Err(error) => tracing::warn!(%error, "the directory goes on saying that this node was about to leave"),
        }
    }
}
