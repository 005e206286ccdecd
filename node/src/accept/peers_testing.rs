//! Nodes in one process, with real sockets and certificates between them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use casbah_cluster::membership::{
    ClusterId, ClusterState, Epoch, Layout, Member, NodeId, Part, Protocols, Rebalance, Roster, Standing, VolumeId,
};
use casbah_proto::peer::v1 as api;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::accept::{App, Bound, End, ListenerTls};
use crate::authenticate::test_certificates::{Made, authority_params, params};
use crate::config::{Compression, PeersConfig, SyncPolicy, TlsConfig};
use crate::forward::{Dialler, Discovery, Peers, PeersParts};
use crate::index::{ActionIndex, GroupError, RaftCall, WatchPart};
use crate::serve::peer::{self, Members, MembersError, RaftGroup};
use crate::store::{Store, StoreOptions};

pub const CLUSTER: ClusterId = ClusterId([7; 16]);

/// A node with its services on a peer port, and its way to others.
pub struct Node {
    pub id: NodeId,
    pub store: Store,
    pub results: ActionIndex,
    pub peers: Peers,
    pub roster: watch::Sender<Arc<Roster>>,
    pub tls: Arc<ListenerTls>,
    pub config: PeersConfig,
    pub port: u16,
    pub reload_now: watch::Sender<()>,
    pub inner: Arc<Inner>,
    /// Ends the listener when dropped.
    end: Option<End>,
    serving: JoinSet<()>,
    watching: JoinSet<()>,
    _dir: TempDir,
}

/// What stands for the group and for who decides on members.
#[derive(Default)]
pub struct Inner {
    pub snapshots: Mutex<Vec<Result<Vec<u8>, ()>>>,
    pub heard: Mutex<Vec<NodeId>>,
    pub writable: Mutex<bool>,
    /// What those who watch are told; where it is empty, nobody is.
    pub told: Mutex<Vec<WatchPart>>,
}

/// The authorities and where nodes are found.
pub struct Site {
    pub authority: Made,
    /// The port at which a node is told to be: its own, or that of a proxy.
    pub addresses: BTreeMap<NodeId, u16>,
    pub epoch: u64,
}

// === impl Site ===

impl Site {
    /// With an authority of its own.
    pub fn new() -> Site {
        Site { authority: Made::self_signed(&authority_params("peers")), addresses: BTreeMap::new(), epoch: 1 }
    }

    /// Nodes 1 and 2, which know each other.
    pub async fn pair() -> (Site, Node, Node) {
        let mut site = Site::new();
        let one = Node::start(&site.authority, NodeId(1)).await;
        let two = Node::start(&site.authority, NodeId(2)).await;
        site.addresses = BTreeMap::from([(one.id, one.port), (two.id, two.port)]);
        site.tell(&[&one, &two]);
        (site, one, two)
    }

    /// The roster of a node.
    pub fn roster(&self, node: NodeId) -> Arc<Roster> {
        let member = |port: &u16| Member {
            name: String::new(),
            address: format!("127.0.0.1:{port}"),
            volume: VolumeId([0; 16]),
            zone: String::new(),
            weight: 100,
            protocols: Protocols::SPOKEN,
            part: Part::Voter,
            synced: Epoch(0),
            standing: Standing::Serving,
            leaves: false,
            placed: None,
        };
        let members: BTreeMap<NodeId, Member> = self.addresses.iter().map(|(id, port)| (*id, member(port))).collect();
        let next = members.keys().last().map_or(1, |last| last.0 + 1);
        let layouts = vec![Layout { epoch: Epoch(self.epoch), nodes: BTreeMap::new() }];
        let state = ClusterState {
            id: CLUSTER,
            name: "casbah".into(),
            copies: 2,
            write_quorum: 2,
            protocol: Protocols::SPOKEN.newest,
            next_node_id: NodeId(next),
            expected_members: 0,
            rebalance: Rebalance::Automatic,
            planned: Epoch::default(),
            members,
            layouts,
        };
        Arc::new(Roster::of(node, &state))
    }

    /// Has nodes hear of what is here.
    pub fn tell(&self, nodes: &[&Node]) {
        for node in nodes {
            node.roster.send_replace(self.roster(node.id));
        }
    }
}

// === impl Node ===

impl Node {
    /// A node that knows of nobody.
    pub async fn start(authority: &Made, id: NodeId) -> Node {
        Node::start_with(authority, id, Compression::None, 256 << 20).await
    }

