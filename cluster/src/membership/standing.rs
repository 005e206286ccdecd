//! How members come to hold blobs, and to hold none: asked to leave, lost, back again; and changes that wait to be applied.

use super::change::Refusal;
use super::ids::{Epoch, NodeId};
use super::state::{ClusterState, Member, Rebalance, Standing};

impl ClusterState {
    /// Asks a node to leave: it is in no further layout, and what it has goes to others. A lost one stays lost, and is asked
    /// when it returns.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub fn drain(&mut self, node: NodeId) -> Result<(), Refusal> {
        let standing = self.known(node)?.standing;
        if self.layouts.is_empty() {
            return Err(Refusal::Forming);
        }
        if standing == Standing::Serving {
            self.leaves_others(node)?;
        }
        self.change(node, |member| {
            member.leaves = true;
            if member.standing == Standing::Serving {
                member.standing = Standing::Draining;
            }
        })
    }

    /// Has a node stay that was asked to leave.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub fn undrain(&mut self, node: NodeId) -> Result<(), Refusal> {
        self.change(node, |member| {
            member.leaves = false;
            if member.standing == Standing::Draining {
                member.standing = Standing::Serving;
            }
        })
    }

    /// Gives up a node that has been gone for long: others are given what it had, and nobody waits for it.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then. So many must be left that writes can be acknowledged with all their copies: that so
    /// many nodes are gone at one time is no loss of nodes, but of the way to them.
    pub fn lost(&mut self, node: NodeId) -> Result<(), Refusal> {
        match self.known(node)?.standing {
            Standing::Lost => return Ok(()),
            Standing::Draining => {}
            Standing::Serving => {
                if self.layouts.is_empty() {
                    return Err(Refusal::Forming);
                }
                let left = self.leaves_others(node)?;
                if left < usize::from(self.write_quorum) {
                    return Err(Refusal::TooFewLeft { node, left, write_quorum: self.write_quorum });
                }
            }
        }
        self.change(node, |member| member.standing = Standing::Lost)
    }

    /// A node that was given up is there again. It is filled as a new one is, with what it still has in the bargain.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub fn returned(&mut self, node: NodeId) -> Result<(), Refusal> {
        self.change(node, |member| {
            if member.standing == Standing::Lost {
                member.standing = if member.leaves { Standing::Draining } else { Standing::Serving };
            }
        })
    }

    /// Makes the layout of all that waits, if it is the one that was planned: `epoch` is what it was planned as.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub fn apply(&mut self, epoch: Epoch) -> Result<(), Refusal> {
        if !self.has_changes() {
            return Err(Refusal::NothingToApply);
        }
        if epoch != self.planned {
            return Err(Refusal::StalePlan { epoch, planned: self.planned });
        }
        let before = self.proposed();
        self.place_all();
        self.settle(&before);
        Ok(())
    }

    /// Whether members are configured otherwise than the newest layout has them: what [`apply`](ClusterState::apply) would
    /// change, or what waits for an older layout to be retired.
    pub fn has_changes(&self) -> bool {
        let newest = self.layouts.last();
        newest.is_some_and(|layout| layout.nodes != self.proposed())
    }

    /// Whether somebody has to apply what has changed.
    pub fn waits_to_be_applied(&self) -> bool {
        self.rebalance == Rebalance::OnApply && !self.layouts.is_empty() && self.wanted() != self.proposed()
    }

    fn known(&self, node: NodeId) -> Result<&Member, Refusal> {
        self.members.get(&node).ok_or(Refusal::UnknownNode { node })
    }

    fn change(&mut self, node: NodeId, change: impl FnOnce(&mut Member)) -> Result<(), Refusal> {
        let before = self.proposed();
        change(self.members.get_mut(&node).ok_or(Refusal::UnknownNode { node })?);
        self.settle(&before);
        Ok(())
    }
}
