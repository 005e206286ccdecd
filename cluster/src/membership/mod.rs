//! Who belongs to a cluster, and what all its nodes agree on.

mod formation;
mod ids;
mod introduction;
mod roster;
mod state;

#[cfg(test)]
mod formation_test;

pub use formation::{CONFIRMED_LATELY_MS, Formation, FormationStep, HEARD_LATELY_MS, Waiting};
pub use ids::{ClusterId, Epoch, IdError, NodeId, VolumeId};
pub use introduction::{Introduction, Joiner, Pledge};
pub use roster::{Roster, Standing};
pub use state::{ClusterState, Layout, LayoutNode, Member, Part};
