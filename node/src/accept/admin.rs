//! The admin port: probes, metrics and status, in plain HTTP/1.1. It says how the node is, and changes nothing.
//!
//! A connection carries one request and lives for a few seconds. When there are too many, the oldest one is cut: an
//! answer takes a moment, so that the oldest is one that is slow or says nothing, and a probe comes through.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use crate::accept::listener::{ACCEPT_PAUSE, BindError, sockets};
use crate::config::ListenAddress;
use crate::observe::counters::COUNTERS;
use crate::observe::snapshot::{Observed, Phase, Snapshot};
use crate::observe::{exposition, metrics, page};

/// Connections at once, on each address of the port: a few probes, scrapers and browsers.
const CONNECTIONS_MAX: usize = 32;

/// How long a connection may live: many times what an answer takes on a busy machine.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(10);

/// How long a client may take for the head of its request.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);

/// Bytes of the head of a request: those of a browser with many cookies, and the least that the library allows.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// Nothing from elsewhere is loaded, nothing runs, and no other page shows this one.
const CONTENT_POLICY: HeaderValue =
    HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'");

/// The admin port, which holds its address and does not accept yet.
pub struct AdminPort {
    address: ListenAddress,
    sockets: Vec<TcpListener>,
}

/// What is answered where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Live,
    Ready,
    Started,
    Metrics,
    Status,
    Ring,
    Blob(Digest),
    Page,
}

// === impl AdminPort ===

impl AdminPort {
    /// Takes the address.
    ///
    /// # Errors
    /// [`BindError`] when it cannot be had.
    pub async fn bind(address: &ListenAddress) -> Result<AdminPort, BindError> {
        let bound = sockets(address).await;
        let sockets = bound.map_err(|source| BindError::Address { address: address.to_string(), source })?;
        let port = sockets.first().and_then(|socket| socket.local_addr().ok()).map_or(0, |bound| bound.port());
        Ok(AdminPort { address: ListenAddress { port, ..address.clone() }, sockets })
    }

    /// Answers for `node`, and never ends by itself.
    ///
    /// # Cancel safety
    /// Dropped, every connection is cut.
    pub async fn serve(self, node: Arc<dyn Observed>) {
        let mut tasks = JoinSet::new();
        for socket in self.sockets {
            tasks.spawn(accept(socket, Arc::clone(&node)));
        }
        while let Some(outcome) = tasks.join_next().await {
            if let Err(error) = outcome {
                tracing::error!(%error, "the admin port failed");
            }
        }
    }
}

impl fmt::Display for AdminPort {
    /// `http://localhost:8982`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.address)
    }
}

async fn accept(socket: TcpListener, node: Arc<dyn Observed>) {
    let mut connections = JoinSet::new();
    let mut by_age: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        tokio::select! {
            accepted = socket.accept() => match accepted {
                Ok((stream, _)) => {
                    by_age.retain(|connection| !connection.is_finished());
                    while by_age.len() >= CONNECTIONS_MAX {
                        if let Some(oldest) = by_age.pop_front() {
                            oldest.abort();
                        }
                    }
                    by_age.push_back(connections.spawn(serve(stream, Arc::clone(&node))));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection to the admin port could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(outcome) = connections.join_next() => {
                if let Err(error) = outcome
                    && !error.is_cancelled()
                {
                    tracing::error!(%error, "a connection of the admin port failed");
                }
            }
        }
    }
}

async fn serve(stream: TcpStream, node: Arc<dyn Observed>) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let node = Arc::clone(&node);
        async move { Ok::<_, Infallible>(answer(request.method(), request.uri().path(), &node).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer);
    match tokio::time::timeout(CONNECTION_DEADLINE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection to the admin port broke"),
        Err(_elapsed) => tracing::debug!("a connection to the admin port took too long and was cut off"),
    }
}

impl Route {
    fn of(path: &str) -> Option<Route> {
        Some(match path {
            "/livez" => Route::Live,
            "/readyz" => Route::Ready,
            "/startupz" => Route::Started,
            "/metrics" => Route::Metrics,
            "/status.json" => Route::Status,
            "/ring.json" => Route::Ring,
            "/" => Route::Page,
            _ => return path.strip_prefix("/blobs/")?.parse().ok().map(Route::Blob),
        })
    }
}

async fn answer(method: &Method, path: &str, node: &Arc<dyn Observed>) -> Response<Full<Bytes>> {
    let Some(route) = Route::of(path) else {
        return text(StatusCode::NOT_FOUND, "there is no such page: see /");
    };
    if ![Method::GET, Method::HEAD].contains(method) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "this port only tells: use GET");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match route {
        // Whoever reads this has had an answer from the loop that serves everybody.
        Route::Live => text(StatusCode::OK, "alive"),
        Route::Ready => match node.phase() {
            Phase::Serving => text(StatusCode::OK, "ready"),
            Phase::Starting => text(StatusCode::SERVICE_UNAVAILABLE, "not ready: the store is being opened"),
            Phase::Joining => text(StatusCode::SERVICE_UNAVAILABLE, "not ready: the node looks for its cluster"),
            Phase::Draining => text(StatusCode::SERVICE_UNAVAILABLE, "not ready: the node is stopping"),
        },
        Route::Started => match node.phase() {
            Phase::Starting => text(StatusCode::SERVICE_UNAVAILABLE, "not started: the store is being opened"),
            Phase::Joining | Phase::Serving | Phase::Draining => text(StatusCode::OK, "started"),
        },
        Route::Metrics | Route::Status | Route::Page => match snapshot(node).await {
            Some(snapshot) => made_of(route, &snapshot),
            None => text(StatusCode::INTERNAL_SERVER_ERROR, "the node could not be looked at"),
        },
        Route::Ring => json_or_none(node.ring().as_ref()),
        Route::Blob(digest) => json_or_none(node.whereabouts(&digest).await.as_ref()),
    }
}

