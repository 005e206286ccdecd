//! Connections to other nodes: a name looked up, a socket, TLS, HTTP/2 with large frames.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::BufReader;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tonic::body::Body;

use crate::config::limits;

/// What a node says it looks for. The name in the other side's certificate is not compared with it.
const SERVER_NAME: &str = "casbah-peer";

/// How a node shows itself to its peers, and whom it trusts. Changes when the files do.
pub trait PeerTls: Send + Sync {
    /// For one connection.
    ///
    /// # Errors
    /// When rustls refuses the configuration.
    fn client_config(&self) -> Result<Arc<ClientConfig>, rustls::Error>;
}

/// Makes connections to other nodes. Cheap to clone.
#[derive(Clone)]
pub struct Dialler {
    tls: Arc<dyn PeerTls>,
    from: Option<IpAddr>,
}

/// Why no connection could be made.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name is not known, or nothing in it can be reached from the address that connections are to come from.
    #[error("{address} cannot be looked up")]
    LookUp {
        /// As it was given.
        address: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Nobody listens there.
    #[error("nobody listens on {address}")]
    Refused {
        /// As it was given.
        address: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The network does not lead there.
    #[error("{address} cannot be reached")]
    Network {
        /// As it was given.
        address: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// TLS failed: the other side is no node of this cluster's authorities, or no node at all.
    #[error("the TLS handshake with {address} failed")]
    Tls {
        /// As it was given.
        address: String,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// HTTP/2 failed.
    #[error("{address} does not speak HTTP/2")]
    Http {
        /// As it was given.
        address: String,
        /// What is wrong.
        #[source]
        source: hyper::Error,
    },
    /// It took too long.
    #[error("no connection to {address} was made within {} ms", limits::PEER_CONNECT_DEADLINE.as_millis())]
    TimedOut {
        /// As it was given.
        address: String,
    },
}

/// A connection. It ends when this is dropped.
pub(super) struct Connection {
    pub(super) sender: SendRequest<Body>,
    driver: JoinHandle<()>,
}

// === impl DialError ===

impl DialError {
    /// Whether it is known that the node is not there, in place of not being known that it is.
    pub(super) fn is_certain(&self) -> bool {
        matches!(self, DialError::Refused { .. } | DialError::Tls { .. } | DialError::Http { .. })
    }
}

// === impl Dialler ===

impl Dialler {
    /// Connections with this TLS, from this address.
    pub fn new(tls: Arc<dyn PeerTls>, from: Option<IpAddr>) -> Dialler {
        Dialler { tls, from }
    }

    /// A new connection to what this name leads to now.
    pub(super) async fn dial(&self, address: &str) -> Result<Connection, DialError> {
        let dialling = async {
            let mut failed = None;
            for at in look_up(address).await? {
                match self.connect(address, at).await {
                    Ok(stream) => return self.speak(address, stream).await,
                    Err(error) => failed = Some(error),
                }
            }
            Err(failed.unwrap_or_else(|| not_found(address)))
        };
        let timed = tokio::time::timeout(limits::PEER_CONNECT_DEADLINE, dialling).await;
        timed.unwrap_or_else(|_elapsed| Err(DialError::TimedOut { address: address.to_owned() }))
    }

    /// A new connection to this very address.
    pub(super) async fn dial_at(&self, at: SocketAddr) -> Result<Connection, DialError> {
        let address = at.to_string();
        let dialling = async { self.speak(&address, self.connect(&address, at).await?).await };
        let timed = tokio::time::timeout(limits::PEER_CONNECT_DEADLINE, dialling).await;
        timed.unwrap_or_else(|_elapsed| Err(DialError::TimedOut { address: address.clone() }))
    }

    async fn connect(&self, address: &str, at: SocketAddr) -> Result<TcpStream, DialError> {
        let connecting = async {
            let socket = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            if let Some(from) = self.from {
                socket.bind(SocketAddr::new(from, 0))?;
            }
            let stream = socket.connect(at).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        let address = || address.to_owned();
        connecting.await.map_err(|source: io::Error| match source.kind() {
            io::ErrorKind::ConnectionRefused => DialError::Refused { address: address(), source },
            _ => DialError::Network { address: address(), source },
        })
    }

    async fn speak(&self, address: &str, stream: TcpStream) -> Result<Connection, DialError> {
        let tls = |source| DialError::Tls { address: address.to_owned(), source };
        let config = self.tls.client_config().map_err(|error| tls(io::Error::other(error)))?;
        let name = ServerName::try_from(SERVER_NAME).map_err(|error| tls(io::Error::other(error)))?;
        let stream = BufReader::with_capacity(limits::PEER_READ_BYTES, stream);
        let buffered = |connection: &mut rustls::ClientConnection| {
            connection.set_buffer_limit(Some(limits::PEER_TLS_BUFFER_BYTES))
        };
        let stream = TlsConnector::from(config).connect_with(name, stream, buffered).await.map_err(tls)?;
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(limits::PEER_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(limits::PEER_CONNECTION_WINDOW_BYTES)
            .max_frame_size(limits::FRAME_BYTES)
            .max_concurrent_reset_streams(limits::PEER_STREAMS_MAX as usize)
            .max_local_error_reset_streams(None)
            .keep_alive_interval(limits::PEER_KEEPALIVE_INTERVAL)
            .keep_alive_timeout(limits::PEER_KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| DialError::Http { address: address.to_owned(), source })?;
        let to = address.to_owned();
        let driver = tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, to, "a connection to another node broke");
            }
        });
        Ok(Connection { sender, driver })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// What a name leads to now.
pub(super) async fn look_up(address: &str) -> Result<Vec<SocketAddr>, DialError> {
    let found = tokio::net::lookup_host(address).await;
    let found = found.map_err(|source| DialError::LookUp { address: address.to_owned(), source })?;
    Ok(found.collect())
}

fn not_found(address: &str) -> DialError {
    DialError::LookUp { address: address.to_owned(), source: io::ErrorKind::NotFound.into() }
}
