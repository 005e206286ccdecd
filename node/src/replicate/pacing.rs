//! The rate at which blobs are moved between nodes without a client that waits for it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use casbah_cluster::repair::Pace;

use crate::observe::counters::COUNTERS;

/// Bytes a second before anybody has said how many.
const RATE_BYTES: u64 = 64 << 20;

/// How many bytes are moved in a second, by all that mends. Yields to clients.
#[derive(Debug)]
pub struct Pacing {
    started: Instant,
    pace: Mutex<Pace>,
}

// === impl Pacing ===

impl Default for Pacing {
    fn default() -> Pacing {
        Pacing { started: Instant::now(), pace: Mutex::new(Pace::new(RATE_BYTES, 0)) }
    }
}

impl Pacing {
    /// From now on it is so many bytes a second.
    pub fn set_rate(&self, rate_bytes: u64) {
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner) = Pace::new(rate_bytes, self.now_ms());
    }

    /// Waits until so many bytes may be moved.
    ///
    /// # Cancel safety
    /// Dropped half-way, they count as moved.
    pub async fn take(&self, bytes: u64) {
        let clients = COUNTERS.calls_under_way();
        let wait_ms = {
            let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            pace.take(bytes, clients, self.now_ms())
        };
        if wait_ms > 0 {
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
