//! What the store's tests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use casbah_cluster::digest::{Digest, DigestFunction};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt as _, SeedableRng};

use crate::config::{Compression, SyncPolicy};

use super::clock::Clock;
use super::disk::Disk;
use super::options::{StoreOptions, Surroundings};
use super::store::Store;
use super::{maintenance, sync};

/// A clock that tests set.
#[derive(Debug, Default)]
pub struct TestClock(AtomicU32);

impl TestClock {
    pub fn advance(&self, seconds: u32) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn unix_seconds(&self) -> u32 {
        1_000_000 + self.0.load(Ordering::Relaxed)
    }
}

/// A directory with a store that can be killed and opened again.
pub struct Bench {
    pub(super) _dir: tempfile::TempDir,
    pub clock: Arc<TestClock>,
    pub disk: Arc<Disk>,
    pub options: StoreOptions,
    pub threads: bool,
}

impl Bench {
    pub fn new(capacity_bytes: u64) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            dir: dir.path().join("store"),
            capacity_bytes,
            retention_floor: Duration::ZERO,
            sync: SyncPolicy::Interval(Duration::from_millis(1)),
            compression: Compression::None,
        };
        Bench { _dir: dir, clock: Arc::default(), disk: Arc::default(), options, threads: true }
    }

    pub async fn open(&self) -> Store {
        let around = Surroundings { clock: self.clock.clone(), disk: self.disk.clone(), threads: self.threads };
        Store::open_in(self.options.clone(), around).await.unwrap()
    }

    /// All regular files below the store's blobs and incoming directories.
    pub fn files(&self) -> Vec<std::path::PathBuf> {
        let mut found = Vec::new();
        let mut directories = vec!["blobs", "incoming"];
        let mut directories: Vec<_> = directories.drain(..).map(|name| self.options.dir.join(name)).collect();
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { directories.push(path) } else { found.push(path) }
            }
        }
        found.sort();
        found
    }
}

/// Does what the threads do, now.
pub async fn settle(store: &Store) {
    store.shared().quiet().await;
    sync::journal_touches(store.shared());
    sync::pass(store.shared()).unwrap();
    maintenance::sweep(store.shared()).unwrap();
    sync::pass(store.shared()).unwrap();
}

pub fn digest(bytes: &[u8]) -> Digest {
    Digest::of(DigestFunction::Sha256, bytes)
}

/// Random bytes of this length, the same for the same seed.
pub fn blob(seed: u64, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    Bytes::from(bytes)
}

/// Bytes of this length that shrink to about a half, the same for the same seed.
pub fn text(seed: u64, length: usize) -> Bytes {
    let digits = blob(seed, length).iter().map(|byte| b"0123456789abcdef"[usize::from(byte % 16)]).collect::<Vec<u8>>();
    Bytes::from(digits)
}

/// Stores random bytes.
pub async fn put(store: &Store, seed: u64, length: usize) -> Digest {
    let bytes = blob(seed, length);
    let digest = digest(&bytes);
    store.put(&digest, bytes).await.unwrap();
    digest
}

/// The seed of a random test: from `CASBAH_TEST_SEED`, or a new one. Printed, and so shown when the test fails.
pub fn seed() -> u64 {
    let given = std::env::var("CASBAH_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| rand::rng().random());
    println!("CASBAH_TEST_SEED={seed}");
    seed
}

pub fn random(seed: u64) -> SmallRng {
    SmallRng::seed_from_u64(seed)
}
