//! Listeners: bind, accept, TLS, limits, and the way out.
