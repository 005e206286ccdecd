//! How a node comes to have what it should, and gives away what it should not have: carries out what `casbah_cluster::repair`
//! decides.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use casbah_cluster::consensus::MemberCommand;
use casbah_cluster::membership::{Epoch, NodeId};
use casbah_cluster::repair::{HandOvers, Peer, Pull, Pulled, Room, Said, Step, Summary, Surplus, Sync};
use casbah_cluster::replication::Version;
use casbah_cluster::view::View;

use crate::calls::{Answer, Call, call};
use crate::disk::{Action, Blob, Copied, Disk};
use crate::engine::{Inbox, Sim, Told};
use crate::node::{Node, keeps};
use crate::settings::Rule;
use crate::trace::About;
use crate::world::World;

/// Between two rounds of comparing everything.
const INTERVAL_MS: u64 = 5 * 60_000;
/// Between looks at what there is to do, at the most and at the least.
const LOOK_MS: u64 = 5_000;
const LOOK_SOON_MS: u64 = 250;
/// Pulls and hand-overs that a node has under way.
const AT_ONCE: usize = 3;

/// What came of something that was under way.
enum Done {
    Pulled(Pull, Pulled),
    HandedOver { partition: u16, has_failed: bool },
}

/// What a node has looked at: its view, who is there, and what it has.
type Seen = (Arc<View>, BTreeSet<NodeId>, BTreeMap<u16, Summary>);

struct Mender {
    sim: Sim,
    node: Node,
    sync: Sync,
    hand_overs: HandOvers,
    inbox: Inbox,
    done: Rc<RefCell<Vec<Done>>>,
    under_way: usize,
    /// What was compared: by tag, with whom, by which layout, and what.
    compares: BTreeMap<usize, (NodeId, Epoch, Vec<u16>)>,
    next_tag: usize,
    /// A layout that the cluster is being told of.
    telling: Option<Epoch>,
    heard: BTreeMap<NodeId, Epoch>,
    seen: Option<Seen>,
    wakes_ms: u64,
    left: String,
}

impl Disk {
    /// What it has of each partition that it has something of.
    pub fn summaries(&self, world: &World) -> BTreeMap<u16, Summary> {
        let mut kinds: BTreeMap<usize, [(u64, [u8; 32]); 2]> = BTreeMap::new();
        let mut add = |partition: usize, kind: usize, words: [u64; 3]| {
            let (count, xor) = &mut kinds.entry(partition).or_default()[kind];
            *count += 1;
            xor.iter_mut().zip(sum(words)).for_each(|(all, one)| *all ^= one);
        };
        for blob in self.blobs.keys().filter(|blob| self.has(**blob)) {
            add(world.partition_of_blob(*blob), 0, [u64::from(*blob), 0, 0]);
        }
        for (action, version) in &self.actions {
            let words = [u64::from(*action), version.time_ms ^ u64::from(version.count) << 48, version.node.0];
            add(world.partition_of_action(*action), 1, words);
        }
        kinds.into_iter().map(|(partition, kinds)| (number(partition), Summary::of(&kinds))).collect()
    }
}

/// 32 bytes that no other words have.
fn sum(words: [u64; 3]) -> [u8; 32] {
    let mut state = words.iter().fold(0x9e37_79b9_7f4a_7c15_u64, |state, word| mix(state ^ word));
    let mut bytes = [0; 32];
    for part in bytes.chunks_mut(8) {
        state = mix(state);
        part.copy_from_slice(&state.to_be_bytes());
    }
    bytes
}

/// The finisher of SplitMix64 (Steele et al., 2014).
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

fn number(partition: usize) -> u16 {
    u16::try_from(partition).expect("there are 4096 partitions")
}

