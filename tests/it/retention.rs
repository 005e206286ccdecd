//! Present means stays (G4), on every node of a cluster: what is in use is evicted nowhere, and a promise that is broken all the
//! same is noticed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use casbah_tests::admin;
use casbah_tests::clients::digest_of;
use casbah_tests::clients::reapi::Digest;
use casbah_tests::cluster::{Cluster, ClusterOptions};
use casbah_tests::deadline::eventually;
use casbah_tests::load::new_bytes;
use casbah_tests::retry::{metric, until_let_in};
use serde_json::Value;
use tokio::task::JoinSet;

const BROKEN: &str = "casbah_broken_promises_total";

/// The names of the nodes that have a blob, by one of them, and whether all of its owners are among them.
fn holders(cluster: &Cluster, place: usize, digest: &Digest) -> Result<(BTreeSet<String>, bool)> {
    let answer = admin::get(cluster.admin(place), &format!("/blobs/{}/{}", digest.hash, digest.size_bytes))?;
    let json: Value = serde_json::from_str(&answer.body)?;
    let nodes = json.pointer("/nodes").and_then(Value::as_array).context("no nodes")?;
    let is = |node: &Value, key: &str, value: Value| node.get(key) == Some(&value);
    let has = |node: &&Value| is(node, "copy", "present".into());
    let names = nodes.iter().filter(has).filter_map(|node| Some(node.get("name")?.as_str()?.to_owned())).collect();
    let owners_have = nodes.iter().filter(|node| is(node, "owner", true.into())).all(|node| has(&node));
    Ok((names, owners_have))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_through_any_node_is_evicted_on_none_while_others_fill_the_disks() -> Result<()> {
    const FLOOR: Duration = Duration::from_secs(3);
    let options = ClusterOptions::nodes(3).set("store.capacity = \"64MB\"").set("store.retention_floor = \"3s\"");
    let cluster = Cluster::start(&options)?;
    let clients = cluster.clients().await?;
    let mut kept = Vec::new();
    for (place, size) in (1..=24).map(|place| (place, place * 10_000)) {
        kept.push(clients.iter().cycle().nth(place).context("no node")?.upload(new_bytes(size)).await?);
    }
    let (is_over, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut writers = JoinSet::new();
    for place in 0..6 {
        let client = clients.iter().cycle().nth(place).context("no node")?.clone();
        let (is_over, written) = (Arc::clone(&is_over), Arc::clone(&written));
        writers.spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                let blob = new_bytes(500_000);
                // Where everything is in use, a writer waits until something may go.
                until_let_in("an upload", || client.upload(blob.clone())).await?;
                written.fetch_add(500_000, Ordering::Relaxed);
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    let (began, mut round) = (Instant::now(), 0);
    eventually("every node has evicted for a while", || {
        round += 1;
        let (client, kept, cluster) = (clients.iter().cycle().nth(round).cloned(), &kept, &cluster);
        async move {
            let client = client.context("no node")?;
            let missing = until_let_in("find", || client.find_missing(kept)).await?;
            ensure!(missing.is_empty(), "{} of {} are missing", missing.len(), kept.len());
            let mut has_evicted = began.elapsed() > 2 * FLOOR;
            for place in cluster.places() {
                has_evicted &= metric(cluster.admin(place), "casbah_store_evicted_blobs_total")? > 20.0;
            }
            Ok(has_evicted)
        }
    })
    .await?;
    is_over.store(true, Ordering::Relaxed);
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    eprintln!("{} MB written in {:?}", written.load(Ordering::Relaxed) / 1_000_000, began.elapsed());
    for digest in &kept {
        let (names, owners_have) = holders(&cluster, 0, digest)?;
        ensure!(owners_have, "{digest:?} is on {names:?} alone");
    }
    for place in cluster.places() {
        assert_eq!(metric(cluster.admin(place), BROKEN)?, 0.0, "node {place}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promise_that_two_lost_disks_have_broken_is_counted_and_told() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::nodes(3))?;
    let client = cluster.client(0).await?;
    // One that the first node has no copy of: it remembers what it has told, and the disks of the others are lost.
    let mut lost = None;
    while lost.is_none() {
        let digest = client.upload(new_bytes(1000)).await?;
        let (names, owners_have) = holders(&cluster, 0, &digest)?;
        let is_elsewhere = owners_have && names == BTreeSet::from(["node-2".to_owned(), "node-3".to_owned()]);
        lost = is_elsewhere.then_some(digest);
    }
    let digest = lost.context("none")?;
    ensure!(client.has(&digest).await?);
    // Both at once: one alone would be filled again by the other.
    for place in [1, 2] {
        cluster.stop(place)?;
        std::fs::remove_dir_all(cluster.data(place)?.join("store"))?;
    }
    for place in [1, 2] {
        cluster.restart(place)?;
    }
    cluster.wait_formed(&cluster.places())?;
    let never_there = digest_of(&new_bytes(10));
    eventually("the loss is noticed", || async {
        ensure!(client.find_missing(&[digest.clone(), never_there.clone()]).await?.len() == 2, "it is still there");
        Ok(metric(cluster.admin(0), BROKEN)? > 0.0)
    })
    .await?;
    let line = cluster.server(0)?.wait_for_stderr("promised to a client")?;
    ensure!(line.contains(&digest.hash), "{line}");
    // Once, however often it is asked for.
    client.has(&digest).await?;
    assert_eq!(metric(cluster.admin(0), BROKEN)?, 1.0);
    Ok(())
}
