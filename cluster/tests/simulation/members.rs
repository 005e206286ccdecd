//! How members come and go: let in, given up when they are gone for long, asked to leave, taken out.

use casbah_cluster::consensus::MemberCommand;
use casbah_cluster::membership::{NodeId, Standing};
use rand::RngExt as _;

use crate::disk::Disk;
use crate::engine::{Sim, Told};
use crate::faults::crash;
use crate::node::{Node, commit};
use crate::repair::look_after;
use crate::settings::LOST_AFTER_MS;
use crate::trace::About;
use crate::world::{Machine, World};

/// Machines of a run, at the most.
const MACHINES_MAX: usize = 7;
/// Between attempts of a node to be let in, and of an operator to be heard.
const AGAIN_MS: u64 = 5_000;
/// Between looks of whoever leads at who is there.
const WATCH_MS: u64 = 4_000;
/// Looks of an operator at whether a node may be taken out, a minute each.
const PATIENCE: u32 = 40;

/// What a node does from its start on.
pub fn begin(sim: &Sim, machine: usize) {
    match Node::on(sim, machine) {
        Some(node) => look_after(sim, node),
        None => join(sim, machine),
    }
}

/// A node that is in no cluster asks to be let in until it is.
fn join(sim: &Sim, machine: usize) {
    let node = Node { machine, incarnation: sim.world().machines[machine].incarnation, id: NodeId(0) };
    let sim_too = sim.clone();
    node.spawn(sim, async move {
        let sim = sim_too;
        let inbox = sim.inbox();
        loop {
            let command = {
                let world = sim.world();
                let joiner = world.machines[machine].joiner();
                let replaces = world.head().state().by_name(&joiner.name).map(|(id, _)| id);
                MemberCommand::Admit { joiner, replaces }
            };
            node.propose(&sim, command, &inbox);
            if let Told::Committed(index) = inbox.next().await
                && sim.world().is_admitted(machine, index)
            {
                return begin(&sim, machine);
            }
            inbox.remind(AGAIN_MS);
            inbox.next().await;
        }
    });
}

impl World {
    /// A node takes the id that it was given.
    fn is_admitted(&mut self, machine: usize, index: usize) -> bool {
        let volume = self.machines[machine].joiner().volume;
        let Some((node, _)) = self.log.states[index].by_volume(volume) else { return false };
        let place = &mut self.machines[machine];
        (place.disk.node, place.disk.applied) = (Some(node), index);
        let tasks = place.process.take().map(|process| process.tasks);
        self.start(machine, index);
        if let Some(process) = self.machines[machine].process.as_mut() {
            process.tasks = tasks.unwrap_or_default();
        }
        self.note(About::Machine(machine), || format!("is node {node}"));
        true
    }

    /// Since when whoever leads has not reached each member, as of now.
    fn note_who_is_there(&mut self, leader: usize) {
        let members: Vec<NodeId> = self.head().state().members.keys().copied().collect();
        for node in members {
            let machine = self.machine_of(node);
            let is_there = machine.is_some_and(|m| self.is_awake(m) && self.network.both(leader, m));
            if is_there {
                self.away_since.remove(&node);
            } else {
                self.away_since.entry(node).or_insert(self.now_ms);
            }
        }
    }

    /// Whom the leader gives up, or takes back.
    fn change_of_standing(&self) -> Option<MemberCommand> {
        let state = self.head().state();
        state.members.iter().find_map(|(node, member)| {
            let since_ms = self.away_since.get(node);
            match member.standing {
                Standing::Lost => since_ms.is_none().then_some(MemberCommand::Returned { node: *node }),
                Standing::Serving | Standing::Draining => {
                    let is_lost = since_ms.is_some_and(|since_ms| since_ms + LOST_AFTER_MS <= self.now_ms);
                    let is_refused = || state.clone().lost(*node).is_err();
                    (is_lost && !is_refused()).then_some(MemberCommand::Lost { node: *node })
                }
            }
        })
    }
}

