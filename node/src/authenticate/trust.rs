//! Whom to let in: a list of certificates and the authorities whose certificates are accepted.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, Error, RootCertStore};

use super::certificate::{Fingerprint, Outside, Parsed, shown_date};
use super::credentials::{crypto, warn_of_period};
use super::error::TlsError;
use super::identity::{Identity, Vouched};
use super::pem;
use super::source::Source;

/// Where it is written whom to let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustFiles {
    /// PEMs one after the other: each is accepted itself, and so is one that it signed.
    pub authorized: Option<PathBuf>,
    /// PEMs of certificate authorities: one that they issued is accepted.
    pub authorities: Option<PathBuf>,
}

/// Whom to let in. Never changes: a changed file makes a new one, with another generation.
#[derive(Debug)]
pub struct Trust {
    /// Unique in this process, so that a verdict can be remembered by it.
    generation: u64,
    authorized: Arc<CertificateList>,
    authorities: Arc<CertificateList>,
}

/// Why a certificate is not accepted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Distrust {
    /// Nobody vouches for it.
    #[error("it is not listed, and no listed certificate or authority signed it")]
    Unknown,
    /// Its period is over.
    #[error("it expired at {since}")]
    Expired {
        /// In UTC.
        since: String,
    },
    /// Its period has not begun.
    #[error("it is not valid before {from}; is this machine's clock right")]
    NotYetValid {
        /// In UTC.
        from: String,
    },
    /// The only certificate that may have signed it is outside its own period.
    #[error("the certificate that signed it ({issuer}) is itself not valid at this time")]
    IssuerOutsidePeriod {
        /// What that certificate says.
        issuer: String,
    },
    /// It says CA:TRUE, and is not listed itself.
    #[error("it is a certificate authority's (CA:TRUE): list it, or issue one with CA:FALSE")]
    IsAuthority,
    /// It has no extensions, and is not listed itself.
    #[error("it is X.509 version 1: issue it again as version 3 (openssl x509 -req needs -extfile)")]
    Version1,
    /// Its extended key usage leaves out TLS clients.
    #[error("its extended key usage does not include clientAuth")]
    Purpose,
    /// It is no certificate at all.
    #[error("it cannot be read")]
    Unreadable,
    /// The handshake's signature is not of the key in the certificate.
    #[error("the client does not hold its private key")]
    KeyNotProven,
    /// Something else.
    #[error("{0}")]
    Other(CertificateError),
}

/// Certificates that vouch for themselves or for others.
#[derive(Debug, Default)]
pub(super) struct CertificateList {
    entries: Vec<Entry>,
    /// Places in `entries`.
    by_fingerprint: HashMap<Fingerprint, usize>,
}

#[derive(Debug)]
struct Entry {
    certificate: Parsed,
    /// `None` for one that may not issue others.
    anchor: Option<TrustAnchor<'static>>,
}

/// A trust, and the files it is read from again when they change.
pub(crate) struct WatchedTrust {
    authorized: Option<Source<Arc<CertificateList>>>,
    authorities: Option<Source<Arc<CertificateList>>>,
    current: Arc<Trust>,
}

// === impl TrustFiles ===

