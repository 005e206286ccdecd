//! Copies of what other nodes keep: stored with the time of their last use, and removed when others have them.

use std::time::Duration;

use casbah_cluster::digest::Digest;

use super::error::{Mismatch, ReadError, WriteError};
use super::store::Store;
use super::testing::{Bench, blob, digest, put, settle};
use super::{maintenance, sync};

const MIB: usize = 1 << 20;

/// Blobs of this length, one used each second, the first one first.
async fn fill(bench: &Bench, store: &Store, count: u64, length: usize) -> Vec<Digest> {
    let mut names = Vec::new();
    for seed in 0..count {
        names.push(put(store, seed, length).await);
        bench.clock.advance(1);
    }
    names
}

fn now_ms(store: &Store) -> u64 {
    u64::from(store.shared().now()) * 1000
}

async fn copy(store: &Store, seed: u64, length: usize, used_ms: u64) -> Result<Digest, WriteError> {
    let bytes = blob(seed, length);
    store.put_copy(&digest(&bytes), bytes.clone(), used_ms).await.map(|()| digest(&bytes))
}

fn order(store: &Store) -> Vec<Digest> {
    let mut state = store.shared().lock();
    let mark = state.index.mark_oldest();
    let mut order = Vec::new();
    while let Some(slot) = state.index.advance(&mark, None) {
        let stored = state.index.get(slot).unwrap().stored;
        order.push(stored.key.digest(stored.size_bytes).unwrap());
    }
    state.index.remove_mark(mark);
    order
}

#[tokio::test]
async fn a_copy_takes_its_place_by_its_last_use_and_keeps_it_over_a_restart() {
    for length in [1000, 200_000] {
        for with_snapshot in [false, true] {
            let bench = Bench { threads: false, ..Bench::new(64 << 20) };
            let store = bench.open().await;
            let start = now_ms(&store);
            let names = fill(&bench, &store, 6, length).await;
            let late = copy(&store, 10, length, start + 4500).await.unwrap();
            let early = copy(&store, 11, length, start + 1000).await.unwrap();
            let first = copy(&store, 12, length, 0).await.unwrap();
            let last = copy(&store, 13, length, u64::MAX).await.unwrap();
            let expected = [&[first][..], &names[..2], &[early], &names[2..5], &[late], &names[5..], &[last]].concat();
            assert_eq!(order(&store), expected);
            if with_snapshot {
                maintenance::take_snapshot(store.shared()).unwrap();
            }
            settle(&store).await;
            drop(store);
            let store = bench.open().await;
            assert_eq!(order(&store), expected);
            assert_eq!(store.get(&early, u64::MAX).await.unwrap(), blob(11, length));
        }
    }
}

#[tokio::test]
async fn a_copy_from_a_clock_that_is_ahead_is_used_now() {
    let bench = Bench { threads: false, ..Bench::new(64 << 20) };
    let store = bench.open().await;
    copy(&store, 1, 100, now_ms(&store) + 1_000_000).await.unwrap();
    let oldest = store.status().oldest_use.unwrap();
    assert_eq!(oldest.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64, now_ms(&store));
}

#[tokio::test]
async fn a_copy_of_what_is_here_changes_nothing() {
    let bench = Bench { threads: false, ..Bench::new(64 << 20) };
    let store = bench.open().await;
    let names = fill(&bench, &store, 3, 300_000).await;
    copy(&store, 0, 300_000, now_ms(&store)).await.unwrap();
    let mut upload = store.upload_copy(&names[0], now_ms(&store)).await.unwrap();
    upload.write(blob(0, 300_000)).await.unwrap();
    upload.commit().await.unwrap();
    assert_eq!(order(&store), names);
}

#[tokio::test]
async fn a_copy_is_hashed() {
    let bench = Bench { threads: false, ..Bench::new(64 << 20) };
    let store = bench.open().await;
    for length in [1000, 300_000] {
        let name = digest(&blob(1, length));
        let refused = store.put_copy(&name, blob(2, length), now_ms(&store)).await.unwrap_err();
        assert!(matches!(refused, WriteError::Mismatch { mismatch: Mismatch::Hash { .. }, .. }), "{refused}");
        assert!(!store.contains(&name));
    }
}

#[tokio::test]
async fn in_a_full_store_a_copy_makes_only_what_is_older_go() {
    let bench = Bench { threads: false, ..Bench::new(4 << 20) };
    let store = bench.open().await;
    let start = now_ms(&store);
    // Each but for the last replaces none.
    let names = fill(&bench, &store, 4, 1_000_000).await;
    assert_eq!(store.status().evicted_blobs, 0);
    for used_ms in [0, start] {
        let refused = copy(&store, 10, 1_000_000, used_ms).await.unwrap_err();
        assert!(matches!(refused, WriteError::Outlived { .. }), "{refused}");
    }
    // It would need the second one's place too.
    let refused = copy(&store, 11, 1_500_000, start + 1000).await.unwrap_err();
    assert!(matches!(refused, WriteError::Outlived { .. }), "{refused}");
    assert_eq!((store.status().blobs, store.status().evicted_blobs), (4, 0), "nothing goes in vain");
    let taken = copy(&store, 10, 1_000_000, start + 1000).await.unwrap();
    assert_eq!(order(&store), [&names[1..2], &[taken], &names[2..]].concat());
    // And it is the next but one to go.
    put(&store, 20, 1_500_000).await;
    assert!(!store.contains(&taken) && store.contains(&names[2]));
}

