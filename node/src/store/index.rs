//! Which blobs there are, in the order of their use, in memory: 52 bytes a blob and 6 to 11 in its hash table.
//!
//! Entries live in a slab and are linked from the least to the most recently used one. A hash table for each of the 4096
//! partitions of the key space finds them, so that no growth of a table holds up the store for long and a partition can
//! be listed alone. Walks that take a while (snapshots, the journaling of uses) put a mark into the list and move it
//! on, so that they see every blob however the list changes meanwhile.
//!
//! A plain structure without IO, locks or clock.

use casbah_cluster::inventory::Inventory;
use hashbrown::HashTable;

use super::key::{KEY_HASH_BYTES, Key, PARTITIONS, Packed, Stored, bucket_of, partition_of};
use super::order::Milestones;

/// Names an entry until it is removed.
pub type Slot = u32;

const NONE: Slot = u32::MAX;
const CHUNK: usize = 4096;

/// The blobs of a store.
pub struct Index {
    chunks: Vec<Box<[Entry]>>,
    /// Freed slots, linked by `newer`.
    free: Slot,
    /// Slots ever used; those from here on are fresh.
    high: Slot,
    newest: Slot,
    oldest: Slot,
    tables: Vec<HashTable<Slot>>,
    inventories: Vec<Inventory>,
    blobs: u64,
    charged_bytes: u64,
    /// See [`super::order`].
    pub(super) milestones: Milestones,
}

#[derive(Clone, Copy)]
struct Entry {
    hash: [u8; KEY_HASH_BYTES],
    packed: [u32; 2],
    newer: Slot,
    older: Slot,
    /// Unix seconds.
    used: u32,
}

/// An entry as it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The blob.
    pub stored: Stored,
    /// Its last use, in Unix seconds.
    pub used: u32,
    /// Whether it is not to be seen yet.
    pub hidden: bool,
}

/// A place in the order of use, kept by whoever walks it. Give it back to [`Index::remove_mark`].
#[derive(Debug)]
pub struct Mark(Slot);

const VACANT: Entry = Entry { hash: [0; KEY_HASH_BYTES], packed: [0, 0], newer: NONE, older: NONE, used: 0 };

// === impl Mark ===

impl Mark {
    /// The slot that it takes.
    pub fn slot(&self) -> Slot {
        self.0
    }
}

// === impl Index ===

impl Index {
    /// No blobs.
    pub fn new() -> Index {
        Index {
            chunks: Vec::new(),
            free: NONE,
            high: 0,
            newest: NONE,
            oldest: NONE,
            tables: (0..PARTITIONS).map(|_| HashTable::new()).collect(),
            inventories: vec![Inventory::default(); PARTITIONS],
            blobs: 0,
            charged_bytes: 0,
            milestones: Milestones::default(),
        }
    }

    /// Blobs, hidden ones included.
    pub fn blobs(&self) -> u64 {
        self.blobs
    }

    /// Bytes of disk that all blobs take, hidden ones included.
    pub fn charged_bytes(&self) -> u64 {
        self.charged_bytes
    }

    /// The partition's inventory.
    pub fn inventory(&self, partition: usize) -> Inventory {
        self.inventories.get(partition).copied().unwrap_or_default()
    }

    /// The slot of a blob, hidden or not.
    pub fn find(&self, key: &Key) -> Option<Slot> {
        let table = self.tables.get(key.partition())?;
        table.find(bucket_of(key.prefix()), |slot| self.is(*slot, key)).copied()
    }

    /// The slot of a blob whose hash begins like this.
    pub fn find_prefix(&self, prefix: [u8; 8]) -> Option<Slot> {
        let [first, second, ..] = prefix;
        let table = self.tables.get(partition_of([first, second]))?;
        table.find(bucket_of(prefix), |slot| self.entry(*slot).hash.starts_with(&prefix)).copied()
    }

