//! Writes in a cluster of which some nodes fail.

use std::time::{Duration, Instant};

use bytes::Bytes;
use casbah_cluster::membership::NodeId;

use crate::forward::PeerError;
use crate::route::testing::Behaviour::{Away, BreaksAfter, Dead, FailsAtCommit, Full, Silent, Stalled, Well};
use crate::route::testing::{Behaviour, TestCluster};
use crate::route::{CopyError, WriteError};
use crate::store::testing::settle;
use crate::store::{self, Mismatch};

const MIB: usize = 1 << 20;
const LONG: usize = 5 * MIB + 17;

/// Sizes that take another way each: in one message, in one piece, in several.
const SIZES: [usize; 3] = [1000, 300_000, LONG];

/// Uploads through a node while others behave like this; as many nodes have the blob then as make it acknowledged.
async fn is_acknowledged_although(cluster: &TestCluster, through: Through, size: usize, wrong: &[(usize, Behaviour)]) {
    let (digest, bytes) = cluster.blob_of(NodeId(1), size);
    let owners = cluster.owners(&digest);
    let through = match through {
        Through::AnOwner => owners[0],
        Through::AStranger => cluster.stranger(&digest),
    };
    for (owner, behaviour) in wrong {
        cluster.set(owners[*owner], *behaviour);
    }
    cluster.node(through).upload(&digest, &bytes, 70_000).await.unwrap();
    let holders = cluster.holders(&digest);
    assert!(holders.len() >= 2, "{size} bytes, {wrong:?}: on {holders:?}");
    assert!(holders.iter().any(|holder| owners.contains(holder)));
    for holder in holders {
        assert_eq!(cluster.node(holder).store.get(&digest, u64::MAX).await.unwrap(), bytes);
    }
}

#[derive(Clone, Copy)]
enum Through {
    AnOwner,
    AStranger,
}

const EVERYWHERE: [Through; 2] = [Through::AnOwner, Through::AStranger];

#[tokio::test]
async fn an_upload_lies_on_its_owners_and_on_no_other_node() {
    let cluster = TestCluster::new(5, 3, 2).await;
    for (seed, size) in (0..).zip(SIZES) {
        for through in 1..=5 {
            let (digest, bytes) = TestCluster::blob(100 * seed + through, size);
            cluster.node(NodeId(through)).upload(&digest, &bytes, 64_000).await.unwrap();
            cluster.settle().await;
            let (mut holders, mut owners) = (cluster.holders(&digest), cluster.owners(&digest));
            holders.sort();
            owners.sort();
            assert_eq!(holders, owners, "{size} bytes through {through}");
        }
    }
}

#[tokio::test]
async fn an_upload_survives_the_loss_of_one_owner_at_any_time() {
    for behaviour in [Away, Dead, Silent, BreaksAfter(0), BreaksAfter(2_000_000), FailsAtCommit, Full] {
        for (through, size) in EVERYWHERE.into_iter().flat_map(|through| SIZES.map(|size| (through, size))) {
            let cluster = TestCluster::new(4, 2, 2).await;
            is_acknowledged_although(&cluster, through, size, &[(1, behaviour)]).await;
        }
    }
}

#[tokio::test]
async fn an_upload_survives_the_loss_of_two_of_three_owners() {
    for behaviour in [Away, Dead, BreaksAfter(2_000_000), FailsAtCommit] {
        for size in SIZES {
            let cluster = TestCluster::new(6, 3, 2).await;
            is_acknowledged_although(&cluster, Through::AStranger, size, &[(0, behaviour), (2, behaviour)]).await;
        }
    }
}

