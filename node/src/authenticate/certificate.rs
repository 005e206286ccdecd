//! What a certificate says: the names in it, its fingerprint, its period, and whether it may issue others.

use std::fmt;
use std::net::IpAddr;

use rustls::pki_types::{CertificateDer, UnixTime};
use sha2::Digest as _;
use x509_parser::prelude::{ASN1Time, FromDer as _, GeneralName, X509Certificate, X509Name, X509Version};

/// Characters of a name that are printed. Names come from certificates that strangers present; the longest common name
/// that X.520 allows has 64.
const NAME_SHOWN_MAX: usize = 64;

/// The SHA-256 of a certificate's DER, as `openssl x509 -fingerprint -sha256` computes it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

/// A name of the subject beside its common name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AlternativeName {
    /// A DNS name.
    Dns(String),
    /// An address.
    Ip(IpAddr),
    /// A URI, for example a SPIFFE id.
    Uri(String),
    /// A mail address.
    Email(String),
}

/// What a certificate says about its holder. What it says is as good as who vouched for it
/// ([`Vouched`](super::Vouched)): the issuer's name in a listed certificate, for instance, is its maker's claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The subject's common name; `None` when there is none, or more than one, since the holder of such a certificate
    /// must not choose which of them counts.
    pub common_name: Option<String>,
    /// The subject's alternative names; kinds that [`AlternativeName`] has no variant for are left out.
    pub alternative_names: Vec<AlternativeName>,
    /// Of the whole certificate.
    pub fingerprint: Fingerprint,
    /// The issuer's common name, with the same rule as the subject's.
    pub issuer_common_name: Option<String>,
}

/// A certificate and all that was read from it.
#[derive(Debug, Clone)]
pub(super) struct Parsed {
    /// As it was given.
    pub der: CertificateDer<'static>,
    /// The names in it.
    pub names: ClientCertificate,
    /// When it is valid.
    pub validity: Validity,
    /// It says CA:TRUE, and its key usage (if it has one) includes signing certificates.
    pub is_authority: bool,
    /// X.509 version 1, which has no extensions and which webpki refuses from clients.
    pub is_version_1: bool,
}

/// The period of a certificate, in seconds since 1970, both ends included (RFC 5280, 4.1.2.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub not_before: i64,
    pub not_after: i64,
}

/// A moment outside a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outside {
    Before,
    After,
}

// === impl Fingerprint ===

impl Fingerprint {
    /// Of a certificate's DER.
    pub fn of(der: &[u8]) -> Fingerprint {
        Fingerprint(sha2::Sha256::digest(der).into())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    /// Lower-case hexadecimal; with a precision, that many bytes of it: `{:.8}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = f.precision().unwrap_or(self.0.len());
        self.0.iter().take(shown).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl AlternativeName ===

impl AlternativeName {
    fn read(name: &GeneralName<'_>) -> Option<AlternativeName> {
        match name {
            GeneralName::DNSName(name) => Some(AlternativeName::Dns((*name).to_owned())),
            GeneralName::URI(uri) => Some(AlternativeName::Uri((*uri).to_owned())),
            GeneralName::RFC822Name(mail) => Some(AlternativeName::Email((*mail).to_owned())),
            GeneralName::IPAddress(bytes) => {
                let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                let address = four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
                address.ok().map(AlternativeName::Ip)
            }
            _ => None,
        }
    }
}

// === impl ClientCertificate ===

impl fmt::Display for ClientCertificate {
    /// `CN=client sha256:0123456789abcdef`, safe for a log line whatever the certificate says.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.common_name {
            Some(name) => {
                f.write_str("CN=")?;
                name.chars().take(NAME_SHOWN_MAX).try_for_each(|c| write!(f, "{}", c.escape_debug()))?;
            }
            None => f.write_str("(no common name)")?,
        }
        write!(f, " sha256:{:.8}", self.fingerprint)
    }
}

// === impl Parsed ===

