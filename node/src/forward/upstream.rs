//! The way to the process that owns the directory: its socket there, and requests sent on unchanged.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tonic::body::Body;

use crate::config::limits;
use crate::forward::socket::ShortPath;

/// The owner of the directory, reached through its socket. Cheap to clone; one connection serves all clones.
#[derive(Clone)]
pub struct Upstream {
    socket: Arc<PathBuf>,
    connection: Arc<Mutex<Option<SendRequest<Body>>>>,
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// It was not sent: nobody answers at the socket. The request is handed back.
    #[error("the process that owns the directory cannot be reached")]
    NotSent {
        /// As it was given.
        request: Box<http::Request<Body>>,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It was sent, and no answer came. It may have been carried out.
    #[error("the process that owns the directory went away before it answered")]
    Broken(#[source] hyper::Error),
}

// === impl Upstream ===

impl Upstream {
    /// The owner that listens at `socket`. Nothing is connected yet.
    pub fn new(socket: PathBuf) -> Upstream {
        Upstream { socket: Arc::new(socket), connection: Arc::default() }
    }

    /// Sends the request on and returns the answer as it comes.
    ///
    /// # Errors
    /// [`UpstreamError`] tells whether the request may be given to somebody else.
    pub async fn send(&self, request: http::Request<Body>) -> Result<http::Response<Incoming>, UpstreamError> {
        let mut connection = match self.connection().await {
            Ok(connection) => connection,
            Err(source) => return Err(UpstreamError::NotSent { request: Box::new(request), source }),
        };
        connection.try_send_request(request).await.map_err(|mut error| match error.take_message() {
            Some(request) => {
                let source = io::Error::other(error.into_error());
                UpstreamError::NotSent { request: Box::new(request), source }
            }
            None => UpstreamError::Broken(error.into_error()),
        })
    }

    /// The connection, made anew when there is none that lives.
    async fn connection(&self) -> io::Result<SendRequest<Body>> {
        let mut connection = self.connection.lock().await;
        if let Some(live) = connection.as_mut()
            && live.ready().await.is_ok()
        {
            return Ok(live.clone());
        }
        // Not given away: it has to live until the socket is reached.
        let short = ShortPath::to(&self.socket)?;
        let stream = UnixStream::connect(&short).await?;
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(limits::INSTANCE_CONNECTION_WINDOW_BYTES)
            // What one client does, such as giving up many requests, must not end the connection of all.
            .max_concurrent_reset_streams(limits::INSTANCE_STREAMS_MAX as usize)
            .max_local_error_reset_streams(None)
            .max_frame_size(limits::FRAME_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        // Ends by itself when the connection does, or when the last sender is dropped.
        tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "the connection to the owner of the directory ended");
            }
        });
        *connection = Some(sender.clone());
        Ok(sender)
    }
}