    /// What is in a slot; `None` when it holds no blob.
    pub fn get(&self, slot: Slot) -> Option<Found> {
        let entry = self.chunks.get(slot as usize / CHUNK)?.get(slot as usize % CHUNK)?;
        let packed = Packed::from_halves(entry.packed);
        let key = Key { function: packed.function(), hash: entry.hash };
        packed.is_blob().then(|| Found {
            stored: Stored { key, size_bytes: packed.size_bytes(), place: packed.place(), form: packed.form() },
            used: entry.used,
            hidden: packed.is_hidden(),
        })
    }

    /// One more than the highest slot that may hold a blob, for walks in no particular order.
    pub fn slots(&self) -> Slot {
        self.high
    }

    /// Adds a blob as the most recently used one. `None` when it is here already or its place cannot be expressed.
    pub fn insert(&mut self, stored: &Stored, used: u32, hidden: bool) -> Option<Slot> {
        let packed = Packed::new(stored, hidden)?;
        if self.find(&stored.key).is_some() {
            return None;
        }
        let slot = self.allocate();
        *self.entry_mut(slot) = Entry { hash: stored.key.hash, packed: packed.halves(), used, ..VACANT };
        self.link_newest(slot);
        let chunks = &self.chunks;
        let table = self.tables.get_mut(stored.key.partition()).expect("a partition is below PARTITIONS");
        table.insert_unique(bucket_of(stored.key.prefix()), slot, |slot| {
            let Key { hash: [a, b, c, d, e, f, g, h, ..], .. } = key_at(chunks, *slot);
            bucket_of([a, b, c, d, e, f, g, h])
        });
        self.blobs += 1;
        self.charged_bytes += stored.charge_bytes();
        if !hidden {
            self.count(&stored.key, true);
        }
        Some(slot)
    }

    /// Makes a hidden blob visible.
    pub fn reveal(&mut self, slot: Slot) {
        let Some(found) = self.get(slot).filter(|found| found.hidden) else { return };
        let entry = self.entry_mut(slot);
        entry.packed = Packed::from_halves(entry.packed).revealed().halves();
        self.count(&found.stored.key, true);
    }

    /// Takes a blob out.
    pub fn remove(&mut self, slot: Slot) -> Option<Found> {
        let found = self.get(slot)?;
        let key = found.stored.key;
        let table = self.tables.get_mut(key.partition())?;
        if let Ok(occupied) = table.find_entry(bucket_of(key.prefix()), |other| *other == slot) {
            occupied.remove();
        }
        self.unlink(slot);
        self.release(slot);
        self.blobs -= 1;
        self.charged_bytes -= found.stored.charge_bytes();
        if !found.hidden {
            self.count(&key, false);
        }
        Some(found)
    }

    /// Gives a blob another place of the same size; its use stays as it was.
    pub fn relocate(&mut self, slot: Slot, stored: &Stored) {
        let Some(found) = self.get(slot).filter(|found| found.stored.key == stored.key) else { return };
        let Some(packed) = Packed::new(stored, found.hidden) else { return };
        self.charged_bytes -= found.stored.charge_bytes();
        self.charged_bytes += stored.charge_bytes();
        self.entry_mut(slot).packed = packed.halves();
    }

    /// Makes a blob the most recently used one.
    pub fn touch(&mut self, slot: Slot, now: u32) {
        let entry = self.entry_mut(slot);
        entry.used = entry.used.max(now);
        if self.newest != slot {
            self.unlink(slot);
            self.link_newest(slot);
        }
    }

    /// Uses that were noted by a clock that was ahead count as made now. Their order stays.
    pub fn clamp_uses(&mut self, now: u32) {
        for entry in self.chunks.iter_mut().flat_map(|chunk| chunk.iter_mut()) {
            entry.used = entry.used.min(now);
        }
    }

    /// Adds a blob as the least recently used one, of which no use is known. `None` as with [`Index::insert`].
    pub fn insert_oldest(&mut self, stored: &Stored) -> Option<Slot> {
        let slot = self.insert(stored, 0, false)?;
        self.move_after(slot, None);
        Some(slot)
    }

