//! Faults one after the other, as seeded: nodes that are killed or paused, networks that are split, late, slow or deaf.

use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::cluster::Cluster;
use crate::proxy::Mode;

/// How long a fault lasts: from less than an election to several.
const FAULT_MS: std::ops::Range<u64> = 200..2500;

/// How long the cluster is left alone in between.
const CALM_MS: std::ops::Range<u64> = 50..800;

/// What a [`Nemesis`] does. At most one node, or a minority of them, is cut off from the rest at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of a node, which is started again.
    Kill,
    /// SIGSTOP of a node, which goes on afterwards.
    Pause,
    /// A minority is cut off from the others in this mode, both ways.
    Split(Mode),
    /// Some edges of their own, one way each, are in this mode.
    Edges(Mode),
    /// Every edge is in this mode.
    Everywhere(Mode),
}

/// Faults as seeded.
pub struct Nemesis {
    random: SmallRng,
    faults: Vec<Fault>,
}

// === impl Fault ===

impl Fault {
    /// Everything that can go wrong with the network, and pauses.
    pub fn partitions_and_pauses() -> Vec<Fault> {
        let late = Mode::Delay(Duration::from_millis(80));
        vec![
            Fault::Pause,
            Fault::Split(Mode::Cut),
            Fault::Split(Mode::Hold),
            Fault::Split(Mode::HalfOpen),
            Fault::Split(Mode::OneWay),
            Fault::Edges(Mode::Cut),
            Fault::Edges(Mode::Hold),
            Fault::Edges(Mode::HalfOpen),
            Fault::Everywhere(late),
            Fault::Everywhere(Mode::Slow(400_000)),
        ]
    }

    /// The same, and kills.
    pub fn all() -> Vec<Fault> {
        [Fault::partitions_and_pauses(), vec![Fault::Kill, Fault::Kill]].concat()
    }
}

// === impl Nemesis ===

impl Nemesis {
    /// Faults of these kinds, the same ones for the same seed.
    pub fn new(seed: u64, faults: Vec<Fault>) -> Nemesis {
        Nemesis { random: SmallRng::seed_from_u64(seed), faults }
    }

    /// So many faults one after the other, each of which is mended before the next one.
    ///
    /// # Errors
    /// When a node does not do as it is told.
    pub async fn run(&mut self, cluster: &mut Cluster, count: usize) -> Result<()> {
        for _ in 0..count {
            let place = self.random.random_range(0..self.faults.len().max(1));
            let Some(fault) = self.faults.get(place).copied() else { return Ok(()) };
            let nodes = self.minority(cluster.count());
            eprintln!("{fault:?} of {nodes:?}");
            self.inflict(cluster, fault, &nodes).with_context(|| format!("{fault:?} of {nodes:?}"))?;
            self.pause(FAULT_MS).await;
            cluster.mend().with_context(|| format!("after {fault:?} of {nodes:?}"))?;
            self.pause(CALM_MS).await;
        }
        Ok(())
    }

    /// Fewer than half of so many nodes.
    fn minority(&mut self, count: usize) -> Vec<usize> {
        let size = self.random.random_range(1..=(count.saturating_sub(1) / 2).max(1));
        let mut nodes: Vec<usize> = Vec::new();
        while nodes.len() < size {
            let node = self.random.random_range(0..count.max(1));
            if !nodes.contains(&node) {
                nodes.push(node);
            }
        }
        nodes
    }

    fn inflict(&mut self, cluster: &mut Cluster, fault: Fault, nodes: &[usize]) -> Result<()> {
        match fault {
            Fault::Kill => nodes.iter().try_for_each(|node| cluster.kill9(*node)),
            Fault::Pause => nodes.iter().try_for_each(|node| cluster.pause(*node)),
            Fault::Split(mode) => {
                cluster.proxies().set_around(nodes, mode);
                Ok(())
            }
            Fault::Edges(mode) => {
                for node in nodes {
                    for other in cluster.others(*node) {
                        match self.random.random_range(0..3_u32) {
                            0 => cluster.proxies().set(*node, other, mode),
                            1 => cluster.proxies().set(other, *node, mode),
                            _ => {}
                        }
                    }
                }
                Ok(())
            }
            Fault::Everywhere(mode) => {
                cluster.proxies().set_all(mode);
                Ok(())
            }
        }
    }

    async fn pause(&mut self, range_ms: std::ops::Range<u64>) {
        let time = Duration::from_millis(self.random.random_range(range_ms));
        tokio::time::sleep(time).await; // why: a fault lasts, and so does the time without one
    }
}
