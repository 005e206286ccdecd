//! A certificate and its private key, read and proven to belong together.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::UnixTime;
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};

use super::certificate::{Outside, Parsed, shown_date};
use super::error::TlsError;
use super::pem;
use super::source::Source;

/// The cryptography of every TLS connection, named wherever rustls would otherwise look for a process-wide default.
pub fn crypto() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    Arc::clone(&PROVIDER)
}

/// Reads a certificate (its chain after it) and its key.
///
/// # Errors
/// [`TlsError`] when either cannot be used or they do not belong together.
pub fn load_key(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, TlsError> {
    parse_key(certificate, &pem::read(certificate)?, key, &pem::read(key)?)
}

/// Reads a certificate and its key, and again when they change: one that is replaced waits for the other.
///
/// # Errors
/// [`TlsError`], as for [`load_key`].
pub(crate) fn watch_key(
    certificate: &Path,
    key: &Path,
) -> Result<(Source<Arc<CertifiedKey>>, Arc<CertifiedKey>), TlsError> {
    let paths = vec![certificate.to_owned(), key.to_owned()];
    let (certificate, key) = (certificate.to_owned(), key.to_owned());
    Source::load(paths, move |contents| match contents {
        [certificate_bytes, key_bytes] => parse_key(&certificate, certificate_bytes, &key, key_bytes),
        _ => Err(TlsError::NoKey { path: key.clone() }),
    })
}

fn parse_key(
    certificate: &Path,
    certificate_bytes: &[u8],
    key: &Path,
    key_bytes: &[u8],
) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = pem::certificates(certificate, certificate_bytes)?;
    let private = pem::private_key(key, key_bytes)?;
    let signing = crypto().key_provider.load_private_key(private);
    let signing = signing.map_err(|source| TlsError::UnusableKey { path: key.to_owned(), source })?;
    for parsed in &chain {
        warn_of_period(certificate, parsed);
    }
    let pair = CertifiedKey::new(chain.into_iter().map(|parsed| parsed.der).collect(), signing);
    match pair.keys_match() {
        Ok(()) => Ok(Arc::new(pair)),
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err(TlsError::Mismatch { certificate: certificate.to_owned(), key: key.to_owned() })
        }
        Err(source) => Err(TlsError::UnusableCertificate { path: certificate.to_owned(), source }),
    }
}

/// A certificate outside its period is used all the same (the other side judges it), but not without a word.
pub(super) fn warn_of_period(path: &Path, parsed: &Parsed) {
    let (path, certificate) = (path.display(), &parsed.names);
    match parsed.validity.check(UnixTime::now()) {
        Ok(()) => {}
        Err(Outside::Before) => {
            let from = shown_date(parsed.validity.not_before);
            tracing::warn!(%path, %certificate, %from, "a certificate is not yet valid");
        }
        Err(Outside::After) => {
            let since = shown_date(parsed.validity.not_after);
            tracing::warn!(%path, %certificate, %since, "a certificate has expired");
        }
    }
}
