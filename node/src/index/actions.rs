//! The ActionCache's index: results of actions by instance, digest function and action, each with the version that tells
//! which of two is the later one.

use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_cluster::inventory::{ActionName, Inventory, ListedAction, Page};
use casbah_cluster::membership::NodeId;
use casbah_cluster::replication::{Version, VersionClock};

use crate::index::action_counts::{ActionCounts, Inventories};
use crate::index::action_keys::{
    VERSION_BYTES, decode, decode_version, encode, encode_version, first_key, key, parse_key,
};
use crate::index::records::{IndexCounts, IndexError, Records};
use crate::index::writer::Watcher;

/// Its name in the node's directory.
pub const ACTIONS_FILE: &str = "actions.redb";

/// Results that are removed in one go: fewer than may wait for the writer, so that clients' updates find a place.
const REMOVES_AT_ONCE: usize = 256;

/// The results of actions on this node. Cheap to clone.
#[derive(Clone)]
pub struct ActionIndex {
    records: Records,
    clock: Arc<Mutex<VersionClock>>,
    counts: Arc<ActionCounts>,
}

// === impl ActionIndex ===

impl ActionIndex {
    /// Opens the index at `path`, or makes it. Keeps at most `capacity` results. Blocks on the disk.
    ///
    /// # Errors
    /// [`IndexError`] when the file is no index, has another format, or the disk fails.
    pub fn open(path: &Path, capacity: u64) -> Result<ActionIndex, IndexError> {
        let clock = Arc::new(Mutex::new(VersionClock::new(NodeId::default())));
        let inventories = Arc::new(Inventories::new());
        let noted = Arc::clone(&inventories);
        let watcher = Watcher { head_bytes: VERSION_BYTES, tell: Box::new(move |changes| noted.note(changes)) };
        let (records, found) = Records::open_watched(path, capacity, Some(watcher))?;
        let counts = Arc::new(ActionCounts::start(inventories, found)?);
        Ok(ActionIndex { records, clock, counts })
    }

    /// The encoded `ActionResult` of this action, and its version. Counts as no use: see [`ActionIndex::used`].
    ///
    /// # Errors
    /// [`IndexError`] when the database fails.
    pub fn get(&self, instance: &str, action: &Digest) -> Result<Option<(Version, Bytes)>, IndexError> {
        let found = self.records.get(&key(instance, action))?;
        // A record without a version was not made by this program.
        Ok(found.and_then(decode))
    }

    /// Notes that this result was of use, so that it stays longer.
    pub fn used(&self, instance: &str, action: &Digest) {
        self.records.used(&key(instance, action));
    }

    /// A version for a result that this node was given now: later than all that it has made, and than that of the result that
    /// it has of the action.
    ///
    /// # Errors
    /// [`IndexError`] when the database fails.
    pub fn next_version(&self, node: NodeId, instance: &str, action: &Digest) -> Result<Version, IndexError> {
        let known = self.get(instance, action)?.map(|(version, _)| version);
        let made = self.clock.lock().unwrap_or_else(PoisonError::into_inner).now(unix_ms());
        let made = Version { node, ..made };
        Ok(match known {
            // The clock was set back, or another node's is ahead. Of this action alone the time goes on from there.
            Some(known) if known >= made => match known.count.checked_add(1) {
                Some(count) => Version { count, node, ..known },
                None => Version { time_ms: known.time_ms.saturating_add(1), count: 0, node },
            },
            _ => made,
        })
    }

    /// Another node's version was seen: those made from now on are later, unless it is not to be believed.
    pub fn observe(&self, version: Version) {
        let observed = self.clock.lock().unwrap_or_else(PoisonError::into_inner).observe(version, unix_ms());
        if let Err(error) = observed {
            tracing::warn!(%error, "the clocks of nodes differ: of results of one action an earlier one may win");
        }
    }

