//! What a member does about the group: keeps what is known of itself right, and, while it leads, who votes and who learns.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use casbah_cluster::consensus::{MemberCommand, MemberReply};
use casbah_cluster::membership::{
    ClusterState, FIRST_LAYOUT_PATIENCE_MS, GroupStep, LEARNERS_MAX, NodeId, VOTER_LOST_AFTER_MS, next_step,
};

use super::place::Place;
use crate::index::{Group, GroupError};

/// Between two looks. A fresh cluster takes a step or two for each node.
const PAUSE: Duration = Duration::from_millis(500);

/// Before a node tells its cluster again what the cluster did not take.
const REFUSED_PAUSE_MS: u64 = 60_000;

/// Between two steps, when there is one after the other.
const STEP_PAUSE: Duration = Duration::from_millis(50);

impl Place {
    /// Looks after the group, for as long as this runs. It does not end by itself.
    ///
    /// # Cancel safety
    /// May be dropped: a step that is under way is done or not.
    pub(in crate::run) async fn look_after(&self, group: Group) {
        // When each node was heard from last, by this node's clock.
        let mut heard_ms: BTreeMap<NodeId, u64> = BTreeMap::new();
        // Since when it leads, without a break.
        let mut leads_since_ms = None;
        // Until when the cluster is not told of this node's configuration again.
        let mut tell_again_ms = 0;
        loop {
            let state = group.state().borrow().clone();
            let mut pause = PAUSE;
            if let Some(state) = state {
                self.note_who_is_there(&state, &mut heard_ms);
                if self.now_ms() >= tell_again_ms {
                    match self.stay_as_configured(&group, &state).await {
                        Ok(true) => {}
                        Ok(false) => tell_again_ms = self.now_ms() + REFUSED_PAUSE_MS,
                        Err(error) => {
                            tracing::debug!(%error, "the cluster was not told of this node's configuration yet")
                        }
                    }
                }
                if !group.is_leader() {
                    leads_since_ms = None;
                } else {
                    let since_ms = *leads_since_ms.get_or_insert(self.now_ms());
                    if let Err(error) = self.begin_without_the_others(&group, &state, since_ms).await {
                        tracing::debug!(%error, "the first layout was not made yet");
                    }
                    if let Err(error) = self.mind_losses(&group, &state).await {
                        tracing::debug!(%error, "a node that is lost or back was not noted yet");
                    }
                    match self.step(&group, &state, &heard_ms).await {
                        Ok(true) => pause = STEP_PAUSE,
                        Ok(false) => {}
                        Err(error) => tracing::debug!(%error, "the group was not changed yet"),
                    }
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn note_who_is_there(&self, state: &ClusterState, heard_ms: &mut BTreeMap<NodeId, u64>) {
        let now_ms = self.now_ms();
        heard_ms.retain(|node, _| state.members.contains_key(node));
        for node in state.members.keys() {
            if self.inner.peers.health(*node).reachable || !heard_ms.contains_key(node) {
                heard_ms.insert(*node, now_ms);
            }
        }
    }

    /// Makes the first layout of those who have come, if the others do not for long.
    async fn begin_without_the_others(
        &self,
        group: &Group,
        state: &ClusterState,
        leads_since_ms: u64,
    ) -> Result<(), GroupError> {
        let has_waited = self.now_ms().saturating_sub(leads_since_ms) >= FIRST_LAYOUT_PATIENCE_MS;
        if state.layouts.is_empty() && has_waited {
            let (here, expected) = (state.members.len(), state.expected_members);
            tracing::warn!(here, expected, "not all nodes that were expected have come; blobs are placed without them");
            self.change(group, MemberCommand::Begin).await?;
        }
        Ok(())
    }

    /// Tells the cluster when this node's address, zone, weight or name is not what it knows; whether it takes it.
    async fn stay_as_configured(&self, group: &Group, state: &ClusterState) -> Result<bool, GroupError> {
        let joiner = &self.inner.joiner;
        let Some(member) = state.members.get(&group.node()) else { return Ok(true) };
        if member.is_as(joiner) {
            return Ok(true);
        }
        let command = MemberCommand::Admit { joiner: joiner.clone(), replaces: None };
        if let MemberReply::Refused(refusal) = self.change(group, command).await? {
            tracing::warn!(%refusal, "the cluster does not take this node's configuration; it keeps the old one");
            return Ok(false);
        }
        Ok(true)
    }

    /// One step, if one is due.
    async fn step(
        &self,
        group: &Group,
        state: &ClusterState,
        heard_ms: &BTreeMap<NodeId, u64>,
    ) -> Result<bool, GroupError> {
        let now_ms = self.now_ms();
        let lately = |heard_ms: u64| now_ms.saturating_sub(heard_ms) < VOTER_LOST_AFTER_MS;
        let mut alive: BTreeSet<NodeId> =
            heard_ms.iter().filter(|(_, heard_ms)| lately(**heard_ms)).map(|(node, _)| *node).collect();
        alive.insert(group.node());
        let status = group.status();
        let learners_max = usize::try_from(self.inner.config.learners).unwrap_or(LEARNERS_MAX);
        let (voters, learners) = (&status.voters, &status.learners);
        let Some(step) = next_step(state, group.node(), voters, learners, &alive, learners_max) else {
            return Ok(false);
        };
        tracing::debug!(?step, "the group changes");
        match step {
            GroupStep::AddLearner(node) => group.add_learner(node).await?,
            GroupStep::RemoveLearner(node) => group.remove_learner(node).await?,
            GroupStep::AddVoter(node) => {
                let voters = status.voters.iter().copied().chain([node]).collect();
                group.change_voters(&voters).await?;
            }
            GroupStep::RemoveVoter(node) => {
                let voters = status.voters.iter().copied().filter(|voter| *voter != node).collect();
                group.change_voters(&voters).await?;
            }
            GroupStep::HandOver(node) => group.hand_over(node).await?,
            GroupStep::Record(node, part) => {
                self.change(group, MemberCommand::SetPart { node, part }).await?;
            }
        }
        Ok(true)
    }
}
