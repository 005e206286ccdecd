//! Who gets in, and what they may do there.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use casbah_tests::authority::{Authority, Identity, IdentityFiles, replace_file};
use casbah_tests::clients::bytestream::ReadRequest;
use casbah_tests::clients::{
    AssetName, Client, Tree, Trust, digest_of, is_transport_error, refused_with, write_requests,
};
use casbah_tests::deadline::{eventually, within_deadline};
use casbah_tests::load::new_bytes;
use casbah_tests::process::{Config, Endpoint, Listener, Server};
use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};
use tonic::{Code, Status};

/// What a client that is let in may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Admission {
    Reader,
    Writer,
}
use Admission::{Reader, Writer};

/// The documented BuildStream set-up: a server certificate made by openssl, and a file of clients' certificates.
struct Documented {
    config: Config,
    server: IdentityFiles,
    authorized: PathBuf,
}

impl Documented {
    /// Two clients in one file.
    fn new(authorized: &[&Identity]) -> Result<Documented> {
        let config = Config::new()?;
        let server = Identity::documented_server()?.write(config.dir(), "server")?;
        let path = config.dir().join("authorized.crt");
        std::fs::write(&path, pems(authorized))?;
        Ok(Documented { config, server, authorized: path })
    }

    /// Starts it with the public reading port and the writing port for those in the file.
    fn start(self) -> Result<(Server, PathBuf, Config)> {
        let public = Listener::tls(&self.server)?.allow(&["read"]);
        let writing = Listener::tls(&self.server)?.authorized(&self.authorized)?.allow(&["read", "write"]);
        let config = self.config.listener(&public).listener(&writing);
        Ok((config.start()?, self.authorized, config))
    }
}

fn pems(identities: &[&Identity]) -> String {
    identities.iter().map(|identity| identity.certificate_pem.as_str()).collect()
}

fn documented_trust() -> Result<Trust> {
    Ok(Trust::Exactly(Identity::documented_server()?.certificate_pem))
}

/// Connects and makes a call: a server that speaks TLS 1.3 refuses a certificate only then.
async fn connect(endpoint: &Endpoint, trust: &Trust, identity: Option<&Identity>) -> Result<Client> {
    let client = within_deadline("a connection", Client::tls(&endpoint.authority(), trust, identity)).await??;
    within_deadline("a first call", client.capabilities()).await??;
    Ok(client)
}

/// The client is not let in: neither a service nor a layer before one has answered it.
async fn refused(endpoint: &Endpoint, trust: &Trust, identity: Option<&Identity>) -> Result<()> {
    refused_over(endpoint, trust, identity, rustls::ALL_VERSIONS).await
}

