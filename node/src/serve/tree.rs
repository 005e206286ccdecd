//! GetTree: a directory and all below it, breadth first, each distinct directory once, in pages.
//!
//! What is missing below the root is left out, because the API says so ("return the portion present and omit the
//! rest"): whoever must know whether a tree is whole asks FindMissingBlobs, or pushes it as an asset.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;
use casbah_cluster::digest::{Digest, DigestFunction};
use casbah_proto::build::bazel::remote::execution::v2 as api;
use futures_util::Stream;
use futures_util::stream;
use prost::Message as _;
use tonic::Status;

use crate::observe::with_causes;
use crate::route::{Blobs, ReadError};
use crate::serve::cas::digest_of;
use crate::serve::completeness::{MAX_DIRECTORY_BYTES, entries};
use crate::serve::status_map;

/// Directories of one page, at most and by default.
const PAGE_DIRECTORIES: usize = 1_000;

/// Bytes of directories in one page: clients take messages of 4 MiB. One directory larger than this gets a page of
/// its own.
const PAGE_BYTES: usize = 2 << 20;

/// Directories that are read at once, ahead of the page that they are for, and ...
const AHEAD: usize = 256;

/// ... the bytes of them, or one that is larger.
const AHEAD_BYTES: u64 = 1 << 20;

/// Distinct directories of one tree.
const MAX_DIRECTORIES: usize = 1_000_000;

/// A walk over a tree, in an order that depends on the tree alone.
struct Walk {
    blobs: Blobs,
    function: DigestFunction,
    /// Read already, first.
    ahead: VecDeque<(Digest, Result<Bytes, ReadError>)>,
    waiting: VecDeque<Digest>,
    seen: HashSet<Digest>,
    page_directories: usize,
    /// The first directory of the next page: whether there is one must be known before a page can say that it is the
    /// last.
    held_back: Option<Found>,
}

/// A directory that is in the store.
struct Found {
    digest: Digest,
    directory: api::Directory,
}

/// The pages of the tree, from where the request's page token stands.
///
/// # Errors
/// `INVALID_ARGUMENT` for malformed requests, `NOT_FOUND` when the root is not in the store.
pub(super) async fn pages(
    blobs: Blobs,
    function: DigestFunction,
    request: api::GetTreeRequest,
) -> Result<impl Stream<Item = Result<api::GetTreeResponse, Status>> + Send + 'static, Status> {
    let root = request.root_digest.ok_or_else(|| Status::invalid_argument("the request has no root_digest"))?;
    let root = digest_of(function, &root).map_err(|error| status_map::digest(&error))?;
    let token = request.page_token.as_str();
    let resume_after = match token {
        "" => None,
        token => Some(resume_point(function, token)?),
    };
    let page_directories = match usize::try_from(request.page_size) {
        Ok(0) => PAGE_DIRECTORIES,
        Ok(size) => size.min(PAGE_DIRECTORIES),
        Err(_) => {
            let message =
                format!("the page size {} is below zero; 0 stands for the server's choice", request.page_size);
            return Err(Status::invalid_argument(message));
        }
    };
    let mut walk = Walk {
        blobs,
        function,
        ahead: VecDeque::new(),
        waiting: VecDeque::from([root]),
        seen: HashSet::from([root]),
        page_directories,
        held_back: None,
    };
    let Some((_, Some(directory))) = walk.visit_next().await? else {
        return Err(Status::not_found(format!("the root directory {root} is not in the store")));
    };
    walk.held_back = match resume_after {
        None => Some(Found { digest: root, directory }),
        Some(last) if last == root || walk.skip_past(&last).await? => walk.next().await?,
        Some(_) => return Err(foreign_token(token)),
    };
    Ok(stream::unfold(Some(walk), |walk| async move {
        let mut walk = walk?;
        match walk.page().await {
            Ok(Some(page)) => Some((Ok(page), Some(walk))),
            Ok(None) => None,
            Err(status) => Some((Err(status), None)),
        }
    }))
}

// === impl Walk ===

