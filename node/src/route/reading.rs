//! Reads under way, wherever the blob lies, and wherever else when a node fails in the middle.

use std::sync::Arc;

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_cluster::membership::NodeId;
use casbah_cluster::view::View;

use crate::forward::{Form, PeerError};
use crate::replicate::{Nodes, RemoteRead};
use crate::route::error::{NodeError, ReadError};
use crate::route::fetch::{is_lost, may_be_elsewhere};
use crate::route::rounds::Sought;
use crate::store;

/// A read under way. Pieces come in order; dropping it ends the read. When the node that they come from fails, another one goes
/// on where it was.
pub struct Reader {
    nodes: Nodes,
    digest: Digest,
    /// The next byte to return.
    at: u64,
    /// Where the read ends.
    end: u64,
    source: Source,
    /// Where else it may be; `None` while it comes from here.
    search: Option<Box<Search>>,
}

/// Where pieces come from.
enum Source {
    Here(store::Reader),
    There(NodeId, Box<dyn RemoteRead>),
    Memory(Bytes),
    /// From nowhere: the next node is to be asked.
    Nowhere,
}

/// The search for a blob that did not come, or not all of it, from here.
struct Search {
    view: Arc<View>,
    sought: Sought,
    /// What this node's store said.
    here: Option<store::ReadError>,
}

/// A read of a compressed blob as it is stored. Pieces come in order; dropping it ends the read. The frames of two nodes need not
/// be the same ones, so that after the first piece no other node can go on.
pub struct StoredReader {
    digest: Digest,
    first: Option<Bytes>,
    source: Frames,
}

