//! The tables of records, and what keeps them one: every record has one place in the order of use, and one among the ends if
//! it has an end.

use std::path::Path;

use casbah_cluster::asset::Moment;
use redb::{Database, ReadableTable as _, ReadableTableMetadata as _, Table, TableDefinition, WriteTransaction};

/// Page cache of a database. The index of a busy farm is some hundred MB; its upper pages fit here.
pub(super) const CACHE_BYTES: usize = 32 << 20;

/// Ended records removed at once, so that no write waits for a long sweep.
const SWEEP_MAX: usize = 256;

pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Key to (sequence number of its last use, when it ends, the record).
pub(super) const RECORDS: TableDefinition<&[u8], Entry<'static>> = TableDefinition::new("records");
/// Sequence number of its last use to key, least recent first.
pub(super) const USES: TableDefinition<u64, &[u8]> = TableDefinition::new("uses");
/// (End, key) of records that have one, next to end first.
pub(super) const ENDS: TableDefinition<(i128, &[u8]), ()> = TableDefinition::new("ends");

pub(super) type Entry<'r> = (u64, Option<i128>, &'r [u8]);

/// The tables of one transaction.
pub(super) struct Tables<'t> {
    records: Table<'t, &'static [u8], Entry<'static>>,
    uses: Table<'t, u64, &'static [u8]>,
    ends: Table<'t, (i128, &'static [u8]), ()>,
    next_use: u64,
    /// What has come and gone, if somebody wants to know.
    changes: Option<Changes>,
}

/// What has come and gone in one transaction.
struct Changes {
    head_bytes: usize,
    so_far: Vec<Change>,
}

/// A record that has come, or gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) key: Vec<u8>,
    /// The first bytes of the record.
    pub(super) head: Vec<u8>,
    pub(super) has_come: bool,
}

/// The database at this path, made with all its tables if it is not there, and the format it has.
pub(super) fn create(path: &Path, format: u64) -> Result<(Database, u64), redb::Error> {
    let database = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
    let found = prepare(&database, format)?;
    Ok((database, found))
}

/// Makes the tables if there are none; the format of the database.
pub(super) fn prepare(database: &Database, format: u64) -> Result<u64, redb::Error> {
    let mut transaction = database.begin_write()?;
    // Without this, the first start after a kill would read the whole database.
    transaction.set_quick_repair(true);
    let mut meta = transaction.open_table(META)?;
    let found = meta.get("format")?.map(|format| format.value());
    if found.is_none() {
        meta.insert("format", format)?;
        transaction.open_table(RECORDS)?;
        transaction.open_table(USES)?;
        transaction.open_table(ENDS)?;
    }
    drop(meta);
    transaction.commit()?;
    Ok(found.unwrap_or(format))
}

// === impl Tables ===

impl<'t> Tables<'t> {
    /// Of this transaction.
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Tables<'t>, redb::Error> {
        let uses = transaction.open_table(USES)?;
        let next_use = uses.last()?.map_or(0, |(last, _)| last.value() + 1);
        Ok(Tables {
            records: transaction.open_table(RECORDS)?,
            uses,
            ends: transaction.open_table(ENDS)?,
            next_use,
            changes: None,
        })
    }

    /// From now on, takes note of what comes and goes, with so many of the first bytes of each record.
    pub(super) fn watch(&mut self, head_bytes: usize) {
        self.changes = Some(Changes { head_bytes, so_far: Vec::new() });
    }

    /// What has come and gone since.
    pub(super) fn changes(self) -> Vec<Change> {
        self.changes.map_or_else(Vec::new, |changes| changes.so_far)
    }

    /// Makes this the record used last. Nothing happens when there is none.
    pub(super) fn touch(&mut self, key: &[u8]) -> Result<(), redb::Error> {
        let entry = self.records.get(key)?.map(|entry| {
            let (used, ends_at, value) = entry.value();
            (used, ends_at, value.to_vec())
        });
        let Some((used, ends_at, value)) = entry else { return Ok(()) };
        self.uses.remove(used)?;
        self.write(key, ends_at, &value)
    }

    /// Writes the record in place of what is under its key, as the one used last.
    pub(super) fn insert(&mut self, key: &[u8], value: &[u8], ends_at: Option<Moment>) -> Result<(), redb::Error> {
        self.remove(key)?;
        let ends_at = ends_at.map(|end| end.0);
        if let Some(end) = ends_at {
            self.ends.insert((end, key), ())?;
        }
        if let Some(changes) = &mut self.changes {
            changes.add(key, value, true);
        }
        self.write(key, ends_at, value)
    }

    /// Whether the first `ordered_by` bytes of this record are below those of the one that is there.
    pub(super) fn is_below(&self, key: &[u8], value: &[u8], ordered_by: usize) -> Result<bool, redb::Error> {
        let entry = if ordered_by > 0 { self.records.get(key)? } else { None };
        Ok(entry.is_some_and(|entry| entry.value().2.get(..ordered_by) > value.get(..ordered_by)))
    }

    /// Whether the record under this key begins like this.
    pub(super) fn begins_with(&self, key: &[u8], head: &[u8]) -> Result<bool, redb::Error> {
        Ok(self.records.get(key)?.is_some_and(|entry| entry.value().2.starts_with(head)))
    }

    fn write(&mut self, key: &[u8], ends_at: Option<i128>, value: &[u8]) -> Result<(), redb::Error> {
        self.records.insert(key, (self.next_use, ends_at, value))?;
        self.uses.insert(self.next_use, key)?;
        self.next_use += 1;
        Ok(())
    }

    /// Removes the record under this key; whether there was one.
    pub(super) fn remove(&mut self, key: &[u8]) -> Result<bool, redb::Error> {
        let Some(entry) = self.records.remove(key)? else { return Ok(false) };
        let (used, ends_at, value) = entry.value();
        if let Some(changes) = &mut self.changes {
            changes.add(key, value, false);
        }
        self.uses.remove(used)?;
        if let Some(end) = ends_at {
            self.ends.remove((end, key))?;
        }
        Ok(true)
    }

    /// Removes records that have ended; how many.
    pub(super) fn sweep(&mut self, now: Moment) -> Result<u64, redb::Error> {
        let mut removed = 0;
        for _ in 0..SWEEP_MAX {
            let Some((end, key)) = self.ends.first()?.map(|(end, _)| (end.value().0, end.value().1.to_vec())) else {
                break;
            };
            if end > now.0 {
                break;
            }
            self.remove(&key)?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Removes the records used least recently until no more than `capacity` are left; how many.
    pub(super) fn shrink_to(&mut self, capacity: u64) -> Result<u64, redb::Error> {
        let mut removed = 0;
        while self.records.len()? > capacity {
            let Some(key) = self.uses.first()?.map(|(_, key)| key.value().to_vec()) else { break };
            self.remove(&key)?;
            removed += 1;
        }
        Ok(removed)
    }
}

// === impl Changes ===

impl Changes {
    fn add(&mut self, key: &[u8], value: &[u8], has_come: bool) {
        let head = value.get(..self.head_bytes.min(value.len())).unwrap_or_default().to_vec();
        self.so_far.push(Change { key: key.to_vec(), head, has_come });
    }
}
