//! What a cluster costs: `cargo bench -p casbah-tests --bench cluster [-- OPTION... NAME...]`.
//!
//! CPU time of all servers' processes together (user and kernel mode, from `/proc`) for each GiB that clients read or write: of
//! a read on a node that owns the blob, of one through a node that does not and has it from an owner, of a write on three nodes
//! with two copies, and of one on a single node. What the same servers use in the same time when nobody asks for anything is
//! told first, and subtracted. The nodes reach each other without the proxies of the tests.
//!
//! `--tls` has clients come with certificates, `--frame-kib=N` has them take frames of that size (16, as most do), `--gib=N` is
//! how much is read each time, `--calls=N` how many calls are under way at once. The program is built in the release profile,
//! or that of `CASBAH_BINARY`.

use std::fs::File;
use std::future::Future;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use casbah_tests::admin;
use casbah_tests::clients::bytestream::ReadRequest;
use casbah_tests::clients::reapi::digest_function::Value as DigestFunction;
use casbah_tests::clients::reapi::{BatchReadBlobsRequest, Digest};
use casbah_tests::clients::{Client, Trust, digest_of};
use casbah_tests::cluster::{Cluster, ClusterOptions};
use casbah_tests::load::new_bytes;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;

/// All blobs of one size, together.
const BLOBS_BYTES: usize = GIB;

/// What is compared is measured in turns, so many of them, since this machine is not the same from one minute to the next.
const ROUNDS: usize = 4;

/// Connections to each node.
const CONNECTIONS: usize = 2;

/// Of small blobs in one BatchReadBlobs.
const BATCH_COUNT: usize = 32;

/// For how long nobody asks for anything.
const IDLE: Duration = Duration::from_secs(10);

/// From the last write on, until what it leaves to be done is done.
const SETTLED: Duration = Duration::from_secs(3);

const READ: &str = "/google.bytestream.ByteStream/Read";
const BATCH_READ: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs";

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse()?;
    let (tls, frame_kib, gib, calls) = (options.tls, options.frame_bytes as usize / KIB, options.gib, options.calls);
    let transport = if tls { "TLS" } else { "plaintext" };
    println!("clients: {transport}, frames of {frame_kib} KiB, {calls} calls at once; {gib} GiB are read each time");
    let single = Bench::start(1, options.clone()).await?;
    let three = Bench::start(3, options).await?;
    println!("{:44} {:>16} {:>9}", "", "servers' CPU", "ratio");
    for (name, size) in [("16 MiB", 16 * MIB), ("64 KiB", 64 * KIB)] {
        if !three.wants(name) {
            continue;
        }
        let (mut alone, mut copied) = (Tally::default(), Tally::default());
        let mut blobs = Vec::new();
        for _ in 0..ROUNDS {
            alone.add(single.write(size, BLOBS_BYTES / ROUNDS).await?.cost);
            let written = three.write(size, BLOBS_BYTES / ROUNDS).await?;
            copied.add(written.cost);
            blobs.extend(written.blobs);
        }
        alone.tell(&format!("write, {name}, single node"), None);
        copied.tell(&format!("write, {name}, three nodes, two copies"), Some(&alone));
        three.compare(&format!("read, {name}"), &blobs, |bench, through| bench.reads(&blobs, through)).await?;
        if size < MIB {
            let what = format!("batch read, {name}");
            three.compare(&what, &blobs, |bench, through| bench.batch_reads(&blobs, through)).await?;
        }
    }
    Ok(())
}

/// What is measured, and how.
#[derive(Clone)]
struct Options {
    tls: bool,
    frame_bytes: u32,
    gib: usize,
    calls: usize,
    names: Vec<String>,
}

/// Nodes, and connections to each of them.
struct Bench {
    cluster: Cluster,
    uploads: Vec<Client>,
    connections: Vec<Vec<SendRequest<Full<Bytes>>>>,
    /// CPU seconds in a second, of all nodes together, when nobody asks for anything.
    idle: f64,
    options: Options,
}

/// A blob, and where it is.
struct Blob {
    digest: Digest,
    owners: Vec<usize>,
    others: Vec<usize>,
}

/// Through which node a blob is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Through {
    Owner,
    Other,
}

/// What was written, and what it cost.
struct Written {
    blobs: Vec<Blob>,
    cost: Cost,
}

/// CPU seconds of all servers, and what they were used for.
#[derive(Clone, Copy)]
struct Cost {
    seconds: f64,
    bytes: usize,
}

/// All rounds of one thing that is measured.
#[derive(Default)]
struct Tally(Vec<Cost>);

