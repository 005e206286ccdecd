//! Nodes that work by different layouts: an old view acknowledges nothing that a newer one would not find, and says of nothing
//! that it is nowhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_cluster::membership::{ClusterState, NodeId};
use casbah_cluster::replication::Version;
use casbah_cluster::ring::partition_of;
use casbah_cluster::view::View;

use crate::route::testing::{Behaviour, TestCluster};
use crate::route::{ActionError, Actions, Blobs, ReadError};

/// Whose view is old.
const OLD: NodeId = NodeId(1);

/// Who has what by the old layout, and who by the new one.
const BEFORE: (u64, &[u64]) = (1, &[1, 2, 3]);
const AFTER: (u64, &[u64]) = (2, &[1, 4, 5]);

/// A cluster of five of two copies, in which all but one work by a newer layout. The blob belongs to other nodes by it.
struct Change {
    cluster: TestCluster,
    newer: ClusterState,
    digest: Digest,
    bytes: Bytes,
}

impl Change {
    async fn new(newer: &[(u64, &[u64])]) -> Change {
        let cluster = TestCluster::new(5, 2, 2).await;
        let older = cluster.with_layouts(&[BEFORE]);
        let newer = cluster.with_layouts(newer);
        for id in (1..=5).map(NodeId) {
            cluster.adopt(id, if id == OLD { &older } else { &newer });
        }
        let after = View::new(OLD, cluster.with_layouts(&[AFTER]));
        let before = View::new(OLD, older);
        let moves = |digest: &Digest| {
            let owners = [&before, &after].map(|view| view.owners(partition_of(digest)).to_vec());
            owners == [vec![NodeId(2), NodeId(3)], vec![NodeId(4), NodeId(5)]]
        };
        let mut blobs = (0..).map(|seed| TestCluster::blob(seed, 3000));
        let (digest, bytes) = blobs.find(|(digest, _)| moves(digest)).unwrap();
        Change { cluster, newer, digest, bytes }
    }

    /// The old view hears of the change once an old owner has been asked.
    async fn catch_up(&self) {
        while self.cluster.calls(NodeId(2)) + self.cluster.calls(NodeId(3)) == 0 {
            tokio::task::yield_now().await;
        }
        self.cluster.adopt(OLD, &self.newer);
    }

    fn is_on_new_owner(&self) -> bool {
        self.cluster.holders(&self.digest).iter().any(|node| AFTER.1[1..].contains(&node.0))
    }

    async fn store_on(&self, nodes: &[u64]) {
        for node in nodes {
            let stored = self.cluster.node(NodeId(*node)).store.put(&self.digest, self.bytes.clone()).await;
            stored.unwrap();
        }
    }

    fn version(&self) -> Version {
        Version { time_ms: 1_700_000_000_000, count: 0, node: NodeId(4) }
    }

