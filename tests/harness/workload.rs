//! Clients that use every cache at once through every node, as seeded, and whose [`History`] is checked afterwards.
//!
//! What the clients want is the same for the same seed; when they want it, and what they are told, is not.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::clients::reapi::action_cache_client::ActionCacheClient;
use crate::clients::reapi::{ActionResult, Digest, GetActionResultRequest, UpdateActionResultRequest};
use crate::clients::{AssetName, Client, Tls, digest_of};
use crate::deadline::{eventually, within_deadline};
use crate::history::{Call, History, Kind, Outcome};
use crate::load::Content;

/// How long a client waits for an answer before it tries another node. A node that was stopped answers nothing.
const PATIENCE: Duration = Duration::from_secs(4);

/// Between two attempts, as clients do.
const PAUSE: Duration = Duration::from_millis(50);

/// Attempts at one write. A cluster that refuses for so long is down.
const ATTEMPTS: usize = 100;

/// Blobs of assets; each differs from all others.
const ASSET_BYTES: u64 = 300;

/// Reads ask for one of so many blobs that were begun last, three times of four.
const RECENT_COUNT: usize = 64;

/// Downloads up to this size go by BatchReadBlobs every other time.
const BATCHED_BYTES_MAX: u64 = 64 << 10;

/// The digests of one call of the checker.
const FIND_MISSING_COUNT: usize = 1000;

/// What some clients do, and how often.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    /// Of everything that is drawn.
    pub seed: u64,
    /// How many there are, each of which does one thing at a time.
    pub clients: u64,
    /// Actions, and names of assets.
    pub keys: u64,
    /// The largest blob.
    pub blob_bytes_max: u64,
    /// The share of calls about blobs.
    pub blobs: u32,
    /// The share of calls about results of actions.
    pub results: u32,
    /// The share of calls about assets.
    pub assets: u32,
    /// Whether reads, too, are tried again until they are answered, as those of builds are.
    pub reads_insist: bool,
}

/// Clients that go on until they are stopped.
pub struct Running {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
}

/// What all clients know.
struct Shared {
    workload: Workload,
    authorities: Vec<String>,
    tls: Option<Tls>,
    history: Arc<History>,
    next_task: AtomicU64,
    next_value: AtomicU64,
    /// Blobs whose upload was begun, the newest last.
    begun: Mutex<Vec<Content>>,
    /// The blobs of assets, by their hashes.
    values: Mutex<HashMap<String, u64>>,
}

// === impl Workload ===

impl Workload {
    /// Something of everything, in the sizes of builds.
    pub fn mixed(seed: u64) -> Workload {
        Workload {
            seed,
            clients: 12,
            keys: 16,
            blob_bytes_max: 1 << 20,
            blobs: 60,
            results: 20,
            assets: 20,
            reads_insist: false,
        }
    }

    /// Nothing but assets, few of them, so that they are written and read at the same time.
    pub fn assets(seed: u64) -> Workload {
        Workload { seed, clients: 8, keys: 4, blob_bytes_max: 1, blobs: 0, results: 0, assets: 1, reads_insist: false }
    }

    /// Starts the clients, which speak plaintext to these nodes.
    pub fn start(self, authorities: &[String]) -> Running {
        self.start_over(authorities, None)
    }

    /// The same over TLS.
    pub fn start_tls(self, authorities: &[String], tls: &Tls) -> Running {
        self.start_over(authorities, Some(tls.clone()))
    }

    fn start_over(self, authorities: &[String], tls: Option<Tls>) -> Running {
        let shared = Arc::new(Shared {
            workload: self,
            authorities: authorities.to_vec(),
            tls,
            history: Arc::new(History::new()),
            next_task: AtomicU64::new(0),
            next_value: AtomicU64::new(0),
            begun: Mutex::default(),
            values: Mutex::default(),
        });
        let stop = watch::Sender::new(false);
        let mut clients = JoinSet::new();
        for number in 0..self.clients {
            let (shared, stopped) = (Arc::clone(&shared), stop.subscribe());
            clients.spawn(async move {
                let Ok(mut client) = One::new(shared, number) else { return };
                while !*stopped.borrow() {
                    client.act().await;
                }
            });
        }
        Running { shared, stop, clients }
    }

