//! The Remote Asset index over groups of several nodes.

use casbah_cluster::asset::{AssetKey, AssetKind, AssetRecord};
use casbah_cluster::digest::{Digest, DigestFunction};
use casbah_cluster::membership::NodeId;

use super::error::GroupError;
use super::testing::{Nodes, timing};
use crate::index::{AssetIndex, IndexError, now};

fn key(uri: &str) -> AssetKey {
    AssetKey::new("", AssetKind::Blob, uri, []).unwrap()
}

fn record(text: &str) -> AssetRecord {
    AssetRecord {
        target: Digest::of(DigestFunction::Sha256, text.as_bytes()),
        referenced_blobs: Vec::new(),
        referenced_directories: Vec::new(),
        pushed_at: now(),
        expires_at: None,
    }
}

async fn get(index: &AssetIndex, uri: &str) -> Result<Option<AssetRecord>, IndexError> {
    index.view(&[key(uri)]).await?.get(0).await
}

fn index(nodes: &Nodes, node: u64, stale_reads: bool) -> AssetIndex {
    AssetIndex::new(nodes.get(NodeId(node)), stale_reads)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_under_many_names_is_fetched_under_each_through_every_node() {
    let nodes = Nodes::formed(3, 0, timing()).await;
    let pushed = record("a");
    let uris: Vec<String> = (0..300).map(|number| format!("https://{number}.test/{}", "x".repeat(5_000))).collect();
    let keys: Vec<AssetKey> = uris.iter().map(|uri| key(uri)).collect();
    // On a machine that is busy with other things, the lead may change under such a push.
    let index_of_two = index(&nodes, 2, false);
    let again = async { while index_of_two.push(&keys, &pushed).await.is_err() {} };
    tokio::time::timeout(super::testing::DEADLINE, again).await.expect("the push was not taken in time");
    for node in 1..=3 {
        let index = index(&nodes, node, false);
        let mut view = index.view(&keys).await.unwrap();
        for at in 0..keys.len() {
            assert_eq!(view.get(at).await.unwrap().as_ref(), Some(&pushed), "through node {node}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_leader_fetches_are_answered_from_what_is_known_if_that_is_allowed_and_pushes_are_not() {
    let nodes = Nodes::formed(3, 0, timing()).await;
    index(&nodes, 1, true).push(&[key("a")], &record("1")).await.unwrap();
    let leader = nodes.leader(&[NodeId(1), NodeId(2), NodeId(3)]).await;
    let alone = leader.0 % 3 + 1;
    nodes.until_as_far(NodeId(alone), leader).await;
    nodes.wires.isolate(&[NodeId(alone)]);
    let (lenient, strict) = (index(&nodes, alone, true), index(&nodes, alone, false));
    assert_eq!(get(&lenient, "a").await.unwrap().unwrap().target, record("1").target);
    assert!(matches!(get(&strict, "a").await, Err(IndexError::Group(GroupError::NoLeader))));
    let push = lenient.push(&[key("a")], &record("2")).await;
    assert!(matches!(push, Err(IndexError::Group(GroupError::NoLeader | GroupError::Unknown))), "{push:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetched_asset_stays_when_others_have_to_go() {
    let mut nodes = Nodes::new(0, timing());
    let group = nodes.start_with_capacity(NodeId(1), 3).await;
    group.form(super::testing::cluster()).await.unwrap();
    let index = AssetIndex::new(group, true);
    for uri in ["a", "b", "c"] {
        index.push(&[key(uri)], &record(uri)).await.unwrap();
    }
    index.used(&key("a"));
    index.push(&[key("d")], &record("d")).await.unwrap();
    let mut there = Vec::new();
    for uri in ["a", "b", "c", "d"] {
        there.push(get(&index, uri).await.unwrap().is_some());
    }
    assert_eq!(there, [true, false, true, true]);
    assert_eq!(index.counts().evicted, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_uses_are_told_when_a_node_stops() {
    let mut nodes = Nodes::new(0, timing());
    let group = nodes.start_with_capacity(NodeId(1), 2).await;
    group.form(super::testing::cluster()).await.unwrap();
    let index = AssetIndex::new(group, true);
    for uri in ["a", "b"] {
        index.push(&[key(uri)], &record(uri)).await.unwrap();
    }
    index.used(&key("a"));
    index.close().await;
    drop(index);
    nodes.kill(NodeId(1)).await;
    let index = AssetIndex::new(nodes.start_with_capacity(NodeId(1), 2).await, true);
    index.push(&[key("c")], &record("c")).await.unwrap();
    assert!(get(&index, "a").await.unwrap().is_some());
    assert_eq!(get(&index, "b").await.unwrap(), None);
}
