//! Another node that blobs are pulled from: when it is asked, and when it is left alone.

use crate::membership::Epoch;

/// The first pause after a failure; doubled with each one that follows, ...
const RETRY_FIRST_MS: u64 = 500;

/// ... up to this: a node that is there and fails is asked now and then.
const RETRY_MAX_MS: u64 = 60_000;

/// How another node is, as far as is known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// It has answered lately.
    pub is_reachable: bool,
    /// The newest layout that it has answered by.
    pub epoch: Epoch,
}

/// A node that may have blobs that this one should have.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) peer: Peer,
    /// When it is asked for its summaries next.
    compare_at_ms: u64,
    is_asked: bool,
    retry: Retry,
    /// It is to be asked as soon as it has adopted the newest layout.
    pub(super) awaits_epoch: bool,
}

/// How long something that fails is left alone.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Retry {
    failures: u32,
    at_ms: u64,
}

// === impl Source ===

impl Source {
    /// Not reached yet. Asked by then, at the latest.
    pub(super) fn new(compare_at_ms: u64) -> Source {
        let peer = Peer { is_reachable: false, epoch: Epoch(0) };
        Source { peer, compare_at_ms, is_asked: false, retry: Retry::default(), awaits_epoch: false }
    }

    /// Takes note of how it is; whether it is there again.
    pub(super) fn look(&mut self, peer: Peer, newest: Epoch, now_ms: u64) -> bool {
        let is_back = peer.is_reachable && !self.peer.is_reachable;
        self.peer = Peer { is_reachable: peer.is_reachable, epoch: self.peer.epoch.max(peer.epoch) };
        if is_back {
            self.retry = Retry::default();
            // One that has not adopted the layout yet would only have to be asked again.
            if !self.awaits_epoch {
                self.is_due(now_ms);
            }
        }
        if self.awaits_epoch && self.peer.epoch >= newest {
            self.awaits_epoch = false;
            self.is_due(now_ms);
        }
        is_back
    }

    /// It is to be asked now, whenever it would have been.
    pub(super) fn is_due(&mut self, now_ms: u64) {
        self.compare_at_ms = self.compare_at_ms.min(now_ms);
    }

    /// Whether it can be asked for anything.
    pub(super) fn is_open(&self, now_ms: u64) -> bool {
        self.peer.is_reachable && self.retry.is_over(now_ms)
    }

    /// Whether it is to be asked for its summaries. It is then taken to be.
    pub(super) fn begin(&mut self, interval_ms: u64, now_ms: u64) -> bool {
        let begins = !self.is_asked && self.is_open(now_ms) && now_ms >= self.compare_at_ms;
        if begins {
            self.is_asked = true;
            // What comes up while it answers makes it due again.
            self.compare_at_ms = now_ms.saturating_add(interval_ms);
        }
        begins
    }

    /// It has told its summaries.
    pub(super) fn answered(&mut self) {
        self.is_asked = false;
        self.retry = Retry::default();
    }

    /// It has not told its summaries, and is to be asked again.
    pub(super) fn did_not_answer(&mut self, now_ms: u64) {
        self.is_asked = false;
        self.is_due(now_ms);
        self.retry.failed(now_ms);
    }

    /// It has broken something else off.
    pub(super) fn failed(&mut self, now_ms: u64) {
        self.retry.failed(now_ms);
    }

    /// When it is worth another look, if nothing happens meanwhile.
    pub(super) fn next_ms(&self) -> Option<u64> {
        (self.peer.is_reachable && !self.is_asked).then(|| self.compare_at_ms.max(self.retry.at_ms))
    }

    /// When it may be asked again.
    pub(super) fn open_ms(&self) -> u64 {
        self.retry.at_ms
    }
}

// === impl Retry ===

impl Retry {
    pub(super) fn failed(&mut self, now_ms: u64) {
        let pause_ms = RETRY_FIRST_MS << self.failures.min(16);
        self.failures = self.failures.saturating_add(1);
        self.at_ms = now_ms.saturating_add(pause_ms.min(RETRY_MAX_MS));
    }

    pub(super) fn is_over(self, now_ms: u64) -> bool {
        now_ms >= self.at_ms
    }

    pub(super) fn at_ms(self) -> u64 {
        self.at_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_doubles_the_pause_up_to_a_minute() {
        let mut retry = Retry::default();
        let mut now_ms = 1000;
        let mut pauses = Vec::new();
        for _ in 0..40 {
            assert!(retry.is_over(now_ms));
            retry.failed(now_ms);
            pauses.push(retry.at_ms - now_ms);
            assert!(!retry.is_over(retry.at_ms - 1));
            now_ms = retry.at_ms;
        }
        assert_eq!(pauses[..8], [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000]);
        assert!(pauses[8..].iter().all(|pause| *pause == 60_000));
    }

    #[test]
    fn what_comes_up_while_a_source_answers_has_it_asked_again() {
        let mut source = Source::new(60_000);
        source.look(Peer { is_reachable: true, epoch: Epoch(1) }, Epoch(1), 0);
        assert!(source.begin(60_000, 0));
        source.is_due(5);
        assert!(!source.begin(60_000, 5), "one question at a time");
        source.answered();
        assert!(source.begin(60_000, 6));
        source.answered();
        assert!(!source.begin(60_000, 7));
        assert_eq!(source.next_ms(), Some(60_006));
    }
}
