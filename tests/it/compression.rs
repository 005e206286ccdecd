//! zstd on the wire: ByteStream and the batch calls, honest and not.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use casbah_tests::clients::reapi::compressor::Value as Compressor;
use casbah_tests::clients::reapi::{
    BatchReadBlobsRequest, BatchUpdateBlobsRequest, Digest, batch_read_blobs_response, batch_update_blobs_request,
};
use casbah_tests::clients::{Client, digest_of, empty_digest, refused_with, write_requests};
use casbah_tests::deadline::{eventually, within_deadline};
use casbah_tests::faults::Wire;
use casbah_tests::load::new_bytes;
use casbah_tests::target::{Node, Target};
use futures_util::future::join_all;
use tonic::{Code, Status};

const MIB: usize = 1 << 20;

/// What the server's memory may grow by, whatever compressed bytes it is sent.
const GROWTH_BYTES_MAX: u64 = 64 << 20;

/// The name of a blob or upload in its compressed form.
fn compressed(name: &str) -> String {
    name.replacen("blobs/", "compressed-blobs/zstd/", 1)
}

/// Bytes that no test has used before and that can be compressed.
fn new_text(size_bytes: usize) -> Bytes {
    let noise = new_bytes(size_bytes.div_ceil(4));
    let text: Vec<u8> = noise.iter().flat_map(|byte| [b' ', b'a' + byte % 20, b'e', b'0' + byte % 3]).collect();
    Bytes::from(text).slice(..size_bytes)
}

fn compress(bytes: &[u8]) -> Bytes {
    zstd::encode_all(bytes, 3).expect("bytes in memory can be compressed").into()
}

async fn write(client: &Client, name: String, frames: Bytes, chunk_bytes: usize) -> Result<i64, Status> {
    let requests = tokio_stream::iter(write_requests(name, frames, chunk_bytes));
    Ok(client.bytestream().write(requests).await?.into_inner().committed_size)
}

/// Uploads these compressed bytes under the name of that blob.
async fn upload(client: &Client, digest: &Digest, frames: Bytes) -> Result<i64, Status> {
    write(client, compressed(&client.upload_name(digest)), frames, 64 << 10).await
}

/// What a compressed read from this offset on decompresses to.
async fn read(client: &Client, digest: &Digest, offset: usize) -> Result<Vec<u8>> {
    let compressed = client.read(&compressed(&client.blob_name(digest)), offset.try_into()?, 0).await?;
    Ok(zstd::decode_all(compressed.as_slice())?)
}

async fn refused_and_not_held(client: &Client, digest: &Digest, frames: Bytes) -> Result<String> {
    let message = refused_with(Code::InvalidArgument, upload(client, digest, frames).await)?;
    ensure!(message.contains(&digest.hash), "does not name the digest: {message}");
    ensure!(!client.has(digest).await?, "is present");
    refused_with(Code::NotFound, client.download(digest).await)?;
    Ok(message)
}

async fn batch_update(client: &Client, blobs: Vec<(Digest, Bytes, Compressor)>) -> Result<Vec<Status>, Status> {
    let requests = blobs.into_iter().map(|(digest, data, compressor)| batch_update_blobs_request::Request {
        digest: Some(digest),
        data,
        compressor: compressor.into(),
    });
    let request = BatchUpdateBlobsRequest { requests: requests.collect(), ..Default::default() };
    let responses = client.cas().batch_update_blobs(request).await?.into_inner().responses;
    let statuses = responses.into_iter().map(|response| response.status.unwrap_or_default());
    Ok(statuses.map(|status| Status::new(status.code.into(), status.message)).collect())
}

async fn batch_read(
    client: &Client,
    digests: &[Digest],
    acceptable: &[Compressor],
) -> Result<Vec<batch_read_blobs_response::Response>, Status> {
    let request = BatchReadBlobsRequest {
        digests: digests.to_vec(),
        acceptable_compressors: acceptable.iter().map(|compressor| i32::from(*compressor)).collect(),
        ..Default::default()
    };
    Ok(client.cas().batch_read_blobs(request).await?.into_inner().responses)
}

// === Write ===

