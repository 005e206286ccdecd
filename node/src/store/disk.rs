//! Every system call the store makes on files, in one place, so that tests can make each of them fail.
//!
//! All but the `_cached` ones may block and belong on a thread of the blocking pool or of the store.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::{Errno, ReadWriteFlags};

/// Buffers handed to one `pwritev`, below the kernel's limit of 1024.
const VECTOR: usize = 512;

/// The file system, with room for faults in tests.
#[derive(Debug, Default)]
pub struct Disk {
    #[cfg(test)]
    pub faults: super::faults::Faults,
}

/// The kinds of call that tests can make fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Making a file.
    Create,
    /// Writing to a file.
    Write,
    /// Reading from a file.
    Read,
    /// Forcing a file or directory to the disk.
    Sync,
    /// Giving a file its name.
    Rename,
    /// Removing a file.
    Remove,
}

// === impl Disk ===

impl Disk {
    #[cfg(test)]
    fn check(&self, operation: Operation, path: Option<&Path>) -> io::Result<()> {
        self.faults.check(operation, path)
    }

    #[cfg(not(test))]
    #[inline]
    fn check(&self, _: Operation, _: Option<&Path>) -> io::Result<()> {
        Ok(())
    }

    /// Makes a directory unless it is there.
    pub fn make_dir(&self, path: &Path) -> io::Result<()> {
        match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            other => other,
        }
    }

    /// Makes a new file, readable and writable.
    pub fn create(&self, path: &Path) -> io::Result<File> {
        self.check(Operation::Create, Some(path))?;
        OpenOptions::new().read(true).write(true).create_new(true).open(path)
    }

    /// Makes a file or empties the one that is there.
    pub fn create_over(&self, path: &Path) -> io::Result<File> {
        self.check(Operation::Create, Some(path))?;
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
    }

    /// Allocates a file's final size, so that a full disk is noticed now and the file lies in one piece.
    pub fn allocate(&self, file: &File, size_bytes: u64) -> io::Result<()> {
        self.check(Operation::Write, None)?;
        match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, size_bytes) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => file.set_len(size_bytes),
            other => Ok(other?),
        }
    }

    /// Gives back what a file has beyond this length.
    pub fn truncate(&self, file: &File, length: u64) -> io::Result<()> {
        self.check(Operation::Write, None)?;
        file.set_len(length)
    }

    /// Bytes that the file system of this path has left for us.
    pub fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        #[cfg(test)]
        if let Some(bytes) = self.faults.free_bytes() {
            return Ok(bytes);
        }
        let found = rustix::fs::statvfs(path)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Writes all of these one after the other.
    pub fn write_at(&self, file: &File, pieces: &[Bytes], mut offset: u64) -> io::Result<()> {
        for batch in pieces.chunks(VECTOR) {
            let mut slices: Vec<IoSlice<'_>> = batch.iter().map(|piece| IoSlice::new(piece)).collect();
            let mut rest = slices.as_mut_slice();
            IoSlice::advance_slices(&mut rest, 0);
            while !rest.is_empty() {
                self.check(Operation::Write, None)?;
                let written = match rustix::io::pwritev(file, rest, offset) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => written,
                    Err(Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                };
                offset += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
        }
        Ok(())
    }

    /// Writes a header and what follows it.
    pub fn write_record(&self, file: &File, header: &[u8], pieces: &[Bytes], offset: u64) -> io::Result<()> {
        let [piece] = pieces else {
            self.write_all_at(file, header, offset)?;
            return self.write_at(file, pieces, offset + header.len() as u64);
        };
        self.check(Operation::Write, None)?;
        let written = rustix::io::pwritev(file, &[IoSlice::new(header), IoSlice::new(piece)], offset).unwrap_or(0);
        if written == header.len() + piece.len() {
            return Ok(());
        }
        // Interrupted, or there is an error to be seen once more.
        file.write_all_at(header, offset)?;
        file.write_all_at(piece, offset + header.len() as u64)
    }

    /// Writes all of this.
    pub fn write_all_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.check(Operation::Write, None)?;
        file.write_all_at(bytes, offset)
    }

    /// Reads until the buffer is full.
    pub fn read_exact_at(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.check(Operation::Read, None)?;
        file.read_exact_at(buffer, offset)
    }

    /// Reads what the page cache has, from none to all of it, without blocking.
    pub fn read_cached(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.check(Operation::Read, None)?;
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let mut slices = [IoSliceMut::new(rest)];
            match rustix::io::preadv2(file, &mut slices, offset + filled as u64, ReadWriteFlags::NOWAIT) {
                Ok(0) | Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => break,
                Ok(read) => filled += read,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(filled)
    }

    /// Reads a header and what follows it from the page cache; `false` when some of it is not there.
    pub fn read_record_cached(&self, file: &File, header: &mut [u8], blob: &mut [u8], at: u64) -> io::Result<bool> {
        self.check(Operation::Read, None)?;
        let wanted = header.len() + blob.len();
        let mut slices = [IoSliceMut::new(header), IoSliceMut::new(blob)];
        match rustix::io::preadv2(file, &mut slices, at, ReadWriteFlags::NOWAIT) {
            Ok(read) => Ok(read == wanted),
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a file to read and write.
    pub fn open_writable(&self, path: &Path) -> io::Result<File> {
        self.check(Operation::Read, Some(path))?;
        OpenOptions::new().read(true).write(true).open(path)
    }

    /// Opens a file to read.
    pub fn open(&self, path: &Path) -> io::Result<File> {
        self.check(Operation::Read, Some(path))?;
        File::open(path)
    }

    /// Opens a file to read if that needs nothing from the disk; `None` if it may.
    pub fn open_cached(&self, path: &Path) -> io::Result<Option<File>> {
        self.check(Operation::Read, Some(path))?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        match rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED) {
            Ok(file) => Ok(Some(File::from(file))),
            Err(Errno::NOENT) => Err(Errno::NOENT.into()),
            Err(_) => Ok(None),
        }
    }

    /// Has what is read of the file from now on come from the disk.
    pub fn forget_cached(&self, file: &File) -> io::Result<()> {
        Ok(rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?)
    }

    /// Forces a file's bytes to the disk.
    pub fn sync(&self, file: &File) -> io::Result<()> {
        self.check(Operation::Sync, None)?;
        file.sync_data()
    }

    /// Forces a directory's names to the disk.
    pub fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.check(Operation::Sync, Some(path))?;
        File::open(path)?.sync_all()
    }

    /// Gives a file another name; `AlreadyExists` when the name is taken.
    pub fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check(Operation::Rename, Some(to))?;
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS) => {
                fs::hard_link(from, to)?;
                fs::remove_file(from)
            }
            other => Ok(other?),
        }
    }

    /// Gives a file another name, in place of the file that had it.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check(Operation::Rename, Some(to))?;
        fs::rename(from, to)
    }

    /// Removes a file; one that is gone is no error.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        self.check(Operation::Remove, Some(path))?;
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}
