//! A node that runs, as its tasks see it.

use std::collections::BTreeSet;
use std::sync::Arc;

use casbah_cluster::consensus::{MemberCommand, MemberReply};
use casbah_cluster::membership::{Epoch, NodeId, can_do_without};
use casbah_cluster::view::View;
use rand::RngExt as _;

use crate::engine::{Inbox, Sim, Told};
use crate::settings::{CATCH_UP_MS, Rule};
use crate::world::World;

/// Of a hundred commands: those that never arrive, and those whose answer does not.
const COMMANDS_LOST_PERCENT: u32 = 4;
/// For how long a command waits for somebody to lead.
const LEADER_PATIENCE_MS: u64 = 4_000;
/// Between looks at the log by a node that is behind.
const LOG_STEP_MS: u64 = 3_000;

/// A process of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    pub machine: usize,
    pub incarnation: u64,
    pub id: NodeId,
}

/// Says by which layout something is done, until it is dropped.
pub struct Begun {
    sim: Sim,
    node: Node,
    number: u64,
}

// === impl Node ===

impl Node {
    /// The one that runs on a machine.
    pub fn on(sim: &Sim, machine: usize) -> Option<Node> {
        let world = sim.world();
        let place = world.machines.get(machine)?;
        place.process.as_ref()?;
        Some(Node { machine, incarnation: place.incarnation, id: place.disk.node? })
    }

    pub fn runs(&self, sim: &Sim) -> bool {
        let world = sim.world();
        let machine = &world.machines[self.machine];
        machine.incarnation == self.incarnation && machine.process.is_some()
    }

    /// Has it do something, until it ends.
    pub fn spawn(&self, sim: &Sim, task: impl Future<Output = ()> + 'static) {
        let task = sim.spawn(task);
        if let Some(process) = sim.world().machines[self.machine].process.as_mut() {
            process.tasks.push(task);
        }
    }

    pub fn view(&self, sim: &Sim) -> Arc<View> {
        let world = sim.world();
        let process = world.machines[self.machine].process.as_ref();
        process.map(|process| Arc::clone(&process.view)).expect("its tasks end with it")
    }

    /// Whether it cannot go by its view: others may have agreed on something else.
    pub fn is_in_doubt(&self, sim: &Sim) -> bool {
        let world = sim.world();
        let process = world.machines[self.machine].process.as_ref();
        let is_minded = !world.is_broken(Rule::DoubtIsMinded);
        is_minded && process.is_none_or(|process| process.certainty.is_in_doubt(world.now_ms))
    }

    pub fn clock_ms(&self, sim: &Sim) -> u64 {
        sim.world().clock_ms(self.machine)
    }

    pub fn is_away(&self, sim: &Sim, view: &View, node: NodeId) -> bool {
        let world = sim.world();
        let Some(other) = world.address_of(node, view) else { return true };
        let answers = world.is_awake(other) && world.network.both(self.machine, other);
        other != self.machine && world.network.seems_away(self.machine, other, answers, world.now_ms)
    }

    /// How near a node is, for reads.
    pub fn distance(&self, sim: &Sim, view: &View, node: NodeId) -> Option<u64> {
        if self.is_away(sim, view, node) {
            return None;
        }
        let spread = sim.world().random.random_range(0..10);
        Some(if view.zone(node) == view.zone(self.id) { spread } else { spread + 10 })
    }

    /// Something that a client has asked for begins by this layout.
    pub fn begins(&self, sim: &Sim, epoch: Epoch) -> Begun {
        let mut world = sim.world();
        let number = world.random.random();
        if let Some(process) = world.machines[self.machine].process.as_mut() {
            process.begun.insert(number, epoch);
        }
        Begun { sim: sim.clone(), node: *self, number }
    }

    /// Waits until this node works by this layout or a newer one. Whether it came to that in time.
    pub async fn reaches(&self, sim: &Sim, epoch: Epoch) -> bool {
        let inbox = sim.inbox();
        for _ in 0..CATCH_UP_MS / 100 {
            if self.view(sim).epoch() >= epoch {
                return true;
            }
            inbox.remind(100);
            inbox.next().await;
        }
        false
    }

    /// Asks for a command to be committed. The inbox is told its position, or that it is in doubt.
    pub fn propose(&self, sim: &Sim, command: MemberCommand, inbox: &Inbox) {
        let (node, inbox) = (*self, inbox.clone());
        let delay_ms = {
            let mut world = sim.world();
            if !world.is_healed && world.chance(COMMANDS_LOST_PERCENT) {
                None
            } else {
                Some(world.random.random_range(5..300))
            }
        };
        match delay_ms {
            None => sim.after(LEADER_PATIENCE_MS, move |_| inbox.tell(Told::InDoubt)),
            Some(delay_ms) => sim.after(delay_ms, move |sim| decide(sim, node, command, inbox)),
        }
    }
}

