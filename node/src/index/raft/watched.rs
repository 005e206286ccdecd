//! What a node with the log does for those without it: tells them of the cluster's state, and reads for them.

use std::sync::Arc;

use bytes::Bytes;
use casbah_cluster::consensus::{ENTRY_BYTES_MAX, ReadAnswer, ReadCall};
use casbah_cluster::membership::{ClusterState, NodeId};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{sleep, timeout};

use crate::index::raft::core::Boxed;
use crate::index::raft::error::GroupError;
use crate::index::raft::group::Group;
use crate::index::raft::network::WatchPart;

/// Nodes that are told of the cluster's state: more than a cluster has, since one that comes back does so before its last
/// stream is known to have broken.
pub(super) const WATCHERS_MAX: usize = 256;

/// Reads of other nodes that are under way here at once; beyond this, they are told to go elsewhere.
pub(super) const READS_MAX: usize = 1024;

/// One node that is told.
struct Watcher {
    group: Group,
    states: watch::Receiver<Option<Arc<ClusterState>>>,
    closing: watch::Receiver<bool>,
    /// Who leads, as it was told last.
    leader: Option<NodeId>,
    is_new: bool,
    /// Whether a leader has confirmed what is known here, a while from now.
    sign: Boxed<bool>,
    _place: OwnedSemaphorePermit,
}

// === impl Group ===

impl Group {
    /// Tells a node that does not have the log of the cluster's state: at once, after each change, and by signs of life in
    /// between. Ends when this node closes, or does not have the log any more.
    ///
    /// # Errors
    /// [`GroupError::NoLog`] when this node does not have the log itself, [`GroupError::Busy`] when too many are told.
    pub fn watch(&self) -> Result<BoxStream<'static, WatchPart>, GroupError> {
        let place = Arc::clone(&self.inner.watchers).try_acquire_owned().map_err(|_| GroupError::Busy)?;
        if !self.has_log() || self.inner.core.state.known().is_none() {
            return Err(GroupError::NoLog);
        }
        let watcher = Watcher {
            group: self.clone(),
            states: self.state(),
            closing: self.inner.closing.subscribe(),
            leader: None,
            is_new: true,
            sign: sign(self.clone()),
            _place: place,
        };
        let parts = stream::unfold(watcher, |mut watcher| async move { Some((watcher.next().await?, watcher)) });
        Ok(parts.boxed())
    }

    /// Reads for a node that does not have the log.
    pub(super) async fn read_for_another(&self, call: ReadCall) -> Result<ReadAnswer, GroupError> {
        let Ok(_place) = self.inner.reads_of_others.try_acquire() else { return Ok(ReadAnswer::Busy) };
        if !self.has_log() {
            return Ok(ReadAnswer::NoLog);
        }
        if !call.is_stale {
            match self.linearizable_here().await {
                Ok(()) => {}
                Err(GroupError::NoLeader) => return Ok(ReadAnswer::NoLeader),
                Err(GroupError::NoLog) => return Ok(ReadAnswer::NoLog),
                Err(GroupError::Busy) => return Ok(ReadAnswer::Busy),
                Err(error) => return Err(error),
            }
        }
        let (mut records, mut bytes) = (Vec::new(), 0);
        for key in &call.keys {
            let record = self.get_stale(key)?;
            bytes += record.as_ref().map_or(1, Vec::len);
            if bytes > ENTRY_BYTES_MAX && !records.is_empty() {
                break;
            }
            records.push(record);
        }
        let Some((position, state)) = self.inner.core.state.known() else { return Ok(ReadAnswer::NoLog) };
        let state = if call.keys.is_empty() { Some(state.encode()?) } else { None };
        Ok(ReadAnswer::Done { records, position, state })
    }
}

// === impl Watcher ===

impl Watcher {
    async fn next(&mut self) -> Option<WatchPart> {
        if self.is_new {
            self.is_new = false;
            return self.state();
        }
        let Watcher { group, states, closing, leader, sign: next_sign, .. } = self;
        let closed = async { drop(closing.wait_for(|closing| *closing).await) };
        let is_current = tokio::select! {
            () = closed => return None,
            changed = states.changed() => {
                changed.ok()?;
                return self.state();
            }
            () = group.inner.core.another_leads(*leader) => false,
            is_current = next_sign.as_mut() => {
                *next_sign = sign(group.clone());
                is_current
            }
        };
        // Whoever has lost the log is not to be followed.
        if self.group.has_log() { Some(self.sign(is_current)) } else { None }
    }

    /// The state as it is now.
    fn state(&mut self) -> Option<WatchPart> {
        self.states.mark_unchanged();
        let (position, state) = self.group.inner.core.state.known()?;
        let encoded = state.encode();
        let encoded =
            encoded.inspect_err(|error| tracing::error!(%error, "the cluster's state cannot be told")).ok()?;
        Some(WatchPart { position, state: Some(Bytes::from(encoded)), ..self.sign(false) })
    }

    fn sign(&mut self, is_current: bool) -> WatchPart {
        self.leader = self.group.leader();
        WatchPart { position: 0, state: None, leader: self.leader, is_current }
    }
}

/// Waits for a while, and then whether a leader confirms what is known here.
fn sign(group: Group) -> Boxed<bool> {
    Box::pin(async move {
        let interval = group.inner.core.timing.sign;
        sleep(interval).await;
        matches!(timeout(interval, group.linearizable_here()).await, Ok(Ok(())))
    })
}
