//! Certificates for a cluster on one machine and for tests: an authority, a server and a client, made in milliseconds.
//!
//! The authority's key is never written: whoever finds the files can be this server or this client, and nobody else.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::UnixTime;

use super::certificate::{AlternativeName, Parsed};
use super::credentials::load_key;
use super::error::TlsError;
use super::pem;

/// The names that every server certificate carries.
const LOCAL_NAMES: &[&str] = &["localhost", "127.0.0.1", "::1"];

/// How long the certificates last: as long as BuildStream's documentation lets its own.
const LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);

/// How far back they are valid: the clocks of containers and virtual machines on one desk differ.
const CLOCK_SKEW: Duration = Duration::from_secs(24 * 3600);

/// Where the files of a set are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Throwaway {
    /// The authority's certificate: what clients trust, and what a listener names as its clients' authority.
    pub authority: PathBuf,
    /// The server's certificate.
    pub server_certificate: PathBuf,
    /// Its key, mode 0600.
    pub server_key: PathBuf,
    /// The client's certificate.
    pub client_certificate: PathBuf,
    /// Its key, mode 0600.
    pub client_key: PathBuf,
}

/// Where the files are that make a node of a throw-away cluster a peer of the others: all of them have the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSet {
    /// The certificate of the peers' authority, which is none of the clients'.
    pub authority: PathBuf,
    /// The certificate of every node, as a server and as a client.
    pub certificate: PathBuf,
    /// Its key, mode 0600.
    pub key: PathBuf,
}

/// Why there are no such certificates.
#[derive(Debug, thiserror::Error)]
pub enum ThrowawayError {
    /// A file or the directory cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Some of the files are there and others are not; none is overwritten.
    #[error("{} is missing and its companions are not: remove the directory to have new certificates", path.display())]
    Incomplete {
        /// One that is missing.
        path: PathBuf,
    },
    /// The files that are there cannot be used.
    #[error("certificates of an earlier time cannot be used: remove their directory to have new ones")]
    Unusable(#[source] TlsError),
    /// A certificate that is there is not valid at this time.
    #[error("{} is not valid at this time: remove the directory to have new certificates", path.display())]
    OutsidePeriod {
        /// Which one.
        path: PathBuf,
    },
    /// The server's certificate that is there lacks a name.
    #[error("{} is not for {name}: remove the directory to have new certificates", path.display())]
    NameMissing {
        /// The server's certificate.
        path: PathBuf,
        /// The name that was asked for.
        name: String,
    },
    /// A certificate cannot be made, for example since a name is none.
    #[error("cannot make a certificate for {name}")]
    Make {
        /// For whom.
        name: String,
        /// What rcgen says.
        #[source]
        source: rcgen::Error,
    },
}

// === impl Throwaway ===

impl Throwaway {
    /// Where a set in this directory has its files, whether they exist or not.
    pub fn at(dir: &Path) -> Throwaway {
        Throwaway {
            authority: dir.join("ca.crt"),
            server_certificate: dir.join("server.crt"),
            server_key: dir.join("server.key"),
            client_certificate: dir.join("client.crt"),
            client_key: dir.join("client.key"),
        }
    }

    /// The set in this directory; made when the directory has none. The server is `localhost`, its addresses, and each
    /// of `server_names` (DNS names or addresses); the client has the common name `client_name`, which a set that
    /// exists keeps.
    ///
    /// # Errors
    /// [`ThrowawayError`] when the files cannot be written, or those that are there cannot be used: nothing is
    /// overwritten.
    pub fn ensure(dir: &Path, server_names: &[&str], client_name: &str) -> Result<Throwaway, ThrowawayError> {
        let set = Throwaway::at(dir);
        let missing: Vec<&PathBuf> = set.files().into_iter().filter(|path| !path.exists()).collect();
        match missing.as_slice() {
            [] => set.check(server_names)?,
            missing if missing.len() == set.files().len() => set.make(dir, server_names, client_name)?,
            [first, ..] => return Err(ThrowawayError::Incomplete { path: (*first).clone() }),
        }
        Ok(set)
    }

    fn files(&self) -> [&PathBuf; 5] {
        [&self.authority, &self.server_certificate, &self.server_key, &self.client_certificate, &self.client_key]
    }