    fn action(&self, key: u64) -> Digest {
        digest_of(format!("action {key} of {}", self.seed).as_bytes())
    }

    fn asset(&self, key: u64) -> AssetName {
        AssetName::new(&format!("urn:casbah-test:{}:{key}", self.seed))
    }

    fn asset_content(&self, value: u64) -> Content {
        Content::seeded(self.seed.wrapping_add(value.wrapping_mul(0x9E37_79B9_7F4A_7C15)), ASSET_BYTES)
    }
}

// === impl Running ===

impl Running {
    /// What happened so far.
    pub fn history(&self) -> &Arc<History> {
        &self.shared.history
    }

    /// Waits until so many further calls of this kind were answered.
    ///
    /// # Errors
    /// When that takes longer than the deadline.
    pub async fn goes_on(&self, kind: Kind, further_count: usize) -> Result<()> {
        let until = self.history().acknowledged_count(kind) + further_count;
        let what = format!("{further_count} further calls of the kind {kind:?}");
        eventually(&what, || async { Ok(self.history().acknowledged_count(kind) >= until) }).await
    }

    /// Stops the clients, each after what it does.
    ///
    /// # Errors
    /// When one of them does not.
    pub async fn stop(mut self) -> Result<Stopped> {
        self.stop.send_replace(true);
        within_deadline("the clients stop", async {
            while let Some(ended) = self.clients.join_next().await {
                ended?;
            }
            anyhow::Ok(())
        })
        .await??;
        eprintln!("{}", self.history().summary());
        Ok(Stopped { shared: self.shared })
    }
}

/// Clients that have ended.
pub struct Stopped {
    shared: Arc<Shared>,
}

impl Stopped {
    /// What happened.
    pub fn history(&self) -> &History {
        &self.shared.history
    }

    /// Asks every node, all of which are there and reach each other, for everything that was acknowledged, and checks the
    /// whole history with these answers.
    ///
    /// # Errors
    /// What is not as it was promised.
    pub async fn check(&self) -> Result<()> {
        // What has been found out so far does not become better.
        self.history().check()?;
        let mut one = One::new(Arc::clone(&self.shared), u64::MAX)?;
        let blobs = self.history().acknowledged_blobs();
        for node in 0..one.nodes.len() {
            let client = one.client(node)?;
            for contents in blobs.chunks(FIND_MISSING_COUNT) {
                let digests: Vec<Digest> = contents.iter().map(Content::digest).collect();
                eventually("every acknowledged blob is called present", || async {
                    Ok(client.find_missing(&digests).await.is_ok_and(|missing| missing.is_empty()))
                })
                .await?;
            }
        }
        for (place, content) in blobs.iter().enumerate() {
            let node = place.checked_rem(one.nodes.len()).unwrap_or_default();
            let outcome = one.load_eventually(node, *content).await?;
            ensure!(outcome == Outcome::Present, "{content:?} through node {node}: {outcome:?}");
        }
        for key in 0..self.shared.workload.keys {
            let mut results = Vec::new();
            for node in 0..one.nodes.len() {
                results.push(one.answer(node, Call::Result { key }).await?);
                one.answer(node, Call::Fetch { key }).await?;
            }
            let first = results.first();
            ensure!(
                results.iter().all(|result| Some(result) == first),
                "nodes differ in the result {key}: {results:?}"
            );
        }
        self.history().check()
    }
}

/// One client, with a connection of its own to each node.
struct One {
    shared: Arc<Shared>,
    nodes: Vec<Client>,
    random: SmallRng,
    /// Where it is at the moment.
    node: usize,
}

// === impl One ===

