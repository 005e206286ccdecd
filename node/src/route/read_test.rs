//! Reads in a cluster of which some nodes fail.

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_cluster::membership::NodeId;
use futures_util::future::join_all;

use crate::config::Compression;
use crate::forward::Form;
use crate::route::testing::Behaviour::{Away, BreaksAfter, Dead, Silent, Well};
use crate::route::testing::TestCluster;
use crate::route::{Pieces, ReadError};
use crate::store::testing::{Bench, digest, text};

const MIB: usize = 1 << 20;
const LONG: usize = 5 * MIB + 17;
const SIZES: [usize; 4] = [0, 1000, 300_000, LONG];

async fn put(cluster: &TestCluster, digest: &Digest, bytes: &Bytes) {
    cluster.nodes[0].upload(digest, bytes, MIB).await.unwrap();
    cluster.settle().await;
}

fn is_unavailable<T: std::fmt::Debug>(outcome: &Result<T, ReadError>) -> bool {
    matches!(outcome, Err(ReadError::Unavailable { .. }))
}

fn is_miss<T: std::fmt::Debug>(outcome: &Result<T, ReadError>) -> bool {
    matches!(outcome, Err(error) if error.is_miss())
}

#[tokio::test]
async fn a_blob_is_found_and_read_through_every_node() {
    let cluster = TestCluster::new(5, 2, 2).await;
    for (seed, size) in (0..).zip(SIZES) {
        let (digest, bytes) = TestCluster::blob(seed, size);
        put(&cluster, &digest, &bytes).await;
        for node in &cluster.nodes {
            assert_eq!(node.blobs.find(&[digest]).await, [true]);
            assert_eq!(node.blobs.absent(&[digest]).await.unwrap(), []);
            assert_eq!(node.blobs.get(&digest, u64::MAX).await.unwrap(), bytes);
            assert_eq!(node.read(&digest, 0, None).await.unwrap(), bytes);
            let whole = node.blobs.get_many(&[digest], u64::MAX, false).await.remove(0).unwrap();
            assert_eq!(whole, (bytes.clone(), Form::Identity));
        }
    }
}

#[tokio::test]
async fn ranges_are_exact_wherever_the_blob_lies() {
    let cluster = TestCluster::new(4, 2, 2).await;
    let (digest, bytes) = TestCluster::blob(1, LONG);
    put(&cluster, &digest, &bytes).await;
    let ranges = [(0, 1), (1, 70_000), (MIB, MIB), (LONG - 1, 1), (LONG, 0), (3 * MIB + 1, LONG)];
    for node in &cluster.nodes {
        for (offset, length) in ranges {
            let read = node.read(&digest, offset as u64, Some(length as u64)).await.unwrap();
            assert_eq!(read, bytes.slice(offset..(offset + length).min(LONG)), "{offset}, {length}");
        }
        assert!(node.read(&digest, LONG as u64 + 1, None).await.is_err());
    }
}

#[tokio::test]
async fn a_read_survives_the_loss_of_one_owner() {
    for behaviour in [Away, Dead, Silent, BreaksAfter(0), BreaksAfter(1_500_000)] {
        for (seed, size) in (0..).zip(SIZES) {
            for lost in 0..2 {
                let cluster = TestCluster::new(4, 2, 2).await;
                let (digest, bytes) = TestCluster::blob(seed, size);
                put(&cluster, &digest, &bytes).await;
                cluster.set(cluster.owners(&digest)[lost], behaviour);
                let node = cluster.node(cluster.stranger(&digest));
                assert_eq!(node.read(&digest, 0, None).await.unwrap(), bytes, "{behaviour:?}, {size}");
                assert_eq!(node.blobs.get(&digest, u64::MAX).await.unwrap(), bytes);
                assert_eq!(node.blobs.absent(&[digest]).await.unwrap(), []);
                assert_eq!(node.blobs.find(&[digest]).await, [true]);
            }
        }
    }
}

#[tokio::test]
async fn a_read_that_every_owner_breaks_off_is_no_short_blob() {
    let cluster = TestCluster::new(4, 2, 2).await;
    let (digest, bytes) = TestCluster::blob(1, LONG);
    put(&cluster, &digest, &bytes).await;
    cluster.owners(&digest).into_iter().for_each(|owner| cluster.set(owner, BreaksAfter(1_500_000)));
    let node = cluster.node(cluster.stranger(&digest));
    let mut reader = node.blobs.read(&digest, 0, None).await.unwrap();
    let mut read = Vec::new();
    let error = loop {
        match reader.next().await {
            Ok(piece) => read.extend_from_slice(&piece.expect("it does not end before it breaks off")),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ReadError::Unavailable { .. }), "{error:?}");
    assert_eq!(read, bytes.slice(..3_000_000));
}