// === impl Begun ===

impl Begun {
    /// It goes on by a newer layout.
    pub fn goes_on_by(&self, epoch: Epoch) {
        if self.node.runs(&self.sim)
            && let Some(process) = self.sim.world().machines[self.node.machine].process.as_mut()
        {
            process.begun.insert(self.number, epoch);
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if self.node.runs(&self.sim)
            && let Some(process) = self.sim.world().machines[self.node.machine].process.as_mut()
        {
            process.begun.remove(&self.number);
        }
    }
}

/// What becomes of a command that somebody has asked for.
fn decide(sim: &Sim, node: Node, command: MemberCommand, inbox: Inbox) {
    let leader = {
        let mut world = sim.world();
        let leader = world.leader();
        leader.filter(|leader| world.network.both(node.machine, *leader))
    };
    let Some(leader) = leader else {
        return sim.after(LEADER_PATIENCE_MS, move |_| inbox.tell(Told::InDoubt));
    };
    if sim.world().is_refused(leader, &command) {
        return sim.after(LEADER_PATIENCE_MS, move |_| inbox.tell(Told::InDoubt));
    }
    let (index, reply) = commit(sim, command);
    let (is_told, delay_ms) = {
        let mut world = sim.world();
        let is_told = world.is_healed || !world.chance(COMMANDS_LOST_PERCENT);
        (is_told && world.network.is_open(leader, node.machine), world.random.random_range(5..100))
    };
    match (is_told, reply) {
        (true, MemberReply::Done | MemberReply::Admitted { .. }) => {
            sim.after(delay_ms, move |_| inbox.tell(Told::Committed(index)));
        }
        _ => sim.after(LEADER_PATIENCE_MS, move |_| inbox.tell(Told::InDoubt)),
    }
}

impl World {
    /// Whether the group could not go on after a command.
    fn is_refused(&self, leader: usize, command: &MemberCommand) -> bool {
        let MemberCommand::Remove { node, .. } = command else { return false };
        let members = self.head().state().members.keys();
        let voters: BTreeSet<NodeId> = members.copied().filter(|node| self.have_voted.contains(node)).collect();
        let is_alive = |voter: NodeId| {
            self.machine_of(voter).is_some_and(|other| self.is_awake(other) && self.network.both(leader, other))
        };
        voters.contains(node) && !can_do_without(&voters, *node, is_alive)
    }
}

/// Commits a command, and has it told to all.
pub fn commit(sim: &Sim, command: MemberCommand) -> (usize, MemberReply) {
    let (index, reply) = {
        let mut world = sim.world();
        let committed = world.commit(command);
        world.oracle_committed(committed.0);
        committed
    };
    spread(sim);
    (index, reply)
}

/// Sends what was committed to all machines.
pub fn spread(sim: &Sim) {
    let machines = sim.world().machines.len();
    for machine in 0..machines {
        let delay_ms = {
            let mut world = sim.world();
            let is_slow = world.random.random_bool(0.15);
            world.random.random_range(if is_slow { 500..8_000 } else { 2..200 })
        };
        sim.after(delay_ms, move |sim| catch_up(sim, machine));
    }
}

/// A machine applies what it has not, if it is a member and somebody leads that it can follow.
fn catch_up(sim: &Sim, machine: usize) {
    {
        let mut world = sim.world();
        let index = world.log.entries.len();
        let leader = if world.is_awake(machine) { world.leader() } else { None };
        let lags = world.machines[machine].lags_until_ms > world.now_ms;
        let follows = !lags && leader.is_some_and(|leader| world.network.both(leader, machine));
        let node = world.machines[machine].disk.node;
        let is_member = node.is_some_and(|node| world.head().member(node).is_some());
        if follows && is_member {
            world.apply(machine, index);
            let now_ms = world.now_ms;
            let process = world.machines[machine].process.as_mut();
            process.into_iter().for_each(|process| process.certainty.confirmed(now_ms));
        }
    }
}

/// Has machines catch up, again and again.
pub fn keep_caught_up(sim: &Sim) {
    let machines = sim.world().machines.len();
    (0..machines).for_each(|machine| catch_up(sim, machine));
    sim.after(LOG_STEP_MS, keep_caught_up);
}

/// Whether a rule is kept.
pub fn keeps(sim: &Sim, rule: Rule) -> bool {
    !sim.world().is_broken(rule)
}
