//! QueryWriteStatus, and uploads that go on where they were cut off.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use casbah_tests::clients::bytestream::WriteRequest;
use casbah_tests::clients::{Client, digest_of, refused_with, write_requests};
use casbah_tests::deadline::{eventually, within_deadline};
use casbah_tests::faults::Wire;
use casbah_tests::load::new_bytes;
use casbah_tests::target::Target;
use futures_util::future::join_all;
use tonic::Code;

use crate::bytestream::{refused_and_not_held, write};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn a_finished_upload_is_known_as_complete() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(5000);
    let digest = digest_of(&blob);
    let name = client.upload_name(&digest);
    write(client, write_requests(name.clone(), blob, 1000).collect()).await?;
    // By the name it was uploaded with, and by any other: the blob is there.
    for name in [name, client.upload_name(&digest)] {
        let status = client.query_write(&name).await?;
        assert_eq!((status.committed_size, status.complete), (5000, true));
    }
    Ok(())
}

#[tokio::test]
async fn of_an_upload_that_nobody_began_nothing_is_held() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    // The API's comment says NOT_FOUND; clients that would give up on it are told 0 bytes. Either begins at 0.
    match client.query_write(&client.upload_name(&digest_of(&new_bytes(100)))).await {
        Ok(status) => assert_eq!((status.committed_size, status.complete), (0, false)),
        Err(status) => assert_eq!(status.code(), Code::NotFound, "{status:?}"),
    }
    Ok(())
}

/// Sends the first `sent` bytes of a blob over a wire, waits until the server has taken them in, cuts the wire, and waits
/// until the server has noticed.
pub async fn cut_upload(target: &Target, name: &str, blob: &Bytes, sent: usize) -> Result<()> {
    cut_upload_from(target, name, blob, 0, sent).await
}

/// [`cut_upload`] of what lies between.
async fn cut_upload_from(target: &Target, name: &str, blob: &Bytes, from: usize, to: usize) -> Result<()> {
    let wire = Wire::to(target.authority()).await?;
    let client = Client::plaintext(&wire.authority()).await?;
    let upload = client.begin_upload();
    for start in (from..to).step_by(MIB / 2) {
        let name = if start == from { name } else { "" };
        let part = blob.slice(start..to.min(start + MIB / 2));
        ensure!(upload.send_bytes(name, start, &part, false).await, "ended early");
    }
    committed(target.client(), name, to).await?;
    wire.cut().await;
    ensure!(upload.finish().await.is_err(), "answered over a wire that was cut");
    Ok(())
}

/// Waits until the server says that it has this much of an upload.
pub(crate) async fn committed(client: &Client, name: &str, sent: usize) -> Result<()> {
    let sent = i64::try_from(sent)?;
    eventually("the server knows how much it has", || async {
        match client.query_write(name).await {
            Ok(status) => {
                ensure!(!status.complete && status.committed_size <= sent, "{status:?}");
                Ok(status.committed_size == sent)
            }
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(status.into()),
        }
    })
    .await
}

/// What follows of an upload from this offset on, with its name.
fn rest_of(name: &str, blob: &Bytes, offset: usize) -> Vec<WriteRequest> {
    let mut requests: Vec<_> = write_requests(name.to_owned(), blob.slice(offset..), MIB).collect();
    for request in &mut requests {
        request.write_offset += i64::try_from(offset).expect("a blob of a test is small");
    }
    requests
}

#[tokio::test]
async fn an_upload_is_taken_up_where_the_connection_broke() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(8 * MIB);
    let digest = digest_of(&blob);
    let name = client.upload_name(&digest);
    cut_upload(&target, &name, &blob, 3 * MIB).await?;
    committed(client, &name, 3 * MIB).await?;
    assert!(!client.has(&digest).await?, "present after three of eight MiB");
    let size = write(client, rest_of(&name, &blob, 3 * MIB)).await?;
    assert_eq!(size, digest.size_bytes);
    assert!(client.download(&digest).await? == blob);
    Ok(())
}