impl Walk {
    /// The next page; `None` behind the last one.
    async fn page(&mut self) -> Result<Option<api::GetTreeResponse>, Status> {
        let mut directories = Vec::new();
        let mut bytes = 0;
        let mut last = None;
        while let Some(found) = self.held_back.take() {
            bytes += found.directory.encoded_len();
            if directories.len() == self.page_directories || (bytes > PAGE_BYTES && !directories.is_empty()) {
                self.held_back = Some(found);
                break;
            }
            last = Some(found.digest);
            directories.push(found.directory);
            self.held_back = self.next().await?;
        }
        let next_page_token = match (last, &self.held_back) {
            (None, _) => return Ok(None),
            (Some(_), None) => String::new(),
            (Some(last), Some(_)) => format!("{}/{}", last.hash_hex(), last.size_bytes()),
        };
        Ok(Some(api::GetTreeResponse { directories, next_page_token }))
    }

    /// The next directory that is in the CAS; what is missing is passed over, as the API asks.
    async fn next(&mut self) -> Result<Option<Found>, Status> {
        while let Some((digest, directory)) = self.visit_next().await? {
            if let Some(directory) = directory {
                return Ok(Some(Found { digest, directory }));
            }
        }
        Ok(None)
    }

    /// Goes on to what comes after this directory, which may have been evicted since it was given out; `false` when it
    /// is not in the tree.
    async fn skip_past(&mut self, last: &Digest) -> Result<bool, Status> {
        while let Some((digest, _)) = self.visit_next().await? {
            if digest == *last {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The next directory, whose children are waiting from now on; `None` in the place of one that is not in the CAS.
    async fn visit_next(&mut self) -> Result<Option<(Digest, Option<api::Directory>)>, Status> {
        tokio::task::consume_budget().await;
        if self.ahead.is_empty() {
            self.read_ahead().await;
        }
        match self.ahead.pop_front() {
            None => Ok(None),
            Some((digest, Ok(bytes))) => Ok(Some((digest, Some(self.visit(&digest, bytes)?)))),
            Some((digest, Err(error))) if error.is_miss() => Ok(Some((digest, None))),
            Some((_, Err(error))) => Err(status_map::read(&error)),
        }
    }

    /// Reads some of those that are waiting.
    async fn read_ahead(&mut self) {
        let mut bytes = 0_u64;
        let fits = self.waiting.iter().take(AHEAD).take_while(|digest| {
            bytes = bytes.saturating_add(digest.size_bytes());
            bytes <= AHEAD_BYTES
        });
        let count = fits.count().max(1).min(self.waiting.len());
        let digests: Vec<Digest> = self.waiting.drain(..count).collect();
        let read = self.blobs.get_many(&digests, MAX_DIRECTORY_BYTES, false).await;
        let read = read.into_iter().map(|outcome| outcome.map(|(bytes, _as_it_is)| bytes));
        self.ahead.extend(digests.into_iter().zip(read));
    }

    /// Has the children of a directory wait.
    fn visit(&mut self, digest: &Digest, bytes: Bytes) -> Result<api::Directory, Status> {
        let malformed = |error: &dyn std::error::Error| {
            let cause = with_causes(error);
            Status::invalid_argument(format!("{digest} cannot be read as a directory: {cause}"))
        };
        let directory = api::Directory::decode(bytes).map_err(|error| malformed(&error))?;
        let (_files, children) = entries(self.function, &directory).map_err(|error| malformed(&error))?;
        for child in children {
            if self.seen.insert(child) {
                self.waiting.push_back(child);
            }
        }
        if self.seen.len() > MAX_DIRECTORIES {
            let message = format!("the tree has more than {MAX_DIRECTORIES} directories");
            return Err(Status::invalid_argument(message));
        }
        Ok(directory)
    }
}

/// The last directory of the page that this token came with.
fn resume_point(function: DigestFunction, token: &str) -> Result<Digest, Status> {
    let (hash, size) = token.split_once('/').ok_or_else(|| foreign_token(token))?;
    Digest::parse(function, hash, size).map_err(|_| foreign_token(token))
}

fn foreign_token(token: &str) -> Status {
    Status::invalid_argument(format!("the page token \"{token:.80}\" was not given out for this tree by this server"))
}
