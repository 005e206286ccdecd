//! The time of day, passed in so that retention can be tested without waiting.

use std::fmt::Debug;
use std::time::{SystemTime, UNIX_EPOCH};

/// Tells the time of day.
pub trait Clock: Debug + Send + Sync {
    /// Whole seconds since 1970.
    fn unix_seconds(&self) -> u32;
}

/// The operating system's clock.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock;

// === impl SystemClock ===

impl Clock for SystemClock {
    fn unix_seconds(&self) -> u32 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
    }
}
