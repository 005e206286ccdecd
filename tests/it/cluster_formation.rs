//! How nodes become a cluster, and what never becomes one.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use casbah_tests::admin;
use casbah_tests::clients::{AssetName, digest_of, refused_with};
use casbah_tests::cluster::{Cluster, ClusterOptions};
use casbah_tests::load::new_bytes;
use casbah_tests::proxy::Mode;
use serde_json::Value;
use tonic::Code;

/// Far longer than two groups would take to notice each other.
const NOTICE: Duration = Duration::from_secs(5);

fn node_id(cluster: &Cluster, place: usize) -> Result<u64> {
    let id = cluster.status(place)?.pointer("/cluster/node_id").and_then(Value::as_u64);
    id.context("it has no node id")
}

/// That this stays so.
async fn stays(what: impl Fn() -> Result<()>, time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    while Instant::now() < until {
        what()?;
        tokio::time::sleep(Duration::from_millis(200)).await; // why: that nothing happens has no event
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn three_fresh_nodes_become_one_cluster_and_each_has_an_id_of_its_own() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions::nodes(3))?;
    let mut ids: Vec<u64> =
        cluster.places().into_iter().map(|place| node_id(&cluster, place)).collect::<Result<_>>()?;
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn fewer_nodes_than_are_expected_form_nothing_and_refuse_assets_without_calling_them_missing() -> Result<()> {
    let mut cluster = Cluster::prepare(&ClusterOptions::nodes(3))?;
    cluster.restart(0)?;
    cluster.restart(1)?;
    let formed = || -> Result<()> {
        for place in [0, 1] {
            ensure!(cluster.cluster_id(place).is_err(), "node {place} is in a cluster");
        }
        Ok(())
    };
    stays(formed, Duration::from_secs(2)).await?;
    let client = cluster.client(0).await?;
    refused_with(Code::Unavailable, client.fetch_blob(&AssetName::unique()).await)?;
    refused_with(Code::Unavailable, client.download(&digest_of(&new_bytes(10))).await)?;
    cluster.restart(2)?;
    cluster.wait_formed(&cluster.places())?;
    let digest = cluster.client(0).await?.upload(new_bytes(10)).await?;
    ensure!(cluster.client(2).await?.has(&digest).await?);
    Ok(())
}

/// That each group is a cluster with this id and nobody else in it.
fn apart(cluster: &Cluster, groups: &[[usize; 3]], ids: &[String]) -> Result<()> {
    for (group, id) in groups.iter().zip(ids) {
        for place in group {
            let status = cluster.status(*place)?;
            ensure!(status.pointer("/cluster/id").and_then(Value::as_str) == Some(id), "node {place} has changed");
            let members = status.pointer("/cluster/members").and_then(Value::as_array).map(Vec::len);
            ensure!(members == Some(3), "node {place} has {members:?} members");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_groups_that_formed_apart_never_merge_and_keep_their_own() -> Result<()> {
    let options = ClusterOptions { bootstrap_expect: Some(3), ..ClusterOptions::nodes(6) };
    let mut cluster = Cluster::prepare(&options)?;
    let groups = [[0, 1, 2], [3, 4, 5]];
    cluster.proxies().set_around(&groups[0], Mode::Cut);
    cluster.start_all()?;
    let mut assets = Vec::new();
    for group in groups {
        cluster.wait_formed(&group)?;
        let client = cluster.client(group[0]).await?;
        let (name, digest) = (AssetName::unique(), client.upload(new_bytes(1000)).await?);
        client.push_blob(&name, &digest).await?;
        assets.push((name, digest));
    }
    let ids: Vec<String> = groups.iter().map(|group| cluster.cluster_id(group[0])).collect::<Result<_>>()?;
    assert_ne!(ids[0], ids[1]);
    cluster.proxies().set_all(Mode::Pass);
    stays(|| apart(&cluster, &groups, &ids), NOTICE).await?;
    // The same after all have been started again.
    cluster.kill9_all()?;
    cluster.start_all()?;
    for group in groups {
        cluster.wait_formed(&group)?;
    }
    stays(|| apart(&cluster, &groups, &ids), NOTICE / 2).await?;
    for (group, place) in groups.iter().zip([0, 1]) {
        let (own, other) = (&assets[place], &assets[1 - place]);
        for node in group {
            let client = cluster.client(*node).await?;
            assert_eq!(client.fetch_blob(&own.0).await?.blob_digest.as_ref(), Some(&own.1));
            refused_with(Code::NotFound, client.fetch_blob(&other.0).await)?;
            refused_with(Code::NotFound, client.download(&other.1).await)?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_ready_without_a_leader() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::nodes(3))?;
    let alone = cluster.leader()?;
    let client = cluster.client(alone).await?;
    let mut digests = Vec::new();
    for _ in 0..20 {
        digests.push(client.upload(new_bytes(100)).await?);
    }
    for other in cluster.others(alone) {
        cluster.kill9(other)?;
    }
    let is_ready = || {
        let answer = admin::get(cluster.admin(alone), "/readyz")?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    };
    stays(is_ready, Duration::from_secs(4)).await?;
    // What it has, it gives; what it has not is not missing.
    let mut read = 0;
    for digest in &digests {
        match client.download(digest).await {
            Ok(_) => read += 1,
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
        }
    }
    ensure!(read > 0, "nothing was read");
    refused_with(Code::Unavailable, client.upload(new_bytes(100)).await)?;
    refused_with(Code::Unavailable, client.push_blob(&AssetName::unique(), &digests[0]).await)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_an_empty_directory_is_a_new_node_under_the_old_name() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::nodes(3))?;
    let (id, old) = (cluster.cluster_id(0)?, node_id(&cluster, 1)?);
    let client = cluster.client(0).await?;
    let digest = client.upload(new_bytes(1000)).await?;
    let name = AssetName::unique();
    client.push_blob(&name, &digest).await?;
    cluster.kill9(1)?;
    cluster.wipe(1)?;
    cluster.restart(1)?;
    cluster.wait_formed(&cluster.places())?;
    assert_eq!(cluster.cluster_id(1)?, id);
    let new = node_id(&cluster, 1)?;
    ensure!(new > old, "the id {new} after {old}");
    assert_eq!(cluster.client(1).await?.fetch_blob(&name).await?.blob_digest, Some(digest));
    Ok(())
}
