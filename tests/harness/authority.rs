//! Throw-away certificates: from an authority of our own, and the self-signed ones that BuildStream's documentation
//! tells people to make with openssl.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::process::run_command;

/// A certificate with its key.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate, followed by those of its issuers that a peer needs to see.
    pub certificate_pem: String,
    /// PKCS#8.
    pub key_pem: String,
}

/// Where an [`Identity`] was written to.
#[derive(Debug, Clone)]
pub struct IdentityFiles {
    /// PEM.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

/// A certificate authority that lives as long as a test.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

// === impl Authority ===

impl Authority {
    /// A new one with a key of its own.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn new(common_name: &str) -> Result<Authority> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate_pem = params.self_signed(&key)?.pem();
        Ok(Authority { issuer: Issuer::new(params, key), certificate_pem })
    }

    /// The authority's own certificate.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A server certificate for `localhost`, `127.0.0.1` and `::1`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn server(&self) -> Result<Identity> {
        self.server_named(&[])
    }

    /// A server certificate for these names or addresses, too.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn server_named(&self, names: &[String]) -> Result<Identity> {
        let names = [["localhost", "127.0.0.1", "::1"].map(str::to_owned).as_slice(), names].concat();
        self.issue("casbah", names, &[ExtendedKeyUsagePurpose::ServerAuth])
    }

    /// A certificate of a node, which is its peers' server and their client.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn peer(&self, common_name: &str, names: &[String]) -> Result<Identity> {
        let purposes = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(common_name, names.to_vec(), &purposes)
    }

    /// A client certificate.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn client(&self, common_name: &str) -> Result<Identity> {
        self.issue(common_name, Vec::new(), &[ExtendedKeyUsagePurpose::ClientAuth])
    }

    fn issue(&self, common_name: &str, names: Vec<String>, purposes: &[ExtendedKeyUsagePurpose]) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = purposes.to_vec();
        let certificate_pem = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Identity { certificate_pem, key_pem: key.serialize_pem() })
    }
}

// === impl Identity ===

impl Identity {
    /// What BuildStream's documentation tells a server's operator to make, for `localhost`: no SAN, CA:TRUE,
    /// self-signed. Made once per test process.
    ///
    /// # Errors
    /// When openssl cannot be run.
    pub fn documented_server() -> Result<Identity> {
        static IDENTITY: OnceLock<Result<Identity, String>> = OnceLock::new();
        Identity::documented_once(&IDENTITY, "localhost")
    }

    /// What BuildStream's documentation tells a client to make. Made once per test process.
    ///
    /// # Errors
    /// When openssl cannot be run.
    pub fn documented_client() -> Result<Identity> {
        static IDENTITY: OnceLock<Result<Identity, String>> = OnceLock::new();
        Identity::documented_once(&IDENTITY, "client")
    }

    /// A second client of the same name as [`Identity::documented_client`]: only its key tells them apart.
    ///
    /// # Errors
    /// When openssl cannot be run.
    pub fn another_documented_client() -> Result<Identity> {
        static IDENTITY: OnceLock<Result<Identity, String>> = OnceLock::new();
        Identity::documented_once(&IDENTITY, "client")
    }

    fn documented_once(cell: &OnceLock<Result<Identity, String>>, common_name: &str) -> Result<Identity> {
        let made = cell.get_or_init(|| Identity::documented(common_name).map_err(|error| format!("{error:#}")));
        made.clone().map_err(anyhow::Error::msg)
    }

    /// The command of BuildStream's documentation, word for word but for the common name.
    ///
    /// # Errors
    /// When openssl cannot be run.
    pub fn documented(common_name: &str) -> Result<Identity> {
        let dir = tempfile::tempdir()?;
        let subject = format!("/CN={common_name}");
        openssl(
            dir.path(),
            &[
                "req", "-new", "-newkey", "rsa:4096", "-x509", "-sha256", "-days", "3650", "-nodes", "-batch", "-subj",
                &subject, "-out", "it.crt", "-keyout", "it.key",
            ],
        )?;
        Identity::read(&dir.path().join("it.crt"), &dir.path().join("it.key"))
    }