    /// Keeps the encoded `ActionResult`, unless the one that is here is newer. When this returns, this one or a newer one is on
    /// disk.
    ///
    /// # Errors
    /// [`IndexError::Busy`] when too many writes wait; others when it could not be written, and then nothing changed.
    ///
    /// # Cancel safety
    /// Dropped half-way, the update may or may not happen.
    pub async fn put_if_newer(
        &self,
        instance: &str,
        action: &Digest,
        version: Version,
        result: Bytes,
    ) -> Result<(), IndexError> {
        self.observe(version);
        self.records.put_unless_below(key(instance, action), encode(version, &result), VERSION_BYTES).await
    }

    /// What is here of a partition, in short. No IO. `None` as long as what is on disk is being counted, after the start.
    pub fn inventory(&self, partition: usize) -> Option<Inventory> {
        self.counts.inventory(partition)
    }

    /// The next results of a partition after this one, up to `limit` and, but for the first, so many bytes of names. Counts as
    /// no use. Blocks on the disk.
    ///
    /// # Errors
    /// [`IndexError`] when the database fails.
    pub fn list(
        &self,
        partition: usize,
        after: Option<&ActionName>,
        (limit, bytes): (usize, usize),
    ) -> Result<Page<ListedAction>, IndexError> {
        let end = first_key(partition + 1);
        let first = match after {
            Some(after) => Bound::Excluded(key(&after.instance, &after.action)),
            None => Bound::Included(first_key(partition).to_vec()),
        };
        let mut page = Page { entries: Vec::new(), is_last: true };
        let mut length = 0;
        // One of another partition than that which is asked for has nothing after it.
        if let Bound::Excluded(after) = &first
            && (after.as_slice() >= end.as_slice() || after.as_slice() < first_key(partition).as_slice())
        {
            return Ok(page);
        }
        let keys = (first.as_ref().map(Vec::as_slice), Bound::Excluded(end.as_slice()));
        self.records.scan(keys, |key, record| {
            let (Some((_, instance, action)), Some(version)) = (parse_key(key), decode_version(record)) else {
                return ControlFlow::Continue(());
            };
            length += key.len() + VERSION_BYTES;
            if !page.entries.is_empty() && (page.entries.len() >= limit || length > bytes) {
                page.is_last = false;
                return ControlFlow::Break(());
            }
            page.entries.push(ListedAction { instance: instance.to_owned(), action, version });
            ControlFlow::Continue(())
        })?;
        Ok(page)
    }

    /// Removes results that other nodes have. One that has been replaced since it was listed stays.
    ///
    /// # Errors
    /// [`IndexError`]; some may have been removed.
    ///
    /// # Cancel safety
    /// Dropped half-way, each may be removed or not.
    pub async fn remove(&self, listed: &[ListedAction]) -> Result<(), IndexError> {
        for some in listed.chunks(REMOVES_AT_ONCE) {
            let removes = some.iter().map(|listed| {
                let head = encode_version(listed.version).to_vec();
                self.records.remove_if(key(&listed.instance, &listed.action), head)
            });
            futures_util::future::try_join_all(removes).await?;
        }
        Ok(())
    }

    /// Whether a result of this version from another node would stay, which is not here yet: there is room, or the one that
    /// would go for it is an earlier one. Of two full nodes that copied from each other all that the other has, each would go on
    /// for ever. Blocks on the disk.
    ///
    /// # Errors
    /// [`IndexError`] when the database fails.
    pub fn would_stay(&self, version: Version) -> Result<bool, IndexError> {
        let next = self.records.next_to_go()?;
        Ok(next.and_then(|record| decode_version(&record)).is_none_or(|next| version > next))
    }

    /// The index in numbers. May wait for the disk.
    pub fn counts(&self) -> IndexCounts {
        self.records.counts()
    }

    /// Writes what waits. Later updates fail with [`IndexError::Closed`]. Blocks until done.
    pub fn close(&self) {
        self.counts.stop();
        self.records.close();
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "actions_test.rs"]
mod tests;
