//! The blobs of this node, for other nodes. Most of what nodes exchange goes through here, so that it is written by hand: bytes
//! go from the store to the connection, and the other way, without being copied into messages.

use std::convert::Infallible;
use std::task::{Context, Poll};

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_proto::peer::v1 as api;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use crate::config::limits;
use crate::forward::{Messages, Part, data_frames, digest_from_message};
use crate::serve::{status_map, wire};
use crate::store::{Presence, ReadError, Reader, Store, StoredReader};

/// Blobs of one batch that are worked on at once, so that they share the disk's latency.
const BATCH_PARALLEL: usize = 16;

/// What a blob takes of a message beside its bytes, at the most.
const OUTCOME_BYTES: u64 = 64;

const IDENTITY: i32 = api::Form::Identity as i32;
const ZSTD: i32 = api::Form::Zstd as i32;

/// The Blobs service. Cheap to clone.
#[derive(Clone)]
pub struct Blobs {
    store: Store,
}

/// What an answer is made of.
enum Pieces {
    /// A blob.
    Blob(Reader),
    /// A blob as it is stored, in zstd frames.
    Frames(StoredReader),
}

// === impl Blobs ===

impl Blobs {
    /// On this store.
    pub(super) fn new(store: Store) -> Blobs {
        Blobs { store }
    }

    async fn answer(self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let (head, body) = request.into_parts();
        match head.uri.path() {
            "/casbah.peer.v1.Blobs/Find" => Ok(wire::answer(&self.find(wire::only_message(body).await?)?)),
            "/casbah.peer.v1.Blobs/Read" => self.read(wire::only_message(body).await?).await,
            "/casbah.peer.v1.Blobs/ReadBatch" => {
                Ok(wire::answer(&self.read_batch(wire::only_message(body).await?).await?))
            }
            "/casbah.peer.v1.Blobs/Store" => Ok(wire::answer(&self.store(body).await?)),
            "/casbah.peer.v1.Blobs/StoreBatch" => {
                Ok(wire::answer(&self.store_batch(wire::only_message(body).await?).await?))
            }
            _ => Err(Status::unimplemented("the service has no such method")),
        }
    }

    fn find(&self, request: api::FindRequest) -> Result<api::FindResponse, Status> {
        if request.digests.len() > limits::PEER_DIGESTS_MAX {
            return Err(Status::invalid_argument("more blobs are asked for than one call may ask for"));
        }
        let digests = request.digests.iter().map(digest).collect::<Result<Vec<Digest>, Status>>()?;
        let found = self.store.look_up(&digests, request.touch);
        let bits = |wanted: Presence| {
            let bit = |found: &Presence| u8::from(*found == wanted);
            let byte = |found: &[Presence]| found.iter().rev().fold(0, |byte: u8, found| byte << 1 | bit(found));
            Bytes::from(found.chunks(8).map(byte).collect::<Vec<u8>>())
        };
        let unsure = match found.contains(&Presence::Unsure) {
            true => bits(Presence::Unsure),
            false => Bytes::new(),
        };
        Ok(api::FindResponse { present: bits(Presence::Here), unsure })
    }

    async fn read(&self, request: api::ReadRequest) -> Result<http::Response<Body>, Status> {
        let digest = request.digest.as_ref().map_or_else(|| Err(no_digest()), digest)?;
        let read = |error| status_map::peer_read(&error);
        let frames = match request.takes_zstd && request.offset == 0 && request.length.is_none() {
            true => self.store.read_stored(&digest).await.map_err(read)?,
            false => None,
        };
        let mut pieces = match frames {
            Some(frames) => Pieces::Frames(frames),
            None => {
                let range = (request.offset, request.length);
                let reader = match request.is_no_use {
                    true => self.store.read_unused(&digest, range.0, range.1).await,
                    false => self.store.read(&digest, range.0, range.1).await,
                };
                Pieces::Blob(reader.map_err(read)?)
            }
        };
        // Read before the answer begins, so that a damaged copy is told at once.
        let first = pieces.next().await.map_err(read)?;
        let form = pieces.form();
        let rest = stream::try_unfold(pieces, |mut pieces| async move {
            let next = pieces.next().await.map_err(|error| status_map::peer_read_midway(&error))?;
            Ok(next.map(|data| (data, pieces)))
        });
        let pieces = stream::iter(first.map(Ok)).chain(rest);
        Ok(wire::stream(pieces.map_ok(move |data| Vec::from(data_frames(form, data)))))
    }

    async fn read_batch(&self, request: api::ReadBatchRequest) -> Result<api::ReadBatchResponse, Status> {
        if request.digests.len() > limits::PEER_DIGESTS_MAX {
            return Err(Status::invalid_argument("more blobs are asked for than one call may ask for"));
        }
        let limit_bytes = request.limit_bytes.min(limits::PEER_BATCH_BYTES);
        let mut room = limits::PEER_MESSAGE_BYTES as u64;
        let asked = request.digests.iter().map(|asked| {
            let digest = digest(asked)?;
            // What is too large is found out by the store, after whether it is there at all.
            let takes = if digest.size_bytes() > limit_bytes { 0 } else { digest.size_bytes() };
            match room.checked_sub(takes + OUTCOME_BYTES) {
                Some(left) => room = left,
                None => return Err(Status::resource_exhausted("the answer has no room for the blob")),
            }
            Ok(digest)
        });
        let asked: Vec<Result<Digest, Status>> = asked.collect();
        let outcomes = stream::iter(asked)
            .map(|asked| async move {
                let outcome = match asked {
                    Ok(digest) if request.is_no_use => {
                        let copy = self.store.get_unused(&digest, limit_bytes).await;
                        copy.map(|data| (data, IDENTITY)).map_err(|error| status_map::peer_read(&error))
                    }
                    Ok(digest) => self.get(&digest, limit_bytes, request.takes_zstd).await,
                    Err(status) => Err(status),
                };
                match outcome {
                    Ok((data, form)) => api::ReadOutcome { code: 0, message: String::new(), form, data },
                    Err(status) => {
                        let (code, message) = (code(&status), status.message().to_owned());
                        api::ReadOutcome { code, message, form: IDENTITY, data: Bytes::new() }
                    }
                }
            })
            .buffered(BATCH_PARALLEL)
            .collect()
            .await;
        Ok(api::ReadBatchResponse { outcomes })
    }