    /// A client certificate that this one has signed, made with openssl too.
    ///
    /// # Errors
    /// When openssl cannot be run.
    pub fn sign_client(&self, common_name: &str) -> Result<Identity> {
        let dir = tempfile::tempdir()?;
        let subject = format!("/CN={common_name}");
        self.write(dir.path(), "issuer")?;
        openssl(
            dir.path(),
            &[
                "req", "-new", "-newkey", "rsa:2048", "-nodes", "-batch", "-subj", &subject, "-out", "it.csr",
                "-keyout", "it.key",
            ],
        )?;
        // Version 3, as webpki wants it; `openssl x509 -req` makes version 1 without extensions.
        std::fs::write(dir.path().join("it.ext"), "basicConstraints=CA:FALSE\nextendedKeyUsage=clientAuth\n")?;
        openssl(
            dir.path(),
            &[
                "x509",
                "-req",
                "-in",
                "it.csr",
                "-CA",
                "issuer.crt",
                "-CAkey",
                "issuer.key",
                "-CAcreateserial",
                "-sha256",
                "-days",
                "30",
                "-extfile",
                "it.ext",
                "-out",
                "it.crt",
            ],
        )?;
        Identity::read(&dir.path().join("it.crt"), &dir.path().join("it.key"))
    }

    /// This certificate with the key of another: what a thief of a certificate could show.
    pub fn with_key_of(&self, other: &Identity) -> Identity {
        Identity { certificate_pem: self.certificate_pem.clone(), key_pem: other.key_pem.clone() }
    }

    /// Reads the two files.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn read(certificate: &Path, key: &Path) -> Result<Identity> {
        let read =
            |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        Ok(Identity { certificate_pem: read(certificate)?, key_pem: read(key)? })
    }

    /// Writes `NAME.crt` and `NAME.key`.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(&self, dir: &Path, name: &str) -> Result<IdentityFiles> {
        let files =
            IdentityFiles { certificate: dir.join(format!("{name}.crt")), key: dir.join(format!("{name}.key")) };
        std::fs::write(&files.key, &self.key_pem)?;
        std::fs::write(&files.certificate, &self.certificate_pem)?;
        Ok(files)
    }

    /// The certificates in the form of rustls.
    ///
    /// # Errors
    /// When the PEM is not one.
    pub fn certificates(&self) -> Result<Vec<CertificateDer<'static>>> {
        certificates(&self.certificate_pem)
    }

    /// The key in the form of rustls.
    ///
    /// # Errors
    /// When the PEM is not one.
    pub fn key(&self) -> Result<PrivateKeyDer<'static>> {
        Ok(PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())?)
    }
}

/// Every certificate of a PEM text.
///
/// # Errors
/// When the PEM is not one.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    Ok(CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>()?)
}

/// Replaces a file as an operator's tool does: a new one beside it, then a rename over it.
///
/// # Errors
/// When it cannot be written.
pub fn replace_file(path: &Path, content: &str) -> Result<()> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, content)?;
    Ok(std::fs::rename(beside, path)?)
}

fn openssl(dir: &Path, args: &[&str]) -> Result<()> {
    let mut command = Command::new("openssl");
    command.args(args).current_dir(dir);
    let output = run_command(command)?;
    ensure!(output.status.success(), "openssl {args:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_certificates_can_be_made_and_read() {
        let client = Identity::documented_client().unwrap();
        assert_eq!(client.certificates().unwrap().len(), 1);
        client.key().unwrap();
        assert_ne!(client.certificate_pem, Identity::another_documented_client().unwrap().certificate_pem);
        assert_eq!(client.sign_client("laptop").unwrap().certificates().unwrap().len(), 1);
    }
}
