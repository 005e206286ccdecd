//! What clients were told is there, so that it is noticed when it is not (G4).
//!
//! A blob that this node has called present, stored or sent stays for the retention floor. If it is missing before that, for a
//! fact, a promise was broken: it is counted, and told. What is remembered is a table of a fixed size, in which a newer promise may
//! take the place of an older one: what is counted was broken, and more may have been.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use casbah_cluster::digest::Digest;

/// Promises that are remembered, 8 bytes each: what a farm asks for within the floor, about.
const SLOTS: usize = 1 << 20;

/// Nodes look at their clocks at different moments, and count in seconds.
const SLACK_SECONDS: u64 = 2;

/// The lower bits of a slot: seconds since the start, which come again after 194 days.
const TIME_BITS: u32 = 24;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// What clients were told is there.
pub(super) struct Promises {
    /// Each the upper bits of a hash, and when it was. Empty where nothing is promised.
    slots: Box<[AtomicU64]>,
    floor_seconds: u64,
    began: Instant,
}

// === impl Promises ===

impl Promises {
    /// None yet. Each holds for this long.
    pub(super) fn new(floor: Duration) -> Promises {
        let floor_seconds = floor.as_secs().saturating_sub(SLACK_SECONDS);
        let count = if floor_seconds == 0 { 0 } else { SLOTS };
        let slots = (0..count).map(|_| AtomicU64::new(0)).collect();
        Promises { slots, floor_seconds, began: Instant::now() }
    }

    /// A client was told that this blob is there.
    pub(super) fn make(&self, digest: &Digest) {
        self.make_at(digest, self.now());
    }

    /// A blob is missing. Whether it was promised; the promise is forgotten then.
    pub(super) fn is_broken(&self, digest: &Digest) -> bool {
        self.is_broken_at(digest, self.now())
    }

    fn make_at(&self, digest: &Digest, now: u64) {
        if let Some((slot, tag)) = self.slot(digest) {
            slot.store(tag | now & TIME_MASK, Ordering::Relaxed);
        }
    }

    fn is_broken_at(&self, digest: &Digest, now: u64) -> bool {
        let Some((slot, tag)) = self.slot(digest) else { return false };
        let found = slot.load(Ordering::Relaxed);
        if found & !TIME_MASK != tag {
            return false;
        }
        let age = now.wrapping_sub(found) & TIME_MASK;
        // Once for each promise, whoever comes first.
        slot.compare_exchange(found, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() && age < self.floor_seconds
    }

    /// From 1 on, so that no promise is an empty slot.
    fn now(&self) -> u64 {
        self.began.elapsed().as_secs() + 1
    }

    fn slot(&self, digest: &Digest) -> Option<(&AtomicU64, u64)> {
        let hash = u64::from_le_bytes(*digest.hash().first_chunk()?);
        let place = usize::try_from(hash).unwrap_or(usize::MAX) % SLOTS;
        Some((self.slots.get(place)?, hash & !TIME_MASK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use casbah_cluster::digest::DigestFunction;

    fn promises() -> Promises {
        Promises::new(Duration::from_secs(100 + SLACK_SECONDS))
    }

    fn digest(number: u32) -> Digest {
        Digest::of(DigestFunction::Sha256, &number.to_be_bytes())
    }

    #[test]
    fn what_was_promised_and_is_missing_is_a_broken_promise_once() {
        let promises = promises();
        promises.make(&digest(1));
        assert!(!promises.is_broken(&digest(2)), "nobody has promised it");
        assert!(promises.is_broken(&digest(1)));
        assert!(!promises.is_broken(&digest(1)), "it is counted once");
    }

    #[test]
    fn a_promise_holds_for_the_retention_floor() {
        let promises = promises();
        for (age, is_broken) in [(0, true), (99, true), (100, false), (1000, false)] {
            promises.make_at(&digest(1), 50);
            assert_eq!(promises.is_broken_at(&digest(1), 50 + age), is_broken, "{age}");
        }
        promises.make_at(&digest(1), 50);
        promises.make_at(&digest(1), 200);
        assert!(promises.is_broken_at(&digest(1), 250), "it was promised again");
    }

    #[test]
    fn the_clock_may_begin_again() {
        let promises = promises();
        promises.make_at(&digest(1), TIME_MASK);
        assert!(promises.is_broken_at(&digest(1), TIME_MASK + 10));
    }

    #[test]
    fn without_a_floor_nothing_is_promised() {
        for floor in [Duration::ZERO, Duration::from_secs(SLACK_SECONDS)] {
            let promises = Promises::new(floor);
            promises.make(&digest(1));
            assert!(!promises.is_broken(&digest(1)));
            assert!(promises.slots.is_empty());
        }
    }

    #[test]
    fn most_of_many_promises_are_remembered_and_none_is_invented() {
        let promises = promises();
        (0..100_000).for_each(|number| promises.make(&digest(number)));
        assert!((100_000..200_000).all(|number| !promises.is_broken(&digest(number))));
        assert!((0..100_000).filter(|number| promises.is_broken(&digest(*number))).count() > 90_000);
    }
}
