//! ContentAddressableStorage: finding, and batches of small blobs.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use casbah_tests::clients::reapi::{
    BatchReadBlobsRequest, BatchUpdateBlobsRequest, Digest, FindMissingBlobsRequest, batch_update_blobs_request,
};
use casbah_tests::clients::{Client, digest_of, empty_digest, refused_with};
use casbah_tests::load::new_bytes;
use casbah_tests::target::Target;
use tonic::Code;

const INVALID_ARGUMENT: i32 = Code::InvalidArgument as i32;
const NOT_FOUND: i32 = Code::NotFound as i32;

/// Digests that are not ones.
fn malformed_digests() -> Vec<Digest> {
    let good = digest_of(b"good");
    let with_hash = |hash: String| Digest { hash, size_bytes: 4 };
    vec![
        with_hash(String::new()),
        with_hash("abc".to_owned()),
        with_hash(good.hash.chars().skip(1).collect()),
        with_hash(format!("{}0", good.hash)),
        with_hash(good.hash.to_uppercase()),
        with_hash(good.hash.replace(|_: char| true, "g")),
        with_hash(format!("../{}", good.hash.chars().skip(3).collect::<String>())),
        Digest { hash: good.hash, size_bytes: -1 },
    ]
}

async fn max_batch_bytes(client: &Client) -> Result<usize> {
    let cache = client.capabilities().await?.cache_capabilities.context("no cache capabilities")?;
    Ok(cache.max_batch_total_size_bytes.try_into()?)
}

// === FindMissingBlobs ===

/// "Servers MUST behave as though empty blobs are always available, even if they have not been uploaded."
#[tokio::test]
async fn the_empty_blob_is_always_present() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    assert!(client.has(&empty_digest()).await?);
    assert_eq!(client.download(&empty_digest()).await?, b"");
    let read = client.batch_read(&[empty_digest()]).await?;
    assert_eq!((read[0].status.clone().unwrap_or_default().code, read[0].data.len()), (0, 0));
    Ok(())
}

/// The answer is "a list of the blobs requested *not* present in the storage", and "there are no method-specific errors".
#[tokio::test]
async fn exactly_the_absent_ones_of_ten_thousand_digests_are_missing() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blobs: Vec<Bytes> = (0..200).map(|_| new_bytes(100)).collect();
    let uploads = blobs.iter().map(|blob| (digest_of(blob), blob.clone())).collect();
    for answer in client.batch_update(uploads).await? {
        assert_eq!(answer.status.unwrap_or_default().code, 0);
    }
    // Every fiftieth is present.
    let absent = (0..9800).map(|_| digest_of(&new_bytes(16)));
    let mut asked: Vec<Digest> = absent.collect();
    let expected = asked.clone();
    for (place, blob) in blobs.iter().enumerate() {
        asked.insert(place * 50, digest_of(blob));
    }
    assert_eq!(asked.len(), 10_000);
    let mut missing = client.find_missing(&asked).await?;
    let mut expected = expected;
    missing.sort_by(|a, b| a.hash.cmp(&b.hash));
    expected.sort_by(|a, b| a.hash.cmp(&b.hash));
    assert!(missing == expected, "{} missing instead of {}", missing.len(), expected.len());
    Ok(())
}

#[tokio::test]
async fn a_digest_asked_for_twice_is_answered() -> Result<()> {
    let target = Target::start().await?;
    let absent = digest_of(&new_bytes(10));
    let missing = target.client().find_missing(&[absent.clone(), absent.clone(), empty_digest()]).await?;
    assert!(!missing.is_empty() && missing.iter().all(|digest| *digest == absent), "{missing:?}");
    Ok(())
}

#[tokio::test]
async fn no_digests_lack_nothing() -> Result<()> {
    let target = Target::start().await?;
    assert_eq!(target.client().find_missing(&[]).await?, []);
    Ok(())
}

/// A blob is addressed by its hash *and* `size_bytes`, "the size of the blob, in bytes".
#[tokio::test]
async fn the_right_hash_with_another_size_is_another_blob() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let digest = client.upload(new_bytes(1000)).await?;
    for size_bytes in [0, 1, 999, 1001, i64::MAX] {
        let other = Digest { size_bytes, ..digest.clone() };
        assert!(!client.has(&other).await?, "{size_bytes}");
        refused_with(Code::NotFound, client.download(&other).await)?;
        // The largest is more than one batch may have.
        if size_bytes < i64::MAX {
            let read = client.batch_read(std::slice::from_ref(&other)).await?;
            assert_eq!(read[0].status.clone().context("no status")?.code, NOT_FOUND);
        }
    }
    Ok(())
}

