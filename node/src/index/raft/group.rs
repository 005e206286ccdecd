//! The way into the Raft group of this node's cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use casbah_cluster::consensus::{Command, MemberCommand, ReadCall, Reply, TypeConfig};
use casbah_cluster::membership::{ClusterState, NodeId, Protocols};
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, InitializeError, RaftError};
use openraft::{ChangeMembers, Config, EmptyNode, RaftMetrics, SnapshotPolicy};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::index::raft::core::{Core, Raft, blocking, ended};
use crate::index::raft::error::GroupError;
use crate::index::raft::log::{self, Log};
use crate::index::raft::network::Network;
use crate::index::raft::state::{self, State};
use crate::index::raft::transport::Transport;
use crate::index::raft::watching::{self, Watching};
use crate::index::raft::{keeper, proposals, reads, snapshot, watched};
use crate::index::records::IndexCounts;

/// Every file that a group keeps in its node's directory.
pub const GROUP_FILES: [&str; 3] = [log::FILE, state::FILE, snapshot::INCOMING];

/// Entries of one message; [`casbah_cluster::consensus::ENTRY_BYTES_MAX`] bounds their bytes as well.
const ENTRIES_PER_MESSAGE: u64 = 300;

/// Entries that stay in the log although the state machine has them on disk, for followers that are a little behind.
pub(super) const ENTRIES_KEPT: u64 = 256;

/// What waits for openraft itself: proposals, reads and messages are bounded before they get there.
const RAFT_QUEUE: u64 = 1024;

/// How far a node may be behind to become a voter: it catches up with this in a moment.
const BEHIND_MAX: u64 = 1_000;

/// How long it is waited for to come so near.
const NEAR_WAIT: Duration = Duration::from_secs(2);

/// Entries of other nodes that are committed here at once; beyond this, they are told to come back.
const REMOTE_MAX: usize = 256;

/// How long a change of who votes is waited for: two entries, of which the first is confirmed by voters old and new.
const CHANGE_WAIT: Duration = Duration::from_secs(10);

/// How long a leader that stops waits for another one to take over.
const TRANSFER_WAIT: Duration = Duration::from_secs(2);

/// How long a node that stops waits for commands under way.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// What a group is opened with.
pub struct GroupOptions {
    /// Where its files are.
    pub dir: PathBuf,
    /// This node.
    pub node: NodeId,
    /// Assets that are kept at the most, where this node leads; the least recently used go first.
    pub capacity: u64,
    /// The way to the others.
    pub network: Arc<dyn Network>,
    /// How long things take.
    pub timing: Timing,
}

/// How long things take: shorter in tests.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Between two signs of life of a leader. Also the deadline of a message with entries, the other's fsync included.
    pub heartbeat: Duration,
    /// After this long without one, at the earliest, a follower asks for votes.
    pub election_min: Duration,
    /// And at the latest.
    pub election_max: Duration,
    /// How long commands and reads wait for a leader: longer than an election takes.
    pub leader_wait: Duration,
    /// How long a command that is being committed is waited for.
    pub proposal: Duration,
    /// How long the leader is waited for, to tell the position for reads.
    pub read_index: Duration,
    /// For each piece of a snapshot to be taken, and for the whole to be installed.
    pub snapshot: Duration,
    /// How often the state machine is forced to disk, when little happens: a restart applies again what is behind.
    pub durable_every: Duration,
    /// How often it is looked whether there is something to do.
    pub keep_every: Duration,
    /// The log is cut when it takes as much.
    pub log_bytes: u64,
    /// How often those who do not have the log are told that this node lives.
    pub sign: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            heartbeat: Duration::from_millis(300),
            // A follower waits out the lease of the leader that has gone, which is the longest of these, and then one of them
            // itself: 2.2 s at the most until there is another one.
            election_min: Duration::from_millis(700),
            election_max: Duration::from_millis(1100),
            leader_wait: Duration::from_secs(4),
            proposal: Duration::from_secs(5),
            read_index: Duration::from_secs(1),
            snapshot: Duration::from_secs(60),
            durable_every: Duration::from_secs(10),
            keep_every: Duration::from_secs(1),
            log_bytes: 64 << 20,
            sign: Duration::from_secs(1),
        }
    }
}

/// Where the reply to a command comes.
pub(in crate::index) type ReplyReceiver = oneshot::Receiver<Result<Reply, GroupError>>;

