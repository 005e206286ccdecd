//! FindMissingBlobs over a cluster: every owner is asked once for all digests that it owns.

use crate::membership::NodeId;
use crate::view::View;

/// A FindMissingBlobs call on its way. Digests go by their position in the request.
#[derive(Debug)]
pub struct FindMissing {
    /// Sorted by node.
    calls: Vec<Call>,
    /// For each digest, whether a node has said just now that it is there.
    present: Vec<bool>,
    /// Digests that owners have said not to have.
    absent: Vec<(u32, NodeId)>,
}

#[derive(Debug)]
struct Call {
    node: NodeId,
    digests: Vec<u32>,
}

/// What all nodes' answers come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Positions of the digests that no node has, or could be asked for.
    pub missing: Vec<u32>,
    /// Positions of digests that are there, each with an owner that does not have it.
    pub lacking: Vec<(u32, NodeId)>,
}

impl FindMissing {
    /// A call for digests in these partitions.
    pub fn new(view: &View, partitions: impl ExactSizeIterator<Item = usize>) -> FindMissing {
        let mut find = FindMissing { calls: Vec::new(), present: vec![false; partitions.len()], absent: Vec::new() };
        for (position, partition) in (0..).zip(partitions) {
            for node in view.owners(partition) {
                find.add(*node, position);
            }
        }
        find
    }

    fn add(&mut self, node: NodeId, position: u32) {
        let at = self.calls.binary_search_by_key(&node, |call| call.node).unwrap_or_else(|at| {
            self.calls.insert(at, Call { node, digests: Vec::new() });
            at
        });
        if let Some(call) = self.calls.get_mut(at) {
            call.digests.push(position);
        }
    }

    /// Whom to ask for what, all at once.
    pub fn calls(&self) -> impl Iterator<Item = (NodeId, &[u32])> {
        self.calls.iter().map(|call| (call.node, call.digests.as_slice()))
    }

    /// A node has answered: it has all that it was asked for but these, given by their position in what it was asked,
    /// ascending.
    pub fn answered(&mut self, node: NodeId, missing: impl IntoIterator<Item = u32>) {
        let Ok(at) = self.calls.binary_search_by_key(&node, |call| call.node) else { return };
        let Some(call) = self.calls.get(at) else { return };
        let mut missing = missing.into_iter().peekable();
        for (at, position) in (0..).zip(&call.digests) {
            if missing.next_if_eq(&at).is_some() {
                self.absent.push((*position, node));
            } else if let Some(present) = self.present.get_mut(*position as usize) {
                *present = true;
            }
        }
    }

    /// What is known when every node has answered or failed. A node that fails has said nothing: what only it could have is
    /// missing, which costs an upload and no build.
    pub fn finish(self) -> Found {
        let is_present = |position: &u32| self.present.get(*position as usize) == Some(&true);
        let missing =
            (0..).zip(&self.present).filter(|(_, present)| !**present).map(|(position, _)| position).collect();
        let lacking = self.absent.iter().filter(|(position, _)| is_present(position)).copied().collect();
        Found { missing, lacking }
    }
}
