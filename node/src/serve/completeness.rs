//! Whether all that a tree or an asset names is in the CAS: the walk behind "an asset is whole" (G7).
//!
//! A tree is walked level by level, so that a level costs a round of calls to the nodes that hold it and not one for each
//! blob.
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

use crate::route::{Blobs, ReadError};
use crate::serve::cas::digest_of;

/// The largest `Directory` or `Tree` message that is read: some 300,000 entries.
pub(super) const MAX_DIRECTORY_BYTES: u64 = 32 << 20;

/// Distinct directories of one walk. A large source tree has tens of thousands; beyond this, memory is at stake.
const MAX_DIRECTORIES: usize = 1_000_000;

/// Blobs that are looked up at once: what a message to another node takes well.
const LOOKUP_BATCH: usize = 16 << 10;

/// Bytes of directories that are read at once, or one that is larger, and ...
const READ_BATCH_BYTES: u64 = 2 << 20;

/// ... how many of them.
const READ_BATCH: usize = 1024;

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

/// A directory, and the root that it was found below first.
type Below = (Digest, Digest);

/// Says whether trees and blobs are whole, and keeps them from being evicted when they are.
pub struct Completeness {
    blobs: Blobs,
    /// A share of the retention floor; zero: nothing is remembered.
    remember_for: Duration,
    /// When a tree was last walked.
    whole: Mutex<HashMap<Tree, Instant>>,
}

// === impl Completeness ===

impl Completeness {
    /// For these blobs, which stay for `retention_floor` after their last use.
    pub fn new(blobs: Blobs, retention_floor: Duration) -> Completeness {
        Completeness { blobs, remember_for: retention_floor / REMEMBERED_SHARE, whole: Mutex::new(HashMap::new()) }
    }

    /// Looks for these blobs and for every directory and file of the trees with these roots, and marks them as used.
    ///
    /// # Errors
    /// [`Incomplete`] names the first thing that is missing or wrong.
    pub async fn check(&self, blobs: &[Digest], trees: &[Digest]) -> Result<(), Incomplete> {
        self.all_present(blobs, "one of the blobs named").await?;
        self.check_trees(trees).await
    }

