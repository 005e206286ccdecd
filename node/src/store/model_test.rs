use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::FileExt as _;

use casbah_cluster::digest::Digest;
use rand::RngExt as _;
use rand::rngs::SmallRng;

use super::error::{ReadError, WriteError};
use super::journal::FoundJournal;
use super::key::{Key, Place};
use super::paths::parse_generation;
use super::record::Record;
use super::segment::HEADER_BYTES;
use super::testing::{Bench, blob, digest, random, seed, settle, text};
use super::{Store, compact, maintenance, sync};
use crate::config::Compression;

const CAPACITY_BYTES: u64 = 3 << 20;

/// What the store should be: blobs in the order of their use, the least recently used first.
#[derive(Default)]
struct Model {
    blobs: Vec<Blob>,
    /// Those whose copies were damaged.
    lost: HashSet<Digest>,
    /// Unix seconds.
    now: u32,
}

struct Blob {
    name: Digest,
    charge: u64,
    used: u32,
}

impl Model {
    fn has(&self, digest: &Digest) -> bool {
        self.blobs.iter().any(|blob| blob.name == *digest)
    }

    fn use_now(&mut self, digest: &Digest) -> bool {
        let Some(at) = self.blobs.iter().position(|blob| blob.name == *digest) else { return false };
        let blob = self.blobs.remove(at);
        self.blobs.push(Blob { used: self.now, ..blob });
        true
    }

    fn remove(&mut self, digest: &Digest) {
        self.blobs.retain(|blob| blob.name != *digest);
    }

    /// A copy takes its place by its use, if nothing has to go for it that was used later. Whether it is taken.
    fn copy(&mut self, digest: &Digest, used: u32, reserved: u64, charge: impl FnOnce() -> u64) -> bool {
        if self.has(digest) {
            return true;
        }
        let mut goes = 0;
        let mut bytes = self.bytes() + reserved;
        while bytes > CAPACITY_BYTES {
            if self.blobs[goes].used >= used {
                return false;
            }
            bytes -= self.blobs[goes].charge;
            goes += 1;
        }
        self.blobs.drain(..goes);
        let at = self.blobs.iter().position(|blob| blob.used > used).unwrap_or(self.blobs.len());
        self.blobs.insert(at, Blob { name: *digest, charge: charge(), used });
        self.lost.remove(digest);
        true
    }

    /// Room is made for what it takes as it is, and it may come to take less.
    fn put(&mut self, digest: &Digest, (reserved, charge): (u64, u64)) {
        if self.use_now(digest) {
            return;
        }
        while self.bytes() + reserved > CAPACITY_BYTES {
            self.blobs.remove(0);
        }
        self.blobs.push(Blob { name: *digest, charge, used: self.now });
    }

    fn bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.charge).sum()
    }
}

/// A blob's seed says its length: mostly small, some large, so that both kinds of place are exercised.
fn length(seed: u64) -> usize {
    let lengths = [1, 100, 4000, 5000, 60_000, 130_000, 140_000, 700_000];
    lengths[seed as usize % lengths.len()] + seed as usize
}

/// Half of them can be compressed.
fn content(name: u64, length: usize) -> bytes::Bytes {
    if name.is_multiple_of(2) { blob(name, length) } else { text(name, length) }
}

/// What is reserved for a blob, and what it takes.
fn charge(store: &Store, digest: &Digest) -> (u64, u64) {
    let reserved = place(digest.size_bytes() as usize).charge_bytes(digest.size_bytes());
    let state = store.shared().lock();
    let found = state.index.find(&Key::of(digest)).and_then(|slot| state.index.get(slot));
    let charge = found.map_or(reserved, |found| found.stored.charge_bytes());
    assert!(charge <= reserved && (store.shared().compression().is_some() || charge == reserved));
    (reserved, charge)
}

fn place(length: usize) -> Place {
    super::upload::place_for(length as u64)
}