/// Has a node look after what it has, for as long as it runs.
pub fn look_after(sim: &Sim, node: Node) {
    let sim_too = sim.clone();
    node.spawn(sim, async move {
        let mut mender = Mender {
            inbox: sim_too.inbox(),
            sim: sim_too,
            node,
            sync: Sync::new(INTERVAL_MS),
            hand_overs: HandOvers::new(INTERVAL_MS),
            done: Rc::default(),
            under_way: 0,
            compares: BTreeMap::new(),
            next_tag: 0,
            telling: None,
            heard: BTreeMap::new(),
            seen: None,
            wakes_ms: 0,
            left: String::new(),
        };
        loop {
            let pause_ms = mender.look();
            mender.remind(pause_ms);
            let told = mender.inbox.next().await;
            mender.hear(told);
        }
    });
}

// === impl Mender ===

impl Mender {
    fn mine(&self) -> BTreeMap<u16, Summary> {
        let world = self.sim.world();
        world.machines[self.node.machine].disk.summaries(&world)
    }

    /// Begins what there is to do. When to look again, if nothing happens.
    fn look(&mut self) -> u64 {
        let (sim, node, now_ms) = (self.sim.clone(), self.node, self.sim.now_ms());
        let view = node.view(&sim);
        let members: Vec<NodeId> = view.state().members.keys().copied().collect();
        let there: BTreeSet<NodeId> = members.into_iter().filter(|other| !node.is_away(&sim, &view, *other)).collect();
        let heard = self.heard.clone();
        let peer = |other: NodeId| Peer {
            is_reachable: there.contains(&other),
            epoch: heard.get(&other).copied().unwrap_or_default(),
        };
        self.sync.look(&view, peer, now_ms);
        let doubts =
            sim.world().machines[node.machine].process.as_mut().map(|process| std::mem::take(&mut process.doubts));
        doubts.unwrap_or_default().into_iter().for_each(|partition| self.sync.doubt(partition, now_ms));
        let mine = self.mine();
        let summary = |partition: u16| mine.get(&partition).copied().unwrap_or_default();
        while self.under_way < AT_ONCE {
            match self.sync.next(&summary, now_ms) {
                Some(Step::Compare { source, partitions }) => self.compare(&view, source, partitions),
                Some(Step::Pull(pull)) => self.begin(Some(pull), None),
                None => break,
            }
        }
        // Looking at the same again would change nothing, nor at nothing; and it takes its time.
        let has_surplus = mine.keys().any(|partition| !view.owns(node.id, usize::from(*partition)));
        let seen = (Arc::clone(&view), there, mine.clone());
        let is_same =
            |(before, there, mine): &Seen| Arc::ptr_eq(before, &seen.0) && *there == seen.1 && *mine == seen.2;
        if (has_surplus || self.hand_overs.held() > 0) && !self.seen.as_ref().is_some_and(is_same) {
            self.hand_overs.look(&view, |other| seen.1.contains(&other), summary, now_ms);
            self.seen = Some(seen);
        }
        while self.under_way < AT_ONCE
            && let Some(partition) = self.hand_overs.next(now_ms)
        {
            self.begin(None, Some(partition));
        }
        // A process knows nothing of what others have when it begins: so it has asked all of them since.
        if self.sync.synced().is_some() {
            sim.world().machines[node.machine].disk.is_unsure = false;
        }
        self.tell(&view);
        if sim.world().settings.traced {
            self.note_what_is_left(&mine);
        }
        let wake_ms = self.sync.wake_ms().into_iter().chain(self.hand_overs.wake_ms()).min();
        let pause_ms = wake_ms.map_or(LOOK_MS, |wake_ms| wake_ms.saturating_sub(now_ms));
        pause_ms.clamp(LOOK_SOON_MS, LOOK_MS)
    }

    /// What holds this node up, for those who read a trace.
    fn note_what_is_left(&mut self, mine: &BTreeMap<u16, Summary>) {
        let left = self.sync.left(&|partition: u16| mine.get(&partition).copied().unwrap_or_default());
        let text = format!(
            "is synced to {:?}, lacks {} partitions, waits for {:?}",
            self.sync.synced(),
            left.partitions,
            left.waits_for,
        );
        if self.left != text {
            self.left.clone_from(&text);
            self.sim.world().note(About::Machine(self.node.machine), || text);
        }
    }

