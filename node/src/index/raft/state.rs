//! The state machine: all assets, and what the nodes agree on about themselves, in one redb file.
//!
//! Entries are applied in transactions that no fsync follows: the log has them on disk, and applies them again after a crash.
//! Each transaction says which entry was the last one, so that what is there after a crash, of whatever time, is the state as
//! of an entry. It is forced to disk every so often, and always before the log is cut.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use casbah_cluster::asset::Moment;
use casbah_cluster::codec;
use casbah_cluster::consensus::{
    self, Command, Entry, LogId, Replies, Reply, SnapshotMeta, SnapshotPart, StoredMembership, TypeConfig,
};
use casbah_cluster::membership::{ClusterState, NodeId, Part};
use futures_util::{Stream, StreamExt as _};
use openraft::OptionalSend;
use openraft::entry::{EntryPayload, RaftEntry as _};
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use redb::{
    Database, Durability, ReadTransaction, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _,
};
use redb::{TableDefinition, WriteTransaction};
use tokio::sync::watch;

use crate::index::raft::core::blocking;
use crate::index::raft::error::GroupError;
use crate::index::raft::snapshot::{Snapshot, SnapshotData, snapshot};
use crate::index::records::IndexCounts;
use crate::index::tables::{self, ENDS, RECORDS, Tables, USES};
use crate::index::writer::{Gone, Removed};

/// The file's name in the node's directory.
pub(super) const FILE: &str = "assets.redb";

/// The format of the file: 1 was that of a node by itself, 2 knew no standings of members, 3 no versions of the protocol. Another
/// one is refused, never guessed at.
const FORMAT: u64 = 4;

/// Entries that one transaction takes in at most: reads see it when all of it is there.
const ENTRIES_PER_STEP: usize = 256;

/// The same in bytes, roughly.
const STEP_BYTES: usize = 1 << 20;

/// What belongs to no asset: records of the codec under the names below.
pub(super) const CLUSTER: TableDefinition<&str, &[u8]> = TableDefinition::new("cluster");
const STATE: &str = "state";
const APPLIED: &str = "applied";
const MEMBERSHIP: &str = "membership";
/// What another node has told: a position of the log, and the cluster's state as of it.
const TOLD: &str = "told";
const TOLD_VERSION: u8 = 1;

/// The state of this node. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(super) struct State {
    inner: Arc<Inner>,
}

struct Inner {
    database: Database,
    gone: Gone,
    /// The last entry that reads see the effects of.
    applied: watch::Sender<Option<LogId>>,
    /// What the nodes agree on about themselves, by the entries that were applied.
    by_log: Mutex<ByLog>,
    /// The same by the log or by another node's word, whichever is later.
    newest: watch::Sender<Option<Arc<ClusterState>>>,
    /// The position that it is of; changed while the sender holds its lock.
    newest_at: AtomicU64,
    /// Entries, and bytes of them, that a crash would have applied again.
    volatile_entries: AtomicU64,
    volatile_bytes: AtomicU64,
}

/// The state of the cluster that the log has made, and as of which position.
#[derive(Clone, Default)]
struct ByLog {
    position: u64,
    state: Option<Arc<ClusterState>>,
}

/// Makes what was applied durable, so that the log can be cut.
pub(super) struct Builder {
    state: State,
    view: Option<Result<(SnapshotMeta, ReadTransaction), GroupError>>,
}

type Responder = Option<ApplyResponder<TypeConfig>>;

// === impl State ===

impl State {
    /// Opens the state in this directory, or makes it. Blocks on the disk.
    ///
    /// # Errors
    /// [`GroupError`] when it has another format, or the disk fails.
    pub(super) fn open(directory: &Path) -> Result<State, GroupError> {
        let path = directory.join(FILE);
        let database =
            Database::builder().set_cache_size(tables::CACHE_BYTES).create(&path).map_err(redb::Error::from)?;
        State::of(database, &path)
    }

