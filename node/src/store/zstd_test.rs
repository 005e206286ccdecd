use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use casbah_cluster::digest::Digest;

use crate::config::Compression;

use super::error::{Damage, ReadError};
use super::key::{Form, Key, Place, Stored};
use super::segment::{HEADER_BYTES, RecordHeader};
use super::testing::{Bench, blob, digest, settle, text};
use super::upload::place_for;
use super::verify::Finding;
use super::{Store, compact, sync, verify};

const MIB: usize = 1 << 20;
const LENGTHS: [usize; 10] = [256, 1000, 4096, 70_001, 131_072, 131_073, 262_144, 262_145, MIB, 3 * MIB + 77];

fn bench(capacity_bytes: u64) -> Bench {
    let mut bench = Bench { threads: false, ..Bench::new(capacity_bytes) };
    bench.options.compression = Compression::Zstd;
    bench
}

async fn put(store: &Store, bytes: &Bytes) -> Digest {
    let name = digest(bytes);
    store.put(&name, bytes.clone()).await.unwrap();
    name
}

fn stored(store: &Store, name: &Digest) -> Stored {
    let state = store.shared().lock();
    state.index.get(state.index.find(&Key::of(name)).unwrap()).unwrap().stored
}

fn plain_charge(name: &Digest) -> u64 {
    place_for(name.size_bytes()).charge_bytes(name.size_bytes())
}

async fn read(store: &Store, name: &Digest, offset: u64, length: u64) -> Result<Vec<u8>, ReadError> {
    let mut reader = store.read(name, offset, Some(length)).await?;
    let mut found = Vec::new();
    while let Some(piece) = reader.next().await? {
        found.extend(piece);
    }
    Ok(found)
}

#[tokio::test]
async fn what_is_compressed_takes_less_and_is_read_back_whole_and_in_ranges_after_a_restart_too() {
    let mut bench = bench(64 << 20);
    let mut store = bench.open().await;
    let mut names = Vec::new();
    for (seed, length) in (0..).zip(LENGTHS) {
        let bytes = text(seed, length);
        let name = put(&store, &bytes).await;
        let charge = stored(&store, &name).charge_bytes();
        assert_ne!(stored(&store, &name).form, Form::Plain, "{length}");
        assert!(charge < plain_charge(&name), "{length}");
        if length > 4000 {
            assert!((40..70).contains(&(charge * 100 / plain_charge(&name))), "{charge} for {length}");
        }
        names.push((name, bytes));
    }
    let (before, forms) = (store.status(), names.iter().map(|(name, _)| stored(&store, name)).collect::<Vec<_>>());
    // Whatever is configured from now on, what is there is read.
    for (compression, snapshot) in [(Compression::Zstd, true), (Compression::None, false)] {
        if snapshot {
            super::maintenance::take_snapshot(store.shared()).unwrap();
        }
        drop(store);
        bench.options.compression = compression;
        store = bench.open().await;
        assert_eq!((store.status().bytes, store.status().blobs), (before.bytes, before.blobs));
        assert_eq!(names.iter().map(|(name, _)| stored(&store, name)).collect::<Vec<_>>(), forms);
        for (name, bytes) in &names {
            assert_eq!(store.get(name, u64::MAX).await.unwrap(), bytes);
            let size = bytes.len() as u64;
            for (offset, length) in
                [(0, size), (1, size), (size - 1, 1), (size, 1), (size / 2, 10), (size / 3, size / 3)]
            {
                let expected = &bytes[offset as usize..(offset + length).min(size) as usize];
                assert_eq!(read(&store, name, offset, length).await.unwrap(), expected, "{size}: {length} at {offset}");
            }
        }
    }
    settle(&store).await;
    store.close().await;
    let report = verify(&bench.options.dir, |_, _| {}).unwrap();
    assert_eq!((report.good_blobs, report.bad.len()), (LENGTHS.len() as u64, 0), "{:?}", report.bad);
}

#[tokio::test]
async fn files_on_disk_are_no_longer_than_what_they_are_charged_for() {
    use std::os::unix::fs::MetadataExt as _;
    let bench = bench(64 << 20);
    let store = bench.open().await;
    let mut charged = 0;
    for (seed, length) in (0..).zip([131_073, MIB, 9 * MIB + 1]) {
        charged += stored(&store, &put(&store, &text(seed, length)).await).charge_bytes();
    }
    let used: u64 = bench.files().iter().map(|path| std::fs::metadata(path).unwrap().blocks() * 512).sum();
    assert!(used <= charged, "{used} of {charged}");
    assert_eq!(store.status().bytes, charged);
    assert_eq!(store.status().reserved_bytes, 0);
}