    /// Has itself woken, unless it will be soon enough.
    fn remind(&mut self, pause_ms: u64) {
        let (now_ms, at_ms) = (self.sim.now_ms(), self.sim.now_ms() + pause_ms);
        if self.wakes_ms <= now_ms || self.wakes_ms > at_ms {
            self.wakes_ms = at_ms;
            self.inbox.remind(pause_ms);
        }
    }

    fn compare(&mut self, view: &View, source: NodeId, partitions: Vec<u16>) {
        self.next_tag += 1;
        let asked = Call::Compare(partitions.clone());
        self.compares.insert(self.next_tag, (source, view.epoch(), partitions));
        call(&self.sim, &self.node, source, self.next_tag, asked, &self.inbox);
    }

    /// Begins a pull or a hand-over, as a task of its own.
    fn begin(&mut self, pulled: Option<Pull>, handed_over: Option<u16>) {
        self.under_way += 1;
        let may_drop = handed_over.is_some_and(|partition| self.hand_overs.may_drop(partition, self.sim.now_ms()));
        let may_drop = may_drop || !keeps(&self.sim, Rule::SurplusStaysAWhile);
        let (sim, node, done, inbox) = (self.sim.clone(), self.node, Rc::clone(&self.done), self.inbox.clone());
        self.node.spawn(&self.sim, async move {
            let ended = match (pulled, handed_over) {
                (Some(wanted), _) => Done::Pulled(wanted, pull(&sim, node, &wanted).await),
                (None, Some(partition)) => {
                    Done::HandedOver { partition, has_failed: hand_over(&sim, node, partition, may_drop).await }
                }
                (None, None) => return,
            };
            done.borrow_mut().push(ended);
            inbox.tell(Told::Timer);
        });
    }

    /// Tells the cluster what this node is synced to.
    fn tell(&mut self, view: &View) {
        if self.telling.is_some_and(|epoch| epoch >= view.epoch()) {
            return;
        }
        let oldest = self.sim.world().machines[self.node.machine].process.as_ref().and_then(|process| process.oldest());
        let oldest = oldest.filter(|_| keeps(&self.sim, Rule::OwnOperationsEnd));
        let is_told = view.member(view.self_id()).is_some_and(|member| member.synced >= view.epoch());
        let epoch = match self.sync.report(oldest) {
            None if !keeps(&self.sim, Rule::SyncedIsFilled) && !is_told => Some(view.epoch()),
            epoch => epoch,
        };
        let Some(epoch) = epoch else { return };
        self.telling = Some(epoch);
        self.node.propose(&self.sim, MemberCommand::Synced { node: self.node.id, epoch }, &self.inbox);
    }

    fn hear(&mut self, told: Told) {
        let now_ms = self.sim.now_ms();
        match told {
            Told::Answer { node, tag, epoch, answer: Answer::Compared(theirs) } => {
                self.heard.insert(node, epoch);
                if let Some((source, asked_by, partitions)) = self.compares.remove(&tag) {
                    let mine = self.mine();
                    let summary = |partition: u16| mine.get(&partition).copied().unwrap_or_default();
                    let mut told: Vec<(u16, Summary)> = partitions.into_iter().zip(theirs).collect();
                    if !keeps(&self.sim, Rule::FallbacksAreAsked) {
                        let view = self.node.view(&self.sim);
                        told.iter_mut()
                            .filter(|(partition, _)| !view.owns(source, usize::from(*partition)))
                            .for_each(|(partition, theirs)| *theirs = summary(*partition));
                    }
                    self.sync.compared(source, asked_by, &told, &summary, now_ms);
                }
            }
            Told::Answer { tag, .. } | Told::Silence { tag, .. } => {
                if let Some((source, ..)) = self.compares.remove(&tag) {
                    self.sync.not_compared(source, now_ms);
                }
            }
            Told::Committed(_) | Told::InDoubt => self.telling = None,
            Told::Timer => {}
        }
        let done = std::mem::take(&mut *self.done.borrow_mut());
        for done in done {
            self.under_way -= 1;
            match done {
                Done::Pulled(pull, outcome) => {
                    let mine = self.mine();
                    let summary = |partition: u16| mine.get(&partition).copied().unwrap_or_default();
                    self.sync.pulled(&pull, outcome, &summary, now_ms);
                }
                Done::HandedOver { partition, has_failed } => self.hand_overs.done(partition, has_failed, now_ms),
            }
        }
    }
}

