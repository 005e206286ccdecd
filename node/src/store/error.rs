//! Why the store said no: one enum per kind of call, variants by what the caller can do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use casbah_cluster::digest::Digest;

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or directory of the store could not be made, read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The directory was written by a newer casbah, or is something else.
    #[error("{} has format \"{found}\" and this casbah reads \"{expected}\"", path.display())]
    Format {
        /// The file that names the format.
        path: PathBuf,
        /// What it says, shortened.
        found: String,
        /// What it would have to say.
        expected: &'static str,
    },
    /// A setting cannot be met.
    #[error("a store of {capacity_bytes} bytes is too small: at least {minimum_bytes} are needed")]
    Capacity {
        /// As configured.
        capacity_bytes: u64,
        /// The least that works.
        minimum_bytes: u64,
    },
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The blob is not here.
    #[error("the blob {digest} is not in the store")]
    NotFound {
        /// The blob.
        digest: Digest,
    },
    /// The read begins past the blob's end.
    #[error("offset {offset} is past the end of the blob {digest}")]
    OutOfRange {
        /// The blob.
        digest: Digest,
        /// Where the read was to begin.
        offset: u64,
    },
    /// The blob is larger than the caller wants to hold.
    #[error("the blob {digest} is larger than the {limit_bytes} bytes asked for")]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// What the caller allowed.
        limit_bytes: u64,
    },
    /// The stored copy does not match its checksum. It is no longer in the store.
    #[error("the stored copy of the blob {digest} is damaged and was dropped: {reason}")]
    Damaged {
        /// The blob.
        digest: Digest,
        /// What was found.
        reason: Damage,
    },
    /// The blob is not here. Whether it was is not known: its copy was damaged, or those of many blobs were.
    #[error("the blob {digest} is not in the store, which has lost blobs to damage")]
    Lost {
        /// The blob.
        digest: Digest,
    },
    /// The disk failed. Whether the blob is there is not known.
    #[error("reading the blob {digest} failed")]
    Io {
        /// The blob.
        digest: Digest,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Too many reads wait for the disk; try again.
    #[error("too many reads wait for the disk; the blob {digest} was not read")]
    Busy {
        /// The blob.
        digest: Digest,
    },
}

/// What is wrong with a stored copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The file is gone.
    #[error("its file is gone")]
    Gone,
    /// The file ends too early.
    #[error("its file is too short")]
    Short,
    /// The header or trailer is of another blob or none.
    #[error("its description on disk is not its own")]
    Label,
    /// The bytes do not match their checksum.
    #[error("its bytes do not match their checksum")]
    Checksum,
    /// The bytes match their checksum, and are no zstd frame of the right length.
    #[error("its compressed bytes cannot be decoded")]
    Frame,
}

/// Why a write failed. Nothing of the blob is visible then, and its space is free again.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The bytes are not those that the digest names.
    #[error("the bytes are not those of {expected}: {mismatch}")]
    Mismatch {
        /// The digest of the request.
        expected: Digest,
        /// What the bytes are.
        mismatch: Mismatch,
    },
    /// The blob would not fit if it were alone.
    #[error("the blob {digest} is larger than the store of {capacity_bytes} bytes")]
    LargerThanStore {
        /// The blob.
        digest: Digest,
        /// The store's capacity.
        capacity_bytes: u64,
    },
    /// Nothing may be evicted at present.
    #[error("no room for the blob {digest}: everything stored is in use; try again in {} s", retry_after.as_secs())]
    Full {
        /// The blob.
        digest: Digest,
        /// When something may be evicted.
        retry_after: Duration,
    },
    /// It was last used before all that would have to be evicted for it: a copy that would be the next to go. Nothing is wrong.
    #[error("the blob {digest} was last used before all that would make room for it")]
    Outlived {
        /// The blob.
        digest: Digest,
    },
    /// The store takes no writes until its disk works again.
    #[error("the store is read-only: {reason}; the blob {digest} was not stored")]
    ReadOnly {
        /// The blob.
        digest: Digest,
        /// Why.
        reason: ReadOnlyReason,
    },
    /// The disk failed.
    #[error("writing the blob {digest} failed")]
    Io {
        /// The blob.
        digest: Digest,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Too many writes wait for the disk; try again.
    #[error("too many writes wait for the disk; the blob {digest} was not stored")]
    Busy {
        /// The blob.
        digest: Digest,
    },
    /// The store has been closed.
    #[error("the store is closed; the blob {digest} was not stored")]
    Closed {
        /// The blob.
        digest: Digest,
    },
}

/// How bytes differ from the digest they were sent under.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// More bytes than the digest says; the rest was not looked at.
    #[error("there are at least {received_bytes} bytes")]
    TooLong {
        /// Bytes when it was noticed.
        received_bytes: u64,
    },
    /// Fewer bytes than the digest says.
    #[error("there are only {received_bytes} bytes")]
    TooShort {
        /// Bytes at the end.
        received_bytes: u64,
    },
    /// As many bytes as the digest says, of another hash.
    #[error("they are {actual}")]
    Hash {
        /// What the bytes are.
        actual: Box<Digest>,
    },
}

/// Why a store takes no writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadOnlyReason {
    /// The file system is full and nothing may be evicted.
    #[error("the disk is full")]
    DiskFull,
    /// The disk refused a write or a sync.
    #[error("the disk failed ({0})")]
    DiskFailed(io::ErrorKind),
}
