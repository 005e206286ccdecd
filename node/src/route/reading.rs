//! Reads under way, wherever the blob lies.

use bytes::Bytes;

use crate::route::error::ReadError;
use crate::store;

/// How the bytes of a blob come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// As they are.
    Identity,
    /// In zstd frames, each of which says how many bytes it makes.
    Zstd,
}

/// A read under way. Pieces come in order; dropping it ends the read.
pub struct Reader {
    here: store::Reader,
}

/// A read of a compressed blob as it is stored. Pieces come in order; dropping it ends the read.
pub struct StoredReader {
    here: store::StoredReader,
}

/// A read in the form that the blob is stored in.
pub enum Pieces {
    /// A blob.
    Blob(Reader),
    /// A blob as it is stored, in zstd frames.
    Frames(StoredReader),
}

// === impl Reader ===

impl Reader {
    pub(super) fn new(here: store::Reader) -> Reader {
        Reader { here }
    }

    /// The next piece, of up to a megabyte; `None` at the end.
    ///
    /// # Errors
    /// [`ReadError`]. After an error no piece follows.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        Ok(self.here.next().await?)
    }
}

// === impl StoredReader ===

impl StoredReader {
    pub(super) fn new(here: store::StoredReader) -> StoredReader {
        StoredReader { here }
    }

    /// The next frames, about a megabyte of them; `None` at the end.
    ///
    /// # Errors
    /// [`ReadError`]. After an error no piece follows.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        Ok(self.here.next().await?)
    }
}

// === impl Pieces ===

impl Pieces {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// [`ReadError`]. After an error no piece follows.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        match self {
            Pieces::Blob(reader) => reader.next().await,
            Pieces::Frames(reader) => reader.next().await,
        }
    }
}
