use std::fs;

use bytes::Bytes;
use casbah_cluster::digest::{Digest, DigestFunction};

use super::Store;
use super::error::{ReadError, WriteError};
use super::scrub::Scrub;
use super::testing::{Bench, blob, settle};
use super::verify::{Finding, verify};

/// One for a segment, one for a file.
const SIZES: [usize; 2] = [1000, 300_000];

fn names() -> Vec<(Digest, Bytes)> {
    let blobs = SIZES.map(|size| blob(size as u64, size));
    let of = |function: &DigestFunction| blobs.clone().map(|bytes| (Digest::of(*function, &bytes), bytes));
    DigestFunction::ALL.iter().flat_map(of).collect()
}

async fn put_all(store: &Store) -> Vec<(Digest, Bytes)> {
    let names = names();
    for (digest, bytes) in &names {
        store.put(digest, bytes.clone()).await.unwrap();
    }
    names
}

async fn check_all(store: &Store, names: &[(Digest, Bytes)]) {
    for (digest, bytes) in names {
        assert!(store.contains(digest), "{:?} {digest}", digest.function());
        assert_eq!(store.get(digest, u64::MAX).await.unwrap(), *bytes, "{:?} {digest}", digest.function());
    }
    assert_eq!(store.status().blobs, names.len() as u64);
}

/// The same digest but for the last byte of its hash.
fn with_another_end(digest: &Digest) -> Digest {
    let mut hash = digest.hash().to_vec();
    *hash.last_mut().unwrap() ^= 1;
    Digest::from_raw(digest.function(), &hash, digest.size_bytes()).unwrap()
}

#[tokio::test]
async fn one_content_is_a_blob_of_its_own_in_every_function() {
    let bench = Bench::new(16 << 20);
    let store = bench.open().await;
    for (count, (digest, bytes)) in names().into_iter().enumerate() {
        assert!(!store.contains(&digest), "{:?}", digest.function());
        assert_eq!(store.status().blobs, count as u64);
        store.put(&digest, bytes).await.unwrap();
        assert!(store.contains(&digest));
    }
    check_all(&store, &names()).await;
}

#[tokio::test]
async fn blobs_of_every_function_survive_a_kill_and_a_restart() {
    let bench = Bench::new(16 << 20);
    let store = bench.open().await;
    let names = put_all(&store).await;
    drop(store);
    let store = bench.open().await;
    check_all(&store, &names).await;
    store.close().await;
    drop(store);
    check_all(&bench.open().await, &names).await;
}

#[tokio::test]
async fn blobs_of_every_function_are_found_again_when_the_index_is_lost() {
    let bench = Bench::new(16 << 20);
    let store = bench.open().await;
    let names = put_all(&store).await;
    store.close().await;
    drop(store);
    fs::remove_dir_all(bench.options.dir.join("index")).unwrap();
    check_all(&bench.open().await, &names).await;
}

#[tokio::test]
async fn a_hash_of_one_function_names_nothing_in_another_of_the_same_length() {
    let bench = Bench::new(16 << 20);
    let store = bench.open().await;
    for (digest, bytes) in put_all(&store).await {
        let other = match digest.function() {
            DigestFunction::Sha256 => DigestFunction::Blake3,
            DigestFunction::Blake3 => DigestFunction::Sha256,
            _ => continue,
        };
        let confused = Digest::from_raw(other, digest.hash(), digest.size_bytes()).unwrap();
        assert!(!store.contains(&confused));
        assert!(matches!(store.get(&confused, u64::MAX).await, Err(ReadError::NotFound { .. })));
        assert!(matches!(store.put(&confused, bytes).await, Err(WriteError::Mismatch { .. })));
        assert!(store.contains(&digest) && !store.contains(&confused));
    }
}

