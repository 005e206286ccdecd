//! What goes wrong, and what operators do: drawn by seed, one thing every few minutes, each mended after a while.

use rand::RngExt as _;

use crate::disk::{Blob, Disk, State};
use crate::engine::Sim;
use crate::members::{add, begin, drain, reweigh};
use crate::node::{keeps, spread};
use crate::settings::{LOST_AFTER_MS, Rule, SKEW_MS};
use crate::trace::About;
use crate::world::World;

/// Of a hundred faults that take copies: those that are made although a promise is void then.
const RUTHLESS_PERCENT: u32 = 8;
/// Of a hundred faults: those that another one follows at once.
const FOLLOWED_PERCENT: u32 = 35;
/// Of a hundred starts: those after which it takes a while until the log comes.
const LATE_LOG_PERCENT: u32 = 30;
/// Between two scrubs, of one node each.
const SCRUB_MS: u64 = 10 * 60_000;

/// Faults go on for as long as the run says.
pub fn go_on(sim: &Sim) {
    let (end_ms, delay_ms) = {
        let mut world = sim.world();
        let calm_ms = world.settings.calm_ms;
        (world.settings.length_ms, world.random.random_range(calm_ms / 8..2 * calm_ms))
    };
    sim.after(delay_ms, move |sim| {
        if sim.now_ms() < end_ms {
            strike(sim);
            // Misfortunes seldom come singly.
            let follows_ms = {
                let mut world = sim.world();
                let follows = world.chance(FOLLOWED_PERCENT);
                follows.then(|| world.random.random_range(0..15_000))
            };
            follows_ms.into_iter().for_each(|delay_ms| sim.after(delay_ms, strike));
            go_on(sim);
        }
    });
}

fn strike(sim: &Sim) {
    if sim.world().is_healed {
        return;
    }
    let (what, machine, other, for_ms) = {
        let mut world = sim.world();
        world.oracle.counts.faults += 1;
        let machines = world.machines.len();
        let machine = world.random.random_range(0..machines);
        let other = world.random.random_range(0..machines);
        let long = world.random.random_bool(0.12);
        let for_ms =
            world.random.random_range(if long { LOST_AFTER_MS..LOST_AFTER_MS + 400_000 } else { 2_000..240_000 });
        (world.random.random_range(0..100), machine, other, for_ms)
    };
    match what {
        0..14 => {
            crash(sim, machine);
            restart_after(sim, machine, for_ms);
        }
        14..19 => {
            if lose_power(sim, machine) {
                restart_after(sim, machine, for_ms);
            }
        }
        19..23 => crash_all(sim),
        23..33 => halves(sim, for_ms),
        33..41 => isolate(sim, machine, for_ms),
        41..47 => one_way(sim, machine, other, for_ms),
        47..53 => pause(sim, machine, for_ms / 4),
        53..55 => skew(sim, machine),
        55..58 => lag(sim, machine, for_ms),
        58..63 => slow_disk(sim, machine, for_ms),
        63..67 => full_disk(sim, machine, for_ms),
        67..74 => wipe(sim, machine, for_ms / 4),
        74..80 => rot(sim, machine),
        80..88 => add(sim),
        88..95 => drain(sim, machine),
        _ => reweigh(sim, machine),
    }
}

/// Ends all that goes wrong.
pub fn heal(sim: &Sim) {
    let machines = {
        let mut world = sim.world();
        let now_ms = world.now_ms;
        world.is_healed = true;
        world.network.mend_all(now_ms);
        for machine in &mut world.machines {
            machine.paused_until_ms = machine.paused_until_ms.min(now_ms);
            machine.lags_until_ms = 0;
            machine.disk_delay_ms = 0;
            machine.disk.is_full = false;
        }
        world.note(About::All, || "all is healed".to_owned());
        world.machines.len()
    };
    (0..machines).for_each(|machine| restart(sim, machine));
    (0..machines).for_each(|machine| sim.world().scrub(machine));
}

/// Each node looks through its disk now and then.
pub fn keep_scrubbing(sim: &Sim) {
    let machine = {
        let mut world = sim.world();
        let machines = world.machines.len();
        world.random.random_range(0..machines)
    };
    if sim.world().is_awake(machine) {
        sim.world().scrub(machine);
    }
    sim.after(SCRUB_MS, keep_scrubbing);
}

