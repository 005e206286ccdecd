//! Which of two writes of one key is the later one: a hybrid logical clock.
//!
//! Versions are near the wall clock where clocks agree, and a node that has seen a version makes later ones only, whatever
//! its own clock says (Kulkarni et al., "Logical Physical Clocks", 2014).

use serde::{Deserialize, Serialize};

use crate::membership::NodeId;

/// How far a version may be ahead of a node's own clock: further, and its maker's clock is wrong, and what it writes would
/// win over all that others write until their clocks get there. A minute is more than clocks that are kept differ by.
pub const MAX_CLOCK_AHEAD_MS: u64 = 60_000;

/// When a record was written, and by whom: no two writes have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Version {
    /// Milliseconds since 1970-01-01T00:00:00Z, by the latest clock that its maker knew of.
    pub time_ms: u64,
    /// Tells versions of one millisecond apart.
    pub count: u32,
    /// Its maker.
    pub node: NodeId,
}

/// Makes a node's versions.
#[derive(Debug, Clone)]
pub struct VersionClock {
    node: NodeId,
    time_ms: u64,
    count: u32,
}

/// A version that is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// Its maker's clock, or one's own, is wrong.
    #[error(
        "a version of node {node} is {ahead_ms} ms ahead of this node's clock, of {MAX_CLOCK_AHEAD_MS} ms at the most"
    )]
    Ahead {
        /// Who made it.
        node: NodeId,
        /// By how much.
        ahead_ms: u64,
    },
}

impl VersionClock {
    /// The clock of a node. Where it has made versions before, they are to be [`observed`](VersionClock::observe) first.
    pub fn new(node: NodeId) -> VersionClock {
        VersionClock { node, time_ms: 0, count: 0 }
    }

    /// A version later than all that were made or observed; `time_ms` is the wall clock.
    pub fn now(&mut self, time_ms: u64) -> Version {
        if time_ms > self.time_ms {
            (self.time_ms, self.count) = (time_ms, 0);
        } else if let Some(count) = self.count.checked_add(1) {
            self.count = count;
        } else {
            (self.time_ms, self.count) = (self.time_ms.saturating_add(1), 0);
        }
        Version { time_ms: self.time_ms, count: self.count, node: self.node }
    }

    /// Another node's version has been seen: those made from now on are later.
    ///
    /// # Errors
    /// [`VersionError::Ahead`] if it is not to be believed. The record that has it is to be refused.
    pub fn observe(&mut self, version: Version, time_ms: u64) -> Result<(), VersionError> {
        let ahead_ms = version.time_ms.saturating_sub(time_ms);
        if ahead_ms > MAX_CLOCK_AHEAD_MS {
            return Err(VersionError::Ahead { node: version.node, ahead_ms });
        }
        (self.time_ms, self.count) = (self.time_ms, self.count).max((version.time_ms, version.count));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    #[test]
    fn versions_rise_even_when_the_clock_stands_still_or_goes_back() {
        let mut clock = VersionClock::new(NodeId(1));
        let versions = [5, 5, 9, 3, 0, 10].map(|time_ms| clock.now(time_ms));
        assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
        assert_eq!(versions[5], Version { time_ms: 10, count: 0, node: NodeId(1) });
    }

    #[test]
    fn what_is_written_after_another_node_s_write_was_seen_is_later() {
        let (mut fast, mut slow) = (VersionClock::new(NodeId(1)), VersionClock::new(NodeId(2)));
        let seen = fast.now(HOUR_MS + 20_000);
        slow.observe(seen, HOUR_MS).unwrap();
        assert!(slow.now(HOUR_MS) > seen);
        assert!(slow.now(HOUR_MS + 30_000) > seen);
    }

    #[test]
    fn two_nodes_never_make_the_same_version() {
        let (mut one, mut two) = (VersionClock::new(NodeId(1)), VersionClock::new(NodeId(2)));
        let (a, b) = (one.now(7), two.now(7));
        assert!(a < b);
        assert_eq!((a.time_ms, a.count), (b.time_ms, b.count));
    }

    #[test]
    fn a_clock_that_is_far_ahead_is_refused_and_drags_nobody_along() {
        let mut clock = VersionClock::new(NodeId(1));
        let wrong = Version { time_ms: HOUR_MS + MAX_CLOCK_AHEAD_MS + 1, count: 0, node: NodeId(9) };
        let error = clock.observe(wrong, HOUR_MS).unwrap_err();
        assert_eq!(error, VersionError::Ahead { node: NodeId(9), ahead_ms: MAX_CLOCK_AHEAD_MS + 1 });
        assert_eq!(clock.now(HOUR_MS).time_ms, HOUR_MS);
        let bearable = Version { time_ms: HOUR_MS + MAX_CLOCK_AHEAD_MS, ..wrong };
        clock.observe(bearable, HOUR_MS).unwrap();
        assert!(clock.now(HOUR_MS) > bearable);
    }

    #[test]
    fn counts_that_run_out_go_on_in_the_next_millisecond() {
        let mut clock = VersionClock::new(NodeId(1));
        let last = Version { time_ms: 50, count: u32::MAX, node: NodeId(2) };
        clock.observe(last, 50).unwrap();
        assert_eq!(clock.now(50), Version { time_ms: 51, count: 0, node: NodeId(1) });
    }
}
