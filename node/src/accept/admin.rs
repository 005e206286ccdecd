//! The admin port: probes, metrics and status, in plain HTTP/1.1; and orders of whoever operates the cluster.
//!
//! Everything but orders only tells, and changes nothing. Orders are taken from this machine alone, whatever the address of the
//! port: who may connect from elsewhere may look. And never from a browser, which sends what any page on the web wants.
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
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use crate::accept::listener::{ACCEPT_PAUSE, BindError, sockets};
use crate::config::ListenAddress;
use crate::observe::counters::COUNTERS;
use crate::observe::orders::{Order, OrderError};
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

/// Bytes of an order: each names a node or an epoch.
const ORDER_BYTES_MAX: usize = 4 << 10;

/// Where orders are given.
const ORDERS: &str = "/orders";

/// What an order carries: no form of a page has it, and a script would have to ask for leave, which is not given.
const ORDER_HEADER: &str = "casbah-order";

/// What only browsers send.
const BROWSER_HEADERS: [&str; 3] = ["origin", "sec-fetch-site", "referer"];

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
    Layout,
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
                Ok((stream, from)) => {
                    by_age.retain(|connection| !connection.is_finished());
                    while by_age.len() >= CONNECTIONS_MAX {
                        if let Some(oldest) = by_age.pop_front() {
                            oldest.abort();
                        }
                    }
                    let is_local = from.ip().to_canonical().is_loopback();
                    by_age.push_back(connections.spawn(serve(stream, is_local, Arc::clone(&node))));
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

async fn serve(stream: TcpStream, is_local: bool, node: Arc<dyn Observed>) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let node = Arc::clone(&node);
        async move {
            Ok::<_, Infallible>(match request.uri().path() == ORDERS {
                true => take_order(request, is_local, &node).await,
                false => answer(request.method(), request.uri().path(), &node).await,
            })
        }
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
            "/layout.json" => Route::Layout,
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
        Route::Layout => json_or_none(node.layout().as_ref()),
        Route::Blob(digest) => json_or_none(node.whereabouts(&digest).await.as_ref()),
    }
}

/// Does what is asked for, if it comes from whoever operates this machine.
async fn take_order<B>(request: Request<B>, is_local: bool, node: &Arc<dyn Observed>) -> Response<Full<Bytes>>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if request.method() != Method::POST {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "orders are given by POST");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return response;
    }
    let headers = request.headers();
    if !is_local {
        return text(StatusCode::FORBIDDEN, "orders are taken from the node's own machine only");
    }
    if !headers.contains_key(ORDER_HEADER) || BROWSER_HEADERS.iter().any(|name| headers.contains_key(*name)) {
        return text(StatusCode::FORBIDDEN, "orders are taken from the program's own commands, and from no browser");
    }
    let Ok(body) = Limited::new(request.into_body(), ORDER_BYTES_MAX).collect().await else {
        return text(StatusCode::PAYLOAD_TOO_LARGE, "this is no order: it is too long, or broke off");
    };
    let order: Order = match serde_json::from_slice(&body.to_bytes()) {
        Ok(order) => order,
        Err(error) => return text(StatusCode::BAD_REQUEST, &format!("this is no order: {error}")),
    };
    match node.carry_out(order).await {
        Some(Ok(())) => text(StatusCode::OK, "done"),
        Some(Err(OrderError::Refused { reason })) => text(StatusCode::CONFLICT, &reason),
        Some(Err(OrderError::NotNow { reason })) => text(StatusCode::SERVICE_UNAVAILABLE, &reason),
        None => text(StatusCode::SERVICE_UNAVAILABLE, "the node is in no cluster (yet)"),
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
    use crate::observe::cluster::{Copy, Holder, Layouts, Ring, Whereabouts};
    use futures_util::future::BoxFuture;

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

        fn layout(&self) -> Option<Layouts> {
            None
        }

        fn carry_out(&self, order: Order) -> BoxFuture<'_, Option<Result<(), OrderError>>> {
            Box::pin(async move {
                match order {
                    Order::Drain { node: 3 } => Some(Ok(())),
                    Order::Drain { .. } => Some(Err(OrderError::Refused { reason: "there is no node 4".into() })),
                    Order::Undrain { .. } => Some(Err(OrderError::NotNow { reason: "nobody leads".into() })),
                    _ => None,
                }
            })
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

    async fn give(order: &str, is_local: bool, header: (&str, &str)) -> (u16, String) {
        let node: Arc<dyn Observed> = Arc::new(Fixed(Phase::Serving));
        let request = Request::builder().method(Method::POST).uri(ORDERS).header(header.0, header.1);
        let request = request.body(Full::new(Bytes::from(order.to_owned()))).unwrap();
        let response = take_order(request, is_local, &node).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn an_order_is_carried_out_and_what_came_of_it_is_told() {
        let own = (ORDER_HEADER, "1");
        for (order, status, told) in [
            (r#"{"order":"drain","node":3}"#, 200, "done\n"),
            (r#"{"order":"drain","node":4}"#, 409, "there is no node 4\n"),
            (r#"{"order":"undrain","node":4}"#, 503, "nobody leads\n"),
            (r#"{"order":"apply","epoch":4}"#, 503, "the node is in no cluster (yet)\n"),
        ] {
            assert_eq!(give(order, true, own).await, (status, told.to_owned()), "{order}");
        }
        let long = format!(r#"{{"order":"drain","node":{}}}"#, "3".repeat(5000));
        for (order, status) in [
            ("", 400),
            (r#"{"order":"stop"}"#, 400),
            (r#"{"order":"drain"}"#, 400),
            (r#"{"order":"drain","node":3,"force":true}"#, 400),
            (&long, 413),
        ] {
            assert_eq!(give(order, true, own).await.0, status, "{order}");
        }
    }

    #[tokio::test]
    async fn orders_come_from_this_machine_and_from_no_browser() {
        let order = r#"{"order":"drain","node":3}"#;
        assert_eq!(give(order, false, (ORDER_HEADER, "1")).await.0, 403);
        assert_eq!(give(order, true, ("content-type", "application/json")).await.0, 403);
        let node: Arc<dyn Observed> = Arc::new(Fixed(Phase::Serving));
        for name in BROWSER_HEADERS {
            let request = Request::builder().method(Method::POST).header(ORDER_HEADER, "1").header(name, "x");
            let request = request.body(Full::new(Bytes::from(order))).unwrap();
            assert_eq!(take_order(request, true, &node).await.status(), StatusCode::FORBIDDEN, "{name}");
        }
        for method in [Method::GET, Method::PUT, Method::OPTIONS] {
            let request = Request::builder().method(method).body(Full::new(Bytes::new())).unwrap();
            let response = take_order(request, true, &node).await;
            assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
            assert_eq!(response.headers()[header::ALLOW], "POST");
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