#[tokio::test]
async fn a_hash_that_only_begins_like_a_stored_one_is_not_found_and_costs_nothing() {
    let bench = Bench::new(16 << 20);
    let store = bench.open().await;
    let names = put_all(&store).await;
    for (digest, _) in &names {
        let other = with_another_end(digest);
        assert!(!store.contains(&other) && !store.touch(&[other])[0], "{:?}", digest.function());
        assert!(matches!(store.get(&other, u64::MAX).await, Err(ReadError::NotFound { .. })));
    }
    check_all(&store, &names).await;
    assert_eq!(store.status().damaged_blobs, 0);
}

#[tokio::test]
async fn the_empty_blob_is_there_in_every_function_and_under_its_own_name_only() {
    let bench = Bench::new(16 << 20);
    let store = bench.open().await;
    for function in DigestFunction::ALL {
        let empty = Digest::of(*function, b"");
        assert!(store.contains(&empty) && store.touch(&[empty])[0]);
        assert_eq!(store.get(&empty, 0).await.unwrap(), Bytes::new());
        store.put(&empty, Bytes::new()).await.unwrap();
        assert!(!store.contains(&with_another_end(&empty)));
        assert!(store.put(&with_another_end(&empty), Bytes::new()).await.is_err());
    }
    assert_eq!(store.status().blobs, 0);
}

#[tokio::test]
async fn the_wrong_bytes_are_refused_in_every_function() {
    let bench = Bench::new(16 << 20);
    let store = bench.open().await;
    for (digest, bytes) in names() {
        let wrong = blob(99, bytes.len());
        let refused = store.put(&digest, wrong).await;
        assert!(matches!(refused, Err(WriteError::Mismatch { .. })), "{:?}", digest.function());
        assert!(!store.contains(&digest));
    }
}

#[tokio::test]
async fn a_partition_lists_the_blobs_of_every_function() {
    let bench = Bench::new(16 << 20);
    let store = bench.open().await;
    let names = put_all(&store).await;
    let mut listed = Vec::new();
    for partition in 0..4096 {
        let mut here = store.partition(partition);
        here.extend(store.partition_folded(partition).await.unwrap());
        assert_eq!(store.inventory(partition).count, here.len() as u64);
        assert!(here.iter().all(|digest| usize::from(digest.hash()[0]) << 4 == partition & 0xff0));
        listed.append(&mut here);
    }
    let mut expected: Vec<Digest> = names.iter().map(|(digest, _)| *digest).collect();
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);
}

#[tokio::test]
async fn the_scrubber_and_offline_verification_know_every_function() {
    let bench = Bench { threads: false, ..Bench::new(16 << 20) };
    let store = bench.open().await;
    let names = put_all(&store).await;
    settle(&store).await;
    let mut scrub = Scrub::default();
    for _ in 0..4 {
        scrub.step(store.shared());
    }
    assert_eq!(store.status().damaged_blobs, 0);
    check_all(&store, &names).await;
    store.close().await;
    drop(store);
    let report = verify(&bench.options.dir, |_, _| {}).unwrap();
    assert_eq!((report.good_blobs, report.bad.len()), (names.len() as u64, 0), "{:?}", report.bad);
}

#[tokio::test]
async fn a_file_that_is_another_blobs_is_damage_in_every_function() {
    let bench = Bench { threads: false, ..Bench::new(16 << 20) };
    let store = bench.open().await;
    let names = put_all(&store).await;
    store.close().await;
    drop(store);
    let files = bench.files();
    for (path, next) in files.iter().zip(files.iter().skip(1)) {
        fs::copy(next, path).unwrap();
    }
    let report = verify(&bench.options.dir, |_, _| {}).unwrap();
    assert_eq!(report.bad.len(), files.len() - 1);
    assert!(report.bad.iter().all(|(_, finding)| matches!(finding, Finding::Damaged(_))), "{:?}", report.bad);
    let store = bench.open().await;
    let mut wrong = 0;
    for (digest, bytes) in &names {
        match store.get(digest, u64::MAX).await {
            Ok(found) => assert_eq!(found, *bytes),
            Err(_) => wrong += 1,
        }
    }
    assert_eq!(wrong, files.len() - 1);
}
