//! ByteStream: uploads that lie, vanish, or meet. Those that are taken up again are in `resumption`.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use casbah_tests::clients::bytestream::WriteRequest;
use casbah_tests::clients::reapi::Digest;
use casbah_tests::clients::{Client, digest_of, empty_digest, refused_with, write_requests};
use casbah_tests::deadline::within_deadline;
use casbah_tests::load::{Content, new_bytes};
use casbah_tests::target::Target;
use futures_util::future::join_all;
use tonic::{Code, Status};

use crate::resumption::{committed, cut_upload};

const MIB: usize = 1 << 20;

/// What the server's memory may grow by while blobs of any size pass through it.
const GROWTH_BYTES_MAX: u64 = 64 << 20;

/// Refused, and nothing of it can be found or read.
pub async fn refused_and_not_held<T>(client: &Client, digest: &Digest, answer: Result<T, Status>) -> Result<String> {
    let message = refused_with(Code::InvalidArgument, answer)?;
    ensure!(message.contains(&digest.hash), "does not name the digest: {message}");
    ensure!(!client.has(digest).await?, "is present");
    refused_with(Code::NotFound, client.download(digest).await)?;
    Ok(message)
}

/// Uploads these messages, and returns what was committed.
pub async fn write(client: &Client, requests: Vec<WriteRequest>) -> Result<i64, Status> {
    Ok(client.bytestream().write(tokio_stream::iter(requests)).await?.into_inner().committed_size)
}

// === Write ===

#[tokio::test]
async fn a_blob_arrives_whatever_the_size_of_its_chunks() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for (blob_bytes, chunk_bytes) in [
        (0, 1),
        (1, 1),
        (300, 1),
        (5000, 7),
        (100_000, 4096),
        (MIB, 16 << 10),
        (5 * MIB + 1, 64 << 10),
        (5 * MIB, MIB),
        (9 * MIB + 3, 2 * MIB),
    ] {
        let blob = new_bytes(blob_bytes);
        let digest = client.upload_in_chunks(blob.clone(), chunk_bytes).await?;
        assert!(client.has(&digest).await?, "{blob_bytes} in {chunk_bytes}");
        assert!(client.download(&digest).await? == blob, "{blob_bytes} in {chunk_bytes}");
    }
    Ok(())
}

#[tokio::test]
async fn messages_without_bytes_and_repeated_names_are_taken() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(3000);
    let digest = digest_of(&blob);
    let name = client.upload_name(&digest);
    let upload = client.begin_upload();
    upload.send_bytes(&name, 0, b"", false).await;
    upload.send_bytes(&name, 0, &blob[..1000], false).await;
    upload.send_bytes("", 1000, b"", false).await;
    upload.send_bytes(&name, 1000, &blob[1000..], false).await;
    upload.send_bytes(&name, 3000, b"", true).await;
    assert_eq!(upload.finish().await?.committed_size, 3000);
    assert_eq!(client.download(&digest).await?, blob);
    Ok(())
}

/// "`optional_metadata` is implementation specific data, which clients MAY omit. Servers MAY ignore this metadata."
#[tokio::test]
async fn what_follows_the_size_in_a_name_is_the_clients_own_business() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client().with_instance("team/a");
    let blob = new_bytes(100);
    let digest = digest_of(&blob);
    let name = format!("{}/out/main.o/with/blobs/in/it", client.upload_name(&digest));
    assert_eq!(write(&client, write_requests(name, blob.clone(), 10).collect()).await?, 100);
    assert_eq!(client.download(&digest).await?, blob);
    Ok(())
}

/// "If the client completes the upload but the" digest "does not match, an `INVALID_ARGUMENT` error will be returned."
#[tokio::test]
async fn bytes_of_another_hash_are_refused_and_not_held() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for size in [1, 1000, 3 * MIB] {
        let mut bytes = new_bytes(size).to_vec();
        let digest = digest_of(&bytes);
        bytes[size / 2] ^= 1;
        let requests = write_requests(client.upload_name(&digest), bytes.clone().into(), MIB).collect();
        refused_and_not_held(client, &digest, write(client, requests).await).await?;
        assert!(!client.has(&digest_of(&bytes)).await?, "held under their own name");
    }
    Ok(())
}