    /// The least recently used blob.
    pub fn oldest(&self) -> Option<Slot> {
        self.skip_marks(self.oldest)
    }

    /// Begins a walk over all blobs, from the least recently used one.
    pub fn mark_oldest(&mut self) -> Mark {
        let slot = self.allocate();
        *self.entry_mut(slot) = VACANT;
        self.link_oldest(slot);
        Mark(slot)
    }

    /// Begins a walk over the blobs that will be used from now on.
    pub fn mark_newest(&mut self) -> Mark {
        let slot = self.allocate();
        *self.entry_mut(slot) = VACANT;
        self.link_newest(slot);
        Mark(slot)
    }

    /// The next more recently used blob after the mark, which moves past it. `None` at the end, or at `until`.
    pub fn advance(&mut self, mark: &Mark, until: Option<&Mark>) -> Option<Slot> {
        let mut next = self.entry(mark.0).newer;
        while next != NONE && Some(next) != until.map(|until| until.0) {
            let entry = *self.entry(next);
            if Packed::from_halves(entry.packed).is_blob() {
                self.unlink(mark.0);
                self.link_after(mark.0, next);
                return Some(next);
            }
            next = entry.newer;
        }
        None
    }

    /// A mark that follows another entry or mark.
    pub fn mark_after(&mut self, older: Slot) -> Mark {
        let slot = self.allocate();
        *self.entry_mut(slot) = VACANT;
        self.link_after(slot, older);
        Mark(slot)
    }

    /// The next more recently used blob after the mark.
    pub fn newer(&self, mark: &Mark) -> Option<Slot> {
        self.skip_marks(self.entry(mark.0).newer)
    }

    /// The next less recently used blob before the mark.
    pub fn older(&self, mark: &Mark) -> Option<Slot> {
        let mut slot = self.entry(mark.0).older;
        while slot != NONE {
            let entry = self.entry(slot);
            if Packed::from_halves(entry.packed).is_blob() {
                return Some(slot);
            }
            slot = entry.older;
        }
        None
    }

    /// Moves the mark past the next less recently used blob.
    pub fn retreat(&mut self, mark: &Mark) {
        if let Some(older) = self.older(mark) {
            let before = self.entry(older).older;
            self.move_after(mark.0, (before != NONE).then_some(before));
        }
    }

    /// Moves an entry or mark to where it directly follows another one, or to the beginning.
    pub fn move_after(&mut self, slot: Slot, older: Option<Slot>) {
        self.unlink(slot);
        match older {
            Some(older) => self.link_after(slot, older),
            None => self.link_oldest(slot),
        }
    }

    /// The most recently used blob.
    pub fn newest(&self) -> Option<Slot> {
        let mut slot = self.newest;
        while slot != NONE {
            let entry = self.entry(slot);
            if Packed::from_halves(entry.packed).is_blob() {
                return Some(slot);
            }
            slot = entry.older;
        }
        None
    }

    /// Brings the list into the order of the uses' times; of the same time, the order stays. Only without marks.
    pub fn sort_by_use(&mut self) {
        let mut slots = Vec::with_capacity(usize::try_from(self.blobs).unwrap_or(0));
        let mut next = self.oldest;
        while next != NONE {
            let entry = self.entry(next);
            slots.push((entry.used, next));
            next = entry.newer;
        }
        slots.sort_by_key(|(used, _)| *used);
        (self.oldest, self.newest) = (NONE, NONE);
        slots.into_iter().for_each(|(_, slot)| self.link_newest(slot));
    }

    /// Ends a walk.
    pub fn remove_mark(&mut self, mark: Mark) {
        self.unlink(mark.0);
        self.release(mark.0);
    }

    /// The visible blobs of a partition, in no particular order.
    pub fn partition(&self, partition: usize) -> impl Iterator<Item = Stored> {
        let slots = self.tables.get(partition).into_iter().flat_map(|table| table.iter());
        slots.filter_map(|slot| self.get(*slot)).filter(|found| !found.hidden).map(|found| found.stored)
    }

