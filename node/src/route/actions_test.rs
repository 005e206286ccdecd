//! Results of actions in a cluster of which some nodes fail.

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_cluster::membership::NodeId;
use casbah_cluster::replication::Version;
use futures_util::future::join_all;

use crate::route::ActionError;
use crate::route::testing::Behaviour::{Away, Dead, Full, Silent, Stalled, Well};
use crate::route::testing::TestCluster;

fn action(seed: u64) -> Digest {
    TestCluster::blob(seed, 100).0
}

fn result(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn get(cluster: &TestCluster, through: NodeId, action: &Digest) -> Option<Bytes> {
    cluster.node(through).actions.get("main", action).await.unwrap()
}

async fn update(cluster: &TestCluster, through: NodeId, action: &Digest, text: &str) {
    cluster.node(through).actions.update("main", action, result(text)).await.unwrap();
}

fn nodes(cluster: &TestCluster) -> impl Iterator<Item = NodeId> {
    (1..=cluster.nodes.len() as u64).map(NodeId)
}

fn kept(cluster: &TestCluster, node: NodeId, action: &Digest) -> Option<Bytes> {
    cluster.node(node).index.get("main", action).unwrap().map(|(_, result)| result)
}

#[tokio::test]
async fn a_result_is_read_through_every_node_and_the_last_one_wins() {
    let cluster = TestCluster::new(4, 2, 2).await;
    for writer in nodes(&cluster) {
        let text = format!("by {writer}");
        update(&cluster, writer, &action(1), &text).await;
        for reader in nodes(&cluster) {
            assert_eq!(get(&cluster, reader, &action(1)).await, Some(result(&text)));
            assert_eq!(cluster.node(reader).actions.get("other", &action(1)).await.unwrap(), None);
        }
    }
    let owners = cluster.owners(&action(1));
    assert!(nodes(&cluster).all(|node| kept(&cluster, node, &action(1)).is_some() == owners.contains(&node)));
}

#[tokio::test]
async fn a_result_survives_the_loss_of_one_owner_before_it_is_written_or_after() {
    for behaviour in [Away, Dead, Silent, Full, Stalled] {
        for seed in 0..4 {
            let cluster = TestCluster::new(4, 2, 2).await;
            let owners = cluster.owners(&action(seed));
            let through = cluster.stranger(&action(seed));
            cluster.set(owners[1], behaviour);
            update(&cluster, through, &action(seed), "kept").await;
            assert_eq!(get(&cluster, through, &action(seed)).await, Some(result("kept")), "{behaviour:?}");
            // The one that stood in for it has it when the other owner is lost.
            cluster.set(owners[1], Well);
            cluster.set(owners[0], Dead);
            assert_eq!(get(&cluster, through, &action(seed)).await, Some(result("kept")), "{behaviour:?}");
        }
    }
}

#[tokio::test]
async fn an_older_result_on_one_owner_is_not_told_and_is_brought_up_to_date() {
    let cluster = TestCluster::new(4, 2, 2).await;
    let owners = cluster.owners(&action(1));
    update(&cluster, owners[0], &action(1), "old").await;
    cluster.set(owners[1], Away);
    update(&cluster, owners[0], &action(1), "new").await;
    cluster.set(owners[1], Well);
    assert_eq!(kept(&cluster, owners[1], &action(1)), Some(result("old")));
    assert_eq!(get(&cluster, owners[1], &action(1)).await, Some(result("new")));
    cluster.settle().await;
    assert_eq!(kept(&cluster, owners[1], &action(1)), Some(result("new")));
}

#[tokio::test]
async fn a_result_that_nobody_has_is_a_miss_only_when_those_who_may_have_it_say_so() {
    for behaviour in [Away, Dead, Silent] {
        let cluster = TestCluster::new(5, 2, 2).await;
        let owners = cluster.owners(&action(1));
        let through = cluster.stranger(&action(1));
        assert_eq!(get(&cluster, through, &action(1)).await, None);
        cluster.set(owners[0], behaviour);
        assert_eq!(get(&cluster, through, &action(1)).await, None);
        cluster.set(owners[1], behaviour);
        let outcome = cluster.node(through).actions.get("main", &action(1)).await;
        assert!(matches!(outcome, Err(ActionError::Unavailable { .. })), "{behaviour:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn without_any_owner_no_result_is_kept() {
    let cluster = TestCluster::new(5, 2, 2).await;
    cluster.owners(&action(1)).into_iter().for_each(|owner| cluster.set(owner, Dead));
    let through = cluster.stranger(&action(1));
    let outcome = cluster.node(through).actions.update("main", &action(1), result("lost")).await;
    assert!(matches!(outcome, Err(ActionError::TooFew { .. })), "{outcome:?}");
}

#[tokio::test]
async fn an_owner_that_says_nothing_holds_up_a_result_until_it_is_given_up() {
    let cluster = TestCluster::new(4, 2, 2).await;
    let owners = cluster.owners(&action(1));
    update(&cluster, owners[0], &action(1), "kept").await;
    cluster.set(owners[1], Silent);
    assert_eq!(get(&cluster, owners[0], &action(1)).await, Some(result("kept")));
}

#[tokio::test]
async fn an_owner_that_is_cut_off_does_not_answer_with_what_may_be_an_older_result() {
    for behaviour in [Silent, Away, Dead] {
        let cluster = TestCluster::new(4, 2, 2).await;
        let owners = cluster.owners(&action(1));
        update(&cluster, owners[0], &action(1), "old").await;
        for other in nodes(&cluster).filter(|node| *node != owners[0]) {
            cluster.set(other, behaviour);
        }
        let cut_off = cluster.node(owners[0]).actions.get("main", &action(1)).await;
        assert!(matches!(cut_off, Err(ActionError::Unavailable { .. })), "{behaviour:?}: {cut_off:?}");
        for other in nodes(&cluster).filter(|node| *node != owners[0]) {
            cluster.set(other, Well);
        }
        assert_eq!(get(&cluster, owners[0], &action(1)).await, Some(result("old")));
    }
}

#[tokio::test]
async fn updates_at_once_through_all_nodes_end_in_one_result_everywhere() {
    let cluster = TestCluster::new(5, 3, 2).await;
    let (cluster_ref, name) = (&cluster, action(1));
    let updates = (0..50_u64).map(|at| async move {
        let through = NodeId(at % 5 + 1);
        cluster_ref.node(through).actions.update("main", &name, result(&format!("update {at}"))).await
    });
    for outcome in join_all(updates).await {
        outcome.unwrap();
    }
    cluster.settle().await;
    let first = get(&cluster, NodeId(1), &name).await;
    assert!(first.is_some());
    for reader in nodes(&cluster) {
        assert_eq!(get(&cluster, reader, &name).await, first);
    }
}

#[tokio::test]
async fn a_write_after_a_read_wins_although_the_writer_s_clock_is_behind() {
    let cluster = TestCluster::new(3, 2, 2).await;
    let now = cluster.nodes[0].index.next_version(NodeId(1), "main", &action(9)).unwrap();
    let ahead = Version { time_ms: now.time_ms + 30_000, ..now };
    for owner in cluster.owners(&action(1)) {
        cluster.node(owner).index.put_if_newer("main", &action(1), ahead, result("first")).await.unwrap();
    }
    let writer = cluster.stranger(&action(1));
    assert_eq!(get(&cluster, writer, &action(1)).await, Some(result("first")));
    update(&cluster, writer, &action(1), "second").await;
    for reader in nodes(&cluster) {
        assert_eq!(get(&cluster, reader, &action(1)).await, Some(result("second")));
    }
}
