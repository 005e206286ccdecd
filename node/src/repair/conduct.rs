//! Begins what is to be done, some things at once, and tells the cluster when this node has all that it should.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use casbah_cluster::membership::{Epoch, NodeId};
use casbah_cluster::repair::{HandOvers, Peer, Pull, Pulled, Step, Summary, Sync};
use casbah_cluster::view::View;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::compare;
use super::error::MoveError;
use super::hand_over::HandOver;
use super::progress::Moved;
use super::pull::Puller;
use crate::forward::for_repair;
use crate::index::ActionIndex;
use crate::observe::cluster::RepairProgress;
use crate::observe::with_causes;
use crate::replicate::Nodes;
use crate::store::WriteError;

/// Comparisons and pulls under way. With a batch of blobs and a page of a list each, some ten megabytes; the rate is bounded
/// for all together.
const STEPS_AT_ONCE: usize = 6;

/// Partitions that are handed over at once.
const HAND_OVERS_AT_ONCE: usize = 2;

/// Between two looks at what nobody tells of: which layouts others have adopted, and what this node holds.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// Before the cluster is told again what it did not take.
const TELL_PAUSE_MS: u64 = 1_000;

/// Tells the cluster that this node has synced to an epoch.
pub type Tell = Arc<dyn Fn(NodeId, Epoch) -> BoxFuture<'static, Result<(), TellError>> + Send + std::marker::Sync>;

