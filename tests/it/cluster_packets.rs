//! Networks that lose what they carry, under load: cut in two, in one direction, again and again. Connections stay open all the
//! while, as no proxy of ours could have it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use casbah_tests::cluster::{Cluster, ClusterOptions};
use casbah_tests::history::Kind;
use casbah_tests::kubernetes;
use casbah_tests::load::test_seed;
use casbah_tests::packets::{self, Packets};
use casbah_tests::workload::{Running, Workload};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

const KINDS: [Kind; 6] = [Kind::Store, Kind::Load, Kind::Update, Kind::Result, Kind::Push, Kind::Fetch];

/// What happens to the way between a minority and the others.
#[derive(Debug, Clone, Copy)]
enum Loss {
    BothWays,
    FromTheFew,
    ToTheFew,
    /// Both ways, for moments that are too short to be noticed, and for longer ones.
    Flapping,
}

async fn everything_goes_on(running: &Running) -> Result<()> {
    for kind in KINDS {
        running.goes_on(kind, 5).await?;
    }
    Ok(())
}

async fn pass_time(random: &mut SmallRng, range_ms: std::ops::Range<u64>) {
    let time = Duration::from_millis(random.random_range(range_ms));
    tokio::time::sleep(time).await; // why: a loss lasts, and so does the time without one
}

async fn suffer(packets: &Packets, random: &mut SmallRng, few: &[usize], others: &[usize], loss: Loss) -> Result<()> {
    eprintln!("{loss:?} between {few:?} and {others:?}");
    let turns = if matches!(loss, Loss::Flapping) { 5 } else { 1 };
    for _ in 0..turns {
        if !matches!(loss, Loss::ToTheFew) {
            packets.drop_between(few, others)?;
        }
        if !matches!(loss, Loss::FromTheFew) {
            packets.drop_between(others, few)?;
        }
        pass_time(random, if turns > 1 { 100..900 } else { 500..3000 }).await;
        packets.pass()?;
        pass_time(random, 50..500).await;
    }
    Ok(())
}

#[test]
fn packets_that_are_lost_between_nodes_lose_nothing_else() -> Result<()> {
    let test = "cluster_packets::packets_that_are_lost_between_nodes_lose_nothing_else";
    kubernetes::inside(test, async {
        packets::loopback_up()?;
        let seed = test_seed();
        let mut random = SmallRng::seed_from_u64(seed);
        // A loss may last longer than a leader is waited for, after which fetches would be answered by what is known.
        let options = ClusterOptions { direct: true, ..ClusterOptions::nodes(5) }.set("index.stale_reads = false");
        let cluster = Cluster::start(&options)?;
        let packets = Packets::of(&cluster)?;
        let workload = Workload { clients: 6, blob_bytes_max: 100_000, ..Workload::mixed(seed) };
        let running = workload.start(&cluster.authorities());
        everything_goes_on(&running).await?;
        for loss in [Loss::BothWays, Loss::FromTheFew, Loss::ToTheFew, Loss::Flapping] {
            let mut places = cluster.places();
            places.shuffle(&mut random);
            let (few, others) = places.split_at(random.random_range(1..=2));
            suffer(&packets, &mut random, few, others, loss).await?;
        }
        cluster.wait_formed(&cluster.places())?;
        everything_goes_on(&running).await?;
        let stopped = running.stop().await?;
        let (records, waited) = (stopped.history().records(), stopped.history().longest_wait(&KINDS));
        let refused = records.iter().filter(|record| !record.outcome.is_answer()).count();
        eprintln!("{refused} of {} calls were refused; the longest wait was {waited:?}", records.len());
        stopped.check().await.with_context(|| format!("CASBAH_TEST_SEED={seed}"))?;
        cluster.wait_settled(&cluster.places())
    })
}