#[tokio::test]
async fn a_compressed_blob_arrives_whatever_the_size_of_its_chunks() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for (size, chunk_bytes) in
        [(1, 1), (300, 1), (5000, 7), (100_000, 4096), (MIB, 16 << 10), (5 * MIB + 1, 100_000), (9 * MIB + 3, 2 * MIB)]
    {
        for blob in [new_text(size), new_bytes(size)] {
            let (digest, frames) = (digest_of(&blob), compress(&blob));
            let name = compressed(&client.upload_name(&digest));
            let committed = write(client, name.clone(), frames.clone(), chunk_bytes).await?;
            assert_eq!(committed, i64::try_from(frames.len())?, "{size} in {chunk_bytes}");
            assert!(client.has(&digest).await?, "{size} in {chunk_bytes}");
            assert!(client.download(&digest).await? == blob, "{size} in {chunk_bytes}");
            let status = client.query_write(&name).await?;
            assert_eq!((status.committed_size, status.complete), (digest.size_bytes, true));
        }
    }
    Ok(())
}

#[tokio::test]
async fn several_frames_and_skippable_ones_are_one_blob() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for size in [3000, 3 * MIB] {
        let blob = new_text(size);
        let skippable = [&[0x50, 0x2A, 0x4D, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let mut frames = skippable.clone();
        for part in blob.chunks(size / 7) {
            frames.extend(compress(part));
            frames.extend(&skippable);
        }
        frames.extend(compress(b""));
        let digest = digest_of(&blob);
        upload(client, &digest, frames.into()).await?;
        assert!(client.download(&digest).await? == blob);
    }
    Ok(())
}

#[tokio::test]
async fn what_is_not_the_compressed_blob_is_refused_and_not_held() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for size in [1000, 3 * MIB] {
        let blob = new_text(size);
        let (digest, frames) = (digest_of(&blob), compress(&blob));
        let other = new_text(size);
        for (what, bytes) in [
            ("nothing", Bytes::new()),
            ("garbage", new_bytes(size)),
            ("the blob itself", blob.clone()),
            ("another blob of the same size", compress(&other)),
            ("half of the frame", frames.slice(..frames.len() / 2)),
            ("all but a byte", frames.slice(..frames.len() - 1)),
            ("a byte more", [&frames[..], b"x"].concat().into()),
            ("garbage at the end", [&frames[..], b"garbage"].concat().into()),
            ("half a frame at the end", [&frames[..], &frames[..20]].concat().into()),
            ("it twice", [&frames[..], &frames[..]].concat().into()),
            ("a longer one", compress(&[&blob[..], b"x"].concat())),
            ("a shorter one", compress(&blob[..size - 1])),
            ("its first half", compress(&blob[..size / 2])),
        ] {
            refused_and_not_held(client, &digest, bytes).await.with_context(|| format!("{what} for {size}"))?;
        }
        assert!(!client.has(&digest_of(&other)).await?, "held under its own name");
        upload(client, &digest, frames).await?;
        assert!(client.download(&digest).await? == blob);
    }
    Ok(())
}

#[tokio::test]
async fn the_compressed_upload_of_a_blob_that_is_present_ends_early_with_minus_one() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_text(4 * MIB);
    let digest = client.upload(blob.clone()).await?;
    let begun = client.begin_upload();
    begun.send_bytes(&compressed(&client.upload_name(&digest)), 0, &compress(&blob)[..100], false).await;
    // The client's side stays open: only an early end answers.
    let answer = within_deadline("an early end", begun.answer()).await??;
    assert_eq!(answer.committed_size, -1);
    // Whatever is sent, and however much.
    assert_eq!(upload(client, &digest, compress(&blob)).await?, -1);
    assert_eq!(upload(client, &empty_digest(), compress(b"")).await?, -1);
    assert_eq!(upload(client, &empty_digest(), Bytes::new()).await?, -1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_of_one_blob_that_meet_in_either_form_all_succeed() -> Result<()> {
    let target = Target::start().await?;
    for size in [1000, 100_000, 6 * MIB] {
        let blob = new_text(size);
        let (digest, frames) = (digest_of(&blob), compress(&blob));
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(Client::plaintext(target.authority()).await?);
        }
        let uploads = (0..16).map(|place: usize| {
            let (client, digest, blob, frames) = (&clients[place % 4], &digest, blob.clone(), frames.clone());
            async move {
                if place.is_multiple_of(3) {
                    return client.upload(blob).await.map(|_| ());
                }
                let compressed_bytes = i64::try_from(frames.len()).unwrap_or(i64::MAX);
                let committed = upload(client, digest, frames).await?;
                assert!(committed == compressed_bytes || committed == -1, "{committed}");
                Ok(())
            }
        });
        for answer in within_deadline("sixteen uploads", join_all(uploads)).await? {
            answer.with_context(|| format!("of {size} bytes"))?;
        }
        assert!(target.client().download(&digest).await? == blob);
    }
    Ok(())
}

