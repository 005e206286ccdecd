//! The other nodes of the cluster, and what they can be asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_cluster::membership::{NodeId, Roster};
use casbah_cluster::replication::Version;
use casbah_proto::peer::v1 as api;
use casbah_proto::peer::v1::NodeReport;
use casbah_proto::peer::v1::actions_client::ActionsClient;
use casbah_proto::peer::v1::blobs_client::BlobsClient;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::Uri;
use tokio::sync::watch;
use tonic::body::Body;

use crate::config::limits;
use crate::forward::batches::{BatchLimits, batches};
use crate::forward::channel::{Channel, until_stored, within};
use crate::forward::dial::Dialler;
use crate::forward::error::{PeerError, Unreachable};
use crate::forward::framing::message_frame;
use crate::forward::health::Health;
use crate::forward::link::Link;
use crate::forward::messages::digest_to_message;
use crate::forward::peer_read::{Form, PeerRead};
use crate::forward::peer_upload::PeerUpload;
use crate::store::Presence;

/// Messages of one batch that are under way to one node at once.
const BATCHES_AT_ONCE: usize = 4;

const READ: &str = "/casbah.peer.v1.Blobs/Read";

/// What nodes tell each other of themselves: how this one is now.
pub type Report = Arc<dyn Fn() -> NodeReport + Send + Sync>;

/// A copy of a blob that is kept elsewhere too.
#[derive(Debug, Clone)]
pub struct Copy {
    /// Its name.
    pub digest: Digest,
    /// All of it.
    pub data: Bytes,
    /// When it was last used, in milliseconds since 1970-01-01T00:00:00Z.
    pub used_ms: u64,
}

/// What the way to the other nodes is made of.
pub struct PeersParts {
    /// Who is in the cluster, now and later.
    pub roster: watch::Receiver<Arc<Roster>>,
    /// How connections are made.
    pub dialler: Dialler,
    /// How this node is.
    pub report: Report,
}

/// The other nodes of the cluster. Cheap to clone.
///
/// A call goes to one node, and is not tried again: whoever calls knows what to do instead. Every call has a deadline, and ends
/// at once when the node is known to be away. Dropped, a call that changes something may or may not have been carried out.
#[derive(Clone)]
pub struct Peers {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) roster: watch::Receiver<Arc<Roster>>,
    /// `None`: there is no way to other nodes.
    dialler: Option<Dialler>,
    pub(super) report: Report,
    links: Mutex<HashMap<NodeId, Arc<Link>>>,
    changes: watch::Sender<u64>,
}

// === impl Peers ===

impl Peers {
    /// The way to the other nodes. Nothing is connected yet, and nothing is known of how they are before [`Peers::watch`] runs.
    pub fn new(parts: PeersParts) -> Peers {
        let PeersParts { roster, dialler, report } = parts;
        Peers::of(roster, Some(dialler), report)
    }

    /// No way to any other node.
    pub fn alone() -> Peers {
        let (_never_changes, roster) = watch::channel(Arc::default());
        Peers::of(roster, None, Arc::new(NodeReport::default))
    }

    fn of(roster: watch::Receiver<Arc<Roster>>, dialler: Option<Dialler>, report: Report) -> Peers {
        let (links, changes) = (Mutex::default(), watch::Sender::new(0));
        Peers { inner: Arc::new(Inner { roster, dialler, report, links, changes }) }
    }

    /// How a node is, as far as is known here.
    pub fn health(&self, node: NodeId) -> Health {
        self.inner.link(node).map_or(Health::NOBODY, |link| link.health())
    }

    /// What a node has said of itself last; `None` before it has said anything.
    pub fn report(&self, node: NodeId) -> Option<NodeReport> {
        self.inner.link(node).ok().and_then(|link| link.report())
    }

    /// Whether a node has been heard of lately. One that was never heard of has not.
    pub fn hears(&self, node: NodeId) -> bool {
        self.inner.link(node).is_ok_and(|link| link.is_there())
    }

    /// By how much a node's clock and this one's differ, by its last heartbeat.
    pub fn clock_apart(&self, node: NodeId) -> Duration {
        self.inner.link(node).map_or(Duration::ZERO, |link| link.apart())
    }