/// Copies what a source has of a partition and this node has not.
async fn pull(sim: &Sim, node: Node, pull: &Pull) -> Pulled {
    let inbox = sim.inbox();
    call(sim, &node, pull.source, 0, Call::List(pull.partition), &inbox);
    let Told::Answer { answer: Answer::Listed(blobs, actions), .. } = inbox.next().await else { return Pulled::Broken };
    let mut copies = 0;
    for (blob, listed) in blobs {
        let (is_here, would_go) = {
            let world = sim.world();
            let disk = &world.machines[node.machine].disk;
            (disk.has(blob), would_evict(&world, disk, listed.used_ms, world.clock_ms(node.machine)))
        };
        if is_here || would_go {
            continue;
        }
        call(sim, &node, pull.source, 0, Call::Read(blob), &inbox);
        let copied = match answer(&inbox).await {
            Some(Answer::Data(copied)) => copied,
            Some(Answer::NotFound) => continue,
            _ => return Pulled::Broken,
        };
        call(sim, &node, node.id, 0, Call::Store(blob, Some(as_it_travels(sim, copied))), &inbox);
        match answer(&inbox).await {
            Some(Answer::Done) => copies += 1,
            _ => return Pulled::Full,
        }
    }
    for (action, version) in actions {
        let here = sim.world().machines[node.machine].disk.actions.get(&action).copied();
        if here >= Some(version) {
            continue;
        }
        call(sim, &node, node.id, 0, Call::PutAction(action, version), &inbox);
        match answer(&inbox).await {
            Some(Answer::Done) => copies += 1,
            _ => return Pulled::Full,
        }
    }
    Pulled::All { copies }
}

async fn answer(inbox: &Inbox) -> Option<Answer> {
    match inbox.next().await {
        Told::Answer { answer, .. } => Some(answer),
        _ => None,
    }
}

/// A copy goes with the time of its use.
fn as_it_travels(sim: &Sim, copied: Copied) -> Copied {
    if keeps(sim, Rule::UseTravels) { copied } else { Copied { used_ms: 0, ..copied } }
}

/// Gives what this node has of a partition, and does not own, to those who lack it; drops it when all have it. Whether
/// something is left to do.
async fn hand_over(sim: &Sim, node: Node, partition: u16, may_drop: bool) -> bool {
    let (blobs, actions): (Vec<Blob>, Vec<(Action, Version)>) = {
        let world = sim.world();
        let disk = &world.machines[node.machine].disk;
        let blobs = disk.blobs.keys().filter(|blob| world.partition_of_blob(**blob) == usize::from(partition));
        let actions = disk.actions.iter().map(|(action, version)| (*action, *version));
        let of_it = |(action, _): &(Action, Version)| world.partition_of_action(*action) == usize::from(partition);
        (blobs.copied().collect(), actions.filter(of_it).collect())
    };
    let mut has_failed = false;
    for blob in blobs {
        has_failed |= !hand_over_blob(sim, node, partition, blob, may_drop).await;
    }
    for (action, version) in actions {
        has_failed |= !hand_over_action(sim, node, partition, (action, version), may_drop).await;
    }
    has_failed
}

