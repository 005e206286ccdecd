//! Runs, one for each seed, on all processors; and what is printed of one that went wrong.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::engine::Sim;
use crate::faults;
use crate::members;
use crate::node::{Node, keep_caught_up};
use crate::oracle::Counts;
use crate::settings::{FLOOR_MS, Rule, Settings};
use crate::trace::About;
use crate::workload;
use crate::world::World;

/// Runs of `make test`.
const SEEDS: u64 = 1_000;
/// Runs in which a broken rule has to be noticed.
const RULE_SEEDS: u64 = 300;
/// After the last fault, until everything must be in order.
const SETTLE_MS: u64 = 20 * 60_000;
/// For the last reads to be answered.
const LAST_LOOK_MS: u64 = 60_000;

/// How a run has ended.
struct Ended {
    counts: Counts,
    /// What was wrong, and what led there.
    violation: Option<(u64, About, String)>,
    trace: String,
}

fn run(settings: Settings) -> Ended {
    let (length_ms, is_traced) = (settings.length_ms, settings.traced);
    // A full disk takes nothing while all it has is safe from eviction.
    let settle_ms = if settings.is_tight { FLOOR_MS + SETTLE_MS } else { SETTLE_MS };
    let sim = Sim::new(World::new(settings));
    let machines = sim.world().machines.len();
    (0..machines).for_each(|machine| members::begin(&sim, machine));
    members::keep_watch(&sim);
    keep_caught_up(&sim);
    workload::go_on(&sim);
    faults::go_on(&sim);
    faults::keep_scrubbing(&sim);
    sim.run_until(length_ms);
    if sim.world().oracle.violation.is_none() {
        faults::heal(&sim);
        let end_ms = length_ms + settle_ms;
        sim.run_until(end_ms);
        look_at_everything(&sim);
        sim.run_until(end_ms + LAST_LOOK_MS);
        if sim.world().oracle.violation.is_none() {
            sim.world().check_order();
        }
    }
    sim.close();
    let world = sim.world();
    let violation = world.oracle.violation.clone();
    let trace = violation.as_ref().filter(|_| is_traced).map(|(_, about, _)| world.trace.of(*about));
    Ended { counts: world.oracle.counts, violation, trace: trace.unwrap_or_default() }
}

/// Everything that is promised is asked for, through every node.
fn look_at_everything(sim: &Sim) {
    let machines = sim.world().machines.len();
    for node in (0..machines).filter_map(|machine| Node::on(sim, machine)) {
        let known = sim.world().oracle.known();
        known.into_iter().for_each(|blob| workload::ask_for(sim, node, blob));
        (0..workload::ACTIONS).for_each(|action| workload::ask_for_action(sim, node, action));
    }
}

/// Runs seeds until one fails, or there are no more, or the time is over. The failing one, and what all of them have done.
fn search(seeds: std::ops::Range<u64>, until: Option<Instant>, broken: Option<Rule>) -> (Option<u64>, u64, Counts) {
    let (next, is_over) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let found: Mutex<(Option<u64>, u64, Counts)> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) && until.is_none_or(|until| Instant::now() < until) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let ended = run(Settings { broken, ..Settings::of(seed) });
                    let mut found = found.lock().unwrap();
                    found.1 += 1;
                    found.2.add(&ended.counts);
                    if ended.violation.is_some() {
                        is_over.store(true, Ordering::Relaxed);
                        found.0 = Some(found.0.map_or(seed, |other| other.min(seed)));
                    }
                }
            });
        }
    });
    found.into_inner().unwrap()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Says what went wrong by this seed.
fn explain(seed: u64) -> String {
    let settings = Settings { traced: true, ..Settings::of(seed) };
    let what = format!("{settings:?}");
    let ended = run(settings);
    let Some((at_ms, about, text)) = ended.violation else { return format!("seed {seed} does not fail again") };
    let command = format!("CASBAH_SIM_SEED={seed} cargo test -p casbah-cluster --test simulation nothing_that");
    format!("{}\n{what}\nat {at_ms} ms, {about:?}: {text}\nseed {seed}; again: {command}", ended.trace)
}

#[test]
fn nothing_that_was_acknowledged_is_lost_or_denied_whatever_goes_wrong() {
    let seeds = match (number("CASBAH_SIM_SEED"), number("CASBAH_SIM_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => {
            let start = if count.is_some() || number("CASBAH_SIM_SECONDS").is_some() {
                rand::random::<u32>().into()
            } else {
                0
            };
            start..start + count.unwrap_or(if start == 0 { SEEDS } else { u64::from(u32::MAX) })
        }
    };
    let until = number("CASBAH_SIM_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let (failed, runs, counts) = search(seeds, until, None);
    println!("{runs} runs: {counts:?}");
    if let Some(seed) = failed {
        panic!("{}", explain(seed));
    }
    assert!(counts.acknowledged > 20 * runs && counts.found > 20 * runs, "{counts:?}");
}

#[test]
fn a_rule_that_is_broken_is_noticed() {
    let mut unnoticed = Vec::new();
    println!("rule, runs until it was noticed, what was noticed");
    for rule in Rule::NOTICED {
        let seeds = number("CASBAH_SIM_RULE_SEEDS").unwrap_or(RULE_SEEDS);
        let (failed, runs, _) = search(0..seeds, None, Some(rule));
        let what = failed.and_then(|seed| run(Settings { broken: Some(rule), ..Settings::of(seed) }).violation);
        match what {
            Some((_, _, text)) => println!("{rule:?}, {runs}, {text}"),
            None => {
                println!("{rule:?}, -, -");
                unnoticed.push(rule);
            }
        }
    }
    assert!(unnoticed.is_empty(), "nobody noticed that these were broken: {unnoticed:?}");
}
