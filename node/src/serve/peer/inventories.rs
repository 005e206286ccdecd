//! What this node holds, for other nodes.

use std::sync::Arc;

use bytes::Bytes;
use casbah_cluster::inventory::{ActionName, Inventory, ListedAction, ListedBlob};
use casbah_cluster::ring::PARTITIONS;
use casbah_proto::peer::v1 as api;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::{Request, Response, Status};

use crate::config::limits;
use crate::forward::{digest_from_message, digest_to_message};
use crate::index::ActionIndex;
use crate::serve::status_map;
use crate::store::Store;

/// Pages that are made at once; others wait. They are for repair, and leave room for what clients ask.
const PAGES_AT_ONCE: usize = 2;

/// The Inventories service.
pub(super) struct Inventories {
    store: Store,
    results: ActionIndex,
    pages: Arc<Semaphore>,
}

// === impl Inventories ===

impl Inventories {
    /// Of this store and these results.
    pub(super) fn new(store: Store, results: ActionIndex) -> Inventories {
        Inventories { store, results, pages: Arc::new(Semaphore::new(PAGES_AT_ONCE)) }
    }

    /// To be held while a page is made.
    async fn place(&self) -> Result<SemaphorePermit<'_>, Status> {
        self.pages.acquire().await.map_err(|_closed| status_map::unavailable("the node is stopping"))
    }
}

#[tonic::async_trait]
impl api::inventories_server::Inventories for Inventories {
    async fn compare(&self, request: Request<api::CompareRequest>) -> Result<Response<api::CompareResponse>, Status> {
        let asked = request.into_inner().partitions;
        if asked.len() > PARTITIONS {
            return Err(Status::invalid_argument("more partitions are asked for than there are"));
        }
        let asked = asked.into_iter().map(partition).collect::<Result<Vec<usize>, Status>>()?;
        let summary = |partition: usize| {
            let actions = self.results.inventory(partition);
            let actions =
                actions.ok_or_else(|| status_map::unavailable("results of actions are still being counted"))?;
            let blobs = self.store.inventory(partition);
            Ok(api::PartitionSummary { blobs: Some(inventory(blobs)), actions: Some(inventory(actions)) })
        };
        let partitions = asked.into_iter().map(summary).collect::<Result<Vec<_>, Status>>()?;
        Ok(Response::new(api::CompareResponse { partitions }))
    }

    async fn list_blobs(
        &self,
        request: Request<api::ListBlobsRequest>,
    ) -> Result<Response<api::ListBlobsResponse>, Status> {
        let api::ListBlobsRequest { partition: number, after } = request.into_inner();
        let partition = partition(number)?;
        let after = match &after {
            Some(after) => Some(digest_from_message(after).ok_or_else(no_digest)?),
            None => None,
        };
        let _place = self.place().await?;
        let page = self.store.list(partition, after.as_ref(), limits::PEER_LIST_MAX).await;
        let page = page.map_err(|error| status_map::listing(&error))?;
        let listed = |blob: &ListedBlob| {
            let digest = Some(digest_to_message(&blob.digest));
            api::ListedBlob { digest, used_ms: blob.used_ms }
        };
        let blobs = page.entries.iter().map(listed).collect();
        Ok(Response::new(api::ListBlobsResponse { blobs, is_last: page.is_last }))
    }

    async fn list_actions(
        &self,
        request: Request<api::ListActionsRequest>,
    ) -> Result<Response<api::ListActionsResponse>, Status> {
        let api::ListActionsRequest { partition: number, after } = request.into_inner();
        let partition = partition(number)?;
        let after = match after {
            Some(key) => {
                let action = key.action.as_ref().and_then(digest_from_message).ok_or_else(no_digest)?;
                Some(ActionName { instance: key.instance_name, action })
            }
            None => None,
        };
        let _place = self.place().await?;
        let (results, bounds) = (self.results.clone(), (limits::PEER_LIST_MAX, limits::PEER_LIST_BYTES));
        let page = tokio::task::spawn_blocking(move || results.list(partition, after.as_ref(), bounds)).await;
        let page = page.map_err(|_panicked| Status::internal("a list could not be made"))?;
        let page = page.map_err(|error| status_map::index(&error))?;
        let listed = |listed: ListedAction| {
            let action = Some(digest_to_message(&listed.action));
            let (time_ms, count, node_id) = (listed.version.time_ms, listed.version.count, listed.version.node.0);
            let version = Some(api::Version { time_ms, count, node_id });
            api::ListedAction { key: Some(api::ActionKey { instance_name: listed.instance, action }), version }
        };
        let actions = page.entries.into_iter().map(listed).collect();
        Ok(Response::new(api::ListActionsResponse { actions, is_last: page.is_last }))
    }
}

fn partition(number: u32) -> Result<usize, Status> {
    let partition = usize::try_from(number).ok().filter(|partition| *partition < PARTITIONS);
    partition.ok_or_else(|| Status::invalid_argument("there is no such partition"))
}

fn inventory(inventory: Inventory) -> api::Inventory {
    api::Inventory { count: inventory.count, xor: Bytes::copy_from_slice(&inventory.xor) }
}

fn no_digest() -> Status {
    Status::invalid_argument("the list is to go on after a digest that is none")
}