    async fn get(&self, digest: &Digest, limit_bytes: u64, takes_zstd: bool) -> Result<(Bytes, i32), Status> {
        let read = |error| status_map::peer_read(&error);
        if takes_zstd && digest.size_bytes() <= limit_bytes {
            let frames = self.store.read_stored(digest).await.map_err(read)?;
            if let Some(frames) = frames {
                return Ok((frames.whole().await.map_err(read)?, ZSTD));
            }
        }
        Ok((self.store.get(digest, limit_bytes).await.map_err(read)?, IDENTITY))
    }

    async fn store(&self, body: Body) -> Result<api::StoreResponse, Status> {
        use api::store_request::Part as Said;
        let mut messages = Messages::request(body);
        let begin = match messages.next().await.map_err(wire::cut)? {
            Some(Part::Message(message)) => wire::decode::<api::StoreRequest>(message)?.part,
            _ => None,
        };
        let Some(Said::Begin(begin)) = begin else {
            return Err(Status::invalid_argument("the stream does not begin with the digest of a blob"));
        };
        let digest = begin.digest.as_ref().map_or_else(|| Err(no_digest()), digest)?;
        let is_here = match begin.used_ms {
            None => self.store.touch(&[digest]) == [true],
            Some(_) => self.store.contains(&digest),
        };
        if is_here {
            return Ok(api::StoreResponse {});
        }
        let write = |error| status_map::peer_write(&error);
        let upload = match begin.used_ms {
            None => self.store.upload_verified(&digest).await,
            Some(used_ms) => self.store.upload_copy(&digest, used_ms).await,
        };
        let mut upload = upload.map_err(write)?;
        loop {
            let data = match messages.next().await.map_err(wire::cut)? {
                Some(Part::Data { form: 0, data }) => data,
                Some(Part::Data { .. }) => return Err(Status::invalid_argument("the data is not in a known form")),
                Some(Part::Message(message)) => match wire::decode::<api::StoreRequest>(message)?.part {
                    Some(Said::Data(data)) => data,
                    Some(Said::Commit(_)) => break,
                    Some(Said::Begin(_)) | None => return Err(Status::invalid_argument("the stream begins twice")),
                },
                None => return Err(Status::cancelled("the stream ended before it was committed")),
            };
            upload.write(data).await.map_err(write)?;
        }
        if messages.next().await.map_err(wire::cut)?.is_some() {
            return Err(Status::invalid_argument("the stream goes on after it was committed"));
        }
        upload.commit().await.map_err(write)?;
        Ok(api::StoreResponse {})
    }

    async fn store_batch(&self, request: api::StoreBatchRequest) -> Result<api::StoreBatchResponse, Status> {
        let outcomes = stream::iter(request.blobs)
            .map(|blob| async move {
                let digest = blob.digest.as_ref().map_or_else(|| Err(no_digest()), digest);
                let stored = match digest {
                    Ok(digest) => {
                        let stored = match blob.used_ms {
                            None => self.store.put_verified(&digest, blob.data).await,
                            Some(used_ms) => self.store.put_copy(&digest, blob.data, used_ms).await,
                        };
                        stored.map_err(|error| status_map::peer_write(&error))
                    }
                    Err(status) => Err(status),
                };
                match stored {
                    Ok(()) => api::StoreOutcome::default(),
                    Err(status) => {
                        let retry_after_ms = status_map::retry_after_ms(&status);
                        api::StoreOutcome { code: code(&status), message: status.message().to_owned(), retry_after_ms }
                    }
                }
            })
            .buffered(BATCH_PARALLEL)
            .collect()
            .await;
        Ok(api::StoreBatchResponse { outcomes })
    }
}

impl NamedService for Blobs {
    const NAME: &'static str = "casbah.peer.v1.Blobs";
}

impl Service<http::Request<Body>> for Blobs {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let blobs = self.clone();
        Box::pin(async move { Ok(blobs.answer(request).await.unwrap_or_else(|status| status.into_http())) })
    }
}

// === impl Pieces ===

impl Pieces {
    fn form(&self) -> i32 {
        match self {
            Pieces::Blob(_) => IDENTITY,
            Pieces::Frames(_) => ZSTD,
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        match self {
            Pieces::Blob(reader) => reader.next().await,
            Pieces::Frames(reader) => reader.next().await,
        }
    }
}

fn digest(message: &api::Digest) -> Result<Digest, Status> {
    digest_from_message(message).ok_or_else(|| Status::invalid_argument("a digest that is none"))
}

fn no_digest() -> Status {
    Status::invalid_argument("a blob without a digest")
}

fn code(status: &Status) -> u32 {
    (status.code() as i32).unsigned_abs()
}