    /// Counted up whenever a node goes away or comes back.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Which blobs a node has, in the order asked for; those that are there are used now if `touch` says so.
    ///
    /// # Errors
    /// [`PeerError`], of all of them.
    pub async fn find(&self, node: NodeId, digests: &[Digest], touch: bool) -> Result<Vec<Presence>, PeerError> {
        let link = self.inner.link(node)?;
        let _place = link.place().await?;
        let client = blobs(self.inner.data(&link));
        let request =
            |part: &[Digest]| api::FindRequest { digests: part.iter().map(digest_to_message).collect(), touch };
        let requests = digests.chunks(limits::PEER_DIGESTS_MAX).map(request).collect();
        each(requests, move |request: api::FindRequest| {
            let mut client = client.clone();
            async move {
                let count = request.digests.len();
                let answer = within(client.find(request)).await?;
                let bit = |bytes: &Bytes, at: usize| bytes.get(at / 8).map(|byte| byte >> (at % 8) & 1 == 1);
                let presence = |at| match (bit(&answer.present, at)?, bit(&answer.unsure, at)) {
                    (true, _) => Some(Presence::Here),
                    (false, Some(true)) => Some(Presence::Unsure),
                    (false, _) => Some(Presence::Absent),
                };
                let presences: Option<Vec<Presence>> = (0..count).map(presence).collect();
                presences.ok_or_else(|| PeerError::nonsense("an answer is of fewer blobs than were asked for"))
            }
        })
        .await
    }

    /// Reads a range of a blob, to its end when no length is given. When this returns, the first bytes are here. Frames of
    /// zstd come if they are taken, the whole blob is read, and it is stored in them.
    ///
    /// # Errors
    /// [`PeerError`]; `NotFound` if the node does not have the blob and is sure of it.
    pub async fn read(
        &self,
        node: NodeId,
        digest: &Digest,
        offset: u64,
        length: Option<u64>,
        takes_zstd: bool,
    ) -> Result<PeerRead, PeerError> {
        let digest = Some(digest_to_message(digest));
        self.begin_read(node, api::ReadRequest { digest, offset, length, takes_zstd, is_no_use: false }).await
    }

    /// Reads a whole blob to make a copy of it by the time of its last use: it is no use of it.
    ///
    /// # Errors
    /// As [`Peers::read`].
    pub async fn read_copy(&self, node: NodeId, digest: &Digest) -> Result<PeerRead, PeerError> {
        let digest = Some(digest_to_message(digest));
        let (offset, length, takes_zstd) = (0, None, false);
        self.begin_read(node, api::ReadRequest { digest, offset, length, takes_zstd, is_no_use: true }).await
    }

    async fn begin_read(&self, node: NodeId, request: api::ReadRequest) -> Result<PeerRead, PeerError> {
        let link = self.inner.link(node)?;
        let place = link.place().await?;
        let channel = self.inner.data(&link);
        let body =
            http_body_util::StreamBody::new(stream::iter([Ok::<_, std::convert::Infallible>(message_frame(&request))]));
        let begun = async {
            let answer = channel.begin(READ, Body::new(body)).await?;
            PeerRead::begin(answer.into_body(), link, place).await
        };
        match tokio::time::timeout(limits::PEER_CALL_DEADLINE, begun).await {
            Ok(read) => read,
            Err(_elapsed) => Err(PeerError::TimedOut),
        }
    }

    /// Reads many whole blobs, each with an outcome of its own, in the order asked for. Those larger than the limit, or than a
    /// batch between nodes, are too large.
    ///
    /// # Errors
    /// [`PeerError`], of all of them.
    pub async fn read_batch(
        &self,
        node: NodeId,
        digests: &[Digest],
        limit_bytes: u64,
        takes_zstd: bool,
    ) -> Result<Vec<Result<(Bytes, Form), PeerError>>, PeerError> {
        self.read_many(node, digests, (limit_bytes, takes_zstd), false).await
    }

    /// Reads many whole blobs to make copies of them, as [`Peers::read_copy`] reads one.
    ///
    /// # Errors
    /// As [`Peers::read_batch`].
    pub async fn read_copies(
        &self,
        node: NodeId,
        digests: &[Digest],
    ) -> Result<Vec<Result<(Bytes, Form), PeerError>>, PeerError> {
        self.read_many(node, digests, (limits::PEER_BATCH_BYTES, false), true).await
    }

    async fn read_many(
        &self,
        node: NodeId,
        digests: &[Digest],
        (limit_bytes, takes_zstd): (u64, bool),
        is_no_use: bool,
    ) -> Result<Vec<Result<(Bytes, Form), PeerError>>, PeerError> {
        let link = self.inner.link(node)?;
        let _place = link.place().await?;
        let limit_bytes = limit_bytes.min(limits::PEER_BATCH_BYTES);
        // One that is too large does not come.
        let size = |digest: &Digest| if digest.size_bytes() > limit_bytes { 0 } else { digest.size_bytes() };
        let client = blobs(self.inner.data(&link));
        let request = |part: &[Digest]| {
            let digests = part.iter().map(digest_to_message).collect();
            api::ReadBatchRequest { digests, limit_bytes, takes_zstd, is_no_use }
        };
        let requests = batches(digests, size, &BatchLimits::OF_BLOBS).into_iter().map(request).collect();
        each(requests, move |request: api::ReadBatchRequest| {
            let mut client = client.clone();
            async move {
                let count = request.digests.len();
                let outcomes = within(client.read_batch(request)).await?.outcomes;
                if outcomes.len() != count {
                    return Err(PeerError::nonsense("an answer is of fewer blobs than were asked for"));
                }
                Ok(outcomes.into_iter().map(read_outcome).collect())
            }
        })
        .await
    }