    pub(super) fn of(database: Database, path: &Path) -> Result<State, GroupError> {
        let found = tables::prepare(&database, FORMAT)?;
        if found != FORMAT {
            return Err(GroupError::Format { path: path.to_owned(), found, expected: FORMAT });
        }
        let create = || -> Result<(), redb::Error> {
            let mut transaction = database.begin_write()?;
            transaction.set_quick_repair(true);
            transaction.open_table(CLUSTER)?;
            Ok(transaction.commit()?)
        };
        create()?;
        let view = database.begin_read().map_err(redb::Error::from)?;
        let (applied, _) = position(&view)?;
        let by_log = ByLog { position: index_of(applied.as_ref()), state: cluster(&view)?.map(Arc::new) };
        let told = told(&view)?.map(|(position, state)| (position, Arc::new(state)));
        let logged = by_log.state.clone().map(|state| (by_log.position, state));
        let (newest_at, newest) = logged.into_iter().chain(told).max_by_key(|(position, _)| *position).unzip();
        let inner = Inner {
            database,
            gone: Gone::default(),
            applied: watch::Sender::new(applied),
            by_log: Mutex::new(by_log),
            newest: watch::Sender::new(newest),
            newest_at: AtomicU64::new(newest_at.unwrap_or(0)),
            volatile_entries: AtomicU64::new(0),
            volatile_bytes: AtomicU64::new(0),
        };
        Ok(State { inner: Arc::new(inner) })
    }