impl One {
    fn new(shared: Arc<Shared>, number: u64) -> Result<One> {
        let connect = |authority: &String| match &shared.tls {
            Some(tls) => Client::lazy_tls(authority, tls),
            None => Client::lazy(authority),
        };
        let nodes = shared.authorities.iter().map(connect).collect::<Result<_>>()?;
        let random = SmallRng::seed_from_u64(shared.workload.seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        Ok(One { shared, nodes, random, node: 0 })
    }

    fn client(&self, node: usize) -> Result<Client> {
        self.nodes.get(node).cloned().ok_or_else(|| anyhow::anyhow!("there is no node {node}"))
    }

    fn task(&self) -> u64 {
        self.shared.next_task.fetch_add(1, Ordering::Relaxed)
    }

    fn value(&self) -> u64 {
        self.shared.next_value.fetch_add(1, Ordering::Relaxed)
    }

    /// Does the next thing.
    async fn act(&mut self) {
        let Workload { keys, blobs, results, assets, .. } = self.shared.workload;
        self.node = self.random.random_range(0..self.nodes.len());
        let key = self.random.random_range(0..keys.max(1));
        let turn = self.random.random_range(0..(blobs + results + assets).max(1));
        let writes = self.random.random_bool(0.4);
        if turn < blobs {
            if writes {
                let size = self.size_bytes();
                let content = Content::seeded(self.random.random(), size);
                self.store(content).await;
            } else {
                self.read_blob().await;
            }
        } else if turn < blobs + results {
            if writes {
                self.insist(|client| Call::Update { key, value: client.value() }).await;
            } else {
                self.read(Call::Result { key }).await;
            }
        } else if writes {
            self.push(key).await;
        } else {
            self.read(Call::Fetch { key }).await;
        }
    }

    /// Mostly a few KiB, and sometimes as much as may be.
    fn size_bytes(&mut self) -> u64 {
        let max = self.shared.workload.blob_bytes_max;
        let limit = match self.random.random_range(0..100_u32) {
            0..40 => 1 << 10,
            40..90 => 64 << 10,
            _ => max,
        };
        self.random.random_range(1..=limit.min(max).max(1))
    }

    async fn store(&mut self, content: Content) -> bool {
        self.shared.begun.lock().expect("nobody panics with the lock").push(content);
        self.insist(|_| Call::Store(content)).await
    }

    async fn push(&mut self, key: u64) {
        let task = self.task();
        for _ in 0..ATTEMPTS {
            // A value of its own for each attempt: the one before may still happen.
            let value = self.value();
            let content = self.shared.workload.asset_content(value);
            let hash = content.digest().hash;
            self.shared.values.lock().expect("nobody panics with the lock").insert(hash, value);
            if !self.store(content).await || self.once(task, Call::Push { key, value }).await {
                return;
            }
            self.go_on().await;
        }
    }

    async fn read_blob(&mut self) {
        let content = {
            let begun = self.shared.begun.lock().expect("nobody panics with the lock");
            let recent = begun.len().saturating_sub(RECENT_COUNT);
            let from = if self.random.random_bool(0.75) { recent } else { 0 };
            match begun.len() {
                0 => None,
                count => begun.get(self.random.random_range(from..count)).copied(),
            }
        };
        let Some(content) = content else { return };
        let call = if self.random.random_bool(0.7) { Call::Load(content) } else { Call::Find(content) };
        self.read(call).await;
    }

    async fn read(&mut self, call: Call) {
        if self.shared.workload.reads_insist {
            self.insist(|_| call).await;
        } else {
            self.once(self.task(), call).await;
        }
    }

    /// Tries it at one node after the other until it is done.
    async fn insist(&mut self, call: impl Fn(&One) -> Call) -> bool {
        let task = self.task();
        for _ in 0..ATTEMPTS {
            let call = call(self);
            if self.once(task, call).await {
                return true;
            }
            self.go_on().await;
        }
        false
    }

    /// To the next node.
    async fn go_on(&mut self) {
        self.node = (self.node + 1).checked_rem(self.nodes.len()).unwrap_or_default();
        tokio::time::sleep(PAUSE).await; // why: a client that is refused does not ask again at once
    }

    /// Makes a call and records it; whether it was answered.
    async fn once(&mut self, task: u64, call: Call) -> bool {
        let Ok(client) = self.client(self.node) else { return false };
        let batched = self.random.random_bool(0.5);
        let begun = self.shared.history.now();
        let outcome = self.perform(&client, call, batched).await;
        let answered = !matches!(outcome, Outcome::Unavailable(_) | Outcome::Wrong(_));
        self.shared.history.record(task, self.node, begun, call, outcome);
        answered
    }

    /// The same through this node, until it is available.
    async fn answer(&mut self, node: usize, call: Call) -> Result<Outcome> {
        let client = self.client(node)?;
        let mut answer = None;
        for _ in 0..ATTEMPTS {
            let begun = self.shared.history.now();
            let outcome = self.perform(&client, call, true).await;
            self.shared.history.record(self.task(), node, begun, call, outcome.clone());
            if !matches!(outcome, Outcome::Unavailable(_)) {
                return Ok(outcome);
            }
            answer = Some(outcome);
            tokio::time::sleep(PAUSE).await; // why: a client that is refused does not ask again at once
        }
        anyhow::bail!("{call:?} through node {node}: {answer:?}")
    }

    async fn load_eventually(&mut self, node: usize, content: Content) -> Result<Outcome> {
        self.answer(node, Call::Load(content)).await
    }

    async fn perform(&self, client: &Client, call: Call, batched: bool) -> Outcome {
        let workload = &self.shared.workload;
        match call {
            Call::Store(content) => written(in_time(content.send(client, batched)).await),
            Call::Load(content) => found(in_time(load(client, content, batched)).await.map(|()| true)),
            Call::Find(content) => found(in_time(client.has(&content.digest())).await),
            Call::Update { key, value } => written(in_time(update(client, workload.action(key), value)).await),
            Call::Result { key } => valued(in_time(result(client, workload.action(key))).await),
            Call::Push { key, value } => {
                let (name, digest) = (workload.asset(key), workload.asset_content(value).digest());
                written(in_time(client.push_blob(&name, &digest)).await)
            }
            Call::Fetch { key } => {
                let name = workload.asset(key);
                let fetched = in_time(client.fetch_blob(&name)).await;
                valued(fetched.and_then(|answer| {
                    let hash = answer.blob_digest.unwrap_or_default().hash;
                    let values = self.shared.values.lock().expect("nobody panics with the lock");
                    values.get(&hash).copied().ok_or_else(|| Status::data_loss(format!("{hash} was never pushed")))
                }))
            }
        }
    }
}

// === calls ===

async fn in_time<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late = |_elapsed| Err(Status::deadline_exceeded("the client has waited long enough"));
    tokio::time::timeout(PATIENCE, call).await.unwrap_or_else(late)
}

