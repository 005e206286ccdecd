//! Whether all that a tree or an asset names is in the store: the walk behind "an asset is whole" (G7).
//!
//! The walk marks everything it meets as used, so that what it found stays for the retention floor. That is why a
//! tree that was found whole need not be walked again for part of that floor: nothing in it can have gone.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use casbah_cluster::digest::{Digest, DigestError, DigestFunction};
use casbah_proto::build::bazel::remote::execution::v2::Directory;
use prost::Message as _;

use crate::serve::cas::digest_of;
use crate::store::{ReadError, Store};

/// The largest `Directory` or `Tree` message that is read: some 300,000 entries.
pub(super) const MAX_DIRECTORY_BYTES: u64 = 32 << 20;

/// Distinct directories of one walk. A large source tree has tens of thousands; beyond this, memory is at stake.
const MAX_DIRECTORIES: usize = 1_000_000;

/// Trees remembered as whole, about 100 bytes each.
const REMEMBERED_MAX: usize = 64 << 10;

/// The part of the retention floor for which a tree found whole is not walked again: half of it, so that
/// everything in the tree stays at least the other half after the answer.
const REMEMBERED_SHARE: u32 = 2;

/// Why something is not whole.
#[derive(Debug, thiserror::Error)]
pub enum Incomplete {
    /// A blob is not in the store.
    #[error("{digest}, {role}, is not in the store; upload it first")]
    Missing {
        /// The first that was missed.
        digest: Digest,
        /// What it is wanted for.
        role: &'static str,
    },
    /// What should be a directory is not one.
    #[error("{digest} should be a directory or a tree but cannot be read as one")]
    Malformed {
        /// The directory.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: Box<MalformedDirectory>,
    },
    /// A tree has more directories than a walk may visit, or a directory is too large.
    #[error(
        "the tree {root} is too large: more than {MAX_DIRECTORIES} directories, or one of more than {MAX_DIRECTORY_BYTES} bytes"
    )]
    TooLarge {
        /// Its root.
        root: Digest,
    },
    /// The store could not say.
    #[error("whether it is whole cannot be said at present")]
    Store(#[source] ReadError),
}

/// Why a blob is no directory.
#[derive(Debug, thiserror::Error)]
pub enum MalformedDirectory {
    /// Not a `Directory` message.
    #[error("it is no Directory message")]
    Message(#[from] prost::DecodeError),
    /// A child without a digest.
    #[error("its entry \"{name}\" has no digest")]
    NoDigest {
        /// The entry.
        name: String,
    },
    /// A tree without one of its directories.
    #[error("it names the directory {child} but does not hold it")]
    NoChild {
        /// The directory.
        child: Digest,
    },
    /// A child with a malformed digest.
    #[error("one of its entries has a malformed digest")]
    Digest(#[from] DigestError),
}

/// A tree, by what names it. One blob may be read as either, with another meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Tree {
    /// The root `Directory`.
    Root(Digest),
    /// One `Tree` message with all directories.
    Message(Digest),
}

/// A `Tree` message whose directories are left as they came: their digests are those of these bytes.
#[derive(Clone, PartialEq, prost::Message)]
struct TreeMessage {
    #[prost(bytes = "bytes", optional, tag = "1")]
    root: Option<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    children: Vec<Bytes>,
}

/// Says whether trees and blobs are whole, and keeps them from being evicted when they are.
pub struct Completeness {
    store: Store,
    /// A share of the retention floor; zero: nothing is remembered.
    remember_for: Duration,
    /// When a tree was last walked.
    whole: Mutex<HashMap<Tree, Instant>>,
}

// === impl Completeness ===

impl Completeness {
    /// For this store, whose blobs stay for `retention_floor` after their last use.
    pub fn new(store: Store, retention_floor: Duration) -> Completeness {
        Completeness { store, remember_for: retention_floor / REMEMBERED_SHARE, whole: Mutex::new(HashMap::new()) }
    }

    /// Looks for these blobs and for every directory and file of the trees with these roots, and marks them as used.
    ///
    /// # Errors
    /// [`Incomplete`] names the first thing that is missing or wrong.
    pub async fn check(&self, blobs: &[Digest], trees: &[Digest]) -> Result<(), Incomplete> {
        self.all_present(blobs, "one of the blobs named")?;
        for root in trees {
            self.check_tree(root).await?;
        }
        Ok(())
    }

