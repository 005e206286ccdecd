//! The start of a store: the newest snapshot, and what the journals say has happened since.
//!
//! Nothing is looked for in the directories of blobs: what is to be served is known from the index alone. A tail of a
//! journal that is torn or not understood is cut off. When the machine went down (another boot than the journal's), what
//! the journal names after its last mark is verified before it counts; files it names may not have made it to the disk,
//! and neither may parts of the journal itself.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::codecs::Codecs;
use super::disk::Disk;
use super::error::OpenError;
use super::index::{Found, Index};
use super::journal::{self, FoundJournal, Journal};
use super::key::{Key, MAX_SEGMENTS, Place, Stored};
use super::limits::JOURNAL_STEP_BYTES;
use super::lost::Lost;
use super::options::{StoreOptions, Surroundings};
use super::paths::{FORMAT, Paths, parse_generation};
use super::record::{DiskEntry, DiskPlace, Record};
use super::segments::{SegmentFile, Segments};
use super::shared::{Parts, Shared};
use super::state::{Counters, NoRoom, Queue, State};
use super::verify::Finding;
use super::{salvage, snapshot, verify};

/// Opens the store in a directory.
pub fn open(options: StoreOptions, around: Surroundings) -> Result<Shared, OpenError> {
    let paths = Paths::new(options.dir.clone());
    make_directories(&paths)?;
    let mut recovery = Recovery::new(paths.clone(), options.capacity_bytes);
    recovery.load()?;
    recovery.salvage(&around.disk)?;
    recovery.index.clamp_uses(around.clock.unix_seconds());
    recovery.count_segments();
    recovery.settle_doubts(&around.disk);
    let generation = recovery.newest + 1;
    let journal = begin_journal(&around.disk, &paths, generation)?;
    let retention = options.retention_floor;
    let retention_seconds = retention.as_secs().saturating_add(u64::from(retention.subsec_nanos() > 0));
    let mut index = recovery.index;
    let touched = index.mark_newest();
    let mut state = State {
        index,
        segments: recovery.segments,
        reserved_bytes: 0,
        capacity_bytes: options.capacity_bytes,
        usable_bytes: options.capacity_bytes,
        retention_seconds: u32::try_from(retention_seconds).unwrap_or(u32::MAX),
        queue: Queue { generation, start: 0, end: 0, bytes: Vec::new() },
        replayed_bytes: recovery.replayed_bytes,
        garbage: Vec::new(),
        garbage_bytes: 0,
        changing: std::collections::HashSet::new(),
        lost: recovery.lost,
        again: HashMap::new(),
        unsynced: Vec::new(),
        suspects: Vec::new(),
        touched,
        read_only: None,
        closed: false,
        counters: Counters::default(),
    };
    // Some of it is in no journal yet.
    let lost: Vec<Record> = state.lost.records().collect();
    lost.iter().for_each(|record| state.queue.push(record));
    // The capacity may have been larger; what may not go yet goes when it may.
    let now = around.clock.unix_seconds();
    while state.evict_down_to(options.capacity_bytes, now) == Err(NoRoom::NotYet) {}
    let Surroundings { clock, disk, .. } = around;
    Ok(Shared::new(Parts { options, paths, clock, disk, state, journal, run: generation }))
}

fn make_directories(paths: &Paths) -> Result<(), OpenError> {
    let made = |path: &Path| fs::create_dir_all(path).map_err(failed("make the directory", path));
    made(paths.root())?;
    check_format(paths)?;
    made(&paths.index())?;
    made(&paths.segments())?;
    made(&paths.incoming())?;
    made(&paths.blobs())
}

fn check_format(paths: &Paths) -> Result<(), OpenError> {
    if read_format(paths)?.is_some() {
        return Ok(());
    }
    let path = paths.format();
    let unfinished = path.with_extension("unfinished");
    let write = || {
        fs::write(&unfinished, FORMAT)?;
        fs::File::open(&unfinished)?.sync_all()?;
        fs::rename(&unfinished, &path)?;
        fs::File::open(paths.root())?.sync_all()
    };
    write().map_err(failed("write", &path))
}

