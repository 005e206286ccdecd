//! Every fault that we can make, with clients that use everything at once meanwhile, and a history that is checked.
//!
//! Each test tells in one line what clients saw, as a row of the table in docs/guarantees.md. `CASBAH_TEST_RUNS=100` makes so
//! many runs of each, with other seeds: about an hour. `CASBAH_TEST_SECONDS=3600` has the last one, in which any of the others'
//! clusters suffers any of their faults, go on for an hour, with one seed after the other.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use casbah_tests::cluster::{Cluster, ClusterOptions};
use casbah_tests::history::Kind;
use casbah_tests::load::test_seed;
use casbah_tests::nemesis::{Fault, Nemesis};
use casbah_tests::proxy::Mode;
use casbah_tests::workload::Workload;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// Runs of each test, unless `CASBAH_TEST_RUNS` says otherwise.
const RUNS: u64 = 1;

/// Faults of a run in which any may come.
const ANY_COUNT: usize = 4;

const KINDS: [Kind; 6] = [Kind::Store, Kind::Load, Kind::Update, Kind::Result, Kind::Push, Kind::Fetch];

/// What clients saw, over all runs.
#[derive(Debug, Default)]
struct Seen {
    calls: usize,
    answered: usize,
    longest_wait: Duration,
}

/// So many faults of these kinds in each run.
async fn suffers(name: &str, options: ClusterOptions, faults: &[Fault], count: usize) -> Result<()> {
    let runs = std::env::var("CASBAH_TEST_RUNS").map_or(Ok(RUNS), |runs| runs.parse())?;
    let first = test_seed();
    let mut seen = Seen::default();
    for run in 0..runs {
        let seed = first.wrapping_add(run);
        suffers_once(seed, &options, faults, count, &mut seen)
            .await
            .with_context(|| format!("CASBAH_TEST_SEED={seed}"))?;
    }
    seen.tell(name, runs, runs * count as u64);
    Ok(())
}

impl Seen {
    fn tell(&self, name: &str, runs: u64, faults: u64) {
        let Seen { calls, answered, longest_wait } = self;
        let (refused, longest) = (calls - answered, longest_wait.as_secs_f64());
        eprintln!("| {name} | {runs} | {faults} | {calls} | {refused} | {longest:.1} s |");
    }
}

async fn suffers_once(
    seed: u64,
    options: &ClusterOptions,
    faults: &[Fault],
    count: usize,
    seen: &mut Seen,
) -> Result<()> {
    let mut cluster = Cluster::start(options)?;
    let workload = Workload { clients: 6, blob_bytes_max: 100_000, ..Workload::mixed(seed) };
    let running = workload.start(&cluster.authorities());
    for kind in [Kind::Store, Kind::Result, Kind::Push] {
        running.goes_on(kind, 5).await?;
    }
    Nemesis::new(seed, faults.to_vec()).run(&mut cluster, count).await?;
    cluster.wait_formed(&cluster.places())?;
    for kind in [Kind::Store, Kind::Result, Kind::Push] {
        running.goes_on(kind, 5).await?;
    }
    let stopped = running.stop().await?;
    let history = stopped.history();
    let records = history.records();
    seen.calls += records.len();
    seen.answered += records.iter().filter(|record| record.outcome.is_answer()).count();
    seen.longest_wait = seen.longest_wait.max(history.longest_wait(&KINDS));
    stopped.check().await?;
    // Whatever has happened, all copies are there again in the end, without anybody's help.
    cluster.wait_settled(&cluster.places())
}

