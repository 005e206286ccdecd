//! The socket in the directory, through which further instances on the same directory are served by its owner.
//!
//! Whoever may open the directory may connect, nobody else: the socket's mode is 0600, and the kernel tells who comes.
//! An instance has already decided what its client may do; it says so in a header that is believed here and nowhere else.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::Either;
use hyper::body::Incoming;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use crate::accept::connection::{self, App, Bounds};
use crate::accept::end::Ended;
use crate::accept::listener::ACCEPT_PAUSE;
use crate::authenticate::Gate;
use crate::config::limits;
use crate::forward::{ShortPath, socket_path};
use crate::serve::Access;

/// The socket of the directory's owner.
pub struct OwnerSocket {
    listener: UnixListener,
    path: PathBuf,
}

// === impl OwnerSocket ===

impl OwnerSocket {
    /// Listens in this directory, which the caller owns: what an earlier owner left there is removed.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn bind(directory: &Path) -> io::Result<OwnerSocket> {
        let path = socket_path(directory);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Not given away: it has to live until the socket is made.
        let short = ShortPath::to(&path)?;
        let listener = UnixListener::bind(&short)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(OwnerSocket { listener, path })
    }

    /// Serves further instances until `ended`.
    ///
    /// # Cancel safety
    /// Dropped, their connections are cut.
    pub async fn serve(self, app: App, mut ended: Ended) {
        let mut connections = JoinSet::new();
        let places = Arc::new(Semaphore::new(limits::INSTANCE_CONNECTIONS_MAX));
        loop {
            // A connection that was accepted has a place; one without a place waits in the kernel's queue.
            let next = async {
                let place = Arc::clone(&places).acquire_owned().await.expect("this semaphore is never closed");
                (self.listener.accept().await, place)
            };
            tokio::select! {
                (accepted, place) = next => match accepted {
                    Ok((stream, _)) if comes_from_us(&stream) => {
                        let (instance, ended) = (Instance { app: app.clone() }, ended.clone());
                        connections.spawn(async move {
                            connection::serve(stream, instance, Bounds::INSTANCE, ended, std::future::pending()).await;
                            drop(place);
                        });
                    }
                    Ok(_) => tracing::warn!("another user tried the socket of the directory and was sent away"),
                    Err(error) => {
                        tracing::warn!(%error, "an instance on the same directory could not connect");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                () = ended.reached() => break,
            }
        }
        // The next owner makes its own.
        drop(std::fs::remove_file(&self.path));
        drop(self.listener);
        while connections.join_next().await.is_some() {}
    }
}

/// Whether the other end runs as the same user, or as root.
fn comes_from_us(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

/// The services, for another instance that says whom it speaks for.
#[derive(Clone)]
struct Instance {
    app: App,
}

impl Service<http::Request<Incoming>> for Instance {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Either<
        <Gate<App> as Service<http::Request<Body>>>::Future,
        std::future::Ready<Result<Self::Response, Infallible>>,
    >;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.app.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Incoming>) -> Self::Future {
        match Access::from_header(request.headers()) {
            // What the instance does not offer, it has refused already.
            Some(access) => Either::Left(Gate::new(self.app.clone(), access, true).call(request.map(Body::new))),
            None => {
                let status = Status::permission_denied("the instance did not say for whom it asks");
                Either::Right(std::future::ready(Ok(status.into_http())))
            }
        }
    }
}
