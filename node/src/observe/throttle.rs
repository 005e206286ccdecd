//! Lines of the log that would come by the thousand: so many are written in a second, and the next one says how many were not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Lines in a second: enough to see what goes on, and little beside what causes them.
const LINES_MAX: u64 = 100;

/// How many lines of one kind have been written lately.
#[derive(Debug)]
pub struct Throttle {
    second: AtomicU64,
    lines: AtomicU64,
    left_out: AtomicU64,
}

// === impl Throttle ===

impl Throttle {
    /// None yet.
    pub const fn new() -> Throttle {
        Throttle { second: AtomicU64::new(0), lines: AtomicU64::new(0), left_out: AtomicU64::new(0) }
    }

    /// Has a line written, if one may be now; it is told how many before it were not, if any.
    pub fn line(&self, write: impl FnOnce(Option<u64>)) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if let Some(left_out) = self.line_at(since.as_secs()) {
            write(Some(left_out).filter(|count| *count > 0));
        }
    }

    fn line_at(&self, second: u64) -> Option<u64> {
        // Where several come at once at the turn of a second, a few more are written.
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.lines.store(0, Ordering::Relaxed);
        }
        if self.lines.fetch_add(1, Ordering::Relaxed) < LINES_MAX {
            return Some(self.left_out.swap(0, Ordering::Relaxed));
        }
        self.left_out.fetch_add(1, Ordering::Relaxed);
        None
    }
}

impl Default for Throttle {
    fn default() -> Throttle {
        Throttle::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_are_written_in_a_second_and_the_next_one_says_how_many_were_not() {
        let throttle = Throttle::new();
        let written = (0..LINES_MAX + 7).filter(|_| throttle.line_at(1) == Some(0)).count();
        assert_eq!(written as u64, LINES_MAX);
        assert_eq!(throttle.line_at(2), Some(7));
        assert_eq!(throttle.line_at(2), Some(0));
    }
}
