//! Fresh nodes step by step; and thousands of simulated groups whose messages are lost, late and repeated, and whose nodes
//! crash, stop, and come back with empty directories.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt as _;
use rand::rngs::SmallRng;

use super::formation::{CONFIRMED_LATELY_MS, Formation, FormationStep, HEARD_LATELY_MS, Waiting};
use super::ids::{ClusterId, NodeId, VolumeId};
use super::introduction::{Introduction, Joiner, Pledge};
use super::protocol::Protocols;
use crate::testing::{random, seed};

const DRAWN: ClusterId = ClusterId([9; 16]);

fn introduction(name: &str, volume: u64, bootstrap_expect: u32) -> Introduction {
    let joiner = Joiner {
        name: name.to_owned(),
        address: format!("{name}.test:7980"),
        volume: VolumeId(u128::from(volume).to_be_bytes()),
        zone: String::new(),
        weight: 100,
        protocols: Protocols::SPOKEN,
    };
    Introduction {
        cluster_name: "casbah".to_owned(),
        joiner,
        bootstrap_expect,
        identity: None,
        pledge: None,
        fresh_peers: BTreeSet::new(),
    }
}

fn node(name: &str, volume: u64, bootstrap_expect: u32) -> Formation {
    Formation::new(introduction(name, volume, bootstrap_expect), None)
}

fn in_cluster(name: &str, volume: u64, cluster: ClusterId) -> Introduction {
    Introduction { identity: Some((cluster, NodeId(1))), ..introduction(name, volume, 3) }
}

fn pledge(step: FormationStep) -> Pledge {
    match step {
        FormationStep::Keep(Some(pledge)) => pledge,
        other => panic!("{other:?}"),
    }
}

/// Three nodes of which the first is founding, and the second has heard of it.
fn founding() -> (Formation, Formation) {
    let (mut a, mut b) = (node("a", 1, 3), node("b", 2, 3));
    a.heard(b.introduction(), 0);
    a.heard(introduction("c", 3, 3), 0);
    assert_eq!(a.decide(0, DRAWN, 0), FormationStep::Wait(Waiting::Pledges { count: 1, expected: 3 }));
    b.heard(a.introduction(), 1);
    (a, b)
}

#[test]
fn programs_that_have_no_version_in_common_do_not_form_a_cluster_and_one_is_asked_that_there_is() {
    let mut a = node("a", 1, 2);
    let mut other = introduction("b", 2, 2);
    other.joiner.protocols = "8-9".parse().unwrap();
    a.heard(other.clone(), 0);
    assert_eq!(a.decide(0, DRAWN, 0), FormationStep::Wait(Waiting::Nodes { seen: 1, expected: 2 }));
    other.identity = Some((DRAWN, NodeId(1)));
    a.heard(other, 1);
    assert!(matches!(a.decide(1, DRAWN, 0), FormationStep::Join { cluster: DRAWN, .. }), "its cluster says why not");
}

#[test]
fn a_node_that_is_to_be_alone_forms_a_cluster_at_once() {
    assert_eq!(node("a", 1, 1).decide(0, DRAWN, 0), FormationStep::Form(DRAWN));
}

#[test]
fn a_node_that_was_given_addresses_forms_none_alone_while_one_is_silent() {
    let mut a = node("a", 1, 1);
    assert_eq!(a.decide(0, DRAWN, 1), FormationStep::Wait(Waiting::Seeds { silent: 1 }));
    a.heard(introduction("b", 2, 1), 5);
    assert_eq!(a.decide(5, DRAWN, 0), FormationStep::Form(DRAWN));
    let mut b = node("b", 2, 1);
    b.heard(introduction("a", 1, 1), 5);
    assert_eq!(b.decide(5, DRAWN, 0), FormationStep::Wait(Waiting::Founder { name: "a".to_owned() }));
}

