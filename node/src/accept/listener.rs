//! One configured address: its sockets, the loop that accepts, and the connections that came of it.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, Ready, ready};
use hyper::body::Incoming;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use crate::accept::connection::{self, App, Bounds};
use crate::accept::end::Ended;
use crate::accept::tls::{HANDSHAKE_DEADLINE, HandshakeError, ListenerTls, Reloaded, TlsError};
use crate::authenticate::{Gate, Identity};
use crate::config::{Clients, ListenAddress, ListenerConfig, PeersConfig, limits};
use crate::observe::counters::{COUNTERS, OpenConnection};
use crate::observe::labels::{Refused, Transport};
use crate::serve::Access;

/// How often certificates and trust files are looked at. A removal is effective within this time.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// The pause after an accept that failed for want of descriptors or memory: time for some to be given back.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Attempts to find a port that is free on both loopback addresses.
const PORT_ATTEMPTS: usize = 16;

/// Why a listener cannot be.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address cannot be had.
    #[error("cannot listen on {address}")]
    Address {
        /// As configured.
        address: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A certificate, key or trust file cannot be used.
    #[error("cannot offer TLS on {address}")]
    Tls {
        /// As configured.
        address: String,
        /// What is wrong.
        #[source]
        source: TlsError,
    },
}

/// A listener that holds its address and does not accept yet.
pub struct Bound {
    kind: Kind,
    address: ListenAddress,
    sockets: Vec<TcpListener>,
    port: u16,
    tls: Option<Arc<ListenerTls>>,
}

/// Who comes here.
enum Kind {
    Clients(ListenerConfig),
    /// Other nodes of the cluster.
    Peers,
}

// === impl Bound ===

impl Bound {
    /// Takes the address and reads the certificates.
    ///
    /// # Errors
    /// [`BindError`] when either fails.
    pub async fn bind(config: ListenerConfig) -> Result<Bound, BindError> {
        let tls = config.tls.as_ref().map(|tls| ListenerTls::load(tls, &config.clients));
        let address = config.address.clone();
        Bound::take(address, Kind::Clients(config), tls).await
    }

    /// The same for the peer port.
    ///
    /// # Errors
    /// [`BindError`] when the address cannot be had or the certificates cannot be used.
    pub async fn bind_peers(config: &PeersConfig) -> Result<Bound, BindError> {
        Bound::take(config.address.clone(), Kind::Peers, Some(ListenerTls::load_peers(config))).await
    }

    async fn take(
        address: ListenAddress,
        kind: Kind,
        tls: Option<Result<ListenerTls, TlsError>>,
    ) -> Result<Bound, BindError> {
        let named = || address.to_string();
        let tls = tls.transpose().map_err(|source| BindError::Tls { address: named(), source })?.map(Arc::new);
        let sockets = sockets(&address).await;
        let sockets = sockets.map_err(|source| BindError::Address { address: named(), source })?;
        let port = sockets.first().and_then(|socket| socket.local_addr().ok()).map_or(0, |bound| bound.port());
        Ok(Bound { kind, address, sockets, port, tls })
    }

    /// What shows certificates here and, at the peer port, on connections to other nodes.
    pub fn tls(&self) -> Option<Arc<ListenerTls>> {
        self.tls.clone()
    }

    /// The port that it has, also where any free one was asked for.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Accepts connections and serves `app` on them until `ended`; returns when the last connection is finished. Looks
    /// at the certificates every second, and whenever `reload_now` changes. Calls whose clients take nothing of the answer for as
    /// long as `stall` are ended.
    ///
    /// # Cancel safety
    /// Dropped, every connection is cut.
    pub async fn serve(self, app: App, stall: Duration, reload_now: watch::Receiver<()>, mut ended: Ended) {
        let Bound { kind, address, sockets, port, tls } = self;
        let places = match kind {
            Kind::Clients(_) => limits::CONNECTIONS_MAX,
            Kind::Peers => limits::PEER_CONNECTIONS_MAX,
        };
        let places = Arc::new(Semaphore::new(places));
        let mut tasks = JoinSet::new();
        let (tell_reloaded, reloaded) = watch::channel(());
        if let Some(tls) = &tls {
            let address = ListenAddress { port, ..address };
            let watch = Watch { tls: Arc::clone(tls), address, reloaded: tell_reloaded };
            tasks.spawn(watch.files(reload_now, ended.clone()));
        }
        let kind = Arc::new(kind);
        for socket in sockets {
            let (kind, tls, app, reloaded) = (Arc::clone(&kind), tls.clone(), app.clone(), reloaded.clone());
            let newcomer = Newcomer { kind, tls, app, stall, reloaded };
            tasks.spawn(accept(socket, newcomer, Arc::clone(&places), ended.clone()));
        }
        ended.reached().await;
        while let Some(outcome) = tasks.join_next().await {
            if let Err(error) = outcome {
                tracing::error!(%error, "a listener's task failed");
            }
        }
    }
}

