//! A small model of a change of layouts, all of whose states are looked at: one blob, one partition, a writer, a reader, and
//! nodes that learn of the change, pull, report and drop in any order.
//!
//! What must hold: a blob that was acknowledged before a read began is never said to be missing; and from every state the
//! older layout can still be retired, and the blob be where it belongs.
//!
//! The layouts are real, and so are the writer's and the reader's decisions: where a state is looked at, they are told again what
//! they had been told in it. Breadth first, so that what goes wrong is shown by the fewest steps that lead there.
#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use casbah_cluster::consensus::{MemberCommand, apply_member};
use casbah_cluster::membership::{ClusterId, ClusterState, Epoch, Joiner, NodeId, Protocols, VolumeId};
use casbah_cluster::replication::{Next, ReadDecision, Verdict, WriteDecision};
use casbah_cluster::view::View;

/// States that are looked at, at the most: far more than there are.
const STATES_MAX: usize = 3_000_000;

/// A rule that is left out, to show that the model notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// Answers say no epoch.
    EpochsAreHeard,
    /// A node reports before it has pulled.
    SyncedIsFilled,
    /// A source is asked whatever layout it has adopted.
    SourcesAdoptFirst,
    /// The older layout is retired at once.
    AllSyncBeforeItIsRetired,
}

/// The log: which views there are, in which order. A node has adopted the first so many of them.
struct Views {
    /// By the older layout alone; by both; by the newer alone.
    views: [Vec<Arc<View>>; 3],
    nodes: usize,
    partition: usize,
}

const OLD: u8 = 0;
const BOTH: u8 = 1;
const NEW: u8 = 2;

/// All there is. Nodes go by their position.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct State {
    /// How far the log is: `OLD`, `BOTH`, `NEW`.
    log: u8,
    adopted: Vec<u8>,
    has: Vec<bool>,
    /// For each node: the sources that it has pulled from since both had adopted the newer layout.
    pulled: Vec<BTreeSet<usize>>,
    synced: Vec<bool>,
    write: Option<Write>,
    /// It was acknowledged.
    is_acknowledged: bool,
    read: Option<Read>,
    has_read: bool,
}

/// Takes a state that may follow: what is changed to come to it.
type Push<'a> = dyn FnMut(&dyn Fn(&mut State)) + 'a;

/// A write by the first node: by which view, and what it was told. In which order makes no difference, and fewer states.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Write {
    view: u8,
    told: Vec<(usize, u8)>,
}

/// A read by the last node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Read {
    view: u8,
    /// Whether the blob had been acknowledged when it began.
    is_late: bool,
    /// Who has said no, by which epoch; `None`: was silent.
    told: Vec<(usize, Option<u8>)>,
}

// === impl Views ===

impl Views {
    /// Of a cluster that a node joins, or leaves, in a partition that moves by that.
    fn new(before: u64, leaves: bool, quorums: (u8, u8)) -> Views {
        let joiner = |number: u64| Joiner {
            name: format!("n{number}"),
            address: format!("n{number}.test:7980"),
            volume: VolumeId(u128::from(number).to_be_bytes()),
            zone: String::new(),
            weight: 100,
            protocols: Protocols::SPOKEN,
        };
        let first = u32::try_from(before).unwrap();
        let mut old = ClusterState::formed(ClusterId([1; 16]), "farm".to_owned(), quorums, first, joiner(1));
        for number in 2..=before {
            old.admit(joiner(number), None).unwrap();
        }
        let change = match leaves {
            true => MemberCommand::Drain { node: NodeId(before) },
            false => MemberCommand::Admit { joiner: joiner(before + 1), replaces: None },
        };
        let both = apply_member(Some(&old), &change).0.unwrap();
        let mut new = both.clone();
        for node in both.members.keys() {
            new.synced(*node, Epoch(2)).unwrap();
        }
        assert_eq!([old.layouts.len(), both.layouts.len(), new.layouts.len()], [1, 2, 1]);
        let nodes = both.members.len();
        let of = |state: &ClusterState| {
            let first = View::new(NodeId(1), state.clone());
            (1..=nodes as u64).map(|node| Arc::new(first.seen_by(NodeId(node)))).collect::<Vec<_>>()
        };
        let views = [of(&old), of(&both), of(&new)];
        let owners = |views: &[Arc<View>], partition: usize| -> BTreeSet<NodeId> {
            views[0].owners(partition).iter().copied().collect()
        };
        let moves = |partition: &usize| owners(&views[0], *partition) != owners(&views[2], *partition);
        let partition = (0..4096).find(moves).unwrap();
        Views { views, nodes, partition }
    }