    /// Begins to send a blob. The answer is not waited for: what is wrong is told by the upload.
    ///
    /// # Errors
    /// [`PeerError`] when the node is none, or too many calls are under way to it.
    pub async fn store(&self, node: NodeId, digest: &Digest) -> Result<PeerUpload, PeerError> {
        let link = self.inner.link(node)?;
        let place = link.place().await?;
        Ok(PeerUpload::begin(self.inner.data(&link), digest, None, place).await)
    }

    /// The same, of a copy that is kept here too and was last used so many milliseconds after the beginning of 1970: the other node
    /// hashes it, and keeps it by that. [`PeerError::OutOfRange`] if it would be the next to go there.
    ///
    /// # Errors
    /// As [`Peers::store`].
    pub async fn store_copy(&self, node: NodeId, digest: &Digest, used_ms: u64) -> Result<PeerUpload, PeerError> {
        let link = self.inner.link(node)?;
        let place = link.place().await?;
        Ok(PeerUpload::begin(self.inner.data(&link), digest, Some(used_ms), place).await)
    }

    /// Sends many whole blobs, which the caller has verified; each has an outcome of its own, in the same order. Those larger
    /// than a batch between nodes are to be sent by [`Peers::store`], and are refused here.
    ///
    /// # Errors
    /// [`PeerError`], of all of them; some may be stored if [`PeerError::is_in_doubt`].
    pub async fn store_batch(
        &self,
        node: NodeId,
        blobs_sent: Vec<(Digest, Bytes)>,
    ) -> Result<Vec<Result<(), PeerError>>, PeerError> {
        let blob = |(digest, data): (Digest, Bytes)| (digest, data, None);
        self.send_batch(node, blobs_sent.into_iter().map(blob).collect()).await
    }

    /// The same, of copies, as [`Peers::store_copy`] sends one.
    ///
    /// # Errors
    /// As [`Peers::store_batch`].
    pub async fn store_copies(&self, node: NodeId, copies: Vec<Copy>) -> Result<Vec<Result<(), PeerError>>, PeerError> {
        let blob = |copy: Copy| (copy.digest, copy.data, Some(copy.used_ms));
        self.send_batch(node, copies.into_iter().map(blob).collect()).await
    }

    async fn send_batch(
        &self,
        node: NodeId,
        blobs_sent: Vec<(Digest, Bytes, Option<u64>)>,
    ) -> Result<Vec<Result<(), PeerError>>, PeerError> {
        let link = self.inner.link(node)?;
        let _place = link.place().await?;
        let client = blobs(self.inner.data(&link));
        let size = |(_, data, _): &(Digest, Bytes, Option<u64>)| data.len() as u64;
        let blob = |(digest, data, used_ms): &(Digest, Bytes, Option<u64>)| {
            let (digest, data, used_ms) = (Some(digest_to_message(digest)), data.clone(), *used_ms);
            api::store_batch_request::Blob { digest, data, used_ms }
        };
        let request =
            |part: &[(Digest, Bytes, Option<u64>)]| api::StoreBatchRequest { blobs: part.iter().map(blob).collect() };
        let requests = batches(&blobs_sent, size, &BatchLimits::OF_BLOBS).into_iter().map(request).collect();
        each(requests, move |request: api::StoreBatchRequest| {
            let mut client = client.clone();
            async move {
                let count = request.blobs.len();
                let outcomes = until_stored(client.store_batch(request)).await?.outcomes;
                if outcomes.len() != count {
                    return Err(PeerError::nonsense("an answer is of fewer blobs than were sent"));
                }
                let outcome = |outcome: api::StoreOutcome| match outcome.code {
                    0 => Ok(()),
                    code => Err(PeerError::outcome(code, outcome.message, outcome.retry_after_ms)),
                };
                Ok(outcomes.into_iter().map(outcome).collect())
            }
        })
        .await
    }

