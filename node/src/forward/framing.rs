//! The messages of a stream, cut by hand: the bytes of a blob go from the socket to where they are wanted, and the other way,
//! without being copied into a message first.
//!
//! What is on the wire is gRPC. Between nodes, the messages are those of `peer/v1/blobs.proto`: of one whose last field is `data`
//! (number 2 in both streams), the beginning is taken apart here and the data passes through; any other is handed over whole.
//! Clients are sent what they read in the same way.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use prost::Message;
use prost::encoding::{decode_varint, encode_varint};
use tonic::Status;

use crate::config::limits;

/// The compression flag and the length before each message of gRPC.
const HEADER_BYTES: usize = 5;

/// Messages up to this size are not worth being taken apart.
const WHOLE_BYTES: usize = 256;

/// Before the data: two tags, a form and a length.
const PREFIX_BYTES_MAX: usize = 24;

/// Field 1, a number.
const FORM_TAG: u8 = 0x08;

/// Field 2, bytes.
const DATA_TAG: u8 = 0x12;

/// Why the messages of a stream could not be read on.
#[derive(Debug, thiserror::Error)]
pub enum FramingError {
    /// The other side has said why.
    #[error("{}", .0.message())]
    Status(#[source] Box<Status>),
    /// The stream ended in the middle.
    #[error("the stream was cut off")]
    Cut,
    /// What came is not what this protocol has.
    #[error("the stream makes no sense: {0}")]
    Nonsense(&'static str),
}

/// What comes in.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// A whole message, encoded.
    Message(Bytes),
    /// Some bytes of a message's data, never none.
    Data {
        /// The number before the data; 0 when there is none.
        form: i32,
        /// In the order of the stream.
        data: Bytes,
    },
}

/// The messages of a stream that comes in.
pub struct Messages<B> {
    body: B,
    /// What has come and was not looked at.
    chunk: Bytes,
    /// The beginning of a message.
    head: BytesMut,
    /// Bytes of data that are still to come of the message that was begun.
    rest: usize,
    form: i32,
    /// Whether the stream has to end with a status.
    answers: bool,
    status: Option<Status>,
    ended: bool,
}

// === impl Messages ===

impl<B> Messages<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Of a request: it ends when the other side has sent all.
    pub fn request(body: B) -> Messages<B> {
        Messages::new(body, false)
    }

    /// Of an answer: it ends with a status.
    pub fn answer(body: B) -> Messages<B> {
        Messages::new(body, true)
    }

    fn new(body: B, answers: bool) -> Messages<B> {
        let (chunk, head) = (Bytes::new(), BytesMut::new());
        Messages { body, chunk, head, rest: 0, form: 0, answers, status: None, ended: false }
    }

    /// What comes next; `None` when the stream is at its end, and all was well, and from then on.
    ///
    /// # Errors
    /// [`FramingError`]; nothing follows then.
    ///
    /// # Cancel safety
    /// May be dropped; the next call goes on.
    pub async fn next(&mut self) -> Result<Option<Part>, FramingError> {
        loop {
            if self.rest > 0 {
                if !self.fill().await? {
                    return Err(self.cut());
                }
                let data = self.chunk.split_to(self.rest.min(self.chunk.len()));
                self.rest -= data.len();
                return Ok(Some(Part::Data { form: self.form, data }));
            }
            if !self.gather(HEADER_BYTES).await? {
                return if self.head.is_empty() { self.end() } else { Err(self.cut()) };
            }
            let length = self.length()?;
            if length > WHOLE_BYTES && self.take_prefix(length).await? {
                continue;
            }
            if length > limits::PEER_MESSAGE_BYTES {
                return Err(FramingError::Nonsense("a message is too long"));
            }
            if !self.gather(HEADER_BYTES + length).await? {
                return Err(self.cut());
            }
            let mut message = self.head.split().freeze();
            message.advance(HEADER_BYTES);
            return Ok(Some(Part::Message(message)));
        }
    }

    /// Takes the beginning of a message up to its data; false when it is not of that form.
    async fn take_prefix(&mut self, length: usize) -> Result<bool, FramingError> {
        loop {
            let prefix = self.head.get(HEADER_BYTES..).unwrap_or_default();
            match Prefix::read(prefix, length) {
                Prefix::Data { form, rest } => {
                    self.head.clear();
                    (self.form, self.rest) = (form, rest);
                    return Ok(true);
                }
                Prefix::Other => return Ok(false),
                // A byte at a time, so that nothing of the data is taken: there are ten or so to a message.
                Prefix::More => {
                    if !self.gather(self.head.len() + 1).await? {
                        return Err(self.cut());
                    }
                }
            }
        }
    }

    /// The length of the message whose header is here.
    fn length(&self) -> Result<usize, FramingError> {
        let mut header = self.head.get(..HEADER_BYTES).unwrap_or_default();
        match header.try_get_u8() {
            Ok(0) => Ok(header.try_get_u32().map_or(0, |length| length as usize)),
            _ => Err(FramingError::Nonsense("a message is compressed")),
        }
    }