    fn view(&self, log: u8, node: usize) -> &View {
        &self.views[usize::from(log)][node]
    }

    fn places(&self, nodes: &[NodeId]) -> Vec<usize> {
        nodes.iter().map(|node| place(*node)).collect()
    }

    fn owners(&self, log: u8) -> Vec<usize> {
        self.places(self.view(log, 0).owners(self.partition))
    }

    fn sources(&self) -> Vec<usize> {
        self.places(self.view(BOTH, 0).candidates(self.partition))
    }
}

fn place(node: NodeId) -> usize {
    usize::try_from(node.0).unwrap() - 1
}

fn id(place: usize) -> NodeId {
    NodeId(place as u64 + 1)
}

/// The epoch of the newest layout of a view.
fn epoch(log: u8) -> Epoch {
    Epoch(if log == OLD { 1 } else { 2 })
}

// === impl Write ===

impl Write {
    fn hear(&mut self, node: usize, by: u8) {
        self.told.push((node, by));
        self.told.sort_unstable();
    }
}

// === impl State ===

impl State {
    fn first(views: &Views) -> State {
        let nodes = views.nodes;
        State {
            log: OLD,
            adopted: vec![OLD; nodes],
            has: vec![false; nodes],
            pulled: vec![BTreeSet::new(); nodes],
            synced: vec![false; nodes],
            write: None,
            is_acknowledged: false,
            read: None,
            has_read: false,
        }
    }

    /// Every state that may follow.
    fn next(&self, views: &Views, broken: Broken) -> Vec<State> {
        let mut states = Vec::new();
        let mut push = |change: &dyn Fn(&mut State)| {
            let mut state = self.clone();
            change(&mut state);
            states.push(state);
        };
        if self.log == OLD {
            push(&|state| state.log = BOTH);
        }
        let may_retire = self.synced.iter().all(|synced| *synced) || broken == Broken::AllSyncBeforeItIsRetired;
        if self.log == BOTH && may_retire {
            push(&|state| state.log = NEW);
        }
        for node in 0..views.nodes {
            if self.adopted[node] < self.log {
                push(&|state| state.adopted[node] += 1);
            }
        }
        self.repair(views, broken, &mut push);
        self.write_on(views, broken, &mut push);
        self.read_on(views, broken, &mut push);
        states
    }

    fn repair(&self, views: &Views, broken: Broken, push: &mut Push<'_>) {
        let new_owners = views.owners(NEW);
        let sources = views.sources();
        for node in 0..views.nodes {
            let is_owner = new_owners.contains(&node);
            // Owners go on to compare what they have, for ever.
            for source in sources.iter().copied().filter(|source| is_owner && self.has[*source] && !self.has[node]) {
                if self.adopted[node] >= BOTH && self.adopted[source] >= BOTH {
                    push(&|state| state.has[node] |= state.has[source]);
                }
            }
            if self.adopted[node] != BOTH || self.synced[node] {
                continue;
            }
            for source in sources.iter().copied().filter(|source| is_owner && *source != node) {
                let has_adopted = self.adopted[source] >= BOTH || broken == Broken::SourcesAdoptFirst;
                if has_adopted && !self.pulled[node].contains(&source) {
                    push(&|state| {
                        state.has[node] |= state.has[source];
                        state.pulled[node].insert(source);
                    });
                }
            }
            let has_all = sources.iter().all(|source| *source == node || self.pulled[node].contains(source));
            let is_filled = !is_owner || has_all || broken == Broken::SyncedIsFilled;
            let writes = node == 0 && self.write.as_ref().is_some_and(|write| write.view == OLD);
            let reads = node == views.nodes - 1 && self.read.as_ref().is_some_and(|read| read.view == OLD);
            if is_filled && !writes && !reads {
                push(&|state| {
                    state.synced[node] = true;
                    state.pulled[node].clear();
                });
            }
        }
        // What a layout has left behind is dropped when all owners have it: not while a read is under way that may have asked one
        // of them before.
        let all_have = new_owners.iter().all(|owner| self.has[*owner]);
        for node in (0..views.nodes).filter(|node| self.adopted[*node] == NEW && self.has[*node]) {
            if all_have && !new_owners.contains(&node) && self.read.is_none() {
                push(&|state| state.has[node] = false);
            }
        }
    }

