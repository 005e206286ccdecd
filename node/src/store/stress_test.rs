use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use casbah_cluster::digest::Digest;
use rand::RngExt as _;

use super::error::{ReadError, WriteError};
use super::key::Key;
use super::testing::{Bench, blob, digest, random, seed, settle, text};
use super::{Store, compact, maintenance, sync};
use crate::config::Compression;

const TASKS: u64 = 6;
const STEPS: usize = 400;

fn length(name: u64) -> usize {
    [10, 900, 5000, 20_000, 100_000, 131_073, 500_000][name as usize % 7] + name as usize
}

fn all(store: &Store) -> BTreeSet<Digest> {
    (0..4096).flat_map(|partition| store.partition(partition)).collect()
}

fn is_evicted(error: &WriteError) -> bool {
    assert!(matches!(error, WriteError::Full { retry_after: Duration::ZERO, .. }), "{error}");
    true
}

async fn client(store: Store, seed: u64) {
    let mut random = random(seed);
    for _ in 0..STEPS {
        let name = random.random_range(0..120_u64);
        let bytes = if name.is_multiple_of(2) { blob(name, length(name)) } else { text(name, length(name)) };
        let digest = digest(&bytes);
        match random.random_range(0..10) {
            // One that was here at its beginning and is evicted before its end is to be sent again.
            0..4 => while store.put(&digest, bytes.clone()).await.is_err_and(|error| is_evicted(&error)) {},
            4 => {
                // Given up half-way.
                let mut upload = store.upload(&digest).await.unwrap();
                upload.write(bytes.slice(..bytes.len() / 2)).await.unwrap();
            }
            5 => {
                store.touch(&[digest]);
            }
            6 => {
                let wrong = blob(name + 1000, bytes.len());
                let error = store.put(&digest, wrong).await.unwrap_err();
                assert!(matches!(error, WriteError::Mismatch { .. }), "{error}");
            }
            7 => match store.get(&digest, u64::MAX).await {
                Ok(found) => assert_eq!(found, bytes),
                Err(error) => assert!(matches!(error, ReadError::NotFound { .. }), "{error}"),
            },
            _ => {
                let offset = random.random_range(0..=bytes.len());
                let mut reader = match store.read(&digest, offset as u64, None).await {
                    Ok(reader) => reader,
                    Err(error) => {
                        assert!(matches!(error, ReadError::NotFound { .. }), "{error}");
                        continue;
                    }
                };
                let mut found = Vec::new();
                loop {
                    match reader.next().await {
                        Ok(Some(piece)) => found.extend(piece),
                        Ok(None) => break assert_eq!(found, &bytes[offset..]),
                        // Evicted before its file was opened.
                        Err(error) => break assert!(matches!(error, ReadError::NotFound { .. }), "{error}"),
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_many_do_at_once_ends_in_a_store_that_is_whole() {
    let seed = seed();
    let mut bench = Bench::new(5 << 20);
    bench.options.compression = Compression::Zstd;
    let store = bench.open().await;
    let ended = Arc::new(AtomicBool::new(false));
    let keeper = {
        let (store, ended) = (store.clone(), ended.clone());
        tokio::task::spawn_blocking(move || {
            while !ended.load(Ordering::Relaxed) {
                maintenance::take_snapshot(store.shared()).unwrap();
                compact::run(store.shared()).unwrap();
                let victim = store.shared().lock().segments.sparsest();
                if let Some((slot, file, end)) = victim {
                    compact::compact(store.shared(), slot, &file, end).unwrap();
                }
                maintenance::sweep(store.shared()).unwrap();
                sync::journal_touches(store.shared());
                sync::pass(store.shared()).unwrap();
            }
        })
    };
    let clients = (0..TASKS).map(|task| tokio::spawn(client(store.clone(), seed ^ task)));
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    ended.store(true, Ordering::Relaxed);
    keeper.await.unwrap();
    settle(&store).await;
    let blobs = all(&store);
    let status = store.status();
    assert_eq!((status.reserved_bytes, status.damaged_blobs), (0, 0));
    let charge = |digest: &Digest| {
        let state = store.shared().lock();
        let slot = state.index.find(&Key::of(digest)).unwrap();
        state.index.get(slot).unwrap().stored.charge_bytes()
    };
    assert_eq!(status.bytes, blobs.iter().map(charge).sum::<u64>());
    assert!(status.bytes <= 5 << 20);
    assert_eq!(bench.files().len(), blobs.iter().filter(|digest| digest.size_bytes() > 131_072).count());
    drop(store);
    let store = bench.open().await;
    assert_eq!(all(&store), blobs);
    for digest in &blobs {
        store.get(digest, u64::MAX).await.unwrap();
    }
}
