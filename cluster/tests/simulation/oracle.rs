//! Who watches: what clients have been promised, what was taken from the cluster, and what must never be.
//!
//! It sees everything at once, which no node does. What faults take (a volume, unsynced writes, a copy that rots), and members
//! that are given up, counts against the promise of each blob that it takes a copy of; W of them and the promise is void.
//! When all owners have a good copy again the count starts anew. Everything else has to leave what was promised as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use casbah_cluster::consensus::MemberCommand;
use casbah_cluster::membership::{NodeId, Standing};
use casbah_cluster::replication::Version;

use crate::disk::{Action, Blob, Evicted};
use crate::read::Outcome;
use crate::settings::{FLOOR_MS, SKEW_MS};
use crate::trace::About;
use crate::world::World;

#[derive(Default)]
pub struct Oracle {
    /// The first thing that was wrong: when, about what.
    pub violation: Option<(u64, About, String)>,
    blobs: BTreeMap<Blob, Promise>,
    actions: BTreeMap<Action, ActionPromise>,
    uploads: BTreeMap<u64, Upload>,
    /// Since when there has been no copy at all.
    gone_since: BTreeMap<Blob, u64>,
    /// Newest results that a process has seen.
    seen: BTreeMap<(usize, u64, Action), Version>,
    pub counts: Counts,
}

/// What has been tried.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    pub acknowledged: u64,
    pub failed: u64,
    pub found: u64,
    pub missing: u64,
    pub unavailable: u64,
    pub faults: u64,
    pub layouts: u64,
    pub voided: u64,
}

/// An upload under way.
struct Upload {
    machine: usize,
    blob: Blob,
    /// Volumes that have lost the blob since.
    losses: BTreeSet<u64>,
}

struct Promise {
    since_ms: u64,
    /// When a client was told of it last.
    used_ms: u64,
    quorum: usize,
    /// Volumes that held it, and were lost.
    losses: BTreeSet<u64>,
    is_void: bool,
}

struct ActionPromise {
    newest: Version,
    quorum: usize,
    losses: BTreeSet<u64>,
    is_void: bool,
}

// === impl Oracle ===

impl Oracle {
    pub fn new() -> Oracle {
        Oracle::default()
    }

    pub fn newest(&self, action: Action) -> Option<Version> {
        self.actions.get(&action).filter(|promise| !promise.is_void).map(|promise| promise.newest)
    }

    pub fn is_promised(&self, blob: Blob) -> bool {
        self.blobs.get(&blob).is_some_and(|promise| !promise.is_void)
    }

    pub fn promised(&self) -> Vec<Blob> {
        self.blobs.iter().filter(|(_, promise)| !promise.is_void).map(|(blob, _)| *blob).collect()
    }

    /// All that was ever acknowledged.
    pub fn known(&self) -> Vec<Blob> {
        self.blobs.keys().copied().collect()
    }

    pub fn promised_actions(&self) -> Vec<(Action, Version)> {
        let promised = self.actions.iter().filter(|(_, promise)| !promise.is_void);
        promised.map(|(action, promise)| (*action, promise.newest)).collect()
    }

    pub fn upload_begins(&mut self, upload: u64, machine: usize, blob: Blob) {
        self.uploads.insert(upload, Upload { machine, blob, losses: BTreeSet::new() });
    }

    /// Nobody will say any more how these have ended.
    pub fn uploads_end(&mut self, machine: usize) {
        self.uploads.retain(|_, upload| upload.machine != machine);
    }

    /// The newest result that a process has seen.
    pub fn seen_by(&self, (machine, incarnation): (usize, u64), action: Action) -> Option<Version> {
        self.seen.get(&(machine, incarnation, action)).copied()
    }
}

impl World {
    /// W of the layouts in force.
    fn quorum(&self) -> usize {
        let head = self.head();
        head.placements().iter().map(|placement| head.write_quorum_by(placement)).min().unwrap_or(1)
    }

    /// Whether a node is a member, and not given up.
    fn is_counted_on(&self, node: NodeId) -> bool {
        self.head().member(node).is_some_and(|member| member.standing != Standing::Lost)
    }

