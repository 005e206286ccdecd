//! The results of actions in the cluster: the newest wins, wherever it was written.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_cluster::membership::NodeId;
use casbah_cluster::replication::{ReadDecision, Verdict, Version, WriteDecision};
use casbah_cluster::ring::partition_of;
use casbah_cluster::view::View;
use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::Semaphore;

use crate::forward::PeerError;
use crate::index::ActionIndex;
use crate::replicate::{CopyError, Nodes, acknowledge};
use crate::route::error::{ActionError, NodeError};

/// Results on their way to owners that have an older one or none. Beyond this they get it when it is asked for again.
const REPAIRS_MAX: usize = 64;

/// The results of actions in the cluster. Cheap to clone.
#[derive(Clone)]
pub struct Actions {
    nodes: Nodes,
    index: ActionIndex,
    repairs: Arc<Semaphore>,
}

/// What an action's nodes have told.
#[derive(Default)]
struct Told {
    newest: Option<(Version, Bytes)>,
    /// Of each node that has told.
    versions: Vec<(NodeId, Option<Version>)>,
    error: Option<NodeError>,
}

// === impl Actions ===

impl Actions {
    /// Those of these nodes; of this node those in this index.
    pub fn new(nodes: Nodes, index: ActionIndex) -> Actions {
        Actions { nodes, index, repairs: Arc::new(Semaphore::new(REPAIRS_MAX)) }
    }

