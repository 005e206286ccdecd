//! Listeners: bind, accept, TLS, limits, and the way out.

mod tls;

pub use tls::{HANDSHAKE_DEADLINE, HandshakeError, ListenerTls, Reloaded, TlsError};
