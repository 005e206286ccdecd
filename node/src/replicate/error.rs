//! Why a write was not acknowledged.

use crate::store;

/// Why a blob was not stored on enough nodes.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// This node's store says why.
    #[error(transparent)]
    Here(#[from] store::WriteError),
}
