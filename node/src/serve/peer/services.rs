//! All services for other nodes, behind the check of what each call says of itself.

use std::sync::Arc;

use casbah_cluster::membership::Roster;
use casbah_proto::peer::v1::actions_server::ActionsServer;
use casbah_proto::peer::v1::membership_server::MembershipServer;
use casbah_proto::peer::v1::raft_server::RaftServer;
use tokio::sync::watch;
use tonic::service::Routes;

use crate::config::limits;
use crate::index::ActionIndex;
use crate::serve::peer::actions::Actions;
use crate::serve::peer::blobs::Blobs;
use crate::serve::peer::gate::Gate;
use crate::serve::peer::membership::{Members, Membership};
use crate::serve::peer::raft::{Raft, RaftGroup};
use crate::store::Store;

/// What the services work on.
pub struct Parts {
    /// The blobs of this node.
    pub store: Store,
    /// The results of actions of this node.
    pub results: ActionIndex,
    /// This node's part in the Raft group.
    pub group: Arc<dyn RaftGroup>,
    /// What decides who belongs to the cluster.
    pub members: Arc<dyn Members>,
    /// Who does.
    pub roster: watch::Receiver<Arc<Roster>>,
}

/// The services for other nodes.
pub fn services(parts: Parts) -> Gate<Routes> {
    let Parts { store, results, group, members, roster } = parts;
    let actions = ActionsServer::new(Actions { results })
        .max_decoding_message_size(limits::PEER_MESSAGE_BYTES)
        .max_encoding_message_size(limits::PEER_MESSAGE_BYTES);
    let raft = RaftServer::new(Raft { group })
        .max_decoding_message_size(limits::PEER_MESSAGE_BYTES)
        .max_encoding_message_size(limits::PEER_MESSAGE_BYTES);
    let membership =
        MembershipServer::new(Membership { members }).max_encoding_message_size(limits::PEER_MESSAGE_BYTES);
    let mut routes = Routes::builder();
    routes.add_service(Blobs::new(store)).add_service(actions).add_service(raft).add_service(membership);
    Gate::new(routes.routes(), roster)
}
