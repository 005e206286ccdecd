//! SplitBlob and SpliceBlob: blobs in chunks that other blobs share.

use std::collections::HashSet;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use casbah_tests::clients::reapi::chunking_function::Value as Chunking;
use casbah_tests::clients::reapi::{
    Digest, FindMissingBlobsRequest, SpliceBlobRequest, SpliceBlobResponse, SplitBlobRequest, SplitBlobResponse,
};
use casbah_tests::clients::{Client, digest_of, empty_digest, hex, refused_with};
use casbah_tests::load::new_bytes;
use casbah_tests::process::{Config, Listener};
use casbah_tests::target::{Node, Target};
use tonic::{Code, Status};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// What the server says its chunks are like, and what the API has follow from that.
const AVERAGE_BYTES: usize = 512 * KIB;
const MIN_BYTES: usize = AVERAGE_BYTES / 4;
const MAX_BYTES: usize = AVERAGE_BYTES * 4;

/// The node of the tests about eviction.
const SMALL: [&str; 2] = ["store.capacity=22MB", "store.retention_floor=0s"];

/// What the server's memory may grow by while it cuts or joins a blob of [`LARGE_BYTES`].
const GROWTH_BYTES_MAX: u64 = 40 << 20;
const LARGE_BYTES: usize = 64 * MIB;

fn split_request(blob: &Digest) -> SplitBlobRequest {
    SplitBlobRequest { blob_digest: Some(blob.clone()), ..Default::default() }
}

fn splice_request(blob: &Digest, chunks: &[Digest]) -> SpliceBlobRequest {
    SpliceBlobRequest { blob_digest: Some(blob.clone()), chunk_digests: chunks.to_vec(), ..Default::default() }
}

async fn split_with(client: &Client, request: SplitBlobRequest) -> Result<SplitBlobResponse, Status> {
    Ok(client.cas().split_blob(request).await?.into_inner())
}

async fn split(client: &Client, blob: &Digest) -> Result<Vec<Digest>, Status> {
    Ok(split_with(client, split_request(blob)).await?.chunk_digests)
}

async fn splice_with(client: &Client, request: SpliceBlobRequest) -> Result<SpliceBlobResponse, Status> {
    Ok(client.cas().splice_blob(request).await?.into_inner())
}

async fn splice(client: &Client, blob: &Digest, chunks: &[Digest]) -> Result<(), Status> {
    let answer = splice_with(client, splice_request(blob, chunks)).await?;
    match answer.blob_digest.as_ref() == Some(blob) {
        true => Ok(()),
        false => Err(Status::data_loss("another blob was made")),
    }
}

/// Downloads the chunks one after the other.
async fn joined(client: &Client, chunks: &[Digest]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for chunk in chunks {
        bytes.extend(client.download(chunk).await?);
    }
    Ok(bytes)
}

/// Uploads these bytes in chunks of this size, and not the whole.
async fn upload_chunks(client: &Client, blob: &Bytes, chunk_bytes: usize) -> Result<Vec<Digest>> {
    let mut chunks = Vec::new();
    for start in (0..blob.len()).step_by(chunk_bytes) {
        chunks.push(client.upload(blob.slice(start..blob.len().min(start + chunk_bytes))).await?);
    }
    Ok(chunks)
}

// === capabilities ===

#[tokio::test]
async fn both_calls_and_the_parameters_that_the_api_advises_are_advertised() -> Result<()> {
    let target = Target::start().await?;
    let cache = target.client().capabilities().await?.cache_capabilities.context("no cache capabilities")?;
    assert!(cache.split_blob_support && cache.splice_blob_support);
    let parameters = cache.fast_cdc_2020_params.context("no parameters")?;
    assert_eq!((parameters.avg_chunk_size_bytes, parameters.seed), (AVERAGE_BYTES as u64, 0));
    assert_eq!(cache.rep_max_cdc_params, None);
    Ok(())
}

