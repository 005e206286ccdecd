//! What goes of a call that was let in: in pieces that are held until they have left, and so is its place.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use crate::serve::admission::places::Place;
use crate::serve::admission::reader::{READER, Reader};

/// The most that is given to a client's connection at once. Whatever it was given it holds until the client takes it; and a client
/// that takes less than this within the time that it has for it stands still.
pub(super) const PIECE_BYTES: usize = 256 << 10;

/// Answers up to this size are given to the connection without being looked after: for one connection they are bounded by its
/// streams, and to wait until they have left would cost more than they do.
const SMALL_BYTES: usize = 16 << 10;

/// The answer to a call. It ends when the client has been sent everything before.
pub(super) struct Answer {
    body: Body,
    place: Arc<Place>,
    reader: Option<Arc<Reader>>,
    unsent: Arc<Unsent>,
    /// The most that is given to the connection at once.
    piece_bytes: usize,
    /// Of what the body gave last.
    rest: Bytes,
    end: End,
}

/// How far the end is.
enum End {
    /// The body has more.
    Open,
    /// It has come, and waits for what is before it.
    Comes(Option<Frame<Bytes>>),
    Gone,
}

/// Pieces that the connection holds.
#[derive(Debug, Default)]
struct Unsent {
    pieces: AtomicUsize,
    sent: AtomicWaker,
}

/// A piece on its way. Dropped, it has left, or is not to leave any more.
struct Piece {
    bytes: Bytes,
    unsent: Arc<Unsent>,
    _place: Arc<Place>,
}

// === impl Answer ===

impl Answer {
    /// This answer, whose call has this place, in pieces of this size.
    pub(super) fn new(body: Body, place: Arc<Place>, piece_bytes: usize) -> Answer {
        let reader = READER.try_with(Arc::clone).ok();
        Answer { body, place, reader, unsent: Arc::default(), piece_bytes, rest: Bytes::new(), end: End::Open }
    }

    fn piece(&mut self) -> Frame<Bytes> {
        let bytes = self.rest.split_to(self.rest.len().min(self.piece_bytes));
        self.unsent.pieces.fetch_add(1, Ordering::AcqRel);
        let (unsent, place) = (Arc::clone(&self.unsent), Arc::clone(&self.place));
        self.is_to_take();
        Frame::data(Bytes::from_owner(Piece { bytes, unsent, _place: place }))
    }

    fn is_to_take(&self) {
        if let Some(reader) = &self.reader {
            reader.is_to_take();
        }
    }

    fn has_taken(&self) {
        if let Some(reader) = &self.reader {
            reader.has_taken();
        }
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if !this.rest.is_empty() {
            return Poll::Ready(Some(Ok(this.piece())));
        }
        if matches!(this.end, End::Open) {
            this.has_taken();
            let end = match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.len() <= SMALL_BYTES => {
                        this.is_to_take();
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    Ok(data) => {
                        this.rest = data;
                        return Poll::Ready(Some(Ok(this.piece())));
                    }
                    Err(trailers) => Some(trailers),
                },
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => None,
            };
            this.end = End::Comes(end);
        }
        if this.unsent.pieces.load(Ordering::Acquire) > 0 {
            this.is_to_take();
            this.unsent.sent.register(context.waker());
            // One may have left in between.
            if this.unsent.pieces.load(Ordering::Acquire) > 0 {
                return Poll::Pending;
            }
        }
        this.has_taken();
        match std::mem::replace(&mut this.end, End::Gone) {
            End::Comes(Some(trailers)) => Poll::Ready(Some(Ok(trailers))),
            End::Comes(None) | End::Open | End::Gone => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self.end {
            End::Open => self.rest.is_empty() && self.body.is_end_stream(),
            End::Comes(_) => false,
            End::Gone => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === impl Piece ===

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if self.unsent.pieces.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.unsent.sent.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::labels::Traffic;
    use crate::serve::admission::places::{Admission, Bounds};
    use crate::serve::admission::turns::{Client, Cost};
    use futures_util::stream;
    use http::HeaderMap;
    use http_body_util::{BodyExt as _, StreamBody};
    use std::time::Duration;

    async fn answer(sizes: &[usize]) -> (Admission, Answer, Arc<Reader>) {
        let bounds = Bounds { memory_bytes: 1000, waiting: 1, patience: Duration::ZERO };
        let admission = Admission::new(Traffic::Clients, bounds);
        let place = Arc::new(admission.admit(Client::Repair, Cost { held_bytes: 100, sent_bytes: 0 }).await.unwrap());
        let mut frames: Vec<_> =
            sizes.iter().map(|size| Ok::<_, Status>(Frame::data(Bytes::from(vec![1; *size])))).collect();
        frames.push(Ok(Frame::trailers(HeaderMap::new())));
        let body = Body::new(StreamBody::new(stream::iter(frames)));
        let reader = Arc::new(Reader::new());
        let answer = READER.sync_scope(Arc::clone(&reader), || Answer::new(body, place, PIECE_BYTES));
        (admission, answer, reader)
    }

    #[tokio::test]
    async fn large_answers_go_in_pieces_and_end_when_all_of_them_have_left() {
        let (admission, mut answer, reader) = answer(&[1000, 3 * PIECE_BYTES + 1]).await;
        assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap().len(), 1000);
        let mut held = Vec::new();
        for size in [PIECE_BYTES, PIECE_BYTES, PIECE_BYTES, 1] {
            let data = answer.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(data.len(), size);
            assert!(reader.waited_for_since().is_some());
            held.push(data);
        }
        let mut end = Box::pin(answer.frame());
        assert!(futures_util::poll!(end.as_mut()).is_pending());
        assert!(reader.waited_for_since().is_some());
        held.truncate(1);
        assert!(futures_util::poll!(end.as_mut()).is_pending());
        held.clear();
        assert!(end.await.unwrap().unwrap().is_trailers());
        assert!(reader.waited_for_since().is_none());
        assert!(answer.frame().await.is_none());
        drop((answer, admission));
    }

    #[tokio::test]
    async fn a_place_is_held_until_the_last_piece_has_left() {
        let (_admission, mut answer, _) = answer(&[PIECE_BYTES]).await;
        let place = Arc::downgrade(&answer.place);
        let data = answer.frame().await.unwrap().unwrap().into_data().unwrap();
        drop(answer);
        assert!(place.upgrade().is_some());
        drop(data);
        assert!(place.upgrade().is_none());
    }

    #[tokio::test]
    async fn small_answers_end_at_once() {
        let (_admission, mut answer, _) = answer(&[SMALL_BYTES]).await;
        let held = answer.frame().await.unwrap().unwrap();
        assert!(answer.frame().await.unwrap().unwrap().is_trailers());
        drop(held);
    }
}