#[tokio::test]
async fn more_bytes_than_the_digest_says_are_refused_and_not_held() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for (size, extra, chunk_bytes) in
        [(0, 1, 10), (1000, 1, 5000), (1000, 1, 1000), (1000, 5000, 10), (MIB, 3 * MIB, MIB)]
    {
        let bytes = new_bytes(size + extra);
        let start = digest_of(&bytes[..size]);
        let digests = [start.clone(), Digest { size_bytes: start.size_bytes, ..digest_of(&bytes) }];
        for digest in digests.into_iter().filter(|digest| *digest != empty_digest()) {
            let requests = write_requests(client.upload_name(&digest), bytes.clone(), chunk_bytes).collect();
            refused_and_not_held(client, &digest, write(client, requests).await)
                .await
                .with_context(|| format!("{size} + {extra} in {chunk_bytes}"))?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn fewer_bytes_than_the_digest_says_are_refused_and_not_held() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for (size, missing) in [(1, 1), (1000, 1), (1000, 1000), (3 * MIB, MIB)] {
        let bytes = new_bytes(size);
        let sent = bytes.slice(..size - missing);
        for digest in [digest_of(&bytes), Digest { size_bytes: size.try_into()?, ..digest_of(&sent) }] {
            let requests = write_requests(client.upload_name(&digest), sent.clone(), MIB).collect();
            refused_and_not_held(client, &digest, write(client, requests).await)
                .await
                .with_context(|| format!("{size} - {missing}"))?;
        }
    }
    Ok(())
}

/// "the request will terminate immediately without error, and with a response whose `committed_size` is" the size.
#[tokio::test]
async fn the_upload_of_a_blob_that_is_present_ends_early_with_its_size() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(4 * MIB);
    let digest = client.upload(blob.clone()).await?;
    let upload = client.begin_upload();
    upload.send_bytes(&client.upload_name(&digest), 0, &blob[..100], false).await;
    // The client's side stays open: only an early end answers.
    let answer = within_deadline("an early end", upload.answer()).await??;
    assert_eq!(answer.committed_size, digest.size_bytes);
    Ok(())
}

/// "which may occur in the middle of a single upload if another client uploads the same blob concurrently": then too it
/// ends "regardless of how much data was transmitted by the client".
#[tokio::test]
async fn an_upload_ends_early_when_another_client_completes_its_blob_meanwhile() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(4 * MIB);
    let digest = digest_of(&blob);
    let name = client.upload_name(&digest);
    let upload = client.begin_upload();
    upload.send_bytes(&name, 0, &blob[..1000], false).await;
    committed(client, &name, 1000).await?;
    client.upload(blob.clone()).await?;
    upload.send_bytes("", 1000, &blob[1000..2000], false).await;
    let answer = within_deadline("an early end", upload.answer()).await??;
    assert_eq!(answer.committed_size, digest.size_bytes);
    assert!(client.download(&digest).await? == blob);
    Ok(())
}

#[tokio::test]
async fn a_wrong_offset_is_refused() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(3000);
    let digest = digest_of(&blob);
    for (what, first, second) in [
        ("starts after the start", 1, 1001),
        ("starts before the start", -1, 999),
        ("starts past the end", 4000, 5000),
        ("leaves a gap", 0, 1001),
        ("overlaps", 0, 999),
        ("starts again", 0, 0),
        ("goes below zero", 0, i64::MIN),
        ("goes past all ends", 0, i64::MAX),
    ] {
        let message = |offset, from: usize, to: usize, finish_write| WriteRequest {
            resource_name: String::new(),
            write_offset: offset,
            finish_write,
            data: blob.slice(from..to),
        };
        let mut requests = vec![message(first, 0, 1000, false), message(second, 1000, 3000, true)];
        requests[0].resource_name = client.upload_name(&digest);
        let answer = write(client, requests).await;
        refused_with(Code::InvalidArgument, answer).context(what)?;
        assert!(!client.has(&digest).await?, "{what}");
    }
    assert_eq!(client.upload(blob).await?, digest);
    Ok(())
}

/// `finish_write` says that the upload is complete: nothing can follow.
#[tokio::test]
async fn bytes_after_the_end_are_refused() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(2000);
    // The first half is marked as the end: too few bytes, whatever follows.
    let digest = digest_of(&blob);
    let upload = client.begin_upload();
    upload.send_bytes(&client.upload_name(&digest), 0, &blob[..1000], true).await;
    upload.send_bytes("", 1000, &blob[1000..], true).await;
    refused_and_not_held(client, &digest, upload.finish().await).await?;
    Ok(())
}