#[tokio::test]
async fn within_a_call_the_offset_counts_compressed_bytes() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_text(100_000);
    let (digest, frames) = (digest_of(&blob), compress(&blob));
    let half = frames.len() / 2;
    for (what, first, second) in [
        ("starts after the start", 1, half + 1),
        ("leaves a gap", 0, half + 1),
        ("overlaps", 0, half - 1),
        ("starts again", 0, 0),
        ("counts uncompressed bytes", 0, blob.len()),
    ] {
        let begun = client.begin_upload();
        begun.send_bytes(&compressed(&client.upload_name(&digest)), first, &frames[..half], false).await;
        begun.send_bytes("", second, &frames[half..], true).await;
        refused_with(Code::InvalidArgument, begun.finish().await).context(what)?;
        assert!(!client.has(&digest).await?, "{what}");
    }
    Ok(())
}

/// Sends the beginning of a frame over a wire, waits until the server has made of it what can be made, and cuts the wire.
/// Returns how much of the blob the server has then.
async fn cut_upload(target: &Target, name: &str, frames: &[u8]) -> Result<usize> {
    let mut made = Vec::new();
    std::io::copy(&mut zstd::stream::Decoder::new(frames)?, &mut made).expect_err("the frame is not whole");
    let wire = Wire::to(target.authority()).await?;
    let client = Client::plaintext(&wire.authority()).await?;
    let begun = client.begin_upload();
    ensure!(begun.send_bytes(name, 0, frames, false).await, "ended early");
    eventually("the server says how much it has", || async {
        let status = target.client().query_write(name).await?;
        ensure!(!status.complete && status.committed_size <= i64::try_from(made.len())?, "{status:?}");
        Ok(status.committed_size == i64::try_from(made.len())?)
    })
    .await?;
    wire.cut().await;
    ensure!(begun.finish().await.is_err(), "answered over a wire that was cut");
    Ok(made.len())
}

#[tokio::test]
async fn a_compressed_upload_is_taken_up_at_the_byte_of_the_blob_where_it_broke() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_text(8 * MIB);
    let (digest, frames) = (digest_of(&blob), compress(&blob));
    let plain = client.upload_name(&digest);
    let name = compressed(&plain);
    let offset = cut_upload(&target, &name, &frames[..frames.len() / 2]).await?;
    assert!(offset > 0 && offset < blob.len(), "{offset}");
    // The other form of the same name has begun nothing.
    assert_eq!(client.query_write(&plain).await?.committed_size, 0);
    let begun = client.begin_upload();
    begun.send_bytes(&plain, offset, &blob[offset..offset + 10], false).await;
    refused_with(Code::InvalidArgument, begun.finish().await)?;
    // "write_offset in the initial request in a stream refers to the offset in the uncompressed form of the blob".
    let rest = compress(&blob[offset..]);
    eventually("the server has noticed that the wire was cut", || async {
        ensure!(client.query_write(&name).await?.committed_size == i64::try_from(offset)?, "it has forgotten");
        let begun = client.begin_upload();
        begun.send_bytes(&name, offset, &rest[..1000], false).await;
        begun.send_bytes("", offset + 1000, &rest[1000..], true).await;
        match begun.finish().await {
            Ok(answer) => {
                ensure!(answer.committed_size == i64::try_from(offset + rest.len())?, "{answer:?}");
                Ok(true)
            }
            Err(status) if status.message().contains("offset") => Ok(false),
            Err(status) => Err(status.into()),
        }
    })
    .await?;
    assert!(client.download(&digest).await? == blob);
    Ok(())
}

#[tokio::test]
async fn a_compressed_upload_that_broke_may_begin_anew() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_text(4 * MIB);
    let (digest, frames) = (digest_of(&blob), compress(&blob));
    let name = compressed(&client.upload_name(&digest));
    cut_upload(&target, &name, &frames[..frames.len() / 2]).await?;
    assert_eq!(write(client, name, frames.clone(), MIB).await?, i64::try_from(frames.len())?);
    assert!(client.download(&digest).await? == blob);
    Ok(())
}

