//! Programs of two versions in one cluster, one replaced by the other under load (G8): the same program, which passes for one
//! that speaks an older or a newer version of the peer protocol.

use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use casbah_tests::clients::Client;
use casbah_tests::cluster::{Cluster, ClusterOptions};
use casbah_tests::deadline::eventually;
use casbah_tests::history::Kind;
use casbah_tests::load::{new_bytes, test_seed};
use casbah_tests::process;
use casbah_tests::workload::{Running, Workload};
use serde_json::Value;

/// Speaks nothing newer than this program does.
const OLD: &str = "1";

/// Speaks one more.
const NEW: &str = "1-2";

/// Has forgotten the old one.
const NEWEST: &str = "2-3";

const ALL: [Kind; 7] = [Kind::Store, Kind::Load, Kind::Find, Kind::Update, Kind::Result, Kind::Push, Kind::Fetch];

/// What a client tries at the most while a program is replaced: Bazel's own number.
const ATTEMPTS_MAX: usize = 6;

fn workload() -> Workload {
    Workload { clients: 6, blob_bytes_max: 100_000, reads_insist: true, ..Workload::mixed(test_seed()) }
}

async fn everything_goes_on(running: &Running) -> Result<()> {
    for kind in ALL {
        running.goes_on(kind, 5).await?;
    }
    Ok(())
}

/// The version that the cluster works by, as a node knows it.
fn works_by(cluster: &Cluster, place: usize) -> Result<u64> {
    cluster.status(place)?.pointer("/cluster/protocol").and_then(Value::as_u64).context("no version")
}

/// What all nodes know this node to speak.
fn is_known_to_speak(cluster: &Cluster, place: usize, protocols: &str) -> bool {
    let name = format!("node-{}", place + 1);
    let said = |asked: usize| -> Option<String> {
        let status = cluster.status(asked).ok()?;
        let members = status.pointer("/cluster/members")?.as_array()?;
        let member = members.iter().find(|member| member["name"] == *name)?;
        Some(member["protocols"].as_str()?.to_owned())
    };
    cluster.places().into_iter().all(|asked| said(asked).as_deref() == Some(protocols))
}

async fn until_all_work_by(cluster: &Cluster, places: &[usize], protocol: u64) -> Result<()> {
    eventually(&format!("the cluster works by version {protocol}"), || async {
        Ok(places.iter().all(|place| works_by(cluster, *place).is_ok_and(|now| now == protocol)))
    })
    .await
}

async fn works(through: &Client, other: &Client) -> Result<()> {
    let bytes = new_bytes(20_000);
    let digest = through.upload(bytes.clone()).await?;
    assert_eq!(other.download(&digest).await?, bytes);
    Ok(())
}

