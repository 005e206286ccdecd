//! Blobs and results get back to where they belong without being asked: after a node was away, lost its disk, or joined.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use casbah_tests::admin;
use casbah_tests::clients::reapi::Digest;
use casbah_tests::cluster::{Cluster, ClusterOptions};
use casbah_tests::load::new_bytes;
use serde_json::Value;

/// In which copies are made, on a machine that does other things as well.
const SOON: Duration = Duration::from_secs(30);

/// In which copies are dropped that are no longer needed: they stay for a minute.
const LATER: Duration = Duration::from_secs(150);

/// Where the copies of a blob are.
struct Copies {
    owners: usize,
    on_owners: usize,
    elsewhere: usize,
}

fn copies(cluster: &Cluster, digest: &Digest) -> Result<Copies> {
    let path = format!("/blobs/{}/{}", digest.hash, digest.size_bytes);
    let answer = admin::get(cluster.admin(0), &path)?;
    let whereabouts: Value = serde_json::from_str(&answer.body)?;
    let nodes = whereabouts.get("nodes").and_then(Value::as_array).context("no nodes")?;
    let is = |node: &Value, owner: bool, present: bool| {
        node.get("owner") == Some(&Value::Bool(owner)) && (node.get("copy") == Some(&"present".into())) >= present
    };
    let count = |owner, present| nodes.iter().filter(|node| is(node, owner, present)).count();
    Ok(Copies { owners: count(true, false), on_owners: count(true, true), elsewhere: count(false, true) })
}

fn all_owners_have(cluster: &Cluster, digests: &[Digest]) -> Result<bool> {
    for digest in digests {
        let copies = copies(cluster, digest)?;
        if copies.on_owners < copies.owners {
            return Ok(false);
        }
    }
    Ok(true)
}

fn nobody_else_has(cluster: &Cluster, digests: &[Digest]) -> Result<bool> {
    for digest in digests {
        if copies(cluster, digest)?.elsewhere > 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A number of a node's repair; 0 while it has no place in the cluster.
fn number(cluster: &Cluster, place: usize, name: &str) -> Result<u64> {
    let status = cluster.status(place)?;
    Ok(status.pointer(&format!("/cluster/repair/{name}")).and_then(Value::as_u64).unwrap_or(0))
}

/// Whether all nodes go by one layout of so many nodes, and each has all that it gives it.
fn is_settled(cluster: &Cluster, members: usize) -> Result<bool> {
    for place in cluster.places() {
        let status = cluster.status(place)?;
        let epochs = status.pointer("/cluster/epochs").and_then(Value::as_array).map_or(0, Vec::len);
        let here = status.pointer("/cluster/members").and_then(Value::as_array).map_or(0, Vec::len);
        let epoch = status.pointer("/cluster/epoch").and_then(Value::as_u64);
        let synced = status.pointer("/cluster/repair/synced_epoch").and_then(Value::as_u64);
        if epochs != 1 || here != members || synced.is_none() || synced != epoch {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn until(what: &str, patience: Duration, is_so: impl Fn() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !is_so()? {
        if begun.elapsed() > patience {
            bail!("still not after {patience:?}: {what}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await; // why: the nodes tell when they are asked
    }
    Ok(())
}

async fn upload(cluster: &Cluster, place: usize, count: usize) -> Result<Vec<Digest>> {
    let client = cluster.client(place).await?;
    let mut digests = Vec::new();
    for at in 0..count {
        let size_bytes = if at % 20 == 19 { 5 << 20 } else { 1000 + at };
        digests.push(client.upload(new_bytes(size_bytes)).await?);
    }
    Ok(digests)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_while_an_owner_was_away_comes_to_it_and_leaves_those_who_stood_in() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::nodes(4))?;
    let before = upload(&cluster, 0, 20).await?;
    cluster.kill9(2)?;
    let meanwhile = upload(&cluster, 1, 60).await?;
    let held = |cluster: &Cluster| -> Result<u64> {
        cluster.others(2).into_iter().map(|place| number(cluster, place, "held")).sum()
    };
    until("those who stand in know what they hold", SOON, || Ok(held(&cluster)? > 0)).await?;
    cluster.restart(2)?;
    until("every owner has everything", SOON, || all_owners_have(&cluster, &meanwhile)).await?;
    assert!(all_owners_have(&cluster, &before)?);
    until("those who stood in have dropped their copies", LATER, || {
        Ok(held(&cluster)? == 0 && nobody_else_has(&cluster, &meanwhile)?)
    })
    .await?;
    assert!(all_owners_have(&cluster, &meanwhile)?);
    let client = cluster.client(2).await?;
    for digest in before.iter().chain(&meanwhile) {
        assert_eq!(client.download(digest).await?.len() as i64, digest.size_bytes);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joins_gets_its_part_and_then_there_is_one_layout() -> Result<()> {
    let options = ClusterOptions { bootstrap_expect: Some(3), ..ClusterOptions::nodes(4) };
    let mut cluster = Cluster::prepare(&options)?;
    for place in [0, 1, 2] {
        cluster.restart(place)?;
    }
    cluster.wait_formed(&[0, 1, 2])?;
    let digests = upload(&cluster, 0, 60).await?;
    cluster.restart(3)?;
    until("there is one layout, of four nodes", SOON, || is_settled(&cluster, 4)).await?;
    assert!(all_owners_have(&cluster, &digests)?);
    assert!(number(&cluster, 3, "copies_pulled")? > 0);
    let client = cluster.client(3).await?;
    for digest in &digests {
        assert_eq!(client.download(digest).await?.len() as i64, digest.size_bytes);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_lost_its_disk_is_filled_again() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::nodes(3))?;
    let digests = upload(&cluster, 0, 60).await?;
    until("there is one layout", SOON, || is_settled(&cluster, 3)).await?;
    cluster.kill9(1)?;
    cluster.wipe(1)?;
    cluster.restart(1)?;
    until("there is one layout, of the new node and the others", SOON, || is_settled(&cluster, 3)).await?;
    assert!(all_owners_have(&cluster, &digests)?);
    assert!(number(&cluster, 1, "copies_pulled")? > 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_are_killed_while_one_joins_go_on_when_they_are_back() -> Result<()> {
    let options = ClusterOptions { bootstrap_expect: Some(3), ..ClusterOptions::nodes(4) };
    // So slow that it takes some seconds.
    let mut cluster = Cluster::prepare(&options.set("repair.rate = \"1MiB\""))?;
    for place in [0, 1, 2] {
        cluster.restart(place)?;
    }
    cluster.wait_formed(&[0, 1, 2])?;
    let digests = upload(&cluster, 0, 80).await?;
    cluster.restart(3)?;
    until("it has begun", SOON, || Ok(number(&cluster, 3, "copies_pulled")? > 0)).await?;
    cluster.kill9_all()?;
    cluster.start_all()?;
    cluster.wait_formed(&cluster.places())?;
    until("there is one layout, of four nodes", LATER, || is_settled(&cluster, 4)).await?;
    assert!(all_owners_have(&cluster, &digests)?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_one_tells_that_it_has_everything() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions::nodes(1))?;
    let digests = upload(&cluster, 0, 3).await?;
    until("it has told", SOON, || is_settled(&cluster, 1)).await?;
    assert!(all_owners_have(&cluster, &digests)?);
    Ok(())
}
