//! A blob that is streamed to several nodes while it is hashed.
//!
//! Each node has a task and a short queue. The slowest of those that are needed sets the pace; one that is not needed and
//! holds the others up is cut loose. Nobody keeps the blob before the end, when its hash is known to be right.

use std::time::Duration;

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_cluster::membership::NodeId;
use casbah_cluster::replication::{Next, WriteDecision};
use casbah_cluster::ring::partition_of;
use casbah_cluster::view::View;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::timeout;

use crate::replicate::copy::{self, Sink};
use crate::replicate::error::{CopyError, WriteError};
use crate::replicate::hashing::Hashing;
use crate::replicate::nodes::{Nodes, Room, Uploading};
use crate::store::{self, Mismatch};

/// Bytes that are gathered before they are hashed and sent, and the most that is sent at once: what the store works with too.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// Pieces shorter than this are put together before they are sent: what surrounds each costs as much as copying it.
const SHORT_BYTES: usize = 64 << 10;

/// Pieces on their way to one node: the one that it takes and some that wait, so that nodes need not keep step.
const QUEUE: usize = 4;

/// For how long a node may hold up others that suffice without it.
const CUT_LOOSE_AFTER: Duration = Duration::from_millis(500);

/// For how long nodes may say nothing once they have everything, before others are given the blob in their place: longer than
/// a busy disk takes.
pub(super) const LAGGARD_PATIENCE: Duration = Duration::from_secs(2);

/// What nodes say that waits to be looked at: each says one thing.
const OUTCOMES: usize = 16;

/// A blob on its way to several nodes.
pub(super) struct Spread {
    nodes: Nodes,
    here: NodeId,
    digest: Digest,
    decision: WriteDecision,
    received_bytes: u64,
    /// Not sent yet.
    gathered: Vec<Bytes>,
    gathered_bytes: usize,
    hashing: Hashing,
    targets: Vec<Target>,
    /// Something has been sent: nobody can come in from here on.
    is_under_way: bool,
    tell: mpsc::Sender<Told>,
    told: mpsc::Receiver<Told>,
    /// The most telling so far.
    error: Option<CopyError>,
    uploading: Uploading,
}

/// A node that the bytes go to. Dropped before [`Part::Commit`], nothing is stored there.
struct Target {
    node: NodeId,
    parts: mpsc::Sender<Part>,
}

#[derive(Clone)]
enum Part {
    Data(Bytes, Option<Room>),
    Commit,
}

/// What became of a node's copy.
struct Told {
    node: NodeId,
    outcome: Result<(), CopyError>,
}

// === impl Spread ===

impl Spread {
    /// Begins to send a blob to its nodes. None of them is waited for.
    pub(super) fn begin(nodes: &Nodes, view: &View, digest: Digest) -> Spread {
        let decision = WriteDecision::new(view, partition_of(&digest), |node| nodes.is_away(view, node));
        let (tell, told) = mpsc::channel(OUTCOMES);
        let mut spread = Spread {
            nodes: nodes.clone(),
            here: view.self_id(),
            digest,
            decision,
            received_bytes: 0,
            gathered: Vec::new(),
            gathered_bytes: 0,
            hashing: Hashing::new(&digest),
            targets: Vec::new(),
            is_under_way: false,
            tell,
            told,
            error: None,
            uploading: nodes.uploading(digest),
        };
        let targets: Vec<NodeId> = spread.decision.targets().collect();
        targets.into_iter().for_each(|node| spread.start(node));
        spread
    }

    pub(super) fn written_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// Whether another upload of the same blob has come to its end.
    pub(super) fn is_overtaken(&self) -> bool {
        self.uploading.is_stored()
    }

