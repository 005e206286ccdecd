//! The check of a client's certificate and key within a TLS handshake.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::certificate::Parsed;
use super::credentials::crypto;
use super::identity::Identity;
use super::trust::{Distrust, Trust};

/// Why a client's certificate was refused, and which one it was.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("the client's certificate {certificate} is refused: {why}")]
pub struct Refusal {
    /// What it says: as printed by [`ClientCertificate`](super::ClientCertificate).
    pub certificate: String,
    /// The reason.
    pub why: Distrust,
}

/// Checks the certificate and the key of the client of *one* connection, against the trust that was in force when the
/// connection came, and keeps the outcome: rustls itself tells a failed handshake's reason without saying whose it was.
///
/// A certificate that is listed is accepted byte for byte, whatever its form: the ones that BuildStream's documentation
/// makes are CA:TRUE, which stock verification refuses from clients. The handshake's signature is verified with the
/// certificate's key in every case, so that a listed certificate (it is no secret) is worth nothing without its key.
pub struct ClientVerifier {
    trust: Arc<Trust>,
    /// Set before the key is proven: worth nothing until the handshake has succeeded.
    claimed: OnceLock<Identity>,
    refused: OnceLock<Refusal>,
}

// === impl ClientVerifier ===

impl ClientVerifier {
    /// For one connection.
    pub fn new(trust: Arc<Trust>) -> Arc<ClientVerifier> {
        Arc::new(ClientVerifier { trust, claimed: OnceLock::new(), refused: OnceLock::new() })
    }

    /// Who the client is, once the handshake has succeeded.
    pub(crate) fn identity(&self) -> Option<Identity> {
        if self.refused.get().is_some() {
            return None;
        }
        self.claimed.get().cloned()
    }

    /// Why the client's certificate was refused, when the handshake failed for that.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        self.refused.get().cloned()
    }

    fn refuse(&self, certificate: String, why: Distrust) -> Error {
        let error = Error::InvalidCertificate(CertificateError::from(&why));
        // There is one certificate a connection; a second refusal would be of the same one.
        let _ = self.refused.set(Refusal { certificate, why });
        error
    }

    fn key_proven(
        &self,
        outcome: Result<HandshakeSignatureValid, Error>,
        certificate: &CertificateDer<'_>,
    ) -> Result<HandshakeSignatureValid, Error> {
        if let Err(error) = &outcome {
            let who = Parsed::read(certificate).map_or_else(String::new, |parsed| parsed.names.to_string());
            let why = match error {
                Error::InvalidCertificate(CertificateError::BadSignature) => Distrust::KeyNotProven,
                Error::InvalidCertificate(other) => Distrust::Other(other.clone()),
                _ => Distrust::KeyNotProven,
            };
            self.refuse(who, why);
        }
        outcome
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // None: a client that is shown hints holds back a self-signed certificate that they do not name.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let Some(leaf) = Parsed::read(end_entity) else {
            return Err(self.refuse("(unreadable)".to_owned(), Distrust::Unreadable));
        };
        match self.trust.judge(&leaf, intermediates, now) {
            Ok(vouched) => {
                // Asked once a connection: there is no renegotiation, and no certificate after the handshake.
                let _ = self.claimed.set(self.trust.admit(leaf, intermediates, vouched));
                Ok(ClientCertVerified::assertion())
            }
            Err(why) => Err(self.refuse(leaf.names.to_string(), why)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = crypto().signature_verification_algorithms;
        self.key_proven(verify_tls12_signature(message, certificate, signature, &algorithms), certificate)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = crypto().signature_verification_algorithms;
        self.key_proven(verify_tls13_signature(message, certificate, signature, &algorithms), certificate)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto().signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier").finish_non_exhaustive()
    }
}
