//! ContentAddressableStorage: find, and small blobs in batches.

use std::collections::HashSet;
use std::pin::Pin;

use bytes::Bytes;
use casbah_cluster::digest::{Digest, DigestError, DigestFunction};
use casbah_proto::build::bazel::remote::execution::v2 as api;
use futures_util::stream::{self, Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use crate::observe::counters::COUNTERS;
use crate::observe::labels::Presence;
use crate::route::{self, Blobs};
use crate::serve::chunks::Chunks;
use crate::serve::compression::{Compression, Form, OFFERED};
use crate::serve::instances::Instances;
use crate::serve::{status_map, tree};

/// Bytes of blobs in one batch, as Capabilities advertises it. With the digests and the frame around them a full batch
/// stays far below [`MAX_MESSAGE_BYTES`].
pub const MAX_BATCH_BYTES: u64 = 4 << 20;

/// The largest gRPC message that is taken in: a full batch of the smallest blobs (4 MiB of data, and a digest of
/// some 80 bytes for each), or a FindMissingBlobs call of 200,000 digests.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Blobs of one batch that are compressed or decompressed at once, so that all cores have some.
const BATCH_PARALLEL: usize = 16;

/// Blobs of this size and more are compressed for who takes them so: a header and a call of the encoder are not worth less.
const COMPRESSED_BYTES_MIN: usize = 512;

/// The CAS service.
pub struct Cas {
    /// Where the blobs are.
    pub blobs: Blobs,
    /// Blobs in chunks.
    pub chunks: Chunks,
    /// The instances that are served.
    pub instances: Instances,
    /// For those that travel compressed.
    pub compression: Compression,
}

/// The function that a request's `digest_function` stands for. Unset, it is what the length of the request's hashes
/// implies, of which the first is looked at: all are of one function, and another one is then a malformed digest.
///
/// # Errors
/// `INVALID_ARGUMENT` for a function that is not computed here.
pub(super) fn function_of(number: i32, digest: Option<&api::Digest>) -> Result<DigestFunction, Status> {
    if number == api::digest_function::Value::Unknown as i32 {
        // A hash of no function's length is refused by name when its digest is made.
        let implied = digest.and_then(|digest| DigestFunction::implied_by(digest.hash.len()));
        return Ok(implied.unwrap_or(DigestFunction::Sha256));
    }
    u8::try_from(number).ok().and_then(DigestFunction::from_number).ok_or_else(|| {
        let name = api::digest_function::Value::try_from(number).map_or("unknown", |value| value.as_str_name());
        let offered = DigestFunction::ALL.iter().map(|function| function.name().to_uppercase());
        let offered = offered.collect::<Vec<_>>().join(", ");
        Status::invalid_argument(format!("the digest function {number} ({name}) is not offered; use one of {offered}"))
    })
}

/// The digest in a message.
///
/// # Errors
/// [`DigestError`] when it is malformed.
pub(super) fn digest_of(function: DigestFunction, digest: &api::Digest) -> Result<Digest, DigestError> {
    Digest::new(function, &digest.hash, digest.size_bytes)
}

/// The digest as messages carry it.
pub(super) fn to_message(digest: &Digest) -> api::Digest {
    api::Digest {
        hash: digest.hash_hex(),
        size_bytes: i64::try_from(digest.size_bytes()).expect("a digest's size was made from an i64"),
    }
}

fn check_batch(total_bytes: u64) -> Result<(), Status> {
    if total_bytes > MAX_BATCH_BYTES {
        return Err(Status::invalid_argument(format!(
            "the blobs of this batch have {total_bytes} bytes together, more than the {MAX_BATCH_BYTES} that one \
             batch may have; send fewer, or use ByteStream"
        )));
    }
    Ok(())
}

/// What a blob counts for in a batch: its bytes as they came, or as they are to become.
fn batch_bytes(blob: &api::batch_update_blobs_request::Request) -> u64 {
    let came = blob.data.len() as u64;
    match (Form::by_number(blob.compressor), &blob.digest) {
        (Some(Form::Zstd), Some(digest)) => came.max(u64::try_from(digest.size_bytes).unwrap_or(0)),
        _ => came,
    }
}

#[tonic::async_trait]
impl api::content_addressable_storage_server::ContentAddressableStorage for Cas {
    async fn find_missing_blobs(
        &self,
        request: Request<api::FindMissingBlobsRequest>,
    ) -> Result<Response<api::FindMissingBlobsResponse>, Status> {
        let request = request.into_inner();
        self.instances.check(&request.instance_name)?;
        let function = function_of(request.digest_function, request.blob_digests.first())?;
        let mut seen = HashSet::with_capacity(request.blob_digests.len());
        let mut digests = Vec::with_capacity(request.blob_digests.len());
        for digest in &request.blob_digests {
            let digest = digest_of(function, digest).map_err(|error| status_map::digest(&error))?;
            if seen.insert(digest) {
                digests.push(digest);
            }
        }
        let present = self.blobs.find(&digests).await;
        let missing = digests.iter().zip(present).filter(|(_, present)| !present);
        let missing_blob_digests: Vec<_> = missing.map(|(digest, _)| to_message(digest)).collect();
        let missing = missing_blob_digests.len();
        COUNTERS.find_missing.add(Presence::Missing as usize, missing as u64);
        COUNTERS.find_missing.add(Presence::Present as usize, (digests.len() - missing) as u64);
        Ok(Response::new(api::FindMissingBlobsResponse { missing_blob_digests }))
    }

    async fn batch_update_blobs(
        &self,
        request: Request<api::BatchUpdateBlobsRequest>,
    ) -> Result<Response<api::BatchUpdateBlobsResponse>, Status> {
        let request = request.into_inner();
        self.instances.check(&request.instance_name)?;
        let first = request.requests.iter().find_map(|blob| blob.digest.as_ref());
        let function = function_of(request.digest_function, first)?;
        check_batch(request.requests.iter().map(batch_bytes).fold(0, u64::saturating_add))?;
        let prepared: Vec<_> = stream::iter(request.requests)
            .map(|blob| async move { (blob.digest.clone(), self.prepare(function, blob).await) })
            .buffered(BATCH_PARALLEL)
            .collect()
            .await;
        let mut blobs = Vec::with_capacity(prepared.len());
        let mut outcomes = Vec::with_capacity(prepared.len());
        for (digest, prepared) in prepared {
            outcomes.push((digest, prepared.map(|blob| blobs.push(blob))));
        }
        let mut puts = self.blobs.put_many(blobs).await.into_iter();
        let responses = outcomes.into_iter().map(|(digest, prepared)| {
            let mut put = || puts.next().expect("each blob that is put has an outcome");
            let outcome = prepared.and_then(|()| put().map_err(|error| status_map::write(&error)));
            api::batch_update_blobs_response::Response { digest, status: Some(status_map::in_message(outcome)) }
        });
        let responses = responses.collect();
        Ok(Response::new(api::BatchUpdateBlobsResponse { responses }))
    }

    async fn batch_read_blobs(
        &self,
        request: Request<api::BatchReadBlobsRequest>,
    ) -> Result<Response<api::BatchReadBlobsResponse>, Status> {
        let request = request.into_inner();
        self.instances.check(&request.instance_name)?;
        let function = function_of(request.digest_function, request.digests.first())?;
        let sizes = request.digests.iter().map(|digest| u64::try_from(digest.size_bytes).unwrap_or(0));
        check_batch(sizes.fold(0, u64::saturating_add))?;
        // Others that the client would take are not offered, and what it gets as it is, it has to take.
        let takes_zstd = request.acceptable_compressors.contains(&Form::Zstd.number());
        let named: Vec<_> = request.digests.iter().map(|digest| digest_of(function, digest)).collect();
        let wanted: Vec<Digest> = named.iter().filter_map(|digest| digest.as_ref().ok().copied()).collect();
        let mut read = self.blobs.get_many(&wanted, MAX_BATCH_BYTES, takes_zstd).await.into_iter();
        let read = named.into_iter().map(|digest| match digest {
            Ok(_) => read
                .next()
                .expect("each blob that is asked for has an outcome")
                .map_err(|error| status_map::read(&error)),
            Err(error) => Err(status_map::digest(&error)),
        });
        let responses = stream::iter(request.digests.into_iter().zip(read.collect::<Vec<_>>()))
            .map(|(digest, read)| async move {
                let outcome = match read {
                    Ok((blob, route::Form::Identity)) if takes_zstd => self.compressed(blob).await,
                    Ok((data, form)) => Ok((data, form.into())),
                    Err(status) => Err(status),
                };
                let (data, form, outcome) = match outcome {
                    Ok((data, form)) => (data, form, Ok(())),
                    Err(status) => (Bytes::new(), Form::Identity, Err(status)),
                };
                COUNTERS.sent_bytes.add(form.encoding() as usize, data.len() as u64);
                api::batch_read_blobs_response::Response {
                    digest: Some(digest),
                    data,
                    compressor: form.number(),
                    status: Some(status_map::in_message(outcome)),
                }
            })
            .buffered(BATCH_PARALLEL)
            .collect()
            .await;
        Ok(Response::new(api::BatchReadBlobsResponse { responses }))
    }

    type GetTreeStream = Pin<Box<dyn Stream<Item = Result<api::GetTreeResponse, Status>> + Send>>;

    async fn get_tree(&self, request: Request<api::GetTreeRequest>) -> Result<Response<Self::GetTreeStream>, Status> {
        let request = request.into_inner();
        self.instances.check(&request.instance_name)?;
        let function = function_of(request.digest_function, request.root_digest.as_ref())?;
        let pages = tree::pages(self.blobs.clone(), function, request).await?;
        Ok(Response::new(Box::pin(pages)))
    }

    async fn split_blob(
        &self,
        request: Request<api::SplitBlobRequest>,
    ) -> Result<Response<api::SplitBlobResponse>, Status> {
        let request = request.into_inner();
        self.instances.check(&request.instance_name)?;
        let function = function_of(request.digest_function, request.blob_digest.as_ref())?;
        Ok(Response::new(self.chunks.split(function, request).await?))
    }

    async fn splice_blob(
        &self,
        request: Request<api::SpliceBlobRequest>,
    ) -> Result<Response<api::SpliceBlobResponse>, Status> {
        let request = request.into_inner();
        self.instances.check(&request.instance_name)?;
        let function = function_of(request.digest_function, request.blob_digest.as_ref())?;
        Ok(Response::new(self.chunks.splice(function, request).await?))
    }
}

// === impl Cas ===

impl Cas {
    /// A blob of a batch as it is to be stored. It is not verified yet.
    async fn prepare(
        &self,
        function: DigestFunction,
        blob: api::batch_update_blobs_request::Request,
    ) -> Result<(Digest, Bytes), Status> {
        let Some(form) = Form::by_number(blob.compressor) else {
            let name = api::compressor::Value::try_from(blob.compressor).map_or("unknown", |value| value.as_str_name());
            return Err(Status::invalid_argument(format!(
                "the compressor {} ({name}) is not offered; what is offered is {OFFERED}",
                blob.compressor
            )));
        };
        COUNTERS.received_bytes.add(form.encoding() as usize, blob.data.len() as u64);
        let Some(digest) = blob.digest else { return Err(Status::invalid_argument("a blob without a digest")) };
        let digest = digest_of(function, &digest).map_err(|error| status_map::digest(&error))?;
        let data = match form {
            Form::Identity => blob.data,
            Form::Zstd => self.decompressed(&digest, blob.data).await?,
        };
        Ok((digest, data))
    }

    /// The blob that these frames are, which is not verified yet.
    async fn decompressed(&self, digest: &Digest, data: Bytes) -> Result<Bytes, Status> {
        let whole = self.compression.decompress(digest.size_bytes(), data).await;
        // A long batch of short work gives way between its blobs.
        tokio::task::yield_now().await;
        whole.map_err(|error| status_map::decode(digest, &error))
    }

    /// A blob that the client takes compressed: so, if it is smaller then.
    async fn compressed(&self, blob: Bytes) -> Result<(Bytes, Form), Status> {
        if blob.len() < COMPRESSED_BYTES_MIN {
            return Ok((blob, Form::Identity));
        }
        let compressed = self.compression.compress(blob.clone()).await;
        let compressed = compressed.map_err(|error| status_map::encode(&error))?;
        tokio::task::yield_now().await;
        if compressed.len() < blob.len() { Ok((compressed, Form::Zstd)) } else { Ok((blob, Form::Identity)) }
    }
}
