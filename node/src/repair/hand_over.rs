//! The other side: gives what this node holds and does not own to its owners, and drops it when they have it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_cluster::inventory::{ActionName, ListedAction, ListedBlob};
use casbah_cluster::membership::NodeId;
use casbah_cluster::repair::{Said, Surplus};
use casbah_cluster::view::View;

use super::copies::{Load, Way, is_promised, loads, unix_ms};
use super::error::MoveError;
use super::progress::Moved;
use crate::config::limits::PEER_LIST_BYTES;
use crate::forward::PeerError;
use crate::index::{ActionIndex, IndexError};
use crate::replicate::Nodes;
use crate::store::Presence;

/// Blobs that owners are asked for at once, and dropped together.
const PAGE: usize = 1024;

/// Results of actions that are read at once.
const ACTIONS_PAGE: usize = 256;

/// What this node holds of a partition that it does not own.
pub(super) struct HandOver<'a> {
    pub(super) nodes: &'a Nodes,
    pub(super) index: &'a ActionIndex,
    pub(super) moved: &'a Moved,
    pub(super) view: Arc<View>,
    pub(super) partition: u16,
    /// For how long what was used stays, on any node.
    pub(super) floor: Duration,
    /// Whether all owners have had all of it for long enough for it to go.
    pub(super) may_drop: bool,
}

// === impl HandOver ===

