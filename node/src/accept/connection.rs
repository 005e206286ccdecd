//! One connection: HTTP/2 over whatever carries it, until it ends or is told to.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::body::Body;
use tower::Service;
use tower::util::BoxCloneSyncService;

use crate::accept::end::Ended;
use crate::config::limits;
use crate::observe::counters::COUNTERS;
use crate::observe::labels::Refused;

/// What answers requests, behind the access check.
pub type App = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Infallible>;

/// The bytes with which every HTTP/2 client begins. A connection on which they did not come has no request.
const PREFACE_BYTES: usize = 24;

/// How long a client may take to send them. After that the connection is cut: it costs memory and a place.
const PREFACE_DEADLINE: Duration = Duration::from_secs(10);

/// How long requests under way may go on after their client's access was withdrawn.
const WITHDRAWN_DEADLINE: Duration = Duration::from_secs(10);

/// What may be under way on one connection.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    window_bytes: u32,
    streams: u32,
    /// Requests that may be given up before they were looked at; the library's choice if `None`.
    early_resets: Option<usize>,
    /// Streams in all that may end with a breach of the protocol or by crossing frames.
    faulty_streams: Option<usize>,
}

// === impl Bounds ===

impl Bounds {
    /// Of one client, who may be anyone.
    pub(super) const CLIENT: Bounds = Bounds {
        window_bytes: limits::CONNECTION_WINDOW_BYTES,
        streams: limits::STREAMS_PER_CONNECTION_MAX,
        early_resets: None,
        faulty_streams: Some(1024),
    };

    /// Of another instance on the same directory, with all its clients. What one of them does must not end it.
    pub(super) const INSTANCE: Bounds = Bounds {
        window_bytes: limits::INSTANCE_CONNECTION_WINDOW_BYTES,
        streams: limits::INSTANCE_STREAMS_MAX,
        early_resets: Some(limits::INSTANCE_STREAMS_MAX as usize),
        faulty_streams: None,
    };
}

/// Serves a connection until the client closes it, `ended` says so, or `withdrawn` returns. In the latter cases requests
/// under way are finished first, for a while.
///
/// # Cancel safety
/// Dropped, the connection is cut.
pub(super) async fn serve<I, S>(
    io: I,
    service: S,
    bounds: Bounds,
    mut ended: Ended,
    withdrawn: impl Future<Output = ()> + Send,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<http::Request<Incoming>, Response = http::Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let received = Arc::new(AtomicUsize::new(0));
    let has_begun = || received.load(Ordering::Relaxed) >= PREFACE_BYTES;
    let io = Beginning { io, received: Arc::clone(&received) };
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(bounds.window_bytes)
        .max_frame_size(limits::FRAME_BYTES)
        .max_concurrent_streams(bounds.streams)
        .max_pending_accept_reset_streams(bounds.early_resets)
        .max_local_error_reset_streams(bounds.faulty_streams)
        .max_header_list_size(limits::HEADERS_BYTES)
        .keep_alive_interval(limits::KEEPALIVE_INTERVAL)
        .keep_alive_timeout(limits::KEEPALIVE_TIMEOUT)
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(service));
    tokio::pin!(connection, withdrawn);
    let silence = async {
        tokio::time::sleep(PREFACE_DEADLINE).await;
        if has_begun() {
            std::future::pending::<()>().await;
        }
    };
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = silence => {
            COUNTERS.connections_refused.add(Refused::Silent as usize, 1);
            return tracing::debug!("a client that said nothing was cut off");
        }
        // Whoever drains the listener has a deadline for it.
        () = ended.reached() => {
            if !has_begun() {
                return;
            }
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = withdrawn.as_mut() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(WITHDRAWN_DEADLINE, connection).await {
                Ok(outcome) => outcome,
                Err(_elapsed) => return tracing::info!("requests of a client that lost its access were cut off"),
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Counts the first bytes that arrive, until there are [`PREFACE_BYTES`].
struct Beginning<I> {
    io: I,
    received: Arc<AtomicUsize>,
}

impl<I: AsyncRead + Unpin> AsyncRead for Beginning<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, buffer))?;
        let received = self.received.load(Ordering::Relaxed);
        if received < PREFACE_BYTES {
            self.received.store(received + buffer.filled().len() - before, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Beginning<I> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
