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
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tonic::body::Body;
use tower::Service;
use tower::util::BoxCloneSyncService;

use crate::accept::calls::Calls;
use crate::accept::end::Ended;
use crate::accept::linger::Linger;
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

/// How long requests under way may go on after their connection has come of age: as long as the largest blobs take on
/// slow lines.
const AGED_DEADLINE: Duration = Duration::from_secs(3600);

/// By how much the age of a connection may be longer or shorter than configured, so that clients that came together do
/// not come again together.
const AGE_SPREAD: f64 = 0.1;

const KEEPALIVE: (Duration, Duration) = (limits::KEEPALIVE_INTERVAL, limits::KEEPALIVE_TIMEOUT);

/// What may be under way on one connection, and how old it may become.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    stream_window_bytes: u32,
    window_bytes: u32,
    streams: u32,
    /// Requests that may be given up before they were looked at; the library's choice if `None`.
    early_resets: Option<usize>,
    /// Streams in all that may end with a breach of the protocol or by crossing frames.
    faulty_streams: Option<usize>,
    /// After how long a silence the client is asked whether it lives, and how long it may take to answer.
    keepalive: (Duration, Duration),
    /// After this time the client is asked to connect again.
    age: Option<Duration>,
    /// How long a client may take nothing of an answer.
    stall: Duration,
}

// === impl Bounds ===

impl Bounds {
    /// Of one client, who may be anyone, whose connection may become about as old as this, and who may take nothing of an answer
    /// for so long.
    pub(super) fn client(age: Option<Duration>, stall: Duration) -> Bounds {
        Bounds {
            stream_window_bytes: limits::STREAM_WINDOW_BYTES,
            window_bytes: limits::CONNECTION_WINDOW_BYTES,
            streams: limits::STREAMS_PER_CONNECTION_MAX,
            early_resets: None,
            faulty_streams: Some(1024),
            keepalive: KEEPALIVE,
            age: age.map(|age| age.mul_f64(rand::random_range(1.0 - AGE_SPREAD..=1.0 + AGE_SPREAD))),
            stall,
        }
    }

    /// Of another instance on the same directory, with all its clients. What one of them does must not end it.
    pub(super) const INSTANCE: Bounds = Bounds {
        stream_window_bytes: limits::STREAM_WINDOW_BYTES,
        window_bytes: limits::INSTANCE_CONNECTION_WINDOW_BYTES,
        streams: limits::INSTANCE_STREAMS_MAX,
        early_resets: Some(limits::INSTANCE_STREAMS_MAX as usize),
        faulty_streams: None,
        keepalive: KEEPALIVE,
        age: None,
        stall: Duration::MAX,
    };

    /// Of another node, which gives up calls by the hundred when one of its clients goes away.
    pub(super) const PEER: Bounds = Bounds {
        stream_window_bytes: limits::PEER_STREAM_WINDOW_BYTES,
        window_bytes: limits::PEER_CONNECTION_WINDOW_BYTES,
        streams: limits::PEER_STREAMS_MAX,
        early_resets: Some(limits::PEER_STREAMS_MAX as usize),
        faulty_streams: None,
        keepalive: (limits::PEER_KEEPALIVE_INTERVAL, limits::PEER_KEEPALIVE_TIMEOUT),
        age: None,
        stall: Duration::MAX,
    };
}

/// Serves a connection until the client closes it, it is as old as `bounds` allow, `ended` says so, or `withdrawn` returns.
/// In the latter cases the client is told (GOAWAY), and requests under way are finished first, for a while.
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
    let io = Stream { io, received: Arc::clone(&received), linger: None };
    let connection = http2::Builder::new(Calls::new(bounds.stall))
        .timer(TokioTimer::new())
        .initial_stream_window_size(bounds.stream_window_bytes)
        .initial_connection_window_size(bounds.window_bytes)
        .max_frame_size(limits::FRAME_BYTES)
        .max_concurrent_streams(bounds.streams)
        .max_pending_accept_reset_streams(bounds.early_resets)
        .max_local_error_reset_streams(bounds.faulty_streams)
        .max_header_list_size(limits::HEADERS_BYTES)
        .keep_alive_interval(bounds.keepalive.0)
        .keep_alive_timeout(bounds.keepalive.1)
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(service));
    let silence = async {
        tokio::time::sleep(PREFACE_DEADLINE).await;
        if has_begun() {
            std::future::pending::<()>().await;
        }
    };
    let aged = async {
        match bounds.age {
            Some(age) => tokio::time::sleep(age).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(connection, withdrawn, silence, aged);
    // Each of them comes once at most, and the later ones still count while the earlier ones are waited for.
    let (mut is_ending, mut is_withdrawn, mut is_aged) = (false, false, false);
    let cut = tokio::time::sleep(Duration::MAX);
    tokio::pin!(cut);
    let outcome = loop {
        tokio::select! {
            outcome = connection.as_mut() => break outcome,
            () = silence.as_mut() => {
                COUNTERS.connections_refused.add(Refused::Silent as usize, 1);
                return tracing::debug!("a client that said nothing was cut off");
            }
            // Whoever drains the listener has a deadline for it.
            () = ended.reached(), if !is_ending => {
                if !has_begun() {
                    return;
                }
                is_ending = true;
            }
            () = withdrawn.as_mut(), if !is_withdrawn => {
                is_withdrawn = true;
                cut.as_mut().reset(Instant::now() + WITHDRAWN_DEADLINE);
            }
            () = aged.as_mut(), if !is_aged && !is_withdrawn => {
                is_aged = true;
                cut.as_mut().reset(Instant::now() + AGED_DEADLINE);
            }
            () = cut.as_mut() => match is_withdrawn {
                true => return tracing::info!("requests of a client that lost its access were cut off"),
                false => return tracing::info!("requests on a connection of old age were cut off"),
            },
        }
        connection.as_mut().graceful_shutdown();
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Counts the first bytes that arrive, until there are [`PREFACE_BYTES`]; and ends when both sides have hung up.
struct Stream<I> {
    io: I,
    received: Arc<AtomicUsize>,
    /// Once our side is closed.
    linger: Option<Linger>,
}

impl<I: AsyncRead + Unpin> AsyncRead for Stream<I> {
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

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<I> {
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
        let Stream { io, linger, .. } = &mut *self;
        let linger = match linger {
            Some(linger) => linger,
            None => {
                ready!(Pin::new(&mut *io).poll_shutdown(context))?;
                linger.insert(Linger::begin())
            }
        };
        linger.poll(io, context).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_came_together_do_not_end_together() {
        let hour = Duration::from_secs(3600);
        let ages: Vec<Duration> = (0..100).filter_map(|_| Bounds::client(Some(hour), hour).age).collect();
        assert!(ages.iter().all(|age| (hour.mul_f64(0.899)..=hour.mul_f64(1.101)).contains(age)), "{ages:?}");
        let (first, last) = (ages.iter().min().unwrap(), ages.iter().max().unwrap());
        assert!(*last - *first > Duration::from_secs(60), "{ages:?}");
        assert_eq!(Bounds::client(None, hour).age, None);
    }
}
