//! The beginning of a request: how long its first message is, and what of it has come.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tonic::Status;
use tonic::body::Body;

/// What precedes each message: whether it is compressed, and how long it is.
pub(super) const PREFIX_BYTES: usize = 5;

/// A length-delimited field with the number 1, as protobuf marks it.
const FIELD_1: u8 = 0x0a;

/// The beginning of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct First {
    /// What has come, with the prefix of the first message; less than that if the request has ended.
    pub(super) bytes: Bytes,
}

// === impl First ===

impl First {
    /// Waits until the length of the first message has come, or the end of the request.
    ///
    /// # Errors
    /// The status of a request that broke off.
    pub(super) async fn come(body: &mut Body) -> Result<First, Status> {
        let mut bytes = Bytes::new();
        while bytes.len() < PREFIX_BYTES {
            let Some(frame) = body.frame().await else { break };
            // Requests of gRPC have no trailers.
            let Ok(data) = frame?.into_data() else { continue };
            bytes = match bytes.is_empty() {
                true => data,
                // A few bytes before it.
                false => {
                    let mut both = BytesMut::with_capacity(bytes.len() + data.len());
                    both.extend_from_slice(&bytes);
                    both.extend_from_slice(&data);
                    both.freeze()
                }
            };
        }
        Ok(First { bytes })
    }

    /// How long the first message is; 0 if there is none.
    pub(super) fn message_bytes(&self) -> u64 {
        self.bytes.first_chunk().map_or(0, length)
    }

    /// The message, if all of it has come and it is not compressed.
    pub(super) fn whole(&self) -> Option<Bytes> {
        if self.bytes.first() != Some(&0) {
            return None;
        }
        let end = PREFIX_BYTES.checked_add(usize::try_from(self.message_bytes()).ok()?)?;
        (end <= self.bytes.len()).then(|| self.bytes.slice(PREFIX_BYTES..end))
    }

    /// The field 1 of the message, if that is the first thing in it and has come: where ByteStream has the name of the blob.
    pub(super) fn name(&self) -> Option<&str> {
        if self.bytes.first() != Some(&0) {
            return None;
        }
        let (tag, mut rest) = self.bytes.get(PREFIX_BYTES..)?.split_first()?;
        if *tag != FIELD_1 {
            return None;
        }
        let length = prost::decode_length_delimiter(&mut rest).ok()?;
        std::str::from_utf8(rest.get(..length)?).ok()
    }
}

/// The length of a message, by its prefix.
pub(super) fn length(prefix: &[u8; PREFIX_BYTES]) -> u64 {
    let [_, a, b, c, d] = *prefix;
    u64::from(u32::from_be_bytes([a, b, c, d]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use casbah_proto::google::bytestream as api;
    use futures_util::stream;
    use http_body::Frame;
    use http_body_util::StreamBody;
    use prost::Message as _;

    fn framed(message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [[0].as_slice(), &length, message].concat()
    }

    fn body(chunks: &[&[u8]]) -> Body {
        let frames: Vec<_> =
            chunks.iter().map(|chunk| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(chunk)))).collect();
        Body::new(StreamBody::new(stream::iter(frames)))
    }

    #[tokio::test]
    async fn the_length_of_the_first_message_is_known_however_it_is_cut() {
        let bytes = framed(b"message");
        for cut in 0..bytes.len() {
            let (head, tail) = bytes.split_at(cut);
            let first = First::come(&mut body(&[head, tail])).await.unwrap();
            assert_eq!(first.message_bytes(), 7, "{cut}");
            assert!(bytes.starts_with(&first.bytes), "{cut}");
        }
        let mut single = bytes.chunks(1).collect::<Vec<_>>();
        single.push(b"");
        assert_eq!(First::come(&mut body(&single)).await.unwrap().message_bytes(), 7);
    }

    #[tokio::test]
    async fn a_request_without_a_message_has_none() {
        for bytes in [&b""[..], b"\0", b"\0\0\0\0"] {
            let first = First::come(&mut body(&[bytes])).await.unwrap();
            assert_eq!((first.message_bytes(), first.whole(), first.name()), (0, None, None));
            assert_eq!(first.bytes, bytes);
        }
    }

    #[test]
    fn a_message_is_whole_when_all_of_it_is_there() {
        let bytes = framed(b"message");
        for end in 0..bytes.len() {
            assert_eq!(First { bytes: Bytes::copy_from_slice(&bytes[..end]) }.whole(), None);
        }
        assert_eq!(First { bytes: bytes.into() }.whole().unwrap(), "message");
        let compressed = [[1].as_slice(), &framed(b"message")[1..]].concat();
        assert_eq!(First { bytes: compressed.into() }.whole(), None);
    }

    #[test]
    fn the_name_of_a_blob_is_read_from_the_start_of_either_call() {
        let resource_name = "x/blobs/ab/7".to_owned();
        let read = api::ReadRequest { resource_name: resource_name.clone(), ..Default::default() };
        let write = api::WriteRequest { resource_name, data: Bytes::from_static(b"data"), ..Default::default() };
        for message in [read.encode_to_vec(), write.encode_to_vec()] {
            let first = First { bytes: framed(&message).into() };
            assert_eq!(first.name(), Some("x/blobs/ab/7"));
            for end in 0..PREFIX_BYTES + 14 {
                assert_eq!(First { bytes: first.bytes.slice(..end) }.name(), None, "{end}");
            }
        }
        assert_eq!(First { bytes: framed(b"\x10\x01").into() }.name(), None);
    }
}
