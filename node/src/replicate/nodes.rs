//! This node, and the others that blobs are kept on.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use casbah_cluster::digest::Digest;
use casbah_cluster::membership::{Epoch, NodeId, Standing};
use casbah_cluster::ring::partition_of;
use casbah_cluster::view::View;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use crate::forward::for_repair;
use crate::observe::counters::COUNTERS;
use crate::observe::throttle::Throttle;
use crate::replicate::background::Background;
use crate::replicate::copy;
use crate::replicate::pacing::Pacing;
use crate::replicate::promises::Promises;
use crate::replicate::remote::Remote;
use crate::replicate::touches::Touches;
use crate::replicate::views::Views;
use crate::store::Store;

/// Bytes on their way to nodes that have not taken them yet, of all uploads together: what many uploads to a slow node may
/// hold. Some pieces each for as many uploads as keep a fast network busy.
const SPREAD_BYTES: usize = 128 << 20;

/// What these are counted in, so that they can be counted in 32 bits.
const SPREAD_UNIT: usize = 1 << 10;

/// Copies under way that mend what a node was found to lack, so that they leave room for what clients ask.
const MENDS_AT_ONCE: usize = 4;

/// Copies of that kind that wait. What is not copied now is when it is asked for again, or when its owner next compares what it
/// has.
const MENDS_MAX: usize = 1024;

/// Lines about blobs that are missing though they were promised: a lost disk has many of them.
static BROKEN_PROMISES: Throttle = Throttle::new();

/// How long is waited for a layout that another node has answered by: many times what it takes to hear of one.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(2);

/// Added to the distance of nodes in another zone: more than any latency.
const ANOTHER_ZONE: u64 = 1 << 40;

/// This node's blobs and the way to those of other nodes. Cheap to clone.
#[derive(Clone)]
pub struct Nodes {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    view: watch::Receiver<Arc<View>>,
    is_in_doubt: Doubt,
    remote: Arc<dyn Remote>,
    background: Background,
    /// See [`SPREAD_BYTES`].
    room: Arc<Semaphore>,
    uploads: Mutex<HashMap<Digest, Weak<AtomicBool>>>,
    mending: Mutex<HashSet<(Digest, NodeId)>>,
    mends: Semaphore,
    pacing: Pacing,
    views: Views,
    touches: Touches,
    promises: Promises,
}

/// Whether the others may have agreed on something that this node does not hear of: it has just started, or was cut off for long.
pub type Doubt = Arc<dyn Fn() -> bool + Send + Sync>;

/// The layout of a node that does not know which one is in force: none that it knows of is as new.
const UNKNOWN: Epoch = Epoch(u64::MAX);

/// Bytes that may be held; given back when the last clone is dropped.
pub(super) type Room = Arc<OwnedSemaphorePermit>;

/// That a blob is being uploaded through this node, perhaps by several at once.
pub(super) struct Uploading {
    nodes: Nodes,
    digest: Digest,
    /// What it is decided by: held until the end.
    _view: Arc<View>,
    /// `None` only while it is dropped.
    is_stored: Option<Arc<AtomicBool>>,
}

// === impl Nodes ===

impl Nodes {
    /// This node's store, and those of the others by this view, now and later.
    pub fn new(store: Store, view: watch::Receiver<Arc<View>>, remote: Arc<dyn Remote>) -> Nodes {
        Nodes::in_doubt(store, view, remote, Arc::new(|| false))
    }

    /// The same of a node that may be in doubt of its view: then it acknowledges nothing, and calls nothing missing.
    pub fn in_doubt(
        store: Store,
        view: watch::Receiver<Arc<View>>,
        remote: Arc<dyn Remote>,
        is_in_doubt: Doubt,
    ) -> Nodes {
        let promises = Promises::new(store.retention_floor());
        let inner = Inner {
            store,
            view,
            is_in_doubt,
            remote,
            background: Background::default(),
            room: Arc::new(Semaphore::new(SPREAD_BYTES / SPREAD_UNIT)),
            uploads: Mutex::default(),
            mending: Mutex::default(),
            mends: Semaphore::new(MENDS_AT_ONCE),
            pacing: Pacing::default(),
            views: Views::default(),
            touches: Touches::default(),
            promises,
        };
        Nodes { inner: Arc::new(inner) }
    }