    /// Whether all owners by all layouts in force have a good copy that nothing takes.
    pub fn is_everywhere(&self, blob: Blob) -> bool {
        let has = |node: &NodeId| {
            let machine = self.machine_of(*node).filter(|_| self.is_counted_on(*node));
            machine.is_some_and(|machine| self.machines[machine].disk.has_synced(blob, self.now_ms))
        };
        self.head().owners(self.partition_of_blob(blob)).iter().all(has)
    }

    /// Whether owners that have no copy are full of what was used later.
    fn has_no_room_for(&self, blob: Blob) -> bool {
        let is_full = |node: &NodeId| {
            let machine = self.machine_of(*node).and_then(|machine| self.machines.get(machine));
            machine.is_some_and(|machine| machine.disk.has_good(blob) || machine.disk.room().horizon_ms.is_some())
        };
        self.head().owners(self.partition_of_blob(blob)).iter().all(is_full)
    }

    pub fn is_newest_everywhere(&self, action: Action, newest: Version) -> bool {
        let has = |node: &NodeId| {
            let machine = self.machine_of(*node).filter(|_| self.is_counted_on(*node));
            machine.is_some_and(|machine| self.machines[machine].disk.actions.get(&action) >= Some(&newest))
        };
        self.head().owners(self.partition_of_action(action)).iter().all(has)
    }

    // === what clients are told ===

    pub fn uploaded(&mut self, upload: u64, is_acknowledged: bool) {
        let Some(Upload { blob, mut losses, .. }) = self.oracle.uploads.remove(&upload) else { return };
        if !is_acknowledged {
            self.oracle.counts.failed += 1;
            return self.note(About::Blob(blob), || "an upload fails".to_owned());
        }
        self.oracle.counts.acknowledged += 1;
        for machine in &self.machines {
            // A copy that nobody knows to be rotten, or of a node that does not know that it was given up.
            let is_counted_on = machine.disk.node.is_some_and(|node| self.is_counted_on(node));
            if machine.disk.blobs.contains_key(&blob) && !(machine.disk.has_good(blob) && is_counted_on) {
                losses.insert(machine.disk.volume);
            }
        }
        let (since_ms, quorum) = (self.now_ms, self.quorum());
        let holders: Vec<usize> =
            (0..self.machines.len()).filter(|machine| self.machines[*machine].disk.has_good(blob)).collect();
        self.note(About::Blob(blob), || format!("ACKNOWLEDGED; it is on {holders:?}, W = {quorum}"));
        let is_void = losses.len() >= quorum;
        self.oracle.blobs.insert(blob, Promise { since_ms, used_ms: since_ms, quorum, losses, is_void });
        self.check_there_is_one(blob);
    }

    pub fn told_of(&mut self, blob: Blob, began_ms: u64, machine: usize, outcome: Outcome<()>, is_look: bool) {
        self.note(About::Blob(blob), || format!("m{machine} says {outcome:?} (asked at {began_ms})"));
        self.oracle.counts.count(outcome);
        self.forget_what_is_old();
        match outcome {
            Outcome::Missing => {
                let promise = self.oracle.blobs.get(&blob);
                if promise.is_some_and(|promise| !promise.is_void && promise.since_ms < began_ms) {
                    self.violated(About::Blob(blob), format!("m{machine} says that an acknowledged blob is missing"));
                }
            }
            Outcome::Found(()) => {
                let now_ms = self.now_ms;
                self.oracle.blobs.get_mut(&blob).into_iter().for_each(|promise| promise.used_ms = now_ms);
                let is_gone = self.oracle.gone_since.get(&blob).is_some_and(|since_ms| *since_ms < began_ms);
                if is_gone {
                    let word = if is_look { "present" } else { "found" };
                    self.violated(About::Blob(blob), format!("m{machine} calls a blob {word} that is nowhere"));
                }
            }
            Outcome::Unavailable => {}
        }
    }

