//! One call to another node: what it carries, over which connection it goes, and when it is given up.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use casbah_cluster::membership::Roster;
use futures_util::future::BoxFuture;
use http::Uri;
use http::uri::PathAndQuery;
use hyper::body::Incoming;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service;

use crate::config::limits;
use crate::forward::dial::DialError;
use crate::forward::error::PeerError;
use crate::forward::link::{Lane, Link};
use crate::forward::metadata::{self, PURPOSE, PURPOSE_REPAIR};

/// HTTP/2 asks for a scheme and a host; nobody looks at them.
const AUTHORITY: &str = "casbah-peer";

const CONTENT_TYPE: http::HeaderValue = http::HeaderValue::from_static("application/grpc");

tokio::task_local! {
    /// Calls are for copies that no client waits for.
    static FOR_REPAIR: ();
}

/// Does this; calls to other nodes that are made in it say that they are for copies that no client waits for, so that they leave
/// room for others.
pub async fn for_repair<T>(copies: impl Future<Output = T>) -> T {
    FOR_REPAIR.scope((), copies).await
}

/// Why a call brought no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum CallError {
    /// This node is in no cluster.
    #[error("this node is in no cluster")]
    Alone,
    /// No connection could be made.
    #[error("no connection could be made")]
    Dial(#[source] Arc<DialError>),
    /// The node has been silent for too long.
    #[error("the node has been silent for too long")]
    Silent,
    /// The connection broke before the answer came.
    #[error("the connection broke")]
    Broken(#[source] Arc<hyper::Error>),
}

/// What calls to one node go through. Cheap to clone.
#[derive(Clone)]
pub(super) struct Channel {
    link: Arc<Link>,
    roster: watch::Receiver<Arc<Roster>>,
    lane: Lane,
    /// Whether calls say by which layout they were decided.
    by_layout: bool,
}

// === impl Channel ===

impl Channel {
    /// For blobs and results of actions, which are where a layout says.
    pub(super) fn data(link: Arc<Link>, roster: watch::Receiver<Arc<Roster>>) -> Channel {
        Channel { link, roster, lane: Lane::Data, by_layout: true }
    }

    /// For heartbeats and the log.
    pub(super) fn control(link: Arc<Link>, roster: watch::Receiver<Arc<Roster>>) -> Channel {
        Channel { link, roster, lane: Lane::Control, by_layout: false }
    }

    /// For what is as large as a blob, and has no place by a layout.
    pub(super) fn bulk(link: Arc<Link>, roster: watch::Receiver<Arc<Roster>>) -> Channel {
        Channel { link, roster, lane: Lane::Data, by_layout: false }
    }

    /// Makes a call whose messages are cut by hand; returns when its answer begins, and has not failed at once.
    pub(super) async fn begin(&self, path: &'static str, body: Body) -> Result<http::Response<Incoming>, PeerError> {
        let mut request = http::Request::new(body);
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = Uri::from_static(path);
        request.headers_mut().insert(http::header::CONTENT_TYPE, CONTENT_TYPE);
        request.headers_mut().insert(http::header::TE, http::HeaderValue::from_static("trailers"));
        let response = self.send(request).await?;
        if response.status() != http::StatusCode::OK {
            return Err(PeerError::nonsense("the answer is not one of gRPC"));
        }
        match Status::from_header_map(response.headers()) {
            Some(status) if status.code() != tonic::Code::Ok => Err(PeerError::answered(status)),
            _ => Ok(response),
        }
    }

    async fn send(&self, mut request: http::Request<Body>) -> Result<http::Response<Incoming>, CallError> {
        {
            let roster = self.roster.borrow();
            let Some(here) = roster.here() else { return Err(CallError::Alone) };
            let epoch = self.by_layout.then(|| roster.epoch());
            metadata::add(request.headers_mut(), here, roster.protocol(), self.link.node(), epoch);
            if FOR_REPAIR.try_with(|()| ()).is_ok() {
                request.headers_mut().insert(PURPOSE, http::HeaderValue::from_static(PURPOSE_REPAIR));
            }
        }
        // Heartbeats find out whether it is back. Until then nobody waits for connections to it.
        if self.lane == Lane::Data && !self.link.health().reachable {
            return Err(CallError::Silent);
        }
        *request.uri_mut() = absolute(request.uri());
        let response = tokio::select! {
            response = self.send_once_more(request) => response?,
            () = self.link.lost() => return Err(CallError::Silent),
        };
        // Whoever answers so is not who is meant: another node under its address, or one that is in no cluster (yet).
        if Status::from_header_map(response.headers()).is_some_and(|status| status.code() == Code::FailedPrecondition) {
            self.link.denied();
        } else {
            self.link.answered(metadata::epoch(response.headers()));
        }
        Ok(response)
    }

    /// A request that was not sent, because its connection had ended unnoticed, is sent on another one.
    async fn send_once_more(&self, request: http::Request<Body>) -> Result<http::Response<Incoming>, CallError> {
        let mut sender = self.link.sender(self.lane).await?;
        let (request, error) = match sender.try_send_request(request).await {
            Ok(response) => return Ok(response),
            Err(mut failed) => (failed.take_message(), failed.into_error()),
        };
        let Some(request) = request else { return Err(CallError::Broken(Arc::new(error))) };
        let mut sender = self.link.sender(self.lane).await?;
        sender.send_request(request).await.map_err(|error| CallError::Broken(Arc::new(error)))
    }
}

/// For the generated clients.
impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = CallError;
    type Future = BoxFuture<'static, Result<http::Response<Incoming>, CallError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let channel = self.clone();
        Box::pin(async move { channel.send(request).await })
    }
}

/// The same path with a scheme and a host.
pub(super) fn absolute(uri: &Uri) -> Uri {
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let built = Uri::builder().scheme("https").authority(AUTHORITY).path_and_query(path).build();
    built.expect("a path of a request, after a host that is one")
}

/// Waits for an answer that fits a message, to a question.
pub(super) async fn within<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, PeerError> {
    within_time(limits::PEER_CALL_DEADLINE, call).await
}

/// The same, to a call after which something is on disk.
pub(super) async fn until_stored<T>(
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, PeerError> {
    within_time(limits::PEER_STORE_DEADLINE, call).await
}

async fn within_time<T>(
    deadline: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, PeerError> {
    match tokio::time::timeout(deadline, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(PeerError::of(status)),
        Err(_elapsed) => Err(PeerError::TimedOut),
    }
}
