//! Stands in front of services, and lets calls through as there is room.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::request;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use crate::config::limits;
use crate::forward::{PURPOSE, PURPOSE_REPAIR};
use crate::observe::labels::Method;
use crate::serve::access::Access;
use crate::serve::admission::answer::{Answer, PIECE_BYTES};
use crate::serve::admission::costs;
use crate::serve::admission::first::First;
use crate::serve::admission::places::{Admission, Place};
use crate::serve::admission::request::Request;
use crate::serve::admission::turns::{Client, Cost};
use crate::serve::peer::Caller;
use crate::serve::status_map;

/// Whose door it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Clients'. Blobs may come from other nodes, or all are here.
    Clients {
        /// Which of the two.
        has_peers: bool,
    },
    /// Other nodes'.
    Nodes,
}

/// Whether a call needs a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// It is always let in.
    Free,
    /// It costs what this method does; of nodes, what its path does.
    Costs(Method),
}

/// Services, and who is let in to them.
#[derive(Clone)]
pub struct Entry<S> {
    inner: S,
    door: Door,
    admission: Admission,
    /// How long a client may send nothing in the middle of a call.
    patience: Duration,
}

// === impl Entry ===

impl<S> Entry<S> {
    /// In front of `inner`.
    pub fn new(inner: S, door: Door, admission: Admission, patience: Duration) -> Entry<S> {
        Entry { inner, door, admission, patience }
    }
}

impl<S> Service<http::Request<Body>> for Entry<S>
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

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let asked = self.door.asked(request.uri().path());
        if asked == Asked::Free {
            return Box::pin(self.inner.call(request));
        }
        // The one that is ready.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let (door, admission, patience) = (self.door, self.admission.clone(), self.patience);
        Box::pin(async move {
            let (head, body) = request.into_parts();
            match admit((door, asked), &admission, patience, &head, body).await {
                Ok((request, place)) => {
                    let response = inner.call(http::Request::from_parts(head, Body::new(request))).await?;
                    // One without a body says no.
                    let has_body = !http_body::Body::is_end_stream(response.body());
                    let piece_bytes = door.piece_bytes();
                    Ok(match has_body {
                        true => response.map(|body| Body::new(Answer::new(body, place, piece_bytes))),
                        false => response,
                    })
                }
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}

/// Waits for the beginning of the call, and for a place.
async fn admit(
    (door, asked): (Door, Asked),
    admission: &Admission,
    patience: Duration,
    head: &request::Parts,
    mut body: Body,
) -> Result<(Request, Arc<Place>), Status> {
    let first = tokio::time::timeout(patience, First::come(&mut body)).await;
    let first = first.map_err(|_elapsed| status_map::unavailable("nothing came of the call but its headers"))??;
    let cost = door.cost(asked, head.uri.path(), &first);
    let place = Arc::new(admission.admit(door.client(head), cost).await?);
    Ok((Request::new(first, body, Arc::clone(&place), patience), place))
}

// === impl Door ===

impl Door {
    fn asked(self, path: &str) -> Asked {
        let method = match self {
            Door::Clients { .. } => Method::of(path),
            Door::Nodes => Method::Other,
        };
        let is_free = match self {
            Door::Clients { .. } => costs::is_free(method),
            Door::Nodes => costs::is_free_for_nodes(path),
        };
        if is_free { Asked::Free } else { Asked::Costs(method) }
    }

    fn cost(self, asked: Asked, path: &str, first: &First) -> Cost {
        match (self, asked) {
            (Door::Clients { has_peers }, Asked::Costs(method)) => costs::of_client(method, first, has_peers),
            (Door::Clients { has_peers }, Asked::Free) => costs::of_client(Method::Other, first, has_peers),
            (Door::Nodes, _) => costs::of_node(path, first),
        }
    }

    /// What is given to a connection at once.
    fn piece_bytes(self) -> usize {
        match self {
            Door::Clients { .. } => PIECE_BYTES,
            // Nodes take as much at once, and end what stands still by themselves.
            Door::Nodes => limits::FRAME_BYTES as usize,
        }
    }

    /// Who calls. Those of whom nothing is known share what one client may have.
    fn client(self, head: &request::Parts) -> Client {
        match self {
            Door::Clients { .. } => match head.extensions.get::<Access>() {
                Some(Access { from: Some(address), .. }) => Client::Address(*address),
                Some(Access { who, .. }) => Client::Named(Arc::clone(who)),
                None => Client::Named("".into()),
            },
            Door::Nodes if head.headers.get(&PURPOSE).is_some_and(|purpose| *purpose == PURPOSE_REPAIR) => {
                Client::Repair
            }
            Door::Nodes => match head.extensions.get::<Caller>() {
                Some(Caller(node)) => Client::Node(*node),
                None => Client::Named("".into()),
            },
        }
    }
}
