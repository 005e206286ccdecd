//! What the admin port is told of the cluster: the view, the health of the others, and the Raft group.

use std::collections::BTreeMap;
use std::sync::Arc;

use casbah_cluster::digest::Digest;
use casbah_cluster::membership::{Member, NodeId, Part};
use casbah_cluster::ring::{PARTITIONS, partition_of};
use casbah_cluster::view::View;
use futures_util::future::join_all;
use tokio::sync::watch;

use crate::forward::Peers;
use crate::index::{Group, Role};
use crate::observe::cluster::{Cluster, ClusterMember, Copy, Holder, MemberNumbers, Raft, Ring, Whereabouts};
use crate::store::Store;

/// What knows of the cluster.
#[derive(Clone)]
pub(super) struct ClusterSight {
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) group: Group,
    pub(super) peers: Peers,
    pub(super) store: Store,
}

// === impl ClusterSight ===

impl ClusterSight {
    /// The cluster, as this node sees it.
    pub(super) fn cluster(&self) -> Cluster {
        let view = self.view.borrow().clone();
        let state = view.state();
        let owned = owned(&view);
        let member = |(id, member): (&NodeId, &Member)| self.member(&view, *id, member, owned.get(id).copied());
        Cluster {
            id: state.id.to_string(),
            name: state.name.clone(),
            node_id: view.self_id().0,
            epoch: view.epoch().0,
            epochs: state.layouts.iter().map(|layout| layout.epoch.0).collect(),
            copies: u8::try_from(view.copies()).unwrap_or(u8::MAX),
            write_quorum: u8::try_from(view.write_quorum()).unwrap_or(u8::MAX),
            members: state.members.iter().map(member).collect(),
            raft: self.raft(),
        }
    }

    fn member(&self, view: &View, id: NodeId, member: &Member, partitions: Option<u64>) -> ClusterMember {
        let is_self = id == view.self_id();
        let health = self.peers.health(id);
        let store = self.store.status();
        let numbers = match is_self {
            true => Some(MemberNumbers {
                blobs: store.blobs,
                used_bytes: store.bytes,
                capacity_bytes: store.capacity_bytes,
                epoch: view.epoch().0,
            }),
            false => self.peers.report(id).map(|report| MemberNumbers {
                blobs: report.blobs,
                used_bytes: report.used_bytes,
                capacity_bytes: report.capacity_bytes,
                epoch: report.epoch,
            }),
        };
        let part = match member.part {
            Part::Voter => "voter",
            Part::Learner => "learner",
            Part::Watcher => "watcher",
        };
        ClusterMember {
            id: id.0,
            name: member.name.clone(),
            address: member.address.clone(),
            zone: member.zone.clone(),
            weight: member.weight,
            part: part.to_owned(),
            is_self,
            reachable: is_self || health.reachable,
            writable: if is_self { store.read_only.is_none() } else { health.writable },
            draining: !is_self && health.draining,
            latency_ms: (!is_self && !health.latency.is_zero())
                .then(|| (health.latency.as_secs_f64() * 1e6).round() / 1e3),
            partitions: partitions.unwrap_or(0),
            numbers,
        }
    }

    fn raft(&self) -> Raft {
        let status = self.group.status();
        let role = match status.role {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Learner => "learner",
            Role::Watcher => "none",
            Role::Stopped => "stopped",
        };
        let ids = |nodes: &std::collections::BTreeSet<NodeId>| nodes.iter().map(|node| node.0).collect();
        Raft {
            role: role.to_owned(),
            term: status.term,
            leader: status.leader.map(|node| node.0),
            last_log: status.last_log.unwrap_or(0),
            committed: status.committed.unwrap_or(0),
            applied: status.applied.unwrap_or(0),
            snapshot: status.snapshot.unwrap_or(0),
            voters: ids(&status.voters),
            learners: ids(&status.learners),
        }
    }

    /// Which node owns what, by the newest layout.
    pub(super) fn ring(&self) -> Ring {
        let view = self.view.borrow().clone();
        let owners = |partition| {
            let placement = view.placements().first();
            placement.map_or_else(Vec::new, |placement| placement.owners(partition).iter().map(|id| id.0).collect())
        };
        Ring {
            epoch: view.epoch().0,
            copies: u8::try_from(view.copies()).unwrap_or(u8::MAX),
            partitions: (0..PARTITIONS).map(owners).collect(),
        }
    }

    /// Which nodes have a copy of a blob, by asking all that may, which is no use of it.
    pub(super) async fn whereabouts(&self, digest: &Digest) -> Whereabouts {
        let view = self.view.borrow().clone();
        let partition = partition_of(digest);
        let ask = |id: NodeId| {
            let view = &view;
            async move {
                let answer = match id == view.self_id() {
                    true => Some(self.store.contains(digest)),
                    false => {
                        let found = self.peers.find(id, std::slice::from_ref(digest), false).await.ok();
                        found.and_then(|found| found.first().copied())
                    }
                };
                Holder {
                    id: id.0,
                    name: view.member(id).map_or_else(String::new, |member| member.name.clone()),
                    owner: view.owns(id, partition),
                    copy: match answer {
                        Some(true) => Copy::Present,
                        Some(false) => Copy::Absent,
                        None => Copy::Unknown,
                    },
                }
            }
        };
        let nodes = join_all(view.candidates(partition).iter().map(|id| ask(*id))).await;
        Whereabouts { digest: digest.to_string(), partition: partition as u64, nodes }
    }
}

/// How many partitions each node owns by the newest layout.
fn owned(view: &View) -> BTreeMap<NodeId, u64> {
    let mut owned = BTreeMap::new();
    let Some(placement) = view.placements().first() else { return owned };
    for owner in (0..PARTITIONS).flat_map(|partition| placement.owners(partition)) {
        *owned.entry(*owner).or_default() += 1;
    }
    owned
}