/// The Raft group, as this node is in it. Cheap to clone.
#[derive(Clone)]
pub struct Group {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) core: Arc<Core>,
    /// `None` once closed.
    proposals: Mutex<Option<mpsc::Sender<proposals::Waiting>>>,
    reads: mpsc::Sender<reads::Waiting>,
    pub(super) dir: PathBuf,
    /// One snapshot is taken in at a time.
    pub(super) receiving: tokio::sync::Mutex<()>,
    pub(super) remote: Semaphore,
    pub(super) reads_of_others: Semaphore,
    pub(super) watchers: Arc<Semaphore>,
    /// Ends the streams to those who watch.
    pub(super) closing: watch::Sender<bool>,
    /// Cut off when the last handle goes.
    tasks: Mutex<JoinSet<()>>,
    keeper: Mutex<JoinSet<()>>,
}

// === impl Group ===

impl Group {
    /// Opens the group in this directory, or makes an empty one, which is in no cluster until it is [formed](Group::form) or
    /// its leader adds this node.
    ///
    /// # Errors
    /// [`GroupError`] when the data is another node's, of another format, in use, or the disk fails.
    pub async fn open(options: GroupOptions) -> Result<Group, GroupError> {
        let GroupOptions { dir, node, capacity, network, timing } = options;
        let opened = dir.clone();
        let (log, state) = blocking(move || {
            snapshot::clean(&opened)?;
            Ok((Log::open(&opened, node)?, State::open(&opened)?))
        })
        .await?;
        let transport = Transport { node, network: Arc::clone(&network), snapshot_deadline: timing.snapshot };
        let raft = Raft::new(node.0, Arc::new(config(&timing)), transport, log.clone(), state.clone()).await;
        let raft = raft.map_err(|error| {
            tracing::error!(%error, "the group cannot start from what is on disk");
            GroupError::Failed
        })?;
        let watching = Watching::new(node);
        let core = Arc::new(Core { node, raft, log, state, network, timing, capacity, watching });
        // Nobody else could vote: there is nothing to wait for.
        if core.raft.voter_ids().eq([node.0]) {
            core.raft.trigger().elect(false).await.map_err(|error| ended(&error))?;
        }
        let (proposals, waiting) = mpsc::channel(proposals::WAITING_MAX);
        let (reads, reading) = mpsc::channel(reads::WAITING_MAX);
        let mut tasks = JoinSet::new();
        tasks.spawn(proposals::run(Arc::clone(&core), waiting));
        tasks.spawn(reads::run(Arc::clone(&core), reading));
        let mut keeper = JoinSet::new();
        keeper.spawn(watching::run(Arc::clone(&core)));
        keeper.spawn(keeper::run(Arc::clone(&core), proposals.clone()));
        Ok(Group {
            inner: Arc::new(Inner {
                core,
                proposals: Mutex::new(Some(proposals)),
                reads,
                dir,
                receiving: tokio::sync::Mutex::new(()),
                remote: Semaphore::new(REMOTE_MAX),
                reads_of_others: Semaphore::new(watched::READS_MAX),
                watchers: Arc::new(Semaphore::new(watched::WATCHERS_MAX)),
                closing: watch::Sender::new(false),
                tasks: Mutex::new(tasks),
                keeper: Mutex::new(keeper),
            }),
        })
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.inner.core.node
    }

    /// Forms the cluster with this node as its only voter. Does nothing when it has been formed.
    ///
    /// # Errors
    /// [`GroupError`] when it cannot be written; it may be formed all the same then, and this may be called again.
    pub async fn form(&self, state: ClusterState) -> Result<(), GroupError> {
        let core = &self.inner.core;
        let alone = BTreeMap::from([(core.node.0, EmptyNode {})]);
        match core.raft.initialize(alone).await {
            // It was before; the state may not have been written yet.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(RaftError::APIError(InitializeError::NotInMembers(_))) => return Err(GroupError::Failed),
            Err(RaftError::Fatal(fatal)) => return Err(ended(&fatal)),
        }
        self.propose(Command::Member(MemberCommand::Form { state })).await.map(|_| ())
    }

    /// Has a command committed and applied, by whoever leads.
    ///
    /// # Errors
    /// [`GroupError`]: nothing was done, except with [`GroupError::Unknown`].
    ///
    /// # Cancel safety
    /// Dropped half-way, it may or may not be done.
    pub async fn propose(&self, command: Command) -> Result<Reply, GroupError> {
        self.submit(command)?.await.unwrap_or(Err(GroupError::Closed))
    }

