//! ByteStream: blobs of any size, from any offset, and uploads that go on where they were cut off.

use std::pin::Pin;
use std::time::{Duration, Instant};

use casbah_cluster::digest::Digest;
use casbah_proto::google::bytestream as api;
use futures_util::stream::{self, Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use crate::serve::instances::Instances;
use crate::serve::partial_uploads::{ActiveUpload, PartialUploads, UploadName};
use crate::serve::resource_name::ResourceName;
use crate::serve::status_map;
use crate::store::{Reader, Store, Upload};

/// How long the end of the stream is waited for after the message with finish_write. A client that keeps its side open
/// until it has the answer is not wrong.
const HALF_CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// How long an upload waits, most likely for room, before interrupted ones are given up for it.
const KEPT_PATIENCE: Duration = Duration::from_millis(100);

/// Interrupted uploads may keep one part in so many of the store: a courtesy, which other uploads must not feel.
const KEPT_SHARE: u64 = 8;

/// The ByteStream service.
#[derive(Clone)]
pub struct ByteStream {
    store: Store,
    partial: PartialUploads,
    instances: Instances,
}

// === impl ByteStream ===

impl ByteStream {
    /// On this store, which may take so many bytes, for these instances.
    pub fn new(store: Store, capacity_bytes: u64, instances: Instances) -> ByteStream {
        ByteStream { store, partial: PartialUploads::new(capacity_bytes / KEPT_SHARE), instances }
    }

    /// The upload to go on with at `offset`, which is 0 or where an upload of this name was cut off.
    async fn resume_or_begin(&self, name: UploadName, offset: i64) -> Result<ActiveUpload, Status> {
        self.partial.discard_old(Instant::now());
        let kept = self.partial.take(&name).filter(|upload| offset > 0 || upload.written_bytes() == 0);
        let upload = match kept {
            Some(upload) => upload,
            // Before room is made for a blob that will not come.
            None if offset != 0 => return Err(wrong_offset(name.1, offset, 0)),
            None => self.begin(&name.1).await?,
        };
        let written = upload.written_bytes();
        let active = self.partial.activate(name, upload);
        match u64::try_from(offset) {
            Ok(offset) if offset == written => Ok(active),
            _ => Err(wrong_offset(active.digest(), offset, written)),
        }
    }

    async fn begin(&self, digest: &Digest) -> Result<Upload, Status> {
        let upload = self.store.upload(digest);
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
        let committed_size = committed(name.digest.size_bytes());
        if self.store.touch(&[name.digest]).iter().all(|present| *present) {
            return Ok(api::WriteResponse { committed_size });
        }
        let mut active = self.resume_or_begin((name.uuid, name.digest), first.write_offset).await?;
        match self.receive(first, &mut requests, &mut active).await {
            Ok(Finished::Yes) => {
                active.finish().commit().await.map_err(|error| status_map::write(&error))?;
                Ok(api::WriteResponse { committed_size })
            }
            Ok(Finished::No) => {
                let committed_size = committed(active.upload().written_bytes());
                Ok(api::WriteResponse { committed_size })
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
        first: api::WriteRequest,
        requests: &mut Streaming<api::WriteRequest>,
        active: &mut ActiveUpload,
    ) -> Result<Finished, Stopped> {
        let (resource_name, digest) = (first.resource_name.clone(), active.digest());
        let mut message = first;
        loop {
            let written = active.upload().written_bytes();
            check_message(&message, &resource_name, digest, written).map_err(Stopped::Refused)?;
            if !message.data.is_empty() {
                let wrote = active.upload().write(message.data).await;
                wrote.map_err(|error| Stopped::Refused(status_map::write(&error)))?;
                active.note_progress();
            }
            let finish = message.finish_write;
            let next = requests.message();
            let next = match finish {
                false => next.await,
                true => tokio::time::timeout(HALF_CLOSE_PATIENCE, next).await.unwrap_or(Ok(None)),
            };
            match next.map_err(Stopped::Cut)? {
                Some(_) if finish => {
                    let text = format!("the upload of {digest} goes on after the message with finish_write");
                    return Err(Stopped::Refused(Status::invalid_argument(text)));
                }
                Some(next) => message = next,
                None if finish => return Ok(Finished::Yes),
                None => return Ok(Finished::No),
            }
        }
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
    Yes,
    No,
}

#[tonic::async_trait]
impl api::byte_stream_server::ByteStream for ByteStream {
    type ReadStream = Pin<Box<dyn Stream<Item = Result<api::ReadResponse, Status>> + Send>>;

    async fn read(&self, request: Request<api::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let name = ResourceName::for_reading(&request.resource_name).map_err(|error| status_map::name(&error))?;
        self.instances.check(&name.instance)?;
        let Ok(offset) = u64::try_from(request.read_offset) else {
            return Err(Status::out_of_range(format!("the read offset {} is below zero", request.read_offset)));
        };
        let length = match u64::try_from(request.read_limit) {
            Ok(0) => None,
            Ok(limit) => Some(limit),
            Err(_) => {
                let message = format!("the read limit {} is below zero; 0 stands for no limit", request.read_limit);
                return Err(Status::invalid_argument(message));
            }
        };
        let reader = self.store.read(&name.digest, offset, length).await;
        let reader = reader.map_err(|error| status_map::read(&error))?;
        // The first piece is read before the answer begins, so that a damaged copy is a clean miss.
        let (first, reader) = first_piece(reader).await?;
        let rest = stream::unfold(Some(reader), |reader| async move {
            let mut reader = reader?;
            match reader.next().await {
                Ok(Some(data)) => Some((Ok(api::ReadResponse { data }), Some(reader))),
                Ok(None) => None,
                Err(error) => Some((Err(status_map::read_midway(&error)), None)),
            }
        });
        let first = stream::iter(first.map(|data| Ok(api::ReadResponse { data })));
        Ok(Response::new(Box::pin(first.chain(rest))))
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
        let size = name.digest.size_bytes();
        if self.store.contains(&name.digest) {
            let response = api::QueryWriteStatusResponse { committed_size: committed(size), complete: true };
            return Ok(Response::new(response));
        }
        // Nothing known is nothing written: clients that are told NOT_FOUND here give up instead of beginning anew.
        let written = self.partial.written_bytes(&(name.uuid, name.digest)).unwrap_or(0);
        Ok(Response::new(api::QueryWriteStatusResponse { committed_size: committed(written), complete: false }))
    }
}

fn check_message(message: &api::WriteRequest, resource_name: &str, digest: Digest, written: u64) -> Result<(), Status> {
    if !message.resource_name.is_empty() && message.resource_name != resource_name {
        return Err(Status::invalid_argument(format!(
            "the resource name changes from \"{resource_name}\" to \"{}\" within one upload",
            message.resource_name
        )));
    }
    match u64::try_from(message.write_offset) {
        Ok(offset) if offset == written => Ok(()),
        _ => Err(wrong_offset(digest, message.write_offset, written)),
    }
}

async fn first_piece(mut reader: Reader) -> Result<(Option<bytes::Bytes>, Reader), Status> {
    let first = reader.next().await.map_err(|error| status_map::read(&error))?;
    Ok((first, reader))
}

fn wrong_offset(digest: Digest, offset: i64, written: u64) -> Status {
    Status::invalid_argument(format!(
        "the write offset {offset} is not where the upload of {digest} stands: {written} bytes are here (see \
         QueryWriteStatus)"
    ))
}

fn committed(bytes: u64) -> i64 {
    i64::try_from(bytes).expect("no blob is larger than its digest's size, which was made from an i64")
}
