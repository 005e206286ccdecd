//! Why a read was not answered with bytes.

use crate::store;

/// Why a blob was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// This node's store says why.
    #[error(transparent)]
    Here(#[from] store::ReadError),
}

// === impl ReadError ===

impl ReadError {
    /// Whether the blob is nowhere, for a fact.
    pub fn is_miss(&self) -> bool {
        // A copy that was damaged is dropped, so that it is not there either.
        matches!(self, ReadError::Here(store::ReadError::NotFound { .. } | store::ReadError::Damaged { .. }))
    }

    /// Whether the caller would have to take more bytes.
    pub fn is_too_large(&self) -> bool {
        matches!(self, ReadError::Here(store::ReadError::TooLarge { .. }))
    }
}
