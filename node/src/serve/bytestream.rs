//! ByteStream: blobs of any size, from any offset, and uploads that go on where they were cut off.

use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_proto::google::bytestream as api;
use futures_util::stream::{self, Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use crate::observe::counters::COUNTERS;
use crate::route::{Blobs, Pieces, Upload};
use crate::serve::compression::{Compression, DecodeError, Decoder, Form};
use crate::serve::instances::Instances;
use crate::serve::partial_uploads::{ActiveUpload, PartialUploads, UploadName};
use crate::serve::resource_name::ResourceName;
use crate::serve::status_map;

/// How long the end of the stream is waited for after the message with finish_write. A client that keeps its side open
/// until it has the answer is not wrong.
const HALF_CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// How long an upload waits, most likely for room, before interrupted ones are given up for it.
const KEPT_PATIENCE: Duration = Duration::from_millis(100);

/// Interrupted uploads may keep one part in so many of the store: a courtesy, which other uploads must not feel.
const KEPT_SHARE: u64 = 8;

/// The `committed_size` by which the API tells a compressed upload that its blob is here already.
const PRESENT_ALREADY: i64 = -1;

/// The ByteStream service.
#[derive(Clone)]
pub struct ByteStream {
    blobs: Blobs,
    compression: Compression,
    partial: PartialUploads,
    instances: Instances,
}

// === impl ByteStream ===

impl ByteStream {
    /// On these blobs, of which this node may take so many bytes, for these instances.
    pub fn new(blobs: Blobs, compression: Compression, capacity_bytes: u64, instances: Instances) -> ByteStream {
        ByteStream { blobs, compression, partial: PartialUploads::new(capacity_bytes / KEPT_SHARE), instances }
    }

    /// The upload to go on with at `offset`, which is 0 or where an upload of this name was cut off. It counts bytes of the
    /// blob, whatever the form.
    async fn resume_or_begin(&self, name: UploadName, offset: i64) -> Result<ActiveUpload, Status> {
        self.partial.discard_old(Instant::now());
        if let Ok(offset @ 1..) = u64::try_from(offset) {
            self.partial.end_call_at(&name, offset).await;
        }
        let kept =
            self.partial.take(&name).filter(|upload| (offset > 0 || upload.written_bytes() == 0) && upload.is_alive());
        let upload = match kept {
            Some(upload) => upload,
            // Before room is made for a blob that will not come.
            None if offset != 0 => {
                let written = self.partial.written_bytes(&name).unwrap_or(0);
                return Err(wrong_offset(name.digest, offset, written));
            }
            None => self.begin(&name.digest).await?,
        };
        let written = upload.written_bytes();
        let active = self.partial.activate(name, upload);
        match u64::try_from(offset) {
            Ok(offset) if offset == written => Ok(active),
            _ => Err(wrong_offset(active.digest(), offset, written)),
        }
    }

    async fn begin(&self, digest: &Digest) -> Result<Upload, Status> {
        let upload = self.blobs.upload(digest);
        tokio::pin!(upload);
        let upload = match tokio::time::timeout(KEPT_PATIENCE, upload.as_mut()).await {
            Ok(upload) => upload,
            // It waits for room. What interrupted uploads hold is worth less than an upload that is here.
            Err(_elapsed) => {
                self.partial.discard_all();
                upload.await
            }
        };
        upload.map_err(|error| status_map::write(&error))
    }

    /// Takes in an upload, from its first message to its answer.
    async fn take_in(&self, mut requests: Streaming<api::WriteRequest>) -> Result<api::WriteResponse, Status> {
        let Some(first) = requests.message().await? else {
            return Err(Status::invalid_argument("the upload ended before it began: no message came"));
        };
        let name = ResourceName::for_writing(&first.resource_name).map_err(|error| status_map::name(&error))?;
        self.instances.check(&name.instance)?;
        let ResourceName { uuid, form, digest, .. } = name;
        if self.blobs.is_held(&digest).await {
            return Ok(present_already(form, &digest));
        }
        let mut active = self.resume_or_begin(UploadName { uuid, form, digest }, first.write_offset).await?;
        match self.receive(form, first, &mut requests, &mut active).await {
            Ok(Finished::Yes { next_offset }) => {
                active.finish().commit().await.map_err(|error| status_map::write(&error))?;
                Ok(api::WriteResponse { committed_size: committed(next_offset) })
            }
            Ok(Finished::No) => {
                let committed_size = committed(active.upload().written_bytes());
                Ok(api::WriteResponse { committed_size })
            }
            Ok(Finished::ByAnother) => {
                active.give_up();
                self.blobs.find(&[digest]).await;
                Ok(present_already(form, &digest))
            }
            Err(Stopped::Refused(status)) => {
                active.give_up();
                Err(status)
            }
            Err(Stopped::Cut(status)) => Err(status),
        }
    }

    /// Takes in the rest of an upload.
    async fn receive(
        &self,
        form: Form,
        first: api::WriteRequest,
        requests: &mut Streaming<api::WriteRequest>,
        active: &mut ActiveUpload,
    ) -> Result<Finished, Stopped> {
        let (resource_name, digest, call) = (first.resource_name.clone(), active.digest(), active.call());
        // Where the call began, in bytes of the blob, and what it has sent since, in whatever form: so the API counts.
        let mut next_offset = active.upload().written_bytes();
        let mut decoder = match form {
            Form::Identity => None,
            Form::Zstd => Some(self.compression.decoder(digest.size_bytes(), next_offset)),
        };
        let mut message = first;
        loop {
            check_message(&message, &resource_name, digest, next_offset).map_err(Stopped::Refused)?;
            next_offset += message.data.len() as u64;
            COUNTERS.received_bytes.add(form.encoding() as usize, message.data.len() as u64);
            take_data(message.data, decoder.as_mut(), active).await?;
            let finish = message.finish_write;
            let next = async {
                match finish {
                    false => requests.message().await,
                    true => {
                        let next = tokio::time::timeout(HALF_CLOSE_PATIENCE, requests.message());
                        next.await.unwrap_or(Ok(None))
                    }
                }
            };
            let next = tokio::select! {
                next = next => next.map_err(Stopped::Cut)?,
                () = call.superseded() => return Err(Stopped::Cut(superseded(digest))),
            };
            match next {
                Some(_) if finish => {
                    let text = format!("the upload of {digest} goes on after the message with finish_write");
                    return Err(Stopped::Refused(Status::invalid_argument(text)));
                }
                // "in the middle of a single upload if another client uploads the same blob concurrently", says the API.
                Some(_) if active.upload().is_overtaken() => return Ok(Finished::ByAnother),
                Some(next) => message = next,
                None if finish => {
                    let whole = decoder.map_or(Ok(()), |decoder| decoder.finish());
                    whole.map_err(|error| undecodable(digest, &error))?;
                    return Ok(Finished::Yes { next_offset });
                }
                None => return Ok(Finished::No),
            }
        }
    }

    /// The messages of a read whose pieces come as they are.
    fn as_it_is(form: Form, first: Option<Bytes>, pieces: Pieces) -> ReadStream {
        let rest = stream::unfold(Some(pieces), move |pieces| async move {
            let mut pieces = pieces?;
            match pieces.next().await {
                Ok(Some(data)) => Some((Ok(sent(form, data)), Some(pieces))),
                Ok(None) => None,
                Err(error) => Some((Err(status_map::read_midway(&error)), None)),
            }
        });
        let first = stream::iter(first.map(|data| Ok(sent(form, data))));
        Box::pin(first.chain(rest))
    }

    /// The messages of a read whose pieces are compressed, each for itself.
    fn compressed(&self, first: Option<Bytes>, pieces: Pieces) -> ReadStream {
        // Nothing has a compressed form too, which clients may insist on.
        let first = first.unwrap_or_default();
        let compression = self.compression.clone();
        Box::pin(stream::unfold(Some((Some(first), pieces)), move |state| {
            let compression = compression.clone();
            async move {
                let (piece, mut pieces) = state?;
                let piece = match piece {
                    Some(piece) => piece,
                    None => match pieces.next().await {
                        Ok(piece) => piece?,
                        Err(error) => return Some((Err(status_map::read_midway(&error)), None)),
                    },
                };
                match compression.compress(piece).await {
                    Ok(data) => Some((Ok(sent(Form::Zstd, data)), Some((None, pieces)))),
                    Err(error) => Some((Err(status_map::encode(&error)), None)),
                }
            }
        }))
    }
}

/// Why an upload did not come to its end.
enum Stopped {
    /// The connection broke. What is here is good, and the client may go on with it.
    Cut(Status),
    /// What came is wrong, or could not be stored. What is here is no start of anything.
    Refused(Status),
}

/// Whether the client said that the upload is whole.
enum Finished {
    /// Where a further message would have stood.
    Yes {
        next_offset: u64,
    },
    No,
    /// Another upload of the same blob came to its end meanwhile.
    ByAnother,
}

type ReadStream = Pin<Box<dyn Stream<Item = Result<api::ReadResponse, Status>> + Send>>;

#[tonic::async_trait]
impl api::byte_stream_server::ByteStream for ByteStream {
    type ReadStream = ReadStream;

    async fn read(&self, request: Request<api::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let name = ResourceName::for_reading(&request.resource_name).map_err(|error| status_map::name(&error))?;
        self.instances.check(&name.instance)?;
        let Ok(offset) = u64::try_from(request.read_offset) else {
            return Err(Status::out_of_range(format!("the read offset {} is below zero", request.read_offset)));
        };
        let length = match (u64::try_from(request.read_limit), name.form) {
            (Ok(0), _) => None,
            (Ok(limit), Form::Identity) => Some(limit),
            (Ok(limit), Form::Zstd) => {
                let message = format!("the read limit {limit} is not allowed with a compressed name, only 0 is");
                return Err(Status::invalid_argument(message));
            }
            (Err(_), _) => {
                let message = format!("the read limit {} is below zero; 0 stands for no limit", request.read_limit);
                return Err(Status::invalid_argument(message));
            }
        };
        // What is stored compressed is sent as it is stored. From another place on, a blob is compressed anew.
        let pieces = match (name.form, offset) {
            (Form::Zstd, 0) => self.blobs.read_as_stored(&name.digest).await,
            _ => self.blobs.read(&name.digest, offset, length).await.map(Pieces::Blob),
        };
        let mut pieces = pieces.map_err(|error| status_map::read(&error))?;
        // The first piece is read before the answer begins, so that a damaged copy is a clean miss.
        let first = pieces.next().await.map_err(|error| status_map::read(&error))?;
        Ok(Response::new(match (name.form, &pieces) {
            (Form::Zstd, Pieces::Blob(_)) => self.compressed(first, pieces),
            (form, _) => ByteStream::as_it_is(form, first, pieces),
        }))
    }

    async fn write(
        &self,
        request: Request<Streaming<api::WriteRequest>>,
    ) -> Result<Response<api::WriteResponse>, Status> {
        // In a task of its own, because a call is dropped wherever it stands when its client goes away, and what is here
        // of the upload is to be kept. The task ends with the stream.
        let (service, requests) = (self.clone(), request.into_inner());
        let taken_in = tokio::spawn(async move { service.take_in(requests).await }.in_current_span()).await;
        let response = taken_in.map_err(|error| Status::internal(format!("taking in the upload failed: {error}")))?;
        Ok(Response::new(response?))
    }

    async fn query_write_status(
        &self,
        request: Request<api::QueryWriteStatusRequest>,
    ) -> Result<Response<api::QueryWriteStatusResponse>, Status> {
        let request = request.into_inner();
        let name = ResourceName::for_writing(&request.resource_name).map_err(|error| status_map::name(&error))?;
        self.instances.check(&name.instance)?;
        let ResourceName { uuid, form, digest, .. } = name;
        if self.blobs.is_held(&digest).await {
            let committed_size = committed(digest.size_bytes());
            return Ok(Response::new(api::QueryWriteStatusResponse { committed_size, complete: true }));
        }
        // Nothing known is nothing written: clients that are told NOT_FOUND here give up instead of beginning anew.
        let written = self.partial.written_bytes(&UploadName { uuid, form, digest }).unwrap_or(0);
        Ok(Response::new(api::QueryWriteStatusResponse { committed_size: committed(written), complete: false }))
    }
}

/// Adds the data of a message to an upload; the blob's bytes are made of it first where it is compressed.
async fn take_data(data: Bytes, decoder: Option<&mut Decoder>, active: &mut ActiveUpload) -> Result<(), Stopped> {
    let digest = active.digest();
    let Some(decoder) = decoder else { return add(data, active).await };
    decoder.push(data).map_err(|error| undecodable(digest, &error))?;
    while let Some(piece) = decoder.next().await.map_err(|error| undecodable(digest, &error))? {
        add(piece, active).await?;
    }
    Ok(())
}

async fn add(piece: Bytes, active: &mut ActiveUpload) -> Result<(), Stopped> {
    if !piece.is_empty() {
        let wrote = active.upload().write(piece).await;
        wrote.map_err(|error| Stopped::Refused(status_map::write(&error)))?;
        active.note_progress();
    }
    Ok(())
}

/// The answer to an upload of what is here, however much of it has come.
fn present_already(form: Form, digest: &Digest) -> api::WriteResponse {
    let committed_size = match form {
        Form::Identity => committed(digest.size_bytes()),
        Form::Zstd => PRESENT_ALREADY,
    };
    api::WriteResponse { committed_size }
}

fn undecodable(digest: Digest, error: &DecodeError) -> Stopped {
    let status = status_map::decode(&digest, error);
    match error {
        // What came before is good.
        DecodeError::Busy => Stopped::Cut(status),
        _ => Stopped::Refused(status),
    }
}

fn check_message(
    message: &api::WriteRequest,
    resource_name: &str,
    digest: Digest,
    expected: u64,
) -> Result<(), Status> {
    if !message.resource_name.is_empty() && message.resource_name != resource_name {
        return Err(Status::invalid_argument(format!(
            "the resource name changes from \"{resource_name}\" to \"{}\" within one upload",
            message.resource_name
        )));
    }
    match u64::try_from(message.write_offset) {
        Ok(offset) if offset == expected => Ok(()),
        _ => Err(wrong_offset(digest, message.write_offset, expected)),
    }
}

/// A message with a piece of a blob.
fn sent(form: Form, data: Bytes) -> api::ReadResponse {
    COUNTERS.sent_bytes.add(form.encoding() as usize, data.len() as u64);
    api::ReadResponse { data }
}

fn superseded(digest: Digest) -> Status {
    Status::aborted(format!("another call goes on with this upload of {digest}"))
}

fn wrong_offset(digest: Digest, offset: i64, expected: u64) -> Status {
    Status::invalid_argument(format!(
        "the write offset {offset} is not where the upload of {digest} stands, which is {expected} (see QueryWriteStatus)"
    ))
}

fn committed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
