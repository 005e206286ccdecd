//! Requests and answers of services that are written by hand.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt as _};
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

/// An answer of many messages, each in the frames that it is sent in. An error among them ends it.
pub fn stream(
    messages: impl Stream<Item = Result<Vec<Frame<Bytes>>, Status>> + Send + 'static,
) -> http::Response<Body> {
    let frames = stream::unfold(Some(Box::pin(messages)), |messages| async {
        let mut messages = messages?;
        match messages.next().await {
            Some(Ok(frames)) => Some((frames, Some(messages))),
            Some(Err(status)) => Some((vec![end(Some(&status))], None)),
            None => Some((vec![end(None)], None)),
        }
    });
    response(Body::new(StreamBody::new(frames.flat_map(stream::iter).map(Ok::<_, Infallible>))))
}

fn response(body: Body) -> http::Response<Body> {
    let mut response = http::Response::new(body);
    response.headers_mut().insert(http::header::CONTENT_TYPE, CONTENT_TYPE);
    response
}

/// The end of an answer: all is well, or why not.
fn end(status: Option<&Status>) -> Frame<Bytes> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;
    use tonic::Code;

    async fn sent(messages: Vec<Result<&'static [u8], Status>>) -> (Bytes, Code) {
        let frames =
            |message: &'static [u8]| message.chunks(2).map(|data| Frame::data(Bytes::from_static(data))).collect();
        let messages = messages.into_iter().map(move |message| message.map(frames));
        let body = stream(stream::iter(messages)).into_body().collect().await.unwrap();
        let status = Status::from_header_map(body.trailers().unwrap()).unwrap();
        (body.to_bytes(), status.code())
    }

    #[tokio::test]
    async fn an_answer_ends_with_its_messages_or_with_the_first_error() {
        assert_eq!(sent(vec![]).await, (Bytes::new(), Code::Ok));
        assert_eq!(sent(vec![Ok(b"one"), Ok(b"two")]).await, (Bytes::from("onetwo"), Code::Ok));
        let broken = || Err(Status::data_loss("broken"));
        assert_eq!(sent(vec![Ok(b"one"), broken(), Ok(b"two")]).await, (Bytes::from("one"), Code::DataLoss));
        assert_eq!(sent(vec![broken()]).await, (Bytes::new(), Code::DataLoss));
    }
}