#[tokio::test]
async fn an_end_that_is_marked_twice_is_refused_and_does_no_harm() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(2000);
    let digest = digest_of(&blob);
    // Whole after the first mark; "sending any WriteRequest after it is an error" all the same.
    for (name, offset) in [(client.upload_name(&digest), 2000), (String::new(), 2000), (String::new(), 0)] {
        let first = client.upload_name(&digest);
        let name = if name.is_empty() { name } else { first.clone() };
        let upload = client.begin_upload();
        upload.send_bytes(&first, 0, &blob, true).await;
        upload.send_bytes(&name, offset, b"", true).await;
        refused_and_not_held(client, &digest, upload.finish().await).await?;
    }
    assert_eq!(client.upload(blob).await?, digest);
    Ok(())
}

#[tokio::test]
async fn a_message_with_nothing_but_the_end_makes_the_empty_blob_and_no_other() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let empty = client.upload_name(&empty_digest());
    assert_eq!(write(client, write_requests(empty, Bytes::new(), 1).collect()).await?, 0);
    let digest = digest_of(&new_bytes(10));
    let other = write_requests(client.upload_name(&digest), Bytes::new(), 1).collect();
    refused_and_not_held(client, &digest, write(client, other).await).await?;
    Ok(())
}

#[tokio::test]
async fn an_upload_that_is_never_finished_is_never_visible() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(2000);
    let digest = digest_of(&blob);
    let upload = client.begin_upload();
    upload.send_bytes(&client.upload_name(&digest), 0, &blob[..1999], false).await;
    if let Ok(answer) = upload.finish().await {
        assert_eq!(answer.committed_size, 1999, "not all of it was sent");
    }
    assert!(!client.has(&digest).await?);
    refused_with(Code::NotFound, client.download(&digest).await)?;
    // All the bytes but no mark of the end: whole or absent, nothing between.
    let upload = client.begin_upload();
    upload.send_bytes(&client.upload_name(&digest), 0, &blob, false).await;
    let _ = upload.finish().await;
    match client.has(&digest).await? {
        true => assert_eq!(client.download(&digest).await?, blob),
        false => refused_with(Code::NotFound, client.download(&digest).await).map(|_| ())?,
    }
    Ok(())
}

#[tokio::test]
async fn an_upload_without_a_message_or_a_name_is_refused() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    refused_with(Code::InvalidArgument, write(client, Vec::new()).await)?;
    let nameless = write_requests(String::new(), new_bytes(10), 5).collect();
    refused_with(Code::InvalidArgument, write(client, nameless).await)?;
    Ok(())
}

#[tokio::test]
async fn a_name_that_changes_in_the_middle_of_an_upload_is_refused() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(2000);
    let (digest, other) = (digest_of(&blob), digest_of(&new_bytes(2000)));
    let upload = client.begin_upload();
    upload.send_bytes(&client.upload_name(&digest), 0, &blob[..1000], false).await;
    upload.send_bytes(&client.upload_name(&other), 1000, &blob[1000..], true).await;
    refused_with(Code::InvalidArgument, upload.finish().await)?;
    assert!(!client.has(&digest).await? && !client.has(&other).await?);
    Ok(())
}

#[tokio::test]
async fn a_name_that_names_no_upload_cannot_be_written_or_asked_for() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let hash = digest_of(b"12345").hash;
    let uuid = uuid::Uuid::new_v4();
    for name in [
        "uploads".to_owned(),
        format!("uploads/{uuid}"),
        format!("uploads/{uuid}/blobs"),
        format!("uploads/{uuid}/blobs/{hash}"),
        format!("uploads/{uuid}/blobs/{hash}/"),
        format!("uploads/{uuid}/blobs/{hash}/five"),
        format!("uploads/{uuid}/blobs/{hash}/-5"),
        format!("uploads/{uuid}/blobs/{hash}/9223372036854775808"),
        format!("uploads/{uuid}/blobs/{}/5", &hash[1..]),
        format!("uploads/{uuid}/blobs/{}/5", hash.to_uppercase()),
        format!("uploads/{uuid}/blobs/vso/{hash}/5"),
        format!("uploads/{uuid}/blobs/sha384/{hash}/5"),
        format!("uploads/{uuid}/blob/{hash}/5"),
        format!("uploads/{uuid}/{hash}/5"),
        format!("uploads//blobs/{hash}/5"),
        format!("uploads/blobs/{hash}/5"),
        format!("upload/{uuid}/blobs/{hash}/5"),
        format!("blobs/{hash}/5"),
        format!("a//uploads/{uuid}/blobs/{hash}/5"),
        format!("{}/uploads/{uuid}/blobs/{hash}/5", "i".repeat(100_000)),
    ] {
        let shown: String = name.chars().take(80).collect();
        let requests = write_requests(name.clone(), Bytes::from_static(b"12345"), 5).collect();
        let message = refused_with(Code::InvalidArgument, write(client, requests).await)
            .with_context(|| format!("write {shown:?}"))?;
        assert!(message.contains(&shown), "{shown:?}: {message}");
        refused_with(Code::InvalidArgument, client.query_write(&name).await)
            .with_context(|| format!("query {shown:?}"))?;
    }
    Ok(())
}