impl TrustFiles {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`] when one cannot be used.
    pub fn load(&self) -> Result<Arc<Trust>, TlsError> {
        Ok(WatchedTrust::load(self)?.current)
    }
}

// === impl Trust ===

impl Trust {
    fn new(authorized: Arc<CertificateList>, authorities: Arc<CertificateList>) -> Arc<Trust> {
        static GENERATIONS: AtomicU64 = AtomicU64::new(0);
        Arc::new(Trust { generation: GENERATIONS.fetch_add(1, Ordering::Relaxed), authorized, authorities })
    }

    /// Whether the holder of a certificate is let in, once it has proven the key; and who says so.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn judge(
        &self,
        leaf: &Parsed,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Vouched, Distrust> {
        if self.authorized.contains(leaf) {
            return within_period(leaf, now).map(|()| Vouched::Listed);
        }
        let Err(by_authority) = self.authorities.verify_issued(leaf, intermediates, now) else {
            return Ok(Vouched::Authority);
        };
        let Err(by_listed) = self.authorized.verify_issued(leaf, intermediates, now) else {
            return Ok(Vouched::ByListed);
        };
        let error = if by_authority == CertificateError::UnknownIssuer { by_listed } else { by_authority };
        Err(self.explain(leaf, now, error))
    }

    /// The authorities that are within their period now.
    pub(super) fn authority_roots(&self, now: UnixTime) -> RootCertStore {
        self.authorities.roots(now)
    }

    /// Makes the identity of a holder that [`Trust::judge`] let in.
    pub(super) fn admit(&self, leaf: Parsed, intermediates: &[CertificateDer<'_>], vouched: Vouched) -> Identity {
        Identity::admitted(leaf, intermediates, vouched, self.generation)
    }

    /// Whether somebody who was let in, by this trust or another, would be let in now, and for the same reason.
    /// A comparison of two numbers as long as the trust is the same.
    pub(crate) fn still_admits(&self, identity: &Identity, now: UnixTime) -> bool {
        if !identity.is_within_validity(now) {
            return false;
        }
        if identity.is_known_to(self.generation) {
            return true;
        }
        let Some((leaf, intermediates)) = identity.chain().split_first() else { return false };
        let Some(leaf) = Parsed::read(leaf) else { return false };
        let admitted = self.judge(&leaf, intermediates, now).ok() == identity.vouched();
        if admitted {
            identity.set_known_to(self.generation);
        }
        admitted
    }

    /// The reason that helps most: stock verification looks at a certificate's form before it asks who signed it.
    fn explain(&self, leaf: &Parsed, now: UnixTime, error: CertificateError) -> Distrust {
        if leaf.is_authority && leaf.names.common_name == leaf.names.issuer_common_name {
            return Distrust::Unknown;
        }
        if let Err(outside) = within_period(leaf, now) {
            return outside;
        }
        if leaf.is_authority {
            return Distrust::IsAuthority;
        }
        if leaf.is_version_1 {
            return Distrust::Version1;
        }
        match error {
            CertificateError::UnknownIssuer => {
                let mut lists = [&self.authorities, &self.authorized].into_iter();
                match lists.find_map(|list| list.issuer_outside_period(leaf, now)) {
                    Some(issuer) => Distrust::IssuerOutsidePeriod { issuer },
                    None => Distrust::Unknown,
                }
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Distrust::Purpose,
            other => Distrust::Other(other),
        }
    }
}

fn within_period(certificate: &Parsed, now: UnixTime) -> Result<(), Distrust> {
    certificate.validity.check(now).map_err(|outside| match outside {
        Outside::Before => Distrust::NotYetValid { from: shown_date(certificate.validity.not_before) },
        Outside::After => Distrust::Expired { since: shown_date(certificate.validity.not_after) },
    })
}

// === impl Distrust ===

impl From<&Distrust> for CertificateError {
    /// What rustls is told, which decides the alert that the client sees.
    fn from(distrust: &Distrust) -> CertificateError {
        match distrust {
            Distrust::Unknown => CertificateError::UnknownIssuer,
            Distrust::Expired { .. } | Distrust::IssuerOutsidePeriod { .. } => CertificateError::Expired,
            Distrust::NotYetValid { .. } => CertificateError::NotValidYet,
            Distrust::IsAuthority | Distrust::Version1 | Distrust::Purpose => CertificateError::InvalidPurpose,
            Distrust::Unreadable => CertificateError::BadEncoding,
            Distrust::KeyNotProven => CertificateError::BadSignature,
            Distrust::Other(error) => error.clone(),
        }
    }
}

// === impl CertificateList ===

impl CertificateList {
    /// Certificates that are accepted themselves; those that may issue others vouch for these too.
    pub(super) fn authorized(path: &Path, bytes: &[u8]) -> Result<CertificateList, TlsError> {
        let mut list = CertificateList::default();
        for certificate in pem::certificates(path, bytes)? {
            list.add(path, certificate);
        }
        Ok(list)
    }

    /// Certificates that vouch for those they issued.
    pub(super) fn authorities(path: &Path, bytes: &[u8]) -> Result<CertificateList, TlsError> {
        let mut list = CertificateList::default();
        for (at, certificate) in pem::certificates(path, bytes)?.into_iter().enumerate() {
            if !certificate.is_authority {
                let (path, nth, who) = (path.to_owned(), at + 1, certificate.names.to_string());
                return Err(TlsError::NotAnAuthority { path, nth, who });
            }
            list.add(path, certificate);
        }
        Ok(list)
    }

    fn add(&mut self, path: &Path, certificate: Parsed) {
        warn_of_period(path, &certificate);
        let anchor = if certificate.is_authority { anchor(&certificate.der) } else { None };
        self.by_fingerprint.insert(certificate.names.fingerprint, self.entries.len());
        self.entries.push(Entry { certificate, anchor });
    }

    /// Whether this very certificate, byte for byte, is in the list.
    pub(super) fn contains(&self, certificate: &Parsed) -> bool {
        let place = self.by_fingerprint.get(&certificate.names.fingerprint);
        let entry = place.and_then(|place| self.entries.get(*place));
        entry.is_some_and(|entry| entry.certificate.der == certificate.der)
    }

    /// The roots that certificates may be chained to now. webpki takes a root's period for granted, so those outside
    /// theirs are left out here.
    pub(super) fn roots(&self, now: UnixTime) -> RootCertStore {
        let valid = self.entries.iter().filter(|entry| entry.certificate.validity.check(now).is_ok());
        RootCertStore { roots: valid.filter_map(|entry| entry.anchor.clone()).collect() }
    }

    /// Stock verification of a client's certificate against this list's authorities.
    ///
    /// webpki tries at most 100 signatures: beyond a hundred authorities of the same name, some are not tried.
    fn verify_issued(
        &self,
        leaf: &Parsed,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        let roots = self.roots(now);
        // The builder's only error without revocation lists is that there are no roots.
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto()).build();
        let verifier = verifier.map_err(|_no_roots| CertificateError::UnknownIssuer)?;
        match verifier.verify_client_cert(&leaf.der, intermediates, now) {
            Ok(_verified) => Ok(()),
            Err(Error::InvalidCertificate(error)) => Err(error),
            Err(_) => Err(CertificateError::ApplicationVerificationFailure),
        }
    }

    /// The one that, going by its name, signed this certificate and is outside its period.
    fn issuer_outside_period(&self, leaf: &Parsed, now: UnixTime) -> Option<String> {
        let issuer = leaf.names.issuer_common_name.as_ref()?;
        let mut outside = self.entries.iter().filter(|entry| entry.certificate.validity.check(now).is_err());
        let found = outside.find(|entry| entry.certificate.names.common_name.as_ref() == Some(issuer))?;
        Some(found.certificate.names.to_string())
    }
}

fn anchor(certificate: &CertificateDer<'static>) -> Option<TrustAnchor<'static>> {
    let mut store = RootCertStore::empty();
    store.add(certificate.clone()).ok()?;
    store.roots.pop()
}

// === impl WatchedTrust ===

impl WatchedTrust {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`] when one cannot be used.
    pub(crate) fn load(files: &TrustFiles) -> Result<WatchedTrust, TlsError> {
        let source = |path: &Option<PathBuf>, parse: fn(&Path, &[u8]) -> Result<CertificateList, TlsError>| {
            let Some(path) = path.clone() else { return Ok::<_, TlsError>((None, Arc::default())) };
            let named = path.clone();
            let parse =
                move |contents: &[Vec<u8>]| parse(&named, contents.first().map_or(&[], Vec::as_slice)).map(Arc::new);
            let (source, list) = Source::load(vec![path], parse)?;
            Ok((Some(source), list))
        };
        let (authorized, listed) = source(&files.authorized, CertificateList::authorized)?;
        // Emptying the file is how the last one is taken off the list.
        let authorized = authorized.map(|source| source.when_blank(Arc::default));
        let (authorities, issuers) = source(&files.authorities, CertificateList::authorities)?;
        Ok(WatchedTrust { authorized, authorities, current: Trust::new(listed, issuers) })
    }

    /// What the files said last while they could be used.
    pub(crate) fn current(&self) -> &Arc<Trust> {
        &self.current
    }

    /// Reads the files again; a new trust when they changed and can be used. A broken file leaves its own part as it
    /// was, not the other's; the first error goes to `error`, further ones are told by the next call.
    pub(crate) fn poll(&mut self, error: &mut Option<TlsError>) -> Option<Arc<Trust>> {
        let listed = self.authorized.as_mut().and_then(|source| source.poll(error));
        let issuers = self.authorities.as_mut().and_then(|source| source.poll(error));
        if listed.is_none() && issuers.is_none() {
            return None;
        }
        let listed = listed.unwrap_or_else(|| Arc::clone(&self.current.authorized));
        let issuers = issuers.unwrap_or_else(|| Arc::clone(&self.current.authorities));
        self.current = Trust::new(listed, issuers);
        Some(Arc::clone(&self.current))
    }
}

#[cfg(test)]
#[path = "trust_test.rs"]
mod tests;
