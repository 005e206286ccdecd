//! Copies that were damaged, in a cluster: what is said of their blobs, and how they come back.

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_cluster::membership::NodeId;

use crate::replicate::{restore, restore_all};
use crate::route::ReadError;
use crate::route::testing::{Behaviour, TestCluster};
use crate::store::ReadError as StoreError;

const LENGTH: usize = 300_000;

/// Three nodes and a blob: on which two, and which one has none.
struct Three {
    cluster: TestCluster,
    digest: Digest,
    bytes: Bytes,
    owners: [NodeId; 2],
    stranger: NodeId,
}

impl Three {
    async fn new() -> Three {
        let cluster = TestCluster::new(3, 2, 2).await;
        let (digest, bytes) = TestCluster::blob(1, LENGTH);
        let owners: [NodeId; 2] = cluster.owners(&digest).try_into().unwrap();
        let stranger = cluster.stranger(&digest);
        Three { cluster, digest, bytes, owners, stranger }
    }

    async fn put(&self, nodes: &[NodeId]) {
        for node in nodes {
            self.cluster.node(*node).store.put(&self.digest, self.bytes.clone()).await.unwrap();
        }
    }

    /// Flips a bit of a node's copy.
    fn flip(&self, node: NodeId) {
        let node = self.cluster.node(node);
        let path = node.bench.files().into_iter().find(|path| path.to_str().unwrap().contains(&self.digest.hash_hex()));
        let file = std::fs::File::options().write(true).open(path.unwrap()).unwrap();
        file.write_all_at(&[self.bytes[9] ^ 1], 9).unwrap();
    }

    /// And has the node find it.
    async fn lose(&self, node: NodeId) {
        self.flip(node);
        let node = self.cluster.node(node);
        let found = node.store.get(&self.digest, u64::MAX).await;
        assert!(matches!(found, Err(StoreError::Damaged { .. })));
        assert_eq!(node.store.lost(), [self.digest]);
    }

    async fn restore(&self, node: NodeId) -> bool {
        restore_all(&self.cluster.node(node).nodes).await
    }

    /// What each node says: the blob, a miss, or nothing.
    async fn outcomes(&self) -> Vec<&'static str> {
        let mut outcomes = Vec::new();
        for node in &self.cluster.nodes {
            let got = node.blobs.get(&self.digest, u64::MAX).await;
            let read = node.read(&self.digest, 0, None).await;
            let batch = node.blobs.get_many(&[self.digest], u64::MAX, false).await.remove(0);
            let outcome = |error: Option<&ReadError>| match error {
                None => "found",
                Some(error) if error.is_miss() => "missing",
                Some(ReadError::Unavailable { .. }) => "unavailable",
                Some(error) => panic!("{error}"),
            };
            let all = [outcome(got.as_ref().err()), outcome(read.as_ref().err()), outcome(batch.as_ref().err())];
            assert!(all.iter().all(|one| *one == all[0]), "{all:?}");
            assert!(got.is_err() || (got.unwrap() == self.bytes && read.unwrap() == self.bytes));
            let said = node.blobs.absent(&[self.digest]).await;
            match all[0] {
                "found" => assert_eq!(said.unwrap(), []),
                "missing" => assert_eq!(said.unwrap(), [self.digest]),
                _ => assert!(matches!(said, Err(ReadError::Unavailable { .. }))),
            }
            assert_eq!(node.blobs.find(&[self.digest]).await, [all[0] == "found"]);
            outcomes.push(all[0]);
        }
        outcomes
    }
}

#[tokio::test]
async fn what_an_owner_has_lost_is_no_miss_while_the_other_owner_says_nothing() {
    for behaviour in [Behaviour::Away, Behaviour::Dead, Behaviour::Silent] {
        let three = Three::new().await;
        three.put(&three.owners).await;
        three.lose(three.owners[0]).await;
        three.cluster.set(three.owners[1], behaviour);
        // The other one has its own copy.
        let outcomes = three.outcomes().await;
        let unavailable = outcomes.iter().filter(|outcome| **outcome == "unavailable").count();
        assert_eq!((unavailable, outcomes.contains(&"missing")), (2, false), "{behaviour:?}: {outcomes:?}");
        assert!(!three.restore(three.owners[0]).await);
        // Unless the other owner, who is there for itself, has found that a copy is missing and given it one.
        let store = &three.cluster.node(three.owners[0]).store;
        assert!(store.lost() == [three.digest] || store.contains(&three.digest));
        three.cluster.set(three.owners[1], Behaviour::Well);
        assert_eq!(three.outcomes().await, ["found"; 3]);
        three.cluster.settle().await;
    }
}

