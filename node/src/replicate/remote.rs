//! What other nodes can be asked: a trait, so that a cluster can be tested in one process.

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_cluster::inventory::{ActionName, ListedAction, ListedBlob, Page, PartitionSummary};
use casbah_cluster::membership::NodeId;
use casbah_cluster::replication::Version;

use crate::forward::{Copy, Form, Health, PeerError, PeerRead, PeerUpload, Peers};
use crate::store::Presence;

/// The other nodes. Each call has a deadline of its own.
#[tonic::async_trait]
pub trait Remote: Send + Sync + 'static {
    /// How a node is, as far as is known here.
    fn health(&self, node: NodeId) -> Health;

    /// Which blobs a node has, in the order asked for.
    async fn find(&self, node: NodeId, digests: &[Digest], touch: bool) -> Result<Vec<Presence>, PeerError>;

    /// A range of a blob; when this returns, the first bytes are here.
    async fn read(
        &self,
        node: NodeId,
        digest: &Digest,
        offset: u64,
        length: Option<u64>,
        takes_zstd: bool,
    ) -> Result<Box<dyn RemoteRead>, PeerError>;

    /// Many whole blobs, in the order asked for.
    async fn read_batch(
        &self,
        node: NodeId,
        digests: &[Digest],
        limit_bytes: u64,
        takes_zstd: bool,
    ) -> Result<Vec<Result<(Bytes, Form), PeerError>>, PeerError>;

    /// A whole blob, to make a copy of it by the time of its last use, which is no use of it.
    async fn read_copy(&self, node: NodeId, digest: &Digest) -> Result<Box<dyn RemoteRead>, PeerError>;

    /// Many of them, none of them larger than a batch between nodes.
    async fn read_copies(
        &self,
        node: NodeId,
        digests: &[Digest],
    ) -> Result<Vec<Result<(Bytes, Form), PeerError>>, PeerError>;

    /// Begins to send a blob.
    async fn store(&self, node: NodeId, digest: &Digest) -> Result<Box<dyn RemoteUpload>, PeerError>;

    /// Begins to send a copy, which is kept there by the time of its last use, and hashed.
    async fn store_copy(&self, node: NodeId, digest: &Digest, used_ms: u64)
    -> Result<Box<dyn RemoteUpload>, PeerError>;

    /// Sends many such copies.
    async fn store_copies(&self, node: NodeId, copies: Vec<Copy>) -> Result<Vec<Result<(), PeerError>>, PeerError>;

    /// Sends many whole blobs, which have been verified.
    async fn store_batch(
        &self,
        node: NodeId,
        blobs: Vec<(Digest, Bytes)>,
    ) -> Result<Vec<Result<(), PeerError>>, PeerError>;

    /// The result of an action, and its version.
    async fn get_action(
        &self,
        node: NodeId,
        instance: &str,
        action: &Digest,
        touch: bool,
    ) -> Result<Option<(Version, Bytes)>, PeerError>;

    /// Has a node keep the result of an action, unless it has a newer one.
    async fn put_action(
        &self,
        node: NodeId,
        instance: &str,
        action: &Digest,
        version: Version,
        result: Bytes,
    ) -> Result<(), PeerError>;

    /// What a node has of these partitions in short, in the order asked for.
    async fn compare(&self, node: NodeId, partitions: &[u16]) -> Result<Vec<PartitionSummary>, PeerError>;

    /// The next blobs that a node has of a partition, after this one.
    async fn list_blobs(
        &self,
        node: NodeId,
        partition: u16,
        after: Option<Digest>,
    ) -> Result<Page<ListedBlob>, PeerError>;

    /// The next results of actions that a node has of a partition, after this one.
    async fn list_actions(
        &self,
        node: NodeId,
        partition: u16,
        after: Option<ActionName>,
    ) -> Result<Page<ListedAction>, PeerError>;
}

/// A blob that comes from another node.
#[tonic::async_trait]
pub trait RemoteRead: Send {
    /// How the bytes come.
    fn form(&self) -> Form;

    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, PeerError>;
}

/// A blob on its way to another node. Dropped, nothing is stored there.
#[tonic::async_trait]
pub trait RemoteUpload: Send {
    /// Sends the next bytes.
    async fn send(&mut self, data: Bytes) -> Result<(), PeerError>;

