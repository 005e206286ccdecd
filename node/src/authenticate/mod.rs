//! Who is it (certificate to identity), and what may it do (identity to role to operation).
//!
//! A client is who its certificate says once three things hold: the handshake's signature proved the private key, the
//! certificate is listed or was issued by somebody the operator named, and it is within its validity. [`Identity`] is
//! only made where all three were checked.

mod authorize;
mod certificate;
mod credentials;
mod error;
mod identity;
mod peer_trust;
mod pem;
mod server_trust;
mod source;
pub mod throwaway;
mod trust;
mod verifier;

#[cfg(test)]
pub(crate) mod test_certificates;

pub use authorize::Gate;
pub use certificate::{AlternativeName, ClientCertificate, Fingerprint};
pub(crate) use credentials::watch_key;
pub use credentials::{crypto, load_key};
pub use error::TlsError;
pub use identity::{Identity, Vouched};
pub use peer_trust::{peer_client_config, peer_crypto};
pub use server_trust::{ServerTrust, client_config};
pub(crate) use source::Source;
pub(crate) use trust::WatchedTrust;
pub use trust::{Distrust, Trust, TrustFiles};
pub use verifier::{ClientVerifier, Refusal};