    pub async fn start_with(authority: &Made, id: NodeId, compression: Compression, capacity_bytes: u64) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let config = peers_config(&dir, authority, &authority.issue(&params(&format!("node-{id}"))));
        let store = Store::open(StoreOptions {
            dir: dir.path().join("store"),
            capacity_bytes,
            retention_floor: Duration::from_secs(3600),
            sync: SyncPolicy::Interval(Duration::from_millis(1)),
            compression,
        });
        let store = store.await.unwrap();
        let bound = Bound::bind_peers(&config).await.unwrap();
        let (port, tls) = (bound.port(), bound.tls().unwrap());
        let roster = watch::Sender::new(Arc::new(Roster::joined(CLUSTER, id)));
        let inner = Arc::new(Inner { writable: Mutex::new(true), ..Inner::default() });
        let results = ActionIndex::open(&dir.path().join("actions.redb"), 1000).unwrap();
        let parts = peer::Parts {
            store: store.clone(),
            results: results.clone(),
            group: inner.clone(),
            members: inner.clone(),
            roster: roster.subscribe(),
            spoken: Protocols::SPOKEN,
            memory_bytes: 256 << 20,
        };
        let (end, ended) = End::new();
        let mut serving = JoinSet::new();
        let reload_now = watch::Sender::new(());
        serving.spawn(bound.serve(App::new(peer::services(parts)), Duration::MAX, reload_now.subscribe(), ended));
        let dialler = Dialler::new(tls.clone(), None);
        let report = inner.clone();
        let report = Arc::new(move || report.report());
        let peers = Peers::new(PeersParts { roster: roster.subscribe(), dialler, report });
        let (end, watching) = (Some(end), JoinSet::new());
        Node {
            id,
            store,
            results,
            peers,
            roster,
            tls,
            config,
            port,
            reload_now,
            inner,
            end,
            serving,
            watching,
            _dir: dir,
        }
    }

    /// Begins to ask others how they are.
    pub fn watch(&mut self) {
        let peers = self.peers.clone();
        self.watching.spawn(async move { peers.watch().await });
    }

    /// Ends as a process does that is killed: every connection is cut, nobody listens.
    pub async fn kill(&mut self) {
        self.end = None;
        self.serving.shutdown().await;
    }

    /// Finds nodes as this one does.
    pub fn discovery(&self) -> Discovery {
        Discovery::new(Dialler::new(self.tls.clone(), None))
    }

    /// Flips a bit of every large blob that it has.
    pub fn damage_files(&self) {
        for directory in std::fs::read_dir(self._dir.path().join("store/blobs")).unwrap() {
            for file in std::fs::read_dir(directory.unwrap().path()).unwrap() {
                let path = file.unwrap().path();
                let mut bytes = std::fs::read(&path).unwrap();
                bytes[1000] ^= 1;
                std::fs::write(path, bytes).unwrap();
            }
        }
    }

    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }
}

/// The files of a node.
pub fn peers_config(dir: &TempDir, authority: &Made, made: &Made) -> PeersConfig {
    let at = |name: &str, text: &str| -> PathBuf {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name)
    };
    PeersConfig {
        address: "127.0.0.1:0".parse().unwrap(),
        advertise: "127.0.0.1:1".parse().unwrap(),
        dial_from: None,
        tls: TlsConfig { certificate: at("peer.crt", &made.pem), key: at("peer.key", &made.key_pem) },
        authorities: at("ca.crt", &authority.pem),
    }
}

#[tonic::async_trait]
impl RaftGroup for Inner {
    async fn answer(&self, call: RaftCall, payload: Bytes) -> Result<Bytes, GroupError> {
        match call {
            RaftCall::Propose => Err(GroupError::NoLeader),
            call => Ok([format!("{call:?} ").as_bytes(), &payload].concat().into()),
        }
    }

    fn watch(&self) -> Result<BoxStream<'static, WatchPart>, GroupError> {
        match self.told.lock().unwrap().clone() {
            parts if parts.is_empty() => Err(GroupError::NoLog),
            parts => Ok(futures_util::stream::iter(parts).chain(futures_util::stream::pending()).boxed()),
        }
    }

    async fn install_snapshot(
        &self,
        head: Bytes,
        mut data: BoxStream<'static, io::Result<Bytes>>,
    ) -> Result<Bytes, GroupError> {
        let mut came = Came { so_far: Some(Vec::new()), snapshots: &self.snapshots };
        while let Some(piece) = data.next().await {
            let piece = piece.map_err(|_| GroupError::Snapshot)?;
            came.so_far.as_mut().unwrap().extend(piece);
        }
        let whole = came.so_far.take().unwrap();
        self.snapshots.lock().unwrap().push(Ok(whole));
        Ok(head)
    }
}

/// A snapshot on its way, which was given up if it is dropped as it is.
struct Came<'a> {
    so_far: Option<Vec<u8>>,
    snapshots: &'a Mutex<Vec<Result<Vec<u8>, ()>>>,
}

impl Drop for Came<'_> {
    fn drop(&mut self) {
        if self.so_far.is_some() {
            self.snapshots.lock().unwrap().push(Err(()));
        }
    }
}

#[tonic::async_trait]
impl Members for Inner {
    fn introduce(&self, other: api::Introduction) -> api::Introduction {
        api::Introduction { node_name: format!("who met {}", other.node_name), ..api::Introduction::default() }
    }

    async fn join(&self, other: api::Introduction) -> Result<api::JoinResponse, MembersError> {
        match other.cluster_name.as_str() {
            "casbah" => Ok(api::JoinResponse { node_id: 9, ..api::JoinResponse::default() }),
            "" => Err(MembersError::NoCluster),
            _ => Err(MembersError::Misfit { reason: "its cluster has another name".into() }),
        }
    }

    fn report(&self) -> api::NodeReport {
        api::NodeReport { writable: *self.writable.lock().unwrap(), blobs: 5, ..api::NodeReport::default() }
    }

    fn heard(&self, node: NodeId, _: api::NodeReport) {
        self.heard.lock().unwrap().push(node);
    }
}

/// Passes connections on, until it is told to say nothing more: from then on it reads and throws away, and neither side
/// hears of it.
pub struct Proxy {
    pub port: u16,
    pub silent: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

// === impl Proxy ===

impl Proxy {
    pub async fn to(port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let silent = watch::Sender::new(false);
        let heard = silent.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                connections.spawn(pass(near_in, far_out, heard.subscribe()));
                connections.spawn(pass(far_in, near_out, heard.subscribe()));
            }
        });
        Proxy { port: own, silent, _tasks: tasks }
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    silent: watch::Receiver<bool>,
) {
    use tokio::io::AsyncReadExt as _;
    let mut buffer = vec![0; 64 << 10];
    // What came while it was silent is lost, and so is the connection then.
    let mut was_silent = false;
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        was_silent |= *silent.borrow();
        if !was_silent && to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
