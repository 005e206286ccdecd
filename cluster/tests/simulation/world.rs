//! All that there is: machines with their volumes, what is between them, the agreed log, and who watches.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use casbah_cluster::consensus::{MemberCommand, MemberReply, apply_member};
use casbah_cluster::membership::{
    Certainty, ClusterId, ClusterState, Epoch, Joiner, Layout, NodeId, Protocols, VolumeId,
};
use casbah_cluster::replication::VersionClock;
use casbah_cluster::ring::Placement;
use casbah_cluster::view::View;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::disk::{Blob, Disk};
use crate::engine::TaskId;
use crate::network::Network;
use crate::oracle::Oracle;
use crate::settings::{FLOOR_MS, LOST_AFTER_MS, Rule, SKEW_MS, Settings};
use crate::trace::{About, Trace};

/// Partitions that blobs fall into: few, so that each has some and looking after all of them is quick.
pub const PARTITIONS: usize = 64;
/// Where wall clocks begin: versions of action results and uses of blobs are times of theirs.
const EPOCH_MS: u64 = 1_000_000_000;

pub struct World {
    pub now_ms: u64,
    pub settings: Settings,
    pub random: SmallRng,
    pub machines: Vec<Machine>,
    pub network: Network,
    pub log: Log,
    pub oracle: Oracle,
    pub trace: Trace,
    pub volumes: u64,
    /// Members that have had the log.
    pub have_voted: BTreeSet<NodeId>,
    /// Since when whoever leads has not reached a member.
    pub away_since: BTreeMap<NodeId, u64>,
    /// Faults have ended: what is under way ends well.
    pub is_healed: bool,
}

/// A place where a node runs, under a name.
pub struct Machine {
    pub name: String,
    pub zone: String,
    pub disk: Disk,
    pub process: Option<Process>,
    /// Counted up by each start: what was meant for an earlier process does not reach a later one.
    pub incarnation: u64,
    pub paused_until_ms: u64,
    pub clock_ahead_ms: i64,
    /// It hears of nothing new that was committed until then.
    pub lags_until_ms: u64,
    pub disk_delay_ms: u64,
    /// It was taken out, and is not started again.
    pub is_retired: bool,
    /// Its weight, as configured.
    pub weight: u32,
}

/// A node that runs.
pub struct Process {
    pub applied: usize,
    pub view: Arc<View>,
    /// Whether it may go by that.
    pub certainty: Certainty,
    pub clock: VersionClock,
    pub tasks: Vec<TaskId>,
    /// Partitions of which copies were found to be damaged.
    pub doubts: Vec<u16>,
    /// The epochs by which what clients asked for is under way.
    pub begun: BTreeMap<u64, Epoch>,
}

/// What has been agreed on, and the state after each entry.
pub struct Log {
    pub entries: Vec<MemberCommand>,
    pub states: Vec<Rc<ClusterState>>,
    pub views: Vec<Arc<View>>,
}

// === impl World ===

impl World {
    pub fn new(settings: Settings) -> World {
        let machines: Vec<Machine> = (0..settings.nodes).map(|at| Machine::new(at, at as u64 + 1, &settings)).collect();
        let joiners = machines.iter().map(Machine::joiner).collect();
        let mut world = World {
            now_ms: 0,
            random: SmallRng::seed_from_u64(settings.seed),
            network: Network::new(),
            log: Log::formed(&settings, joiners),
            oracle: Oracle::new(),
            trace: Trace::new(settings.traced),
            volumes: settings.nodes as u64,
            have_voted: BTreeSet::new(),
            away_since: BTreeMap::new(),
            is_healed: false,
            machines,
            settings,
        };
        for at in 0..world.machines.len() {
            world.machines[at].disk.node = Some(NodeId(at as u64 + 1));
            world.start(at, 0);
        }
        world
    }

    pub fn is_broken(&self, rule: Rule) -> bool {
        self.settings.broken == Some(rule)
    }

    pub fn note(&mut self, about: About, text: impl FnOnce() -> String) {
        self.trace.note(self.now_ms, about, text);
    }

    /// Something that must never be.
    pub fn violated(&mut self, about: About, text: String) {
        self.note(about, || format!("VIOLATION: {text}"));
        let at_ms = self.now_ms;
        self.oracle.violation.get_or_insert((at_ms, about, text));
    }

