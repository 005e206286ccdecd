//! The holder of a connection, as far as it was proven.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::pki_types::{CertificateDer, UnixTime};

use super::certificate::{ClientCertificate, Parsed, Validity};

/// Who vouched for a client's certificate. Rules that go by a certificate's names should go by this as well: whoever
/// holds a listed certificate with CA:TRUE (all documented ones are) can issue certificates with any name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vouched {
    /// A configured authority issued it.
    Authority,
    /// It is listed itself; its names are its maker's claims.
    Listed,
    /// A listed certificate signed it.
    ByListed,
}

/// Who is on the other side of a connection: nobody in particular, or the proven holder of a certificate that was
/// accepted. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    admitted: Option<Arc<Admitted>>,
}

struct Admitted {
    certificate: ClientCertificate,
    vouched: Vouched,
    validity: Validity,
    /// As it was presented, the holder's own certificate first: what a changed trust is asked about again.
    chain: Vec<CertificateDer<'static>>,
    /// The generation of the last trust that accepted the chain.
    trust_generation: AtomicU64,
}

// === impl Identity ===

impl Identity {
    /// Somebody who was not asked for a certificate.
    pub fn anonymous() -> Identity {
        Identity { admitted: None }
    }

    /// The holder of a certificate, once the key is proven too.
    pub(super) fn admitted(
        leaf: Parsed,
        intermediates: &[CertificateDer<'_>],
        vouched: Vouched,
        trust_generation: u64,
    ) -> Identity {
        let rest = intermediates.iter().map(|certificate| certificate.clone().into_owned());
        let chain = std::iter::once(leaf.der).chain(rest).collect();
        let trust_generation = AtomicU64::new(trust_generation);
        let admitted = Admitted { certificate: leaf.names, vouched, validity: leaf.validity, chain, trust_generation };
        Identity { admitted: Some(Arc::new(admitted)) }
    }

    /// What the certificate says; `None` for anonymous ones.
    pub fn certificate(&self) -> Option<&ClientCertificate> {
        self.admitted.as_ref().map(|admitted| &admitted.certificate)
    }

    /// Who vouched for the certificate; `None` for anonymous ones.
    pub fn vouched(&self) -> Option<Vouched> {
        self.admitted.as_ref().map(|admitted| admitted.vouched)
    }

    /// The certificates as they were presented, the holder's own first; empty for anonymous ones.
    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        self.admitted.as_ref().map_or(&[], |admitted| &admitted.chain)
    }

    /// Whether the certificate is within its period.
    pub(super) fn is_within_validity(&self, now: UnixTime) -> bool {
        self.admitted.as_ref().is_none_or(|admitted| admitted.validity.check(now).is_ok())
    }

    /// Whether the trust of this generation is known to accept the certificate.
    pub(super) fn is_known_to(&self, trust_generation: u64) -> bool {
        let known = self.admitted.as_ref().map(|admitted| admitted.trust_generation.load(Ordering::Relaxed));
        known == Some(trust_generation)
    }

    /// Notes that the trust of this generation accepts the certificate.
    pub(super) fn set_known_to(&self, trust_generation: u64) {
        if let Some(admitted) = &self.admitted {
            admitted.trust_generation.store(trust_generation, Ordering::Relaxed);
        }
    }
}

impl PartialEq for Identity {
    /// The same certificate, vouched for in the same way.
    fn eq(&self, other: &Identity) -> bool {
        self.certificate() == other.certificate() && self.vouched() == other.vouched()
    }
}

impl Eq for Identity {}

impl fmt::Display for Identity {
    /// `CN=client sha256:0123456789abcdef` or `anyone`; safe for a log line whatever the certificate says.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.certificate() {
            Some(certificate) => certificate.fmt(f),
            None => f.write_str("anyone"),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authenticate::Fingerprint;
    use crate::authenticate::test_certificates::{Made, params};

    fn identity(made: &Made, vouched: Vouched) -> Identity {
        Identity::admitted(Parsed::read(&made.der).unwrap(), &[], vouched, 0)
    }

    #[test]
    fn an_identity_is_its_certificate_and_who_vouched() {
        let (one, other) = (Made::self_signed(&params("same")), Made::self_signed(&params("same")));
        let listed = identity(&one, Vouched::Listed);
        assert_eq!(listed, identity(&one, Vouched::Listed));
        assert_ne!(listed, identity(&one, Vouched::Authority));
        assert_ne!(listed, identity(&other, Vouched::Listed), "the same name is not the same holder");
        assert_ne!(listed, Identity::anonymous());
    }

    #[test]
    fn an_identity_is_printed_with_enough_to_find_its_certificate() {
        let made = Made::self_signed(&params("client"));
        let hex = Fingerprint::of(&made.der).to_string();
        assert_eq!(hex.len(), 64);
        let shown = identity(&made, Vouched::Listed).to_string();
        assert_eq!(shown, format!("CN=client sha256:{}", &hex[..16]));
        assert_eq!(Identity::anonymous().to_string(), "anyone");
    }
}
