use std::fs;
use std::path::{Path, PathBuf};

use rand::RngExt as _;
use rand::rngs::SmallRng;

use super::blob_file::{Layout, trailer};
use super::codecs::Codecs;
use super::error::ReadError;
use super::key::{Form, Key};
use super::limits::ZSTD_FRAME_BYTES;
use super::record::{DiskEntry, DiskPlace, Position, Record};
use super::segment::RecordHeader;
use super::testing::{Bench, blob, digest, random, seed, text};
use super::{fuzzing, journal, maintenance, segment, snapshot};
use crate::config::Compression;

/// Mutations for each reader.
const MUTATIONS: usize = 4000;
/// Mutations of a whole store, each of which is opened.
const STORES: usize = 300;

/// What a careless disk or a clever fuzzer may make of bytes.
fn mutate(bytes: &mut Vec<u8>, random: &mut SmallRng) {
    for _ in 0..random.random_range(1..4) {
        let length = bytes.len();
        if length == 0 {
            return bytes.push(random.random());
        }
        let at = random.random_range(0..length);
        let some = random.random_range(1..=64.min(length - at));
        match random.random_range(0..8) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = [0, 1, 2, 4, 0x7f, 0x80, 0xff][random.random_range(0..7)],
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..at + some)),
            4 => {
                let copy = bytes[at..at + some].to_vec();
                let to = random.random_range(0..=length);
                drop(bytes.splice(to..to, copy));
            }
            5 => bytes[at..at + some].fill([0, 0xff][random.random_range(0..2)]),
            6 => bytes[at..at + some].iter_mut().for_each(|byte| *byte = random.random()),
            _ => {
                // One part in the place of another, as a misdirected write does.
                let copy = bytes[at..at + some].to_vec();
                let to = random.random_range(0..=length - some);
                bytes[to..to + some].copy_from_slice(&copy);
            }
        }
    }
}

fn entries() -> Vec<DiskEntry> {
    let places = [DiskPlace::File { serial: 3 }, DiskPlace::Segment { number: 3, offset_bytes: 640 }];
    let form = |at| if at % 3 == 0 { Form::Zstd { share: 5 } } else { Form::Plain };
    let entry = |(at, place)| {
        let key = Key { function: 1, hash: [at; 32] };
        DiskEntry { key, used: 9, size_bytes: 70, place, form: form(at) }
    };
    (0..6).zip(places.into_iter().cycle()).map(entry).collect()
}

fn a_journal() -> Vec<u8> {
    let mut bytes = journal::header(7, &[1; 16]).to_vec();
    let mut records: Vec<Record> = entries().into_iter().map(Record::Put).collect();
    records.push(Record::Remove(Key { function: 1, hash: [2; 32] }));
    records.push(Record::Touch { used: 8, prefixes: vec![[1; 8], [3; 8]] });
    records.push(Record::Synced { offset_bytes: 64 });
    for record in records {
        let position = Position { generation: 7, offset_bytes: bytes.len() as u64 };
        record.encode(position, &mut bytes);
    }
    bytes
}

fn a_snapshot() -> Vec<u8> {
    let encoded: Vec<u8> = entries().iter().flat_map(DiskEntry::encode).collect();
    [&snapshot::header(7)[..], &snapshot::block(7, 0, &encoded), &snapshot::block(7, 1, &[])].concat()
}

fn a_segment() -> Vec<u8> {
    let mut bytes = segment::header(3).to_vec();
    for at in 1..6 {
        let blob = blob(at, at as usize * 50);
        let header = RecordHeader {
            key: Key::of(&digest(&blob)),
            size_bytes: blob.len() as u32,
            frame_bytes: 0,
            checksum: crc32c::crc32c(&blob),
            segment: 3,
            offset_bytes: bytes.len() as u32,
        };
        bytes.extend(header.encode());
        bytes.extend(&blob);
        bytes.resize(bytes.len().next_multiple_of(64), 0);
    }
    bytes
}

