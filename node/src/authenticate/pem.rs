//! PEM files: read with a bound, taken apart, every block named by its number when it is wrong.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use rustls::pki_types::pem::{PemObject as _, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::certificate::Parsed;
use super::error::TlsError;

/// The largest file that is read: some two thousand certificates of the documented kind. They are read again every
/// second, so more would cost.
pub(super) const FILE_BYTES_MAX: u64 = 4 << 20;

/// The bytes of a file.
///
/// # Errors
/// [`TlsError::Unreadable`] and [`TlsError::TooLarge`].
pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::unreadable(path, source);
    let mut bytes = Vec::new();
    File::open(path).map_err(unreadable)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(TlsError::TooLarge { path: path.to_owned(), limit_bytes: FILE_BYTES_MAX });
    }
    Ok(bytes)
}

/// The certificates of a file, in its order; other blocks and text between them are passed over.
///
/// # Errors
/// [`TlsError`] when there is none, or when one is broken: a list that is half understood locks people out unseen.
pub(super) fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<Parsed>, TlsError> {
    let text = armour(bytes);
    let mut found = Vec::new();
    for block in <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()) {
        let nth = found.len() + 1;
        let (kind, der) = block.map_err(|source| TlsError::NotPem { path: path.to_owned(), nth, source })?;
        if kind == SectionKind::Certificate {
            let parsed = Parsed::read(&CertificateDer::from(der));
            found.push(parsed.ok_or_else(|| TlsError::NotACertificate { path: path.to_owned(), nth })?);
        }
    }
    if found.is_empty() {
        return Err(TlsError::NoCertificate { path: path.to_owned() });
    }
    Ok(found)
}

/// The first private key of a file.
///
/// # Errors
/// [`TlsError`] when there is none, or when it is broken or encrypted.
pub(super) fn private_key(path: &Path, bytes: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = armour(bytes);
    if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(TlsError::EncryptedKey { path: path.to_owned() });
    }
    PrivateKeyDer::pem_slice_iter(text.as_bytes())
        .next()
        .ok_or_else(|| TlsError::NoKey { path: path.to_owned() })?
        .map_err(|source| TlsError::NotPem { path: path.to_owned(), nth: 1, source })
}

/// The text, with a line break where two files without one were concatenated: the parser would lose the second
/// certificate without a word.
fn armour(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim_start_matches('\u{feff}').replace("----------BEGIN ", "-----\n-----BEGIN ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authenticate::test_certificates::Made;

    fn names(text: &str) -> Result<Vec<String>, TlsError> {
        let found = certificates(Path::new("list.crt"), text.as_bytes())?;
        Ok(found.into_iter().filter_map(|parsed| parsed.names.common_name).collect())
    }

    #[test]
    fn certificates_are_found_one_after_the_other() {
        let (a, b) = (Made::documented_shape("a"), Made::documented_shape("b"));
        assert_eq!(names(&format!("{}{}", a.pem, b.pem)).unwrap(), ["a", "b"]);
        assert_eq!(names(&format!("a's:\n{}\n\n# b's\n{}", a.pem, b.pem)).unwrap(), ["a", "b"]);
        assert_eq!(names(&format!("{}{}{}", a.pem, a.key_pem, b.pem)).unwrap(), ["a", "b"]);
        assert_eq!(names(&a.pem.replace('\n', "\r\n")).unwrap(), ["a"]);
        assert_eq!(names(&format!("\u{feff}{}", a.pem)).unwrap(), ["a"]);
    }

    #[test]
    fn a_missing_line_break_between_two_loses_neither() {
        let (a, b) = (Made::documented_shape("a"), Made::documented_shape("b"));
        assert_eq!(names(&format!("{}{}", a.pem.trim_end(), b.pem.trim_end())).unwrap(), ["a", "b"]);
    }

    #[test]
    fn a_broken_block_is_named_by_its_number() {
        let a = Made::documented_shape("a");
        let half = &a.pem[..a.pem.len() / 2];
        for (bad, expected) in [
            (format!("{}{half}", a.pem), "block 2 of list.crt is not PEM"),
            (half.to_owned(), "block 1 of list.crt is not PEM"),
            (format!("{half}\n{}", a.pem), "block 1 of list.crt is"),
            (a.pem.replace('M', "!"), "block 1 of list.crt is not PEM"),
            (
                format!("{}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", a.pem),
                "block 2 of list.crt is no X.509 certificate",
            ),
        ] {
            let error = names(&bad).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn a_file_without_certificates_says_so() {
        let key = Made::documented_shape("a").key_pem;
        for text in ["", "\n", "hello", key.as_str(), "-----BEGIN TRUSTED CERTIFICATE-----\nAAAA\n"] {
            let error = names(text).unwrap_err();
            assert!(error.to_string().starts_with("list.crt holds no certificate") || text.contains("TRUSTED"));
        }
    }

    #[test]
    fn a_key_that_cannot_be_used_says_why() {
        let error = |text: &str| private_key(Path::new("my.key"), text.as_bytes()).unwrap_err().to_string();
        let pem = Made::documented_shape("a").pem;
        assert!(error("").starts_with("my.key holds no private key"));
        assert!(error(&pem).starts_with("my.key holds no private key"));
        assert!(error("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n").contains("is encrypted"));
        assert!(error("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n").contains("is encrypted"));
        assert!(error("-----BEGIN PRIVATE KEY-----\nAAAA\n").starts_with("block 1 of my.key is not PEM"));
    }

    #[test]
    fn an_unreadable_or_endless_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = read(&dir.path().join("absent.crt")).unwrap_err();
        assert!(matches!(error, TlsError::Unreadable { .. }), "{error}");
        let error = read(dir.path()).unwrap_err();
        assert!(matches!(error, TlsError::Unreadable { .. }), "{error}");
        let error = read(Path::new("/dev/zero")).unwrap_err();
        assert!(matches!(error, TlsError::TooLarge { .. }), "{error}");
    }
}