    /// Gets so many bytes of a message's beginning together; false when the stream ends before.
    async fn gather(&mut self, bytes: usize) -> Result<bool, FramingError> {
        while self.head.len() < bytes {
            if !self.fill().await? {
                return Ok(false);
            }
            let missing = bytes - self.head.len();
            self.head.put(self.chunk.split_to(missing.min(self.chunk.len())));
        }
        Ok(true)
    }

    /// Waits for bytes that were not looked at; false when there are no more.
    async fn fill(&mut self) -> Result<bool, FramingError> {
        while self.chunk.is_empty() && !self.ended {
            match self.body.frame().await {
                None => self.ended = true,
                Some(Err(error)) => return Err(FramingError::Status(Box::new(Status::from_error(error.into())))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.chunk = data,
                    Err(other) => {
                        let trailers = other.into_trailers().unwrap_or_default();
                        self.status = Status::from_header_map(&trailers);
                    }
                },
            }
        }
        Ok(!self.chunk.is_empty())
    }

    fn end(&mut self) -> Result<Option<Part>, FramingError> {
        match self.status.take() {
            Some(status) if status.code() == tonic::Code::Ok => {
                // Said once; whoever asks again is told the same.
                self.answers = false;
                Ok(None)
            }
            Some(status) => Err(FramingError::Status(Box::new(status))),
            None if self.answers => Err(FramingError::Cut),
            None => Ok(None),
        }
    }

    /// The end where there should be none.
    fn cut(&mut self) -> FramingError {
        match self.status.take() {
            Some(status) if status.code() != tonic::Code::Ok => FramingError::Status(Box::new(status)),
            _ => FramingError::Cut,
        }
    }
}

/// The beginning of a message.
enum Prefix {
    /// It goes on.
    More,
    /// The data follows, and is the rest of the message.
    Data { form: i32, rest: usize },
    /// Not of that form.
    Other,
}

impl Prefix {
    fn read(bytes: &[u8], length: usize) -> Prefix {
        let mut left = bytes;
        let mut form = 0;
        let incomplete = if bytes.len() < PREFIX_BYTES_MAX.min(length) { Prefix::More } else { Prefix::Other };
        if left.first() == Some(&FORM_TAG) {
            left.advance(1);
            match decode_varint(&mut left) {
                Ok(number) => form = i32::try_from(number).unwrap_or(-1),
                Err(_) => return incomplete,
            }
        }
        match left.first() {
            Some(&DATA_TAG) => left.advance(1),
            Some(_) => return Prefix::Other,
            None => return incomplete,
        }
        let Ok(rest) = decode_varint(&mut left) else { return incomplete };
        let prefix = bytes.len() - left.len();
        match usize::try_from(rest) {
            Ok(rest) if rest.checked_add(prefix) == Some(length) => Prefix::Data { form, rest },
            _ => Prefix::Other,
        }
    }
}

/// A message of a stream between nodes, as it is sent: what comes before the data, and the data as it is.
pub fn data_frames(form: i32, data: Bytes) -> [Frame<Bytes>; 2] {
    let mut prefix = BytesMut::with_capacity(HEADER_BYTES + PREFIX_BYTES_MAX);
    prefix.put_bytes(0, HEADER_BYTES);
    if form != 0 {
        prefix.put_u8(FORM_TAG);
        encode_varint(u64::from(form.unsigned_abs()), &mut prefix);
    }
    with_data(prefix, DATA_TAG, data)
}

/// A message of nothing but data, in the field of this tag, as it is sent.
pub fn bytes_frames(tag: u8, data: Bytes) -> [Frame<Bytes>; 2] {
    let mut prefix = BytesMut::with_capacity(HEADER_BYTES + PREFIX_BYTES_MAX);
    prefix.put_bytes(0, HEADER_BYTES);
    with_data(prefix, tag, data)
}

/// The beginning of a message, completed by what comes before the data; and the data as it is.
fn with_data(mut prefix: BytesMut, tag: u8, data: Bytes) -> [Frame<Bytes>; 2] {
    prefix.put_u8(tag);
    encode_varint(data.len() as u64, &mut prefix);
    let length = prefix.len() - HEADER_BYTES + data.len();
    put_length(&mut prefix, length);
    [Frame::data(prefix.freeze()), Frame::data(data)]
}

/// Any other message, as it is sent.
pub fn message_frame(message: &impl Message) -> Frame<Bytes> {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(HEADER_BYTES + length);
    frame.put_bytes(0, HEADER_BYTES);
    message.encode(&mut frame).expect("a buffer that grows has room for every message");
    put_length(&mut frame, length);
    Frame::data(frame.freeze())
}

fn put_length(frame: &mut BytesMut, length: usize) {
    let length = u32::try_from(length).expect("pieces of blobs are a megabyte or so");
    if let Some(at) = frame.get_mut(1..HEADER_BYTES) {
        at.copy_from_slice(&length.to_be_bytes());
    }
}

#[cfg(test)]
#[path = "framing_test.rs"]
mod tests;