#[tokio::test]
async fn what_is_nowhere_is_missing_for_a_fact() {
    let cluster = TestCluster::new(4, 2, 2).await;
    for size in [1000, LONG] {
        let (digest, _) = TestCluster::blob(1, size);
        for node in &cluster.nodes {
            assert_eq!(node.blobs.find(&[digest]).await, [false]);
            assert_eq!(node.blobs.absent(&[digest]).await.unwrap(), [digest]);
            assert!(is_miss(&node.blobs.get(&digest, u64::MAX).await));
            assert!(is_miss(&node.read(&digest, 0, None).await));
            assert!(is_miss(&node.blobs.get_many(&[digest], u64::MAX, true).await.remove(0)));
        }
    }
}

#[tokio::test]
async fn nothing_is_missing_while_as_many_nodes_say_nothing_as_may_have_it() {
    for behaviour in [Away, Dead, Silent] {
        let cluster = TestCluster::new(5, 2, 2).await;
        for size in [1000, LONG] {
            let (digest, _) = TestCluster::blob(1, size);
            let owners = cluster.owners(&digest);
            let node = cluster.node(cluster.stranger(&digest));
            // One of them cannot have it alone: that would not have been acknowledged.
            cluster.set(owners[0], behaviour);
            assert!(is_miss(&node.blobs.get(&digest, u64::MAX).await));
            assert_eq!(node.blobs.absent(&[digest]).await.unwrap(), [digest]);
            cluster.set(owners[1], behaviour);
            assert!(is_unavailable(&node.blobs.get(&digest, u64::MAX).await), "{behaviour:?}");
            assert!(is_unavailable(&node.read(&digest, 0, None).await));
            assert!(is_unavailable(&node.blobs.get_many(&[digest], u64::MAX, false).await.remove(0)));
            assert!(is_unavailable(&node.blobs.absent(&[digest]).await));
            // Which costs an upload and no build.
            assert_eq!(node.blobs.find(&[digest]).await, [false]);
            cluster.set(owners[0], Well);
            cluster.set(owners[1], Well);
        }
    }
}

#[tokio::test]
async fn a_copy_that_stands_in_for_one_of_an_owner_is_found() {
    for size in [1000, LONG] {
        let cluster = TestCluster::new(5, 2, 2).await;
        let (digest, bytes) = TestCluster::blob(1, size);
        let owners = cluster.owners(&digest);
        cluster.set(owners[0], Away);
        cluster.node(owners[1]).upload(&digest, &bytes, MIB).await.unwrap();
        cluster.set(owners[0], Well);
        cluster.set(owners[1], Dead);
        for node in &cluster.nodes {
            assert_eq!(node.blobs.absent(&[digest]).await.unwrap(), []);
            assert_eq!(node.blobs.find(&[digest]).await, [true]);
            assert_eq!(node.read(&digest, 0, None).await.unwrap(), bytes);
        }
    }
}

#[tokio::test]
async fn a_damaged_copy_is_answered_from_another_one_and_made_anew() {
    let cluster = TestCluster::new(3, 2, 2).await;
    for (seed, whole) in [(1, true), (2, false)] {
        let (digest, bytes) = TestCluster::blob(seed, LONG);
        put(&cluster, &digest, &bytes).await;
        let owner = cluster.node(cluster.owners(&digest)[0]);
        for path in owner.bench.files() {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.write_all_at(&[bytes[3 * MIB] ^ 1], 3 * MIB as u64).unwrap();
        }
        let read = match whole {
            true => owner.blobs.get(&digest, u64::MAX).await.unwrap().to_vec(),
            false => owner.read(&digest, 0, None).await.unwrap(),
        };
        assert!(read == bytes, "a byte is wrong");
        assert_eq!(owner.store.status().damaged_blobs, seed);
        cluster.settle().await;
        assert!(owner.store.get(&digest, u64::MAX).await.unwrap() == bytes, "the copy is there again");
    }
}

