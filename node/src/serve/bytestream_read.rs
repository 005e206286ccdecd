//! ByteStream with reads that are answered by hand: the bytes of a blob go to the connection without being copied into messages.
//! What is sent is what the generated code would send.

use std::convert::Infallible;
use std::task::{Context, Poll};

use bytes::Bytes;
use casbah_proto::google::bytestream::ReadResponse;
use casbah_proto::google::bytestream::byte_stream_server::{ByteStream as _, ByteStreamServer};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use http_body::Frame;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Request, Status};
use tower::Service;

use crate::forward::{bytes_frames, message_frame};
use crate::serve::bytestream::ByteStream;
use crate::serve::cas::MAX_MESSAGE_BYTES;
use crate::serve::wire;

const READ: &str = "/google.bytestream.ByteStream/Read";

/// `data` of ReadResponse: field 10, bytes.
const DATA_TAG: u8 = 10 << 3 | 2;

/// Data up to this size are copied, and not given a frame of HTTP/2 for themselves.
const COPIED_BYTES: usize = 4 << 10;

/// The ByteStream service as it is served. Cheap to clone.
#[derive(Clone)]
pub struct ByteStreamRead {
    service: ByteStream,
    generated: ByteStreamServer<ByteStream>,
}

// === impl ByteStreamRead ===

impl ByteStreamRead {
    /// Of this service.
    pub fn new(service: ByteStream) -> ByteStreamRead {
        let generated = ByteStreamServer::new(service.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        ByteStreamRead { service, generated }
    }
}

impl NamedService for ByteStreamRead {
    const NAME: &'static str = ByteStreamServer::<ByteStream>::NAME;
}

impl Service<http::Request<Body>> for ByteStreamRead {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<http::Request<Body>>::poll_ready(&mut self.generated, context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // How a compressed request is refused is gRPC's matter.
        if request.uri().path() != READ || request.headers().contains_key("grpc-encoding") {
            return self.generated.call(request);
        }
        let service = self.service.clone();
        Box::pin(async move { Ok(answer(&service, request).await.unwrap_or_else(|status| status.into_http())) })
    }
}

async fn answer(service: &ByteStream, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
    let request = wire::only_message(request.into_body()).await?;
    let messages = service.read(Request::new(request)).await?.into_inner();
    Ok(wire::stream(messages.map(|message| message.map(frames))))
}

fn frames(message: ReadResponse) -> Vec<Frame<Bytes>> {
    match message.data.len() {
        0..=COPIED_BYTES => vec![message_frame(&message)],
        _ => Vec::from(bytes_frames(DATA_TAG, message.data)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_what_the_generated_code_would_send() {
        for size in [0, 1, COPIED_BYTES, COPIED_BYTES + 1, (1 << 14) - 1, 1 << 14, 1 << 20] {
            let message = ReadResponse { data: (0..=u8::MAX).cycle().take(size).collect() };
            let generated = message_frame(&message).into_data().unwrap();
            let by_hand: Vec<Bytes> =
                frames(message.clone()).into_iter().map(|frame| frame.into_data().unwrap()).collect();
            assert_eq!(by_hand.concat(), generated, "{size}");
            let copied = by_hand.last().unwrap().as_ptr() != message.data.as_ptr();
            assert_eq!(copied, size <= COPIED_BYTES, "{size}");
        }
    }
}
