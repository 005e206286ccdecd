//! A cluster in one process, for tests: stores of their own, and nodes that fail as they are told to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_cluster::inventory::{ActionName, ListedAction, ListedBlob, Page, PartitionSummary};
use casbah_cluster::membership::{
    ClusterId, ClusterState, Epoch, Layout, LayoutNode, Member, NodeId, Part, Protocols, Rebalance, Standing, VolumeId,
};
use casbah_cluster::replication::Version;
use casbah_cluster::ring::partition_of;
use casbah_cluster::view::View;
use tokio::sync::watch;
use tonic::Status;

use crate::forward::{Copy, Form, Health, PeerError, Unreachable};
use crate::index::ActionIndex;
use crate::replicate::{Doubt, Nodes, Remote, RemoteRead, RemoteUpload};
use crate::route::{Actions, Blobs};
use crate::store::testing::{Bench, blob, digest};
use crate::store::{Presence, ReadError, Reader, Store, StoredReader, Upload, WriteError};

/// What a call to a node that says nothing waits for; in the program it is seconds.
const DEADLINE: Duration = Duration::from_millis(20);

/// Entries of a page: few, so that lists have several.
const LISTED_MAX: usize = 3;

/// How a node behaves to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    Well,
    /// Gone, as all know.
    Away,
    /// Gone, and nobody knows yet.
    Dead,
    /// Answers nothing before the deadline.
    Silent,
    /// Takes no bytes and never says so.
    Stalled,
    /// Goes away in the middle of a stream, after so many bytes of it.
    BreaksAfter(u64),
    FailsAtCommit,
    /// Has no room.
    Full,
}

/// One node.
pub struct TestNode {
    pub bench: Bench,
    pub store: Store,
    pub index: ActionIndex,
    pub nodes: Nodes,
    pub blobs: Blobs,
    pub actions: Actions,
}

/// The nodes as others see them.
struct Seen {
    store: Store,
    index: ActionIndex,
    view: watch::Receiver<Arc<View>>,
    behaviour: Mutex<Behaviour>,
    calls: AtomicUsize,
}

/// The way between nodes.
#[derive(Clone)]
struct Fabric {
    nodes: Arc<BTreeMap<NodeId, Seen>>,
}

/// A cluster; nodes are numbered from 1.
pub struct TestCluster {
    pub nodes: Vec<TestNode>,
    fabric: Fabric,
    view: View,
    /// What each node works by.
    views: BTreeMap<NodeId, watch::Sender<Arc<View>>>,
    _folder: tempfile::TempDir,
}

// === impl TestCluster ===

impl TestCluster {
    pub async fn new(count: u64, copies: u8, write_quorum: u8) -> TestCluster {
        TestCluster::of((0..count).map(|_| Bench::new(64 << 20)).collect(), copies, write_quorum).await
    }

    pub async fn of(benches: Vec<Bench>, copies: u8, write_quorum: u8) -> TestCluster {
        let folder = tempfile::tempdir().unwrap();
        let count = benches.len() as u64;
        let mut seen = BTreeMap::new();
        let mut views = BTreeMap::new();
        let mut opened = Vec::new();
        for (id, bench) in (1..).zip(benches) {
            let store = bench.open().await;
            let index = ActionIndex::open(&folder.path().join(format!("{id}.redb")), 1000).unwrap();
            let (behaviour, calls) = (Mutex::new(Behaviour::Well), AtomicUsize::new(0));
            let view = watch::Sender::new(Arc::new(View::new(NodeId(id), state(count, copies, write_quorum))));
            let (store_seen, index_seen, seen_by) = (store.clone(), index.clone(), view.subscribe());
            let one = Seen { store: store_seen, index: index_seen, view: seen_by, behaviour, calls };
            seen.insert(NodeId(id), one);
            views.insert(NodeId(id), view);
            opened.push((NodeId(id), bench, store, index));
        }
        let fabric = Fabric { nodes: Arc::new(seen) };
        let nodes = opened.into_iter().map(|(id, bench, store, index)| {
            let nodes = Nodes::new(store.clone(), views[&id].subscribe(), Arc::new(fabric.clone()));
            let (blobs, actions) = (Blobs::new(nodes.clone()), Actions::new(nodes.clone(), index.clone()));
            TestNode { bench, store, index, nodes, blobs, actions }
        });
        let view = View::new(NodeId(1), state(count, copies, write_quorum));
        TestCluster { nodes: nodes.collect(), fabric, view, views, _folder: folder }
    }