impl Parsed {
    /// Reads a certificate; `None` when these bytes are not exactly one.
    pub(super) fn read(der: &CertificateDer<'_>) -> Option<Parsed> {
        let (rest, certificate) = X509Certificate::from_der(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let names = certificate.subject_alternative_name().ok()?;
        let basic_constraints = certificate.basic_constraints().ok()?;
        let key_usage = certificate.key_usage().ok()?;
        let may_sign = key_usage.is_none_or(|usage| usage.value.key_cert_sign());
        Some(Parsed {
            der: der.clone().into_owned(),
            names: ClientCertificate {
                common_name: common_name(certificate.subject()),
                alternative_names: names
                    .map(|names| names.value.general_names.iter().filter_map(AlternativeName::read).collect())
                    .unwrap_or_default(),
                fingerprint: Fingerprint::of(der),
                issuer_common_name: common_name(certificate.issuer()),
            },
            validity: Validity {
                not_before: certificate.validity().not_before.timestamp(),
                not_after: certificate.validity().not_after.timestamp(),
            },
            is_authority: may_sign && basic_constraints.is_some_and(|constraints| constraints.value.ca),
            is_version_1: certificate.version() == X509Version::V1,
        })
    }
}

fn common_name(name: &X509Name<'_>) -> Option<String> {
    let mut names = name.iter_common_name();
    let first = names.next()?.as_str().ok()?.to_owned();
    names.next().is_none().then_some(first)
}

// === impl Validity ===

impl Validity {
    /// # Errors
    /// On which side `now` lies when it is not within.
    pub(super) fn check(self, now: UnixTime) -> Result<(), Outside> {
        // A clock past the year 292 billion is after everything.
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < self.not_before {
            Err(Outside::Before)
        } else if now > self.not_after {
            Err(Outside::After)
        } else {
            Ok(())
        }
    }
}

/// A moment as people read it, in UTC.
pub(super) fn shown_date(seconds: i64) -> String {
    ASN1Time::from_timestamp(seconds).map_or_else(|_| format!("{seconds} s after 1970"), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authenticate::test_certificates::{Made, day};
    use rcgen::{CertificateParams, DnType};

    fn parsed(params: &CertificateParams) -> Parsed {
        Parsed::read(&Made::self_signed(params).der).unwrap()
    }

    #[test]
    fn a_documented_certificate_is_read() {
        let made = &*crate::authenticate::test_certificates::DOCUMENTED_CLIENT;
        let parsed = Parsed::read(&made.der).unwrap();
        assert_eq!(parsed.names.common_name.as_deref(), Some("client"));
        assert_eq!(parsed.names.issuer_common_name.as_deref(), Some("client"));
        assert_eq!(parsed.names.alternative_names, []);
        assert!(parsed.is_authority);
        assert!(!parsed.is_version_1);
        assert_eq!(parsed.validity.not_after - parsed.validity.not_before, 3650 * 24 * 3600);
    }

    #[test]
    fn every_kind_of_alternative_name_is_read() {
        let mut params = CertificateParams::new(["a.example".to_owned(), "10.0.0.1".into(), "::1".into()]).unwrap();
        params.subject_alt_names.push(rcgen::SanType::URI("spiffe://farm/ci".try_into().unwrap()));
        params.subject_alt_names.push(rcgen::SanType::Rfc822Name("ci@a.example".try_into().unwrap()));
        assert_eq!(
            parsed(&params).names.alternative_names,
            [
                AlternativeName::Dns("a.example".to_owned()),
                AlternativeName::Ip([10, 0, 0, 1].into()),
                AlternativeName::Ip("::1".parse().unwrap()),
                AlternativeName::Uri("spiffe://farm/ci".to_owned()),
                AlternativeName::Email("ci@a.example".to_owned()),
            ]
        );
    }

    #[test]
    fn a_hostile_name_does_not_leave_its_log_line() {
        let mut params = CertificateParams::new([]).unwrap();
        let hostile = format!("root\r\n\u{1b}[2Jadmitted\u{202e}{}", "x".repeat(5000));
        params.distinguished_name.push(DnType::CommonName, hostile);
        let shown = parsed(&params).names.to_string();
        assert!(shown.starts_with(r"CN=root\r\n\u{1b}[2Jadmitted\u{202e}x"), "{shown}");
        assert!(shown.len() < 160 && !shown.chars().any(char::is_control), "{shown}");
    }

    #[test]
    fn a_certificate_without_a_name_has_none() {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let names = parsed(&params).names;
        assert_eq!(names.common_name, None);
        assert!(names.to_string().starts_with("(no common name) sha256:"));
    }

    #[test]
    fn of_several_common_names_none_counts() {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "first");
        // rcgen keeps one value for a type, so the second comes by its OID.
        params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 3]), "second");
        assert_eq!(parsed(&params).names.common_name, None);
    }

    #[test]
    fn bytes_that_are_not_exactly_a_certificate_are_none() {
        let der = Made::self_signed(&CertificateParams::new([]).unwrap()).der;
        for bad in [&b""[..], b"0", b"garbage", &der[..der.len() - 1], &[der.as_ref(), b"\0"].concat()] {
            assert!(Parsed::read(&CertificateDer::from(bad)).is_none());
        }
    }

    #[test]
    fn a_period_ends_with_its_last_second() {
        let validity = Validity { not_before: 100, not_after: 200 };
        let at = |seconds| validity.check(UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)));
        assert_eq!(at(99), Err(Outside::Before));
        assert_eq!((at(100), at(200)), (Ok(()), Ok(())));
        assert_eq!((at(201), at(u64::MAX)), (Err(Outside::After), Err(Outside::After)));
    }

    #[test]
    fn only_a_certificate_that_may_sign_others_is_an_authority() {
        use rcgen::{BasicConstraints, IsCa, KeyUsagePurpose};
        let mut params = CertificateParams::new([]).unwrap();
        params.not_after = day(1).into();
        assert!(!parsed(&params).is_authority);
        params.is_ca = IsCa::ExplicitNoCa;
        assert!(!parsed(&params).is_authority);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        assert!(parsed(&params).is_authority);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        assert!(!parsed(&params).is_authority);
    }
}
