//! What it costs to have a blob on another node: `cargo bench -p casbah --bench peers [-- NAME...]`.
//!
//! Two nodes in this process, with a socket between them, TLS and everything that is on the way of real ones. CPU time of both
//! together, in user and kernel mode, from `/proc/self/stat`. `CASBAH_BENCH_DIR` says where the stores are made.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use casbah::accept::{App, Bound, End};
use casbah::config::{Compression, PeersConfig, SyncPolicy, TlsConfig};
use casbah::forward::{Dialler, Peers, PeersParts};
use casbah::index::{ActionIndex, GroupError, RaftCall, WatchPart};
use casbah::serve::peer::{self, Members, MembersError, RaftGroup};
use casbah::store::{Store, StoreOptions};
use casbah_cluster::digest::{Digest, DigestFunction};
use casbah_cluster::membership::{
    ClusterId, ClusterState, Epoch, Layout, Member, NodeId, Part, Protocols, Rebalance, Roster, Standing, VolumeId,
};
use casbah_proto::peer::v1 as api;
use futures_util::stream::BoxStream;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::sync::watch;
use tokio::task::JoinSet;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const MIB: usize = 1024 * 1024;
const GIB: f64 = (1024 * MIB) as f64;
const HERE: NodeId = NodeId(1);
const THERE: NodeId = NodeId(2);

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|name| !name.starts_with('-')).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| name.contains(wanted.as_str()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("{:44} {:>12} {:>12}", "", "CPU", "clock");
    runtime.block_on(async {
        let pair = Pair::new().await?;
        if wants("large") {
            // Twice: memory that is taken for the first time costs as much again.
            large(&pair, false).await?;
            large(&pair, true).await?;
        }
        if wanted.iter().any(|wanted| wanted == "profile") {
            profile(&pair).await?;
        }
        if wants("small") {
            small(&pair).await?;
        }
        if wants("calls") {
            calls(&pair).await?;
        }
        Ok(())
    })
}

async fn large(pair: &Pair, told: bool) -> Result<()> {
    const COUNT: u64 = 32;
    let size = 16 * MIB;
    let bytes = COUNT * size as u64;
    let blobs: Vec<(Digest, Bytes)> = (0..COUNT).map(|seed| named(seed + 1000 * u64::from(told), size)).collect();
    let meter = Meter::start();
    for (digest, data) in &blobs {
        let mut upload = pair.here.upload(digest).await?;
        for piece in pieces(data) {
            upload.write(piece).await?;
        }
        upload.commit().await?;
    }
    meter.per_gib("store 16 MiB here, hashed", bytes, told);
    let meter = Meter::start();
    for (digest, data) in &blobs {
        let mut upload = pair.peers.store(THERE, digest).await?;
        for piece in pieces(data) {
            upload.send(piece).await?;
        }
        upload.commit().await?;
    }
    meter.per_gib("store 16 MiB there, not hashed", bytes, told);
    let meter = Meter::start();
    for (digest, _) in &blobs {
        let mut reader = pair.here.read(digest, 0, None).await?;
        while let Some(piece) = reader.next().await? {
            black_box(piece);
        }
    }
    meter.per_gib("read 16 MiB here", bytes, told);
    let meter = Meter::start();
    for (digest, _) in &blobs {
        let mut reader = pair.peers.read(THERE, digest, 0, None, false).await?;
        while let Some(piece) = reader.next().await? {
            black_box(piece);
        }
    }
    meter.per_gib("read 16 MiB from there", bytes, told);
    Ok(())
}

/// Reads alone, many times: for a profiler.
async fn profile(pair: &Pair) -> Result<()> {
    let (digest, data) = named(5, 64 * MIB);
    let mut upload = pair.peers.store(THERE, &digest).await?;
    for piece in pieces(&data) {
        upload.send(piece).await?;
    }
    upload.commit().await?;
    let meter = Meter::start();
    for _ in 0..64 {
        let mut reader = pair.peers.read(THERE, &digest, 0, None, false).await?;
        while let Some(piece) = reader.next().await? {
            black_box(piece);
        }
    }
    meter.per_gib("read 64 MiB from there", 64 * 64 * MIB as u64, true);
    Ok(())
}