#[tokio::test]
async fn the_retention_floor_holds_for_a_copy_as_long_as_for_what_it_was_copied_from() {
    let mut bench = Bench { threads: false, ..Bench::new(4 << 20) };
    bench.options.retention_floor = Duration::from_secs(100);
    let store = bench.open().await;
    bench.clock.advance(1000);
    let old = copy(&store, 1, 2_000_000, now_ms(&store) - 90_000).await.unwrap();
    let young = copy(&store, 2, 2_000_000, now_ms(&store) - 50_000).await.unwrap();
    let bytes = blob(3, 2_000_000);
    let refused = store.put(&digest(&bytes), bytes.clone()).await.unwrap_err();
    assert!(matches!(refused, WriteError::Full { retry_after, .. } if retry_after.as_secs() == 11), "{refused}");
    bench.clock.advance(11);
    store.put(&digest(&bytes), bytes).await.unwrap();
    assert!(!store.contains(&old) && store.contains(&young));
    // A copy waits for nobody's floor either.
    let refused = copy(&store, 4, 2_000_000, now_ms(&store) - 10_000).await.unwrap_err();
    assert!(matches!(refused, WriteError::Full { .. }), "{refused}");
}

#[tokio::test]
async fn what_others_have_is_removed_and_its_space_is_free() {
    let bench = Bench { threads: false, ..Bench::new(64 << 20) };
    let store = bench.open().await;
    let mut names = fill(&bench, &store, 10, 1000).await;
    names.extend(fill(&bench, &store, 10, MIB).await);
    let unknown = digest(b"unknown");
    assert_eq!(store.remove(&[names[0], names[10], unknown], now_ms(&store)), 2);
    assert_eq!(store.remove(&[names[0]], now_ms(&store)), 0);
    settle(&store).await;
    assert_eq!((store.status().blobs, bench.files().len()), (18, 9));
    // Killed.
    drop(store);
    let store = bench.open().await;
    assert_eq!(store.touch(&names).iter().filter(|here| **here).count(), 18);
    assert!(matches!(store.get(&names[10], u64::MAX).await, Err(ReadError::NotFound { .. })));
    assert_eq!(store.status().evicted_blobs, 0);
    put(&store, 0, MIB).await;
    assert_eq!(store.get(&names[10], u64::MAX).await.unwrap(), blob(0, MIB));
}

#[tokio::test]
async fn what_was_used_since_is_not_removed() {
    let bench = Bench { threads: false, ..Bench::new(64 << 20) };
    let store = bench.open().await;
    let names = fill(&bench, &store, 3, 1000).await;
    let asked_at_ms = now_ms(&store);
    store.touch(&names[..1]);
    bench.clock.advance(1);
    store.touch(&names[1..2]);
    assert_eq!(store.remove(&names, asked_at_ms), 1);
    assert_eq!(store.touch(&names), [true, true, false]);
}

#[tokio::test]
async fn what_is_being_stored_again_is_not_removed_and_one_that_is_given_up_is() {
    let bench = Bench { threads: false, ..Bench::new(64 << 20) };
    let store = bench.open().await;
    for length in [1000, MIB] {
        let name = put(&store, 1, length).await;
        let mut upload = store.upload(&name).await.unwrap();
        let other = store.upload(&name).await.unwrap();
        upload.write(blob(1, length)).await.unwrap();
        bench.clock.advance(10);
        assert_eq!(store.remove(&[name], now_ms(&store)), 0);
        drop(other);
        assert_eq!(store.remove(&[name], now_ms(&store)), 0);
        upload.commit().await.unwrap();
        assert!(store.contains(&name));
        drop(store.upload(&name).await.unwrap());
        bench.clock.advance(1);
        assert_eq!(store.remove(&[name], now_ms(&store)), 1);
    }
    assert!(store.shared().lock().again.is_empty());
}

#[tokio::test]
async fn a_read_under_way_goes_on_when_its_blob_is_removed() {
    let bench = Bench { threads: false, ..Bench::new(64 << 20) };
    let store = bench.open().await;
    for length in [1000, 3 * MIB] {
        let name = put(&store, 1, length).await;
        let mut reader = store.read(&name, 0, None).await.unwrap();
        let mut read = Vec::new();
        if length > MIB {
            read.extend(reader.next().await.unwrap().unwrap());
        }
        bench.clock.advance(1);
        assert_eq!(store.remove(&[name], now_ms(&store)), 1);
        sync::pass(store.shared()).unwrap();
        while let Some(piece) = reader.next().await.unwrap() {
            read.extend(piece);
        }
        assert!(read == blob(1, length));
    }
}
