//! What other nodes hold, asked for: see `proto/peer/v1/inventories.proto`.

use casbah_cluster::digest::Digest;
use casbah_cluster::inventory::{ActionName, Inventory, ListedAction, ListedBlob, Page, PartitionSummary};
use casbah_cluster::membership::NodeId;
use casbah_cluster::replication::Version;
use casbah_proto::peer::v1 as api;
use casbah_proto::peer::v1::inventories_client::InventoriesClient;

use crate::config::limits;
use crate::forward::channel::{Channel, within};
use crate::forward::error::PeerError;
use crate::forward::messages::{digest_from_message, digest_to_message};
use crate::forward::peers::{Peers, action_key, origin};

// === impl Peers ===

impl Peers {
    /// What a node has of these partitions in short, in the order asked for.
    ///
    /// # Errors
    /// [`PeerError`]; `Full` also while the node, which has just started, does not know yet.
    pub async fn compare(&self, node: NodeId, partitions: &[u16]) -> Result<Vec<PartitionSummary>, PeerError> {
        let link = self.inner().link(node)?;
        let _place = link.place().await?;
        let request = api::CompareRequest { partitions: partitions.iter().copied().map(u32::from).collect() };
        let summaries = within(inventories(self.inner().data(&link)).compare(request)).await?.partitions;
        if summaries.len() != partitions.len() {
            return Err(PeerError::nonsense("an answer is of fewer partitions than were asked for"));
        }
        let summary = |summary: api::PartitionSummary| {
            let (blobs, actions) = (inventory(summary.blobs?)?, inventory(summary.actions?)?);
            Some(PartitionSummary { blobs, actions })
        };
        let summaries: Option<Vec<PartitionSummary>> = summaries.into_iter().map(summary).collect();
        summaries.ok_or_else(|| PeerError::nonsense("an inventory is none"))
    }

    /// The next blobs that a node has of a partition, after this one.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn list_blobs(
        &self,
        node: NodeId,
        partition: u16,
        after: Option<Digest>,
    ) -> Result<Page<ListedBlob>, PeerError> {
        let link = self.inner().link(node)?;
        let _place = link.place().await?;
        let after = after.as_ref().map(digest_to_message);
        let request = api::ListBlobsRequest { partition: u32::from(partition), after };
        let answer = within(inventories(self.inner().data(&link)).list_blobs(request)).await?;
        let listed = |blob: api::ListedBlob| {
            let digest = digest_from_message(blob.digest.as_ref()?)?;
            Some(ListedBlob { digest, used_ms: blob.used_ms })
        };
        page(answer.blobs.into_iter().map(listed).collect(), answer.is_last)
    }

    /// The next results of actions that a node has of a partition, after this one.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn list_actions(
        &self,
        node: NodeId,
        partition: u16,
        after: Option<ActionName>,
    ) -> Result<Page<ListedAction>, PeerError> {
        let link = self.inner().link(node)?;
        let _place = link.place().await?;
        let after = after.map(|after| action_key(&after.instance, &after.action));
        let request = api::ListActionsRequest { partition: u32::from(partition), after };
        let answer = within(inventories(self.inner().data(&link)).list_actions(request)).await?;
        let listed = |action: api::ListedAction| {
            let (key, version) = (action.key?, action.version?);
            let action = digest_from_message(key.action.as_ref()?)?;
            let version = Version { time_ms: version.time_ms, count: version.count, node: NodeId(version.node_id) };
            Some(ListedAction { instance: key.instance_name, action, version })
        };
        page(answer.actions.into_iter().map(listed).collect(), answer.is_last)
    }
}

fn page<T>(entries: Option<Vec<T>>, is_last: bool) -> Result<Page<T>, PeerError> {
    match entries {
        // Nobody could go on after it.
        Some(entries) if entries.is_empty() && !is_last => Err(PeerError::nonsense("a page is empty and not the last")),
        Some(entries) => Ok(Page { entries, is_last }),
        None => Err(PeerError::nonsense("a list has an entry that is none")),
    }
}

fn inventory(inventory: api::Inventory) -> Option<Inventory> {
    Some(Inventory { count: inventory.count, xor: inventory.xor.as_ref().try_into().ok()? })
}

fn inventories(channel: Channel) -> InventoriesClient<Channel> {
    InventoriesClient::with_origin(channel, origin())
        .max_decoding_message_size(limits::PEER_MESSAGE_BYTES)
        .max_encoding_message_size(limits::PEER_MESSAGE_BYTES)
}