    /// The encoded `ActionResult` of this action. On this node it counts as no use: see [`Actions::used`].
    ///
    /// # Errors
    /// [`ActionError`] when it cannot be said.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn get(&self, instance: &str, action: &Digest) -> Result<Option<Bytes>, ActionError> {
        let began = Instant::now();
        let mut view = self.nodes.view();
        let here = self.index.get(instance, action);
        if view.is_single() {
            return Ok(here?.map(|(_, result)| result));
        }
        let mut decision = ReadDecision::new(&view, partition_of(action), |node| self.nodes.distance(&view, node));
        decision.heard(self.nodes.epoch_of(view.self_id()));
        let mut told = Told::default();
        let mut failed_here = None;
        match here {
            Ok(found) => {
                told.hear(view.self_id(), found);
                decision.answered_no(view.self_id());
            }
            Err(error) => {
                failed_here = Some(error);
                decision.failed(view.self_id());
            }
        }
        let mut asked = FuturesUnordered::new();
        let verdict = loop {
            while let Some(node) = decision.ask_next() {
                let (nodes, instance, action) = (self.nodes.clone(), instance.to_owned(), *action);
                asked.push(async move { (node, nodes.remote().get_action(node, &instance, &action, true).await) });
            }
            match decision.verdict_after(began.elapsed()) {
                Verdict::Wait => {}
                Verdict::Behind(epoch) => match self.nodes.caught_up(epoch).await {
                    Some(newer) => {
                        decision.revise(&newer, |node| self.nodes.distance(&newer, node));
                        view = newer;
                        continue;
                    }
                    None => break Verdict::Unavailable,
                },
                verdict => break verdict,
            }
            // Each call has a deadline, and ends at once when its node is known to be away.
            match asked.next().await {
                Some((node, answer)) => {
                    decision.heard(self.nodes.epoch_of(node));
                    told.hear_from(node, answer, &mut decision);
                }
                None => break Verdict::Unavailable,
            }
        };
        if !asked.is_empty() {
            // So that they take it for used.
            self.nodes.spawn(asked.for_each(|_| std::future::ready(())));
        }
        match (told.newest.clone(), verdict) {
            // Of those told it is the newest that was ever acknowledged: too few are silent to have a newer one.
            (Some((version, result)), Verdict::Missing) => {
                self.index.observe(version);
                self.repair(&view, (instance, action), version, &result, &told.versions);
                Ok(Some(result))
            }
            (None, Verdict::Missing) => Ok(None),
            (_, _) => match (told.error, failed_here) {
                (None, Some(error)) => Err(error.into()),
                (source, _) => Err(ActionError::Unavailable { action: *action, source }),
            },
        }
    }

    /// Notes that this result was of use, so that it stays longer.
    pub fn used(&self, instance: &str, action: &Digest) {
        self.index.used(instance, action);
    }

    /// Keeps the encoded `ActionResult`, in place of an earlier one.
    ///
    /// # Errors
    /// [`ActionError`] when too few nodes have taken it; some may have all the same.
    ///
    /// # Cancel safety
    /// Dropped half-way, the update may or may not happen.
    pub async fn update(&self, instance: &str, action: &Digest, result: Bytes) -> Result<(), ActionError> {
        let mut view = self.nodes.view();
        let here = view.self_id();
        let version = self.index.next_version(here, instance, action)?;
        if view.is_single() {
            self.index.put_if_newer(instance, action, version, result.clone()).await?;
            view = self.nodes.view();
            if view.is_single() {
                return Ok(());
            }
            // Others have joined meanwhile, and may not have it.
        }
        let is_away = |node| self.nodes.is_away(&view, node);
        let decision = WriteDecision::new(&view, partition_of(action), is_away);
        let key: Arc<(String, Digest)> = Arc::new((instance.to_owned(), *action));
        let outcomes = acknowledge(&self.nodes, vec![decision], |node, _only| {
            let (actions, key, result) = (self.clone(), Arc::clone(&key), result.clone());
            async move { vec![actions.put(node, here, (&key.0, &key.1), version, result).await] }.boxed()
        })
        .await;
        outcomes.into_iter().try_for_each(|outcome| {
            outcome.map_err(|error| match error {
                Some(CopyError::Index(error)) => ActionError::Here(error),
                error => {
                    let source = Box::new(error.unwrap_or(CopyError::Nobody));
                    ActionError::TooFew { action: *action, source }
                }
            })
        })
    }

    async fn put(
        &self,
        node: NodeId,
        here: NodeId,
        (instance, action): (&str, &Digest),
        version: Version,
        result: Bytes,
    ) -> Result<(), CopyError> {
        if node == here {
            return Ok(self.index.put_if_newer(instance, action, version, result).await?);
        }
        let put = self.nodes.remote().put_action(node, instance, action, version, result).await;
        put.map_err(|source| CopyError::There { node, source: Arc::new(source) })
    }

    /// Gives the newest result to owners that have told an older one or none. Not waited for.
    fn repair(
        &self,
        view: &View,
        (instance, action): (&str, &Digest),
        version: Version,
        result: &Bytes,
        told: &[(NodeId, Option<Version>)],
    ) {
        let here = view.self_id();
        for (node, theirs) in told {
            if *theirs >= Some(version) || !view.owns(*node, partition_of(action)) {
                continue;
            }
            let Ok(place) = Arc::clone(&self.repairs).try_acquire_owned() else { return };
            let (actions, node, result) = (self.clone(), *node, result.clone());
            let (instance, action) = (instance.to_owned(), *action);
            self.nodes.spawn(async move {
                let _place = place;
                if let Err(error) = actions.put(node, here, (&instance, &action), version, result).await {
                    tracing::debug!(%action, %node, %error, "the result of an action could not be brought up to date");
                }
            });
        }
    }
}

// === impl Told ===

impl Told {
    fn hear(&mut self, node: NodeId, found: Option<(Version, Bytes)>) {
        let version = found.as_ref().map(|(version, _)| *version);
        self.versions.push((node, version));
        if version > self.newest.as_ref().map(|(version, _)| *version) {
            self.newest = found;
        }
    }

    fn hear_from(
        &mut self,
        node: NodeId,
        answer: Result<Option<(Version, Bytes)>, PeerError>,
        decision: &mut ReadDecision,
    ) {
        match answer {
            Ok(found) => {
                self.hear(node, found);
                decision.answered_no(node);
            }
            Err(error) => {
                self.error = Some(NodeError { node, source: Arc::new(error) });
                decision.failed(node);
            }
        }
    }
}