async fn check(store: &Store, model: &Model) {
    let status = store.status();
    assert_eq!((status.blobs, status.bytes), (model.blobs.len() as u64, model.bytes()));
    assert_eq!(status.reserved_bytes, 0);
    let expected: HashSet<Digest> = model.blobs.iter().map(|blob| blob.name).collect();
    assert_eq!(store.lost().into_iter().collect::<HashSet<Digest>>(), model.lost);
    assert_eq!(uses(store), model.blobs.iter().map(|blob| (blob.name, blob.used)).collect::<Vec<_>>());
    let listed: HashSet<Digest> = (0..4096).flat_map(|partition| store.partition(partition)).collect();
    assert_eq!(listed, expected);
    for partition in 0..4096 {
        let here = store.partition(partition);
        let inventory = store.inventory(partition);
        assert_eq!(inventory.count, here.len() as u64);
        let xor = |at: usize| here.iter().fold(0, |xor, name| xor ^ name.hash()[at]);
        assert_eq!(inventory.xor, std::array::from_fn(xor));
    }
}

/// All blobs in the order of their use, and when that was.
fn uses(store: &Store) -> Vec<(Digest, u32)> {
    let mut state = store.shared().lock();
    let mark = state.index.mark_oldest();
    let mut uses = Vec::new();
    while let Some(slot) = state.index.advance(&mark, None) {
        let found = state.index.get(slot).unwrap();
        uses.push((found.stored.key.digest(found.stored.size_bytes).unwrap(), found.used));
    }
    state.index.remove_mark(mark);
    uses
}