// === many at once, and gone ===

/// "Uploads of the same data MAY occur concurrently in any form, compressed or uncompressed."
#[tokio::test(flavor = "multi_thread")]
async fn uploads_of_one_blob_that_meet_all_succeed() -> Result<()> {
    let target = Target::start().await?;
    for size in [10, 100_000, 6 * MIB] {
        let blob = new_bytes(size);
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(Client::plaintext(target.authority()).await?);
        }
        let uploads = (0..16).map(|place| clients[place % 4].upload_in_chunks(blob.clone(), 64 << 10));
        for answer in within_deadline("sixteen uploads", join_all(uploads)).await? {
            assert_eq!(answer?, digest_of(&blob), "of {size} bytes");
        }
        assert!(target.client().download(&digest_of(&blob)).await? == blob);
    }
    Ok(())
}

#[tokio::test]
async fn a_liar_does_not_spoil_the_honest_upload_of_the_same_digest() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(MIB);
    let digest = digest_of(&blob);
    let honest = client.begin_upload();
    let liar = client.begin_upload();
    let wrong = new_bytes(MIB);
    honest.send_bytes(&client.upload_name(&digest), 0, &blob[..MIB / 2], false).await;
    liar.send_bytes(&client.upload_name(&digest), 0, &wrong[..MIB / 2], false).await;
    liar.send_bytes("", MIB / 2, &wrong[MIB / 2..], true).await;
    refused_and_not_held(client, &digest, liar.finish().await).await?;
    honest.send_bytes("", MIB / 2, &blob[MIB / 2..], true).await;
    assert_eq!(honest.finish().await?.committed_size, digest.size_bytes);
    assert!(client.download(&digest).await? == blob);
    Ok(())
}

#[tokio::test]
async fn a_client_that_vanishes_in_the_middle_leaves_nothing_to_be_found() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(4 * MIB);
    let digest = digest_of(&blob);
    // By a cancelled call, and by a broken connection.
    let upload = client.begin_upload();
    upload.send_bytes(&client.upload_name(&digest), 0, &blob[..MIB], false).await;
    upload.abandon().await;
    assert!(!client.has(&digest).await?);
    cut_upload(&target, &client.upload_name(&digest), &blob, 3 * MIB).await?;
    assert!(!client.has(&digest).await?);
    refused_with(Code::NotFound, client.download(&digest).await)?;
    assert_eq!(client.upload(blob).await?, digest);
    Ok(())
}

// === large ===

/// Uploads and downloads a blob of this size, and returns by how much the server's memory grew.
async fn growth_bytes(size_bytes: u64) -> Result<u64> {
    let target = Target::start().await?;
    let client = target.client();
    let server = target.node()?.server();
    // What the first blobs make it allocate is not growth.
    Content::new(16 << 20).upload(client).await?;
    let before = server.rss_bytes()?;
    server.reset_peak_rss()?;
    let content = Content::new(size_bytes);
    let digest = content.upload(client).await?;
    assert!(client.has(&digest).await?);
    content.verify(client).await?;
    Ok(server.peak_rss_bytes()?.saturating_sub(before))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_mebibytes_pass_through_bounded_memory() -> Result<()> {
    let growth_bytes = growth_bytes(100 << 20).await?;
    assert!(growth_bytes < GROWTH_BYTES_MAX, "{growth_bytes}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gibibyte_passes_through_bounded_memory() -> Result<()> {
    let growth_bytes = growth_bytes(1 << 30).await?;
    assert!(growth_bytes < GROWTH_BYTES_MAX, "{growth_bytes}");
    Ok(())
}