    /// `seen` is what the version's maker had seen before.
    pub fn updated(&mut self, action: Action, seen: Option<Version>, version: Version, is_acknowledged: bool) {
        if seen >= Some(version) {
            let text = format!("{version:?} is made by a node that has seen {seen:?}");
            return self.violated(About::Action(action), text);
        }
        if !is_acknowledged {
            return self.oracle.counts.failed += 1;
        }
        self.oracle.counts.acknowledged += 1;
        self.note(About::Action(action), || format!("ACKNOWLEDGED {version:?}"));
        let before = self.oracle.newest(action);
        if before < Some(version) {
            let given_up = self.machines.iter().filter(|machine| {
                let is_counted_on = machine.disk.node.is_some_and(|node| self.is_counted_on(node));
                !is_counted_on && machine.disk.actions.get(&action) >= Some(&version)
            });
            let losses: BTreeSet<u64> = given_up.map(|machine| machine.disk.volume).collect();
            let quorum = self.quorum();
            let is_void = losses.len() >= quorum;
            self.oracle.actions.insert(action, ActionPromise { newest: version, quorum, losses, is_void });
        }
    }

    pub fn told_of_action(
        &mut self,
        action: Action,
        node: (usize, u64),
        newest: Option<Version>,
        outcome: Outcome<Version>,
    ) {
        let machine = node.0;
        self.note(About::Action(action), || format!("m{machine} says {outcome:?}; acknowledged is {newest:?}"));
        self.oracle.counts.count(outcome);
        let told = match outcome {
            Outcome::Found(version) => Some(version),
            Outcome::Missing => None,
            Outcome::Unavailable => return,
        };
        let is_void = self.oracle.actions.get(&action).is_some_and(|promise| promise.is_void);
        if told < newest && !is_void {
            let text = format!("m{machine} tells {told:?}, and {newest:?} was acknowledged before");
            return self.violated(About::Action(action), text);
        }
        if let Some(version) = told {
            self.seen(action, node, version);
        }
    }

    pub fn seen(&mut self, action: Action, (machine, incarnation): (usize, u64), version: Version) {
        let seen = self.oracle.seen.entry((machine, incarnation, action)).or_insert(version);
        *seen = (*seen).max(version);
    }

    // === what is taken ===

    /// Whether a machine's copies may be taken without voiding a promise.
    pub fn may_lose(&mut self, machine: usize, blobs: impl Fn(Blob) -> bool, with_actions: bool) -> bool {
        self.forgive_what_is_whole();
        let (disk, now) = (&self.machines[machine].disk, self.quorum());
        let voids = |quorum: usize, losses: &BTreeSet<u64>| {
            !losses.contains(&disk.volume) && losses.len() + 1 >= quorum.min(now)
        };
        let oracle = &self.oracle;
        let blob = oracle.blobs.iter().any(|(blob, promise)| {
            disk.has_good(*blob) && blobs(*blob) && !promise.is_void && voids(promise.quorum, &promise.losses)
        });
        // An upload under way may have been acknowledged by a node that has not said so yet.
        let upload = oracle.uploads.values().any(|upload| blobs(upload.blob) && voids(now, &upload.losses));
        let action = oracle.actions.iter().any(|(action, promise)| {
            let has = disk.actions.get(action) >= Some(&promise.newest);
            has && !promise.is_void && voids(promise.quorum, &promise.losses)
        });
        !(blob || upload || with_actions && action)
    }

    /// A copy is gone by a fault, or not to be counted on any more.
    pub fn lost_copy(&mut self, machine: usize, blob: Blob, why: &str) {
        let (volume, now) = (self.machines[machine].disk.volume, self.quorum());
        let under_way = self.oracle.uploads.values_mut().filter(|upload| upload.blob == blob);
        under_way.for_each(|upload| upload.losses.extend([volume]));
        let mut is_voided = false;
        if let Some(promise) = self.oracle.blobs.get_mut(&blob) {
            promise.losses.insert(volume);
            is_voided = !promise.is_void && promise.losses.len() >= promise.quorum.min(now);
            promise.is_void |= is_voided;
        }
        self.oracle.counts.voided += u64::from(is_voided);
        self.note(About::Blob(blob), || format!("m{machine} loses its copy ({why}); void: {is_voided}"));
        self.removed(blob);
    }

