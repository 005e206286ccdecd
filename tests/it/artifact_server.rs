//! `casbah bst-artifact-server`: the old program's options and set-ups, and what it got wrong.

use std::path::Path;
use std::process::Output;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use casbah_tests::authority::Identity;
use casbah_tests::clients::asset::PushBlobRequest;
use casbah_tests::clients::reapi::Digest;
use casbah_tests::clients::{AssetName, Client, Tree, Trust, digest_of, is_transport_error, refused_with};
use casbah_tests::deadline::eventually;
use casbah_tests::load::{Content, History, Load, new_bytes, test_seed};
use casbah_tests::process::{self, Server};
use rustix::process::Signal;
use tempfile::TempDir;
use tonic::{Code, Status};

const MIB: usize = 1 << 20;

/// Starts the command on a free port, with these options before the directory.
fn start(dir: &Path, options: &[&str]) -> Result<Server> {
    let mut args = vec!["bst-artifact-server", "--port", "0"];
    args.extend(options);
    args.push(dir.to_str().context("the path is not UTF-8")?);
    Server::start(&args)
}

async fn client(server: &Server) -> Result<Client> {
    Client::plaintext(&format!("127.0.0.1:{}", server.port(0))).await
}

async fn pushed_blob(client: &Client) -> Result<(AssetName, Digest)> {
    let (name, digest) = (AssetName::unique(), client.upload(new_bytes(100)).await?);
    client.push_blob(&name, &digest).await?;
    Ok((name, digest))
}

/// Nothing that writes gets through, everything that reads does.
async fn check_pull_only(client: &Client, name: &AssetName, digest: &Digest) -> Result<()> {
    ensure!(client.fetch_blob(name).await?.blob_digest.as_ref() == Some(digest));
    ensure!(client.has(digest).await?);
    client.download(digest).await?;
    let blob = new_bytes(10);
    refused_with(Code::PermissionDenied, client.upload(blob.clone()).await)?;
    refused_with(Code::PermissionDenied, client.batch_update(vec![(digest_of(&blob), blob.clone())]).await)?;
    refused_with(Code::Unimplemented, client.push_blob(name, digest).await)?;
    refused_with(Code::Unimplemented, client.push_directory(name, digest).await)?;
    ensure!(!client.has(&digest_of(&blob)).await?);
    Ok(())
}

/// Only what a retry heals may be seen while another instance takes over.
async fn until_served<T, F, A>(what: &str, call: F) -> Result<T>
where
    F: Fn() -> A,
    A: Future<Output = Result<T, Status>>,
{
    let answer = std::sync::Mutex::new(None);
    eventually(what, || async {
        match call().await {
            Ok(value) => {
                *answer.lock().expect("nobody panics with the lock") = Some(value);
                Ok(true)
            }
            Err(status) if status.code() == Code::Unavailable || is_transport_error(&status) => Ok(false),
            Err(status) => Err(status.into()),
        }
    })
    .await?;
    answer.into_inner().expect("nobody panics with the lock").context("no answer")
}

// === one instance ===

