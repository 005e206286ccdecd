use std::fs;
use std::path::PathBuf;

use casbah_cluster::digest::Digest;

use crate::config::SyncPolicy;

use super::disk::Operation;
use super::error::OpenError;
use super::options::Surroundings;
use super::state::NoRoom;
use super::testing::{Bench, blob, digest, put, settle};
use super::{maintenance, sync};

fn index_files(bench: &Bench, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(bench.options.dir.join("index")).unwrap();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with(prefix));
    found.sort_by_key(|path| path.to_str().unwrap().rsplit('-').next().unwrap().parse::<u64>().unwrap());
    found
}

/// What is allocated ahead of the journal's records is of no interest.
fn without_zeros(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1);
    bytes
}

async fn fill(bench: &Bench, blobs: u64) -> Vec<Digest> {
    let store = bench.open().await;
    let mut names = Vec::new();
    for seed in 0..blobs {
        names.push(put(&store, seed, 100 + seed as usize).await);
    }
    names
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_minus_nine() {
    for sync in [SyncPolicy::Always, SyncPolicy::Interval(std::time::Duration::from_secs(3600)), SyncPolicy::Never] {
        let mut bench = Bench::new(16 << 20);
        bench.options.sync = sync;
        let names = fill(&bench, 50).await;
        let store = bench.open().await;
        assert_eq!(store.touch(&names), vec![true; 50]);
        for (seed, name) in names.iter().enumerate() {
            assert_eq!(store.get(name, u64::MAX).await.unwrap(), blob(seed as u64, 100 + seed));
        }
    }
}

#[tokio::test]
async fn an_upload_under_way_when_killed_is_not_adopted_and_its_file_is_swept() {
    let bench = Bench::new(16 << 20);
    let store = bench.open().await;
    let bytes = blob(1, 3 << 20);
    let mut upload = store.upload(&digest(&bytes)).await.unwrap();
    upload.write(bytes.slice(..2 << 20)).await.unwrap();
    let unfinished = bench.files();
    assert_eq!(unfinished.len(), 1);
    drop(store);
    drop(upload);
    fs::write(&unfinished[0], b"as killed").unwrap();
    let store = bench.open().await;
    assert!(!store.contains(&digest(&bytes)));
    settle(&store).await;
    assert_eq!(bench.files(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_file_that_got_its_name_but_no_record_is_swept() {
    let bench = Bench::new(16 << 20);
    let store = bench.open().await;
    let name = put(&store, 1, 200_000).await;
    let path = bench.files().remove(0);
    let twin = path.with_file_name(path.file_name().unwrap().to_str().unwrap().replace("-0", "-1"));
    fs::copy(&path, &twin).unwrap();
    settle(&store).await;
    assert_eq!(bench.files(), [path]);
    assert!(store.contains(&name));
}

#[tokio::test]
async fn the_order_of_use_survives_a_restart() {
    for (close, snapshot) in [(false, false), (false, true), (true, false), (true, true)] {
        let bench = Bench::new(10 << 20);
        let store = bench.open().await;
        let mut names = Vec::new();
        for seed in 0..9 {
            names.push(put(&store, seed, 1 << 20).await);
        }
        if snapshot {
            maintenance::take_snapshot(store.shared()).unwrap();
        }
        store.touch(&[names[0], names[5], names[1]]);
        if close {
            store.close().await;
        } else {
            sync::journal_touches(store.shared());
            sync::pass(store.shared()).unwrap();
        }
        drop(store);
        let store = bench.open().await;
        for (seed, victim) in [2, 3, 4, 6, 7, 8, 0, 5, 1].into_iter().enumerate() {
            assert!(store.contains(&names[victim]), "{victim}");
            put(&store, 100 + seed as u64, 1 << 20).await;
            assert!(!store.contains(&names[victim]), "{victim}");
        }
    }
}

#[tokio::test]
async fn a_snapshot_replaces_the_journals_before_it() {
    let bench = Bench::new(16 << 20);
    let names = fill(&bench, 20).await;
    let store = bench.open().await;
    maintenance::take_snapshot(store.shared()).unwrap();
    let late = put(&store, 99, 10).await;
    maintenance::take_snapshot(store.shared()).unwrap();
    assert_eq!(index_files(&bench, "snapshot").len(), 1);
    assert_eq!(index_files(&bench, "journal").len(), 1);
    drop(store);
    let store = bench.open().await;
    assert_eq!(store.touch(&names), vec![true; 20]);
    assert!(store.contains(&late));
    assert_eq!(store.status().blobs, 21);
}

#[tokio::test]
async fn a_journal_cut_anywhere_keeps_what_comes_before_the_cut() {
    let bench = Bench { threads: false, ..Bench::new(16 << 20) };
    let names = fill(&bench, 6).await;
    let journal = index_files(&bench, "journal").remove(0);
    let good = without_zeros(fs::read(&journal).unwrap());
    let mut kept = 0;
    for length in 0..good.len() {
        for later in index_files(&bench, "journal").into_iter().skip(1) {
            fs::remove_file(later).unwrap();
        }
        fs::write(&journal, &good[..length]).unwrap();
        let store = bench.open().await;
        let here = store.touch(&names);
        if length < 64 {
            assert_eq!(here, [true; 6], "without a header, the segments are searched");
            continue;
        }
        let count = here.iter().filter(|here| **here).count();
        assert!(here[..count].iter().all(|here| *here), "a prefix stays: {here:?}");
        assert!(count >= kept, "more of the journal keeps no less");
        kept = count;
    }
    assert_eq!(kept, 5, "all but the last, whose record lacks a byte");
}

/// The id in the first journal's header is not this machine's.
fn another_boot(bench: &Bench) {
    let journal = index_files(bench, "journal").remove(0);
    let mut bytes = fs::read(&journal).unwrap();
    let header = super::journal::header(1, &[7; 16]);
    bytes[..header.len()].copy_from_slice(&header);
    fs::write(&journal, bytes).unwrap();
}

async fn try_open(bench: &Bench) -> Result<super::Store, OpenError> {
    let around = Surroundings { clock: bench.clock.clone(), disk: bench.disk.clone(), threads: false };
    super::Store::open_in(bench.options.clone(), around).await
}

async fn all_are_there(bench: &Bench, names: &[Digest]) {
    let store = bench.open().await;
    for (seed, name) in names.iter().enumerate() {
        assert_eq!(store.get(name, u64::MAX).await.unwrap(), blob(seed as u64, 100 + seed));
    }
    assert_eq!(store.status().blobs, names.len() as u64);
}

#[tokio::test]
async fn a_flipped_byte_in_the_journal_costs_nothing() {
    let bench = Bench { threads: false, ..Bench::new(16 << 20) };
    let names = fill(&bench, 6).await;
    let journal = index_files(&bench, "journal").remove(0);
    let good = without_zeros(fs::read(&journal).unwrap());
    // The last record's damage looks like a torn end.
    for at in 0..good.len() - 64 {
        for later in index_files(&bench, "journal").into_iter().skip(1) {
            fs::remove_file(later).unwrap();
        }
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        fs::write(&journal, bad).unwrap();
        all_are_there(&bench, &names).await;
    }
}

#[tokio::test]
async fn a_snapshot_cut_or_flipped_costs_nothing() {
    let bench = Bench { threads: false, ..Bench::new(16 << 20) };
    let names = fill(&bench, 6).await;
    let store = bench.open().await;
    maintenance::take_snapshot(store.shared()).unwrap();
    drop(store);
    let snapshot = index_files(&bench, "snapshot").remove(0);
    let good = fs::read(&snapshot).unwrap();
    for at in 0..good.len() {
        for cut in [false, true] {
            for later in index_files(&bench, "journal").into_iter().skip(1) {
                fs::remove_file(later).unwrap();
            }
            let mut bad = good.clone();
            if cut {
                bad.truncate(at)
            } else {
                bad[at] ^= 0x40
            }
            fs::write(&snapshot, bad).unwrap();
            all_are_there(&bench, &names).await;
        }
    }
}

#[tokio::test]
async fn a_store_whose_index_is_lost_is_what_its_files_say() {
    let bench = Bench { threads: false, ..Bench::new(16 << 20) };
    let store = bench.open().await;
    let names = [put(&store, 1, 1000).await, put(&store, 2, 1 << 20).await, put(&store, 3, 1).await];
    // Copies that may not come back: a torn record, a file without its end.
    let (torn, short) = (put(&store, 4, 5000).await, put(&store, 5, 300_000).await);
    drop(store);
    let segment = bench.options.dir.join("segments/1");
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.windows(32).position(|window| window == torn.hash()).unwrap();
    bytes[at + 4000] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let path = bench.files().into_iter().find(|path| path.to_str().unwrap().contains(&short.hash_hex())).unwrap();
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..200_000]).unwrap();
    fs::remove_dir_all(bench.options.dir.join("index")).unwrap();
    for _ in 0..2 {
        let store = bench.open().await;
        assert_eq!(store.touch(&names), [true; 3]);
        assert_eq!(store.touch(&[torn, short]), [false; 2]);
        assert_eq!(store.get(&names[1], u64::MAX).await.unwrap(), blob(2, 1 << 20));
        maintenance::take_snapshot(store.shared()).unwrap();
    }
}

#[tokio::test]
async fn after_the_loss_of_power_what_was_named_but_not_written_is_not_adopted() {
    let mut bench = Bench::new(16 << 20);
    bench.options.sync = SyncPolicy::Interval(std::time::Duration::from_secs(3600));
    let store = bench.open().await;
    let synced = [put(&store, 1, 1000).await, put(&store, 11, 200_000).await];
    sync::pass(store.shared()).unwrap();
    let (lost, gone) = (put(&store, 2, 200_000).await, put(&store, 3, 200_000).await);
    let (torn, lucky) = (put(&store, 4, 1000).await, [put(&store, 5, 1000).await, put(&store, 15, 200_000).await]);
    drop(store);
    let segment = bench.options.dir.join("segments/1");
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.windows(32).position(|window| window == torn.hash()).unwrap();
    bytes[at + 100] = !bytes[at + 100];
    fs::write(&segment, bytes).unwrap();
    for path in bench.files() {
        let text = path.to_str().unwrap();
        if text.contains(&lost.hash_hex()) {
            fs::write(&path, vec![0; fs::metadata(&path).unwrap().len() as usize]).unwrap();
        } else if text.contains(&gone.hash_hex()) {
            fs::remove_file(&path).unwrap();
        }
    }
    another_boot(&bench);
    let store = bench.open().await;
    assert_eq!([lost, gone, torn].map(|name| store.contains(&name)), [false; 3]);
    assert_eq!([synced, lucky].concat().iter().map(|name| store.contains(name)).collect::<Vec<_>>(), [true; 4]);
}

#[tokio::test]
async fn a_segment_that_cannot_be_opened_ends_the_start_and_costs_nothing() {
    let bench = Bench { threads: false, ..Bench::new(16 << 20) };
    let names = fill(&bench, 6).await;
    let (segment, aside) = (bench.options.dir.join("segments/1"), bench.options.dir.join("aside"));
    // Even the rights of root do not open a directory for writing.
    fs::rename(&segment, &aside).unwrap();
    fs::create_dir(&segment).unwrap();
    for index_lost in [false, true] {
        let saved = bench.options.dir.join("saved");
        if index_lost {
            fs::rename(bench.options.dir.join("index"), &saved).unwrap();
        }
        assert!(matches!(try_open(&bench).await.err(), Some(OpenError::Io { action: "open", .. })));
        if index_lost {
            fs::remove_dir_all(bench.options.dir.join("index")).unwrap();
            fs::rename(saved, bench.options.dir.join("index")).unwrap();
        }
    }
    fs::remove_dir(&segment).unwrap();
    fs::rename(&aside, &segment).unwrap();
    all_are_there(&bench, &names).await;
}

#[tokio::test]
async fn after_the_loss_of_power_what_cannot_be_read_for_now_is_kept() {
    let mut bench = Bench { threads: false, ..Bench::new(16 << 20) };
    bench.options.sync = SyncPolicy::Interval(std::time::Duration::from_secs(3600));
    let store = bench.open().await;
    let names = [put(&store, 1, 1000).await, put(&store, 2, 200_000).await];
    drop(store);
    another_boot(&bench);
    bench.disk.faults.fail(Operation::Read, 5);
    let store = bench.open().await;
    bench.disk.faults.clear();
    assert_eq!(store.get(&names[0], u64::MAX).await.unwrap(), blob(1, 1000));
    assert_eq!(store.get(&names[1], u64::MAX).await.unwrap(), blob(2, 200_000));
}

#[tokio::test]
async fn a_record_forged_inside_an_upload_is_not_adopted() {
    let bench = Bench { threads: false, ..Bench::new(16 << 20) };
    let store = bench.open().await;
    // The first record of a store lies at 64, so that its bytes begin at 128. They are a record that lies about itself.
    let (wanted, evil) = (digest(b"good"), b"evil");
    let forged = super::segment::RecordHeader {
        key: super::key::Key::of(&wanted),
        size_bytes: 4,
        frame_bytes: 0,
        checksum: crc32c::crc32c(evil),
        segment: 1,
        offset_bytes: 128,
    };
    let mut bytes = forged.encode().to_vec();
    bytes.extend(evil);
    let carrier = digest(&bytes);
    store.put(&carrier, bytes.into()).await.unwrap();
    let other = put(&store, 1, 1000).await;
    drop(store);
    let segment = bench.options.dir.join("segments/1");
    let mut bytes = fs::read(&segment).unwrap();
    assert_eq!(&bytes[128..192], &forged.encode());
    bytes[70] ^= 1;
    fs::write(&segment, bytes).unwrap();
    fs::remove_dir_all(bench.options.dir.join("index")).unwrap();
    let store = bench.open().await;
    assert_eq!([wanted, carrier, other].map(|name| store.contains(&name)), [false, false, true]);
}

#[tokio::test]
async fn salvage_passes_over_what_cannot_be_read() {
    let bench = Bench { threads: false, ..Bench::new(16 << 20) };
    let store = bench.open().await;
    let names = [put(&store, 1, 1000).await, put(&store, 2, 200_000).await];
    drop(store);
    fs::write(bench.options.dir.join("blobs/stray"), b"not a directory").unwrap();
    let mut lost = 0;
    for after in 0..8 {
        fs::remove_dir_all(bench.options.dir.join("index")).unwrap();
        bench.disk.faults.fail_once_after(Operation::Read, 5, after);
        let store = bench.open().await;
        bench.disk.faults.clear();
        lost += names.iter().filter(|name| !store.contains(name)).count();
    }
    assert!(lost > 0, "the faults did happen");
    fs::remove_dir_all(bench.options.dir.join("index")).unwrap();
    assert_eq!(bench.open().await.touch(&names), [true; 2]);
}

#[tokio::test]
async fn what_is_salvaged_is_the_first_to_go() {
    let bench = Bench { threads: false, ..Bench::new(4 << 20) };
    let store = bench.open().await;
    let known = [put(&store, 1, 1000).await, put(&store, 2, 1 << 20).await];
    maintenance::take_snapshot(store.shared()).unwrap();
    let salvaged = [put(&store, 3, 1 << 20).await, put(&store, 4, 100_000).await];
    drop(store);
    let journal = index_files(&bench, "journal").pop().unwrap();
    fs::write(journal, b"").unwrap();
    let store = bench.open().await;
    assert_eq!([known, salvaged].concat().iter().filter(|name| store.contains(name)).count(), 4);
    put(&store, 5, (1 << 20) + (1 << 19)).await;
    put(&store, 6, 1 << 19).await;
    assert_eq!(salvaged.map(|name| store.contains(&name)), [false, true], "those without a known use, ...");
    assert_eq!(known.map(|name| store.contains(&name)), [true; 2], "... and no others");
}

#[tokio::test]
async fn a_hole_in_the_journal_after_the_loss_of_power_is_no_reason_to_search_the_files() {
    for (rebooted, marked) in [(true, false), (true, true), (false, false)] {
        let mut bench = Bench { threads: false, ..Bench::new(16 << 20) };
        bench.options.sync = SyncPolicy::Interval(std::time::Duration::from_secs(3600));
        let names = fill(&bench, 6).await;
        if marked {
            let bytes = fs::read(index_files(&bench, "journal").remove(0)).unwrap();
            let mut journal = super::journal::FoundJournal::new(bytes).unwrap();
            journal.by_ref().for_each(drop);
            let offset_bytes = journal.offset_bytes();
            let mut mark = Vec::new();
            super::record::Record::Synced { offset_bytes }
                .encode(super::record::Position { generation: 1, offset_bytes }, &mut mark);
            let mut bytes = fs::read(index_files(&bench, "journal").remove(0)).unwrap();
            bytes[offset_bytes as usize..][..mark.len()].copy_from_slice(&mark);
            fs::write(index_files(&bench, "journal").remove(0), bytes).unwrap();
        }
        if rebooted {
            another_boot(&bench);
        }
        let path = index_files(&bench, "journal").remove(0);
        let mut bytes = fs::read(&path).unwrap();
        // The second record.
        bytes[64 + 64 + 30] ^= 1;
        fs::write(path, bytes).unwrap();
        let store = bench.open().await;
        let lost = store.touch(&names).iter().filter(|here| !**here).count();
        // A search would have found them all.
        assert_eq!(lost > 0, rebooted && !marked, "{rebooted} {marked}");
        assert!(lost <= 1);
    }
}

#[tokio::test]
async fn a_clock_that_was_ahead_keeps_blobs_for_the_retention_floor_and_no_longer() {
    for restart in [false, true] {
        let mut bench = Bench { threads: false, ..Bench::new(4 << 20) };
        bench.options.retention_floor = std::time::Duration::from_secs(3600);
        let mut store = bench.open().await;
        let year = 365 * 86400;
        bench.clock.advance(year);
        for seed in 0..12 {
            put(&store, seed, 300_000).await;
        }
        bench.clock.advance(0_u32.wrapping_sub(year));
        if restart {
            drop(store);
            store = bench.open().await;
        } else {
            let now = store.shared().now();
            let NoRoom::InUse(wait) = store.shared().lock().evict_down_to(0, now).unwrap_err() else { panic!() };
            assert!(wait <= std::time::Duration::from_secs(3601));
        }
        bench.clock.advance(3601);
        put(&store, 99, 900_000).await;
        let now = store.shared().now();
        let left = store.shared().lock().evict_down_to(0, now);
        assert!(matches!(left, Err(NoRoom::InUse(_))));
        assert_eq!(store.status().blobs, 1, "one wait is for all of them");
    }
}
