//! How this node is, for others to know whom to ask.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use casbah_cluster::membership::{NodeId, Roster};
use casbah_proto::peer::v1::{NodeReport, RepairReport};
use tokio::sync::watch;

use super::words;
use crate::repair::Repair;
use crate::store::{ReadOnlyReason, Store};

/// How often it is looked how far repair is: some thousand look-ups, and each other node asks twice a second.
const REPAIR_PERIOD: Duration = Duration::from_secs(1);

/// How this node is. Cheap to clone.
#[derive(Clone)]
pub(in crate::run) struct Condition {
    store: Store,
    roster: watch::Receiver<Arc<Roster>>,
    draining: Arc<AtomicBool>,
    others: Arc<Mutex<Others>>,
    repair: Arc<OnceLock<Repair>>,
    /// How far it was, and when.
    repaired: Arc<Mutex<Option<(Instant, RepairReport)>>>,
}

/// What this node knows of itself by the others.
#[derive(Debug, Default)]
struct Others {
    /// Who has been heard from lately.
    reached: BTreeSet<NodeId>,
    clock_is_off: bool,
}

// === impl Condition ===

impl Condition {
    /// Of a node with this store, which works by this roster.
    pub(in crate::run) fn new(store: Store, roster: watch::Receiver<Arc<Roster>>) -> Condition {
        let (draining, others, repair, repaired) = Default::default();
        Condition { store, roster, draining, others, repair, repaired }
    }

    /// From now on the node says that new work should go elsewhere.
    pub(in crate::run) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// What gets copies to where they belong, from now on. Another one is not taken.
    pub(in crate::run) fn is_repaired_by(&self, repair: Repair) {
        self.repair.get_or_init(|| repair);
    }

    fn repair(&self) -> Option<RepairReport> {
        let repair = self.repair.get()?;
        let mut repaired = self.repaired.lock().unwrap_or_else(PoisonError::into_inner);
        if repaired.as_ref().is_none_or(|(at, _)| at.elapsed() >= REPAIR_PERIOD) {
            *repaired = Some((Instant::now(), words::repair_to_message(repair.progress())));
        }
        repaired.as_ref().map(|(_, report)| report.clone())
    }

    /// What is known of others, for others to know.
    pub(in crate::run) fn hears_from(&self, reached: BTreeSet<NodeId>, clock_is_off: bool) {
        *self.others() = Others { reached, clock_is_off };
    }

    /// What ails this node, for people.
    pub(in crate::run) fn ailment(&self) -> Option<&'static str> {
        let clock_is_off = self.others().clock_is_off;
        match self.store.status().read_only {
            Some(ReadOnlyReason::DiskFull) => Some("its disk is full"),
            Some(ReadOnlyReason::DiskFailed(_)) => Some("its disk fails"),
            None => clock_is_off.then_some("its clock is off"),
        }
    }

    fn reached(&self) -> Vec<u64> {
        self.others().reached.iter().map(|node| node.0).collect()
    }

    fn others(&self) -> MutexGuard<'_, Others> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For others.
    pub(in crate::run) fn report(&self) -> NodeReport {
        let status = self.store.status();
        let since_1970 = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis();
        let horizon = status.oldest_use.map(since_1970);
        let (reaches, ailment) = (self.reached(), self.ailment());
        NodeReport {
            writable: status.read_only.is_none(),
            draining: self.draining.load(Ordering::Relaxed),
            blobs: status.blobs,
            used_bytes: status.bytes,
            capacity_bytes: status.capacity_bytes,
            eviction_horizon_ms: horizon.and_then(|horizon| u64::try_from(horizon).ok()).unwrap_or(0),
            epoch: self.roster.borrow().epoch().0,
            reaches,
            ailment: ailment.unwrap_or_default().to_owned(),
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            repair: self.repair(),
        }
    }
}