    /// What is on this node.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// The cluster as it is seen now. To be held for as long as anything is decided by it: what has moved by a newer layout is
    /// taken for moved when nobody decides by older ones.
    pub fn view(&self) -> Arc<View> {
        let view = Arc::clone(&self.inner.view.borrow());
        self.inner.views.note(&view);
        view
    }

    /// The cluster as it is seen now and later, by whoever decides nothing by it.
    pub fn views(&self) -> watch::Receiver<Arc<View>> {
        self.inner.view.clone()
    }

    /// The epoch of the oldest view that something is decided by on this node; `None` when nothing is.
    pub fn oldest_epoch(&self) -> Option<Epoch> {
        self.inner.views.oldest()
    }

    /// How much is moved in a second without a client that waits for it.
    pub fn pacing(&self) -> &Pacing {
        &self.inner.pacing
    }

    /// The newest layout that this node or that one is known to work by: whatever that one has answered so far it has answered by
    /// none that is newer. To be asked after the answer that it is to tell of.
    pub fn epoch_of(&self, node: NodeId) -> Epoch {
        if (self.inner.is_in_doubt)() {
            return UNKNOWN;
        }
        let (here, own) = {
            let view = self.inner.view.borrow();
            (view.self_id(), view.epoch())
        };
        if node == here { own } else { own.max(self.inner.remote.health(node).epoch) }
    }