// === bombs ===

/// So many zeros as one frame that does not say how many.
fn bomb(size_bytes: u64) -> Result<Bytes> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1)?;
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), size_bytes), &mut encoder)?;
    Ok(encoder.finish()?.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bomb_of_a_gibibyte_neither_fills_the_memory_nor_is_held() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let server = target.node()?.server();
    let bomb = bomb(1 << 30)?;
    upload(client, &digest_of(&new_text(MIB)), Bytes::new()).await.expect_err("nothing is not a mebibyte");
    server.reset_peak_rss()?;
    let before = server.rss_bytes()?;
    let started = std::time::Instant::now();
    for size_bytes in [1, 1000, i64::try_from(MIB)?, 20 << 20] {
        let digest = Digest { size_bytes, ..digest_of(&new_bytes(10)) };
        let message = refused_and_not_held(client, &digest, bomb.clone()).await?;
        assert!(message.contains(&format!("at least {} ", size_bytes + 1)), "{message}");
        let answers = batch_update(client, vec![(digest, bomb.clone(), Compressor::Zstd)]).await;
        match answers {
            Ok(answers) => assert_eq!(answers[0].code(), Code::InvalidArgument),
            Err(status) => assert_eq!(status.code(), Code::InvalidArgument),
        }
    }
    assert!(started.elapsed().as_secs() < 10, "a bomb is not to be decompressed to its end");
    let growth_bytes = server.peak_rss_bytes()?.saturating_sub(before);
    assert!(growth_bytes < GROWTH_BYTES_MAX, "{growth_bytes}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gibibyte_that_was_compressed_to_little_passes_through_bounded_memory() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let server = target.node()?.server();
    let frames = bomb(1 << 30)?;
    // The SHA-256 of 2^30 zeros.
    let hash = "49bc20df15e412a64472421e13fe86ff1c5165e18b2afccf160d4dc19fe68a14";
    let digest = Digest { hash: hash.to_owned(), size_bytes: 1 << 30 };
    server.reset_peak_rss()?;
    let before = server.rss_bytes()?;
    upload(client, &digest, frames).await?;
    assert!(client.has(&digest).await?);
    let compressed = client.read(&compressed(&client.blob_name(&digest)), 0, 0).await?;
    let growth_bytes = server.peak_rss_bytes()?.saturating_sub(before);
    assert!(growth_bytes < GROWTH_BYTES_MAX, "{growth_bytes}");
    assert!(compressed.len() < 1 << 20, "{}", compressed.len());
    let mut decoder = zstd::stream::Decoder::new(compressed.as_slice())?;
    assert_eq!(std::io::copy(&mut decoder, &mut std::io::sink())?, 1 << 30);
    Ok(())
}

// === Read ===

#[tokio::test]
async fn a_blob_is_read_compressed_from_any_offset() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for size in [1000, 3 * MIB + 17] {
        for blob in [new_text(size), new_bytes(size)] {
            let digest = client.upload(blob.clone()).await?;
            for offset in [0, 1, 511, size / 2, MIB - 1, MIB, size - 1, size] {
                let Some(expected) = blob.get(offset..) else { continue };
                assert!(read(client, &digest, offset).await? == expected, "{offset} of {size}");
            }
        }
        let text = client.upload(new_text(size)).await?;
        let compressed = client.read(&compressed(&client.blob_name(&text)), 0, 0).await?;
        assert!(compressed.len() < size, "{} for {size}", compressed.len());
    }
    assert!(read(client, &empty_digest(), 0).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_compressed_read_is_refused_as_the_api_says() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let name = compressed(&client.blob_name(&client.upload(new_text(100)).await?));
    for offset in [101, 1 << 40, i64::MAX, -1, i64::MIN] {
        refused_with(Code::OutOfRange, client.read(&name, offset, 0).await)
            .with_context(|| format!("from {offset}"))?;
    }
    // "Servers MUST return INVALID_ARGUMENT if ReadRequest.read_limit is non-zero".
    for limit in [1, 100, i64::MAX, -1, i64::MIN] {
        refused_with(Code::InvalidArgument, client.read(&name, 0, limit).await)?;
    }
    let absent = digest_of(&new_bytes(100));
    let message = refused_with(Code::NotFound, client.read(&compressed(&client.blob_name(&absent)), 0, 0).await)?;
    assert!(message.contains(&absent.hash), "{message}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_compressed_reads_at_once_are_all_right() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_text(5 * MIB);
    let digest = client.upload(blob.clone()).await?;
    let reads = (0..32).map(|place| read(client, &digest, place * 1000));
    for (place, answer) in within_deadline("reads", join_all(reads)).await?.into_iter().enumerate() {
        assert!(answer? == blob[place * 1000..], "{place}");
    }
    Ok(())
}

// === batches ===

#[tokio::test]
async fn blobs_of_a_batch_come_in_either_form() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blobs = [new_text(1), new_text(3000), new_bytes(3000), new_text(500_000), new_bytes(500_000), new_text(MIB)];
    let requests = blobs.iter().enumerate().map(|(place, blob)| match place % 3 {
        0 => (digest_of(blob), blob.clone(), Compressor::Identity),
        _ => (digest_of(blob), compress(blob), Compressor::Zstd),
    });
    let with_empty = requests.chain([(empty_digest(), compress(b""), Compressor::Zstd)]).collect();
    for status in batch_update(client, with_empty).await? {
        assert_eq!(status.code(), Code::Ok, "{status:?}");
    }
    for blob in &blobs {
        assert!(client.download(&digest_of(blob)).await? == *blob, "{} bytes", blob.len());
    }
    Ok(())
}

#[tokio::test]
async fn one_bad_blob_of_a_batch_spoils_no_other() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_text(3000);
    let (digest, frames) = (digest_of(&blob), compress(&blob));
    let bad = [
        (new_bytes(2000), Compressor::Zstd),
        (frames.slice(..frames.len() - 1), Compressor::Zstd),
        ([&frames[..], b"x"].concat().into(), Compressor::Zstd),
        (frames.clone(), Compressor::Identity),
        (frames.clone(), Compressor::Deflate),
        (frames.clone(), Compressor::Brotli),
        (compress(&new_text(3000)), Compressor::Zstd),
        (compress(&new_text(4000)), Compressor::Zstd),
        (bomb(100 << 20)?, Compressor::Zstd),
    ];
    let mut requests: Vec<_> = bad.into_iter().map(|(data, form)| (digest_of(&new_text(3000)), data, form)).collect();
    requests.push((digest.clone(), frames, Compressor::Zstd));
    let digests: Vec<Digest> = requests.iter().map(|(digest, ..)| digest.clone()).collect();
    let mut statuses = batch_update(client, requests).await?;
    assert_eq!(statuses.pop().context("no answer")?.code(), Code::Ok);
    for status in &statuses {
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    }
    for refused in &statuses[4..6] {
        assert!(refused.message().contains("zstd"), "does not say what is offered: {refused:?}");
    }
    assert_eq!(client.find_missing(&digests).await?.len(), digests.len() - 1);
    assert!(client.download(&digest).await? == blob);
    Ok(())
}

