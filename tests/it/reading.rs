//! ByteStream: reading parts of blobs.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use casbah_tests::clients::bytestream::ReadRequest;
use casbah_tests::clients::{Client, digest_of, empty_digest, refused_with};
use casbah_tests::deadline::within_deadline;
use casbah_tests::load::new_bytes;
use casbah_tests::target::Target;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use prost::Message as _;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Service as _, ServiceExt as _};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn every_part_of_a_blob_is_read_exactly() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    // One that is small to a store and one that is large.
    for size in [1000, 3 * MIB + 17] {
        let blob = new_bytes(size);
        let name = client.blob_name(&client.upload(blob.clone()).await?);
        let middle = size / 2;
        for offset in [0, 1, 63, 64, 511, middle - 1, middle, size - 2, size - 1, size] {
            for limit in [0, 1, 2, 64, 511, middle, size - 1, size, size + 1, usize::MAX >> 1] {
                let end = if limit == 0 { size } else { size.min(offset.saturating_add(limit)) };
                let read = client.read(&name, offset.try_into()?, limit.try_into()?).await?;
                assert!(read == blob[offset..end], "offset {offset}, limit {limit}: {} bytes", read.len());
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn reading_from_the_very_end_gives_nothing_and_no_error() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let name = client.blob_name(&client.upload(new_bytes(100)).await?);
    assert_eq!(client.read(&name, 100, 0).await?, b"");
    assert_eq!(client.read(&name, 100, 10).await?, b"");
    assert_eq!(client.read(&client.blob_name(&empty_digest()), 0, 10).await?, b"");
    Ok(())
}

#[tokio::test]
async fn an_offset_outside_of_the_blob_is_out_of_range() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let name = client.blob_name(&client.upload(new_bytes(100)).await?);
    // The API's comment: "A `read_offset` that is negative or greater than the size of the resource".
    for offset in [101, 1 << 40, i64::MAX, -1, i64::MIN] {
        for limit in [0, 1] {
            refused_with(Code::OutOfRange, client.read(&name, offset, limit).await)
                .with_context(|| format!("offset {offset}, limit {limit}"))?;
        }
    }
    refused_with(Code::OutOfRange, client.read(&client.blob_name(&empty_digest()), 1, 0).await)?;
    Ok(())
}

#[tokio::test]
async fn a_negative_limit_is_an_invalid_argument() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let name = client.blob_name(&client.upload(new_bytes(100)).await?);
    for limit in [-1, i64::MIN] {
        refused_with(Code::InvalidArgument, client.read(&name, 0, limit).await)?;
    }
    Ok(())
}

#[tokio::test]
async fn an_absent_blob_is_not_found_by_name() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let digest = digest_of(&new_bytes(100));
    for (offset, limit) in [(0, 0), (50, 0), (0, 10), (100, 0)] {
        let message = refused_with(Code::NotFound, client.read(&client.blob_name(&digest), offset, limit).await)?;
        assert!(message.contains(&digest.hash), "{message}");
    }
    Ok(())
}

