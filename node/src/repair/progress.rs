//! Repair in numbers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The rate is an average over about this time.
const RATE_PERIOD: Duration = Duration::from_secs(5);

/// What has been moved so far, since the start of the process.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// Blobs and results that were copied to this node.
    pub(super) pulled: AtomicU64,
    /// Blobs and results that this node has given to others.
    pub(super) given: AtomicU64,
    /// Bytes of both.
    pub(super) bytes: AtomicU64,
    /// Copies dropped here, as their owners have them.
    pub(super) dropped: AtomicU64,
    rate: Mutex<Option<Rate>>,
}

#[derive(Debug)]
struct Rate {
    at: Instant,
    bytes: u64,
    per_second: f64,
}

// === impl Moved ===

impl Moved {
    /// So many bytes of one thing have come here.
    pub(super) fn pulled(&self, bytes: u64) {
        self.pulled.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes of one thing have gone to another node.
    pub(super) fn given(&self, bytes: u64) {
        self.given.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many copies were dropped.
    pub(super) fn dropped(&self, count: u64) {
        self.dropped.fetch_add(count, Ordering::Relaxed);
    }

    /// Takes note of the time.
    pub(super) fn tick(&self) {
        let (now, bytes) = (Instant::now(), self.bytes.load(Ordering::Relaxed));
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = rate.as_mut() else {
            *rate = Some(Rate { at: now, bytes, per_second: 0.0 });
            return;
        };
        let passed = now.duration_since(last.at).as_secs_f64();
        if passed > 0.0 {
            let moved = bytes.saturating_sub(last.bytes) as f64 / passed;
            let share = (passed / RATE_PERIOD.as_secs_f64()).min(1.0);
            *last = Rate { at: now, bytes, per_second: last.per_second + (moved - last.per_second) * share };
        }
    }

    /// Bytes moved in a second, lately.
    pub(super) fn bytes_per_second(&self) -> u64 {
        let rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        rate.as_ref().map_or(0, |rate| rate.per_second as u64)
    }
}
