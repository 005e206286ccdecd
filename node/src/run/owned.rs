//! What the process that owns a directory has: the store, the indexes, and a place in a cluster.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use casbah_cluster::membership::{Protocols, Roster};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::util::BoxCloneSyncService;

use crate::accept::{Bound, End, OwnerSocket};
use crate::config::{Config, limits};
use crate::forward::{Dialler, Discovery, PeerTls, Peers, PeersParts};
use crate::index::{ACTIONS_FILE, ActionIndex, AssetIndex, Group, IndexError, SPLITS_FILE, SplitIndex};
use crate::repair::{Repair, RepairParts};
use crate::replicate::restore;
use crate::route::{Actions, Blobs, Nodes};
use crate::run::RunError;
use crate::run::cluster_report::ClusterSight;
use crate::run::directory::Ownership;
use crate::run::membership::{Condition, Departure, Place, PlaceError, PlaceParts};
use crate::run::report;
use crate::serve::{self, Parts, Served, peer};
use crate::store::{self, Store, StoreOptions};

/// Attempts to open what a process that is ending still holds, and the pause between them: five seconds in all.
const PREDECESSOR_ATTEMPTS: usize = 250;
const PREDECESSOR_PAUSE: Duration = Duration::from_millis(20);

/// A directory that this process owns, and its place in a cluster: looked for until it is found.
pub(super) struct Owned {
    config: Config,
    store: Store,
    actions: ActionIndex,
    splits: SplitIndex,
    peers: Peers,
    place: Place,
    /// Ends the port for peers.
    end_peers: End,
    port: JoinSet<()>,
    peer_address: Option<String>,
    /// What keeps an eye on the others, and on the cluster.
    tasks: JoinSet<()>,
    entering: JoinSet<Result<Group, PlaceError>>,
    /// The place that it has found, until it is served.
    group: Option<Group>,
    serving: Option<Serving>,
}

/// What there is once the node has its place.
struct Serving {
    nodes: Nodes,
    assets: AssetIndex,
    routes: Served,
    health: HealthReporter,
    end_socket: End,
    socket: JoinSet<()>,
    repair: Repair,
    /// What gets copies to where they belong.
    repairs: JoinSet<()>,
}

// === impl Owned ===

impl Owned {
    /// Opens what is in the directory, and begins to answer other nodes at their port.
    ///
    /// # Errors
    /// [`RunError`] when something cannot be opened.
    pub(super) async fn open(
        config: &Config,
        ownership: Ownership,
        spoken: Protocols,
        reload_now: watch::Receiver<()>,
    ) -> Result<Owned, RunError> {
        let peer_port = match &config.peers {
            Some(peers) => Some(Bound::bind_peers(peers).await?),
            None => None,
        };
        ownership.until_exit();
        let dir = &config.node.dir;
        begin_anew(dir).await?;
        let store = Store::open(StoreOptions {
            dir: dir.join(store::DIRECTORY),
            capacity_bytes: config.store.capacity_bytes,
            retention_floor: config.store.retention_floor,
            sync: config.store.sync,
            compression: config.store.compression,
        })
        .await?;
        let (actions, splits) = open_indexes(config).await?;

        let (roster, rosters) = watch::channel(Arc::<Roster>::default());
        let condition = Condition::new(store.clone(), rosters.clone());
        let tls = peer_port.as_ref().and_then(Bound::tls);
        let dial_from = config.peers.as_ref().and_then(|peers| peers.dial_from);
        let dialler = tls.map(|tls| Dialler::new(tls as Arc<dyn PeerTls>, dial_from));
        let (peers, discovery) = match dialler {
            Some(dialler) => {
                let report = {
                    let condition = condition.clone();
                    Arc::new(move || condition.report())
                };
                let parts = PeersParts { roster: rosters.clone(), dialler: dialler.clone(), report };
                (Peers::new(parts), Some(Discovery::new(dialler)))
            }
            None => (Peers::alone(), None),
        };
        let place = Place::new(PlaceParts {
            config,
            spoken,
            condition,
            peer_port: peer_port.as_ref().map(Bound::port),
            discovery,
            peers: peers.clone(),
            roster,
        })
        .map_err(PlaceError::from)?;

        let (end_peers, ended) = End::new();
        let (mut tasks, mut port, mut entering) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
        let peer_address = peer_port.as_ref().map(ToString::to_string);
        if let Some(bound) = peer_port {
            let services = peer::services(peer::Parts {
                store: store.clone(),
                results: actions.clone(),
                group: Arc::new(place.clone()),
                members: Arc::new(place.clone()),
                roster: rosters,
                spoken,
                memory_bytes: config.limits.memory_bytes / limits::PEER_MEMORY_SHARE,
            });
            let services = BoxCloneSyncService::new(services);
            // Their clients are looked after by themselves.
            port.spawn(bound.serve(services, Duration::MAX, reload_now, ended));
            let peers = peers.clone();
            tasks.spawn(async move { peers.watch().await });
        }
        // In a task, because it must not be dropped half-way: it opens files.
        entering.spawn({
            let place = place.clone();
            async move { place.enter().await }
        });
        Ok(Owned {
            config: config.clone(),
            store,
            actions,
            splits,
            peers,
            place,
            end_peers,
            port,
            peer_address,
            tasks,
            entering,
            group: None,
            serving: None,
        })
    }

