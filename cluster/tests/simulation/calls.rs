//! Calls between nodes: on their way, at the gate of the other node, carried out there, and back. As
//! `proto/peer/v1/membership.proto` says it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use casbah_cluster::membership::{Epoch, NodeId};
use casbah_cluster::repair::Summary;
use casbah_cluster::replication::Version;
use rand::RngExt as _;

use crate::disk::{Action, Blob, Copied, Found};
use crate::engine::{Inbox, Sim, Told};
use crate::node::Node;
use crate::settings::{CALL_MS, CATCH_UP_MS, Rule};
use crate::trace::About;

/// Between looks whether a layout has come that a call is of.
const GATE_STEP_MS: u64 = 100;

/// What one node asks of another.
#[derive(Debug, Clone)]
pub enum Call {
    Find {
        blobs: Vec<Blob>,
        touch: bool,
    },
    Read(Blob),
    /// With the time of its use, if it is a copy of a copy; otherwise it is used now.
    Store(Blob, Option<Copied>),
    GetAction(Action),
    PutAction(Action, Version),
    /// What it has of these partitions, in short.
    Compare(Vec<u16>),
    /// What it has of this one.
    List(u16),
}

#[derive(Debug, Clone)]
pub enum Answer {
    /// For each blob, whether it is there; `None`: it cannot be said.
    Present(Vec<Option<bool>>),
    Data(Copied),
    NotFound,
    Done,
    Action(Option<Version>),
    Compared(Vec<Summary>),
    Listed(Vec<(Blob, Copied)>, Vec<(Action, Version)>),
    /// It cannot be said, or done.
    Refused,
}

struct Request {
    from: usize,
    from_node: NodeId,
    to: usize,
    to_node: NodeId,
    epoch: Epoch,
    call: Call,
    tag: usize,
    inbox: Inbox,
    /// Whether the caller knows how it ended.
    is_over: Rc<Cell<bool>>,
}

/// Makes a call. The inbox is told once how it ends.
pub fn call(sim: &Sim, caller: &Node, to_node: NodeId, tag: usize, call: Call, inbox: &Inbox) {
    let from = caller.machine;
    let (to, epoch, delay_ms, is_lost, is_doubled) = {
        let mut world = sim.world();
        let Some(process) = world.machines[from].process.as_ref() else { return };
        let view = Arc::clone(&process.view);
        let to = if view.self_id() == to_node { Some(from) } else { world.address_of(to_node, &view) };
        let delay_ms = if to == Some(from) { 0 } else { world_delay(&mut world) };
        let (lost, doubled) = (world.settings.lost_percent, world.settings.doubled_percent);
        let is_lost = to != Some(from) && !world.is_healed && world.chance(lost);
        (to, view.epoch(), delay_ms, is_lost, to != Some(from) && world.chance(doubled))
    };
    let is_over = Rc::new(Cell::new(false));
    let silence = {
        let (inbox, is_over) = (inbox.clone(), Rc::clone(&is_over));
        move |_: &Sim| {
            if !is_over.replace(true) {
                inbox.tell(Told::Silence { node: to_node, tag });
            }
        }
    };
    let Some(to) = to else {
        // No member, and so no way.
        sim.after(1, silence);
        return;
    };
    sim.after(CALL_MS, silence);
    let request = |is_over| {
        let (call, inbox) = (call.clone(), inbox.clone());
        Request { from, from_node: caller.id, to, to_node, epoch, call, tag, inbox, is_over }
    };
    if !is_lost {
        let request = request(Rc::clone(&is_over));
        sim.after(delay_ms, move |sim| arrive(sim, request));
    }
    if is_doubled {
        // Nobody waits for what comes of the second one.
        let request = request(Rc::new(Cell::new(true)));
        sim.after(delay_ms * 3 + 1_000, move |sim| arrive(sim, request));
    }
}