/// Gives a command to a node.
fn give(cluster: &Cluster, place: usize, args: &[&str]) -> Result<Output> {
    let admin = cluster.admin(place).to_string();
    let args: Vec<&str> = args.iter().copied().chain(["--admin", &admin]).collect();
    let output = process::run(&args)?;
    ensure!(output.status.success(), "{args:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

#[tokio::test(flavor = "multi_thread")]
async fn old_programs_are_replaced_by_new_ones_under_load_and_there_is_a_way_back_before_the_last() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::nodes(3))?;
    let running = workload().start(&cluster.authorities());
    everything_goes_on(&running).await?;
    cluster.replace(0, NEW)?;
    everything_goes_on(&running).await?;
    cluster.replace(1, NEW)?;
    eventually("the others know it", || async { Ok(is_known_to_speak(&cluster, 1, NEW)) }).await?;
    everything_goes_on(&running).await?;
    // One goes back. Nothing new was said or written, since one has been old all the time.
    cluster.replace(1, OLD)?;
    eventually("the others know it", || async { Ok(is_known_to_speak(&cluster, 1, OLD)) }).await?;
    for place in cluster.places() {
        assert_eq!(works_by(&cluster, place)?, 1);
    }
    everything_goes_on(&running).await?;
    cluster.replace(1, NEW)?;
    cluster.replace(2, NEW)?;
    until_all_work_by(&cluster, &cluster.places(), 2).await?;
    everything_goes_on(&running).await?;
    // And on to one that does not know the version that the cluster was formed with.
    cluster.replace(0, NEWEST)?;
    everything_goes_on(&running).await?;
    let stopped = running.stop().await?;
    stopped.check().await?;
    let attempts = stopped.history().attempts(&ALL);
    eprintln!("{attempts:?}; the longest wait was {:?}", stopped.history().longest_wait(&ALL));
    ensure!(attempts.given_up == 0 && attempts.most <= ATTEMPTS_MAX, "{attempts:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_without_a_version_in_common_is_not_let_in_and_says_why_until_there_is_one() -> Result<()> {
    let options = ClusterOptions { bootstrap_expect: Some(3), ..ClusterOptions::nodes(4) };
    let mut cluster = Cluster::prepare(&options)?;
    for place in 0..3 {
        cluster.restart(place)?;
    }
    cluster.wait_formed(&[0, 1, 2])?;
    cluster.passes_for(3, NEWEST)?;
    cluster.restart(3)?;
    let why = "the cluster works by version 1 of the peer protocol, and the node speaks 2-3";
    eventually("it says why it waits", || async {
        let status = cluster.status(3)?;
        Ok(status.pointer("/waits_for").and_then(Value::as_str).is_some_and(|waits_for| waits_for.contains(why)))
    })
    .await?;
    let stranger = cluster.client(3).await?;
    let refused = stranger.upload(new_bytes(100)).await;
    ensure!(refused.is_err(), "it takes writes, and is in no cluster");
    works(&cluster.client(0).await?, &cluster.client(1).await?).await?;
    let members = cluster.status(0)?.pointer("/cluster/members").and_then(Value::as_array).map(Vec::len);
    assert_eq!(members, Some(3));
    for place in 0..3 {
        cluster.stop(place)?;
        cluster.passes_for(place, NEW)?;
        cluster.restart(place)?;
        cluster.wait_formed(&[0, 1, 2])?;
    }
    cluster.wait_formed(&cluster.places())?;
    works(&stranger, &cluster.client(2).await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_program_in_a_cluster_that_has_gone_on_ends_says_why_and_harms_nothing() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::nodes(3))?;
    let running = workload().start(&[cluster.authority(1), cluster.authority(2)]);
    everything_goes_on(&running).await?;
    cluster.replace(0, NEW)?;
    cluster.replace(1, NEW)?;
    eventually("all know it", || async {
        Ok(is_known_to_speak(&cluster, 0, NEW) && is_known_to_speak(&cluster, 1, NEW))
    })
    .await?;
    // The cluster goes on while this one is away, and so does not know it.
    cluster.stop(0)?;
    cluster.stop(2)?;
    cluster.passes_for(2, NEW)?;
    cluster.restart(2)?;
    until_all_work_by(&cluster, &[1, 2], 2).await?;
    everything_goes_on(&running).await?;
    cluster.passes_for(0, OLD)?;
    for knows_it in [false, true] {
        let left_behind = cluster.start_in_vain(0)?;
        let status = left_behind.wait_exit()?;
        let said = left_behind.stderr();
        ensure!(!status.success(), "it ends as if all were well");
        let why = "the cluster works by version 2 of the peer protocol, and this program speaks 1";
        ensure!(said.contains(why) && said.contains("hint:"), "{said}");
        // From its own disk, the second time.
        ensure!(!knows_it || !left_behind.stdout().contains("ready"), "{}", left_behind.stdout());
    }
    everything_goes_on(&running).await?;
    cluster.passes_for(0, NEW)?;
    cluster.restart(0)?;
    cluster.wait_formed(&cluster.places())?;
    everything_goes_on(&running).await?;
    running.stop().await?.check().await?;
    works(&cluster.client(0).await?, &cluster.client(1).await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_drained_kept_after_all_drained_again_and_removed_under_load() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::nodes(4).set("repair.rate = \"4MiB\""))?;
    let leaver = cluster.leader()?;
    let others = cluster.others(leaver);
    let asked = *others.first().context("three others")?;
    let name = format!("node-{}", leaver + 1);
    let stay: Vec<String> = others.iter().map(|place| cluster.authority(*place)).collect();
    let running = workload().start(&stay);
    // It takes any request as long as it is there.
    let through_it = Workload { clients: 2, seed: test_seed().wrapping_add(1), ..workload() };
    let through_it = through_it.start(&[cluster.authority(leaver)]);
    everything_goes_on(&running).await?;
    everything_goes_on(&through_it).await?;
    give(&cluster, asked, &["node", "drain", &name])?;
    eventually("another node leads", || async { Ok(cluster.leader().is_ok_and(|now| now != leaver)) }).await?;
    everything_goes_on(&through_it).await?;
    give(&cluster, asked, &["node", "undrain", &name])?;
    everything_goes_on(&running).await?;
    everything_goes_on(&through_it).await?;
    give(&cluster, asked, &["node", "drain", &name, "--wait"])?;
    everything_goes_on(&through_it).await?;
    let gone = through_it.stop().await?;
    give(&cluster, asked, &["node", "remove", &name])?;
    cluster.stop(leaver)?;
    cluster.wait_settled(&others)?;
    everything_goes_on(&running).await?;
    let stopped = running.stop().await?;
    stopped.check().await?;
    gone.history().check()?;
    let client = cluster.client(asked).await?;
    for content in gone.history().acknowledged_blobs() {
        content.verify(&client).await?;
    }
    let attempts = stopped.history().attempts(&ALL);
    eprintln!("{attempts:?}; the longest wait was {:?}", stopped.history().longest_wait(&ALL));
    ensure!(attempts.given_up == 0 && attempts.most <= ATTEMPTS_MAX, "{attempts:?}");
    let attempts = gone.history().attempts(&ALL);
    eprintln!("through the node that leaves: {attempts:?}");
    ensure!(attempts.given_up == 0, "{attempts:?}");
    Ok(())
}
