//! The workload and its checkers against a cluster of one, which keeps its promises alone.

use anyhow::Result;
use casbah_tests::cluster::{Cluster, ClusterOptions};
use casbah_tests::history::Kind;
use casbah_tests::load::test_seed;
use casbah_tests::workload::Workload;

#[tokio::test(flavor = "multi_thread")]
async fn a_single_node_keeps_every_promise_over_kills() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::nodes(1))?;
    let running = Workload::mixed(test_seed()).start(&cluster.authorities());
    for _ in 0..3 {
        running.goes_on(Kind::Push, 20).await?;
        running.goes_on(Kind::Store, 50).await?;
        cluster.kill9(0)?;
        cluster.restart(0)?;
    }
    running.goes_on(Kind::Push, 20).await?;
    running.stop().await?.check().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_node_that_pauses_breaks_no_promise() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::nodes(1))?;
    let running = Workload::assets(test_seed()).start(&cluster.authorities());
    for _ in 0..3 {
        running.goes_on(Kind::Fetch, 50).await?;
        cluster.pause(0)?;
        tokio::time::sleep(std::time::Duration::from_millis(200)).await; // why: this is the fault
        cluster.resume(0)?;
    }
    running.goes_on(Kind::Push, 50).await?;
    running.stop().await?.check().await
}