    pub fn lost_action(&mut self, machine: usize, action: Action, version: Version) {
        let (volume, now) = (self.machines[machine].disk.volume, self.quorum());
        if let Some(promise) = self.oracle.actions.get_mut(&action).filter(|promise| version >= promise.newest) {
            promise.losses.insert(volume);
            promise.is_void |= promise.losses.len() >= promise.quorum.min(now);
        }
        self.note(About::Action(action), || format!("m{machine} loses its result"));
    }

    /// All that a machine has is gone, or given up.
    pub fn lost_all(&mut self, machine: usize, why: &str) {
        self.forgive_what_is_whole();
        let disk = &self.machines[machine].disk;
        let blobs: Vec<Blob> = disk.blobs.keys().copied().filter(|blob| disk.has_good(*blob)).collect();
        let actions: Vec<(Action, Version)> =
            disk.actions.iter().map(|(action, version)| (*action, *version)).collect();
        blobs.into_iter().for_each(|blob| self.lost_copy(machine, blob, why));
        actions.into_iter().for_each(|(action, version)| self.lost_action(machine, action, version));
    }

    /// A copy has made room for another blob.
    pub fn evicted(&mut self, machine: usize, evicted: Evicted) {
        let Evicted { blob, copy } = evicted;
        self.note(About::Blob(blob), || format!("evicted from m{machine}"));
        if copy.truly_used_ms + FLOOR_MS > self.now_ms + 2 * SKEW_MS {
            let text = format!("m{machine} evicts a blob that was used {} ms ago", self.now_ms - copy.truly_used_ms);
            return self.violated(About::Blob(blob), text);
        }
        // A cache may forget: from here on nothing is promised.
        if let Some(promise) = self.oracle.blobs.get_mut(&blob) {
            promise.is_void = true;
        }
        self.removed(blob);
    }

    /// A copy is not there any more, by whatever cause.
    pub fn removed(&mut self, blob: Blob) {
        if !self.machines.iter().any(|machine| machine.disk.has(blob)) {
            self.oracle.gone_since.insert(blob, self.now_ms);
        }
        self.check_there_is_one(blob);
    }

    pub fn stored(&mut self, blob: Blob) {
        self.oracle.gone_since.remove(&blob);
    }

    /// Nothing goes wrong any more, and all nodes had the time to put everything where it belongs.
    pub fn check_order(&mut self) {
        self.forget_what_is_old();
        let head = Arc::clone(self.head());
        if head.placements().len() > 1 {
            let synced: Vec<_> = head.state().members.iter().map(|(node, member)| (node.0, member.synced.0)).collect();
            return self
                .violated(About::All, format!("{} layouts are in force; synced: {synced:?}", head.placements().len()));
        }
        for blob in self.oracle.promised() {
            if !self.is_everywhere(blob) && !self.has_no_room_for(blob) {
                return self.violated(About::Blob(blob), "an owner has no good copy in the end".to_owned());
            }
        }
        for (action, newest) in self.oracle.promised_actions() {
            if !self.is_newest_everywhere(action, newest) {
                return self
                    .violated(About::Action(action), "an owner has not the newest result in the end".to_owned());
            }
        }
        for machine in 0..self.machines.len() {
            let disk = &self.machines[machine].disk;
            let Some(node) = disk.node.filter(|node| head.member(*node).is_some()) else { continue };
            let is_surplus = |blob: &Blob| disk.has(*blob) && !head.owns(node, self.partition_of_blob(*blob));
            if let Some(blob) = disk.blobs.keys().copied().find(is_surplus) {
                return self.violated(About::Blob(blob), format!("m{machine} still has a copy that it does not own"));
            }
        }
    }

