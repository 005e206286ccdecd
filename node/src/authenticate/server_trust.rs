//! The other side: how casbah's own client commands trust a server.

use std::path::{Path, PathBuf};
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
    // As in OpenSSL: a file that is named there stands for all others, also when it cannot be used.
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let known = || SYSTEM_AUTHORITIES.iter().map(PathBuf::from).find(|path| path.exists());
    well_known_authorities(&named.or_else(known).ok_or(TlsError::NoSystemAuthorities)?)
}

fn well_known_authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let bytes = pem::read(path)?;
    let mut roots = RootCertStore::empty();
    // Such files are large and old: what does not parse is left out, as every client does.
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&bytes).filter_map(Result::ok));
    if roots.is_empty() {
        return Err(TlsError::NoCertificate { path: path.to_owned() });
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
        match stock.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // Stock verification's word for a self-signed certificate of the documented form that was not named.
            Err(Error::InvalidCertificate(CertificateError::Other(_))) if leaf.is_authority => {
                Err(CertificateError::UnknownIssuer.into())
            }
            outcome => outcome,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authenticate::test_certificates::{DOCUMENTED_SERVER, Made, authority_params, day, params};
    use rustls::pki_types::PrivateKeyDer;
    use rustls::sign::{CertifiedKey, SingleCertAndKey};
    use rustls::{ServerConfig, SupportedProtocolVersion};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    fn trust(given: &[&Made]) -> ServerTrust {
        let pems: String = given.iter().map(|made| made.pem.as_str()).collect();
        ServerTrust { given: CertificateList::authorized(Path::new("given.crt"), pems.as_bytes()).unwrap() }
    }

    fn verify(trust: &ServerTrust, shown: &Made, name: &str) -> Result<(), Error> {
        let name = ServerName::try_from(name).unwrap();
        trust.verify_server_cert(&shown.der, &[], &name, &[], UnixTime::now()).map(|_verified| ())
    }

    fn named(name: &str) -> rcgen::CertificateParams {
        let mut params = params("server");
        params.subject_alt_names = vec![rcgen::SanType::DnsName(name.try_into().unwrap())];
        params
    }

    #[test]
    fn the_very_certificate_that_was_named_is_trusted_under_any_name() {
        let (plain, other) = (Made::self_signed(&params("plain")), Made::documented_shape("other"));
        let trust = trust(&[&DOCUMENTED_SERVER, &plain]);
        for name in ["localhost", "cache.example", "10.0.0.1"] {
            assert_eq!(verify(&trust, &DOCUMENTED_SERVER, name), Ok(()));
            assert_eq!(verify(&trust, &plain, name), Ok(()));
            assert_eq!(verify(&trust, &other, name), Err(CertificateError::UnknownIssuer.into()));
        }
    }

    #[test]
    fn what_an_authority_issued_is_trusted_under_its_own_name_alone() {
        let authority = Made::documented_shape("authority");
        let trust = trust(&[&authority]);
        let server = authority.issue(&named("cache.example"));
        assert_eq!(verify(&trust, &server, "cache.example"), Ok(()));
        assert!(verify(&trust, &server, "other.example").is_err());
        assert!(verify(&trust, &authority.issue(&params("cache.example")), "cache.example").is_err());
        let forged = Made::documented_shape("authority").issue(&named("cache.example"));
        assert!(verify(&trust, &forged, "cache.example").is_err());
    }

    #[test]
    fn a_named_certificate_that_is_no_authority_vouches_for_no_other() {
        let plain = Made::self_signed(&params("plain"));
        assert!(verify(&trust(&[&plain]), &plain.issue(&named("cache.example")), "cache.example").is_err());
    }

    #[test]
    fn a_named_certificate_outside_its_period_is_not_trusted() {
        let mut over = authority_params("over");
        (over.not_before, over.not_after) = (day(-20).into(), day(-10).into());
        let mut early = authority_params("early");
        (early.not_before, early.not_after) = (day(10).into(), day(20).into());
        let (over, early) = (Made::self_signed(&over), Made::self_signed(&early));
        let trust = trust(&[&over, &early]);
        assert_eq!(verify(&trust, &over, "localhost"), Err(CertificateError::Expired.into()));
        assert_eq!(verify(&trust, &early, "localhost"), Err(CertificateError::NotValidYet.into()));
        assert!(verify(&trust, &over.issue(&named("cache.example")), "cache.example").is_err());
    }

    #[tokio::test]
    async fn an_impostor_with_the_named_certificate_and_another_key_is_found_out() {
        let (real, thief) = (Made::documented_shape("localhost"), Made::documented_shape("localhost"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.crt");
        std::fs::write(&path, &real.pem).unwrap();
        for (key_pem, good) in [(&real.key_pem, true), (&thief.key_pem, false)] {
            for version in [&TLS12, &TLS13] {
                let server = server_config(&real, key_pem, version);
                let (near, far) = tokio::io::duplex(1 << 16);
                let connector = TlsConnector::from(Arc::new(client_config(Some(&path), None).unwrap()));
                let (accepted, connected) = tokio::join!(
                    TlsAcceptor::from(Arc::new(server)).accept(near),
                    connector.connect("localhost".try_into().unwrap(), far)
                );
                assert_eq!((accepted.is_ok(), connected.is_ok()), (good, good), "{version:?}");
            }
        }
    }

    fn server_config(shown: &Made, key_pem: &str, version: &'static SupportedProtocolVersion) -> ServerConfig {
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).unwrap();
        let key = crypto().key_provider.load_private_key(key).unwrap();
        let pair = CertifiedKey::new(vec![shown.der.clone()], key);
        let builder = ServerConfig::builder_with_provider(crypto()).with_protocol_versions(&[version]).unwrap();
        builder.with_no_client_auth().with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)))
    }

    #[test]
    fn a_client_that_cannot_be_set_up_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).unwrap();
            dir.path().join(name)
        };
        let (one, other) = (Made::documented_shape("one"), Made::documented_shape("other"));
        let (good, empty) = (at("good.crt", &one.pem), at("empty.crt", ""));
        let key = at("other.key", &other.key_pem);
        let error = |authorities: Option<&Path>, identity: Option<(&Path, &Path)>| {
            client_config(authorities, identity).unwrap_err().to_string()
        };
        assert!(error(Some(&empty), None).contains("empty.crt holds no certificate"));
        assert!(error(Some(&dir.path().join("absent.crt")), None).contains("absent.crt"));
        assert!(error(Some(&good), Some((&good, &key))).contains("does not belong to the certificate"));
    }

    #[test]
    fn of_well_known_authorities_the_unreadable_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle.crt");
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        std::fs::write(&path, format!("{broken}{}", Made::documented_shape("authority").pem)).unwrap();
        assert_eq!(well_known_authorities(&path).unwrap().len(), 1);
        std::fs::write(&path, broken).unwrap();
        assert!(well_known_authorities(&path).is_err());
    }
}