    pub fn node(&self, id: NodeId) -> &TestNode {
        &self.nodes[id.0 as usize - 1]
    }

    /// The nodes as a node sees them that may be in doubt.
    pub fn in_doubt(&self, id: NodeId, is_in_doubt: Doubt) -> Nodes {
        let fabric: Arc<dyn Remote> = Arc::new(self.fabric.clone());
        Nodes::in_doubt(self.node(id).store.clone(), self.views[&id].subscribe(), fabric, is_in_doubt)
    }

    /// Has a node work by another state from now on.
    pub fn adopt(&self, id: NodeId, state: &ClusterState) {
        self.views[&id].send_replace(Arc::new(View::new(id, state.clone())));
    }

    /// The cluster's state with these layouts in force, each an epoch and its nodes.
    pub fn with_layouts(&self, layouts: &[(u64, &[u64])]) -> ClusterState {
        let node = LayoutNode { zone: String::new(), weight: 100 };
        let nodes = |ids: &[u64]| ids.iter().map(|id| (NodeId(*id), node.clone())).collect();
        let layout = |(epoch, ids): &(u64, &[u64])| Layout { epoch: Epoch(*epoch), nodes: nodes(ids) };
        ClusterState { layouts: layouts.iter().map(layout).collect(), ..self.view.state().clone() }
    }

    pub fn set(&self, id: NodeId, behaviour: Behaviour) {
        *self.fabric.nodes[&id].behaviour.lock().unwrap() = behaviour;
    }

    /// Calls that others have made to a node.
    pub fn calls(&self, id: NodeId) -> usize {
        self.fabric.nodes[&id].calls.load(Ordering::Relaxed)
    }

    pub fn owners(&self, digest: &Digest) -> Vec<NodeId> {
        self.view.owners(partition_of(digest)).to_vec()
    }

    /// A node that is no owner.
    pub fn stranger(&self, digest: &Digest) -> NodeId {
        let owners = self.owners(digest);
        (1..).map(NodeId).find(|node| !owners.contains(node)).unwrap()
    }

    /// Those that have it.
    pub fn holders(&self, digest: &Digest) -> Vec<NodeId> {
        let ids = (1..).map(NodeId).take(self.nodes.len());
        ids.filter(|node| self.node(*node).store.contains(digest)).collect()
    }

    /// The bytes of a blob and its digest, the same for the same seed.
    pub fn blob(seed: u64, length: usize) -> (Digest, Bytes) {
        let bytes = blob(seed, length);
        (digest(&bytes), bytes)
    }

    /// A blob whose first owner is this node.
    pub fn blob_of(&self, owner: NodeId, length: usize) -> (Digest, Bytes) {
        let mut blobs = (0..).map(|seed| TestCluster::blob(seed, length));
        blobs.find(|(digest, _)| self.owners(digest).first() == Some(&owner)).unwrap()
    }

    /// Waits for all that goes on by itself.
    pub async fn settle(&self) {
        for node in &self.nodes {
            node.nodes.finish(Duration::from_secs(10)).await;
        }
    }
}

impl TestNode {
    /// Uploads in pieces of this length.
    pub async fn upload(&self, digest: &Digest, bytes: &Bytes, piece: usize) -> Result<(), crate::route::WriteError> {
        let mut upload = self.blobs.upload(digest).await?;
        let mut rest = bytes.clone();
        while !rest.is_empty() {
            upload.write(rest.split_to(piece.min(rest.len()))).await?;
        }
        upload.commit().await
    }

