//! The limits of the store, each with its reason.

use std::time::Duration;

/// Blobs up to this size are kept in memory while they arrive; larger ones go to their file as they come.
pub const SMALL_BLOB_BYTES: u64 = 128 * 1024;

/// Bytes of a file under one checksum. A range read verifies whole frames, so this is the most that is read in vain;
/// at 4 bytes of checksum a frame the table is 1/16384 of the blob.
pub const FRAME_BYTES: usize = 64 * 1024;

/// Bytes of a large blob in one zstd frame, which is the most that is decoded in vain for a range read. Shared libraries
/// shrink to 0.39 of their size in frames of 256 KiB, to 0.38 in frames of 1 MiB and to 0.42 in frames of 64 KiB.
pub const ZSTD_FRAME_BYTES: usize = 256 * 1024;

/// The level that blobs are compressed at: zstd's own default. Level 1 is a third faster, and leaves a tenth more.
pub const COMPRESSION_LEVEL: i32 = 3;

/// Compressed bytes are kept if they are less by this part (an eighth) of the blob: less is not worth decoding for.
pub const PAYING_SHARE: u64 = 8;

/// Smaller blobs are not compressed: their records are mostly header, and of 64 bytes' granularity.
pub const MIN_COMPRESSED_BLOB_BYTES: u64 = 256;

/// Larger blobs are compressed on a thread of the pool: at 5 us a KiB, this many take several times longer than the way
/// there and back.
pub const INLINE_COMPRESSED_BYTES: u64 = 16 * 1024;

/// Compressors and decompressors that are kept for the next blob, of each: one or two megabytes apiece.
pub const IDLE_CODECS: usize = 8;

/// With compression, an upload of a large blob reserves so much more than the blob takes as it is (a five-hundredth): if all
/// but its beginning cannot be compressed, the file is that little larger.
pub const ZSTD_SLACK_SHARE: u64 = 500;

/// Bytes a reader returns at a time, and bytes an upload gathers before it hashes and writes them. A megabyte keeps the
/// cost of a thread hop (10-30 us) under 3 % of the work on it, and a reader's memory small.
pub const PIECE_BYTES: usize = 1024 * 1024;

/// Idle piece buffers that are kept for the next reader: 64 MiB. Fresh memory costs as much as the read itself.
pub const IDLE_BUFFERS: usize = 64;

/// Blocking file operations under way at once. Beyond this a disk's queue only grows its latency.
pub const BLOCKING_JOBS: usize = 32;

/// Operations that may wait for one of [`BLOCKING_JOBS`]. More than this is overload, and is said at once.
pub const BLOCKING_QUEUE: usize = 4096;

/// How long an upload waits for uploads under way to give back space before it is told that the store is full. A
/// client that is told so may believe the worst (BuildStream does), so a little patience is cheap.
pub const SPACE_PATIENCE: Duration = Duration::from_secs(10);

/// Uses are journaled this often: what kill -9 may cost is the order of the last second's reads.
pub const TOUCH_INTERVAL: Duration = Duration::from_secs(1);

/// Entries handled under one hold of the state's lock by walks, about 0.2 ms. Also the most uses in one journal record,
/// whose length has 16 bits.
pub const WALK_BATCH: usize = 1024;

/// A snapshot is taken when the journal has grown past this and past half the size of a snapshot, which bounds both the
/// replay at start (about 0.2 us a record) and the write amplification (below 3).
pub const SNAPSHOT_JOURNAL_BYTES: u64 = 16 * 1024 * 1024;

/// Digests looked up under one hold of the state's lock, so that a large FindMissingBlobs does not hold up others.
pub const LOOKUP_BATCH: usize = 256;

/// How often the sync thread looks for work when the policy gives no interval.
pub const IDLE_SYNC_INTERVAL: Duration = Duration::from_millis(50);

/// Spare names a blob's file may have while files of the same blob wait to be removed.
pub const FILE_SERIALS: u8 = 16;

/// The space files take is counted in blocks of this size, as file systems allocate it.
pub const DISK_BLOCK_BYTES: u64 = 4096;

/// Files that wait to be synced at the most; each holds a file descriptor. Writers wait beyond that.
pub const DIRTY_FILES: usize = 512;

