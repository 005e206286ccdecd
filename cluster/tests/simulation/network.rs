//! What is between machines: ways that are open or not, in one direction each, and how long they have been so.

use std::collections::{BTreeMap, BTreeSet};

/// For how long a node is silent before it is taken to be away.
const AWAY_AFTER_MS: u64 = 1_500;
/// For how long it has been back before that is noticed.
const BACK_AFTER_MS: u64 = 500;

#[derive(Debug, Default)]
pub struct Network {
    /// From, to.
    cut: BTreeSet<(usize, usize)>,
    /// When a way between two was cut or mended last.
    changed: BTreeMap<(usize, usize), u64>,
    /// When a machine stopped or started last.
    machines: BTreeMap<usize, u64>,
}

// === impl Network ===

impl Network {
    pub fn new() -> Network {
        Network::default()
    }

    pub fn is_open(&self, from: usize, to: usize) -> bool {
        from == to || !self.cut.contains(&(from, to))
    }

    /// Whether each of two reaches the other.
    pub fn both(&self, one: usize, other: usize) -> bool {
        self.is_open(one, other) && self.is_open(other, one)
    }

    pub fn cut(&mut self, from: usize, to: usize, now_ms: u64) {
        if from != to && self.cut.insert((from, to)) {
            self.changed.insert((from.min(to), from.max(to)), now_ms);
        }
    }

    pub fn mend_all(&mut self, now_ms: u64) {
        for (from, to) in std::mem::take(&mut self.cut) {
            self.changed.insert((from.min(to), from.max(to)), now_ms);
        }
    }

    /// A machine has come up, gone down, been stopped or goes on.
    pub fn changed(&mut self, machine: usize, now_ms: u64) {
        self.machines.insert(machine, now_ms);
    }

    /// Whether a node takes another one to be away, which answers it now or does not.
    pub fn seems_away(&self, one: usize, other: usize, answers: bool, now_ms: u64) -> bool {
        let way = self.changed.get(&(one.min(other), one.max(other))).copied();
        let since_ms = way.max(self.machines.get(&other).copied());
        let Some(since_ms) = since_ms else { return !answers };
        let passed_ms = now_ms.saturating_sub(since_ms);
        if answers { passed_ms < BACK_AFTER_MS } else { passed_ms >= AWAY_AFTER_MS }
    }
}
