//! Tables as they have always been: a version of the program that makes others finds no blob of an older one, and disagrees
//! with the nodes that still run it.

use super::*;
use crate::digest::{Digest, DigestFunction};
use crate::membership::Layout;
use crate::testing::{layout, plain_layout};

/// A hash of all owners and fallbacks.
fn fingerprint(layout: &Layout, copies: u8) -> String {
    let placement = Placement::of(layout, copies);
    let row = |partition| placement.walk(partition).iter().flat_map(|node| node.0.to_le_bytes());
    let bytes: Vec<u8> = (0..PARTITIONS).flat_map(row).collect();
    Digest::of(DigestFunction::Sha256, &bytes).hash_hex()[..32].to_owned()
}

#[test]
fn placements_are_those_that_they_have_always_been() {
    let zones = ["a", "b", "c"];
    let in_zones = |count: u64| (1..=count).map(move |id| (id, zones[(id % 3) as usize], 100));
    let weighted = [(1, "", 100), (2, "", 200), (5, "", 50), (9, "", 1000), (11, "", 3)];
    let uneven = [(1, "a", 100), (2, "a", 100), (3, "a", 300), (4, "b", 100)];
    let found = [
        fingerprint(&plain_layout(1, [1]), 2),
        fingerprint(&plain_layout(1, [1, 2, 3]), 2),
        fingerprint(&plain_layout(7, [1, 2, 3]), 3),
        fingerprint(&plain_layout(1, (1..=5).chain([u64::MAX])), 2),
        fingerprint(&layout(1, in_zones(9)), 2),
        fingerprint(&layout(1, in_zones(10)), 3),
        fingerprint(&layout(1, weighted), 2),
        fingerprint(&layout(1, uneven), 2),
        fingerprint(&plain_layout(1, 1..=24), 2),
        fingerprint(&plain_layout(1, 1..=100), 3),
        fingerprint(&layout(1, in_zones(4)), 2),
    ];
    assert_eq!(found, GOLDEN);
}

const GOLDEN: [&str; 11] = [
    "7f359c344d1520daab697c52d31afa56",
    "be965f7354b8e013d5d08162b34c787f",
    "be965f7354b8e013d5d08162b34c787f",
    "28ab9d004345042ec34fa8be7c8c6b14",
    "7141945fb73352bc97aec691b38d203c",
    "5672e3f5d0f3a38bd0c3e8da595facfa",
    "8723ca95133ff351807b8775e97ba27d",
    "cc70a6313f026a2b51ade5846ba4fecc",
    "bab78f25d21d09330bff5d6fe4a62386",
    "ad94b51a5ec56024e140483661ca5600",
    "241ca6160a2e0d3cbf300a5a248328be",
];

#[test]
fn single_partitions_are_where_they_have_always_been() {
    let placement = Placement::of(&plain_layout(1, 1..=5), 2);
    let rows = [0, 1, 2047, 4095].map(|partition| placement.walk(partition).iter().map(|n| n.0).collect::<Vec<_>>());
    assert_eq!(rows, [[3, 1, 5, 4, 2], [3, 1, 5, 4, 2], [3, 1, 2, 5, 4], [3, 1, 5, 4, 2]]);
}