    /// Reads a range.
    pub async fn read(
        &self,
        digest: &Digest,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Vec<u8>, crate::route::ReadError> {
        let mut reader = self.blobs.read(digest, offset, length).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = reader.next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }
}

fn state(count: u64, copies: u8, write_quorum: u8) -> ClusterState {
    let member = |id: u64| Member {
        name: format!("node-{id}"),
        address: format!("node-{id}:7980"),
        volume: VolumeId([id as u8; 16]),
        zone: String::new(),
        weight: 100,
        protocols: Protocols::SPOKEN,
        part: Part::Voter,
        synced: Epoch(1),
        standing: Standing::Serving,
        leaves: false,
        placed: None,
    };
    let node = |_| LayoutNode { zone: String::new(), weight: 100 };
    let ids = || 1..=count;
    ClusterState {
        id: ClusterId([1; 16]),
        name: "casbah".into(),
        copies,
        write_quorum,
        protocol: Protocols::SPOKEN.newest,
        next_node_id: NodeId(count + 1),
        expected_members: count as u32,
        rebalance: Rebalance::Automatic,
        planned: Epoch::default(),
        members: ids().map(|id| (NodeId(id), member(id))).collect(),
        layouts: vec![Layout { epoch: Epoch(1), nodes: ids().map(|id| (NodeId(id), node(id))).collect() }],
    }
}

// === impl Fabric ===

impl Fabric {
    async fn ask(&self, node: NodeId) -> Result<(&Seen, Behaviour), PeerError> {
        let seen = &self.nodes[&node];
        seen.calls.fetch_add(1, Ordering::Relaxed);
        // What comes at the same time is under way at the same time.
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        let behaviour = *seen.behaviour.lock().unwrap();
        match behaviour {
            Behaviour::Away | Behaviour::Dead => Err(gone()),
            Behaviour::Silent => {
                // why: a deadline passes
                tokio::time::sleep(DEADLINE).await;
                Err(PeerError::TimedOut)
            }
            behaviour => Ok((seen, behaviour)),
        }
    }
}

fn gone() -> PeerError {
    PeerError::Unreachable(Unreachable::Silent)
}

fn full() -> PeerError {
    let retry_after = Duration::from_secs(7);
    PeerError::Full { retry_after, source: Box::new(Status::unavailable("no room")) }
}

fn unread(error: ReadError) -> PeerError {
    match error {
        ReadError::NotFound { .. } => PeerError::NotFound,
        ReadError::Damaged { .. } | ReadError::Lost { .. } => PeerError::Unsure,
        error => PeerError::Broken(Box::new(Status::internal(error.to_string()))),
    }
}

fn unwritten(error: WriteError) -> PeerError {
    match error {
        WriteError::Full { .. } => full(),
        WriteError::Outlived { .. } => PeerError::OutOfRange,
        error => PeerError::Broken(Box::new(Status::internal(error.to_string()))),
    }
}

#[tonic::async_trait]
impl Remote for Fabric {
    fn health(&self, node: NodeId) -> Health {
        let reachable = *self.nodes[&node].behaviour.lock().unwrap() != Behaviour::Away;
        let latency = Duration::from_micros(node.0);
        let epoch = self.nodes[&node].view.borrow().epoch();
        Health { reachable, writable: true, draining: false, latency, epoch }
    }

    async fn find(&self, node: NodeId, digests: &[Digest], touch: bool) -> Result<Vec<Presence>, PeerError> {
        let (seen, _) = self.ask(node).await?;
        Ok(seen.store.look_up(digests, touch))
    }

    async fn read(
        &self,
        node: NodeId,
        digest: &Digest,
        offset: u64,
        length: Option<u64>,
        takes_zstd: bool,
    ) -> Result<Box<dyn RemoteRead>, PeerError> {
        let (seen, behaviour) = self.ask(node).await?;
        let left = if let Behaviour::BreaksAfter(bytes) = behaviour { bytes } else { u64::MAX };
        let frames = match takes_zstd {
            true => seen.store.read_stored(digest).await.map_err(unread)?,
            false => None,
        };
        let source = match frames {
            Some(frames) => Pieces::Frames(frames),
            None => Pieces::Blob(seen.store.read(digest, offset, length).await.map_err(unread)?),
        };
        let mut read = TestRead { source, left, first: None };
        read.first = read.receive().await?;
        Ok(Box::new(read))
    }

    async fn read_batch(
        &self,
        node: NodeId,
        digests: &[Digest],
        limit_bytes: u64,
        takes_zstd: bool,
    ) -> Result<Vec<Result<(Bytes, Form), PeerError>>, PeerError> {
        let (seen, _) = self.ask(node).await?;
        let mut outcomes = Vec::new();
        for digest in digests {
            let frames = match takes_zstd {
                true => seen.store.read_stored(digest).await.map_err(unread).unwrap_or_default(),
                false => None,
            };
            outcomes.push(match frames {
                Some(frames) => frames.whole().await.map(|frames| (frames, Form::Zstd)).map_err(unread),
                None => {
                    let got = seen.store.get(digest, limit_bytes).await;
                    got.map(|blob| (blob, Form::Identity)).map_err(unread)
                }
            });
        }
        Ok(outcomes)
    }