#[tokio::test]
async fn a_batch_is_measured_by_what_it_becomes() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = Bytes::from(vec![7; 5 * MIB]);
    let call = batch_update(client, vec![(digest_of(&blob), compress(&blob), Compressor::Zstd)]).await;
    refused_with(Code::InvalidArgument, call)?;
    Ok(())
}

#[tokio::test]
async fn a_frame_of_which_any_bit_was_flipped_is_never_taken_for_another_blob() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_text(120);
    let (digest, frames) = (digest_of(&blob), compress(&blob));
    let damaged = (0..frames.len() * 8).map(|bit| {
        let mut damaged = frames.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        (digest.clone(), damaged.into(), Compressor::Zstd)
    });
    for status in batch_update(client, damaged.collect()).await? {
        match status.code() {
            // A bit without a meaning.
            Code::Ok => assert!(client.download(&digest).await? == blob),
            code => assert_eq!(code, Code::InvalidArgument, "{status:?}"),
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_batch_is_read_compressed_where_the_client_takes_it_and_it_pays() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blobs = [new_text(100), new_text(3000), new_bytes(3000), new_text(MIB)];
    let mut digests = Vec::new();
    for blob in &blobs {
        digests.push(client.upload(blob.clone()).await?);
    }
    digests.push(digest_of(&new_bytes(3000)));
    let both = [Compressor::Brotli, Compressor::Zstd];
    let answers = batch_read(client, &digests, &both).await?;
    let forms: Vec<i32> = answers.iter().map(|answer| answer.compressor).collect();
    assert_eq!(forms, [0, 1, 0, 1, 0]);
    for (answer, blob) in answers.iter().zip(&blobs) {
        assert_eq!(answer.status.clone().unwrap_or_default().code, 0);
        match answer.compressor {
            0 => assert!(answer.data == *blob),
            _ => assert!(answer.data.len() < blob.len() && zstd::decode_all(&answer.data[..])? == *blob),
        }
    }
    assert_eq!(answers[4].status.clone().unwrap_or_default().code, i32::from(Code::NotFound));
    // Who does not say that it takes zstd does not get it.
    for acceptable in [&[][..], &[Compressor::Identity], &[Compressor::Deflate, Compressor::Brotli]] {
        for (answer, blob) in batch_read(client, &digests[..4], acceptable).await?.iter().zip(&blobs) {
            assert!(answer.compressor == 0 && answer.data == *blob, "{acceptable:?}");
        }
    }
    Ok(())
}

// === what is stored compressed ===

#[tokio::test]
async fn what_is_stored_compressed_is_sent_as_it_is_stored() -> Result<()> {
    let node = Node::start(&["store.compression=zstd"])?;
    let client = node.client().await?;
    let mut digests = Vec::new();
    let blobs = [new_text(3000), new_text(100_000), new_text(3 * MIB + 17), new_bytes(MIB), new_text(200)];
    for blob in &blobs {
        digests.push(client.upload(blob.clone()).await?);
    }
    for (digest, blob) in digests.iter().zip(&blobs) {
        for offset in [0, 1, blob.len() / 2, blob.len()] {
            let expected = blob.get(offset..).context("it is in the blob")?;
            assert!(read(&client, digest, offset).await? == expected, "{offset} of {}", blob.len());
        }
        assert!(client.download(digest).await? == *blob);
    }
    // The bytes on the wire are those on the disk.
    let sent = client.read(&compressed(&client.blob_name(&digests[2])), 0, 0).await?;
    let hash = &digests[2].hash;
    let folder = node.dir().join("store/blobs").join(&hash[..2]);
    let mut files = std::fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    let file = files.find(|path| path.to_string_lossy().contains(hash.as_str())).context("the blob has no file")?;
    ensure!(std::fs::read(file)?.starts_with(&sent), "they were compressed anew");

    let small: Vec<Digest> = digests.iter().filter(|digest| digest.size_bytes < 1 << 20).cloned().collect();
    for (answer, size) in batch_read(&client, &small, &[Compressor::Zstd]).await?.iter().zip([3000, 100_000, 200]) {
        let blob = blobs.iter().find(|blob| blob.len() == size).context("it was stored")?;
        assert_eq!(answer.compressor, i32::from(size > 256));
        match answer.compressor {
            0 => assert!(answer.data == *blob),
            _ => assert!(zstd::decode_all(&answer.data[..])? == *blob),
        }
    }
    let absent = digest_of(&new_bytes(1000));
    refused_with(Code::NotFound, client.read(&compressed(&client.blob_name(&absent)), 0, 0).await)?;
    Ok(())
}

// === what is offered ===

#[tokio::test]
async fn zstd_is_advertised_for_streams_and_batches() -> Result<()> {
    let target = Target::start().await?;
    let cache = target.client().capabilities().await?.cache_capabilities.context("no cache capabilities")?;
    assert_eq!(cache.supported_compressors, [i32::from(Compressor::Zstd)]);
    assert_eq!(cache.supported_batch_update_compressors, [i32::from(Compressor::Zstd)]);
    Ok(())
}

#[tokio::test]
async fn other_compressors_are_refused_with_what_is_offered() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let digest = client.upload(new_bytes(5)).await?;
    for compressor in ["deflate", "brotli", "ZSTD", "gzip", ""] {
        let name = format!("compressed-blobs/{compressor}/{}/5", digest.hash);
        let message = refused_with(Code::InvalidArgument, client.read(&name, 0, 0).await)?;
        assert!(message.contains("zstd"), "{message}");
        let name = format!("uploads/{}/{name}", uuid::Uuid::new_v4());
        let message = refused_with(Code::InvalidArgument, write(client, name, new_bytes(5), 5).await)?;
        assert!(message.contains("zstd"), "{message}");
    }
    Ok(())
}
