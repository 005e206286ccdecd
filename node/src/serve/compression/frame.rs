//! The header of a zstd frame (RFC 8878, section 3.1): what the frame will cost is known from it, before anything is
//! spent.

use super::frames::DecodeError;

/// The longest header: magic number, descriptor, window, dictionary and content size.
pub const HEADER_BYTES_MAX: usize = 4 + 1 + 1 + 4 + 8;

const MAGIC: u32 = 0xFD2F_B528;

/// The magic numbers of skippable frames end in any four bits.
const SKIPPABLE_MAGIC: u32 = 0x184D_2A50;

/// The sizes of a header's optional fields, by the bits that announce them.
const DICTIONARY_BYTES: [usize; 4] = [0, 1, 2, 4];
const CONTENT_SIZE_BYTES: [usize; 4] = [0, 2, 4, 8];

/// What a frame says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// So many bytes of no meaning to a decoder follow.
    Skippable(u32),
    /// Compressed bytes follow.
    Compressed {
        /// Bytes of its own output that the decoder has to remember.
        window_bytes: u64,
        /// Bytes that it makes, if it says so.
        content_bytes: Option<u64>,
    },
}

/// The header at the beginning of these bytes; `None` while there are too few of them.
///
/// # Errors
/// [`DecodeError::NotZstd`] when no frame begins so.
pub fn header(bytes: &[u8]) -> Result<Option<Header>, DecodeError> {
    let mut rest = bytes;
    let Some(magic) = take_number(&mut rest, 4) else { return Ok(None) };
    if magic & !0xF == u64::from(SKIPPABLE_MAGIC) {
        return Ok(take_number(&mut rest, 4).map(|length| Header::Skippable(length as u32)));
    }
    if magic != u64::from(MAGIC) {
        return Err(DecodeError::NotZstd);
    }
    let Some(descriptor) = take_number(&mut rest, 1) else { return Ok(None) };
    let is_single_segment = descriptor & 0x20 != 0;
    let window = if is_single_segment { Some(None) } else { take_number(&mut rest, 1).map(Some) };
    let Some(window) = window else { return Ok(None) };
    let dictionary_bytes = DICTIONARY_BYTES.get(descriptor as usize & 3).copied().unwrap_or_default();
    let Some(_dictionary) = take_number(&mut rest, dictionary_bytes) else { return Ok(None) };
    let size_bytes = match CONTENT_SIZE_BYTES.get(descriptor as usize >> 6) {
        Some(0) | None => usize::from(is_single_segment),
        Some(size_bytes) => *size_bytes,
    };
    let Some(size) = take_number(&mut rest, size_bytes) else { return Ok(None) };
    let content_bytes = match size_bytes {
        0 => None,
        // Smaller sizes have the shorter field.
        2 => Some(size + 256),
        _ => Some(size),
    };
    let window_bytes = match window {
        Some(window) => {
            let base = 1 << (10 + (window >> 3));
            base + base / 8 * (window & 7)
        }
        None => content_bytes.unwrap_or_default(),
    };
    Ok(Some(Header::Compressed { window_bytes, content_bytes }))
}

/// The little-endian number in the next bytes.
fn take_number(bytes: &mut &[u8], length: usize) -> Option<u64> {
    let (number, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(number.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use zstd::stream::raw::CParameter;
    use zstd::zstd_safe::CCtx;

    use super::*;

    fn compressed(content: &[u8], parameters: &[CParameter]) -> Vec<u8> {
        let mut context = CCtx::create();
        for parameter in parameters {
            context.set_parameter(*parameter).unwrap();
        }
        let mut frame = Vec::with_capacity(zstd::zstd_safe::compress_bound(content.len()));
        context.compress2(&mut frame, content).unwrap();
        frame
    }

    #[test]
    fn what_the_encoder_says_of_a_frame_is_understood() {
        for size in [0, 1, 255, 256, 257, 65_791, 65_792, 65_793, 3 << 20] {
            let content = vec![7; size];
            let frame = compressed(&content, &[CParameter::WindowLog(17)]);
            let Header::Compressed { window_bytes, content_bytes } = header(&frame).unwrap().unwrap() else { panic!() };
            assert_eq!(content_bytes, Some(size as u64));
            assert_eq!(
                window_bytes,
                (size as u64).min(1 << 17).max(if size < 1 << 17 { 0 } else { 1 << 17 }),
                "{size}"
            );
            let frame = compressed(&content, &[CParameter::ContentSizeFlag(false), CParameter::WindowLog(20)]);
            let Header::Compressed { window_bytes, content_bytes } = header(&frame).unwrap().unwrap() else { panic!() };
            assert_eq!(content_bytes, None);
            assert!(window_bytes >= (size as u64).min(1 << 20), "{size}: {window_bytes}");
        }
    }

    #[test]
    fn the_largest_window_that_can_be_written_is_understood() {
        // Exponent 31, mantissa 7: 3.75 TiB.
        let header = header(&[0x28, 0xB5, 0x2F, 0xFD, 0x00, 0xFF]).unwrap();
        assert_eq!(header, Some(Header::Compressed { window_bytes: (1 << 41) / 8 * 15, content_bytes: None }));
    }

    #[test]
    fn a_header_that_is_cut_anywhere_waits_for_more() {
        // All fields: descriptor with dictionary of 4 and content size of 8 bytes.
        let mut whole = vec![0x28, 0xB5, 0x2F, 0xFD, 0xC3, 0x58, 1, 2, 3, 4];
        whole.extend(5_000_000_000_u64.to_le_bytes());
        assert_eq!(whole.len(), HEADER_BYTES_MAX);
        for length in 0..whole.len() {
            assert_eq!(header(&whole[..length]).unwrap(), None, "{length}");
        }
        let expected = Header::Compressed { window_bytes: 1 << 21, content_bytes: Some(5_000_000_000) };
        assert_eq!(header(&whole).unwrap(), Some(expected));
        let skippable = [0x5A, 0x2A, 0x4D, 0x18, 0xFF, 0xFF, 0xFF, 0xFF];
        for length in 0..skippable.len() {
            assert_eq!(header(&skippable[..length]).unwrap(), None, "{length}");
        }
        assert_eq!(header(&skippable).unwrap(), Some(Header::Skippable(u32::MAX)));
    }

    #[test]
    fn other_formats_are_not_zstd() {
        let legacy = [0x27, 0xB5, 0x2F, 0xFD, 0, 0, 0, 0];
        for bytes in [&b"\x1f\x8b\x08\x00abcdef"[..], b"BZh91AY", b"text", &[0; 20], &legacy] {
            assert!(matches!(header(bytes), Err(DecodeError::NotZstd)), "{bytes:?}");
        }
    }
}
