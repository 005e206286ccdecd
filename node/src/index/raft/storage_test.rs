//! openraft's own suite against the log and the state machine, and what it does not ask: crashes and power failures.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use casbah_cluster::asset::Moment;
use casbah_cluster::consensus::{Batch, Command, Entry, LeaderId, LogId, TypeConfig, Vote};
use casbah_cluster::membership::NodeId;
use openraft::entry::{EntryPayload, RaftEntry as _};
use openraft::storage::{
    RaftLogReader as _, RaftLogStorage as _, RaftLogStorageExt as _, RaftSnapshotBuilder as _, RaftStateMachine as _,
};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{StorageError, StoredMembership};
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use redb::{Database, StorageBackend};
use tempfile::TempDir;

use super::error::GroupError;
use super::log::{self, Log};
use super::snapshot::{self, SnapshotData};
use super::state::{self, State};

const NODE: NodeId = NodeId(0);

struct Builder;

impl StoreBuilder<TypeConfig, Log, State, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, Log, State), StorageError<TypeConfig>> {
        let folder = tempfile::tempdir().unwrap();
        let (log, state) = (Log::open(folder.path(), NODE).unwrap(), State::open(folder.path()).unwrap());
        Ok((folder, log, state))
    }
}

#[tokio::test]
async fn the_storage_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId { term, node_id: 0 }, index)
}

fn put(index: u64, key: &str, value: &str) -> Entry {
    let commands = Command::put_assets(vec![key.into()], value.as_bytes(), None);
    Entry::new(id(1, index), EntryPayload::Normal(Batch { index_capacity: 1_000, commands }))
}

async fn apply(state: &mut State, entries: impl IntoIterator<Item = Entry>) {
    let entries: Vec<_> = entries.into_iter().map(|entry| Ok((entry, None))).collect();
    state.apply(futures_util::stream::iter(entries)).await.unwrap();
}

fn value(state: &State, key: &str) -> Option<String> {
    state.get(key.as_bytes()).unwrap().map(|value| String::from_utf8(value).unwrap())
}

/// What a kill would leave: the files as they are now.
fn after_a_kill(folder: &TempDir) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in [log::FILE, state::FILE] {
        std::fs::copy(folder.path().join(file), copy.path().join(file)).unwrap();
    }
    copy
}

#[tokio::test]
async fn a_kill_takes_back_what_was_not_forced_to_disk_and_the_position_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = State::open(folder.path()).unwrap();
    apply(&mut state, [put(0, "a", "old")]).await;
    state.make_durable().unwrap();
    apply(&mut state, [put(1, "a", "new"), put(2, "b", "new")]).await;
    assert_eq!(value(&state, "a").as_deref(), Some("new"));
    std::fs::write(folder.path().join(log::FILE), "").unwrap();
    let copy = after_a_kill(&folder);
    let mut after = State::open(copy.path()).unwrap();
    let (applied, _) = after.applied_state().await.unwrap();
    assert_eq!(applied, Some(id(1, 0)));
    assert_eq!([value(&after, "a").as_deref(), value(&after, "b").as_deref()], [Some("old"), None]);
    // The log has them: applied again, it is as it was.
    apply(&mut after, [put(1, "a", "new"), put(2, "b", "new")]).await;
    assert_eq!([value(&after, "a").as_deref(), value(&after, "b").as_deref()], [Some("new"), Some("new")]);
}

#[tokio::test]
async fn a_snapshot_is_on_disk_before_the_log_may_be_cut() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(log::FILE), "").unwrap();
    let mut state = State::open(folder.path()).unwrap();
    apply(&mut state, [put(0, "a", "1"), put(1, "b", "2")]).await;
    let meta = state.get_snapshot_builder().await.build_snapshot().await.unwrap().meta;
    assert_eq!(meta.last_log_id, Some(id(1, 1)));
    assert_eq!(state.volatile(), (0, 0));
    let copy = after_a_kill(&folder);
    assert_eq!(State::open(copy.path()).unwrap().applied_state().await.unwrap().0, Some(id(1, 1)));
}

#[tokio::test]
async fn entries_that_were_answered_for_and_votes_are_there_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    drop(State::open(folder.path()).unwrap());
    let mut log = Log::open(folder.path(), NODE).unwrap();
    let vote = Vote::new_committed(3, 0);
    log.save_vote(&vote).await.unwrap();
    log.blocking_append((0..20).map(|index| put(index, "a", "1"))).await.unwrap();
    log.save_committed(Some(id(1, 9))).await.unwrap();
    log.blocking_append([put(20, "a", "1")]).await.unwrap();
    log.truncate_after(Some(id(1, 18))).await.unwrap();
    log.purge(id(1, 4)).await.unwrap();
    let copy = after_a_kill(&folder);
    let mut after = Log::open(copy.path(), NODE).unwrap();
    assert_eq!(after.read_vote().await.unwrap(), Some(vote));
    assert_eq!(after.read_committed().await.unwrap(), Some(id(1, 9)));
    let last = after.get_log_state().await.unwrap().last_log_id;
    assert_eq!(last, Some(id(1, 18)));
    // Cutting the log is forced to disk by the next write only: what came back is cut again.
    let entries = after.try_get_log_entries(5..100).await.unwrap();
    assert_eq!(entries, (5..=18).map(|index| put(index, "a", "1")).collect::<Vec<_>>());
}

