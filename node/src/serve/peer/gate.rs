//! What every call between nodes has to say of itself, checked in one place: see `proto/peer/v1/membership.proto`.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use casbah_cluster::membership::{Belonging, ClusterId, Epoch, NodeId, Protocol, Protocols, Roster};
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use crate::config::limits;
use crate::forward::{CLUSTER, EPOCH, HOP, NODE, PEER, PROTOCOL};

/// The node that a call comes from, in the extensions of its request; not there in calls of nodes that have no id yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller(pub NodeId);

/// Lets a call through to the services only if it comes from a member of this node's cluster, is in a version that this node
/// speaks, is meant for this node, and was not forwarded before; tells callers by which layout this node works.
#[derive(Clone)]
pub struct Gate<S> {
    inner: S,
    roster: watch::Receiver<Arc<Roster>>,
    spoken: Protocols,
}

/// How much of that a call has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Nothing: it comes from a node that is in no cluster yet, or does not know of this one. Such calls are the same in all
    /// versions, and say themselves who calls.
    Stranger,
    /// All but a layout, and from nodes too that this one has not heard of: the log is how it hears of them.
    Log,
    /// All.
    Member,
}

/// What a call says.
struct Said {
    cluster: ClusterId,
    node: NodeId,
    epoch: Epoch,
}

// === impl Asked ===

impl Asked {
    fn of(path: &str) -> Asked {
        match path {
            "/casbah.peer.v1.Membership/Introduce" | "/casbah.peer.v1.Membership/Join" => Asked::Stranger,
            path if path.starts_with("/casbah.peer.v1.Raft/") => Asked::Log,
            _ => Asked::Member,
        }
    }
}

// === impl Gate ===

impl<S> Gate<S> {
    /// In front of `inner`, on a node of this roster whose program speaks this.
    pub fn new(inner: S, roster: watch::Receiver<Arc<Roster>>, spoken: Protocols) -> Gate<S> {
        Gate { inner, roster, spoken }
    }
}

impl<S> Service<http::Request<Body>> for Gate<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        // The one that is ready.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let (mut roster, spoken) = (self.roster.clone(), self.spoken);
        Box::pin(async move {
            let checked = check(&mut roster, &spoken, request.uri().path(), request.headers()).await;
            let mut response = match checked {
                Ok(caller) => {
                    if let Some(node) = caller {
                        request.extensions_mut().insert(Caller(node));
                    }
                    inner.call(request).await?
                }
                Err(status) => {
                    tracing::debug!(
                        path = request.uri().path(),
                        message = status.message(),
                        "a peer's call was refused"
                    );
                    status.into_http()
                }
            };
            let epoch = roster.borrow().epoch();
            response.headers_mut().insert(EPOCH, HeaderValue::from(epoch.0));
            Ok(response)
        })
    }
}

/// Who calls, if the call is to be answered.
async fn check(
    roster: &mut watch::Receiver<Arc<Roster>>,
    spoken: &Protocols,
    path: &str,
    headers: &HeaderMap,
) -> Result<Option<NodeId>, Status> {
    let asked = Asked::of(path);
    if asked == Asked::Stranger {
        return Ok(None);
    }
    let protocol: Protocol = parsed(headers, &PROTOCOL)?.ok_or_else(|| missing(&PROTOCOL))?;
    if !spoken.speak(protocol) {
        let text =
            format!("this node speaks version {spoken} of the peer protocol, and the call is in version {protocol}");
        return Err(Status::failed_precondition(text));
    }
    let said = said(headers, roster.borrow().here())?;
    if asked == Asked::Log {
        return Ok(Some(said.node));
    }
    let knows = |roster: &Roster| roster.belonging(said.node) != Belonging::Newer && roster.epoch() >= said.epoch;
    let caught_up = roster.wait_for(|roster| knows(roster));
    // An error means that nobody tells of changes any more: what is known is what counts.
    let in_time = matches!(tokio::time::timeout(limits::PEER_CATCH_UP, caught_up).await, Ok(Ok(_)));
    let roster = roster.borrow();
    match roster.belonging(said.node) {
        Belonging::Member if in_time => Ok(Some(said.node)),
        Belonging::Gone => Err(Status::failed_precondition(format!("node {} is no member of the cluster", said.node))),
        Belonging::Newer => Err(Status::aborted(format!("this node has not heard of node {} yet", said.node))),
        Belonging::Member => {
            let own = roster.epoch();
            Err(Status::aborted(format!("this node has not heard of epoch {} yet: its own is {own}", said.epoch)))
        }
    }
}

/// What a call says of itself, if it is of this cluster and meant for this node.
fn said(headers: &HeaderMap, here: Option<(ClusterId, NodeId)>) -> Result<Said, Status> {
    let Some((cluster, node)) = here else {
        return Err(Status::failed_precondition("this node is in no cluster"));
    };
    let said = Said {
        cluster: parsed(headers, &CLUSTER)?.ok_or_else(|| missing(&CLUSTER))?,
        node: NodeId(parsed(headers, &NODE)?.ok_or_else(|| missing(&NODE))?),
        epoch: Epoch(parsed(headers, &EPOCH)?.unwrap_or_default()),
    };
    if said.cluster != cluster {
        let text = format!("this node is of the cluster {cluster}, and the call of {}", said.cluster);
        return Err(Status::failed_precondition(text));
    }
    let meant = NodeId(parsed(headers, &PEER)?.ok_or_else(|| missing(&PEER))?);
    if meant != node {
        return Err(Status::failed_precondition(format!("this is node {node}, and the call is for node {meant}")));
    }
    match parsed::<u32>(headers, &HOP)? {
        Some(1) => Ok(said),
        Some(hops) => {
            Err(Status::failed_precondition(format!("the call hops {hops} times; once is as often as it may")))
        }
        None => Err(missing(&HOP)),
    }
}

/// The value of a header; `None` when it is not there.
fn parsed<T: std::str::FromStr>(headers: &HeaderMap, name: &HeaderName) -> Result<Option<T>, Status> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| text.parse().ok());
    parsed.map(Some).ok_or_else(|| Status::failed_precondition(format!("the call's {name} cannot be read")))
}

fn missing(name: &HeaderName) -> Status {
    Status::failed_precondition(format!("the call does not say its {name}"))
}
