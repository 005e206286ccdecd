//! Many blobs looked for at once: each node is asked for all of its blobs by one call, round after round, until each of them
//! was found, or is nowhere, or cannot be told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use casbah_cluster::digest::Digest;
use casbah_cluster::membership::{Epoch, NodeId};
use casbah_cluster::replication::{ReadDecision, Verdict};
use casbah_cluster::ring::partition_of;
use casbah_cluster::view::View;
use futures_util::future::{BoxFuture, join_all};

use crate::forward::PeerError;
use crate::replicate::Nodes;
use crate::route::error::{NodeError, ReadError};
use crate::store;

/// A blob that is looked for; it goes by its position in what the caller was asked.
pub(super) struct Sought {
    pub(super) position: usize,
    decision: ReadDecision,
    began: Instant,
    /// It goes on by a view that is known to be old: what is found is found, and nothing is missing.
    is_by_old_view: bool,
    /// Of the last node that did not answer.
    error: Option<NodeError>,
}

/// What became of it.
pub(super) enum Outcome<T> {
    /// A node has it.
    Found(NodeId, T),
    /// It is nowhere.
    Missing,
    /// A node that may have it does not answer.
    Unavailable(Option<NodeError>),
}

/// What a node answers: for each blob, what it has of it; `NotFound` if that is nothing.
pub(super) type Answer<T> = Result<Vec<Result<T, PeerError>>, PeerError>;

// === impl Outcome ===

impl<T> Outcome<T> {
    /// Why a blob was not read, which this node's store does not have either.
    pub(super) fn refusal(self, digest: &Digest, here: Option<store::ReadError>) -> ReadError {
        let digest = *digest;
        match (self, here) {
            (
                Outcome::Missing,
                Some(
                    error @ (store::ReadError::NotFound { .. }
                    | store::ReadError::Damaged { .. }
                    | store::ReadError::Lost { .. }),
                ),
            ) => ReadError::Here(error),
            (Outcome::Missing, _) => ReadError::NotFound { digest },
            (
                Outcome::Unavailable(None),
                Some(error @ (store::ReadError::Io { .. } | store::ReadError::Busy { .. })),
            ) => ReadError::Here(error),
            (Outcome::Unavailable(source), _) => ReadError::Unavailable { digest, source },
            (Outcome::Found(..), _) => ReadError::Unavailable { digest, source: None },
        }
    }
}

// === impl Sought ===

impl Sought {
    /// A blob that is sought on all nodes.
    pub(super) fn new(nodes: &Nodes, view: &View, position: usize, digest: &Digest) -> Sought {
        let decision = ReadDecision::new(view, partition_of(digest), |node| nodes.distance(view, node));
        Sought { position, decision, began: Instant::now(), is_by_old_view: false, error: None }
    }

    /// A blob that is not here, for this reason.
    pub(super) fn not_here(
        nodes: &Nodes,
        view: &View,
        position: usize,
        digest: &Digest,
        error: &store::ReadError,
    ) -> Sought {
        let mut blob = Sought::new(nodes, view, position, digest);
        blob.heard(nodes.epoch_of(view.self_id()));
        match error {
            store::ReadError::NotFound { .. } => blob.is_not_on(view.self_id()),
            // A damaged copy was dropped, and an upload may have been acknowledged because of it.
            _ => blob.is_perhaps_on(view.self_id(), None),
        }
        blob
    }

    /// A node has answered by this layout. To be told before what it answered.
    pub(super) fn heard(&mut self, epoch: Epoch) {
        self.decision.heard(epoch);
    }

    /// Goes on by a view that has the layout that a node has answered by, if that is a newer one.
    pub(super) async fn catch_up(&mut self, nodes: &Nodes) {
        if let Some(epoch) = self.behind() {
            let view = nodes.caught_up(epoch).await;
            self.decide_by(nodes, view.as_deref());
        }
    }

    fn behind(&self) -> Option<Epoch> {
        match self.verdict() {
            Verdict::Behind(epoch) if !self.is_by_old_view => Some(epoch),
            _ => None,
        }
    }

    fn verdict(&self) -> Verdict {
        self.decision.verdict_after(self.began.elapsed())
    }

    fn decide_by(&mut self, nodes: &Nodes, view: Option<&View>) {
        match view {
            Some(view) => self.decision.revise(view, |node| nodes.distance(view, node)),
            None => self.is_by_old_view = true,
        }
    }

    /// A node has looked and not found it.
    pub(super) fn is_not_on(&mut self, node: NodeId) {
        self.decision.answered_no(node);
    }

    /// A node has not answered.
    pub(super) fn is_perhaps_on(&mut self, node: NodeId, error: Option<NodeError>) {
        self.decision.failed(node);
        self.error = error.or_else(|| self.error.take());
    }

    /// The next node to ask, or what is known when there is none.
    pub(super) fn next<T>(&mut self) -> Result<NodeId, Outcome<T>> {
        let next = match self.verdict() {
            // Whoever is behind has tried to catch up.
            Verdict::Ask(_) | Verdict::Behind(_) => self.decision.ask_next(),
            Verdict::Missing => return Err(Outcome::Missing),
            Verdict::Unavailable | Verdict::Wait => None,
        };
        next.ok_or_else(|| Outcome::Unavailable(self.error.take()))
    }
}

/// Asks until all is known. `ask` has the positions of what a node is asked for.
pub(super) async fn seek<'a, T>(
    nodes: &Nodes,
    mut sought: Vec<Sought>,
    ask: impl Fn(NodeId, Vec<usize>) -> BoxFuture<'a, Answer<T>>,
) -> Vec<(usize, Outcome<T>)> {
    let mut outcomes = Vec::with_capacity(sought.len());
    loop {
        let mut calls: BTreeMap<NodeId, Vec<Sought>> = BTreeMap::new();
        if let Some(epoch) = sought.iter().filter_map(Sought::behind).max() {
            let view = nodes.caught_up(epoch).await;
            let behind = sought.iter_mut().filter(|blob| blob.behind().is_some());
            behind.for_each(|blob| blob.decide_by(nodes, view.as_deref()));
        }
        for mut blob in sought {
            match blob.next() {
                Ok(node) => calls.entry(node).or_default().push(blob),
                Err(outcome) => outcomes.push((blob.position, outcome)),
            }
        }
        if calls.is_empty() {
            return outcomes;
        }
        let answers = calls.into_iter().map(|(node, blobs)| {
            let answer = ask(node, blobs.iter().map(|blob| blob.position).collect());
            async move { (node, blobs, answer.await) }
        });
        sought = Vec::new();
        for (node, blobs, answer) in join_all(answers).await {
            let (answers, silence) = match answer {
                Ok(answers) => (answers, None),
                Err(error) => (Vec::new(), Some(NodeError { node, source: Arc::new(error) })),
            };
            let mut answers = answers.into_iter();
            let epoch = nodes.epoch_of(node);
            for mut blob in blobs {
                blob.heard(epoch);
                match answers.next() {
                    Some(Ok(found)) => {
                        outcomes.push((blob.position, Outcome::Found(node, found)));
                        continue;
                    }
                    Some(Err(PeerError::NotFound)) => blob.is_not_on(node),
                    Some(Err(error)) => {
                        blob.is_perhaps_on(node, Some(NodeError { node, source: Arc::new(error) }));
                    }
                    None => blob.is_perhaps_on(node, silence.clone()),
                }
                sought.push(blob);
            }
        }
    }
}
