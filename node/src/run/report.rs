//! What the admin port is told of the node.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use casbah_cluster::digest::Digest;
use futures_util::future::BoxFuture;

use crate::accept::Bound;
use crate::config::Config;
use crate::index::{ActionIndex, AssetIndex, IndexCounts};
use crate::observe::cluster::{Layouts, Ring, Whereabouts};
use crate::observe::counters::COUNTERS;
use crate::observe::labels::{CallCode, Transport};
use crate::observe::orders::{Order, OrderError};
use crate::observe::snapshot::{
    Calls, Connections, FORMAT, Index, Indexes, Listener, Observed, Phase, ReadOnlyReason, Snapshot,
    Store as StoreNumbers, Traffic,
};
use crate::run::cluster_report::ClusterSight;
use crate::run::membership::Place;
use crate::store::{self, Store};

/// The codes of calls that failed through no fault of the client.
const FAILED: [CallCode; 3] = [CallCode::Internal, CallCode::Unavailable, CallCode::DataLoss];

/// The node as it is seen from outside.
pub(super) struct Report {
    started: Instant,
    name: String,
    dir: PathBuf,
    listeners: Vec<Listener>,
    index_capacity: u64,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    /// Once this process owns the directory.
    data: Option<Data>,
}

/// What has numbers.
#[derive(Clone)]
pub(super) struct Data {
    pub(super) store: Store,
    /// Once the node has its place.
    pub(super) assets: Option<AssetIndex>,
    pub(super) actions: ActionIndex,
    pub(super) place: Place,
    /// Once the node has its place.
    pub(super) sight: Option<ClusterSight>,
}

// === impl Report ===

impl Report {
    /// Of a node that begins to start now.
    pub(super) fn new(config: &Config, listeners: &[Bound]) -> Report {
        let listener = |bound: &Bound| {
            let line = bound.to_string();
            let (url, description) = line.split_once(' ').unwrap_or((&line, ""));
            let description = description.trim_start_matches('(').trim_end_matches(')').to_owned();
            Listener { url: url.to_owned(), description }
        };
        Report {
            started: Instant::now(),
            name: config.node.name.clone(),
            dir: config.node.dir.clone(),
            listeners: listeners.iter().map(listener).collect(),
            index_capacity: config.index.capacity,
            state: Mutex::new(State { phase: Phase::Starting, data: None }),
        }
    }

    /// From now on the node is this far.
    pub(super) fn reached(&self, phase: Phase) {
        self.lock().phase = phase;
    }

    /// From now on the data is this process's.
    pub(super) fn owns(&self, data: Data) {
        self.lock().data = Some(data);
    }

    fn sight(&self) -> Option<ClusterSight> {
        self.lock().data.as_ref().and_then(|data| data.sight.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self, counts: IndexCounts) -> Index {
        let IndexCounts { records, evicted, expired } = counts;
        Index { records, capacity: self.index_capacity, evicted, expired }
    }
}

impl Observed for Report {
    fn phase(&self) -> Phase {
        self.lock().phase
    }

    fn snapshot(&self) -> Snapshot {
        // Not held while the disk may be waited for.
        let (phase, data) = {
            let state = self.lock();
            (state.phase, state.data.clone())
        };
        Snapshot {
            format: FORMAT,
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: option_env!("CASBAH_COMMIT").map(str::to_owned),
            pid: std::process::id(),
            phase,
            uptime_seconds: (self.started.elapsed().as_secs_f64() * 1e3).round() / 1e3,
            dir: self.dir.display().to_string(),
            listeners: self.listeners.clone(),
            connections: connections(),
            calls: Calls {
                under_way: COUNTERS.calls_under_way(),
                begun: COUNTERS.calls_begun.get(),
                failed: COUNTERS.calls_with(&FAILED),
            },
            traffic: Traffic {
                received_bytes: COUNTERS.received_bytes.total(),
                sent_bytes: COUNTERS.sent_bytes.total(),
            },
            store: data.as_ref().map(|data| numbers(&data.store)),
            indexes: data.as_ref().and_then(|data| {
                let assets = self.index(data.assets.as_ref()?.counts());
                Some(Indexes { assets, actions: self.index(data.actions.counts()) })
            }),
            waits_for: data.as_ref().and_then(|data| data.place.waiting()),
            cluster: data.as_ref().and_then(|data| data.sight.as_ref().map(ClusterSight::cluster)),
        }
    }

    fn ring(&self) -> Option<Ring> {
        self.sight().map(|sight| sight.ring())
    }

    fn layout(&self) -> Option<Layouts> {
        self.sight().map(|sight| sight.layouts())
    }

    fn carry_out(&self, order: Order) -> BoxFuture<'_, Option<Result<(), OrderError>>> {
        Box::pin(async move {
            match self.sight() {
                Some(sight) => Some(sight.carry_out(order).await),
                None => None,
            }
        })
    }

    fn whereabouts<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Option<Whereabouts>> {
        Box::pin(async move {
            match self.sight() {
                Some(sight) => Some(sight.whereabouts(digest).await),
                None => None,
            }
        })
    }
}

fn connections() -> Connections {
    Connections {
        open: (0..Transport::COUNT).map(|transport| COUNTERS.connections_open(transport)).sum(),
        accepted: COUNTERS.connections_accepted.total(),
        refused: COUNTERS.connections_refused.total(),
    }
}

fn numbers(store: &Store) -> StoreNumbers {
    let status = store.status();
    let age = status.oldest_use.map(|used| SystemTime::now().duration_since(used).unwrap_or_default().as_secs());
    StoreNumbers {
        blobs: status.blobs,
        bytes: status.bytes,
        capacity_bytes: status.capacity_bytes,
        usable_bytes: status.usable_bytes,
        reserved_bytes: status.reserved_bytes,
        segment_bytes: status.segment_bytes,
        dead_bytes: status.dead_bytes,
        index_memory_bytes: status.index_memory_bytes,
        evicted_blobs: status.evicted_blobs,
        evicted_bytes: status.evicted_bytes,
        damaged_blobs: status.damaged_blobs,
        repaired_blobs: status.repaired_blobs,
        given_up_blobs: status.given_up_blobs,
        lost_blobs: status.lost_blobs,
        is_unsure: status.is_unsure,
        scrubbed_bytes: status.scrubbed_bytes,
        oldest_use_age_seconds: age,
        read_only: status.read_only.map(|reason| match reason {
            store::ReadOnlyReason::DiskFull => ReadOnlyReason::DiskFull,
            store::ReadOnlyReason::DiskFailed(_) => ReadOnlyReason::DiskFailed,
        }),
    }
}