#[tokio::test]
async fn what_does_not_shrink_is_stored_as_it_is_by_its_first_piece() {
    let bench = bench(64 << 20);
    let store = bench.open().await;
    let random_first = Bytes::from([blob(1, MIB), text(2, 3 * MIB)].concat());
    let random_last = Bytes::from([text(3, MIB / 2), blob(4, 3 * MIB)].concat());
    for (bytes, compressed) in [
        (blob(5, 100_000), false),
        (blob(6, MIB), false),
        (text(7, 200), false),
        (random_first, false),
        (random_last, true),
    ] {
        let name = put(&store, &bytes).await;
        let found = stored(&store, &name);
        assert_eq!(found.form != Form::Plain, compressed, "{}", bytes.len());
        assert!(found.charge_bytes() <= plain_charge(&name));
        assert_eq!(store.get(&name, u64::MAX).await.unwrap(), bytes);
        assert_eq!(store.read_stored(&name).await.unwrap().is_some(), compressed);
    }
    assert_eq!(store.status().reserved_bytes, 0);
}

#[tokio::test]
async fn an_upload_in_pieces_of_any_length_is_compressed_as_a_whole_one_is() {
    let bench = bench(64 << 20);
    let store = bench.open().await;
    for (seed, length) in (0..).zip([1000, 100_000, 300_000, 2 * MIB + 5]) {
        for step in [997, 262_144, 262_145, 700_001] {
            let bytes = text(seed * 100 + step as u64, length);
            let name = digest(&bytes);
            let mut upload = store.upload(&name).await.unwrap();
            for piece in bytes.chunks(step) {
                upload.write(bytes.slice_ref(piece)).await.unwrap();
            }
            upload.commit().await.unwrap();
            assert_ne!(stored(&store, &name).form, Form::Plain);
            assert_eq!(store.get(&name, u64::MAX).await.unwrap(), bytes);
        }
    }
}

#[tokio::test]
async fn the_stored_frames_of_a_blob_are_one_zstd_stream_of_it() {
    let bench = bench(64 << 20);
    let store = bench.open().await;
    for (seed, length) in (0..).zip(LENGTHS) {
        let bytes = text(seed, length);
        let name = put(&store, &bytes).await;
        let mut reader = store.read_stored(&name).await.unwrap().unwrap();
        let mut frames = Vec::new();
        while let Some(piece) = reader.next().await.unwrap() {
            frames.extend(piece);
        }
        assert!(frames.len() < length);
        assert_eq!(zstd::stream::decode_all(&frames[..]).unwrap(), bytes);
    }
    let gone = digest(b"never stored");
    assert!(matches!(store.read_stored(&gone).await, Err(ReadError::NotFound { .. })));
    assert!(store.read_stored(&digest(b"")).await.unwrap().is_none());
}

#[tokio::test]
async fn more_fits_and_the_capacity_is_kept_to() {
    let bench = bench(8 << 20);
    let store = bench.open().await;
    let mut names = Vec::new();
    for seed in 0..30 {
        names.push(put(&store, &text(seed, if seed % 2 == 0 { MIB } else { 100_000 })).await);
        let status = store.status();
        assert!(status.bytes <= 8 << 20, "{status:?}");
        let charges: u64 =
            names.iter().filter(|name| store.contains(name)).map(|name| stored(&store, name).charge_bytes()).sum();
        assert_eq!(status.bytes, charges);
    }
    let kept = names.iter().filter(|name| store.contains(name)).count();
    assert!(kept > 20, "{kept} of 30, of which 15 would fit as they are");
    assert!(!store.contains(&names[0]));
}

#[tokio::test]
async fn compaction_moves_frames_as_they_are() {
    let bench = bench(8 << 20);
    let store = bench.open().await;
    let mut names = Vec::new();
    for seed in 0..20 {
        names.push((put(&store, &text(seed, 30_000)).await, text(seed, 30_000)));
    }
    let before = stored(&store, &names[19].0);
    let victim = {
        let mut state = store.shared().lock();
        state.segments.seal();
        for (name, _) in names.drain(..10) {
            let slot = state.index.find(&Key::of(&name)).unwrap();
            state.forget(slot);
        }
        state.segments.sparsest().unwrap()
    };
    let live = store.status().bytes;
    compact::compact(store.shared(), victim.0, &victim.1, victim.2).unwrap();
    sync::pass(store.shared()).unwrap();
    assert_eq!((store.status().blobs, store.status().bytes, store.status().damaged_blobs), (10, live, 0));
    let after = stored(&store, &names[9].0);
    assert_ne!(before.place, after.place);
    assert_eq!((before.form, before.size_bytes), (after.form, after.size_bytes));
    drop(store);
    let store = bench.open().await;
    assert_eq!(store.status().bytes, live);
    for (name, bytes) in &names {
        assert_eq!(store.get(name, u64::MAX).await.unwrap(), bytes);
    }
}

#[tokio::test]
async fn a_store_whose_index_is_lost_finds_compressed_blobs_in_their_files() {
    let bench = bench(64 << 20);
    let store = bench.open().await;
    let mut names = Vec::new();
    for (seed, length) in (0..).zip(LENGTHS) {
        names.push((put(&store, &text(seed, length)).await, text(seed, length)));
    }
    let bytes = store.status().bytes;
    drop(store);
    std::fs::remove_dir_all(bench.options.dir.join("index")).unwrap();
    let store = bench.open().await;
    assert_eq!((store.status().blobs, store.status().bytes), (LENGTHS.len() as u64, bytes));
    for (name, bytes) in &names {
        assert_eq!(store.get(name, u64::MAX).await.unwrap(), bytes);
    }
}