    /// The record under this key, as of the last entry that was applied.
    ///
    /// # Errors
    /// [`GroupError`] when the database fails.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, GroupError> {
        let look = || -> Result<_, redb::Error> {
            // The entry lies in pages that the transaction holds: it has to live as long.
            let transaction = self.inner.database.begin_read()?;
            let table = transaction.open_table(RECORDS)?;
            let entry = table.get(key)?;
            Ok(entry.map(|entry| entry.value().2.to_vec()))
        };
        Ok(look()?)
    }

    /// The last entry that reads see the effects of, as it moves on.
    pub(super) fn applied(&self) -> watch::Receiver<Option<LogId>> {
        self.inner.applied.subscribe()
    }

    /// What the nodes agree on about themselves, as it changes.
    pub(super) fn cluster(&self) -> watch::Receiver<Option<Arc<ClusterState>>> {
        self.inner.newest.subscribe()
    }

    /// The same, and the position of the log that it is of.
    pub(super) fn known(&self) -> Option<(u64, Arc<ClusterState>)> {
        let newest = self.inner.newest.borrow();
        let state = newest.as_ref()?;
        Some((self.inner.newest_at.load(Ordering::Relaxed), Arc::clone(state)))
    }

    /// Whether a node goes by its log: it has one, by that is no watcher, and has heard of nothing later. Also before it has
    /// heard of any cluster.
    pub(super) fn has_log(&self, node: NodeId) -> bool {
        let newest_at = {
            let newest = self.inner.newest.borrow();
            if newest.is_none() {
                return true;
            }
            self.inner.newest_at.load(Ordering::Relaxed)
        };
        let by_log = self.by_log();
        let is_watcher = |state: &ClusterState| state.members.get(&node).is_some_and(|it| it.part == Part::Watcher);
        by_log.position.max(index_of(self.inner.applied.borrow().as_ref())) >= newest_at
            && by_log.state.as_ref().is_some_and(|state| !is_watcher(state))
    }

    /// Another node has told of the cluster's state; it is kept, unless it is not later than what is known.
    pub(super) async fn heard(&self, position: u64, state: Arc<ClusterState>) {
        if !self.is_newer(position, &state) {
            return;
        }
        let inner = self.clone();
        let written = blocking(move || {
            let mut transaction = inner.inner.database.begin_write().map_err(redb::Error::from)?;
            transaction.set_quick_repair(true);
            put_told(&transaction, position, &state)?;
            Ok(transaction.commit().map_err(redb::Error::from)?)
        });
        if let Err(error) = written.await {
            tracing::error!(%error, "what another node has told of the cluster cannot be kept");
        }
    }

    /// Makes a state the one that is known, if it is later.
    fn is_newer(&self, position: u64, state: &Arc<ClusterState>) -> bool {
        let Inner { newest, newest_at, .. } = &*self.inner;
        newest.send_if_modified(|newest| {
            if newest.is_some() && position <= newest_at.load(Ordering::Relaxed) {
                return false;
            }
            newest_at.store(position, Ordering::Relaxed);
            *newest = Some(Arc::clone(state));
            true
        })
    }

    fn by_log(&self) -> ByLog {
        self.inner.by_log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The log has made this state.
    fn made_by_log(&self, position: u64, state: Option<Arc<ClusterState>>) {
        let by_log = ByLog { position, state: state.clone() };
        *self.inner.by_log.lock().unwrap_or_else(PoisonError::into_inner) = by_log;
        if let Some(state) = state {
            self.is_newer(position, &state);
        }
    }

    /// Whether an asset has ended by this time. May wait for the disk.
    pub(super) fn something_has_ended(&self, now: Moment) -> bool {
        let look = || -> Result<bool, redb::Error> {
            let ends = self.inner.database.begin_read()?.open_table(ENDS)?;
            let first = ends.first()?.map(|(end, _)| end.value().0);
            Ok(first.is_some_and(|end| end <= now.0))
        };
        // A database that fails says so at the next write.
        look().unwrap_or(false)
    }

    /// The assets in numbers. May wait for the disk.
    pub(super) fn counts(&self) -> IndexCounts {
        let count =
            || -> Result<u64, redb::Error> { Ok(self.inner.database.begin_read()?.open_table(RECORDS)?.len()?) };
        let (evicted, expired) = self.inner.gone.so_far();
        IndexCounts { records: count().ok(), evicted, expired }
    }

    /// Entries, and bytes of them, that would be applied again after a crash.
    pub(super) fn volatile(&self) -> (u64, u64) {
        let Inner { volatile_entries, volatile_bytes, .. } = &*self.inner;
        (volatile_entries.load(Ordering::Relaxed), volatile_bytes.load(Ordering::Relaxed))
    }

    /// Forces what was applied to the disk. Blocks on it.
    ///
    /// # Errors
    /// [`GroupError`] when that fails.
    pub(super) fn make_durable(&self) -> Result<(), GroupError> {
        let (entries, bytes) = self.volatile();
        let write = || -> Result<(), redb::Error> {
            let mut transaction = self.inner.database.begin_write()?;
            // Without this, the first start after a kill would read the whole database.
            transaction.set_quick_repair(true);
            Ok(transaction.commit()?)
        };
        write()?;
        self.inner.volatile_entries.fetch_sub(entries, Ordering::Relaxed);
        self.inner.volatile_bytes.fetch_sub(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// A consistent view, and what it is of.
    fn view(&self) -> Result<(SnapshotMeta, ReadTransaction), GroupError> {
        let view = self.inner.database.begin_read().map_err(redb::Error::from)?;
        let (last_log_id, last_membership) = position(&view)?;
        Ok((SnapshotMeta { last_log_id, last_membership }, view))
    }

    /// Applies entries in one transaction; their replies, in order.
    fn step(&self, entries: &[Entry]) -> Result<Vec<Replies>, GroupError> {
        let mut transaction = self.inner.database.begin_write().map_err(redb::Error::from)?;
        transaction.set_durability(Durability::None).map_err(redb::Error::from)?;
        let mut changed = None;
        let before = self.by_log().state;
        let mut gone = Removed::default();
        let mut replies = Vec::with_capacity(entries.len());
        for entry in entries {
            replies.push(match &entry.payload {
                EntryPayload::Blank => Replies::default(),
                EntryPayload::Membership(membership) => {
                    let stored = StoredMembership::new(Some(entry.log_id()), membership.clone());
                    put(&transaction, MEMBERSHIP, &consensus::encode_membership(&stored)?)?;
                    Replies::default()
                }
                EntryPayload::Normal(batch) => {
                    let mut applying = Applying { transaction: &transaction, changed: &mut changed, gone: &mut gone };
                    applying.batch(batch, before.as_deref())?
                }
            });
        }
        let last = entries.last().map(|entry| entry.log_id());
        if let Some(last) = &last {
            put(&transaction, APPLIED, &consensus::encode_log_id(last)?)?;
        }
        transaction.commit().map_err(redb::Error::from)?;
        self.inner.gone.add(gone);
        if let Some(state) = changed {
            self.made_by_log(index_of(last.as_ref()), Some(Arc::new(state)));
        }
        self.inner.applied.send_replace(last);
        Ok(replies)
    }

    /// Replaces everything by what a snapshot holds: all of it or, when it is not whole, nothing.
    fn install(&self, meta: &SnapshotMeta, data: SnapshotData) -> Result<(), GroupError> {
        let mut transaction = self.inner.database.begin_write().map_err(redb::Error::from)?;
        transaction.set_quick_repair(true);
        let state = fill(&transaction, meta, data)?;
        let position = index_of(meta.last_log_id.as_ref());
        if let Some((told_at, told)) = self.known().filter(|(known_at, _)| *known_at > position) {
            put_told(&transaction, told_at, &told)?;
        }
        transaction.commit().map_err(redb::Error::from)?;
        self.inner.volatile_entries.store(0, Ordering::Relaxed);
        self.inner.volatile_bytes.store(0, Ordering::Relaxed);
        self.made_by_log(position, state.map(Arc::new));
        self.inner.applied.send_replace(meta.last_log_id);
        Ok(())
    }

    /// Applies what is gathered and answers those who wait for it.
    async fn apply_step(&self, gathered: Vec<(Entry, Responder)>, bytes: usize) -> io::Result<()> {
        let count = gathered.len() as u64;
        let (entries, responders): (Vec<Entry>, Vec<Responder>) = gathered.into_iter().unzip();
        let state = self.clone();
        let step = tokio::task::spawn_blocking(move || state.step(&entries));
        let replies = step.await.map_err(io::Error::other)?.map_err(io::Error::other)?;
        self.inner.volatile_entries.fetch_add(count, Ordering::Relaxed);
        self.inner.volatile_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        for (responder, replies) in responders.into_iter().zip(replies) {
            if let Some(responder) = responder {
                responder.send(replies);
            }
        }
        Ok(())
    }
}

/// Commands of one transaction.
struct Applying<'a> {
    transaction: &'a WriteTransaction,
    changed: &'a mut Option<ClusterState>,
    gone: &'a mut Removed,
}

// === impl Applying ===

impl Applying<'_> {
    fn batch(&mut self, batch: &consensus::Batch, before: Option<&ClusterState>) -> Result<Replies, GroupError> {
        let mut tables = Tables::open(self.transaction)?;
        let mut replies = Vec::with_capacity(batch.commands.len());
        for command in &batch.commands {
            replies.push(match command {
                Command::Member(command) => {
                    let before = self.changed.as_ref().or(before);
                    let (after, reply) = consensus::apply_member(before, command);
                    if let Some(after) = after {
                        put(self.transaction, STATE, &after.encode()?)?;
                        *self.changed = Some(after);
                    }
                    Reply::Member(reply)
                }
                command => self.assets(&mut tables, command)?,
            });
        }
        self.gone.evicted += tables.shrink_to(batch.index_capacity.max(1))?;
        Ok(Replies { replies })
    }

    fn assets(&mut self, tables: &mut Tables<'_>, command: &Command) -> Result<Reply, redb::Error> {
        match command {
            Command::PutAssets { keys, record, ends_at } => {
                for key in keys {
                    tables.insert(key, record, *ends_at)?;
                }
            }
            Command::TouchAssets { keys } => {
                for key in keys {
                    tables.touch(key)?;
                }
            }
            Command::ExpireAssets { now } => {
                let count = tables.sweep(*now)?;
                self.gone.expired += count;
                return Ok(Reply::Removed { count });
            }
            Command::Member(_) => {}
        }
        Ok(Reply::Done)
    }
}

