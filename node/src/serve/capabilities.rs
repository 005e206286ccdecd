//! Capabilities: what this server offers to the one who asks.

use casbah_cluster::chunking;
use casbah_cluster::digest::DigestFunction;
use casbah_proto::build::bazel::remote::execution::v2 as api;
use casbah_proto::build::bazel::semver::SemVer;
use tonic::{Request, Response, Status};

use crate::config::Services;
use crate::serve::access::Access;
use crate::serve::cas::MAX_BATCH_BYTES;
use crate::serve::compression::COMPRESSORS;
use crate::serve::instances::Instances;

/// The Capabilities service.
pub struct Capabilities {
    /// The largest blob that the store can hold.
    pub max_blob_bytes: u64,
    /// The instances that are served.
    pub instances: Instances,
}

#[tonic::async_trait]
impl api::capabilities_server::Capabilities for Capabilities {
    async fn get_capabilities(
        &self,
        request: Request<api::GetCapabilitiesRequest>,
    ) -> Result<Response<api::ServerCapabilities>, Status> {
        let access = Access::of(&request)?;
        self.instances.check(&request.get_ref().instance_name)?;
        let versions = api::ServerCapabilities {
            // Nothing that works is deprecated.
            deprecated_api_version: Some(version(2, 0)),
            low_api_version: Some(version(2, 0)),
            high_api_version: Some(version(2, 3)),
            ..Default::default()
        };
        if access.services == Services::Index {
            // No cache at all: a client that takes this address for one is told so, before it misses its blobs.
            return Ok(Response::new(versions));
        }
        let compressors: Vec<i32> = COMPRESSORS.iter().map(|compressor| *compressor as i32).collect();
        let functions = DigestFunction::ALL.iter().map(|function| i32::from(function.number()));
        let cache = api::CacheCapabilities {
            digest_functions: functions.collect(),
            action_cache_update_capabilities: Some(api::ActionCacheUpdateCapabilities {
                update_enabled: access.permissions.write,
            }),
            max_batch_total_size_bytes: i64::try_from(MAX_BATCH_BYTES).unwrap_or(i64::MAX),
            supported_compressors: compressors.clone(),
            supported_batch_update_compressors: compressors,
            max_cas_blob_size_bytes: i64::try_from(self.max_blob_bytes).unwrap_or(i64::MAX),
            split_blob_support: access.permissions.read,
            splice_blob_support: access.permissions.write,
            fast_cdc_2020_params: Some(api::FastCdc2020Params {
                avg_chunk_size_bytes: chunking::AVERAGE_CHUNK_BYTES as u64,
                seed: chunking::SEED,
            }),
            // What a link points to is the client's business: it is stored and not followed.
            symlink_absolute_path_strategy: api::symlink_absolute_path_strategy::Value::Allowed as i32,
            // Priorities are not looked at: what is least recently used goes first.
            cache_priority_capabilities: None,
            ..Default::default()
        };
        Ok(Response::new(api::ServerCapabilities { cache_capabilities: Some(cache), ..versions }))
    }
}

fn version(major: i32, minor: i32) -> SemVer {
    SemVer { major, minor, ..Default::default() }
}
