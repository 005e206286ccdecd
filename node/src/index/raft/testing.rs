//! Groups of several nodes in one process, on a network that can be cut, slowed and made to lose what it carries.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use casbah_cluster::consensus::Command;
use casbah_cluster::membership::{ClusterId, ClusterState, Epoch, Layout, NodeId, Protocols, Rebalance};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use openraft::async_runtime::watch::WatchReceiver as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;

use super::error::GroupError;
use super::group::{Group, GroupOptions, Timing};
use super::log;
use super::network::{Network, NetworkError, RaftCall, WatchParts};
use super::state;

/// What every wait of a test ends at: far above what any takes.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// Short, and long enough for a machine that is busy with other things.
pub(super) fn timing() -> Timing {
    Timing {
        heartbeat: Duration::from_millis(150),
        election_min: Duration::from_millis(400),
        election_max: Duration::from_millis(800),
        leader_wait: Duration::from_secs(5),
        proposal: Duration::from_secs(3),
        read_index: Duration::from_secs(1),
        snapshot: Duration::from_secs(20),
        durable_every: Duration::from_secs(10),
        keep_every: Duration::from_millis(50),
        log_bytes: 64 << 20,
        sign: Duration::from_millis(100),
    }
}

/// What lies between the nodes.
#[derive(Clone)]
pub(super) struct Wires {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    groups: BTreeMap<NodeId, Group>,
    cut: BTreeSet<(NodeId, NodeId)>,
    /// How many calls of a hundred are lost on their way, there or back.
    lost_percent: u32,
    /// The longest time that a call takes on top.
    delay: Duration,
    random: StdRng,
    /// Who has begun to watch whom, in this order.
    streams: Vec<(NodeId, NodeId)>,
}

/// What becomes of one call.
enum Fate {
    Arrives(Group),
    /// Nobody is there.
    Refused,
    LostThere,
    LostBack(Group),
}

/// One node's end of the wires.
struct Port {
    node: NodeId,
    wires: Wires,
}

// === impl Wires ===