/// Whether all owners have it.
async fn hand_over_blob(sim: &Sim, node: Node, partition: u16, blob: Blob, may_drop: bool) -> bool {
    let view = node.view(sim);
    let mut surplus = Surplus::new(&view, partition);
    let owners: Vec<NodeId> = view.owners(usize::from(partition)).to_vec();
    let inbox = sim.inbox();
    call(sim, &node, node.id, 0, Call::Read(blob), &inbox);
    let copied = match answer(&inbox).await {
        Some(Answer::Data(copied)) => Some(copied),
        Some(Answer::NotFound) => return true,
        // What is damaged can be given to nobody, and this node goes on not to say that it has none.
        _ => None,
    };
    for owner in &owners {
        call(sim, &node, *owner, 0, Call::Find { blobs: vec![blob], touch: false }, &inbox);
        hear_of_surplus(sim, node.machine, &mut surplus, copied, inbox.next().await);
    }
    for owner in surplus.lacking().collect::<Vec<_>>() {
        let Some(copied) = copied else { break };
        call(sim, &node, owner, 0, Call::Store(blob, Some(as_it_travels(sim, copied))), &inbox);
        if let Told::Answer { node: owner, epoch, answer: Answer::Done, .. } = inbox.next().await {
            surplus.heard(owner, epoch, Said::Has);
        }
    }
    if !surplus.may_drop() && keeps(sim, Rule::SurplusIsKept) {
        return false;
    }
    if may_drop {
        drop_blob(sim, node, &view, blob);
    }
    true
}

fn would_evict(world: &World, disk: &Disk, used_ms: u64, now_ms: u64) -> bool {
    let room = disk.room();
    let floor_ms = if world.is_broken(Rule::PromisedIsMoved) { 0 } else { room.floor_ms };
    Room { floor_ms, ..room }.would_evict(used_ms, now_ms)
}

fn hear_of_surplus(sim: &Sim, here: usize, surplus: &mut Surplus, copied: Option<Copied>, told: Told) {
    if let Told::Answer { node: owner, epoch, answer: Answer::Present(present), .. } = told {
        let would_evict = {
            let world = sim.world();
            let machine = world.machine_of(owner).and_then(|machine| world.machines.get(machine));
            let clock_ms = world.clock_ms(here);
            let would =
                |copied: Copied| machine.is_some_and(|m| would_evict(&world, &m.disk, copied.used_ms, clock_ms));
            copied.is_some_and(would)
        };
        surplus.heard(
            owner,
            epoch,
            match present.first().copied().flatten() {
                Some(true) => Said::Has,
                Some(false) if would_evict => Said::WouldEvict,
                Some(false) => Said::Lacks,
                None => Said::Nothing,
            },
        );
    }
}

/// Drops a copy, unless another layout has come meanwhile.
fn drop_blob(sim: &Sim, node: Node, view: &Arc<View>, blob: Blob) {
    let mut world = sim.world();
    let machine = node.machine;
    let is_same = world.machines[machine].process.as_ref().is_some_and(|process| process.view.is_placed_as(view));
    if is_same {
        world.machines[machine].disk.blobs.remove(&blob);
        world.note(About::Blob(blob), || format!("surplus on m{machine} is dropped"));
        world.removed(blob);
    }
}

/// Whether all owners have it, or a later one.
async fn hand_over_action(
    sim: &Sim,
    node: Node,
    partition: u16,
    (action, version): (Action, Version),
    may_drop: bool,
) -> bool {
    let view = node.view(sim);
    let mut surplus = Surplus::new(&view, partition);
    let owners: Vec<NodeId> = view.owners(usize::from(partition)).to_vec();
    let inbox = sim.inbox();
    for owner in owners {
        call(sim, &node, owner, 0, Call::GetAction(action), &inbox);
        if let Told::Answer { epoch, answer: Answer::Action(theirs), .. } = inbox.next().await {
            let said = if theirs >= Some(version) { Said::Has } else { Said::Lacks };
            surplus.heard(owner, epoch, said);
        }
    }
    for owner in surplus.lacking().collect::<Vec<_>>() {
        call(sim, &node, owner, 0, Call::PutAction(action, version), &inbox);
        if let Told::Answer { epoch, answer: Answer::Done, .. } = inbox.next().await {
            surplus.heard(owner, epoch, Said::Has);
        }
    }
    let mut world = sim.world();
    let machine = &mut world.machines[node.machine];
    let is_same = machine.process.as_ref().is_some_and(|process| process.view.is_placed_as(&view));
    let is_done = surplus.may_drop() && is_same && machine.disk.actions.get(&action) == Some(&version);
    if is_done && may_drop {
        machine.disk.actions.remove(&action);
    }
    is_done
}
