//! One node goes, under load, and nobody is told anything untrue, nothing acknowledged is lost, and little has to wait.

use std::time::Duration;

use anyhow::{Result, ensure};
use casbah_tests::clients::AssetName;
use casbah_tests::cluster::{Cluster, ClusterOptions};
use casbah_tests::deadline::eventually;
use casbah_tests::history::Kind;
use casbah_tests::load::{new_bytes, test_seed};
use casbah_tests::proxy::Mode;
use casbah_tests::workload::{Running, Workload};

/// How long a client may have to wait for a write while one node goes.
const WRITES_WAIT_MAX: Duration = Duration::from_secs(3);

const WRITES: [Kind; 3] = [Kind::Store, Kind::Update, Kind::Push];

const ALL: [Kind; 7] = [Kind::Store, Kind::Load, Kind::Find, Kind::Update, Kind::Result, Kind::Push, Kind::Fetch];

/// What a client tries at the most while a node ends and starts: Bazel's own number.
const ATTEMPTS_MAX: usize = 6;

/// Until everything that clients do has been done some times more.
async fn everything_goes_on(running: &Running) -> Result<()> {
    blobs_and_assets_go_on(running).await?;
    running.goes_on(Kind::Update, 10).await?;
    running.goes_on(Kind::Result, 10).await
}

async fn blobs_and_assets_go_on(running: &Running) -> Result<()> {
    for kind in [Kind::Store, Kind::Load, Kind::Push, Kind::Fetch] {
        running.goes_on(kind, 10).await?;
    }
    Ok(())
}

fn workload() -> Workload {
    Workload::mixed(test_seed())
}

