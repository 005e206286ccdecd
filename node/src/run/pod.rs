//! The pod of a StatefulSet that this node runs in, and whether there will be one in its place: asked of the API server of
//! Kubernetes, when the node is told to stop.
//!
//! A pod is told to stop in the same way when it is started anew and when it is removed for good. Only the number of replicas
//! tells the one from the other.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::authenticate::{TlsError, client_config};
use crate::config::PodConfig;
use crate::observe::with_causes;

/// Where Kubernetes puts what a pod needs to ask its API server.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where the API server is, as each container is told.
const HOST_VARIABLE: &str = "KUBERNETES_SERVICE_HOST";
const PORT_VARIABLE: &str = "KUBERNETES_SERVICE_PORT";

/// How long the API server is asked before the pod is taken for one that comes back. It is asked while clients finish what they
/// have under way, which may take longer.
const ASK_DEADLINE: Duration = Duration::from_secs(5);

/// Before it is asked again that did not answer: servers of an API are restarted one by one.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// How often a node that leaves looks whether it is to stay after all.
const LOOK_PAUSE: Duration = Duration::from_secs(5);

/// The longest answer that is read. A StatefulSet has some ten KiB, most of it about who has changed what.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// What becomes of the pod once it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Another one takes its place, with its volume.
    Returns,
    /// None does, and others remain.
    IsRemoved,
    /// None does, and none remains: all of the cluster is stopped, and keeps what it has.
    AllStop,
}