fn written(answer: Result<(), Status>) -> Outcome {
    answer.map_or_else(|status| Outcome::of(&status), |()| Outcome::Acknowledged)
}

fn found(answer: Result<bool, Status>) -> Outcome {
    match answer {
        Ok(true) => Outcome::Present,
        Ok(false) => Outcome::Absent,
        Err(status) if status.code() == Code::NotFound => Outcome::Absent,
        Err(status) => Outcome::of(&status),
    }
}

fn valued(answer: Result<u64, Status>) -> Outcome {
    match answer {
        Ok(value) => Outcome::Value(value),
        Err(status) if status.code() == Code::NotFound => Outcome::Absent,
        Err(status) => Outcome::of(&status),
    }
}

async fn load(client: &Client, content: Content, batched: bool) -> Result<(), Status> {
    if !batched || content.size_bytes() > BATCHED_BYTES_MAX {
        return content.verify(client).await;
    }
    let answer = client.batch_read(&[content.digest()]).await?.into_iter().next().unwrap_or_default();
    let status = answer.status.unwrap_or_default();
    if status.code != 0 {
        return Err(Status::new(Code::from(status.code), status.message));
    }
    let expected: Bytes = content.bytes();
    if answer.data != expected {
        return Err(Status::data_loss(format!("{} other bytes came", answer.data.len())));
    }
    Ok(())
}

async fn update(client: &Client, action: Digest, value: u64) -> Result<(), Status> {
    let exit_code = i32::try_from(value).map_err(|_| Status::internal("a test with 2^31 updates"))?;
    let request = UpdateActionResultRequest {
        instance_name: client.instance().to_owned(),
        action_digest: Some(action),
        action_result: Some(ActionResult { exit_code, ..Default::default() }),
        ..Default::default()
    };
    ActionCacheClient::new(client.channel()).update_action_result(request).await.map(|_| ())
}

async fn result(client: &Client, action: Digest) -> Result<u64, Status> {
    let request = GetActionResultRequest {
        instance_name: client.instance().to_owned(),
        action_digest: Some(action),
        ..Default::default()
    };
    let result = ActionCacheClient::new(client.channel()).get_action_result(request).await?.into_inner();
    u64::try_from(result.exit_code).map_err(|_| Status::data_loss("a value that was never given"))
}
