//! Segments: files that hold many small blobs.

use super::key::RECORD_ALIGN;

/// Bytes a record's header takes.
pub const HEADER_BYTES: u64 = 64;

/// Bytes of disk that the record of a blob of this size takes.
pub fn record_bytes(size_bytes: u64) -> u64 {
    HEADER_BYTES + size_bytes.next_multiple_of(RECORD_ALIGN)
}