/// A process ends where it is.
pub fn crash(sim: &Sim, machine: usize) {
    let tasks = {
        let mut world = sim.world();
        let now_ms = world.now_ms;
        let rolls_back = world.random.random_bool(0.5);
        let place = &mut world.machines[machine];
        let Some(process) = place.process.take() else { return };
        place.incarnation += 1;
        place.paused_until_ms = 0;
        if !rolls_back {
            place.disk.applied = process.applied;
        }
        world.network.changed(machine, now_ms);
        world.oracle.uploads_end(machine);
        world.note(About::Machine(machine), || "crashes".to_owned());
        process.tasks
    };
    tasks.into_iter().for_each(|task| sim.end(task));
}

fn restart_after(sim: &Sim, machine: usize, delay_ms: u64) {
    sim.after(delay_ms, move |sim| restart(sim, machine));
}

fn restart(sim: &Sim, machine: usize) {
    {
        let mut world = sim.world();
        if world.is_up(machine) || world.machines[machine].is_retired {
            return;
        }
        let applied = world.machines[machine].disk.applied;
        world.start(machine, applied);
        if !world.is_healed && world.chance(LATE_LOG_PERCENT) {
            let for_ms = world.random.random_range(1_000..60_000);
            world.machines[machine].lags_until_ms = world.now_ms + for_ms;
        }
        world.note(About::Machine(machine), || format!("starts with entry {applied}"));
    }
    begin(sim, machine);
    spread(sim);
}

fn lose_power(sim: &Sim, machine: usize) -> bool {
    let unsynced: Vec<Blob> = {
        let mut world = sim.world();
        let now_ms = world.now_ms;
        let disk = &world.machines[machine].disk;
        let is_unsynced = |blob: &Blob| disk.has_good(*blob) && !disk.has_synced(*blob, now_ms);
        let unsynced: Vec<Blob> = disk.blobs.keys().copied().filter(is_unsynced).collect();
        let may = world.may_lose(machine, |blob| unsynced.contains(&blob), false);
        if !may && !world.chance(RUTHLESS_PERCENT) {
            return false;
        }
        unsynced
    };
    crash(sim, machine);
    let mut world = sim.world();
    let now_ms = world.now_ms;
    let is_doubted = !world.is_broken(Rule::LossIsDoubted);
    let disk = &mut world.machines[machine].disk;
    disk.lose_unsynced(now_ms);
    disk.is_unsure = is_doubted;
    world.note(About::Machine(machine), || "has lost its power".to_owned());
    unsynced.into_iter().for_each(|blob| world.lost_copy(machine, blob, "power"));
    true
}

fn crash_all(sim: &Sim) {
    let machines = sim.world().machines.len();
    for machine in 0..machines {
        crash(sim, machine);
        let delay_ms = sim.world().random.random_range(1_000..60_000);
        restart_after(sim, machine, delay_ms);
    }
}

fn halves(sim: &Sim, for_ms: u64) {
    {
        let mut world = sim.world();
        let machines = world.machines.len();
        let sides: Vec<bool> = (0..machines).map(|_| world.random.random_bool(0.5)).collect();
        let now_ms = world.now_ms;
        for (one, here) in sides.iter().enumerate() {
            for (other, there) in sides.iter().enumerate() {
                if here != there {
                    world.network.cut(one, other, now_ms);
                }
            }
        }
        world.note(About::All, || format!("the network falls apart: {sides:?}"));
    }
    mend_after(sim, for_ms);
}

fn isolate(sim: &Sim, machine: usize, for_ms: u64) {
    {
        let mut world = sim.world();
        let (now_ms, machines) = (world.now_ms, world.machines.len());
        for other in 0..machines {
            world.network.cut(machine, other, now_ms);
            world.network.cut(other, machine, now_ms);
        }
        world.note(About::Machine(machine), || "is cut off".to_owned());
    }
    mend_after(sim, for_ms);
}

fn one_way(sim: &Sim, from: usize, to: usize, for_ms: u64) {
    {
        let mut world = sim.world();
        let now_ms = world.now_ms;
        world.network.cut(from, to, now_ms);
        world.note(About::Machine(from), || format!("does not reach m{to}"));
    }
    mend_after(sim, for_ms);
}

fn mend_after(sim: &Sim, delay_ms: u64) {
    sim.after(delay_ms, |sim| {
        let mut world = sim.world();
        let now_ms = world.now_ms;
        world.network.mend_all(now_ms);
        world.note(About::All, || "the network is whole".to_owned());
    });
}

