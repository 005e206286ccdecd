//! The results of actions on this node, for other nodes.

use casbah_cluster::digest::Digest;
use casbah_cluster::membership::NodeId;
use casbah_cluster::replication::Version;
use casbah_proto::peer::v1 as api;
use tonic::{Request, Response, Status};

use crate::forward::digest_from_message;
use crate::index::ActionIndex;
use crate::serve::status_map;

/// The Actions service.
pub(super) struct Actions {
    pub(super) results: ActionIndex,
}

#[tonic::async_trait]
impl api::actions_server::Actions for Actions {
    async fn get(&self, request: Request<api::GetActionRequest>) -> Result<Response<api::GetActionResponse>, Status> {
        let request = request.into_inner();
        let (instance, action) = key(request.key)?;
        let found = self.results.get(&instance, &action).map_err(|error| status_map::index(&error))?;
        let Some((version, result)) = found else {
            return Err(Status::not_found(format!("there is no result of the action {action}")));
        };
        if request.touch {
            self.results.used(&instance, &action);
        }
        let Version { time_ms, count, node } = version;
        let version = Some(api::Version { time_ms, count, node_id: node.0 });
        Ok(Response::new(api::GetActionResponse { version, result }))
    }

    async fn put(&self, request: Request<api::PutActionRequest>) -> Result<Response<api::PutActionResponse>, Status> {
        let api::PutActionRequest { key: named, version, result } = request.into_inner();
        let (instance, action) = key(named)?;
        let version = version.ok_or_else(|| Status::invalid_argument("a result without a version"))?;
        let version = Version { time_ms: version.time_ms, count: version.count, node: NodeId(version.node_id) };
        let kept = self.results.put_if_newer(&instance, &action, version, result).await;
        kept.map_err(|error| status_map::index(&error))?;
        Ok(Response::new(api::PutActionResponse {}))
    }
}

fn key(key: Option<api::ActionKey>) -> Result<(String, Digest), Status> {
    let key = key.ok_or_else(|| Status::invalid_argument("a result without its action"))?;
    let action = key.action.as_ref().and_then(digest_from_message);
    let action = action.ok_or_else(|| Status::invalid_argument("an action whose digest is none"))?;
    Ok((key.instance_name, action))
}
