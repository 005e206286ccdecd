//! The owner's side: goes through what a source has of a partition, and copies what is missing here.

use std::time::Duration;

use casbah_cluster::inventory::{ActionName, ListedAction, ListedBlob};
use casbah_cluster::membership::NodeId;
use casbah_cluster::replication::Version;
use futures_util::stream::{self, StreamExt as _};

use super::compare;
use super::copies::{Way, loads};
use super::error::MoveError;
use super::progress::Moved;
use crate::forward::PeerError;
use crate::index::{ActionIndex, IndexError};
use crate::replicate::Nodes;

/// Blobs that were found to be missing and are not copied yet, some 100 bytes each: a page's worth, so that all of a usual
/// partition are copied in the order of their use.
const MISSING_MAX: usize = 16 << 10;

/// Bytes that an entry of a list takes on its way.
const ENTRY_BYTES: u64 = 64;

/// Results of actions that are fetched at once: each is a call of its own.
const ACTIONS_AT_ONCE: usize = 8;

/// Whose list is gone through, and where the copies go.
pub(super) struct Puller<'a> {
    pub(super) nodes: &'a Nodes,
    pub(super) index: &'a ActionIndex,
    pub(super) moved: &'a Moved,
    pub(super) source: NodeId,
    pub(super) partition: u16,
    /// For how long what was used stays, on any node.
    pub(super) floor: Duration,
}

// === impl Puller ===

impl Puller<'_> {
    /// Copies all that the source has of the partition and this node has not, if it would stay here; how many.
    ///
    /// # Errors
    /// [`MoveError`]; some may have been copied.
    pub(super) async fn pull(&self) -> Result<u64, MoveError> {
        let theirs = self.nodes.remote().compare(self.source, &[self.partition]).await?;
        let mine = compare::here(self.nodes.store(), self.index, self.partition);
        let mut copies = 0;
        if theirs.iter().any(|theirs| theirs.blobs != mine.blobs) {
            copies += self.pull_blobs().await?;
        }
        if theirs.iter().any(|theirs| theirs.actions != mine.actions) {
            copies += self.pull_actions().await?;
        }
        Ok(copies)
    }

    async fn pull_blobs(&self) -> Result<u64, MoveError> {
        let (mut copies, mut after) = (0, None);
        let mut missing: Vec<ListedBlob> = Vec::new();
        loop {
            let page = self.nodes.remote().list_blobs(self.source, self.partition, after).await?;
            after = page.entries.last().map(|last| last.digest);
            self.nodes.pacing().take(page.entries.len() as u64 * ENTRY_BYTES).await;
            let store = self.nodes.store();
            missing.extend(page.entries.into_iter().filter(|blob| !store.contains(&blob.digest)));
            if page.is_last || missing.len() >= MISSING_MAX {
                copies += self.fetch(std::mem::take(&mut missing)).await?;
            }
            if page.is_last {
                return Ok(copies);
            }
        }
    }

    /// The longest unused first, so that they come into the order of use as they were used.
    async fn fetch(&self, mut missing: Vec<ListedBlob>) -> Result<u64, MoveError> {
        missing.sort_by_key(|blob| blob.used_ms);
        let way = Way { nodes: self.nodes, moved: self.moved, other: self.source, floor: self.floor };
        let mut copies = 0;
        for load in loads(missing) {
            copies += way.fetch(load).await?;
        }
        Ok(copies)
    }

    async fn pull_actions(&self) -> Result<u64, MoveError> {
        let (mut copies, mut after) = (0, None);
        loop {
            let page = self.nodes.remote().list_actions(self.source, self.partition, after).await?;
            after = page.entries.last().map(ListedAction::name);
            self.nodes.pacing().take(page.entries.len() as u64 * ENTRY_BYTES).await;
            let newer = self.newer(page.entries).await?;
            let fetches = stream::iter(newer).map(|name| self.fetch_action(name));
            let mut fetches = fetches.buffer_unordered(ACTIONS_AT_ONCE);
            while let Some(copied) = fetches.next().await {
                copies += u64::from(copied?);
            }
            if page.is_last {
                return Ok(copies);
            }
        }
    }

    /// Those that are newer there, or not here.
    async fn newer(&self, listed: Vec<ListedAction>) -> Result<Vec<ActionName>, MoveError> {
        let index = self.index.clone();
        let look = move || -> Result<Vec<ActionName>, IndexError> {
            let mut newer = Vec::new();
            for listed in listed {
                let here: Option<Version> = index.get(&listed.instance, &listed.action)?.map(|(version, _)| version);
                if here < Some(listed.version) && (here.is_some() || index.would_stay(listed.version)?) {
                    newer.push(listed.name());
                }
            }
            Ok(newer)
        };
        Ok(tokio::task::spawn_blocking(look).await.map_err(|_| MoveError::Ended)??)
    }

    async fn fetch_action(&self, ActionName { instance, action }: ActionName) -> Result<bool, MoveError> {
        let found = match self.nodes.remote().get_action(self.source, &instance, &action, false).await {
            Ok(found) => found,
            Err(PeerError::NotFound) => None,
            Err(error) => return Err(error.into()),
        };
        let Some((version, result)) = found else { return Ok(false) };
        let bytes = result.len() as u64;
        self.nodes.pacing().take(bytes).await;
        self.index.put_if_newer(&instance, &action, version, result).await?;
        self.moved.pulled(bytes);
        Ok(true)
    }
}
