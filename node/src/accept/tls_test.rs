use std::fs;

use futures_util::FutureExt as _;
use rcgen::KeyPair;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::io::{DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio_rustls::{TlsConnector, client};

use super::*;
use crate::authenticate::test_certificates::{
    DOCUMENTED_CLIENT, DOCUMENTED_SERVER, Made, authority_params, day, params,
};
use crate::authenticate::throwaway::Throwaway;
use crate::authenticate::{Distrust, ServerTrust, Vouched, client_config};

pub(super) const BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

/// A listener's files and its TLS.
pub(super) struct Site {
    pub(super) dir: TempDir,
    pub(super) tls: ListenerTls,
}

impl Site {
    /// The documented server, where these certificates are listed.
    pub(super) fn listing(clients: &[&Made]) -> Site {
        let dir = tempfile::tempdir().unwrap();
        put_pair(&dir, &DOCUMENTED_SERVER);
        put_list(&dir, clients);
        let certificate =
            Clients::Certificate { authorized: Some(dir.path().join("authorized.crt")), authorities: None };
        let tls = ListenerTls::load(&tls_config(&dir), &certificate).unwrap();
        Site { dir, tls }
    }

    /// The documented server, for anyone.
    pub(super) fn open() -> Site {
        let dir = tempfile::tempdir().unwrap();
        put_pair(&dir, &DOCUMENTED_SERVER);
        let tls = ListenerTls::load(&tls_config(&dir), &Clients::Anyone).unwrap();
        Site { dir, tls }
    }

    /// A client of this server that shows a certificate with this key.
    pub(super) fn client(
        &self,
        shown: Option<(&Made, &str)>,
        version: &'static SupportedProtocolVersion,
    ) -> ClientConfig {
        let path = self.dir.path().join("trusted.crt");
        fs::write(&path, &DOCUMENTED_SERVER.pem).unwrap();
        let builder = ClientConfig::builder_with_provider(crypto()).with_protocol_versions(&[version]).unwrap();
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(ServerTrust::load(&path).unwrap()));
        let mut config = match shown {
            Some((made, key)) => builder.with_client_cert_resolver(shows(made, key)),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config
    }

    /// The honest holder of this certificate connects.
    pub(super) async fn meet(&self, made: &Made, version: &'static SupportedProtocolVersion) -> Meeting {
        meet(&self.tls, self.client(Some((made, &made.key_pem)), version)).await
    }
}

pub(super) fn tls_config(dir: &TempDir) -> TlsConfig {
    TlsConfig { certificate: dir.path().join("server.crt"), key: dir.path().join("server.key") }
}

pub(super) fn put_pair(dir: &TempDir, made: &Made) {
    fs::write(dir.path().join("server.crt"), &made.pem).unwrap();
    fs::write(dir.path().join("server.key"), &made.key_pem).unwrap();
}

pub(super) fn put_list(dir: &TempDir, made: &[&Made]) {
    let pems: String = made.iter().map(|made| made.pem.as_str()).collect();
    fs::write(dir.path().join("authorized.crt"), pems).unwrap();
}

/// Shows this certificate and signs with this key, whether they belong together or not.
fn shows(made: &Made, key_pem: &str) -> Arc<dyn ResolvesClientCert> {
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).unwrap();
    let key = crypto().key_provider.load_private_key(key).unwrap();
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![made.der.clone()], key)))
}

/// What a connection was like for either side.
pub(super) struct Meeting {
    pub(super) server: Result<(TlsStream<DuplexStream>, Identity), HandshakeError>,
    pub(super) client: ClientSide,
}

pub(super) enum ClientSide {
    In(Box<client::TlsStream<DuplexStream>>),
    /// As TLS 1.2 refuses.
    FailedToConnect(io::Error),
    /// As TLS 1.3 refuses: the client's handshake is over before the server has seen its certificate.
    FailedToRead(io::Error),
}

impl Meeting {
    pub(super) fn identity(&self) -> &Identity {
        match (&self.server, &self.client) {
            (Ok((_, identity)), ClientSide::In(_)) => identity,
            (Err(error), _) => panic!("not let in: {error}"),
            (_, ClientSide::FailedToConnect(error) | ClientSide::FailedToRead(error)) => panic!("went away: {error}"),
        }
    }

    /// The server's reason and the alert that the client saw, at the point where this version shows it.
    fn refused(self, version: &'static SupportedProtocolVersion) -> (HandshakeError, AlertDescription) {
        let error = match (self.client, version.version) {
            (ClientSide::FailedToRead(error), rustls::ProtocolVersion::TLSv1_3) => error,
            (ClientSide::FailedToConnect(error), rustls::ProtocolVersion::TLSv1_2) => error,
            _ => panic!("the client was not refused where {version:?} does it"),
        };
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let Some(rustls::Error::AlertReceived(alert)) = tls else { panic!("no alert: {error:?}") };
        (self.server.expect_err("the server let it in"), *alert)
    }

