use std::collections::HashSet;

use casbah_cluster::digest::Digest;
use rand::RngExt as _;
use rand::rngs::SmallRng;

use super::error::{ReadError, WriteError};
use super::key::Place;
use super::testing::{Bench, blob, digest, random, seed, settle};
use super::{Store, compact, maintenance, sync};

const CAPACITY_BYTES: u64 = 3 << 20;

/// What the store should be: blobs in the order of their use, the least recently used first.
#[derive(Default)]
struct Model {
    blobs: Vec<(Digest, u64)>,
}

impl Model {
    fn use_now(&mut self, digest: &Digest) -> bool {
        let Some(at) = self.blobs.iter().position(|(name, _)| name == digest) else { return false };
        let blob = self.blobs.remove(at);
        self.blobs.push(blob);
        true
    }

    fn put(&mut self, digest: &Digest, charge: u64) {
        if self.use_now(digest) {
            return;
        }
        while self.bytes() + charge > CAPACITY_BYTES {
            self.blobs.remove(0);
        }
        self.blobs.push((*digest, charge));
    }

    fn bytes(&self) -> u64 {
        self.blobs.iter().map(|(_, charge)| charge).sum()
    }
}

/// A blob's seed says its length: mostly small, some large, so that both kinds of place are exercised.
fn length(seed: u64) -> usize {
    let lengths = [1, 100, 4000, 5000, 60_000, 130_000, 140_000, 700_000];
    lengths[seed as usize % lengths.len()] + seed as usize
}

fn charge(length: usize) -> u64 {
    place(length).charge_bytes(length as u64)
}

fn place(length: usize) -> Place {
    super::upload::place_for(length as u64)
}

async fn check(store: &Store, model: &Model) {
    let status = store.status();
    assert_eq!((status.blobs, status.bytes), (model.blobs.len() as u64, model.bytes()));
    assert_eq!(status.reserved_bytes, 0);
    let expected: HashSet<Digest> = model.blobs.iter().map(|(name, _)| *name).collect();
    let listed: HashSet<Digest> = (0..4096).flat_map(|partition| store.partition(partition)).collect();
    assert_eq!(listed, expected);
    for partition in 0..4096 {
        let here = store.partition(partition);
        let inventory = store.inventory(partition);
        assert_eq!(inventory.blobs, here.len() as u64);
        let xor = |at: usize| here.iter().fold(0, |xor, name| xor ^ name.hash()[at]);
        assert_eq!(inventory.xor, std::array::from_fn(xor));
    }
}

async fn step(bench: &Bench, store: Store, model: &mut Model, random: &mut SmallRng) -> Store {
    let name = random.random_range(0..60_u64);
    let bytes = blob(name, length(name));
    let digest = digest(&bytes);
    let here = model.blobs.iter().any(|(name, _)| *name == digest);
    match random.random_range(0..100) {
        0..40 => {
            store.put(&digest, bytes.clone()).await.unwrap();
            model.put(&digest, charge(bytes.len()));
        }
        40..55 => {
            match store.get(&digest, u64::MAX).await {
                Ok(found) => assert!(here && found == bytes),
                Err(error) => assert!(!here && matches!(error, ReadError::NotFound { .. }), "{error}"),
            }
            model.use_now(&digest);
        }
        55..65 => {
            assert_eq!(store.touch(&[digest]), [here]);
            model.use_now(&digest);
        }
        65..70 => assert_eq!(store.contains(&digest), here),
        70..75 => {
            let error = store.put(&digest, blob(name + 1000, length(name))).await.unwrap_err();
            assert!(matches!(error, WriteError::Mismatch { .. }), "{error}");
            // Space was made for a large one all the same, or it was a use.
            if matches!(place(bytes.len()), Place::File { .. }) {
                model.put(&digest, charge(bytes.len()));
                if !here {
                    model.blobs.pop();
                }
            }
        }
        75..80 => maintenance::take_snapshot(store.shared()).unwrap(),
        80..85 => sync::pass(store.shared()).unwrap(),
        85..88 => settle(&store).await,
        88..94 => {
            store.close().await;
            drop(store);
            return bench.open().await;
        }
        94..97 => {
            // Killed, after uses were journaled.
            sync::journal_touches(store.shared());
            sync::pass(store.shared()).unwrap();
            drop(store);
            return bench.open().await;
        }
        _ => maintain(&store),
    }
    store
}

fn maintain(store: &Store) {
    let victim = store.shared().lock().segments.sparsest();
    if let Some((slot, file, end)) = victim {
        compact::compact(store.shared(), slot, &file, end).unwrap();
        assert_eq!(store.shared().lock().segments.live_bytes_in(slot), 0);
    }
    compact::run(store.shared()).unwrap();
    maintenance::sweep(store.shared()).unwrap();
}

#[tokio::test]
async fn the_store_does_what_a_simple_model_does_whatever_happens() {
    let mut random = random(seed());
    let bench = Bench { threads: false, ..Bench::new(CAPACITY_BYTES) };
    let (mut store, mut model) = (bench.open().await, Model::default());
    for _ in 0..1500 {
        store = step(&bench, store, &mut model, &mut random).await;
        check(&store, &model).await;
    }
    for (name, _) in &model.blobs {
        store.get(name, u64::MAX).await.unwrap();
    }
}