    /// Whether it is worth going on with.
    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.hashing, Hashing::Lost) && self.targets.iter().any(|target| !target.parts.is_closed())
    }

    /// Adds the next bytes.
    pub(super) async fn write(&mut self, data: Bytes) -> Result<(), WriteError> {
        self.received_bytes += data.len() as u64;
        if self.received_bytes > self.digest.size_bytes() {
            self.targets.clear();
            return Err(self.mismatch(Mismatch::TooLong { received_bytes: self.received_bytes }));
        }
        self.gathered_bytes += data.len();
        self.gathered.push(data);
        if self.gathered_bytes >= PIECE_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// Verifies the blob and has it kept. Returns when enough nodes have it.
    pub(super) async fn commit(mut self) -> Result<(), WriteError> {
        if self.received_bytes < self.digest.size_bytes() {
            return Err(self.mismatch(Mismatch::TooShort { received_bytes: self.received_bytes }));
        }
        self.flush().await?;
        match self.hashing.finish().await {
            Some(actual) if actual == self.digest => {}
            Some(actual) => return Err(self.mismatch(Mismatch::Hash { actual: Box::new(actual) })),
            None => return Err(store::WriteError::Closed { digest: self.digest }.into()),
        }
        self.send(Part::Commit).await?;
        self.settle().await
    }

    /// Has what was gathered hashed and sent.
    async fn flush(&mut self) -> Result<(), WriteError> {
        let (gathered, bytes) = (std::mem::take(&mut self.gathered), std::mem::take(&mut self.gathered_bytes));
        if gathered.is_empty() {
            return Ok(());
        }
        let is_short = bytes / gathered.len() < SHORT_BYTES && gathered.len() > 1;
        let pieces = if is_short { vec![Bytes::from(gathered.concat())] } else { gathered };
        let room = self.nodes.room(bytes).await;
        self.hashing.add(pieces.clone()).await;
        for mut piece in pieces {
            while !piece.is_empty() {
                let part = piece.split_to(piece.len().min(PIECE_BYTES));
                self.send(Part::Data(part, room.clone())).await?;
            }
        }
        Ok(())
    }

    /// Gives a part to every node. Waits for those that are needed to have room for it.
    async fn send(&mut self, part: Part) -> Result<(), WriteError> {
        self.listen();
        self.look_again();
        self.is_under_way = true;
        let is_last = matches!(part, Part::Commit);
        let mut slow = FuturesUnordered::new();
        let mut waiting: Vec<NodeId> = Vec::new();
        for target in &self.targets {
            if let Err(TrySendError::Full(part)) = target.parts.try_send(part.clone()) {
                let (node, parts) = (target.node, target.parts.clone());
                waiting.push(node);
                slow.push(async move {
                    // Whether it is gone is told by its task.
                    drop(parts.send(part).await);
                    node
                });
            }
        }
        while !slow.is_empty() {
            match timeout(CUT_LOOSE_AFTER, slow.next()).await {
                Ok(Some(node)) => waiting.retain(|other| *other != node),
                Ok(None) => break,
                Err(_elapsed) if self.suffices_without(&waiting) => {
                    if is_last {
                        // They have everything but the word that it is right, and may finish without being waited for.
                        let rest = std::mem::take(&mut slow);
                        self.nodes.spawn(rest.for_each(|_| std::future::ready(())));
                    } else {
                        self.cut_loose(&waiting);
                    }
                    break;
                }
                // They are needed. They fail at their own deadlines if they stand still.
                Err(_elapsed) => {}
            }
        }
        drop(slow);
        self.targets.retain(|target| !target.parts.is_closed());
        if self.targets.is_empty() {
            while let Ok(Some(told)) = timeout(CUT_LOOSE_AFTER, self.told.recv()).await {
                self.hear(told);
                if self.decision.targets().next().is_none() {
                    break;
                }
            }
            if self.decision.holders().next().is_none() {
                return Err(self.refusal());
            }
        }
        Ok(())
    }

    fn cut_loose(&mut self, nodes: &[NodeId]) {
        tracing::warn!(digest = %self.digest, ?nodes, "nodes are too slow for an upload, which goes on without them");
        self.targets.retain(|target| !nodes.contains(&target.node));
        for node in nodes {
            let next = self.decision.failed(*node);
            self.act(next);
        }
    }

    /// Whether the blob can be acknowledged although these nodes do not have it.
    fn suffices_without(&self, slow: &[NodeId]) -> bool {
        let mut without = self.decision.clone();
        for node in slow {
            without.failed(*node);
        }
        matches!(without.go_on(), Next::Wait | Next::Done) && without.targets().next().is_some()
    }

    /// Waits until enough nodes have said that they have it, and has it copied to others if some of them do not.
    async fn settle(&mut self) -> Result<(), WriteError> {
        // What they were given they go on with.
        self.targets.clear();
        loop {
            let next = self.decision.go_on();
            match self.act(next) {
                Next::Done => {
                    self.uploading.stored();
                    return Ok(());
                }
                Next::Wait | Next::CopyTo(_) => {}
                Next::Fail => return Err(self.refusal()),
                Next::Behind(epoch) => match self.nodes.caught_up(epoch).await {
                    Some(view) => {
                        self.decide_by(&view);
                        continue;
                    }
                    None => return Err(self.refusal()),
                },
            }
            match timeout(LAGGARD_PATIENCE, self.told.recv()).await {
                Ok(Some(told)) => self.hear(told),
                // This one holds a sender.
                Ok(None) => return Err(self.refusal()),
                Err(_elapsed) => self.go_on_without_laggards(),
            }
        }
    }

    /// Decides anew if a node has answered by a layout that this one has heard of meanwhile.
    fn look_again(&mut self) {
        if let Next::Behind(epoch) = self.decision.clone().go_on() {
            let view = self.nodes.view();
            if view.epoch() >= epoch {
                self.decide_by(&view);
            }
        }
    }

    fn decide_by(&mut self, view: &View) {
        let nodes = &self.nodes;
        let next = self.decision.revise(view, |node| nodes.is_away(view, node));
        self.act(next);
    }

    /// Begins what is to be done; what remains is to wait, or the end.
    fn act(&mut self, next: Next) -> Next {
        let mut next = next;
        while let Next::CopyTo(node) = next {
            self.copy_to(node);
            next = self.decision.go_on();
        }
        next
    }

    /// Has the blob copied from a node that has it.
    fn copy_to(&mut self, node: NodeId) {
        let mut holders = self.decision.holders();
        let first = holders.next();
        let from = if first == Some(self.here) { first } else { holders.find(|holder| *holder == self.here).or(first) };
        let Some(from) = from else { return };
        let (nodes, here, digest, tell) = (self.nodes.clone(), self.here, self.digest, self.tell.clone());
        self.nodes.spawn(async move {
            let outcome = copy::copy(&nodes, from, node, here, &digest).await;
            drop(tell.send(Told { node, outcome }).await);
        });
    }

    /// If others can have it in place of those that say nothing, these are no longer waited for.
    fn go_on_without_laggards(&mut self) {
        let mut without = self.decision.clone();
        let laggards: Vec<NodeId> = without.targets().collect();
        let mut others: Vec<NodeId> = Vec::new();
        for laggard in laggards {
            if let Next::CopyTo(node) = without.failed(laggard) {
                others.push(node);
            }
        }
        while let Next::CopyTo(node) = without.go_on() {
            others.push(node);
        }
        if !others.is_empty() {
            self.decision = without;
            others.into_iter().for_each(|node| self.copy_to(node));
        }
    }

    /// Looks at what nodes have said meanwhile.
    fn listen(&mut self) {
        while let Ok(told) = self.told.try_recv() {
            let (node, has_failed) = (told.node, told.outcome.is_err());
            self.hear(told);
            // Before the first byte, another one can take its place.
            if has_failed
                && !self.is_under_way
                && let Some(other) = self.decision.replace(node)
            {
                self.start(other);
            }
        }
    }

    fn hear(&mut self, told: Told) {
        let Told { node, outcome } = told;
        self.decision.heard(self.nodes.epoch_of(node));
        let next = match outcome {
            Ok(()) => self.decision.acknowledged(node),
            Err(error) => {
                tracing::debug!(digest = %self.digest, %node, %error, "a copy was not made");
                self.error = Some(error.or(self.error.take()));
                self.targets.retain(|target| target.node != node);
                self.decision.failed(node)
            }
        };
        self.act(next);
    }

    /// Begins the task of a node.
    fn start(&mut self, node: NodeId) {
        let (parts, queue) = mpsc::channel(QUEUE);
        self.targets.push(Target { node, parts });
        let (nodes, here, digest, tell) = (self.nodes.clone(), self.here, self.digest, self.tell.clone());
        self.nodes.spawn(async move {
            let outcome = feed(&nodes, node, here, &digest, queue).await;
            // Nobody listens once enough others have it.
            drop(tell.send(Told { node, outcome }).await);
        });
    }

    fn refusal(&mut self) -> WriteError {
        WriteError::too_few(self.digest, self.error.take())
    }

    fn mismatch(&self, mismatch: Mismatch) -> WriteError {
        store::WriteError::Mismatch { expected: self.digest, mismatch }.into()
    }
}

/// Passes on to a node what comes.
async fn feed(
    nodes: &Nodes,
    node: NodeId,
    here: NodeId,
    digest: &Digest,
    mut queue: mpsc::Receiver<Part>,
) -> Result<(), CopyError> {
    let mut sink = Sink::open(nodes, node, here, digest).await?;
    while let Some(part) = queue.recv().await {
        match part {
            Part::Data(data, _room) => sink.send(data).await?,
            Part::Commit => return sink.commit().await,
        }
    }
    // The upload was given up, or this node was.
    Err(CopyError::GivenUp { node })
}