fn world_delay(world: &mut crate::world::World) -> u64 {
    let slow = world.settings.slow_percent;
    let is_slow = world.chance(slow) && !world.is_healed;
    world.random.random_range(if is_slow { 200..6_000 } else { 1..20 })
}

/// A call comes to a machine.
fn arrive(sim: &Sim, request: Request) {
    let (is_open, resumes_ms, is_up) = {
        let world = sim.world();
        let machine = &world.machines[request.to];
        let is_open = world.network.is_open(request.from, request.to);
        (is_open, machine.paused_until_ms.saturating_sub(world.now_ms), machine.process.is_some())
    };
    if !is_open {
        return;
    }
    if !is_up {
        return end(sim, request, None);
    }
    if resumes_ms > 0 {
        return sim.after(resumes_ms, move |sim| arrive(sim, request));
    }
    let incarnation = sim.world().machines[request.to].incarnation;
    gate(sim, request, incarnation, CATCH_UP_MS / GATE_STEP_MS);
}

/// Lets a call in that is meant for this node, by a member, once this node knows of the layout it is of.
fn gate(sim: &Sim, request: Request, incarnation: u64, patience: u64) {
    let node = Node { machine: request.to, incarnation, id: request.to_node };
    if !node.runs(sim) {
        return end(sim, request, None);
    }
    let (is_meant, is_gone, is_behind, delay_ms) = {
        let mut world = sim.world();
        let anyone = world.is_broken(Rule::CallsAreForOneNode);
        let machine = &world.machines[request.to];
        let Some(process) = machine.process.as_ref() else { return };
        let view = &process.view;
        let is_meant = anyone || machine.disk.node == Some(request.to_node);
        let knows_caller = view.member(request.from_node).is_some();
        let is_gone = !knows_caller && request.from_node < view.state().next_node_id;
        let waits = !world.is_broken(Rule::CalleesCatchUp);
        let is_behind = view.epoch() < request.epoch && waits || !knows_caller;
        let delay_ms = machine.disk_delay_ms;
        (is_meant, is_gone, is_behind, world.random.random_range(0..3) + delay_ms)
    };
    if !is_meant || is_gone && request.from != request.to {
        return respond(sim, request, incarnation, Answer::Refused);
    }
    if is_behind && request.from != request.to {
        if patience == 0 {
            return respond(sim, request, incarnation, Answer::Refused);
        }
        return sim.after(GATE_STEP_MS, move |sim| gate(sim, request, incarnation, patience - 1));
    }
    sim.after(delay_ms, move |sim| {
        if !node.runs(sim) {
            return end(sim, request, None);
        }
        let answer = carry_out(sim, node.machine, &request.call);
        let delay_ms = sim.world().random.random_range(0..3);
        sim.after(delay_ms, move |sim| respond(sim, request, incarnation, answer));
    });
}

/// A node says what came of a call, and by which layout it works now.
fn respond(sim: &Sim, request: Request, incarnation: u64, answer: Answer) {
    let (epoch, delay_ms) = {
        let mut world = sim.world();
        let machine = &world.machines[request.to];
        if machine.incarnation != incarnation {
            return;
        }
        let Some(process) = machine.process.as_ref() else { return };
        let epoch = process.view.epoch();
        let lost = world.settings.lost_percent;
        if request.from != request.to && !world.is_healed && world.chance(lost) {
            return;
        }
        let delay_ms = if request.from == request.to { 0 } else { world_delay(&mut world) };
        (epoch, delay_ms)
    };
    sim.after(delay_ms, move |sim| {
        let is_open = sim.world().network.is_open(request.to, request.from);
        if is_open {
            end(sim, request, Some((epoch, answer)));
        }
    });
}

