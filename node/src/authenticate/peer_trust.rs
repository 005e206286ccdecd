//! Nodes among themselves: how the one that connects trusts the one that answers, and the TLS of both.
//!
//! Whoever holds a certificate that an authority for nodes issued is a peer. The name in it is not looked at: nodes are
//! dialled by whatever name or address leads to them, and each says who it is once the connection is there.

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use super::credentials::crypto;
use super::trust::Trust;

/// The protocol that every casbah listener speaks, as ALPN names it (RFC 9113, 3.1).
const ALPN_H2: &[u8] = b"h2";

/// Cryptography between nodes: as everywhere, with the cheapest cipher first. With a key of 128 bits a GiB costs a third less
/// than with the 256 that rustls prefers, and is as far out of reach.
pub fn peer_crypto() -> Arc<CryptoProvider> {
    let mut provider = (*crypto()).clone();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

/// How a node connects to its peers: it shows this certificate, and trusts what the authorities issued.
///
/// # Errors
/// When rustls refuses the configuration, which does not depend on any file.
pub fn peer_client_config(pair: &Arc<CertifiedKey>, trust: &Arc<Trust>) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(peer_crypto())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PeerVerifier { trust: Arc::clone(trust) }))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(pair))));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    // Certificates are looked at each time: connections are few, and a resumed session is not verified again.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Trusts a server by its chain, its period and its purpose, under any name.
struct PeerVerifier {
    trust: Arc<Trust>,
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _any_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.trust.judge_server(end_entity, intermediates, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(error) => Err(Error::InvalidCertificate(error)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &crypto().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &crypto().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto().signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerVerifier").finish_non_exhaustive()
    }
}

impl Trust {
    /// Whether a server's certificate was issued by one of the authorities, is within its period and for servers.
    ///
    /// # Errors
    /// Why not.
    fn judge_server(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        let roots = self.authority_roots(now);
        let parsed = rustls::server::ParsedCertificate::try_from(end_entity);
        let parsed = parsed.map_err(|_unreadable| CertificateError::BadEncoding)?;
        let algorithms = crypto().signature_verification_algorithms.all;
        let verified =
            rustls::client::verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, now, algorithms);
        match verified {
            Ok(()) => Ok(()),
            Err(Error::InvalidCertificate(error)) => Err(error),
            Err(_) => Err(CertificateError::ApplicationVerificationFailure),
        }
    }
}