#[tokio::test]
async fn an_upload_is_taken_up_before_the_server_has_noticed_that_its_connection_broke() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(2 * MIB);
    let digest = digest_of(&blob);
    let name = client.upload_name(&digest);
    let forgotten = client.begin_upload();
    forgotten.send_bytes(&name, 0, &blob[..MIB], false).await;
    committed(client, &name, MIB).await?;
    // Nothing goes on at another place, and nobody is disturbed by the attempt.
    let astray = write(client, rest_of(&name, &blob, MIB + 1)).await;
    assert!(refused_with(Code::InvalidArgument, astray)?.contains(&MIB.to_string()));
    assert_eq!(write(client, rest_of(&name, &blob, MIB)).await?, digest.size_bytes);
    assert!(client.download(&digest).await? == blob);
    refused_with(Code::Aborted, within_deadline("the end of the old call", forgotten.answer()).await?)?;
    Ok(())
}

#[tokio::test]
async fn an_upload_can_break_many_times() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(4 * MIB);
    let digest = digest_of(&blob);
    let name = client.upload_name(&digest);
    for part in 0..4 {
        cut_upload_from(&target, &name, &blob, part * MIB, (part + 1) * MIB).await?;
        committed(client, &name, (part + 1) * MIB).await?;
    }
    let upload = client.begin_upload();
    upload.send_bytes(&name, blob.len(), b"", true).await;
    assert_eq!(upload.finish().await?.committed_size, digest.size_bytes);
    assert!(client.download(&digest).await? == blob);
    Ok(())
}

