//! Files that are read again when they change, and that may be wrong for a while without harm.

use std::path::PathBuf;

use sha2::Digest as _;

use super::error::TlsError;
use super::pem;

/// Files that make one thing together, for example a certificate and its key. What they last made stays in force until
/// they make another.
///
/// Change is told by content, through the path each time: links that are swapped, files that are renamed over and files
/// that are written in place are all noticed, and nothing depends on a file system's clock. The files are small.
pub struct Source<T> {
    paths: Vec<PathBuf>,
    parse: Parse<T>,
    /// The content that what is in force was made of.
    in_force: Content,
    /// The content of the last look; `None` makes the next look tell again what is wrong.
    last: Option<Content>,
    /// What blank files stand for, if it is not an error. A file that is written in place is blank for a moment, so it
    /// counts only when two looks after each other find the same.
    blank: Option<fn() -> T>,
    was_blank: bool,
}

type Parse<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T, TlsError> + Send + Sync>;

/// What a look at the files found: a hash of the contents, and of what could not be read. Not the contents themselves,
/// since one may be a private key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Content([u8; 32]);

// === impl Source ===

impl<T> Source<T> {
    /// Reads the files for the first time. `parse` gets the contents in the order of the paths.
    ///
    /// # Errors
    /// [`TlsError`] when a file cannot be read, or what `parse` returns.
    pub fn load(
        paths: Vec<PathBuf>,
        parse: impl Fn(&[Vec<u8>]) -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<(Source<T>, T), TlsError> {
        let (content, read) = look(&paths);
        let made = parse(&read?)?;
        Ok((
            Source {
                paths,
                parse: Box::new(parse),
                in_force: content,
                last: Some(content),
                blank: None,
                was_blank: false,
            },
            made,
        ))
    }

    /// The same, but blank files are no error once they were read for the first time: they stand for this.
    #[must_use]
    pub fn when_blank(self, nothing: fn() -> T) -> Source<T> {
        Source { blank: Some(nothing), ..self }
    }

    /// Reads the files again; what they make now when that is new. When they cannot be used, the reason goes to
    /// `error`, once for each change; if there is another reason already, this one is told by the next call.
    pub fn poll(&mut self, error: &mut Option<TlsError>) -> Option<T> {
        let (content, read) = look(&self.paths);
        let blank = || read.as_ref().is_ok_and(|files| files.iter().all(|file| file.trim_ascii().is_empty()));
        let is_blank = self.blank.is_some() && blank();
        let has_been_blank = std::mem::replace(&mut self.was_blank, is_blank);
        if is_blank && !has_been_blank {
            return None;
        }
        if self.last == Some(content) {
            return None;
        }
        self.last = Some(content);
        if self.in_force == content {
            return None;
        }
        let made = match self.blank.filter(|_| is_blank) {
            Some(nothing) => Ok(nothing()),
            None => read.and_then(|contents| (self.parse)(&contents)),
        };
        match made {
            Ok(made) => {
                self.in_force = content;
                Some(made)
            }
            Err(_untold) if error.is_some() => {
                self.last = None;
                None
            }
            Err(reason) => {
                *error = Some(reason);
                None
            }
        }
    }
}

fn look(paths: &[PathBuf]) -> (Content, Result<Vec<Vec<u8>>, TlsError>) {
    let read: Vec<_> = paths.iter().map(|path| pem::read(path)).collect();
    let mut hash = sha2::Sha256::new();
    for file in &read {
        let (tag, digest) = match file {
            Ok(bytes) => (0, sha2::Sha256::digest(bytes)),
            Err(TlsError::Unreadable { source, .. }) => (1, sha2::Sha256::digest(source.kind().to_string())),
            Err(other) => (2, sha2::Sha256::digest(other.to_string())),
        };
        hash.update([tag]);
        hash.update(digest);
    }
    (Content(hash.finalize().into()), read.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    /// Two files whose contents must be equal, as a certificate and its key belong together.
    fn pair(dir: &Path) -> (Source<Vec<u8>>, Vec<u8>) {
        let (a, b) = (dir.join("a"), dir.join("b"));
        let named = a.clone();
        Source::load(vec![a, b], move |contents| match contents {
            [a, b] if a == b => Ok(a.clone()),
            _ => Err(TlsError::NoCertificate { path: named.clone() }),
        })
        .unwrap()
    }

    fn poll(source: &mut Source<Vec<u8>>) -> Result<Option<Vec<u8>>, String> {
        let mut error = None;
        let made = source.poll(&mut error);
        error.map_or(Ok(made), |error| Err(error.to_string()))
    }

    fn write(dir: &Path, a: &str, b: &str) {
        fs::write(dir.join("a"), a).unwrap();
        fs::write(dir.join("b"), b).unwrap();
    }

    #[test]
    fn two_files_replaced_one_after_the_other_are_told_once_and_taken_together() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "1", "1");
        let (mut source, made) = pair(dir.path());
        assert_eq!(made, b"1");
        assert_eq!(poll(&mut source), Ok(None));
        write(dir.path(), "2", "1");
        assert!(poll(&mut source).is_err());
        assert_eq!(poll(&mut source), Ok(None), "the same trouble is told once");
        write(dir.path(), "2", "2");
        assert_eq!(poll(&mut source), Ok(Some(b"2".to_vec())));
        assert_eq!(poll(&mut source), Ok(None));
    }

    #[test]
    fn a_change_that_is_taken_back_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "1", "1");
        let (mut source, _) = pair(dir.path());
        write(dir.path(), "1", "x");
        assert!(poll(&mut source).is_err());
        write(dir.path(), "1", "1");
        assert_eq!(poll(&mut source), Ok(None));
        write(dir.path(), "1", "x");
        assert!(poll(&mut source).is_err(), "it is a new change, and told again");
    }

    #[test]
    fn a_file_that_goes_and_comes_back_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "1", "1");
        let (mut source, _) = pair(dir.path());
        fs::remove_file(dir.path().join("b")).unwrap();
        assert!(poll(&mut source).unwrap_err().starts_with("cannot read "));
        assert_eq!(poll(&mut source), Ok(None));
        write(dir.path(), "3", "3");
        assert_eq!(poll(&mut source), Ok(Some(b"3".to_vec())));
    }

    #[test]
    fn a_swapped_directory_link_is_followed() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        for version in ["1", "2"] {
            fs::create_dir(dir.path().join(version)).unwrap();
            write(&dir.path().join(version), version, version);
        }
        let data = dir.path().join("data");
        symlink("1", &data).unwrap();
        let (mut source, made) = pair(&data);
        assert_eq!(made, b"1");
        symlink("2", dir.path().join("next")).unwrap();
        fs::rename(dir.path().join("next"), &data).unwrap();
        assert_eq!(poll(&mut source), Ok(Some(b"2".to_vec())));
    }

    #[test]
    fn a_second_trouble_is_told_by_the_next_look() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "1", "1");
        let (mut source, _) = pair(dir.path());
        write(dir.path(), "1", "x");
        let mut error = Some(TlsError::NoSystemAuthorities);
        assert_eq!(source.poll(&mut error), None);
        assert!(matches!(error, Some(TlsError::NoSystemAuthorities)));
        assert!(poll(&mut source).is_err());
        assert_eq!(poll(&mut source), Ok(None));
    }
}