/// Pieces an upload gathers before it hashes and writes them, however small they are.
pub const UPLOAD_PIECES: usize = 512;

/// How often the maintenance thread looks whether there is something to do.
pub const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);

/// The least capacity that makes sense: a few blobs of the size that segments take.
pub const MINIMUM_CAPACITY_BYTES: u64 = crate::config::STORE_CAPACITY_MIN.bytes();

/// A store has about this many segments, so that one of them is a small part of it.
pub const SEGMENTS_PER_STORE: u64 = 128;

/// The smallest segment: a few of the largest records.
pub const MIN_SEGMENT_FILE_BYTES: u64 = 1024 * 1024;

/// The largest segment: what offsets in the index can express, and a second of work for a compaction.
pub const MAX_SEGMENT_FILE_BYTES: u64 = 256 * 1024 * 1024;

/// Segments are compacted when more than this many segments' worth of bytes is dead, ...
pub const DEAD_SEGMENTS: u64 = 2;

/// ... and more than this part (an eighth) of the live bytes.
pub const DEAD_SHARE: u64 = 8;

/// Written to see whether a failed disk works again.
pub const PROBE_BYTES: usize = 4096;

/// Seconds in which a capacity that was cut for want of room grows back.
pub const RECOVERY_STEPS: u64 = 64;

/// Times an upload makes room on a full disk before it is told so.
pub const ROOM_ATTEMPTS: usize = 3;

/// Queued journal bytes beyond which uses are no longer journaled: the disk does not take them.
pub const QUEUE_BYTES: usize = 16 * 1024 * 1024;

/// The journal's file grows by this much at a time, ahead of its records: on a full disk, records of evictions, which are
/// what frees space, still find room.
pub const JOURNAL_STEP_BYTES: u64 = 1024 * 1024;

/// An inline write that takes longer than this has blocked, ...
pub const SLOW_WRITE: Duration = Duration::from_millis(3);

/// ... and for so long after one, small writes go to the blocking pool as well.
pub const SLOW_PERIOD: Duration = Duration::from_millis(200);

/// How long a writer waits for the sync thread when too many files wait to be synced.
pub const SYNC_PATIENCE: Duration = Duration::from_secs(5);

/// The scrubber reads at least this much a second: about a hundredth of what a disk can do, ...
pub const SCRUB_STEP_BYTES: u64 = 4 * 1024 * 1024;

/// ... and as much as it takes to read a full store in this time (a week).
pub const SCRUB_PERIOD_SECONDS: u64 = 7 * 24 * 3600;

/// Bytes that all uploads together may gather before each gives its own to a job at once, however few they are: what
/// hundreds of stalled uploads may hold. Below it, pieces have the size that is cheapest.
pub const GATHERED_BYTES: usize = 32 * 1024 * 1024;

/// Blobs evicted under one hold of the state's lock: about a millisecond.
pub const EVICT_BATCH: u32 = 4096;

/// Bytes of evicted files that may wait to be removed before uploads wait for them, or ...
pub const MAX_GARBAGE_BYTES: u64 = 64 * 1024 * 1024;

/// ... this part (a sixteenth) of the capacity, if that is more: by so much the disk's use may exceed the capacity.
pub const GARBAGE_SHARE: u64 = 16;

/// A use noted this far in the future is not taken for a clock that was ahead: threads look at the clock before they take
/// the lock, and clocks are set by a little now and then.
pub const CLOCK_SLACK_SECONDS: u32 = 60;

/// Steps of a search in the order of use under one hold of the state's lock: some ten microseconds.
pub const SEARCH_STEPS: usize = 256;

/// Holds that one search may take. Beyond that, in a store of hundreds of millions of blobs, a copy is placed where the search has
/// come to: among what was used a little earlier or later.
pub const SEARCH_HOLDS: usize = 256;

/// Marks that searches leave in the order of use for later ones, 60 bytes each.
pub const MILESTONES: usize = 4096;

/// Lost blobs that are remembered each by its own, some 100 bytes in memory and 56 in each journal. One that has lost a disk's worth
/// of them is in doubt of everything.
pub const LOST_MAX: usize = 16 * 1024;

/// Blobs of functions with long hashes in one page of a list: each is read to learn its digest, 128 KiB at the most.
pub const FOLDED_PAGE: usize = 256;
