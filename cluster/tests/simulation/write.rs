//! A write of a blob, or of an action's result, by the node that a client has asked: as `replicate` carries it out.

use std::collections::BTreeSet;

use casbah_cluster::membership::{Epoch, NodeId};
use casbah_cluster::replication::{Next, Version, WriteDecision};

use crate::calls::{Answer, Call, call};
use crate::disk::{Action, Blob, Copied};
use crate::engine::{Inbox, Sim, Told};
use crate::node::{Node, keeps};
use crate::settings::{LAGGARD_MS, Rule};
use crate::world::World;

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    Blob(Blob),
    Action(Action, Version),
}

/// Calls of a write: to a node that it goes to, and to one that it is copied from.
const STORE: usize = 0;
const COPY: usize = 1;

struct Write<'a> {
    sim: &'a Sim,
    node: Node,
    written: Written,
    /// Nobody keeps a stream: what is to be copied is read from a node that has it.
    is_stream: bool,
    decision: WriteDecision,
    inbox: Inbox,
    under_way: BTreeSet<NodeId>,
    /// Nodes that wait to be given the blob, which is being read.
    wanting: Vec<NodeId>,
    /// Who has said that it has it: for rules that are broken.
    holders: BTreeSet<NodeId>,
}

impl Written {
    pub fn partition(self, world: &World) -> usize {
        match self {
            Written::Blob(blob) => world.partition_of_blob(blob),
            Written::Action(action, _) => world.partition_of_action(action),
        }
    }
}

/// Writes until it is acknowledged or has failed. Whether it is acknowledged.
pub async fn write(sim: &Sim, node: Node, written: Written, is_stream: bool) -> bool {
    let view = node.view(sim);
    let begun = node.begins(sim, view.epoch());
    let partition = written.partition(&sim.world());
    let decision = WriteDecision::new(&view, partition, |other| node.is_away(sim, &view, other));
    let inbox = sim.inbox();
    let mut write = Write {
        sim,
        node,
        written,
        is_stream,
        decision,
        inbox,
        under_way: BTreeSet::new(),
        wanting: Vec::new(),
        holders: BTreeSet::new(),
    };
    write.decision.targets().collect::<Vec<_>>().into_iter().for_each(|target| write.give(target, None));
    write.inbox.remind(LAGGARD_MS);
    let mut next = write.decision.go_on();
    loop {
        if write.is_done_by_a_broken_rule(partition) {
            return true;
        }
        next = match next {
            Next::Done => return !write.node.is_in_doubt(sim),
            Next::Fail => return false,
            Next::CopyTo(target) => {
                write.copy_to(target);
                write.decision.go_on()
            }
            Next::Behind(epoch) => match write.revise(epoch).await {
                Some(next) => {
                    begun.goes_on_by(write.node.view(sim).epoch());
                    next
                }
                None => return false,
            },
            Next::Wait => {
                let told = write.inbox.next().await;
                write.hear(told)
            }
        };
    }
}

// === impl Write ===

impl Write<'_> {
    fn give(&mut self, target: NodeId, copied: Option<Copied>) {
        self.under_way.insert(target);
        let asked = match self.written {
            Written::Blob(blob) => Call::Store(blob, copied),
            Written::Action(action, version) => Call::PutAction(action, version),
        };
        call(self.sim, &self.node, target, STORE, asked, &self.inbox);
    }

    fn copy_to(&mut self, target: NodeId) {
        let holder = self.decision.holders().next();
        match (self.written, holder) {
            (Written::Blob(blob), Some(holder)) if self.is_stream => {
                self.wanting.push(target);
                call(self.sim, &self.node, holder, COPY, Call::Read(blob), &self.inbox);
            }
            _ => self.give(target, None),
        }
    }

    fn hear(&mut self, told: Told) -> Next {
        match told {
            Told::Answer { node, tag: STORE, epoch, .. } => {
                self.under_way.remove(&node);
                self.hear_of(epoch);
                self.holders.insert(node);
                self.decision.acknowledged(node)
            }
            Told::Answer { epoch, answer: Answer::Data(_), .. } => {
                self.hear_of(epoch);
                self.wanting.pop().into_iter().for_each(|target| self.give(target, None));
                self.decision.go_on()
            }
            Told::Answer { .. } | Told::Silence { tag: COPY, .. } => match self.wanting.pop() {
                Some(target) => self.decision.failed(target),
                None => self.decision.go_on(),
            },
            Told::Silence { node, .. } => {
                self.under_way.remove(&node);
                self.decision.failed(node)
            }
            Told::Timer => {
                self.inbox.remind(LAGGARD_MS);
                self.go_on_without_laggards();
                self.decision.go_on()
            }
            Told::Committed(_) | Told::InDoubt => self.decision.go_on(),
        }
    }

    fn hear_of(&mut self, epoch: Epoch) {
        if keeps(self.sim, Rule::EpochsAreHeard) {
            self.decision.heard(epoch);
        }
    }

    /// Has other nodes do it in place of those that take long, if there are others.
    fn go_on_without_laggards(&mut self) {
        let mut without = self.decision.clone();
        let mut others = Vec::new();
        for laggard in &self.under_way {
            if let Next::CopyTo(node) = without.failed(*laggard) {
                others.push(node);
            }
        }
        while let Next::CopyTo(node) = without.go_on() {
            others.push(node);
        }
        if !others.is_empty() {
            self.decision = without;
            others.into_iter().for_each(|target| self.copy_to(target));
        }
    }

    async fn revise(&mut self, epoch: Epoch) -> Option<Next> {
        if !self.node.reaches(self.sim, epoch).await {
            return None;
        }
        let (sim, node) = (self.sim, self.node);
        let view = node.view(sim);
        Some(self.decision.revise(&view, |other| node.is_away(sim, &view, other)))
    }

    fn is_done_by_a_broken_rule(&self, partition: usize) -> bool {
        let world = self.sim.world();
        if world.is_broken(Rule::AcknowledgedByQuorum) {
            return !self.holders.is_empty();
        }
        if world.is_broken(Rule::AnOwnerAmongThem) {
            drop(world);
            let view = self.node.view(self.sim);
            let on_walk = self.holders.iter().filter(|node| view.candidates(partition).contains(node));
            return on_walk.count() >= view.write_quorum();
        }
        false
    }
}
