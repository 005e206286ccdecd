//! What people have done to the cluster: each order becomes a command of the log.

use std::collections::BTreeSet;
use std::time::Duration;

use casbah_cluster::consensus::{MemberCommand, MemberReply};
use casbah_cluster::membership::{Epoch, NodeId, Part, can_do_without};

use super::place::Place;
use crate::index::{Group, GroupError};
use crate::observe::orders::{Order, OrderError};
use crate::observe::with_causes;

/// How long an order waits until what it has changed is known to all of this node: a moment.
const KNOWN_PATIENCE: Duration = Duration::from_secs(1);

/// How often an order is given to the group while its leader changes.
const ATTEMPTS: u32 = 3;

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
        if let MemberCommand::Remove { node, .. } = command {
            self.leaves_a_majority(group, node)?;
        }
        for attempt in 1..=ATTEMPTS {
            let refusal = match self.change(group, command.clone()).await {
                Ok(MemberReply::Refused(refusal)) => refusal,
                Ok(_) => return self.is_known(group).await,
                // A leader that is to leave hands over: what it was asked last may be done or not. To do it again does no harm.
                Err(GroupError::Unknown) if attempt < ATTEMPTS => continue,
                Err(error) => return Err(not_now(&error)),
            };
            if attempt > 1 && self.is_done(group, &command).await? {
                return self.is_known(group).await;
            }
            return Err(OrderError::Refused { reason: refusal.to_string() });
        }
        Err(not_now(&GroupError::Unknown))
    }

    /// Whether the group could decide without this node, as far as is known here.
    fn leaves_a_majority(&self, group: &Group, node: NodeId) -> Result<(), OrderError> {
        let Some(state) = group.state().borrow().clone() else { return Ok(()) };
        let members = || state.members.iter().filter(|(_, member)| member.part == Part::Voter);
        let voters: BTreeSet<NodeId> = members().map(|(voter, _)| *voter).collect();
        let is_alive = |voter: NodeId| voter == group.node() || self.inner.peers.health(voter).reachable;
        if !voters.contains(&node) || can_do_without(&voters, node, is_alive) {
            return Ok(());
        }
        let gone = members().filter(|(voter, _)| **voter != node && !is_alive(**voter));
        let gone: Vec<&str> = gone.map(|(_, member)| member.name.as_str()).collect();
        let reason = format!(
            "without node {node} the others could agree on nothing any more, as these do not answer: {}. Start them again, or others in \
             their place, first",
            gone.join(", ")
        );
        Err(OrderError::Refused { reason })
    }

    /// Whether a command that is refused when it comes again has been done before.
    async fn is_done(&self, group: &Group, command: &MemberCommand) -> Result<bool, OrderError> {
        group.linearizable().await.map_err(|error| not_now(&error))?;
        let state = group.state().borrow().clone();
        Ok(state.is_some_and(|state| match command {
            MemberCommand::Remove { node, .. } => !state.members.contains_key(node),
            MemberCommand::Apply { epoch } => state.layouts.iter().any(|layout| layout.epoch == *epoch),
            _ => false,
        }))
    }

    /// Waits until whoever looks here next sees what was done.
    async fn is_known(&self, group: &Group) -> Result<(), OrderError> {
        match tokio::time::timeout(KNOWN_PATIENCE, self.know_all(group)).await {
            Ok(known) => known.map_err(|error| not_now(&error)),
            Err(_) => Ok(()),
        }
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