/// Of what there is only in a cluster.
fn json_or_none(data: Option<&impl Serialize>) -> Response<Full<Bytes>> {
    match data {
        Some(data) => json(data),
        None => text(StatusCode::SERVICE_UNAVAILABLE, "the node is in no cluster (yet)"),
    }
}

fn json(data: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_string_pretty(data) {
        Ok(json) => response(StatusCode::OK, HeaderValue::from_static("application/json"), json + "\n"),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the answer cannot be written"),
    }
}

/// On a thread that may wait for the disk, so that the probes never do.
async fn snapshot(node: &Arc<dyn Observed>) -> Option<Snapshot> {
    let node = Arc::clone(node);
    tokio::task::spawn_blocking(move || node.snapshot()).await.ok()
}

fn made_of(route: Route, snapshot: &Snapshot) -> Response<Full<Bytes>> {
    match route {
        Route::Metrics => response(
            StatusCode::OK,
            HeaderValue::from_static(exposition::CONTENT_TYPE),
            metrics::expose(&COUNTERS, snapshot),
        ),
        Route::Page => {
            let html = HeaderValue::from_static("text/html; charset=utf-8");
            response(StatusCode::OK, html, page::html(snapshot))
        }
        _ => json(snapshot),
    }
}

fn text(status: StatusCode, line: &str) -> Response<Full<Bytes>> {
    response(status, HeaderValue::from_static("text/plain; charset=utf-8"), format!("{line}\n"))
}

fn response(status: StatusCode, content_type: HeaderValue, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, CONTENT_POLICY);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::cluster::{Copy, Holder, Ring, Whereabouts};
    use futures_util::future::BoxFuture;
    use http_body_util::BodyExt as _;

    struct Fixed(Phase);

    impl Observed for Fixed {
        fn phase(&self) -> Phase {
            self.0
        }

        fn snapshot(&self) -> Snapshot {
            Snapshot { phase: self.0, ..Snapshot::sample() }
        }

        fn ring(&self) -> Option<Ring> {
            None
        }

        fn whereabouts<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Option<Whereabouts>> {
            let nodes = vec![Holder { id: 1, name: "node-1".into(), owner: true, copy: Copy::Present }];
            Box::pin(async move { Some(Whereabouts { digest: digest.to_string(), partition: 5, nodes }) })
        }
    }

    async fn get(phase: Phase, path: &str) -> (u16, String) {
        let node: Arc<dyn Observed> = Arc::new(Fixed(phase));
        let response = answer(&Method::GET, path, &node).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn probes_follow_the_life_of_the_node() {
        for (phase, live, started, ready) in [
            (Phase::Starting, 200, 503, 503),
            (Phase::Joining, 200, 200, 503),
            (Phase::Serving, 200, 200, 200),
            (Phase::Draining, 200, 200, 503),
        ] {
            for (path, status) in [("/livez", live), ("/startupz", started), ("/readyz", ready)] {
                assert_eq!(get(phase, path).await.0, status, "{phase:?} {path}");
            }
        }
        assert_eq!(get(Phase::Starting, "/readyz").await.1, "not ready: the store is being opened\n");
        assert_eq!(get(Phase::Draining, "/readyz").await.1, "not ready: the node is stopping\n");
    }

    #[tokio::test]
    async fn other_paths_and_other_methods_are_refused() {
        for path in ["/x", "/livez/", "//", "/status", "/metrics/x", "/google.bytestream.ByteStream/Read", "*"] {
            assert_eq!(get(Phase::Serving, path).await.0, 404, "{path}");
        }
        let node: Arc<dyn Observed> = Arc::new(Fixed(Phase::Serving));
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::CONNECT] {
            let response = answer(&method, "/readyz", &node).await;
            assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
            assert_eq!(response.headers()[header::ALLOW], "GET, HEAD");
        }
    }

    #[tokio::test]
    async fn a_blob_is_asked_for_by_its_digest_and_by_nothing_else() {
        let hash = "a".repeat(64);
        let (status, body) = get(Phase::Serving, &format!("/blobs/{hash}/7")).await;
        assert_eq!(status, 200);
        let told: Whereabouts = serde_json::from_str(&body).unwrap();
        assert_eq!(told.digest, format!("{hash}/7"));
        for path in ["/blobs/", "/blobs/x", &format!("/blobs/{hash}"), &format!("/blobs/{hash}/-7"), "/blobs/md9/aa/1"]
        {
            assert_eq!(get(Phase::Serving, path).await.0, 404, "{path}");
        }
    }

    #[tokio::test]
    async fn what_only_a_cluster_has_is_not_made_up() {
        assert_eq!(get(Phase::Serving, "/ring.json").await, (503, "the node is in no cluster (yet)\n".to_owned()));
    }

    #[tokio::test]
    async fn pages_say_what_they_are() {
        let node: Arc<dyn Observed> = Arc::new(Fixed(Phase::Serving));
        for (path, content_type) in [
            ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
            ("/status.json", "application/json"),
            ("/", "text/html; charset=utf-8"),
            ("/livez", "text/plain; charset=utf-8"),
        ] {
            let response = answer(&Method::GET, path, &node).await;
            assert_eq!(response.headers()[header::CONTENT_TYPE], content_type, "{path}");
            assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
        }
    }
}
