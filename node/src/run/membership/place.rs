//! What this node knows of its place in a cluster, now and as it changes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use casbah_cluster::consensus::{Command, MemberCommand, MemberReply, Reply};
use casbah_cluster::membership::{
    Certainty, ClusterState, Formation, Introduction, Joiner, NodeId, Protocol, Protocols, Rebalance, Refusal, Roster,
};
use casbah_cluster::view::View;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::condition::Condition;
use super::identity::{Identity, IdentityError, Membership};
use super::losses::Seen;
use super::words;
use crate::config::{ClusterConfig, Config, ListenAddress, RebalancePolicy};
use crate::forward::{Discovery, Peers};
use crate::index::{Group, GroupError, GroupOptions, Network, Timing};
use crate::repair::{Tell, TellError};

/// How often and how long the log of a process that is ending is waited for: five seconds in all.
const PREDECESSOR_ATTEMPTS: usize = 250;
const PREDECESSOR_PAUSE: Duration = Duration::from_millis(20);

/// Between two lines of the log about what a node waits for: what it waits for may change with every answer.
const LOG_PAUSE: Duration = Duration::from_secs(5);

/// Why a node has no place.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Its directory does not say who it is.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its log cannot be used.
    #[error("cannot open the log of the cluster")]
    Group(#[from] GroupError),
    /// Its cluster does not let it in.
    #[error("the cluster does not let this node in")]
    Refused(#[from] Refusal),
    /// Its cluster works by a version that it does not speak: the program is too old for it, or too new.
    #[error("the cluster works by version {protocol} of the peer protocol, and this program speaks {spoken}")]
    OtherVersion {
        /// The cluster's.
        protocol: Protocol,
        /// This program's.
        spoken: Protocols,
    },
}

/// What a place is made of.
pub(in crate::run) struct PlaceParts<'a> {
    pub(in crate::run) config: &'a Config,
    /// What this node speaks.
    pub(in crate::run) spoken: Protocols,
    /// How this node is.
    pub(in crate::run) condition: Condition,
    /// The port for peers that is listened on, where there is one.
    pub(in crate::run) peer_port: Option<u16>,
    /// The way to nodes that are not known yet; `None` where there is no way to others.
    pub(in crate::run) discovery: Option<Discovery>,
    /// The way to the others, which follows the roster.
    pub(in crate::run) peers: Peers,
    /// Who belongs to the cluster, as it becomes known here.
    pub(in crate::run) roster: watch::Sender<Arc<Roster>>,
}

/// This node's place in a cluster. Cheap to clone.
#[derive(Clone)]
pub(in crate::run) struct Place {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) dir: PathBuf,
    pub(super) config: ClusterConfig,
    pub(super) joiner: Joiner,
    pub(super) seeds: Vec<ListenAddress>,
    pub(super) discovery: Option<Discovery>,
    pub(super) peers: Peers,
    index_capacity: u64,
    started: Instant,
    identity: Mutex<Identity>,
    /// While it has no cluster.
    formation: Mutex<Option<Formation>>,
    group: OnceLock<Group>,
    roster: watch::Sender<Arc<Roster>>,
    view: watch::Sender<Arc<View>>,
    /// When each node has asked this one how it is last, by this node's clock.
    pub(super) heard_ms: Mutex<BTreeMap<NodeId, u64>>,
    /// Who reaches whom, at the last look around.
    pub(super) seen: Mutex<Seen>,
    /// Whether it may go by what it knows, by this node's clock.
    pub(super) certainty: watch::Sender<Certainty>,
    /// What it waits for, for people.
    waiting: Mutex<Waiting>,
    condition: Condition,
}

#[derive(Default)]
struct Waiting {
    what: Option<String>,
    logged: Option<Instant>,
}

// === impl Place ===