    fn write_on(&self, views: &Views, broken: Broken, push: &mut Push<'_>) {
        let Some(write) = &self.write else {
            if !self.is_acknowledged && !self.has.contains(&true) {
                push(&|state| state.write = Some(Write { view: state.adopted[0], told: Vec::new() }));
            }
            return;
        };
        let view = views.view(write.view, 0);
        let mut decision = WriteDecision::new(view, views.partition, |_| false);
        let hears = broken != Broken::EpochsAreHeard;
        for (node, by) in &write.told {
            if hears {
                decision.heard(epoch(*by));
            }
            decision.acknowledged(id(*node));
        }
        match decision.go_on() {
            Next::Done => push(&|state| (state.write, state.is_acknowledged) = (None, true)),
            Next::Behind(_) => {
                let now = self.adopted[0];
                if now > write.view {
                    push(&|state| state.write.iter_mut().for_each(|write| write.view = now));
                }
            }
            _ => {}
        }
        // Any candidate may be given it: owners may be away. One by a newer layout than its own waits until it has that.
        for node in views.places(view.candidates(views.partition)) {
            let is_told = write.told.iter().any(|(other, _)| *other == node);
            if !is_told && epoch(self.adopted[node]) >= epoch(self.adopted[0]) {
                push(&|state| {
                    state.has[node] = true;
                    let by = state.adopted[node];
                    state.write.iter_mut().for_each(|write| write.hear(node, by));
                });
            }
        }
        push(&|state| state.write = None);
    }

    fn read_on(&self, views: &Views, broken: Broken, push: &mut Push<'_>) {
        let reader = views.nodes - 1;
        let Some(read) = &self.read else {
            if !self.has_read {
                push(&|state| {
                    let (view, is_late) = (state.adopted[reader], state.is_acknowledged);
                    (state.read, state.has_read) = (Some(Read { view, is_late, told: Vec::new() }), true);
                });
            }
            return;
        };
        match self.verdict(views, broken) {
            Some(Verdict::Ask(asked)) => {
                let node = place(asked);
                push(&|state| state.tell(node, None));
                if epoch(self.adopted[node]) < epoch(self.adopted[reader]) {
                    return;
                }
                match self.has[node] {
                    // Found: nothing more can go wrong with it.
                    true => push(&|state| state.read = None),
                    false => push(&|state| state.tell(node, Some(state.adopted[node]))),
                }
            }
            Some(Verdict::Behind(_)) => {
                let now = self.adopted[reader];
                if now > read.view {
                    push(&|state| state.read.iter_mut().for_each(|read| read.view = now));
                }
                push(&|state| state.read = None);
            }
            _ => push(&|state| state.read = None),
        }
    }

    fn tell(&mut self, node: usize, by: Option<u8>) {
        if let Some(read) = &mut self.read {
            read.told.push((node, by));
            read.told.sort_unstable();
        }
    }

    fn verdict(&self, views: &Views, broken: Broken) -> Option<Verdict> {
        let read = self.read.as_ref()?;
        let view = views.view(read.view, views.nodes - 1);
        let mut decision = ReadDecision::new(view, views.partition, |node| Some(node.0));
        for (node, by) in &read.told {
            match by {
                Some(by) => {
                    if broken != Broken::EpochsAreHeard {
                        decision.heard(epoch(*by));
                    }
                    decision.answered_no(id(*node));
                }
                None => decision.failed(id(*node)),
            }
        }
        Some(decision.verdict())
    }

    fn is_wrong(&self, views: &Views, broken: Broken) -> bool {
        let is_late = self.read.as_ref().is_some_and(|read| read.is_late);
        is_late && self.verdict(views, broken) == Some(Verdict::Missing)
    }

