//! What nodes tell each other of what they hold, so that the difference can be found and made up for.

use crate::digest::Digest;
use crate::replication::Version;

/// Bytes of the sum in an [`Inventory`].
pub const SUM_BYTES: usize = 32;

/// What a node has of a partition in short: equal on two nodes that have the same, and hardly otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Inventory {
    /// How many.
    pub count: u64,
    /// The sums of each (see [`PartitionSummary`]), xored.
    pub xor: [u8; SUM_BYTES],
}

/// A node's inventories of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PartitionSummary {
    /// Of the blobs. A blob's sum is its hash, then zeros; of a hash longer than 32 bytes its first 8, and 24 of its SHA-256.
    pub blobs: Inventory,
    /// Of the results of actions. A result's sum is a hash of its name and its version.
    pub actions: Inventory,
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// In the list's order.
    pub entries: Vec<T>,
    /// Whether nothing follows.
    pub is_last: bool,
}

/// A blob that a node has. In lists, in the order of the functions' numbers and then of hashes; of functions whose hashes are
/// longer than 32 bytes, those that begin with the same 8 bytes are in any order, the same on all nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ListedBlob {
    /// Its name.
    pub digest: Digest,
    /// When it was last used there, in milliseconds since 1970-01-01T00:00:00Z, by that node's clock. Cut to whole seconds.
    pub used_ms: u64,
}

/// What a result of an action goes by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ActionName {
    /// The instance's name.
    pub instance: String,
    /// The action.
    pub action: Digest,
}

/// The result of an action that a node has. In lists, in the order of the functions' numbers, hashes, sizes and instances' names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListedAction {
    /// The instance's name.
    pub instance: String,
    /// The action.
    pub action: Digest,
    /// Which of its results it is.
    pub version: Version,
}

// === impl Inventory ===

impl Inventory {
    /// One more.
    pub fn add(&mut self, sum: &[u8; SUM_BYTES]) {
        self.count = self.count.wrapping_add(1);
        self.toggle(sum);
    }

    /// One less. If it is told before the one that it takes away was added, the count is wrong until then, and right after it.
    pub fn take(&mut self, sum: &[u8; SUM_BYTES]) {
        self.count = self.count.wrapping_sub(1);
        self.toggle(sum);
    }

    fn toggle(&mut self, sum: &[u8; SUM_BYTES]) {
        self.xor.iter_mut().zip(sum).for_each(|(all, one)| *all ^= one);
    }
}

// === impl ListedAction ===

impl ListedAction {
    /// What it goes by.
    pub fn name(&self) -> ActionName {
        ActionName { instance: self.instance.clone(), action: self.action }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_and_goes_leaves_nothing_in_whatever_order() {
        let (one, two) = ([3; SUM_BYTES], [5; SUM_BYTES]);
        let mut inventory = Inventory::default();
        inventory.take(&one);
        inventory.add(&two);
        inventory.add(&one);
        assert_eq!(inventory, Inventory { count: 1, xor: two });
        inventory.take(&two);
        assert_eq!(inventory, Inventory::default());
    }
}