fn pause(sim: &Sim, machine: usize, for_ms: u64) {
    let mut world = sim.world();
    let now_ms = world.now_ms;
    world.machines[machine].paused_until_ms = now_ms + for_ms;
    world.network.changed(machine, now_ms);
    world.note(About::Machine(machine), || format!("stops for {for_ms} ms"));
}

fn skew(sim: &Sim, machine: usize) {
    let mut world = sim.world();
    let most = i64::try_from(SKEW_MS).unwrap_or(0);
    let ahead_ms = world.random.random_range(-most..=most);
    world.machines[machine].clock_ahead_ms = ahead_ms;
    world.note(About::Machine(machine), || format!("has a clock that is {ahead_ms} ms ahead"));
}

/// The log comes late to a node that everything else comes to.
fn lag(sim: &Sim, machine: usize, for_ms: u64) {
    let mut world = sim.world();
    world.machines[machine].lags_until_ms = world.now_ms + for_ms;
    world.note(About::Machine(machine), || format!("does not hear of the log for {for_ms} ms"));
}

fn slow_disk(sim: &Sim, machine: usize, for_ms: u64) {
    {
        let mut world = sim.world();
        let delay_ms = world.random.random_range(50..4_000);
        world.machines[machine].disk_delay_ms = delay_ms;
        world.note(About::Machine(machine), || format!("has a disk that takes {delay_ms} ms"));
    }
    sim.after(for_ms, move |sim| sim.world().machines[machine].disk_delay_ms = 0);
}

fn full_disk(sim: &Sim, machine: usize, for_ms: u64) {
    {
        let mut world = sim.world();
        world.machines[machine].disk.is_full = true;
        world.note(About::Machine(machine), || "has a full disk".to_owned());
    }
    sim.after(for_ms, move |sim| sim.world().machines[machine].disk.is_full = false);
}

/// The volume is gone; an empty one takes its place, under the old name.
fn wipe(sim: &Sim, machine: usize, delay_ms: u64) {
    {
        let mut world = sim.world();
        // The group's own memory is openraft's matter: most members keep theirs.
        let voters = world.voters();
        let kept = voters.iter().filter(|voter| voter.is_some_and(|other| other != machine));
        let is_none = world.machines[machine].disk.node.is_none();
        let would_end_the_group = kept.count() * 2 <= voters.len();
        let may = world.may_lose(machine, |_| true, true);
        if is_none || would_end_the_group || !may && !world.chance(RUTHLESS_PERCENT) {
            return;
        }
    }
    crash(sim, machine);
    let is_new = keeps(sim, Rule::EmptyIsNew);
    {
        let mut world = sim.world();
        world.volumes += 1;
        let capacity = world.settings.capacity;
        let old = world.machines[machine].disk.clone();
        world.forgive_what_is_whole();
        world.lost_volume(machine, &old);
        let volume = world.volumes;
        world.machines[machine].disk = Disk::new(volume, capacity);
        if !is_new {
            let disk = &mut world.machines[machine].disk;
            (disk.volume, disk.node, disk.applied) = (old.volume, old.node, old.applied);
        }
        world.note(About::Machine(machine), || "has lost its volume".to_owned());
        old.blobs.keys().for_each(|blob| world.removed(*blob));
    }
    restart_after(sim, machine, delay_ms);
}

impl World {
    fn lost_volume(&mut self, machine: usize, old: &Disk) {
        self.machines[machine].disk.blobs.clear();
        self.machines[machine].disk.actions.clear();
        for blob in old.blobs.keys().filter(|blob| old.has_good(**blob)) {
            self.lost_copy(machine, *blob, "volume");
        }
        old.actions.iter().for_each(|(action, version)| self.lost_action(machine, *action, *version));
    }
}

fn rot(sim: &Sim, machine: usize) {
    let mut world = sim.world();
    let blobs: Vec<Blob> = world.machines[machine].disk.blobs.keys().copied().collect();
    for blob in blobs {
        let is_hit = world.random.random_bool(0.3) && world.machines[machine].disk.has_good(blob);
        if !is_hit || !world.may_lose(machine, |other| other == blob, false) {
            continue;
        }
        if let Some(copy) = world.machines[machine].disk.blobs.get_mut(&blob) {
            copy.state = State::Rotten;
        }
        world.lost_copy(machine, blob, "rot");
    }
}
