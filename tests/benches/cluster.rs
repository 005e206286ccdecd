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

use std::future::Future;
use std::sync::Arc;
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
const BLOBS_BYTES: usize = 512 * MIB;

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
        let alone = single.write(&format!("write, {name}, single node"), size).await?;
        let written = three.write(&format!("write, {name}, three nodes, two copies"), size).await?;
        tell_ratio("", written.cost, alone.cost);
        single.read(&format!("read, {name}, single node"), &alone.blobs, Through::Owner).await?;
        let owner = three.read(&format!("read, {name}, through an owner"), &written.blobs, Through::Owner).await?;
        let other = three.read(&format!("read, {name}, through another node"), &written.blobs, Through::Other).await?;
        tell_ratio("", other, owner);
        if size < MIB {
            let what = format!("batch read, {name}, through an owner");
            let owner = three.read_batches(&what, &written.blobs, Through::Owner).await?;
            let what = format!("batch read, {name}, through another node");
            let other = three.read_batches(&what, &written.blobs, Through::Other).await?;
            tell_ratio("", other, owner);
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

/// What was written, and the CPU seconds of a GiB.
struct Written {
    blobs: Vec<Blob>,
    cost: f64,
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

    /// Does all of these, some at once, and tells the servers' CPU seconds of a GiB.
    async fn measure<T, F>(&self, what: &str, bytes: usize, items: Vec<T>, call: impl Fn(T) -> F) -> Result<f64>
    where
        F: Future<Output = Result<()>>,
    {
        let (began, at) = (self.cpu_seconds()?, Instant::now());
        stream::iter(items.into_iter().map(call)).buffer_unordered(self.options.calls).try_collect::<Vec<()>>().await?;
        let idle = at.elapsed().as_secs_f64() * self.idle;
        let cost = (self.cpu_seconds()? - began - idle) * GIB as f64 / bytes as f64;
        println!("{what:44} {cost:>10.3} s/GiB");
        Ok(cost)
    }

    /// Writes blobs, through one node and another.
    async fn write(&self, what: &str, size: usize) -> Result<Written> {
        // The same bytes but for the first ones.
        let body = new_bytes(size - 8);
        let count = BLOBS_BYTES / size;
        let blobs = (0..count).map(|_| Bytes::from([&new_bytes(8), &body].map(|part| &part[..]).concat()));
        let items: Vec<(Client, Bytes)> = self.uploads.iter().cycle().cloned().zip(blobs).collect();
        let digests: Vec<Digest> = items.iter().map(|(_, blob)| digest_of(blob)).collect();
        let upload = |(client, blob): (Client, Bytes)| async move {
            match blob.len() < MIB {
                true => drop(client.batch_update(vec![(digest_of(&blob), blob)]).await?),
                false => drop(client.upload_in_chunks(blob, MIB).await?),
            }
            Ok(())
        };
        let cost = self.measure(what, count * size, items, upload).await?;
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

    /// Reads the blobs by ByteStream, each through one of its nodes, as often as it takes.
    async fn read(&self, what: &str, blobs: &[Blob], through: Through) -> Result<f64> {
        let first = blobs.first().context("no blobs")?;
        let size = usize::try_from(first.digest.size_bytes)?;
        self.check(first, through).await?;
        let count = self.options.gib * GIB / size;
        let calls: Vec<(usize, SendRequest<Full<Bytes>>, Bytes)> = (0..count)
            .zip(blobs.iter().cycle())
            .filter_map(|(turn, blob)| {
                let hash = &blob.digest.hash;
                let request = ReadRequest { resource_name: format!("blobs/{hash}/{size}"), ..ReadRequest::default() };
                Some((size, self.connection(blob, through, turn)?, framed(&request)))
            })
            .collect();
        ensure!(calls.len() == count, "a blob is on every node");
        self.measure(what, count * size, calls, |(size, connection, request)| call(connection, READ, request, size))
            .await
    }

    /// The same, many at once by BatchReadBlobs.
    async fn read_batches(&self, what: &str, blobs: &[Blob], through: Through) -> Result<f64> {
        let size = usize::try_from(blobs.first().context("no blobs")?.digest.size_bytes)?;
        let mut by_node: Vec<Vec<&Blob>> = self.cluster.places().iter().map(|_| Vec::new()).collect();
        for blob in blobs {
            let place = blob.node(through, 0).context("a blob is on every node")?;
            by_node.get_mut(place).context("no such node")?.push(blob);
        }
        let batches: Vec<&[&Blob]> = by_node.iter().flat_map(|blobs| blobs.chunks_exact(BATCH_COUNT)).collect();
        let count = self.options.gib * GIB / (size * BATCH_COUNT);
        let mut calls = Vec::with_capacity(count);
        for (turn, batch) in (0..count).zip(batches.iter().cycle()) {
            let request = BatchReadBlobsRequest {
                digests: batch.iter().map(|blob| blob.digest.clone()).collect(),
                digest_function: DigestFunction::Sha256.into(),
                ..BatchReadBlobsRequest::default()
            };
            let blob = batch.first().context("an empty batch")?;
            let connection = self.connection_at(blob.node(through, 0), turn).context("no connection")?;
            calls.push((connection, framed(&request)));
        }
        let size = size * BATCH_COUNT;
        self.measure(what, count * size, calls, |(connection, request)| call(connection, BATCH_READ, request, size))
            .await
    }

    /// The right bytes come, before it is measured what they cost.
    async fn check(&self, blob: &Blob, through: Through) -> Result<()> {
        let place = blob.node(through, 0).context("a blob is on every node")?;
        let client = self.uploads.get(place).context("no client")?;
        let bytes = client.download(&blob.digest).await?;
        ensure!(digest_of(&bytes) == blob.digest, "other bytes came");
        Ok(())
    }

    fn connection(&self, blob: &Blob, through: Through, turn: usize) -> Option<SendRequest<Full<Bytes>>> {
        self.connection_at(blob.node(through, turn), turn)
    }

    fn connection_at(&self, place: Option<usize>, turn: usize) -> Option<SendRequest<Full<Bytes>>> {
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

/// A call, whose answer has at least so many bytes.
async fn call(mut connection: SendRequest<Full<Bytes>>, path: &str, message: Bytes, bytes: usize) -> Result<()> {
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

fn tell_ratio(what: &str, cost: f64, of: f64) {
    println!("{what:44} {:>16} {:>8.2}x", "", cost / of);
}
