//! The ring: every node's virtual nodes in the order of their tokens.

use std::hash::BuildHasher as _;

use hashring::HashRing;

use super::token::{Tokens, VirtualNode};
use crate::membership::NodeId;

/// Virtual nodes of a node of [`ORDINARY_WEIGHT`]: with fewer, more data moves when a node comes or goes; with more, a table
/// takes longer to make. Measured in docs/decisions/0003-placement.md.
const VIRTUAL_NODES: u64 = 512;
/// The weight that nodes have if none is configured. A fixed one, not the mean of the weights there are: a node's virtual
/// nodes must not change when another one joins.
const ORDINARY_WEIGHT: u64 = 100;
/// As many as a node of sixteen times the ordinary weight has. The bound on loads gives a heavier node its share all the same;
/// the ring of a hundred of them is 20 MB while it is built.
const MAX_VIRTUAL_NODES: u64 = 16 * VIRTUAL_NODES;

/// Virtual nodes, by token.
#[derive(Debug)]
pub(super) struct Ring {
    points: Vec<Point>,
}

#[derive(Debug, Clone, Copy)]
struct Point {
    token: u64,
    place: u32,
}

impl Ring {
    /// The ring of these nodes, which come in the order of their ids, with their weights.
    pub fn of(nodes: impl Iterator<Item = (NodeId, u32)>) -> Ring {
        let virtual_nodes = (0..).zip(nodes).flat_map(|(place, (node, weight))| {
            (0..virtual_nodes_of(weight)).map(move |index| VirtualNode { node, index, place })
        });
        let mut ring = HashRing::with_hasher(Tokens);
        ring.batch_add(virtual_nodes.collect());
        // The whole ring, from wherever that key is: the crate gives it in no other way to rings with hashers of one's own.
        let mut around = ring.get_with_replicas(&0_u64, usize::MAX).unwrap_or_default();
        around.sort_by_key(|at| (Tokens.hash_one(at), at.node, at.index));
        let point = |at: VirtualNode| Point { token: Tokens.hash_one(at), place: at.place };
        Ring { points: around.into_iter().map(point).collect() }
    }

    /// The first point at or after this token.
    pub fn first_at(&self, token: u64) -> usize {
        self.points.partition_point(|point| point.token < token)
    }

    /// The place of the node of the point that is so many steps from a start; `None` once around.
    pub fn walk(&self, start: usize, steps: usize) -> Option<usize> {
        let count = self.points.len();
        let at = if start + steps < count { start + steps } else { start + steps - count };
        self.points.get(at).filter(|_| steps < count).map(|point| point.place as usize)
    }
}

fn virtual_nodes_of(weight: u32) -> u32 {
    let count = VIRTUAL_NODES * u64::from(weight) / ORDINARY_WEIGHT;
    u32::try_from(count.clamp(1, MAX_VIRTUAL_NODES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_goes_around_once_from_its_token() {
        let ring = Ring::of([(NodeId(1), 100), (NodeId(2), 200)].into_iter());
        assert_eq!(ring.points.len(), 512 + 1024);
        assert!(ring.points.is_sorted_by_key(|point| point.token));
        for token in [0, 1 << 63, u64::MAX] {
            let start = ring.first_at(token);
            let walk: Vec<usize> = (0..).map_while(|steps| ring.walk(start, steps)).collect();
            assert_eq!(walk.len(), ring.points.len());
            let first = ring.points.iter().find(|point| point.token >= token).unwrap_or(&ring.points[0]);
            assert_eq!(walk[0], first.place as usize);
        }
    }

    #[test]
    fn weights_make_virtual_nodes_within_bounds() {
        assert_eq!([1, 50, 100, 1600, u32::MAX].map(virtual_nodes_of), [5, 256, 512, 8192, 8192]);
        assert_eq!(Ring::of([].into_iter()).walk(0, 0), None);
    }
}