#[tokio::test]
async fn a_reader_may_split_and_not_splice_and_is_told_so() -> Result<()> {
    let config = Config::new()?
        .listener(&Listener::plaintext().allow(&["read", "write"]))
        .listener(&Listener::plaintext().allow(&["read"]));
    let server = config.start()?;
    let writer = Client::plaintext(&server.endpoint(0).authority()).await?;
    let reader = Client::plaintext(&server.endpoint(1).authority()).await?;
    let cache = reader.capabilities().await?.cache_capabilities.context("no cache capabilities")?;
    assert!(cache.split_blob_support && !cache.splice_blob_support);
    let bytes = new_bytes(3 * MIB);
    let blob = writer.upload(bytes.clone()).await?;
    let chunks = split(&reader, &blob).await?;
    assert_eq!(joined(&reader, &chunks).await?, bytes);
    refused_with(Code::PermissionDenied, splice(&reader, &blob, &chunks).await)?;
    Ok(())
}

// === split ===

#[tokio::test]
async fn the_chunks_of_a_blob_are_held_make_it_up_and_keep_to_their_bounds() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let bytes = new_bytes(9 * MIB + 1);
    let blob = client.upload(bytes.clone()).await?;
    let answer = split_with(client, split_request(&blob)).await?;
    assert_eq!(answer.chunking_function, Chunking::FastCdc2020 as i32);
    let chunks = answer.chunk_digests;
    assert!(chunks.len() > 4, "{chunks:?}");
    let (_last, others) = chunks.split_last().context("no chunks")?;
    for chunk in others {
        assert!((MIN_BYTES..=MAX_BYTES).contains(&usize::try_from(chunk.size_bytes)?), "{chunk:?}");
    }
    assert_eq!(client.find_missing(&chunks).await?, []);
    assert!(joined(client, &chunks).await? == bytes);
    assert_eq!(split(client, &blob).await?, chunks);
    assert!(client.has(&blob).await?);
    Ok(())
}

#[tokio::test]
async fn a_byte_more_at_the_front_leaves_almost_all_chunks_shared() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let bytes = new_bytes(16 * MIB);
    let changed: Bytes = [&[7], bytes.as_ref()].concat().into();
    let before = client.upload(bytes).await?;
    let before: HashSet<String> = split(client, &before).await?.into_iter().map(|chunk| chunk.hash).collect();
    let after = client.upload(changed).await?;
    let after = split(client, &after).await?;
    let new = after.iter().filter(|chunk| !before.contains(&chunk.hash)).count();
    assert!(new <= 3, "{new} of {} chunks are new", after.len());
    Ok(())
}

#[tokio::test]
async fn a_blob_smaller_than_the_largest_chunk_is_its_own_only_chunk() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for size in [1, MIN_BYTES, AVERAGE_BYTES, MAX_BYTES - 1] {
        let blob = client.upload(new_bytes(size)).await?;
        assert_eq!(split(client, &blob).await?, [blob]);
    }
    assert_eq!(split(client, &empty_digest()).await?, [empty_digest()]);
    let blob = client.upload(new_bytes(MAX_BYTES)).await?;
    assert!(split(client, &blob).await?.len() > 1);
    Ok(())
}

#[tokio::test]
async fn blobs_of_every_digest_function_are_split_into_chunks_of_the_same() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let bytes = new_bytes(3 * MIB);
    let blake3 = Digest { hash: hex(blake3::hash(&bytes).as_bytes()), size_bytes: bytes.len().try_into()? };
    let name = format!("uploads/{}/blobs/blake3/{}/{}", uuid::Uuid::new_v4(), blake3.hash, blake3.size_bytes);
    let requests = casbah_tests::clients::write_requests(name, bytes.clone(), MIB);
    client.bytestream().write(tokio_stream::iter(requests)).await?;
    refused_with(Code::NotFound, split(client, &blake3).await)?;
    let request = SplitBlobRequest { digest_function: 9, ..split_request(&blake3) };
    let chunks = split_with(client, request).await?.chunk_digests;
    let mut read = Vec::new();
    for chunk in &chunks {
        let part = client.read(&format!("blobs/blake3/{}/{}", chunk.hash, chunk.size_bytes), 0, 0).await?;
        assert_eq!(hex(blake3::hash(&part).as_bytes()), chunk.hash);
        read.extend(part);
    }
    assert!(read == bytes);
    let request = FindMissingBlobsRequest { blob_digests: chunks.clone(), digest_function: 1, ..Default::default() };
    assert_eq!(client.cas().find_missing_blobs(request).await?.into_inner().missing_blob_digests.len(), chunks.len());
    Ok(())
}