#[tokio::test(flavor = "multi_thread")]
async fn without_enable_push_nothing_can_be_written() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let pushing = start(dir.path(), &["--enable-push"])?;
    let (name, digest) = pushed_blob(&client(&pushing).await?).await?;
    assert!(pushing.stop()?.success());
    let pulling = start(dir.path(), &[])?;
    check_pull_only(&client(&pulling).await?, &name, &digest).await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_warns_of_plaintext_pushing_but_serves_as_its_users_expect() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start(dir.path(), &["--enable-push"])?;
    pushed_blob(&client(&server).await?).await?;
    server.wait_for_stderr("--enable-push").map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_does_not_exist_is_made() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start(&dir.path().join("a/b/repo"), &["--enable-push"])?;
    pushed_blob(&client(&server).await?).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn both_loopback_addresses_are_served_since_localhost_may_mean_either() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start(dir.path(), &[])?;
    Client::plaintext(&format!("127.0.0.1:{}", server.port(0))).await?.capabilities().await?;
    if tokio::net::TcpListener::bind("[::1]:0").await.is_ok() {
        Client::plaintext(&format!("[::1]:{}", server.port(0))).await?.capabilities().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quota_evicts_the_least_recently_used_at_once() -> Result<()> {
    let dir = tempfile::tempdir()?;
    // In every form a unit file may have it.
    for quota in ["22000000", "22MB", "22M"] {
        let server = start(dir.path(), &["--enable-push", "--quota", quota])?;
        let client = client(&server).await?;
        let first = client.upload(new_bytes(1_000_000)).await?;
        let kept = client.upload(new_bytes(1_000_000)).await?;
        for _ in 0..24 {
            client.upload(new_bytes(1_000_000)).await?;
            ensure!(client.has(&kept).await?, "a blob in use was evicted");
        }
        assert!(!client.has(&first).await?, "26 MB fit into {quota}");
        assert!(server.stop()?.success());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_larger_than_the_quota_cannot_be_pushed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start(dir.path(), &["--enable-push", "--quota", "22MB"])?;
    let client = client(&server).await?;
    // Files that fit each, and together do not: the push must fail, whatever the uploads say.
    let mut tree = Tree::builder();
    for place in 0..30 {
        tree = tree.file(&format!("file-{place}"), new_bytes(MIB));
    }
    let tree = tree.build();
    for blob in &tree.blobs {
        if let Err(status) = client.upload(blob.clone()).await {
            // Poison: on this, BuildStream's client believes that the remote has everything.
            assert_ne!(status.code(), Code::ResourceExhausted, "{status:?}");
        }
    }
    let name = AssetName::unique();
    client.push_directory(&name, &tree.root).await.expect_err("it cannot be whole");
    refused_with(Code::NotFound, client.fetch_directory(&name).await)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_larger_than_the_quota_is_refused_without_the_poisonous_status() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start(dir.path(), &["--enable-push", "--quota", "22MB"])?;
    let client = client(&server).await?;
    let status = Content::new(30 << 20).upload(&client).await.expect_err("30 MiB do not fit into 22 MB");
    assert_ne!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(!is_transport_error(&status), "{status:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn index_only_keeps_names_of_blobs_that_live_elsewhere() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start(dir.path(), &["--enable-push", "--index-only"])?;
    let client = client(&server).await?;
    let (name, elsewhere) = (AssetName::unique(), digest_of(&new_bytes(10)));
    client.push_blob(&name, &elsewhere).await?;
    client.push_directory(&name, &elsewhere).await?;
    assert_eq!(client.fetch_blob(&name).await?.blob_digest, Some(elsewhere.clone()));
    assert_eq!(client.fetch_directory(&name).await?.root_directory_digest, Some(elsewhere.clone()));
    refused_with(Code::Unimplemented, client.upload(new_bytes(10)).await)?;
    refused_with(Code::Unimplemented, client.download(&elsewhere).await)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_certificates_protect_a_pushing_instance() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (listed, unlisted) = (Identity::documented_client()?, Identity::another_documented_client()?);
    let identity = Identity::documented_server()?;
    let files = identity.write(dir.path(), "server")?;
    let authorized = dir.path().join("authorized.crt");
    std::fs::write(&authorized, &listed.certificate_pem)?;
    let text = |path: &Path| path.to_str().map(str::to_owned).context("the path is not UTF-8");
    let options = [text(&files.key)?, text(&files.certificate)?, text(&authorized)?];
    let [key, certificate, clients] = options.each_ref().map(String::as_str);
    let options = ["--enable-push", "--server-key", key, "--server-cert", certificate, "--client-certs", clients];
    let server = start(&dir.path().join("repo"), &options)?;
    let authority = format!("127.0.0.1:{}", server.port(0));
    let trust = Trust::Exactly(identity.certificate_pem);
    pushed_blob(&Client::tls(&authority, &trust, Some(&listed)).await?).await?;
    for stranger in [Some(&unlisted), None] {
        if let Ok(client) = Client::tls(&authority, &trust, stranger).await {
            let status = client.capabilities().await.expect_err("not listed");
            assert!(is_transport_error(&status), "{status:?}");
        }
    }
    Ok(())
}

// === options ===

/// Runs the command to its end, which must be an error that names this.
fn refused_naming(args: &[&str], part: &str) -> Result<Output> {
    let output = process::run(&[&["bst-artifact-server"], args].concat())?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "{args:?} was taken");
    ensure!(stderr.contains("error:"), "{args:?}: {stderr}");
    ensure!(stderr.contains(part), "{args:?} does not name {part}: {stderr}");
    ensure!(!stderr.contains("panicked"), "{stderr}");
    Ok(output)
}

#[test]
fn options_that_do_not_go_together_or_do_not_exist_are_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let repo = dir.path().to_str().context("the path is not UTF-8")?;
    for (args, part) in [
        (vec![], "REPO"),
        (vec![repo], "--port"),
        (vec!["-p", "0"], "REPO"),
        (vec!["-p", "0", "--server-key", "/nowhere/server.key", repo], "--server-cert"),
        (vec!["-p", "0", "--server-cert", "/nowhere/server.crt", repo], "--server-key"),
        (vec!["-p", "0", "--client-certs", "/nowhere/authorized.crt", repo], "--server-key"),
        (vec!["-p", "0", "--quota", "lots", repo], "lots"),
        (vec!["-p", "0", "--quota", "-1", repo], "-1"),
        (vec!["-p", "70000", repo], "70000"),
        (vec!["-p", "http", repo], "http"),
        (vec!["-p", "0", "--log-level", "loud", repo], "loud"),
        (vec!["-p", "0", "--enable-pull", repo], "--enable-pull"),
        (
            vec!["--server-key", "/nowhere/server.key", "--server-cert", "/nowhere/server.crt", "-p", "0", repo],
            "/nowhere/server.",
        ),
    ] {
        refused_naming(&args, part)?;
    }
    Ok(())
}

#[test]
fn a_repository_that_is_a_file_is_refused_by_name() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("file");
    std::fs::write(&file, "")?;
    let file = file.to_str().context("the path is not UTF-8")?;
    refused_naming(&["--port", "0", file], file).map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_log_level_of_the_old_program_is_taken() -> Result<()> {
    for level in ["warning", "info", "trace"] {
        let dir = tempfile::tempdir()?;
        start(dir.path(), &["--log-level", level])?.stop()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_named() -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port().to_string();
    let dir = tempfile::tempdir()?;
    refused_naming(&["--port", &port, dir.path().to_str().context("the path is not UTF-8")?], &port).map(|_| ())
}

// === two instances on one directory ===

/// The documented pair, started in either order; the pulling one is first in the answer.
fn start_pair(dir: &TempDir, pulling_first: bool) -> Result<(Server, Server)> {
    if pulling_first {
        let pulling = start(dir.path(), &[])?;
        Ok((pulling, start(dir.path(), &["--enable-push"])?))
    } else {
        let pushing = start(dir.path(), &["--enable-push"])?;
        Ok((start(dir.path(), &[])?, pushing))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_pushing_instance_takes_the_pulling_one_gives_in_whatever_order_they_start() -> Result<()> {
    for pulling_first in [true, false] {
        let dir = tempfile::tempdir()?;
        let (pulling, pushing) = start_pair(&dir, pulling_first)?;
        let (reader, writer) = (client(&pulling).await?, client(&pushing).await?);
        for size in [0, 100, 100_000, 5 * MIB] {
            let blob = new_bytes(size);
            let digest = writer.upload(blob.clone()).await?;
            assert!(reader.has(&digest).await?);
            assert!(reader.download(&digest).await? == blob);
            if size > 0 {
                let offset = i64::try_from(size / 2)?;
                assert!(reader.read(&reader.blob_name(&digest), offset, 10).await? == blob[size / 2..][..10]);
            }
        }
        let (name, digest) = pushed_blob(&writer).await?;
        check_pull_only(&reader, &name, &digest).await.with_context(|| format!("pulling first: {pulling_first}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_come_through_the_second_instance_as_they_are() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _first = start(dir.path(), &[])?;
    let second = start(dir.path(), &["--enable-push"])?;
    let client = client(&second).await?;
    let (blob, absent) = (new_bytes(100), digest_of(&new_bytes(100)));
    let digest = client.upload(blob.clone()).await?;
    refused_with(Code::OutOfRange, client.read(&client.blob_name(&digest), 101, 0).await)?;
    let message = refused_with(Code::NotFound, client.download(&absent).await)?;
    assert!(message.contains(&absent.hash), "{message}");
    refused_with(Code::NotFound, client.fetch_blob(&AssetName::unique()).await)?;
    refused_with(Code::InvalidArgument, client.push().push_blob(PushBlobRequest::default()).await)?;
    refused_with(Code::InvalidArgument, client.read("nonsense", 0, 0).await)?;
    assert!(client.push_blob(&AssetName::unique(), &absent).await.is_err());
    let requests = casbah_tests::clients::write_requests(client.upload_name(&absent), blob, 10);
    refused_with(Code::InvalidArgument, client.bytestream().write(tokio_stream::iter(requests)).await)?;
    assert!(!client.has(&absent).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_takes_over_when_the_first_is_killed_and_nothing_is_lost() -> Result<()> {
    for pulling_first in [true, false] {
        let dir = tempfile::tempdir()?;
        let (pulling, pushing) = start_pair(&dir, pulling_first)?;
        let (reader, writer) = (client(&pulling).await?, client(&pushing).await?);
        let history = Arc::new(History::default());
        Load::new(test_seed()).run(std::slice::from_ref(&writer), 0..200, 16, &history).await;
        let (name, digest) = pushed_blob(&writer).await?;
        let (killed, left) = if pulling_first { (pulling, pushing) } else { (pushing, pulling) };
        killed.kill9()?;
        let survivor = client(&left).await?;
        until_served("the second has taken over", || survivor.find_missing(&[])).await?;
        history.check(&survivor).await?;
        assert_eq!(survivor.fetch_blob(&name).await?.blob_digest.as_ref(), Some(&digest));
        if pulling_first {
            pushed_blob(&survivor).await?;
        } else {
            check_pull_only(&survivor, &name, &digest).await?;
        }
        drop(reader);
        // And the first may come back, now as the second.
        let back = start(dir.path(), &["--enable-push"])?;
        let back = client(&back).await?;
        history.check(&back).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_killed_under_load_loses_nothing_that_was_acknowledged_through_the_second() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let first = start(dir.path(), &[])?;
    let second = start(dir.path(), &["--enable-push"])?;
    let (load, history) = (Load::new(test_seed()), Arc::new(History::default()));
    let (ours, writers) = (Arc::clone(&history), [client(&second).await?, client(&second).await?]);
    let uploads = tokio::spawn(async move { load.run(&writers, 0..2000, 50, &ours).await });
    eventually("200 uploads are acknowledged", || async { Ok(history.acknowledged_count() >= 200) }).await?;
    first.kill9()?;
    uploads.await?;
    let survivor = client(&second).await?;
    until_served("the second has taken over", || survivor.find_missing(&[])).await?;
    history.check(&survivor).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_takes_over_when_the_first_is_stopped_cleanly() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let first = start(dir.path(), &["--enable-push"])?;
    let second = start(dir.path(), &[])?;
    let (name, digest) = pushed_blob(&client(&first).await?).await?;
    let reader = client(&second).await?;
    check_pull_only(&reader, &name, &digest).await?;
    assert!(first.stop()?.success());
    until_served("the second has taken over", || reader.find_missing(&[])).await?;
    check_pull_only(&reader, &name, &digest).await
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_the_second_is_not_noticed_by_the_first() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let first = start(dir.path(), &["--enable-push"])?;
    let second = start(dir.path(), &[])?;
    let (name, digest) = pushed_blob(&client(&first).await?).await?;
    check_pull_only(&client(&second).await?, &name, &digest).await?;
    second.kill9()?;
    pushed_blob(&client(&first).await?).await?;
    assert!(first.stop()?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_instances_any_may_go() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut servers = vec![start(dir.path(), &[])?, start(dir.path(), &["--enable-push"])?, start(dir.path(), &[])?];
    let (name, digest) = pushed_blob(&client(&servers[1]).await?).await?;
    for server in [&servers[0], &servers[2]] {
        check_pull_only(&client(server).await?, &name, &digest).await?;
    }
    // The first, then the next: each of the others has had to take over or to follow.
    while servers.len() > 1 {
        servers.remove(0).kill9()?;
        for server in &servers {
            let client = client(server).await?;
            until_served("another has taken over", || client.find_missing(&[])).await?;
            let answer = until_served("the asset is served", || client.fetch_blob(&name)).await?;
            assert_eq!(answer.blob_digest.as_ref(), Some(&digest));
            client.download(&digest).await?;
        }
    }
    check_pull_only(&client(&servers[0]).await?, &name, &digest).await
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_that_start_at_the_same_moment_find_each_other() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().to_owned();
    let starting: Vec<_> = (0..4)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || start(&path, &["--enable-push"]))
        })
        .collect();
    let mut servers = Vec::new();
    for thread in starting {
        servers.push(thread.join().map_err(|_| anyhow::anyhow!("panicked"))??);
    }
    let mut pushed = Vec::new();
    for server in &servers {
        pushed.push(pushed_blob(&client(server).await?).await?);
    }
    for server in &servers {
        let client = client(server).await?;
        for (name, digest) in &pushed {
            assert_eq!(client.fetch_blob(name).await?.blob_digest.as_ref(), Some(digest));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_instance_stops_on_sigterm_and_on_sigint() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _first = start(dir.path(), &[])?;
    for signal in [Signal::TERM, Signal::INT] {
        let second = start(dir.path(), &["--enable-push"])?;
        pushed_blob(&client(&second).await?).await?;
        second.signal(signal)?;
        assert!(second.wait_exit()?.success());
    }
    Ok(())
}
