use std::fs;
use std::path::PathBuf;

use futures_util::FutureExt as _;
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio_rustls::TlsConnector;

use super::tests::{BOTH, ClientSide, Site, connect, meet, meet_as, put_list, put_pair, tls_config};
use super::*;
use crate::authenticate::test_certificates::{DOCUMENTED_CLIENT, DOCUMENTED_SERVER, Made, params};
use crate::authenticate::{Distrust, client_config};

#[tokio::test]
async fn a_removal_counts_for_new_connections_at_once_and_for_old_ones_when_they_are_asked() {
    let other = Made::documented_shape("other");
    let site = Site::listing(&[&DOCUMENTED_CLIENT, &other]);
    let (removed, kept) = (site.meet(&DOCUMENTED_CLIENT, &TLS13).await, site.meet(&other, &TLS13).await);
    put_list(&site.dir, &[&other]);
    assert!(site.tls.is_current(removed.identity()), "nobody has read the file yet");
    assert_eq!(site.tls.reload_if_changed().unwrap(), Reloaded::Clients);
    assert!(!site.tls.is_current(removed.identity()));
    assert!(site.tls.is_current(kept.identity()));
    assert_eq!(site.meet(&DOCUMENTED_CLIENT, &TLS13).await.distrust(&TLS13).0, Distrust::Unknown);
    site.meet(&other, &TLS13).await.identity();
    put_list(&site.dir, &[&other, &DOCUMENTED_CLIENT]);
    assert_eq!(site.tls.reload_if_changed().unwrap(), Reloaded::Clients);
    assert!(site.tls.is_current(removed.identity()));
}

#[tokio::test]
async fn the_last_one_is_taken_off_by_emptying_the_list() {
    let site = Site::listing(&[&DOCUMENTED_CLIENT]);
    let last = site.meet(&DOCUMENTED_CLIENT, &TLS13).await;
    put_list(&site.dir, &[]);
    assert_eq!(site.tls.reload_if_changed().unwrap(), Reloaded::Nothing, "it may be in the middle of being written");
    assert!(site.tls.is_current(last.identity()));
    assert_eq!(site.tls.reload_if_changed().unwrap(), Reloaded::Clients);
    assert!(!site.tls.is_current(last.identity()));
    assert_eq!(site.meet(&DOCUMENTED_CLIENT, &TLS13).await.distrust(&TLS13).0, Distrust::Unknown);
    put_list(&site.dir, &[&DOCUMENTED_CLIENT]);
    assert_eq!(site.tls.reload_if_changed().unwrap(), Reloaded::Clients);
    site.meet(&DOCUMENTED_CLIENT, &TLS13).await.identity();
}

#[tokio::test]
async fn a_removal_takes_along_those_whom_the_removed_one_signed() {
    let (issuer, other) = (Made::documented_shape("issuer"), Made::documented_shape("other"));
    let site = Site::listing(&[&issuer, &other]);
    let issued = site.meet(&issuer.issue(&params("issued")), &TLS13).await;
    put_list(&site.dir, &[&other]);
    site.tls.reload_if_changed().unwrap();
    assert!(!site.tls.is_current(issued.identity()));
}

#[tokio::test]
async fn a_removal_during_the_handshake_counts() {
    let (listed, other) = (Made::documented_shape("listed"), Made::documented_shape("other"));
    let site = Site::listing(&[&listed, &other]);
    let (near, far) = duplex(1 << 16);
    let mut accept = Box::pin(site.tls.accept(near));
    assert!(accept.as_mut().now_or_never().is_none());
    put_list(&site.dir, &[&other]);
    site.tls.reload_if_changed().unwrap();
    let config = Arc::new(site.client(Some((&listed, &listed.key_pem)), &TLS13));
    let server = async { accept.await.map(|(_stream, identity)| identity) };
    let (server, client) = tokio::join!(server, connect(config, far));
    assert!(matches!(server, Err(HandshakeError::Overtaken(_))), "{server:?}");
    assert!(matches!(client, ClientSide::FailedToRead(_)));
}