#[tokio::test]
async fn entries_are_read_while_they_are_on_their_way_to_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::open(folder.path(), NODE).unwrap();
    for index in 0..200 {
        log.append([put(index, "a", "1")], openraft::storage::IOFlushed::noop()).await.unwrap();
        let entries = log.try_get_log_entries(index.saturating_sub(20)..index + 1).await.unwrap();
        assert_eq!(entries.len() as u64, index.min(20) + 1);
    }
    log.close();
    drop(log);
    let mut log = Log::open(folder.path(), NODE).unwrap();
    assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 200);
}

#[tokio::test]
async fn one_read_takes_few_enough_bytes_and_one_entry_at_least() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::open(folder.path(), NODE).unwrap();
    let large = "x".repeat(700_000);
    log.blocking_append((0..12).map(|index| put(index, "a", &large))).await.unwrap();
    for start in 0..12 {
        assert_eq!(log.limited_get_log_entries(start, 12).await.unwrap(), [put(start, "a", &large)], "from {start} on");
    }
    assert_eq!(log.try_get_log_entries(0..12).await.unwrap().len(), 12, "all that are asked for");
    let size = log.size_bytes();
    log.purge(id(1, 5)).await.unwrap();
    assert!(log.size_bytes() < size * 6 / 10, "{} of {size}", log.size_bytes());
}

#[tokio::test]
async fn the_least_recently_used_go_by_the_capacity_that_the_entry_names() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = State::open(folder.path()).unwrap();
    apply(&mut state, ["a", "b", "c"].iter().zip(0..).map(|(key, index)| put(index, key, "1"))).await;
    let touch = Command::TouchAssets { keys: vec![b"a".to_vec(), b"unknown".to_vec()] };
    let batch = Batch { index_capacity: 2, commands: vec![touch] };
    apply(&mut state, [Entry::new(id(1, 3), EntryPayload::Normal(batch))]).await;
    assert_eq!(["a", "b", "c"].map(|key| value(&state, key).is_some()), [true, false, true]);
    assert_eq!(state.counts().evicted, 1);
}

#[tokio::test]
async fn what_has_ended_goes_by_the_time_that_the_command_names() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = State::open(folder.path()).unwrap();
    let mut commands = Command::put_assets(vec![b"a".to_vec()], b"1", Some(Moment(100)));
    commands.extend(Command::put_assets(vec![b"b".to_vec()], b"2", Some(Moment(200))));
    commands.push(Command::ExpireAssets { now: Moment(150) });
    apply(&mut state, [Entry::new(id(1, 0), EntryPayload::Normal(Batch { index_capacity: 9, commands }))]).await;
    assert_eq!([value(&state, "a").is_some(), value(&state, "b").is_some()], [false, true]);
    assert!(state.something_has_ended(Moment(200)) && !state.something_has_ended(Moment(199)));
}

async fn sent(state: &mut State) -> Vec<u8> {
    let data = state.get_current_snapshot().await.unwrap().unwrap().snapshot;
    let pieces: Vec<bytes::Bytes> = futures_util::TryStreamExt::try_collect(data.into_stream()).await.unwrap();
    pieces.concat()
}

async fn received(folder: &Path, bytes: &[u8]) -> Result<SnapshotData, GroupError> {
    let pieces: Vec<_> =
        bytes.chunks(100_000).map(|piece| Ok::<_, io::Error>(bytes::Bytes::copy_from_slice(piece))).collect();
    snapshot::receive(folder, futures_util::stream::iter(pieces)).await
}