#[tokio::test]
async fn no_flipped_or_missing_byte_of_compressed_blobs_is_ever_returned() {
    let bench = bench(64 << 20);
    let length = 300_000;
    let store = bench.open().await;
    let bytes = text(1, length);
    let name = put(&store, &bytes).await;
    sync::pass(store.shared()).unwrap();
    drop(store);
    let (path, journal) = (bench.files().remove(0), bench.options.dir.join("index/journal-1"));
    let (good, index) = (std::fs::read(&path).unwrap(), std::fs::read(&journal).unwrap());
    let table = good.len() - 104 - 2 * 12;
    for at in (0..table - 8).step_by(1999).chain(table - 8..good.len()) {
        for truncate in [false, true] {
            let mut bad = good.clone();
            if truncate {
                bad.truncate(at)
            } else {
                bad[at] ^= 0x10
            }
            std::fs::write(&path, bad).unwrap();
            let store = bench.open().await;
            match store.get(&name, u64::MAX).await {
                Ok(found) => assert!(!truncate && (table - 8..table).contains(&at) && found == bytes, "byte {at}"),
                Err(error) => assert!(matches!(error, ReadError::Damaged { .. }), "byte {at}: {error}"),
            }
            drop(store);
            std::fs::remove_dir_all(bench.options.dir.join("index")).unwrap();
            std::fs::create_dir(bench.options.dir.join("index")).unwrap();
            std::fs::write(&journal, &index).unwrap();
            std::fs::write(&path, &good).unwrap();
        }
    }
    assert_eq!(bench.open().await.get(&name, u64::MAX).await.unwrap(), bytes);
}

#[tokio::test]
async fn each_flipped_byte_of_a_compressed_record_costs_its_blob_and_no_other() {
    let bench = bench(4 << 20);
    let store = bench.open().await;
    let mut names = Vec::new();
    for seed in 0..3 {
        names.push((put(&store, &text(seed, 600)).await, text(seed, 600)));
    }
    let places: Vec<Stored> = names.iter().map(|(name, _)| stored(&store, name)).collect();
    sync::pass(store.shared()).unwrap();
    drop(store);
    let (segment, journal) = (bench.options.dir.join("segments/1"), bench.options.dir.join("index/journal-1"));
    let (good, index) = (std::fs::read(&segment).unwrap(), std::fs::read(&journal).unwrap());
    let Place::Segment { offset_bytes: from, .. } = places[1].place else { panic!() };
    let from = from as usize;
    let header = RecordHeader::decode(good[from..].first_chunk().unwrap()).unwrap();
    for at in from..from + places[1].charge_bytes() as usize {
        let mut bad = good.clone();
        bad[at] ^= 4;
        std::fs::write(&segment, &bad).unwrap();
        let store = bench.open().await;
        let is_padding = at >= from + HEADER_BYTES + header.frame_bytes as usize;
        for (seed, (name, bytes)) in names.iter().enumerate() {
            match store.get(name, 1000).await {
                Ok(found) => assert!(found == bytes && (seed != 1 || is_padding), "byte {at}"),
                Err(ReadError::Damaged { .. }) => assert!(seed == 1 && !is_padding, "byte {at}"),
                Err(error) => panic!("{error}"),
            }
        }
        drop(store);
        std::fs::remove_dir_all(bench.options.dir.join("index")).unwrap();
        std::fs::create_dir(bench.options.dir.join("index")).unwrap();
        std::fs::write(&journal, &index).unwrap();
    }
}

#[tokio::test]
async fn bytes_that_match_their_checksum_and_are_no_frame_are_damage() {
    let bench = bench(4 << 20);
    let store = bench.open().await;
    let name = put(&store, &text(1, 5000)).await;
    let Place::Segment { offset_bytes, .. } = stored(&store, &name).place else { panic!() };
    // As a bug would leave it: the header is right, and so is the checksum.
    let path = bench.options.dir.join("segments/1");
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, offset_bytes).unwrap();
    let header = RecordHeader::decode(&header).unwrap();
    let junk = blob(9, header.frame_bytes as usize);
    let header = RecordHeader { checksum: crc32c::crc32c(&junk), ..header };
    file.write_all_at(&[&header.encode()[..], &junk].concat(), offset_bytes).unwrap();
    sync::pass(store.shared()).unwrap();
    let report = verify(&bench.options.dir, |_, _| {}).unwrap();
    assert!(matches!(report.bad[..], [(_, Finding::Damaged(Damage::Frame))]), "{:?}", report.bad);
    let error = store.get(&name, u64::MAX).await.unwrap_err();
    assert!(matches!(error, ReadError::Damaged { reason: Damage::Frame, .. }), "{error}");
    assert!(!store.contains(&name));
}