#[tokio::test]
async fn no_session_is_resumed_where_certificates_are_asked_for() {
    let client = Made::documented_shape("client");
    let (closed, open) = (Site::listing(&[&client]), Site::open());
    for version in BOTH {
        for (site, again) in [(&closed, HandshakeKind::Full), (&open, HandshakeKind::Resumed)] {
            let config = Arc::new(site.client(Some((&client, &client.key_pem)), version));
            let mut kinds = Vec::new();
            let tickets_expected =
                version.version == rustls::ProtocolVersion::TLSv1_3 && again == HandshakeKind::Resumed;
            for _ in 0..2 {
                let ClientSide::In(stream) = meet_as(&site.tls, Arc::clone(&config)).await.client else { panic!() };
                kinds.extend(stream.get_ref().1.handshake_kind());
                assert_eq!(stream.get_ref().1.tls13_tickets_received() > 0, tickets_expected);
            }
            assert_eq!(kinds, [HandshakeKind::Full, again], "{version:?}");
        }
    }
}

#[tokio::test]
async fn a_new_server_certificate_is_shown_to_new_connections_and_old_ones_go_on() {
    let site = Site::listing(&[&DOCUMENTED_CLIENT]);
    let old = site.meet(&DOCUMENTED_CLIENT, &TLS13).await;
    let renewed = Made::documented_shape("localhost");
    put_pair(&site.dir, &renewed);
    assert_eq!(site.tls.reload_if_changed().unwrap(), Reloaded::Certificate);
    assert!(site.tls.is_current(old.identity()));
    let (Ok((mut server, _)), ClientSide::In(mut client)) = (old.server, old.client) else { panic!() };
    server.write_all(b"still here").await.unwrap();
    server.flush().await.unwrap();
    let mut read = [0; 10];
    client.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"still here");

    let files = ["renewed.crt", "client.crt", "client.key"].map(|name| site.dir.path().join(name));
    for (path, text) in files.iter().zip([&renewed.pem, &DOCUMENTED_CLIENT.pem, &DOCUMENTED_CLIENT.key_pem]) {
        fs::write(path, text).unwrap();
    }
    let config = client_config(Some(&files[0]), Some((&files[1], &files[2]))).unwrap();
    let new = meet(&site.tls, config).await;
    new.identity();
    let ClientSide::In(client) = &new.client else { panic!() };
    assert_eq!(client.get_ref().1.peer_certificates().unwrap(), std::slice::from_ref(&renewed.der));
}