impl fmt::Display for Bound {
    /// `grpcs://localhost:11002 (TLS, certificate, read+write)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = ListenAddress { port: self.port, ..self.address.clone() };
        let config = match &self.kind {
            Kind::Clients(config) => config,
            Kind::Peers => return write!(f, "{address}"),
        };
        let (scheme, tls) = if self.tls.is_some() { ("grpcs", "TLS") } else { ("grpc", "plaintext") };
        let clients = match config.clients {
            Clients::Anyone => "anyone",
            Clients::Certificate { .. } => "certificate",
        };
        let allow = config.allow;
        let named = [(allow.read, "read"), (allow.write, "write"), (allow.admin, "admin")];
        let allowed: Vec<&str> = named.into_iter().filter(|(may, _)| *may).map(|(_, name)| name).collect();
        write!(f, "{scheme}://{address} ({tls}, {clients}, {})", allowed.join("+"))
    }
}

/// The sockets of an address: two for `localhost`, on the same port.
pub(super) async fn sockets(address: &ListenAddress) -> io::Result<Vec<TcpListener>> {
    if address.host != "localhost" {
        return Ok(vec![one_socket(address).await?]);
    }
    let mut attempts = 0;
    loop {
        attempts += 1;
        let four = TcpListener::bind(("127.0.0.1", address.port)).await?;
        match TcpListener::bind(("::1", four.local_addr()?.port())).await {
            Ok(six) => return Ok(vec![four, six]),
            // A port of the system's choice may be taken on the other address: choose again.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if address.port != 0 || attempts == PORT_ATTEMPTS {
                    return Err(error);
                }
            }
            Err(error) => {
                tracing::info!(%error, "this machine has no ::1; listening on 127.0.0.1 alone");
                return Ok(vec![four]);
            }
        }
    }
}

async fn one_socket(address: &ListenAddress) -> io::Result<TcpListener> {
    match TcpListener::bind((address.host.as_str(), address.port)).await {
        Err(error) if address.host == "::" && error.kind() != io::ErrorKind::AddrInUse => {
            tracing::info!(%error, "this machine has no IPv6; listening on 0.0.0.0");
            TcpListener::bind(("0.0.0.0", address.port)).await
        }
        outcome => outcome,
    }
}

/// What a new connection is met with.
#[derive(Clone)]
struct Newcomer {
    kind: Arc<Kind>,
    tls: Option<Arc<ListenerTls>>,
    app: App,
    /// How long a client may take nothing of an answer.
    stall: Duration,
    /// Changes when certificates were read again.
    reloaded: watch::Receiver<()>,
}

async fn accept(socket: TcpListener, newcomer: Newcomer, places: Arc<Semaphore>, mut ended: Ended) {
    let mut connections = JoinSet::new();
    loop {
        // A connection that was accepted has a place; one without a place waits in the kernel's queue.
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.expect("this semaphore is never closed");
            (socket.accept().await, place)
        };
        tokio::select! {
            (accepted, place) = next => match accepted {
                Ok((stream, from)) => {
                    let (newcomer, ended) = (newcomer.clone(), ended.clone());
                    connections.spawn(async move {
                        newcomer.meet(stream, from, ended).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    COUNTERS.connections_refused.add(Refused::Accept as usize, 1);
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(outcome) = connections.join_next() => {
                if let Err(error) = outcome {
                    tracing::error!(%error, "a connection's task failed");
                }
            }
            () = ended.reached() => break,
        }
    }
    drop(socket);
    while connections.join_next().await.is_some() {}
}

/// Looks after the files of a listener.
struct Watch {
    tls: Arc<ListenerTls>,
    address: ListenAddress,
    /// Tells the connections that files were read again.
    reloaded: watch::Sender<()>,
}

// === impl Watch ===

impl Watch {
    async fn files(self, mut reload_now: watch::Receiver<()>, mut ended: Ended) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(RELOAD_INTERVAL) => {}
                Ok(()) = reload_now.changed() => {}
                () = ended.reached() => return,
            }
            let files = Arc::clone(&self.tls);
            // The files may lie on a slow file system.
            let outcome = tokio::task::spawn_blocking(move || files.reload_if_changed()).await;
            let address = &self.address;
            match outcome {
                Ok(Ok(Reloaded::Nothing)) => {}
                Ok(Ok(reloaded)) => {
                    tracing::info!(%address, ?reloaded, "certificates were read again");
                    self.reloaded.send_replace(());
                }
                Ok(Err(error)) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(%address, error, "changed certificates cannot be used; the old ones stay in force");
                }
                Err(error) => tracing::error!(%error, "reading certificates failed"),
            }
        }
    }
}

// === impl Newcomer ===

