//! Blobs whose copies here were lost to damage, and are not yet known to be elsewhere or nowhere.
//!
//! As long as one is in this list, that it is not here says nothing of whether it was ever stored: an upload of it may have been
//! acknowledged because of this copy. The journal has the list: a record for what comes into it, which is that of its removal from the
//! index too, and one for what leaves it for nothing; what is stored again leaves it by that. Each new journal begins with all of
//! it. Where more is lost than the list holds, or nobody can tell what, the whole store is in doubt, until everything in it has been
//! compared with what others have.

use std::collections::HashMap;

use casbah_cluster::digest::Digest;

use super::index::{Found, Slot};
use super::key::Key;
use super::limits::LOST_MAX;
use super::record::Record;
use super::state::State;

/// What was lost.
#[derive(Debug, Default)]
pub struct Lost {
    /// With their sizes.
    of: HashMap<Key, u64>,
    /// Anything may have been lost.
    is_unsure: bool,
    /// Counted up by whatever comes in.
    losses: u64,
}

// === impl Lost ===

impl Lost {
    /// Whether it is not known if a blob that is not here was here.
    pub fn is_in_doubt(&self, key: &Key) -> bool {
        self.is_unsure || self.of.contains_key(key)
    }

    /// Whether a blob is in here.
    pub fn is_lost(&self, key: &Key) -> bool {
        !self.of.is_empty() && self.of.contains_key(key)
    }

    /// Takes a blob in. If there is no room for it, the whole store is in doubt.
    pub fn add(&mut self, key: Key, size_bytes: u64) {
        self.losses += 1;
        if self.of.len() < LOST_MAX || self.of.contains_key(&key) {
            self.of.insert(key, size_bytes);
        } else {
            self.is_unsure = true;
        }
    }

    /// A blob is here again, or nowhere. Whether it was in here.
    pub fn take(&mut self, key: &Key) -> bool {
        // Mostly it is empty.
        !self.of.is_empty() && self.of.remove(key).is_some()
    }

    /// Has the whole store be in doubt, or not any more.
    pub fn set_unsure(&mut self, is_unsure: bool) {
        self.losses += u64::from(is_unsure);
        self.is_unsure = is_unsure;
    }

    /// Whether the whole store is in doubt.
    pub fn is_unsure(&self) -> bool {
        self.is_unsure
    }

    /// How often something came in.
    pub fn losses(&self) -> u64 {
        self.losses
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.of.len()
    }

    /// Those whose digests the index had whole. Others are found by comparing inventories.
    pub fn digests(&self) -> Vec<Digest> {
        self.of.iter().filter_map(|(key, size_bytes)| key.digest(*size_bytes)).collect()
    }

    /// What a journal begins with.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let lost = self.of.iter().map(|(key, size_bytes)| Record::Lost { key: *key, size_bytes: *size_bytes });
        lost.chain(self.is_unsure.then_some(Record::Unsure(true)))
    }
}

// === impl State ===

impl State {
    /// Takes out a blob whose copy is damaged.
    pub fn lose(&mut self, slot: Slot) -> Option<Found> {
        let found = self.index.get(slot)?;
        let was_unsure = self.lost.is_unsure();
        self.lost.add(found.stored.key, found.stored.size_bytes);
        if self.lost.is_unsure() && !was_unsure {
            tracing::error!(
                "more blobs were lost than are remembered: of none that is not here it can be said that it never was"
            );
            self.queue.push(&Record::Unsure(true));
        }
        self.counters.damaged_blobs += 1;
        self.forget(slot)
    }

    /// Shows a blob that is stored.
    pub fn reveal(&mut self, slot: Slot) {
        self.index.reveal(slot);
        if self.lost.count() > 0
            && let Some(found) = self.index.get(slot)
            && self.lost.take(&found.stored.key)
        {
            self.counters.repaired_blobs += 1;
            tracing::info!(hash = found.stored.key.hash_hex(), "a blob whose copy was damaged is here again");
        }
    }

    /// A lost blob is nowhere, as others have said. Whether it was in doubt.
    pub fn give_up(&mut self, digest: &Digest) -> bool {
        let key = Key::of(digest);
        let was_lost = self.lost.take(&key);
        if was_lost {
            self.queue.push(&Record::Found(key));
            self.counters.given_up_blobs += 1;
        }
        was_lost
    }

    /// All that may have been lost has been compared with what others have, since so much had been lost. Whether the store is
    /// in doubt no more.
    pub fn be_sure(&mut self, losses: u64) -> bool {
        let is_settled = self.lost.is_unsure() && self.lost.losses() == losses;
        if is_settled {
            self.lost.set_unsure(false);
            self.queue.push(&Record::Unsure(false));
        }
        is_settled
    }
}