#[test]
fn the_first_by_name_founds_when_all_expected_are_there_and_forms_when_all_have_pledged() {
    let (mut a, mut b) = founding();
    let mut c = node("c", 3, 3);
    c.heard(a.introduction(), 1);
    for node in [&mut b, &mut c] {
        let pledge = pledge(node.decide(2, ClusterId([1; 16]), 0));
        assert_eq!((pledge.cluster, pledge.founder_name.as_str()), (DRAWN, "a"));
        assert_eq!(node.introduction().pledge, None, "what is not on disk is not said");
        node.kept(Some(pledge), 2);
    }
    a.heard(b.introduction(), 3);
    assert_eq!(a.decide(3, ClusterId([2; 16]), 0), FormationStep::Wait(Waiting::Pledges { count: 2, expected: 3 }));
    a.heard(c.introduction(), 3);
    assert_eq!(a.decide(3, ClusterId([3; 16]), 0), FormationStep::Form(DRAWN));
    // It does not change its mind, whatever it hears.
    a.heard(in_cluster("z", 7, ClusterId([4; 16])), 4);
    assert_eq!(a.decide(HEARD_LATELY_MS * 9, ClusterId([5; 16]), 0), FormationStep::Form(DRAWN));
}

#[test]
fn too_few_of_one_mind_form_nothing() {
    let mut a = node("a", 1, 3);
    a.heard(introduction("b", 2, 3), 0);
    a.heard(introduction("c", 3, 2), 0); // expects another number
    a.heard(Introduction { cluster_name: "other".to_owned(), ..introduction("d", 4, 3) }, 0);
    a.heard(introduction("b", 5, 3), 1); // b again, with another directory
    a.heard(introduction("a", 6, 3), 0); // its own name
    a.heard(introduction("a", 1, 3), 0); // itself
    assert_eq!(a.decide(1, DRAWN, 0), FormationStep::Wait(Waiting::Nodes { seen: 2, expected: 3 }));
    let mut never = node("a", 1, 0);
    never.heard(introduction("b", 2, 0), 0);
    assert_eq!(never.decide(0, DRAWN, 0), FormationStep::Wait(Waiting::Cluster));
}

#[test]
fn nodes_that_have_not_been_heard_from_lately_do_not_count() {
    let mut a = node("a", 1, 2);
    a.heard(introduction("b", 2, 2), 0);
    let later = HEARD_LATELY_MS + 1;
    assert_eq!(a.decide(later, DRAWN, 0), FormationStep::Wait(Waiting::Nodes { seen: 1, expected: 2 }));
}

#[test]
fn a_founder_that_was_stopped_asks_again_before_it_forms() {
    let mut a = node("a", 1, 2);
    let mut b = node("b", 2, 2);
    a.heard(b.introduction(), 0);
    a.decide(0, DRAWN, 0);
    b.heard(a.introduction(), 0);
    let pledge = pledge(b.decide(0, DRAWN, 0));
    b.kept(Some(pledge), 0);
    a.heard(b.introduction(), 1);
    let later = 1 + CONFIRMED_LATELY_MS + 1;
    assert_eq!(a.decide(later, DRAWN, 0), FormationStep::Wait(Waiting::Pledges { count: 1, expected: 2 }));
    a.heard(b.introduction(), later);
    assert_eq!(a.decide(later, DRAWN, 0), FormationStep::Form(DRAWN));
}

#[test]
fn where_there_is_a_cluster_it_is_joined_and_none_is_formed() {
    let (mut a, _) = founding();
    let cluster = ClusterId([4; 16]);
    a.heard(in_cluster("z", 7, cluster), 3);
    let join = FormationStep::Join { cluster, address: "z.test:7980".to_owned() };
    assert_eq!(a.decide(3, DRAWN, 0), join);
    assert!(!a.introduction().is_fresh(), "a node that may be in a cluster already counts for no other");
    assert_eq!(a.decide(4, DRAWN, 0), FormationStep::Wait(Waiting::Joining));
    a.join_failed();
    assert!(a.introduction().is_fresh() && a.introduction().founding().is_none());
    assert_eq!(a.decide(5, DRAWN, 0), join);
}

