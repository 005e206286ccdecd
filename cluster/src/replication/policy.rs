//! The two rules that everything about copies follows from.
//!
//! For each layout in force, with its walk (owners, then fallbacks) of the partition and its quorum W:
//!
//! - a write is **acknowledged** when W distinct nodes of the walk have it, one of them an owner;
//! - a miss is a **fact** when every owner has said that it does not have the blob, or when fewer than W nodes of the walk
//!   have not said so.
//!
//! The first makes the second true: of W holders on the walk either one is an owner, who would not have said no, or, where
//! fewer than W have not answered, at least one of them has. Both hold for every layout in force, so that they agree
//! whichever of them another node already, or still, decides by; as long as two nodes' views have a layout in common. Views
//! that have none are kept apart by epochs: whoever has acknowledged a layout names it in each answer, and an answer by a
//! newer layout than one's own is not counted until one's own view has caught up.

use crate::membership::{Epoch, NodeId};
use crate::view::View;

/// The nodes that may hold a blob, what is known of each, and what the layouts in force ask of them.
#[derive(Debug, Clone)]
pub(super) struct Candidates<S> {
    /// Owners by all layouts, newest first, then fallbacks.
    pub nodes: Vec<Candidate<S>>,
    /// W of each layout, the newest first.
    quorums: Vec<usize>,
    epoch: Epoch,
    /// The newest epoch that a node has answered by, if the view's is older.
    ahead: Option<Epoch>,
}

#[derive(Debug, Clone)]
pub(super) struct Candidate<S> {
    pub node: NodeId,
    /// Its zone, numbered among the candidates'.
    pub zone: usize,
    /// The layouts by which it is an owner: bit 0 is the newest.
    owns: u64,
    /// The layouts whose walk it is on.
    walks: u64,
    pub state: S,
}

impl<S> Candidates<S> {
    pub fn new(view: &View, partition: usize, mut state: impl FnMut(NodeId) -> S) -> Candidates<S> {
        let placements = view.placements();
        let bits = |holds: &dyn Fn(usize) -> bool| {
            (0..placements.len()).filter(|at| holds(*at)).fold(0, |bits, at| bits | bit(at))
        };
        let mut zones: Vec<&str> = Vec::new();
        let nodes = view.candidates(partition).iter().map(|node| {
            let zone = view.zone(*node);
            let number = zones.iter().position(|other| *other == zone).unwrap_or_else(|| {
                zones.push(zone);
                zones.len() - 1
            });
            let on = |at: usize, of: fn(&crate::ring::Placement, usize) -> &[NodeId]| {
                placements.get(at).is_some_and(|placement| of(placement, partition).contains(node))
            };
            let owns = bits(&|at| on(at, crate::ring::Placement::owners));
            let walks = bits(&|at| on(at, crate::ring::Placement::walk));
            Candidate { node: *node, zone: number, owns, walks, state: state(*node) }
        });
        let nodes = nodes.collect();
        let quorums = placements.iter().map(|placement| view.write_quorum_by(placement)).collect();
        Candidates { nodes, quorums, epoch: view.epoch(), ahead: None }
    }

    /// Whether a blob that these candidates have is acknowledged.
    pub fn is_acknowledged(&self, has: impl Fn(&S) -> bool) -> bool {
        let has = |candidate: &&Candidate<S>| has(&candidate.state);
        !self.quorums.is_empty() && self.layouts().all(|(bit, quorum)| self.lacks(bit, quorum, &has) == (0, false))
    }

    /// Whether one more copy on this candidate would bring the blob nearer to being acknowledged.
    pub fn would_help(&self, candidate: &Candidate<S>, has: impl Fn(&S) -> bool) -> bool {
        let has = |candidate: &&Candidate<S>| has(&candidate.state);
        self.layouts().any(|(bit, quorum)| {
            let (copies, owner) = self.lacks(bit, quorum, &has);
            (copies > 0 && candidate.walks & bit != 0) || (owner && candidate.owns & bit != 0)
        })
    }

    /// Whether a blob that these candidates do not have is in the cluster at most without having been acknowledged.
    pub fn is_missing(&self, said_no: impl Fn(&S) -> bool) -> bool {
        let denied = |bit: u64, quorum: usize| {
            let mut owners = self.nodes.iter().filter(|candidate| candidate.owns & bit != 0).peekable();
            let unsure = self.nodes.iter().filter(|candidate| candidate.walks & bit != 0 && !said_no(&candidate.state));
            owners.peek().is_some() && (owners.all(|owner| said_no(&owner.state)) || unsure.count() < quorum)
        };
        !self.quorums.is_empty() && self.layouts().all(|(bit, quorum)| denied(bit, quorum))
    }

    /// Whether a node owns the partition by any layout.
    pub fn is_owner(candidate: &Candidate<S>) -> bool {
        candidate.owns != 0
    }

    pub fn get_mut(&mut self, node: NodeId) -> Option<&mut Candidate<S>> {
        self.nodes.iter_mut().find(|candidate| candidate.node == node)
    }

    /// A node has answered by this epoch.
    pub fn heard(&mut self, epoch: Epoch) {
        if epoch > self.epoch {
            self.ahead = self.ahead.max(Some(epoch));
        }
    }

    /// The epoch that the view has to reach before anything is decided.
    pub fn behind(&self) -> Option<Epoch> {
        self.ahead
    }

    /// The same by a later view: what is known of a node stays known.
    pub fn revise(&mut self, view: &View, partition: usize, unknown: impl Fn(NodeId) -> S)
    where
        S: Clone,
    {
        let known = |node: NodeId| self.nodes.iter().find(|candidate| candidate.node == node);
        let state = |node: NodeId| known(node).map_or_else(|| unknown(node), |candidate| candidate.state.clone());
        let mut revised = Candidates::new(view, partition, state);
        if let Some(epoch) = self.ahead {
            revised.heard(epoch);
        }
        *self = revised;
    }

    fn layouts(&self) -> impl Iterator<Item = (u64, usize)> {
        self.quorums.iter().enumerate().map(|(at, quorum)| (bit(at), *quorum))
    }

    /// The copies that a layout lacks, and whether it lacks an owner's.
    fn lacks(&self, bit: u64, quorum: usize, has: &impl Fn(&&Candidate<S>) -> bool) -> (usize, bool) {
        let holders = self.nodes.iter().filter(|candidate| candidate.walks & bit != 0).filter(|c| has(c)).count();
        let owner = self.nodes.iter().filter(|candidate| candidate.owns & bit != 0).any(|candidate| has(&candidate));
        (quorum.saturating_sub(holders), !owner)
    }
}

/// No bit for layouts beyond the 64th: nothing is then acknowledged, or missing. Far more than are ever in force.
fn bit(layout: usize) -> u64 {
    u32::try_from(layout).ok().and_then(|layout| 1_u64.checked_shl(layout)).unwrap_or(0)
}
