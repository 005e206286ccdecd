//! Faults one after the other, as seeded: nodes that are killed or paused, disks that are lost, full or rotting, networks that
//! are split, late, slow or deaf.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
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

/// Bits that flip at one time.
const FLIPS: usize = 20;

/// The folders of a store that have blobs in them; the folder of the store itself is in the node's.
const BLOB_FOLDERS: [&str; 2] = ["segments", "blobs"];

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
    /// `kill -9` of the leader, which is started again.
    KillLeader,
    /// SIGTERM of a node, which is started again.
    Stop,
    /// A node is killed and loses its disk, and comes back with an empty one. Others are left alone until it has been filled.
    Wipe,
    /// The disk of a node, its own, is full. The node is started anew when there is room.
    FullDisk,
    /// Bits flip in the blobs of the first node. The others keep theirs: of a blob with two rotten copies nothing is promised.
    Rot,
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
            if fault == Fault::Wipe {
                cluster.wait_settled(&cluster.places())?;
            }
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
            Fault::Stop => nodes.iter().try_for_each(|node| cluster.stop(*node)),
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
            Fault::KillLeader => {
                let leader = cluster.leader()?;
                cluster.kill9(leader)
            }
            Fault::Wipe => {
                let node = nodes.first().copied().unwrap_or_default();
                cluster.kill9(node)?;
                cluster.wipe(node)
            }
            Fault::FullDisk => nodes.iter().try_for_each(|node| cluster.fill_disk(*node)),
            Fault::Rot => self.flip_bits(&cluster.data(0)?.join("store")),
        }
    }

    /// Flips bits of blobs, wherever they are.
    fn flip_bits(&mut self, store: &Path) -> Result<()> {
        let mut files = Vec::new();
        for folder in BLOB_FOLDERS {
            files.extend(crate::files::files(&store.join(folder))?);
        }
        files.sort();
        for _ in 0..FLIPS {
            let Some(path) = files.get(self.random.random_range(0..files.len().max(1))) else { return Ok(()) };
            let size_bytes = fs::metadata(path).map_or(0, |metadata| metadata.len());
            // It may have been removed meanwhile.
            let Ok(file) = File::options().read(true).write(true).open(path) else { continue };
            let (at, mut byte) = (self.random.random_range(0..size_bytes.max(1)), [0]);
            if file.read_exact_at(&mut byte, at).is_ok() {
                let [before] = byte;
                file.write_all_at(&[before ^ (1 << self.random.random_range(0..8_u32))], at)?;
            }
        }
        Ok(())
    }

    async fn pause(&mut self, range_ms: std::ops::Range<u64>) {
        let time = Duration::from_millis(self.random.random_range(range_ms));
        tokio::time::sleep(time).await; // why: a fault lasts, and so does the time without one
    }
}
