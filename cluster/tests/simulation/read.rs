//! Reads of blobs and of actions' results, and looks for blobs, by the node that a client has asked: as `route` carries them
//! out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use casbah_cluster::membership::{Epoch, NodeId};
use casbah_cluster::replication::{ReadDecision, Verdict, Version};
use casbah_cluster::view::View;

use crate::calls::{Answer, Call, call};
use crate::disk::{Action, Blob};
use crate::engine::{Sim, Told};
use crate::node::{Begun, Node, keeps};
use crate::settings::Rule;
use crate::write::{Written, write};

/// What a client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<T> {
    Found(T),
    Missing,
    Unavailable,
}

/// A search by the layouts that its node knows of.
struct Search<'a> {
    sim: &'a Sim,
    node: Node,
    partition: usize,
    view: Arc<View>,
    decision: ReadDecision,
    begun: Begun,
    began_ms: u64,
}

// === impl Search ===

impl<'a> Search<'a> {
    fn begin(sim: &'a Sim, node: Node, partition: usize) -> Search<'a> {
        let view = node.view(sim);
        let begun = node.begins(sim, view.epoch());
        let decision = ReadDecision::new(&view, partition, |other| node.distance(sim, &view, other));
        Search { sim, node, partition, view, decision, begun, began_ms: sim.now_ms() }
    }

    fn hear_of(&mut self, epoch: Epoch) {
        if keeps(self.sim, Rule::EpochsAreHeard) {
            self.decision.heard(epoch);
        }
    }

    /// What to do now, by rules that may be broken.
    fn verdict(&self) -> Verdict {
        let elapsed = Duration::from_millis(self.sim.now_ms() - self.began_ms);
        let verdict = match keeps(self.sim, Rule::MissesAreFresh) {
            true => self.decision.verdict_after(elapsed),
            false => self.decision.verdict(),
        };
        match verdict {
            Verdict::Missing if self.node.is_in_doubt(self.sim) => Verdict::Unavailable,
            Verdict::Unavailable if !keeps(self.sim, Rule::SilenceIsNoMiss) => Verdict::Missing,
            Verdict::Ask(node) if !keeps(self.sim, Rule::OldOwnersAreAsked) => {
                let newest = self.view.placements().first();
                let is_new = newest.is_none_or(|newest| newest.walk(self.partition).contains(&node));
                if is_new { verdict } else { Verdict::Missing }
            }
            _ => verdict,
        }
    }

    async fn revise(&mut self, epoch: Epoch) -> bool {
        if !self.node.reaches(self.sim, epoch).await {
            return false;
        }
        let (sim, node) = (self.sim, self.node);
        self.view = node.view(sim);
        self.begun.goes_on_by(self.view.epoch());
        let view = Arc::clone(&self.view);
        self.decision.revise(&view, |other| node.distance(sim, &view, other));
        true
    }
}

/// Reads a blob: from here, or else from the nearest node that has it.
pub async fn read(sim: &Sim, node: Node, blob: Blob) -> Outcome<()> {
    let partition = sim.world().partition_of_blob(blob);
    let mut search = Search::begin(sim, node, partition);
    let inbox = sim.inbox();
    let mut lacks_it = false;
    loop {
        match search.verdict() {
            Verdict::Ask(_) => {
                let Some(asked) = search.decision.ask_next() else { continue };
                call(sim, &node, asked, 0, Call::Read(blob), &inbox);
                match inbox.next().await {
                    Told::Answer { node: holder, epoch, answer: Answer::Data(_), .. } => {
                        search.hear_of(epoch);
                        used_elsewhere(sim, node, &search.view, partition, blob, holder);
                        if lacks_it && search.view.owners(partition).contains(&node.id) {
                            let sim_too = sim.clone();
                            node.spawn(sim, async move { mend(&sim_too, node, blob).await });
                        }
                        return Outcome::Found(());
                    }
                    Told::Answer { node: other, epoch, .. } => {
                        search.hear_of(epoch);
                        search.decision.answered_no(other);
                        lacks_it |= other == node.id;
                    }
                    _ => search.decision.failed(asked),
                }
            }
            Verdict::Behind(epoch) => {
                if !search.revise(epoch).await {
                    return Outcome::Unavailable;
                }
            }
            Verdict::Missing => return Outcome::Missing,
            Verdict::Wait | Verdict::Unavailable => return Outcome::Unavailable,
        }
    }
}

/// The other owners take it for used.
fn used_elsewhere(sim: &Sim, node: Node, view: &View, partition: usize, blob: Blob, holder: NodeId) {
    let inbox = sim.inbox();
    for owner in view.owners(partition).iter().filter(|owner| **owner != holder) {
        call(sim, &node, *owner, 0, Call::Find { blobs: vec![blob], touch: true }, &inbox);
    }
    call(sim, &node, holder, 0, Call::Find { blobs: vec![blob], touch: true }, &inbox);
}

/// Keeps a copy here of a blob that was read from elsewhere.
async fn mend(sim: &Sim, node: Node, blob: Blob) {
    let inbox = sim.inbox();
    call(sim, &node, node.id, 0, Call::Store(blob, None), &inbox);
    inbox.next().await;
}

/// Looks for blobs on all of their owners, and further where one is silent. They are used now.
pub async fn find(sim: &Sim, node: Node, blobs: Vec<Blob>) -> BTreeMap<Blob, Outcome<()>> {
    let mut found = BTreeMap::new();
    let mut searches: BTreeMap<Blob, Search> = BTreeMap::new();
    let inbox = sim.inbox();
    let view = node.view(sim);
    let mut calls: BTreeMap<NodeId, Vec<Blob>> = BTreeMap::new();
    for blob in blobs {
        let partition = sim.world().partition_of_blob(blob);
        let mut search = Search::begin(sim, node, partition);
        // A copy that a layout has left behind here is none that others would find.
        let here = view.candidates(partition).contains(&node.id).then_some(node.id);
        let mut owners: BTreeSet<NodeId> = view.owners(partition).iter().copied().collect();
        owners.extend(here);
        owners.iter().for_each(|owner| calls.entry(*owner).or_default().push(blob));
        while let Verdict::Ask(asked) = search.verdict() {
            if !owners.contains(&asked) || search.decision.ask_next().is_none() {
                break;
            }
        }
        searches.insert(blob, search);
    }
    let mut under_way: BTreeMap<NodeId, Vec<Blob>> = BTreeMap::new();
    loop {
        for (asked, blobs) in std::mem::take(&mut calls) {
            call(sim, &node, asked, 0, Call::Find { blobs: blobs.clone(), touch: true }, &inbox);
            under_way.entry(asked).or_default().extend(blobs);
        }
        if !under_way.is_empty() {
            let told = inbox.next().await;
            hear_of_many(&told, &mut under_way, &mut searches, &mut found);
            // Owners are waited for, so that all of them are told of the use.
            if !under_way.is_empty() {
                continue;
            }
        }
        let mut open: Vec<Blob> = searches.keys().copied().collect();
        open.retain(|blob| !found.contains_key(blob));
        for blob in open {
            let Some(search) = searches.get_mut(&blob) else { continue };
            let outcome = match search.verdict() {
                Verdict::Ask(_) => match search.decision.ask_next() {
                    Some(asked) => {
                        calls.entry(asked).or_default().push(blob);
                        continue;
                    }
                    None => Outcome::Unavailable,
                },
                Verdict::Behind(epoch) if search.revise(epoch).await => continue,
                Verdict::Missing => Outcome::Missing,
                Verdict::Behind(_) | Verdict::Wait | Verdict::Unavailable => Outcome::Unavailable,
            };
            found.insert(blob, outcome);
        }
        if searches.keys().all(|blob| found.contains_key(blob)) {
            return found;
        }
    }
}

fn hear_of_many(
    told: &Told,
    under_way: &mut BTreeMap<NodeId, Vec<Blob>>,
    searches: &mut BTreeMap<Blob, Search>,
    found: &mut BTreeMap<Blob, Outcome<()>>,
) {
    let (node, said) = match told {
        Told::Answer { node, epoch, answer: Answer::Present(present), .. } => (*node, Some((*epoch, present))),
        Told::Silence { node, .. } => (*node, None),
        _ => return,
    };
    let asked = under_way.remove(&node).unwrap_or_default();
    for (at, blob) in asked.into_iter().enumerate() {
        let Some(search) = searches.get_mut(&blob) else { continue };
        if let Some((epoch, _)) = said {
            search.hear_of(epoch);
        }
        match said.and_then(|(_, present)| present.get(at).copied().flatten()) {
            Some(true) => drop(found.insert(blob, Outcome::Found(()))),
            Some(false) => search.decision.answered_no(node),
            None => search.decision.failed(node),
        }
    }
}

/// The newest result of an action.
pub async fn get_action(sim: &Sim, node: Node, action: Action) -> Outcome<Version> {
    let partition = sim.world().partition_of_action(action);
    let mut search = Search::begin(sim, node, partition);
    let inbox = sim.inbox();
    let mut versions: BTreeMap<NodeId, Option<Version>> = BTreeMap::new();
    loop {
        while let Some(asked) = search.decision.ask_next() {
            call(sim, &node, asked, 0, Call::GetAction(action), &inbox);
        }
        let newest = versions.values().flatten().max().copied();
        if newest.is_some() && !keeps(sim, Rule::NewestIsTold) {
            return newest.map_or(Outcome::Missing, Outcome::Found);
        }
        match search.verdict() {
            Verdict::Missing => {
                let Some(version) = newest else { return Outcome::Missing };
                if let Some(process) = sim.world().machines[node.machine].process.as_mut()
                    && process.clock.observe(version, u64::MAX).is_err()
                {
                    return Outcome::Unavailable;
                }
                let late = versions.iter().filter(|(_, theirs)| **theirs < Some(version)).map(|(node, _)| *node);
                let nobody = sim.inbox();
                for owner in late.filter(|other| search.view.owns(*other, partition)) {
                    call(sim, &node, owner, 0, Call::PutAction(action, version), &nobody);
                }
                return Outcome::Found(version);
            }
            Verdict::Behind(epoch) => {
                if !search.revise(epoch).await {
                    return Outcome::Unavailable;
                }
            }
            Verdict::Unavailable => return Outcome::Unavailable,
            Verdict::Ask(_) => {}
            Verdict::Wait => match inbox.next().await {
                Told::Answer { node: other, epoch, answer: Answer::Action(version), .. } => {
                    search.hear_of(epoch);
                    versions.insert(other, version);
                    search.decision.answered_no(other);
                }
                Told::Silence { node: other, .. } => search.decision.failed(other),
                _ => {}
            },
        }
    }
}

/// Keeps a new result of an action. Its version, and whether that is acknowledged.
pub async fn update_action(sim: &Sim, node: Node, action: Action) -> (Version, bool) {
    let clock_ms = node.clock_ms(sim);
    let version = {
        let mut world = sim.world();
        let rises = !world.is_broken(Rule::VersionsRise);
        let machine = &mut world.machines[node.machine];
        let here = machine.disk.actions.get(&action).copied();
        let clock = &mut machine.process.as_mut().expect("its tasks end with it").clock;
        if let Some(here) = here.filter(|_| rises) {
            // Its own disk's are believed.
            drop(clock.observe(here, u64::MAX));
        }
        if rises { clock.now(clock_ms) } else { Version { time_ms: clock_ms, count: 0, node: node.id } }
    };
    let is_acknowledged = write(sim, node, Written::Action(action, version), false).await;
    (version, is_acknowledged)
}
