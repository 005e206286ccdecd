//! What has to be done now and then: force the state machine to disk, cut the log, and, on the leader, remove what has ended.

use std::sync::Arc;

use casbah_cluster::consensus::{Command, Reply};
use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::index::raft::core::{Core, blocking};
use crate::index::raft::group::ENTRIES_KEPT;
use crate::index::raft::proposals::Waiting;
use crate::index::records::now;

/// Entries that a restart applies again at most, roughly: some tenths of a second.
const VOLATILE_ENTRIES_MAX: u64 = 10_000;

/// The same in bytes.
const VOLATILE_BYTES_MAX: u64 = 64 << 20;

/// The log is cut when it has as many entries, however small they are.
const LOG_ENTRIES_MAX: u64 = 16 << 10;

/// Commands that remove ended assets, of some hundred each, one after the other before others have their turn.
const EXPIRE_ROUNDS: usize = 16;

/// Runs until it is dropped.
pub(super) async fn run(core: Arc<Core>, proposals: mpsc::Sender<Waiting>) {
    let mut ticks = interval(core.timing.keep_every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut durable_at = Instant::now();
    loop {
        ticks.tick().await;
        make_durable(&core, &mut durable_at).await;
        cut_log(&core).await;
        if core.is_leader() {
            expire(&core, &proposals).await;
        }
    }
}

async fn make_durable(core: &Core, durable_at: &mut Instant) {
    let (entries, bytes) = core.state.volatile();
    let is_much = entries >= VOLATILE_ENTRIES_MAX || bytes >= VOLATILE_BYTES_MAX;
    if entries == 0 || !(is_much || durable_at.elapsed() >= core.timing.durable_every) {
        return;
    }
    let state = core.state.clone();
    if let Err(error) = blocking(move || state.make_durable()).await {
        tracing::error!(%error, "the state of the group could not be forced to disk");
    }
    *durable_at = Instant::now();
}

/// When the log is long, has openraft make a snapshot, which costs an fsync, and remove the entries before it.
async fn cut_log(core: &Core) {
    let (last, snapshot) = {
        let metrics = core.raft.data_metrics();
        let metrics = metrics.borrow_watched();
        (metrics.last_applied.map_or(0, |id| id.index()), metrics.snapshot.map_or(0, |id| id.index()))
    };
    let entries = last.saturating_sub(snapshot);
    let is_long = core.log.size_bytes() >= core.timing.log_bytes && entries >= 2 * ENTRIES_KEPT;
    if is_long || entries >= LOG_ENTRIES_MAX {
        // If openraft has ended, there is nothing to cut.
        drop(core.raft.trigger().snapshot().await);
    }
}

async fn expire(core: &Core, proposals: &mpsc::Sender<Waiting>) {
    for _ in 0..EXPIRE_ROUNDS {
        let now = now();
        if !core.state.something_has_ended(now) {
            return;
        }
        let (done, reply) = oneshot::channel();
        if proposals.try_send(Waiting { command: Command::ExpireAssets { now }, done }).is_err() {
            return;
        }
        match reply.await {
            Ok(Ok(Reply::Removed { count })) if count > 0 => {}
            // Somebody else leads, or too much waits. What has ended is not served all the same.
            _ => return,
        }
    }
}