    /// Finds the node's place in a cluster, and begins to serve. May take for ever, when other nodes are waited for.
    ///
    /// # Errors
    /// [`RunError`] when the disk fails or the cluster refuses the node.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub(super) async fn enter(&mut self) -> Result<Served, RunError> {
        if let Some(serving) = &self.serving {
            return Ok(serving.routes.clone());
        }
        if self.group.is_none() {
            let entered = match self.entering.join_next().await {
                Some(Ok(entered)) => entered?,
                Some(Err(error)) => {
                    return Err(RunError::System { what: "look for the cluster", source: error.into() });
                }
                None => return std::future::pending().await,
            };
            self.place.look_on(&entered, &mut self.tasks);
            let (place, group) = (self.place.clone(), entered.clone());
            self.tasks.spawn(async move { place.come_back(&group).await });
            self.group = Some(entered);
        }
        let placed = async {
            self.place.settled().await;
            self.place.sure().await;
        };
        tokio::select! {
            () = placed => {}
            error = self.place.left_behind() => return Err(error.into()),
        }
        let Some(group) = self.group.clone() else { return std::future::pending().await };
        let serving = self.serve(group).await?;
        self.tasks.spawn(restore(serving.nodes.clone()));
        let (routes, nodes) = (serving.routes.clone(), serving.nodes.clone());
        self.tasks.spawn(async move { nodes.keep_telling().await });
        self.serving = Some(serving);
        Ok(routes)
    }

    /// Why it cannot go on, should that come to pass.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub(super) async fn fails(&self) -> RunError {
        let may_start_anew = async {
            match &self.group {
                Some(group) => self.place.may_start_anew(group).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            error = self.place.left_behind() => error.into(),
            () = may_start_anew => RunError::ClosedLog,
        }
    }

    /// Whether it has its place, and serves.
    pub(super) fn is_serving(&self) -> bool {
        self.serving.is_some()
    }

    /// Its place.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Where other nodes reach it.
    pub(super) fn peer_address(&self) -> Option<&str> {
        self.peer_address.as_deref()
    }

    async fn serve(&self, group: Group) -> Result<Serving, RunError> {
        let config = &self.config;
        let assets = AssetIndex::new(group.clone(), config.index.stale_reads);
        let is_in_doubt = {
            let place = self.place.clone();
            Arc::new(move || place.is_in_doubt())
        };
        let nodes = Nodes::in_doubt(self.store.clone(), self.place.view(), Arc::new(self.peers.clone()), is_in_doubt);
        let (routes, health) = serve::services(Parts {
            blobs: Blobs::new(nodes.clone()),
            assets: assets.clone(),
            actions: Actions::new(nodes.clone(), self.actions.clone()),
            splits: self.splits.clone(),
            capacity_bytes: config.store.capacity_bytes,
            retention_floor: config.store.retention_floor,
            instances: config.instances.clone(),
            limits: config.limits,
            has_peers: config.peers.is_some(),
        })
        .await;
        let (end_socket, ended) = End::new();
        let mut socket = JoinSet::new();
        let bound = OwnerSocket::bind(&config.node.dir);
        let bound = bound.map_err(|source| RunError::System { what: "make the socket in the directory", source })?;
        socket.spawn(bound.serve(BoxCloneSyncService::new(routes.clone()), ended));
        let repair = Repair::new(RepairParts {
            nodes: nodes.clone(),
            index: self.actions.clone(),
            rate_bytes: config.repair.rate_bytes,
            interval: config.repair.interval,
            retention_floor: config.store.retention_floor,
            peer_changes: self.peers.changes(),
            tell: self.place.teller(group),
        });
        self.place.condition().is_repaired_by(repair.clone());
        let mut repairs = JoinSet::new();
        repairs.spawn(repair.clone().run());
        Ok(Serving { nodes, assets, routes, health, end_socket, socket, repair, repairs })
    }

    /// What has numbers.
    pub(super) fn numbers(&self) -> report::Data {
        let sight = self.serving.as_ref().map(|serving| ClusterSight {
            view: self.place.view(),
            group: serving.assets.group().clone(),
            peers: self.peers.clone(),
            store: self.store.clone(),
            repair: serving.repair.clone(),
            place: self.place.clone(),
        });
        report::Data {
            store: self.store.clone(),
            assets: self.serving.as_ref().map(|serving| serving.assets.clone()),
            actions: self.actions.clone(),
            place: self.place.clone(),
            sight,
        }
    }

    /// Tells those who watch the health that it is over, and ends their streams, which have no other end; and tells the other
    /// nodes that new work should go elsewhere.
    pub(super) async fn end_health(&mut self) {
        self.place.condition().drain();
        let Some(serving) = &mut self.serving else { return };
        for name in serve::HEALTH_NAMES {
            serving.health.set_service_status(name, ServingStatus::NotServing).await;
            serving.health.clear_service_status(name).await;
        }
    }

    /// Finishes what other instances have under way, or cuts it off after a while.
    pub(super) async fn drain_socket(&mut self) {
        let Some(serving) = &mut self.serving else { return };
        serving.end_socket.tell();
        if tokio::time::timeout(limits::INSTANCE_DRAIN_DEADLINE, serving.socket.join_next()).await.is_err() {
            tracing::warn!("requests of another instance took too long and were cut off");
        }
    }

    /// Has the node leave its cluster within this time, unless it is wanted again first. Not if it has never served: it has
    /// nothing that others lack.
    ///
    /// # Cancel safety
    /// May be dropped: it has not left then.
    pub(super) async fn leave(&self, deadline: Duration, is_wanted: impl Future<Output = ()>) {
        if let (Some(_), Some(group)) = (&self.serving, &self.group) {
            self.place.leave(group, &self.store, deadline, is_wanted).await;
        }
    }

    /// Hands leadership over, lets the other nodes go, and writes what waits. The directory remains this process's until it
    /// ends.
    pub(super) async fn close(mut self) {
        self.entering.shutdown().await;
        if let Some(mut serving) = self.serving.take() {
            serving.socket.shutdown().await;
            serving.repairs.shutdown().await;
            serving.nodes.finish(limits::PEER_DRAIN_DEADLINE).await;
            serving.assets.close().await;
        } else if let Some(group) = &self.group {
            group.close().await;
        }
        self.end_peers.tell();
        let finished = async { while self.port.join_next().await.is_some() {} };
        if tokio::time::timeout(limits::PEER_DRAIN_DEADLINE, finished).await.is_err() {
            tracing::warn!("calls of other nodes took too long and were cut off");
        }
        self.port.shutdown().await;
        self.tasks.shutdown().await;
        self.store.close().await;
        let (actions, splits) = (self.actions.clone(), self.splits.clone());
        let close = move || {
            actions.close();
            splits.close();
        };
        if let Err(error) = tokio::task::spawn_blocking(close).await {
            tracing::error!(%error, "the indexes could not be closed");
        }
    }
}

/// Empties the directory of a node that has left its cluster: files of terabytes take their time.
async fn begin_anew(dir: &Path) -> Result<(), RunError> {
    let path = dir.to_owned();
    let emptied = tokio::task::spawn_blocking(move || Departure::begin_anew(&path)).await;
    let emptied = emptied.unwrap_or_else(|error| Err(error.into()));
    emptied.map_err(|source| RunError::Directory { path: dir.to_owned(), source })
}

/// Opens the indexes. The process that owned the directory before may be in the middle of its end: the kernel has given
/// its lock on the directory back, and gives those on the databases back within the same moment.
async fn open_indexes(config: &Config) -> Result<(ActionIndex, SplitIndex), IndexError> {
    let (dir, capacity) = (&config.node.dir, config.index.capacity);
    let open =
        || Ok((ActionIndex::open(&dir.join(ACTIONS_FILE), capacity)?, SplitIndex::open(&dir.join(SPLITS_FILE))?));
    for _ in 0..PREDECESSOR_ATTEMPTS {
        match open() {
            Err(IndexError::InUse) => tokio::time::sleep(PREDECESSOR_PAUSE).await,
            outcome => return outcome,
        }
    }
    open()
}
