//! What can be wrong with a certificate, a key or a list of certificates on disk.

use std::io;
use std::path::{Path, PathBuf};

/// Why a file with certificates or a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("cannot read {}: check that it exists and that casbah's user may read it", path.display())]
    Unreadable {
        /// As configured.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The file is larger than any such file is.
    #[error("{} is larger than {limit_bytes} bytes: is it the right file", path.display())]
    TooLarge {
        /// As configured.
        path: PathBuf,
        /// What it may have.
        limit_bytes: u64,
    },
    /// The file is readable and has no certificate in it.
    #[error("{} holds no certificate: expected PEM blocks that begin with -----BEGIN CERTIFICATE-----", path.display())]
    NoCertificate {
        /// As configured.
        path: PathBuf,
    },
    /// A block's PEM armour is broken.
    #[error("block {nth} of {} is not PEM: is the file cut off or half written", path.display())]
    NotPem {
        /// As configured.
        path: PathBuf,
        /// Counted from 1.
        nth: usize,
        /// What is wrong with it.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A block is PEM and what it carries is not a certificate.
    #[error("block {nth} of {} is no X.509 certificate: make or copy it again", path.display())]
    NotACertificate {
        /// As configured.
        path: PathBuf,
        /// Counted from 1.
        nth: usize,
    },
    /// A certificate that stands where authorities are expected may not issue others.
    #[error(
        "block {nth} of {} ({who}) is no certificate authority (CA:TRUE): clients' own certificates belong into the \
         list of authorized ones", path.display()
    )]
    NotAnAuthority {
        /// As configured.
        path: PathBuf,
        /// Counted from 1.
        nth: usize,
        /// What it says.
        who: String,
    },
    /// The key file has no private key in it.
    #[error("{} holds no private key: expected a PEM block like -----BEGIN PRIVATE KEY-----", path.display())]
    NoKey {
        /// As configured.
        path: PathBuf,
    },
    /// The key is protected by a pass phrase.
    #[error("the key in {} is encrypted: take its pass phrase off (openssl pkey -in OLD -out NEW)", path.display())]
    EncryptedKey {
        /// As configured.
        path: PathBuf,
    },
    /// The key is of a kind that TLS here cannot use.
    #[error(
        "the key in {} cannot be used: expected RSA of 2048 to 4096 bits, ECDSA on P-256 or P-384, or Ed25519",
        path.display()
    )]
    UnusableKey {
        /// As configured.
        path: PathBuf,
        /// What rustls says.
        #[source]
        source: rustls::Error,
    },
    /// A certificate that is to be shown cannot be.
    #[error("the certificate in {} cannot be used: it must be X.509 version 3", path.display())]
    UnusableCertificate {
        /// As configured.
        path: PathBuf,
        /// What rustls says.
        #[source]
        source: rustls::Error,
    },
    /// Certificate and key do not belong together.
    #[error(
        "the key {} does not belong to the certificate {}: give the key that the certificate was made with",
        key.display(), certificate.display()
    )]
    Mismatch {
        /// As configured.
        certificate: PathBuf,
        /// As configured.
        key: PathBuf,
    },
    /// No file of well-known authorities was found where systems keep them.
    #[error(
        "no certificate authorities were named and this system has none: name a file with the server's certificate"
    )]
    NoSystemAuthorities,
    /// rustls refuses the configuration, which does not depend on any file.
    #[error("TLS cannot be set up; this is a defect of casbah")]
    Setup(#[source] rustls::Error),
}

// === impl TlsError ===

impl TlsError {
    pub(super) fn unreadable(path: &Path, source: io::Error) -> TlsError {
        TlsError::Unreadable { path: path.to_owned(), source }
    }
}
