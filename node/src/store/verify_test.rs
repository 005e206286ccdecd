use std::os::unix::fs::FileExt as _;

use super::scrub::Scrub;
use super::testing::{Bench, put};
use super::verify::{Finding, verify};

fn flip(path: &std::path::Path, at: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[tokio::test]
async fn the_scrubber_finds_what_is_damaged_and_drops_only_that() {
    let bench = Bench { threads: false, ..Bench::new(16 << 20) };
    let store = bench.open().await;
    let (small, large) = (put(&store, 1, 1000).await, put(&store, 2, 1 << 20).await);
    let (bad_small, bad_large) = (put(&store, 3, 1000).await, put(&store, 4, 1 << 20).await);
    let damaged = bench.files().into_iter().find(|path| path.to_str().unwrap().contains(&bad_large.hash_hex()));
    flip(&damaged.unwrap(), 700_000);
    flip(&bench.options.dir.join("segments/1"), 64 + 1088 + 500);
    let mut scrub = Scrub::default();
    scrub.step(store.shared());
    assert_eq!(store.touch(&[small, large, bad_small, bad_large]), [true, true, false, false]);
    assert_eq!(store.status().damaged_blobs, 2);
    assert!(store.status().scrubbed_bytes >= 2 << 20);
}

#[tokio::test]
async fn the_scrubber_keeps_to_its_rate() {
    let bench = Bench { threads: false, ..Bench::new(64 << 20) };
    let store = bench.open().await;
    for seed in 0..12 {
        put(&store, seed, 3 << 20).await;
    }
    let mut scrub = Scrub::default();
    for _ in 0..6 {
        scrub.step(store.shared());
    }
    let scrubbed = store.status().scrubbed_bytes;
    assert!((20 << 20..32 << 20).contains(&scrubbed), "4 MiB a step, and a blob more: {scrubbed}");
}

#[tokio::test]
async fn offline_verification_names_what_is_damaged_and_changes_nothing() {
    let bench = Bench { threads: false, ..Bench::new(16 << 20) };
    let store = bench.open().await;
    for (seed, length) in [(1, 1000), (2, 1 << 20), (3, 1000)] {
        put(&store, seed, length).await;
    }
    store.close().await;
    drop(store);
    let dir = &bench.options.dir;
    let mut calls = 0;
    let report = verify(dir, |_, _| calls += 1).unwrap();
    assert_eq!((report.good_blobs, report.good_bytes, report.bad.len(), calls), (3, 2000 + (1 << 20), 0, 3));
    flip(&dir.join("segments/1"), 64 + 1088 + 500);
    for _ in 0..2 {
        let report = verify(dir, |_, _| {}).unwrap();
        assert_eq!((report.good_blobs, report.bad.len()), (2, 1));
        assert!(matches!(report.bad[0].1, Finding::Damaged(_)), "{:?}", report.bad);
    }
    assert!(verify(&dir.join("nothing"), |_, _| {}).is_err());
}
