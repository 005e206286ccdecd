//! What comes of a call that was let in: it is held to what it was charged with, and to sending.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;

use crate::observe::counters::COUNTERS;
use crate::observe::labels::Stalled;
use crate::serve::admission::first::{First, PREFIX_BYTES, length};
use crate::serve::admission::places::Place;
use crate::serve::status_map;

/// The rest of a request, with its beginning before it. Messages longer than the first one are paid for when they come; a client
/// that stops sending in the middle is not waited for any longer than it may.
pub(super) struct Request {
    first: Option<Bytes>,
    rest: Body,
    place: Arc<Place>,
    /// The longest message that was paid for.
    paid_bytes: u64,
    message: Message,
    patience: Duration,
    last: Instant,
    /// There once the client was waited for.
    alarm: Option<Pin<Box<Sleep>>>,
}

/// Where in the stream of messages a request stands.
#[derive(Debug, Default)]
struct Message {
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: usize,
    rest_bytes: u64,
}

// === impl Request ===

impl Request {
    /// All of it is still to be read.
    pub(super) fn new(first: First, rest: Body, place: Arc<Place>, patience: Duration) -> Request {
        let paid_bytes = first.message_bytes();
        let (message, last) = (Message::default(), Instant::now());
        let first = Some(first.bytes).filter(|bytes| !bytes.is_empty());
        Request { first, rest, place, paid_bytes, message, patience, last, alarm: None }
    }

    fn take(&mut self, data: Bytes) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let longest = self.message.pass(&data);
        if longest > self.paid_bytes {
            if let Err(status) = self.place.grow(longest - self.paid_bytes) {
                return Poll::Ready(Some(Err(status)));
            }
            self.paid_bytes = longest;
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    /// Ready when the client has not sent anything for too long.
    fn poll_alarm(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let until = self.last + self.patience;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        while alarm.as_mut().poll(context).is_ready() {
            // It is not set again with each piece that comes, only when it has gone off.
            if Instant::now() >= until {
                return Poll::Ready(());
            }
            alarm.as_mut().reset(until);
        }
        Poll::Pending
    }
}

impl http_body::Body for Request {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let Some(first) = this.first.take() {
            return this.take(first);
        }
        match Pin::new(&mut this.rest).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                this.last = Instant::now();
                match frame.into_data() {
                    Ok(data) => this.take(data),
                    Err(trailers) => Poll::Ready(Some(Ok(trailers))),
                }
            }
            Poll::Ready(end) => Poll::Ready(end),
            Poll::Pending => match this.poll_alarm(context) {
                Poll::Ready(()) => {
                    COUNTERS.stalled.add(Stalled::Writer as usize, 1);
                    let text = format!("nothing has come for {} s in the middle of a call", this.patience.as_secs());
                    Poll::Ready(Some(Err(status_map::unavailable(text))))
                }
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

// === impl Message ===

impl Message {
    /// Goes on by these bytes; the length of the longest message that begins in them.
    fn pass(&mut self, data: &[u8]) -> u64 {
        let (mut data, mut longest) = (data, 0);
        while !data.is_empty() {
            if self.rest_bytes > 0 {
                let passed = data.len().min(usize::try_from(self.rest_bytes).unwrap_or(usize::MAX));
                self.rest_bytes -= passed as u64;
                data = data.get(passed..).unwrap_or_default();
                continue;
            }
            for (to, from) in self.prefix.iter_mut().skip(self.prefix_bytes).zip(data) {
                *to = *from;
            }
            let taken = data.len().min(PREFIX_BYTES - self.prefix_bytes);
            self.prefix_bytes += taken;
            data = data.get(taken..).unwrap_or_default();
            if self.prefix_bytes == PREFIX_BYTES {
                self.prefix_bytes = 0;
                self.rest_bytes = length(&self.prefix);
                longest = longest.max(self.rest_bytes);
            }
        }
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::labels::Traffic;
    use crate::serve::admission::places::{Admission, Bounds};
    use crate::serve::admission::turns::{Client, Cost};
    use futures_util::{StreamExt as _, stream};
    use http_body_util::{BodyExt as _, StreamBody};
    use tonic::Code;

    const PATIENCE: Duration = Duration::from_millis(50);

    fn framed(length: usize) -> Vec<u8> {
        let prefix = u32::try_from(length).unwrap().to_be_bytes();
        [[0].as_slice(), &prefix, &vec![7; length]].concat()
    }

    async fn place(bytes: u64) -> (Admission, Arc<Place>) {
        let bounds = Bounds { memory_bytes: 1000, waiting: 1, patience: PATIENCE };
        let admission = Admission::new(Traffic::Clients, bounds);
        let place = admission.admit(Client::Repair, Cost { held_bytes: bytes, sent_bytes: 0 }).await.unwrap();
        (admission, Arc::new(place))
    }

    fn body(chunks: Vec<Vec<u8>>) -> Body {
        let frames = chunks.into_iter().map(|chunk| Ok::<_, Status>(Frame::data(Bytes::from(chunk))));
        Body::new(StreamBody::new(stream::iter(frames.collect::<Vec<_>>())))
    }

    #[tokio::test]
    async fn all_of_it_comes_through_however_it_is_cut() {
        let whole = [framed(10), framed(0), framed(30), framed(200)].concat();
        for size in 1..60 {
            let mut rest = body(whole.chunks(size).map(<[u8]>::to_vec).collect());
            let first = First::come(&mut rest).await.unwrap();
            let (_admission, place) = place(10).await;
            let request = Request::new(first, rest, Arc::clone(&place), PATIENCE);
            assert_eq!(request.collect().await.unwrap().to_bytes(), whole, "{size}");
        }
    }

    #[tokio::test]
    async fn a_message_that_is_longer_than_what_was_paid_for_needs_room() {
        let whole = [framed(10), framed(2000)].concat();
        let mut rest = body(whole.chunks(7).map(<[u8]>::to_vec).collect());
        let first = First::come(&mut rest).await.unwrap();
        let (_admission, place) = place(10).await;
        let status = Request::new(first, rest, place, PATIENCE).collect().await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
    }

    #[tokio::test]
    async fn a_client_that_stops_sending_is_not_waited_for_for_ever() {
        let frames = stream::iter([Ok::<_, Status>(Frame::data(Bytes::from(framed(10))))]).chain(stream::pending());
        let mut rest = Body::new(StreamBody::new(frames));
        let first = First::come(&mut rest).await.unwrap();
        let (_admission, place) = place(10).await;
        let began = Instant::now();
        let status = Request::new(first, rest, place, PATIENCE).collect().await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(began.elapsed() >= PATIENCE);
    }
}
