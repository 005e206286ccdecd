//! Whom the peer port refuses: by their certificates, and by what their calls say.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use casbah_cluster::digest::{Digest, DigestFunction};
use casbah_cluster::membership::{Epoch, NodeId, Roster};
use futures_util::stream;
use http::HeaderMap;
use http_body_util::StreamBody;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tonic::{Code, Status};

use super::peers_testing::{CLUSTER, Node, Site};
use super::tls::Reloaded;
use crate::authenticate::test_certificates::{DOCUMENTED_CLIENT, Made, authority_params, params};
use crate::authenticate::{crypto, load_key};
use crate::forward::{PeerError, message_frame};
use crate::store::Presence;

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);
const FIND: &str = "/casbah.peer.v1.Blobs/Find";
const VOTE: &str = "/casbah.peer.v1.Raft/Vote";
const INTRODUCE: &str = "/casbah.peer.v1.Membership/Introduce";

/// What a call comes to: its status and the epoch of the answer, or why there is no answer at all.
async fn call(
    node: &Node,
    config: ClientConfig,
    path: &str,
    said: &[(&str, &str)],
) -> Result<(Status, String), String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let stream = TcpStream::connect(node.address()).await.map_err(|error| text(&error))?;
    let name = "casbah-peer".try_into().unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| text(&error))?;
    let handshake = http2::handshake::<_, _, Body>(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, driver) = handshake.map_err(|error| text(&error))?;
    let _driver = tokio::spawn(driver);
    let introduction = Some(casbah_proto::peer::v1::Introduction::default());
    let body = match path {
        INTRODUCE => message_frame(&casbah_proto::peer::v1::IntroduceRequest { introduction }),
        _ => message_frame(&casbah_proto::peer::v1::RaftRequest::default()),
    };
    let body = Body::new(StreamBody::new(stream::iter([Ok::<_, std::convert::Infallible>(body)])));
    let mut request = http::Request::post(format!("https://casbah-peer{path}"));
    for (name, value) in said {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(body).unwrap()).await.map_err(|error| text(&error))?;
    let epoch = response.headers().get("casbah-epoch").map_or(String::new(), |epoch| epoch.to_str().unwrap().into());
    let status = Status::from_header_map(response.headers());
    if let Some(status) = status {
        return Ok((status, epoch));
    }
    let trailers = http_body_util::BodyExt::collect(response.into_body()).await.map_err(|error| text(&error))?;
    let trailers = trailers.trailers().cloned().unwrap_or_else(HeaderMap::new);
    Ok((Status::from_header_map(&trailers).unwrap(), epoch))
}

fn said(cluster: &str) -> Vec<(&str, &str)> {
    vec![
        ("content-type", "application/grpc"),
        ("casbah-protocol", "1"),
        ("casbah-cluster", cluster),
        ("casbah-node", "1"),
        ("casbah-peer", "2"),
        ("casbah-epoch", "1"),
        ("casbah-hop", "1"),
    ]
}

fn with<'a>(said: &[(&'a str, &'a str)], name: &'a str, value: Option<&'a str>) -> Vec<(&'a str, &'a str)> {
    let others = said.iter().filter(|(other, _)| *other != name).copied();
    others.chain(value.map(|value| (name, value))).collect()
}

/// Shows this certificate, and trusts anything that the node's authority issued.
fn shows(made: Option<&Made>, version: &'static rustls::SupportedProtocolVersion) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(crypto()).with_protocol_versions(&[version]).unwrap();
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anything));
    let mut config = match made {
        Some(made) => {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("c"), &made.pem).unwrap();
            fs::write(dir.path().join("k"), &made.key_pem).unwrap();
            let pair = load_key(&dir.path().join("c"), &dir.path().join("k")).unwrap();
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair)))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Trusts every server: it is the node that is to refuse.
#[derive(Debug)]
struct Anything;

impl rustls::client::danger::ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        crypto().signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_certificate_of_the_authority_for_nodes_opens_the_port() {
    let (site, _one, two) = Site::pair().await;
    let cluster = CLUSTER.to_string();
    let peer = site.authority.issue(&params("node-9"));
    let (status, _) = call(&two, shows(Some(&peer), &TLS13), FIND, &said(&cluster)).await.unwrap();
    assert_eq!(status.code(), Code::Ok, "{status}");

