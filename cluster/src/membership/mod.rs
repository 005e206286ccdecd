//! Who belongs to a cluster, and what all its nodes agree on.

mod ids;
mod roster;
mod state;

pub use ids::{ClusterId, Epoch, IdError, NodeId, VolumeId};
pub use roster::{Roster, Standing};
pub use state::{ClusterState, Layout, LayoutNode, Member, Part};
