use super::error::ReadError;
use super::testing::{Bench, blob, digest, put, settle};
use super::{compact, sync};

fn segment_files(bench: &Bench) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(bench.options.dir.join("segments")).unwrap();
    let mut found: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    found.sort_by_key(|path| path.file_name().unwrap().to_str().unwrap().parse::<u32>().unwrap());
    found
}

fn disk_bytes(bench: &Bench) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let files = segment_files(bench).into_iter().chain(bench.files());
    files.map(|path| std::fs::metadata(path).unwrap().blocks() * 512).sum()
}

#[tokio::test]
async fn no_flipped_byte_of_a_segment_is_returned_and_each_costs_one_blob() {
    let bench = Bench { threads: false, ..Bench::new(4 << 20) };
    let store = bench.open().await;
    let mut names = Vec::new();
    for seed in 0..5 {
        names.push(put(&store, seed, 100).await);
    }
    sync::pass(store.shared()).unwrap();
    drop(store);
    let (segment, journal) = (bench.options.dir.join("segments/1"), bench.options.dir.join("index/journal-1"));
    let (good, index) = (std::fs::read(&segment).unwrap(), std::fs::read(&journal).unwrap());
    for at in 64..64 + 5 * 192 {
        let mut bad = good.clone();
        bad[at] ^= 4;
        std::fs::write(&segment, &bad).unwrap();
        let store = bench.open().await;
        let mut lost = 0;
        for (seed, name) in names.iter().enumerate() {
            match store.get(name, 1000).await {
                Ok(bytes) => assert_eq!(bytes, blob(seed as u64, 100)),
                Err(ReadError::Damaged { .. }) => lost += 1,
                Err(error) => panic!("{error}"),
            }
        }
        let padding = (at - 64) % 192 >= 164;
        assert_eq!(lost, u64::from(!padding), "byte {at}");
        assert_eq!(store.status().blobs, 5 - lost);
        drop(store);
        std::fs::remove_dir_all(bench.options.dir.join("index")).unwrap();
        std::fs::create_dir(bench.options.dir.join("index")).unwrap();
        std::fs::write(&journal, &index).unwrap();
    }
}

#[tokio::test]
async fn compaction_keeps_the_live_and_frees_the_dead() {
    let bench = Bench { threads: false, ..Bench::new(8 << 20) };
    let store = bench.open().await;
    // Every tenth blob is kept in use while the others are evicted.
    let mut kept = Vec::new();
    for seed in 0..4000_u64 {
        let name = put(&store, seed, 5000).await;
        if seed % 10 == 0 && kept.len() < 100 {
            kept.push((seed, name));
        }
        kept.iter().for_each(|(_, name)| assert_eq!(store.touch(&[*name]), [true]));
        // Without the threads, compaction is what uploads have done before they get another segment.
        let state = store.shared().lock();
        assert!(state.segments.dead_bytes() <= 2 * state.segments.dead_limit_bytes() + (1 << 20));
    }
    compact::run(store.shared()).unwrap();
    settle(&store).await;
    // Live bytes, two segments of dead ones and two for what comes next.
    assert!(disk_bytes(&bench) <= (8 + 2 + 2) << 20, "{}", disk_bytes(&bench));
    drop(store);
    let store = bench.open().await;
    for (seed, name) in kept {
        assert_eq!(store.get(&name, u64::MAX).await.unwrap(), blob(seed, 5000));
    }
}