#[tokio::test]
async fn a_snapshot_that_was_sent_makes_the_same_state_and_the_same_order_of_use() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut from = State::open(one.path()).unwrap();
    apply(&mut from, (0..900).map(|index| put(index, &format!("{index}"), &"x".repeat(1_000)))).await;
    let touch = Batch { index_capacity: 1_000, commands: vec![Command::TouchAssets { keys: vec![b"0".to_vec()] }] };
    apply(&mut from, [Entry::new(id(1, 900), EntryPayload::Normal(touch))]).await;
    let bytes = sent(&mut from).await;
    let mut to = State::open(other.path()).unwrap();
    apply(&mut to, [put(0, "of an older time", "1")]).await;
    let meta = from.get_current_snapshot().await.unwrap().unwrap().meta;
    to.install_snapshot(&meta, received(other.path(), &bytes).await.unwrap()).await.unwrap();
    assert!(!other.path().join(snapshot::INCOMING).exists(), "it has served");
    assert_eq!(to.applied_state().await.unwrap().0, Some(id(1, 900)));
    assert_eq!(value(&to, "of an older time"), None);
    assert_eq!(sent(&mut to).await, bytes);
    // The next eviction hits the same one on both.
    let next = Batch { index_capacity: 899, commands: Vec::new() };
    for state in [&mut from, &mut to] {
        apply(state, [Entry::new(id(1, 901), EntryPayload::Normal(next.clone()))]).await;
        assert_eq!(["0", "1", "2"].map(|key| value(state, key).is_some()), [true, false, true]);
    }
}

#[tokio::test]
async fn later_entries_change_nothing_in_a_snapshot_that_is_being_sent() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = State::open(folder.path()).unwrap();
    apply(&mut state, (0..2_000).map(|index| put(index, &format!("{index}"), &"x".repeat(1_000)))).await;
    let expected = sent(&mut state).await;
    let mut stream = state.get_current_snapshot().await.unwrap().unwrap().snapshot.into_stream();
    let mut bytes = Vec::new();
    while let Some(piece) = futures_util::StreamExt::next(&mut stream).await {
        bytes.extend_from_slice(&piece.unwrap());
        apply(&mut state, [put(2_000 + bytes.len() as u64, "1999", "changed")]).await;
    }
    assert!(bytes == expected, "the snapshot has changed while it was sent");
}

#[tokio::test]
async fn a_snapshot_cut_off_or_damaged_anywhere_is_not_taken_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = State::open(folder.path()).unwrap();
    apply(&mut state, (0..20).map(|index| put(index, &format!("{index}"), "some text"))).await;
    let bytes = sent(&mut state).await;
    for length in 0..bytes.len() {
        let cut = received(folder.path(), &bytes[..length]).await;
        assert!(matches!(cut, Err(GroupError::Snapshot)), "cut to {length} bytes");
        let mut flipped = bytes.clone();
        flipped[length] ^= 1;
        let damaged = received(folder.path(), &flipped).await;
        assert!(matches!(damaged, Err(GroupError::Snapshot)), "damaged at {length}");
        assert!(!folder.path().join(snapshot::INCOMING).exists());
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(received(folder.path(), &longer).await.is_err());
    received(folder.path(), &bytes).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_that_breaks_while_it_is_installed_leaves_the_old_state() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut from = State::open(one.path()).unwrap();
    apply(&mut from, (0..600).map(|index| put(index, &format!("{index}"), &"x".repeat(1_000)))).await;
    let bytes = sent(&mut from).await;
    let mut to = State::open(other.path()).unwrap();
    apply(&mut to, [put(0, "old", "1")]).await;
    let data = received(other.path(), &bytes).await.unwrap();
    // The disk loses the end of it after it was checked.
    let file = std::fs::OpenOptions::new().write(true).open(other.path().join(snapshot::INCOMING)).unwrap();
    file.set_len(bytes.len() as u64 * 2 / 3).unwrap();
    let meta = from.get_current_snapshot().await.unwrap().unwrap().meta;
    to.install_snapshot(&meta, data).await.unwrap_err();
    assert_eq!(value(&to, "old").as_deref(), Some("1"));
    assert_eq!(value(&to, "1"), None);
    assert_eq!(to.applied_state().await.unwrap().0, Some(id(1, 0)));
}

#[test]
fn the_log_of_another_node_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    Log::open(folder.path(), NodeId(7)).unwrap().close();
    let Err(error) = Log::open(folder.path(), NodeId(8)) else { panic!("it was opened") };
    assert!(matches!(error, GroupError::OtherNode { found: NodeId(7), expected: NodeId(8), .. }), "{error}");
}

#[test]
fn an_index_from_before_is_refused_and_named() {
    for old in [1, 2, 3] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(state::FILE);
        drop(crate::index::tables::create(&path, old).unwrap());
        let Err(error) = State::open(folder.path()) else { panic!("it was opened") };
        assert!(matches!(error, GroupError::Format { found, expected: 4, .. } if found == old), "{error}");
    }
}

/// A disk that can lose its power: what was not synced may or may not be there, write by write.
#[derive(Debug, Clone, Default)]
struct Disk {
    inner: Arc<Mutex<Contents>>,
}

#[derive(Debug, Default)]
struct Contents {
    now: Vec<u8>,
    synced: Vec<u8>,
    /// Writes since the last sync.
    volatile: Vec<(u64, Vec<u8>)>,
}