    pub fn chance(&mut self, percent: u32) -> bool {
        percent > 0 && self.random.random_range(0..100) < percent
    }

    /// A machine's wall clock.
    pub fn clock_ms(&self, machine: usize) -> u64 {
        (EPOCH_MS + self.now_ms).saturating_add_signed(self.machines[machine].clock_ahead_ms)
    }

    pub fn floor_ms(&self) -> u64 {
        if self.is_broken(Rule::FloorHolds) { 0 } else { FLOOR_MS }
    }

    /// The state that was agreed on last.
    pub fn head(&self) -> &Arc<View> {
        self.log.views.last().expect("a cluster is formed before anything runs")
    }

    pub fn machine_of(&self, node: NodeId) -> Option<usize> {
        self.machines.iter().position(|machine| machine.disk.node == Some(node))
    }

    /// Where calls to a node go: to the machine of its name, whoever is there by now.
    pub fn address_of(&self, node: NodeId, view: &View) -> Option<usize> {
        let member = view.member(node)?;
        self.machines.iter().position(|machine| machine.name == member.name)
    }

    /// Whether a machine runs a node now.
    pub fn is_up(&self, machine: usize) -> bool {
        self.machines.get(machine).is_some_and(|machine| machine.process.is_some())
    }

    pub fn is_awake(&self, machine: usize) -> bool {
        self.is_up(machine) && self.machines[machine].paused_until_ms <= self.now_ms
    }

    /// A node comes up with what its disk has; `applied` is how far it has the log.
    pub fn start(&mut self, machine: usize, applied: usize) {
        let place = &mut self.machines[machine];
        let node = place.disk.node.unwrap_or_default();
        place.incarnation += 1;
        let view = Arc::new(self.log.views[applied].seen_by(node));
        let mut clock = VersionClock::new(node);
        if place.disk.node.is_some() {
            self.have_voted.insert(node);
        }
        let clock_ms = EPOCH_MS + self.now_ms + 2 * SKEW_MS;
        place.disk.actions.values().for_each(|version| drop(clock.observe(*version, clock_ms)));
        place.process = Some(Process {
            applied,
            view,
            certainty: Certainty::new(Some(LOST_AFTER_MS)),
            clock,
            tasks: Vec::new(),
            doubts: Vec::new(),
            begun: BTreeMap::new(),
        });
        self.network.changed(machine, self.now_ms);
    }

    /// A machine applies the log up to there. Whether anything is new.
    pub fn apply(&mut self, machine: usize, index: usize) -> bool {
        let views = &self.log.views;
        let place = &mut self.machines[machine];
        let node = place.disk.node.unwrap_or_default();
        let Some(process) = place.process.as_mut().filter(|process| process.applied < index) else { return false };
        process.applied = index;
        process.view = Arc::new(views[index].seen_by(node));
        let epoch = process.view.epoch();
        self.note(About::Machine(machine), || format!("has applied entry {index} (epoch {epoch})"));
        true
    }

    /// Commits a command: its position.
    pub fn commit(&mut self, command: MemberCommand) -> (usize, MemberReply) {
        let state = Rc::clone(self.log.states.last().expect("a cluster is formed"));
        let (after, reply) = apply_member(Some(&state), &command);
        self.note(About::All, || format!("committed {command:?}: {reply:?}"));
        let mut after = after;
        if self.is_broken(Rule::RetiredWhenAllHaveSynced)
            && let MemberCommand::Synced { epoch, .. } = &command
        {
            let state = after.get_or_insert_with(|| (*state).clone());
            state.layouts.retain(|layout| layout.epoch >= *epoch);
        }
        self.log.push(command, after);
        let index = self.log.entries.len();
        let view = Arc::clone(self.head());
        self.note(About::All, || {
            let layouts = view.state().layouts.iter();
            let layouts: Vec<_> =
                layouts.map(|l| (l.epoch.0, l.nodes.keys().map(|n| n.0).collect::<Vec<_>>())).collect();
            format!("entry {index}: layouts {layouts:?}")
        });
        (index, reply)
    }

    /// A node finds out that a copy is damaged, and looks for another one.
    pub fn found_damaged(&mut self, machine: usize, blob: Blob) {
        let partition = u16::try_from(self.partition_of_blob(blob)).unwrap_or(0);
        if let Some(process) = self.machines[machine].process.as_mut() {
            process.doubts.push(partition);
        }
        self.note(About::Blob(blob), || format!("the copy on m{machine} is found to be damaged"));
    }