#[tokio::test]
async fn compaction_drops_what_is_damaged_and_nothing_else() {
    let bench = Bench { threads: false, ..Bench::new(4 << 20) };
    let store = bench.open().await;
    let mut names = Vec::new();
    for seed in 0..20 {
        names.push(put(&store, seed, 1000).await);
    }
    let segment = &segment_files(&bench)[0];
    let mut bytes = std::fs::read(segment).unwrap();
    let find = |bytes: &[u8], hash: &[u8]| bytes.windows(32).position(|window| window == hash).unwrap();
    let (header, body) = (find(&bytes, names[3].hash()), find(&bytes, names[7].hash()) + 200);
    bytes[header] ^= 1;
    bytes[body] ^= 1;
    // In place: the store has the file open.
    use std::os::unix::fs::FileExt as _;
    std::fs::OpenOptions::new().write(true).open(segment).unwrap().write_all_at(&bytes, 0).unwrap();
    let victim = {
        let mut state = store.shared().lock();
        state.segments.seal();
        let slot = state.index.find(&super::key::Key::of(&names[0])).unwrap();
        state.forget(slot);
        state.segments.sparsest().unwrap()
    };
    let mut reader = store.read(&names[1], 0, None).await.unwrap();
    compact::compact(store.shared(), victim.0, &victim.1, victim.2).unwrap();
    sync::pass(store.shared()).unwrap();
    assert!(!segment.exists());
    assert_eq!(reader.next().await.unwrap().unwrap(), blob(1, 1000), "a reader of the old segment goes on");
    for (seed, name) in names.iter().enumerate() {
        assert_eq!(store.contains(name), ![0, 3, 7].contains(&seed), "{seed}");
        if store.contains(name) {
            assert_eq!(store.get(name, u64::MAX).await.unwrap(), blob(seed as u64, 1000));
        }
    }
    assert_eq!(store.status().damaged_blobs, 2);
    drop(store);
    let store = bench.open().await;
    assert_eq!(store.status().blobs, 17);
    assert_eq!(store.get(&names[19], u64::MAX).await.unwrap(), blob(19, 1000));
}

#[tokio::test]
async fn a_segment_that_takes_the_slot_of_one_being_compacted_keeps_its_blobs() {
    let bench = Bench { threads: false, ..Bench::new(8 << 20) };
    let store = bench.open().await;
    let mut names = Vec::new();
    for seed in 0..20 {
        names.push(put(&store, seed, 1000).await);
    }
    let forget = |name| {
        let mut state = store.shared().lock();
        let slot = state.index.find(&super::key::Key::of(name)).unwrap();
        state.forget(slot).unwrap().stored
    };
    store.shared().lock().segments.seal();
    forget(&names[0]);
    let victim = store.shared().lock().segments.sparsest().unwrap();
    let mut reader = store.read(&names[1], 0, None).await.unwrap();
    // While the victim waits, the rest of it is evicted, and its slot goes to what clients store then.
    let evicted: Vec<_> = names[1..].iter().map(forget).collect();
    let mut live = Vec::new();
    for seed in 100..120 {
        live.push(put(&store, seed, 1000).await);
    }
    assert_ne!(store.shared().lock().segments.number(victim.0), victim.1.number);
    compact::compact(store.shared(), victim.0, &victim.1, victim.2).unwrap();
    assert_eq!(store.touch(&live), [true; 20]);
    // Nor does what a reader or the scrubber finds wrong with the old segment say anything of the new one.
    let again = put(&store, 1, 1000).await;
    let stored = {
        let state = store.shared().lock();
        let slot = state.index.find(&super::key::Key::of(&again)).unwrap();
        let stored = state.index.get(slot).unwrap().stored;
        assert!(!state.segments.is_in(stored.place, &victim.1));
        stored
    };
    assert!(!store.shared().drop_damaged(&stored.key, stored.place, Some(&victim.1)));
    assert_eq!(reader.next().await.unwrap().unwrap(), blob(1, 1000));
    assert_eq!((evicted.len(), store.status().damaged_blobs), (19, 0));
}

/// A store with two sealed segments, most of each dead; and what is live in them.
async fn two_sparse_segments(bench: &Bench) -> (super::Store, [Vec<casbah_cluster::digest::Digest>; 2]) {
    let store = bench.open().await;
    let mut kept = [Vec::new(), Vec::new()];
    for (segment, kept) in (0..).zip(&mut kept) {
        for seed in 0..20 {
            kept.push(put(&store, segment * 100 + seed, 40_000).await);
        }
        let mut state = store.shared().lock();
        state.segments.seal();
        for name in kept.drain(..18) {
            let slot = state.index.find(&super::key::Key::of(&name)).unwrap();
            state.forget(slot);
        }
    }
    (store, kept)
}

#[tokio::test]
async fn a_segment_that_is_too_short_costs_what_is_missing_and_is_compacted() {
    let bench = Bench { threads: false, ..Bench::new(16 << 20) };
    let (store, [first, second]) = two_sparse_segments(&bench).await;
    let segment = &segment_files(&bench)[0];
    std::fs::OpenOptions::new().write(true).open(segment).unwrap().set_len(770_000).unwrap();
    let victim = store.shared().lock().segments.sparsest().unwrap();
    assert_eq!(victim.1.number, 1);
    compact::compact(store.shared(), victim.0, &victim.1, victim.2).unwrap();
    sync::pass(store.shared()).unwrap();
    assert!(!segment.exists());
    assert_eq!(store.touch(&[first, second].concat()), [true, false, true, true]);
    assert_eq!(store.status().damaged_blobs, 1);
}

