use std::time::Duration;

use bytes::Bytes;

use super::error::{Mismatch, OpenError, ReadError, WriteError};
use super::testing::{Bench, blob, digest, put, settle};

const MIB: usize = 1024 * 1024;

async fn read_all(
    store: &super::Store,
    digest: &casbah_cluster::digest::Digest,
    from: u64,
    length: Option<u64>,
) -> Vec<u8> {
    let mut reader = store.read(digest, from, length).await.unwrap();
    let mut all = Vec::new();
    while let Some(piece) = reader.next().await.unwrap() {
        assert!(piece.len() <= MIB);
        all.extend(piece);
    }
    all
}

#[tokio::test]
async fn what_was_put_is_read_back_whole_and_in_ranges() {
    let bench = Bench::new(64 << 20);
    let store = bench.open().await;
    for (seed, length) in [1, 4096, 65_535, 65_536, 65_537, 131_072, 131_073, MIB, 3 * MIB + 17].into_iter().enumerate()
    {
        let bytes = blob(seed as u64, length);
        let digest = digest(&bytes);
        assert!(!store.contains(&digest));
        store.put(&digest, bytes.clone()).await.unwrap();
        assert!(store.contains(&digest));
        assert_eq!(store.get(&digest, u64::MAX).await.unwrap(), bytes);
        assert_eq!(read_all(&store, &digest, 0, None).await, bytes);
        for offset in [0, 1, length / 2, length.saturating_sub(1), length] {
            for limit in [0, 1, 70_000, length, usize::MAX] {
                let expected = &bytes[offset..offset.saturating_add(limit).min(length)];
                assert_eq!(read_all(&store, &digest, offset as u64, Some(limit as u64)).await, expected);
            }
        }
        let past = store.read(&digest, length as u64 + 1, None).await.err().unwrap();
        assert!(matches!(past, ReadError::OutOfRange { .. }), "{past}");
        let large = store.get(&digest, length as u64 - 1).await.unwrap_err();
        assert!(matches!(large, ReadError::TooLarge { .. }), "{large}");
    }
    assert_eq!(store.status().blobs, 9);
}

#[tokio::test]
async fn the_empty_blob_is_always_there() {
    let bench = Bench::new(1 << 20);
    let store = bench.open().await;
    let empty = digest(b"");
    assert!(store.contains(&empty));
    assert_eq!(store.touch(&[empty]), [true]);
    assert_eq!(store.get(&empty, 0).await.unwrap(), Bytes::new());
    assert_eq!(read_all(&store, &empty, 0, None).await, b"");
    assert!(matches!(store.read(&empty, 1, None).await, Err(ReadError::OutOfRange { .. })));
    store.put(&empty, Bytes::new()).await.unwrap();
    store.upload(&empty).await.unwrap().commit().await.unwrap();
    assert_eq!(store.status().blobs, 0);
}

