//! The table of a layout: which nodes own each partition, and who stands in for them.

use super::ring::Ring;
use super::share::{self, Loaded};
use crate::digest::Digest;
use crate::membership::{Epoch, Layout, NodeId};

/// Parts that digests fall into: enough that a hundred nodes' loads are within a hundredth of what they are meant to be, few
/// enough that a table of them is a quarter of a megabyte.
pub const PARTITIONS: usize = 1 << PARTITION_BITS;
/// The first bits of a hash that say which partition it is in.
const PARTITION_BITS: u32 = 12;
/// How many nodes beyond the owners may hold a copy while owners are away: each of them has to be asked before a blob can be
/// said to be missing while an owner does not answer.
pub const FALLBACKS: usize = 3;

/// Who owns what, by one layout. An eighth of a look-up is a multiplication, the rest is a read of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    epoch: Epoch,
    /// Owners of each partition.
    owner_count: usize,
    /// Owners and fallbacks of each partition.
    row_width: usize,
    /// A row for each partition: owners, then fallbacks.
    rows: Vec<NodeId>,
}

/// The partition that a digest is in.
pub fn partition_of(digest: &Digest) -> usize {
    match digest.hash() {
        [first, second, ..] => usize::from(u16::from_be_bytes([*first, *second]) >> (16 - PARTITION_BITS)),
        _ => 0,
    }
}

/// A node of the layout that has a weight.
struct Node {
    id: NodeId,
    zone: usize,
    bound: u64,
    /// Partitions that it owns so far.
    load: u64,
}

/// The nodes that a partition's row is made of.
struct Row<'a> {
    nodes: &'a mut [Node],
    /// For each node, whether it is in the row.
    chosen: Vec<bool>,
    /// For each zone, how many of its nodes are in the row.
    zone_used: Vec<u64>,
    /// For each zone, how many nodes it has.
    zone_size: &'a [u64],
}

impl Placement {
    /// The table of a layout with so many copies, or as many as there are nodes.
    ///
    /// From its token a partition walks the ring and takes nodes that it does not have yet, are in the zones that it has
    /// fewest nodes of, and own fewer partitions than they may. Where all such nodes own as many as they may, the one with
    /// the smallest part of its bound is taken: zones before loads. Fallbacks are taken likewise and have no bound. Nodes
    /// of weight 0 hold nothing.
    pub fn of(layout: &Layout, copies: u8) -> Placement {
        let members: Vec<_> = layout.nodes.iter().filter(|(_, node)| node.weight > 0).collect();
        let mut zones: Vec<&str> = members.iter().map(|(_, node)| node.zone.as_str()).collect();
        zones.sort_unstable();
        zones.dedup();
        let zone_of = |zone: &str| zones.binary_search(&zone).unwrap_or(0);
        let loaded: Vec<Loaded> =
            members.iter().map(|(_, node)| Loaded { zone: zone_of(&node.zone), weight: node.weight }).collect();
        let owner_count = usize::from(copies.max(1)).min(members.len());
        let row_width = (owner_count + FALLBACKS).min(members.len());

        let bounds = share::bounds(&loaded, zones.len(), owner_count, PARTITIONS);
        let node = |((id, zone), bound)| Node { id, zone, bound, load: 0 };
        let ids = members.iter().map(|(id, _)| **id);
        let mut nodes: Vec<Node> = ids.clone().zip(loaded.iter().map(|node| node.zone)).zip(bounds).map(node).collect();
        let zone_size: Vec<u64> =
            (0..zones.len()).map(|zone| nodes.iter().filter(|node| node.zone == zone).count() as u64).collect();

        let ring = Ring::of(ids.zip(members.iter().map(|(_, node)| node.weight)));
        let mut rows = Vec::with_capacity(PARTITIONS * row_width);
        for partition in 0..PARTITIONS {
            let token = (partition as u64) << (u64::BITS - PARTITION_BITS);
            let mut way = Way::new(ring.walk(token), nodes.len());
            let mut row = Row {
                chosen: vec![false; nodes.len()],
                zone_used: vec![0; zones.len()],
                zone_size: &zone_size,
                nodes: &mut nodes,
            };
            let owners = (0..owner_count).filter_map(|_| row.next_owner(&mut way)).collect::<Vec<_>>();
            let fallbacks = (owner_count..row_width).filter_map(|_| row.next_fallback(&mut way));
            rows.extend(fallbacks.collect::<Vec<_>>().iter().fold(owners, |mut row, id| {
                row.push(*id);
                row
            }));
        }
        Placement { epoch: layout.epoch, owner_count, row_width, rows }
    }

