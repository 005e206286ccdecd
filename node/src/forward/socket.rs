//! Where the owner of a directory listens, and how a socket is named whose path is long.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

/// Where the socket of this directory's owner is. The path may be too long for a socket's address: see [`ShortPath`].
pub fn socket_path(directory: &Path) -> PathBuf {
    directory.join("owner.sock")
}

/// A path that fits a socket's address (108 bytes), for as long as this lives: where the given one does not fit, it goes
/// through a descriptor of the directory.
pub struct ShortPath {
    path: PathBuf,
    _directory: Option<File>,
}

// === impl ShortPath ===

impl ShortPath {
    /// A short path to the same file.
    ///
    /// # Errors
    /// When the file's directory cannot be opened.
    pub fn to(path: &Path) -> io::Result<ShortPath> {
        const FITS_BYTES: usize = 100;
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(ShortPath { path: path.to_owned(), _directory: None });
        };
        if path.as_os_str().len() <= FITS_BYTES {
            return Ok(ShortPath { path: path.to_owned(), _directory: None });
        }
        let directory = File::open(directory)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
        Ok(ShortPath { path, _directory: Some(directory) })
    }
}

impl AsRef<Path> for ShortPath {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_socket_of_any_path_is_bound_and_reached() {
        for depth in [0, 1, 2] {
            let folder = tempfile::tempdir().unwrap();
            let mut directory = folder.path().to_owned();
            directory.extend(std::iter::repeat_n("d".repeat(150), depth));
            std::fs::create_dir_all(&directory).unwrap();
            let path = socket_path(&directory);
            let _listener = UnixListener::bind(ShortPath::to(&path).unwrap()).unwrap();
            assert!(path.exists());
            UnixStream::connect(ShortPath::to(&path).unwrap()).unwrap();
        }
    }

    #[test]
    fn a_long_path_into_no_directory_is_an_error() {
        assert!(ShortPath::to(&socket_path(Path::new(&format!("/{}", "d".repeat(150))))).is_err());
    }
}
