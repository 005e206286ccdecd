//! What clients ask for, through any node.

use rand::RngExt as _;

use crate::disk::Blob;
use crate::engine::Sim;
use crate::node::Node;
use crate::read::{find, get_action, read, update_action};
use crate::world::{PARTITIONS, World};
use crate::write::{Written, write};

/// Actions whose results are kept.
pub const ACTIONS: u32 = 6;
/// Blobs of one look.
const LOOKED_FOR_MAX: usize = 8;

/// Blobs that come one after the other are not of one partition, nor of the same ones in each run.
const STRIDE: usize = 7;

impl World {
    pub fn partition_of_blob(&self, blob: Blob) -> usize {
        (blob as usize * STRIDE + self.settings.seed as usize * 31) % PARTITIONS
    }

    pub fn partition_of_action(&self, action: u32) -> usize {
        self.partition_of_blob(action + 1000)
    }
}

/// Clients go on for as long as the run says.
pub fn go_on(sim: &Sim) {
    let (end_ms, delay_ms, count) = {
        let mut world = sim.world();
        let pause_ms = world.settings.pause_ms;
        let delay_ms = world.random.random_range(0..2 * pause_ms);
        (world.settings.length_ms, delay_ms, world.random.random_range(1..4))
    };
    if sim.now_ms() >= end_ms {
        return;
    }
    (0..count).for_each(|_| ask(sim));
    sim.after(delay_ms, go_on);
}

fn ask(sim: &Sim) {
    let machine = {
        let mut world = sim.world();
        let machines = world.machines.len();
        world.random.random_range(0..machines)
    };
    let Some(node) = Node::on(sim, machine) else { return };
    if !node.view(sim).is_settled() {
        return;
    }
    let (blob, action, what, is_stream) = {
        let mut world = sim.world();
        let blobs = world.settings.blobs;
        let blob = world.random.random_range(0..blobs);
        let action = world.random.random_range(0..ACTIONS);
        (blob, action, world.random.random_range(0..100), world.random.random_bool(0.5))
    };
    match what {
        0..35 => upload(sim, node, blob, is_stream),
        35..60 => ask_for(sim, node, blob),
        60..80 => look_for(sim, node),
        80..90 => update(sim, node, action),
        _ => ask_for_action(sim, node, action),
    }
}

fn upload(sim: &Sim, node: Node, blob: Blob, is_stream: bool) {
    let upload = {
        let mut world = sim.world();
        let upload = world.random.random();
        let machine = node.machine;
        world.oracle.upload_begins(upload, machine, blob);
        world.note(crate::trace::About::Blob(blob), || format!("an upload begins through m{machine}"));
        upload
    };
    let sim_too = sim.clone();
    node.spawn(sim, async move {
        let is_acknowledged = write(&sim_too, node, Written::Blob(blob), is_stream).await;
        sim_too.world().uploaded(upload, is_acknowledged);
    });
}

pub fn ask_for(sim: &Sim, node: Node, blob: Blob) {
    let (sim_too, began_ms) = (sim.clone(), sim.now_ms());
    node.spawn(sim, async move {
        let outcome = read(&sim_too, node, blob).await;
        sim_too.world().told_of(blob, began_ms, node.machine, outcome, false);
    });
}

fn look_for(sim: &Sim, node: Node) {
    let blobs: Vec<Blob> = {
        let mut world = sim.world();
        let (count, blobs) = (world.random.random_range(1..=LOOKED_FOR_MAX), world.settings.blobs);
        let some: std::collections::BTreeSet<Blob> = (0..count).map(|_| world.random.random_range(0..blobs)).collect();
        some.into_iter().collect()
    };
    let (sim_too, began_ms) = (sim.clone(), sim.now_ms());
    node.spawn(sim, async move {
        let found = find(&sim_too, node, blobs).await;
        let mut world = sim_too.world();
        for (blob, outcome) in found {
            world.told_of(blob, began_ms, node.machine, outcome, true);
        }
    });
}

fn update(sim: &Sim, node: Node, action: u32) {
    let sim_too = sim.clone();
    let seen = sim.world().oracle.seen_by((node.machine, node.incarnation), action);
    node.spawn(sim, async move {
        let (version, is_acknowledged) = update_action(&sim_too, node, action).await;
        let mut world = sim_too.world();
        world.updated(action, seen, version, is_acknowledged);
    });
}

pub fn ask_for_action(sim: &Sim, node: Node, action: u32) {
    let (sim_too, newest) = (sim.clone(), sim.world().oracle.newest(action));
    node.spawn(sim, async move {
        let outcome = get_action(&sim_too, node, action).await;
        sim_too.world().told_of_action(action, (node.machine, node.incarnation), newest, outcome);
    });
}
