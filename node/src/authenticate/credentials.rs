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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authenticate::test_certificates::{DOCUMENTED_SERVER, Made, authority_params};
    use rcgen::KeyPair;
    use std::path::PathBuf;

    fn load(certificate: &str, key: &str) -> Result<Arc<CertifiedKey>, TlsError> {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| -> PathBuf {
            std::fs::write(dir.path().join(name), text).unwrap();
            dir.path().join(name)
        };
        load_key(&write("my.crt", certificate), &write("my.key", key))
    }

    /// The same key in another form.
    fn openssl(arguments: &str, key: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("in"), key).unwrap();
        let script = format!("openssl {arguments} -in in -out out");
        let output = std::process::Command::new("sh").args(["-ec", &script]).current_dir(dir.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read_to_string(dir.path().join("out")).unwrap()
    }

    #[test]
    fn keys_of_every_form_are_read() {
        let rsa = openssl("rsa -traditional", &DOCUMENTED_SERVER.key_pem);
        assert!(rsa.starts_with("-----BEGIN RSA PRIVATE KEY-----"), "{rsa}");
        load(&DOCUMENTED_SERVER.pem, &rsa).unwrap();
        load(&DOCUMENTED_SERVER.pem, &DOCUMENTED_SERVER.key_pem).unwrap();
        let made = Made::documented_shape("localhost");
        let sec1 = openssl("ec", &made.key_pem);
        assert!(sec1.starts_with("-----BEGIN EC PRIVATE KEY-----"), "{sec1}");
        load(&made.pem, &sec1).unwrap();
        let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        load(&Made::self_signed_by(&authority_params("localhost"), &ed25519).pem, &ed25519.serialize_pem()).unwrap();
    }

    #[test]
    fn a_chain_follows_its_leaf_and_one_file_may_hold_it_all() {
        let authority = Made::documented_shape("authority");
        let leaf = authority.issue(&authority_params("leaf"));
        let all = format!("{}{}{}", leaf.key_pem, leaf.pem, authority.pem);
        assert_eq!(load(&all, &all).unwrap().cert, [leaf.der.clone(), authority.der.clone()]);
        let error = load(&format!("{}{}", authority.pem, leaf.pem), &leaf.key_pem).unwrap_err();
        assert!(matches!(error, TlsError::Mismatch { .. }), "the leaf comes first: {error}");
    }

    #[test]
    fn a_key_of_another_certificate_is_found_out() {
        let (one, other) = (Made::documented_shape("one"), Made::documented_shape("other"));
        for key in [&other.key_pem, &DOCUMENTED_SERVER.key_pem] {
            let text = load(&one.pem, key).unwrap_err().to_string();
            assert!(text.contains("my.key does not belong to the certificate"), "{text}");
        }
    }

    #[test]
    fn a_key_that_cannot_sign_here_is_refused() {
        let made = Made::documented_shape("one");
        let encrypted = openssl("pkcs8 -topk8 -passout pass:secret", &made.key_pem);
        assert!(matches!(load(&made.pem, &encrypted), Err(TlsError::EncryptedKey { .. })));
        let garbage = "-----BEGIN PRIVATE KEY-----\nMC4CAQA=\n-----END PRIVATE KEY-----\n";
        assert!(matches!(load(&made.pem, garbage), Err(TlsError::UnusableKey { .. })));
        assert!(matches!(load(&made.pem, &made.pem), Err(TlsError::NoKey { .. })));
    }
}