async fn small(pair: &Pair) -> Result<()> {
    const COUNT: usize = 20_000;
    let blobs: Vec<(Digest, Bytes)> = (0..COUNT as u64).map(|seed| named(seed + 100_000, 4096)).collect();
    let digests: Vec<Digest> = blobs.iter().map(|(digest, _)| *digest).collect();
    let meter = Meter::start();
    for part in blobs.chunks(500) {
        black_box(pair.peers.store_batch(THERE, part.to_vec()).await?);
    }
    meter.per_operation("store 4 KiB there, 500 a call", COUNT);
    let meter = Meter::start();
    for part in digests.chunks(500) {
        black_box(pair.peers.read_batch(THERE, part, u64::MAX, false).await?);
    }
    meter.per_operation("read 4 KiB from there, 500 a call", COUNT);
    let meter = Meter::start();
    for part in digests.chunks(500) {
        black_box(pair.peers.find(THERE, part, true).await?);
    }
    meter.per_operation("find there, 500 a call", COUNT);
    Ok(())
}

async fn calls(pair: &Pair) -> Result<()> {
    const COUNT: usize = 20_000;
    let digest = [named(1, 10).0];
    let meter = Meter::start();
    let mut tasks = JoinSet::new();
    for _ in 0..16 {
        let peers = pair.peers.clone();
        tasks.spawn(async move {
            for _ in 0..COUNT / 16 {
                black_box(peers.find(THERE, &digest, false).await).ok();
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    meter.per_operation("a call, 16 at once", COUNT);
    Ok(())
}

fn pieces(data: &Bytes) -> impl Iterator<Item = Bytes> + '_ {
    (0..data.len()).step_by(MIB).map(|at| data.slice(at..(at + MIB).min(data.len())))
}

fn named(seed: u64, size: usize) -> (Digest, Bytes) {
    let mut bytes = vec![0; size];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    (Digest::of(DigestFunction::Sha256, &bytes), Bytes::from(bytes))
}

/// Two nodes: the store of one, and the way to the other.
struct Pair {
    here: Store,
    peers: Peers,
    _end: End,
    _serving: JoinSet<()>,
    _dir: Place,
}

impl Pair {
    async fn new() -> Result<Pair> {
        let dir = Place::new()?;
        let config = certificates(&dir.0)?;
        let there = open(&dir.0.join("there")).await?;
        let here = open(&dir.0.join("here")).await?;
        let port = Bound::bind_peers(&config).await?;
        let tls = port.tls().ok_or("a peer port has TLS")?;
        let state = state(port.port());
        let roster = |node| watch::channel(Arc::new(Roster::of(node, &state))).1;
        let none = Arc::new(Nothing);
        let parts = peer::Parts {
            store: there,
            results: ActionIndex::open(&dir.0.join("actions.redb"), 1)?,
            group: none.clone(),
            members: none,
            roster: roster(THERE),
            spoken: Protocols::SPOKEN,
            memory_bytes: 1 << 30,
        };
        let (end, ended) = End::new();
        let mut serving = JoinSet::new();
        serving.spawn(port.serve(App::new(peer::services(parts)), Duration::MAX, watch::channel(()).1, ended));
        let report = Arc::new(api::NodeReport::default);
        let peers = Peers::new(PeersParts { roster: roster(HERE), dialler: Dialler::new(tls, None), report });
        Ok(Pair { here, peers, _end: end, _serving: serving, _dir: dir })
    }
}

async fn open(dir: &Path) -> Result<Store> {
    Ok(Store::open(StoreOptions {
        dir: dir.to_owned(),
        capacity_bytes: 8 << 30,
        retention_floor: Duration::ZERO,
        sync: SyncPolicy::Interval(Duration::from_millis(50)),
        compression: Compression::None,
    })
    .await?)
}

fn state(port: u16) -> ClusterState {
    let member = |name: &str| Member {
        name: name.to_owned(),
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
    ClusterState {
        id: ClusterId([1; 16]),
        name: "casbah".into(),
        copies: 2,
        write_quorum: 2,
        protocol: Protocols::SPOKEN.newest,
        next_node_id: NodeId(3),
        expected_members: 0,
        rebalance: Rebalance::Automatic,
        planned: Epoch::default(),
        members: BTreeMap::from([(HERE, member("here")), (THERE, member("there"))]),
        layouts: vec![Layout { epoch: Epoch(1), nodes: BTreeMap::new() }],
    }
}

fn certificates(dir: &Path) -> Result<PeersConfig> {
    let mut params = CertificateParams::new([])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new([])?.signed_by(&key, &authority)?;
    let at = |name: &str| dir.join(name);
    std::fs::create_dir_all(dir)?;
    std::fs::write(at("ca.crt"), authority.pem())?;
    std::fs::write(at("peer.crt"), certificate.pem())?;
    std::fs::write(at("peer.key"), key.serialize_pem())?;
    Ok(PeersConfig {
        address: "127.0.0.1:0".parse()?,
        advertise: "127.0.0.1:1".parse()?,
        dial_from: None,
        tls: TlsConfig { certificate: at("peer.crt"), key: at("peer.key") },
        authorities: at("ca.crt"),
    })
}

/// What this bench has no need of.
struct Nothing;

#[tonic::async_trait]
impl RaftGroup for Nothing {
    async fn answer(&self, _: RaftCall, _: Bytes) -> std::result::Result<Bytes, GroupError> {
        Err(GroupError::Closed)
    }

    fn watch(&self) -> std::result::Result<BoxStream<'static, WatchPart>, GroupError> {
        Err(GroupError::Closed)
    }

    async fn install_snapshot(
        &self,
        _: Bytes,
        _: BoxStream<'static, io::Result<Bytes>>,
    ) -> std::result::Result<Bytes, GroupError> {
        Err(GroupError::Closed)
    }
}

#[tonic::async_trait]
impl Members for Nothing {
    fn introduce(&self, _: api::Introduction) -> api::Introduction {
        api::Introduction::default()
    }

    async fn join(&self, _: api::Introduction) -> std::result::Result<api::JoinResponse, MembersError> {
        Err(MembersError::NoCluster)
    }

    fn report(&self) -> api::NodeReport {
        api::NodeReport::default()
    }

    fn heard(&self, _: NodeId, _: api::NodeReport) {}
}

/// A directory, removed on drop.
struct Place(PathBuf);

impl Place {
    fn new() -> Result<Place> {
        let base =
            std::env::var_os("CASBAH_BENCH_DIR").map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
        let dir = base.join(format!("bench-peers-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        Ok(Place(dir))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Measures from its start on.
struct Meter {
    cpu: Duration,
    clock: Instant,
}

impl Meter {
    fn start() -> Meter {
        Meter { cpu: cpu_time(), clock: Instant::now() }
    }

    fn per_operation(&self, what: &str, count: usize) {
        let micros = |time: Duration| time.as_secs_f64() * 1e6 / count as f64;
        let (cpu, clock) = (micros(cpu_time() - self.cpu), micros(self.clock.elapsed()));
        println!("{what:44} {cpu:>9.2} us {clock:>9.2} us");
    }

    fn per_gib(&self, what: &str, bytes: u64, told: bool) {
        let seconds = |time: Duration| time.as_secs_f64() * GIB / bytes as f64;
        let (cpu, clock) = (seconds(cpu_time() - self.cpu), seconds(self.clock.elapsed()));
        if told {
            println!("{what:44} {cpu:>6.2} s/GiB {clock:>6.2} s/GiB");
        }
    }
}

/// User and kernel time of this process, in hundredths of a second.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