#[tokio::test]
async fn a_segment_that_cannot_be_read_stays_and_does_not_keep_others_from_compaction() {
    let bench = Bench { threads: false, ..Bench::new(16 << 20) };
    let (store, names) = two_sparse_segments(&bench).await;
    let victim = store.shared().lock().segments.sparsest().unwrap();
    bench.disk.faults.fail(super::disk::Operation::Read, 5);
    compact::compact(store.shared(), victim.0, &victim.1, victim.2).unwrap();
    bench.disk.faults.clear();
    assert_eq!(store.touch(&names.concat()), [true; 4], "an error is no damage");
    let other = store.shared().lock().segments.sparsest().unwrap();
    assert_ne!(other.1.number, victim.1.number);
    compact::compact(store.shared(), other.0, &other.1, other.2).unwrap();
    sync::pass(store.shared()).unwrap();
    let left = segment_files(&bench);
    assert!(left.iter().any(|path| path.ends_with(victim.1.number.to_string())));
    assert!(!left.iter().any(|path| path.ends_with(other.1.number.to_string())));
    assert_eq!(store.touch(&names.concat()), [true; 4]);
}

#[tokio::test]
async fn a_read_error_in_the_middle_of_a_segment_costs_nothing_if_it_passes() {
    let bench = Bench { threads: false, ..Bench::new(16 << 20) };
    let (store, names) = two_sparse_segments(&bench).await;
    for after in 0..2 {
        let victim = store.shared().lock().segments.sparsest().unwrap();
        bench.disk.faults.fail_once_after(super::disk::Operation::Read, 5, after);
        compact::compact(store.shared(), victim.0, &victim.1, victim.2).unwrap();
        bench.disk.faults.clear();
        sync::pass(store.shared()).unwrap();
        assert!(!segment_files(&bench).iter().any(|path| path.ends_with(victim.1.number.to_string())));
    }
    for (name, seed) in names.concat().iter().zip([18, 19, 118, 119]) {
        assert_eq!(store.get(name, u64::MAX).await.unwrap(), blob(seed, 40_000));
    }
}

#[tokio::test]
async fn the_newest_segment_is_filled_further_after_a_restart() {
    let bench = Bench { threads: false, ..Bench::new(4 << 20) };
    let mut names = Vec::new();
    for seed in 0..20 {
        let store = bench.open().await;
        names.push(put(&store, seed, 1000).await);
    }
    let store = bench.open().await;
    settle(&store).await;
    assert_eq!(segment_files(&bench).len(), 1);
    for (seed, name) in names.iter().enumerate() {
        assert_eq!(store.get(name, u64::MAX).await.unwrap(), blob(seed as u64, 1000));
    }
}

#[tokio::test]
async fn segments_that_nothing_names_are_swept() {
    let bench = Bench { threads: false, ..Bench::new(4 << 20) };
    drop(bench.open().await);
    std::fs::write(bench.options.dir.join("segments/77"), b"left over").unwrap();
    let store = bench.open().await;
    let name = put(&store, 1, 1000).await;
    settle(&store).await;
    assert_eq!(segment_files(&bench), [bench.options.dir.join("segments/78")]);
    assert_eq!(store.get(&name, u64::MAX).await.unwrap(), blob(1, 1000));
}

#[tokio::test]
async fn many_writers_of_small_blobs_do_not_get_in_each_others_way() {
    let bench = Bench::new(16 << 20);
    let store = bench.open().await;
    let writers = (0..8_u64).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for seed in 0..200 {
                // Half of the blobs are everyone's.
                let seed = if seed % 2 == 0 { seed } else { writer * 1000 + seed };
                let bytes = blob(seed, 3000);
                store.put(&digest(&bytes), bytes).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    assert_eq!(store.status().blobs, 100 + 8 * 100);
    drop(store);
    let store = bench.open().await;
    assert_eq!(store.status().blobs, 100 + 8 * 100);
    for writer in 0..8 {
        let bytes = blob(writer * 1000 + 199, 3000);
        assert_eq!(store.get(&digest(&bytes), u64::MAX).await.unwrap(), bytes);
    }
}
