//! What the admin port is told of the cluster: the view, the health of the others, and the Raft group.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use casbah_cluster::digest::Digest;
use casbah_cluster::membership::{LayoutNode, Member, NodeId, Part, Rebalance, Standing};
use casbah_cluster::ring::{PARTITIONS, partition_of};
use casbah_cluster::view::View;
use futures_util::future::join_all;
use tokio::sync::watch;

use crate::forward::{CLOCK_SKEW_MAX_MS, Peers};
use crate::index::{Group, Role};
use crate::observe::cluster::{
    Cluster, ClusterMember, Copy, Holder, Layouts, MemberNumbers, Raft, Ring, Share, Whereabouts,
};
use crate::observe::orders::{Order, OrderError};
use crate::repair::Repair;
use crate::run::membership::{Place, repair_from_message};
use crate::store::{Presence, Store};

/// A node whose heartbeats take so long is slow.
const SLOW_AFTER: Duration = Duration::from_millis(400);

/// What knows of the cluster.
#[derive(Clone)]
pub(super) struct ClusterSight {
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) group: Group,
    pub(super) peers: Peers,
    pub(super) store: Store,
    pub(super) repair: Repair,
    pub(super) place: Place,
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
            protocol: state.protocol.0,
            waits: state.waits_to_be_applied().then_some(state.planned.0),
            members: state.members.iter().map(member).collect(),
            raft: self.raft(),
            repair: self.repair.progress(),
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
        let report = if is_self { None } else { self.peers.report(id) };
        let said = report.as_ref().map(|report| report.program_version.clone()).filter(|version| !version.is_empty());
        let part = match member.part {
            Part::Voter => "voter",
            Part::Learner => "learner",
            Part::Watcher => "watcher",
        };
        let standing = match member.standing {
            Standing::Serving => "serving",
            Standing::Draining => "draining",
            Standing::Lost => "lost",
        };
        ClusterMember {
            id: id.0,
            name: member.name.clone(),
            address: member.address.clone(),
            zone: member.zone.clone(),
            weight: member.weight,
            part: part.to_owned(),
            standing: standing.to_owned(),
            holds: view.state().holds_blobs(id),
            ailment: self.ailment(id, is_self),
            protocols: member.protocols.to_string(),
            program: if is_self { Some(env!("CARGO_PKG_VERSION").to_owned()) } else { said },
            is_self,
            reachable: is_self || health.reachable,
            writable: if is_self { store.read_only.is_none() } else { health.writable },
            draining: !is_self && health.draining,
            latency_ms: (!is_self && !health.latency.is_zero())
                .then(|| (health.latency.as_secs_f64() * 1e6).round() / 1e3),
            partitions: partitions.unwrap_or(0),
            numbers,
            repair: match is_self {
                true => Some(self.repair.progress()),
                false => report.and_then(|report| report.repair).map(repair_from_message),
            },
        }
    }

    /// What ails a member: by its own word, or else by what is seen of it.
    fn ailment(&self, id: NodeId, is_self: bool) -> Option<String> {
        if is_self {
            return self.place.condition().ailment().map(str::to_owned);
        }
        if !self.peers.hears(id) {
            return None;
        }
        let own_word = self.peers.report(id).map(|report| report.ailment).filter(|ailment| !ailment.is_empty());
        own_word.or_else(|| {
            let apart = self.peers.clock_apart(id);
            let latency = self.peers.health(id).latency;
            if apart.as_millis() > u128::from(CLOCK_SKEW_MAX_MS) {
                Some(format!("its clock and this node's differ by {} s", apart.as_secs()))
            } else {
                (latency > SLOW_AFTER).then(|| format!("it is slow to answer: {} ms", latency.as_millis()))
            }
        })
    }

    /// How blobs are placed, and how they would be.
    pub(super) fn layouts(&self) -> Layouts {
        let view = self.view.borrow().clone();
        let state = view.state();
        let share =
            |(id, node): (&NodeId, &LayoutNode)| Share { id: id.0, zone: node.zone.clone(), weight: node.weight };
        Layouts {
            epoch: view.epoch().0,
            planned: state.planned.0,
            copies: state.copies,
            on_apply: state.rebalance == Rebalance::OnApply,
            now: state.layouts.last().map_or_else(Vec::new, |layout| layout.nodes.iter().map(share).collect()),
            next: state.proposed().iter().map(share).collect(),
        }
    }

    /// Does something to the cluster.
    pub(super) async fn carry_out(&self, order: Order) -> Result<(), OrderError> {
        self.place.carry_out(&self.group, order).await
    }

    fn raft(&self) -> Raft {
        let status = self.group.status();
        let role = match status.role {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Learner => "learner",
            Role::Watcher => "watcher",
            Role::Stopped => "stopped",
        };
        let ids = |nodes: &std::collections::BTreeSet<NodeId>| nodes.iter().map(|node| node.0).collect();
        Raft {
            role: role.to_owned(),
            term: (status.role != Role::Watcher).then_some(status.term),
            leader: status.leader.map(|node| node.0),
            last_log: status.last_log,
            committed: status.committed,
            applied: status.applied.unwrap_or(0),
            snapshot: status.snapshot,
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
                    true => self.store.look_up(std::slice::from_ref(digest), false).first().copied(),
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
                        Some(Presence::Here) => Copy::Present,
                        Some(Presence::Absent) => Copy::Absent,
                        Some(Presence::Unsure) | None => Copy::Unknown,
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
