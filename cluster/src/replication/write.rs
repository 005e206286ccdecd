//! Where a blob is written, and when its upload is acknowledged.

use super::policy::{Candidate, Candidates};
use crate::membership::{Epoch, NodeId};
use crate::view::View;

/// A write on its way.
///
/// The blob is streamed to the [`targets`](WriteDecision::targets) at once. Whatever becomes of each is told, and each time
/// [`go_on`](WriteDecision::go_on) says what to do: nothing is decided by time here; a node that stalls has failed when the
/// caller says so.
#[derive(Debug, Clone)]
pub struct WriteDecision {
    partition: usize,
    candidates: Candidates<State>,
}

/// What a write does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nodes that it goes to may still say that they have it.
    Wait,
    /// Copy the blob to this node from one of the [`holders`](WriteDecision::holders); then ask again, others may be wanted at
    /// the same time.
    CopyTo(NodeId),
    /// It is acknowledged. What is still under way may be finished.
    Done,
    /// It cannot be acknowledged: no nodes are left.
    Fail,
    /// A node has answered by this newer layout: [`revise`](WriteDecision::revise) the decision by a view that has it.
    Behind(Epoch),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not asked.
    Idle,
    /// Not asked, since it is said to be away. The last resort.
    Away,
    /// The blob is on its way there.
    Writing,
    /// It has the blob.
    Has,
    /// It does not have it.
    Failed,
}

impl WriteDecision {
    /// A write of a blob of this partition: to its owners, and to the next nodes of the walk in place of those away.
    pub fn new(view: &View, partition: usize, is_away: impl Fn(NodeId) -> bool) -> WriteDecision {
        let state = |node| if is_away(node) { State::Away } else { State::Idle };
        let mut candidates = Candidates::new(view, partition, state);
        let owners = candidates.nodes.iter_mut().filter(|candidate| Candidates::is_owner(candidate));
        let mut missing = 0;
        for owner in owners {
            match owner.state {
                State::Away => missing += 1,
                _ => owner.state = State::Writing,
            }
        }
        let mut decision = WriteDecision { partition, candidates };
        for _ in 0..missing {
            if let Some(at) = decision.choose(|candidate| candidate.state == State::Idle) {
                decision.set(at, State::Writing);
            }
        }
        decision
    }

    /// The nodes that the blob is to be on its way to now.
    pub fn targets(&self) -> impl Iterator<Item = NodeId> {
        self.nodes_that(State::Writing)
    }

    /// The nodes that have said that they have it: where copies are taken from.
    pub fn holders(&self) -> impl Iterator<Item = NodeId> {
        self.nodes_that(State::Has)
    }

    /// A node could not be reached before the first byte: the one that the stream goes to in its place.
    pub fn replace(&mut self, node: NodeId) -> Option<NodeId> {
        self.set(node, State::Failed);
        let other = self.choose(|candidate| candidate.state == State::Idle)?;
        self.set(other, State::Writing);
        Some(other)
    }

    /// A node has the blob, verified and stored.
    pub fn acknowledged(&mut self, node: NodeId) -> Next {
        self.set(node, State::Has);
        self.go_on()
    }

    /// A node does not have the blob: it broke off, refused, or was cut loose.
    pub fn failed(&mut self, node: NodeId) -> Next {
        self.set(node, State::Failed);
        self.go_on()
    }

    /// A node has answered by this layout. To be told before what it answered.
    pub fn heard(&mut self, epoch: Epoch) {
        self.candidates.heard(epoch);
    }

    /// Goes on by a later view.
    pub fn revise(&mut self, view: &View, is_away: impl Fn(NodeId) -> bool) -> Next {
        let state = |node| if is_away(node) { State::Away } else { State::Idle };
        self.candidates.revise(view, self.partition, state);
        self.go_on()
    }

    /// Whether the upload may be answered.
    pub fn is_acknowledged(&self) -> bool {
        self.candidates.behind().is_none() && self.candidates.is_acknowledged(|state| *state == State::Has)
    }

    /// What to do now.
    pub fn go_on(&mut self) -> Next {
        if let Some(epoch) = self.candidates.behind() {
            return Next::Behind(epoch);
        }
        if self.candidates.is_acknowledged(|state| *state == State::Has) {
            return Next::Done;
        }
        if self.candidates.is_acknowledged(hopeful) {
            return Next::Wait;
        }
        let some_has = self.holders().next().is_some();
        if !some_has {
            return if self.targets().next().is_some() { Next::Wait } else { Next::Fail };
        }
        let helps = |decision: &WriteDecision, wanted: State| {
            let candidates = &decision.candidates;
            decision.choose(|candidate| candidate.state == wanted && candidates.would_help(candidate, hopeful))
        };
        match helps(self, State::Idle).or_else(|| helps(self, State::Away)) {
            Some(node) => {
                self.set(node, State::Writing);
                Next::CopyTo(node)
            }
            // Those under way do not suffice, and there are no others.
            None => Next::Fail,
        }
    }

    /// The first candidate of these in a zone that has no copy yet; or else the first.
    fn choose(&self, will_do: impl Fn(&Candidate<State>) -> bool) -> Option<NodeId> {
        let nodes = || self.candidates.nodes.iter();
        let used = |zone: usize| nodes().any(|other| other.zone == zone && hopeful(&other.state));
        let fitting = || nodes().filter(|candidate| will_do(candidate));
        fitting().find(|candidate| !used(candidate.zone)).or_else(|| fitting().next()).map(|candidate| candidate.node)
    }

    fn set(&mut self, node: NodeId, state: State) {
        if let Some(candidate) = self.candidates.get_mut(node) {
            candidate.state = state;
        }
    }

    fn nodes_that(&self, state: State) -> impl Iterator<Item = NodeId> {
        self.candidates.nodes.iter().filter(move |candidate| candidate.state == state).map(|candidate| candidate.node)
    }
}

/// It has the blob, or will if nothing goes wrong.
fn hopeful(state: &State) -> bool {
    matches!(state, State::Has | State::Writing)
}
