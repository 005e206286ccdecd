//! The quota: the least recently used go, what is in use stays, and nobody is told a lie about it.

use anyhow::{Context as _, Result, ensure};
use casbah_tests::clients::bytestream::ReadRequest;
use casbah_tests::clients::reapi::Digest;
use casbah_tests::clients::{AssetName, Client, digest_of};
use casbah_tests::deadline::eventually;
use casbah_tests::load::{Content, new_bytes};
use casbah_tests::target::Node;
use futures_util::future::join_all;
use tonic::Code;

const MIB: usize = 1 << 20;

/// The quota of BuildStream's own tests, and nothing is spared.
const SMALL: [&str; 2] = ["store.capacity=22MB", "store.retention_floor=0s"];

async fn upload_megabytes(client: &Client, count: usize) -> Result<Vec<Digest>> {
    let mut digests = Vec::new();
    for _ in 0..count {
        digests.push(client.upload(new_bytes(1_000_000)).await?);
    }
    Ok(digests)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_takes_every_upload() -> Result<()> {
    let node = Node::start(&SMALL)?;
    let client = node.client().await?;
    for digest in upload_megabytes(&client, 100).await? {
        let _ = digest;
    }
    // Of any size up to the quota.
    for size in [1, 5_000_000, 100_000, 15_000_000, 20_000_000] {
        let content = Content::new(size);
        let digest = content.upload(&client).await.with_context(|| format!("{size} bytes"))?;
        assert!(client.has(&digest).await?, "{size} bytes");
        content.verify(&client).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_at_once_that_do_not_fit_together_wait_for_each_other() -> Result<()> {
    let node = Node::start(&SMALL)?;
    let client = node.client().await?;
    // RESOURCE_EXHAUSTED would make BuildStream's client believe that the remote has everything; UNAVAILABLE makes it
    // try again.
    let uploads = (0..20).map(|_| Content::new(4_000_000)).map(|content| {
        let client = client.clone();
        async move {
            eventually("an upload finds room", || async {
                match content.upload(&client).await {
                    Ok(_) => Ok(true),
                    Err(status) if status.code() == Code::Unavailable => Ok(false),
                    Err(status) => Err(status.into()),
                }
            })
            .await
        }
    });
    for answer in join_all(uploads).await {
        answer?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_were_cut_off_make_room_for_others() -> Result<()> {
    let node = Node::start(&SMALL)?;
    let client = node.client().await?;
    for _ in 0..20 {
        let upload = client.begin_upload();
        let blob = new_bytes(1_000_000);
        upload.send_bytes(&client.upload_name(&digest_of(&blob)), 0, &blob[..500_000], false).await;
        upload.abandon().await;
    }
    let begun = std::time::Instant::now();
    for _ in 0..3 {
        Content::new(15_000_000).upload(&client).await?;
    }
    // What was cut off is worth less than what is here: nobody waits for it.
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_under_way_is_right_to_its_end_though_its_blob_is_evicted() -> Result<()> {
    let node = Node::start(&SMALL)?;
    let client = node.client().await?;
    let blob = new_bytes(12 * MIB);
    let digest = client.upload(blob.clone()).await?;
    let request = ReadRequest { resource_name: client.blob_name(&digest), ..Default::default() };
    let mut download = client.bytestream().read(request).await?.into_inner();
    let mut bytes = download.message().await?.context("no first message")?.data.to_vec();
    let other = node.client().await?;
    upload_megabytes(&other, 30).await?;
    loop {
        match download.message().await {
            Ok(Some(message)) => bytes.extend_from_slice(&message.data),
            Ok(None) => break assert!(bytes == blob, "{} bytes", bytes.len()),
            // It may end early, if it says so, and with nothing but right bytes so far.
            Err(status) => {
                assert!([Code::Unavailable, Code::NotFound].contains(&status.code()), "{status:?}");
                break assert!(blob.starts_with(&bytes));
            }
        }
    }
    assert!(!other.has(&digest).await?, "30 MB did not evict it");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_way_of_using_a_blob_keeps_it() -> Result<()> {
    let node = Node::start(&SMALL)?;
    let client = node.client().await?;
    let names: Vec<AssetName> = (0..2).map(|_| AssetName::unique()).collect();
    let blobs: Vec<_> = (0..6).map(|_| new_bytes(100_000)).collect();
    let mut digests = Vec::new();
    for blob in &blobs {
        digests.push(client.upload(blob.clone()).await?);
    }
    client.push_blob(&names[0], &digests[4]).await?;
    for round in 0..40 {
        upload_megabytes(&client, 1).await?;
        ensure!(client.has(&digests[0]).await?, "found: {round}");
        client.download(&digests[1]).await?;
        client.batch_read(&digests[2..3]).await?;
        client.upload(blobs[3].clone()).await?;
        client.fetch_blob(&names[0]).await?;
        client.push_blob(&names[1], &digests[5]).await?;
    }
    assert_eq!(client.find_missing(&digests).await?, []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_in_vain_and_failed_uploads_evict_nothing() -> Result<()> {
    let node = Node::start(&SMALL)?;
    let client = node.client().await?;
    let digests = upload_megabytes(&client, 15).await?;
    for _ in 0..20 {
        let blob = new_bytes(1_000_000);
        let wrong = vec![(digest_of(&new_bytes(1_000_000)), blob.clone())];
        let answers = client.batch_update(wrong).await?;
        ensure!(answers.iter().all(|answer| answer.status.clone().unwrap_or_default().code != 0));
        ensure!(!client.has(&digest_of(&blob)).await?);
    }
    assert_eq!(client.find_missing(&digests).await?, []);
    Ok(())
}
