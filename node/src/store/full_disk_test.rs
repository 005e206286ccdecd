use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::config::{Compression, SyncPolicy};

use super::disk::Operation;
use super::error::WriteError;
use super::testing::{Bench, blob, digest};
use super::{Store, StoreOptions, health, verify};

const DIR: &str = "CASBAH_TEST_FULL_DISK_DIR";
const ENOSPC: i32 = 28;
/// More than there is.
const CAPACITY_BYTES: u64 = 64 << 20;
const DISK: &str = "size=24m";
const DISK_BYTES: u64 = 24 << 20;
const BALLAST_BYTES: usize = 4 << 20;
const BLOBS: u64 = 300;

fn options(dir: PathBuf, retention_floor: Duration) -> StoreOptions {
    let sync = SyncPolicy::Interval(Duration::from_millis(5));
    StoreOptions { dir, capacity_bytes: CAPACITY_BYTES, retention_floor, sync, compression: Compression::None }
}

fn length(seed: u64) -> usize {
    [1000, 20_000, 100_000, 300_000, 2_000_000][seed as usize % 5] + seed as usize
}

async fn try_put(store: &Store, seed: u64) -> Result<(), WriteError> {
    let bytes = blob(seed, length(seed));
    store.put(&digest(&bytes), bytes).await
}

/// Everything that is said to be there is.
async fn count_good(store: &Store, seeds: impl Iterator<Item = u64>) -> u64 {
    let mut good = 0;
    for seed in seeds {
        let bytes = blob(seed, length(seed));
        let name = digest(&bytes);
        if store.contains(&name) {
            assert_eq!(store.get(&name, u64::MAX).await.unwrap(), bytes);
            good += 1;
        }
    }
    good
}

/// Stores several times what the disk holds.
async fn overfill(store: &Store, dir: &Path, hinder: impl Fn(u64)) {
    let mut refused = 0;
    for seed in 0..BLOBS {
        hinder(seed);
        match try_put(store, seed).await {
            Ok(()) => assert!(store.contains(&digest(&blob(seed, length(seed)))), "{seed} was acknowledged last"),
            Err(WriteError::Full { .. }) => refused += 1,
            Err(error) => panic!("{seed}: {error}: {:?}", std::error::Error::source(&error)),
        }
    }
    assert!(refused * 10 < BLOBS, "{refused} of {BLOBS} refused, though what is old may go");
    let status = store.status();
    assert!(status.usable_bytes < CAPACITY_BYTES, "{status:?}");
    assert!(status.evicted_blobs > 0, "{status:?}");
    health::watch(store.shared());
    assert_eq!(store.status().read_only, None);
    let good = count_good(store, 0..BLOBS).await;
    assert!(good > 5, "{good} blobs of {status:?}");
    assert_eq!(good, store.status().blobs);
    store.close().await;
    let report = verify(dir, |_, _| {}).unwrap();
    assert_eq!((report.bad.len(), report.index_damaged, report.good_blobs), (0, false, good), "{:?}", report.bad);
}

/// Not a test: what is done on the small disk.
#[tokio::test]
async fn on_the_small_disk() {
    let Some(root) = std::env::var_os(DIR) else { return };
    let root = PathBuf::from(root);
    assert!(rustix::fs::statvfs(&root).unwrap().f_blocks * 4096 <= DISK_BYTES, "this is the small disk");
    let (dir, ballast) = (root.join("store"), root.join("ballast"));
    let store = Store::open(options(dir.clone(), Duration::ZERO)).await.unwrap();
    overfill(&store, &dir, |_| {}).await;
    let before = store.status().blobs;
    drop(store);

    // Nothing may be evicted, and something else takes the rest.
    let store = Store::open(options(dir.clone(), Duration::from_secs(3600))).await.unwrap();
    assert_eq!(count_good(&store, 0..BLOBS).await, before);
    let mut freed = vec![0; BALLAST_BYTES];
    while std::fs::write(&ballast, &freed).is_err() {
        freed.truncate(freed.len() / 2);
    }
    let mut stored = Vec::new();
    let refused = loop {
        let seed = 1000 + stored.len() as u64 * 5;
        match try_put(&store, seed).await {
            Ok(()) => stored.push(seed),
            Err(error) => break error,
        }
        assert!(stored.len() < 100_000, "the disk is never full");
    };
    assert!(matches!(refused, WriteError::Full { .. } | WriteError::ReadOnly { .. }), "{refused}");
    assert_eq!(count_good(&store, stored.iter().copied()).await, stored.len() as u64);

    // There is room again, and writes are taken again.
    std::fs::remove_file(&ballast).unwrap();
    let mut watched = 0;
    while try_put(&store, 5000).await.is_err() {
        health::watch(store.shared());
        watched += 1;
        assert!(watched < 200, "{:?}", store.status());
    }
    store.close().await;
    drop(store);
    let store = Store::open(options(dir.clone(), Duration::from_secs(3600))).await.unwrap();
    assert_eq!(count_good(&store, stored.iter().copied()).await, stored.len() as u64);
}

/// A command in a mount namespace of its own, where this directory is a small tmpfs that goes with the command.
fn on_tmpfs(dir: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let script = "mount -t tmpfs -o \"$0\" none \"$1\" && shift && exec \"$@\"";
    command.args(["sh", "-c", script, DISK]).arg(dir);
    command
}

/// On a real tmpfs of 24 MiB, in a mount namespace. Where the system lets nobody mount one, making files fails with
/// ENOSPC by injection instead, which is printed.
#[tokio::test]
async fn a_disk_that_fills_up_evicts_and_goes_on_on_tmpfs_or_else_by_injected_enospc() {
    let dir = tempfile::tempdir().unwrap();
    if on_tmpfs(dir.path()).arg("true").output().is_ok_and(|output| output.status.success()) {
        let this = std::env::current_exe().unwrap();
        let output = on_tmpfs(dir.path())
            .arg(this)
            .args(["store::full_disk_test::on_the_small_disk", "--exact", "--nocapture"])
            .env(DIR, dir.path())
            .output()
            .unwrap();
        let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && said.contains("1 passed"), "{said}{failed}");
        return println!("on a tmpfs of 24 MiB");
    }
    println!("no tmpfs can be mounted here: ENOSPC is injected");
    let bench = Bench::new(CAPACITY_BYTES);
    let store = bench.open().await;
    overfill(&store, &bench.options.dir, |seed| {
        // What would go beyond the disk cannot be made: the file of a large blob, or a segment.
        if store.status().bytes + length(seed) as u64 > DISK_BYTES {
            bench.disk.faults.fail_once_after(Operation::Create, ENOSPC, 0);
        }
    })
    .await;
}