impl Place {
    /// The place of this directory, as far as it is known without asking anybody.
    ///
    /// # Errors
    /// [`IdentityError`] when the directory does not say who it is.
    pub(in crate::run) fn new(parts: PlaceParts<'_>) -> Result<Place, IdentityError> {
        let PlaceParts { config, spoken, condition, peer_port, discovery, peers, roster } = parts;
        let dir = config.node.dir.clone();
        let identity = Identity::of(&dir)?;
        let peers_config = config.peers.as_ref().zip(peer_port);
        let joiner = words::joiner(config, peers_config, identity.volume, spoken);
        let formation = identity.member.is_none().then(|| {
            let own = Introduction {
                cluster_name: config.cluster.name.clone(),
                joiner: joiner.clone(),
                bootstrap_expect: config.cluster.bootstrap_expect,
                identity: None,
                pledge: None,
                fresh_peers: std::collections::BTreeSet::new(),
            };
            Formation::new(own, identity.pledge.clone())
        });
        let lost_after_ms = config.cluster.lost_after.and_then(|after| u64::try_from(after.as_millis()).ok());
        let inner = Inner {
            dir,
            config: config.cluster.clone(),
            joiner,
            seeds: config.cluster.join.clone(),
            discovery,
            peers,
            index_capacity: config.index.capacity,
            started: Instant::now(),
            identity: Mutex::new(identity),
            formation: Mutex::new(formation),
            group: OnceLock::new(),
            roster,
            view: watch::Sender::new(Arc::new(View::none())),
            heard_ms: Mutex::default(),
            seen: Mutex::default(),
            certainty: watch::Sender::new(Certainty::new(lost_after_ms)),
            waiting: Mutex::default(),
            condition,
        };
        Ok(Place { inner: Arc::new(inner) })
    }

    /// Milliseconds on a clock that never goes back.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.inner.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn identity(&self) -> MutexGuard<'_, Identity> {
        self.inner.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn formation(&self) -> MutexGuard<'_, Option<Formation>> {
        self.inner.formation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its part in the Raft group, once it has one.
    pub(super) fn group(&self) -> Option<&Group> {
        self.inner.group.get()
    }

    /// What it says of itself now.
    pub(super) fn introduction(&self) -> Introduction {
        if let Some(formation) = &*self.formation() {
            return formation.introduction();
        }
        let identity = self.identity();
        Introduction {
            cluster_name: self.inner.config.name.clone(),
            joiner: self.inner.joiner.clone(),
            bootstrap_expect: 0,
            identity: identity.member.map(|member| (member.cluster, member.node)),
            pledge: None,
            fresh_peers: std::collections::BTreeSet::new(),
        }
    }

    /// What the node waits for, in words; `None` when it waits for nothing.
    pub(in crate::run) fn waiting(&self) -> Option<String> {
        self.inner.waiting.lock().unwrap_or_else(PoisonError::into_inner).what.clone()
    }

    /// Says what the node waits for, and writes it to the log when it is another thing than before, now and then.
    pub(super) fn waits_for(&self, what: Option<String>) {
        let mut waiting = self.inner.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.what == what {
            return;
        }
        if let Some(what) = &what
            && waiting.logged.is_none_or(|logged| logged.elapsed() >= LOG_PAUSE)
        {
            tracing::info!("waiting for {what}");
            waiting.logged = Some(Instant::now());
        }
        waiting.what = what;
    }

    /// The cluster as it is known here, now and later.
    pub(in crate::run) fn view(&self) -> watch::Receiver<Arc<View>> {
        self.inner.view.subscribe()
    }

    /// How this node is.
    pub(in crate::run) fn condition(&self) -> &Condition {
        &self.inner.condition
    }

    /// Opens the group of a node that is in a cluster.
    pub(super) async fn open_group(&self, node: NodeId) -> Result<Group, GroupError> {
        let network: Arc<dyn Network> = Arc::new(self.inner.peers.clone());
        let open = || {
            Group::open(GroupOptions {
                dir: self.inner.dir.clone(),
                node,
                capacity: self.inner.index_capacity,
                network: Arc::clone(&network),
                timing: Timing::default(),
            })
        };
        for _ in 0..PREDECESSOR_ATTEMPTS {
            match open().await {
                // The process that had the directory before is in the middle of its end.
                Err(GroupError::InUse) => tokio::time::sleep(PREDECESSOR_PAUSE).await,
                outcome => return outcome,
            }
        }
        open().await
    }