/// Whether a store of our format is there; `None` when there is none at all.
fn read_format(paths: &Paths) -> Result<Option<()>, OpenError> {
    let path = paths.format();
    match fs::read(&path) {
        Ok(found) if found == FORMAT.as_bytes() => Ok(Some(())),
        Ok(found) => {
            let found = String::from_utf8_lossy(&found).trim().chars().take(40).collect();
            Err(OpenError::Format { path, found, expected: FORMAT.trim() })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", &path)(error)),
    }
}

fn begin_journal(disk: &Disk, paths: &Paths, generation: u64) -> Result<Journal, OpenError> {
    let path = paths.journal(generation);
    let begin = || {
        let file = disk.create_over(&path)?;
        disk.write_all_at(&file, &journal::header(generation, &journal::boot_id()), 0)?;
        // Without its header, nothing of a journal counts.
        disk.sync(&file)?;
        disk.sync_dir(&paths.index())?;
        Ok(Journal::new(file))
    };
    begin().map_err(failed("begin", &path))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { action, path, source }
}

/// The index on its way back.
pub struct Recovery {
    paths: Paths,
    index: Index,
    segments: Segments,
    /// Segments named so far, by slot; `None` where there is no file.
    found: Vec<Option<Arc<SegmentFile>>>,
    /// Their slots by number.
    slots: HashMap<u32, u32>,
    /// The slot of those that are gone.
    gone: Option<u32>,
    /// Blobs that may not have made it to the disk.
    doubts: Vec<Key>,
    /// Bytes of journals replayed.
    replayed_bytes: u64,
    /// The newest generation found.
    newest: u64,
    /// Not all that was written down could be read.
    damaged: bool,
    /// Blobs whose copies were damaged.
    lost: Lost,
    /// Copies were put last that were not used last.
    has_copies: bool,
    /// Nothing is going to be written.
    read_only: bool,
    /// A segment is there and could not be opened: without it, nothing may be decided.
    failed: Option<OpenError>,
}

/// What there is in a store.
pub struct Loaded {
    /// Its blobs.
    pub index: Index,
    /// The segments that they lie in.
    pub segments: Segments,
    /// Not all that was written down could be read.
    pub damaged: bool,
}

// === impl Recovery ===

impl Recovery {
    fn new(paths: Paths, capacity_bytes: u64) -> Recovery {
        Recovery {
            paths,
            index: Index::new(),
            segments: Segments::new(capacity_bytes),
            found: Vec::new(),
            slots: HashMap::new(),
            gone: None,
            doubts: Vec::new(),
            replayed_bytes: 0,
            newest: 0,
            damaged: false,
            lost: Lost::default(),
            has_copies: false,
            read_only: false,
            failed: None,
        }
    }

    /// What there is in a store, without changing anything.
    ///
    /// # Errors
    /// [`OpenError`], also when there is no store.
    pub fn load_only(disk: &Disk, paths: &Paths) -> Result<Loaded, OpenError> {
        read_format(paths)?.ok_or_else(|| failed("read", &paths.format())(io::ErrorKind::NotFound.into()))?;
        let mut recovery = Recovery::new(paths.clone(), 0);
        recovery.read_only = true;
        recovery.load()?;
        recovery.salvage(disk)?;
        recovery.count_segments();
        Ok(Loaded { index: recovery.index, segments: recovery.segments, damaged: recovery.damaged })
    }

    fn load(&mut self) -> Result<(), OpenError> {
        let (mut snapshots, mut journals) = (Vec::new(), Vec::new());
        let directory = self.paths.segments();
        for entry in fs::read_dir(&directory).map_err(failed("list", &directory))? {
            let name = entry.map_err(failed("list", &directory))?.file_name();
            // Numbers are never used again, not even those of segments that nothing names.
            name.to_str()
                .and_then(|name| name.parse().ok())
                .into_iter()
                .for_each(|used| self.segments.skip_number(used));
        }
        let directory = self.paths.index();
        for entry in fs::read_dir(&directory).map_err(failed("list", &directory))? {
            let name = entry.map_err(failed("list", &directory))?.file_name();
            let Some(name) = name.to_str() else { continue };
            snapshots.extend(parse_generation(name, "snapshot"));
            journals.extend(parse_generation(name, "journal"));
        }
        snapshots.sort_unstable();
        journals.sort_unstable();
        self.newest = snapshots.iter().chain(&journals).copied().max().unwrap_or(0);
        let from = match snapshots.last() {
            Some(generation) => {
                self.load_snapshot(*generation)?;
                *generation
            }
            None => {
                // The first generation is 1: if its journal is gone, so is what it said. A new store has no journal, and no
                // files that one could have named.
                self.damaged = match journals.first() {
                    Some(first) => *first != 1,
                    None => !is_empty(&self.paths.segments()) || !is_empty(&self.paths.blobs()),
                };
                0
            }
        };
        for generation in journals.into_iter().filter(|generation| *generation >= from) {
            self.replay(generation)?;
        }
        if std::mem::take(&mut self.has_copies) {
            self.index.sort_by_use();
        }
        self.failed.take().map_or(Ok(()), Err)
    }

    fn load_snapshot(&mut self, generation: u64) -> Result<(), OpenError> {
        let path = self.paths.snapshot(generation);
        let file = fs::File::open(&path).map_err(failed("read", &path))?;
        match snapshot::read(file, generation, |entry| self.put(&entry)) {
            Ok(()) => Ok(()),
            Err(snapshot::SnapshotError::Io(error)) => Err(failed("read", &path)(error)),
            Err(error @ snapshot::SnapshotError::Damaged { .. }) => {
                tracing::error!(path = %path.display(), %error, blobs = self.index.blobs(), "a snapshot is damaged");
                self.damaged = true;
                Ok(())
            }
        }
    }

    fn replay(&mut self, generation: u64) -> Result<(), OpenError> {
        let path = self.paths.journal(generation);
        let bytes = fs::read(&path).map_err(failed("read", &path))?;
        let Some(mut journal) = FoundJournal::new(bytes).filter(|journal| journal.generation == generation) else {
            tracing::warn!(path = %path.display(), "a journal has no header; nothing of it counts");
            self.damaged = true;
            return Ok(());
        };
        let rebooted = journal.boot != journal::boot_id() || journal.boot == [0; 16];
        let mut unsynced: Vec<(u64, Key)> = Vec::new();
        // Of what had not been synced, the loss of power takes any part, and not only from the end.
        let mut torn = None;
        loop {
            let offset = journal.offset_bytes();
            let Some(record) = journal.next() else {
                if !journal.skip_damage() {
                    break;
                }
                let to = journal.offset_bytes();
                if rebooted {
                    tracing::warn!(path = %path.display(), from = offset, to, "a part of a journal is missing");
                    torn = torn.or(Some(offset));
                } else {
                    // Not a torn end: something in the middle cannot be read.
                    tracing::error!(path = %path.display(), from = offset, to, "a journal is damaged");
                    self.damaged = true;
                }
                continue;
            };
            match record {
                Record::Put(entry) | Record::Copy(entry) | Record::Move(entry) if rebooted => {
                    unsynced.push((offset, entry.key))
                }
                Record::Synced { offset_bytes } => {
                    unsynced.retain(|(offset, _)| *offset >= offset_bytes);
                    // What is before a mark was on the disk.
                    self.damaged |= torn.is_some_and(|torn| torn < offset_bytes);
                }
                _ => {}
            }
            self.apply(&record);
        }
        self.doubts.extend(unsynced.into_iter().map(|(_, key)| key));
        // Each counts for something, so that there are never many of them.
        self.replayed_bytes += journal.offset_bytes().max(JOURNAL_STEP_BYTES);
        if journal.tail_bytes() > 0 {
            let (cut, at) = (journal.tail_bytes(), journal.offset_bytes());
            tracing::warn!(path = %path.display(), cut, at, "the torn end of a journal was cut off");
        }
        Ok(())
    }

    fn apply(&mut self, record: &Record) {
        match record {
            Record::Put(entry) => self.put(entry),
            Record::Copy(entry) => {
                self.put(entry);
                self.has_copies = true;
            }
            Record::Move(entry) => {
                if let (Some(slot), Some(stored)) = (self.index.find(&entry.key), self.stored(entry)) {
                    self.index.relocate(slot, &stored);
                }
            }
            Record::Remove(key) => {
                self.index.find(key).and_then(|slot| self.index.remove(slot));
            }
            Record::Lost { key, size_bytes } => {
                self.index.find(key).and_then(|slot| self.index.remove(slot));
                self.lost.add(*key, *size_bytes);
            }
            Record::Found(key) => drop(self.lost.take(key)),
            Record::Unsure(is_unsure) => self.lost.set_unsure(*is_unsure),
            Record::Touch { used, prefixes } => {
                for prefix in prefixes {
                    if let Some(slot) = self.index.find_prefix(*prefix) {
                        self.index.touch(slot, *used);
                    }
                }
            }
            Record::Synced { .. } => {}
        }
    }

    fn put(&mut self, entry: &DiskEntry) {
        let Some(stored) = self.stored(entry) else { return };
        self.lost.take(&entry.key);
        self.index.find(&entry.key).and_then(|slot| self.index.remove(slot));
        self.index.insert(&stored, entry.used, false);
    }

    /// Verifies what may not have made it to the disk.
    fn settle_doubts(&mut self, disk: &Disk) {
        for key in std::mem::take(&mut self.doubts) {
            let Some(slot) = self.index.find(&key) else { continue };
            let Some(found) = self.index.get(slot) else { continue };
            let segment = match found.stored.place {
                Place::Segment { slot, .. } => self.segments.file(slot).cloned(),
                Place::File { .. } => None,
            };
            match verify::check(disk, &self.paths, segment.as_deref(), &found.stored) {
                Ok(()) => continue,
                Err(Finding::Io(error)) => {
                    // Reads check it again, so that keeping it harms nobody.
                    tracing::warn!(hash = key.hash_hex(), %error, "a blob could not be checked after the loss of power");
                    continue;
                }
                Err(finding @ (Finding::Damaged(_) | Finding::Hash)) => {
                    tracing::warn!(hash = key.hash_hex(), %finding, "a blob did not survive the loss of power");
                }
            }
            self.index.remove(slot);
            self.lost.add(key, found.stored.size_bytes);
            if let Place::Segment { slot, .. } = found.stored.place {
                // The sweep removes the file if nothing else is in it.
                self.segments.release(slot, found.stored.charge_bytes());
            }
        }
    }

    /// A blob of an entry; `None` when there are too many segments.
    fn stored(&mut self, entry: &DiskEntry) -> Option<Stored> {
        let place = match entry.place {
            DiskPlace::File { serial } => Place::File { serial },
            DiskPlace::Segment { number, offset_bytes } => {
                Place::Segment { slot: self.slot(number)?, offset_bytes: u64::from(offset_bytes) }
            }
        };
        Some(Stored { key: entry.key, size_bytes: entry.size_bytes, place, form: entry.form })
    }

    /// The slot of a segment, which is opened when it is first named. It may be gone: a later record says then where its
    /// blobs have gone. Any other error ends the start, since a segment that is in no slot is removed.
    fn slot(&mut self, number: u32) -> Option<u32> {
        if let Some(slot) = self.slots.get(&number) {
            return Some(*slot);
        }
        let path = self.paths.segment(number);
        // Whichever is the newest is written to.
        let file = match fs::OpenOptions::new().read(true).write(!self.read_only).open(&path) {
            Ok(file) => Some(SegmentFile::new(number, file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.failed = Some(failed("open", &path)(error));
                None
            }
        };
        // All that are gone share a slot: journals name more of them than there are slots.
        let slot = match (&file, self.gone) {
            (None, Some(gone)) => gone,
            _ => {
                let slot = u32::try_from(self.found.len()).ok().filter(|slot| *slot < MAX_SEGMENTS)?;
                self.gone = if file.is_none() { Some(slot) } else { self.gone };
                self.found.push(file);
                slot
            }
        };
        self.slots.insert(number, slot);
        self.segments.skip_number(number);
        Some(slot)
    }

    /// When the index is damaged, adds what the files say.
    fn salvage(&mut self, disk: &Disk) -> Result<(), OpenError> {
        if !self.damaged {
            return Ok(());
        }
        let (directory, codecs) = (self.paths.segments(), Codecs::default());
        tracing::warn!("the index is damaged; all files are read to find what there is, which takes its time");
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&directory).map_err(failed("list", &directory))? {
            let name = entry.map_err(failed("list", &directory))?.file_name();
            numbers.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
        }
        // The newest first: of two copies, that is the one that stays.
        numbers.sort_unstable_by(|one, other| other.cmp(one));
        let mut added = 0;
        for number in numbers {
            let slot = self.slot(number);
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            let Some(slot) = slot else { continue };
            let Some(Some(file)) = self.found.get(slot as usize).cloned() else { continue };
            added += salvage::segment(disk, &codecs, &mut self.index, slot, &file);
        }
        added += salvage::files(disk, &codecs, &self.paths, &mut self.index);
        if added > 0 {
            tracing::warn!(added, blobs = self.index.blobs(), "the index was damaged; blobs were found in their files");
        }
        // What was evicted may be here again, and what is not here may have been.
        self.lost.set_unsure(true);
        if self.newest > 0 || added > 0 {
            // A snapshot is due at once, so that this is not done again.
            self.replayed_bytes = u64::MAX / 2;
        }
        Ok(())
    }

    /// Finds out what is live in the segments, and drops what is in none.
    fn count_segments(&mut self) {
        self.segments.restore(std::mem::take(&mut self.found));
        for entry in 0..self.index.slots() {
            let Some(Found { stored, .. }) = self.index.get(entry) else { continue };
            let Place::Segment { slot, offset_bytes } = stored.place else { continue };
            if self.segments.file(slot).is_some() {
                self.segments.count_found(slot, offset_bytes, stored.charge_bytes());
            } else {
                tracing::warn!(hash = stored.key.hash_hex(), "the segment of a blob is gone");
                self.index.remove(entry);
                self.lost.add(stored.key, stored.size_bytes);
            }
        }
        self.segments.resume();
    }
}

/// Whether a directory has no entries, or cannot be read.
fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none())
}