impl Newcomer {
    async fn meet(mut self, stream: TcpStream, from: SocketAddr, ended: Ended) {
        let transport = if self.tls.is_some() { Transport::Tls } else { Transport::Plaintext };
        let _counted = OpenConnection::begin(transport);
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, %from, "a connection broke before it began");
            return;
        }
        let bounds = match &*self.kind {
            Kind::Clients(config) => Bounds::client(config.connection_age, self.stall),
            Kind::Peers => Bounds::PEER,
        };
        let Some(tls) = self.tls.clone() else {
            let service = self.admitted(Identity::anonymous(), from);
            return connection::serve(stream, service, bounds, ended, std::future::pending()).await;
        };
        // However many handshakes there are, they cost memory within the bound on connections, and the processor in turns.
        let read_bytes = match &*self.kind {
            // There may be many of them, and memory is dearer than calls of the system: all reads pass by.
            Kind::Clients(_) => 1,
            Kind::Peers => limits::PEER_READ_BYTES,
        };
        let stream = BufReader::with_capacity(read_bytes, stream);
        match tokio::time::timeout(HANDSHAKE_DEADLINE, tls.accept(stream)).await {
            Ok(Ok((stream, identity))) => {
                tracing::debug!(%from, %identity, "connected");
                let service = self.admitted(identity.clone(), from);
                connection::serve(stream, service, bounds, ended, self.withdrawn(&tls, &identity)).await;
            }
            Ok(Err(error)) => {
                COUNTERS.connections_refused.add(refused(&error) as usize, 1);
                let error = &error as &dyn std::error::Error;
                tracing::info!(%from, error, "a client was not let in");
            }
            Err(_elapsed) => {
                COUNTERS.connections_refused.add(Refused::Timeout as usize, 1);
                tracing::info!(%from, "a client did not finish its TLS handshake in time");
            }
        }
    }

    /// Returns when what let this client in is no longer true.
    async fn withdrawn(&mut self, tls: &ListenerTls, identity: &Identity) {
        while tls.is_current(identity) {
            if self.reloaded.changed().await.is_err() {
                // Nobody reads the files any more: the listener is at its end.
                std::future::pending::<()>().await;
            }
        }
        tracing::info!(%identity, "a client whose certificate is no longer accepted is sent away");
    }

    /// What answers the requests of this connection.
    fn admitted(&self, identity: Identity, from: SocketAddr) -> Admitted {
        let inner = match &*self.kind {
            Kind::Clients(config) => {
                let who = identity.to_string().into();
                // What a client is counted by: its certificate, or else where it is.
                let from = identity.certificate().is_none().then(|| from.ip().to_canonical());
                let access = Access { who, permissions: config.allow, services: config.services, from };
                Inner::Clients(Gate::new(self.app.clone(), access, config.reflection))
            }
            Kind::Peers => Inner::Peers(self.app.clone()),
        };
        let proof = self.tls.clone().map(|tls| (tls, identity));
        Admitted { inner, proof }
    }
}

fn refused(error: &HandshakeError) -> Refused {
    match error {
        HandshakeError::Refused(_) | HandshakeError::Overtaken(_) => Refused::Certificate,
        HandshakeError::NoCertificate => Refused::NoCertificate,
        HandshakeError::NotHttp2 => Refused::NotHttp2,
        HandshakeError::NotTls(_) => Refused::NotTls,
        HandshakeError::Alert(_) => Refused::Alert,
        HandshakeError::Failed(_) => Refused::Failed,
        HandshakeError::Broken(_) => Refused::Broken,
    }
}

/// The services, for one connection, for as long as what let it in is still true.
#[derive(Clone)]
struct Admitted {
    inner: Inner,
    proof: Option<(Arc<ListenerTls>, Identity)>,
}

/// The services, and who decides what may be called.
#[derive(Clone)]
enum Inner {
    /// The listener's rules.
    Clients(Gate<App>),
    /// The services themselves, by what each call says of its cluster and its caller.
    Peers(App),
}

impl Service<http::Request<Incoming>> for Admitted {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future =
        Either<BoxFuture<'static, Result<Self::Response, Infallible>>, Ready<Result<Self::Response, Infallible>>>;

    fn poll_ready(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        match &mut self.inner {
            Inner::Clients(gate) => gate.poll_ready(context),
            Inner::Peers(app) => app.poll_ready(context),
        }
    }

    fn call(&mut self, request: http::Request<Incoming>) -> Self::Future {
        if let Some((tls, identity)) = &self.proof
            && !tls.is_current(identity)
        {
            let status = Status::unauthenticated(format!("the certificate of {identity} is no longer accepted"));
            return Either::Right(ready(Ok(status.into_http())));
        }
        let request = request.map(Body::new);
        Either::Left(match &mut self.inner {
            Inner::Clients(gate) => gate.call(request),
            Inner::Peers(app) => app.call(request),
        })
    }
}