#[tokio::test]
async fn a_damaged_copy_that_was_the_only_one_is_a_miss() {
    let cluster = TestCluster::new(3, 2, 2).await;
    let (digest, bytes) = TestCluster::blob(1, LONG);
    let owner = cluster.node(cluster.owners(&digest)[0]);
    owner.store.put(&digest, bytes.clone()).await.unwrap();
    for path in owner.bench.files() {
        std::fs::File::options().write(true).open(path).unwrap().write_all_at(&[bytes[9] ^ 1], 9).unwrap();
    }
    assert!(is_miss(&owner.read(&digest, 0, None).await));
}

#[tokio::test]
async fn an_owner_that_lacks_a_blob_gets_it_when_it_is_read_there() {
    let cluster = TestCluster::new(3, 2, 2).await;
    for size in [1000, LONG] {
        let (digest, bytes) = TestCluster::blob(1, size);
        let owners = cluster.owners(&digest);
        cluster.node(owners[1]).store.put(&digest, bytes.clone()).await.unwrap();
        assert_eq!(cluster.node(owners[0]).read(&digest, 0, None).await.unwrap(), bytes);
        cluster.settle().await;
        assert!(cluster.node(owners[0]).store.contains(&digest));
        // A stranger keeps none.
        let stranger = cluster.stranger(&digest);
        assert_eq!(cluster.node(stranger).read(&digest, 0, None).await.unwrap(), bytes);
        cluster.settle().await;
        assert!(!cluster.node(stranger).store.contains(&digest));
    }
}

#[tokio::test]
async fn each_owner_is_asked_once_for_all_that_it_owns() {
    let cluster = TestCluster::new(4, 2, 2).await;
    let blobs: Vec<_> = (0..300).map(|seed| TestCluster::blob(seed, 500)).collect();
    let digests: Vec<Digest> = blobs.iter().map(|(digest, _)| *digest).collect();
    for outcome in cluster.nodes[0].blobs.put_many(blobs[..200].to_vec()).await {
        outcome.unwrap();
    }
    let calls = || (1..=4).map(|node| cluster.calls(NodeId(node))).collect::<Vec<_>>();
    let before = calls();
    let found = cluster.nodes[0].blobs.find(&digests).await;
    assert!(found.iter().enumerate().all(|(position, found)| *found == (position < 200)));
    let asked: Vec<_> = calls().iter().zip(&before).map(|(after, before)| after - before).collect();
    assert_eq!(asked, [0, 1, 1, 1]);
    let before = calls();
    let read = cluster.nodes[0].blobs.get_many(&digests[..200], 4 << 20, false).await;
    for (outcome, (_, bytes)) in read.into_iter().zip(&blobs) {
        assert_eq!(outcome.unwrap().0, bytes);
    }
    let asked: usize = calls().iter().zip(&before).map(|(after, before)| after - before).sum();
    assert!(asked <= 3, "{asked} calls");
}

#[tokio::test]
async fn a_batch_tells_what_is_there_from_what_is_missing_and_what_is_too_large() {
    let cluster = TestCluster::new(4, 2, 2).await;
    let (small, small_bytes) = TestCluster::blob(1, 1000);
    let (large, large_bytes) = TestCluster::blob(2, LONG);
    let (missing, _) = TestCluster::blob(3, 1000);
    put(&cluster, &small, &small_bytes).await;
    put(&cluster, &large, &large_bytes).await;
    for node in &cluster.nodes {
        let read = node.blobs.get_many(&[large, missing, small, small], 4 << 20, false).await;
        let [too_large, missed, one, two] = read.try_into().unwrap();
        assert!(too_large.unwrap_err().is_too_large());
        assert!(is_miss(&missed));
        assert_eq!([one.unwrap().0, two.unwrap().0], [small_bytes.clone(), small_bytes.clone()]);
        let [whole] = node.blobs.get_many(&[large], 32 << 20, false).await.try_into().unwrap();
        assert_eq!(whole.unwrap().0, large_bytes);
    }
}

#[tokio::test]
async fn a_small_blob_that_many_read_at_once_is_fetched_once() {
    let cluster = TestCluster::new(4, 2, 2).await;
    let (digest, bytes) = TestCluster::blob(1, 1000);
    put(&cluster, &digest, &bytes).await;
    let calls = || cluster.owners(&digest).into_iter().map(|owner| cluster.calls(owner)).sum::<usize>();
    let before = calls();
    let node = cluster.node(cluster.stranger(&digest));
    for read in join_all((0..20).map(|_| node.read(&digest, 0, None))).await {
        assert_eq!(read.unwrap(), bytes);
    }
    assert_eq!(calls() - before, 1);
}