/// One call, ready to be made, and the bytes that it brings.
struct Call {
    connection: SendRequest<Full<Bytes>>,
    path: &'static str,
    message: Bytes,
    bytes: usize,
}

/// Pages of the page cache that are given back as others are written, so that each of those is one that was in use just now. A
/// virtual machine may have given free ones back to its host, and to get them again costs more than all else about a write.
struct Ballast {
    file: File,
    left_bytes: AtomicU64,
}

// === impl Tally ===

impl Tally {
    fn add(&mut self, cost: Cost) {
        self.0.push(cost);
    }

    /// CPU seconds of a GiB.
    fn cost(&self) -> f64 {
        let (seconds, bytes) =
            self.0.iter().fold((0.0, 0), |(seconds, bytes), cost| (seconds + cost.seconds, bytes + cost.bytes));
        seconds * GIB as f64 / bytes as f64
    }

    fn tell(&self, what: &str, of: Option<&Tally>) {
        let ratio = of.map(|of| format!("{:>8.2}x", self.cost() / of.cost())).unwrap_or_default();
        println!("{what:44} {:>10.3} s/GiB {ratio}", self.cost());
    }
}

// === impl Ballast ===

impl Ballast {
    fn new(bytes: usize) -> Result<Ballast> {
        let mut file = tempfile::tempfile()?;
        let piece = new_bytes(MIB);
        for _ in 0..bytes.div_ceil(MIB) {
            file.write_all(&piece)?;
        }
        Ok(Ballast { left_bytes: AtomicU64::new(file.metadata()?.len()), file })
    }

    fn give_back(&self, bytes: u64) -> Result<()> {
        let left = self.left_bytes.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        Ok(self.file.set_len(left)?)
    }
}

// === impl Options ===

impl Options {
    fn parse() -> Result<Options> {
        let mut options = Options { tls: false, frame_bytes: 16 * KIB as u32, gib: 4, calls: 8, names: Vec::new() };
        for argument in std::env::args().skip(1) {
            match argument.split_once('=').unwrap_or((&argument, "")) {
                ("--tls", "") => options.tls = true,
                ("--frame-kib", count) => options.frame_bytes = count.parse::<u32>()? * KIB as u32,
                ("--gib", count) => options.gib = count.parse()?,
                ("--calls", count) => options.calls = count.parse()?,
                // What cargo says to every bench.
                ("--bench", "") => {}
                (name, "") if !name.starts_with('-') => options.names.push(name.to_owned()),
                _ => bail!("{argument} is no option"),
            }
        }
        Ok(options)
    }
}

// === impl Bench ===

