//! The sequence of frames that a compressed blob is, taken apart step by step and without waiting for anything.

use std::io;

use bytes::{Buf as _, Bytes};
use zstd::stream::raw::{DParameter, Decoder as Context, InBuffer, Operation as _, OutBuffer};

use super::frame::{self, HEADER_BYTES_MAX, Header};

/// The largest window, as a power of two: what `zstd` itself takes without being told to take more. Encoders for the
/// wire use 2 to 32 MiB.
const WINDOW_LOG_MAX: u32 = 27;

/// What a decoder needs beside its window: its tables (some 160 KiB) and two blocks of 128 KiB.
const CONTEXT_BYTES: u64 = 512 << 10;

/// Why compressed bytes were not taken.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Where a frame should begin, there is something else: another format, or bytes after the end.
    #[error("what stands where a zstd frame should begin is not one")]
    NotZstd,
    /// A frame is damaged.
    #[error("a zstd frame is damaged")]
    Damaged(#[source] io::Error),
    /// They end within a frame.
    #[error("they end in the middle of a zstd frame")]
    Truncated,
    /// A frame asks the decoder to remember more than it will.
    #[error("a zstd frame asks for a window of {window_bytes} bytes; at most {window_bytes_max} are granted")]
    Window {
        /// As asked for.
        window_bytes: u64,
        /// What is granted.
        window_bytes_max: u64,
    },
    /// They make more bytes than the blob has.
    #[error("they decompress to at least {decoded_bytes} bytes")]
    TooLong {
        /// Bytes when it was noticed, by the output or by what a frame announces.
        decoded_bytes: u64,
    },
    /// There are more compressed bytes than any encoder makes of such a blob.
    #[error("there are more than {limit_bytes} compressed bytes, too many for what they are to become")]
    Padded {
        /// What would have been taken.
        limit_bytes: u64,
    },
    /// Other uploads have all the memory that decoders may have.
    #[error("too many compressed uploads are under way")]
    Busy,
    /// The job that decoded did not come to its end.
    #[error("the decoder failed")]
    Job(#[source] tokio::task::JoinError),
}

/// Takes a sequence of frames apart.
pub struct Frames {
    /// Made for the first frame that needs one.
    context: Option<Context<'static>>,
    state: State,
    /// Memory that frames may use.
    granted_bytes: u64,
    /// Whether the context may have output that found no room.
    is_full: bool,
    /// Bytes that may still come out.
    remaining_bytes: u64,
    /// The blob's.
    size_bytes: u64,
}

/// What comes next.
enum State {
    /// A frame's header, of which these bytes are here.
    Header(Vec<u8>),
    /// So many bytes of a skippable frame.
    Skip(u32),
    /// A frame whose header this is, once there is memory for it.
    Begin(Vec<u8>),
    /// The rest of a frame.
    Frame,
}

/// Why a step has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// All input is used up.
    Starved,
    /// The output is full, and there may be more.
    Full,
    /// A frame begins that needs this much memory, which is to be granted before the next step.
    NeedsMemory(u64),
}

// === impl Frames ===

impl Frames {
    /// Of a blob of which so many bytes are still to come.
    pub fn new(size_bytes: u64, remaining_bytes: u64) -> Frames {
        let state = State::Header(Vec::new());
        Frames { context: None, state, granted_bytes: 0, is_full: false, remaining_bytes, size_bytes }
    }

    /// Bytes that may still come out.
    pub fn remaining_bytes(&self) -> u64 {
        self.remaining_bytes
    }

    /// Whether a step without input makes output.
    pub fn has_more(&self) -> bool {
        self.is_full
    }

    /// Gives up the memory that was granted.
    pub fn forget_context(&mut self) {
        self.context = None;
        self.granted_bytes = 0;
    }

    /// Frames may use this much memory.
    pub fn grant(&mut self, bytes: u64) {
        self.granted_bytes = bytes;
    }

