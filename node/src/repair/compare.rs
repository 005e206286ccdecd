//! What this node and others have of partitions, in short.

use casbah_cluster::inventory::{Inventory, PartitionSummary};
use casbah_cluster::repair::Summary;

use crate::index::ActionIndex;
use crate::store::Store;

/// As decisions are made by.
pub(super) fn summary(partition: &PartitionSummary) -> Summary {
    let kind = |inventory: &Inventory| (count(inventory), inventory.xor);
    Summary::of(&[kind(&partition.blobs), kind(&partition.actions)])
}

/// What this node has of a partition. While its index is still being counted, as if there were no results in it.
pub(super) fn here(store: &Store, index: &ActionIndex, partition: u16) -> PartitionSummary {
    let partition = usize::from(partition);
    PartitionSummary { blobs: store.inventory(partition), actions: index.inventory(partition).unwrap_or_default() }
}

/// Where something goes before it was seen to come, less than nothing is there for a moment.
fn count(inventory: &Inventory) -> u64 {
    if inventory.count > u64::MAX / 2 { 0 } else { inventory.count }
}
