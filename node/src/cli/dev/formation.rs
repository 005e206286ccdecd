//! Waiting until the nodes have become one cluster, which they tell on their admin ports.

use std::time::Duration;

use casbah_cluster::membership::voters_of;

use super::layout::NodeLayout;
use crate::cli::http;
use crate::config::ListenAddress;
use crate::observe::cluster::Cluster;
use crate::observe::snapshot::Snapshot;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Returns when every node knows all others and who leads them, and as many vote as are to: from then on one may be killed. Never
/// returns when that does not come to be.
pub(super) async fn wait(nodes: &[NodeLayout]) {
    for node in nodes {
        while !ask(node.ports.admin).await.is_some_and(|cluster| is_whole(&cluster, nodes.len())) {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn is_whole(cluster: &Cluster, nodes: usize) -> bool {
    let at_hand = cluster.members.iter().filter(|member| member.is_self || member.reachable).count();
    at_hand >= nodes && cluster.raft.leader.is_some() && cluster.raft.voters.len() >= voters_of(nodes)
}

/// The cluster as this node sees it, if it is in one.
async fn ask(admin: u16) -> Option<Cluster> {
    let address = ListenAddress { host: "localhost".into(), port: admin };
    let answer = tokio::task::spawn_blocking(move || http::get(&address, "/status.json")).await.ok()?.ok()?;
    serde_json::from_str::<Snapshot>(&answer.body).ok()?.cluster
}
