//! GetTree: a directory and all below it, breadth first, each distinct directory once, in pages.

use std::collections::{HashSet, VecDeque};

use casbah_cluster::digest::{Digest, DigestFunction};
use casbah_proto::build::bazel::remote::execution::v2 as api;
use futures_util::Stream;
use futures_util::stream;
use prost::Message as _;
use tonic::Status;

use crate::serve::cas::digest_of;
use crate::serve::completeness::{MAX_DIRECTORY_BYTES, entries};
use crate::serve::status_map;
use crate::store::{ReadError, Store};

/// Directories of one page, at most and by default.
const PAGE_DIRECTORIES: usize = 1_000;

/// Bytes of directories in one page: clients take messages of 4 MiB. One directory larger than this gets a page of
/// its own.
const PAGE_BYTES: usize = 2 << 20;

/// Distinct directories of one tree.
const MAX_DIRECTORIES: usize = 1_000_000;

/// A walk over a tree, in an order that depends on the tree alone.
struct Walk {
    store: Store,
    function: DigestFunction,
    waiting: VecDeque<Digest>,
    seen: HashSet<Digest>,
    /// Directories that were given out.
    count: u64,
    page_directories: usize,
    /// A directory that did not fit into the page before.
    held_back: Option<api::Directory>,
}

/// The pages of the tree, from where the request's page token stands.
///
/// # Errors
/// `INVALID_ARGUMENT` for malformed requests, `NOT_FOUND` when the root is not in the store.
pub(super) async fn pages(
    store: Store,
    function: DigestFunction,
    request: api::GetTreeRequest,
) -> Result<impl Stream<Item = Result<api::GetTreeResponse, Status>> + Send + 'static, Status> {
    let root = request.root_digest.ok_or_else(|| Status::invalid_argument("the request has no root_digest"))?;
    let root = digest_of(function, &root).map_err(|error| status_map::digest(&error))?;
    let skip = match request.page_token.as_str() {
        "" => 0,
        token => token.parse::<u64>().map_err(|_| {
            Status::invalid_argument(format!("the page token \"{token:.40}\" was not given out by this server"))
        })?,
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
        store,
        function,
        waiting: VecDeque::from([root]),
        seen: HashSet::from([root]),
        count: 0,
        page_directories,
        held_back: None,
    };
    if !walk.store.contains(&root) {
        return Err(Status::not_found(format!("the root directory {root} is not in the store")));
    }
    while walk.count < skip && walk.next().await?.is_some() {}
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
        while directories.len() < self.page_directories {
            let next = match self.held_back.take() {
                Some(directory) => Some(directory),
                None => self.next().await?,
            };
            let Some(directory) = next else { break };
            bytes += directory.encoded_len();
            if bytes > PAGE_BYTES && !directories.is_empty() {
                self.held_back = Some(directory);
                break;
            }
            directories.push(directory);
        }
        if directories.is_empty() {
            return Ok(None);
        }
        let more = self.held_back.is_some() || !self.waiting.is_empty();
        let given_out = self.count - u64::from(self.held_back.is_some());
        let next_page_token = if more { given_out.to_string() } else { String::new() };
        Ok(Some(api::GetTreeResponse { directories, next_page_token }))
    }

    /// The next directory that is in the store; what is missing is passed over, as the API asks.
    async fn next(&mut self) -> Result<Option<api::Directory>, Status> {
        while let Some(digest) = self.waiting.pop_front() {
            tokio::task::consume_budget().await;
            let bytes = match self.store.get(&digest, MAX_DIRECTORY_BYTES).await {
                Ok(bytes) => bytes,
                Err(ReadError::NotFound { .. } | ReadError::Damaged { .. }) => continue,
                Err(error) => return Err(status_map::read(&error)),
            };
            let malformed = |error: &dyn std::error::Error| {
                let cause = status_map::with_causes(error);
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
            self.count += 1;
            return Ok(Some(directory));
        }
        Ok(None)
    }
}