#[tokio::test]
async fn an_owner_that_takes_no_bytes_is_cut_loose() {
    let cluster = TestCluster::new(5, 3, 2).await;
    let started = Instant::now();
    is_acknowledged_although(&cluster, Through::AStranger, 3 * LONG, &[(1, Stalled)]).await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn an_owner_that_never_says_that_it_has_the_blob_is_replaced() {
    // Both are needed, and the blob is short enough that all of it is on its way before anybody has to wait.
    for size in [1000, 300_000] {
        let cluster = TestCluster::new(4, 2, 2).await;
        is_acknowledged_although(&cluster, Through::AStranger, size, &[(1, Stalled)]).await;
    }
}

#[tokio::test]
async fn without_any_owner_nothing_is_acknowledged() {
    for behaviour in [Away, Dead, FailsAtCommit] {
        for size in SIZES {
            let cluster = TestCluster::new(5, 2, 2).await;
            let (digest, bytes) = cluster.blob_of(NodeId(1), size);
            cluster.owners(&digest).into_iter().for_each(|owner| cluster.set(owner, behaviour));
            let through = cluster.node(cluster.stranger(&digest));
            let error = through.upload(&digest, &bytes, MIB).await.unwrap_err();
            assert!(matches!(error, WriteError::TooFew { .. }), "{behaviour:?}: {error:?}");
            let error = through.blobs.put_many(vec![(digest, bytes)]).await.remove(0).unwrap_err();
            assert!(matches!(error, WriteError::TooFew { .. }), "{behaviour:?}: {error:?}");
        }
    }
}

#[tokio::test]
async fn when_nobody_has_room_the_client_is_told_when_to_come_back() {
    let cluster = TestCluster::new(4, 2, 2).await;
    let (digest, bytes) = cluster.blob_of(NodeId(1), 1000);
    (1..=4).for_each(|node| cluster.set(NodeId(node), Full));
    let through = cluster.node(cluster.stranger(&digest));
    let put = through.blobs.put_many(vec![(digest, bytes.clone())]).await.remove(0);
    for outcome in [put, through.upload(&digest, &bytes, MIB).await] {
        let Err(WriteError::TooFew { source, .. }) = outcome else { panic!("{outcome:?}") };
        let CopyError::There { source, .. } = *source else { panic!("{source:?}") };
        assert!(matches!(*source, PeerError::Full { retry_after, .. } if retry_after == Duration::from_secs(7)));
    }
}

#[tokio::test]
async fn bytes_of_another_digest_are_kept_nowhere() {
    let cluster = TestCluster::new(4, 3, 2).await;
    for (seed, size) in (1..).zip(SIZES) {
        let (digest, bytes) = TestCluster::blob(seed, size);
        let other = TestCluster::blob(99 + seed, size).1;
        for through in &cluster.nodes {
            let outcome = through.upload(&digest, &other, MIB).await;
            assert!(is_mismatch(&outcome, |mismatch| matches!(mismatch, Mismatch::Hash { .. })), "{outcome:?}");
            let long = Bytes::from([&bytes[..], b"x"].concat());
            let outcome = through.upload(&digest, &long, MIB).await;
            assert!(is_mismatch(&outcome, |mismatch| matches!(mismatch, Mismatch::TooLong { .. })), "{outcome:?}");
            let outcome = through.upload(&digest, &bytes.slice(1..), MIB).await;
            assert!(is_mismatch(&outcome, |mismatch| matches!(mismatch, Mismatch::TooShort { .. })), "{outcome:?}");
            let wrong = [other.clone(), long, bytes.slice(1..)].map(|bytes| (digest, bytes));
            for outcome in through.blobs.put_many(wrong.to_vec()).await {
                assert!(is_mismatch(&outcome, |_| true), "{outcome:?}");
            }
        }
        cluster.settle().await;
        assert_eq!(cluster.holders(&digest), []);
    }
    for node in &cluster.nodes {
        settle(&node.store).await;
        assert_eq!(node.store.status().reserved_bytes, 0);
    }
}

fn is_mismatch(outcome: &Result<(), WriteError>, is_meant: impl Fn(&Mismatch) -> bool) -> bool {
    matches!(outcome, Err(WriteError::Here(store::WriteError::Mismatch { mismatch, .. })) if is_meant(mismatch))
}

#[tokio::test]
async fn an_upload_whose_client_goes_away_is_kept_nowhere() {
    let cluster = TestCluster::new(4, 3, 2).await;
    let (digest, bytes) = TestCluster::blob(1, LONG);
    let mut upload = cluster.nodes[0].blobs.upload(&digest).await.unwrap();
    upload.write(bytes.clone()).await.unwrap();
    assert_eq!(upload.written_bytes(), LONG as u64);
    drop(upload);
    cluster.settle().await;
    assert_eq!(cluster.holders(&digest), []);
    for node in &cluster.nodes {
        settle(&node.store).await;
        assert_eq!(node.store.status().reserved_bytes, 0);
    }
}

#[tokio::test]
async fn an_upload_that_was_cut_off_goes_on_although_a_node_has_died_meanwhile() {
    let cluster = TestCluster::new(5, 3, 2).await;
    let (digest, bytes) = TestCluster::blob(1, LONG);
    let owners = cluster.owners(&digest);
    let mut upload = cluster.node(cluster.stranger(&digest)).blobs.upload(&digest).await.unwrap();
    upload.write(bytes.slice(..3 * MIB)).await.unwrap();
    cluster.set(owners[0], Dead);
    cluster.set(owners[1], Dead);
    upload.write(bytes.slice(3 * MIB..)).await.unwrap();
    assert!(upload.is_alive());
    upload.commit().await.unwrap();
    let holders = cluster.holders(&digest);
    assert!(holders.contains(&owners[2]) && holders.len() >= 2, "{holders:?}");
}

#[tokio::test]
async fn an_upload_all_of_whose_streams_have_ended_is_not_gone_on_with() {
    let cluster = TestCluster::new(5, 2, 2).await;
    let (digest, bytes) = TestCluster::blob(1, LONG);
    let through = cluster.node(cluster.stranger(&digest));
    let mut upload = through.blobs.upload(&digest).await.unwrap();
    assert!(upload.is_alive());
    cluster.owners(&digest).into_iter().for_each(|owner| cluster.set(owner, Dead));
    upload.write(bytes.slice(..MIB)).await.unwrap();
    through.nodes.finish(Duration::from_secs(10)).await;
    assert!(!upload.is_alive());
    upload.write(bytes.slice(MIB..)).await.unwrap_err();
}

#[tokio::test]
async fn a_client_is_held_up_sooner_than_its_bytes_are_held() {
    let cluster = TestCluster::new(4, 2, 2).await;
    let (digest, bytes) = TestCluster::blob(1, 40 * MIB);
    cluster.owners(&digest).into_iter().for_each(|owner| cluster.set(owner, Stalled));
    let mut upload = cluster.node(cluster.stranger(&digest)).blobs.upload(&digest).await.unwrap();
    let mut taken = 0;
    while tokio::time::timeout(Duration::from_secs(2), upload.write(bytes.slice(taken..taken + MIB))).await.is_ok() {
        taken += MIB;
    }
    assert!(taken <= 8 * MIB, "{taken}");
}

#[tokio::test]
async fn of_two_uploads_of_one_blob_the_second_is_told_when_the_first_is_done() {
    let cluster = TestCluster::new(4, 2, 2).await;
    let (digest, bytes) = TestCluster::blob(1, LONG);
    let through = cluster.node(cluster.stranger(&digest));
    assert!(!through.blobs.is_held(&digest).await);
    let mut second = through.blobs.upload(&digest).await.unwrap();
    second.write(bytes.slice(..MIB)).await.unwrap();
    assert!(!second.is_overtaken());
    through.upload(&digest, &bytes, MIB).await.unwrap();
    assert!(second.is_overtaken());
    assert!(through.blobs.is_held(&digest).await);
    drop(second);
    // One that begins anew is not mistaken for it.
    assert!(!through.blobs.upload(&digest).await.unwrap().is_overtaken());
}

#[tokio::test]
async fn a_blob_that_too_few_nodes_have_is_not_held_and_can_be_uploaded_again() {
    let cluster = TestCluster::new(4, 2, 2).await;
    let (digest, bytes) = TestCluster::blob(1, 1000);
    let owners = cluster.owners(&digest);
    cluster.node(owners[0]).store.put(&digest, bytes.clone()).await.unwrap();
    let through = cluster.node(cluster.stranger(&digest));
    assert!(!through.blobs.is_held(&digest).await);
    assert_eq!(through.blobs.find(&[digest]).await, [true]);
    through.upload(&digest, &bytes, MIB).await.unwrap();
    assert!(through.blobs.is_held(&digest).await);
}

#[tokio::test]
async fn a_batch_is_one_call_to_each_node_and_each_blob_has_its_own_outcome() {
    let cluster = TestCluster::new(4, 2, 2).await;
    let mut blobs: Vec<_> = (0..300).map(|seed| TestCluster::blob(seed, 100 + seed as usize)).collect();
    blobs[7].1 = Bytes::from_static(b"something else");
    blobs.push(TestCluster::blob(7777, 0));
    blobs.push(blobs[0].clone());
    let outcomes = cluster.nodes[0].blobs.put_many(blobs.clone()).await;
    for (position, ((digest, _), outcome)) in blobs.iter().zip(outcomes).enumerate() {
        assert_eq!(outcome.is_err(), position == 7, "{position}");
        let expected = if position == 7 { 0 } else { 2 };
        assert!(digest.is_empty_blob() || cluster.holders(digest).len() == expected, "{position}");
    }
    assert_eq!((2..=4).map(|node| cluster.calls(NodeId(node))).collect::<Vec<_>>(), [1, 1, 1]);
}

#[tokio::test]
async fn a_batch_survives_the_loss_of_any_one_node() {
    for behaviour in [Away, Dead, Silent, FailsAtCommit, Full, Stalled] {
        let cluster = TestCluster::new(5, 2, 2).await;
        cluster.set(NodeId(3), behaviour);
        let blobs: Vec<_> = (0..50).map(|seed| TestCluster::blob(seed, 2000)).collect();
        for outcome in cluster.nodes[0].blobs.put_many(blobs.clone()).await {
            outcome.unwrap();
        }
        for (digest, _) in blobs {
            assert!(cluster.holders(&digest).len() >= 2, "{behaviour:?}");
        }
    }
}

#[tokio::test]
async fn a_blob_that_is_too_large_for_a_batch_between_nodes_is_put_all_the_same() {
    let cluster = TestCluster::new(3, 2, 2).await;
    let blobs = vec![TestCluster::blob(1, LONG), TestCluster::blob(2, 10)];
    for outcome in cluster.nodes[0].blobs.put_many(blobs.clone()).await {
        outcome.unwrap();
    }
    for (digest, bytes) in blobs {
        for holder in cluster.holders(&digest) {
            assert_eq!(cluster.node(holder).store.get(&digest, u64::MAX).await.unwrap(), bytes);
        }
        assert_eq!(cluster.holders(&digest).len(), 2);
    }
}

#[tokio::test]
async fn an_owner_that_was_not_waited_for_gets_its_copy_later() {
    let cluster = TestCluster::new(5, 3, 2).await;
    let (digest, bytes) = TestCluster::blob(1, LONG);
    let owners = cluster.owners(&digest);
    cluster.node(owners[0]).upload(&digest, &bytes, MIB).await.unwrap();
    cluster.settle().await;
    assert_eq!(cluster.holders(&digest).len(), 3);
    assert_eq!(cluster.node(owners[2]).read(&digest, 0, None).await.unwrap(), bytes);
    cluster.set(owners[0], Well);
}