    /// Nothing is left to do: the older layout is retired, and what was acknowledged is where it belongs.
    fn is_settled(&self, views: &Views) -> bool {
        let is_placed = || views.owners(NEW).iter().all(|owner| self.has[*owner]);
        self.log == NEW && self.adopted.iter().all(|adopted| *adopted == NEW) && (!self.is_acknowledged || is_placed())
    }
}

/// How a search ended.
enum Searched {
    /// So many states, none of which is wrong, and from all of which all can be settled.
    Right(usize),
    /// The steps that lead to one that is.
    Wrong(Vec<State>),
}

fn search(views: &Views, broken: Broken) -> Searched {
    let mut states: Vec<State> = vec![State::first(views)];
    let mut number: HashMap<State, usize> = HashMap::from([(states[0].clone(), 0)]);
    let mut came_from: Vec<usize> = vec![0];
    let mut leads_to: Vec<Vec<usize>> = Vec::new();
    let mut at = 0;
    while at < states.len() {
        let state = states[at].clone();
        if state.is_wrong(views, broken) {
            return Searched::Wrong(way_to(&states, &came_from, at));
        }
        let mut next = Vec::new();
        for after in state.next(views, broken) {
            let known = number.get(&after).copied().unwrap_or_else(|| {
                let new = states.len();
                number.insert(after.clone(), new);
                states.push(after);
                came_from.push(at);
                new
            });
            next.push(known);
        }
        leads_to.push(next);
        at += 1;
        assert!(states.len() < STATES_MAX, "the model is larger than it was meant to be");
    }
    // Backwards from where all is settled.
    let mut leads_from: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (from, next) in leads_to.iter().enumerate() {
        next.iter().for_each(|to| leads_from.entry(*to).or_default().push(from));
    }
    let mut reaches: Vec<bool> = states.iter().map(|state| state.is_settled(views)).collect();
    let mut queue: VecDeque<usize> = (0..states.len()).filter(|at| reaches[*at]).collect();
    while let Some(to) = queue.pop_front() {
        for from in leads_from.get(&to).into_iter().flatten() {
            if !std::mem::replace(&mut reaches[*from], true) {
                queue.push_back(*from);
            }
        }
    }
    match reaches.iter().position(|reaches| !reaches) {
        Some(stuck) => Searched::Wrong(way_to(&states, &came_from, stuck)),
        None => Searched::Right(states.len()),
    }
}

fn way_to(states: &[State], came_from: &[usize], end: usize) -> Vec<State> {
    let mut way = vec![states[end].clone()];
    let mut at = end;
    while at != 0 {
        at = came_from[at];
        way.push(states[at].clone());
    }
    way.reverse();
    way
}

fn shown(way: &[State]) -> String {
    way.iter().map(|state| format!("{state:?}\n")).collect()
}

#[test]
fn whatever_the_order_nothing_acknowledged_is_denied_and_the_older_layout_is_retired() {
    for (nodes, leaves, quorums) in [(2, false, (2, 2)), (2, false, (1, 1)), (3, true, (2, 2))] {
        let views = Views::new(nodes, leaves, quorums);
        match search(&views, Broken::Nothing) {
            Searched::Right(states) => println!("{nodes} nodes, leaves: {leaves}, {quorums:?}: {states} states"),
            Searched::Wrong(way) => panic!("{nodes} nodes, leaves: {leaves}, {quorums:?}:\n{}", shown(&way)),
        }
    }
}

#[test]
fn each_rule_is_needed() {
    let rules =
        [Broken::EpochsAreHeard, Broken::SyncedIsFilled, Broken::SourcesAdoptFirst, Broken::AllSyncBeforeItIsRetired];
    let views = [Views::new(2, false, (1, 1)), Views::new(3, true, (2, 2))];
    let is_needed = |rule: &Broken| views.iter().any(|views| matches!(search(views, *rule), Searched::Wrong(_)));
    let needless: Vec<Broken> = rules.into_iter().filter(|rule| !is_needed(rule)).collect();
    assert!(needless.is_empty(), "without these all is well too: {needless:?}");
}
