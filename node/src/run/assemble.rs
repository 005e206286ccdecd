//! The node, top-down: what is built from what, and the order in which it starts and ends.

use std::io;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tower::util::BoxCloneSyncService;

use crate::accept::{AdminPort, App, BindError, Bound, End};
use crate::config::{Config, limits};
use crate::forward::{self, Upstream};
use crate::index::IndexError;
use crate::observe::snapshot::Phase;
use crate::run::backend::{Backend, Route};
use crate::run::descriptors;
use crate::run::directory::{self, Ownership};
use crate::run::membership::{Place, PlaceError};
use crate::run::owned::Owned;
use crate::run::pod::Pod;
use crate::run::report::Report;
use crate::run::signals::Signals;
use crate::run::spoken::{self, SpokenError};
use crate::serve::Served;
use crate::store::OpenError;

/// How long a node that waits for others does so before it says that it has started. Then calls are answered with what it
/// waits for.
const ENTER_PATIENCE: Duration = Duration::from_millis(500);

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
    /// The node has no place in a cluster.
    #[error("this node has no place in a cluster")]
    Place(#[from] PlaceError),
    /// It has to be started anew.
    #[error(
        "this node ends to be started anew: the log of the cluster had to be closed when the disk took nothing more, and now there is room"
    )]
    ClosedLog,
    /// It is not known which versions of the peer protocol to speak.
    #[error(transparent)]
    Spoken(#[from] SpokenError),
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

impl RunError {
    /// Whether the program does not speak the version that the node's cluster works by.
    pub fn is_of_version(&self) -> bool {
        matches!(self, RunError::Place(PlaceError::OtherVersion { .. }))
    }
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
    let spoken = spoken::spoken()?;
    let dir = &config.node.dir;
    let unusable = |source| RunError::Directory { path: dir.clone(), source };
    directory::create(dir).map_err(unusable)?;
    descriptors::raise_limit();

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
        Some(ownership) => Data::Owned(Box::new(Owned::open(&config, ownership, spoken, signals.reload_now()).await?)),
        None => Data::Elsewhere,
    };
    let route = match &mut data {
        Data::Owned(owned) => {
            let place = owned.place().clone();
            let entered = tokio::select! {
                routes = owned.enter() => Some(routes?),
                () = waits_for_others(&place) => None,
            };
            report.owns(owned.numbers());
            match entered {
                Some(routes) => {
                    report.reached(Phase::Serving);
                    Route::Own(routes)
                }
                None => {
                    report.reached(Phase::Joining);
                    Route::Nowhere(place)
                }
            }
        }
        Data::Elsewhere => {
            tracing::info!(dir = %dir.display(), "another process owns the directory; serving through it");
            report.reached(Phase::Serving);
            Route::Upstream(Upstream::new(forward::socket_path(dir)))
        }
    };
    let (reroute, backend) = Backend::new(route, ended.clone());
    let app: App = BoxCloneSyncService::new(backend);

    announce(&listeners, data.peers(), admin_url.as_deref())
        .map_err(|source| RunError::System { what: "write to standard output", source })?;
    let mut serving = JoinSet::new();
    for listener in listeners {
        let stall = config.limits.stall;
        serving.spawn(listener.serve(app.clone(), stall, signals.reload_now(), ended.clone()));
    }
    notify_systemd(sd_notify::NotifyState::Ready);

    let signal = loop {
        let took_over = tokio::select! {
            signal = signals.stop() => break signal,
            next = data.next(dir) => next?,
        };
        match took_over {
            Next::Ownership(ownership) => {
                let owned = Owned::open(&config, ownership, spoken, signals.reload_now()).await?;
                tracing::info!(dir = %dir.display(), "the owner of the directory has gone; this process took it over");
                report.owns(owned.numbers());
                data = Data::Owned(Box::new(owned));
            }
            Next::Entered(routes) => {
                reroute.send_replace(Route::Own(routes));
                if let Data::Owned(owned) = &data {
                    report.owns(owned.numbers());
                }
                report.reached(Phase::Serving);
            }
        }
    };
    // First, so that whoever sends clients here can know before they are sent away.
    report.reached(Phase::Draining);
    match data {
        Data::Owned(mut owned) => {
            let pod = config.pod.clone().map(Pod::new);
            // Asked at once, for the answer may take as long as the clients do.
            let is_removed = async {
                match &pod {
                    Some(pod) => pod.is_removed().await,
                    None => false,
                }
            };
            let drained = drain(signal, end_listeners, serving, Some(&mut owned), &mut signals);
            let ((), is_removed) = tokio::join!(drained, is_removed);
            if let Some(pod) = pod.filter(|_| is_removed) {
                leave(&owned, &pod, &mut signals).await;
            }
            owned.close().await;
        }
        Data::Elsewhere => drain(signal, end_listeners, serving, None, &mut signals).await,
    }
    Ok(())
}

/// Has a node leave its cluster whose pod is removed. It has no clients any more, so that nothing comes to it while it gives away
/// what it has; other nodes are answered as ever.
async fn leave(owned: &Owned, pod: &Pod, signals: &mut Signals) {
    tokio::select! {
        () = owned.leave(pod.drain_deadline(), pod.is_wanted()) => {}
        signal = signals.stop_again() => tracing::warn!(signal, "told again; what this node has is not moved to others"),
    }
}

/// Comes when the node has no place in a cluster by itself, and others have not given it one for a while.
async fn waits_for_others(place: &Place) {
    let begun = Instant::now();
    while place.waiting().is_none() || begun.elapsed() < ENTER_PATIENCE {
        tokio::time::sleep(ENTER_PATIENCE / 10).await;
    }
}

/// Where the data is.
enum Data {
    Owned(Box<Owned>),
    Elsewhere,
}

/// What happens to it.
enum Next {
    /// The owner of the directory has gone.
    Ownership(Ownership),
    /// The node has found its place.
    Entered(Served),
}

// === impl Data ===

impl Data {
    /// The next thing that changes how requests are served. Never comes where nothing does.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    async fn next(&mut self, dir: &Path) -> Result<Next, RunError> {
        match self {
            Data::Owned(owned) if owned.is_serving() => Err(owned.fails().await),
            Data::Owned(owned) => Ok(Next::Entered(owned.enter().await?)),
            Data::Elsewhere => {
                let ownership = directory::claim_next(dir).await;
                let unusable = |source| RunError::Directory { path: dir.to_owned(), source };
                Ok(Next::Ownership(ownership.map_err(unusable)?))
            }
        }
    }

    /// Where other nodes reach this one.
    fn peers(&self) -> Option<&str> {
        match self {
            Data::Owned(owned) => owned.peer_address(),
            Data::Elsewhere => None,
        }
    }
}

fn announce(listeners: &[Bound], peers: Option<&str>, admin: Option<&str>) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    for listener in listeners {
        writeln!(stdout, "listening on {listener}")?;
        tracing::info!("listening on {listener}");
    }
    if let Some(address) = peers {
        writeln!(stdout, "peers on {address}")?;
        tracing::info!("peers on {address}");
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
    signals: &mut Signals,
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
