//! The scrubber: stored bytes are read again and again at leisure, so that damage is found while there are other copies.

use super::limits::{SCRUB_PERIOD_SECONDS, SCRUB_STEP_BYTES};
use super::shared::Shared;
use super::verify::{self, Finding};

/// How far the scrubber has come.
#[derive(Debug, Default)]
pub struct Scrub {
    /// The next slot of the index to look at.
    next: u32,
    /// Bytes read beyond what the time allowed.
    ahead_bytes: u64,
}

// === impl Scrub ===

impl Scrub {
    /// One second's worth.
    pub fn step(&mut self, shared: &Shared) {
        let rate = SCRUB_STEP_BYTES.max(shared.options.capacity_bytes / SCRUB_PERIOD_SECONDS);
        self.ahead_bytes = self.ahead_bytes.saturating_sub(rate);
        let slots = shared.lock().index.slots();
        // Each slot at most once, however little there is.
        for _ in 0..slots.min(u32::try_from(rate / 64).unwrap_or(u32::MAX)) {
            if self.ahead_bytes >= rate || shared.maintenance.is_stopped() {
                break;
            }
            self.ahead_bytes += check(shared, self.next);
            self.next = if self.next + 1 < slots { self.next + 1 } else { 0 };
        }
    }
}

/// Checks what is in a slot, and drops it when it is damaged. Returns the number of bytes read.
fn check(shared: &Shared, slot: u32) -> u64 {
    let (stored, segment) = {
        let state = shared.lock();
        let Some(found) = state.index.get(slot).filter(|found| !found.hidden) else { return 0 };
        (found.stored, state.segment_of(&found.stored))
    };
    match verify::check(&shared.disk, &shared.paths, segment.as_deref(), &stored) {
        Ok(()) => {}
        Err(Finding::Io(error)) => tracing::warn!(hash = stored.key.hash_hex(), %error, "a blob could not be checked"),
        Err(finding) => {
            // It may have been evicted or moved since; then nothing is dropped.
            if shared.drop_damaged(&stored.key, stored.place, segment.as_deref()) {
                tracing::error!(hash = stored.key.hash_hex(), %finding, "a stored blob is damaged and was dropped");
            }
        }
    }
    let read_bytes = stored.charge_bytes().min(stored.size_bytes);
    shared.lock().counters.scrubbed_bytes += read_bytes;
    read_bytes.max(64)
}