    /// A node looks through all that it has.
    pub fn scrub(&mut self, machine: usize) {
        let rotten: Vec<Blob> = self.machines[machine].disk.scrub();
        rotten.into_iter().for_each(|blob| self.found_damaged(machine, blob));
    }

    /// The machines of members that have come to vote. A member votes from when it has the log.
    pub fn voters(&self) -> Vec<Option<usize>> {
        let members = self.head().state().members.keys().filter(|node| self.have_voted.contains(node));
        members.map(|node| self.machine_of(*node)).collect()
    }

    /// A machine that may lead: most voters are awake, and reach it and are reached by it.
    pub fn leader(&mut self) -> Option<usize> {
        let voters = self.voters();
        let living: Vec<usize> = voters.iter().flatten().copied().filter(|machine| self.is_awake(*machine)).collect();
        let follows = |leader: usize, other: usize| leader == other || self.network.both(leader, other);
        let leads = |leader: &&usize| {
            let followers = living.iter().filter(|other| follows(**leader, **other)).count();
            followers * 2 > voters.len()
        };
        let leaders: Vec<usize> = living.iter().filter(leads).copied().collect();
        let at = if leaders.is_empty() { return None } else { self.random.random_range(0..leaders.len()) };
        leaders.get(at).copied()
    }
}

// === impl Process ===

impl Process {
    /// The oldest layout by which something goes on that a client has asked for.
    pub fn oldest(&self) -> Option<Epoch> {
        self.begun.values().min().copied()
    }
}

// === impl Machine ===

impl Machine {
    pub fn new(at: usize, volume: u64, settings: &Settings) -> Machine {
        Machine {
            name: format!("m{at}"),
            zone: format!("z{}", at % settings.zones),
            disk: Disk::new(volume, settings.capacity),
            process: None,
            incarnation: 0,
            paused_until_ms: 0,
            clock_ahead_ms: 0,
            lags_until_ms: 0,
            disk_delay_ms: 0,
            is_retired: false,
            weight: 100,
        }
    }

    pub fn joiner(&self) -> Joiner {
        Joiner {
            name: self.name.clone(),
            address: format!("{}.test:7980", self.name),
            volume: VolumeId(u128::from(self.disk.volume).to_be_bytes()),
            zone: self.zone.clone(),
            weight: self.weight,
            protocols: Protocols::SPOKEN,
        }
    }
}

// === impl Log ===

impl Log {
    fn formed(settings: &Settings, mut joiners: Vec<Joiner>) -> Log {
        let quorums = (settings.copies, settings.write_quorum);
        let expected = u32::try_from(joiners.len()).unwrap_or(u32::MAX);
        let founder = joiners.remove(0);
        let mut state = ClusterState::formed(ClusterId([7; 16]), "casbah".to_owned(), quorums, expected, founder);
        for joiner in joiners {
            state.admit(joiner, None).expect("each has a name and a volume of its own");
        }
        let view = Arc::new(view_of(&state));
        Log { entries: Vec::new(), states: vec![Rc::new(state)], views: vec![view] }
    }

    fn push(&mut self, command: MemberCommand, after: Option<ClusterState>) {
        let (state, view) = match after {
            Some(after) => {
                let view = Arc::new(view_of(&after));
                (Some(Rc::new(after)), Some(view))
            }
            None => (self.states.last().cloned(), self.views.last().cloned()),
        };
        self.entries.push(command);
        self.states.extend(state);
        self.views.extend(view);
    }
}

/// Tables that have been made, by layout and number of copies: the same few come up again and again.
static TABLES: Mutex<BTreeMap<(String, u8), Arc<Placement>>> = Mutex::new(BTreeMap::new());

fn view_of(state: &ClusterState) -> View {
    let table = |layout: &Layout| {
        let key = (format!("{layout:?}"), state.copies);
        let known = TABLES.lock().unwrap().get(&key).cloned();
        known.unwrap_or_else(|| {
            let made = Arc::new(Placement::of(layout, state.copies).first(PARTITIONS));
            TABLES.lock().unwrap().insert(key, Arc::clone(&made));
            made
        })
    };
    let tables: Vec<Arc<Placement>> = state.layouts.iter().rev().map(table).collect();
    View::with_tables(NodeId(0), state.clone(), &tables)
}
