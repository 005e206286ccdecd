use std::time::Duration;

use crate::config::{Compression, SyncPolicy};

use super::disk::Operation;
use super::error::{ReadError, ReadOnlyReason, WriteError};
use super::testing::{Bench, blob, digest, put, settle, text};
use super::{Store, health, sync};

const ENOSPC: i32 = 28;
const EIO: i32 = 5;
const MIB: usize = 1 << 20;

async fn try_put(store: &Store, seed: u64, length: usize) -> Result<(), WriteError> {
    let bytes = blob(seed, length);
    store.put(&digest(&bytes), bytes).await
}

fn bench() -> Bench {
    Bench { threads: false, ..Bench::new(8 << 20) }
}

#[tokio::test]
async fn a_full_disk_evicts_the_least_recently_used_and_the_upload_goes_on() {
    for length in [1000, MIB] {
        let bench = bench();
        let store = bench.open().await;
        let old = [put(&store, 1, MIB).await, put(&store, 2, MIB).await, put(&store, 3, MIB).await];
        bench.disk.faults.fail_once_after(Operation::Create, ENOSPC, 0);
        try_put(&store, 4, length).await.unwrap();
        assert!(store.touch(&old)[2]);
        assert!(!store.contains(&old[0]));
        assert!(store.status().usable_bytes < 8 << 20);
        assert_eq!(store.status().read_only, None);
        // It grows back by and by.
        for _ in 0..70 {
            health::watch(store.shared());
        }
        assert_eq!(store.status().usable_bytes, 8 << 20);
    }
}

#[tokio::test]
async fn a_full_disk_with_nothing_to_evict_is_said_and_nothing_is_left() {
    let mut bench = bench();
    bench.options.retention_floor = Duration::from_secs(60);
    let store = bench.open().await;
    let kept = put(&store, 1, MIB).await;
    bench.disk.faults.fail(Operation::Create, ENOSPC);
    for length in [1000, MIB] {
        let error = try_put(&store, 2, length).await.unwrap_err();
        assert!(matches!(error, WriteError::Full { .. }), "{error}");
    }
    assert!(store.contains(&kept));
    bench.disk.faults.clear();
    try_put(&store, 2, MIB).await.unwrap();
    settle(&store).await;
    assert_eq!(store.status().reserved_bytes, 0);
    assert_eq!(bench.files().len(), 2);
}

#[tokio::test]
async fn a_disk_with_less_room_than_configured_is_not_filled() {
    let bench = bench();
    let store = bench.open().await;
    let old = put(&store, 1, MIB).await;
    let new = put(&store, 2, MIB).await;
    let kept_free = 2 << 20;
    bench.disk.faults.set_free_bytes(Some(kept_free - MIB as u64 / 2));
    health::watch(store.shared());
    assert_eq!([store.contains(&old), store.contains(&new)], [false, true]);
    // The file has not been removed yet; that does not cost the other one as well.
    health::watch(store.shared());
    assert!(store.contains(&new));
    bench.disk.faults.set_free_bytes(None);
    sync::pass(store.shared()).unwrap();
    for _ in 0..70 {
        health::watch(store.shared());
    }
    assert_eq!(store.status().usable_bytes, 8 << 20);
}

#[tokio::test]
async fn a_failed_write_makes_the_store_read_only_until_the_disk_works_again() {
    for length in [1000, MIB] {
        let bench = bench();
        let store = bench.open().await;
        let kept = put(&store, 1, 1000).await;
        bench.disk.faults.fail(Operation::Write, EIO);
        let error = try_put(&store, 2, length).await.unwrap_err();
        assert!(matches!(error, WriteError::Io { .. }), "{error}");
        assert!(matches!(store.status().read_only, Some(ReadOnlyReason::DiskFailed(_))));
        let error = try_put(&store, 3, length).await.unwrap_err();
        assert!(matches!(error, WriteError::ReadOnly { .. }), "{error}");
        health::watch(store.shared());
        assert!(store.status().read_only.is_some());
        assert_eq!(store.get(&kept, u64::MAX).await.unwrap(), blob(1, 1000));
        bench.disk.faults.clear();
        health::watch(store.shared());
        assert_eq!(store.status().read_only, None);
        try_put(&store, 2, length).await.unwrap();
        settle(&store).await;
        assert_eq!((store.status().blobs, store.status().reserved_bytes), (2, 0));
        drop(store);
        let store = bench.open().await;
        assert_eq!(store.status().blobs, 2);
        assert_eq!(store.get(&digest(&blob(2, length)), u64::MAX).await.unwrap(), blob(2, length));
    }
}

#[tokio::test]
async fn a_journal_that_fails_half_way_loses_no_later_record() {
    let bench = bench();
    let store = bench.open().await;
    let before = put(&store, 1, 1000).await;
    // The blob's own bytes go well, its record does not.
    bench.disk.faults.fail_once_after(Operation::Write, EIO, 1);
    assert!(try_put(&store, 2, 1000).await.is_err());
    assert!(!store.contains(&digest(&blob(2, 1000))));
    health::watch(store.shared());
    let after = put(&store, 3, 1000).await;
    try_put(&store, 2, 1000).await.unwrap();
    drop(store);
    let store = bench.open().await;
    assert_eq!(store.touch(&[before, digest(&blob(2, 1000)), after]), [true; 3]);
    assert_eq!(store.status().blobs, 3);
}