impl Bench {
    async fn start(nodes: usize, options: Options) -> Result<Bench> {
        let of_cluster = ClusterOptions {
            client_tls: options.tls,
            direct: true,
            ..ClusterOptions::nodes(nodes).set(r#"cluster.write_quorum = 2"#)
        };
        let of_cluster = if nodes == 1 { ClusterOptions { settings: Vec::new(), ..of_cluster } } else { of_cluster };
        let cluster = tokio::task::spawn_blocking(move || Cluster::start(&of_cluster)).await??;
        let uploads = cluster.clients().await?;
        let mut connections = Vec::new();
        for place in cluster.places() {
            let mut to_node = Vec::new();
            for _ in 0..CONNECTIONS {
                to_node.push(connect(&cluster, place, &options).await?);
            }
            connections.push(to_node);
        }
        let mut bench = Bench { cluster, uploads, connections, idle: 0.0, options };
        let began = bench.cpu_seconds()?;
        tokio::time::sleep(IDLE).await; // why: it is the doing of nothing that is measured
        bench.idle = (bench.cpu_seconds()? - began) / IDLE.as_secs_f64();
        println!("{:44} {:>8.4} s/s", format!("nothing to do, {nodes} nodes"), bench.idle);
        Ok(bench)
    }

    fn wants(&self, name: &str) -> bool {
        let names = &self.options.names;
        names.is_empty() || names.iter().any(|wanted| name.contains(wanted.as_str()))
    }

    fn cpu_seconds(&self) -> Result<f64> {
        let times = self.cluster.places().into_iter().map(|place| self.cluster.server(place)?.cpu_time());
        Ok(times.sum::<Result<Duration>>()?.as_secs_f64())
    }

    /// Does all of these, some at once.
    async fn measure<T, F>(&self, bytes: usize, items: Vec<T>, call: impl Fn(T) -> F) -> Result<Cost>
    where
        F: Future<Output = Result<()>>,
    {
        let (began, at) = (self.cpu_seconds()?, Instant::now());
        stream::iter(items.into_iter().map(call)).buffer_unordered(self.options.calls).try_collect::<Vec<()>>().await?;
        let idle = at.elapsed().as_secs_f64() * self.idle;
        Ok(Cost { seconds: self.cpu_seconds()? - began - idle, bytes })
    }

    /// Writes blobs of this size, each through the next node.
    async fn write(&self, size: usize, bytes: usize) -> Result<Written> {
        // The same bytes but for the first ones.
        let body = new_bytes(size - 8);
        let count = bytes / size;
        let blobs = (0..count).map(|_| Bytes::from([&new_bytes(8), &body].map(|part| &part[..]).concat()));
        let items: Vec<(Client, Bytes)> = self.uploads.iter().cycle().cloned().zip(blobs).collect();
        let digests: Vec<Digest> = items.iter().map(|(_, blob)| digest_of(blob)).collect();
        let copies = self.cluster.count().min(2);
        let ballast = Ballast::new(copies * bytes)?;
        let upload = |(client, blob): (Client, Bytes)| {
            let given = ballast.give_back((copies * blob.len()) as u64);
            async move {
                given?;
                match blob.len() < MIB {
                    true => drop(client.batch_update(vec![(digest_of(&blob), blob)]).await?),
                    false => drop(client.upload_in_chunks(blob, MIB).await?),
                }
                Ok(())
            }
        };
        let cost = self.measure(count * size, items, upload).await?;
        tokio::time::sleep(SETTLED).await; // why: a node does not tell when it has nothing left to do
        let blobs = digests.into_iter().map(|digest| self.find(digest)).collect::<Result<Vec<_>>>()?;
        Ok(Written { blobs, cost })
    }

    fn find(&self, digest: Digest) -> Result<Blob> {
        let mut blob = Blob { digest, owners: Vec::new(), others: Vec::new() };
        if self.cluster.count() == 1 {
            blob.owners.push(0);
            return Ok(blob);
        }
        let page = format!("/blobs/{}/{}", blob.digest.hash, blob.digest.size_bytes);
        let answer: Value = serde_json::from_str(&admin::get(self.cluster.admin(0), &page)?.body)?;
        let holders = answer.get("nodes").and_then(Value::as_array).context("no nodes")?;
        for holder in holders {
            let name = holder.get("name").and_then(Value::as_str).context("no name")?;
            let place = name.strip_prefix("node-").and_then(|number| number.parse::<usize>().ok());
            let place = place.and_then(|number| number.checked_sub(1)).context("not one of our names")?;
            let is_here = holder.get("copy").and_then(Value::as_str) == Some("present");
            let is_owner = holder.get("owner").and_then(Value::as_bool) == Some(true);
            ensure!(is_here == is_owner, "a copy is where it should not be, or none where it should: {answer}");
            if is_owner { blob.owners.push(place) } else { blob.others.push(place) }
        }
        Ok(blob)
    }

    /// Reads blobs through their owners and through other nodes, in turns.
    async fn compare(
        &self,
        what: &str,
        blobs: &[Blob],
        calls: impl Fn(&Bench, Through) -> Result<Vec<Call>>,
    ) -> Result<()> {
        let (mut owner, mut other) = (Tally::default(), Tally::default());
        for round in 0..=ROUNDS {
            for (through, tally) in [(Through::Owner, &mut owner), (Through::Other, &mut other)] {
                self.check(blobs.get(round).context("too few blobs")?, through).await?;
                let calls = calls(self, through)?;
                let bytes = calls.iter().map(|call| call.bytes).sum();
                let cost = self.measure(bytes, calls, Call::make).await?;
                // In the first round, memory is touched and connections are made.
                if round > 0 {
                    tally.add(cost);
                }
            }
        }
        owner.tell(&format!("{what}, through an owner"), None);
        other.tell(&format!("{what}, through another node"), Some(&owner));
        Ok(())
    }

    /// Reads of blobs by ByteStream, each through one of its nodes, for one round.
    fn reads(&self, blobs: &[Blob], through: Through) -> Result<Vec<Call>> {
        let size = size_of(blobs)?;
        let count = self.options.gib * GIB / (ROUNDS * size);
        let calls = (0..count).zip(blobs.iter().cycle()).map(|(turn, blob)| {
            let hash = &blob.digest.hash;
            let request = ReadRequest { resource_name: format!("blobs/{hash}/{size}"), ..ReadRequest::default() };
            let connection = self.connection(blob.node(through, turn), turn).context("a blob is on every node")?;
            Ok(Call { connection, path: READ, message: framed(&request), bytes: size })
        });
        calls.collect()
    }

    /// The same, many at once by BatchReadBlobs.
    fn batch_reads(&self, blobs: &[Blob], through: Through) -> Result<Vec<Call>> {
        let bytes = size_of(blobs)? * BATCH_COUNT;
        let mut by_node: Vec<Vec<&Blob>> = self.cluster.places().iter().map(|_| Vec::new()).collect();
        for blob in blobs {
            let place = blob.node(through, 0).context("a blob is on every node")?;
            by_node.get_mut(place).context("no such node")?.push(blob);
        }
        let batches: Vec<&[&Blob]> = by_node.iter().flat_map(|blobs| blobs.chunks_exact(BATCH_COUNT)).collect();
        let count = self.options.gib * GIB / (ROUNDS * bytes);
        let calls = (0..count).zip(batches.iter().cycle()).map(|(turn, batch)| {
            let request = BatchReadBlobsRequest {
                digests: batch.iter().map(|blob| blob.digest.clone()).collect(),
                digest_function: DigestFunction::Sha256.into(),
                ..BatchReadBlobsRequest::default()
            };
            let place = batch.first().and_then(|blob| blob.node(through, 0));
            let connection = self.connection(place, turn).context("a batch of no node")?;
            Ok(Call { connection, path: BATCH_READ, message: framed(&request), bytes })
        });
        calls.collect()
    }

    /// The right bytes come, before it is measured what they cost.
    async fn check(&self, blob: &Blob, through: Through) -> Result<()> {
        let place = blob.node(through, 0).context("a blob is on every node")?;
        let client = self.uploads.get(place).context("no client")?;
        let bytes = client.download(&blob.digest).await?;
        ensure!(digest_of(&bytes) == blob.digest, "other bytes came");
        Ok(())
    }

    fn connection(&self, place: Option<usize>, turn: usize) -> Option<SendRequest<Full<Bytes>>> {
        self.connections.get(place?)?.get(turn % CONNECTIONS).cloned()
    }
}

// === impl Blob ===

impl Blob {
    fn node(&self, through: Through, turn: usize) -> Option<usize> {
        let nodes = if through == Through::Owner { &self.owners } else { &self.others };
        nodes.get(turn % nodes.len().max(1)).copied()
    }
}

// === the client: it takes what comes, and drops it ===

async fn connect(cluster: &Cluster, place: usize, options: &Options) -> Result<SendRequest<Full<Bytes>>> {
    let authority = cluster.authority(place);
    let stream = TcpStream::connect(&authority).await?;
    stream.set_nodelay(true)?;
    if !options.tls {
        return speak(stream, options).await;
    }
    let (authority_pem, identity) = cluster.client_identity()?;
    let mut config = Trust::Authority(authority_pem).config(Some(&identity), rustls::ALL_VERSIONS)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let host = authority.rsplit_once(':').context("host:port")?.0.to_owned();
    let stream = TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(host)?, stream).await?;
    speak(stream, options).await
}