impl Wires {
    pub(super) fn new(seed: u64) -> Wires {
        let inner = Inner {
            groups: BTreeMap::new(),
            cut: BTreeSet::new(),
            lost_percent: 0,
            delay: Duration::ZERO,
            random: StdRng::seed_from_u64(seed),
            streams: Vec::new(),
        };
        Wires { inner: Arc::new(Mutex::new(inner)) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Whom this node watched last.
    pub(super) fn watched_by(&self, node: NodeId) -> Option<NodeId> {
        self.lock().streams.iter().rev().find(|(from, _)| *from == node).map(|(_, to)| *to)
    }

    /// Between these and all others, both ways, nothing arrives any more.
    pub(super) fn isolate(&self, nodes: &[NodeId]) {
        let mut inner = self.lock();
        let all: Vec<NodeId> = inner.groups.keys().copied().collect();
        for one in nodes {
            for other in all.iter().filter(|node| !nodes.contains(node)) {
                inner.cut.insert((*one, *other));
                inner.cut.insert((*other, *one));
            }
        }
    }

    /// Between these and those, both ways, nothing arrives any more.
    pub(super) fn cut_between(&self, these: &[NodeId], those: &[NodeId]) {
        let mut inner = self.lock();
        for one in these {
            for other in those {
                inner.cut.insert((*one, *other));
                inner.cut.insert((*other, *one));
            }
        }
    }

    pub(super) fn heal(&self) {
        let mut inner = self.lock();
        inner.cut.clear();
        inner.lost_percent = 0;
        inner.delay = Duration::ZERO;
    }

    pub(super) fn trouble(&self, lost_percent: u32, delay: Duration) {
        let mut inner = self.lock();
        inner.lost_percent = lost_percent;
        inner.delay = delay;
    }

    fn fate(&self, from: NodeId, to: NodeId) -> (Duration, Fate) {
        let mut inner = self.lock();
        let longest = u64::try_from(inner.delay.as_micros()).unwrap();
        let delay = Duration::from_micros(inner.random.random_range(0..=longest));
        let is_lost = inner.random.random_range(0..100) < inner.lost_percent;
        let is_lost_there = inner.random.random_bool(0.5);
        let fate = match inner.groups.get(&to) {
            _ if inner.cut.contains(&(from, to)) => Fate::LostThere,
            Some(_) if is_lost && is_lost_there => Fate::LostThere,
            Some(group) if is_lost => Fate::LostBack(group.clone()),
            Some(group) => Fate::Arrives(group.clone()),
            None => Fate::Refused,
        };
        (delay, fate)
    }
}

fn failed(node: NodeId, error: GroupError) -> NetworkError {
    NetworkError::Failed { node, source: Box::new(error) }
}

#[tonic::async_trait]
impl Network for Port {
    async fn call(
        &self,
        target: NodeId,
        call: RaftCall,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, NetworkError> {
        let (delay, fate) = self.wires.fate(self.node, target);
        let outcome = async {
            // why: it is the network's delay, not a wait for something.
            tokio::time::sleep(delay).await;
            match fate {
                Fate::Arrives(group) => group.answer(call, payload).await.map_err(|error| failed(target, error)),
                Fate::Refused => Err(NetworkError::Unreachable {
                    node: target,
                    source: Box::new(io::Error::other("nobody is there")),
                }),
                Fate::LostThere => std::future::pending().await,
                Fate::LostBack(group) => {
                    drop(group.answer(call, payload).await);
                    std::future::pending().await
                }
            }
        };
        tokio::time::timeout(deadline, outcome).await.unwrap_or(Err(NetworkError::TimedOut { node: target }))
    }

    async fn watch(&self, target: NodeId) -> Result<WatchParts, NetworkError> {
        let (delay, fate) = self.wires.fate(self.node, target);
        // why: it is the network's delay, not a wait for something.
        tokio::time::sleep(delay).await;
        let group = match fate {
            Fate::Arrives(group) => group,
            Fate::Refused => {
                let source = Box::new(io::Error::other("nobody is there"));
                return Err(NetworkError::Unreachable { node: target, source });
            }
            Fate::LostThere | Fate::LostBack(_) => return std::future::pending().await,
        };
        let parts = group.watch().map_err(|error| failed(target, error))?;
        self.wires.lock().streams.push((self.node, target));
        let (wires, from) = (self.wires.clone(), self.node);
        // What is cut is lost, and the stream with it, which nobody tells; one of a node that was killed breaks.
        let parts = parts.map(move |part| (part, wires.clone())).then(move |(part, wires)| async move {
            if wires.lock().cut.contains(&(target, from)) {
                return std::future::pending().await;
            }
            let lives = wires.lock().groups.contains_key(&target);
            if lives { Ok(part) } else { Err(NetworkError::TimedOut { node: target }) }
        });
        Ok(parts.boxed())
    }

    async fn send_snapshot(
        &self,
        target: NodeId,
        head: Bytes,
        data: BoxStream<'static, io::Result<Bytes>>,
        deadline: Duration,
    ) -> Result<Bytes, NetworkError> {
        let Fate::Arrives(group) = self.wires.fate(self.node, target).1 else {
            return Err(NetworkError::TimedOut { node: target });
        };
        let (wires, from) = (self.wires.clone(), self.node);
        let data = data.map(move |piece| match wires.lock().cut.contains(&(from, target)) {
            true => Err(io::Error::other("cut")),
            false => piece,
        });
        let outcome = group.answer_snapshot(head, data);
        match tokio::time::timeout(deadline, outcome).await {
            Ok(outcome) => outcome.map_err(|error| failed(target, error)),
            Err(_) => Err(NetworkError::TimedOut { node: target }),
        }
    }
}

/// Some nodes.
pub(super) struct Nodes {
    pub(super) wires: Wires,
    folders: BTreeMap<NodeId, TempDir>,
    timing: Timing,
}

// === impl Nodes ===

impl Nodes {
    pub(super) fn new(seed: u64, timing: Timing) -> Nodes {
        Nodes { wires: Wires::new(seed), folders: BTreeMap::new(), timing }
    }

    /// This many voters, 1 and so on.
    pub(super) async fn formed(count: u64, seed: u64, timing: Timing) -> Nodes {
        let mut nodes = Nodes::new(seed, timing);
        let first = nodes.start(NodeId(1)).await;
        first.form(cluster()).await.unwrap();
        for node in 2..=count {
            nodes.start(NodeId(node)).await;
            first.add_learner(NodeId(node)).await.unwrap();
            nodes.until_as_far(NodeId(node), NodeId(1)).await;
        }
        first.change_voters(&(1..=count).map(NodeId).collect()).await.unwrap();
        nodes
    }

    /// Starts a node on what it has, or on nothing.
    pub(super) async fn start(&mut self, node: NodeId) -> Group {
        self.start_with_capacity(node, 1_000_000).await
    }

    pub(super) async fn start_with_capacity(&mut self, node: NodeId, capacity: u64) -> Group {
        let folder = self.folders.entry(node).or_insert_with(|| tempfile::tempdir().unwrap());
        let network = Arc::new(Port { node, wires: self.wires.clone() });
        let (dir, timing) = (folder.path().to_owned(), self.timing);
        let group = Group::open(GroupOptions { dir, node, capacity, network, timing }).await.unwrap();
        self.wires.lock().groups.insert(node, group.clone());
        group
    }

    pub(super) fn get(&self, node: NodeId) -> Group {
        self.wires.lock().groups.get(&node).unwrap().clone()
    }

    pub(super) fn running(&self) -> Vec<NodeId> {
        self.wires.lock().groups.keys().copied().collect()
    }

    /// Ends a node as a kill would: what it has not forced to disk is gone.
    pub(super) async fn kill(&mut self, node: NodeId) {
        let group = self.wires.lock().groups.remove(&node).unwrap();
        group.inner.core.raft.shutdown().await.unwrap();
        group.inner.core.log.close();
        let copy = tempfile::tempdir().unwrap();
        let folder = self.folders.get(&node).unwrap();
        for file in [log::FILE, state::FILE] {
            std::fs::copy(folder.path().join(file), copy.path().join(file)).unwrap();
        }
        drop(group);
        self.folders.insert(node, copy);
    }

    /// Takes what a node has on disk. It must not run.
    pub(super) fn wipe(&mut self, node: NodeId) {
        self.folders.remove(&node);
    }

    /// Ends a node as it should.
    pub(super) async fn stop(&mut self, node: NodeId) {
        let group = self.wires.lock().groups.remove(&node).unwrap();
        group.close().await;
    }

    /// Whom most of the running nodes follow, once they do.
    pub(super) async fn leader(&self, among: &[NodeId]) -> NodeId {
        let first = self.get(*among.first().unwrap());
        let mut metrics = first.inner.core.raft.server_metrics();
        let waited = async {
            loop {
                let leader = metrics.borrow_and_update().current_leader.map(NodeId);
                if let Some(leader) = leader.filter(|leader| among.contains(leader))
                    && self.get(leader).is_leader()
                {
                    return leader;
                }
                // It may have changed elsewhere without a change here.
                drop(tokio::time::timeout(Duration::from_millis(50), metrics.changed()).await);
            }
        };
        tokio::time::timeout(DEADLINE, waited).await.expect("no leader was elected in time")
    }

    /// Waits until reads on one node see what those on the other do now.
    pub(super) async fn until_as_far(&self, one: NodeId, other: NodeId) {
        let target = *self.get(other).inner.core.state.applied().borrow();
        let mut applied = self.get(one).inner.core.state.applied();
        let reached = applied.wait_for(|last| *last >= target);
        tokio::time::timeout(DEADLINE, reached).await.expect("a node did not catch up in time").unwrap();
    }
}

/// A state for a cluster; who is in it is of no concern here.
pub(super) fn cluster() -> ClusterState {
    ClusterState {
        id: ClusterId([7; 16]),
        name: "test".into(),
        copies: 2,
        write_quorum: 2,
        protocol: Protocols::SPOKEN.newest,
        next_node_id: NodeId(2),
        expected_members: 0,
        rebalance: Rebalance::Automatic,
        planned: Epoch::default(),
        members: BTreeMap::new(),
        layouts: vec![Layout { epoch: Epoch(1), nodes: BTreeMap::new() }],
    }
}

pub(super) async fn put(group: &Group, key: &str, value: &str) -> Result<(), GroupError> {
    for command in Command::put_assets(vec![key.into()], value.as_bytes(), None) {
        group.propose(command).await?;
    }
    Ok(())
}

pub(super) async fn get(group: &Group, key: &str) -> Result<Option<String>, GroupError> {
    Ok(group.get(key.as_bytes()).await?.map(|value| String::from_utf8(value).unwrap()))
}

pub(super) fn stale(group: &Group, key: &str) -> Option<String> {
    group.get_stale(key.as_bytes()).unwrap().map(|value| String::from_utf8(value).unwrap())
}
