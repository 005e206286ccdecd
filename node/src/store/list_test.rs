//! Lists of partitions.

use std::collections::BTreeMap;

use casbah_cluster::digest::{Digest, DigestFunction};
use casbah_cluster::inventory::ListedBlob;

use super::key::Key;
use super::list;
use super::store::Store;
use super::testing::{Bench, blob};

/// The partition that has the most blobs here.
const PARTITION: usize = 0;

/// Stores blobs of a partition: of each function so many.
async fn fill(store: &Store, bench: &Bench, functions: &[DigestFunction], each: usize) -> BTreeMap<Digest, u64> {
    let mut stored = BTreeMap::new();
    for function in functions {
        let mut seeds = 0..;
        let names = seeds.by_ref().map(|seed: u64| {
            let bytes = blob(seed, 8);
            (Digest::of(*function, &bytes), bytes)
        });
        for (digest, bytes) in names.filter(|(digest, _)| Key::of(digest).partition() == PARTITION).take(each) {
            bench.clock.advance(1);
            store.put(&digest, bytes).await.unwrap();
            stored.insert(digest, u64::from(store.shared().now()) * 1000);
        }
    }
    stored
}

async fn list(store: &Store, limit: usize) -> Vec<ListedBlob> {
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(PARTITION, after.as_ref(), limit).await.unwrap();
        assert!(page.entries.len() <= limit);
        after = page.entries.last().map(|blob| blob.digest);
        listed.extend(page.entries);
        if page.is_last {
            return listed;
        }
    }
}

#[tokio::test]
async fn pages_of_any_length_have_every_blob_once_in_order_with_its_use() {
    let bench = Bench { threads: false, ..Bench::new(16 << 20) };
    let store = bench.open().await;
    let stored = fill(&store, &bench, &[DigestFunction::Sha256, DigestFunction::Sha1, DigestFunction::Sha384], 7).await;
    for limit in [1, 2, 7, 20, 21, 1000] {
        let listed = list(&store, limit).await;
        assert!(listed.is_sorted_by_key(|blob| (blob.digest.function().number(), blob.digest.hash().to_vec())));
        let found: BTreeMap<Digest, u64> = listed.iter().map(|blob| (blob.digest, blob.used_ms)).collect();
        assert_eq!((found.len(), &found), (listed.len(), &stored));
    }
}

#[tokio::test]
async fn a_page_reads_no_more_than_a_bounded_number_of_blobs_to_learn_their_digests() {
    let bench = Bench { threads: false, ..Bench::new(16 << 20) };
    let store = bench.open().await;
    fill(&store, &bench, &[DigestFunction::Sha256, DigestFunction::Sha512], 5).await;
    // SHA-256 comes first.
    for (limit, folded_limit, expected) in [(100, 4, 9), (100, 5, 10), (9, 4, 9), (3, 1, 3), (100, 1, 6)] {
        let page = list::page(store.shared(), PARTITION, None, (limit, folded_limit)).await.unwrap();
        assert_eq!((page.entries.len(), page.is_last), (expected, expected == 10));
    }
}

#[tokio::test]
async fn a_blob_that_is_listed_is_not_used() {
    let bench = Bench { threads: false, ..Bench::new(16 << 20) };
    let store = bench.open().await;
    let stored = fill(&store, &bench, &[DigestFunction::Sha256], 3).await;
    let oldest = store.status().oldest_use;
    bench.clock.advance(100);
    assert_eq!(list(&store, 1).await.len(), stored.len());
    assert_eq!(store.status().oldest_use, oldest);
}
