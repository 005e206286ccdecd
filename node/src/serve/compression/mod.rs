//! zstd on the wire: compressed bytes in and pieces of a blob out, and the other way.
//!
//! Nothing here knows of gRPC; one frame is made as the store makes its own. A blob is always named, hashed and stored by its uncompressed bytes; what
//! a client may make the node spend on the way (memory, time, output) is bounded here.

mod buffers;
mod decoder;
#[cfg(test)]
mod decoder_test;
mod form;
mod frame;
mod frames;
mod workers;

pub(super) use decoder::Decoder;
pub(super) use form::{COMPRESSORS, Form, OFFERED};
pub(super) use frames::DecodeError;
pub(super) use workers::{Compression, EncodeError};