/// What a new client is shown.
async fn shown(site: &Site) -> Vec<u8> {
    let (near, far) = duplex(1 << 16);
    let config = Arc::new(site.client(None, &TLS12));
    let (_, client) =
        tokio::join!(site.tls.accept(near), TlsConnector::from(config).connect("x".try_into().unwrap(), far));
    client.unwrap().get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn a_certificate_waits_for_its_key() {
    let site = Site::open();
    let renewed = Made::documented_shape("localhost");
    fs::write(site.dir.path().join("server.crt"), &renewed.pem).unwrap();
    let error = site.tls.reload_if_changed().unwrap_err();
    assert!(matches!(error, TlsError::Mismatch { .. }), "{error}");
    assert_eq!(site.tls.reload_if_changed().unwrap(), Reloaded::Nothing, "told once");
    assert_eq!(shown(&site).await, DOCUMENTED_SERVER.der.to_vec());
    fs::write(site.dir.path().join("server.key"), &renewed.key_pem).unwrap();
    assert_eq!(site.tls.reload_if_changed().unwrap(), Reloaded::Certificate);
    assert_eq!(site.tls.reload_if_changed().unwrap(), Reloaded::Nothing);
}

#[tokio::test]
async fn broken_files_keep_the_old_ones_in_force() {
    let site = Site::listing(&[&DOCUMENTED_CLIENT]);
    let authorized = site.dir.path().join("authorized.crt");
    let half = &DOCUMENTED_CLIENT.pem[..DOCUMENTED_CLIENT.pem.len() / 2];
    for broken in ["nothing of use", half, &format!("{}{half}", DOCUMENTED_SERVER.pem)] {
        fs::write(&authorized, broken).unwrap();
        assert!(site.tls.reload_if_changed().is_err(), "{broken}");
        assert_eq!(site.tls.reload_if_changed().unwrap(), Reloaded::Nothing, "told once");
        site.meet(&DOCUMENTED_CLIENT, &TLS13).await.identity();
    }
    fs::remove_file(&authorized).unwrap();
    assert!(matches!(site.tls.reload_if_changed(), Err(TlsError::Unreadable { .. })));
    site.meet(&DOCUMENTED_CLIENT, &TLS13).await.identity();
}

#[tokio::test]
async fn a_broken_certificate_does_not_delay_a_removal() {
    let (listed, other) = (Made::documented_shape("listed"), Made::documented_shape("other"));
    let site = Site::listing(&[&listed, &other]);
    let meeting = site.meet(&listed, &TLS13).await;
    fs::write(site.dir.path().join("server.key"), "").unwrap();
    put_list(&site.dir, &[&other]);
    assert!(matches!(site.tls.reload_if_changed(), Err(TlsError::NoKey { .. })));
    assert!(!site.tls.is_current(meeting.identity()));
}

#[tokio::test]
async fn a_volume_that_kubernetes_swaps_is_read_again() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let renewed = Made::documented_shape("localhost");
    for (version, made) in [("..1", &*DOCUMENTED_SERVER), ("..2", &renewed)] {
        fs::create_dir(dir.path().join(version)).unwrap();
        fs::write(dir.path().join(version).join("tls.crt"), &made.pem).unwrap();
        fs::write(dir.path().join(version).join("tls.key"), &made.key_pem).unwrap();
    }
    symlink("..1", dir.path().join("..data")).unwrap();
    let file = |name: &str| -> PathBuf {
        symlink(PathBuf::from("..data").join(name), dir.path().join(name)).unwrap();
        dir.path().join(name)
    };
    let config = TlsConfig { certificate: file("tls.crt"), key: file("tls.key") };
    let tls = ListenerTls::load(&config, &Clients::Anyone).unwrap();
    assert_eq!(tls.reload_if_changed().unwrap(), Reloaded::Nothing);
    symlink("..2", dir.path().join("..next")).unwrap();
    fs::rename(dir.path().join("..next"), dir.path().join("..data")).unwrap();
    fs::remove_dir_all(dir.path().join("..1")).unwrap();
    assert_eq!(tls.reload_if_changed().unwrap(), Reloaded::Certificate);
    assert_eq!(tls.in_force.load().pair.cert, std::slice::from_ref(&renewed.der));
}

// === what is found at the start ===

#[test]
fn files_that_cannot_be_used_are_named_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let authorized = dir.path().join("authorized.crt");
    let clients = Clients::Certificate { authorized: Some(authorized.clone()), authorities: None };
    let load = |clients: &Clients| ListenerTls::load(&tls_config(&dir), clients).unwrap_err();
    let named = |error: TlsError, file: &str| assert!(error.to_string().contains(file), "{error}");
    named(load(&Clients::Anyone), "server.crt");
    let (one, other) = (Made::documented_shape("one"), Made::documented_shape("other"));
    fs::write(dir.path().join("server.crt"), &one.pem).unwrap();
    named(load(&Clients::Anyone), "server.key");
    fs::write(dir.path().join("server.key"), &other.key_pem).unwrap();
    let error = load(&Clients::Anyone);
    assert!(matches!(error, TlsError::Mismatch { .. }), "{error}");
    fs::write(dir.path().join("server.key"), &one.key_pem).unwrap();
    named(load(&clients), "authorized.crt");
    fs::write(&authorized, "").unwrap();
    let error = load(&clients);
    assert!(matches!(error, TlsError::NoCertificate { .. }), "{error}");
    fs::write(&authorized, &other.pem).unwrap();
    ListenerTls::load(&tls_config(&dir), &clients).unwrap();
}
