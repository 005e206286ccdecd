//! Certificates for tests: the documented ones, made by openssl once a run, and quick ones of every shape.

use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// A certificate with its key.
pub struct Made {
    pub der: CertificateDer<'static>,
    pub pem: String,
    pub key_pem: String,
    params: CertificateParams,
}

/// What `openssl req -new -newkey rsa:4096 -x509 ... -subj "/CN=client"` makes: BuildStream's client.
pub static DOCUMENTED_CLIENT: LazyLock<Made> = LazyLock::new(|| openssl("client"));

/// The same for BuildStream's server.
pub static DOCUMENTED_SERVER: LazyLock<Made> = LazyLock::new(|| openssl("localhost"));

/// So many days from now, or before it.
pub fn day(days: i64) -> SystemTime {
    let distance = Duration::from_secs(days.unsigned_abs() * 24 * 3600);
    let now = SystemTime::now();
    if days < 0 { now - distance } else { now + distance }
}

/// Parameters with this common name, CA:FALSE (by saying nothing), no SAN, valid today.
pub fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = day(-1).into();
    params.not_after = day(30).into();
    params
}

/// Parameters that may sign others: what the documented certificates say.
pub fn authority_params(common_name: &str) -> CertificateParams {
    let mut params = params(common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

// === impl Made ===

impl Made {
    /// Signed by itself, ECDSA on P-256.
    pub fn self_signed(params: &CertificateParams) -> Made {
        Made::self_signed_by(params, &KeyPair::generate().unwrap())
    }

    /// Signed by itself, with this key.
    pub fn self_signed_by(params: &CertificateParams, key: &KeyPair) -> Made {
        Made::new(&params.self_signed(key).unwrap(), key, params)
    }

    /// Of the documented form (self-signed, CA:TRUE, no SAN), and quick.
    pub fn documented_shape(common_name: &str) -> Made {
        Made::self_signed(&authority_params(common_name))
    }

    /// Signed by this one.
    pub fn issue(&self, params: &CertificateParams) -> Made {
        let issuer = Issuer::from_params(&self.params, KeyPair::from_pem(&self.key_pem).unwrap());
        let key = KeyPair::generate().unwrap();
        Made::new(&params.signed_by(&key, &issuer).unwrap(), &key, params)
    }

    fn new(certificate: &Certificate, key: &KeyPair, params: &CertificateParams) -> Made {
        Made {
            der: certificate.der().clone(),
            pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            params: params.clone(),
        }
    }
}

/// The documented command, with another name.
fn openssl(common_name: &str) -> Made {
    let dir = tempfile::tempdir().unwrap();
    let documented = ["-x509", "-sha256", "-days", "3650", "-nodes", "-batch"];
    let output = Command::new("openssl")
        .args(["req", "-new", "-newkey", "rsa:4096"])
        .args(documented)
        .args(["-subj", &format!("/CN={common_name}"), "-out", "made.crt", "-keyout", "made.key"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let pem = read("made.crt");
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    Made { der, pem, key_pem: read("made.key"), params: authority_params(common_name) }
}
