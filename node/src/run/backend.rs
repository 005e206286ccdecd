//! Where requests go: to the services of this process when it owns the directory, else to the process that does.

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tower::{Service, ServiceExt as _};

use crate::accept::Ended;
use crate::forward::{Upstream, UpstreamError};
use crate::run::membership::Place;
use crate::run::relayed::Relayed;
use crate::serve::{Access, Served, unavailable};

/// How long a request waits when the owner of the directory has gone, for this process or another one to take over:
/// opening a store takes well under a second, and clients retry what takes longer.
const TAKEOVER_WAIT: Duration = Duration::from_secs(5);

/// How long a waiting request leaves the socket of the owner alone before it tries it again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Calls whose answers go on until somebody ends them.
const ENDLESS: [&str; 3] = [HEALTH_WATCH, REFLECTION, REFLECTION_ALPHA];
const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const REFLECTION_ALPHA: &str = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";

/// One of the two ways.
#[derive(Clone)]
pub(super) enum Route {
    /// This process owns the directory.
    Own(Served),
    /// Another one does.
    Upstream(Upstream),
    /// This process does, and has no place in a cluster yet.
    Nowhere(Place),
}

/// The way of requests, which changes once at most: from the owner of the directory to this process.
#[derive(Clone)]
pub(super) struct Backend {
    route: watch::Receiver<Route>,
    ended: Ended,
}

// === impl Backend ===

impl Backend {
    /// The way, and what changes it. After `ended`, streams that would never end by themselves are cut.
    pub(super) fn new(route: Route, ended: Ended) -> (watch::Sender<Route>, Backend) {
        let (sender, receiver) = watch::channel(route);
        (sender, Backend { route: receiver, ended })
    }

    async fn answer(mut self, mut request: http::Request<Body>) -> http::Response<Body> {
        let until = Instant::now() + TAKEOVER_WAIT;
        loop {
            let route = self.route.borrow().clone();
            request = match route {
                Route::Own(routes) => return own(routes, request, &self.ended).await,
                Route::Nowhere(place) => {
                    let waiting = place.waiting().unwrap_or_else(|| "its cluster".to_owned());
                    return unavailable(format!("this node waits for {waiting}")).into_http();
                }
                Route::Upstream(upstream) => match send(&upstream, request, &self.ended).await {
                    Ok(response) => return response,
                    Err(UpstreamError::NotSent { request, source }) => {
                        tracing::debug!(%source, "the owner of the directory is away");
                        *request
                    }
                    Err(error @ UpstreamError::Broken(_)) => return unavailable(error.to_string()).into_http(),
                },
            };
            if Instant::now() >= until {
                return unavailable("the process that owns the directory cannot be reached").into_http();
            }
            // This process may be the next owner, or one that makes its socket any moment.
            let taken_over = self.route.wait_for(|route| matches!(route, Route::Own(_)));
            if let Ok(Err(_closed)) = tokio::time::timeout(RETRY_PAUSE, taken_over).await {
                return unavailable("this process is ending").into_http();
            }
        }
    }
}

async fn own(routes: Served, request: http::Request<Body>, ended: &Ended) -> http::Response<Body> {
    // Those who watch the health are told of the end by the service itself.
    let cut = [REFLECTION, REFLECTION_ALPHA].contains(&request.uri().path()).then(|| reached(ended.clone()));
    let Ok(response) = routes.oneshot(request).await;
    match cut {
        Some(cut) => response.map(|body| Body::new(Relayed::new(body, cut))),
        None => response,
    }
}

/// Returns at the end.
fn reached(mut ended: Ended) -> BoxFuture<'static, ()> {
    async move { ended.reached().await }.boxed()
}

/// Hands the request to the owner, with word of what the caller may do.
async fn send(
    upstream: &Upstream,
    mut request: http::Request<Body>,
    ended: &Ended,
) -> Result<http::Response<Body>, UpstreamError> {
    match request.extensions().get::<Access>().cloned() {
        Some(access) => access.add_to(request.headers_mut()),
        None => return Ok(Status::internal("the request came past the access check").into_http()),
    }
    let cut = match ENDLESS.contains(&request.uri().path()) {
        true => reached(ended.clone()),
        false => std::future::pending().boxed(),
    };
    Ok(upstream.send(request).await?.map(|body| Body::new(Relayed::new(body, cut))))
}

impl Service<http::Request<Body>> for Backend {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let backend = self.clone();
        Box::pin(async move { Ok(backend.answer(request).await) })
    }
}
