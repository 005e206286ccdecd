//! Copies that were damaged are remembered until it is known what has become of their blobs.

use std::fs;

use casbah_cluster::digest::{Digest, DigestFunction};

use super::error::ReadError;
use super::key::{Key, PARTITIONS};
use super::limits::LOST_MAX;
use super::presence::Presence;
use super::scrub::Scrub;
use super::store::Store;
use super::testing::{Bench, blob, digest, put, settle};
use super::{maintenance, sync};

/// Flips a bit of every large blob.
fn damage_files(bench: &Bench) {
    for path in bench.files() {
        let mut bytes = fs::read(&path).unwrap();
        bytes[1000] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
}

fn scrub(store: &Store) {
    let mut scrub = Scrub::default();
    (0..10).for_each(|_| scrub.step(store.shared()));
}

/// As after `kill -9`.
async fn reopen(bench: &Bench, store: Store) -> Store {
    sync::pass(store.shared()).unwrap();
    drop(store);
    bench.open().await
}

#[tokio::test]
async fn what_the_scrubber_finds_damaged_is_lost_until_it_is_stored_again() {
    let bench = Bench { threads: false, ..Bench::new(64 << 20) };
    let mut store = bench.open().await;
    let (large, small) = (put(&store, 1, 1 << 20).await, put(&store, 2, 100).await);
    let absent = digest(b"absent");
    settle(&store).await;
    let mut losses = store.losses();
    losses.borrow_and_update();
    damage_files(&bench);
    scrub(&store);
    assert!(losses.has_changed().unwrap());
    for turn in 0..4 {
        assert_eq!(store.lost(), [large], "turn {turn}");
        let found = [Presence::Unsure, Presence::Here, Presence::Absent];
        assert_eq!(store.look_up(&[large, small, absent], true), found);
        assert_eq!(store.look_up(&[large, small, absent], false), found);
        assert!(matches!(store.get(&large, u64::MAX).await, Err(ReadError::Lost { .. })));
        assert!(matches!(store.read_stored(&large).await, Err(ReadError::Lost { .. })));
        assert!(matches!(store.read(&large, 0, None).await, Err(ReadError::Lost { .. })));
        assert!(matches!(store.get(&absent, u64::MAX).await, Err(ReadError::NotFound { .. })));
        assert_eq!((store.status().lost_blobs, store.status().is_unsure), (1, false));
        if turn == 1 {
            maintenance::take_snapshot(store.shared()).unwrap();
            maintenance::take_snapshot(store.shared()).unwrap();
        }
        store = reopen(&bench, store).await;
    }
    put(&store, 1, 1 << 20).await;
    for _ in 0..2 {
        assert!(store.lost().is_empty());
        assert_eq!(store.look_up(&[large], true), [Presence::Here]);
        store = reopen(&bench, store).await;
    }
    bench.clock.advance(1);
    assert_eq!(store.remove(&[large], u64::MAX), 1);
    assert_eq!(store.look_up(&[large], true), [Presence::Absent], "it went of this node's own will");
}

#[tokio::test]
async fn what_a_reader_finds_damaged_is_lost_and_others_are_told_so() {
    let bench = Bench { threads: false, ..Bench::new(64 << 20) };
    let store = bench.open().await;
    let name = put(&store, 1, 3 << 20).await;
    settle(&store).await;
    let mut other = store.read(&name, 0, None).await.unwrap();
    damage_files(&bench);
    assert!(matches!(store.get(&name, u64::MAX).await, Err(ReadError::Damaged { .. })));
    assert!(matches!(other.next().await, Err(ReadError::Damaged { .. })));
    assert_eq!((store.lost(), store.status().damaged_blobs), (vec![name], 1));
}

#[tokio::test]
async fn what_is_nowhere_else_is_given_up_for_good() {
    let bench = Bench { threads: false, ..Bench::new(64 << 20) };
    let mut store = bench.open().await;
    let name = put(&store, 1, 1 << 20).await;
    settle(&store).await;
    damage_files(&bench);
    scrub(&store);
    store.give_up(&digest(b"another"));
    store.give_up(&name);
    store.give_up(&name);
    assert_eq!((store.status().given_up_blobs, store.status().repaired_blobs), (1, 0));
    for _ in 0..2 {
        assert!(store.lost().is_empty());
        assert!(matches!(store.get(&name, u64::MAX).await, Err(ReadError::NotFound { .. })));
        store = reopen(&bench, store).await;
    }
}

#[tokio::test]
async fn a_blob_of_a_long_hash_is_lost_too_and_is_not_listed() {
    let bench = Bench { threads: false, ..Bench::new(64 << 20) };
    let store = bench.open().await;
    let bytes = blob(1, 1 << 20);
    let name = Digest::of(DigestFunction::Sha512, &bytes);
    store.put(&name, bytes.clone()).await.unwrap();
    settle(&store).await;
    damage_files(&bench);
    scrub(&store);
    assert!(store.lost().is_empty());
    assert_eq!(store.look_up(&[name], false), [Presence::Unsure]);
    store.put(&name, bytes).await.unwrap();
    assert_eq!((store.status().lost_blobs, store.status().repaired_blobs), (0, 1));
}

#[tokio::test]
async fn a_store_that_has_lost_more_than_it_remembers_is_in_doubt_of_everything_until_all_was_compared() {
    let bench = Bench { threads: false, ..Bench::new(64 << 20) };
    let mut store = bench.open().await;
    let name = put(&store, 1, 1 << 20).await;
    for number in 0..LOST_MAX as u64 {
        let mut state = store.shared().lock();
        state.lost.add(Key::of(&digest(&number.to_le_bytes())), 8);
    }
    assert_eq!(store.unsure(), None);
    settle(&store).await;
    damage_files(&bench);
    scrub(&store);
    assert_eq!(store.lost().len(), LOST_MAX);
    let unsure = store.unsure().unwrap();
    let (absent, small) = (digest(b"absent"), put(&store, 2, 100).await);
    for _ in 0..2 {
        assert_eq!(store.look_up(&[name, absent, small], true), [Presence::Unsure, Presence::Unsure, Presence::Here]);
        assert!(matches!(store.get(&absent, u64::MAX).await, Err(ReadError::Lost { .. })));
        maintenance::take_snapshot(store.shared()).unwrap();
        store = reopen(&bench, store).await;
    }
    // Of another time.
    store.is_sure(unsure.wrapping_add(1_000_000));
    let unsure = store.unsure().unwrap();
    store.shared().lock().lost.add(Key::of(&digest(b"one more")), 8);
    store.is_sure(unsure);
    let unsure = store.unsure().unwrap();
    store.is_sure(unsure);
    for _ in 0..2 {
        assert_eq!(store.unsure(), None);
        assert_eq!(store.look_up(&[absent], true), [Presence::Absent]);
        store = reopen(&bench, store).await;
    }
}

#[tokio::test]
async fn a_store_whose_index_was_damaged_is_in_doubt() {
    let bench = Bench { threads: false, ..Bench::new(64 << 20) };
    let store = bench.open().await;
    let name = put(&store, 1, 1 << 20).await;
    assert_eq!(store.unsure(), None, "a new store is not");
    store.close().await;
    drop(store);
    for entry in fs::read_dir(bench.options.dir.join("index")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let store = bench.open().await;
    assert!(store.unsure().is_some());
    assert_eq!(store.look_up(&[name, digest(b"absent")], false), [Presence::Here, Presence::Unsure]);
}

#[tokio::test]
async fn a_lost_blob_is_in_no_list_and_no_sum() {
    let bench = Bench { threads: false, ..Bench::new(64 << 20) };
    let store = bench.open().await;
    let name = put(&store, 1, 1 << 20).await;
    settle(&store).await;
    damage_files(&bench);
    scrub(&store);
    let partition = Key::of(&name).partition();
    assert!(partition < PARTITIONS);
    assert_eq!(store.inventory(partition).count, 0);
    assert!(store.list(partition, None, 10).await.unwrap().entries.is_empty());
}