    fn check_there_is_one(&mut self, blob: Blob) {
        self.forget_what_is_old();
        if !self.oracle.is_promised(blob) {
            return;
        }
        let holds =
            |node: &NodeId| self.machine_of(*node).is_some_and(|machine| self.machines[machine].disk.has_good(blob));
        if !self.head().state().members.keys().filter(|node| self.is_counted_on(**node)).any(holds) {
            self.violated(About::Blob(blob), "no member has a good copy of an acknowledged blob".to_owned());
        }
    }

    /// What all owners have has lost nothing.
    pub fn forgive_what_is_whole(&mut self) {
        let whole: Vec<Blob> = self.oracle.blobs.keys().copied().filter(|blob| self.is_everywhere(*blob)).collect();
        for blob in whole {
            if let Some(promise) = self.oracle.blobs.get_mut(&blob) {
                promise.losses.clear();
            }
        }
        let actions = self.oracle.promised_actions().into_iter();
        let whole: Vec<Action> = actions
            .filter(|(action, newest)| self.is_newest_everywhere(*action, *newest))
            .map(|(action, _)| action)
            .collect();
        for action in whole {
            if let Some(promise) = self.oracle.actions.get_mut(&action) {
                promise.losses.clear();
            }
        }
    }

    /// What was promised and is no more: where a cluster has shrunk, fewer losses are enough; where disks are too small, what
    /// nobody has used for as long as the floor may go.
    fn forget_what_is_old(&mut self) {
        let now = self.quorum();
        for promise in self.oracle.blobs.values_mut() {
            promise.is_void |= promise.losses.len() >= promise.quorum.min(now);
        }
        for promise in self.oracle.actions.values_mut() {
            promise.is_void |= promise.losses.len() >= promise.quorum.min(now);
        }
        if self.settings.is_tight {
            let until_ms = (self.now_ms + 2 * SKEW_MS).saturating_sub(FLOOR_MS);
            let old = self.oracle.blobs.values_mut().filter(|promise| promise.used_ms < until_ms);
            old.for_each(|promise| promise.is_void = true);
        }
    }

    /// What was committed may take something, or give it back.
    pub fn oracle_committed(&mut self, index: usize) {
        self.oracle.counts.layouts = self.head().epoch().0;
        let (before, after) = (self.log.states[index - 1].clone(), self.log.states[index].clone());
        match self.log.entries[index - 1].clone() {
            MemberCommand::Remove { node, .. } if after.members.len() < before.members.len() => {
                // One that is in no layout has nothing that others lack.
                let held = before.layouts.iter().any(|layout| layout.nodes.contains_key(&node));
                if let Some(machine) = self.machine_of(node).filter(|_| held) {
                    self.lost_all(machine, "removed");
                }
                self.oracle.promised().into_iter().for_each(|blob| self.check_there_is_one(blob));
            }
            MemberCommand::Lost { node } if before != after => {
                if let Some(machine) = self.machine_of(node) {
                    self.lost_all(machine, "given up");
                }
            }
            MemberCommand::Returned { node } if before != after => {
                if let Some(machine) = self.machine_of(node) {
                    self.is_back(machine);
                }
            }
            _ => {}
        }
    }

    /// What a member that was given up still has counts again.
    fn is_back(&mut self, machine: usize) {
        let disk = &self.machines[machine].disk;
        for (blob, promise) in &mut self.oracle.blobs {
            if disk.has_good(*blob) {
                promise.losses.remove(&disk.volume);
            }
        }
        for (action, promise) in &mut self.oracle.actions {
            if disk.actions.get(action) >= Some(&promise.newest) {
                promise.losses.remove(&disk.volume);
            }
        }
    }
}

// === impl Counts ===

impl Counts {
    fn count<T>(&mut self, outcome: Outcome<T>) {
        match outcome {
            Outcome::Found(_) => self.found += 1,
            Outcome::Missing => self.missing += 1,
            Outcome::Unavailable => self.unavailable += 1,
        }
    }

    pub fn add(&mut self, other: &Counts) {
        self.acknowledged += other.acknowledged;
        self.failed += other.failed;
        self.found += other.found;
        self.missing += other.missing;
        self.unavailable += other.unavailable;
        self.faults += other.faults;
        self.layouts += other.layouts;
        self.voided += other.voided;
    }
}
