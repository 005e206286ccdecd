//! What a person has done to the cluster, through the admin port of any node.

use serde::{Deserialize, Serialize};

/// Something to be done. Part of what the program's commands and a node of another version say to each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Ask a node to leave.
    Drain {
        /// Its id.
        node: u64,
    },
    /// Have it stay.
    Undrain {
        /// Its id.
        node: u64,
    },
    /// Take a node out of the cluster.
    Remove {
        /// Its id.
        node: u64,
        /// Even if it has a part of the blobs.
        force: bool,
    },
    /// Make the layout that was planned.
    Apply {
        /// As which it was planned.
        epoch: u64,
    },
    /// Have this node lead the Raft group.
    Lead {
        /// Its id.
        node: u64,
    },
}

/// Why it is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// It would be wrong.
    #[error("{reason}")]
    Refused {
        /// In a sentence.
        reason: String,
    },
    /// It cannot be done now, or it is not known whether it was.
    #[error("{reason}")]
    NotNow {
        /// In a sentence.
        reason: String,
    },
}