    /// The view, when it has come to a layout that another node has answered by; `None` if it does not for long.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn caught_up(&self, epoch: Epoch) -> Option<Arc<View>> {
        if epoch == UNKNOWN {
            return None;
        }
        let mut view = self.inner.view.clone();
        let caught_up = view.wait_for(|view| view.epoch() >= epoch);
        match timeout(CATCH_UP_PATIENCE, caught_up).await {
            Ok(Ok(view)) => {
                self.inner.views.note(&view);
                Some(Arc::clone(&view))
            }
            Ok(Err(_)) | Err(_) => {
                tracing::warn!(%epoch, "other nodes work by a layout that this one does not hear of");
                None
            }
        }
    }

    /// The other nodes.
    pub fn remote(&self) -> &dyn Remote {
        &*self.inner.remote
    }

    /// How far away a node is for reads, the same zone first; `None` when it is away.
    pub fn distance(&self, view: &View, node: NodeId) -> Option<u64> {
        if node == view.self_id() {
            return Some(0);
        }
        let health = self.inner.remote.health(node);
        let latency = u64::try_from(health.latency.as_micros()).unwrap_or(u64::MAX).min(ANOTHER_ZONE - 1);
        let zone = if view.zone(node) == view.zone(view.self_id()) { 0 } else { ANOTHER_ZONE };
        health.reachable.then_some(zone + latency)
    }

    /// Whether a node is not to be written to, as far as is known.
    pub fn is_away(&self, view: &View, node: NodeId) -> bool {
        if node == view.self_id() {
            return false;
        }
        // Who leaves is not given what has to leave with it.
        let stays = view.member(node).is_some_and(|member| member.standing == Standing::Serving);
        let health = self.inner.remote.health(node);
        !stays || !health.reachable || !health.writable || health.draining
    }

    /// Has a copy of the blob made on a node that was found to lack it, from one that has it, if that node is to have one. Not
    /// waited for.
    pub fn mend(&self, view: &View, digest: Digest, from: NodeId, to: NodeId) {
        let here = view.self_id();
        let is_owner = view.owns(to, partition_of(&digest));
        if !is_owner || from == to || (to == here && self.inner.store.contains(&digest)) {
            return;
        }
        {
            let mut mending = lock(&self.inner.mending);
            if mending.len() >= MENDS_MAX || !mending.insert((digest, to)) {
                return;
            }
        }
        let nodes = self.clone();
        self.spawn(async move {
            let Ok(_place) = nodes.inner.mends.acquire().await else { return };
            nodes.pacing().take(digest.size_bytes()).await;
            match for_repair(copy::copy(&nodes, from, to, here, &digest)).await {
                Ok(()) if to == here => tracing::info!(%digest, %from, "a blob that this node had lost is here again"),
                Ok(()) => tracing::debug!(%digest, %from, %to, "a node that lacked a blob has it again"),
                Err(error) => tracing::warn!(%digest, %from, %to, %error, "a blob that a node lacks was not copied"),
            }
            lock(&nodes.inner.mending).remove(&(digest, to));
        });
    }

    /// Has the others that have a blob that was read take it for used, in a while.
    pub fn touch_others(&self, view: &View, digest: &Digest, read_from: NodeId) {
        if !view.is_single() {
            let partition = partition_of(digest);
            // If it was not on its owners, it may be on others that are none too.
            let is_owner = read_from == view.self_id() || view.owns(read_from, partition);
            let holders = if is_owner { view.owners(partition) } else { view.candidates(partition) };
            let others = holders.iter().copied().filter(|node| *node != view.self_id() && *node != read_from);
            self.inner.touches.add(self, digest, others);
        }
    }

    /// Has all that may have a blob take it for used, in a while or when they are back, except this node and those that have
    /// said that they have it, or that they do not.
    pub fn touch_the_rest(&self, view: &View, digest: &Digest, told: &[NodeId]) {
        let candidates = view.candidates(partition_of(digest)).iter().copied();
        let rest = candidates.filter(|node| *node != view.self_id() && !told.contains(node));
        self.inner.touches.add(self, digest, rest);
    }

    /// Tells nodes that were away, when they are back, which blobs were used meanwhile.
    ///
    /// # Cancel safety
    /// Never returns; may be dropped.
    pub async fn keep_telling(&self) {
        self.inner.touches.keep_telling(self).await;
    }

    /// A client is told that this blob is there, so that it has to stay for a while.
    pub fn promise(&self, digest: &Digest) {
        self.inner.promises.make(digest);
    }

    /// A blob is missing, for a fact. If a client was told of it not long ago, that is counted and told.
    pub fn is_missing(&self, digest: &Digest) {
        if self.inner.promises.is_broken(digest) {
            COUNTERS.broken_promises.add(1);
            BROKEN_PROMISES.line(|left_out| {
                tracing::warn!(%digest, left_out, "a blob is missing that was promised to a client within the retention floor");
            });
        }
    }

    /// Waits until copies under way are made, this long at the most.
    pub async fn finish(&self, deadline: Duration) {
        self.inner.background.finish(deadline).await;
    }

    pub(super) fn touches(&self) -> &Touches {
        &self.inner.touches
    }

    /// Begins a task that ends with this node's part in the cluster.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.inner.background.spawn(task);
    }

    /// Waits until so many bytes may be held.
    pub(super) async fn room(&self, bytes: usize) -> Option<Room> {
        let units = bytes.div_ceil(SPREAD_UNIT).min(SPREAD_BYTES / SPREAD_UNIT);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        Arc::clone(&self.inner.room).acquire_many_owned(units).await.ok().map(Arc::new)
    }

    /// Makes it known that a blob is being uploaded.
    pub(super) fn uploading(&self, digest: Digest) -> Uploading {
        let mut uploads = lock(&self.inner.uploads);
        let others = uploads.get(&digest).and_then(Weak::upgrade);
        let is_stored = others.unwrap_or_else(|| {
            let is_stored = Arc::new(AtomicBool::new(false));
            uploads.insert(digest, Arc::downgrade(&is_stored));
            is_stored
        });
        Uploading { nodes: self.clone(), digest, _view: self.view(), is_stored: Some(is_stored) }
    }
}

// === impl Uploading ===

impl Uploading {
    /// Whether one of the uploads of this blob has come to its end.
    pub(super) fn is_stored(&self) -> bool {
        self.is_stored.as_ref().is_some_and(|is_stored| is_stored.load(Ordering::Relaxed))
    }

    /// Says that this one has.
    pub(super) fn stored(&self) {
        if let Some(is_stored) = &self.is_stored {
            is_stored.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        let mut uploads = lock(&self.nodes.inner.uploads);
        self.is_stored = None;
        if uploads.get(&self.digest).is_some_and(|others| others.strong_count() == 0) {
            uploads.remove(&self.digest);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
