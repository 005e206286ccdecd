//! Whether a node may go by what it knows of its cluster.
//!
//! While it belongs to the cluster nothing that it does not hear of makes what it knows wrong: older layouts stay in force until it
//! has taken up the newer one. A node that nobody reaches for long is given up, and not waited for any more. So what a
//! node knows is good for as long as it cannot have been given up since it knew all that was agreed on. At its start it does not know
//! for how long it was gone, and what is on its disk may be older than what it knew before.

/// How long before others may give a node up it is in doubt: clocks and what is on its way take some time.
const MARGIN_MS: u64 = 1_000;

/// The longest time between two questions.
const ASK_EVERY_MAX_MS: u64 = 10_000;

/// What a node knows of how late its knowledge may be. Times are milliseconds of a clock of its own that goes on while it is stopped.
#[derive(Debug, Clone, Copy)]
pub struct Certainty {
    lost_after_ms: Option<u64>,
    sure_ms: Option<u64>,
}

impl Certainty {
    /// That of a node that has just started. `lost_after_ms` is for how long others wait before they give a node up; `None` when they
    /// never do.
    #[must_use]
    pub fn new(lost_after_ms: Option<u64>) -> Certainty {
        Certainty { lost_after_ms, sure_ms: None }
    }

    /// The node knows all that had been agreed on when it asked, at this time.
    pub fn confirmed(&mut self, asked_ms: u64) {
        self.sure_ms = self.sure_ms.max(Some(asked_ms));
    }

    /// Whether others may have given the node up since, and hold what it has, and write what it does not hear of; or, before it has
    /// asked, may go by what it has said before its start and does not know any more.
    #[must_use]
    pub fn is_in_doubt(&self, now_ms: u64) -> bool {
        let Some(sure_ms) = self.sure_ms else { return true };
        let passed_ms = now_ms.saturating_sub(sure_ms).saturating_add(MARGIN_MS);
        self.lost_after_ms.is_some_and(|lost_after_ms| passed_ms > lost_after_ms)
    }

    /// Between two questions: often enough that a few without an answer put nothing in doubt.
    #[must_use]
    pub fn ask_every_ms(&self) -> u64 {
        self.lost_after_ms.map_or(ASK_EVERY_MAX_MS, |lost_after_ms| (lost_after_ms / 8).min(ASK_EVERY_MAX_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOST_AFTER_MS: u64 = 60_000;

    #[test]
    fn a_node_that_has_just_started_is_in_doubt_until_it_knows_all() {
        let mut certainty = Certainty::new(Some(LOST_AFTER_MS));
        assert!(certainty.is_in_doubt(0));
        assert!(certainty.is_in_doubt(LOST_AFTER_MS / 2));
        certainty.confirmed(100);
        assert!(!certainty.is_in_doubt(LOST_AFTER_MS / 2));
    }

    #[test]
    fn a_node_that_was_silent_is_in_doubt_before_it_is_given_up_and_until_it_has_asked_again() {
        let mut certainty = Certainty::new(Some(LOST_AFTER_MS));
        certainty.confirmed(5_000);
        assert!(!certainty.is_in_doubt(5_000 + LOST_AFTER_MS - MARGIN_MS));
        assert!(certainty.is_in_doubt(5_000 + LOST_AFTER_MS - MARGIN_MS + 1));
        // The answer to a question of before says nothing of what has happened since.
        certainty.confirmed(4_000);
        assert!(certainty.is_in_doubt(5_000 + LOST_AFTER_MS));
        certainty.confirmed(4_000 + LOST_AFTER_MS);
        assert!(!certainty.is_in_doubt(5_000 + LOST_AFTER_MS));
    }

    #[test]
    fn what_is_never_given_up_is_in_doubt_until_it_has_asked_once() {
        let mut certainty = Certainty::new(None);
        assert!(certainty.is_in_doubt(0));
        certainty.confirmed(0);
        assert!(!certainty.is_in_doubt(u64::MAX));
    }

    #[test]
    fn several_questions_may_go_unanswered_before_anything_is_in_doubt() {
        for lost_after_ms in [2_000, 10_000, 600_000] {
            let certainty = Certainty::new(Some(lost_after_ms));
            assert!(certainty.ask_every_ms() * 4 + MARGIN_MS <= lost_after_ms, "{lost_after_ms}");
        }
    }
}
