//! TLS of one listener: the handshake, who is on the other side, and files that change while connections last.
//!
//! What is in force (the server's certificate and whom to let in) is one immutable value that is swapped whole. A
//! handshake works with the value it began with; its outcome is held against the newest before it counts. Connections
//! that exist are never touched: their owner asks [`ListenerTls::is_current`].

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::UnixTime;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub use crate::authenticate::TlsError;
use crate::authenticate::{
    ClientVerifier, Identity, Refusal, Source, Trust, TrustFiles, WatchedTrust, crypto, peer_client_config,
    peer_crypto, watch_key,
};
use crate::config::{Clients, PeersConfig, TlsConfig, limits};
use crate::forward::PeerTls;

/// How long a handshake may take; who accepts cuts it off then. Two round trips to the other side of the earth and an
/// RSA-4096 signature on a loaded client stay far below it, and a client that says nothing holds its place no longer.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a refused client may take to read the reason. Closing at once would reset the connection when it has sent
/// more already (a TLS 1.3 client has: its handshake is over), and the reset would overtake the alert.
const LAST_WORDS_DEADLINE: Duration = Duration::from_millis(500);

/// Bytes that a refused client may send meanwhile: a connection preface, settings and a few first requests.
const LAST_WORDS_BYTES: u64 = 64 << 10;

/// The protocol that every listener speaks, as ALPN names it (RFC 9113, 3.1). A client that offers others only is
/// refused. One that offers none is taken by its word: old gRPC stacks and test tools do so, nothing but HTTP/2 is
/// spoken here, and so nothing can be confused with it.
const ALPN_H2: &[u8] = b"h2";

/// The TLS of one listener; of the peer port, the TLS of connections to other nodes as well.
pub struct ListenerTls {
    for_whom: ForWhom,
    in_force: ArcSwap<InForce>,
    /// Locked by reloads alone, which may come from a timer and a signal at once.
    files: Mutex<Files>,
}

/// What [`ListenerTls::reload_if_changed`] put in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reloaded {
    /// No file changed.
    Nothing,
    /// The server's certificate and key.
    Certificate,
    /// Whom to let in.
    Clients,
    /// All of them.
    CertificateAndClients,
}