    /// Whether the last frame is whole.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn finish(&self) -> Result<(), DecodeError> {
        match &self.state {
            State::Header(bytes) if bytes.is_empty() => Ok(()),
            _ => Err(DecodeError::Truncated),
        }
    }

    /// Decodes until the input is used up, the output has no more room, or a frame needs memory. Output is added to what
    /// the vector has, up to its capacity.
    ///
    /// # Errors
    /// [`DecodeError`]; the frames can only be dropped then.
    pub fn step(&mut self, input: &mut Bytes, output: &mut Vec<u8>) -> Result<Step, DecodeError> {
        loop {
            match std::mem::replace(&mut self.state, State::Frame) {
                State::Header(mut bytes) => {
                    let found = read_header(&mut bytes, input)?;
                    match found {
                        None => {
                            self.state = State::Header(bytes);
                            return Ok(Step::Starved);
                        }
                        Some(Header::Skippable(length)) => self.state = State::Skip(length),
                        Some(Header::Compressed { window_bytes, content_bytes }) => {
                            let needed = self.check(window_bytes, content_bytes)?;
                            self.state = State::Begin(bytes);
                            if needed > self.granted_bytes {
                                return Ok(Step::NeedsMemory(needed));
                            }
                        }
                    }
                }
                State::Skip(length) => {
                    let skipped = input.len().min(length as usize);
                    input.advance(skipped);
                    match length - skipped as u32 {
                        0 => self.state = State::Header(Vec::new()),
                        rest => {
                            self.state = State::Skip(rest);
                            return Ok(Step::Starved);
                        }
                    }
                }
                State::Begin(header) => {
                    // No context needs more than a header to say how much it needs: nothing comes out yet.
                    self.decode(&mut Bytes::from(header), output)?;
                }
                State::Frame => {
                    if input.is_empty() && !self.is_full {
                        return Ok(Step::Starved);
                    }
                    if output.len() == output.capacity() {
                        return Ok(Step::Full);
                    }
                    self.decode(input, output)?;
                }
            }
        }
    }

    /// Has the context take what it can.
    fn decode(&mut self, input: &mut Bytes, output: &mut Vec<u8>) -> Result<(), DecodeError> {
        let context = match &mut self.context {
            Some(context) => context,
            None => self.context.insert(new_context().map_err(DecodeError::Damaged)?),
        };
        let before = output.len();
        let mut from = InBuffer::around(input);
        let mut to = OutBuffer::around_pos(output, before);
        let hint = context.run(&mut from, &mut to).map_err(DecodeError::Damaged)?;
        let used = from.pos();
        input.advance(used);
        self.is_full = hint != 0 && output.len() == output.capacity();
        let made = (output.len() - before) as u64;
        let Some(remaining_bytes) = self.remaining_bytes.checked_sub(made) else {
            return Err(DecodeError::TooLong { decoded_bytes: self.size_bytes - self.remaining_bytes + made });
        };
        self.remaining_bytes = remaining_bytes;
        if hint == 0 {
            self.state = State::Header(Vec::new());
        }
        Ok(())
    }

    /// The memory that a frame needs. What is never touched costs nothing: no window has more than the rest of the blob.
    fn check(&self, window_bytes: u64, content_bytes: Option<u64>) -> Result<u64, DecodeError> {
        if let Some(content_bytes) = content_bytes.filter(|content_bytes| *content_bytes > self.remaining_bytes) {
            let decoded_bytes = (self.size_bytes - self.remaining_bytes).saturating_add(content_bytes);
            return Err(DecodeError::TooLong { decoded_bytes });
        }
        // A single segment has its content for a window, and is no larger than the blob.
        let window_bytes_max = 1 << WINDOW_LOG_MAX;
        if window_bytes > window_bytes_max {
            return Err(DecodeError::Window { window_bytes, window_bytes_max });
        }
        Ok(CONTEXT_BYTES + window_bytes.min(self.remaining_bytes))
    }
}

fn new_context() -> io::Result<Context<'static>> {
    let mut context = Context::new()?;
    context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
    Ok(context)
}

/// Moves bytes from the input until they are a header.
fn read_header(bytes: &mut Vec<u8>, input: &mut Bytes) -> Result<Option<Header>, DecodeError> {
    loop {
        if let Some(header) = frame::header(bytes)? {
            return Ok(Some(header));
        }
        if input.is_empty() || bytes.len() == HEADER_BYTES_MAX {
            return Ok(None);
        }
        bytes.push(input.get_u8());
    }
}
