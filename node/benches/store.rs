//! What the blob store costs: `cargo bench -p casbah --bench store [-- NAME...]`.
//!
//! CPU time of the whole process (background threads included) in user and kernel mode, from `/proc/self/stat`, which other
//! work on the machine disturbs less than time by the clock. `CASBAH_BENCH_DIR` says where the stores are made.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use casbah::config::{Compression, SyncPolicy};
use casbah::store::{Store, StoreOptions};
use casbah_cluster::digest::{Digest, DigestFunction};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt as _, SeedableRng};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const MIB: usize = 1024 * 1024;
const GIB: f64 = (1024 * MIB) as f64;

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|name| !name.starts_with('-')).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| name.contains(wanted.as_str()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("{:44} {:>12} {:>12} {:>12}", "", "CPU", "clock", "target CPU");
    runtime.block_on(async {
        if wants("hash") {
            hash();
        }
        for size in [4096, 65_536, 131_072, 262_144, 1_048_576] {
            if wants(&format!("small-{}", size / 1024)) {
                small(size).await?;
            }
        }
        if wants("large") {
            large(true).await?;
            large(false).await?;
        }
        if wants("zstd") {
            for size in [4096, 16_384, 131_072, 16 * MIB] {
                compressed(size).await?;
            }
        }
        if wants("million") {
            million().await?;
        }
        Ok(())
    })
}

fn hash() {
    let bytes = random_bytes(1, 16 * MIB);
    let meter = Meter::start();
    for _ in 0..16 {
        black_box(digest(black_box(&bytes)));
    }
    meter.per_gib("SHA-256 of 16 MiB, alone", (16 * bytes.len()) as u64, "");
    let bytes = random_bytes(1, 4096);
    let meter = Meter::start();
    for _ in 0..100_000 {
        black_box(digest(black_box(&bytes)));
    }
    meter.per_operation("SHA-256 of 4 KiB, alone", 100_000, "");
}

async fn small(size: usize) -> Result<()> {
    let place = Place::new()?;
    let store = place.open(8 << 30).await?;
    let count = (512 * MIB / size).min(60_000);
    let blobs: Vec<(Digest, Bytes)> = (0..count as u64).map(|seed| named(seed, size)).collect();
    let warm = count / 10;
    for (digest, bytes) in blobs.iter().take(warm) {
        store.put(digest, bytes.clone()).await?;
    }
    let kib = size / 1024;
    let is_target = |text: &'static str| if size == 4096 { text } else { "" };
    let meter = Meter::start();
    for (digest, bytes) in blobs.iter().skip(warm) {
        store.put(digest, bytes.clone()).await?;
    }
    meter.per_operation(&format!("put {kib} KiB, with hash"), count - warm, is_target("15 us"));
    let mut random = SmallRng::seed_from_u64(2);
    let order: Vec<usize> = (0..count).map(|_| random.random_range(0..count)).collect();
    let meter = Meter::start();
    for at in &order {
        if let Some((digest, _)) = blobs.get(*at) {
            black_box(store.get(digest, u64::MAX).await?);
        }
    }
    meter.per_operation(&format!("get {kib} KiB"), count, is_target("5 us"));
    store.close().await;
    Ok(())
}

/// Twice, of which the second time is told: memory that the page cache takes for the first time since the machine started
/// may cost as much again (a virtual machine gets it from its host only then), which is not the store's doing.
async fn large(aligned: bool) -> Result<()> {
    large_round(aligned, false).await?;
    large_round(aligned, true).await
}

async fn large_round(aligned: bool, told: bool) -> Result<()> {
    let place = Place::new()?;
    let store = place.open(8 << 30).await?;
    let odd = if aligned { 0 } else { 13 };
    let memory = Bytes::from(random_bytes(7, 16 * MIB + 4096));
    let start = memory.as_ptr().align_offset(4096) + odd;
    let bytes = memory.slice(start..(start + 16 * MIB).min(memory.len()));
    let kind = if aligned { "aligned" } else { "odd addresses" };
    let count = 40;
    let digests: Vec<(Digest, Bytes)> = (0..count)
        .map(|seed: u64| {
            // The same memory each time, as a server's receive buffers are, but for the first byte.
            let first = Bytes::copy_from_slice(&seed.to_le_bytes());
            let mut hasher = DigestFunction::Sha256.hasher();
            hasher.update(&first);
            hasher.update(&bytes);
            (hasher.finish(), first)
        })
        .collect();
    let meter = Meter::start();
    for (digest, first) in &digests {
        let mut upload = store.upload(digest).await?;
        upload.write(first.clone()).await?;
        for at in (0..bytes.len()).step_by(MIB) {
            upload.write(bytes.slice(at..(at + MIB).min(bytes.len()))).await?;
        }
        upload.commit().await?;
    }
    let total = count * bytes.len() as u64;
    if !told {
        return Ok(());
    }
    meter.per_gib(&format!("put 16 MiB, with hash, {kind}"), total, "1.15 s/GiB");
    let meter = Meter::start();
    for (digest, _) in &digests {
        let mut reader = store.read(digest, 0, None).await?;
        while let Some(piece) = reader.next().await? {
            black_box(piece);
        }
    }
    meter.per_gib("get 16 MiB from the page cache", total, "0.25 s/GiB");
    store.close().await;
    Ok(())
}

