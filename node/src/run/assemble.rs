//! The node, top-down: what is built from what, and the order in which it starts and ends.

use std::io;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::util::BoxCloneSyncService;

use crate::accept::{AdminPort, App, BindError, Bound, End, OwnerSocket};
use crate::config::{Config, limits};
use crate::forward::{self, Upstream};
use crate::index::{ActionIndex, AssetIndex, IndexError, SplitIndex};
use crate::observe::snapshot::Phase;
use crate::route::{Actions, Blobs, Nodes};
use crate::run::backend::{Backend, Route};
use crate::run::directory::{self, Ownership};
use crate::run::report::{self, Report};
use crate::run::signals::Signals;
use crate::serve::{self, Parts};
use crate::store::{self, OpenError, Store, StoreOptions};

/// Attempts to open what a process that is ending still holds, and the pause between them: five seconds in all.
const PREDECESSOR_ATTEMPTS: usize = 250;
const PREDECESSOR_PAUSE: Duration = Duration::from_millis(20);

/// Why a node did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The directory cannot be used.
    #[error("cannot use the directory {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A listener cannot be.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The blobs cannot be opened.
    #[error("cannot open the blob store")]
    Store(#[from] OpenError),
    /// The assets or the results of actions cannot be opened.
    #[error("cannot open an index")]
    Index(#[from] IndexError),
    /// The system refuses something basic.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// Runs a node until SIGTERM or SIGINT. When every listener holds its address and requests are answered, one line
/// a listener and then `ready` are printed on standard output.
///
/// # Errors
/// [`RunError`] when it cannot start.
///
/// # Cancel safety
/// Dropped, everything is cut off as by a kill; nothing acknowledged is lost.
pub async fn serve(config: Config) -> Result<(), RunError> {
    let mut signals = Signals::install().map_err(|source| RunError::System { what: "handle signals", source })?;
    let dir = &config.node.dir;
    let unusable = |source| RunError::Directory { path: dir.clone(), source };
    directory::create(dir).map_err(unusable)?;

    // The addresses first: a wrong one is told before anything is opened.
    let mut listeners = Vec::new();
    for listener in &config.listeners {
        listeners.push(Bound::bind(listener.clone()).await?);
    }

    let report = Arc::new(Report::new(&config, &listeners));
    // Cut off when this function returns, after everything else has ended.
    let mut admin = JoinSet::new();
    let mut admin_url = None;
    if let Some(address) = &config.admin {
        let port = AdminPort::bind(address).await?;
        admin_url = Some(port.to_string());
        admin.spawn(port.serve(report.clone()));
    }

    let (end_listeners, ended) = End::new();
    let mut data = match directory::claim(dir).map_err(unusable)? {
        Some(ownership) => Data::Owned(Owned::open(&config, ownership).await?),
        None => Data::Elsewhere,
    };
    let route = match &data {
        Data::Owned(owned) => {
            report.owns(owned.numbers());
            Route::Own(owned.routes.clone())
        }
        Data::Elsewhere => {
            tracing::info!(dir = %dir.display(), "another process owns the directory; serving through it");
            Route::Upstream(Upstream::new(forward::socket_path(dir)))
        }
    };
    let (reroute, backend) = Backend::new(route, ended.clone());
    let app: App = BoxCloneSyncService::new(backend);

    report.reached(Phase::Serving);
    announce(&listeners, admin_url.as_deref())
        .map_err(|source| RunError::System { what: "write to standard output", source })?;
    let mut serving = JoinSet::new();
    for listener in listeners {
        serving.spawn(listener.serve(app.clone(), signals.reload_now(), ended.clone()));
    }
    notify_systemd(sd_notify::NotifyState::Ready);

    if let Data::Elsewhere = data {
        tokio::select! {
            ownership = directory::claim_next(dir) => {
                let owned = Owned::open(&config, ownership.map_err(unusable)?).await?;
                reroute.send_replace(Route::Own(owned.routes.clone()));
                report.owns(owned.numbers());
                tracing::info!(dir = %dir.display(), "the owner of the directory has gone; this process took it over");
                data = Data::Owned(owned);
            }
            signal = signals.stop() => {
                report.reached(Phase::Draining);
                drain(signal, end_listeners, serving, None, signals).await;
                return Ok(());
            }
        }
    }
    let signal = signals.stop().await;
    // First, so that whoever sends clients here can know before they are sent away.
    report.reached(Phase::Draining);
    if let Data::Owned(mut owned) = data {
        drain(signal, end_listeners, serving, Some(&mut owned), signals).await;
        owned.close().await;
    }
    Ok(())
}

/// Where the data is.
enum Data {
    Owned(Owned),
    Elsewhere,
}

/// The store and the index of a directory that this process owns, and what serves them.
struct Owned {
    store: Store,
    assets: AssetIndex,
    actions: ActionIndex,
    splits: SplitIndex,
    routes: Routes,
    health: HealthReporter,
    end_socket: End,
    socket: JoinSet<()>,
}

// === impl Owned ===

impl Owned {
    async fn open(config: &Config, ownership: Ownership) -> Result<Owned, RunError> {
        ownership.until_exit();
        let dir = &config.node.dir;
        let store = Store::open(StoreOptions {
            dir: dir.join(store::DIRECTORY),
            capacity_bytes: config.store.capacity_bytes,
            retention_floor: config.store.retention_floor,
            sync: config.store.sync,
            compression: config.store.compression,
        })
        .await?;
        let (assets, actions, splits) = open_indexes(config).await?;
        let (routes, health) = serve::services(Parts {
            blobs: Blobs::new(Nodes::alone(store.clone())),
            assets: assets.clone(),
            actions: Actions::new(actions.clone()),
            splits: splits.clone(),
            capacity_bytes: config.store.capacity_bytes,
            retention_floor: config.store.retention_floor,
            instances: config.instances.clone(),
        })
        .await;
        let (end_socket, ended) = End::new();
        let mut socket = JoinSet::new();
        let bound = OwnerSocket::bind(dir);
        let bound = bound.map_err(|source| RunError::System { what: "make the socket in the directory", source })?;
        socket.spawn(bound.serve(BoxCloneSyncService::new(routes.clone()), ended));
        Ok(Owned { store, assets, actions, splits, routes, health, end_socket, socket })
    }

    /// What has numbers.
    fn numbers(&self) -> report::Data {
        let (assets, actions) = (self.assets.clone(), self.actions.clone());
        report::Data { store: self.store.clone(), assets, actions }
    }

    /// Tells those who watch the health that it is over, and ends their streams: they have no other end.
    async fn end_health(&mut self) {
        for name in serve::HEALTH_NAMES {
            self.health.set_service_status(name, ServingStatus::NotServing).await;
            self.health.clear_service_status(name).await;
        }
    }

    /// Finishes what other instances have under way, or cuts it off after a while.
    async fn drain_socket(&mut self) {
        self.end_socket.tell();
        if tokio::time::timeout(limits::INSTANCE_DRAIN_DEADLINE, self.socket.join_next()).await.is_err() {
            tracing::warn!("requests of another instance took too long and were cut off");
        }
    }

    /// Writes what waits. The directory remains this process's until it ends.
    async fn close(mut self) {
        self.socket.shutdown().await;
        self.store.close().await;
        let (assets, actions, splits) = (self.assets.clone(), self.actions.clone(), self.splits.clone());
        let close = move || {
            assets.close();
            actions.close();
            splits.close();
        };
        if let Err(error) = tokio::task::spawn_blocking(close).await {
            tracing::error!(%error, "the indexes could not be closed");
        }
    }
}

/// Opens the indexes. The process that owned the directory before may be in the middle of its end: the kernel has given
/// its lock on the directory back, and gives those on the databases back within the same moment.
async fn open_indexes(config: &Config) -> Result<(AssetIndex, ActionIndex, SplitIndex), IndexError> {
    let (dir, capacity) = (&config.node.dir, config.index.capacity);
    let open = || {
        Ok((
            AssetIndex::open(&dir.join("assets.redb"), capacity)?,
            ActionIndex::open(&dir.join("actions.redb"), capacity)?,
            SplitIndex::open(&dir.join("splits.redb"))?,
        ))
    };
    for _ in 0..PREDECESSOR_ATTEMPTS {
        match open() {
            Err(IndexError::InUse) => tokio::time::sleep(PREDECESSOR_PAUSE).await,
            outcome => return outcome,
        }
    }
    open()
}

fn announce(listeners: &[Bound], admin: Option<&str>) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    for listener in listeners {
        writeln!(stdout, "listening on {listener}")?;
        tracing::info!("listening on {listener}");
    }
    if let Some(url) = admin {
        writeln!(stdout, "admin port on {url}")?;
        tracing::info!("admin port on {url}");
    }
    writeln!(stdout, "ready")?;
    stdout.flush()
}

/// Ends the listeners, then the socket through which other instances are served, and waits until requests under way are
/// finished, or the deadline for both has passed, or a second signal asks for haste.
async fn drain(
    signal: &'static str,
    end: End,
    mut serving: JoinSet<()>,
    mut owned: Option<&mut Owned>,
    mut signals: Signals,
) {
    tracing::info!(signal, "stopping: requests under way are finished, no new ones are taken");
    notify_systemd(sd_notify::NotifyState::Stopping);
    let finished = async {
        end.tell();
        if let Some(owned) = &mut owned {
            owned.end_health().await;
        }
        let clients = async { while serving.join_next().await.is_some() {} };
        let deadline = limits::DRAIN_DEADLINE.saturating_sub(limits::INSTANCE_DRAIN_DEADLINE);
        if tokio::time::timeout(deadline, clients).await.is_err() {
            tracing::warn!("requests under way took too long and were cut off");
        }
        serving.shutdown().await;
        if let Some(owned) = owned {
            owned.drain_socket().await;
        }
    };
    tokio::select! {
        () = finished => {}
        signal = signals.stop_again() => tracing::warn!(signal, "told twice; requests under way are cut off"),
    }
}

fn notify_systemd(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd could not be told");
    }
}