/// Kills this node under load; the others go on, and the node comes back.
async fn kill_under_load(cluster: &mut Cluster, victim: usize) -> Result<()> {
    let running = workload().start(&cluster.authorities());
    everything_goes_on(&running).await?;
    let killed = running.history().now();
    cluster.kill9(victim)?;
    everything_goes_on(&running).await?;
    let restarted = running.history().now();
    cluster.restart(victim)?;
    cluster.wait_formed(&cluster.places())?;
    everything_goes_on(&running).await?;
    let stopped = running.stop().await?;
    stopped.check().await?;
    stopped.history().check_readable(&cluster.others(victim), Duration::ZERO..restarted)?;
    let waited = stopped.history().longest_wait(&WRITES);
    eprintln!("killed after {killed:?}; a write waited for {waited:?} at the most");
    ensure!(waited < WRITES_WAIT_MAX, "a write had to wait for {waited:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_a_follower_of_three_loses_nothing_and_is_hardly_noticed() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::nodes(3))?;
    let victim = cluster.follower()?;
    kill_under_load(&mut cluster, victim).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_the_leader_of_three_loses_nothing_and_is_noticed_for_an_election_at_the_most() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::nodes(3))?;
    let victim = cluster.leader()?;
    kill_under_load(&mut cluster, victim).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_the_leader_of_five_loses_nothing_and_is_noticed_for_an_election_at_the_most() -> Result<()> {
    let options = ClusterOptions { copies: 3, ..ClusterOptions::nodes(5) };
    let mut cluster = Cluster::start(&options)?;
    let victim = cluster.leader()?;
    kill_under_load(&mut cluster, victim).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_of_three_may_go_one_after_the_other() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::nodes(3))?;
    let running = workload().start(&cluster.authorities());
    for victim in cluster.places() {
        everything_goes_on(&running).await?;
        cluster.kill9(victim)?;
        everything_goes_on(&running).await?;
        cluster.restart(victim)?;
        cluster.wait_formed(&cluster.places())?;
    }
    running.stop().await?.check().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_fails_nothing_that_a_retry_does_not_heal() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::nodes(3))?;
    let running = Workload { reads_insist: true, ..workload() }.start(&cluster.authorities());
    for place in cluster.places() {
        everything_goes_on(&running).await?;
        cluster.stop(place)?;
        everything_goes_on(&running).await?;
        cluster.restart(place)?;
        cluster.wait_formed(&cluster.places())?;
    }
    let stopped = running.stop().await?;
    stopped.check().await?;
    let waited = stopped.history().longest_wait(&WRITES);
    let attempts = stopped.history().attempts(&ALL);
    eprintln!("{attempts:?}; a write waited for {waited:?} at the most");
    ensure!(waited < WRITES_WAIT_MAX, "a write had to wait for {waited:?}");
    ensure!(attempts.given_up == 0 && attempts.most <= ATTEMPTS_MAX, "{attempts:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_killed_at_once_lose_nothing_that_was_acknowledged() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::nodes(3))?;
    let id = cluster.cluster_id(0)?;
    let running = workload().start(&cluster.authorities());
    for _ in 0..2 {
        everything_goes_on(&running).await?;
        cluster.kill9_all()?;
        cluster.start_all()?;
        cluster.wait_formed(&cluster.places())?;
    }
    everything_goes_on(&running).await?;
    running.stop().await?.check().await?;
    for place in cluster.places() {
        assert_eq!(cluster.cluster_id(place)?, id);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_log_had_no_room_gives_what_it_has_and_is_started_anew_when_there_is_room() -> Result<()> {
    let options = ClusterOptions { disk_bytes: Some(256 << 20), copies: 3, ..ClusterOptions::nodes(3) };
    let mut cluster = Cluster::start(&options.set("store.capacity = \"100MB\""))?;
    let victim = cluster.follower()?;
    let (full, other) = (cluster.client(victim).await?, cluster.client(cluster.others(victim)[0]).await?);
    let blob = new_bytes(100_000);
    let digest = other.upload(blob.clone()).await?;
    cluster.fill_disk(victim)?;
    let name = AssetName::unique();
    eventually("its log is closed", || async {
        other.push_blob(&name, &digest).await?;
        Ok(cluster.status(victim)?["cluster"]["raft"]["role"] == "stopped")
    })
    .await?;
    assert_eq!(full.download(&digest).await?, blob);

    cluster.free_disk(victim)?;
    cluster.server(victim)?.wait_for_stderr("ends to be started anew")?;
    ensure!(!cluster.ends(victim)?.success(), "a supervisor starts what has failed");
    cluster.restart(victim)?;
    cluster.wait_formed(&cluster.places())?;
    let again = cluster.client(victim).await?;
    assert_eq!(again.fetch_blob(&name).await?.blob_digest.as_ref(), Some(&digest));
    assert_eq!(again.download(&digest).await?, blob);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_from_all_others_says_nothing_untrue() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions::nodes(3).set("index.stale_reads = false"))?;
    let victim = cluster.follower()?;
    let running = workload().start(&cluster.authorities());
    for mode in [Mode::Cut, Mode::Hold, Mode::HalfOpen] {
        everything_goes_on(&running).await?;
        cluster.proxies().set_around(&[victim], mode);
        everything_goes_on(&running).await?;
        cluster.proxies().set_all(Mode::Pass);
        cluster.wait_formed(&cluster.places())?;
    }
    running.stop().await?.check().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_answering_holds_up_no_write_for_long() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::nodes(3))?;
    let victim = cluster.follower()?;
    // Nobody asks the node itself, which would not answer.
    let others: Vec<String> = cluster.others(victim).into_iter().map(|place| cluster.authority(place)).collect();
    let running = workload().start(&others);
    everything_goes_on(&running).await?;
    cluster.pause(victim)?;
    everything_goes_on(&running).await?;
    cluster.resume(victim)?;
    everything_goes_on(&running).await?;
    let stopped = running.stop().await?;
    stopped.check().await?;
    let waited = stopped.history().longest_wait(&WRITES);
    ensure!(waited < WRITES_WAIT_MAX, "a write had to wait for {waited:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_or_late_network_between_the_nodes_breaks_no_promise() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions::nodes(3))?;
    let running = workload().start(&cluster.authorities());
    for mode in [Mode::Delay(Duration::from_millis(30)), Mode::Slow(4_000_000)] {
        everything_goes_on(&running).await?;
        cluster.proxies().set_all(mode);
        everything_goes_on(&running).await?;
        cluster.proxies().set_all(Mode::Pass);
    }
    running.stop().await?.check().await
}