#[tokio::test]
async fn an_absent_blob_is_not_found_and_named_even_if_its_chunks_are_here() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let bytes = new_bytes(3 * MIB);
    upload_chunks(client, &bytes, MIB).await?;
    for absent in [digest_of(&bytes), digest_of(b"never uploaded")] {
        let message = refused_with(Code::NotFound, split(client, &absent).await)?;
        assert!(message.contains(&absent.hash), "{message}");
    }
    Ok(())
}

#[tokio::test]
async fn any_chunking_function_may_be_wished_for_and_the_answer_says_which_it_was() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = client.upload(new_bytes(3 * MIB)).await?;
    for chunking_function in [0, 1, 2, 77] {
        let answer = split_with(client, SplitBlobRequest { chunking_function, ..split_request(&blob) }).await?;
        assert_eq!(answer.chunking_function, Chunking::FastCdc2020 as i32);
    }
    Ok(())
}

#[tokio::test]
async fn chunks_that_were_evicted_are_made_again() -> Result<()> {
    let node = Node::start(&SMALL)?;
    let client = node.client().await?;
    let bytes = new_bytes(4 * MIB);
    let blob = client.upload(bytes.clone()).await?;
    let chunks = split(&client, &blob).await?;
    for _ in 0..18 {
        client.upload(new_bytes(MIB)).await?;
        ensure!(client.has(&blob).await?, "the blob was to stay");
    }
    ensure!(!client.find_missing(&chunks).await?.is_empty(), "a chunk was to go");
    assert_eq!(split(&client, &blob).await?, chunks);
    assert!(joined(&client, &chunks).await? == bytes);
    Ok(())
}

#[tokio::test]
async fn a_blob_without_room_for_its_chunks_is_not_split_and_stays() -> Result<()> {
    let node = Node::start(&SMALL)?;
    let client = node.client().await?;
    let blob = client.upload(new_bytes(12 * MIB)).await?;
    let message = refused_with(Code::ResourceExhausted, split(&client, &blob).await)?;
    assert!(message.contains(&blob.hash), "{message}");
    assert!(client.has(&blob).await?);
    Ok(())
}

// === splice ===

#[tokio::test]
async fn a_blob_travels_from_node_to_node_in_its_chunks() -> Result<()> {
    let (from, to) = (Target::start().await?, Node::start(&[])?);
    let (from, to) = (from.client(), to.client().await?);
    let bytes = new_bytes(5 * MIB + 3);
    let blob = from.upload(bytes.clone()).await?;
    let chunks = split(from, &blob).await?;
    for chunk in &chunks {
        to.upload(from.download(chunk).await?).await?;
    }
    assert!(!to.has(&blob).await?);
    splice(&to, &blob, &chunks).await?;
    assert!(to.has(&blob).await?);
    assert!(to.download(&blob).await? == bytes);
    assert_eq!(split(&to, &blob).await?, chunks);
    splice(&to, &blob, &chunks).await?;
    Ok(())
}

