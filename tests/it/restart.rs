//! Stops, crashes and starts: what was acknowledged stays, and what was not is whole or absent.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use casbah_tests::clients::bytestream::ReadRequest;
use casbah_tests::clients::reapi::Digest;
use casbah_tests::clients::{Client, digest_of, refused_with};
use casbah_tests::deadline::eventually;
use casbah_tests::files::{directories, file_with, files, flip_a_byte_of};
use casbah_tests::load::{History, Load, new_bytes, test_seed};
use casbah_tests::process;
use casbah_tests::target::Node;
use rustix::process::Signal;
use tonic::Code;

const MIB: usize = 1 << 20;

/// A quota of 22 blobs, and nothing is spared.
const SMALL: [&str; 2] = ["store.capacity=22MB", "store.retention_floor=0s"];

async fn connections(node: &Node, count: usize) -> Result<Vec<Client>> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(node.client().await?);
    }
    Ok(clients)
}

// === kill -9 ===

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_amid_a_hundred_uploads_loses_nothing_acknowledged_and_shows_nothing_half_written() -> Result<()> {
    let load = Load::new(test_seed());
    let history = Arc::new(History::default());
    let mut node = Node::start(&[])?;
    for round in 0..3_u64 {
        let clients = connections(&node, 8).await?;
        let (acknowledged, ours) = (history.acknowledged_count() + 200, Arc::clone(&history));
        let uploads = tokio::spawn(async move {
            load.run(&clients, round * 1000..(round + 1) * 1000, 100, &ours).await;
        });
        eventually("200 uploads are acknowledged", || async { Ok(history.acknowledged_count() >= acknowledged) })
            .await?;
        node.kill9_and_restart(&[])?;
        uploads.await?;
        let client = node.client().await?;
        history.check(&client).await.with_context(|| format!("after crash {round}"))?;
    }
    ensure!(history.acknowledged_count() < history.begun_count(), "every upload was over before the crash");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_blob_survives_kill_9_at_once() -> Result<()> {
    let mut node = Node::start(&[])?;
    for size in [0, 1, 100, 100_000, 5 * MIB] {
        let blob = new_bytes(size);
        let digest = node.client().await?.upload(blob.clone()).await?;
        node.kill9_and_restart(&[])?;
        assert!(node.client().await?.download(&digest).await? == blob, "{size} bytes");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_survives_kill_9_at_once() -> Result<()> {
    let mut node = Node::start(&[])?;
    let blobs: Vec<_> = (0..100).map(|place| new_bytes(place * 100)).collect();
    let batch = blobs.iter().map(|blob| (digest_of(blob), blob.clone())).collect();
    for answer in node.client().await?.batch_update(batch).await? {
        assert_eq!(answer.status.unwrap_or_default().code, 0);
    }
    node.kill9_and_restart(&[])?;
    let client = node.client().await?;
    for blob in &blobs {
        assert_eq!(client.download(&digest_of(blob)).await?, *blob);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_sent_upload_is_no_blob_after_kill_9_and_can_be_sent_again() -> Result<()> {
    let mut node = Node::start(&[])?;
    let client = node.client().await?;
    let blob = new_bytes(4 * MIB);
    let digest = digest_of(&blob);
    let name = client.upload_name(&digest);
    let upload = client.begin_upload();
    upload.send_bytes(&name, 0, &blob[..3 * MIB], false).await;
    eventually("some of it has arrived", || async {
        Ok(client.query_write(&name).await.is_ok_and(|status| status.committed_size > 0))
    })
    .await?;
    node.kill9_and_restart(&[])?;
    drop(upload.finish().await);
    let client = node.client().await?;
    assert!(!client.has(&digest).await?);
    refused_with(Code::NotFound, client.download(&digest).await)?;
    // Its uuid may be used again, from wherever the server says.
    let offset = match client.query_write(&name).await {
        Ok(status) => usize::try_from(status.committed_size)?,
        Err(status) => {
            assert_eq!(status.code(), Code::NotFound);
            0
        }
    };
    let upload = client.begin_upload();
    upload.send_bytes(&name, offset, &blob[offset..], true).await;
    assert_eq!(upload.finish().await?.committed_size, digest.size_bytes);
    assert!(client.download(&digest).await? == blob);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn half_sent_uploads_do_not_eat_the_disk_over_many_crashes() -> Result<()> {
    let mut node = Node::start(&SMALL)?;
    for _ in 0..6 {
        let client = node.client().await?;
        let blob = new_bytes(6 * MIB);
        let name = client.upload_name(&digest_of(&blob));
        let upload = client.begin_upload();
        upload.send_bytes(&name, 0, &blob[..5 * MIB], false).await;
        eventually("most of it has arrived", || async {
            Ok(client.query_write(&name).await.is_ok_and(|status| status.committed_size == 5 << 20))
        })
        .await?;
        node.kill9_and_restart(&SMALL)?;
        drop(upload.finish().await);
    }
    // 30 MiB were half-sent; the quota is 22 MB, and some files of the node's own come on top.
    eventually("what was half-sent is gone", || async { Ok(size_on_disk(node.dir())? < 30_000_000) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quota_holds_over_restarts() -> Result<()> {
    let mut node = Node::start(&SMALL)?;
    for _ in 0..4 {
        let client = node.client().await?;
        for _ in 0..20 {
            client.upload(new_bytes(1_000_000)).await?;
        }
        node.kill9_and_restart(&SMALL)?;
        eventually("the quota holds", || async { Ok(size_on_disk(node.dir())? < 30_000_000) }).await?;
    }
    Ok(())
}

// === order of eviction ===

/// Uploads 20 blobs, uses three of them, restarts, uploads ten more, and checks that the least recently used went.
async fn the_least_recently_used_go_first_after(restart: impl Fn(&mut Node) -> Result<()>) -> Result<()> {
    let mut node = Node::start(&SMALL)?;
    let client = node.client().await?;
    let mut digests: Vec<Digest> = Vec::new();
    for _ in 0..20 {
        digests.push(client.upload(new_bytes(1_000_000)).await?);
    }
    // Used, in each of the ways of using: these three are now the most recent.
    let used: Vec<Digest> = digests.drain(..3).collect();
    for (place, digest) in used.iter().enumerate() {
        match place {
            0 => drop(client.download(digest).await?),
            1 => ensure!(client.has(digest).await?),
            _ => drop(client.batch_read(std::slice::from_ref(digest)).await?),
        }
    }
    digests.extend(used);
    restart(&mut node)?;
    let client = node.client().await?;
    for _ in 0..10 {
        client.upload(new_bytes(1_000_000)).await?;
    }
    let missing = client.find_missing(&digests).await?;
    ensure!((8..=12).contains(&missing.len()), "{} of 30 MB were evicted from 22 MB", missing.len());
    for (place, digest) in digests.iter().enumerate() {
        let expected = place < missing.len();
        ensure!(missing.contains(digest) == expected, "{place} of 20 in order of use: evicted {}", !expected);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_recently_used_blobs_go_first() -> Result<()> {
    the_least_recently_used_go_first_after(|_| Ok(())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_use_survives_a_restart() -> Result<()> {
    the_least_recently_used_go_first_after(|node| {
        node.server().stop()?;
        node.start_again(&SMALL)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_writing_survives_kill_9() -> Result<()> {
    let mut node = Node::start(&SMALL)?;
    let client = node.client().await?;
    let mut digests = Vec::new();
    for _ in 0..20 {
        digests.push(client.upload(new_bytes(1_000_000)).await?);
    }
    node.kill9_and_restart(&SMALL)?;
    let client = node.client().await?;
    for _ in 0..10 {
        client.upload(new_bytes(1_000_000)).await?;
    }
    let missing = client.find_missing(&digests).await?;
    assert!((8..=12).contains(&missing.len()), "{}", missing.len());
    assert_eq!(missing, digests[..missing.len()]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_within_the_retention_floor_is_not_evicted() -> Result<()> {
    let node = Node::start(&["store.capacity=22MB", "store.retention_floor=1h"])?;
    let client = node.client().await?;
    let mut digests = Vec::new();
    let mut refused = None;
    for _ in 0..30 {
        match client.upload(new_bytes(1_000_000)).await {
            Ok(digest) => digests.push(digest),
            Err(status) => {
                refused = Some(status);
                break;
            }
        }
    }
    let refused = refused.context("30 MB fit into 22 MB")?;
    assert!([Code::ResourceExhausted, Code::Unavailable].contains(&refused.code()), "{refused:?}");
    assert!(digests.len() >= 15, "{} MB of 22 were taken", digests.len());
    assert_eq!(client.find_missing(&digests).await?, []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_larger_than_the_quota_is_refused_and_evicts_nothing() -> Result<()> {
    let node = Node::start(&SMALL)?;
    let client = node.client().await?;
    let small = client.upload(new_bytes(1_000_000)).await?;
    assert!(client.upload(new_bytes(30_000_000)).await.is_err());
    assert!(client.has(&small).await?);
    Ok(())
}

// === SIGTERM ===

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_a_running_download_and_a_running_upload_finish() -> Result<()> {
    let node = Node::start(&[])?;
    let client = node.client().await?;
    let blob = new_bytes(64 * MIB);
    let digest = client.upload(blob.clone()).await?;
    let request = ReadRequest { resource_name: client.blob_name(&digest), ..Default::default() };
    let mut download = client.bytestream().read(request).await?.into_inner();
    let mut bytes = download.message().await?.context("no first message")?.data.to_vec();

    let uploaded = new_bytes(2 * MIB);
    let uploaded_digest = digest_of(&uploaded);
    let name = client.upload_name(&uploaded_digest);
    let upload = client.begin_upload();
    upload.send_bytes(&name, 0, &uploaded[..MIB], false).await;
    eventually("the upload has begun", || async {
        Ok(client.query_write(&name).await.is_ok_and(|status| status.committed_size > 0))
    })
    .await?;

    node.server().signal(Signal::TERM)?;
    let authority = node.server().endpoint(0).authority();
    eventually("nobody new is let in", || async { Ok(tokio::net::TcpStream::connect(&authority).await.is_err()) })
        .await?;
    upload.send_bytes("", MIB, &uploaded[MIB..], true).await;
    assert_eq!(upload.finish().await?.committed_size, uploaded_digest.size_bytes);
    while let Some(message) = download.message().await? {
        bytes.extend_from_slice(&message.data);
    }
    assert!(bytes == blob, "{} bytes came", bytes.len());
    drop((download, client));
    let status = node.server().wait_exit()?;
    assert!(status.success(), "{status}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_does_not_wait_for_clients_without_a_request() -> Result<()> {
    let node = Node::start(&[])?;
    let clients = connections(&node, 20).await?;
    for client in &clients {
        client.capabilities().await?;
    }
    node.server().signal(Signal::TERM)?;
    let status = node.server().exit_within(Duration::from_secs(10))?;
    assert!(status.context("still running after 10 s")?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_does_not_wait_for_clients_that_never_said_a_word() -> Result<()> {
    let node = Node::start(&[])?;
    // A probe of a load balancer, a port scanner, a client that crashed.
    let silent = tokio::net::TcpStream::connect(node.server().endpoint(0).authority()).await?;
    node.server().signal(Signal::TERM)?;
    let status = node.server().exit_within(Duration::from_secs(10))?;
    assert!(status.context("still running after 10 s")?.success());
    drop(silent);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_keeps_everything() -> Result<()> {
    let load = Load::new(test_seed());
    let history = History::default();
    let mut node = Node::start(&[])?;
    load.run(&[node.client().await?], 0..200, 16, &history).await;
    assert_eq!(history.acknowledged_count(), 200);
    assert!(node.server().stop()?.success());
    node.start_again(&[])?;
    history.check(&node.client().await?).await
}

// === damage ===

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_costs_its_blob_and_no_wrong_byte_is_served() -> Result<()> {
    let mut node = Node::start(&[])?;
    let client = node.client().await?;
    let (small, large) = (new_bytes(3000), new_bytes(5 * MIB));
    let neighbours = [new_bytes(3000), new_bytes(5 * MIB)];
    for blob in [&neighbours[0], &small, &large, &neighbours[1]] {
        client.upload(blob.clone()).await?;
    }
    assert!(node.server().stop()?.success());
    for blob in [&small, &large] {
        flip_a_byte_of(node.dir(), &blob[blob.len() / 2..blob.len() / 2 + 100])?;
    }
    node.start_again(&[])?;
    let client = node.client().await?;
    for blob in [&small, &large] {
        let digest = digest_of(blob);
        let mut bytes = Vec::new();
        let request = ReadRequest { resource_name: client.blob_name(&digest), ..Default::default() };
        let end = match client.bytestream().read(request).await {
            Err(status) => status,
            Ok(stream) => {
                let mut stream = stream.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(message)) => bytes.extend_from_slice(&message.data),
                        Ok(None) => panic!("a damaged blob was served to its end"),
                        Err(status) => break status,
                    }
                }
            }
        };
        assert!(blob.starts_with(&bytes), "wrong bytes were served before {end:?}");
        // The client uploads it again, and all is well.
        assert!(!client.has(&digest).await?, "still called present after {end:?}");
        client.upload(blob.clone()).await?;
        assert!(client.download(&digest).await? == *blob);
    }
    for blob in &neighbours {
        assert!(client.download(&digest_of(blob)).await? == *blob);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_cut_short_is_never_served_as_whole() -> Result<()> {
    let mut node = Node::start(&[])?;
    let blob = new_bytes(5 * MIB);
    let digest = node.client().await?.upload(blob.clone()).await?;
    node.server().kill9()?;
    let (path, place) = file_with(node.dir(), &blob[MIB..MIB + 100])?;
    std::fs::OpenOptions::new().write(true).open(path)?.set_len(u64::try_from(place + MIB)?)?;
    node.start_again(&[])?;
    let client = node.client().await?;
    if let Ok(bytes) = client.download(&digest).await {
        panic!("{} bytes came without an error", bytes.len());
    }
    assert!(!client.has(&digest).await?);
    client.upload(blob.clone()).await?;
    assert!(client.download(&digest).await? == blob);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_the_node_did_not_write_do_not_keep_it_from_starting() -> Result<()> {
    let mut node = Node::start(&[])?;
    let digest = node.client().await?.upload(new_bytes(1000)).await?;
    assert!(node.server().stop()?.success());
    for dir in directories(node.dir())? {
        std::fs::write(dir.join("lost+found.txt"), "an administrator was here")?;
        std::fs::write(dir.join(".nfs000001"), [0xff; 100])?;
    }
    node.start_again(&[])?;
    assert!(node.client().await?.has(&digest).await?);
    Ok(())
}

/// What the files take, as `du` counts. A file that goes meanwhile takes nothing.
fn size_on_disk(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let sizes = files(dir)?.into_iter().filter_map(|path| path.metadata().ok());
    Ok(sizes.map(|metadata| metadata.blocks() * 512).sum())
}

// === two on one directory ===

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_on_a_directory_serves_through_the_first_and_takes_over_when_it_is_killed() -> Result<()> {
    let node = Node::start(&[])?;
    let client = node.client().await?;
    let digest = client.upload(new_bytes(1000)).await?;
    let dir = node.dir().to_str().context("not UTF-8")?;
    let second = process::Server::start(&["serve", "--dir", dir, "--listen", "127.0.0.1:0"])?;
    let through = Client::plaintext(&second.endpoint(0).authority()).await?;
    assert!(through.has(&digest).await?);
    let other = through.upload(new_bytes(1000)).await?;
    assert_eq!(client.find_missing(&[digest.clone(), other.clone()]).await?, []);
    node.server().kill9()?;
    eventually("the second has taken over", || async {
        match through.find_missing(&[digest.clone(), other.clone()]).await {
            Ok(missing) => {
                ensure!(missing.is_empty(), "lost: {missing:?}");
                Ok(true)
            }
            Err(status) if status.code() == Code::Unavailable => Ok(false),
            Err(status) => Err(status.into()),
        }
    })
    .await?;
    through.upload(new_bytes(1000)).await?;
    Ok(())
}
