//! Remote Asset Push: takes in what is whole, and answers when it is on disk.

use std::sync::Arc;

use casbah_cluster::asset::{AssetKey, AssetKind, AssetRecord, MAX_REFERENCES};
use casbah_cluster::digest::{Digest, DigestFunction};
use casbah_proto::build::bazel::remote::asset::v1 as api;
use casbah_proto::build::bazel::remote::execution::v2::Digest as DigestMessage;
use tonic::{Request, Response, Status};

use crate::index::{AssetIndex, now};
use crate::serve::access::Access;
use crate::serve::cas::function_of;
use crate::serve::completeness::Completeness;
use crate::serve::instances::Instances;
use crate::serve::{asset_fetch, asset_request, status_map};

/// The Push service.
pub struct Push {
    /// What becomes known.
    pub index: AssetIndex,
    /// Whether it is whole.
    pub completeness: Arc<Completeness>,
    /// The instances that are served.
    pub instances: Instances,
}

// === impl Push ===

impl Push {
    async fn push(
        &self,
        kind: AssetKind,
        keys: Vec<AssetKey>,
        record: AssetRecord,
        checks: bool,
    ) -> Result<(), Status> {
        if checks {
            let whole = asset_fetch::check(&self.completeness, kind, &record).await;
            whole.map_err(|error| status_map::incomplete(&error))?;
        }
        self.index.push(&keys, &record).await.map_err(|error| status_map::index(&error))
    }
}

fn record(
    function: DigestFunction,
    target: Digest,
    expire_at: Option<&prost_types::Timestamp>,
    blobs: &[DigestMessage],
    directories: &[DigestMessage],
) -> Result<AssetRecord, Status> {
    let references = blobs.len() + directories.len();
    if references > MAX_REFERENCES {
        return Err(Status::invalid_argument(format!(
            "the asset refers to {references} blobs and directories where {MAX_REFERENCES} are allowed"
        )));
    }
    Ok(AssetRecord {
        target,
        referenced_blobs: asset_request::digests(function, blobs)?,
        referenced_directories: asset_request::digests(function, directories)?,
        pushed_at: now(),
        expires_at: asset_request::moment(expire_at, "expire_at")?,
    })
}

#[tonic::async_trait]
impl api::push_server::Push for Push {
    async fn push_blob(
        &self,
        request: Request<api::PushBlobRequest>,
    ) -> Result<Response<api::PushBlobResponse>, Status> {
        let checks = Access::of(&request)?.checks_assets();
        let request = request.into_inner();
        self.instances.check(&request.instance_name)?;
        let kind = AssetKind::Blob;
        let function = function_of(request.digest_function, request.blob_digest.as_ref())?;
        let keys = asset_request::keys(&request.instance_name, kind, function, &request.uris, &request.qualifiers)?;
        let target = asset_request::target(function, request.blob_digest.as_ref(), "blob_digest")?;
        let expire_at = request.expire_at.as_ref();
        let (blobs, directories) = (&request.references_blobs, &request.references_directories);
        let record = record(function, target, expire_at, blobs, directories)?;
        self.push(kind, keys, record, checks).await?;
        Ok(Response::new(api::PushBlobResponse {}))
    }

    async fn push_directory(
        &self,
        request: Request<api::PushDirectoryRequest>,
    ) -> Result<Response<api::PushDirectoryResponse>, Status> {
        let checks = Access::of(&request)?.checks_assets();
        let request = request.into_inner();
        self.instances.check(&request.instance_name)?;
        let kind = AssetKind::Directory;
        let function = function_of(request.digest_function, request.root_directory_digest.as_ref())?;
        let keys = asset_request::keys(&request.instance_name, kind, function, &request.uris, &request.qualifiers)?;
        let target = asset_request::target(function, request.root_directory_digest.as_ref(), "root_directory_digest")?;
        let expire_at = request.expire_at.as_ref();
        let (blobs, directories) = (&request.references_blobs, &request.references_directories);
        let record = record(function, target, expire_at, blobs, directories)?;
        self.push(kind, keys, record, checks).await?;
        Ok(Response::new(api::PushDirectoryResponse {}))
    }
}
