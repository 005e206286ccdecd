//! Whether the client of a call takes its answer.
//!
//! Whoever sends an answer is not asked for more of it while the client takes nothing, so that the answer itself cannot tell
//! that it stands still. The task that sends it can: it has a [`Reader`], which the answer tells whose turn it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

tokio::task_local! {
    /// The reader of the call that is being worked on; not there where nobody looks after it.
    pub static READER: Arc<Reader>;
}

/// Nobody waits for the reader.
const NOT_WAITED_FOR: u64 = u64::MAX;

/// The client of a call, as the reader of its answer.
#[derive(Debug)]
pub struct Reader {
    began: Instant,
    /// In milliseconds from then on.
    waited_for_since: AtomicU64,
}

// === impl Reader ===

impl Reader {
    /// Nobody waits for it yet.
    #[must_use]
    pub fn new() -> Reader {
        Reader { began: Instant::now(), waited_for_since: AtomicU64::new(NOT_WAITED_FOR) }
    }

    /// Since when it is to take what it was given; `None` when it has all that there is yet.
    pub fn waited_for_since(&self) -> Option<Instant> {
        match self.waited_for_since.load(Ordering::Relaxed) {
            NOT_WAITED_FOR => None,
            milliseconds => Some(self.began + std::time::Duration::from_millis(milliseconds)),
        }
    }

    /// It was given something.
    pub fn is_to_take(&self) {
        let milliseconds = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(NOT_WAITED_FOR - 1);
        self.waited_for_since.store(milliseconds, Ordering::Relaxed);
    }

    /// It has taken it.
    pub fn has_taken(&self) {
        self.waited_for_since.store(NOT_WAITED_FOR, Ordering::Relaxed);
    }
}

impl Default for Reader {
    fn default() -> Reader {
        Reader::new()
    }
}