fn three() -> ClusterOptions {
    ClusterOptions::nodes(3)
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_are_killed() -> Result<()> {
    suffers("`kill -9` of a node", three(), &[Fault::Kill], 3).await
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_that_are_killed() -> Result<()> {
    suffers("`kill -9` of the leader, again and again", three(), &[Fault::KillLeader], 3).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_stop_for_a_while() -> Result<()> {
    suffers("a node that is paused", three(), &[Fault::Pause], 3).await
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_that_are_cut_in_two() -> Result<()> {
    let faults = [Fault::Split(Mode::Cut), Fault::Split(Mode::Hold), Fault::Split(Mode::HalfOpen)];
    suffers("two of five nodes cut off: reset, held back, or swallowed", ClusterOptions::nodes(5), &faults, 4).await
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_that_carry_one_way() -> Result<()> {
    let faults = [Fault::Split(Mode::OneWay), Fault::Edges(Mode::Cut), Fault::Edges(Mode::HalfOpen)];
    suffers("networks that carry in one direction", three(), &faults, 4).await
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_that_are_slow_or_late() -> Result<()> {
    let faults = [Fault::Everywhere(Mode::Slow(400_000)), Fault::Everywhere(Mode::Delay(Duration::from_millis(80)))];
    suffers("a network of 400 kB/s, or with 80 ms", three(), &faults, 3).await
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_that_are_lost() -> Result<()> {
    suffers("a node that loses its volume", three(), &[Fault::Wipe], 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_that_are_full() -> Result<()> {
    let disks = ClusterOptions { disk_bytes: Some(256 << 20), ..three().set("store.capacity = \"100MB\"") };
    suffers("a node whose disk is full (ENOSPC)", disks, &[Fault::FullDisk], 3).await
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_that_rot() -> Result<()> {
    suffers("flipped bits on the disk of a node", three().set("store.capacity = \"100MB\""), &[Fault::Rot], 4).await
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_at_once() -> Result<()> {
    let faults = [Fault::all(), vec![Fault::KillLeader, Fault::Wipe]].concat();
    suffers("all of these but disks that are full or rot, five nodes", ClusterOptions::nodes(5), &faults, 6).await
}

/// A cluster and what it suffers, as seeded.
fn any(seed: u64) -> (ClusterOptions, Vec<Fault>) {
    let mut random = SmallRng::seed_from_u64(seed);
    let small = |options: ClusterOptions| options.set("store.capacity = \"100MB\"");
    let (mut options, faults) = match random.random_range(0..8_u32) {
        0 => (three(), vec![Fault::Kill, Fault::KillLeader, Fault::Stop]),
        1 => (three(), vec![Fault::Wipe, Fault::Stop]),
        2 => (ClusterOptions { disk_bytes: Some(256 << 20), ..small(three()) }, vec![Fault::FullDisk]),
        3 => (small(three()), vec![Fault::Rot]),
        4 => (three(), Fault::all()),
        5 => (ClusterOptions::nodes(4), [Fault::all(), vec![Fault::KillLeader, Fault::Stop]].concat()),
        _ => (ClusterOptions::nodes(5), [Fault::all(), vec![Fault::KillLeader, Fault::Wipe, Fault::Stop]].concat()),
    };
    if options.nodes > 3 && random.random_bool(0.3) {
        options.copies = 3;
    }
    // A fault may last longer than a leader is waited for, after which fetches would be answered by what is known.
    (options.set("index.stale_reads = false"), faults)
}

#[tokio::test(flavor = "multi_thread")]
async fn any_of_these_for_as_long_as_one_likes() -> Result<()> {
    let seconds = std::env::var("CASBAH_TEST_SECONDS").map_or(Ok(0), |seconds| seconds.parse())?;
    let until = Instant::now() + Duration::from_secs(seconds);
    let (first, mut runs, mut seen) = (test_seed(), 0, Seen::default());
    while runs == 0 || Instant::now() < until {
        let seed = first.wrapping_add(runs);
        let (options, faults) = any(seed);
        let what = format!("CASBAH_TEST_SEED={seed}: {} nodes, {} copies, {faults:?}", options.nodes, options.copies);
        eprintln!("{what}");
        suffers_once(seed, &options, &faults, ANY_COUNT, &mut seen).await.context(what)?;
        runs += 1;
    }
    seen.tell("any of these", runs, runs * ANY_COUNT as u64);
    Ok(())
}
