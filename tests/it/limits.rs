//! Everything is bounded (G10): clients that are slow, silent, greedy or broken cost what they may and harm nobody.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use casbah_tests::clients::bytestream::ReadRequest;
use casbah_tests::clients::reapi::{Digest, FindMissingBlobsRequest};
use casbah_tests::clients::{Client, Trust, digest_of, is_transport_error};
use casbah_tests::deadline::{eventually, within_deadline};
use casbah_tests::load::{Content, new_bytes};
use casbah_tests::process::Process;
use casbah_tests::target::Target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const MIB: usize = 1 << 20;

/// What the server's memory may grow by, whatever a few connections do.
const GROWTH_BYTES_MAX: u64 = 128 << 20;

/// Begins to measure the growth of the server's memory, once its first blobs have made it allocate what it needs.
async fn measured(target: &Target) -> Result<(&Process, u64)> {
    let server = target.node()?.server();
    Content::new(16 << 20).upload(target.client()).await?.hash.clear();
    let before = server.rss_bytes()?;
    server.reset_peak_rss()?;
    Ok((server, before))
}

/// A client of any kind is still served, and at once.
async fn serves(target: &Target) -> Result<()> {
    let client = Client::plaintext(target.authority()).await?;
    let content = Content::new(4 << 20);
    within_deadline("an upload", content.upload(&client)).await??;
    within_deadline("a download", content.verify(&client)).await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_stalls_holds_its_last_messages_and_not_what_came_before() -> Result<()> {
    let target = Target::start().await?;
    let (server, before) = measured(&target).await?;
    // 100 uploads of 16 messages each stay open in the middle: 800 MiB in all.
    let chunk = new_bytes(MIB / 2);
    let mut uploads = Vec::new();
    for _ in 0..4 {
        let client = Client::plaintext(target.authority()).await?;
        for _ in 0..25 {
            let digest = Digest { size_bytes: 16 << 20, ..digest_of(&new_bytes(10)) };
            let name = client.upload_name(&digest);
            let upload = client.begin_upload();
            for place in 0..16 {
                upload.send_bytes(if place == 0 { &name } else { "" }, place * chunk.len(), &chunk, false).await;
            }
            uploads.push((client.clone(), name, upload));
        }
    }
    for (client, name, _) in &uploads {
        eventually("it has all been taken in", || async {
            Ok(client.query_write(name).await?.committed_size == 8 << 20)
        })
        .await?;
    }
    serves(&target).await?;
    // A decoder keeps the memory of its last message, and the allocator what it had to give at the busiest moment.
    let per_upload_bytes = server.peak_rss_bytes()?.saturating_sub(before) / 100;
    assert!(per_upload_bytes < 5 * chunk.len() as u64, "{per_upload_bytes} each");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_that_do_not_read_pass_through_bounded_memory() -> Result<()> {
    let target = Target::start().await?;
    let digest = Content::new(64 << 20).upload(target.client()).await?;
    let (server, before) = measured(&target).await?;
    let mut downloads = Vec::new();
    for _ in 0..8 {
        let client = Client::plaintext(target.authority()).await?;
        for _ in 0..25 {
            let request = ReadRequest { resource_name: client.blob_name(&digest), ..Default::default() };
            let mut bytestream = client.bytestream();
            let stream = within_deadline("a first byte", bytestream.read(request)).await??.into_inner();
            downloads.push((client.clone(), stream));
        }
    }
    serves(&target).await?;
    let growth_bytes = server.peak_rss_bytes()?.saturating_sub(before);
    // 200 downloads, each of which may hold a piece or two, and 8 connections with windows of 8 MiB on our side.
    assert!(growth_bytes < 4 * GROWTH_BYTES_MAX, "{growth_bytes}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_http_2_harm_nobody() -> Result<()> {
    let target = Target::start().await?;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
    for bytes in [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        [preface, &[0xff; 1000]].concat(),
        [preface, &[0, 0, 0, 4, 0, 0, 0, 0, 0], &[0xff; 100_000]].concat(),
        new_bytes(100_000).to_vec(),
        Vec::new(),
    ] {
        let mut stream = TcpStream::connect(target.authority()).await?;
        // The server may hang up in the middle of it.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = within_deadline("the server hangs up", stream.read_to_end(&mut answer)).await?;
    }
    serves(&target).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_client_at_a_plaintext_port_is_refused_at_once() -> Result<()> {
    let target = Target::start().await?;
    let authority = casbah_tests::authority::Authority::new("somebody")?;
    let trust = Trust::Authority(authority.certificate_pem().to_owned());
    let client = within_deadline("a refusal", Client::tls(target.authority(), &trust, None)).await?;
    assert!(client.is_err());
    serves(&target).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_large_is_refused_and_its_connection_lives() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(32 * MIB);
    let status = client.upload_in_chunks(blob.clone(), blob.len()).await.expect_err("a message of 32 MiB");
    let codes = [Code::OutOfRange, Code::ResourceExhausted, Code::InvalidArgument];
    assert!(codes.contains(&status.code()) && !is_transport_error(&status), "{status:?}");
    let batch = vec![(digest_of(&blob), blob.clone())];
    let status = client.batch_update(batch).await.expect_err("a message of 32 MiB");
    assert!(codes.contains(&status.code()) && !is_transport_error(&status), "{status:?}");
    assert!(!client.has(&digest_of(&blob)).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_digests_in_one_call_are_answered() -> Result<()> {
    let target = Target::start().await?;
    let digests: Vec<_> = (0..100_000).map(|_| digest_of(&new_bytes(8))).collect();
    let missing = within_deadline("an answer", target.client().find_missing(&digests)).await??;
    assert_eq!(missing.len(), 100_000);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_at_once_on_one_connection_are_answered() -> Result<()> {
    let target = Target::start().await?;
    let digest = target.client().upload(new_bytes(1000)).await?;
    let calls = (0..1000).map(|place| {
        let (client, digest) = (target.client().clone(), digest.clone());
        async move {
            match place % 3 {
                0 => client.has(&digest).await.map(drop),
                1 => client.download(&digest).await.map(drop),
                _ => client.upload(new_bytes(100)).await.map(drop),
            }
        }
    });
    for answer in within_deadline("a thousand answers", futures_util::future::join_all(calls)).await? {
        answer?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_ping_every_second_are_not_sent_away() -> Result<()> {
    let target = Target::start().await?;
    // buildbox and Bazel ping an idle connection; casd and BuildGrid answer with GOAWAY too_many_pings.
    let channel = Endpoint::from_shared(format!("http://{}", target.authority()))?
        .http2_keep_alive_interval(Duration::from_millis(100))
        .keep_alive_while_idle(true)
        .connect()
        .await?;
    let mut states = HealthClient::new(channel).watch(HealthCheckRequest::default()).await?.into_inner();
    states.message().await?.context("no state")?;
    // 30 pings; nothing else may happen on this stream.
    let happened = tokio::time::timeout(Duration::from_secs(3), states.message()).await;
    assert!(happened.is_err(), "{happened:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_calls_leave_nothing_behind() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let digest = Content::new(8 << 20).upload(client).await?;
    let descriptors =
        || -> Result<usize> { Ok(std::fs::read_dir(format!("/proc/{}/fd", target.node()?.server().pid()))?.count()) };
    let before = descriptors()?;
    for _ in 0..300 {
        let request = ReadRequest { resource_name: client.blob_name(&digest), ..Default::default() };
        let mut stream = client.bytestream().read(request).await?.into_inner();
        ensure!(stream.message().await?.is_some());
        let upload = client.begin_upload();
        upload.send_bytes(&client.upload_name(&digest_of(&new_bytes(10))), 0, b"12345", false).await;
        upload.abandon().await;
    }
    client.cas().find_missing_blobs(FindMissingBlobsRequest::default()).await?;
    eventually("the files are closed", || async { Ok(descriptors()? < before + 50) }).await
}
