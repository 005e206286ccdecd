//! How this node is, for others to know whom to ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use casbah_cluster::membership::Roster;
use casbah_proto::peer::v1::NodeReport;
use tokio::sync::watch;

use crate::store::Store;

/// How this node is. Cheap to clone.
#[derive(Clone)]
pub(in crate::run) struct Condition {
    store: Store,
    roster: watch::Receiver<Arc<Roster>>,
    draining: Arc<AtomicBool>,
}

// === impl Condition ===

impl Condition {
    /// Of a node with this store, which works by this roster.
    pub(in crate::run) fn new(store: Store, roster: watch::Receiver<Arc<Roster>>) -> Condition {
        Condition { store, roster, draining: Arc::default() }
    }

    /// From now on the node says that new work should go elsewhere.
    pub(in crate::run) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// For others.
    pub(in crate::run) fn report(&self) -> NodeReport {
        let status = self.store.status();
        let since_1970 = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis();
        let horizon = status.oldest_use.map(since_1970);
        NodeReport {
            writable: status.read_only.is_none(),
            draining: self.draining.load(Ordering::Relaxed),
            blobs: status.blobs,
            used_bytes: status.bytes,
            capacity_bytes: status.capacity_bytes,
            eviction_horizon_ms: horizon.and_then(|horizon| u64::try_from(horizon).ok()).unwrap_or(0),
            epoch: self.roster.borrow().epoch().0,
        }
    }
}
