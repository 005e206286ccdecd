//! The other side: how casbah's own client commands trust a server.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::certificate::{Outside, Parsed};
use super::credentials::{crypto, load_key};
use super::error::TlsError;
use super::pem;
use super::trust::CertificateList;

/// The protocol that every casbah listener speaks, as ALPN names it (RFC 9113, 3.1).
const ALPN_H2: &[u8] = b"h2";

/// Where systems keep the certificates of well-known authorities, by distribution: Debian and Alpine, Fedora, older Red
/// Hat, SUSE, BSD and macOS.
const SYSTEM_AUTHORITIES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Trusts a server that shows one of the given certificates, byte for byte, and proves the key; its name does not
/// matter then, since exactly it was named (the documented server certificates have no name that rustls looks at).
/// Any other server is verified as usual, with the given certificates as authorities.
#[derive(Debug)]
pub struct ServerTrust {
    given: CertificateList,
}

/// How a casbah command connects: `authorities` holds the server's certificate or its authority's (the system's
/// authorities are used without it), `identity` the client's certificate and key. Offers HTTP/2 alone.
///
/// # Errors
/// [`TlsError`] when a file cannot be used.
pub fn client_config(authorities: Option<&Path>, identity: Option<(&Path, &Path)>) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(crypto());
    let builder = builder.with_protocol_versions(&[&TLS13, &TLS12]).map_err(TlsError::Setup)?;
    let builder = match authorities {
        Some(path) => builder.dangerous().with_custom_certificate_verifier(Arc::new(ServerTrust::load(path)?)),
        None => builder.with_root_certificates(system_authorities()?),
    };
    let mut config = match identity {
        Some((certificate, key)) => {
            let pair = load_key(certificate, key)?;
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(pair)))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    Ok(config)
}

fn system_authorities() -> Result<RootCertStore, TlsError> {
    let named = std::env::var_os("SSL_CERT_FILE").map(Into::into);
    let known = SYSTEM_AUTHORITIES.iter().map(Into::into);
    let found: Option<std::path::PathBuf> =
        named.or_else(|| known.into_iter().find(|path: &std::path::PathBuf| path.exists()));
    let path = found.ok_or(TlsError::NoSystemAuthorities)?;
    let bytes = pem::read(&path)?;
    let mut roots = RootCertStore::empty();
    // Such files are large and old: what does not parse is left out, as every client does.
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&bytes).filter_map(Result::ok));
    if roots.is_empty() {
        return Err(TlsError::NoCertificate { path });
    }
    Ok(roots)
}

// === impl ServerTrust ===

impl ServerTrust {
    /// Reads the certificates to trust.
    ///
    /// # Errors
    /// [`TlsError`] when the file cannot be used.
    pub fn load(path: &Path) -> Result<ServerTrust, TlsError> {
        Ok(ServerTrust { given: CertificateList::authorized(path, &pem::read(path)?)? })
    }
}

impl ServerCertVerifier for ServerTrust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let leaf = Parsed::read(end_entity).ok_or(CertificateError::BadEncoding)?;
        if self.given.contains(&leaf) {
            return match leaf.validity.check(now) {
                Ok(()) => Ok(ServerCertVerified::assertion()),
                Err(Outside::Before) => Err(CertificateError::NotValidYet.into()),
                Err(Outside::After) => Err(CertificateError::Expired.into()),
            };
        }
        let roots = Arc::new(self.given.roots(now));
        // The builder's only error without revocation lists is that there are no roots.
        let stock = WebPkiServerVerifier::builder_with_provider(roots, crypto()).build();
        let stock = stock.map_err(|_no_roots| CertificateError::UnknownIssuer)?;
        stock.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
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
