//! Trees of files on the disk: read, compared, copied.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::clients::{digest_of, reapi};

/// A tree of files on the disk, by path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files(BTreeMap<PathBuf, Entry>);

/// One of [`Files`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// With its permissions.
    Directory(u32),
    /// With its permissions and content.
    File(u32, reapi::Digest),
    /// With its target, as it is written.
    Symlink(PathBuf),
}

// === impl Files ===

impl Files {
    /// Reads a whole tree.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(dir: &Path) -> Result<Files> {
        Files::read_where(dir, |_| true)
    }

    /// Reads those entries of a tree whose path in it is wanted; what is below an unwanted one is not looked at.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_where(dir: &Path, wanted: impl Fn(&Path) -> bool) -> Result<Files> {
        let mut files = BTreeMap::new();
        let mut folders = vec![dir.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
                let path = entry?.path();
                let inside = path.strip_prefix(dir)?.to_owned();
                if !wanted(&inside) {
                    continue;
                }
                let metadata = fs::symlink_metadata(&path)?;
                let mode = metadata.permissions().mode() & 0o7777;
                let entry = if metadata.is_symlink() {
                    Entry::Symlink(fs::read_link(&path)?)
                } else if metadata.is_dir() {
                    folders.push(path.clone());
                    Entry::Directory(mode)
                } else {
                    Entry::File(mode, digest_of(&fs::read(&path)?))
                };
                files.insert(inside, entry);
            }
        }
        Ok(Files(files))
    }

    /// How many entries it has, directories included.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// What is there.
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.0.get(Path::new(path))
    }

    /// Checks that another tree is the same, permissions and link targets included.
    ///
    /// # Errors
    /// When it is not; the message names the paths.
    pub fn same_as(&self, other: &Files) -> Result<()> {
        let paths = self.0.keys().chain(other.0.keys().filter(|path| !self.0.contains_key(*path)));
        let differing: Vec<String> = paths
            .filter(|path| self.0.get(*path) != other.0.get(*path))
            .map(|path| format!("{}: {:?} and {:?}", path.display(), self.0.get(path), other.0.get(path)))
            .collect();
        ensure!(differing.is_empty(), "the trees differ in {} paths:\n{}", differing.len(), differing.join("\n"));
        Ok(())
    }
}

/// Copies files with their permissions, and symbolic links as they are.
pub(crate) fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            symlink(fs::read_link(entry.path())?, target)?;
        } else if kind.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Flips one of these bytes, which are somewhere under `dir`.
///
/// # Errors
/// When they are nowhere, or the file cannot be written.
pub fn flip_a_byte_of(dir: &Path, bytes: &[u8]) -> Result<()> {
    let (path, place) = file_with(dir, bytes)?;
    // In its place: somebody may be reading the file.
    let file = fs::File::options().read(true).write(true).open(path)?;
    let (at, mut byte) = ((place + bytes.len() / 2) as u64, [0]);
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[byte[0] ^ 1], at)?)
}

/// The file under `dir` that has these bytes, and where they are in it.
///
/// # Errors
/// When none has.
pub fn file_with(dir: &Path, bytes: &[u8]) -> Result<(PathBuf, usize)> {
    for path in files(dir)? {
        let content = fs::read(&path)?;
        if let Some(place) = content.windows(bytes.len()).position(|window| window == bytes) {
            return Ok((path, place));
        }
    }
    anyhow::bail!("the blob's bytes are in no file under {}", dir.display())
}

/// The files under `dir`.
///
/// # Errors
/// When a directory cannot be read.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for dir in directories(dir)? {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

/// `dir` and everything below it that is a directory.
///
/// # Errors
/// When one cannot be read.
pub fn directories(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut all = vec![dir.to_owned()];
    let mut unread = all.clone();
    while let Some(dir) = unread.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                all.push(entry.path());
                unread.push(entry.path());
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_the_same_until_something_of_it_is_changed() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("folder"))?;
        fs::write(from.join("folder/file"), "text")?;
        symlink("nowhere", from.join("link"))?;
        copy_tree(&from, &to)?;
        let files = Files::read(&from)?;
        files.same_as(&Files::read(&to)?)?;
        assert_eq!(files.count(), 3);
        fs::set_permissions(to.join("folder/file"), fs::Permissions::from_mode(0o755))?;
        assert!(files.same_as(&Files::read(&to)?).is_err());
        let unwanted = |path: &Path| !path.ends_with("folder");
        Files::read_where(&from, unwanted)?.same_as(&Files::read_where(&to, unwanted)?)
    }
}
