//! Who this node is, how it is, and who is let in, for other nodes.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use casbah_cluster::membership::NodeId;
use casbah_proto::peer::v1 as api;
use tonic::{Request, Response, Status};

use crate::serve::peer::gate::Caller;
use crate::serve::status_map;

/// What decides who belongs to the cluster.
#[tonic::async_trait]
pub trait Members: Send + Sync {
    /// Who this node is; another one has said who it is.
    fn introduce(&self, other: api::Introduction) -> api::Introduction;

    /// Lets a node in. Returns when a committed entry says so.
    ///
    /// # Errors
    /// [`MembersError`] when it is not let in, or cannot be now.
    async fn join(&self, other: api::Introduction) -> Result<api::JoinResponse, MembersError>;

    /// How this node is.
    fn report(&self) -> api::NodeReport;

    /// A member has said how it is.
    fn heard(&self, node: NodeId, report: api::NodeReport);
}

/// Why a node is not let in, or is not told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembersError {
    /// The two do not fit together: another name, other settings, another version. It will not be otherwise later.
    #[error("the node does not fit into this cluster: {reason}")]
    Misfit {
        /// In a sentence.
        reason: String,
    },
    /// This node is in no cluster.
    #[error("this node is in no cluster")]
    NoCluster,
    /// There is no leader that could let it in, or it did not do so in time. Worth another try.
    #[error("nobody can be let in now: {reason}")]
    NotNow {
        /// In a sentence.
        reason: String,
    },
}

/// The Membership service.
pub(super) struct Membership {
    pub(super) members: Arc<dyn Members>,
}

#[tonic::async_trait]
impl api::membership_server::Membership for Membership {
    async fn introduce(
        &self,
        request: Request<api::IntroduceRequest>,
    ) -> Result<Response<api::IntroduceResponse>, Status> {
        let other = request.into_inner().introduction.ok_or_else(|| nobody("introduces"))?;
        Ok(Response::new(api::IntroduceResponse { introduction: Some(self.members.introduce(other)) }))
    }

    async fn join(&self, request: Request<api::JoinRequest>) -> Result<Response<api::JoinResponse>, Status> {
        let other = request.into_inner().introduction.ok_or_else(|| nobody("joins"))?;
        let joined = self.members.join(other).await;
        Ok(Response::new(joined.map_err(|error| status_map::members(&error))?))
    }

    async fn heartbeat(
        &self,
        request: Request<api::HeartbeatRequest>,
    ) -> Result<Response<api::HeartbeatResponse>, Status> {
        let caller = request.extensions().get::<Caller>().copied();
        if let (Some(Caller(node)), Some(report)) = (caller, request.into_inner().report) {
            self.members.heard(node, report);
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        Ok(Response::new(api::HeartbeatResponse { time_ms, report: Some(self.members.report()) }))
    }
}

fn nobody(what: &str) -> Status {
    Status::invalid_argument(format!("nobody {what}: the request does not say who"))
}
