//! The table of a layout: which nodes own each partition, and who stands in for them.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::mem;

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

/// Who owns what, by one layout. A look-up is a slice of a table.
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

/// A placement in the making. Rows have places of nodes in `nodes`.
struct Table {
    nodes: Vec<Node>,
    /// For each zone, how many nodes it has.
    zone_size: Vec<u64>,
    ring: Ring,
    /// The nodes of each partition.
    rows: Vec<Vec<usize>>,
}

impl Placement {
    /// The table of a layout with so many copies, or as many as there are nodes.
    ///
    /// A partition walks the ring from its token. Of the nodes that it meets it takes those that it does not have yet and
    /// that are in the zones it has fewest nodes of: these are its nearest owners. A node that is the nearest owner of more
    /// partitions than it may own keeps the first of them; the others walk on to the next node that has room, by the same
    /// rule. Where no node that the zones admit has room, one of them gives a partition to a node that has; if none can, the
    /// least full of them is taken: zones before loads. Fallbacks are taken likewise and have no bound. Nodes of weight 0 hold
    /// nothing.
    ///
    /// Nearest owners first, as then nobody is driven from its nearest owner by one that was driven there from its own:
    /// less moves when a node comes or goes.
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
        let nodes = members.iter().zip(&loaded).zip(bounds);
        let nodes = nodes.map(|(((id, _), node), bound)| Node { id: **id, zone: node.zone, bound, load: 0 });
        let mut zone_size = vec![0; zones.len()];
        loaded.iter().filter_map(|node| zone_size.get_mut(node.zone).map(|size| *size += 1)).for_each(drop);
        let mut table = Table {
            nodes: nodes.collect(),
            zone_size,
            ring: Ring::of(members.iter().map(|(id, node)| (**id, node.weight))),
            rows: vec![Vec::new(); PARTITIONS],
        };
        table.take_nearest_owners(owner_count);
        table.take_other_owners(owner_count);
        table.take_fallbacks(row_width);
        Placement { epoch: layout.epoch, owner_count, row_width, rows: table.ids() }
    }

    /// The first partitions of it alone; nobody owns the others. For simulations, in which few blobs make many moves.
    #[must_use]
    pub fn first(&self, partitions: usize) -> Placement {
        let rows = self.rows.iter().take(partitions.saturating_mul(self.row_width)).copied().collect();
        Placement { rows, ..self.clone() }
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

    /// How many partitions each node owns. Nodes that own none are not in it.
    pub fn loads(&self) -> BTreeMap<NodeId, usize> {
        let mut loads = BTreeMap::new();
        let owners = (0..PARTITIONS).flat_map(|partition| self.owners(partition));
        owners.for_each(|node| *loads.entry(*node).or_default() += 1);
        loads
    }
}

// === impl Table ===

impl Table {
    fn take_nearest_owners(&mut self, owner_count: usize) {
        let nearest = |partition: usize| {
            let mut way = self.way(partition);
            let mut row = Vec::with_capacity(owner_count);
            while row.len() < owner_count {
                let Some(place) = self.admitted(&row, &mut way, |_| true) else { break };
                row.push(place);
            }
            row
        };
        let nearest: Vec<Vec<usize>> = (0..self.rows.len()).map(nearest).collect();
        for rank in 0..owner_count {
            for (row, nearest) in self.rows.iter_mut().zip(&nearest) {
                let node = nearest.get(rank).and_then(|place| Some((*place, self.nodes.get_mut(*place)?)));
                if let Some((place, node)) = node.filter(|(_, node)| node.has_room()) {
                    node.load += 1;
                    row.push(place);
                }
            }
        }
    }

    fn take_other_owners(&mut self, owner_count: usize) {
        let has_room = |table: &Table, place: usize| table.nodes.get(place).is_some_and(Node::has_room);
        self.fill(owner_count, |table, partition, row, way| {
            let place = table.admitted(row, way, |place| has_room(table, place));
            let place = place.or_else(|| table.make_room(partition, row)).or_else(|| table.least_full(row, way))?;
            table.nodes.get_mut(place)?.load += 1;
            Some(place)
        });
    }

    fn take_fallbacks(&mut self, row_width: usize) {
        self.fill(row_width, |table, _, row, way| table.admitted(row, way, |_| true));
    }

    /// Adds nodes to all rows until they are so wide.
    fn fill(&mut self, width: usize, next: impl Fn(&mut Table, usize, &[usize], &mut Way) -> Option<usize>) {
        for partition in 0..self.rows.len() {
            let Some(mut row) = self.rows.get_mut(partition).map(mem::take) else { continue };
            let mut way = self.way(partition);
            while row.len() < width {
                let Some(place) = next(self, partition, &row, &mut way) else { break };
                row.push(place);
            }
            if let Some(made) = self.rows.get_mut(partition) {
                *made = row;
            }
        }
    }

