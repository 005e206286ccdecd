use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use rand::RngExt as _;

use super::error::WriteError;
use super::limits::{MAX_GARBAGE_BYTES, SNAPSHOT_JOURNAL_BYTES};
use super::testing::{Bench, blob, digest, random, seed, text};
use super::{Store, StoreOptions, verify};
use crate::config::{Compression, SyncPolicy};

const DIR: &str = "CASBAH_TEST_KILL_DIR";
const CAPACITY_BYTES: u64 = 24 << 20;
/// What the disk may hold beyond the capacity at any moment, by docs/reference/disk-format.md: files that are not removed
/// yet and one more upload of each writer, twice the dead bytes at which segments are compacted, two segments of 1 MiB, and
/// journals up to the size at which a snapshot is due, which comes a few starts later when each is killed at once.
const BEYOND_CAPACITY_BYTES: u64 = MAX_GARBAGE_BYTES + (4 << 20) + (4 << 20) + (2 << 20) + 2 * SNAPSHOT_JOURNAL_BYTES;
/// How often the process is killed, unless `CASBAH_TEST_KILLS` says otherwise.
const KILLS: u64 = 6;

fn options(dir: std::path::PathBuf) -> StoreOptions {
    let sync = SyncPolicy::Interval(Duration::from_millis(5));
    StoreOptions {
        dir,
        capacity_bytes: CAPACITY_BYTES,
        retention_floor: Duration::ZERO,
        sync,
        compression: Compression::Zstd,
    }
}

/// Every third one can be compressed.
fn content(seed: u64) -> bytes::Bytes {
    if seed.is_multiple_of(3) { text(seed, length(seed)) } else { blob(seed, length(seed)) }
}

fn length(seed: u64) -> usize {
    [100, 5000, 60_000, 400_000][seed as usize / 4 % 4] + seed as usize % 1000
}

/// Not a test: the process that is killed. Writes, and says what it was told is stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writer() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let store = Store::open(options(dir.into())).await.unwrap();
    let first: u64 = std::env::var("CASBAH_TEST_KILL_FIRST").unwrap().parse().unwrap();
    let writers = (0..4).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for seed in (first + writer..).step_by(4) {
                let bytes = content(seed);
                let digest = digest(&bytes);
                let mut upload = store.upload(&digest).await.unwrap();
                for piece in bytes.chunks(100_000) {
                    upload.write(bytes.slice_ref(piece)).await.unwrap();
                }
                upload.commit().await.unwrap();
                println!("stored {seed}");
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn a_killed_process_has_stored_what_it_said_and_nothing_half() {
    let mut random = random(seed());
    let bench = Bench::new(CAPACITY_BYTES);
    let dir = &bench.options.dir;
    let kills = std::env::var("CASBAH_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let (mut history, mut most_bytes, mut read): (Vec<u64>, u64, usize) = (Vec::new(), 0, 0);
    for first in (0..kills).map(|round| round * 100_000) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["store::kill_test::writer", "--exact", "--nocapture"])
            .env(DIR, dir)
            .env("CASBAH_TEST_KILL_FIRST", first.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Some are killed while they start.
        let wanted = random.random_range(0..400);
        let mut stored: Vec<u64> = Vec::new();
        let seeds =
            |line: std::io::Result<String>| line.unwrap().strip_prefix("stored ").map(|n| n.parse::<u64>().unwrap());
        stored.extend(lines.by_ref().filter_map(seeds).take(wanted));
        child.kill().unwrap();
        stored.extend(lines.filter_map(seeds));
        child.wait().unwrap();
        assert!(stored.len() >= wanted);
        history.extend(stored);
        let bytes = disk_bytes(dir);
        most_bytes = most_bytes.max(bytes);
        assert!(bytes <= CAPACITY_BYTES + BEYOND_CAPACITY_BYTES, "{bytes} bytes of disk");
        if !dir.exists() {
            continue;
        }

        let report = verify(dir, |_, _| {}).unwrap();
        assert!(report.bad.is_empty(), "{:?}", report.bad);
        let store = Store::open(options(dir.clone())).await.unwrap();
        assert!(store.status().bytes <= CAPACITY_BYTES);
        // The newest cannot have been evicted: they are less than a third of what fits, and when more is stored the next
        // time, it takes the place of the rest first. They are read, and so used, in the order in which they came.
        let mut bytes = 0;
        let newest = history.iter().rev().take_while(|seed| {
            bytes += length(**seed) + 5000;
            bytes < CAPACITY_BYTES as usize / 3
        });
        let mut newest: Vec<u64> = newest.copied().collect();
        newest.reverse();
        for seed in &newest {
            let expected = content(*seed);
            let found = store.get(&digest(&expected), u64::MAX).await;
            assert_eq!(found.unwrap_or_else(|error| panic!("after round {first}: {seed}: {error}")), expected);
        }
        read += newest.len();
        // And it goes on from there.
        let more = blob(u64::MAX - first, 1000);
        let put: Result<(), WriteError> = store.put(&digest(&more), more).await;
        put.unwrap();
        store.close().await;
    }
    let acknowledged = history.len();
    println!(
        "killed {kills} times; {acknowledged} blobs acknowledged, {read} read; {most_bytes} bytes of disk at most"
    );
}

/// What everything below a directory takes of the disk.
fn disk_bytes(dir: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    // The process is gone; but files may go while they are looked at, or there is no directory yet.
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let bytes = |entry: std::fs::DirEntry| match entry.path() {
        path if path.is_dir() => disk_bytes(&path),
        path => std::fs::metadata(path).map_or(0, |found| found.blocks() * 512),
    };
    entries.map(|entry| bytes(entry.unwrap())).sum()
}
