//! Who belongs to a cluster, and what all its nodes agree on.

mod ids;
mod state;

pub use ids::{ClusterId, Epoch, IdError, NodeId, VolumeId};
pub use state::{ClusterState, Layout, LayoutNode, Member, Part};