#[tokio::test]
async fn who_waits_for_a_read_that_is_given_up_reads_for_himself() {
    let cluster = TestCluster::new(4, 2, 2).await;
    let (digest, bytes) = TestCluster::blob(1, 1000);
    put(&cluster, &digest, &bytes).await;
    let node = cluster.node(cluster.stranger(&digest));
    let mut first = Box::pin(node.read(&digest, 0, None));
    assert!(futures_util::poll!(first.as_mut()).is_pending());
    let mut second = Box::pin(node.read(&digest, 0, None));
    assert!(futures_util::poll!(second.as_mut()).is_pending());
    drop(first);
    assert_eq!(second.await.unwrap(), bytes);
}

#[tokio::test]
async fn what_is_stored_compressed_comes_so_from_other_nodes_too() {
    let bench = || {
        let mut bench = Bench::new(64 << 20);
        bench.options.compression = Compression::Zstd;
        bench
    };
    let cluster = TestCluster::of((0..4).map(|_| bench()).collect(), 2, 2).await;
    for size in [10_000, LONG] {
        let bytes = text(1, size);
        let digest = digest(&bytes);
        put(&cluster, &digest, &bytes).await;
        for node in &cluster.nodes {
            let mut pieces = node.blobs.read_as_stored(&digest).await.unwrap();
            assert!(matches!(pieces, Pieces::Frames(_)));
            let mut frames = Vec::new();
            while let Some(piece) = pieces.next().await.unwrap() {
                frames.extend_from_slice(&piece);
            }
            assert!(frames.len() < size && zstd::decode_all(&frames[..]).unwrap() == bytes);
            let (_, form) = node.blobs.get_many(&[digest], 32 << 20, true).await.remove(0).unwrap();
            assert!(form == Form::Zstd || size == LONG);
        }
        cluster.set(cluster.owners(&digest)[0], Dead);
        let node = cluster.node(cluster.stranger(&digest));
        assert!(matches!(node.blobs.read_as_stored(&digest).await.unwrap(), Pieces::Frames(_)));
        cluster.set(cluster.owners(&digest)[0], Well);
    }
}

#[tokio::test]
async fn frames_that_break_off_are_an_error_and_no_short_blob() {
    let bench = || {
        let mut bench = Bench::new(64 << 20);
        bench.options.compression = Compression::Zstd;
        bench
    };
    let cluster = TestCluster::of((0..4).map(|_| bench()).collect(), 2, 2).await;
    let bytes = text(1, LONG);
    let digest = digest(&bytes);
    put(&cluster, &digest, &bytes).await;
    cluster.owners(&digest).into_iter().for_each(|owner| cluster.set(owner, BreaksAfter(700_000)));
    let mut pieces = cluster.node(cluster.stranger(&digest)).blobs.read_as_stored(&digest).await.unwrap();
    let outcome = loop {
        match pieces.next().await {
            Ok(Some(_)) => {}
            outcome => break outcome,
        }
    };
    assert!(is_unavailable(&outcome), "{outcome:?}");
}

#[tokio::test]
async fn looking_for_a_blob_and_reading_it_are_uses_of_every_copy() {
    let cluster = TestCluster::new(4, 2, 2).await;
    let (digest, bytes) = TestCluster::blob(1, 1000);
    put(&cluster, &digest, &bytes).await;
    let used = || {
        let owners = cluster.owners(&digest).into_iter();
        owners.map(|owner| cluster.node(owner).store.status().oldest_use.unwrap()).collect::<Vec<_>>()
    };
    let advance = || cluster.nodes.iter().for_each(|node| node.bench.clock.advance(1000));
    for through in [cluster.stranger(&digest), cluster.owners(&digest)[0]] {
        let node = cluster.node(through);
        let before = used();
        advance();
        assert_eq!(node.blobs.find(&[digest]).await, [true]);
        let found = used();
        assert!(found.iter().zip(&before).all(|(found, before)| *found == *before + Duration::from_secs(1000)));
        advance();
        assert_eq!(node.read(&digest, 0, None).await.unwrap(), bytes);
        // The others are told in a while.
        cluster.settle().await;
        assert!(used().iter().zip(&found).all(|(read, found)| *read == *found + Duration::from_secs(1000)));
    }
}