/// Why a connection did not come about. None of these is the server's fault, except perhaps [`HandshakeError::Alert`].
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The client's certificate, or its claim to it, is not accepted.
    #[error(transparent)]
    Refused(Refusal),
    /// The certificate was accepted when the handshake began and is not any more.
    #[error("the certificate of {0} was taken off the list during the handshake")]
    Overtaken(Identity),
    /// The client showed no certificate where one is needed.
    #[error("the client showed no certificate: give it one (BuildStream: client-cert and client-key)")]
    NoCertificate,
    /// The client offers other protocols than HTTP/2.
    #[error("the client does not offer HTTP/2 (ALPN h2): is it a gRPC client")]
    NotHttp2,
    /// What the client sent is not TLS.
    #[error("the client does not speak TLS: is it told to (https:// or grpcs:// instead of http:// or grpc://)")]
    NotTls(#[source] rustls::Error),
    /// The client ended the handshake.
    #[error("the client ended the handshake ({0:?}): does it trust this server's certificate")]
    Alert(AlertDescription),
    /// The client broke the rules, or the two have no version or cipher in common.
    #[error("the handshake failed")]
    Failed(#[source] rustls::Error),
    /// The connection ended before the handshake did.
    #[error("the connection broke during the handshake")]
    Broken(#[source] io::Error),
}

/// Who is on the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ForWhom {
    /// Clients of all kinds and ages: TLS 1.2 and 1.3.
    Clients,
    /// Nodes: TLS 1.3.
    Peers,
}

/// What new connections are met with.
struct InForce {
    for_whom: ForWhom,
    pair: Arc<CertifiedKey>,
    clients: Admission,
}

enum Admission {
    /// One configuration for all connections, sessions may be resumed.
    Anyone(Arc<ServerConfig>),
    /// A configuration for each connection.
    Certificate(Arc<Trust>),
}

struct Files {
    pair: Source<Arc<CertifiedKey>>,
    /// `None`: anyone may connect.
    trust: Option<WatchedTrust>,
}

// === impl ListenerTls ===

impl ListenerTls {
    /// Reads every file that the listener needs.
    ///
    /// # Errors
    /// [`TlsError`] when one cannot be used, or certificate and key do not belong together.
    pub fn load(tls: &TlsConfig, clients: &Clients) -> Result<ListenerTls, TlsError> {
        let trusted = match clients {
            Clients::Anyone => None,
            Clients::Certificate { authorized, authorities } => {
                Some(TrustFiles { authorized: authorized.clone(), authorities: authorities.clone() })
            }
        };
        ListenerTls::load_for(ForWhom::Clients, tls, trusted.as_ref())
    }

    /// Reads every file that the peer port and connections to other nodes need: it lets in whom one of the authorities for
    /// nodes issued a certificate, and nobody else.
    ///
    /// # Errors
    /// [`TlsError`] when one cannot be used, or certificate and key do not belong together.
    pub fn load_peers(config: &PeersConfig) -> Result<ListenerTls, TlsError> {
        let trusted = TrustFiles { authorized: None, authorities: Some(config.authorities.clone()) };
        ListenerTls::load_for(ForWhom::Peers, &config.tls, Some(&trusted))
    }

    fn load_for(for_whom: ForWhom, tls: &TlsConfig, trusted: Option<&TrustFiles>) -> Result<ListenerTls, TlsError> {
        let (pair_source, pair) = watch_key(&tls.certificate, &tls.key)?;
        let trust = trusted.map(WatchedTrust::load).transpose()?;
        let in_force = InForce::new(for_whom, pair, trust.as_ref().map(WatchedTrust::current))?;
        let files = Files { pair: pair_source, trust };
        Ok(ListenerTls { for_whom, in_force: ArcSwap::from_pointee(in_force), files: Mutex::new(files) })
    }

    /// Does the handshake. A client that is refused is told why by an alert, for which this takes up to half a second.
    /// The caller bounds the time, by [`HANDSHAKE_DEADLINE`], and the number of handshakes under way.
    ///
    /// # Errors
    /// [`HandshakeError`] when the client is not let in or goes away.
    ///
    /// # Cancel safety
    /// Dropped, the connection is closed.
    pub async fn accept<S>(&self, stream: S) -> Result<(TlsStream<S>, Identity), HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (config, verifier) = self.in_force.load().connection().map_err(HandshakeError::Failed)?;
        let buffered = |connection: &mut rustls::ServerConnection| {
            if self.for_whom == ForWhom::Peers {
                connection.set_buffer_limit(Some(limits::PEER_TLS_BUFFER_BYTES));
            }
        };
        match TlsAcceptor::from(config).accept_with(stream, buffered).into_fallible().await {
            Ok(stream) => {
                let Some(verifier) = verifier else { return Ok((stream, Identity::anonymous())) };
                // The verifier makes a certificate mandatory; without one the handshake has failed already.
                let identity = verifier.identity().ok_or(HandshakeError::NoCertificate)?;
                // The trust may have changed since the client connected, up to a deadline ago.
                if !self.is_current(&identity) {
                    return Err(HandshakeError::Overtaken(identity));
                }
                Ok((stream, identity))
            }
            Err((error, stream)) => {
                let error = HandshakeError::of(error, verifier.as_deref());
                if !matches!(error, HandshakeError::Broken(_)) {
                    close_after_last_words(stream).await;
                }
                Err(error)
            }
        }
    }

    /// Whether somebody whom [`ListenerTls::accept`] let in would be let in now: the certificate has not expired and
    /// the list and the authorities still vouch for it. Cheap enough to ask before every request.
    pub fn is_current(&self, identity: &Identity) -> bool {
        match &self.in_force.load().clients {
            Admission::Anyone(_) => true,
            Admission::Certificate(trust) => trust.still_admits(identity, UnixTime::now()),
        }
    }

    /// Reads the files again and puts in force what changed, for connections to come. A file that cannot be used leaves
    /// its own part as it was: a certificate waits for its key, and a list that is half written for its other half.
    /// Reads files, so not to be called where a slow disk would stop others.
    ///
    /// # Errors
    /// [`TlsError`] when a changed file cannot be used, once for each change. What else changed is in force all the
    /// same.
    pub fn reload_if_changed(&self) -> Result<Reloaded, TlsError> {
        // A panic in here leaves the files as they were seen last, which the next look corrects.
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let mut error = None;
        let trust = files.trust.as_mut().and_then(|trust| trust.poll(&mut error));
        let pair = files.pair.poll(&mut error);
        let reloaded = match (&pair, &trust) {
            (None, None) => Reloaded::Nothing,
            (Some(_), None) => Reloaded::Certificate,
            (None, Some(_)) => Reloaded::Clients,
            (Some(_), Some(_)) => Reloaded::CertificateAndClients,
        };
        if reloaded != Reloaded::Nothing {
            let pair = pair.unwrap_or_else(|| Arc::clone(&self.in_force.load().pair));
            let trust = files.trust.as_ref().map(WatchedTrust::current);
            self.in_force.store(Arc::new(InForce::new(self.for_whom, pair, trust)?));
        }
        match error {
            None => Ok(reloaded),
            Some(error) => {
                if reloaded != Reloaded::Nothing {
                    tracing::info!(?reloaded, "certificates were read again, not all that changed");
                }
                Err(error)
            }
        }
    }
}