    /// Checks files that exist.
    fn check(&self, server_names: &[&str]) -> Result<(), ThrowawayError> {
        load_key(&self.server_certificate, &self.server_key).map_err(ThrowawayError::Unusable)?;
        load_key(&self.client_certificate, &self.client_key).map_err(ThrowawayError::Unusable)?;
        [&self.authority, &self.server_certificate, &self.client_certificate]
            .into_iter()
            .try_for_each(|path| check_periods(path))?;
        let server = read_certificates(&self.server_certificate)?.into_iter().next();
        let names = server.map(|server| server.names.alternative_names).unwrap_or_default();
        let missing = server_names.iter().find(|name| !names.contains(&alternative_name(name)));
        missing.map_or(Ok(()), |name| {
            Err(ThrowawayError::NameMissing { path: self.server_certificate.clone(), name: (*name).to_owned() })
        })
    }

    /// Writes files that do not exist.
    fn make(&self, dir: &Path, server_names: &[&str], client_name: &str) -> Result<(), ThrowawayError> {
        let authority = make_authority("casbah throwaway authority")?;
        let names = LOCAL_NAMES.iter().chain(server_names).map(|name| (*name).to_owned()).collect();
        let server = make_leaf("casbah server", names, &[ExtendedKeyUsagePurpose::ServerAuth], &authority)?;
        let client = make_leaf(client_name, Vec::new(), &[ExtendedKeyUsagePurpose::ClientAuth], &authority)?;
        fs::create_dir_all(dir).map_err(|source| ThrowawayError::Write { path: dir.to_owned(), source })?;
        write_new(&self.server_key, 0o600, &server.1)?;
        write_new(&self.server_certificate, 0o644, &server.0)?;
        write_new(&self.client_key, 0o600, &client.1)?;
        write_new(&self.client_certificate, 0o644, &client.0)?;
        write_new(&self.authority, 0o644, &authority.pem())
    }
}

// === impl PeerSet ===

impl PeerSet {
    /// The set in this directory; made when the directory has none.
    ///
    /// # Errors
    /// As [`Throwaway::ensure`].
    pub fn ensure(dir: &Path) -> Result<PeerSet, ThrowawayError> {
        let set =
            PeerSet { authority: dir.join("ca.crt"), certificate: dir.join("peer.crt"), key: dir.join("peer.key") };
        let files = [&set.authority, &set.certificate, &set.key];
        let missing: Vec<&PathBuf> = files.into_iter().filter(|path| !path.exists()).collect();
        match missing.as_slice() {
            [] => set.check()?,
            missing if missing.len() == files.len() => set.make(dir)?,
            [first, ..] => return Err(ThrowawayError::Incomplete { path: (*first).clone() }),
        }
        Ok(set)
    }

    fn check(&self) -> Result<(), ThrowawayError> {
        load_key(&self.certificate, &self.key).map_err(ThrowawayError::Unusable)?;
        [&self.authority, &self.certificate].into_iter().try_for_each(|path| check_periods(path))
    }

    fn make(&self, dir: &Path) -> Result<(), ThrowawayError> {
        let authority = make_authority("casbah throwaway peers' authority")?;
        let names = LOCAL_NAMES.iter().map(|name| (*name).to_owned()).collect();
        let purposes = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let (certificate, key) = make_leaf("casbah peer", names, &purposes, &authority)?;
        fs::create_dir_all(dir).map_err(|source| ThrowawayError::Write { path: dir.to_owned(), source })?;
        write_new(&self.key, 0o600, &key)?;
        write_new(&self.certificate, 0o644, &certificate)?;
        write_new(&self.authority, 0o644, &authority.pem())
    }
}

fn check_periods(path: &Path) -> Result<(), ThrowawayError> {
    for certificate in read_certificates(path)? {
        let valid = certificate.validity.check(UnixTime::now());
        valid.map_err(|_outside| ThrowawayError::OutsidePeriod { path: path.to_owned() })?;
    }
    Ok(())
}

fn read_certificates(path: &Path) -> Result<Vec<Parsed>, ThrowawayError> {
    pem::read(path).and_then(|bytes| pem::certificates(path, &bytes)).map_err(ThrowawayError::Unusable)
}

fn alternative_name(name: &str) -> AlternativeName {
    match name.parse::<IpAddr>() {
        Ok(address) => AlternativeName::Ip(address),
        Err(_) => AlternativeName::Dns(name.to_owned()),
    }
}

fn make_authority(name: &str) -> Result<CertifiedIssuer<'static, KeyPair>, ThrowawayError> {
    let failed = |source| ThrowawayError::Make { name: name.to_owned(), source };
    let mut params = named(name, Vec::new()).map_err(failed)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().map_err(failed)?;
    CertifiedIssuer::self_signed(params, key).map_err(failed)
}

