//! Views that the tests of decisions begin with.

use crate::membership::{Layout, NodeId};
use crate::testing::{plain_layout, state};
use crate::view::View;

/// The view of node 1 of so many equal nodes.
pub fn view(nodes: u64, copies: u8, write_quorum: u8) -> View {
    view_by(copies, write_quorum, vec![plain_layout(1, 1..=nodes)])
}

pub fn view_by(copies: u8, write_quorum: u8, layouts: Vec<Layout>) -> View {
    View::new(NodeId(1), state(copies, write_quorum, layouts))
}

/// The subsets of so many things, as sets of bits.
pub fn subsets(count: usize) -> impl Iterator<Item = u32> {
    0..1_u32 << count
}

/// The things that a subset has.
pub fn members(subset: u32, things: &[NodeId]) -> Vec<NodeId> {
    (0..).zip(things).filter(|(at, _)| subset >> at & 1 == 1).map(|(_, thing)| *thing).collect()
}
