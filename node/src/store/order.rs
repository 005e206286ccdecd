//! The order of use: where a copy of a blob belongs that was last used some time ago.
//!
//! Copies come from other nodes, which have kept them for a while; put last, each would outlive what was used here since. The
//! list of all blobs can only be walked. A walk begins at the nearest of some marks in it, the milestones, which earlier walks
//! have left; it goes on for as long as the caller holds the lock, and then from where it was. Milestones are hints: entries
//! come and go around them, and the walk looks at the entries themselves.

use super::index::{Index, Mark, Slot};
use super::key::Stored;
use super::limits::{MILESTONES, SEARCH_STEPS};

/// Marks that searches have left behind, the least recently used first.
#[derive(Debug, Default)]
pub struct Milestones {
    /// With the use that was sought there.
    of: Vec<(u32, Mark)>,
}

/// A search for the place of a use. Give it back to [`Index::insert_at`] or [`Index::end_search`].
#[derive(Debug)]
pub struct Search {
    used: u32,
    mark: Mark,
    /// Steps since the last milestone.
    steps: usize,
}

// === impl Search ===

impl Search {
    /// What is looked for.
    pub fn used(&self) -> u32 {
        self.used
    }
}

// === impl Index ===

impl Index {
    /// Begins to look for the place of what was used then.
    pub fn begin_search(&mut self, used: u32) -> Search {
        let distance = |other: u32| other.abs_diff(used);
        let after = self.milestones.of.partition_point(|(milestone, _)| *milestone <= used);
        let around = [after.checked_sub(1), Some(after)];
        let around = around.into_iter().flatten().filter_map(|at| self.milestones.of.get(at));
        let near = around.map(|(other, mark)| (distance(*other), mark.slot())).min_by_key(|(distance, _)| *distance);
        let use_of = |slot: Option<Slot>| slot.and_then(|slot| self.get(slot)).map(|found| found.used);
        let newest = use_of(self.newest()).map_or(0, distance);
        let oldest = use_of(self.oldest()).map_or(u32::MAX, distance);
        let mark = match near {
            Some((near, slot)) if near < newest.min(oldest) => self.mark_after(slot),
            _ if newest <= oldest => self.mark_newest(),
            _ => self.mark_oldest(),
        };
        Search { used, mark, steps: 0 }
    }

    /// Goes on for some steps. `true`: it is in its place.
    pub fn search(&mut self, search: &mut Search) -> bool {
        for _ in 0..SEARCH_STEPS {
            let use_of = |slot: Option<Slot>| slot.and_then(|slot| self.get(slot)).map(|found| found.used);
            if use_of(self.newer(&search.mark)).is_some_and(|used| used <= search.used) {
                self.advance(&search.mark, None);
            } else if use_of(self.older(&search.mark)).is_some_and(|used| used > search.used) {
                self.retreat(&search.mark);
            } else {
                return true;
            }
            search.steps += 1;
        }
        self.leave_milestone(search);
        false
    }

    /// Adds a blob where a search has come to, before all marks that are there: so it does not follow the one that what was used
    /// just now comes after. `None` as with [`Index::insert`].
    pub fn insert_at(&mut self, stored: &Stored, search: Search, hidden: bool) -> Option<Slot> {
        let older = self.older(&search.mark);
        let inserted = self.insert(stored, search.used, hidden);
        if let Some(slot) = inserted {
            self.move_after(slot, older);
        }
        self.end_search(search);
        inserted
    }

    /// Gives a search up.
    pub fn end_search(&mut self, search: Search) {
        self.remove_mark(search.mark);
    }

    fn leave_milestone(&mut self, search: &mut Search) {
        // So far apart that all of the list has half of them.
        let apart = (self.blobs() / (MILESTONES as u64 / 2)).max(SEARCH_STEPS as u64);
        if (search.steps as u64) < apart {
            return;
        }
        search.steps = 0;
        if self.milestones.of.len() >= MILESTONES {
            // Many have come close together. New ones are found as they are needed.
            for (_, mark) in std::mem::take(&mut self.milestones.of) {
                self.remove_mark(mark);
            }
        }
        let older = self.older(&search.mark).and_then(|slot| self.get(slot));
        let used = older.map_or(0, |found| found.used);
        let mark = self.mark_after(search.mark.slot());
        let at = self.milestones.of.partition_point(|(milestone, _)| *milestone <= used);
        self.milestones.of.insert(at, (used, mark));
    }
}