#[test]
fn of_two_clusters_of_one_name_none_is_joined() {
    let mut a = node("a", 1, 3);
    let clusters = [ClusterId([4; 16]), ClusterId([5; 16])];
    a.heard(in_cluster("x", 7, clusters[0]), 0);
    a.heard(in_cluster("y", 8, clusters[1]), 0);
    let several = FormationStep::Wait(Waiting::SeveralClusters(BTreeSet::from(clusters)));
    assert_eq!(a.decide(0, DRAWN, 0), several);
}

#[test]
fn a_pledge_is_for_one_cluster_and_survives_its_node_s_restart() {
    let (_, mut b) = founding();
    let pledge = pledge(b.decide(2, DRAWN, 0));
    let mut again = Formation::new(introduction("b", 2, 3), Some(pledge.clone()));
    assert_eq!(again.introduction().pledge, Some(pledge));
    // Another founder, even an earlier one, and another cluster: neither is heard.
    let mut other = introduction("0", 9, 3);
    let cluster = ClusterId([8; 16]);
    other.pledge = Some(Pledge { cluster, founder: other.joiner.volume, founder_name: "0".to_owned() });
    again.heard(other, 5);
    again.heard(in_cluster("z", 7, cluster), 5);
    assert_eq!(again.decide(5, DRAWN, 0), FormationStep::Wait(Waiting::Founder { name: "a".to_owned() }));
}

#[test]
fn a_pledge_ends_when_its_founder_says_something_else() {
    let (a, mut b) = founding();
    let pledge = pledge(b.decide(2, DRAWN, 0));
    b.kept(Some(pledge), 10);
    b.heard(introduction("a", 1, 3), 9); // asked before the pledge was made: says nothing
    b.heard(a.introduction(), 11);
    assert!(matches!(b.decide(11, DRAWN, 0), FormationStep::Wait(Waiting::Founder { .. })));
    b.heard(introduction("a", 1, 3), 12); // the same directory, started again, founds nothing
    assert_eq!(b.decide(12, DRAWN, 0), FormationStep::Keep(None));
    b.kept(None, 13);
    assert_eq!(b.introduction().pledge, None);
}

#[test]
fn a_pledge_ends_when_its_founder_s_directory_is_gone() {
    let (_, mut b) = founding();
    let pledge = pledge(b.decide(2, DRAWN, 0));
    b.kept(Some(pledge), 10);
    b.heard(introduction("a", 77, 3), 12);
    assert_eq!(b.decide(12, DRAWN, 0), FormationStep::Keep(None));
}

#[test]
fn a_pledged_node_joins_what_its_founder_has_formed() {
    let (_, mut b) = founding();
    let pledge = pledge(b.decide(2, DRAWN, 0));
    b.kept(Some(pledge), 10);
    b.heard(in_cluster("a", 1, DRAWN), 12);
    let join = FormationStep::Join { cluster: DRAWN, address: "a.test:7980".to_owned() };
    assert_eq!(b.decide(12, DRAWN, 0), join);
}

// === simulation ===

/// Long enough for everything that can be decided to be.
const QUIET_MS: u64 = 120_000;
const ROUND_MS: u64 = 500;
const JOIN_DEADLINE_MS: u64 = 3_000;
const VOTERS: usize = 3;

#[derive(Debug, Clone, Copy)]
struct Trouble {
    until_ms: u64,
    loss: f64,
    delay_ms: u64,
    crash: f64,
    wipe: f64,
    stop: f64,
}

#[derive(Debug)]
struct Computer {
    name: String,
    group: usize,
    // === its disk ===
    volume: u64,
    pledge: Option<Pledge>,
    identity: Option<ClusterId>,
    // === its process ===
    process: Option<Process>,
    stopped_until_ms: u64,
}

#[derive(Debug)]
struct Process {
    number: u64,
    /// `None` once it is in a cluster.
    formation: Option<Formation>,
    /// The number of the call to join that is under way, and when it ends.
    join: Option<(u64, u64)>,
}

#[derive(Debug, Clone)]
enum Event {
    Round,
    Call { from: usize, process: u64, asked_ms: u64, join: Option<(u64, ClusterId)> },
    Told { process: u64, asked_ms: u64, answer: Box<Introduction> },
    LetIn { process: u64, join: u64, cluster: ClusterId },
}