fn put(transaction: &WriteTransaction, name: &str, record: &[u8]) -> Result<(), redb::Error> {
    transaction.open_table(CLUSTER)?.insert(name, record)?;
    Ok(())
}

fn record(view: &ReadTransaction, name: &str) -> Result<Option<Vec<u8>>, redb::Error> {
    Ok(view.open_table(CLUSTER)?.get(name)?.map(|record| record.value().to_vec()))
}

/// The last entry that was applied, and who votes and learns since when.
fn position(view: &ReadTransaction) -> Result<(Option<LogId>, StoredMembership), GroupError> {
    let applied = record(view, APPLIED)?.map(|bytes| consensus::decode_log_id(&bytes)).transpose()?;
    let membership = record(view, MEMBERSHIP)?.map(|bytes| consensus::decode_membership(&bytes)).transpose()?;
    Ok((applied, membership.unwrap_or_default()))
}

fn index_of(log_id: Option<&LogId>) -> u64 {
    log_id.map_or(0, |id| id.index())
}

/// Keeps what another node has told of the cluster.
fn put_told(transaction: &WriteTransaction, position: u64, state: &ClusterState) -> Result<(), GroupError> {
    let record = codec::encode(TOLD_VERSION, &(position, state.encode()?))?;
    Ok(put(transaction, TOLD, &record)?)
}