    async fn read_copy(&self, node: NodeId, digest: &Digest) -> Result<Box<dyn RemoteRead>, PeerError> {
        let (seen, behaviour) = self.ask(node).await?;
        let left = if let Behaviour::BreaksAfter(bytes) = behaviour { bytes } else { u64::MAX };
        let source = Pieces::Blob(seen.store.read_unused(digest, 0, None).await.map_err(unread)?);
        let mut read = TestRead { source, left, first: None };
        read.first = read.receive().await?;
        Ok(Box::new(read))
    }

    async fn read_copies(
        &self,
        node: NodeId,
        digests: &[Digest],
    ) -> Result<Vec<Result<(Bytes, Form), PeerError>>, PeerError> {
        let (seen, _) = self.ask(node).await?;
        let mut outcomes = Vec::new();
        for digest in digests {
            let got = seen.store.get_unused(digest, u64::MAX).await;
            outcomes.push(got.map(|blob| (blob, Form::Identity)).map_err(unread));
        }
        Ok(outcomes)
    }

    async fn store(&self, node: NodeId, digest: &Digest) -> Result<Box<dyn RemoteUpload>, PeerError> {
        // As the real one: the answer is not waited for.
        let seen = &self.nodes[&node];
        seen.calls.fetch_add(1, Ordering::Relaxed);
        let (fabric, digest) = (self.clone(), *digest);
        Ok(Box::new(TestUpload { fabric, node, digest, used_ms: None, upload: None, sent: 0 }))
    }

    async fn store_copy(
        &self,
        node: NodeId,
        digest: &Digest,
        used_ms: u64,
    ) -> Result<Box<dyn RemoteUpload>, PeerError> {
        self.nodes[&node].calls.fetch_add(1, Ordering::Relaxed);
        let (fabric, digest, used_ms) = (self.clone(), *digest, Some(used_ms));
        Ok(Box::new(TestUpload { fabric, node, digest, used_ms, upload: None, sent: 0 }))
    }

    async fn store_copies(&self, node: NodeId, copies: Vec<Copy>) -> Result<Vec<Result<(), PeerError>>, PeerError> {
        let (seen, behaviour) = self.ask(node).await?;
        let mut outcomes = Vec::new();
        for Copy { digest, data, used_ms } in copies {
            outcomes.push(match behaviour {
                Behaviour::Full => Err(full()),
                _ => seen.store.put_copy(&digest, data, used_ms).await.map_err(unwritten),
            });
        }
        Ok(outcomes)
    }

    async fn store_batch(
        &self,
        node: NodeId,
        blobs: Vec<(Digest, Bytes)>,
    ) -> Result<Vec<Result<(), PeerError>>, PeerError> {
        let (seen, behaviour) = self.ask(node).await?;
        if behaviour == Behaviour::Stalled {
            std::future::pending::<()>().await;
        }
        let mut outcomes = Vec::new();
        for (digest, data) in blobs {
            outcomes.push(match behaviour {
                Behaviour::Full => Err(full()),
                Behaviour::FailsAtCommit => Err(gone()),
                _ => seen.store.put_verified(&digest, data).await.map_err(unwritten),
            });
        }
        Ok(outcomes)
    }

    async fn get_action(
        &self,
        node: NodeId,
        instance: &str,
        action: &Digest,
        _touch: bool,
    ) -> Result<Option<(Version, Bytes)>, PeerError> {
        let (seen, behaviour) = self.ask(node).await?;
        if behaviour == Behaviour::Stalled {
            // why: a deadline passes
            tokio::time::sleep(DEADLINE).await;
            return Err(PeerError::TimedOut);
        }
        Ok(seen.index.get(instance, action).unwrap())
    }