impl Disk {
    /// As it is found after the power has failed.
    fn after_a_power_failure(&self, random: &mut StdRng) -> Disk {
        let contents = self.inner.lock().unwrap();
        let mut now = contents.synced.clone();
        for (offset, data) in &contents.volatile {
            if random.random_bool(0.5) {
                let offset = usize::try_from(*offset).unwrap();
                now.resize(now.len().max(offset + data.len()), 0);
                now[offset..offset + data.len()].copy_from_slice(data);
            }
        }
        // Its length is a matter of metadata, which journals keep.
        now.resize(now.len().max(contents.now.len()), 0);
        Disk { inner: Arc::new(Mutex::new(Contents { now: now.clone(), synced: now, volatile: Vec::new() })) }
    }

    fn open(&self) -> Database {
        Database::builder().create_with_backend(self.clone()).unwrap()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.inner.lock().unwrap().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let offset = usize::try_from(offset).unwrap();
        out.copy_from_slice(&self.inner.lock().unwrap().now[offset..offset + out.len()]);
        Ok(())
    }

    fn set_len(&self, length: u64) -> Result<(), io::Error> {
        let mut contents = self.inner.lock().unwrap();
        contents.now.resize(usize::try_from(length).unwrap(), 0);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut contents = self.inner.lock().unwrap();
        contents.synced = contents.now.clone();
        contents.volatile.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut contents = self.inner.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        contents.now[start..start + data.len()].copy_from_slice(data);
        contents.volatile.push((offset, data.to_vec()));
        Ok(())
    }
}

fn seed() -> u64 {
    let seed = std::env::var("CASBAH_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| rand::rng().next_u64());
    println!("CASBAH_TEST_SEED={seed}");
    seed
}

/// The log and the state under random work and power failures: what was answered for is there, and the state is that of an
/// entry which the log has or has cut.
#[tokio::test]
async fn power_failures_at_any_moment_lose_nothing_that_was_answered_for() {
    let mut random = StdRng::seed_from_u64(seed());
    let path = Path::new("memory");
    let (mut log_disk, mut state_disk) = (Disk::default(), Disk::default());
    let mut log = Log::of(log_disk.open(), path, NODE).unwrap();
    let mut state = State::of(state_disk.open(), path).unwrap();
    let mut appended = 0_u64;
    let mut applied = 0_u64;
    let mut kept = BTreeMap::new();
    for step in 0..400_u64 {
        match random.random_range(0..10) {
            0..=4 => {
                let count = random.random_range(1..8);
                let key = |index: u64| format!("{}", index % 17);
                let entries: Vec<Entry> =
                    (appended..appended + count).map(|index| put(index, &key(index), &index.to_string())).collect();
                log.blocking_append(entries).await.unwrap();
                for index in appended..appended + count {
                    kept.insert(index, key(index));
                }
                appended += count;
            }
            5 | 6 => {
                let end = random.random_range(applied..=appended);
                let entries = log.try_get_log_entries(applied..end).await.unwrap();
                assert_eq!(entries.len() as u64, end - applied);
                apply(&mut state, entries).await;
                applied = end;
            }
            7 if applied > 0 => state.make_durable().unwrap(),
            8 if applied > 0 => {
                let meta = state.get_snapshot_builder().await.build_snapshot().await.unwrap().meta;
                log.purge(meta.last_log_id.unwrap()).await.unwrap();
            }
            _ => {
                log_disk = log_disk.after_a_power_failure(&mut random);
                state_disk = state_disk.after_a_power_failure(&mut random);
                log = Log::of(log_disk.open(), path, NODE).unwrap();
                state = State::of(state_disk.open(), path).unwrap();
                let log_state = log.get_log_state().await.unwrap();
                assert_eq!(log_state.last_log_id.map(|id| id.index() + 1).unwrap_or(0), appended, "step {step}");
                let (last, membership) = state.applied_state().await.unwrap();
                assert_eq!(membership, StoredMembership::default());
                let after = last.map_or(0, |id| id.index() + 1);
                assert!(after <= applied, "step {step}");
                let purged = log_state.last_purged_log_id.map_or(0, |id| id.index() + 1);
                assert!(purged <= after, "step {step}: cut to {purged}, and the state is as of {after}");
                let entries = log.try_get_log_entries(after..appended).await.unwrap();
                assert_eq!(entries.len() as u64, appended - after, "step {step}");
                apply(&mut state, entries).await;
                applied = appended;
                for key in 0..17_u64 {
                    let expected =
                        kept.iter().rev().find(|(_, of)| **of == key.to_string()).map(|(index, _)| index.to_string());
                    assert_eq!(value(&state, &key.to_string()), expected, "step {step}, key {key}");
                }
            }
        }
    }
}