impl HandOver<'_> {
    /// Looks after all of it; whether an owner lacks something, as it did not answer or did not take it.
    ///
    /// # Errors
    /// [`MoveError`], when this node itself fails.
    pub(super) async fn run(&self) -> Result<bool, MoveError> {
        let blobs = self.blobs().await?;
        let actions = self.actions().await?;
        Ok(blobs || actions)
    }

    async fn blobs(&self) -> Result<bool, MoveError> {
        let (mut after, mut is_lacking) = (None, false);
        loop {
            if !self.is_still_so() {
                return Ok(true);
            }
            let listed = self.nodes.store().list(usize::from(self.partition), after.as_ref(), PAGE).await;
            let page = listed.map_err(MoveError::List)?;
            after = page.entries.last().map(|last| last.digest);
            is_lacking |= self.page(page.entries).await?;
            if page.is_last {
                return Ok(is_lacking);
            }
        }
    }

    async fn page(&self, blobs: Vec<ListedBlob>) -> Result<bool, MoveError> {
        // Whoever has been told since that something is here, or has it stored again, is not to find it gone.
        let begun_ms = unix_ms();
        let mut surplus: Vec<Surplus> = blobs.iter().map(|_| Surplus::new(&self.view, self.partition)).collect();
        let digests: Vec<Digest> = blobs.iter().map(|blob| blob.digest).collect();
        for owner in self.owners() {
            // Of a layout that it had adopted before it was asked.
            let health = self.nodes.remote().health(owner);
            if !health.reachable || digests.is_empty() {
                continue;
            }
            match self.nodes.remote().find(owner, &digests, false).await {
                Ok(has) => surplus.iter_mut().zip(has).for_each(|(surplus, has)| {
                    let said = match has {
                        Presence::Here => Said::Has,
                        Presence::Absent | Presence::Unsure => Said::Lacks,
                    };
                    surplus.heard(owner, health.epoch, said);
                }),
                Err(error) => tracing::debug!(%owner, %error, "an owner does not say what it lacks"),
            }
        }
        self.give(&blobs, &mut surplus).await?;
        let done: Vec<Digest> =
            digests.iter().zip(&surplus).filter(|(_, surplus)| surplus.may_drop()).map(|(digest, _)| *digest).collect();
        if self.may_drop && !done.is_empty() && self.is_still_so() {
            let dropped = self.nodes.store().remove(&done, begun_ms);
            self.moved.dropped(dropped as u64);
        }
        Ok(done.len() < digests.len())
    }

    /// Gives owners what they lack.
    async fn give(&self, blobs: &[ListedBlob], surplus: &mut [Surplus]) -> Result<(), MoveError> {
        let mut lacking: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
        for (at, surplus) in surplus.iter().enumerate() {
            surplus.lacking().for_each(|owner| lacking.entry(owner).or_default().push(at));
        }
        for (owner, places) in lacking {
            let way = Way { nodes: self.nodes, moved: self.moved, other: owner, floor: self.floor };
            let wanted: Vec<ListedBlob> = places.iter().filter_map(|at| blobs.get(*at).copied()).collect();
            let place_of: HashMap<Digest, usize> =
                wanted.iter().zip(&places).map(|(blob, at)| (blob.digest, *at)).collect();
            for load in loads(wanted) {
                let epoch = self.nodes.remote().health(owner).epoch;
                let outcomes = match way.give(&load).await {
                    Ok(outcomes) => outcomes,
                    Err(error) if error.is_here() => return Err(error),
                    Err(error) => {
                        tracing::debug!(%owner, %error, "an owner does not take what it lacks");
                        break;
                    }
                };
                let given: &[ListedBlob] = match &load {
                    Load::Batch(batch) => batch,
                    Load::Alone(blob) => std::slice::from_ref(blob),
                };
                for (blob, outcome) in given.iter().zip(outcomes) {
                    let said = match outcome {
                        Ok(()) => Said::Has,
                        // What was promised to stay is kept until the owner has room for it.
                        Err(PeerError::OutOfRange) if !is_promised(blob, self.floor) => Said::WouldEvict,
                        Err(_) => continue,
                    };
                    if let Some(surplus) = place_of.get(&blob.digest).and_then(|at| surplus.get_mut(*at)) {
                        surplus.heard(owner, epoch, said);
                    }
                }
            }
        }
        Ok(())
    }

    async fn actions(&self) -> Result<bool, MoveError> {
        let (mut after, mut is_lacking): (Option<ActionName>, bool) = (None, false);
        loop {
            let (index, partition, from) = (self.index.clone(), usize::from(self.partition), after.clone());
            let read = move || -> Result<_, IndexError> {
                let page = index.list(partition, from.as_ref(), (ACTIONS_PAGE, PEER_LIST_BYTES))?;
                let results: Result<Vec<_>, _> =
                    page.entries.iter().map(|listed| index.get(&listed.instance, &listed.action)).collect();
                Ok((results?, page))
            };
            let (results, page) = tokio::task::spawn_blocking(read).await.map_err(|_| MoveError::Ended)??;
            after = page.entries.last().map(ListedAction::name);
            let mut done = Vec::new();
            for (listed, found) in page.entries.into_iter().zip(results) {
                // A newer one has come meanwhile: its turn is the next time.
                let found = found.filter(|(version, _)| *version == listed.version);
                match found {
                    Some((_, result)) if self.give_action(&listed, &result).await => done.push(listed),
                    _ => is_lacking = true,
                }
            }
            if self.may_drop && !done.is_empty() && self.is_still_so() {
                self.index.remove(&done).await?;
                self.moved.dropped(done.len() as u64);
            }
            if page.is_last {
                return Ok(is_lacking);
            }
        }
    }

    /// Gives a result to all owners, which keep it unless they have a newer one; whether it need not be kept.
    async fn give_action(&self, listed: &ListedAction, result: &Bytes) -> bool {
        let mut surplus = Surplus::new(&self.view, self.partition);
        for owner in self.owners() {
            let health = self.nodes.remote().health(owner);
            if !health.reachable {
                continue;
            }
            self.nodes.pacing().take(result.len() as u64).await;
            let (instance, action, version) = (&listed.instance, &listed.action, listed.version);
            match self.nodes.remote().put_action(owner, instance, action, version, result.clone()).await {
                Ok(()) => {
                    self.moved.given(result.len() as u64);
                    surplus.heard(owner, health.epoch, Said::Has);
                }
                Err(error) => tracing::debug!(%owner, %error, "an owner does not take a result of an action"),
            }
        }
        surplus.may_drop()
    }

    fn owners(&self) -> impl Iterator<Item = NodeId> {
        self.view.owners(usize::from(self.partition)).iter().copied()
    }

    /// Whether the layouts that all of it was decided by are in force, and those only.
    fn is_still_so(&self) -> bool {
        self.nodes.views().borrow().is_placed_as(&self.view)
    }
}
