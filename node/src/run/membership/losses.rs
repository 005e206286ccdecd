//! Who reaches whom, and members that nobody has reached for long.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Duration;

use casbah_cluster::consensus::{MemberCommand, MemberReply};
use casbah_cluster::membership::{ClusterState, LossStep, Losses, NodeId, Sights};

use super::place::Place;
use crate::config::limits::AWAY_AFTER;
use crate::forward::CLOCK_SKEW_MAX_MS;
use crate::index::{Group, GroupError};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// Who reaches whom, and who has been out of reach.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    losses: Losses,
    sights: Sights,
}

impl Place {
    /// Looks around, for as long as this runs. It does not end by itself, and waits for nobody.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub(super) async fn look_around(&self, group: Group) {
        loop {
            let state = group.state().borrow().clone();
            if let Some(state) = state {
                self.look(group.node(), &state);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Takes note of who reaches whom, and lets the others know what is known here.
    fn look(&self, here: NodeId, state: &ClusterState) {
        let peers = &self.inner.peers;
        let (now_ms, away_ms) = (self.now_ms(), u64::try_from(AWAY_AFTER.as_millis()).unwrap_or(u64::MAX));
        let others = || state.members.keys().copied().filter(|node| *node != here);
        let reached: BTreeSet<NodeId> = {
            let mut heard_ms = self.inner.heard_ms.lock().unwrap_or_else(PoisonError::into_inner);
            heard_ms.retain(|node, _| state.members.contains_key(node));
            // A node that asks is there, even if it cannot be asked.
            let asks = |node: &NodeId| heard_ms.get(node).is_some_and(|heard| now_ms.saturating_sub(*heard) < away_ms);
            others().filter(|node| peers.hears(*node) || asks(node)).collect()
        };
        let heard: Vec<NodeId> = others().filter(|node| peers.hears(*node)).collect();
        let is_apart = |node: &&NodeId| peers.clock_apart(**node).as_millis() > u128::from(CLOCK_SKEW_MAX_MS);
        let apart = heard.iter().filter(is_apart).count();
        self.condition().hears_from(reached.clone(), apart > heard.len() / 2);
        let theirs = |node: NodeId| {
            let report = peers.report(node)?;
            Some((node, report.reaches.into_iter().map(NodeId).collect()))
        };
        let mut sights: Sights = heard.into_iter().filter_map(theirs).collect();
        sights.insert(here, reached);
        let mut seen = self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.losses.look(state, &sights, now_ms);
        seen.sights = sights;
    }

    /// Gives up or takes back a member, if that is due. For the leader.
    pub(super) async fn mind_losses(&self, group: &Group, state: &ClusterState) -> Result<(), GroupError> {
        let Some(lost_after) = self.inner.config.lost_after else { return Ok(()) };
        let lost_after_ms = u64::try_from(lost_after.as_millis()).unwrap_or(u64::MAX);
        let voters = group.status().voters;
        let Seen { losses, sights } = self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let step = losses.next_step(state, group.node(), &voters, &sights, lost_after_ms);
        let (node, command) = match step {
            None => return Ok(()),
            Some(LossStep::Lost(node)) => (node, MemberCommand::Lost { node }),
            Some(LossStep::Returned(node)) => (node, MemberCommand::Returned { node }),
        };
        let name = state.members.get(&node).map_or("", |member| member.name.as_str());
        match (self.change(group, command).await?, step) {
            (MemberReply::Refused(refusal), _) => tracing::warn!(%node, name, %refusal, "a node is not given up"),
            (_, Some(LossStep::Lost(_))) => {
                let seconds = losses.silent_ms(node).unwrap_or_default() / 1000;
                tracing::warn!(%node, name, seconds, "nobody has reached a node for long: it is given up, and its part goes to others");
            }
            _ => tracing::info!(%node, name, "a node that was given up is back, and gets its part again"),
        }
        Ok(())
    }
}
