//! All services for other nodes, behind the check of what each call says of itself.

use std::sync::Arc;

use casbah_cluster::membership::{Protocols, Roster};
use casbah_proto::peer::v1::actions_server::ActionsServer;
use casbah_proto::peer::v1::inventories_server::InventoriesServer;
use casbah_proto::peer::v1::membership_server::MembershipServer;
use casbah_proto::peer::v1::raft_server::RaftServer;
use tokio::sync::watch;
use tonic::service::Routes;

use crate::config::limits;
use crate::index::ActionIndex;
use crate::observe::labels::Traffic;
use crate::serve::admission::{Admission, Bounds as AdmissionBounds, Door, Entry};
use crate::serve::peer::actions::Actions;
use crate::serve::peer::blobs::Blobs;
use crate::serve::peer::gate::Gate;
use crate::serve::peer::inventories::Inventories;
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
    /// What this node speaks.
    pub spoken: Protocols,
    /// What calls of other nodes may hold.
    pub memory_bytes: u64,
}

/// The services for other nodes.
pub fn services(parts: Parts) -> Gate<Entry<Routes>> {
    let Parts { store, results, group, members, roster, spoken, memory_bytes } = parts;
    let inventories = InventoriesServer::new(Inventories::new(store.clone(), results.clone()))
        .max_decoding_message_size(limits::PEER_MESSAGE_BYTES)
        .max_encoding_message_size(limits::PEER_MESSAGE_BYTES);
    let actions = ActionsServer::new(Actions { results })
        .max_decoding_message_size(limits::PEER_MESSAGE_BYTES)
        .max_encoding_message_size(limits::PEER_MESSAGE_BYTES);
    let raft = RaftServer::new(Raft { group })
        .max_decoding_message_size(limits::PEER_MESSAGE_BYTES)
        .max_encoding_message_size(limits::PEER_MESSAGE_BYTES);
    let membership =
        MembershipServer::new(Membership { members }).max_encoding_message_size(limits::PEER_MESSAGE_BYTES);
    let mut routes = Routes::builder();
    routes.add_service(Blobs::new(store)).add_service(actions).add_service(inventories);
    routes.add_service(raft).add_service(membership);
    let bounds = AdmissionBounds { memory_bytes, waiting: limits::PEER_WAITING_MAX, patience: limits::PEER_PATIENCE };
    let admission = Admission::new(Traffic::Nodes, bounds);
    Gate::new(Entry::new(routes.routes(), Door::Nodes, admission, limits::PEER_WRITE_STALL), roster, spoken)
}