#[tokio::test]
async fn chunks_of_any_size_make_up_a_blob() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for (size, chunk_bytes) in [(10, 1), (100_000, 999), (3 * MIB, 700_000), (3 * MIB, 3 * MIB)] {
        let bytes = new_bytes(size);
        let mut chunks = upload_chunks(client, &bytes, chunk_bytes).await?;
        // Empty ones, and one twice in a row, are chunks like any other.
        chunks.insert(chunks.len() / 2, empty_digest());
        let doubled: Bytes = [bytes.as_ref(), bytes.as_ref()].concat().into();
        splice(client, &digest_of(&bytes), &chunks).await?;
        splice(client, &digest_of(&doubled), &[chunks.clone(), chunks].concat()).await?;
        assert!(client.download(&digest_of(&bytes)).await? == bytes);
        assert!(client.download(&digest_of(&doubled)).await? == doubled);
    }
    splice(client, &empty_digest(), &[]).await?;
    Ok(())
}

#[tokio::test]
async fn missing_chunks_are_not_found_and_every_one_of_them_is_named() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let parts = [1, 2, 3, 4].map(|size| new_bytes(size * 1000));
    let whole = digest_of(&parts.concat());
    let chunks = parts.clone().map(|part| digest_of(&part));
    let [first, second, third, fourth] = parts;
    for part in [first, third] {
        client.upload(part).await?;
    }
    let message = refused_with(Code::NotFound, splice(client, &whole, &chunks).await)?;
    for (chunk, is_missing) in chunks.iter().zip([false, true, false, true]) {
        assert_eq!(message.contains(&chunk.hash), is_missing, "{message}");
    }
    assert!(!client.has(&whole).await?);
    for part in [second, fourth] {
        client.upload(part).await?;
    }
    splice(client, &whole, &chunks).await?;
    Ok(())
}

#[tokio::test]
async fn chunks_that_do_not_make_up_the_blob_are_refused_and_nothing_is_held() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for size in [1000, 200_000] {
        let bytes = new_bytes(3 * size);
        let blob = digest_of(&bytes);
        let chunks = upload_chunks(client, &bytes, size).await?;
        let [a, b, c] = chunks.as_slice() else { anyhow::bail!("not three chunks") };
        let stranger = client.upload(new_bytes(size)).await?;
        for wrong in [vec![b, a, c], vec![a, b, b], vec![a, b, &stranger], vec![a, b], vec![a, b, c, a], vec![]] {
            let wrong: Vec<Digest> = wrong.into_iter().cloned().collect();
            let message = refused_with(Code::InvalidArgument, splice(client, &blob, &wrong).await)?;
            assert!(message.contains(&blob.hash), "{message}");
            assert!(!client.has(&blob).await?);
        }
        let other = Digest { hash: digest_of(b"other").hash, ..blob.clone() };
        refused_with(Code::InvalidArgument, splice(client, &other, &chunks).await)?;
        assert!(!client.has(&other).await?);
        splice(client, &blob, &chunks).await?;
    }
    Ok(())
}

#[tokio::test]
async fn sizes_of_chunks_that_add_up_past_all_numbers_are_refused_and_not_wrapped() -> Result<()> {
    let target = Target::start().await?;
    let chunk = |size_bytes| Digest { size_bytes, ..digest_of(b"x") };
    let chunks = [chunk(i64::MAX), chunk(i64::MAX), chunk(12)];
    let blob = Digest { size_bytes: 10, ..digest_of(b"y") };
    refused_with(Code::InvalidArgument, splice(target.client(), &blob, &chunks).await)?;
    Ok(())
}

#[tokio::test]
async fn a_blob_that_is_here_answers_at_once_and_says_if_chunks_of_it_are_not() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let bytes = new_bytes(3 * MIB);
    let blob = client.upload(bytes.clone()).await?;
    let chunks: Vec<Digest> = bytes.chunks(MIB).map(digest_of).collect();
    let message = refused_with(Code::AlreadyExists, splice(client, &blob, &chunks).await)?;
    assert!(chunks.iter().all(|chunk| message.contains(&chunk.hash)), "{message}");
    upload_chunks(client, &bytes, MIB).await?;
    splice(client, &blob, &chunks).await?;
    Ok(())
}

