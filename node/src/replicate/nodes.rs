//! This node, and the others that blobs are kept on.

use crate::store::Store;

/// This node's blobs and the way to those of other nodes. Cheap to clone.
#[derive(Clone)]
pub struct Nodes {
    store: Store,
}

// === impl Nodes ===

impl Nodes {
    /// A cluster of this node alone.
    pub fn alone(store: Store) -> Nodes {
        Nodes { store }
    }

    /// What is on this node.
    pub fn store(&self) -> &Store {
        &self.store
    }
}
