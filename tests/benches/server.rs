//! What a node costs: `cargo bench -p casbah-tests --bench server [-- NAME...]`.
//!
//! CPU time of the server's process (user and kernel mode, from `/proc`), for each unit of work that a client of two
//! connections gets done: other work on the machine disturbs it less than time by the clock. The program is built in the
//! release profile, or that of `CASBAH_BINARY`; with `CASBAH_TEST_ENDPOINT` and `CASBAH_BENCH_PID`, any server.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use casbah_tests::clients::reapi::action_cache_client::ActionCacheClient;
use casbah_tests::clients::reapi::{
    ActionResult, Digest, GetActionResultRequest, OutputFile, UpdateActionResultRequest,
};
use casbah_tests::clients::{AssetName, Client, digest_of};
use casbah_tests::load::new_bytes;
use casbah_tests::target::Node;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Calls under way at once.
const AT_ONCE: usize = 16;

/// Outputs of an action result.
const OUTPUTS: usize = 100;

#[tokio::main]
async fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|name| !name.starts_with('-')).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| name.contains(wanted.as_str()));
    let bench = Bench::start().await?;
    println!("{:44} {:>16}", "", "server CPU");
    if wants("unary") {
        bench.unary().await?;
    }
    if wants("find") {
        bench.find().await?;
    }
    if wants("batch") {
        bench.batches().await?;
    }
    for size in [MIB, 16 * MIB] {
        if wants("stream") {
            bench.streams(size).await?;
        }
    }
    if wants("action") {
        bench.actions().await?;
    }
    if wants("asset") {
        bench.assets().await?;
    }
    Ok(())
}

/// A server, and two connections to it.
struct Bench {
    clients: [Client; 2],
    pid: u32,
    /// `None` for a server that runs elsewhere.
    _node: Option<Node>,
}

// === impl Bench ===

impl Bench {
    async fn start() -> Result<Bench> {
        if let Ok(authority) = std::env::var("CASBAH_TEST_ENDPOINT") {
            let pid = std::env::var("CASBAH_BENCH_PID").context("CASBAH_BENCH_PID says whose CPU time is told")?;
            let clients = [Client::plaintext(&authority).await?, Client::plaintext(&authority).await?];
            return Ok(Bench { clients, pid: pid.parse()?, _node: None });
        }
        let node = Node::start(&[])?;
        let clients = [node.client().await?, node.client().await?];
        Ok(Bench { clients, pid: node.server().pid(), _node: Some(node) })
    }