struct World {
    random: SmallRng,
    now_ms: u64,
    trouble: Trouble,
    expect: u32,
    computers: Vec<Computer>,
    /// By time and number: what reaches which computer.
    events: BTreeMap<(u64, u64), (usize, Event)>,
    /// The directories that vote in each cluster: it lets nodes in while most of them are there and run.
    clusters: BTreeMap<ClusterId, Vec<u64>>,
    /// Groups hear of each other.
    connected: bool,
    count: u64,
}

impl World {
    fn new(seed: u64, groups: &[usize], expect: u32, trouble: Trouble) -> World {
        let mut world = World {
            random: random(seed),
            now_ms: 0,
            trouble,
            expect,
            computers: Vec::new(),
            events: BTreeMap::new(),
            clusters: BTreeMap::new(),
            connected: false,
            count: 1,
        };
        for (group, size) in groups.iter().enumerate() {
            for at in 0..*size {
                let name = format!("{group}-{at}");
                let volume = world.number();
                let (pledge, identity, process) = (None, None, None);
                world.computers.push(Computer { name, group, volume, pledge, identity, process, stopped_until_ms: 0 });
                let first_ms = world.random.random_range(0..5_000);
                world.after(first_ms, world.computers.len() - 1, Event::Round);
            }
        }
        world
    }

    fn number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn after(&mut self, delay_ms: u64, to: usize, event: Event) {
        let number = self.number();
        self.events.insert((self.now_ms + delay_ms, number), (to, event));
    }

    fn chance(&mut self, of: f64) -> bool {
        self.now_ms < self.trouble.until_ms && self.random.random_bool(of)
    }

    /// Over the network: lost, late, or twice, as it happens.
    fn send(&mut self, to: usize, event: &Event) {
        for _ in 0..if self.chance(0.1) { 2 } else { 1 } {
            if self.chance(self.trouble.loss) {
                continue;
            }
            let quick_ms = self.random.random_range(0..20);
            let late_ms = if self.chance(0.3) { self.random.random_range(0..self.trouble.delay_ms) } else { 0 };
            self.after(quick_ms + late_ms, to, event.clone());
        }
    }