/// What a patient client does: it asks how much is there, sends the rest, and asks again if that is where the server
/// no longer stands. Any other answer to right bytes is an error.
async fn take_up(client: &Client, name: &str, blob: &Bytes) -> Result<()> {
    eventually("the upload is whole", || async {
        let offset = usize::try_from(client.query_write(name).await.map_or(0, |status| status.committed_size))?;
        match write(client, rest_of(name, blob, offset)).await {
            Ok(size) => {
                ensure!(size == i64::try_from(blob.len())?, "{size} acknowledged");
                Ok(true)
            }
            Err(status) => {
                let stands_elsewhere = status.code() == Code::InvalidArgument && status.message().contains("offset");
                ensure!(stands_elsewhere, "right bytes from {offset} on were refused: {status:?}");
                Ok(false)
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_broke_in_the_middle_of_a_flood_are_taken_up_with_what_the_server_has() -> Result<()> {
    let target = Target::start().await?;
    for cut in 1..=24_u64 {
        let wire = Wire::to(target.authority()).await?;
        let client = Client::plaintext(&wire.authority()).await?;
        let blobs: Vec<Bytes> = (0..8).map(|_| new_bytes(4 * MIB)).collect();
        let names: Vec<String> = blobs.iter().map(|blob| client.upload_name(&digest_of(blob))).collect();
        let floods = join_all(names.iter().zip(&blobs).map(|(name, blob)| {
            let requests = write_requests(name.clone(), blob.clone(), MIB + 1000).collect();
            write(&client, requests)
        }));
        let (_, sent) = tokio::join!(floods, async {
            // Somewhere within a message, now here and now there.
            let sent = wire.has_sent(cut * 1_234_567).await;
            wire.cut().await;
            sent
        });
        sent?;
        for (name, blob) in names.iter().zip(&blobs) {
            take_up(target.client(), name, blob).await.with_context(|| format!("cut {cut}"))?;
            assert!(target.client().download(&digest_of(blob)).await? == *blob, "cut {cut}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_upload_that_broke_can_start_again_from_zero() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(4 * MIB);
    let digest = digest_of(&blob);
    let name = client.upload_name(&digest);
    cut_upload(&target, &name, &blob, 2 * MIB).await?;
    committed(client, &name, 2 * MIB).await?;
    // Bazel asks with a new uuid, buildbox with the old one: both from the start.
    assert_eq!(write(client, rest_of(&name, &blob, 0)).await?, digest.size_bytes);
    assert!(client.download(&digest).await? == blob);
    Ok(())
}

#[tokio::test]
async fn an_upload_is_taken_up_nowhere_but_at_its_committed_size() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(4 * MIB);
    let digest = digest_of(&blob);
    let name = client.upload_name(&digest);
    cut_upload(&target, &name, &blob, 2 * MIB).await?;
    committed(client, &name, 2 * MIB).await?;
    for offset in [1, MIB, 2 * MIB - 1, 2 * MIB + 1, 3 * MIB] {
        let answer = write(client, rest_of(&name, &blob, offset)).await;
        refused_with(Code::InvalidArgument, answer).with_context(|| format!("at {offset}"))?;
        assert!(!client.has(&digest).await?, "at {offset}");
    }
    Ok(())
}

#[tokio::test]
async fn what_was_sent_before_the_break_is_verified_too() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(4 * MIB);
    let digest = digest_of(&blob);
    let name = client.upload_name(&digest);
    let mut damaged = blob.to_vec();
    damaged[100] ^= 1;
    cut_upload(&target, &name, &damaged.into(), 2 * MIB).await?;
    committed(client, &name, 2 * MIB).await?;
    let answer = write(client, rest_of(&name, &blob, 2 * MIB)).await;
    refused_and_not_held(client, &digest, answer).await?;
    // And it is not in the way of a good one.
    assert_eq!(write(client, rest_of(&name, &blob, 0)).await?, digest.size_bytes);
    Ok(())
}

/// "Clients MAY reuse the same `uuid` for uploading different blobs."
#[tokio::test]
async fn one_uuid_for_two_digests_means_two_uploads() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let (blob, other) = (new_bytes(4 * MIB), new_bytes(4 * MIB));
    let uuid = uuid::Uuid::new_v4().to_string();
    let name = client.upload_name_with(&uuid, &digest_of(&blob));
    let other_name = client.upload_name_with(&uuid, &digest_of(&other));
    // BuildStream's client uses one uuid for all blobs of its life.
    cut_upload(&target, &name, &blob, 2 * MIB).await?;
    committed(client, &name, 2 * MIB).await?;
    match client.query_write(&other_name).await {
        Ok(status) => assert_eq!((status.committed_size, status.complete), (0, false)),
        Err(status) => assert_eq!(status.code(), Code::NotFound),
    }
    refused_with(Code::InvalidArgument, write(client, rest_of(&other_name, &other, 2 * MIB)).await)?;
    assert_eq!(write(client, rest_of(&other_name, &other, 0)).await?, 4 * i64::try_from(MIB)?);
    assert_eq!(write(client, rest_of(&name, &blob, 2 * MIB)).await?, 4 * i64::try_from(MIB)?);
    assert!(client.download(&digest_of(&blob)).await? == blob);
    assert!(client.download(&digest_of(&other)).await? == other);
    Ok(())
}

#[tokio::test]
async fn two_uploads_of_one_name_at_once_both_succeed() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(2 * MIB);
    let digest = digest_of(&blob);
    let name = client.upload_name(&digest);
    // A client that tries again while the server does not know yet that the first connection is dead.
    let (first, second) = (client.begin_upload(), client.begin_upload());
    first.send_bytes(&name, 0, &blob[..MIB], false).await;
    committed(client, &name, MIB).await?;
    second.send_bytes(&name, 0, &blob[..MIB / 2], false).await;
    second.send_bytes("", MIB / 2, &blob[MIB / 2..], true).await;
    assert_eq!(second.finish().await?.committed_size, digest.size_bytes);
    first.send_bytes("", MIB, &blob[MIB..], true).await;
    assert_eq!(first.finish().await?.committed_size, digest.size_bytes);
    let status = client.query_write(&name).await?;
    assert_eq!((status.committed_size, status.complete), (digest.size_bytes, true));
    assert!(client.download(&digest).await? == blob);
    Ok(())
}

#[tokio::test]
async fn an_upload_that_never_ended_can_be_taken_up_after_a_clean_close() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(3000);
    let digest = digest_of(&blob);
    let name = client.upload_name(&digest);
    // The client has closed its side without finish_write: what is here is said, kept, and gone on with.
    let upload = client.begin_upload();
    upload.send_bytes(&name, 0, &blob[..1000], false).await;
    assert_eq!(upload.finish().await?.committed_size, 1000);
    let status = client.query_write(&name).await?;
    assert_eq!((status.committed_size, status.complete), (1000, false));
    assert_eq!(write(client, rest_of(&name, &blob, 1000)).await?, 3000);
    let status = client.query_write(&name).await?;
    assert_eq!((status.committed_size, status.complete), (3000, true));
    Ok(())
}
