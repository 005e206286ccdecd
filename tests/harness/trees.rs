//! Directory trees to upload.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;

use crate::clients::{digest_of, reapi};
use reapi::Digest;

/// A directory tree ready to be uploaded: every blob of it, and the digest of its root.
#[derive(Debug, Clone)]
pub struct Tree {
    /// Files and `Directory` messages, children before their parents, the root last.
    pub blobs: Vec<Bytes>,
    /// Of the root's `Directory` message.
    pub root: Digest,
}

/// Collects the entries of a [`Tree`].
#[derive(Debug, Clone, Default)]
pub struct TreeBuilder {
    files: BTreeMap<String, (Bytes, bool)>,
    symlinks: BTreeMap<String, String>,
    directories: BTreeMap<String, TreeBuilder>,
}

// === impl Tree ===

impl Tree {
    /// An empty one.
    pub fn builder() -> TreeBuilder {
        TreeBuilder::default()
    }

    /// The digests of all blobs, in their order.
    pub fn digests(&self) -> Vec<Digest> {
        self.blobs.iter().map(|blob| digest_of(blob)).collect()
    }
}

impl TreeBuilder {
    /// A file at `a/b/c`.
    #[must_use]
    pub fn file(mut self, path: &str, content: impl Into<Bytes>) -> TreeBuilder {
        let (directory, name) = self.place(path);
        directory.files.insert(name, (content.into(), false));
        self
    }

    /// An executable file at `a/b/c`.
    #[must_use]
    pub fn executable(mut self, path: &str, content: impl Into<Bytes>) -> TreeBuilder {
        let (directory, name) = self.place(path);
        directory.files.insert(name, (content.into(), true));
        self
    }

    /// A symbolic link at `a/b/c`.
    #[must_use]
    pub fn symlink(mut self, path: &str, target: &str) -> TreeBuilder {
        let (directory, name) = self.place(path);
        directory.symlinks.insert(name, target.to_owned());
        self
    }

    /// An empty directory at `a/b/c`.
    #[must_use]
    pub fn directory(mut self, path: &str) -> TreeBuilder {
        let (directory, name) = self.place(path);
        directory.directories.entry(name).or_default();
        self
    }

    fn place(&mut self, path: &str) -> (&mut TreeBuilder, String) {
        match path.split_once('/') {
            None => (self, path.to_owned()),
            Some((first, rest)) => self.directories.entry(first.to_owned()).or_default().place(rest),
        }
    }

    /// The tree of what was added.
    pub fn build(self) -> Tree {
        let mut blobs = Vec::new();
        let root = self.collect(&mut blobs);
        Tree { blobs, root }
    }

    fn collect(self, blobs: &mut Vec<Bytes>) -> Digest {
        let mut message = reapi::Directory::default();
        for (name, directory) in self.directories {
            let digest = Some(directory.collect(blobs));
            message.directories.push(reapi::DirectoryNode { name, digest });
        }
        for (name, (content, is_executable)) in self.files {
            let digest = Some(digest_of(&content));
            message.files.push(reapi::FileNode { name, digest, is_executable, ..Default::default() });
            blobs.push(content);
        }
        for (name, target) in self.symlinks {
            message.symlinks.push(reapi::SymlinkNode { name, target, ..Default::default() });
        }
        let encoded = Bytes::from(message.encode_to_vec());
        let digest = digest_of(&encoded);
        blobs.push(encoded);
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_names_its_children_and_ends_with_its_root() {
        let tree = Tree::builder().file("src/main.c", "int main").symlink("link", "src").directory("empty").build();
        assert_eq!(digest_of(tree.blobs.last().unwrap()), tree.root);
        let root = reapi::Directory::decode(tree.blobs.last().unwrap().clone()).unwrap();
        let names: Vec<_> = root.directories.iter().map(|directory| directory.name.as_str()).collect();
        assert_eq!(names, ["empty", "src"]);
        for directory in &root.directories {
            assert!(tree.digests().contains(directory.digest.as_ref().unwrap()));
        }
    }
}