    fn run(&mut self, until_ms: u64, check: impl Fn(&World)) {
        while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= until_ms) {
            let ((at_ms, _), (to, event)) = entry.remove_entry();
            self.now_ms = at_ms;
            if self.computers[to].stopped_until_ms > at_ms {
                let later_ms = self.computers[to].stopped_until_ms - at_ms;
                self.after(later_ms, to, event);
                continue;
            }
            self.happens(to, event);
            check(self);
        }
        self.now_ms = until_ms;
    }

    fn happens(&mut self, to: usize, event: Event) {
        match event {
            Event::Round => self.round(to),
            Event::Call { from, process, asked_ms, join } => self.called(to, from, process, asked_ms, join),
            Event::Told { process, asked_ms, answer } => {
                let running = self.computers[to].process.as_mut().filter(|running| running.number == process);
                if let Some(formation) = running.and_then(|running| running.formation.as_mut()) {
                    formation.heard(*answer, asked_ms);
                }
            }
            Event::LetIn { process, join, cluster } => {
                let computer = &mut self.computers[to];
                let running = computer.process.as_mut().filter(|running| running.number == process);
                if let Some(running) = running.filter(|running| running.join.is_some_and(|(at, _)| at == join)) {
                    computer.identity = Some(cluster);
                    running.formation = None;
                }
            }
        }
    }

    fn round(&mut self, at: usize) {
        self.after(ROUND_MS, at, Event::Round);
        if self.chance(self.trouble.crash) {
            self.computers[at].process = None;
        }
        if self.chance(self.trouble.wipe) {
            let volume = self.number();
            let computer = &mut self.computers[at];
            (computer.process, computer.volume, computer.pledge, computer.identity) = (None, volume, None, None);
        }
        if self.chance(self.trouble.stop) {
            self.computers[at].stopped_until_ms = self.now_ms + self.random.random_range(0..30_000);
            return;
        }
        if self.computers[at].process.is_none() {
            if self.chance(0.5) {
                return;
            }
            let number = self.number();
            let own = self.own(at);
            let computer = &mut self.computers[at];
            let formation = computer.identity.is_none().then(|| Formation::new(own, computer.pledge.clone()));
            computer.process = Some(Process { number, formation, join: None });
        }
        self.decide(at);
    }

    fn own(&self, at: usize) -> Introduction {
        introduction(&self.computers[at].name, self.computers[at].volume, self.expect)
    }

    fn decide(&mut self, at: usize) {
        let draw = ClusterId(u128::from(self.number()).to_be_bytes());
        let now_ms = self.now_ms;
        // Whether the process ends before, or after, what it writes is on disk.
        let (ends_before, ends_after) = (self.chance(0.05), self.chance(0.05));
        let computer = &mut self.computers[at];
        let Some(process) = &mut computer.process else { return };
        let number = process.number;
        let Some(formation) = &mut process.formation else { return };
        if process.join.is_some_and(|(_, ends_ms)| ends_ms < now_ms) {
            process.join = None;
            formation.join_failed();
        }
        match formation.decide(now_ms, draw, 0) {
            FormationStep::Wait(_) => {}
            FormationStep::Keep(pledge) => {
                if !ends_before {
                    computer.pledge = pledge.clone();
                    formation.kept(pledge, now_ms);
                }
                if ends_before || ends_after {
                    computer.process = None;
                }
            }
            FormationStep::Form(cluster) => {
                if !ends_before {
                    computer.identity = Some(cluster);
                    process.formation = None;
                    self.clusters.insert(cluster, vec![computer.volume]);
                }
                if ends_before || ends_after {
                    computer.process = None;
                }
                return;
            }
            FormationStep::Join { cluster, address } => {
                let join = number * 1_000_000 + now_ms;
                process.join = Some((join, now_ms + JOIN_DEADLINE_MS));
                let to = self.computers.iter().position(|other| address == format!("{}.test:7980", other.name));
                let call = Event::Call { from: at, process: number, asked_ms: now_ms, join: Some((join, cluster)) };
                self.send(to.unwrap(), &call);
            }
        }
        let group = self.computers[at].group;
        for other in 0..self.computers.len() {
            if other != at && (self.connected || self.computers[other].group == group) {
                let call = Event::Call { from: at, process: number, asked_ms: now_ms, join: None };
                self.send(other, &call);
            }
        }
    }

    fn called(&mut self, at: usize, from: usize, process: u64, asked_ms: u64, join: Option<(u64, ClusterId)>) {
        let computer = &self.computers[at];
        let Some(running) = &computer.process else { return };
        let Some((join, cluster)) = join else {
            let answer = match (&running.formation, computer.identity) {
                (Some(formation), _) => formation.introduction(),
                (None, identity) => {
                    Introduction { identity: identity.map(|cluster| (cluster, NodeId(1))), ..self.own(at) }
                }
            };
            return self.send(from, &Event::Told { process, asked_ms, answer: Box::new(answer) });
        };
        // An entry is committed that lets it in; the caller may be gone by then, or another directory there.
        if running.formation.is_none() && computer.identity == Some(cluster) && self.has_quorum(cluster) {
            let volume = self.computers[from].volume;
            let voters = self.clusters.get_mut(&cluster).unwrap();
            if voters.len() < VOTERS && !voters.contains(&volume) {
                voters.push(volume);
            }
            self.send(from, &Event::LetIn { process, join, cluster });
        }
    }

    fn has_quorum(&self, cluster: ClusterId) -> bool {
        let voters = &self.clusters[&cluster];
        let lives = |volume: &u64| {
            self.computers.iter().any(|computer| computer.volume == *volume && computer.process.is_some())
        };
        2 * voters.iter().filter(|volume| lives(volume)).count() > voters.len()
    }

    fn is_lost(&self, cluster: ClusterId) -> bool {
        let voters = &self.clusters[&cluster];
        let is_there = |volume: &u64| self.computers.iter().any(|computer| computer.volume == *volume);
        2 * voters.iter().filter(|volume| is_there(volume)).count() <= voters.len()
    }

    /// The clusters that the nodes of a group are in, by their disks.
    fn clusters_of(&self, group: usize) -> BTreeSet<ClusterId> {
        self.computers.iter().filter(|computer| computer.group == group).filter_map(|c| c.identity).collect()
    }
}