    pub(super) fn distrust(self, version: &'static SupportedProtocolVersion) -> (Distrust, AlertDescription) {
        match self.refused(version) {
            (HandshakeError::Refused(refusal), alert) => (refusal.why, alert),
            (other, _) => panic!("refused for another reason: {other:?}"),
        }
    }
}

/// Both sides of a handshake, and a byte from the server that shows it was good for something.
pub(super) async fn meet(tls: &ListenerTls, config: ClientConfig) -> Meeting {
    meet_as(tls, Arc::new(config)).await
}

pub(super) async fn meet_as(tls: &ListenerTls, config: Arc<ClientConfig>) -> Meeting {
    let (near, far) = duplex(1 << 16);
    let server = async {
        let (mut stream, identity) = tls.accept(near).await?;
        stream.write_all(b"!").await.map_err(HandshakeError::Broken)?;
        stream.flush().await.map_err(HandshakeError::Broken)?;
        Ok((stream, identity))
    };
    let (server, client) = tokio::join!(server, connect(config, far));
    Meeting { server, client }
}

pub(super) async fn connect(config: Arc<ClientConfig>, io: DuplexStream) -> ClientSide {
    let name = "localhost".try_into().unwrap();
    let mut stream = match TlsConnector::from(config).connect(name, io).await {
        Ok(stream) => stream,
        Err(error) => return ClientSide::FailedToConnect(error),
    };
    match stream.read_u8().await {
        Ok(byte) => {
            assert_eq!(byte, b'!');
            ClientSide::In(Box::new(stream))
        }
        Err(error) => ClientSide::FailedToRead(error),
    }
}

// === who is let in ===

#[tokio::test]
async fn documented_certificates_work_on_both_sides() {
    let site = Site::listing(&[&DOCUMENTED_CLIENT]);
    for version in BOTH {
        let meeting = site.meet(&DOCUMENTED_CLIENT, version).await;
        let identity = meeting.identity();
        assert_eq!(identity.certificate().unwrap().common_name.as_deref(), Some("client"));
        assert_eq!(identity.vouched(), Some(Vouched::Listed));
        assert!(site.tls.is_current(identity));
    }
}

#[tokio::test]
async fn each_of_two_in_one_file_is_let_in_as_itself() {
    let second = Made::documented_shape("second");
    let site = Site::listing(&[&DOCUMENTED_CLIENT, &second]);
    for (made, name) in [(&*DOCUMENTED_CLIENT, "client"), (&second, "second")] {
        let meeting = site.meet(made, &TLS13).await;
        assert_eq!(meeting.identity().certificate().unwrap().common_name.as_deref(), Some(name));
    }
}

#[tokio::test]
async fn every_kind_of_key_is_proven() {
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let made = Made::self_signed_by(&authority_params("client"), &key);
        let thief = KeyPair::generate_for(algorithm).unwrap().serialize_pem();
        let site = Site::listing(&[&made]);
        for version in BOTH {
            site.meet(&made, version).await.identity();
            let stolen = meet(&site.tls, site.client(Some((&made, &thief)), version)).await;
            assert_eq!(stolen.distrust(version).0, Distrust::KeyNotProven, "{algorithm:?}");
        }
    }
}

#[tokio::test]
async fn one_signed_by_a_listed_one_is_let_in() {
    let site = Site::listing(&[&DOCUMENTED_CLIENT]);
    let issued = DOCUMENTED_CLIENT.issue(&params("issued"));
    for version in BOTH {
        let meeting = site.meet(&issued, version).await;
        assert_eq!(meeting.identity().vouched(), Some(Vouched::ByListed));
    }
}

#[tokio::test]
async fn one_issued_by_an_authority_is_let_in_and_the_authority_itself_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Made::documented_shape("authority");
    put_pair(&dir, &DOCUMENTED_SERVER);
    fs::write(dir.path().join("ca.crt"), &authority.pem).unwrap();
    let clients = Clients::Certificate { authorized: None, authorities: Some(dir.path().join("ca.crt")) };
    let tls = ListenerTls::load(&tls_config(&dir), &clients).unwrap();
    let site = Site { dir, tls };
    let meeting = site.meet(&authority.issue(&params("issued")), &TLS13).await;
    assert_eq!(meeting.identity().vouched(), Some(Vouched::Authority));
    assert_eq!(site.meet(&authority, &TLS13).await.distrust(&TLS13).0, Distrust::Unknown);
}