    /// Makes a call for each item, some at once, and tells the server's CPU time for one of `units`.
    async fn measure<T, F>(&self, what: &str, unit: Unit, items: Vec<T>, call: impl Fn(Client, T) -> F) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let before = cpu_time(self.pid)?;
        let calls = items.into_iter().zip(self.clients.iter().cycle()).map(|(item, client)| call(client.clone(), item));
        stream::iter(calls).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
        unit.tell(what, cpu_time(self.pid)?.saturating_sub(before));
        Ok(())
    }

    async fn unary(&self) -> Result<()> {
        let calls = vec![(); 20_000];
        let unit = Unit::Calls(calls.len());
        self.measure("GetCapabilities", unit, calls, |client, ()| async move {
            client.capabilities().await?;
            Ok(())
        })
        .await
    }

    async fn find(&self) -> Result<()> {
        let present = self.small_blobs(5_000).await?;
        let missing = (0..5_000).map(|_| digest_of(&new_bytes(16)));
        let digests: Vec<Digest> = present.into_iter().chain(missing).collect();
        let calls: Vec<Vec<Digest>> = (0..400).map(|call| of_many(&digests, call * 500, 500)).collect();
        let unit = Unit::Calls(400 * 500);
        self.measure("FindMissingBlobs, 500 a call, a digest", unit, calls, |client, digests| async move {
            client.find_missing(&digests).await?;
            Ok(())
        })
        .await
    }

    async fn batches(&self) -> Result<()> {
        let batches: Vec<Vec<(Digest, Bytes)>> = (0..100)
            .map(|_| (0..200).map(|_| new_bytes(4 * KIB)).map(|bytes| (digest_of(&bytes), bytes)).collect())
            .collect();
        let digests: Vec<Vec<Digest>> =
            batches.iter().map(|batch| batch.iter().map(|(digest, _)| digest.clone()).collect()).collect();
        let unit = Unit::Calls(100 * 200);
        self.measure("BatchUpdateBlobs, 200 of 4 KiB, a blob", unit, batches, |client, batch| async move {
            client.batch_update(batch).await?;
            Ok(())
        })
        .await?;
        self.measure("BatchReadBlobs, 200 of 4 KiB, a blob", unit, digests, |client, digests| async move {
            client.batch_read(&digests).await?;
            Ok(())
        })
        .await
    }

    async fn streams(&self, size: usize) -> Result<()> {
        let count = 1024 * MIB / size;
        // The same bytes but for the first ones.
        let body = new_bytes(size - 8);
        let blobs: Vec<Bytes> =
            (0..count.min(64)).map(|_| [&new_bytes(8), &body].map(|part| &part[..]).concat().into()).collect();
        let total = blobs.len() * size;
        let digests: Vec<Digest> = blobs.iter().map(|blob| digest_of(blob)).collect();
        let mib = size / MIB;
        self.measure(&format!("Write, {mib} MiB"), Unit::Bytes(total), blobs, |client, blob| async move {
            client.upload_in_chunks(blob, MIB).await?;
            Ok(())
        })
        .await?;
        let reads = of_many(&digests, 0, count);
        self.measure(&format!("Read, {mib} MiB"), Unit::Bytes(count * size), reads, |client, digest| async move {
            client.download(&digest).await?;
            Ok(())
        })
        .await
    }

    async fn actions(&self) -> Result<()> {
        let outputs = self.small_blobs(OUTPUTS).await?;
        for (kind, outputs) in
            [("no outputs", Vec::new()), ("one output", of_many(&outputs, 0, 1)), ("100 outputs", outputs)]
        {
            let action_result = ActionResult {
                output_files: outputs
                    .iter()
                    .enumerate()
                    .map(|(place, digest)| OutputFile {
                        path: format!("out/{place}"),
                        digest: Some(digest.clone()),
                        ..Default::default()
                    })
                    .collect(),
                ..Default::default()
            };
            let actions: Vec<Digest> = (0..3_000).map(|_| digest_of(&new_bytes(16))).collect();
            let gets = of_many(&actions, 0, 10_000);
            let unit = Unit::Calls(actions.len());
            self.measure(&format!("UpdateActionResult, {kind}"), unit, actions, |client, action| {
                let action_result = Some(action_result.clone());
                async move {
                    let request =
                        UpdateActionResultRequest { action_digest: Some(action), action_result, ..Default::default() };
                    ActionCacheClient::new(client.channel()).update_action_result(request).await?;
                    Ok(())
                }
            })
            .await?;
            let unit = Unit::Calls(gets.len());
            self.measure(&format!("GetActionResult, {kind}"), unit, gets, |client, action| async move {
                let request = GetActionResultRequest { action_digest: Some(action), ..Default::default() };
                ActionCacheClient::new(client.channel()).get_action_result(request).await?;
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    async fn assets(&self) -> Result<()> {
        let blob = self.small_blobs(1).await?.into_iter().next().context("a blob")?;
        let names: Vec<AssetName> = (0..3_000).map(|_| AssetName::unique().qualified("key", "value")).collect();
        let fetches = of_many(&names, 0, 10_000);
        self.measure("PushBlob", Unit::Calls(names.len()), names, |client, name| {
            let blob = blob.clone();
            async move {
                client.push_blob(&name, &blob).await?;
                Ok(())
            }
        })
        .await?;
        self.measure("FetchBlob", Unit::Calls(fetches.len()), fetches, |client, name| async move {
            client.fetch_blob(&name).await?;
            Ok(())
        })
        .await
    }

    async fn small_blobs(&self, count: usize) -> Result<Vec<Digest>> {
        let mut digests = Vec::with_capacity(count);
        let [client, _] = &self.clients;
        for start in (0..count).step_by(1_000) {
            let blobs = (start..count.min(start + 1_000)).map(|_| new_bytes(64));
            let batch: Vec<(Digest, Bytes)> = blobs.map(|bytes| (digest_of(&bytes), bytes)).collect();
            digests.extend(batch.iter().map(|(digest, _)| digest.clone()));
            client.batch_update(batch).await?;
        }
        Ok(digests)
    }
}

/// So many of these, from the beginning again when they come to their end.
fn of_many<T: Clone>(items: &[T], skip: usize, count: usize) -> Vec<T> {
    items.iter().cycle().skip(skip).take(count).cloned().collect()
}

/// What the work is counted in.
#[derive(Clone, Copy)]
enum Unit {
    Calls(usize),
    Bytes(usize),
}

// === impl Unit ===

impl Unit {
    fn tell(self, what: &str, cpu: Duration) {
        let seconds = cpu.as_secs_f64();
        match self {
            Unit::Calls(count) => println!("{what:44} {:>13.2} us", seconds * 1e6 / count as f64),
            Unit::Bytes(bytes) => println!("{what:44} {:>10.2} s/GiB", seconds * (1 << 30) as f64 / bytes as f64),
        }
    }
}

/// User and kernel time of a process, in hundredths of a second.
fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}
