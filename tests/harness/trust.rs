//! Whom a client trusts, and what it shows.

use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, SupportedProtocolVersion};

use crate::authority::{Identity, certificates};

/// How a client tells the server's certificate.
#[derive(Debug, Clone)]
pub enum Trust {
    /// This authority (PEM) has issued it for the name that was called.
    Authority(String),
    /// It is this very one (PEM), whatever its names: the documented ones have none that rustls would take.
    Exactly(String),
}

/// TLS with a server of this name, wherever it is.
#[derive(Debug, Clone)]
pub struct Tls {
    /// As its certificate has it.
    pub server: String,
    /// Whom to trust, and what to show.
    pub config: Arc<ClientConfig>,
}

// === impl Trust ===

impl Trust {
    /// The rustls configuration of a client that trusts so, shows this certificate and speaks these versions. It resumes
    /// sessions, as real clients do: what a server must not resume, it must not offer to.
    ///
    /// # Errors
    /// When a PEM is not one.
    pub fn config(
        &self,
        identity: Option<&Identity>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Result<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions)?;
        let builder = match self {
            Trust::Authority(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(pem)? {
                    roots.add(certificate)?;
                }
                builder.with_root_certificates(roots)
            }
            Trust::Exactly(pem) => {
                let trusted = certificates(pem)?.into_iter().next().context("no certificate in the PEM")?;
                builder.dangerous().with_custom_certificate_verifier(Arc::new(ExactVerifier { trusted, provider }))
            }
        };
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                // Not with_client_auth_cert: it notices a key that does not fit, which is for the server to notice.
                let key = rustls::crypto::ring::sign::any_supported_type(&identity.key()?)?;
                let shown = rustls::sign::CertifiedKey::new(identity.certificates()?, key);
                builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(shown)))
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = rustls::client::Resumption::in_memory_sessions(16);
        Ok(config)
    }
}

/// Accepts one certificate, whose holder still has to prove that it has the key.
#[derive(Debug)]
struct ExactVerifier {
    trusted: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ExactVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if end_entity.as_ref() == self.trusted.as_ref() {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::CertificateError::UnknownIssuer.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
