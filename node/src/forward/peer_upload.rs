//! A blob on its way to another node.

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_proto::peer::v1 as api;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::body::Body;

use crate::config::limits;
use crate::forward::channel::Channel;
use crate::forward::error::PeerError;
use crate::forward::framing::{Messages, data_frames, message_frame};
use crate::forward::messages::digest_to_message;

/// Frames that wait to be taken by the connection: the piece that is being sent, and the next one.
const WAITING_FRAMES: usize = 4;

const STORE: &str = "/casbah.peer.v1.Blobs/Store";

/// A blob on its way to another node. Dropped without [`PeerUpload::commit`], nothing is stored there.
pub struct PeerUpload {
    /// `None` once all is said.
    frames: Option<mpsc::Sender<Frame<Bytes>>>,
    answer: Answer,
    _place: OwnedSemaphorePermit,
}

/// Whether the other node has answered.
enum Answer {
    Pending(BoxFuture<'static, Result<(), PeerError>>),
    /// It has the blob.
    Stored,
    /// It does not want it; told once.
    Failed(Option<PeerError>),
}

// === impl PeerUpload ===

impl PeerUpload {
    /// Begins to send a blob.
    /// With `used_ms`, of a copy that was last used then.
    pub(super) async fn begin(
        channel: Channel,
        digest: &Digest,
        used_ms: Option<u64>,
        place: OwnedSemaphorePermit,
    ) -> PeerUpload {
        let (frames, waiting) = mpsc::channel(WAITING_FRAMES);
        let body = stream::unfold(waiting, |mut waiting| async move {
            let frame: Frame<Bytes> = waiting.recv().await?;
            Some((Ok::<_, std::convert::Infallible>(frame), waiting))
        });
        let body = Body::new(StreamBody::new(body));
        let begin = api::store_request::Begin { digest: Some(digest_to_message(digest)), used_ms };
        let begin = api::StoreRequest { part: Some(api::store_request::Part::Begin(begin)) };
        // There is room for as many frames.
        drop(frames.try_send(message_frame(&begin)));
        let answer = async move {
            let response = channel.begin(STORE, body).await?;
            finish(Messages::answer(response.into_body())).await
        };
        PeerUpload { frames: Some(frames), answer: Answer::Pending(answer.boxed()), _place: place }
    }

    /// Sends the next bytes, of up to a megabyte or so; waits while the other node is slow. Does nothing once the other node has
    /// said that it has the blob already.
    ///
    /// # Errors
    /// [`PeerError`]; the upload can only be dropped then.
    ///
    /// # Cancel safety
    /// Dropped half-way, the upload can only be dropped too.
    pub async fn send(&mut self, data: Bytes) -> Result<(), PeerError> {
        if data.is_empty() {
            return Ok(());
        }
        for frame in data_frames(0, data) {
            self.push(frame).await?;
        }
        Ok(())
    }

    /// Says that all bytes were sent and are those of the digest, which the caller has checked: nobody checks it after. When
    /// this has returned, the other node has the blob.
    ///
    /// # Errors
    /// [`PeerError`]; the blob may be stored all the same if [`PeerError::is_in_doubt`].
    pub async fn commit(mut self) -> Result<(), PeerError> {
        let commit = api::StoreRequest { part: Some(api::store_request::Part::Commit(api::store_request::Commit {})) };
        self.push(message_frame(&commit)).await?;
        self.frames = None;
        match self.answer {
            Answer::Stored => Ok(()),
            Answer::Failed(error) => Err(error.unwrap_or_else(over)),
            Answer::Pending(answer) => match tokio::time::timeout(limits::PEER_STORE_DEADLINE, answer).await {
                Ok(outcome) => outcome,
                Err(_elapsed) => Err(PeerError::TimedOut),
            },
        }
    }

    async fn push(&mut self, frame: Frame<Bytes>) -> Result<(), PeerError> {
        let Some(frames) = &self.frames else { return Err(over()) };
        let outcome = match &mut self.answer {
            Answer::Stored => return Ok(()),
            Answer::Failed(error) => return Err(error.take().unwrap_or_else(over)),
            Answer::Pending(answer) => {
                let sending = tokio::time::timeout(limits::PEER_STORE_DEADLINE, frames.send(frame));
                tokio::select! {
                    biased;
                    outcome = &mut *answer => outcome,
                    sent = sending => match sent {
                        Ok(Ok(())) => return Ok(()),
                        // The connection takes no more: the answer says why, and comes at once.
                        Ok(Err(_closed)) => match &mut self.answer {
                            Answer::Pending(answer) => answer.await,
                            _ => Err(over()),
                        },
                        Err(_elapsed) => Err(PeerError::TimedOut),
                    },
                }
            }
        };
        match outcome {
            Ok(()) => {
                self.answer = Answer::Stored;
                Ok(())
            }
            Err(error) => {
                self.answer = Answer::Failed(None);
                Err(error)
            }
        }
    }
}

/// The end of the answer, which has one empty message or none.
async fn finish(mut messages: Messages<Incoming>) -> Result<(), PeerError> {
    while messages.next().await?.is_some() {}
    Ok(())
}

/// Of an upload that has failed before.
fn over() -> PeerError {
    PeerError::nonsense("the upload has failed before")
}

impl std::fmt::Debug for PeerUpload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerUpload").finish_non_exhaustive()
    }
}
