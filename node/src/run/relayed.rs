//! The body of an answer that another process gives.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

use crate::serve::{READER, Reader, unavailable};

/// Passes a body on as it comes. Where it breaks off, it ends with the status `UNAVAILABLE` in place of an error: a
/// broken stream would be `INTERNAL` to a client, which does not try again then.
pub(super) struct Relayed<B> {
    inner: B,
    /// When this returns, the body ends as if it had broken off.
    cut: BoxFuture<'static, ()>,
    over: bool,
    /// Who takes it.
    reader: Option<Arc<Reader>>,
}

// === impl Relayed ===

impl<B> Relayed<B> {
    /// This body, until `cut` returns.
    pub(super) fn new(inner: B, cut: BoxFuture<'static, ()>) -> Relayed<B> {
        Relayed { inner, cut, over: false, reader: READER.try_with(Arc::clone).ok() }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Relayed<B>
where
    B::Error: std::fmt::Display,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Some(reader) = &self.reader {
            reader.has_taken();
        }
        let status = match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(%error, "the owner of the directory broke off an answer");
                unavailable("the process that owns the directory went away while it answered")
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(reader) = &self.reader {
                    reader.is_to_take();
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => match self.cut.as_mut().poll(context) {
                Poll::Ready(()) => unavailable("this process is ending"),
                Poll::Pending => return Poll::Pending,
            },
        };
        self.over = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt as _, StreamExt as _, stream};
    use http_body_util::{BodyExt as _, StreamBody};
    use tonic::Code;

    fn data() -> Result<Frame<Bytes>, Status> {
        Ok(Frame::data(Bytes::from_static(b"some")))
    }

    /// The data that comes through, and the status at the end.
    async fn through<B: Body<Data = Bytes> + Unpin>(body: Relayed<B>) -> (Bytes, Option<Status>)
    where
        B::Error: std::fmt::Display,
    {
        let whole = body.collect().await.expect("no error comes through");
        let status = whole.trailers().and_then(Status::from_header_map);
        (whole.to_bytes(), status)
    }

    #[tokio::test]
    async fn a_whole_body_comes_through_as_it_is() {
        let mut trailers = HeaderMap::new();
        Status::not_found("gone").add_header(&mut trailers).unwrap();
        let frames = stream::iter([data(), data(), Ok(Frame::trailers(trailers))]);
        let (bytes, status) = through(Relayed::new(StreamBody::new(frames), std::future::pending().boxed())).await;
        assert_eq!((bytes.as_ref(), status.unwrap().code()), (b"somesome".as_slice(), Code::NotFound));
    }

    #[tokio::test]
    async fn one_that_breaks_off_is_to_be_tried_again() {
        let frames = stream::iter([data(), Err(Status::internal("reset")), data()]);
        let (bytes, status) = through(Relayed::new(StreamBody::new(frames), std::future::pending().boxed())).await;
        assert_eq!((bytes.as_ref(), status.unwrap().code()), (b"some".as_slice(), Code::Unavailable));
    }

    #[tokio::test]
    async fn one_without_end_is_cut() {
        let frames = stream::iter([data()]).chain(stream::pending());
        let (bytes, status) = through(Relayed::new(StreamBody::new(frames), std::future::ready(()).boxed())).await;
        assert_eq!((bytes.as_ref(), status.unwrap().code()), (b"some".as_slice(), Code::Unavailable));
    }
}
