//! What other nodes ask of this one about the cluster, and the group's messages before there is a group.

use std::io;
use std::sync::PoisonError;

use bytes::Bytes;
use casbah_cluster::consensus::{MemberCommand, MemberReply};
use casbah_cluster::membership::{ClusterState, NodeId};
use casbah_proto::peer::v1 as api;
use futures_util::stream::BoxStream;

use super::place::Place;
use super::words;
use crate::index::{GroupError, RaftCall, WatchPart};
use crate::observe::with_causes;
use crate::serve::peer::{Members, MembersError, RaftGroup};

#[tonic::async_trait]
impl Members for Place {
    fn introduce(&self, _other: api::Introduction) -> api::Introduction {
        words::to_message(&self.introduction(), &self.inner.config)
    }

    async fn join(&self, other: api::Introduction) -> Result<api::JoinResponse, MembersError> {
        let misfit = |reason: String| MembersError::Misfit { reason };
        let Some(group) = self.group() else { return Err(MembersError::NoCluster) };
        let other = words::from_message(other).ok_or_else(|| misfit("its ids cannot be read".to_owned()))?;
        let not_now = |error: &GroupError| MembersError::NotNow { reason: with_causes(error) };
        // So that what is decided by is not older than what the node was told before.
        group.linearizable().await.map_err(|error| not_now(&error))?;
        let state = group.state().borrow().clone().ok_or(MembersError::NoCluster)?;
        if other.cluster_name != state.name {
            return Err(misfit(format!("it is of \"{}\", and this cluster is \"{}\"", other.cluster_name, state.name)));
        }
        let known = state.by_volume(other.joiner.volume);
        let is_as_known = known.is_some_and(|(_, member)| member.is_as(&other.joiner));
        if !is_as_known {
            // A member of the same name with another directory makes room if it is gone.
            let replaces = self.gone(&state, &other.joiner.name);
            let command = MemberCommand::Admit { joiner: other.joiner.clone(), replaces };
            match self.change(group, command).await.map_err(|error| not_now(&error))? {
                MemberReply::Refused(refusal) => return Err(misfit(refusal.to_string())),
                reply => tracing::info!(name = other.joiner.name, ?reply, "a node was let into the cluster"),
            }
        }
        // Whoever has committed it, what is known here has it as well.
        group.linearizable().await.map_err(|error| not_now(&error))?;
        let (position, state) = group.known().ok_or(MembersError::NoCluster)?;
        let id = state.by_volume(other.joiner.volume).map(|(id, _)| id);
        let again = || MembersError::NotNow { reason: "it has been taken out again meanwhile".to_owned() };
        let encoded = state.encode();
        let encoded = encoded.map_err(|error| MembersError::NotNow { reason: error.to_string() })?;
        Ok(api::JoinResponse {
            cluster_id: state.id.0.to_vec().into(),
            node_id: id.ok_or_else(again)?.0,
            state: encoded.into(),
            position,
        })
    }

    fn report(&self) -> api::NodeReport {
        self.condition().report()
    }

    fn heard(&self, node: NodeId, _report: api::NodeReport) {
        let now_ms = self.now_ms();
        self.inner.heard_ms.lock().unwrap_or_else(PoisonError::into_inner).insert(node, now_ms);
    }
}

impl Place {
    /// The member of this name, if it does not answer.
    fn gone(&self, state: &ClusterState, name: &str) -> Option<NodeId> {
        let (namesake, _) = state.by_name(name)?;
        let is_there =
            self.group().is_some_and(|group| group.node() == namesake) || self.inner.peers.health(namesake).reachable;
        (!is_there).then_some(namesake)
    }
}

#[tonic::async_trait]
impl RaftGroup for Place {
    async fn answer(&self, call: RaftCall, payload: Bytes) -> Result<Bytes, GroupError> {
        match self.group() {
            Some(group) => group.answer(call, payload).await,
            None => Err(GroupError::NoLeader),
        }
    }

    fn watch(&self) -> Result<BoxStream<'static, WatchPart>, GroupError> {
        match self.group() {
            Some(group) => group.watch(),
            None => Err(GroupError::NoLog),
        }
    }

    async fn install_snapshot(
        &self,
        head: Bytes,
        data: BoxStream<'static, io::Result<Bytes>>,
    ) -> Result<Bytes, GroupError> {
        match self.group() {
            Some(group) => group.answer_snapshot(head, data).await,
            None => Err(GroupError::NoLeader),
        }
    }
}