#[tokio::test]
async fn throwaway_certificates_serve_a_listener_and_its_client() {
    let dir = tempfile::tempdir().unwrap();
    let set = Throwaway::ensure(dir.path(), &["node-1.test"], "ci").unwrap();
    let tls = TlsConfig { certificate: set.server_certificate.clone(), key: set.server_key.clone() };
    let clients = Clients::Certificate { authorized: None, authorities: Some(set.authority.clone()) };
    let tls = ListenerTls::load(&tls, &clients).unwrap();
    let identity = (set.client_certificate.as_path(), set.client_key.as_path());
    let meeting = meet(&tls, client_config(Some(&set.authority), Some(identity)).unwrap()).await;
    assert_eq!(meeting.identity().certificate().unwrap().common_name.as_deref(), Some("ci"));
    // The server's certificate is not a client's, though the same authority issued it.
    let server = (set.server_certificate.as_path(), set.server_key.as_path());
    let meeting = meet(&tls, client_config(Some(&set.authority), Some(server)).unwrap()).await;
    assert_eq!(meeting.distrust(&TLS13).0, Distrust::Purpose);
}

#[tokio::test]
async fn anyone_is_anonymous_where_no_certificate_is_asked_for() {
    let site = Site::open();
    let config = site.client(Some((&DOCUMENTED_CLIENT, &DOCUMENTED_CLIENT.key_pem)), &TLS13);
    let meeting = meet(&site.tls, config).await;
    assert_eq!(*meeting.identity(), Identity::anonymous());
    assert!(site.tls.is_current(meeting.identity()));
}

// === who is not ===

#[tokio::test]
async fn a_listed_certificate_without_its_key_is_worth_nothing() {
    let site = Site::listing(&[&DOCUMENTED_CLIENT]);
    // A key of the same kind, and one of another.
    for key in [&DOCUMENTED_SERVER.key_pem, &Made::documented_shape("thief").key_pem] {
        for version in BOTH {
            let meeting = meet(&site.tls, site.client(Some((&DOCUMENTED_CLIENT, key)), version)).await;
            let (why, alert) = meeting.distrust(version);
            assert!(matches!(why, Distrust::KeyNotProven | Distrust::Other(_)), "{why:?}");
            assert_eq!(alert, AlertDescription::DecryptError);
        }
    }
}

#[tokio::test]
async fn an_unlisted_certificate_is_refused_and_named() {
    let site = Site::listing(&[&DOCUMENTED_CLIENT]);
    let stranger = Made::documented_shape("client");
    for version in BOTH {
        let (error, alert) = site.meet(&stranger, version).await.refused(version);
        let text = error.to_string();
        assert!(text.starts_with("the client's certificate CN=client sha256:"), "{text}");
        assert!(text.ends_with("is refused: it is not listed, and no listed certificate or authority signed it"));
        assert_eq!(alert, AlertDescription::UnknownCA);
    }
}

#[tokio::test]
async fn no_certificate_is_no_entry() {
    let site = Site::listing(&[&DOCUMENTED_CLIENT]);
    for version in BOTH {
        let (error, _) = meet(&site.tls, site.client(None, version)).await.refused(version);
        assert!(matches!(error, HandshakeError::NoCertificate), "{error:?}");
    }
}

#[tokio::test]
async fn a_listed_certificate_outside_its_period_is_refused() {
    let mut over = authority_params("over");
    (over.not_before, over.not_after) = (day(-20).into(), day(-10).into());
    let mut early = authority_params("early");
    (early.not_before, early.not_after) = (day(10).into(), day(20).into());
    let (over, early) = (Made::self_signed(&over), Made::self_signed(&early));
    let site = Site::listing(&[&over, &early]);
    for version in BOTH {
        let (why, alert) = site.meet(&over, version).await.distrust(version);
        assert!(matches!(why, Distrust::Expired { .. }), "{why:?}");
        assert_eq!(alert, AlertDescription::CertificateExpired);
        let (why, _) = site.meet(&early, version).await.distrust(version);
        assert!(matches!(why, Distrust::NotYetValid { .. }), "{why:?}");
    }
}

#[tokio::test]
async fn a_client_of_another_protocol_is_refused_and_one_that_names_none_is_not() {
    let site = Site::open();
    let mut config = site.client(None, &TLS13);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let meeting = meet(&site.tls, config.clone()).await;
    assert!(matches!(meeting.server, Err(HandshakeError::NotHttp2)));
    assert!(matches!(meeting.client, ClientSide::FailedToConnect(_)));
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
    assert_eq!(meet(&site.tls, config.clone()).await.server.unwrap().0.get_ref().1.alpn_protocol(), Some(ALPN_H2));
    config.alpn_protocols.clear();
    assert_eq!(meet(&site.tls, config).await.server.unwrap().0.get_ref().1.alpn_protocol(), None);
}