/// A hash is "a lowercase hexadecimal string, padded with leading zeroes up to the hash function length".
#[tokio::test]
async fn a_malformed_digest_is_refused_by_name_whatever_stands_beside_it() -> Result<()> {
    let target = Target::start().await?;
    for malformed in malformed_digests() {
        let asked = [digest_of(b"a neighbour"), malformed.clone(), empty_digest()];
        let message = refused_with(Code::InvalidArgument, target.client().find_missing(&asked).await)?;
        assert!(message.contains(&malformed.hash), "{malformed:?}: {message}");
    }
    Ok(())
}

/// "the client MAY leave this field unset. In that case the server SHOULD infer the digest function using the length".
#[tokio::test]
async fn a_client_that_names_no_digest_function_is_understood_by_the_length_of_its_hashes() -> Result<()> {
    let target = Target::start().await?;
    let absent = digest_of(&new_bytes(10));
    let request = FindMissingBlobsRequest { blob_digests: vec![absent.clone()], ..Default::default() };
    let missing = target.client().cas().find_missing_blobs(request).await?.into_inner().missing_blob_digests;
    assert_eq!(missing, [absent]);
    Ok(())
}

// === BatchUpdateBlobs ===

/// The call is "equivalent to calling a Bytestream `Write` request on each individual blob, in parallel".
#[tokio::test]
async fn a_batch_is_held_and_comes_back_byte_for_byte() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blobs: Vec<Bytes> = [0, 1, 2, 100, 4096, 65_536, 262_144].map(new_bytes).to_vec();
    let digests: Vec<Digest> = blobs.iter().map(|blob| digest_of(blob)).collect();
    let answers = client.batch_update(digests.iter().cloned().zip(blobs.iter().cloned()).collect()).await?;
    assert_eq!(answers.len(), blobs.len());
    for answer in answers {
        assert_eq!(answer.status.unwrap_or_default().code, 0, "{:?}", answer.digest);
    }
    assert_eq!(client.find_missing(&digests).await?, []);
    let answers = client.batch_read(&digests).await?;
    assert_eq!(answers.len(), blobs.len());
    for (digest, blob) in digests.iter().zip(&blobs) {
        let answer = answers.iter().find(|answer| answer.digest.as_ref() == Some(digest)).context("no answer")?;
        assert_eq!(answer.status.clone().unwrap_or_default().code, 0);
        assert_eq!(answer.data, *blob);
        assert_eq!(client.download(digest).await?, *blob);
    }
    Ok(())
}

/// "The requests may succeed or fail independently", and a digest that "does not match the provided data" is
/// `INVALID_ARGUMENT`.
#[tokio::test]
async fn one_bad_blob_fails_alone_and_nothing_of_it_is_held() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let good = [new_bytes(500), new_bytes(5000)];
    let bytes = new_bytes(1000);
    let truth = digest_of(&bytes);
    let bad = [
        ("the hash of other bytes", digest_of(&new_bytes(1000)), bytes.clone()),
        ("a size too small", Digest { size_bytes: 999, ..truth.clone() }, bytes.clone()),
        ("a size too large", Digest { size_bytes: 1001, ..truth.clone() }, bytes.clone()),
        ("no bytes", truth.clone(), Bytes::new()),
        ("bytes for the empty blob", empty_digest(), bytes.clone()),
    ];
    for (what, digest, data) in bad {
        let batch = vec![
            (digest_of(&good[0]), good[0].clone()),
            (digest.clone(), data),
            (digest_of(&good[1]), good[1].clone()),
        ];
        let answers = client.batch_update(batch).await.with_context(|| what.to_owned())?;
        for answer in answers {
            let status = answer.status.unwrap_or_default();
            if answer.digest.as_ref() == Some(&digest) {
                assert_eq!(status.code, INVALID_ARGUMENT, "{what}: {status:?}");
                assert!(status.message.contains(&digest.hash), "{what}: {status:?}");
            } else {
                assert_eq!(status.code, 0, "{what}: {status:?}");
            }
        }
        assert_eq!(client.find_missing(&[digest_of(&good[0]), digest_of(&good[1])]).await?, [], "{what}");
        if digest != empty_digest() {
            assert!(!client.has(&digest).await?, "{what}");
        }
        assert!(!client.has(&truth).await?, "{what}");
    }
    assert_eq!(client.download(&empty_digest()).await?, b"");
    Ok(())
}

