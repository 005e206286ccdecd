//! Listeners: bind, accept, TLS, limits, and the way out; and the admin port.

mod admin;
mod calls;
mod connection;
mod end;
mod linger;
mod listener;
mod owner_socket;
#[cfg(test)]
mod peers_inventories_test;
#[cfg(test)]
mod peers_refused_test;
#[cfg(test)]
mod peers_test;
#[cfg(test)]
mod peers_testing;
mod tls;

pub use admin::AdminPort;
pub use connection::App;
pub use end::{End, Ended};
pub use listener::{BindError, Bound};
pub use owner_socket::OwnerSocket;
pub use tls::{HANDSHAKE_DEADLINE, HandshakeError, ListenerTls, Reloaded, TlsError};