    /// Looks for every file of the trees that these blobs hold as one `Tree` message each, and for the blobs themselves, and
    /// marks them as used. A tree must hold every directory that it names.
    ///
    /// # Errors
    /// [`Incomplete`] names the first thing that is missing or wrong.
    pub async fn check_tree_messages(&self, messages: &[Digest]) -> Result<(), Incomplete> {
        for digest in messages {
            let started = Instant::now();
            if self.is_remembered(Tree::Message(*digest), started) {
                continue;
            }
            let bytes = self.read(digest, digest, "an output directory's tree").await?;
            let malformed = |source| Incomplete::Malformed { digest: *digest, source: Box::new(source) };
            let tree = TreeMessage::decode(bytes).map_err(|error| malformed(error.into()))?;
            let function = digest.function();
            let mut named = HashSet::new();
            for directory in tree.root.iter().chain(&tree.children) {
                tokio::task::consume_budget().await;
                let directory = Directory::decode(directory.clone()).map_err(|error| malformed(error.into()))?;
                let (files, directories) = entries(function, &directory).map_err(malformed)?;
                self.all_present(&files, "a file of a tree")?;
                named.extend(directories);
            }
            for child in &tree.children {
                named.remove(&Digest::of(function, child));
            }
            if let Some(child) = named.into_iter().next() {
                return Err(malformed(MalformedDirectory::NoChild { child }));
            }
            self.remember(Tree::Message(*digest), started);
        }
        Ok(())
    }

    async fn check_tree(&self, root: &Digest) -> Result<(), Incomplete> {
        let started = Instant::now();
        if self.is_remembered(Tree::Root(*root), started) {
            return Ok(());
        }
        let mut seen = HashSet::from([*root]);
        let mut waiting = vec![*root];
        while let Some(digest) = waiting.pop() {
            let (files, directories) = self.children(root, &digest).await?;
            self.all_present(&files, "a file of a tree")?;
            waiting.extend(directories.into_iter().filter(|directory| seen.insert(*directory)));
            if seen.len() > MAX_DIRECTORIES {
                return Err(Incomplete::TooLarge { root: *root });
            }
        }
        self.remember(Tree::Root(*root), started);
        Ok(())
    }

    /// The digests of the files and of the directories in a directory.
    async fn children(&self, root: &Digest, digest: &Digest) -> Result<(Vec<Digest>, Vec<Digest>), Incomplete> {
        // What is in the page cache is read without a pause: a large tree must not keep a thread to itself.
        tokio::task::consume_budget().await;
        let bytes = self.read(root, digest, "a directory of a tree").await?;
        let malformed = |source| Incomplete::Malformed { digest: *digest, source: Box::new(source) };
        let directory = Directory::decode(bytes).map_err(|error| malformed(error.into()))?;
        entries(digest.function(), &directory).map_err(malformed)
    }

    async fn read(&self, root: &Digest, digest: &Digest, role: &'static str) -> Result<Bytes, Incomplete> {
        self.store.get(digest, MAX_DIRECTORY_BYTES).await.map_err(|error| match error {
            ReadError::NotFound { .. } | ReadError::Damaged { .. } => Incomplete::Missing { digest: *digest, role },
            ReadError::TooLarge { .. } => Incomplete::TooLarge { root: *root },
            error => Incomplete::Store(error),
        })
    }

    fn all_present(&self, digests: &[Digest], role: &'static str) -> Result<(), Incomplete> {
        let present = self.store.touch(digests);
        match digests.iter().zip(present).find(|(_, present)| !present) {
            Some((digest, _)) => Err(Incomplete::Missing { digest: *digest, role }),
            None => Ok(()),
        }
    }

    fn is_remembered(&self, tree: Tree, now: Instant) -> bool {
        let (Tree::Root(digest) | Tree::Message(digest)) = tree;
        // The root itself is looked up all the same: a damaged blob goes before its time, and the root is the likeliest
        // to be read.
        let walked = self.whole.lock().unwrap_or_else(PoisonError::into_inner).get(&tree).copied();
        walked.is_some_and(|walked| now.duration_since(walked) < self.remember_for)
            && self.store.touch(&[digest]).iter().all(|present| *present)
    }

    fn remember(&self, tree: Tree, walked: Instant) {
        if self.remember_for.is_zero() {
            return;
        }
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        if whole.len() >= REMEMBERED_MAX {
            whole.retain(|_, then| walked.duration_since(*then) < self.remember_for);
        }
        if whole.len() < REMEMBERED_MAX {
            whole.insert(tree, walked);
        }
    }
}

/// The digests of the files and of the directories in a directory.
///
/// # Errors
/// [`MalformedDirectory`] when an entry has none, or a malformed one.
pub(super) fn entries(
    function: DigestFunction,
    directory: &Directory,
) -> Result<(Vec<Digest>, Vec<Digest>), MalformedDirectory> {
    let of = |name: &str, child: Option<&_>| match child {
        Some(child) => Ok(digest_of(function, child)?),
        None => Err(MalformedDirectory::NoDigest { name: name.to_owned() }),
    };
    let files = directory.files.iter().map(|file| of(&file.name, file.digest.as_ref())).collect::<Result<_, _>>()?;
    let directories =
        directory.directories.iter().map(|child| of(&child.name, child.digest.as_ref())).collect::<Result<_, _>>()?;
    Ok((files, directories))
}