    async fn put_action(
        &self,
        node: NodeId,
        instance: &str,
        action: &Digest,
        version: Version,
        result: Bytes,
    ) -> Result<(), PeerError> {
        let (seen, behaviour) = self.ask(node).await?;
        match behaviour {
            Behaviour::Full => return Err(full()),
            Behaviour::Stalled => std::future::pending::<()>().await,
            _ => {}
        }
        seen.index.put_if_newer(instance, action, version, result).await.unwrap();
        Ok(())
    }

    async fn compare(&self, node: NodeId, partitions: &[u16]) -> Result<Vec<PartitionSummary>, PeerError> {
        let (seen, _) = self.ask(node).await?;
        let summary = |partition: &u16| {
            let actions = seen.index.inventory(usize::from(*partition)).ok_or_else(full)?;
            Ok(PartitionSummary { blobs: seen.store.inventory(usize::from(*partition)), actions })
        };
        partitions.iter().map(summary).collect()
    }

    async fn list_blobs(
        &self,
        node: NodeId,
        partition: u16,
        after: Option<Digest>,
    ) -> Result<Page<ListedBlob>, PeerError> {
        let (seen, _) = self.ask(node).await?;
        let page = seen.store.list(usize::from(partition), after.as_ref(), LISTED_MAX).await;
        page.map_err(|error| PeerError::Broken(Box::new(Status::internal(error.to_string()))))
    }

    async fn list_actions(
        &self,
        node: NodeId,
        partition: u16,
        after: Option<ActionName>,
    ) -> Result<Page<ListedAction>, PeerError> {
        let (seen, _) = self.ask(node).await?;
        Ok(seen.index.list(usize::from(partition), after.as_ref(), (LISTED_MAX, usize::MAX)).unwrap())
    }
}

enum Pieces {
    Blob(Reader),
    Frames(StoredReader),
}

struct TestRead {
    source: Pieces,
    /// Bytes before it breaks off.
    left: u64,
    first: Option<Bytes>,
}

impl TestRead {
    async fn receive(&mut self) -> Result<Option<Bytes>, PeerError> {
        let piece = match &mut self.source {
            Pieces::Blob(reader) => reader.next().await,
            Pieces::Frames(reader) => reader.next().await,
        };
        let Some(piece) = piece.map_err(unread)? else { return Ok(None) };
        if self.left == 0 {
            return Err(gone());
        }
        let taken = (piece.len() as u64).min(self.left);
        self.left -= taken;
        Ok(Some(piece.slice(..taken as usize)))
    }
}

#[tonic::async_trait]
impl RemoteRead for TestRead {
    fn form(&self) -> Form {
        if matches!(self.source, Pieces::Frames(_)) { Form::Zstd } else { Form::Identity }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, PeerError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        if self.left == 0 {
            return Err(gone());
        }
        self.receive().await
    }
}

struct TestUpload {
    fabric: Fabric,
    node: NodeId,
    digest: Digest,
    used_ms: Option<u64>,
    upload: Option<Upload>,
    sent: u64,
}

impl TestUpload {
    async fn upload(&mut self) -> Result<&mut Upload, PeerError> {
        let (seen, behaviour) = self.fabric.ask(self.node).await?;
        match behaviour {
            Behaviour::Stalled => std::future::pending::<()>().await,
            Behaviour::Full => return Err(full()),
            Behaviour::BreaksAfter(bytes) if self.sent > bytes => return Err(gone()),
            _ => {}
        }
        if self.upload.is_none() {
            let upload = match self.used_ms {
                None => seen.store.upload_verified(&self.digest).await,
                Some(used_ms) => seen.store.upload_copy(&self.digest, used_ms).await,
            };
            self.upload = Some(upload.map_err(unwritten)?);
        }
        Ok(self.upload.as_mut().unwrap())
    }
}

#[tonic::async_trait]
impl RemoteUpload for TestUpload {
    async fn send(&mut self, data: Bytes) -> Result<(), PeerError> {
        self.sent += data.len() as u64;
        self.upload().await?.write(data).await.map_err(unwritten)
    }

    async fn commit(mut self: Box<Self>) -> Result<(), PeerError> {
        self.upload().await?;
        if *self.fabric.nodes[&self.node].behaviour.lock().unwrap() == Behaviour::FailsAtCommit {
            return Err(gone());
        }
        self.upload.take().unwrap().commit().await.map_err(unwritten)
    }
}