    /// The same, without waiting: what is submitted later comes later. Nobody has to wait for the reply.
    ///
    /// # Errors
    /// [`GroupError`] when it cannot even wait to be done.
    pub(in crate::index) fn submit(&self, command: Command) -> Result<ReplyReceiver, GroupError> {
        let protocol = self.inner.core.state.known().map_or(Protocols::SPOKEN.oldest, |(_, state)| state.protocol);
        proposals::check(&command, protocol)?;
        let (done, reply) = oneshot::channel();
        match self.inner.proposals.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(proposals) => {
                proposals.try_send(proposals::Waiting { command, done }).map_err(|error| match error {
                    mpsc::error::TrySendError::Full(_) => GroupError::Busy,
                    mpsc::error::TrySendError::Closed(_) => GroupError::Closed,
                })?;
            }
            None => return Err(GroupError::Closed),
        }
        Ok(reply)
    }

    /// Whether reads and commands of this node go by its own log. Otherwise others are asked, and of what is here only
    /// [`Group::state`] counts.
    #[must_use]
    pub fn has_log(&self) -> bool {
        self.inner.core.has_log()
    }

    /// Waits until what is known here of the cluster's state and, on a node that has the log, of assets has all that was
    /// acknowledged, by any node, before this was called.
    ///
    /// # Errors
    /// [`GroupError::NoLeader`] when no leader that a majority follows is found in time.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn linearizable(&self) -> Result<(), GroupError> {
        if self.reads_here().await? { Ok(()) } else { watching::catch_up(&self.inner.core).await }
    }

    /// The same, if it can be had by the log of this node; others have to be asked otherwise.
    ///
    /// # Errors
    /// [`GroupError::NoLeader`] as ever: what is known here may be behind.
    pub(in crate::index) async fn reads_here(&self) -> Result<bool, GroupError> {
        if !self.has_log() {
            return Ok(false);
        }
        match self.linearizable_here().await {
            Ok(()) => Ok(true),
            Err(GroupError::NoLog) => Ok(false),
            // It may have found out meanwhile.
            Err(GroupError::NoLeader) if !self.has_log() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until reads here see all that was acknowledged before, by the log of this node.
    ///
    /// # Errors
    /// [`GroupError::NoLeader`]; [`GroupError::NoLog`] when the log does not come in time.
    pub(super) async fn linearizable_here(&self) -> Result<(), GroupError> {
        let (done, index) = oneshot::channel();
        self.inner.reads.send(done).await.map_err(|_| GroupError::Closed)?;
        let index = index.await.unwrap_or(Err(GroupError::Closed))?;
        self.inner.core.applied(index).await
    }

    /// The record under this key, with all that was acknowledged before this was called.
    ///
    /// # Errors
    /// [`GroupError::NoLeader`] when no leader that a majority follows is found in time; others when the data fails.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, GroupError> {
        if self.reads_here().await? {
            return self.get_stale(key);
        }
        Ok(self.get_elsewhere([key], false).await?.into_iter().next().flatten())
    }

    /// Has a node that has the log tell the records under the first of these keys, one at least; stale ones may be behind what
    /// was acknowledged.
    ///
    /// # Errors
    /// [`GroupError::NoLeader`] when nobody can tell.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub(in crate::index) async fn get_elsewhere<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k [u8]>,
        is_stale: bool,
    ) -> Result<Vec<Option<Vec<u8>>>, GroupError> {
        let call = ReadCall::of(keys, is_stale);
        Ok(watching::read(&self.inner.core, &call).await?.records)
    }

    /// Another node has told this one of the cluster's state as of a position of the log. It stays known, also after a restart,
    /// unless something later is known already.
    ///
    /// # Errors
    /// [`GroupError::Record`] when it cannot be read.
    pub async fn heard(&self, position: u64, state: &[u8]) -> Result<(), GroupError> {
        self.inner.core.heard(position, state).await
    }

    /// The record under this key as far as it is known here, which may be behind. To be asked for where this node
    /// [has the log](Group::has_log).
    ///
    /// # Errors
    /// [`GroupError`] when the data fails.
    pub fn get_stale(&self, key: &[u8]) -> Result<Option<Vec<u8>>, GroupError> {
        self.inner.core.state.get(key)
    }

    /// What the nodes agree on about themselves, as far as it is known here and as it changes; `None` before this node has
    /// heard of a cluster that was formed.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<Option<Arc<ClusterState>>> {
        self.inner.core.state.cluster()
    }

    /// Whether this node leads, as far as it knows.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.inner.core.is_leader()
    }

    /// Who leads, as far as is known here.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.inner.core.leader()
    }

    /// The assets in numbers, as far as they are known here. May wait for the disk.
    #[must_use]
    pub fn counts(&self) -> IndexCounts {
        let counts = self.inner.core.state.counts();
        // What a node without the log has left of it says nothing.
        IndexCounts { records: counts.records.filter(|_| self.has_log()), ..counts }
    }

    /// The position of the log that [`Group::state`] is of, and that state.
    #[must_use]
    pub fn known(&self) -> Option<(u64, Arc<ClusterState>)> {
        self.inner.core.state.known()
    }

    /// Lets a node have the log without a vote. For the leader; does nothing when the node is in the group.
    ///
    /// # Errors
    /// [`GroupError`]; [`GroupError::Voters`] while another change is under way.
    pub async fn add_learner(&self, node: NodeId) -> Result<(), GroupError> {
        let core = &self.inner.core;
        if core.raft.metrics().borrow_watched().membership_config.get_node(&node.0).is_some() {
            return Ok(());
        }
        self.change(core.raft.add_learner(node.0, EmptyNode {}, false)).await
    }

    /// Makes these nodes, and no others, the voters, one at a time: each step is committed by a majority before the next one.
    /// Whoever loses the vote learns on. For the leader.
    ///
    /// # Errors
    /// [`GroupError`]; the steps before it remain done. [`GroupError::Voters`] when a node is not in the group, or is too far
    /// behind to vote.
    pub async fn change_voters(&self, target: &BTreeSet<NodeId>) -> Result<(), GroupError> {
        let core = &self.inner.core;
        if target.is_empty() {
            return Err(GroupError::Voters { reason: "somebody has to vote".into() });
        }
        loop {
            let voters: BTreeSet<NodeId> = core.raft.voter_ids().map(NodeId).collect();
            let change = if let Some(new) = target.difference(&voters).next() {
                self.keeps_up(*new).await?;
                ChangeMembers::AddVoterIds(BTreeSet::from([new.0]))
            } else if let Some(old) = voters.difference(target).next() {
                ChangeMembers::RemoveVoters(BTreeSet::from([old.0]))
            } else {
                return Ok(());
            };
            self.change(core.raft.change_membership(change, true)).await?;
        }
    }

    /// Takes a node that does not vote out of the group. For the leader.
    ///
    /// # Errors
    /// [`GroupError`]; [`GroupError::Voters`] when it votes.
    pub async fn remove_learner(&self, node: NodeId) -> Result<(), GroupError> {
        let core = &self.inner.core;
        if core.raft.metrics().borrow_watched().membership_config.get_node(&node.0).is_none() {
            return Ok(());
        }
        let change = ChangeMembers::RemoveNodes(BTreeSet::from([node.0]));
        self.change(core.raft.change_membership(change, false)).await
    }

    /// Waits for a change of who votes and learns, as long as for any command.
    async fn change<T>(&self, change: impl Future<Output = Result<T, ChangeError>>) -> Result<(), GroupError> {
        let Ok(outcome) = timeout(CHANGE_WAIT, change).await else { return Err(GroupError::Unknown) };
        match outcome {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(GroupError::NotLeader { leader: forward.leader_id.map(NodeId) })
            }
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => Err(GroupError::Unknown),
            Err(RaftError::APIError(error)) => Err(GroupError::Voters { reason: error.to_string().into() }),
            Err(RaftError::Fatal(fatal)) => Err(ended(&fatal)),
        }
    }

    /// Waits a little until a node is near enough to vote.
    async fn keeps_up(&self, node: NodeId) -> Result<(), GroupError> {
        let core = &self.inner.core;
        let behind = |metrics: &RaftMetrics<TypeConfig>| {
            let matched = metrics.replication.as_ref().and_then(|nodes| nodes.get(&node.0)).cloned().flatten()?;
            Some(metrics.last_log_index.unwrap_or(0).saturating_sub(matched.index()))
        };
        let is_near = |metrics: &RaftMetrics<TypeConfig>| {
            metrics.replication.is_none() || behind(metrics).is_some_and(|behind| behind <= BEHIND_MAX)
        };
        let waited = core.raft.wait(Some(NEAR_WAIT)).metrics(is_near, "a node that keeps up").await;
        let metrics = core.raft.metrics().borrow_watched().clone();
        if metrics.replication.is_none() {
            return Err(GroupError::NotLeader { leader: metrics.current_leader.map(NodeId) });
        }
        waited.map(|_| ()).map_err(|_| GroupError::Voters {
            reason: match behind(&metrics) {
                Some(behind) => format!("node {node} is {behind} entries behind").into(),
                None => format!("node {node} does not have the log yet").into(),
            },
        })
    }

    /// If this node leads and another can, has that one take over, and waits for it a little.
    ///
    /// # Errors
    /// [`GroupError`] when openraft has ended.
    pub async fn transfer_leadership(&self) -> Result<(), GroupError> {
        let core = &self.inner.core;
        let metrics = core.raft.metrics().borrow_watched().clone();
        let Some(replication) = metrics.replication.as_ref().filter(|_| self.is_leader()) else { return Ok(()) };
        let voters = metrics.membership_config.voter_ids().filter(|voter| *voter != core.node.0);
        let furthest = voters.max_by_key(|voter| replication.get(voter).cloned().flatten().map(|last| last.index()));
        match furthest {
            Some(next) => self.hand_over(NodeId(next)).await,
            None => Ok(()),
        }
    }

    /// Has another voter take over the lead, and waits for it a little. For the leader.
    ///
    /// # Errors
    /// [`GroupError::NotLeader`] when this node does not lead, [`GroupError::Voters`] when the other one does not vote, or has not
    /// taken over in time: then who leads is decided by an election, if this node cannot go on.
    pub async fn hand_over(&self, to: NodeId) -> Result<(), GroupError> {
        let core = &self.inner.core;
        if !self.is_leader() {
            return Err(GroupError::NotLeader { leader: self.leader() });
        }
        if to == core.node {
            return Ok(());
        }
        if !core.raft.voter_ids().any(|voter| voter == to.0) {
            return Err(GroupError::Voters { reason: format!("node {to} does not vote").into() });
        }
        let next = to.0;
        core.raft.trigger().transfer_leader(next).await.map_err(|fatal| ended(&fatal))?;
        let gone = async {
            let mut metrics = core.raft.server_metrics();
            while metrics.borrow_and_update().current_leader == Some(core.node.0) {
                if metrics.changed().await.is_err() {
                    break;
                }
            }
        };
        if timeout(TRANSFER_WAIT, gone).await.is_err() {
            tracing::warn!(to = next, "nobody has taken over the lead of the group in time; its voters will elect");
            return Err(GroupError::Voters { reason: format!("node {to} has not taken over in time").into() });
        }
        Ok(())
    }

    /// Finishes what is under way, hands the lead over, and ends. What is called later fails with [`GroupError::Closed`].
    pub async fn close(&self) {
        let Inner { core, proposals, tasks, keeper, closing, .. } = &*self.inner;
        closing.send_replace(true);
        let mut keeper = std::mem::take(&mut *keeper.lock().unwrap_or_else(PoisonError::into_inner));
        keeper.shutdown().await;
        // Dropping the last sender ends the task when everything is answered.
        drop(proposals.lock().unwrap_or_else(PoisonError::into_inner).take());
        let mut tasks = std::mem::take(&mut *tasks.lock().unwrap_or_else(PoisonError::into_inner));
        if timeout(CLOSE_WAIT, tasks.join_next()).await.is_err() {
            tracing::warn!("commands under way took too long and were cut off");
        }
        if let Err(error) = self.transfer_leadership().await {
            tracing::debug!(%error, "the lead of the group was not handed over");
        }
        tasks.shutdown().await;
        if let Err(error) = core.raft.shutdown().await {
            tracing::error!(%error, "the group did not end well");
        }
        let (log, state) = (core.log.clone(), core.state.clone());
        let end = blocking(move || {
            state.make_durable()?;
            log.close();
            Ok(())
        });
        if let Err(error) = end.await {
            tracing::error!(%error, "the group's data could not be closed");
        }
    }
}

type ChangeError = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;

fn config(timing: &Timing) -> Config {
    let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Config {
        cluster_name: "casbah".into(),
        heartbeat_interval: milliseconds(timing.heartbeat),
        election_timeout_min: milliseconds(timing.election_min),
        election_timeout_max: milliseconds(timing.election_max),
        install_snapshot_timeout: milliseconds(timing.snapshot),
        max_payload_entries: ENTRIES_PER_MESSAGE,
        max_in_snapshot_log_to_keep: ENTRIES_KEPT,
        // By bytes as well, so the keeper decides.
        snapshot_policy: SnapshotPolicy::Never,
        api_channel_size: Some(RAFT_QUEUE),
        // A node that was cut off does not raise the term when it comes back.
        enable_pre_vote: Some(true),
        // After a restart, what of the log is committed is known from an election only.
        enable_leader_restore: Some(false),
        ..Config::default()
    }
}