async fn refused_over(
    endpoint: &Endpoint,
    trust: &Trust,
    identity: Option<&Identity>,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<()> {
    let config = Arc::new(trust.config(identity, versions)?);
    match within_deadline("a connection", Client::tls_with(&endpoint.authority(), config)).await? {
        Err(_) => Ok(()),
        Ok(client) => not_reached(within_deadline("a call", client.capabilities()).await?),
    }
}

fn not_reached<T>(answer: Result<T, Status>) -> Result<()> {
    match answer {
        Err(status) if is_transport_error(&status) => Ok(()),
        Err(status) => bail!("a service has answered: {status:?}"),
        Ok(_) => bail!("the client was let in"),
    }
}

/// Makes every call, and checks that the answer fits.
async fn check(client: &Client, admission: Admission) -> Result<()> {
    let blob = new_bytes(1000);
    let digest = digest_of(&blob);
    let absent = AssetName::unique();
    // Reading.
    client.capabilities().await?;
    ensure!(!client.has(&digest).await?);
    let read = client.batch_read(std::slice::from_ref(&digest)).await?;
    ensure!(read.first().and_then(|answer| answer.status.as_ref()).is_some_and(|status| status.code == 5));
    refused_with(Code::NotFound, client.download(&digest).await)?;
    refused_with(Code::NotFound, client.fetch_blob(&absent).await)?;
    refused_with(Code::NotFound, client.fetch_directory(&absent).await)?;
    // Writing.
    let tree = Tree::builder().file("file", blob.clone()).build();
    let name = AssetName::unique();
    match admission {
        Reader => {
            let batch = vec![(digest.clone(), blob.clone())];
            refused_with(Code::PermissionDenied, client.batch_update(batch).await)?;
            refused_with(Code::PermissionDenied, client.upload(blob.clone()).await)?;
            // Also of a blob that is there: no early end for those who may not write.
            refused_with(Code::PermissionDenied, client.upload(Bytes::new()).await)?;
            // On purpose: on UNIMPLEMENTED, bst prints its own clear warning.
            refused_with(Code::Unimplemented, client.push_blob(&name, &digest).await)?;
            refused_with(Code::Unimplemented, client.push_directory(&name, &tree.root).await)?;
            let update = client.capabilities().await?.cache_capabilities.and_then(|cache| {
                cache.action_cache_update_capabilities.map(|capabilities| capabilities.update_enabled)
            });
            ensure!(update != Some(true), "a reader is told that it may update");
            ensure!(!client.has(&digest).await?);
        }
        Writer => {
            let batch = vec![(digest.clone(), blob.clone())];
            let answers = client.batch_update(batch).await?;
            ensure!(answers.iter().all(|answer| answer.status.clone().unwrap_or_default().code == 0));
            client.upload_tree(&tree).await?;
            client.push_blob(&name, &digest).await?;
            client.push_directory(&name, &tree.root).await?;
            ensure!(client.fetch_blob(&name).await?.blob_digest == Some(digest));
            ensure!(client.fetch_directory(&name).await?.root_directory_digest == Some(tree.root));
        }
    }
    Ok(())
}

// === the matrix ===

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_client_gets_at_every_kind_of_listener_what_it_should() -> Result<()> {
    let authority = Authority::new("the company")?;
    let stranger = Authority::new("another company")?;
    let (listed, issued) = (Identity::documented_client()?, authority.client("ci-1")?);
    let config = Config::new()?;
    let server = authority.server()?.write(config.dir(), "server")?;
    let (authorized, authorities) = (config.dir().join("authorized.crt"), config.dir().join("ca.crt"));
    std::fs::write(&authorized, &listed.certificate_pem)?;
    std::fs::write(&authorities, authority.certificate_pem())?;
    let tls = || Listener::tls(&server);
    let both = tls()?.authorized(&authorized)?.with(&format!("authorities = '{}'", authorities.display()));
    let listeners = [
        (Listener::plaintext().allow(&["read"]), Reader),
        (Listener::plaintext().allow(&["read", "write"]), Writer),
        (tls()?.allow(&["read"]), Reader),
        (tls()?.allow(&["read", "write"]), Writer),
        (tls()?.authorized(&authorized)?.allow(&["read"]), Reader),
        (tls()?.authorized(&authorized)?.allow(&["read", "write"]), Writer),
        (tls()?.authorities(&authorities)?.allow(&["read"]), Reader),
        (tls()?.authorities(&authorities)?.allow(&["read", "write"]), Writer),
        (both.allow(&["read", "write"]), Writer),
    ];
    let config = listeners.iter().fold(config, |config, (listener, _)| config.listener(listener));
    let running = config.start()?;
    ensure!(running.endpoints().len() == listeners.len(), "{:?}", running.endpoints());

    let unlisted = Identity::another_documented_client()?;
    let foreign = stranger.client("ci-1")?;
    // Client, and whether it is let in by: anyone, authorized.crt, authorities, both.
    let clients = [
        ("without a certificate", None, [true, false, false, false]),
        ("listed", Some(&listed), [true, true, false, true]),
        ("unlisted", Some(&unlisted), [true, false, false, false]),
        ("issued by the authority", Some(&issued), [true, false, true, true]),
        ("issued by a stranger", Some(&foreign), [true, false, false, false]),
    ];
    let trust = Trust::Authority(authority.certificate_pem().to_owned());
    for (place, (listener, admission)) in listeners.iter().enumerate() {
        let endpoint = running.endpoint(place);
        let column = [usize::MAX, usize::MAX, 0, 0, 1, 1, 2, 2, 3][place];
        for (who, identity, admitted) in clients {
            let what = || format!("{who} at listener {place}: {listener:?}");
            match admitted.get(column) {
                // Plaintext listener: no TLS client of any kind.
                None | Some(false) => refused(endpoint, &trust, identity).await.with_context(what)?,
                Some(true) => {
                    let client = connect(endpoint, &trust, identity).await.with_context(what)?;
                    check(&client, *admission).await.with_context(what)?;
                }
            }
        }
        let plaintext = match Client::plaintext(&endpoint.authority()).await {
            Err(_) => continue,
            Ok(client) => client,
        };
        if place < 2 {
            check(&plaintext, *admission).await.with_context(|| format!("plaintext at listener {place}"))?;
        } else {
            not_reached(within_deadline("a call", plaintext.capabilities()).await?)
                .with_context(|| format!("plaintext at listener {place}"))?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_port_writes_another_reads() -> Result<()> {
    let config = Config::new()?
        .listener(&Listener::plaintext().allow(&["read"]))
        .listener(&Listener::plaintext().allow(&["read", "write"]));
    let server = config.start()?;
    let reader = Client::plaintext(&server.endpoint(0).authority()).await?;
    let writer = Client::plaintext(&server.endpoint(1).authority()).await?;
    let (name, blob) = (AssetName::unique(), new_bytes(1000));
    let digest = writer.upload(blob.clone()).await?;
    writer.push_blob(&name, &digest).await?;
    assert!(reader.has(&digest).await?);
    assert_eq!(reader.download(&digest).await?, blob);
    assert_eq!(reader.fetch_blob(&name).await?.blob_digest, Some(digest));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_cannot_pour_bytes_into_a_refused_upload() -> Result<()> {
    let server = Config::new()?.listener(&Listener::plaintext().allow(&["read"])).start()?;
    let client = Client::plaintext(&server.endpoint(0).authority()).await?;
    let blob = new_bytes(1 << 20);
    let upload = client.begin_upload();
    upload.send_bytes(&client.upload_name(&digest_of(&blob)), 0, &blob[..1000], false).await;
    // Refused on the first message, while the client's side is open.
    refused_with(Code::PermissionDenied, within_deadline("a refusal", upload.answer()).await?)?;
    let name = client.upload_name(&digest_of(&blob));
    let whole = client.bytestream().write(tokio_stream::iter(write_requests(name, blob, 1000))).await;
    refused_with(Code::PermissionDenied, whole)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_port_knows_no_assets_and_an_index_port_no_blobs() -> Result<()> {
    let config = Config::new()?
        .listener(&Listener::plaintext().allow(&["read", "write"]).services("storage"))
        .listener(&Listener::plaintext().allow(&["read", "write"]).services("index"));
    let server = config.start()?;
    let storage = Client::plaintext(&server.endpoint(0).authority()).await?;
    let index = Client::plaintext(&server.endpoint(1).authority()).await?;
    let digest = storage.upload(new_bytes(10)).await?;
    let name = AssetName::unique();
    refused_with(Code::Unimplemented, storage.push_blob(&name, &digest).await)?;
    refused_with(Code::Unimplemented, storage.fetch_blob(&name).await)?;
    refused_with(Code::Unimplemented, index.find_missing(std::slice::from_ref(&digest)).await)?;
    refused_with(Code::Unimplemented, index.upload(new_bytes(10)).await)?;
    refused_with(Code::Unimplemented, index.download(&digest).await)?;
    index.push_blob(&name, &digest).await?;
    // Where the blobs live elsewhere, nothing is checked.
    let elsewhere = digest_of(&new_bytes(10));
    for name in [AssetName::unique(), name] {
        index.push_blob(&name, &elsewhere).await?;
        assert_eq!(index.fetch_blob(&name).await?.blob_digest, Some(elsewhere.clone()));
        index.push_directory(&name, &elsewhere).await?;
        assert_eq!(index.fetch_directory(&name).await?.root_directory_digest, Some(elsewhere.clone()));
    }
    Ok(())
}

// === the documented certificates ===

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_pair_of_ports_works_with_the_documented_certificates() -> Result<()> {
    let (first, second) = (Identity::documented_client()?, Identity::another_documented_client()?);
    let (server, _, _config) = Documented::new(&[&first, &second])?.start()?;
    let trust = documented_trust()?;
    check(&connect(server.endpoint(0), &trust, None).await?, Reader).await?;
    check(&connect(server.endpoint(0), &trust, Some(&first)).await?, Reader).await?;
    for identity in [&first, &second] {
        check(&connect(server.endpoint(1), &trust, Some(identity)).await?, Writer).await?;
    }
    refused(server.endpoint(1), &trust, None).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_of_tls_admit_and_refuse_alike() -> Result<()> {
    let listed = Identity::documented_client()?;
    let unlisted = Identity::another_documented_client()?;
    let (server, _, _config) = Documented::new(&[&listed])?.start()?;
    let trust = documented_trust()?;
    for versions in [[&TLS12], [&TLS13]] {
        let config = Arc::new(trust.config(Some(&listed), &versions)?);
        let client = Client::tls_with(&server.endpoint(1).authority(), config).await?;
        check(&client, Writer).await.with_context(|| format!("{versions:?}"))?;
        for identity in [None, Some(&unlisted), Some(&listed.with_key_of(&unlisted))] {
            refused_over(server.endpoint(1), &trust, identity, &versions)
                .await
                .with_context(|| format!("{versions:?}"))?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_certificate_without_its_key_opens_nothing() -> Result<()> {
    let listed = Identity::documented_client()?;
    let thief = listed.with_key_of(&Identity::another_documented_client()?);
    let (server, _, _config) = Documented::new(&[&listed])?.start()?;
    refused(server.endpoint(1), &documented_trust()?, Some(&thief)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_the_same_name_is_not_the_listed_one() -> Result<()> {
    let listed = Identity::documented_client()?;
    let namesake = Identity::another_documented_client()?;
    let (server, _, _config) = Documented::new(&[&listed])?.start()?;
    refused(server.endpoint(1), &documented_trust()?, Some(&namesake)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_signed_by_a_listed_one_is_admitted_and_one_signed_by_an_unlisted_one_is_not() -> Result<()> {
    let listed = Identity::documented_client()?;
    let unlisted = Identity::another_documented_client()?;
    let (server, _, _config) = Documented::new(&[&listed])?.start()?;
    let trust = documented_trust()?;
    let signed = listed.sign_client("laptop")?;
    check(&connect(server.endpoint(1), &trust, Some(&signed)).await?, Writer).await?;
    refused(server.endpoint(1), &trust, Some(&unlisted.sign_client("laptop")?)).await?;
    // The signer has the same name as the listed one: only its key tells.
    let mut with_listed_issuer = unlisted.sign_client("laptop")?;
    with_listed_issuer.certificate_pem.push_str(&listed.certificate_pem);
    refused(server.endpoint(1), &trust, Some(&with_listed_issuer)).await?;
    // A chain that ends in an unlisted one, which the client brings along.
    let mut with_own_issuer = unlisted.sign_client("laptop")?;
    with_own_issuer.certificate_pem.push_str(&unlisted.certificate_pem);
    refused(server.endpoint(1), &trust, Some(&with_own_issuer)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_list_admits_nobody() -> Result<()> {
    let client = Identity::documented_client()?;
    match Documented::new(&[])?.start() {
        // Refusing to start is as good, if it says why.
        Err(error) => assert!(format!("{error:#}").contains("authorized.crt"), "{error:#}"),
        Ok((server, _, _config)) => {
            refused(server.endpoint(1), &documented_trust()?, Some(&client)).await?;
            refused(server.endpoint(1), &documented_trust()?, None).await?;
            check(&connect(server.endpoint(0), &documented_trust()?, None).await?, Reader).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_finish_a_handshake_keep_nobody_out() -> Result<()> {
    let listed = Identity::documented_client()?;
    let (server, _, _config) = Documented::new(&[&listed])?.start()?;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(tokio::net::TcpStream::connect(server.endpoint(1).authority()).await?);
    }
    check(&connect(server.endpoint(1), &documented_trust()?, Some(&listed)).await?, Writer).await?;
    drop(silent);
    Ok(())
}

// === changes without a restart ===

#[tokio::test(flavor = "multi_thread")]
async fn an_added_certificate_is_admitted_without_a_restart() -> Result<()> {
    let (first, second) = (Identity::documented_client()?, Identity::another_documented_client()?);
    let (server, authorized, _config) = Documented::new(&[&first])?.start()?;
    let trust = documented_trust()?;
    refused(server.endpoint(1), &trust, Some(&second)).await?;
    replace_file(&authorized, &pems(&[&first, &second]))?;
    eventually("the second client is admitted", || async {
        Ok(connect(server.endpoint(1), &trust, Some(&second)).await.is_ok())
    })
    .await?;
    check(&connect(server.endpoint(1), &trust, Some(&first)).await?, Writer).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_certificate_is_refused_without_a_restart_on_new_connections_and_on_old_ones() -> Result<()> {
    let (first, second) = (Identity::documented_client()?, Identity::another_documented_client()?);
    let (server, authorized, _config) = Documented::new(&[&first, &second])?.start()?;
    let trust = documented_trust()?;
    let old = connect(server.endpoint(1), &trust, Some(&second)).await?;
    let stays = connect(server.endpoint(1), &trust, Some(&first)).await?;
    // In place this time, as `>` does.
    std::fs::write(&authorized, pems(&[&first]))?;
    eventually("the old connection is refused", || async { Ok(old.capabilities().await.is_err()) }).await?;
    refused(server.endpoint(1), &trust, Some(&second)).await?;
    // Refused for good, not once.
    assert!(old.capabilities().await.is_err());
    check(&stays, Writer).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_cannot_be_resumed_past_a_removal() -> Result<()> {
    let (first, second) = (Identity::documented_client()?, Identity::another_documented_client()?);
    let (server, authorized, _config) = Documented::new(&[&first, &second])?.start()?;
    let trust = documented_trust()?;
    for versions in [[&TLS12], [&TLS13]] {
        replace_file(&authorized, &pems(&[&first, &second]))?;
        // One configuration, so that tickets of the first connection serve the next ones.
        let config = Arc::new(trust.config(Some(&second), &versions)?);
        let authority = server.endpoint(1).authority();
        eventually("the client is admitted", || async {
            match Client::tls_with(&authority, Arc::clone(&config)).await {
                Ok(client) => Ok(client.capabilities().await.is_ok()),
                Err(_) => Ok(false),
            }
        })
        .await?;
        let another = Client::tls_with(&authority, Arc::clone(&config)).await?;
        another.capabilities().await?;
        replace_file(&authorized, &pems(&[&first]))?;
        eventually("a fresh session is refused", || async {
            Ok(refused_over(server.endpoint(1), &trust, Some(&second), &versions).await.is_ok())
        })
        .await?;
        match Client::tls_with(&authority, config).await {
            Err(_) => {}
            Ok(client) => not_reached(client.capabilities().await).with_context(|| format!("{versions:?}"))?,
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_download_is_not_cut_by_a_change_that_is_not_its_own() -> Result<()> {
    let (first, second) = (Identity::documented_client()?, Identity::another_documented_client()?);
    let (server, authorized, config) = Documented::new(&[&first, &second])?.start()?;
    let trust = documented_trust()?;
    let client = connect(server.endpoint(1), &trust, Some(&first)).await?;
    let blob = new_bytes(32 << 20);
    let digest = client.upload(blob.clone()).await?;
    let request = ReadRequest { resource_name: client.blob_name(&digest), ..Default::default() };
    let mut download = client.bytestream().read(request).await?.into_inner();
    let mut bytes = download.message().await?.context("no first message")?.data.to_vec();
    // The second client is removed, and the server's certificate is a new one.
    replace_file(&authorized, &pems(&[&first]))?;
    eventually("the second client is refused", || async {
        Ok(refused(server.endpoint(1), &trust, Some(&second)).await.is_ok())
    })
    .await?;
    let authority = Authority::new("the renewed one")?;
    let renewed = authority.server()?;
    replace_file(&config.dir().join("server.key"), &renewed.key_pem)?;
    replace_file(&config.dir().join("server.crt"), &renewed.certificate_pem)?;
    let new_trust = Trust::Authority(authority.certificate_pem().to_owned());
    eventually("the new certificate is shown", || async {
        Ok(connect(server.endpoint(1), &new_trust, Some(&first)).await.is_ok())
    })
    .await?;
    while let Some(message) = download.message().await? {
        bytes.extend_from_slice(&message.data);
    }
    assert!(bytes == blob, "{} bytes came", bytes.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_and_key_that_do_not_fit_do_not_take_the_server_down() -> Result<()> {
    let listed = Identity::documented_client()?;
    let (server, _, config) = Documented::new(&[&listed])?.start()?;
    let trust = documented_trust()?;
    // A key of another certificate, then no PEM at all: the good pair stays until the next good one comes.
    for (bad, sign) in [(listed.key_pem.as_str(), "server."), ("not a key", "server.key")] {
        replace_file(&config.dir().join("server.key"), bad)?;
        server.wait_for_stderr(sign)?;
        check(&connect(server.endpoint(1), &trust, Some(&listed)).await?, Writer).await?;
    }
    let authority = Authority::new("the renewed one")?;
    let renewed = authority.server()?;
    replace_file(&config.dir().join("server.crt"), &renewed.certificate_pem)?;
    replace_file(&config.dir().join("server.key"), &renewed.key_pem)?;
    let new_trust = Trust::Authority(authority.certificate_pem().to_owned());
    eventually("the new certificate is shown", || async {
        Ok(connect(server.endpoint(1), &new_trust, Some(&listed)).await.is_ok())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_ends_nothing() -> Result<()> {
    let listed = Identity::documented_client()?;
    let (server, _, _config) = Documented::new(&[&listed])?.start()?;
    let trust = documented_trust()?;
    let client = connect(server.endpoint(1), &trust, Some(&listed)).await?;
    // A terminal that closes, or an operator who means "read the certificates again".
    server.signal(rustix::process::Signal::HUP)?;
    check(&client, Writer).await?;
    check(&connect(server.endpoint(1), &trust, Some(&listed)).await?, Writer).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_cannot_be_read_admits_nobody_new_and_is_read_again_once_it_can() -> Result<()> {
    let (first, second) = (Identity::documented_client()?, Identity::another_documented_client()?);
    let (server, authorized, _config) = Documented::new(&[&first])?.start()?;
    let trust = documented_trust()?;
    replace_file(&authorized, "-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n")?;
    refused(server.endpoint(1), &trust, Some(&second)).await?;
    std::fs::remove_file(&authorized)?;
    refused(server.endpoint(1), &trust, Some(&second)).await?;
    replace_file(&authorized, &pems(&[&second]))?;
    eventually("the second client is admitted", || async {
        Ok(connect(server.endpoint(1), &trust, Some(&second)).await.is_ok())
    })
    .await?;
    refused(server.endpoint(1), &trust, Some(&first)).await
}