/// Where frames come from.
enum Frames {
    Here(store::StoredReader),
    There(NodeId, Box<dyn RemoteRead>),
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
    /// A read of a range, to the end when no length is given.
    pub(super) async fn open(
        nodes: &Nodes,
        digest: &Digest,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Reader, ReadError> {
        let rest = digest.size_bytes().checked_sub(offset);
        let end = |rest: u64| offset + length.unwrap_or(rest).min(rest);
        match (nodes.store().read(digest, offset, length).await, rest) {
            (Ok(reader), rest) => {
                let view = nodes.view();
                nodes.touch_others(&view, digest, view.self_id());
                let (nodes, end) = (nodes.clone(), rest.map_or(offset, end));
                Ok(Reader { nodes, digest: *digest, at: offset, end, source: Source::Here(reader), search: None })
            }
            (Err(error), Some(rest)) if may_be_elsewhere(&error) => {
                Reader::elsewhere(nodes, digest, offset, end(rest), error).await
            }
            (Err(error), None) if may_be_elsewhere(&error) => {
                // Past the end, or of no blob: which of the two it is depends on whether another node has the blob.
                Reader::elsewhere(nodes, digest, 0, digest.size_bytes(), error).await?;
                Err(store::ReadError::OutOfRange { digest: *digest, offset }.into())
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    /// A read of a blob that is not here.
    pub(super) async fn elsewhere(
        nodes: &Nodes,
        digest: &Digest,
        offset: u64,
        end: u64,
        error: store::ReadError,
    ) -> Result<Reader, ReadError> {
        if nodes.view().is_single() {
            return Err(error.into());
        }
        let (nodes, source) = (nodes.clone(), Source::Nowhere);
        let mut reader = Reader { nodes, digest: *digest, at: offset, end, source, search: None };
        reader.is_not_here(error);
        reader.ask_next(false).await?;
        Ok(reader)
    }

    /// A read of what is in memory.
    pub(super) fn of(nodes: &Nodes, digest: &Digest, whole: Bytes) -> Reader {
        let end = whole.len() as u64;
        Reader { nodes: nodes.clone(), digest: *digest, at: 0, end, source: Source::Memory(whole), search: None }
    }

    /// The next piece, of up to a megabyte or so; `None` at the end.
    ///
    /// # Errors
    /// [`ReadError`]. After an error no piece follows.
    ///
    /// # Cancel safety
    /// Dropped half-way, the reader can only be dropped too.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        while self.at < self.end {
            match std::mem::replace(&mut self.source, Source::Nowhere) {
                Source::Here(mut reader) => match reader.next().await {
                    Ok(Some(piece)) => return Ok(Some(self.pass(piece, Source::Here(reader)))),
                    Ok(None) => self.is_not_here(store::ReadError::Busy { digest: self.digest }),
                    Err(error) if self.nodes.view().is_single() => return Err(error.into()),
                    Err(error) => self.is_not_here(error),
                },
                Source::There(node, mut read) => match read.next().await {
                    Ok(Some(piece)) => return Ok(Some(self.pass(piece, Source::There(node, read)))),
                    Ok(None) => self.broke(node, None),
                    Err(error) => self.broke(node, Some(error)),
                },
                Source::Memory(whole) => return Ok(Some(self.pass(whole, Source::Nowhere))),
                Source::Nowhere => self.ask_next(false).await?,
            }
        }
        Ok(None)
    }

    /// Counts a piece, and cuts off what was not asked for.
    fn pass(&mut self, piece: Bytes, source: Source) -> Bytes {
        let mut piece = piece;
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        piece.truncate(left);
        self.at += piece.len() as u64;
        self.source = source;
        piece
    }

    fn is_not_here(&mut self, error: store::ReadError) {
        let view = self.nodes.view();
        let sought = Sought::not_here(&self.nodes, &view, 0, &self.digest, &error);
        self.search = Some(Box::new(Search { view, sought, here: Some(error) }));
    }

    fn broke(&mut self, node: NodeId, error: Option<PeerError>) {
        tracing::debug!(digest = %self.digest, %node, at = self.at, "a read broke off and goes on elsewhere");
        if let Some(search) = &mut self.search {
            search.fails(&self.nodes, node, error);
        }
    }

    /// Has the next node go on. Zstd frames come, if they are taken, only of the whole blob.
    async fn ask_next(&mut self, takes_zstd: bool) -> Result<(), ReadError> {
        let digest = self.digest;
        let Some(search) = &mut self.search else { return Err(ReadError::Unavailable { digest, source: None }) };
        let is_rest = self.end == digest.size_bytes();
        let length = (!is_rest).then_some(self.end - self.at);
        loop {
            search.sought.catch_up(&self.nodes).await;
            let node = match search.sought.next::<()>() {
                Ok(node) => node,
                Err(outcome) => return Err(outcome.refusal(&digest, search.here.take())),
            };
            match self.nodes.remote().read(node, &digest, self.at, length, takes_zstd).await {
                Ok(read) => {
                    if search.here.as_ref().is_some_and(is_lost) {
                        self.nodes.mend(&search.view, digest, node, search.view.self_id());
                    }
                    self.nodes.touch_others(&search.view, &digest, node);
                    self.source = Source::There(node, read);
                    return Ok(());
                }
                Err(error) => search.fails(&self.nodes, node, Some(error)),
            }
        }
    }
}

// === impl Search ===

impl Search {
    fn fails(&mut self, nodes: &Nodes, node: NodeId, error: Option<PeerError>) {
        self.sought.heard(nodes.epoch_of(node));
        match error {
            Some(PeerError::NotFound) => self.sought.is_not_on(node),
            error => {
                let error = error.map(|error| NodeError { node, source: Arc::new(error) });
                self.sought.is_perhaps_on(node, error);
            }
        }
    }
}

// === impl Pieces ===

impl Pieces {
    /// A read of a whole blob in the form that it is stored in.
    pub(super) async fn open(nodes: &Nodes, digest: &Digest) -> Result<Pieces, ReadError> {
        let error = match nodes.store().read_stored(digest).await {
            Ok(None) => return Ok(Pieces::Blob(Reader::open(nodes, digest, 0, None).await?)),
            // The first piece tells whether it is damaged, while another node can still do it.
            Ok(Some(mut frames)) => match frames.next().await {
                Ok(first) => {
                    let view = nodes.view();
                    nodes.touch_others(&view, digest, view.self_id());
                    let source = Frames::Here(frames);
                    return Ok(Pieces::Frames(StoredReader { digest: *digest, first, source }));
                }
                Err(error) => error,
            },
            Err(error) => error,
        };
        if nodes.view().is_single() {
            return Err(error.into());
        }
        let (nodes, source) = (nodes.clone(), Source::Nowhere);
        let end = digest.size_bytes();
        let mut reader = Reader { nodes, digest: *digest, at: 0, end, source, search: None };
        reader.is_not_here(error);
        reader.ask_next(true).await?;
        Ok(match reader.source {
            Source::There(node, read) if read.form() == Form::Zstd => {
                Pieces::Frames(StoredReader { digest: *digest, first: None, source: Frames::There(node, read) })
            }
            source => Pieces::Blob(Reader { source, ..reader }),
        })
    }

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

// === impl StoredReader ===

impl StoredReader {
    /// The next frames, about a megabyte of them; `None` at the end.
    ///
    /// # Errors
    /// [`ReadError`]. After an error no piece follows.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        match &mut self.source {
            Frames::Here(reader) => Ok(reader.next().await?),
            Frames::There(node, read) => read.next().await.map_err(|error| {
                let source = Some(NodeError { node: *node, source: Arc::new(error) });
                ReadError::Unavailable { digest: self.digest, source }
            }),
        }
    }
}
