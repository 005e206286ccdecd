//! Faults that tests inject into [`super::disk::Disk`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::disk::Operation;

/// What fails, until told otherwise.
#[derive(Debug, Default)]
pub struct Faults(Mutex<Vec<Fault>>, Mutex<Option<u64>>);

#[derive(Debug, Clone)]
struct Fault {
    operation: Operation,
    errno: i32,
    /// Only paths that contain this.
    path: Option<PathBuf>,
    /// Times it still happens; `None` for ever.
    times: Option<u32>,
    /// Calls that still go well before.
    after: u32,
}

// === impl Faults ===

impl Faults {
    /// From now on, this fails.
    pub fn fail(&self, operation: Operation, errno: i32) {
        self.add(Fault { operation, errno, path: None, times: None, after: 0 });
    }

    /// This fails once, after so many successes.
    pub fn fail_once_after(&self, operation: Operation, errno: i32, after: u32) {
        self.add(Fault { operation, errno, path: None, times: Some(1), after });
    }

    /// The file system has this much left, whatever it says.
    pub fn set_free_bytes(&self, bytes: Option<u64>) {
        *self.1.lock().unwrap() = bytes;
    }

    /// As set.
    pub fn free_bytes(&self) -> Option<u64> {
        *self.1.lock().unwrap()
    }

    /// Everything works again.
    pub fn clear(&self) {
        self.0.lock().unwrap().clear();
    }

    /// Called before each operation.
    pub fn check(&self, operation: Operation, path: Option<&Path>) -> io::Result<()> {
        let mut faults = self.0.lock().unwrap();
        for fault in faults.iter_mut().filter(|fault| fault.operation == operation) {
            let elsewhere = fault.path.as_deref().zip(path).is_some_and(|(want, is)| !is.starts_with(want));
            if elsewhere || fault.times == Some(0) {
                continue;
            }
            if fault.after > 0 {
                fault.after -= 1;
                continue;
            }
            fault.times = fault.times.map(|times| times - 1);
            return Err(io::Error::from_raw_os_error(fault.errno));
        }
        Ok(())
    }

    fn add(&self, fault: Fault) {
        self.0.lock().unwrap().push(fault);
    }
}