    let clients = Made::self_signed(&authority_params("clients"));
    let mut over = params("node-9");
    (over.not_before, over.not_after) = (
        crate::authenticate::test_certificates::day(-20).into(),
        crate::authenticate::test_certificates::day(-10).into(),
    );
    let mut for_servers = params("node-9");
    for_servers.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let same_name = Made::self_signed(&authority_params("peers")).issue(&params("node-9"));
    for (what, made) in [
        ("none", None),
        ("a client's", Some(&clients.issue(&params("client")))),
        ("a documented client's", Some(&*DOCUMENTED_CLIENT)),
        ("one of an authority of the same name", Some(&same_name)),
        ("the authority's own", Some(&site.authority)),
        ("one that is over", Some(&site.authority.issue(&over))),
        ("one for servers alone", Some(&site.authority.issue(&for_servers))),
    ] {
        let outcome = call(&two, shows(made, &TLS13), FIND, &said(&cluster)).await;
        assert!(outcome.is_err(), "{what}: {outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn older_tls_and_plaintext_do_not_open_the_port() {
    let (site, _one, two) = Site::pair().await;
    let cluster = CLUSTER.to_string();
    let peer = site.authority.issue(&params("node-9"));
    let refused = call(&two, shows(Some(&peer), &TLS12), FIND, &said(&cluster)).await.unwrap_err();
    assert!(refused.contains("ProtocolVersion"), "{refused}");
    let stream = TcpStream::connect(two.address()).await.unwrap();
    let (mut sender, driver) =
        http2::handshake::<_, _, Body>(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let _driver = tokio::spawn(driver);
    let request = http::Request::post(format!("https://casbah-peer{FIND}")).body(Body::empty()).unwrap();
    sender.send_request(request).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_no_node_is_not_talked_to() {
    let (mut site, one, _two) = Site::pair().await;
    let stranger = Node::start(&Made::self_signed(&authority_params("peers")), TWO).await;
    site.addresses.insert(TWO, stranger.port);
    site.tell(&[&one, &stranger]);
    let error = one.peers.find(TWO, &[], true).await;
    // Nothing is asked for nothing: a call is needed.
    assert!(error.is_ok());
    let digest = Digest::of(DigestFunction::Sha256, b"x");
    let error = one.peers.find(TWO, &[digest], true).await.unwrap_err();
    assert!(matches!(error, PeerError::Unreachable(_)), "{error}");
    assert!(!one.peers.health(TWO).reachable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_does_not_say_what_it_has_to_is_refused() {
    let (site, _one, two) = Site::pair().await;
    let peer = site.authority.issue(&params("node-9"));
    let cluster = CLUSTER.to_string();
    let (right, other) = (said(&cluster), "00".repeat(16));
    for (name, value, expected) in [
        ("casbah-protocol", Some("2"), Code::FailedPrecondition),
        ("casbah-protocol", Some("0"), Code::FailedPrecondition),
        ("casbah-protocol", Some("newest"), Code::FailedPrecondition),
        ("casbah-protocol", None, Code::FailedPrecondition),
        ("casbah-cluster", Some(&*other), Code::FailedPrecondition),
        ("casbah-cluster", Some("nonsense"), Code::FailedPrecondition),
        ("casbah-cluster", None, Code::FailedPrecondition),
        ("casbah-node", Some("-1"), Code::FailedPrecondition),
        ("casbah-node", None, Code::FailedPrecondition),
        // Node 0 never was.
        ("casbah-node", Some("0"), Code::FailedPrecondition),
        ("casbah-peer", Some("1"), Code::FailedPrecondition),
        ("casbah-peer", None, Code::FailedPrecondition),
        ("casbah-epoch", Some("first"), Code::FailedPrecondition),
        ("casbah-hop", Some("0"), Code::FailedPrecondition),
        ("casbah-hop", Some("2"), Code::FailedPrecondition),
        ("casbah-hop", None, Code::FailedPrecondition),
        // It may be one that this node will hear of, or a layout that it will: not within a second.
        ("casbah-node", Some("3"), Code::Aborted),
        ("casbah-epoch", Some("2"), Code::Aborted),
        ("casbah-epoch", Some("0"), Code::Ok),
        ("casbah-epoch", None, Code::Ok),
    ] {
        let (status, epoch) = call(&two, shows(Some(&peer), &TLS13), FIND, &with(&right, name, value)).await.unwrap();
        assert_eq!(status.code(), expected, "{name} {value:?}: {status}");
        assert_eq!(epoch, "1", "{name} {value:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_comes_from_nodes_that_are_not_known_yet_and_introductions_from_anybody() {
    let (site, _one, two) = Site::pair().await;
    let peer = site.authority.issue(&params("node-9"));
    let cluster = CLUSTER.to_string();
    let right = said(&cluster);
    let outcome =
        async |path, said: &[(&str, &str)]| call(&two, shows(Some(&peer), &TLS13), path, said).await.unwrap().0.code();
    let began = Instant::now();
    assert_eq!(outcome(VOTE, &with(&right, "casbah-node", Some("8"))).await, Code::Ok);
    assert_eq!(outcome(VOTE, &with(&right, "casbah-epoch", Some("8"))).await, Code::Ok);
    assert!(began.elapsed() < Duration::from_secs(1), "nothing is waited for");
    assert_eq!(outcome(VOTE, &with(&right, "casbah-cluster", Some(&"00".repeat(16)))).await, Code::FailedPrecondition);
    assert_eq!(outcome(VOTE, &with(&right, "casbah-peer", Some("3"))).await, Code::FailedPrecondition);
    let stranger = [("content-type", "application/grpc")];
    assert_eq!(outcome(INTRODUCE, &stranger).await, Code::Ok);
    assert_eq!(outcome(INTRODUCE, &with(&stranger, "casbah-protocol", Some("7"))).await, Code::Ok, "it says in itself");
    assert_eq!(outcome(FIND, &stranger).await, Code::FailedPrecondition);
    assert_eq!(outcome("/casbah.peer.v1.Blobs/Erase", &right).await, Code::Unimplemented);
    assert_eq!(
        outcome("/build.bazel.remote.execution.v2.Capabilities/GetCapabilities", &right).await,
        Code::Unimplemented
    );

    // A node that is in no cluster answers no member of any.
    two.roster.send_replace(Arc::new(Roster::default()));
    assert_eq!(outcome(FIND, &right).await, Code::FailedPrecondition);
    assert_eq!(outcome(VOTE, &right).await, Code::FailedPrecondition);
    assert_eq!(outcome(INTRODUCE, &stranger).await, Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_under_a_nodes_address_does_not_speak_for_it() {
    let (mut site, one, two) = Site::pair().await;
    let digest = Digest::of(DigestFunction::Sha256, b"acknowledged");
    two.store.put(&digest, "acknowledged".into()).await.unwrap();
    // Its volume was lost, and it came back as a new one.
    let three = Node::start(&site.authority, NodeId(3)).await;
    site.addresses.insert(TWO, three.port);
    site.tell(&[&one]);
    let roster = site.roster(NodeId(3));
    three.roster.send_replace(roster);
    let error = one.peers.read(TWO, &digest, 0, None, false).await.err().unwrap();
    assert!(matches!(error, PeerError::Refused(_)), "a miss would be a lie: {error}");
    assert!(!one.peers.health(TWO).reachable, "whoever answers so is not who is meant");
    let error = one.peers.find(TWO, &[digest], false).await.unwrap_err();
    assert!(matches!(error, PeerError::Unreachable(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_no_member_any_more_is_refused() {
    let (mut site, one, two) = Site::pair().await;
    let digest = Digest::of(DigestFunction::Sha256, b"x");
    assert_eq!(one.peers.find(TWO, &[digest], false).await.unwrap(), [Presence::Absent]);
    site.addresses.remove(&ONE);
    site.tell(&[&two]);
    let began = Instant::now();
    let error = one.peers.find(TWO, &[digest], false).await.unwrap_err();
    assert!(matches!(error, PeerError::Refused(_)), "{error}");
    assert!(began.elapsed() < Duration::from_millis(900), "it is known, and not waited for");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_authorities_are_exchanged_without_a_connection_being_lost() {
    let (site, mut one, mut two) = Site::pair().await;
    // Whoever is not let in once is away until it has answered a heartbeat.
    one.watch();
    two.watch();
    let digest = [Digest::of(DigestFunction::Sha256, b"x")];
    one.peers.find(TWO, &digest, false).await.unwrap();
    let next = Made::self_signed(&authority_params("next peers"));
    // First both trust both, then each shows its new certificate, then the old authority goes.
    for node in [&one, &two] {
        fs::write(&node.config.authorities, format!("{}{}", site.authority.pem, next.pem)).unwrap();
        assert_eq!(node.tls.reload_if_changed().unwrap(), Reloaded::Clients);
    }
    let made = [next.issue(&params("node-1")), next.issue(&params("node-2"))];
    for (node, made) in [&one, &two].into_iter().zip(&made) {
        fs::write(&node.config.tls.key, &made.key_pem).unwrap();
        fs::write(&node.config.tls.certificate, &made.pem).unwrap();
        assert_eq!(node.tls.reload_if_changed().unwrap(), Reloaded::Certificate);
        one.peers.find(TWO, &digest, false).await.unwrap();
        two.peers.find(ONE, &digest, false).await.unwrap();
    }
    for node in [&one, &two] {
        fs::write(&node.config.authorities, &next.pem).unwrap();
        node.reload_now.send_replace(());
    }
    let (deadline, old) = (Instant::now() + Duration::from_secs(10), site.authority.issue(&params("node-9")));
    let cluster = CLUSTER.to_string();
    while call(&two, shows(Some(&old), &TLS13), FIND, &said(&cluster)).await.is_ok() {
        assert!(Instant::now() < deadline, "the old authority is still trusted");
    }
    // Connections that were made with the old certificate are at an end; the calls that notice may fail, the next do not.
    while let Err(error) = one.peers.find(TWO, &digest, false).await {
        assert!(Instant::now() < deadline, "{error}");
    }
    assert_eq!(one.peers.health(TWO).epoch, Epoch(1));
    // A key that does not fit changes nothing.
    fs::write(&two.config.tls.key, &made[0].key_pem).unwrap();
    two.tls.reload_if_changed().unwrap_err();
    one.peers.find(TWO, &digest, false).await.unwrap();
}