#[tokio::test]
async fn a_malformed_digest_in_a_batch_leaves_its_neighbours_alone_or_refuses_the_call_by_name() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for malformed in malformed_digests() {
        let neighbour = new_bytes(100);
        let batch = vec![(malformed.clone(), Bytes::from_static(b"good")), (digest_of(&neighbour), neighbour.clone())];
        match client.batch_update(batch).await {
            Err(status) => {
                assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
                assert!(status.message().contains(&malformed.hash), "{status:?}");
            }
            Ok(answers) => {
                let of = |digest: &Digest| answers.iter().find(|answer| answer.digest.as_ref() == Some(digest));
                let bad = of(&malformed).and_then(|answer| answer.status.clone()).context("no status")?;
                assert_eq!(bad.code, INVALID_ARGUMENT, "{bad:?}");
                assert!(bad.message.contains(&malformed.hash), "{bad:?}");
                let good = of(&digest_of(&neighbour)).context("the neighbour is not answered")?;
                assert_eq!(good.status.clone().unwrap_or_default().code, 0);
                assert!(client.has(&digest_of(&neighbour)).await?);
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_same_blob_twice_in_a_batch_is_no_error() -> Result<()> {
    let target = Target::start().await?;
    let blob = new_bytes(3000);
    let batch = vec![(digest_of(&blob), blob.clone()), (digest_of(&blob), blob.clone())];
    for _ in 0..2 {
        for answer in target.client().batch_update(batch.clone()).await? {
            assert_eq!(answer.status.unwrap_or_default().code, 0);
        }
    }
    assert_eq!(target.client().download(&digest_of(&blob)).await?, blob);
    Ok(())
}

/// `max_batch_total_size_bytes` is the "maximum total size of blobs": what a message adds to them is not part of it.
#[tokio::test]
async fn a_batch_of_the_advertised_size_fits_with_all_its_overhead() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let max_bytes = max_batch_bytes(client).await?;
    // As many blobs as a client would put into one batch, so that digests and framing weigh in.
    let blob_bytes = max_bytes / 4096;
    let mut blobs: Vec<Bytes> = (0..4095).map(|_| new_bytes(blob_bytes)).collect();
    blobs.push(new_bytes(max_bytes - 4095 * blob_bytes));
    let digests: Vec<Digest> = blobs.iter().map(|blob| digest_of(blob)).collect();
    let answers = client.batch_update(digests.iter().cloned().zip(blobs).collect()).await?;
    assert_eq!(answers.len(), 4096);
    assert!(answers.iter().all(|answer| answer.status.clone().unwrap_or_default().code == 0));
    let read = client.batch_read(&digests).await?;
    assert_eq!(read.len(), 4096);
    assert_eq!(read.iter().map(|answer| answer.data.len()).sum::<usize>(), max_bytes);
    Ok(())
}

/// `INVALID_ARGUMENT`: "The client attempted to upload more than the server supported limit", and the same for reading.
#[tokio::test]
async fn a_batch_over_the_advertised_size_is_refused_whole() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let max_bytes = max_batch_bytes(client).await?;
    let blobs = [new_bytes(max_bytes / 2), new_bytes(max_bytes - max_bytes / 2 + 1)];
    let batch = blobs.iter().map(|blob| (digest_of(blob), blob.clone())).collect();
    refused_with(Code::InvalidArgument, client.batch_update(batch).await)?;
    for blob in &blobs {
        assert!(!client.has(&digest_of(blob)).await?);
        client.upload(blob.clone()).await?;
    }
    let digests = blobs.map(|blob| digest_of(&blob));
    refused_with(Code::InvalidArgument, client.batch_read(&digests).await)?;
    assert_eq!(client.batch_read(&digests[..1]).await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn sizes_that_add_up_past_all_numbers_are_refused_and_not_wrapped() -> Result<()> {
    let target = Target::start().await?;
    let digests: Vec<Digest> = (0..3).map(|_| Digest { size_bytes: i64::MAX, ..digest_of(&new_bytes(10)) }).collect();
    refused_with(Code::InvalidArgument, target.client().batch_read(&digests).await)?;
    Ok(())
}

#[tokio::test]
async fn an_update_without_a_digest_is_refused() -> Result<()> {
    let target = Target::start().await?;
    let requests = vec![batch_update_blobs_request::Request { digest: None, ..Default::default() }];
    let request = BatchUpdateBlobsRequest { requests, ..Default::default() };
    match target.client().cas().batch_update_blobs(request).await {
        Err(status) => assert_eq!(status.code(), Code::InvalidArgument, "{status:?}"),
        Ok(answer) => {
            let status = answer.into_inner().responses.into_iter().next().and_then(|answer| answer.status);
            assert_eq!(status.context("no status")?.code, INVALID_ARGUMENT);
        }
    }
    Ok(())
}

// === BatchReadBlobs ===

/// "Every error on individual read will be returned in the corresponding digest status."
#[tokio::test]
async fn an_absent_blob_is_not_found_and_its_neighbours_are_read() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(1000);
    let present = client.upload(blob.clone()).await?;
    let absent = digest_of(&new_bytes(1000));
    for order in [[present.clone(), absent.clone()], [absent.clone(), present.clone()]] {
        let answers = client.batch_read(&order).await?;
        assert_eq!(answers.len(), 2);
        for answer in answers {
            let status = answer.status.unwrap_or_default();
            if answer.digest.as_ref() == Some(&present) {
                assert_eq!((status.code, answer.data.as_ref()), (0, blob.as_ref()));
            } else {
                assert_eq!(status.code, NOT_FOUND, "{status:?}");
                assert!(status.message.contains(&absent.hash), "{status:?}");
                assert!(answer.data.is_empty());
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn reading_a_malformed_digest_is_an_invalid_argument_that_names_it() -> Result<()> {
    let target = Target::start().await?;
    for malformed in malformed_digests() {
        match target.client().batch_read(std::slice::from_ref(&malformed)).await {
            Err(status) => {
                assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
                assert!(status.message().contains(&malformed.hash), "{status:?}");
            }
            Ok(answers) => {
                let status = answers.into_iter().next().and_then(|answer| answer.status).context("no status")?;
                assert_eq!(status.code, INVALID_ARGUMENT, "{status:?}");
                assert!(status.message.contains(&malformed.hash), "{status:?}");
            }
        }
    }
    Ok(())
}

/// "The responses to the requests": one for each, also for the same.
#[tokio::test]
async fn a_digest_that_a_batch_names_twice_is_read_twice() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(1000);
    let digest = client.upload(blob.clone()).await?;
    let answers = client.batch_read(&[digest.clone(), digest.clone()]).await?;
    assert_eq!(answers.len(), 2);
    assert!(answers.iter().all(|answer| answer.digest.as_ref() == Some(&digest) && answer.data == blob), "{answers:?}");
    Ok(())
}

/// The format "must be `IDENTITY`/unspecified, or one of the compressors advertised"; "the requests may succeed or fail
/// independently".
#[tokio::test]
async fn a_blob_in_a_form_that_is_not_advertised_is_refused_and_its_neighbours_are_held() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let advertised = client.capabilities().await?.cache_capabilities.context("no cache capabilities")?;
    for compressor in (1..=4).filter(|it| !advertised.supported_batch_update_compressors.contains(it)) {
        let blobs = [new_bytes(100), new_bytes(100)];
        let request = |blob: &Bytes, compressor| batch_update_blobs_request::Request {
            digest: Some(digest_of(blob)),
            data: blob.clone(),
            compressor,
        };
        let requests = vec![request(&blobs[0], compressor), request(&blobs[1], 0)];
        let update = BatchUpdateBlobsRequest { requests, ..Default::default() };
        let answers = client.cas().batch_update_blobs(update).await?.into_inner().responses;
        let codes: Vec<i32> = answers.into_iter().map(|answer| answer.status.unwrap_or_default().code).collect();
        assert_eq!(codes, [INVALID_ARGUMENT, 0], "compressor {compressor}");
        assert!(!client.has(&digest_of(&blobs[0])).await?, "compressor {compressor}");
        assert!(client.has(&digest_of(&blobs[1])).await?, "compressor {compressor}");
    }
    Ok(())
}

/// "`IDENTITY` is always allowed even if not specified here", and no other answer is when nothing else was accepted.
#[tokio::test]
async fn a_reader_that_accepts_forms_unknown_to_the_server_gets_the_blob_as_it_is() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(5000);
    let digests = vec![client.upload(blob.clone()).await?];
    // Deflate, brotli, and what is not invented yet.
    for acceptable_compressors in [vec![], vec![2], vec![3], vec![77, 2]] {
        let request = BatchReadBlobsRequest { digests: digests.clone(), acceptable_compressors, ..Default::default() };
        let answers = client.cas().batch_read_blobs(request).await?.into_inner().responses;
        assert_eq!((answers[0].compressor, &answers[0].data), (0, &blob));
    }
    Ok(())
}