    /// The slots of a partition's blobs, hidden ones included, in no particular order.
    pub fn partition_slots(&self, partition: usize) -> Vec<Slot> {
        self.tables.get(partition).map_or_else(Vec::new, |table| table.iter().copied().collect())
    }

    /// Bytes of memory that the index takes.
    pub fn memory_bytes(&self) -> u64 {
        let entries = self.chunks.len() * CHUNK * size_of::<Entry>();
        let tables: usize = self.tables.iter().map(HashTable::allocation_size).sum();
        (entries + tables + PARTITIONS * (size_of::<HashTable<Slot>>() + size_of::<Inventory>())) as u64
    }

    fn is(&self, slot: Slot, key: &Key) -> bool {
        let entry = self.entry(slot);
        entry.hash == key.hash && Packed::from_halves(entry.packed).function() == key.function
    }

    fn skip_marks(&self, mut slot: Slot) -> Option<Slot> {
        while slot != NONE {
            let entry = self.entry(slot);
            if Packed::from_halves(entry.packed).is_blob() {
                return Some(slot);
            }
            slot = entry.newer;
        }
        None
    }

    fn count(&mut self, key: &Key, added: bool) {
        let inventory = self.inventories.get_mut(key.partition()).expect("a partition is below PARTITIONS");
        if added { inventory.add(&key.hash) } else { inventory.take(&key.hash) }
    }

    fn link_oldest(&mut self, slot: Slot) {
        let first = self.oldest;
        let entry = self.entry_mut(slot);
        (entry.newer, entry.older) = (first, NONE);
        match first {
            NONE => self.newest = slot,
            first => self.entry_mut(first).older = slot,
        }
        self.oldest = slot;
    }

    fn link_newest(&mut self, slot: Slot) {
        match self.newest {
            NONE => {
                self.oldest = slot;
                self.newest = slot;
                let entry = self.entry_mut(slot);
                (entry.newer, entry.older) = (NONE, NONE);
            }
            newest => self.link_after(slot, newest),
        }
    }

    fn link_after(&mut self, slot: Slot, older: Slot) {
        let newer = self.entry(older).newer;
        let entry = self.entry_mut(slot);
        (entry.newer, entry.older) = (newer, older);
        self.entry_mut(older).newer = slot;
        match newer {
            NONE => self.newest = slot,
            newer => self.entry_mut(newer).older = slot,
        }
    }

    fn unlink(&mut self, slot: Slot) {
        let Entry { newer, older, .. } = *self.entry(slot);
        match newer {
            NONE => self.newest = older,
            newer => self.entry_mut(newer).older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.entry_mut(older).newer = newer,
        }
    }

    fn allocate(&mut self) -> Slot {
        match self.free {
            NONE => {
                let slot = self.high;
                if slot as usize / CHUNK == self.chunks.len() {
                    self.chunks.push(vec![VACANT; CHUNK].into_boxed_slice());
                }
                self.high += 1;
                slot
            }
            slot => {
                self.free = self.entry(slot).newer;
                slot
            }
        }
    }

    fn release(&mut self, slot: Slot) {
        let free = self.free;
        *self.entry_mut(slot) = Entry { newer: free, ..VACANT };
        self.free = slot;
    }

    fn entry(&self, slot: Slot) -> &Entry {
        entry_at(&self.chunks, slot)
    }

    fn entry_mut(&mut self, slot: Slot) -> &mut Entry {
        let chunk = self.chunks.get_mut(slot as usize / CHUNK);
        chunk.and_then(|chunk| chunk.get_mut(slot as usize % CHUNK)).expect("a linked slot is in the slab")
    }
}

fn entry_at(chunks: &[Box<[Entry]>], slot: Slot) -> &Entry {
    let chunk = chunks.get(slot as usize / CHUNK);
    chunk.and_then(|chunk| chunk.get(slot as usize % CHUNK)).expect("a linked slot is in the slab")
}

fn key_at(chunks: &[Box<[Entry]>], slot: Slot) -> Key {
    Key { function: 0, hash: entry_at(chunks, slot).hash }
}