/// Why it is not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// The process is not told where the API server is.
    #[error(
        "nothing says where the API server is: {HOST_VARIABLE} and {PORT_VARIABLE} are not set, or are no host and port"
    )]
    NoServer,
    /// The pod has no token, or no certificate to know the server by.
    #[error("there is no {}", path.display())]
    NoAccount {
        /// What is missing.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The server cannot be known by what is there.
    #[error("the API server's certificates cannot be used")]
    Authorities(#[from] TlsError),
    /// It is not reached, or it is another one.
    #[error("no connection to {address} could be made")]
    Connect {
        /// Where it should be.
        address: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It broke off.
    #[error("the API server did not answer")]
    Http(#[from] hyper::Error),
    /// It answered too much, or broke off in the middle.
    #[error("the API server's answer cannot be read")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It refused, or failed.
    #[error("the API server says {status}: {message}")]
    Status {
        /// As it is known in HTTP.
        status: StatusCode,
        /// In its own words.
        message: String,
    },
    /// It answered something else.
    #[error("the API server did not answer with a StatefulSet")]
    Answer(#[from] serde_json::Error),
    /// It took too long.
    #[error("the API server did not answer within {patience:?}")]
    TimedOut {
        /// How long it had.
        patience: Duration,
    },
}

/// What is read of a StatefulSet.
#[derive(Debug, Deserialize)]
struct StatefulSet {
    spec: Specification,
}

#[derive(Debug, Deserialize)]
struct Specification {
    /// One, if nobody says.
    replicas: Option<u32>,
    ordinals: Option<Ordinals>,
}

#[derive(Debug, Deserialize)]
struct Ordinals {
    #[serde(default)]
    start: u32,
}

/// What an API server says where it does not do what it is asked for.
#[derive(Debug, Deserialize)]
struct Complaint {
    message: String,
}

/// The pod that this node runs in.
pub(super) struct Pod {
    config: PodConfig,
    account: PathBuf,
    server: Option<(String, u16)>,
    patience: Duration,
    look_pause: Duration,
}

// === impl Pod ===

impl Pod {
    /// By what the container is told.
    pub(super) fn new(config: PodConfig) -> Pod {
        let variable = |name: &str| std::env::var(name).ok();
        let server = variable(HOST_VARIABLE).zip(variable(PORT_VARIABLE).and_then(|port| port.parse().ok()));
        Pod { config, account: PathBuf::from(ACCOUNT), server, patience: ASK_DEADLINE, look_pause: LOOK_PAUSE }
    }

    /// How long the node may take to leave.
    pub(super) fn drain_deadline(&self) -> Duration {
        self.config.drain_deadline
    }

    /// Whether the node is to leave, as the pod is removed for good. Where that is not known, it is not, and the log says what
    /// to do about it.
    pub(super) async fn is_removed(&self) -> bool {
        match self.fate().await {
            Ok(Fate::IsRemoved) => true,
            Ok(Fate::Returns) => false,
            Ok(Fate::AllStop) => {
                tracing::info!("no pod remains: what this node has stays on its volume until there are pods again");
                false
            }
            Err(error) => {
                let (set, ordinal) = (&self.config.stateful_set, self.config.ordinal);
                tracing::warn!(
                    error = with_causes(&error),
                    "it is not known whether this pod comes back, and it is taken for one that does: what it has stays on its volume. \
                     If it is removed for good, have it leave before: casbah node drain {set}-{ordinal} --wait"
                );
                false
            }
        }
    }

    /// Comes when the pod is not to be removed after all.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub(super) async fn is_wanted(&self) {
        loop {
            tokio::time::sleep(self.look_pause).await;
            match self.fate().await {
                Ok(Fate::Returns | Fate::AllStop) => return,
                Ok(Fate::IsRemoved) => {}
                Err(error) => tracing::debug!(%error, "it is not known whether the pod is still to be removed"),
            }
        }
    }

    /// What becomes of it.
    async fn fate(&self) -> Result<Fate, AskError> {
        let asking = async {
            loop {
                match self.ask().await {
                    Err(error) if error.may_pass() => {
                        tracing::debug!(%error, "the API server is asked again");
                        tokio::time::sleep(ASK_AGAIN).await;
                    }
                    answer => return answer,
                }
            }
        };
        let patience = self.patience;
        let set = tokio::time::timeout(patience, asking).await.unwrap_or(Err(AskError::TimedOut { patience }))?;
        Ok(set.fate_of(self.config.ordinal))
    }

    async fn ask(&self) -> Result<StatefulSet, AskError> {
        let (host, port) = self.server.as_ref().ok_or(AskError::NoServer)?;
        // Read each time: the kubelet renews them.
        let (token, namespace) = (self.told("token")?, self.told("namespace")?);
        let mut tls = client_config(Some(&self.present("ca.crt")?), None)?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let connecting = async {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
            TlsConnector::from(Arc::new(tls)).connect(name, stream).await
        };
        let address = || format!("{host}:{port}");
        let stream = connecting.await.map_err(|source| AskError::Connect { address: address(), source })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let path = format!("/apis/apps/v1/namespaces/{namespace}/statefulsets/{}", self.config.stateful_set);
        let request = Request::get(path)
            .header(header::HOST, address())
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("casbah/", env!("CARGO_PKG_VERSION")))
            .body(Empty::<Bytes>::new())
            .map_err(|error| AskError::Body(Box::new(error)))?;
        let exchange = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            Ok::<_, AskError>((status, body.map_err(AskError::Body)?.to_bytes()))
        };
        // The connection ends with its only sender, or breaks, of which the exchange hears.
        let (answer, _connection) = tokio::join!(exchange, connection);
        let (status, body) = answer?;
        if status != StatusCode::OK {
            let complaint = serde_json::from_slice::<Complaint>(&body);
            let message = complaint.map_or_else(|_| "it gives no reason".to_owned(), |complaint| complaint.message);
            return Err(AskError::Status { status, message });
        }
        Ok(serde_json::from_slice(&body)?)
    }

    fn told(&self, name: &str) -> Result<String, AskError> {
        let path = self.account.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(source) => Err(AskError::NoAccount { path, source }),
        }
    }

    fn present(&self, name: &str) -> Result<PathBuf, AskError> {
        let path: &Path = &self.account.join(name);
        match std::fs::metadata(path) {
            Ok(_) => Ok(path.to_owned()),
            Err(source) => Err(AskError::NoAccount { path: path.to_owned(), source }),
        }
    }
}

impl StatefulSet {
    fn fate_of(&self, ordinal: u32) -> Fate {
        let replicas = self.spec.replicas.unwrap_or(1);
        let first = self.spec.ordinals.as_ref().map_or(0, |ordinals| ordinals.start);
        if replicas == 0 {
            Fate::AllStop
        } else if (first..first.saturating_add(replicas)).contains(&ordinal) {
            Fate::Returns
        } else {
            Fate::IsRemoved
        }
    }
}

impl AskError {
    /// Whether it may be otherwise in a moment.
    fn may_pass(&self) -> bool {
        match self {
            AskError::Connect { .. } | AskError::Http(_) => true,
            AskError::Body(source) => !source.is::<LengthLimitError>(),
            AskError::Status { status, .. } => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            _ => false,
        }
    }
}

#[cfg(test)]
#[path = "pod_test.rs"]
mod pod_test;
