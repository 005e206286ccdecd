//! Compressed bytes in, pieces of a blob out.

use bytes::{Buf as _, Bytes};

use super::buffers::ROOM_BYTES;
use super::frames::{DecodeError, Frames, Step};
use super::workers::{Compression, INLINE_BYTES, Memory};

/// The most that comes out at once: as much as an upload gathers before it hashes and writes it.
const PIECE_BYTES: u64 = ROOM_BYTES as u64 - 1;

/// The most that goes into one job: it may make nothing of it, and take some 20 ms for that (frames without content).
const JOB_INPUT_BYTES: usize = 1 << 20;

/// Compressed bytes that are taken for a blob: this times its size, ...
const PADDING_FACTOR: u64 = 2;

/// ... and so many more. No encoder makes a blob larger by more than a hundredth; skippable and empty frames could go on
/// for ever.
const PADDING_BYTES: u64 = 1 << 20;

/// Decompresses one upload, or one blob of a batch.
pub struct Decoder {
    compression: Compression,
    /// `None` only while a job has it, or after an error.
    frames: Option<Box<Frames>>,
    /// What the frame under way, and those after it that need no more, may use.
    memory: Option<Memory>,
    input: Bytes,
    /// Compressed bytes that may still come.
    input_bytes_left: u64,
    input_bytes_max: u64,
}

// === impl Decoder ===

impl Decoder {
    /// Of a blob of this size, of which the first bytes are here already.
    pub(super) fn new(compression: Compression, size_bytes: u64, decoded_bytes: u64) -> Decoder {
        let remaining_bytes = size_bytes.saturating_sub(decoded_bytes);
        let input_bytes_max = remaining_bytes.saturating_mul(PADDING_FACTOR).saturating_add(PADDING_BYTES);
        Decoder {
            compression,
            frames: Some(Box::new(Frames::new(size_bytes, remaining_bytes))),
            memory: None,
            input: Bytes::new(),
            input_bytes_left: input_bytes_max,
            input_bytes_max,
        }
    }

    /// Takes the next compressed bytes, once [`Decoder::next`] has used those before.
    ///
    /// # Errors
    /// [`DecodeError::Padded`].
    pub fn push(&mut self, data: Bytes) -> Result<(), DecodeError> {
        let left = self.input_bytes_left.checked_sub(data.len() as u64);
        self.input_bytes_left = left.ok_or(DecodeError::Padded { limit_bytes: self.input_bytes_max })?;
        self.input = data;
        Ok(())
    }

    /// The next piece of the blob; `None` when it takes more compressed bytes to make one.
    ///
    /// # Errors
    /// [`DecodeError`]. After an error no piece follows.
    ///
    /// # Cancel safety
    /// Dropped half-way, the decoder can only be dropped too.
    pub async fn next(&mut self) -> Result<Option<Bytes>, DecodeError> {
        loop {
            let Some(frames) = self.frames.take() else { return Err(DecodeError::Truncated) };
            if self.input.is_empty() && !frames.has_more() {
                self.frames = Some(frames);
                return Ok(None);
            }
            let (step, piece) = self.step(frames).await?;
            if let Step::NeedsMemory(bytes) = step {
                self.make_room(bytes).await?;
            }
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }

    /// Whether the compressed bytes so far end with a frame.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] when they do not.
    pub fn finish(&self) -> Result<(), DecodeError> {
        self.frames.as_ref().ok_or(DecodeError::Truncated)?.finish()
    }

    /// Decodes a little: here when it is little, or else in a job.
    async fn step(&mut self, mut frames: Box<Frames>) -> Result<(Step, Bytes), DecodeError> {
        let rest = frames.remaining_bytes();
        let mut input = self.input.slice(..self.input.len().min(JOB_INPUT_BYTES));
        let given = input.len();
        let is_little = given <= INLINE_BYTES && !frames.has_more();
        // One byte more than may come shows that more would.
        let room_bytes = if is_little { rest.min(INLINE_BYTES as u64) } else { rest.min(PIECE_BYTES) } as usize + 1;
        let outcome = if is_little {
            let mut output = Vec::with_capacity(room_bytes);
            frames.step(&mut input, &mut output).map(|step| (frames, input.len(), step, trimmed(output)))
        } else {
            let mut room = self.compression.buffer(room_bytes);
            let job = move || {
                let step = frames.step(&mut input, room.bytes())?;
                Ok((frames, input.len(), step, room.freeze()))
            };
            self.compression.run(job).await.map_err(DecodeError::Job)?
        };
        let (frames, unused, step, piece) = outcome?;
        self.frames = Some(frames);
        self.input.advance(given - unused);
        Ok((step, piece))
    }

    /// Has memory for the frame that begins, giving up that of the frame before first: who holds some never waits for more.
    async fn make_room(&mut self, bytes: u64) -> Result<(), DecodeError> {
        let Some(mut frames) = self.frames.take() else { return Err(DecodeError::Truncated) };
        frames.forget_context();
        self.memory = None;
        let memory = self.compression.memory(bytes).await?;
        frames.grant(memory.bytes());
        self.memory = Some(memory);
        self.frames = Some(frames);
        Ok(())
    }
}

/// The bytes without the room that they do not use, if that is much: they may wait for a while, many of them.
fn trimmed(bytes: Vec<u8>) -> Bytes {
    if bytes.len() < bytes.capacity() / 2 { Bytes::copy_from_slice(&bytes) } else { Bytes::from(bytes) }
}
