//! Bits that flip on a disk of a cluster (G2): no wrong byte, no false miss, and the copy is there again.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use casbah_tests::admin;
use casbah_tests::clients::reapi::Digest;
use casbah_tests::clients::{digest_of, refused_with};
use casbah_tests::cluster::{Cluster, ClusterOptions};
use casbah_tests::deadline::eventually;
use casbah_tests::files::flip_a_byte_of;
use casbah_tests::load::new_bytes;
use serde_json::Value;
use tonic::Code;

const MIB: usize = 1 << 20;

/// In a segment of the store, and in a file; in one message, and in many.
const SIZES: [usize; 4] = [300, 60_000, 300_000, 5 * MIB + 7];

/// Three nodes with two copies, and little to search.
fn three() -> ClusterOptions {
    ClusterOptions::nodes(3).set("store.capacity = \"100MB\"")
}

/// What each node is to a blob, by its place.
struct Holders {
    owners: Vec<usize>,
    present: Vec<usize>,
}

fn has(node: &Value, key: &str, value: impl Into<Value>) -> bool {
    node.get(key) == Some(&value.into())
}

fn holders(cluster: &Cluster, asked: usize, digest: &Digest) -> Result<Holders> {
    let answer = admin::get(cluster.admin(asked), &format!("/blobs/{}/{}", digest.hash, digest.size_bytes))?;
    ensure!(answer.status == 200, "{}", answer.body);
    let whereabouts: Value = serde_json::from_str(&answer.body)?;
    let nodes = whereabouts.get("nodes").and_then(Value::as_array).context("no nodes")?;
    let places = |fits: &dyn Fn(&Value) -> bool| {
        let names = nodes.iter().filter(|node| fits(node)).filter_map(|node| node.get("name")?.as_str());
        let places = names.map(|name| Ok(name.trim_start_matches("node-").parse::<usize>()? - 1));
        places.collect::<Result<Vec<usize>>>()
    };
    let (owners, present) = (places(&|node| has(node, "owner", true))?, places(&|node| has(node, "copy", "present"))?);
    Ok(Holders { owners, present })
}

/// New bytes that these two nodes are to hold.
fn blob_of(cluster: &Cluster, owners: [usize; 2], size: usize) -> Result<Bytes> {
    loop {
        let blob = new_bytes(size);
        let found = holders(cluster, owners[0], &digest_of(&blob))?.owners;
        if owners.iter().all(|owner| found.contains(owner)) {
            return Ok(blob);
        }
    }
}

fn number(cluster: &Cluster, place: usize, name: &str) -> Result<u64> {
    let status = cluster.status(place)?;
    status.pointer(&format!("/store/{name}")).and_then(Value::as_u64).context("no such number")
}

fn flip(cluster: &Cluster, place: usize, blob: &Bytes) -> Result<()> {
    let middle = blob.slice(blob.len() / 2..blob.len() / 2 + 100);
    flip_a_byte_of(cluster.data(place)?, &middle)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_on_one_nodes_disk_is_seen_by_nobody_and_mended() -> Result<()> {
    let cluster = Cluster::start(&three())?;
    let clients = cluster.clients().await?;
    for size in SIZES {
        let blob = new_bytes(size);
        let digest = clients[0].upload(blob.clone()).await?;
        eventually("both copies are there", async || Ok(holders(&cluster, 0, &digest)?.present.len() == 2)).await?;
        let held = holders(&cluster, 0, &digest)?.present;
        let damaged = held[size % 2];
        flip(&cluster, damaged, &blob)?;
        for (place, client) in clients.iter().enumerate() {
            ensure!(client.download(&digest).await? == blob, "{size} bytes through {place}");
        }
        eventually("both copies are there again", async || {
            let all = (0..3).map(|asked| holders(&cluster, asked, &digest)).collect::<Result<Vec<Holders>>>()?;
            Ok(all.iter().all(|now| held.iter().all(|place| now.present.contains(place))))
        })
        .await?;
        assert_eq!(number(&cluster, damaged, "lost_blobs")?, 0);
        for (place, client) in clients.iter().enumerate() {
            ensure!(client.download(&digest).await? == blob, "{size} bytes through {place}, after it was mended");
        }
    }
    let found: Vec<u64> = (0..3).map(|place| number(&cluster, place, "damaged_blobs")).collect::<Result<_>>()?;
    let mended: Vec<u64> = (0..3).map(|place| number(&cluster, place, "repaired_blobs")).collect::<Result<_>>()?;
    assert_eq!(found, mended);
    assert_eq!(found.iter().sum::<u64>(), SIZES.len() as u64);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_copy_whose_other_holder_is_away_is_no_miss_and_comes_back_with_it() -> Result<()> {
    let mut cluster = Cluster::start(&three())?;
    for size in [300, 300_000] {
        let blob = blob_of(&cluster, [0, 1], size)?;
        let digest = cluster.client(0).await?.upload(blob.clone()).await?;
        let absent = blob_of(&cluster, [0, 1], size)?;
        eventually("both copies are there", async || Ok(holders(&cluster, 0, &digest)?.present.len() == 2)).await?;
        cluster.kill9(1)?;
        flip(&cluster, 0, &blob)?;
        for place in [0, 2, 0] {
            let client = cluster.client(place).await?;
            let told = refused_with(Code::Unavailable, client.download(&digest).await)?;
            ensure!(!told.is_empty(), "{place}");
            assert!(!client.has(&digest).await?, "it is not called present while in doubt");
        }
        // It remembers.
        cluster.kill9(0)?;
        cluster.restart(0)?;
        eventually("what was never there is missing, and what was lost is not", async || {
            let client = cluster.client(0).await?;
            let missing = client.download(&digest_of(&absent)).await.is_err_and(|error| error.code() == Code::NotFound);
            refused_with(Code::Unavailable, client.download(&digest).await)?;
            Ok(missing)
        })
        .await?;
        assert_eq!(number(&cluster, 0, "lost_blobs")?, 1);
        cluster.restart(1)?;
        eventually("the copy is there again", async || Ok(holders(&cluster, 0, &digest)?.present.contains(&0))).await?;
        for client in cluster.clients().await? {
            ensure!(client.download(&digest).await? == blob);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_copy_is_made_good_from_one_that_stands_in_for_an_owner() -> Result<()> {
    let mut cluster = Cluster::start(&three())?;
    let blob = blob_of(&cluster, [0, 1], 300_000)?;
    cluster.kill9(1)?;
    let digest = cluster.client(0).await?.upload(blob.clone()).await?;
    cluster.restart(1)?;
    flip(&cluster, 0, &blob)?;
    for client in cluster.clients().await? {
        ensure!(client.download(&digest).await? == blob);
    }
    eventually("the copy is there again", async || Ok(holders(&cluster, 2, &digest)?.present.contains(&0))).await?;
    assert_eq!(number(&cluster, 0, "repaired_blobs")?, 1);
    Ok(())
}