    /// The result of an action that a node has, and its version; `None` if it has none and is sure of it.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn get_action(
        &self,
        node: NodeId,
        instance: &str,
        action: &Digest,
        touch: bool,
    ) -> Result<Option<(Version, Bytes)>, PeerError> {
        let link = self.inner.link(node)?;
        let _place = link.place().await?;
        let request = api::GetActionRequest { key: Some(action_key(instance, action)), touch };
        let answer = match within(actions(self.inner.data(&link)).get(request)).await {
            Ok(answer) => answer,
            Err(PeerError::NotFound) => return Ok(None),
            Err(error) => return Err(error),
        };
        let version = answer.version.ok_or_else(|| PeerError::nonsense("a result of an action has no version"))?;
        let version = Version { time_ms: version.time_ms, count: version.count, node: NodeId(version.node_id) };
        Ok(Some((version, answer.result)))
    }

    /// Has a node keep the result of an action, unless it has a newer one.
    ///
    /// # Errors
    /// [`PeerError`]; the result may be kept if [`PeerError::is_in_doubt`].
    pub async fn put_action(
        &self,
        node: NodeId,
        instance: &str,
        action: &Digest,
        version: Version,
        result: Bytes,
    ) -> Result<(), PeerError> {
        let link = self.inner.link(node)?;
        let _place = link.place().await?;
        let version = api::Version { time_ms: version.time_ms, count: version.count, node_id: version.node.0 };
        let key = Some(action_key(instance, action));
        let request = api::PutActionRequest { key, version: Some(version), result };
        until_stored(actions(self.inner.data(&link)).put(request)).await.map(drop)
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

// === impl Inner ===

impl Inner {
    /// The way to a member, which is new if its address has changed.
    pub(super) fn link(&self, node: NodeId) -> Result<Arc<Link>, PeerError> {
        let unreachable = |why| Err(PeerError::Unreachable(why));
        let Some(dialler) = &self.dialler else { return unreachable(Unreachable::Alone) };
        let roster = self.roster.borrow();
        let Some(address) = roster.address(node) else { return unreachable(Unreachable::NoMember) };
        // A panic in there leaves a way too few, which is made again.
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        match links.get(&node).filter(|link| link.address() == address) {
            Some(link) => Ok(Arc::clone(link)),
            None => {
                let link = Arc::new(Link::new(node, address, dialler.clone(), self.changes.clone()));
                links.insert(node, Arc::clone(&link));
                Ok(link)
            }
        }
    }

    /// Forgets nodes that are no members any more.
    pub(super) fn keep_members(&self) {
        let roster = self.roster.borrow();
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|node, _| roster.address(*node).is_some());
    }

    pub(super) fn data(&self, link: &Arc<Link>) -> Channel {
        Channel::data(Arc::clone(link), self.roster.clone())
    }

    pub(super) fn bulk(&self, link: &Arc<Link>) -> Channel {
        Channel::bulk(Arc::clone(link), self.roster.clone())
    }

    pub(super) fn control(&self, link: &Arc<Link>) -> Channel {
        Channel::control(Arc::clone(link), self.roster.clone())
    }
}

/// Makes calls, a few at once, each for a part of a list; the outcomes of all of them, in order.
async fn each<R, T, F>(requests: Vec<R>, call: impl Fn(R) -> F) -> Result<Vec<T>, PeerError>
where
    F: Future<Output = Result<Vec<T>, PeerError>>,
{
    let parts: Vec<Vec<T>> = stream::iter(requests).map(call).buffered(BATCHES_AT_ONCE).try_collect().await?;
    Ok(parts.into_iter().flatten().collect())
}

/// Where requests of generated clients seem to go.
pub(super) fn origin() -> Uri {
    Uri::from_static("https://casbah-peer")
}

fn blobs(channel: Channel) -> BlobsClient<Channel> {
    BlobsClient::with_origin(channel, origin())
        .max_decoding_message_size(limits::PEER_MESSAGE_BYTES)
        .max_encoding_message_size(limits::PEER_MESSAGE_BYTES)
}

fn actions(channel: Channel) -> ActionsClient<Channel> {
    ActionsClient::with_origin(channel, origin())
        .max_decoding_message_size(limits::PEER_MESSAGE_BYTES)
        .max_encoding_message_size(limits::PEER_MESSAGE_BYTES)
}

pub(super) fn action_key(instance: &str, action: &Digest) -> api::ActionKey {
    api::ActionKey { instance_name: instance.to_owned(), action: Some(digest_to_message(action)) }
}

fn read_outcome(outcome: api::ReadOutcome) -> Result<(Bytes, Form), PeerError> {
    if outcome.code != 0 {
        return Err(PeerError::outcome(outcome.code, outcome.message, 0));
    }
    let form = Form::by_number(outcome.form).ok_or_else(|| PeerError::nonsense("an answer has no known form"))?;
    Ok((outcome.data, form))
}