#[tokio::test]
async fn a_digest_with_another_size_is_another_blob() {
    let bench = Bench::new(1 << 20);
    let store = bench.open().await;
    let right = put(&store, 1, 100).await;
    let wrong = casbah_cluster::digest::Digest::new(right.function(), &right.hash_hex(), 99).unwrap();
    assert!(!store.contains(&wrong));
    assert!(matches!(store.get(&wrong, 1000).await, Err(ReadError::NotFound { .. })));
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_leave_nothing() {
    let bench = Bench::new(16 << 20);
    let store = bench.open().await;
    for length in [10, 200_000, 3 * MIB] {
        let bytes = blob(1, length);
        let name = digest(&bytes);
        let wrong = store.put(&name, blob(2, length)).await.unwrap_err();
        assert!(matches!(wrong, WriteError::Mismatch { mismatch: Mismatch::Hash { .. }, .. }), "{wrong}");
        let short = store.put(&name, bytes.slice(1..)).await.unwrap_err();
        assert!(matches!(short, WriteError::Mismatch { mismatch: Mismatch::TooShort { .. }, .. }), "{short}");
        let mut upload = store.upload(&name).await.unwrap();
        upload.write(bytes.clone()).await.unwrap();
        assert_eq!(upload.written_bytes(), length as u64);
        let long = upload.write(Bytes::from_static(b"x")).await.unwrap_err();
        assert!(matches!(long, WriteError::Mismatch { mismatch: Mismatch::TooLong { .. }, .. }), "{long}");
        assert!(upload.commit().await.is_err());
        assert!(!store.contains(&name));
    }
    settle(&store).await;
    assert_eq!(store.status().reserved_bytes, 0);
    assert_eq!(bench.files(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_blob_that_is_present_is_verified_all_the_same() {
    let bench = Bench::new(16 << 20);
    let store = bench.open().await;
    for length in [10, 3 * MIB] {
        let name = put(&store, 1, length).await;
        store.put(&name, blob(1, length)).await.unwrap();
        assert!(matches!(store.put(&name, blob(2, length)).await, Err(WriteError::Mismatch { .. })));
        assert!(store.contains(&name));
    }
}

#[tokio::test]
async fn an_aborted_upload_gives_its_space_back_and_leaves_no_file() {
    let bench = Bench::new(8 << 20);
    let store = bench.open().await;
    let bytes = blob(1, 6 * MIB);
    let mut upload = store.upload(&digest(&bytes)).await.unwrap();
    upload.write(bytes.slice(..3 * MIB)).await.unwrap();
    assert!(store.status().reserved_bytes >= 6 * MIB as u64);
    assert_eq!(bench.files().len(), 1);
    drop(upload);
    // The next one waits for the space if the piece under way still holds it.
    put(&store, 2, 7 * MIB).await;
    settle(&store).await;
    assert_eq!(store.status().reserved_bytes, 0);
    assert_eq!(bench.files().len(), 1);
}

#[tokio::test]
async fn a_blob_larger_than_the_store_is_refused_before_anything_is_evicted() {
    let bench = Bench::new(2 << 20);
    let store = bench.open().await;
    let small = put(&store, 1, 1000).await;
    let large = blob(2, 2 * MIB);
    let error = store.put(&digest(&large), large).await.unwrap_err();
    assert!(matches!(error, WriteError::LargerThanStore { .. }), "{error}");
    assert!(store.contains(&small));
}

#[tokio::test]
async fn two_uploads_of_one_blob_store_it_once() {
    let bench = Bench::new(16 << 20);
    let store = bench.open().await;
    for length in [1000, 2 * MIB] {
        let bytes = blob(length as u64, length);
        let name = digest(&bytes);
        let mut first = store.upload(&name).await.unwrap();
        let mut second = store.upload(&name).await.unwrap();
        first.write(bytes.clone()).await.unwrap();
        second.write(bytes.clone()).await.unwrap();
        let (one, two) = tokio::join!(first.commit(), second.commit());
        one.unwrap();
        two.unwrap();
        assert_eq!(store.get(&name, u64::MAX).await.unwrap(), bytes);
    }
    settle(&store).await;
    assert_eq!((store.status().blobs, store.status().reserved_bytes), (2, 0));
}

#[tokio::test]
async fn the_least_recently_used_go_first_at_twenty_megabytes() {
    let bench = Bench::new(22_000_000);
    let store = bench.open().await;
    let large = put(&store, 1, 15_000_000).await;
    let middle = put(&store, 2, 5_000_000).await;
    assert!(store.contains(&large) && store.contains(&middle));
    let third = put(&store, 3, 5_000_000).await;
    assert_eq!(store.touch(&[large, middle, third]), [false, true, true]);
    // Used since: the middle one stays, the third goes.
    assert_eq!(store.touch(&[third, middle]), [true, true]);
    let fourth = put(&store, 4, 15_000_000).await;
    assert_eq!(store.touch(&[middle, third, fourth]), [true, false, true]);
    settle(&store).await;
    assert_eq!(bench.files().len(), 2);
}

#[tokio::test]
async fn a_blob_used_within_the_retention_floor_is_not_evicted() {
    let mut bench = Bench::new(4 << 20);
    bench.options.retention_floor = Duration::from_secs(3600);
    let store = bench.open().await;
    let old = put(&store, 1, MIB).await;
    let kept = put(&store, 2, 2 * MIB).await;
    bench.clock.advance(3000);
    store.get(&kept, u64::MAX).await.unwrap();
    bench.clock.advance(601);
    // The old one may go, and that is enough.
    let third = put(&store, 3, MIB + MIB / 2).await;
    assert_eq!(store.touch(&[old]), [false]);
    let bytes = blob(4, MIB);
    let error = store.upload(&digest(&bytes)).await.err().unwrap();
    let WriteError::Full { retry_after, .. } = error else { panic!("{error}") };
    assert_eq!(retry_after, Duration::from_secs(3000));
    assert!(store.contains(&kept) && store.contains(&third));
    bench.clock.advance(3001);
    store.put(&digest(&bytes), bytes).await.unwrap();
    assert!(!store.contains(&kept));
}

#[tokio::test]
async fn a_damaged_blob_costs_exactly_itself() {
    let bench = Bench::new(64 << 20);
    let store = bench.open().await;
    let (whole, damaged) = (put(&store, 1, 3 * MIB).await, put(&store, 2, 3 * MIB).await);
    settle(&store).await;
    let name = damaged.hash_hex();
    let path = bench.files().into_iter().find(|path| path.to_str().unwrap().contains(&name)).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[2 * MIB + 5] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let mut reader = store.read(&damaged, 0, None).await.unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap().len(), MIB);
    assert_eq!(reader.next().await.unwrap().unwrap().len(), MIB);
    let error = reader.next().await.unwrap_err();
    assert!(matches!(error, ReadError::Damaged { .. }), "{error}");
    assert!(!store.contains(&damaged));
    assert!(matches!(store.get(&damaged, u64::MAX).await, Err(ReadError::Lost { .. })));
    assert_eq!(store.get(&whole, u64::MAX).await.unwrap(), blob(1, 3 * MIB));
    assert_eq!(store.status().damaged_blobs, 1);
    // It can be stored again, and the rest of the old copy does not get in the way.
    put(&store, 2, 3 * MIB).await;
    settle(&store).await;
    assert_eq!(store.get(&damaged, u64::MAX).await.unwrap(), blob(2, 3 * MIB));
    assert_eq!(bench.files().len(), 2);
}

#[tokio::test]
async fn no_flipped_or_missing_byte_of_a_blob_is_ever_returned() {
    let bench = Bench { threads: false, ..Bench::new(64 << 20) };
    let length = 200_000;
    let name = put(&bench.open().await, 1, length).await;
    let path = bench.files().remove(0);
    let good = std::fs::read(&path).unwrap();
    for at in (0..good.len()).step_by(997).chain(length - 1..good.len()) {
        for truncate in [false, true] {
            let store = bench.open().await;
            let mut bad = good.clone();
            if truncate {
                bad.truncate(at)
            } else {
                bad[at] ^= 0x10
            }
            std::fs::write(&path, bad).unwrap();
            let padding = !truncate && (length..length.next_multiple_of(8)).contains(&at);
            match store.get(&name, u64::MAX).await {
                Ok(bytes) => assert!(padding && bytes == blob(1, length), "byte {at}"),
                Err(error) => assert!(matches!(error, ReadError::Damaged { .. }), "byte {at}: {error}"),
            }
            drop(store);
            // Without the index, what the files say counts.
            std::fs::write(&path, &good).unwrap();
            std::fs::remove_dir_all(bench.options.dir.join("index")).unwrap();
        }
    }
    assert_eq!(bench.open().await.get(&name, u64::MAX).await.unwrap(), blob(1, length));
}

#[tokio::test]
async fn a_closed_store_takes_no_writes_and_still_reads() {
    let bench = Bench::new(1 << 20);
    let store = bench.open().await;
    let name = put(&store, 1, 1000).await;
    let bytes = blob(2, 300_000);
    let mut upload = store.upload(&digest(&bytes)).await.unwrap();
    upload.write(bytes).await.unwrap();
    store.close().await;
    assert!(matches!(upload.commit().await, Err(WriteError::Closed { .. })));
    let bytes = blob(3, 10);
    assert!(matches!(store.put(&digest(&bytes), bytes).await, Err(WriteError::Closed { .. })));
    assert_eq!(store.get(&name, u64::MAX).await.unwrap(), blob(1, 1000));
}

#[tokio::test]
async fn a_directory_of_another_format_is_not_opened() {
    let bench = Bench::new(1 << 20);
    drop(bench.open().await);
    std::fs::write(bench.options.dir.join("format"), "casbah store 99\n").unwrap();
    let error = super::Store::open(bench.options.clone()).await.err().unwrap();
    assert!(matches!(error, OpenError::Format { .. }), "{error}");
}