async fn step(bench: &Bench, store: Store, model: &mut Model, random: &mut SmallRng) -> Store {
    let name = random.random_range(0..60_u64);
    let bytes = content(name, length(name));
    let digest = digest(&bytes);
    let here = model.has(&digest);
    if random.random_bool(0.2) {
        // Uses are journaled with the time of that.
        sync::journal_touches(store.shared());
        bench.clock.advance(1);
    }
    model.now = store.shared().now();
    match random.random_range(0..130) {
        0..40 => {
            store.put(&digest, bytes.clone()).await.unwrap();
            model.put(&digest, charge(&store, &digest));
            model.lost.remove(&digest);
        }
        40..55 => {
            match store.get(&digest, u64::MAX).await {
                Ok(found) => assert!(here && found == bytes),
                Err(ReadError::NotFound { .. }) => assert!(!here && !model.lost.contains(&digest)),
                Err(ReadError::Lost { .. }) => assert!(!here && model.lost.contains(&digest)),
                Err(error) => panic!("{error}"),
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
                model.put(&digest, charge(&store, &digest));
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
        97..101 if here => {
            damage(&store, &digest, random);
            if random.random_bool(0.5) {
                store.close().await;
                drop(store);
                let store = bench.open().await;
                find_damage(&store, model, &digest).await;
                return store;
            }
            find_damage(&store, model, &digest).await;
        }
        101..105 => return tear(bench, store, model, random).await,
        105..117 => {
            let used = model.now - random.random_range(0..30);
            let reserved = place(bytes.len()).charge_bytes(digest.size_bytes());
            let stored = store.put_copy(&digest, bytes, u64::from(used) * 1000 + 999).await;
            let taken = model.copy(&digest, used, reserved, || charge(&store, &digest).1);
            match stored {
                Ok(()) => assert!(taken),
                Err(error) => assert!(!taken && matches!(error, WriteError::Outlived { .. }), "{error}"),
            }
        }
        117..121 => {
            let since = model.now + random.random_range(0..2);
            let goes = model.blobs.iter().any(|blob| blob.name == digest && blob.used < since);
            assert_eq!(store.remove(&[digest], u64::from(since) * 1000), usize::from(goes));
            if goes {
                model.remove(&digest);
            }
        }
        121..125 => {
            store.give_up(&digest);
            model.lost.remove(&digest);
        }
        _ => maintain(&store),
    }
    store
}

/// Flips a bit of a blob where it lies.
fn damage(store: &Store, name: &Digest, random: &mut SmallRng) {
    let (path, from, length) = {
        let state = store.shared().lock();
        let slot = state.index.find(&Key::of(name)).unwrap();
        let stored = state.index.get(slot).unwrap().stored;
        let paths = &store.shared().paths;
        match stored.place {
            Place::Segment { slot, offset_bytes } => {
                // What follows a frame counts for nothing.
                let part = stored.record_payload_bytes().div_ceil(2);
                (paths.segment(state.segments.number(slot)), offset_bytes, HEADER_BYTES as u64 + part)
            }
            Place::File { serial } => (paths.blob(&stored.key, serial), 0, stored.charge_bytes() / 2),
        }
    };
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let (at, mut byte) = (from + random.random_range(0..length), [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << random.random_range(0..8)], at).unwrap();
}

/// It costs its blob and, as the caller checks, no other.
async fn find_damage(store: &Store, model: &mut Model, name: &Digest) {
    let error = store.get(name, u64::MAX).await.unwrap_err();
    assert!(matches!(error, ReadError::Damaged { .. }), "{error}");
    model.remove(name);
    model.lost.insert(*name);
}

/// Killed while the record of a blob was being written: any part of it is there, and anything behind that.
async fn tear(bench: &Bench, store: Store, model: &mut Model, random: &mut SmallRng) -> Store {
    sync::journal_touches(store.shared());
    sync::pass(store.shared()).unwrap();
    let name = random.random_range(100..100_000_u64);
    let bytes = content(name, length(name % 1000));
    let digest = digest(&bytes);
    store.put(&digest, bytes.clone()).await.unwrap();
    model.put(&digest, charge(&store, &digest));
    drop(store);
    let names = fs::read_dir(bench.options.dir.join("index")).unwrap();
    let generation = |name: fs::DirEntry| parse_generation(name.file_name().to_str().unwrap(), "journal");
    let newest = names.filter_map(|name| generation(name.unwrap())).max().unwrap();
    let path = bench.options.dir.join(format!("index/journal-{newest}"));
    let whole = fs::read(&path).unwrap();
    let mut journal = FoundJournal::new(whole.clone()).unwrap();
    let mut last = None;
    loop {
        let at = journal.offset_bytes() as usize;
        let Some(record) = journal.next() else { break };
        last = Some((at, record));
    }
    let (start, record) = last.unwrap();
    assert!(matches!(record, Record::Put(entry) if entry.key == Key::of(&digest)));
    let end = journal.offset_bytes() as usize;
    let mut torn = whole[..random.random_range(start..end)].to_vec();
    if random.random_bool(0.5) {
        torn.extend((0..random.random_range(0..300)).map(|_| random.random::<u8>()));
    }
    torn.resize(whole.len().max(torn.len()), 0);
    if torn[..end] == whole[..end] {
        // What follows happens to be what was cut off.
        torn[end - 1] ^= 1;
    }
    fs::write(path, torn).unwrap();
    model.blobs.pop();
    bench.open().await
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
    follow_the_model(Compression::None).await;
}

#[tokio::test]
async fn a_store_that_compresses_does_what_a_simple_model_does_whatever_happens() {
    follow_the_model(Compression::Zstd).await;
}

async fn follow_the_model(compression: Compression) {
    let mut random = random(seed());
    let mut bench = Bench { threads: false, ..Bench::new(CAPACITY_BYTES) };
    bench.options.compression = compression;
    let (mut store, mut model) = (bench.open().await, Model::default());
    for _ in 0..1500 {
        store = step(&bench, store, &mut model, &mut random).await;
        check(&store, &model).await;
    }
    for blob in &model.blobs {
        store.get(&blob.name, u64::MAX).await.unwrap();
    }
}