    /// The layout that it is the table of.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How many nodes own each partition.
    pub fn owner_count(&self) -> usize {
        self.owner_count
    }

    /// The nodes that hold a partition, the first of the walk first. Empty if there are no nodes or no such partition.
    pub fn owners(&self, partition: usize) -> &[NodeId] {
        let start = partition.saturating_mul(self.row_width);
        self.rows.get(start..start.saturating_add(self.owner_count)).unwrap_or_default()
    }

    /// The owners, then up to [`FALLBACKS`] nodes that take copies while owners are away.
    pub fn walk(&self, partition: usize) -> &[NodeId] {
        let start = partition.saturating_mul(self.row_width);
        self.rows.get(start..start.saturating_add(self.row_width)).unwrap_or_default()
    }

    /// How many partitions a node owns.
    pub fn load(&self, node: NodeId) -> usize {
        (0..PARTITIONS).filter(|partition| self.owners(*partition).contains(&node)).count()
    }
}

/// The nodes of a walk in the order in which it meets them first. Walked no further than needed.
struct Way<I> {
    points: I,
    met: Vec<bool>,
    order: Vec<usize>,
}

impl<I: Iterator<Item = usize>> Way<I> {
    fn new(points: I, node_count: usize) -> Way<I> {
        Way { points, met: vec![false; node_count], order: Vec::new() }
    }

    /// The first node of the walk that will do.
    fn find(&mut self, mut will_do: impl FnMut(usize) -> bool) -> Option<usize> {
        if let Some(place) = self.order.iter().copied().find(|place| will_do(*place)) {
            return Some(place);
        }
        for place in self.points.by_ref() {
            let Some(met) = self.met.get_mut(place).filter(|met| !**met) else { continue };
            *met = true;
            self.order.push(place);
            if will_do(place) {
                return Some(place);
            }
            if self.order.len() == self.met.len() {
                break;
            }
        }
        None
    }
}

impl Row<'_> {
    fn next_owner(&mut self, way: &mut Way<impl Iterator<Item = usize>>) -> Option<NodeId> {
        let used = self.fewest_used();
        let fits = |row: &Row, place| row.node(place).is_some_and(|node| node.load < node.bound);
        let place = way.find(|place| self.admits(place, used) && fits(self, place)).or_else(|| {
            // All of them are full. The walk has met every node by now.
            let admitted = way.order.iter().copied().filter(|place| self.admits(*place, used));
            admitted.min_by(|a, b| {
                let part = |at: usize, of: usize| {
                    let (at, of) = (self.node(at), self.node(of));
                    at.map_or(0, |node| node.load) * of.map_or(1, |node| node.bound)
                };
                part(*a, *b).cmp(&part(*b, *a))
            })
        })?;
        let id = self.choose(place)?;
        self.nodes.get_mut(place)?.load += 1;
        Some(id)
    }

    fn next_fallback(&mut self, way: &mut Way<impl Iterator<Item = usize>>) -> Option<NodeId> {
        let used = self.fewest_used();
        let place = way.find(|place| self.admits(place, used))?;
        self.choose(place)
    }

    /// How many nodes of the row are in a zone that still has other nodes, in the one with fewest.
    fn fewest_used(&self) -> u64 {
        let zones = self.zone_used.iter().zip(self.zone_size);
        zones.filter(|(used, size)| used < size).map(|(used, _)| *used).min().unwrap_or(0)
    }

    fn admits(&self, place: usize, used: u64) -> bool {
        let zone_used = self.node(place).and_then(|node| self.zone_used.get(node.zone));
        self.chosen.get(place) == Some(&false) && zone_used == Some(&used)
    }

    fn choose(&mut self, place: usize) -> Option<NodeId> {
        let (id, zone) = self.node(place).map(|node| (node.id, node.zone))?;
        *self.chosen.get_mut(place)? = true;
        *self.zone_used.get_mut(zone)? += 1;
        Some(id)
    }

    fn node(&self, place: usize) -> Option<&Node> {
        self.nodes.get(place)
    }
}