    /// Says that all were sent and are those of the digest. The other node has the blob when this has returned.
    async fn commit(self: Box<Self>) -> Result<(), PeerError>;
}

#[tonic::async_trait]
impl Remote for Peers {
    fn health(&self, node: NodeId) -> Health {
        Peers::health(self, node)
    }

    async fn find(&self, node: NodeId, digests: &[Digest], touch: bool) -> Result<Vec<Presence>, PeerError> {
        Peers::find(self, node, digests, touch).await
    }

    async fn read(
        &self,
        node: NodeId,
        digest: &Digest,
        offset: u64,
        length: Option<u64>,
        takes_zstd: bool,
    ) -> Result<Box<dyn RemoteRead>, PeerError> {
        Ok(Box::new(Peers::read(self, node, digest, offset, length, takes_zstd).await?))
    }

    async fn read_batch(
        &self,
        node: NodeId,
        digests: &[Digest],
        limit_bytes: u64,
        takes_zstd: bool,
    ) -> Result<Vec<Result<(Bytes, Form), PeerError>>, PeerError> {
        Peers::read_batch(self, node, digests, limit_bytes, takes_zstd).await
    }

    async fn read_copy(&self, node: NodeId, digest: &Digest) -> Result<Box<dyn RemoteRead>, PeerError> {
        Ok(Box::new(Peers::read_copy(self, node, digest).await?))
    }

    async fn read_copies(
        &self,
        node: NodeId,
        digests: &[Digest],
    ) -> Result<Vec<Result<(Bytes, Form), PeerError>>, PeerError> {
        Peers::read_copies(self, node, digests).await
    }

    async fn store(&self, node: NodeId, digest: &Digest) -> Result<Box<dyn RemoteUpload>, PeerError> {
        Ok(Box::new(Peers::store(self, node, digest).await?))
    }

    async fn store_copy(
        &self,
        node: NodeId,
        digest: &Digest,
        used_ms: u64,
    ) -> Result<Box<dyn RemoteUpload>, PeerError> {
        Ok(Box::new(Peers::store_copy(self, node, digest, used_ms).await?))
    }

    async fn store_copies(&self, node: NodeId, copies: Vec<Copy>) -> Result<Vec<Result<(), PeerError>>, PeerError> {
        Peers::store_copies(self, node, copies).await
    }

    async fn store_batch(
        &self,
        node: NodeId,
        blobs: Vec<(Digest, Bytes)>,
    ) -> Result<Vec<Result<(), PeerError>>, PeerError> {
        Peers::store_batch(self, node, blobs).await
    }

    async fn get_action(
        &self,
        node: NodeId,
        instance: &str,
        action: &Digest,
        touch: bool,
    ) -> Result<Option<(Version, Bytes)>, PeerError> {
        Peers::get_action(self, node, instance, action, touch).await
    }

    async fn put_action(
        &self,
        node: NodeId,
        instance: &str,
        action: &Digest,
        version: Version,
        result: Bytes,
    ) -> Result<(), PeerError> {
        Peers::put_action(self, node, instance, action, version, result).await
    }

    async fn compare(&self, node: NodeId, partitions: &[u16]) -> Result<Vec<PartitionSummary>, PeerError> {
        Peers::compare(self, node, partitions).await
    }

    async fn list_blobs(
        &self,
        node: NodeId,
        partition: u16,
        after: Option<Digest>,
    ) -> Result<Page<ListedBlob>, PeerError> {
        Peers::list_blobs(self, node, partition, after).await
    }

    async fn list_actions(
        &self,
        node: NodeId,
        partition: u16,
        after: Option<ActionName>,
    ) -> Result<Page<ListedAction>, PeerError> {
        Peers::list_actions(self, node, partition, after).await
    }
}

#[tonic::async_trait]
impl RemoteRead for PeerRead {
    fn form(&self) -> Form {
        PeerRead::form(self)
    }

    async fn next(&mut self) -> Result<Option<Bytes>, PeerError> {
        PeerRead::next(self).await
    }
}

#[tonic::async_trait]
impl RemoteUpload for PeerUpload {
    async fn send(&mut self, data: Bytes) -> Result<(), PeerError> {
        PeerUpload::send(self, data).await
    }

    async fn commit(self: Box<Self>) -> Result<(), PeerError> {
        PeerUpload::commit(*self).await
    }
}