#[tokio::test]
async fn malformed_requests_are_refused() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let good = client.upload(new_bytes(10)).await?;
    let malformed = Digest { hash: "abc".into(), size_bytes: 10 };
    refused_with(Code::InvalidArgument, split_with(client, SplitBlobRequest::default()).await)?;
    refused_with(Code::InvalidArgument, split(client, &malformed).await)?;
    let request = SplitBlobRequest { digest_function: 8, ..split_request(&good) };
    refused_with(Code::InvalidArgument, split_with(client, request).await)?;
    refused_with(Code::InvalidArgument, splice_with(client, SpliceBlobRequest::default()).await)?;
    refused_with(Code::InvalidArgument, splice(client, &malformed, std::slice::from_ref(&good)).await)?;
    refused_with(Code::InvalidArgument, splice(client, &good, std::slice::from_ref(&malformed)).await)?;
    let sha1 = Digest { hash: "da39a3ee5e6b4b0d3255bfef95601890afd80709".into(), size_bytes: 10 };
    refused_with(Code::InvalidArgument, splice(client, &good, &[sha1]).await)?;
    let request = SpliceBlobRequest { digest_function: 8, ..splice_request(&good, std::slice::from_ref(&good)) };
    refused_with(Code::InvalidArgument, splice_with(client, request).await)?;
    Ok(())
}

// === what is remembered ===

#[tokio::test]
async fn the_clients_own_chunks_are_remembered_across_kill_minus_nine() -> Result<()> {
    let mut node = Node::start(&[])?;
    let client = node.client().await?;
    let bytes = new_bytes(4 * MIB);
    let blob = digest_of(&bytes);
    let chunks = upload_chunks(&client, &bytes, 300_000).await?;
    splice(&client, &blob, &chunks).await?;
    assert_eq!(split(&client, &blob).await?, chunks);
    node.kill9_and_restart(&[])?;
    let client = node.client().await?;
    assert!(client.download(&blob).await? == bytes);
    assert_eq!(split(&client, &blob).await?, chunks);
    // Those were not cut by FastCDC; whoever wishes for that gets chunks that were.
    let request = SplitBlobRequest { chunking_function: Chunking::FastCdc2020 as i32, ..split_request(&blob) };
    let answer = split_with(&client, request).await?;
    assert_eq!(answer.chunking_function, Chunking::FastCdc2020 as i32);
    assert!(answer.chunk_digests != chunks && joined(&client, &answer.chunk_digests).await? == bytes);
    Ok(())
}

#[tokio::test]
async fn a_list_of_chunks_that_is_long_for_its_blob_is_not_remembered() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let bytes = new_bytes(2 * MIB + 1);
    let blob = digest_of(&bytes);
    let chunks = upload_chunks(client, &bytes, 20_000).await?;
    splice(client, &blob, &chunks).await?;
    let cut = split(client, &blob).await?;
    assert!(cut.len() < chunks.len() && joined(client, &cut).await? == bytes);
    Ok(())
}

// === bounded ===

#[tokio::test(flavor = "multi_thread")]
async fn a_large_blob_is_cut_and_joined_in_bounded_memory() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let server = target.node()?.server();
    // Once, so that the server has allocated what it needs for any blob.
    let blob = client.upload(new_bytes(8 * MIB)).await?;
    split(client, &blob).await?;
    let bytes = new_bytes(LARGE_BYTES);
    let blob = client.upload(bytes.clone()).await?;
    let before = server.rss_bytes()?;
    server.reset_peak_rss()?;
    let chunks = split(client, &blob).await?;
    let doubled = digest_of(&[bytes.as_ref(), bytes.as_ref()].concat());
    splice(client, &doubled, &[chunks.clone(), chunks].concat()).await?;
    let growth_bytes = server.peak_rss_bytes()?.saturating_sub(before);
    ensure!(growth_bytes < GROWTH_BYTES_MAX, "it grew by {growth_bytes} bytes");
    Ok(())
}
