//! A node without the log: it follows the cluster's state by another node's word, and asks others for the index.
//!
//! So are the nodes beyond those that the leader sends the log to, a fresh node until it does, and, for as long as it lasts, one
//! that should have the log and gets none. What it knows never goes back: of two states the one of the later position counts,
//! whether it came by the log or by a stream.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use casbah_cluster::consensus::{ReadAnswer, ReadCall};
use casbah_cluster::membership::{ClusterState, NodeId, Part};
use futures_util::StreamExt as _;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::index::raft::core::{Core, unreadable};
use crate::index::raft::error::GroupError;
use crate::index::raft::network::{RaftCall, WatchPart};

/// Before the next node is tried, or all of them again.
const PAUSE: Duration = Duration::from_millis(50);

/// Signs of life of a node that is cut off from the leader before another one is followed: an election may take as long.
const SIGNS_CUT_OFF_MAX: u32 = 3;

/// A stream that says nothing for as long as so many signs of life take is broken. Where the leader does not answer, a sign takes
/// twice as long.
const SILENT_SIGNS: u32 = 4;

/// Nodes that are asked, one after the other, within the time that is waited for a leader.
const READ_ATTEMPTS: u32 = 3;

/// Reads that are under way to other nodes; beyond this, one is told to come back.
const READS_MAX: usize = 1024;

/// What a node knows of those whom it asks.
pub(super) struct Watching {
    /// Whose stream it follows.
    source: Mutex<Option<NodeId>>,
    /// Who leads, by that node's word or by that of one that was taken for the leader.
    leader: watch::Sender<Option<NodeId>>,
    /// When a leader last sent something of the log; `None`: not since the start. One that was away may have lost its place.
    fed: Mutex<Option<Instant>>,
    /// Whose turn it is, of those that have the log.
    turn: AtomicUsize,
    /// The last read was waited for in vain.
    is_lost: AtomicBool,
    reads: Semaphore,
}

/// What another node has told.
pub(super) struct Told {
    /// Of the first of the keys.
    pub(super) records: Vec<Option<Vec<u8>>>,
    position: u64,
    state: Option<Vec<u8>>,
}

// === impl Watching ===

impl Watching {
    /// Of a node that `node` is; they begin with different nodes.
    pub(super) fn new(node: NodeId) -> Watching {
        Watching {
            source: Mutex::default(),
            leader: watch::Sender::new(None),
            fed: Mutex::default(),
            turn: AtomicUsize::new(usize::try_from(node.0).unwrap_or(0)),
            is_lost: AtomicBool::new(false),
            reads: Semaphore::new(READS_MAX),
        }
    }

    /// Who leads, as far as this node was told.
    pub(super) fn leader(&self) -> watch::Receiver<Option<NodeId>> {
        self.leader.subscribe()
    }