    async fn keep_result_on(&self, nodes: &[u64]) {
        for node in nodes {
            let index = &self.cluster.node(NodeId(*node)).index;
            index.put_if_newer("main", &self.digest, self.version(), self.bytes.clone()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn an_upload_by_an_old_view_goes_on_by_the_new_one() {
    for newer in [&[BEFORE, AFTER][..], &[AFTER]] {
        let change = Change::new(newer).await;
        let upload = change.cluster.node(OLD).upload(&change.digest, &change.bytes, 500);
        let (outcome, ()) = tokio::join!(upload, change.catch_up());
        // Where the layouts have no node in common, nobody is left to copy it from.
        assert!(outcome.is_ok() || newer == [AFTER], "{outcome:?}");
        assert!(outcome.is_err() || change.is_on_new_owner(), "{:?}", change.cluster.holders(&change.digest));
    }
}

#[tokio::test]
async fn a_batch_by_an_old_view_goes_on_by_the_new_one() {
    for newer in [&[BEFORE, AFTER][..], &[AFTER]] {
        let change = Change::new(newer).await;
        let batch = vec![(change.digest, change.bytes.clone())];
        let put = change.cluster.node(OLD).blobs.put_many(batch);
        let (outcomes, ()) = tokio::join!(put, change.catch_up());
        let is_stored = outcomes.iter().all(Result::is_ok);
        assert!(is_stored || newer == [AFTER], "{outcomes:?}");
        assert!(!is_stored || change.is_on_new_owner(), "{:?}", change.cluster.holders(&change.digest));
    }
}

#[tokio::test]
async fn the_result_of_an_action_by_an_old_view_goes_on_by_the_new_one() {
    let change = Change::new(&[BEFORE, AFTER]).await;
    let update = change.cluster.node(OLD).actions.update("main", &change.digest, change.bytes.clone());
    let (outcome, ()) = tokio::join!(update, change.catch_up());
    outcome.unwrap();
    let has = |node: u64| change.cluster.node(NodeId(node)).index.get("main", &change.digest).unwrap().is_some();
    assert!(has(4) || has(5));
}

#[tokio::test]
async fn an_old_view_that_does_not_hear_of_the_new_one_acknowledges_nothing() {
    let change = Change::new(&[AFTER]).await;
    let old = change.cluster.node(OLD);
    let batch = vec![(change.digest, change.bytes.clone())];
    let (upload, put, update) = tokio::join!(
        old.upload(&change.digest, &change.bytes, 500),
        old.blobs.put_many(batch),
        old.actions.update("main", &change.digest, change.bytes.clone()),
    );
    assert!(upload.is_err() && update.is_err());
    assert!(put.iter().all(Result::is_err));
}

#[tokio::test]
async fn an_old_view_finds_what_lies_by_the_new_one() {
    let change = Change::new(&[AFTER]).await;
    change.store_on(&[4, 5]).await;
    change.keep_result_on(&[4, 5]).await;
    let old = change.cluster.node(OLD);
    let (got, ()) = tokio::join!(old.blobs.get(&change.digest, 10_000), change.catch_up());
    assert_eq!(got.unwrap(), change.bytes);
    assert_eq!(old.actions.get("main", &change.digest).await.unwrap(), Some(change.bytes.clone()));

    let change = Change::new(&[AFTER]).await;
    change.store_on(&[4, 5]).await;
    let digests = [change.digest];
    let (found, ()) = tokio::join!(change.cluster.node(OLD).blobs.find(&digests), change.catch_up());
    assert_eq!(found, [true]);

    let change = Change::new(&[AFTER]).await;
    change.store_on(&[4, 5]).await;
    let (read, ()) = tokio::join!(change.cluster.node(OLD).read(&change.digest, 10, None), change.catch_up());
    assert_eq!(read.unwrap(), change.bytes[10..]);

    let change = Change::new(&[AFTER]).await;
    change.keep_result_on(&[4, 5]).await;
    let get = change.cluster.node(OLD).actions.get("main", &change.digest);
    let (got, ()) = tokio::join!(get, change.catch_up());
    assert_eq!(got.unwrap(), Some(change.bytes.clone()));
}

#[tokio::test]
async fn an_old_view_that_does_not_hear_of_the_new_one_says_of_nothing_that_it_is_missing() {
    let change = Change::new(&[AFTER]).await;
    change.store_on(&[4, 5]).await;
    change.keep_result_on(&[4, 5]).await;
    let old = change.cluster.node(OLD);
    let digests = [change.digest];
    let (got, read, absent, found, result) = tokio::join!(
        old.blobs.get(&change.digest, 10_000),
        old.read(&change.digest, 10, None),
        old.blobs.absent(&digests),
        old.blobs.find(&digests),
        old.actions.get("main", &change.digest),
    );
    assert!(matches!(got, Err(ReadError::Unavailable { .. })), "{got:?}");
    assert!(matches!(read, Err(ReadError::Unavailable { .. })), "{read:?}");
    assert!(matches!(absent, Err(ReadError::Unavailable { .. })), "{absent:?}");
    assert!(matches!(result, Err(ActionError::Unavailable { .. })), "{result:?}");
    assert_eq!(found, [false], "one upload more does no harm");
}

#[tokio::test]
async fn a_node_that_is_in_doubt_of_its_view_gives_what_it_has_and_says_nothing_else() {
    let cluster = TestCluster::new(3, 2, 2).await;
    let is_in_doubt = Arc::new(AtomicBool::new(false));
    let doubt = Arc::clone(&is_in_doubt);
    let nodes = cluster.in_doubt(OLD, Arc::new(move || doubt.load(Ordering::Relaxed)));
    let blobs = Blobs::new(nodes.clone());
    let actions = Actions::new(nodes, cluster.node(OLD).index.clone());
    let (digest, bytes) = cluster.blob_of(NodeId(2), 3000);
    let (missing, other) = cluster.blob_of(NodeId(3), 2000);
    blobs.put_many(vec![(digest, bytes.clone())]).await.into_iter().for_each(|outcome| outcome.unwrap());
    assert_eq!(blobs.absent(&[digest, missing]).await.unwrap(), [missing]);

    is_in_doubt.store(true, Ordering::Relaxed);
    assert_eq!(blobs.get(&digest, 10_000).await.unwrap(), bytes);
    assert!(matches!(blobs.get(&missing, 10_000).await, Err(ReadError::Unavailable { .. })));
    assert!(blobs.absent(&[missing]).await.is_err());
    assert!(blobs.put_many(vec![(missing, other)]).await.iter().all(Result::is_err));
    assert!(matches!(actions.get("main", &missing).await, Err(ActionError::Unavailable { .. })));
    assert!(actions.update("main", &missing, bytes.clone()).await.is_err());

    is_in_doubt.store(false, Ordering::Relaxed);
    assert!(matches!(blobs.get(&digest, 10_000).await, Ok(whole) if whole == bytes));
}

#[tokio::test]
async fn what_an_old_owner_has_left_is_not_called_present() {
    let change = Change::new(&[AFTER]).await;
    change.store_on(&[2, 3]).await;
    let old = change.cluster.node(OLD);
    let digests = [change.digest];
    let (found, ()) = tokio::join!(old.blobs.find(&digests), change.catch_up());
    assert_eq!(found, [false]);
}

#[tokio::test]
async fn an_upload_is_not_cut_short_by_copies_that_others_may_not_find() {
    let change = Change::new(&[AFTER]).await;
    change.store_on(&[2, 3]).await;
    assert!(!change.cluster.node(OLD).blobs.is_held(&change.digest).await);
}

#[tokio::test]
async fn what_a_node_alone_has_taken_while_another_one_joins_is_given_to_that_one() {
    let cluster = TestCluster::new(2, 2, 2).await;
    let mut alone = cluster.with_layouts(&[(1, &[1])]);
    alone.members.remove(&NodeId(2));
    let both = cluster.with_layouts(&[(1, &[1]), (2, &[1, 2])]);
    cluster.adopt(OLD, &alone);
    cluster.adopt(NodeId(2), &both);
    let node = cluster.node(OLD);
    let (digest, bytes) = TestCluster::blob(1, 3000);
    let mut upload = node.blobs.upload(&digest).await.unwrap();
    upload.write(bytes).await.unwrap();
    cluster.adopt(OLD, &both);
    upload.commit().await.unwrap();
    assert_eq!(cluster.holders(&digest), [OLD, NodeId(2)]);
    // And where it cannot be, it is not acknowledged.
    cluster.adopt(OLD, &alone);
    let (digest, bytes) = TestCluster::blob(2, 3000);
    let mut upload = node.blobs.upload(&digest).await.unwrap();
    upload.write(bytes).await.unwrap();
    cluster.adopt(OLD, &both);
    cluster.set(NodeId(2), Behaviour::Dead);
    assert!(upload.commit().await.is_err());
}

#[tokio::test]
async fn a_node_that_leaves_is_not_given_what_others_can_hold() {
    let cluster = TestCluster::new(4, 2, 2).await;
    let mut state = cluster.with_layouts(&[(1, &[1, 2, 3, 4]), (2, &[1, 2, 3])]);
    state.members.get_mut(&NodeId(4)).unwrap().standing = casbah_cluster::membership::Standing::Draining;
    (1..=4).map(NodeId).for_each(|id| cluster.adopt(id, &state));
    let view = View::new(OLD, state);
    let mut blobs = (0..).map(|seed| TestCluster::blob(seed, 3000));
    let owned = |digest: &Digest| view.owners(partition_of(digest)).contains(&NodeId(4));
    let (digest, bytes) = blobs.find(|(digest, _)| owned(digest)).unwrap();
    cluster.node(OLD).upload(&digest, &bytes, 3000).await.unwrap();
    cluster.settle().await;
    assert!(!cluster.holders(&digest).contains(&NodeId(4)));
}
