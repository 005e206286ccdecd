//! The Remote Asset index: assets by their key, the same for all nodes of the cluster.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use casbah_cluster::asset::{AssetKey, AssetRecord};
use casbah_cluster::consensus::Command;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::index::raft::{Group, GroupError};
use crate::index::records::{IndexCounts, IndexError};
use crate::observe::counters::COUNTERS;

/// How long uses may wait before they are told to the others. They only order eviction, and each push takes along those that
/// wait where it is made.
const USES_WAIT: Duration = Duration::from_secs(5);

/// Assets whose use waits to be told. Beyond this, uses are forgotten: they only order eviction.
const USES_MAX: usize = 16 << 10;

/// Uses that a push takes along at most, so that it is not delayed by them.
const USES_PER_PUSH_MAX: usize = 256;

/// How long a node that stops waits for its last uses to be told.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// The Remote Asset index. Cheap to clone.
#[derive(Clone)]
pub struct AssetIndex {
    group: Group,
    stale_reads: bool,
    uses: Arc<Mutex<HashSet<Vec<u8>>>>,
    /// Tells the others of uses; cut off when the last handle goes.
    teller: Arc<Mutex<JoinSet<()>>>,
}

/// What is known of some assets at one moment: at least all that was acknowledged, by any node, before it was asked for.
pub struct AssetView<'i> {
    index: &'i AssetIndex,
    keys: &'i [AssetKey],
    source: Source,
}

/// Where it is known.
enum Source {
    Here,
    /// On nodes that have the log.
    Elsewhere {
        /// It may be behind what was acknowledged: no leader can be found.
        is_stale: bool,
        /// Of the keys from this one on, what was told last.
        first: usize,
        records: Vec<Option<Vec<u8>>>,
    },
}

// === impl AssetIndex ===

impl AssetIndex {
    /// The index of this group. With `stale_reads`, what is known here is served while no leader can be found. Needs a
    /// runtime.
    #[must_use]
    pub fn new(group: Group, stale_reads: bool) -> AssetIndex {
        let uses = Arc::new(Mutex::new(HashSet::new()));
        let mut teller = JoinSet::new();
        teller.spawn(tell(group.clone(), Arc::clone(&uses)));
        AssetIndex { group, stale_reads, uses, teller: Arc::new(Mutex::new(teller)) }
    }

    /// What is known now of the assets under these keys.
    ///
    /// # Errors
    /// [`IndexError::Group`] when no leader can be found, and stale reads are not allowed.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn view<'i>(&'i self, keys: &'i [AssetKey]) -> Result<AssetView<'i>, IndexError> {
        let is_here = match self.group.reads_here().await {
            Err(GroupError::NoLeader) if self.stale_reads => {
                COUNTERS.asset_stale_reads.add(1);
                true
            }
            outcome => outcome?,
        };
        if is_here {
            return Ok(AssetView { index: self, keys, source: Source::Here });
        }
        let all = || keys.iter().map(AssetKey::as_bytes);
        let (is_stale, told) = match self.group.get_elsewhere(all(), false).await {
            Err(GroupError::NoLeader) if self.stale_reads => (true, self.group.get_elsewhere(all(), true).await),
            outcome => (false, outcome),
        };
        let records = told?;
        if is_stale {
            COUNTERS.asset_stale_reads.add(1);
        }
        Ok(AssetView { index: self, keys, source: Source::Elsewhere { is_stale, first: 0, records } })
    }

    /// Notes that this asset was fetched, so that it stays longer. All nodes are told, after a while.
    pub fn used(&self, key: &AssetKey) {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        if uses.len() < USES_MAX {
            uses.insert(key.as_bytes().to_vec());
        }
    }

    /// Records the asset under all these keys, in place of what was known under them. When this returns, every view that is
    /// asked for, on any node, has it.
    ///
    /// # Errors
    /// [`IndexError::Group`]: nothing was recorded under at least one of the keys, or, with [`GroupError::Unknown`], that is
    /// not known.
    ///
    /// # Cancel safety
    /// Dropped half-way, the push may or may not happen.
    pub async fn push(&self, keys: &[AssetKey], record: &AssetRecord) -> Result<(), IndexError> {
        for command in Command::touch_assets(self.waiting_uses(USES_PER_PUSH_MAX)) {
            // They only order eviction: nobody waits for them.
            drop(self.group.submit(command));
        }
        let keys = keys.iter().map(|key| key.as_bytes().to_vec()).collect();
        let commands = Command::put_assets(keys, &record.encode()?, record.expires_at);
        let pushes = commands.into_iter().map(|command| self.group.propose(command));
        futures_util::future::try_join_all(pushes).await?;
        Ok(())
    }

    fn waiting_uses(&self, at_most: usize) -> Vec<Vec<u8>> {
        taken(&self.uses, at_most)
    }

    /// The group that keeps it.
    #[must_use]
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// The index in numbers, as far as it is known here. May wait for the disk.
    #[must_use]
    pub fn counts(&self) -> IndexCounts {
        self.group.counts()
    }

    /// Tells of the last uses and closes the group. Later pushes fail.
    pub async fn close(&self) {
        let mut teller = std::mem::take(&mut *self.teller.lock().unwrap_or_else(PoisonError::into_inner));
        teller.shutdown().await;
        let last = tell_once(&self.group, &self.uses);
        if timeout(CLOSE_WAIT, last).await.is_err() {
            tracing::debug!("the last uses of assets were not told");
        }
        self.group.close().await;
    }
}

// === impl AssetView ===

impl AssetView<'_> {
    /// What is known of the asset under that key of the view, expired or not. Counts as no use: see [`AssetIndex::used`].
    ///
    /// # Errors
    /// [`IndexError`] when the database fails, the record is damaged, or nobody can tell.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn get(&mut self, at: usize) -> Result<Option<AssetRecord>, IndexError> {
        let group = &self.index.group;
        let found = match &mut self.source {
            Source::Here => match self.keys.get(at) {
                Some(key) => group.get_stale(key.as_bytes())?,
                None => None,
            },
            Source::Elsewhere { is_stale, first, records } => {
                if !(*first..*first + records.len()).contains(&at) {
                    let keys = self.keys.iter().skip(at).map(AssetKey::as_bytes);
                    *records = group.get_elsewhere(keys, *is_stale).await?;
                    *first = at;
                }
                records.get(at - *first).cloned().flatten()
            }
        };
        found.map(|bytes| AssetRecord::decode(&bytes)).transpose().map(Option::flatten).map_err(IndexError::from)
    }
}

async fn tell(group: Group, uses: Arc<Mutex<HashSet<Vec<u8>>>>) {
    let mut ticks = interval(USES_WAIT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        tell_once(&group, &uses).await;
    }
}

async fn tell_once(group: &Group, uses: &Mutex<HashSet<Vec<u8>>>) {
    for command in Command::touch_assets(taken(uses, USES_MAX)) {
        if let Err(error) = group.propose(command).await {
            tracing::debug!(%error, "uses of assets were not told");
        }
    }
}

/// Some of the uses that wait, which do not wait any more. None of them is before another: they are of the same moment.
fn taken(uses: &Mutex<HashSet<Vec<u8>>>, at_most: usize) -> Vec<Vec<u8>> {
    let mut uses = uses.lock().unwrap_or_else(PoisonError::into_inner);
    if uses.len() <= at_most {
        return std::mem::take(&mut *uses).into_iter().collect();
    }
    let some: Vec<Vec<u8>> = uses.iter().take(at_most).cloned().collect();
    for key in &some {
        uses.remove(key);
    }
    some
}
