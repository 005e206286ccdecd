//! Nodes beyond those that have the log: they take any request all the same.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use casbah_tests::clients::{AssetName, Client, refused_with};
use casbah_tests::cluster::{Cluster, ClusterOptions};
use casbah_tests::history::Kind;
use casbah_tests::load::{new_bytes, test_seed};
use casbah_tests::nemesis::{Fault, Nemesis};
use casbah_tests::process::DEADLINE;
use casbah_tests::workload::Workload;
use serde_json::Value;
use tonic::{Code, Status};

/// Three vote, and nobody else has the log.
fn options(nodes: usize) -> ClusterOptions {
    ClusterOptions::nodes(nodes).set("cluster.learners = 0").set("index.stale_reads = false")
}

/// What a node has to do with the log, by its own word: a leader, a follower, a watcher.
fn role(cluster: &Cluster, place: usize) -> Result<String> {
    let status = cluster.status(place)?;
    Ok(status.pointer("/cluster/raft/role").and_then(Value::as_str).context("it has no role")?.to_owned())
}

/// The part of a node by another one's word.
fn part(cluster: &Cluster, asked: usize, place: usize) -> Result<String> {
    let status = cluster.status(asked)?;
    let members = status.pointer("/cluster/members").and_then(Value::as_array).context("no members")?;
    let name = format!("node-{}", place + 1);
    let of_name = |member: &&Value| member.get("name").and_then(Value::as_str) == Some(&name);
    let part = members.iter().find(of_name).and_then(|member| member.get("part")).and_then(Value::as_str);
    Ok(part.context("it is no member")?.to_owned())
}

async fn until(what: &str, is_so: impl Fn() -> Result<bool>) -> Result<()> {
    let until = Instant::now() + DEADLINE;
    while !is_so().unwrap_or(false) {
        ensure!(Instant::now() < until, "still not after {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(30)).await; // why: a cluster does not announce what becomes of it
    }
    Ok(())
}

/// The nodes without the log, once each node knows that three vote and who the others are.
async fn watchers(cluster: &Cluster) -> Result<Vec<usize>> {
    let places = cluster.places();
    let parts = || places.iter().map(|place| part(cluster, *place, *place)).collect::<Result<Vec<_>>>();
    until("three vote, and the others watch", || {
        let parts = parts()?;
        let voters = parts.iter().filter(|part| *part == "voter").count();
        let watchers = parts.iter().filter(|part| *part == "watcher").count();
        Ok(voters == 3 && watchers == places.len() - 3)
    })
    .await?;
    let parts = parts()?;
    Ok(places.into_iter().filter(|place| parts.get(*place).is_some_and(|part| part == "watcher")).collect())
}

/// What a client gets that tries again for as long as it is told that the cluster cannot now.
async fn at_last<T>(attempt: impl AsyncFn() -> Result<T, Status>) -> Result<T> {
    let until = Instant::now() + DEADLINE;
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(status) => ensure!(status.code() == Code::Unavailable && Instant::now() < until, "{status:?}"),
        }
        tokio::time::sleep(Duration::from_millis(30)).await; // why: a client that was refused comes back a little later
    }
}

async fn push(client: &Client) -> Result<(AssetName, Bytes)> {
    let (name, blob) = (AssetName::unique(), new_bytes(1000));
    at_last(async || {
        let digest = client.upload(blob.clone()).await?;
        client.push_blob(&name, &digest).await
    })
    .await?;
    Ok((name, blob))
}

async fn fetch(client: &Client, name: &AssetName, blob: &Bytes) -> Result<()> {
    let found = at_last(async || {
        let digest = client.fetch_blob(name).await?.blob_digest;
        client.download(&digest.ok_or_else(|| Status::internal("an answer without a digest"))?).await
    });
    ensure!(found.await? == *blob, "another blob");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_through_a_node_without_the_log_is_fetched_through_another_one() -> Result<()> {
    let mut cluster = Cluster::start(&options(5))?;
    let watchers = watchers(&cluster).await?;
    let [one, other] = watchers.as_slice() else { anyhow::bail!("{watchers:?} watch") };
    let (one, other) = (*one, *other);
    assert_eq!(role(&cluster, one)?, "watcher");
    let (near, far) = (cluster.client(one).await?, cluster.client(other).await?);
    let name = AssetName::unique();
    let digest = near.upload(new_bytes(1000)).await?;
    near.push_blob(&name, &digest).await?;
    for place in cluster.places() {
        let found = cluster.client(place).await?.fetch_blob(&name).await?;
        assert_eq!(found.blob_digest.as_ref(), Some(&digest), "through node {place}");
    }
    refused_with(Code::NotFound, far.fetch_blob(&AssetName::unique()).await)?;

    // The leader goes.
    let leader = cluster.leader()?;
    cluster.kill9(leader)?;
    let (name, blob) = push(&near).await?;
    fetch(&far, &name, &blob).await?;
    cluster.restart(leader)?;
    cluster.wait_formed(&cluster.places())?;

    // One without the log is started again, and has missed something.
    cluster.kill9(one)?;
    let (missed, blob) = push(&far).await?;
    cluster.restart(one)?;
    cluster.wait_formed(&cluster.places())?;
    let near = cluster.client(one).await?;
    fetch(&near, &missed, &blob).await?;
    let (name, blob) = push(&near).await?;
    fetch(&far, &name, &blob).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_the_log_serves_blobs_before_it_reaches_anybody_who_has_it() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions { copies: 1, ..options(4) })?;
    let watchers = watchers(&cluster).await?;
    let watcher = *watchers.first().context("nobody watches")?;
    let client = cluster.client(watcher).await?;
    let mut blobs = Vec::new();
    for _ in 0..20 {
        let blob = new_bytes(100);
        blobs.push((client.upload(blob.clone()).await?, blob));
    }
    cluster.kill9_all()?;
    cluster.restart(watcher)?;
    let client = cluster.client(watcher).await?;
    let mut read = 0;
    for (digest, blob) in &blobs {
        match client.download(digest).await {
            Ok(bytes) => {
                ensure!(bytes == *blob, "another blob");
                read += 1;
            }
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
        }
    }
    ensure!(read > 0, "of the blobs that it has, it served none");
    refused_with(Code::Unavailable, client.fetch_blob(&AssetName::unique()).await)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn assets_are_linearizable_also_through_nodes_without_the_log() -> Result<()> {
    let seed = test_seed();
    let mut cluster = Cluster::start(&options(5))?;
    watchers(&cluster).await?;
    let running = Workload::assets(seed).start(&cluster.authorities());
    running.goes_on(Kind::Push, 20).await?;
    Nemesis::new(seed, Fault::all()).run(&mut cluster, 4).await?;
    cluster.wait_formed(&cluster.places())?;
    running.goes_on(Kind::Push, 20).await?;
    running.goes_on(Kind::Fetch, 20).await?;
    running.stop().await?.check().await.with_context(|| format!("CASBAH_TEST_SEED={seed}"))
}
