//! The asset index is linearizable (G6): under partitions, pauses and kills, one order of all pushes and fetches explains
//! what every client has seen.

use anyhow::{Context as _, Result};
use casbah_tests::cluster::{Cluster, ClusterOptions};
use casbah_tests::history::Kind;
use casbah_tests::load::test_seed;
use casbah_tests::nemesis::{Fault, Nemesis};
use casbah_tests::workload::Workload;

/// Runs of each test, unless `CASBAH_TEST_RUNS` says otherwise.
const RUNS: u64 = 1;

/// Faults of each run.
const FAULTS: usize = 5;

fn runs() -> Result<u64> {
    std::env::var("CASBAH_TEST_RUNS").map_or(Ok(RUNS), |runs| runs.parse().context("CASBAH_TEST_RUNS is a number"))
}

async fn linearizable_under(options: &ClusterOptions, faults: fn() -> Vec<Fault>) -> Result<()> {
    let first = test_seed();
    for run in 0..runs()? {
        let seed = first.wrapping_add(run);
        let mut cluster = Cluster::start(options)?;
        let running = Workload::assets(seed).start(&cluster.authorities());
        running.goes_on(Kind::Push, 20).await?;
        Nemesis::new(seed, faults()).run(&mut cluster, FAULTS).await?;
        cluster.wait_formed(&cluster.places())?;
        running.goes_on(Kind::Push, 20).await?;
        running.goes_on(Kind::Fetch, 20).await?;
        running.stop().await?.check().await.with_context(|| format!("CASBAH_TEST_SEED={seed}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn assets_are_linearizable_under_partitions_and_pauses() -> Result<()> {
    let options = ClusterOptions::nodes(3).set("index.stale_reads = false");
    linearizable_under(&options, Fault::partitions_and_pauses).await
}

#[tokio::test(flavor = "multi_thread")]
async fn assets_are_linearizable_under_partitions_pauses_and_kills() -> Result<()> {
    let options = ClusterOptions::nodes(3).set("index.stale_reads = false");
    linearizable_under(&options, Fault::all).await
}

#[tokio::test(flavor = "multi_thread")]
async fn assets_of_five_nodes_are_linearizable_under_partitions_pauses_and_kills() -> Result<()> {
    let options = ClusterOptions { copies: 3, ..ClusterOptions::nodes(5) }.set("index.stale_reads = false");
    linearizable_under(&options, Fault::all).await
}
