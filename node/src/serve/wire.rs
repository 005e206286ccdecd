//! Requests and answers of services that are written by hand.

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use http_body_util::StreamBody;
use prost::Message;
use tonic::Status;
use tonic::body::Body;

use crate::forward::{FramingError, Messages, Part, message_frame};

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");
const STATUS: http::HeaderName = http::HeaderName::from_static("grpc-status");
const OK: HeaderValue = HeaderValue::from_static("0");

/// The only message of a request.
pub async fn only_message<M: Message + Default>(body: Body) -> Result<M, Status> {
    let mut messages = Messages::request(body);
    match (messages.next().await.map_err(cut)?, messages.next().await.map_err(cut)?) {
        (Some(Part::Message(message)), None) => decode(message),
        _ => Err(Status::invalid_argument("the request is not one message")),
    }
}

/// A message that came whole.
pub fn decode<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message).map_err(|error| Status::invalid_argument(format!("the request cannot be decoded: {error}")))
}

/// Of a request that was not read to its end.
pub fn cut(error: FramingError) -> Status {
    match error {
        FramingError::Status(status) => *status,
        FramingError::Cut => Status::cancelled("the request was cut off"),
        FramingError::Nonsense(what) => Status::invalid_argument(format!("the request makes no sense: {what}")),
    }
}

/// An answer of one message.
pub fn answer(message: &impl Message) -> http::Response<Body> {
    let frames = [Ok::<_, Status>(message_frame(message)), Ok(end(None))];
    response(Body::new(StreamBody::new(stream::iter(frames))))
}

/// An answer with this body, which ends with what [`end`] makes.
pub fn response(body: Body) -> http::Response<Body> {
    let mut response = http::Response::new(body);
    response.headers_mut().insert(http::header::CONTENT_TYPE, CONTENT_TYPE);
    response
}

/// The end of an answer: all is well, or why not.
pub fn end(status: Option<&Status>) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    match status {
        None => drop(trailers.insert(STATUS, OK)),
        Some(status) => {
            if let Err(error) = status.add_header(&mut trailers) {
                tracing::debug!(%error, "a status has no form as a header");
                trailers.insert(STATUS, HeaderValue::from(tonic::Code::Internal as i32));
            }
        }
    }
    Frame::trailers(trailers)
}
