//! A blob that comes from another node.

use std::sync::Arc;

use bytes::Bytes;
use casbah_proto::peer::v1 as api;
use hyper::body::Incoming;
use prost::Message as _;
use tokio::sync::OwnedSemaphorePermit;

use crate::config::limits;
use crate::forward::error::{PeerError, Unreachable};
use crate::forward::framing::{Messages, Part};
use crate::forward::link::Link;

/// How the bytes of a blob come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As they are.
    Identity,
    /// In zstd frames, each of which says how many bytes it makes.
    Zstd,
}

/// A read of a blob of another node, of which the first bytes have come. Dropping it ends the read.
pub struct PeerRead {
    messages: Messages<Incoming>,
    form: Form,
    first: Option<Bytes>,
    link: Arc<Link>,
    _place: OwnedSemaphorePermit,
}

// === impl Form ===

impl Form {
    /// By its number on the wire.
    pub(super) fn by_number(number: i32) -> Option<Form> {
        match api::Form::try_from(number) {
            Ok(api::Form::Identity) => Some(Form::Identity),
            Ok(api::Form::Zstd) => Some(Form::Zstd),
            Err(_) => None,
        }
    }
}

// === impl PeerRead ===

impl PeerRead {
    /// Waits for the first bytes.
    pub(super) async fn begin(
        answer: Incoming,
        link: Arc<Link>,
        place: OwnedSemaphorePermit,
    ) -> Result<PeerRead, PeerError> {
        let messages = Messages::answer(answer);
        let mut read = PeerRead { messages, form: Form::Identity, first: None, link, _place: place };
        if let Some((form, data)) = read.receive().await? {
            (read.form, read.first) = (form, Some(data));
        }
        Ok(read)
    }

    /// How the bytes come.
    pub fn form(&self) -> Form {
        self.form
    }

    /// The next bytes, never none; `None` at the end.
    ///
    /// # Errors
    /// [`PeerError`]; nothing follows then.
    ///
    /// # Cancel safety
    /// May be dropped; the next call goes on.
    pub async fn next(&mut self) -> Result<Option<Bytes>, PeerError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        match self.receive().await? {
            Some((form, _)) if form != self.form => Err(PeerError::nonsense("the form changes within an answer")),
            received => Ok(received.map(|(_, data)| data)),
        }
    }

    async fn receive(&mut self) -> Result<Option<(Form, Bytes)>, PeerError> {
        loop {
            let link = Arc::clone(&self.link);
            let next = tokio::time::timeout(limits::PEER_STALL_DEADLINE, self.messages.next());
            let part = tokio::select! {
                part = next => part.map_err(|_elapsed| PeerError::TimedOut)??,
                () = link.lost() => return Err(PeerError::Unreachable(Unreachable::Silent)),
            };
            let (form, data) = match part {
                None => return Ok(None),
                Some(Part::Data { form, data }) => (form, data),
                Some(Part::Message(message)) => {
                    let message = api::ReadResponse::decode(message);
                    let message = message.map_err(|_| PeerError::nonsense("an answer cannot be decoded"))?;
                    (message.form, message.data)
                }
            };
            if !data.is_empty() {
                let form = Form::by_number(form).ok_or_else(|| PeerError::nonsense("an answer has no known form"))?;
                return Ok(Some((form, data)));
            }
        }
    }
}