/// What compression costs: of bytes that shrink to a half.
async fn compressed(size: usize) -> Result<()> {
    for compression in [Compression::None, Compression::Zstd] {
        let mut place = Place::new()?;
        place.compression = compression;
        let store = place.open(8 << 30).await?;
        let count = (256 * MIB / size).min(20_000);
        let blobs: Vec<(Digest, Bytes)> = (0..count as u64).map(|seed| text(seed, size)).collect();
        let total = (count * size) as u64;
        let meter = Meter::start();
        for (digest, bytes) in &blobs {
            store.put(digest, bytes.clone()).await?;
        }
        meter.per_gib(&format!("put {} KiB of text, {compression:?}", size / 1024), total, "");
        meter.per_operation("", count, "");
        let meter = Meter::start();
        for (digest, _) in &blobs {
            let mut reader = store.read(digest, 0, None).await?;
            while let Some(piece) = reader.next().await? {
                black_box(piece);
            }
        }
        meter.per_gib(&format!("get {} KiB of text, {compression:?}", size / 1024), total, "");
        meter.per_operation("", count, "");
        println!("{:44} {:>9.2}", "disk, of what it takes as it is", store.status().bytes as f64 / total as f64);
        store.close().await;
    }
    Ok(())
}

async fn million() -> Result<()> {
    let place = Place::new()?;
    let store = place.open(64 << 30).await?;
    let asked = std::env::var("CASBAH_BENCH_BLOBS").ok().and_then(|text| text.parse().ok());
    let count: u64 = asked.unwrap_or(1_000_000);
    let meter = Meter::start();
    for seed in 0..count {
        let (digest, bytes) = tiny(seed);
        store.put(&digest, bytes).await?;
    }
    meter.per_operation("put 8 bytes, with hash", count as usize, "");
    let memory = store.status().index_memory_bytes;
    println!("{:44} {:>9.1} B", "memory of the index, a blob", memory as f64 / count as f64);
    let mut random = SmallRng::seed_from_u64(3);
    let asked: Vec<Digest> = (0..500_000).map(|_| tiny(random.random_range(0..2 * count)).0).collect();
    let meter = Meter::start();
    let here = asked.iter().filter(|digest| store.contains(digest)).count();
    meter.per_operation("contains, half of them missing", asked.len(), "0.15 us");
    let meter = Meter::start();
    for batch in asked.chunks(500) {
        black_box(store.touch(batch));
    }
    meter.per_operation("touch, 500 a call, half missing", asked.len(), "");
    black_box(here);
    drop(store);
    for how in ["journal alone, after kill -9", "snapshot and journal"] {
        let started = Instant::now();
        let store = place.open(64 << 30).await?;
        println!("{:44} {:>12} {:>9.0} ms", format!("reopen with {count}, {how}"), "", millis(started.elapsed()));
        let found = store.status().blobs;
        if found != count {
            return Err(format!("{found} blobs of {count} are back").into());
        }
        // Long enough for the snapshot that is due to be taken.
        for _ in 0..100 {
            if place.has_snapshot()? {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        drop(store);
    }
    Ok(())
}

fn tiny(seed: u64) -> (Digest, Bytes) {
    let bytes = Bytes::copy_from_slice(&seed.to_le_bytes());
    (digest(&bytes), bytes)
}

fn named(seed: u64, size: usize) -> (Digest, Bytes) {
    let bytes = Bytes::from(random_bytes(seed, size));
    (digest(&bytes), bytes)
}

fn text(seed: u64, size: usize) -> (Digest, Bytes) {
    let digits = b"0123456789abcdef";
    let bytes = random_bytes(seed, size)
        .iter()
        .filter_map(|byte| digits.get(usize::from(byte % 16)).copied())
        .collect::<Vec<u8>>();
    (digest(&bytes), Bytes::from(bytes))
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::of(DigestFunction::Sha256, bytes)
}

fn random_bytes(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A directory for a store, removed on drop.
struct Place {
    dir: PathBuf,
    compression: Compression,
}

impl Place {
    fn new() -> Result<Place> {
        let base =
            std::env::var_os("CASBAH_BENCH_DIR").map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
        let dir = base.join(format!("bench-store-{}", std::process::id()));
        Ok(Place { dir, compression: Compression::None })
    }

    async fn open(&self, capacity_bytes: u64) -> Result<Store> {
        Ok(Store::open(StoreOptions {
            dir: self.dir.clone(),
            capacity_bytes,
            retention_floor: Duration::ZERO,
            sync: SyncPolicy::Interval(Duration::from_millis(50)),
            compression: self.compression,
        })
        .await?)
    }

    fn has_snapshot(&self) -> Result<bool> {
        let names = std::fs::read_dir(self.dir.join("index"))?;
        Ok(names.flatten().any(|name| {
            let name = name.file_name();
            name.to_str().is_some_and(|name| name.starts_with("snapshot-") && !name.ends_with("unfinished"))
        }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Measures from its start on.
struct Meter {
    cpu: Duration,
    clock: Instant,
}

impl Meter {
    fn start() -> Meter {
        Meter { cpu: cpu_time(), clock: Instant::now() }
    }

    fn per_operation(&self, what: &str, count: usize, target: &str) {
        let micros = |time: Duration| time.as_secs_f64() * 1e6 / count as f64;
        let (cpu, clock) = (micros(cpu_time() - self.cpu), micros(self.clock.elapsed()));
        println!("{what:44} {cpu:>9.2} us {clock:>9.2} us {target:>12}");
    }

    fn per_gib(&self, what: &str, bytes: u64, target: &str) {
        let seconds = |time: Duration| time.as_secs_f64() * GIB / bytes as f64;
        let (cpu, clock) = (seconds(cpu_time() - self.cpu), seconds(self.clock.elapsed()));
        println!("{what:44} {cpu:>6.2} s/GiB {clock:>6.2} s/GiB {target:>12}");
    }
}

/// User and kernel time of this process, in hundredths of a second.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
