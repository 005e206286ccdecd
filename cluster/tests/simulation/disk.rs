//! What a node keeps: blobs with the time of their use, results of actions, and what it has applied of the log.

use std::collections::BTreeMap;

use casbah_cluster::membership::NodeId;
use casbah_cluster::repair::Room;
use casbah_cluster::replication::Version;

use crate::settings::{FLOOR_MS, SYNC_INTERVAL_MS};

/// A blob's number.
pub type Blob = u32;
/// The number of an action, whose result changes.
pub type Action = u32;

/// A copy of a blob.
#[derive(Debug, Clone, Copy)]
pub struct Copy {
    /// When it was used last, by its node's clock, or that of the node that it came from.
    pub used_ms: u64,
    /// The same in truth, which no node knows.
    pub truly_used_ms: u64,
    /// When it was written, in truth.
    pub written_ms: u64,
    pub state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Good,
    /// Nobody has noticed.
    Rotten,
    /// Somebody has: the node has it no more, and does not say that it never had.
    Damaged,
}

/// A volume. It survives its node's crashes.
#[derive(Debug, Clone)]
pub struct Disk {
    pub volume: u64,
    pub node: Option<NodeId>,
    pub blobs: BTreeMap<Blob, Copy>,
    pub actions: BTreeMap<Action, Version>,
    /// How far the log is applied for sure after a crash.
    pub applied: usize,
    pub capacity: usize,
    /// Writes may have been lost: what is not here may have been.
    pub is_unsure: bool,
    /// Nothing can be written, whatever is evicted.
    pub is_full: bool,
}

/// What a look finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Here(Copied),
    Not,
    CannotSay,
}

/// What goes with a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    pub used_ms: u64,
    pub truly_used_ms: u64,
}

/// A copy that made room: in truth it had been used then.
#[derive(Debug, Clone, Copy)]
pub struct Evicted {
    pub blob: Blob,
    pub copy: Copy,
}

// === impl Disk ===

impl Disk {
    pub fn new(volume: u64, capacity: usize) -> Disk {
        Disk {
            volume,
            node: None,
            blobs: BTreeMap::new(),
            actions: BTreeMap::new(),
            applied: 0,
            capacity,
            is_unsure: false,
            is_full: false,
        }
    }

    /// Whether the index has it: rot is not seen there.
    pub fn has(&self, blob: Blob) -> bool {
        self.blobs.get(&blob).is_some_and(|copy| copy.state != State::Damaged)
    }

    pub fn has_good(&self, blob: Blob) -> bool {
        self.blobs.get(&blob).is_some_and(|copy| copy.state == State::Good)
    }

    /// Whether it has a good copy that a power failure would leave.
    pub fn has_synced(&self, blob: Blob, now_ms: u64) -> bool {
        let is_synced = |copy: &Copy| copy.written_ms + SYNC_INTERVAL_MS <= now_ms;
        self.blobs.get(&blob).is_some_and(|copy| copy.state == State::Good && is_synced(copy))
    }

    /// Reads a blob: damage is noticed.
    pub fn read(&mut self, blob: Blob) -> Found {
        let absent = if self.is_unsure { Found::CannotSay } else { Found::Not };
        let Some(copy) = self.blobs.get_mut(&blob) else { return absent };
        if copy.state != State::Good {
            copy.state = State::Damaged;
            return Found::CannotSay;
        }
        Found::Here(Copied { used_ms: copy.used_ms, truly_used_ms: copy.truly_used_ms })
    }

    /// Reads everything. What is found to be damaged.
    pub fn scrub(&mut self) -> Vec<Blob> {
        let rotten = self.blobs.iter_mut().filter(|(_, copy)| copy.state == State::Rotten);
        rotten
            .map(|(blob, copy)| {
                copy.state = State::Damaged;
                *blob
            })
            .collect()
    }

    /// Marks a copy as used. Whether it is there.
    pub fn touch(&mut self, blob: Blob, clock_ms: u64, now_ms: u64) -> bool {
        match self.blobs.get_mut(&blob) {
            Some(copy) if copy.state != State::Damaged => {
                copy.used_ms = copy.used_ms.max(clock_ms);
                copy.truly_used_ms = now_ms;
                true
            }
            _ => false,
        }
    }

    /// Keeps a blob, if there is room or somebody makes some. `floor_ms` is how old what makes room has to be.
    pub fn store(
        &mut self,
        blob: Blob,
        copied: Copied,
        (clock_ms, now_ms): (u64, u64),
        floor_ms: u64,
    ) -> Result<Option<Evicted>, ()> {
        // What is there is not read again: rot stays unseen.
        if let Some(copy) = self.blobs.get_mut(&blob).filter(|copy| copy.state != State::Damaged) {
            copy.used_ms = copy.used_ms.max(copied.used_ms);
            copy.truly_used_ms = copy.truly_used_ms.max(copied.truly_used_ms);
            return Ok(None);
        }
        if self.is_full {
            return Err(());
        }
        let mut evicted = None;
        if self.blobs.len() >= self.capacity && !self.blobs.contains_key(&blob) {
            let oldest = self.blobs.iter().min_by_key(|(_, copy)| copy.used_ms).map(|(blob, copy)| (*blob, *copy));
            let (oldest, copy) = oldest.filter(|(_, copy)| copy.used_ms + floor_ms <= clock_ms).ok_or(())?;
            self.blobs.remove(&oldest);
            evicted = Some(Evicted { blob: oldest, copy });
        }
        let Copied { used_ms, truly_used_ms } = copied;
        self.blobs.insert(blob, Copy { used_ms, truly_used_ms, written_ms: now_ms, state: State::Good });
        Ok(evicted)
    }

    /// What room there is for one more.
    pub fn room(&self) -> Room {
        let oldest_ms = self.blobs.values().map(|copy| copy.used_ms).min();
        let horizon_ms = oldest_ms.filter(|_| self.blobs.len() >= self.capacity);
        Room { horizon_ms, floor_ms: FLOOR_MS }
    }

    /// What the power's going takes with it.
    pub fn lose_unsynced(&mut self, now_ms: u64) -> Vec<Blob> {
        let is_lost = |copy: &Copy| copy.written_ms + SYNC_INTERVAL_MS > now_ms;
        let lost: Vec<Blob> = self.blobs.iter().filter(|(_, copy)| is_lost(copy)).map(|(blob, _)| *blob).collect();
        self.blobs.retain(|_, copy| !is_lost(copy));
        lost
    }

    /// Keeps a result, unless a later one is here.
    pub fn put_action(&mut self, action: Action, version: Version) {
        let kept = self.actions.entry(action).or_insert(version);
        *kept = (*kept).max(version);
    }
}