    /// From now on the node is a member, by what is on its disk.
    pub(super) async fn settle(&self, member: Membership) -> Result<Group, PlaceError> {
        let group = self.open_group(member.node).await?;
        if let Some(state) = &*group.state().borrow() {
            self.speaks(state.protocol)?;
        }
        if member.founder && group.state().borrow().is_none() {
            let config = &self.inner.config;
            let state = ClusterState::formed(
                member.cluster,
                config.name.clone(),
                (config.copies, config.write_quorum),
                config.bootstrap_expect,
                self.inner.joiner.clone(),
            );
            let rebalance = match config.rebalance {
                RebalancePolicy::Automatic => Rebalance::Automatic,
                RebalancePolicy::OnApply => Rebalance::OnApply,
            };
            group.form(ClusterState { rebalance, ..state }).await?;
        }
        Ok(self.inner.group.get_or_init(|| group).clone())
    }

    /// Whether it has been told who belongs to its cluster.
    pub(super) fn knows_its_cluster(&self) -> bool {
        self.inner.roster.borrow().here().is_some()
    }

    /// Whether this node can be in a cluster that works by this version.
    fn speaks(&self, protocol: Protocol) -> Result<(), PlaceError> {
        let spoken = self.inner.joiner.protocols;
        if spoken.speak(protocol) { Ok(()) } else { Err(PlaceError::OtherVersion { protocol, spoken }) }
    }

    /// Comes when the cluster has gone on to a version that this node does not speak: it was told that this node would, before
    /// an older program took its place.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub(in crate::run) async fn left_behind(&self) -> PlaceError {
        let mut view = self.view();
        loop {
            let protocol = view.borrow_and_update().state().protocol;
            // 0: it is in no cluster yet.
            if protocol > Protocol(0)
                && let Err(error) = self.speaks(protocol)
            {
                return error;
            }
            if view.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Makes a state of the cluster known to all of this node.
    pub(super) fn learn(&self, node: NodeId, state: &ClusterState) {
        self.inner.roster.send_replace(Arc::new(Roster::of(node, state)));
        self.inner.view.send_modify(|view| {
            let is_known = view.self_id() == node && view.state().id == state.id;
            *view = Arc::new(if is_known { view.next(state.clone()) } else { View::new(node, state.clone()) });
        });
    }

    /// Has the node follow what its group agrees on, and look after the group, for as long as these tasks run.
    pub(in crate::run) fn look_on(&self, group: &Group, tasks: &mut JoinSet<()>) {
        let (place, followed) = (self.clone(), group.clone());
        tasks.spawn(async move { place.follow(followed).await });
        let (place, watched) = (self.clone(), group.clone());
        tasks.spawn(async move { place.look_around(watched).await });
        let (place, kept) = (self.clone(), group.clone());
        tasks.spawn(async move { place.look_after(kept).await });
        let (place, asked) = (self.clone(), group.clone());
        tasks.spawn(async move { place.keep_sure(asked).await });
    }

    /// Waits until blobs have a place: the first members of the cluster are there.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub(in crate::run) async fn settled(&self) {
        let mut view = self.view();
        loop {
            {
                let view = view.borrow_and_update();
                if view.is_settled() {
                    break;
                }
                let (here, expected) = (view.state().members.len(), view.state().expected_members);
                self.waits_for(Some(format!("other nodes to join: {here} of {expected} are here")));
            }
            if view.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        self.waits_for(None);
    }

    async fn follow(&self, group: Group) {
        let mut states = group.state();
        loop {
            let state = states.borrow_and_update().clone();
            if let Some(state) = state {
                self.learn(group.node(), &state);
            }
            if states.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Tells the cluster what this node has synced to.
    pub(in crate::run) fn teller(&self, group: Group) -> Tell {
        let place = self.clone();
        Arc::new(move |node, epoch| {
            let (place, group) = (place.clone(), group.clone());
            Box::pin(async move {
                match place.change(&group, MemberCommand::Synced { node, epoch }).await {
                    Ok(MemberReply::Refused(refusal)) => Err(TellError(Box::new(refusal))),
                    Ok(_) => Ok(()),
                    Err(error) => Err(TellError(Box::new(error))),
                }
            })
        })
    }

    /// Changes what the nodes agree on about themselves.
    pub(super) async fn change(&self, group: &Group, command: MemberCommand) -> Result<MemberReply, GroupError> {
        match group.propose(Command::Member(command)).await? {
            Reply::Member(reply) => Ok(reply),
            _ => Err(GroupError::Unknown),
        }
    }
}
