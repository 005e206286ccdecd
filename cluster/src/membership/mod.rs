//! Who belongs to a cluster, and what all its nodes agree on.

mod certainty;
mod change;
mod formation;
mod group;
mod ids;
mod introduction;
mod loss;
mod protocol;
mod roster;
mod standing;
mod state;

#[cfg(test)]
mod change_test;
#[cfg(test)]
mod formation_test;
#[cfg(test)]
mod group_test;
#[cfg(test)]
mod standing_test;

pub use certainty::Certainty;
pub use change::{FIRST_LAYOUT_PATIENCE_MS, LAYOUTS_MAX, MEMBERS_MAX, Refusal};
pub use formation::{CONFIRMED_LATELY_MS, Formation, FormationStep, HEARD_LATELY_MS, Waiting};
pub use group::{GroupStep, LEARNERS_MAX, VOTER_LOST_AFTER_MS, can_do_without, next_step, voters_of};
pub use ids::{ClusterId, Epoch, IdError, NodeId, VolumeId};
pub use introduction::{Introduction, Joiner, Pledge};
pub use loss::{LOOK_AGAIN_MS, LossStep, Losses, Sights};
pub use protocol::{Protocol, Protocols, ProtocolsError};
pub use roster::{Belonging, Roster};
pub use state::{ClusterState, Layout, LayoutNode, Member, Part, Rebalance, Standing};
