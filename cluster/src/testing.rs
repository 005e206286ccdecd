//! What tests of several modules share.

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::membership::{
    ClusterId, ClusterState, Epoch, Layout, LayoutNode, Member, NodeId, Part, Protocols, Rebalance, Standing, VolumeId,
};

/// The seed of a random test: from `CASBAH_TEST_SEED`, or a new one. Printed, and so shown when the test fails.
pub fn seed() -> u64 {
    let given = std::env::var("CASBAH_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| rand::rng().random());
    println!("CASBAH_TEST_SEED={seed}");
    seed
}

pub fn random(seed: u64) -> SmallRng {
    SmallRng::seed_from_u64(seed)
}

/// A layout of nodes with a zone and a weight each.
pub fn layout<'a>(epoch: u64, nodes: impl IntoIterator<Item = (u64, &'a str, u32)>) -> Layout {
    let node = |(id, zone, weight): (u64, &str, u32)| (NodeId(id), LayoutNode { zone: zone.to_owned(), weight });
    Layout { epoch: Epoch(epoch), nodes: nodes.into_iter().map(node).collect() }
}

/// A layout of equal nodes without zones.
pub fn plain_layout(epoch: u64, ids: impl IntoIterator<Item = u64>) -> Layout {
    layout(epoch, ids.into_iter().map(|id| (id, "", 100)))
}

/// A cluster of all nodes that are in any of the layouts, which are in force.
pub fn state(copies: u8, write_quorum: u8, layouts: Vec<Layout>) -> ClusterState {
    let nodes = layouts.iter().flat_map(|layout| &layout.nodes);
    let member = |id: NodeId, node: &LayoutNode| Member {
        name: format!("node-{id}"),
        address: format!("node-{id}.test:7980"),
        volume: VolumeId(u128::from(id.0).to_be_bytes()),
        zone: node.zone.clone(),
        weight: node.weight,
        protocols: Protocols::SPOKEN,
        part: Part::Voter,
        synced: Epoch::default(),
        standing: Standing::Serving,
        leaves: false,
        placed: Some(node.clone()),
    };
    let members: std::collections::BTreeMap<_, _> = nodes.map(|(id, node)| (*id, member(*id, node))).collect();
    let last = members.keys().next_back().map_or(0, |id| id.0);
    ClusterState {
        id: ClusterId([1; 16]),
        name: "casbah".to_owned(),
        copies,
        write_quorum,
        protocol: Protocols::SPOKEN.newest,
        next_node_id: NodeId(last + 1),
        expected_members: 0,
        rebalance: Rebalance::Automatic,
        planned: Epoch(layouts.last().map_or(0, |layout| layout.epoch.0) + 1),
        members,
        layouts,
    }
}