/// The PEMs of a certificate and its key.
fn make_leaf(
    name: &str,
    alternative_names: Vec<String>,
    purposes: &[ExtendedKeyUsagePurpose],
    authority: &CertifiedIssuer<'static, KeyPair>,
) -> Result<(String, String), ThrowawayError> {
    let failed = |source| ThrowawayError::Make { name: name.to_owned(), source };
    let mut params = named(name, alternative_names).map_err(failed)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = purposes.to_vec();
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.signed_by(&key, authority).map_err(failed)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn named(name: &str, alternative_names: Vec<String>) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(alternative_names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + LIFETIME).into();
    Ok(params)
}

fn write_new(path: &Path, mode: u32, text: &str) -> Result<(), ThrowawayError> {
    let written = || -> io::Result<()> {
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    written().map_err(|source| ThrowawayError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn contents(set: &Throwaway) -> Vec<String> {
        set.files().into_iter().map(|path| fs::read_to_string(path).unwrap()).collect()
    }

    #[test]
    fn a_set_is_made_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("a/b");
        let set = Throwaway::ensure(&at, &["node-1.test", "10.1.2.3"], "ci").unwrap();
        let made = contents(&set);
        assert_eq!(Throwaway::ensure(&at, &["10.1.2.3"], "somebody else").unwrap(), set);
        assert_eq!(contents(&set), made);
        let server = &read_certificates(&set.server_certificate).unwrap()[0];
        for name in ["localhost", "127.0.0.1", "::1", "node-1.test", "10.1.2.3"] {
            assert!(server.names.alternative_names.contains(&alternative_name(name)), "{name}");
        }
        let client = &read_certificates(&set.client_certificate).unwrap()[0];
        assert_eq!(client.names.common_name.as_deref(), Some("ci"));
        assert!(!client.is_authority && !server.is_authority);
    }

    #[test]
    fn keys_are_for_their_owner_alone_and_the_authority_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let set = Throwaway::ensure(dir.path(), &[], "ci").unwrap();
        for key in [&set.server_key, &set.client_key] {
            assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 5);
    }

    #[test]
    fn peers_have_an_authority_of_their_own_and_a_certificate_for_both_ends() {
        let dir = tempfile::tempdir().unwrap();
        let clients = Throwaway::ensure(&dir.path().join("tls"), &[], "ci").unwrap();
        let peers = PeerSet::ensure(&dir.path().join("peers")).unwrap();
        assert_eq!(PeerSet::ensure(&dir.path().join("peers")).unwrap(), peers);
        assert_eq!(fs::metadata(&peers.key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_ne!(fs::read(&clients.authority).unwrap(), fs::read(&peers.authority).unwrap());
        let certificate = pem::certificates(&peers.certificate, &fs::read(&peers.certificate).unwrap()).unwrap();
        assert!(!certificate[0].is_authority);
        fs::remove_file(&peers.certificate).unwrap();
        let error = PeerSet::ensure(&dir.path().join("peers")).unwrap_err();
        assert!(matches!(&error, ThrowawayError::Incomplete { path } if *path == peers.certificate), "{error}");
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let set = Throwaway::ensure(dir.path(), &[], "ci").unwrap();
        fs::remove_file(&set.client_key).unwrap();
        let error = Throwaway::ensure(dir.path(), &[], "ci").unwrap_err();
        assert!(matches!(&error, ThrowawayError::Incomplete { path } if *path == set.client_key), "{error}");
        fs::write(&set.client_key, "mine").unwrap();
        let error = Throwaway::ensure(dir.path(), &[], "ci").unwrap_err();
        assert!(matches!(&error, ThrowawayError::Unusable(TlsError::NoKey { .. })), "{error}");
        assert_eq!(fs::read_to_string(&set.client_key).unwrap(), "mine");
    }

    #[test]
    fn a_set_that_does_not_serve_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let set = Throwaway::ensure(dir.path(), &[], "ci").unwrap();
        let error = Throwaway::ensure(dir.path(), &["other.test"], "ci").unwrap_err();
        assert!(error.to_string().contains("server.crt is not for other.test"), "{error}");
        let mut over = crate::authenticate::test_certificates::authority_params("over");
        over.not_after = (SystemTime::now() - Duration::from_secs(1)).into();
        let over = crate::authenticate::test_certificates::Made::self_signed(&over);
        fs::write(&set.authority, &over.pem).unwrap();
        let error = Throwaway::ensure(dir.path(), &[], "ci").unwrap_err();
        assert!(matches!(error, ThrowawayError::OutsidePeriod { .. }), "{error}");
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let error = Throwaway::ensure(&dir.path().join("file/certificates"), &[], "ci").unwrap_err();
        assert!(matches!(error, ThrowawayError::Write { .. }), "{error}");
    }
}
