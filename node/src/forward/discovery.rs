//! How nodes find each other before they know of each other: addresses that were configured, and what answers there.

use std::net::SocketAddr;
use std::time::Duration;

use casbah_proto::peer::v1 as api;
use casbah_proto::peer::v1::membership_client::MembershipClient;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service;

use crate::config::{ListenAddress, limits};
use crate::forward::channel::absolute;
use crate::forward::dial::{Connection, DialError, Dialler, look_up};
use crate::forward::metadata;
use crate::forward::peers::origin;

/// How long a member may take to let a node in: until an entry of the log is committed.
const JOIN_DEADLINE: Duration = Duration::from_secs(10);

/// Finds nodes at addresses, whoever they are. Cheap to clone.
#[derive(Clone)]
pub struct Discovery {
    dialler: Dialler,
}

/// A node that was found at an address.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Where.
    pub at: SocketAddr,
    /// Who it says it is.
    pub introduction: api::Introduction,
}

/// Why nobody was found at an address, or why the one who was does not let this node in.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// No connection could be made.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// It did not answer in time.
    #[error("the node at {at} did not answer in time")]
    TimedOut {
        /// Where.
        at: SocketAddr,
    },
    /// It cannot now: it is in no cluster itself, or its cluster has no leader. Worth another try.
    #[error("the node at {at} cannot let this one in now: {}", source.message())]
    NotNow {
        /// Where.
        at: SocketAddr,
        /// What it says.
        #[source]
        source: Box<Status>,
    },
    /// It says no.
    #[error("the node at {at} refuses: {}", source.message())]
    Refused {
        /// Where.
        at: SocketAddr,
        /// What it says.
        #[source]
        source: Box<Status>,
    },
}

// === impl Discovery ===

impl Discovery {
    /// Finds nodes over connections of this kind.
    pub fn new(dialler: Dialler) -> Discovery {
        Discovery { dialler }
    }

    /// What a configured address leads to now: any number of nodes, this one perhaps among them.
    ///
    /// # Errors
    /// [`DiscoveryError::Dial`] when the name is not known.
    pub async fn look_up(&self, address: &ListenAddress) -> Result<Vec<SocketAddr>, DiscoveryError> {
        let looked_up = tokio::time::timeout(limits::PEER_CONNECT_DEADLINE, look_up(&address.to_string())).await;
        let timed_out = || DialError::TimedOut { address: address.to_string() };
        Ok(looked_up.unwrap_or_else(|_elapsed| Err(timed_out()))?)
    }

    /// Tells the node at an address who this one is, and asks the same.
    ///
    /// # Errors
    /// [`DiscoveryError`].
    pub async fn introduce(&self, at: SocketAddr, own: &api::Introduction) -> Result<Found, DiscoveryError> {
        let connection = self.dialler.dial_at(at).await?;
        let mut client = MembershipClient::with_origin(Stranger::new(&connection), origin());
        let request = api::IntroduceRequest { introduction: Some(own.clone()) };
        let answer = told(at, limits::PEER_CALL_DEADLINE, client.introduce(request)).await?;
        let nobody = || refused(at, Status::internal("it does not say who it is"));
        Ok(Found { at, introduction: answer.introduction.ok_or_else(nobody)? })
    }

    /// Asks the node at an address, a member, to let this one in.
    ///
    /// # Errors
    /// [`DiscoveryError`]; this node may be let in all the same when it did not answer in time.
    pub async fn join(&self, at: SocketAddr, own: &api::Introduction) -> Result<api::JoinResponse, DiscoveryError> {
        let connection = self.dialler.dial_at(at).await?;
        let client = MembershipClient::with_origin(Stranger::new(&connection), origin());
        let mut client = client.max_decoding_message_size(limits::PEER_MESSAGE_BYTES);
        let request = api::JoinRequest { introduction: Some(own.clone()) };
        told(at, JOIN_DEADLINE, client.join(request)).await
    }
}

async fn told<T>(
    at: SocketAddr,
    within: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, DiscoveryError> {
    match tokio::time::timeout(within, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(match status.code() {
            Code::FailedPrecondition | Code::PermissionDenied | Code::InvalidArgument | Code::Unauthenticated => {
                refused(at, status)
            }
            _ => DiscoveryError::NotNow { at, source: Box::new(status) },
        }),
        Err(_elapsed) => Err(DiscoveryError::TimedOut { at }),
    }
}

fn refused(at: SocketAddr, status: Status) -> DiscoveryError {
    DiscoveryError::Refused { at, source: Box::new(status) }
}

/// A connection to a node that is not known yet.
#[derive(Clone)]
struct Stranger {
    sender: SendRequest<Body>,
}

impl Stranger {
    fn new(connection: &Connection) -> Stranger {
        Stranger { sender: connection.sender.clone() }
    }
}

impl Service<http::Request<Body>> for Stranger {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<http::Response<Incoming>, hyper::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        metadata::add_to_every(request.headers_mut());
        *request.uri_mut() = absolute(request.uri());
        Box::pin(self.sender.send_request(request))
    }
}
