//! What people have done to the cluster: each order becomes a command of the log.

use std::time::Duration;

use casbah_cluster::consensus::{MemberCommand, MemberReply};
use casbah_cluster::membership::{Epoch, NodeId};

use super::place::Place;
use crate::index::{Group, GroupError};
use crate::observe::orders::{Order, OrderError};
use crate::observe::with_causes;

/// How long an order waits until what it has changed is known to all of this node: a moment.
const KNOWN_PATIENCE: Duration = Duration::from_secs(1);

impl Place {
    /// Does something to the cluster, and waits until it is agreed on and known here.
    ///
    /// # Errors
    /// [`OrderError`].
    pub(in crate::run) async fn carry_out(&self, group: &Group, order: Order) -> Result<(), OrderError> {
        tracing::info!(?order, "somebody has something done to the cluster");
        let command = match order {
            Order::Drain { node } => MemberCommand::Drain { node: NodeId(node) },
            Order::Undrain { node } => MemberCommand::Undrain { node: NodeId(node) },
            Order::Remove { node, force } => MemberCommand::Remove { node: NodeId(node), force },
            Order::Apply { epoch } => MemberCommand::Apply { epoch: Epoch(epoch) },
            Order::Lead { node } => return group.hand_over(NodeId(node)).await.map_err(refused),
        };
        let refusal = match self.change(group, command).await.map_err(|error| not_now(&error))? {
            MemberReply::Refused(refusal) => refusal,
            _ => {
                group.linearizable().await.map_err(|error| not_now(&error))?;
                // So that whoever looks here next sees it.
                let (state, mut view) = (group.state(), self.view());
                let is_known = view.wait_for(|view| state.borrow().as_deref() == Some(view.state()));
                let in_time = tokio::time::timeout(KNOWN_PATIENCE, is_known).await.is_ok();
                tracing::debug!(in_time, "it is done");
                return Ok(());
            }
        };
        Err(OrderError::Refused { reason: refusal.to_string() })
    }
}

/// Of a hand-over: that the other one cannot lead will not be otherwise soon.
fn refused(error: GroupError) -> OrderError {
    match error {
        GroupError::NotLeader { leader } => {
            let reason = match leader {
                Some(leader) => format!("node {leader} leads, and only it can hand over: ask it"),
                None => "nobody leads".to_owned(),
            };
            OrderError::Refused { reason }
        }
        GroupError::Voters { reason } => OrderError::Refused { reason: reason.to_string() },
        error => not_now(&error),
    }
}

fn not_now(error: &GroupError) -> OrderError {
    OrderError::NotNow { reason: with_causes(error) }
}