#[tokio::test]
async fn what_lies_on_an_owner_and_a_stand_in_is_found_when_the_owner_has_lost_it() {
    for at in [0, 1] {
        let three = Three::new().await;
        three.put(&[three.owners[at], three.stranger]).await;
        three.lose(three.owners[at]).await;
        assert_eq!(three.outcomes().await, ["found"; 3]);
        assert!(three.restore(three.owners[at]).await);
        three.cluster.settle().await;
        assert!(three.cluster.holders(&three.digest).contains(&three.owners[at]));
    }
}

#[tokio::test]
async fn a_lost_copy_comes_back_from_whoever_has_one() {
    for (holder, loser) in [(0, 1), (1, 0), (2, 0), (2, 1), (0, 2)] {
        let three = Three::new().await;
        let nodes = [three.owners[0], three.owners[1], three.stranger];
        three.put(&[nodes[holder], nodes[loser]]).await;
        three.lose(nodes[loser]).await;
        assert!(three.restore(nodes[loser]).await);
        let store = &three.cluster.node(nodes[loser]).store;
        assert!(store.lost().is_empty());
        assert!(store.get(&three.digest, u64::MAX).await.unwrap() == three.bytes);
        assert_eq!((store.status().repaired_blobs, store.status().given_up_blobs), (1, 0));
    }
}

#[tokio::test]
async fn what_nobody_has_any_more_is_missing_for_a_fact() {
    let three = Three::new().await;
    three.put(&three.owners).await;
    three.lose(three.owners[0]).await;
    three.lose(three.owners[1]).await;
    assert_eq!(three.outcomes().await, ["unavailable"; 3]);
    assert!(three.restore(three.owners[0]).await);
    assert!(three.restore(three.owners[1]).await);
    assert_eq!(three.outcomes().await, ["missing"; 3]);
    let given_up = three.owners.map(|owner| three.cluster.node(owner).store.status().given_up_blobs);
    assert_eq!(given_up, [1, 1]);
}

#[tokio::test]
async fn an_upload_heals_what_was_lost_everywhere() {
    let three = Three::new().await;
    three.put(&three.owners).await;
    three.lose(three.owners[0]).await;
    three.lose(three.owners[1]).await;
    three.cluster.node(three.stranger).upload(&three.digest, &three.bytes, 100_000).await.unwrap();
    three.cluster.settle().await;
    assert_eq!(three.outcomes().await, ["found"; 3]);
    assert!(three.owners.iter().all(|owner| three.cluster.node(*owner).store.lost().is_empty()));
}

#[tokio::test]
async fn a_node_alone_says_that_what_it_has_lost_is_missing() {
    let cluster = TestCluster::new(1, 1, 1).await;
    let (digest, bytes) = TestCluster::blob(1, LENGTH);
    let three = Three { cluster, digest, bytes, owners: [NodeId(1); 2], stranger: NodeId(1) };
    three.put(&[NodeId(1)]).await;
    three.lose(NodeId(1)).await;
    assert_eq!(three.outcomes().await, ["missing"]);
    assert!(!three.restore(NodeId(1)).await, "others may come that have it");
    assert_eq!(three.outcomes().await, ["missing"]);
}

#[tokio::test]
async fn what_is_found_damaged_later_comes_back_by_itself() {
    let three = Three::new().await;
    let task = tokio::spawn(restore(three.cluster.node(three.owners[0]).nodes.clone()));
    three.put(&three.owners).await;
    let store = three.cluster.node(three.owners[0]).store.clone();
    let mut losses = store.losses();
    three.flip(three.owners[0]);
    drop(store.get(&three.digest, u64::MAX).await);
    losses.wait_for(|losses| *losses > 0).await.unwrap();
    let is_back = async {
        while !store.contains(&three.digest) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), is_back).await.unwrap();
    task.abort();
}
