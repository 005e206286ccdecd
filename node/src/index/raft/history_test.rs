//! Reads and writes through all nodes while the network is cut and slowed, leaders change and nodes are killed: no read is
//! answered with something older than what was acknowledged, or read, before it began.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use casbah_cluster::membership::NodeId;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use tokio::sync::RwLock;

use super::testing::{Nodes, get, put, timing};

const KEYS: u64 = 3;
const READERS: u64 = 8;

/// Before a client that was refused comes back.
const PAUSE: Duration = Duration::from_millis(10);

/// How many times something is done to the nodes, at least.
const TROUBLES: usize = 12;

/// Numbers grow: each key has one writer, who writes 1, 2, 3 and so on.
#[derive(Default)]
struct Known {
    /// The highest number that a read that begins now must find at least, by key.
    floor: Mutex<BTreeMap<u64, u64>>,
    /// The highest number that was ever tried to be written, by key.
    tried: Mutex<BTreeMap<u64, u64>>,
    reads: AtomicU64,
    writes: AtomicU64,
}

// === impl Known ===

impl Known {
    fn floor(&self, key: u64) -> u64 {
        self.floor.lock().unwrap().get(&key).copied().unwrap_or(0)
    }

    fn raise(&self, key: u64, number: u64) {
        let mut floor = self.floor.lock().unwrap();
        let known = floor.entry(key).or_insert(0);
        *known = (*known).max(number);
    }
}

/// A node that runs, or nothing.
async fn some_node(nodes: &RwLock<Nodes>, random: &mut StdRng) -> Option<super::Group> {
    let nodes = nodes.read().await;
    let running = nodes.running();
    let node = running.get(random.random_range(0..3)).copied()?;
    Some(nodes.get(node))
}

async fn write(nodes: Arc<RwLock<Nodes>>, known: Arc<Known>, ends: Arc<AtomicBool>, key: u64, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut number = 0;
    while !ends.load(Ordering::Relaxed) {
        let Some(group) = some_node(&nodes, &mut random).await else { continue };
        number += 1;
        known.tried.lock().unwrap().insert(key, number);
        if put(&group, &key.to_string(), &number.to_string()).await.is_ok() {
            known.raise(key, number);
            known.writes.fetch_add(1, Ordering::Relaxed);
        } else {
            // why: a client that was refused comes back a little later.
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn read(nodes: Arc<RwLock<Nodes>>, known: Arc<Known>, ends: Arc<AtomicBool>, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    while !ends.load(Ordering::Relaxed) {
        let Some(group) = some_node(&nodes, &mut random).await else { continue };
        let key = random.random_range(0..KEYS);
        let floor = known.floor(key);
        let Ok(found) = get(&group, &key.to_string()).await else {
            // why: a client that was refused comes back a little later.
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let number = found.map_or(0, |number| number.parse().unwrap());
        assert!(number >= floor, "node {} answered {number} for key {key} when {floor} was known", group.node());
        let tried = known.tried.lock().unwrap().get(&key).copied().unwrap_or(0);
        assert!(number <= tried, "node {} answered {number} for key {key}, which nobody has written", group.node());
        known.raise(key, number);
        known.reads.fetch_add(1, Ordering::Relaxed);
    }
}

async fn trouble(nodes: &RwLock<Nodes>, random: &mut StdRng) {
    let any = NodeId(random.random_range(1..=3));
    let pause = Duration::from_millis(random.random_range(100..1_200));
    match random.random_range(0..6) {
        0 => nodes.read().await.wires.isolate(&[any]),
        1 => {
            let nodes = nodes.read().await;
            let leader = nodes.running().into_iter().find(|node| nodes.get(*node).is_leader());
            nodes.wires.isolate(&[leader.unwrap_or(any)]);
        }
        2 => nodes
            .read()
            .await
            .wires
            .trouble(random.random_range(1..30), Duration::from_millis(random.random_range(0..100))),
        3 => {
            let group = nodes.read().await.get(any);
            drop(group.transfer_leadership().await);
        }
        4 => {
            let mut nodes = nodes.write().await;
            nodes.kill(any).await;
            nodes.start(any).await;
        }
        _ => {
            let mut nodes = nodes.write().await;
            for node in nodes.running() {
                nodes.kill(node).await;
            }
            for node in 1..=3 {
                nodes.start(NodeId(node)).await;
            }
        }
    }
    // why: trouble takes time; nothing is waited for.
    tokio::time::sleep(pause).await;
    nodes.read().await.wires.heal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_is_older_than_what_was_known_before_it() {
    let seed = std::env::var("CASBAH_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().next_u64());
    println!("CASBAH_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let nodes = Arc::new(RwLock::new(Nodes::formed(3, seed, timing()).await));
    let known = Arc::new(Known::default());
    let ends = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for key in 0..KEYS {
        clients.spawn(write(nodes.clone(), known.clone(), ends.clone(), key, random.next_u64()));
    }
    for _ in 0..READERS {
        clients.spawn(read(nodes.clone(), known.clone(), ends.clone(), random.next_u64()));
    }
    let counts = || (known.reads.load(Ordering::Relaxed), known.writes.load(Ordering::Relaxed));
    let is_enough = || counts().0 > 20 && counts().1 > 20;
    let mut troubles = 0;
    // Where they left time for little, there are more of them.
    while troubles < TROUBLES || (!is_enough() && troubles < 4 * TROUBLES) {
        trouble(&nodes, &mut random).await;
        troubles += 1;
    }
    ends.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    // In the end everybody agrees, and nothing that was acknowledged is missing.
    let nodes = nodes.read().await;
    for key in 0..KEYS {
        let mut found = Vec::new();
        for node in [1, 2, 3] {
            let group = nodes.get(NodeId(node));
            let again = async { while group.linearizable().await.is_err() {} };
            tokio::time::timeout(super::testing::DEADLINE, again).await.expect("reads did not come back");
            found.push(super::testing::stale(&group, &key.to_string()).map_or(0, |number| number.parse().unwrap()));
        }
        assert!(found.iter().all(|number| *number >= known.floor(key)), "key {key}: {found:?} of {}", known.floor(key));
    }
    let (reads, writes) = counts();
    println!("{reads} reads and {writes} writes");
    assert!(is_enough(), "{reads} reads and {writes} writes are too few to say anything");
}
