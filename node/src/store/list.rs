//! A partition's blobs, page by page: for other nodes, which compare them with theirs. Nothing is used by being listed.

use std::io;
use std::sync::Arc;

use casbah_cluster::digest::Digest;
use casbah_cluster::inventory::{ListedBlob, Page};

use super::key::{Key, Stored};
use super::limits::WALK_BATCH;
use super::segments::SegmentFile;
use super::shared::{JobError, Shared};
use super::verify;

/// A blob as the index has it.
#[derive(Debug, Clone, Copy)]
struct Entry {
    stored: Stored,
    /// Unix seconds.
    used: u32,
}

/// Up to `limit` blobs of a partition that come after this one, in the order of their keys; of long hashes up to `folded_limit`.
pub async fn page(
    shared: &Arc<Shared>,
    partition: usize,
    after: Option<&Digest>,
    (limit, folded_limit): (usize, usize),
) -> io::Result<Page<ListedBlob>> {
    let mut after = after.map(Key::of);
    loop {
        let (found, is_last) = gather(shared, partition, after, (limit.max(1), folded_limit.max(1)));
        let last = found.last().map(|entry| entry.stored.key);
        let entries = name(shared, found).await?;
        // Where all have gone meanwhile, the caller would not know how to go on.
        if is_last || !entries.is_empty() {
            return Ok(Page { entries, is_last });
        }
        after = last;
    }
}

/// The next entries, and whether there are no more.
fn gather(
    shared: &Shared,
    partition: usize,
    after: Option<Key>,
    (limit, folded_limit): (usize, usize),
) -> (Vec<Entry>, bool) {
    let slots = shared.lock().index.partition_slots(partition);
    let (mut found, mut is_cut): (Vec<Entry>, bool) = (Vec::new(), false);
    for slots in slots.chunks(WALK_BATCH) {
        {
            let state = shared.lock();
            // What a slot holds may have changed since.
            let here = slots.iter().filter_map(|slot| state.index.get(*slot)).filter(|found| !found.hidden);
            let here = here.map(|found| Entry { stored: found.stored, used: found.used });
            found.extend(here.filter(|entry| {
                let key = entry.stored.key;
                key.partition() == partition && after.is_none_or(|after| key > after)
            }));
        }
        if found.len() > 2 * limit {
            found.select_nth_unstable_by_key(limit, |entry| entry.stored.key);
            found.truncate(limit);
            is_cut = true;
        }
    }
    found.sort_unstable_by_key(|entry| entry.stored.key);
    let folded = |entry: &Entry| entry.stored.key.digest(entry.stored.size_bytes).is_none();
    let too_many = found.iter().enumerate().filter(|(_, entry)| folded(entry)).nth(folded_limit);
    let limit = too_many.map_or(limit, |(at, _)| at.min(limit));
    is_cut |= found.len() > limit;
    found.truncate(limit);
    (found, !is_cut)
}

/// Entries under their whole digests; those of long hashes are read to learn them, and left out if they are damaged or gone.
async fn name(shared: &Arc<Shared>, found: Vec<Entry>) -> io::Result<Vec<ListedBlob>> {
    let whole = |entry: &Entry| entry.stored.key.digest(entry.stored.size_bytes);
    let listed = |entry: &Entry, digest| ListedBlob { digest, used_ms: u64::from(entry.used) * 1000 };
    if found.iter().all(|entry| whole(entry).is_some()) {
        return Ok(found.iter().filter_map(|entry| Some(listed(entry, whole(entry)?))).collect());
    }
    let copies: Vec<(Entry, Option<Arc<SegmentFile>>)> = {
        let state = shared.lock();
        let current = found.into_iter().filter_map(|entry| {
            let slot = state.index.find(&entry.stored.key)?;
            let stored = state.index.get(slot).filter(|found| !found.hidden)?.stored;
            Some((Entry { stored, ..entry }, state.segment_of(&stored)))
        });
        current.collect()
    };
    let to = Arc::clone(shared);
    let read = move || {
        let mut entries = Vec::with_capacity(copies.len());
        for (entry, segment) in copies {
            let copy = (&entry.stored, segment.as_deref());
            let digest = verify::digest(&to.disk, &to.paths, &to.codecs, copy)?;
            entries.extend(digest.map(|digest| listed(&entry, digest)));
        }
        Ok(entries)
    };
    shared.blocking(read).await.map_err(|error| match error {
        JobError::Busy => io::ErrorKind::ResourceBusy.into(),
        JobError::Io(error) => error,
    })
}
