//! Which copies are of no use to a node that is full.

/// What a node would do with one more copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// When the blob was used that it would evict next; `None` while it has room.
    pub horizon_ms: Option<u64>,
    /// For how long what was used stays, whatever happens.
    pub floor_ms: u64,
}

impl Room {
    /// Whether a copy that was used then would be evicted before all others, by the clock of whoever asks. One whose retention
    /// floor is not over is of use wherever it belongs: it was promised to stay (G4), and a node that has no room for it has to
    /// be given it again until it has, while another copy is kept.
    pub fn would_evict(&self, used_ms: u64, now_ms: u64) -> bool {
        let is_promised = used_ms.saturating_add(self.floor_ms) > now_ms;
        !is_promised && self.horizon_ms.is_some_and(|horizon_ms| used_ms <= horizon_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    #[test]
    fn what_a_full_node_would_evict_next_is_of_no_use_to_it() {
        let room = Room { horizon_ms: Some(10 * HOUR_MS), floor_ms: 3 * HOUR_MS };
        assert!(room.would_evict(9 * HOUR_MS, 20 * HOUR_MS));
        assert!(!room.would_evict(11 * HOUR_MS, 20 * HOUR_MS));
        assert!(!Room { horizon_ms: None, ..room }.would_evict(0, 20 * HOUR_MS), "there is room");
    }

    #[test]
    fn what_was_promised_to_stay_is_kept_however_full_the_node_is() {
        let room = Room { horizon_ms: Some(10 * HOUR_MS), floor_ms: 3 * HOUR_MS };
        assert!(!room.would_evict(9 * HOUR_MS, 12 * HOUR_MS - 1));
        assert!(room.would_evict(9 * HOUR_MS, 12 * HOUR_MS));
    }
}