#[tokio::test]
async fn a_plaintext_client_is_told_apart() {
    for site in [Site::open(), Site::listing(&[&DOCUMENTED_CLIENT])] {
        for hello in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"GET / HTTP/1.1\r\n\r\n", &[0; 64]] {
            let (near, mut far) = duplex(1 << 16);
            far.write_all(hello).await.unwrap();
            far.shutdown().await.unwrap();
            let error = site.tls.accept(near).await.unwrap_err();
            assert!(matches!(error, HandshakeError::NotTls(_)), "{error:?}");
        }
    }
}

#[tokio::test]
async fn a_client_that_says_nothing_is_waited_for_and_one_that_leaves_is_not() {
    let site = Site::listing(&[&DOCUMENTED_CLIENT]);
    let (near, far) = duplex(1 << 16);
    let mut accept = Box::pin(site.tls.accept(near));
    assert!(accept.as_mut().now_or_never().is_none());
    drop(far);
    assert!(matches!(accept.await, Err(HandshakeError::Broken(_))));
}

#[tokio::test]
async fn a_client_that_trusts_another_server_says_so() {
    let site = Site::open();
    fs::write(site.dir.path().join("other.crt"), &Made::documented_shape("localhost").pem).unwrap();
    let config = client_config(Some(&site.dir.path().join("other.crt")), None).unwrap();
    let meeting = meet(&site.tls, config).await;
    assert!(matches!(meeting.server, Err(HandshakeError::Alert(AlertDescription::UnknownCA))));
    assert!(matches!(meeting.client, ClientSide::FailedToConnect(_)));
}

#[tokio::test]
async fn a_refused_client_that_is_still_sending_reads_the_reason() {
    let site = Site::listing(&[&DOCUMENTED_CLIENT]);
    let stranger = Made::documented_shape("client");
    let config = Arc::new(site.client(Some((&stranger, &stranger.key_pem)), &TLS13));
    // Too narrow for the client to send unless somebody listens.
    let (near, far) = duplex(1 << 10);
    let client = async {
        let mut stream = TlsConnector::from(config).connect("localhost".try_into().unwrap(), far).await.unwrap();
        stream.write_all(&[b'x'; 40_000]).await.unwrap();
        stream.flush().await.unwrap();
        stream.read_u8().await.unwrap_err()
    };
    let (seen, refused) = tokio::join!(client, site.tls.accept(near));
    assert!(matches!(refused, Err(HandshakeError::Refused(_))));
    let seen = seen.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    assert_eq!(seen, Some(&rustls::Error::AlertReceived(AlertDescription::UnknownCA)));
}

#[tokio::test]
async fn a_refused_client_is_not_listened_to_for_ever() {
    let site = Site::listing(&[&DOCUMENTED_CLIENT]);
    let stranger = Made::documented_shape("client");
    let config = Arc::new(site.client(Some((&stranger, &stranger.key_pem)), &TLS13));
    let (near, far) = duplex(1 << 10);
    let client = async {
        let mut stream = TlsConnector::from(config).connect("localhost".try_into().unwrap(), far).await.unwrap();
        while stream.write_all(&[b'x'; 10_000]).await.is_ok() {}
    };
    let ((), refused) = tokio::join!(client, site.tls.accept(near));
    assert!(matches!(refused, Err(HandshakeError::Refused(_))));
}

#[test]
fn a_handshake_may_run_on_any_thread() {
    fn sendable<T: Send>(_: T) {}
    let site = Site::open();
    sendable(site.tls.accept(duplex(1).0));
    sendable(Arc::new(site.tls));
}

#[tokio::test]
async fn openssl_gets_in_with_documented_certificates() {
    let site = Site::listing(&[&DOCUMENTED_CLIENT]);
    fs::write(site.dir.path().join("client.crt"), &DOCUMENTED_CLIENT.pem).unwrap();
    fs::write(site.dir.path().join("client.key"), &DOCUMENTED_CLIENT.key_pem).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for version in ["-tls1_2", "-tls1_3"] {
        let mut openssl = tokio::process::Command::new("openssl")
            .args(["s_client", "-connect", &listener.local_addr().unwrap().to_string(), version, "-alpn", "h2"])
            .args(["-CAfile", "server.crt", "-verify_return_error", "-cert", "client.crt", "-key", "client.key"])
            .current_dir(site.dir.path())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (_stream, identity) = site.tls.accept(listener.accept().await.unwrap().0).await.unwrap();
        assert!(identity.to_string().starts_with("CN=client sha256:"), "{identity}");
        openssl.start_kill().unwrap();
    }
}