    /// Looks for every file of the trees that these blobs hold as one `Tree` message each, and for the blobs themselves, and
    /// marks them as used. A tree must hold every directory that it names.
    ///
    /// # Errors
    /// [`Incomplete`] names the first thing that is missing or wrong.
    pub async fn check_tree_messages(&self, messages: &[Digest]) -> Result<(), Incomplete> {
        for digest in messages {
            let started = Instant::now();
            let forgotten = self.forgotten(&[*digest], Tree::Message, "an output directory's tree", started).await?;
            if forgotten.is_empty() {
                continue;
            }
            let read = self.blobs.get(digest, MAX_DIRECTORY_BYTES).await;
            let bytes = read.map_err(|error| unread(error, digest, digest, "an output directory's tree"))?;
            let malformed = |source| Incomplete::Malformed { digest: *digest, source: Box::new(source) };
            let tree = TreeMessage::decode(bytes).map_err(|error| malformed(error.into()))?;
            let function = digest.function();
            let mut named = HashSet::new();
            let mut files = Vec::new();
            for directory in tree.root.iter().chain(&tree.children) {
                tokio::task::consume_budget().await;
                let directory = Directory::decode(directory.clone()).map_err(|error| malformed(error.into()))?;
                let (below, directories) = entries(function, &directory).map_err(malformed)?;
                files.extend(below);
                if files.len() >= LOOKUP_BATCH {
                    self.all_present(&std::mem::take(&mut files), "a file of a tree").await?;
                }
                named.extend(directories);
            }
            self.all_present(&files, "a file of a tree").await?;
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

    /// Walks all of these trees at once, level by level.
    async fn check_trees(&self, roots: &[Digest]) -> Result<(), Incomplete> {
        let started = Instant::now();
        let roots = self.forgotten(roots, Tree::Root, "a directory of a tree", started).await?;
        let mut seen: HashSet<Digest> = roots.iter().copied().collect();
        let mut level: Vec<Below> = seen.iter().map(|root| (*root, *root)).collect();
        while !level.is_empty() {
            let mut next = Vec::new();
            let mut files = Vec::new();
            let mut rest = level.as_slice();
            while let Some((batch, after)) = next_batch(rest) {
                rest = after;
                for (bytes, (digest, root)) in self.read(batch).await?.into_iter().zip(batch) {
                    // What is in the page cache is read without a pause: a large tree must not keep a thread to itself.
                    tokio::task::consume_budget().await;
                    let malformed = |source| Incomplete::Malformed { digest: *digest, source: Box::new(source) };
                    let directory = Directory::decode(bytes).map_err(|error| malformed(error.into()))?;
                    let (below, directories) = entries(digest.function(), &directory).map_err(malformed)?;
                    files.extend(below);
                    next.extend(
                        directories.into_iter().filter(|child| seen.insert(*child)).map(|child| (child, *root)),
                    );
                    if seen.len() > MAX_DIRECTORIES {
                        return Err(Incomplete::TooLarge { root: *root });
                    }
                    if files.len() >= LOOKUP_BATCH {
                        self.all_present(&std::mem::take(&mut files), "a file of a tree").await?;
                    }
                }
            }
            self.all_present(&files, "a file of a tree").await?;
            let directories: Vec<Digest> = next.iter().map(|(digest, _)| *digest).collect();
            self.all_present(&directories, "a directory of a tree").await?;
            level = next;
        }
        for root in roots {
            self.remember(Tree::Root(root), started);
        }
        Ok(())
    }

    /// The directories of a part of a level, each with its root.
    async fn read(&self, batch: &[Below]) -> Result<Vec<Bytes>, Incomplete> {
        let role = "a directory of a tree";
        if let [(digest, root)] = batch {
            let read = self.blobs.get(digest, MAX_DIRECTORY_BYTES).await;
            return Ok(vec![read.map_err(|error| unread(error, root, digest, role))?]);
        }
        let digests: Vec<Digest> = batch.iter().map(|(digest, _)| *digest).collect();
        let read = self.blobs.get_many(&digests, MAX_DIRECTORY_BYTES, false).await;
        let read = read.into_iter().zip(batch).map(|(outcome, (digest, root))| match outcome {
            Ok((bytes, _as_it_is)) => Ok(bytes),
            Err(error) => Err(unread(error, root, digest, role)),
        });
        read.collect()
    }

    /// Whether all of these are there; they are used now.
    async fn all_present(&self, digests: &[Digest], role: &'static str) -> Result<(), Incomplete> {
        for batch in digests.chunks(LOOKUP_BATCH) {
            let absent = self.blobs.absent(batch).await.map_err(Incomplete::Store)?;
            if let Some(digest) = absent.into_iter().next() {
                return Err(Incomplete::Missing { digest, role });
            }
        }
        Ok(())
    }

    /// Those of the trees that have to be walked. What names them is there, and used now: a damaged blob goes before its
    /// time, and the root is the likeliest to be read.
    async fn forgotten(
        &self,
        named_by: &[Digest],
        tree: impl Fn(Digest) -> Tree,
        role: &'static str,
        now: Instant,
    ) -> Result<Vec<Digest>, Incomplete> {
        self.all_present(named_by, role).await?;
        let whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        let is_remembered = |digest: &Digest| {
            let walked = whole.get(&tree(*digest));
            walked.is_some_and(|walked| now.duration_since(*walked) < self.remember_for)
        };
        Ok(named_by.iter().filter(|digest| !is_remembered(digest)).copied().collect())
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

/// The beginning of a level that is read at once, and the rest of it.
fn next_batch(level: &[Below]) -> Option<(&[Below], &[Below])> {
    let mut bytes = 0_u64;
    let fits = level.iter().take(READ_BATCH).take_while(|(digest, _)| {
        bytes = bytes.saturating_add(digest.size_bytes());
        bytes <= READ_BATCH_BYTES
    });
    let length = fits.count().max(1);
    level.split_at_checked(length)
}

/// Why a directory of this tree could not be read.
fn unread(error: ReadError, root: &Digest, digest: &Digest, role: &'static str) -> Incomplete {
    match error {
        error if error.is_miss() => Incomplete::Missing { digest: *digest, role },
        error if error.is_too_large() => Incomplete::TooLarge { root: *root },
        error => Incomplete::Store(error),
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