impl PeerTls for ListenerTls {
    fn client_config(&self) -> Result<Arc<ClientConfig>, rustls::Error> {
        self.in_force.load().dialling().map(Arc::new)
    }
}

impl fmt::Debug for ListenerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenerTls").finish_non_exhaustive()
    }
}

/// Lets the client read the alert that was written to it, and hears it out.
async fn close_after_last_words<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let last_words = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(LAST_WORDS_BYTES), &mut tokio::io::sink()).await
    };
    // However it ends, the connection is closed now.
    let _ = tokio::time::timeout(LAST_WORDS_DEADLINE, last_words).await;
}

// === impl InForce ===

impl InForce {
    fn new(for_whom: ForWhom, pair: Arc<CertifiedKey>, trust: Option<&Arc<Trust>>) -> Result<InForce, TlsError> {
        let clients = match trust {
            Some(trust) => Admission::Certificate(Arc::clone(trust)),
            None => {
                let anyone = WebPkiClientVerifier::no_client_auth();
                let config = server_config(for_whom, &pair, anyone).map_err(TlsError::Setup)?;
                Admission::Anyone(Arc::new(config))
            }
        };
        Ok(InForce { for_whom, pair, clients })
    }

    /// The configuration for a connection to another node.
    fn dialling(&self) -> Result<ClientConfig, rustls::Error> {
        match (&self.clients, self.for_whom) {
            (Admission::Certificate(trust), ForWhom::Peers) => peer_client_config(&self.pair, trust),
            _ => Err(rustls::Error::General("a listener for clients does not connect to anybody".into())),
        }
    }

    /// The configuration for a connection, and what will know its client.
    fn connection(&self) -> Result<(Arc<ServerConfig>, Option<Arc<ClientVerifier>>), rustls::Error> {
        match &self.clients {
            Admission::Anyone(config) => Ok((Arc::clone(config), None)),
            Admission::Certificate(trust) => {
                let verifier = ClientVerifier::new(Arc::clone(trust));
                let asked = Arc::clone(&verifier) as Arc<dyn ClientCertVerifier>;
                let mut config = server_config(self.for_whom, &self.pair, asked)?;
                // A resumed session is not verified again: a client that was taken off the list came in with a ticket.
                // A configuration of one connection has no sessions to resume; this says so, and promises none.
                config.send_tls13_tickets = 0;
                config.session_storage = Arc::new(NoServerSessionStorage {});
                Ok((Arc::new(config), Some(verifier)))
            }
        }
    }
}

fn server_config(
    for_whom: ForWhom,
    pair: &Arc<CertifiedKey>,
    verifier: Arc<dyn ClientCertVerifier>,
) -> Result<ServerConfig, rustls::Error> {
    let builder = match for_whom {
        ForWhom::Clients => ServerConfig::builder_with_provider(crypto()).with_protocol_versions(&[&TLS13, &TLS12])?,
        ForWhom::Peers => ServerConfig::builder_with_provider(peer_crypto()).with_protocol_versions(&[&TLS13])?,
    };
    let mut config = builder
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(pair))));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    Ok(config)
}

// === impl HandshakeError ===

impl HandshakeError {
    fn of(error: io::Error, verifier: Option<&ClientVerifier>) -> HandshakeError {
        if let Some(refusal) = verifier.and_then(ClientVerifier::refusal) {
            return HandshakeError::Refused(refusal);
        }
        let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
            return HandshakeError::Broken(error);
        };
        match tls {
            rustls::Error::NoCertificatesPresented => HandshakeError::NoCertificate,
            rustls::Error::NoApplicationProtocol => HandshakeError::NotHttp2,
            rustls::Error::AlertReceived(alert) => HandshakeError::Alert(*alert),
            rustls::Error::InvalidMessage(_) => HandshakeError::NotTls(tls.clone()),
            other => HandshakeError::Failed(other.clone()),
        }
    }
}

#[cfg(test)]
#[path = "tls_test.rs"]
mod tests;

#[cfg(test)]
#[path = "tls_reload_test.rs"]
mod reload_tests;