    /// All nodes that zones admit to the row own as many partitions as they may: one of them gives a partition to a node that
    /// may own more, and so can take this one. Of several such nodes the least full takes it, of several partitions the next one
    /// goes.
    fn make_room(&mut self, partition: usize, row: &[usize]) -> Option<usize> {
        let open = self.nodes.iter().enumerate().filter(|(_, node)| node.has_room());
        let mut open: Vec<usize> = open.map(|(place, _)| place).collect();
        open.sort_by(|a, b| self.fuller(*a, *b));
        if open.is_empty() {
            return None;
        }
        let admits = self.admission(row);
        let count = self.rows.len();
        let others = (1..count).map(|steps| (partition + steps) % count);
        let (other, at, from, to) = others.into_iter().find_map(|other| {
            let theirs = self.rows.get(other)?;
            theirs.iter().enumerate().filter(|(_, place)| admits(**place)).find_map(|(at, from)| {
                let rest: Vec<usize> = theirs.iter().copied().filter(|place| place != from).collect();
                let takes = self.admission(&rest);
                let to = open.iter().copied().find(|to| to != from && takes(*to))?;
                drop(takes);
                Some((other, at, *from, to))
            })
        })?;
        drop(admits);
        *self.rows.get_mut(other)?.get_mut(at)? = to;
        self.nodes.get_mut(to)?.load += 1;
        self.nodes.get_mut(from)?.load -= 1;
        Some(from)
    }

    /// The first node of the walk that zones admit to the row, and that will do.
    fn admitted(&self, row: &[usize], way: &mut Way, will_do: impl Fn(usize) -> bool) -> Option<usize> {
        let admits = self.admission(row);
        way.find(&self.ring, |place| admits(place) && will_do(place))
    }

    /// The node that zones admit to the row and whose load is the smallest part of its bound; of several the first of the walk.
    fn least_full(&self, row: &[usize], way: &mut Way) -> Option<usize> {
        way.find(&self.ring, |_| false); // to the end
        let admits = self.admission(row);
        way.met.iter().copied().filter(|place| admits(*place)).min_by(|a, b| self.fuller(*a, *b))
    }

    /// Which of two nodes owns a larger part of what it may.
    fn fuller(&self, a: usize, b: usize) -> Ordering {
        match (self.nodes.get(a), self.nodes.get(b)) {
            (Some(a), Some(b)) => (a.load * b.bound).cmp(&(b.load * a.bound)),
            _ => Ordering::Equal,
        }
    }

    /// Which nodes may be added to a row: those of the zones that it has fewest nodes of and that have others.
    fn admission<'a>(&'a self, row: &'a [usize]) -> impl Fn(usize) -> bool + use<'a> {
        let zone = |place: usize| self.nodes.get(place).map(|node| node.zone);
        let mut used = vec![0; self.zone_size.len()];
        for place in row {
            zone(*place).and_then(|zone| used.get_mut(zone)).into_iter().for_each(|used| *used += 1);
        }
        let zones = used.iter().zip(&self.zone_size);
        let fewest = zones.filter(|(used, size)| used < size).map(|(used, _)| *used).min();
        move |place| {
            let zone_used = zone(place).and_then(|zone| used.get(zone).copied());
            fewest.is_some() && zone_used == fewest && !row.contains(&place)
        }
    }

    fn way(&self, partition: usize) -> Way {
        let token = (partition as u64) << (u64::BITS - PARTITION_BITS);
        Way { start: self.ring.first_at(token), taken: 0, met: Vec::new() }
    }

    fn ids(&self) -> Vec<NodeId> {
        let places = self.rows.iter().flatten();
        places.filter_map(|place| self.nodes.get(*place).map(|node| node.id)).collect()
    }
}

impl Node {
    fn has_room(&self) -> bool {
        self.load < self.bound
    }
}

/// A walk, no further than it has been needed yet.
struct Way {
    /// The point of the ring that it starts from.
    start: usize,
    /// Points that have been passed.
    taken: usize,
    /// The places of the nodes that it has met, in the order in which it did.
    met: Vec<usize>,
}

impl Way {
    /// The first node of the walk that will do.
    fn find(&mut self, ring: &Ring, will_do: impl Fn(usize) -> bool) -> Option<usize> {
        if let Some(place) = self.met.iter().copied().find(|place| will_do(*place)) {
            return Some(place);
        }
        while let Some(place) = ring.walk(self.start, self.taken) {
            self.taken += 1;
            if self.met.contains(&place) {
                continue;
            }
            self.met.push(place);
            if will_do(place) {
                return Some(place);
            }
        }
        None
    }
}