/// Whoever leads watches over who is there.
pub fn keep_watch(sim: &Sim) {
    let command = {
        let mut world = sim.world();
        let leader = world.leader();
        leader.and_then(|leader| {
            world.note_who_is_there(leader);
            world.change_of_standing()
        })
    };
    if let Some(command) = command {
        commit(sim, command);
    }
    sim.after(WATCH_MS, keep_watch);
}

/// A new machine.
pub fn add(sim: &Sim) {
    let machine = {
        let mut world = sim.world();
        let at = world.machines.len();
        if at >= MACHINES_MAX {
            return;
        }
        world.volumes += 1;
        let machine = Machine::new(at, world.volumes, &world.settings);
        world.machines.push(machine);
        world.start(at, 0);
        world.note(About::Machine(at), || "is new".to_owned());
        at
    };
    begin(sim, machine);
}

/// Somebody asks for a change, through a node that is awake.
pub fn ask_for(sim: &Sim, command: MemberCommand) {
    let through = {
        let world = sim.world();
        let mut machines = 0..world.machines.len();
        let is_there = |machine: &usize| world.is_awake(*machine) && world.machines[*machine].disk.node.is_some();
        machines.find(is_there)
    };
    let Some(node) = through.and_then(|machine| Node::on(sim, machine)) else { return };
    let sim_too = sim.clone();
    node.spawn(sim, async move {
        let inbox = sim_too.inbox();
        node.propose(&sim_too, command, &inbox);
        inbox.next().await;
    });
}

/// A node is asked to leave, and taken out when it holds nothing; some change their minds.
pub fn drain(sim: &Sim, machine: usize) {
    let (node, stays) = {
        let mut world = sim.world();
        let stays = world.chance(25);
        (world.machines[machine].disk.node, stays)
    };
    let Some(node) = node else { return };
    ask_for(sim, MemberCommand::Drain { node });
    let delay_ms = sim.world().random.random_range(1_000..120_000);
    sim.after(delay_ms, move |sim| match stays {
        true => ask_for(sim, MemberCommand::Undrain { node }),
        false => take_out(sim, machine, node, PATIENCE),
    });
}

fn take_out(sim: &Sim, machine: usize, node: NodeId, patience: u32) {
    let standing = sim.world().head().member(node).map(|member| member.standing);
    match standing {
        // It is out: whoever has seen that ends the process, and reuses the disk.
        None => retire(sim, machine, node),
        Some(_) if patience == 0 => ask_for(sim, MemberCommand::Undrain { node }),
        Some(_) => {
            ask_for(sim, MemberCommand::Remove { node, force: false });
            sim.after(60_000, move |sim| take_out(sim, machine, node, patience - 1));
        }
    }
}

/// The machine of a node that was taken out is of no more use: nothing that it has is needed.
fn retire(sim: &Sim, machine: usize, node: NodeId) {
    if sim.world().machines[machine].disk.node != Some(node) {
        return;
    }
    crash(sim, machine);
    let mut world = sim.world();
    world.volumes += 1;
    let (volume, capacity) = (world.volumes, world.settings.capacity);
    let old = std::mem::replace(&mut world.machines[machine].disk, Disk::new(volume, capacity));
    world.machines[machine].is_retired = true;
    world.note(About::Machine(machine), || "is shut down for good".to_owned());
    old.blobs.keys().for_each(|blob| world.removed(*blob));
}

/// A node has another weight when it is started again.
pub fn reweigh(sim: &Sim, machine: usize) {
    let joiner = {
        let mut world = sim.world();
        let weight = world.random.random_range(50..200);
        let is_member = |node: NodeId| world.head().member(node).is_some();
        if !world.machines[machine].disk.node.is_some_and(is_member) {
            return;
        }
        let place = &mut world.machines[machine];
        place.weight = weight;
        place.joiner()
    };
    ask_for(sim, MemberCommand::Admit { joiner, replaces: None });
}