fn end(sim: &Sim, request: Request, answer: Option<(Epoch, Answer)>) {
    let resumes_ms = sim.world().machines[request.from].paused_until_ms.saturating_sub(sim.now_ms());
    if resumes_ms > 0 {
        return sim.after(resumes_ms, move |sim| end(sim, request, answer));
    }
    if request.is_over.replace(true) {
        return;
    }
    let (node, tag) = (request.to_node, request.tag);
    request.inbox.tell(match answer {
        Some((_, Answer::Refused)) | None => Told::Silence { node, tag },
        Some((epoch, answer)) => Told::Answer { node, tag, epoch, answer },
    });
}

/// What a node does when it is asked, from its own disk alone.
fn carry_out(sim: &Sim, machine: usize, call: &Call) -> Answer {
    let mut world = sim.world();
    let damage_is_told = !world.is_broken(Rule::DamageIsNoMiss);
    let (clock_ms, now_ms, floor_ms) = (world.clock_ms(machine), world.now_ms, world.floor_ms());
    let disk = &mut world.machines[machine].disk;
    match call {
        Call::Find { blobs, touch } => {
            let mut look = |blob: &Blob| match *touch {
                true => disk.touch(*blob, clock_ms, now_ms),
                false => disk.has(*blob),
            };
            let present: Vec<Option<bool>> = blobs.iter().map(|blob| Some(look(blob))).collect();
            let cannot_say = |(blob, has): (&Blob, Option<bool>)| match has {
                Some(false) if disk.is_unsure || disk.blobs.contains_key(blob) && damage_is_told => None,
                has => has,
            };
            Answer::Present(blobs.iter().zip(present).map(cannot_say).collect())
        }
        Call::Read(blob) => match disk.read(*blob) {
            Found::Here(copied) => Answer::Data(copied),
            Found::Not => Answer::NotFound,
            Found::CannotSay if !disk.blobs.contains_key(blob) => Answer::Refused,
            Found::CannotSay => {
                world.found_damaged(machine, *blob);
                if damage_is_told { Answer::Refused } else { Answer::NotFound }
            }
        },
        Call::Store(blob, copied) => {
            let copied = copied.unwrap_or(Copied { used_ms: clock_ms, truly_used_ms: now_ms });
            match disk.store(*blob, copied, (clock_ms, now_ms), floor_ms) {
                Ok(evicted) => {
                    world.note(About::Blob(*blob), || format!("stored on m{machine}"));
                    world.stored(*blob);
                    if let Some(evicted) = evicted {
                        world.evicted(machine, evicted);
                    }
                    Answer::Done
                }
                Err(()) => Answer::Refused,
            }
        }
        Call::Compare(partitions) => {
            let summaries = world.machines[machine].disk.summaries(&world);
            let summary = |partition: &u16| summaries.get(partition).copied().unwrap_or_default();
            Answer::Compared(partitions.iter().map(summary).collect())
        }
        Call::List(partition) => {
            let (world, partition) = (&*world, usize::from(*partition));
            let disk = &world.machines[machine].disk;
            let blobs =
                disk.blobs.iter().filter(|(blob, _)| disk.has(**blob) && world.partition_of_blob(**blob) == partition);
            let listed = |(blob, copy): (&Blob, &crate::disk::Copy)| {
                (*blob, Copied { used_ms: copy.used_ms, truly_used_ms: copy.truly_used_ms })
            };
            let actions = disk.actions.iter().filter(|(action, _)| world.partition_of_action(**action) == partition);
            let actions = actions.map(|(action, version)| (*action, *version));
            Answer::Listed(blobs.map(listed).collect(), actions.collect())
        }
        Call::GetAction(action) => Answer::Action(disk.actions.get(action).copied()),
        Call::PutAction(action, version) => {
            let Some(process) = world.machines[machine].process.as_mut() else { return Answer::Refused };
            if process.clock.observe(*version, clock_ms).is_err() {
                return Answer::Refused;
            }
            world.machines[machine].disk.put_action(*action, *version);
            world.note(About::Action(*action), || format!("{version:?} kept on m{machine}"));
            Answer::Done
        }
    }
}