#[tokio::test]
async fn a_name_that_names_no_blob_cannot_be_read() -> Result<()> {
    let target = Target::start().await?;
    let hash = digest_of(b"12345").hash;
    for name in [
        String::new(),
        "/".to_owned(),
        "blobs".to_owned(),
        "blobs/".to_owned(),
        hash.clone(),
        format!("{hash}/5"),
        format!("blob/{hash}/5"),
        format!("Blobs/{hash}/5"),
        format!("blobs/{hash}"),
        format!("blobs/{hash}/"),
        format!("blobs/{hash}/x"),
        format!("blobs/{hash}/-5"),
        format!("blobs/{hash}/+5"),
        format!("blobs/{hash}/5.0"),
        format!("blobs/{hash}/0x5"),
        format!("blobs/{hash}/ 5"),
        format!("blobs/{hash}/9223372036854775808"),
        format!("blobs/{hash}/99999999999999999999999"),
        format!("blobs//{hash}/5"),
        format!("blobs/{}/5", &hash[1..]),
        format!("blobs/{hash}0/5"),
        format!("blobs/{}/5", hash.to_uppercase()),
        format!("blobs/{}/5", "g".repeat(64)),
        format!("blobs/{}/5", "é".repeat(32)),
        "blobs/../../../../etc/passwd/5".to_owned(),
        format!("blobs/{hash}/5/more"),
        format!("blobs/md5/{hash}/5"),
        format!("blobs/murmur3/{hash}/5"),
        format!("a//blobs/{hash}/5"),
        format!("actions/blobs/{hash}/5"),
        format!("uploads/5a9e5d4e-2d4a-4f8e-9d3c-0f3b2a1c4d5e/blobs/{hash}/5"),
        format!("{}/blobs/{hash}/5", "i".repeat(100_000)),
    ] {
        let shown: String = name.chars().take(80).collect();
        let message = refused_with(Code::InvalidArgument, target.client().read(&name, 0, 0).await)
            .with_context(|| format!("read {shown:?}"))?;
        assert!(message.contains(&shown), "{shown:?}: {message}");
    }
    Ok(())
}

#[tokio::test]
async fn a_reader_that_stops_half_way_disturbs_nobody() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob = new_bytes(16 * MIB);
    let digest = client.upload(blob.clone()).await?;
    // Pants does this.
    for _ in 0..20 {
        let request = casbah_tests::clients::bytestream::ReadRequest {
            resource_name: client.blob_name(&digest),
            ..Default::default()
        };
        let mut stream = client.bytestream().read(request).await?.into_inner();
        assert!(stream.message().await?.is_some());
    }
    assert!(within_deadline("a whole read", client.download(&digest)).await?? == blob);
    Ok(())
}

/// The status of a read whose request is these bytes.
async fn read_with(client: &Client, request: &[u8], encoding: Option<&str>) -> Result<Status> {
    let body = Body::new(Full::new(Bytes::copy_from_slice(request)));
    let request = Request::post("/google.bytestream.ByteStream/Read").header("content-type", "application/grpc");
    let request = match encoding {
        Some(encoding) => request.header("grpc-encoding", encoding),
        None => request,
    };
    let response = client.channel().ready().await?.call(request.header("te", "trailers").body(body)?).await?;
    if let Some(status) = Status::from_header_map(response.headers()) {
        return Ok(status);
    }
    let trailers = response.into_body().collect().await?.trailers().cloned();
    trailers.as_ref().and_then(Status::from_header_map).context("no status")
}

#[tokio::test]
async fn a_request_that_is_none_is_refused_with_a_reason() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let name = client.blob_name(&client.upload(new_bytes(100)).await?);
    let message = ReadRequest { resource_name: name, ..ReadRequest::default() }.encode_to_vec();
    let framed = |flag: u8, message: &[u8]| {
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        [&[flag][..], &length.to_be_bytes(), message].concat()
    };
    let whole = framed(0, &message);
    assert_eq!(read_with(client, &whole, None).await?.code(), Code::Ok);
    assert_eq!(read_with(client, &whole, Some("identity")).await?.code(), Code::Ok);
    for (what, request, encoding, code) in [
        ("compressed", framed(1, &message), Some("gzip"), Code::Unimplemented),
        ("compressed, and nobody says how", framed(1, &message), None, Code::InvalidArgument),
        ("nothing", Vec::new(), None, Code::InvalidArgument),
        ("two", [&whole[..], &whole].concat(), None, Code::InvalidArgument),
        ("half of one", whole[..whole.len() - 1].to_vec(), None, Code::Cancelled),
        ("no message", framed(0, &[0xff; 20]), None, Code::InvalidArgument),
        ("a very long one", [0, 0xff, 0xff, 0xff, 0xff, 0x0a].to_vec(), None, Code::InvalidArgument),
    ] {
        let status = read_with(client, &request, encoding).await.with_context(|| what.to_owned())?;
        assert_eq!(status.code(), code, "{what}: {status:?}");
        assert!(!status.message().is_empty(), "{what}");
    }
    Ok(())
}