    /// A leader has sent something of the log.
    pub(super) fn is_fed(&self) {
        *self.fed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// One that was taken for the leader is not there, or is none; it may have named another one.
    pub(super) fn no_leader(&self, asked: NodeId, named: Option<NodeId>) {
        let named = named.filter(|named| *named != asked);
        self.leader.send_if_modified(|leader| {
            let is_news = named.is_some() || *leader == Some(asked);
            is_news && std::mem::replace(leader, named) != named
        });
    }

    fn follows(&self, source: Option<NodeId>) {
        *self.source.lock().unwrap_or_else(PoisonError::into_inner) = source;
    }

    fn source(&self) -> Option<NodeId> {
        *self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn silence(&self) -> Duration {
        let fed = *self.fed.lock().unwrap_or_else(PoisonError::into_inner);
        fed.map_or(Duration::MAX, |fed| fed.elapsed())
    }
}

// === impl Core ===

impl Core {
    /// Whether reads and commands of this node go by its own log.
    pub(super) fn has_log(&self) -> bool {
        self.state.has_log(self.node)
    }

    /// One of those that have the log, for a node that has not: another one with each call.
    pub(super) fn somebody(&self) -> Option<NodeId> {
        self.sources().into_iter().next()
    }

    /// Those who may have the log, as far as is known here, beginning with another one each time. Who has it may have changed
    /// altogether since this node has heard of it: the others come behind them.
    fn sources(&self) -> Vec<NodeId> {
        let Some(state) = self.state.cluster().borrow().clone() else { return Vec::new() };
        let others = state.members.iter().filter(|(node, _)| **node != self.node);
        let (mut having, without): (Vec<_>, Vec<_>) = others.partition(|(_, member)| member.part != Part::Watcher);
        let turn = self.watching.turn.fetch_add(1, Ordering::Relaxed);
        if !having.is_empty() {
            let first = turn % having.len();
            having.rotate_left(first);
        }
        having.into_iter().chain(without).map(|(node, _)| *node).collect()
    }

    /// Whether it has to be told what others know: it does not have the log, or gets none.
    fn has_to_be_told(&self) -> bool {
        !self.has_log() || (!self.is_leader() && self.watching.silence() >= self.timing.leader_wait)
    }

    /// Takes a state for known that another node has told, unless it is none or older than what is known here.
    ///
    /// # Errors
    /// [`GroupError::Record`] when it is none.
    pub(super) async fn heard(&self, position: u64, state: &[u8]) -> Result<(), GroupError> {
        let state = ClusterState::decode(state)?;
        self.state.heard(position, Arc::new(state)).await;
        Ok(())
    }
}

/// Follows other nodes whenever it has to. Runs until it is dropped.
pub(super) async fn run(core: Arc<Core>) {
    let mut states = core.state.cluster();
    loop {
        let sources = core.sources();
        if sources.is_empty() || !core.has_to_be_told() {
            // Whether it was news or the time does not matter.
            drop(timeout(core.timing.keep_every, states.changed()).await);
            continue;
        }
        // One after the other, until one has told something: then from the beginning.
        for source in sources {
            let has_told = follow(&core, source).await;
            core.watching.follows(None);
            sleep(PAUSE).await;
            if has_told || !core.has_to_be_told() {
                break;
            }
        }
        sleep(PAUSE).await;
    }
}

/// Follows one node, until it breaks off, is cut off itself, or is not needed any more; whether it has told anything.
async fn follow(core: &Core, source: NodeId) -> bool {
    let silence = core.timing.sign * SILENT_SIGNS;
    let mut parts = match timeout(silence, core.network.watch(source)).await {
        Ok(Ok(parts)) => parts,
        Ok(Err(error)) => {
            tracing::debug!(%source, %error, "a node does not tell of the cluster's state");
            return false;
        }
        Err(_elapsed) => return false,
    };
    tracing::debug!(%source, "the cluster's state is followed by another node's word");
    let mut has_told = false;
    let mut cut_off_count = 0;
    loop {
        let part = match timeout(silence, parts.next()).await {
            Ok(Some(Ok(part))) => part,
            Ok(Some(Err(error))) => {
                tracing::debug!(%source, %error, "the stream of the cluster's state broke");
                return has_told;
            }
            Ok(None) | Err(_) => return has_told,
        };
        core.watching.follows(Some(source));
        let WatchPart { position, state, leader, is_current } = part;
        core.watching.leader.send_if_modified(|known| std::mem::replace(known, leader) != leader);
        match state {
            Some(state) => {
                if let Err(error) = core.heard(position, &state).await {
                    tracing::warn!(%source, %error, "a state of the cluster cannot be read; is the node of another version?");
                    return has_told;
                }
                has_told = true;
            }
            None if is_current => {
                cut_off_count = 0;
                core.watching.is_lost.store(false, Ordering::Relaxed);
            }
            None => cut_off_count += 1,
        }
        if cut_off_count >= SIGNS_CUT_OFF_MAX {
            tracing::debug!(%source, "a node that tells of the cluster's state is cut off from its leader");
            return false;
        }
        if !core.has_to_be_told() {
            return has_told;
        }
    }
}

/// Has another node read the index: that which is followed, or else another one. Where no leader is found for as long as is
/// waited for one, the next reads are told so when all have been asked once.
///
/// # Errors
/// [`GroupError::NoLeader`] when nobody can tell, [`GroupError::Busy`] when too many reads are under way.
///
/// # Cancel safety
/// May be dropped.
pub(super) async fn read(core: &Core, call: &ReadCall) -> Result<Told, GroupError> {
    let Ok(_place) = core.watching.reads.try_acquire() else { return Err(GroupError::Busy) };
    let payload = Bytes::from(call.encode()?);
    let deadline = Instant::now() + core.timing.leader_wait;
    let attempt = core.timing.leader_wait / READ_ATTEMPTS;
    let is_once = call.is_stale || core.watching.is_lost.load(Ordering::Relaxed);
    let mut outcome = GroupError::NoLeader;
    loop {
        let followed = core.watching.source();
        let others = core.sources().into_iter().filter(|node| Some(*node) != followed);
        let targets: Vec<NodeId> = followed.into_iter().chain(others).collect();
        if targets.is_empty() {
            return Err(GroupError::NoLeader);
        }
        for target in targets {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let answer = core.network.call(target, RaftCall::Read, payload.clone(), left.min(attempt)).await;
            match answer.map(|answer| ReadAnswer::decode(&answer)) {
                Ok(Ok(ReadAnswer::Done { records, position, state }))
                    if !records.is_empty() || call.keys.is_empty() =>
                {
                    if !call.is_stale {
                        core.watching.is_lost.store(false, Ordering::Relaxed);
                    }
                    return Ok(Told { records, position, state });
                }
                Ok(Ok(ReadAnswer::Busy)) => outcome = GroupError::Busy,
                Ok(Ok(ReadAnswer::Done { .. } | ReadAnswer::NoLeader | ReadAnswer::NoLog)) => {}
                Ok(Err(error)) => unreadable(&error, target),
                Err(error) => tracing::debug!(%target, %error, "a node does not read for this one"),
            }
        }
        if is_once || Instant::now() + PAUSE >= deadline {
            if !call.is_stale {
                core.watching.is_lost.store(true, Ordering::Relaxed);
            }
            return Err(outcome);
        }
        sleep(PAUSE).await;
    }
}

/// Gets the cluster's state as of now, or later, from another node.
///
/// # Errors
/// As [`read`].
///
/// # Cancel safety
/// May be dropped.
pub(super) async fn catch_up(core: &Core) -> Result<(), GroupError> {
    let told = read(core, &ReadCall { keys: Vec::new(), is_stale: false }).await?;
    match told.state {
        Some(state) => core.heard(told.position, &state).await,
        None => Err(GroupError::NoLeader),
    }
}