fn trouble(random: &mut SmallRng, wipe: bool) -> Trouble {
    Trouble {
        until_ms: random.random_range(0..90_000),
        loss: random.random_range(0.0..0.6),
        delay_ms: random.random_range(1..40_000),
        crash: random.random_range(0.0..0.1),
        wipe: if wipe { random.random_range(0.0..0.06) } else { 0.0 },
        stop: random.random_range(0.0..0.05),
    }
}

/// How many groups are simulated by each of the tests below.
const GROUPS: u64 = 1_500;

#[test]
fn as_many_nodes_as_are_expected_never_become_two_clusters_even_if_directories_are_wiped() {
    let first = seed();
    let mut formed = 0;
    for seed in (0..GROUPS).map(|at| first.wrapping_add(at)) {
        let mut random = random(seed);
        let expect = random.random_range(1..=5_u32);
        let trouble = trouble(&mut random, true);
        let mut world = World::new(seed, &[expect as usize], expect, trouble);
        world.run(trouble.until_ms + QUIET_MS, |world| {
            assert!(world.clusters_of(0).len() <= 1, "CASBAH_TEST_SEED={seed}: {:?}", world.computers);
        });
        let cluster = world.clusters_of(0).into_iter().next();
        let all_in = world.computers.iter().all(|computer| computer.identity.is_some());
        // A cluster whose voters were wiped lets nobody in, and is for people to mend.
        let may_wait = cluster.is_some_and(|cluster| world.is_lost(cluster));
        assert!(all_in || may_wait, "CASBAH_TEST_SEED={seed}: {:?}", world.computers);
        formed += u64::from(all_in);
    }
    println!("{formed} of {GROUPS} groups became one cluster");
    assert!(formed > GROUPS / 2);
}

#[test]
fn fewer_nodes_than_twice_those_expected_become_one_cluster() {
    let first = seed();
    for seed in (0..GROUPS).map(|at| first.wrapping_add(at)) {
        let mut random = random(seed);
        let expect = random.random_range(1..=4_u32);
        let trouble = trouble(&mut random, false);
        let size = random.random_range(expect..2 * expect) as usize;
        let mut world = World::new(seed, &[size], expect, trouble);
        world.run(trouble.until_ms + QUIET_MS, |world| {
            assert!(world.clusters_of(0).len() <= 1, "CASBAH_TEST_SEED={seed}: {:?}", world.computers);
        });
        let all_in = world.computers.iter().all(|computer| computer.identity.is_some());
        assert!(all_in, "CASBAH_TEST_SEED={seed}: {:?}", world.computers);
    }
}

#[test]
fn two_groups_that_formed_apart_never_merge() {
    let first = seed();
    for seed in (0..GROUPS / 4).map(|at| first.wrapping_add(at)) {
        let mut random = random(seed);
        let expect = random.random_range(1..=3_u32);
        let trouble = trouble(&mut random, false);
        let mut world = World::new(seed, &[expect as usize, expect as usize], expect, trouble);
        world.run(trouble.until_ms + QUIET_MS, |_| {});
        let before: Vec<_> = world.computers.iter().map(|computer| computer.identity.unwrap()).collect();
        world.connected = true;
        for computer in &mut world.computers {
            computer.process = None; // all start again, and see one another
        }
        world.run(trouble.until_ms + 2 * QUIET_MS, |_| {});
        let after: Vec<_> = world.computers.iter().map(|computer| computer.identity.unwrap()).collect();
        assert_eq!(before, after, "CASBAH_TEST_SEED={seed}");
        assert_eq!(after.into_iter().collect::<BTreeSet<_>>().len(), 2, "CASBAH_TEST_SEED={seed}");
    }
}