fn a_compressed_file() -> Vec<u8> {
    let (blob, codecs) = (text(1, 300_000), Codecs::default());
    let (mut bytes, mut table) = (Vec::new(), Vec::new());
    for part in blob.chunks(ZSTD_FRAME_BYTES) {
        let frame = codecs.compress(&part[..1000]).unwrap();
        bytes.extend(&frame);
        table.extend((bytes.len() as u64).to_le_bytes());
        table.extend(crc32c::crc32c(&frame).to_le_bytes());
    }
    let layout = Layout::zstd(blob.len() as u64, bytes.len() as u64);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend(table);
    bytes.extend(trailer(&digest(&blob), layout));
    bytes
}

#[test]
fn no_reader_breaks_its_word_whatever_it_is_given() {
    let mut random = random(seed());
    type Reader = (fn(&[u8]), fn() -> Vec<u8>);
    let readers: [Reader; 4] = [
        (fuzzing::journal, a_journal),
        (fuzzing::snapshot, a_snapshot),
        (fuzzing::segment, a_segment),
        (fuzzing::frames, a_compressed_file),
    ];
    for (read, good) in readers {
        read(&[]);
        read(&good());
        for _ in 0..MUTATIONS {
            let mut bytes = good();
            // Without the header, the rest goes behind one that is right.
            let from = if random.random_bool(0.5) { 64 } else { 0 };
            bytes.drain(..from);
            mutate(&mut bytes, &mut random);
            read(&bytes);
        }
    }
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_all(&path, &to);
        } else {
            fs::copy(&path, to).unwrap();
        }
    }
}

fn all_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(all_files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Every other one can be compressed.
fn content(seed: u64, length: usize) -> bytes::Bytes {
    if seed.is_multiple_of(2) { blob(seed, length) } else { text(seed, length) }
}

#[tokio::test]
async fn a_store_of_which_any_file_is_mutated_opens_and_serves_no_wrong_byte() {
    let mut random = random(seed());
    let mut bench = Bench { threads: false, ..Bench::new(4 << 20) };
    bench.options.compression = Compression::Zstd;
    let lengths = [100, 1000, 140_000, 5000, 64, 0, 200_000];
    let store = bench.open().await;
    let mut names = Vec::new();
    for (seed, length) in (0..).zip(lengths) {
        let bytes = content(seed, length);
        names.push(digest(&bytes));
        store.put(&digest(&bytes), bytes).await.unwrap();
        if seed == 3 {
            maintenance::take_snapshot(store.shared()).unwrap();
        }
    }
    store.close().await;
    drop(store);
    let (dir, good) = (bench.options.dir.clone(), bench.options.dir.with_extension("good"));
    copy_all(&dir, &good);
    // What is allocated ahead of journals and segments only makes the copies slow.
    for file in all_files(&good) {
        let mut bytes = fs::read(&file).unwrap();
        if !file.starts_with(good.join("blobs")) {
            bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
            fs::write(file, bytes).unwrap();
        }
    }
    let mut lost = 0;
    for _ in 0..STORES {
        fs::remove_dir_all(&dir).unwrap();
        copy_all(&good, &dir);
        let files = all_files(&dir);
        let victim = &files[random.random_range(0..files.len())];
        if victim.ends_with("format") {
            continue;
        }
        let mut bytes = fs::read(victim).unwrap();
        mutate(&mut bytes, &mut random);
        fs::write(victim, &bytes).unwrap();
        let in_index = victim.starts_with(dir.join("index"));
        let store = bench.open().await;
        for (seed, (name, length)) in (0..).zip(names.iter().zip(lengths)) {
            match store.get(name, u64::MAX).await {
                Ok(found) => assert_eq!(found, content(seed, length)),
                Err(ReadError::NotFound { .. } | ReadError::Damaged { .. } | ReadError::Lost { .. }) => lost += 1,
                Err(error) => panic!("{error}"),
            }
        }
        // One that was lost can be stored again.
        for (seed, length) in (0..).zip(lengths) {
            let bytes = content(seed, length);
            store.put(&digest(&bytes), bytes).await.unwrap();
        }
        assert_eq!(store.touch(&names), [true; 7], "{} in the index: {in_index}", victim.display());
    }
    assert!(lost > 0, "the mutations did happen");
}