#[tokio::test]
async fn a_write_that_waits_for_a_sync_fails_with_it() {
    for length in [1000, MIB] {
        let mut bench = Bench::new(8 << 20);
        bench.options.sync = SyncPolicy::Always;
        let store = bench.open().await;
        let kept = put(&store, 1, length).await;
        bench.disk.faults.fail(Operation::Sync, EIO);
        let error = try_put(&store, 2, length).await.unwrap_err();
        assert!(matches!(error, WriteError::Io { .. } | WriteError::ReadOnly { .. }), "{error}");
        assert!(!store.contains(&digest(&blob(2, length))));
        bench.disk.faults.clear();
        while store.status().read_only.is_some() {
            health::watch(store.shared());
        }
        try_put(&store, 2, length).await.unwrap();
        assert!(store.contains(&kept));
        drop(store);
        let store = bench.open().await;
        assert_eq!(store.status().blobs, 2);
    }
}

#[tokio::test]
async fn what_a_failed_sync_did_not_bring_to_the_disk_is_found_out() {
    use std::os::unix::fs::FileExt as _;
    let bench = bench();
    let store = bench.open().await;
    let kept = [put(&store, 1, 1000).await, put(&store, 2, MIB).await];
    let lost = [put(&store, 3, 1000).await, put(&store, 4, MIB).await];
    bench.disk.faults.fail_once_after(Operation::Sync, EIO, 1);
    assert!(sync::pass(store.shared()).is_err());
    // The disk has something else than the page cache said; the next sync notices nothing.
    let name = lost[1].hash_hex();
    let large = bench.files().into_iter().find(|path| path.to_str().unwrap().contains(&name)).unwrap();
    for (path, at) in [(large, 5000), (bench.options.dir.join("segments/1"), 64 + 1088 + 500)] {
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(b"something else", at).unwrap();
    }
    sync::pass(store.shared()).unwrap();
    assert!(super::maintenance::take_snapshot(store.shared()).is_err(), "nothing is built on it");
    health::watch(store.shared());
    assert_eq!(store.status().read_only, None);
    assert_eq!(store.touch(&kept), [true; 2]);
    assert_eq!(store.touch(&lost), [false; 2]);
    super::maintenance::take_snapshot(store.shared()).unwrap();
}

#[tokio::test]
async fn a_read_error_is_neither_a_miss_nor_damage() {
    let bench = bench();
    let store = bench.open().await;
    for length in [1000, MIB] {
        let name = put(&store, 1, length).await;
        bench.disk.faults.fail(Operation::Read, EIO);
        let error = store.get(&name, u64::MAX).await.unwrap_err();
        assert!(matches!(error, ReadError::Io { .. }), "{error}");
        bench.disk.faults.clear();
        assert_eq!(store.get(&name, u64::MAX).await.unwrap(), blob(1, length));
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_removed_is_tried_again() {
    let bench = bench();
    let store = bench.open().await;
    put(&store, 1, 5 * MIB).await;
    put(&store, 2, 5 * MIB).await;
    bench.disk.faults.fail_once_after(Operation::Remove, EIO, 0);
    sync::pass(store.shared()).unwrap();
    assert_eq!(bench.files().len(), 2);
    sync::pass(store.shared()).unwrap();
    assert_eq!(bench.files().len(), 1);
}

#[tokio::test]
async fn one_write_failing_anywhere_leaves_a_store_that_works() {
    fail_anywhere(Compression::None, blob).await;
}

#[tokio::test]
async fn one_write_failing_anywhere_leaves_a_store_that_compresses_and_works() {
    fail_anywhere(Compression::Zstd, text).await;
}

async fn fail_anywhere(compression: Compression, content: fn(u64, usize) -> bytes::Bytes) {
    let length = |seed: u64| if seed.is_multiple_of(2) { 1000 } else { 3 * MIB };
    // Whatever call is the one that fails: nothing wrong is visible, and everything works afterwards.
    for operation in [Operation::Create, Operation::Write, Operation::Rename, Operation::Sync, Operation::Remove] {
        for after in 0..12 {
            let mut bench = bench();
            bench.options.compression = compression;
            let store = bench.open().await;
            bench.disk.faults.fail_once_after(operation, EIO, after);
            for seed in 0..6 {
                let bytes = content(seed, length(seed));
                let _ = store.put(&digest(&bytes), bytes).await;
                let _ = sync::pass(store.shared());
            }
            let _ = super::maintenance::take_snapshot(store.shared());
            bench.disk.faults.clear();
            health::watch(store.shared());
            drop(store);
            let store = bench.open().await;
            for seed in 0..6 {
                let bytes = content(seed, length(seed));
                if store.contains(&digest(&bytes)) {
                    assert_eq!(store.get(&digest(&bytes), u64::MAX).await.unwrap(), bytes);
                }
                store.put(&digest(&bytes), bytes).await.unwrap();
            }
            settle(&store).await;
            let is_here = |seed: &u64| store.contains(&digest(&content(*seed, length(*seed))));
            let large = (0..6).filter(|seed| seed % 2 == 1 && is_here(seed)).count();
            assert_eq!(bench.files().len(), large, "{operation:?} {after}");
        }
    }
}