/// The cluster did not take it.
#[derive(Debug, thiserror::Error)]
#[error("the cluster was not told")]
pub struct TellError(#[source] pub Box<dyn std::error::Error + Send + std::marker::Sync>);

/// What repair works with.
pub struct RepairParts {
    /// This node's blobs, and the others.
    pub nodes: Nodes,
    /// This node's results of actions.
    pub index: ActionIndex,
    /// Bytes that are moved in a second.
    pub rate_bytes: u64,
    /// How often everything is compared.
    pub interval: Duration,
    /// For how long what was used stays, on any node.
    pub retention_floor: Duration,
    /// Counted up whenever a node goes away or comes back.
    pub peer_changes: watch::Receiver<u64>,
    /// How the cluster is told.
    pub tell: Tell,
}

/// What gets copies to where they belong. Cheap to clone.
#[derive(Clone)]
pub struct Repair {
    inner: Arc<Inner>,
}

struct Inner {
    nodes: Nodes,
    index: ActionIndex,
    peer_changes: watch::Receiver<u64>,
    tell: Tell,
    moved: Moved,
    floor: Duration,
    /// By how much a test is ahead of the clock.
    ahead_ms: AtomicU64,
    started: Instant,
    state: Mutex<State>,
}

/// What is decided by.
struct State {
    sync: Sync,
    hand_overs: HandOvers,
    steps: usize,
    handing_over: usize,
    is_telling: bool,
    tell_after_ms: u64,
    looked: Option<Instant>,
    /// That anything may have been lost here, as the store has told with this number.
    unsure: Option<u64>,
}

/// What came of something.
enum Done {
    Compared { source: NodeId, epoch: Epoch, summaries: Option<Vec<(u16, Summary)>> },
    Pulled(Pull, Pulled),
    HandedOver { partition: u16, has_failed: bool },
    Told,
}

// === impl Repair ===

impl Repair {
    /// Nothing is done yet.
    pub fn new(parts: RepairParts) -> Repair {
        let RepairParts { nodes, index, rate_bytes, interval, retention_floor: floor, peer_changes, tell } = parts;
        nodes.pacing().set_rate(rate_bytes);
        let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        let state = State {
            sync: Sync::new(interval_ms),
            hand_overs: HandOvers::new(interval_ms),
            steps: 0,
            handing_over: 0,
            is_telling: false,
            tell_after_ms: 0,
            looked: None,
            unsure: None,
        };
        let (moved, started, state) = (Moved::default(), Instant::now(), Mutex::new(state));
        let ahead_ms = AtomicU64::new(0);
        Repair { inner: Arc::new(Inner { nodes, index, peer_changes, tell, moved, floor, ahead_ms, started, state }) }
    }

    /// Does what there is to do, for as long as this runs. It does not end by itself.
    ///
    /// # Cancel safety
    /// May be dropped: each copy that was under way is there or not.
    pub async fn run(self) {
        let mut views = self.inner.nodes.views();
        let mut peer_changes = self.inner.peer_changes.clone();
        let mut work: JoinSet<Done> = JoinSet::new();
        loop {
            let view = Arc::clone(&views.borrow_and_update());
            peer_changes.borrow_and_update();
            self.look(&view);
            self.begin(&view, &mut work);
            tokio::select! {
                done = work.join_next(), if !work.is_empty() => match done {
                    Some(Ok(done)) => self.take(done),
                    // A panic ends the process where it is.
                    Some(Err(error)) => tracing::error!(%error, "a step of repair did not end"),
                    None => {}
                },
                () = changed(&mut views) => {}
                () = changed(&mut peer_changes) => {}
                () = tokio::time::sleep(LOOK_PAUSE) => {}
            }
        }
    }

    /// What there is to do, and what was done, in numbers.
    pub fn progress(&self) -> RepairProgress {
        let inner = &self.inner;
        let (left, held, synced) = {
            let state = self.lock();
            (state.sync.left(&|partition| self.here(partition)), state.hand_overs.held(), state.sync.synced())
        };
        let store = inner.nodes.store().status();
        let pulled = inner.moved.pulled.load(Ordering::Relaxed);
        let given = inner.moved.given.load(Ordering::Relaxed);
        let moved_bytes = inner.moved.bytes.load(Ordering::Relaxed);
        // What a usual one has, by those that are here, or by those that have come so far.
        let usual_bytes = match (store.blobs, pulled + given) {
            (0, 0) => 0,
            (0, moved) => moved_bytes / moved,
            (blobs, _) => store.bytes / blobs,
        };
        let (left_bytes, rate_bytes) = (left.entries.saturating_mul(usual_bytes), inner.moved.bytes_per_second());
        let is_idle = left.pulls == 0 || rate_bytes == 0;
        RepairProgress {
            synced_epoch: synced.map(|epoch| epoch.0),
            partitions_left: left.partitions as u64,
            partitions_to_pull: left.pulls as u64,
            copies_to_pull: left.entries,
            bytes_to_pull: left_bytes,
            waits_for: left.waits_for.iter().map(|node| node.0).collect(),
            held,
            copies_pulled: pulled,
            copies_given: given,
            copies_dropped: inner.moved.dropped.load(Ordering::Relaxed),
            moved_bytes,
            bytes_per_second: rate_bytes,
            seconds_left: if is_idle { None } else { Some(left_bytes / rate_bytes) },
            completed_seconds_ago: left.completed_ms.map(|at_ms| self.now_ms().saturating_sub(at_ms) / 1000),
        }
    }

    /// So much time passes at once.
    #[cfg(test)]
    pub(crate) fn pass(&self, time: Duration) {
        let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.inner.ahead_ms.fetch_add(time_ms, Ordering::Relaxed);
    }

    fn look(&self, view: &Arc<View>) {
        let (now_ms, remote) = (self.now_ms(), self.inner.nodes.remote());
        let mut state = self.lock();
        let peer = |node| {
            let health = remote.health(node);
            Peer { is_reachable: health.reachable, epoch: health.epoch }
        };
        state.sync.look(view, peer, now_ms);
        // Some thousand look-ups, which need not be made after each step.
        if state.looked.is_none_or(|looked| looked.elapsed() >= LOOK_PAUSE) {
            state.looked = Some(Instant::now());
            let here = view.self_id();
            let is_reachable = |node| node == here || remote.health(node).reachable;
            state.hand_overs.look(view, is_reachable, |partition| self.here(partition), now_ms);
            self.look_for_losses(&mut state, now_ms);
            drop(state);
            self.inner.moved.tick();
        }
    }

    /// Where more was lost than is remembered, everything is compared and pulled; then the store is as good as it was.
    fn look_for_losses(&self, state: &mut State, now_ms: u64) {
        let store = self.inner.nodes.store();
        let unsure = store.unsure();
        if unsure != state.unsure {
            state.unsure = unsure;
            if unsure.is_some() {
                state.sync.doubt_all(now_ms);
            }
        } else if let Some(losses) = unsure
            && !self.inner.nodes.views().borrow().is_single()
            && state.sync.is_sure()
        {
            store.is_sure(losses);
        }
    }

    fn begin(&self, view: &Arc<View>, work: &mut JoinSet<Done>) {
        let now_ms = self.now_ms();
        let mut state = self.lock();
        if let Some(epoch) = state.sync.report(self.inner.nodes.oldest_epoch())
            && !state.is_telling
            && now_ms >= state.tell_after_ms
        {
            state.is_telling = true;
            work.spawn(self.clone().tell(view.self_id(), epoch));
        }
        // Until what is on disk has been counted, nothing can be compared.
        if self.inner.index.inventory(0).is_none() {
            return;
        }
        while state.steps < STEPS_AT_ONCE
            && let Some(step) = state.sync.next(&|partition| self.here(partition), now_ms)
        {
            state.steps += 1;
            match step {
                Step::Compare { source, partitions } => {
                    work.spawn(for_repair(self.clone().compare(source, partitions)))
                }
                Step::Pull(pull) => work.spawn(for_repair(self.clone().pull(pull))),
            };
        }
        while state.handing_over < HAND_OVERS_AT_ONCE
            && let Some(partition) = state.hand_overs.next(now_ms)
        {
            state.handing_over += 1;
            let may_drop = state.hand_overs.may_drop(partition, now_ms);
            work.spawn(for_repair(self.clone().hand_over(Arc::clone(view), partition, may_drop)));
        }
    }

    fn take(&self, done: Done) {
        let now_ms = self.now_ms();
        let mine = |partition| self.here(partition);
        let mut state = self.lock();
        match done {
            Done::Compared { source, epoch, summaries } => {
                state.steps -= 1;
                match summaries {
                    Some(summaries) => state.sync.compared(source, epoch, &summaries, &mine, now_ms),
                    None => state.sync.not_compared(source, now_ms),
                }
            }
            Done::Pulled(pull, outcome) => {
                state.steps -= 1;
                state.sync.pulled(&pull, outcome, &mine, now_ms);
            }
            Done::HandedOver { partition, has_failed } => {
                state.handing_over -= 1;
                state.hand_overs.done(partition, has_failed, now_ms);
                // Where the partition has become this node's meanwhile, what was dropped has to come again.
                state.sync.doubt(partition, now_ms);
            }
            Done::Told => {
                state.is_telling = false;
                state.tell_after_ms = now_ms.saturating_add(TELL_PAUSE_MS);
            }
        }
    }

    async fn tell(self, here: NodeId, epoch: Epoch) -> Done {
        match (self.inner.tell)(here, epoch).await {
            Ok(()) => tracing::info!(%epoch, "this node has all that the newest layout gives it"),
            Err(error) => tracing::debug!(%epoch, %error, "the cluster was not told of what this node has yet"),
        }
        Done::Told
    }

    async fn compare(self, source: NodeId, partitions: Vec<u16>) -> Done {
        let remote = self.inner.nodes.remote();
        // Of a layout that it had adopted before it was asked.
        let epoch = remote.health(source).epoch;
        let summaries = match remote.compare(source, &partitions).await {
            Ok(told) => Some(partitions.into_iter().zip(told.iter().map(compare::summary)).collect()),
            Err(error) => {
                tracing::debug!(%source, %error, "a node does not tell what it has");
                None
            }
        };
        Done::Compared { source, epoch, summaries }
    }

    async fn pull(self, pull: Pull) -> Done {
        let Inner { nodes, index, moved, floor, .. } = &*self.inner;
        let Pull { source, partition, .. } = pull;
        let puller = Puller { nodes, index, moved, source, partition, floor: *floor };
        let outcome = match puller.pull().await {
            Ok(copies) => {
                tracing::debug!(partition, %source, copies, "a partition was compared with another node's");
                Pulled::All { copies }
            }
            Err(MoveError::Store(error @ (WriteError::Full { .. } | WriteError::Outlived { .. }))) => {
                tracing::debug!(partition, %source, %error, "this node has no room for what it should have");
                Pulled::Full
            }
            Err(error) if error.is_here() => {
                tracing::warn!(partition, %source, error = %with_causes(&error), "this node cannot take what it should have");
                Pulled::Full
            }
            Err(error) => {
                tracing::debug!(partition, %source, error = %with_causes(&error), "a partition was not pulled to its end");
                Pulled::Broken
            }
        };
        Done::Pulled(pull, outcome)
    }

    async fn hand_over(self, view: Arc<View>, partition: u16, may_drop: bool) -> Done {
        let Inner { nodes, index, moved, floor, .. } = &*self.inner;
        let hand_over = HandOver { nodes, index, moved, view, partition, floor: *floor, may_drop };
        let has_failed = match hand_over.run().await {
            Ok(is_lacking) => is_lacking,
            Err(error) => {
                tracing::warn!(partition, error = %with_causes(&error), "what others own was not handed over");
                true
            }
        };
        Done::HandedOver { partition, has_failed }
    }

    /// What this node has of a partition.
    fn here(&self, partition: u16) -> Summary {
        compare::summary(&compare::here(self.inner.nodes.store(), &self.inner.index, partition))
    }

    fn now_ms(&self) -> u64 {
        let passed_ms = u64::try_from(self.inner.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        passed_ms.saturating_add(self.inner.ahead_ms.load(Ordering::Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns when there is another value. Never, if there will be none.
async fn changed<T>(values: &mut watch::Receiver<T>) {
    if values.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
