//! What is in use stays on every node (G4), and what was promised and is not there is noticed.

use std::time::{Duration, SystemTime};

use casbah_cluster::digest::Digest;
use casbah_cluster::membership::NodeId;

use crate::observe::counters::COUNTERS;
use crate::replicate::restore_all;
use crate::route::testing::Behaviour::{Away, Dead, Well};
use crate::route::testing::TestCluster;
use crate::store::testing::Bench;

const SECONDS: u32 = 1000;

/// When a node has used its only blob.
fn used(cluster: &TestCluster, node: NodeId) -> SystemTime {
    cluster.node(node).store.status().oldest_use.unwrap()
}

fn advance(cluster: &TestCluster) {
    cluster.nodes.iter().for_each(|node| node.bench.clock.advance(SECONDS));
}

async fn put(cluster: &TestCluster) -> Digest {
    let (digest, bytes) = TestCluster::blob(1, 1000);
    cluster.nodes[0].upload(&digest, &bytes, 1000).await.unwrap();
    cluster.settle().await;
    digest
}

/// Tells what waits, as the program does now and then.
async fn told(cluster: &TestCluster, through: NodeId) {
    let keeps_telling = tokio::time::timeout(Duration::from_secs(3), cluster.node(through).nodes.keep_telling());
    drop(keeps_telling.await);
}

#[tokio::test]
async fn an_owner_that_is_away_hears_of_a_use_when_it_is_back() {
    let cluster = TestCluster::new(5, 3, 2).await;
    let digest = put(&cluster).await;
    let stranger = cluster.stranger(&digest);
    let owner = cluster.owners(&digest).into_iter().find(|owner| *owner != NodeId(1)).unwrap();
    for behaviour in [Away, Dead] {
        let before = used(&cluster, owner);
        advance(&cluster);
        cluster.set(owner, behaviour);
        assert_eq!(cluster.node(stranger).blobs.find(&[digest]).await, [true]);
        cluster.settle().await;
        assert_eq!(used(&cluster, owner), before, "{behaviour:?}");
        cluster.set(owner, Well);
        told(&cluster, stranger).await;
        assert_eq!(used(&cluster, owner), before + Duration::from_secs(SECONDS.into()), "{behaviour:?}");
    }
}

#[tokio::test]
async fn a_copy_on_a_node_that_stands_in_is_used_with_the_others() {
    let cluster = TestCluster::new(5, 2, 2).await;
    let (digest, _) = TestCluster::blob(1, 1000);
    // Not the one that it is uploaded through, which has it in any case.
    let owner = cluster.owners(&digest).into_iter().find(|owner| *owner != NodeId(1)).unwrap();
    cluster.set(owner, Away);
    put(&cluster).await;
    let stands_in = cluster.holders(&digest).into_iter().find(|node| !cluster.owners(&digest).contains(node)).unwrap();
    // The owner is back and lacks it; the copy is needed as long as it does.
    cluster.set(owner, Well);
    let asked = (1..).map(NodeId).find(|node| !cluster.holders(&digest).contains(node)).unwrap();
    let before = used(&cluster, stands_in);
    advance(&cluster);
    assert_eq!(cluster.node(asked).blobs.find(&[digest]).await, [true]);
    cluster.settle().await;
    assert_eq!(used(&cluster, stands_in), before + Duration::from_secs(SECONDS.into()));
}

#[tokio::test]
async fn a_blob_that_was_promised_and_is_lost_everywhere_is_counted_once() {
    let bench = || {
        let mut bench = Bench::new(64 << 20);
        bench.options.retention_floor = Duration::from_secs(3600);
        bench
    };
    let cluster = TestCluster::of((0..3).map(|_| bench()).collect(), 2, 2).await;
    let (digest, bytes) = TestCluster::blob(1, 500_000);
    cluster.nodes[0].upload(&digest, &bytes, 100_000).await.unwrap();
    cluster.settle().await;
    let stranger = cluster.node(cluster.stranger(&digest));
    assert_eq!(stranger.blobs.find(&[digest]).await, [true]);
    for node in &cluster.nodes {
        node.bench.files().iter().for_each(|file| std::fs::remove_file(file).unwrap());
    }
    // No other test has a floor here.
    let before = COUNTERS.broken_promises.get();
    // Either owner finds that its copy is gone, and may not say that there is none before it has heard of the other one.
    assert!(!stranger.blobs.get(&digest, u64::MAX).await.unwrap_err().is_miss());
    for owner in cluster.owners(&digest) {
        assert!(restore_all(&cluster.node(owner).nodes).await);
    }
    assert!(stranger.blobs.get(&digest, u64::MAX).await.unwrap_err().is_miss());
    assert_eq!(COUNTERS.broken_promises.get(), before + 1);
    assert_eq!(stranger.blobs.find(&[digest]).await, [false]);
    assert_eq!(COUNTERS.broken_promises.get(), before + 1);
}