async fn speak<S>(stream: S, options: &Options) -> Result<SendRequest<Full<Bytes>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, driver) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(2 * MIB as u32)
        .initial_connection_window_size(8 * MIB as u32)
        .max_frame_size(options.frame_bytes)
        .handshake(TokioIo::new(stream))
        .await?;
    tokio::spawn(driver);
    Ok(sender)
}

/// One message as gRPC sends it.
fn framed(message: &impl Message) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.encoded_len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    frame.put(message.encode_to_vec().as_slice());
    frame.freeze()
}

/// The size of blobs that are all of one.
fn size_of(blobs: &[Blob]) -> Result<usize> {
    Ok(usize::try_from(blobs.first().context("no blobs")?.digest.size_bytes)?)
}

// === impl Call ===

impl Call {
    async fn make(self) -> Result<()> {
        let Call { mut connection, path, message, bytes } = self;
        let request = hyper::Request::post(format!("http://bench{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(message))?;
        let mut body = connection.send_request(request).await?.into_body();
        let (mut received, mut status) = (0, None);
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) => received += data.len(),
                Err(frame) => status = frame.trailers_ref().and_then(|trailers| trailers.get("grpc-status").cloned()),
            }
        }
        ensure!(status.as_ref().is_some_and(|status| status == "0"), "{path} answered {status:?}");
        ensure!(received >= bytes, "{path} answered with {received} bytes");
        Ok(())
    }
}
