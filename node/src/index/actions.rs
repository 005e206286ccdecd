//! The ActionCache's index: results of actions by instance, digest function and action, each with the version that tells
//! which of two is the later one.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_cluster::membership::NodeId;
use casbah_cluster::replication::{Version, VersionClock};

use crate::index::records::{IndexCounts, IndexError, Records};

/// The version of keys, and so of records. 1: results without versions, which are never found and go when they are the least
/// recently used.
const KEYS: u8 = 2;

/// What stands before each result.
const VERSION_BYTES: usize = 20;

/// The results of actions on this node. Cheap to clone.
#[derive(Clone)]
pub struct ActionIndex {
    records: Records,
    clock: Arc<Mutex<VersionClock>>,
}

// === impl ActionIndex ===

impl ActionIndex {
    /// Opens the index at `path`, or makes it. Keeps at most `capacity` results. Blocks on the disk.
    ///
    /// # Errors
    /// [`IndexError`] when the file is no index, has another format, or the disk fails.
    pub fn open(path: &Path, capacity: u64) -> Result<ActionIndex, IndexError> {
        let clock = Arc::new(Mutex::new(VersionClock::new(NodeId::default())));
        Ok(ActionIndex { records: Records::open(path, capacity)?, clock })
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

    /// The index in numbers. May wait for the disk.
    pub fn counts(&self) -> IndexCounts {
        self.records.counts()
    }

    /// Writes what waits. Later updates fail with [`IndexError::Closed`]. Blocks until done.
    pub fn close(&self) {
        self.records.close();
    }
}

/// Version, function, size, hash, and last the instance name: every part but the last has a known length.
fn key(instance: &str, action: &Digest) -> Vec<u8> {
    let mut key = vec![KEYS, action.function().number()];
    key.extend_from_slice(&action.size_bytes().to_be_bytes());
    key.extend_from_slice(action.hash());
    key.extend_from_slice(instance.as_bytes());
    key
}

/// The version, so that versions are ordered as their bytes are, and the result.
fn encode(version: Version, result: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(VERSION_BYTES + result.len());
    record.extend_from_slice(&version.time_ms.to_be_bytes());
    record.extend_from_slice(&version.count.to_be_bytes());
    record.extend_from_slice(&version.node.0.to_be_bytes());
    record.extend_from_slice(result);
    record
}

fn decode(record: Vec<u8>) -> Option<(Version, Bytes)> {
    let (time_ms, rest) = record.split_first_chunk()?;
    let (count, rest) = rest.split_first_chunk()?;
    let (node, _) = rest.split_first_chunk()?;
    let node = NodeId(u64::from_be_bytes(*node));
    let version = Version { time_ms: u64::from_be_bytes(*time_ms), count: u32::from_be_bytes(*count), node };
    Some((version, Bytes::from(record).slice(VERSION_BYTES..)))
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use casbah_cluster::digest::DigestFunction;

    fn open(folder: &tempfile::TempDir) -> ActionIndex {
        ActionIndex::open(&folder.path().join("actions.redb"), 10).unwrap()
    }

    fn action(text: &str) -> Digest {
        Digest::of(DigestFunction::Sha256, text.as_bytes())
    }

    fn version(time_ms: u64, count: u32, node: u64) -> Version {
        Version { time_ms, count, node: NodeId(node) }
    }

    fn result(index: &ActionIndex, name: &str) -> Option<Bytes> {
        index.get("main", &action(name)).unwrap().map(|(_, result)| result)
    }

    #[tokio::test]
    async fn results_are_told_apart_by_instance_and_action() {
        let folder = tempfile::tempdir().unwrap();
        let index = open(&folder);
        let at = version(7, 8, 9);
        index.put_if_newer("main", &action("a"), at, Bytes::from_static(b"result")).await.unwrap();
        assert_eq!(index.get("main", &action("a")).unwrap(), Some((at, Bytes::from_static(b"result"))));
        assert_eq!(index.get("", &action("a")).unwrap(), None);
        assert_eq!(index.get("main/x", &action("a")).unwrap(), None);
        assert_eq!(index.get("main", &action("b")).unwrap(), None);
    }

    #[tokio::test]
    async fn the_newest_version_stays_in_whatever_order_they_come() {
        let folder = tempfile::tempdir().unwrap();
        let index = open(&folder);
        let versions =
            [version(256, 0, 1), version(255, 9, 9), version(256, 0, 0), version(256, 1, 0), version(1, 0, 0)];
        for version in versions {
            let text = Bytes::from(format!("{version:?}"));
            index.put_if_newer("main", &action("a"), version, text).await.unwrap();
        }
        assert_eq!(index.get("main", &action("a")).unwrap().map(|(version, _)| version), Some(version(256, 1, 0)));
        assert_eq!(result(&index, "a").unwrap(), format!("{:?}", version(256, 1, 0)));
    }

    #[tokio::test]
    async fn the_newest_of_many_written_at_once_stays() {
        let folder = tempfile::tempdir().unwrap();
        let index = open(&folder);
        let name = action("a");
        let puts = (0..100_u64).map(|at| {
            let time_ms = at * 37 % 100;
            index.put_if_newer("main", &name, version(time_ms, 0, 0), Bytes::from(time_ms.to_string()))
        });
        for outcome in futures_util::future::join_all(puts).await {
            outcome.unwrap();
        }
        assert_eq!(result(&index, "a").unwrap(), "99");
    }

    #[tokio::test]
    async fn an_update_wins_over_what_is_here_although_the_clock_was_set_back() {
        let folder = tempfile::tempdir().unwrap();
        let index = open(&folder);
        let ahead = version(unix_ms() + 3_600_000, u32::MAX, 3);
        index.put_if_newer("main", &action("a"), ahead, Bytes::from_static(b"1")).await.unwrap();
        for at in 2..5 {
            let next = index.next_version(NodeId(1), "main", &action("a")).unwrap();
            index.put_if_newer("main", &action("a"), next, Bytes::from(at.to_string())).await.unwrap();
            assert_eq!(result(&index, "a").unwrap(), at.to_string());
        }
        // And of no other action.
        assert!(index.next_version(NodeId(1), "main", &action("b")).unwrap() < ahead);
    }

    #[tokio::test]
    async fn a_version_that_was_seen_makes_the_next_ones_later() {
        let folder = tempfile::tempdir().unwrap();
        let index = open(&folder);
        let seen = version(unix_ms() + 30_000, 5, 2);
        index.observe(seen);
        assert!(index.next_version(NodeId(1), "main", &action("a")).unwrap() > seen);
    }

    #[tokio::test]
    async fn a_record_that_is_too_short_for_a_version_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let index = open(&folder);
        index.records.put(key("main", &action("a")), vec![0; VERSION_BYTES - 1], None).await.unwrap();
        assert_eq!(result(&index, "a"), None);
        index.put_if_newer("main", &action("a"), version(1, 0, 0), Bytes::new()).await.unwrap();
        assert_eq!(result(&index, "a").unwrap(), "");
    }
}
