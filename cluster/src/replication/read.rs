//! Which nodes a read asks, and when it may say that there is nothing.

use std::time::Duration;

use super::policy::{Candidate, Candidates};
use crate::membership::{Epoch, NodeId};
use crate::view::View;

/// For how long a search may take that says that there is nothing. Copies move while it asks one node after the other, and stay
/// where they were for [`DROP_AFTER_MS`](crate::repair::DROP_AFTER_MS) after they have come to where they belong: what a node has
/// said before that may not be so any more, and the search has to begin anew. By a clock that does not stop with the process.
pub const MISS_WITHIN_MS: u64 = 30_000;

/// A read that has not found its blob yet.
///
/// It asks one node after the other ([`verdict`](ReadDecision::verdict)), or several at once ([`ask_next`](ReadDecision::ask_next)).
/// For action results, which change, "no" is "has told all that it knows": when the verdict is `Missing`, the newest that was
/// told is the newest that was ever acknowledged.
#[derive(Debug, Clone)]
pub struct ReadDecision {
    partition: usize,
    candidates: Candidates<State>,
}

/// What a read does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Ask this node.
    Ask(NodeId),
    /// Nodes that were asked have not answered, and their answers matter.
    Wait,
    /// There is no acknowledged blob: a fact.
    Missing,
    /// There may be one, on a node that has not answered.
    Unavailable,
    /// A node has answered by this newer layout: [`revise`](ReadDecision::revise) the decision by a view that has it.
    Behind(Epoch),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not asked; the smaller the number, the sooner it is.
    Idle(u64),
    /// Not asked, since it is said to be away. The last resort.
    Away,
    Asked,
    No,
    Failed,
}

impl ReadDecision {
    /// A read of a blob of this partition. `distance` says how near a healthy node is (the smallest number is asked first) and
    /// is `None` for a node that is away; away nodes are asked only when that is what stands between a miss and a fact.
    pub fn new(view: &View, partition: usize, distance: impl Fn(NodeId) -> Option<u64>) -> ReadDecision {
        ReadDecision { partition, candidates: Candidates::new(view, partition, state_by(view.self_id(), distance)) }
    }

    /// The next node that is worth asking, whether or not others have yet to answer. It is taken to be asked.
    pub fn ask_next(&mut self) -> Option<NodeId> {
        let node = self.candidate()?;
        self.set(node, State::Asked);
        Some(node)
    }

    /// A node has looked and not found it.
    pub fn answered_no(&mut self, node: NodeId) {
        self.set(node, State::No);
    }

    /// A node has not answered, or cannot say.
    pub fn failed(&mut self, node: NodeId) {
        self.set(node, State::Failed);
    }

    /// A node has answered by this layout. To be told before what it answered.
    pub fn heard(&mut self, epoch: Epoch) {
        self.candidates.heard(epoch);
    }

    /// Goes on by a later view. Nodes that said no before are believed.
    pub fn revise(&mut self, view: &View, distance: impl Fn(NodeId) -> Option<u64>) {
        self.candidates.revise(view, self.partition, state_by(view.self_id(), distance));
    }

    /// What to do now.
    pub fn verdict(&self) -> Verdict {
        if let Some(epoch) = self.candidates.behind() {
            return Verdict::Behind(epoch);
        }
        if let Some(node) = self.candidate() {
            return Verdict::Ask(node);
        }
        if self.candidates.is_missing(said_no) {
            return Verdict::Missing;
        }
        let asked = self.candidates.nodes.iter().any(|candidate| candidate.state == State::Asked);
        if asked { Verdict::Wait } else { Verdict::Unavailable }
    }

    /// The same for a search that has taken so long: after [`MISS_WITHIN_MS`] there is no miss.
    pub fn verdict_after(&self, elapsed: Duration) -> Verdict {
        match self.verdict() {
            Verdict::Missing if elapsed.as_millis() > u128::from(MISS_WITHIN_MS) => Verdict::Unavailable,
            verdict => verdict,
        }
    }

    /// The nearest owner not asked yet; once an owner has failed, the nearest other node; and in the end those away.
    fn candidate(&self) -> Option<NodeId> {
        let nodes = || self.candidates.nodes.iter();
        let nearest = |candidates: &mut dyn Iterator<Item = &Candidate<State>>| {
            let idle = candidates.filter_map(|candidate| match candidate.state {
                State::Idle(distance) => Some((distance, candidate.node)),
                _ => None,
            });
            idle.min_by_key(|(distance, _)| *distance).map(|(_, node)| node)
        };
        if let Some(owner) = nearest(&mut nodes().filter(|candidate| Candidates::is_owner(candidate))) {
            return Some(owner);
        }
        if self.candidates.is_missing(said_no) {
            return None;
        }
        let silent = |candidate: &Candidate<State>| matches!(candidate.state, State::Failed | State::Away);
        if !nodes().any(|candidate| Candidates::is_owner(candidate) && silent(candidate)) {
            return None;
        }
        let away = || nodes().find(|candidate| candidate.state == State::Away).map(|candidate| candidate.node);
        nearest(&mut nodes()).or_else(|| {
            // Those asked may yet make it a fact.
            let asked = nodes().any(|candidate| candidate.state == State::Asked);
            if asked { None } else { away() }
        })
    }

    fn set(&mut self, node: NodeId, state: State) {
        if let Some(candidate) = self.candidates.get_mut(node) {
            candidate.state = state;
        }
    }
}

/// A node's own store is the nearest of all.
fn state_by(self_id: NodeId, distance: impl Fn(NodeId) -> Option<u64>) -> impl Fn(NodeId) -> State {
    move |node| match distance(node) {
        _ if node == self_id => State::Idle(0),
        Some(distance) => State::Idle(distance.saturating_add(1)),
        None => State::Away,
    }
}

fn said_no(state: &State) -> bool {
    *state == State::No
}