/// What another node has told of the cluster last.
fn told(view: &ReadTransaction) -> Result<Option<(u64, ClusterState)>, GroupError> {
    let Some(record) = record(view, TOLD)? else { return Ok(None) };
    let (position, state) = codec::decode::<(u64, Vec<u8>)>(TOLD_VERSION, &record)?;
    Ok(Some((position, ClusterState::decode(&state)?)))
}

fn cluster(view: &ReadTransaction) -> Result<Option<ClusterState>, GroupError> {
    Ok(record(view, STATE)?.map(|bytes| ClusterState::decode(&bytes)).transpose()?)
}

/// Empties the tables and fills them from a snapshot; the cluster's state that it holds.
fn fill(
    transaction: &WriteTransaction,
    meta: &SnapshotMeta,
    data: SnapshotData,
) -> Result<Option<ClusterState>, GroupError> {
    let clear = || -> Result<(), redb::Error> {
        transaction.delete_table(RECORDS)?;
        transaction.delete_table(USES)?;
        transaction.delete_table(ENDS)?;
        transaction.delete_table(CLUSTER)?;
        Ok(())
    };
    clear()?;
    if let Some(last) = &meta.last_log_id {
        put(transaction, APPLIED, &consensus::encode_log_id(last)?)?;
    }
    put(transaction, MEMBERSHIP, &consensus::encode_membership(&meta.last_membership)?)?;
    let mut tables = Tables::open(transaction)?;
    let mut found = None;
    data.visit(&mut |part| {
        match part {
            SnapshotPart::Cluster { state } => {
                if let Some(state) = state {
                    put(transaction, STATE, state).map_err(io::Error::other)?;
                    found = Some(ClusterState::decode(state).map_err(io::Error::other)?);
                }
            }
            SnapshotPart::Assets { records } => {
                for record in records {
                    let inserted = tables.insert(&record.key, &record.record, record.ends_at.map(Moment));
                    inserted.map_err(io::Error::other)?;
                }
            }
            SnapshotPart::End { .. } => {}
        }
        Ok(())
    })?;
    Ok(found)
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotData;

    /// The log up to here can go once this has returned: what it did is on disk.
    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let view = self.view.take().unwrap_or_else(|| self.state.view());
        let (meta, view) = view.map_err(io::Error::other)?;
        let state = self.state.clone();
        let write = tokio::task::spawn_blocking(move || state.make_durable());
        write.await.map_err(io::Error::other)?.map_err(io::Error::other)?;
        Ok(snapshot(meta, SnapshotData::View(view)))
    }
}

impl RaftStateMachine<TypeConfig> for State {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let view = self.inner.database.begin_read().map_err(io::Error::other)?;
        position(&view).map_err(io::Error::other)
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let (mut gathered, mut bytes) = (Vec::new(), 0);
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            if let EntryPayload::Normal(batch) = &entry.payload {
                bytes += batch.commands.iter().map(Command::size_bytes).sum::<usize>();
            }
            gathered.push((entry, responder));
            if gathered.len() >= ENTRIES_PER_STEP || bytes >= STEP_BYTES {
                self.apply_step(std::mem::take(&mut gathered), std::mem::take(&mut bytes)).await?;
            }
        }
        if gathered.is_empty() { Ok(()) } else { self.apply_step(gathered, bytes).await }
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        // As of now; what is applied while it is being built does not count.
        Builder { state: self.clone(), view: Some(self.view()) }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, data: SnapshotData) -> io::Result<()> {
        let (state, meta) = (self.clone(), meta.clone());
        let install = tokio::task::spawn_blocking(move || state.install(&meta, data));
        install.await.map_err(io::Error::other)?.map_err(io::Error::other)
    }

    /// As of now, not of when the log was cut: what was applied since is a gain for whoever gets it.
    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let (meta, view) = self.view().map_err(io::Error::other)?;
        Ok(meta.last_log_id.is_some().then(|| snapshot(meta, SnapshotData::View(view))))
    }
}
