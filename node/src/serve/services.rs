//! All services over one store and one index, as one route table.

use std::sync::Arc;
use std::time::Duration;

use casbah_proto::build::bazel::remote::asset::v1::fetch_server::FetchServer;
use casbah_proto::build::bazel::remote::asset::v1::push_server::PushServer;
use casbah_proto::build::bazel::remote::execution::v2::action_cache_server::ActionCacheServer;
use casbah_proto::build::bazel::remote::execution::v2::capabilities_server::CapabilitiesServer;
use casbah_proto::build::bazel::remote::execution::v2::content_addressable_storage_server::ContentAddressableStorageServer;
use casbah_proto::google::bytestream::byte_stream_server::ByteStreamServer;
use tonic::server::NamedService as _;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tonic_reflection::server::{v1, v1alpha};

use crate::config::limits::PEER_MEMORY_SHARE;
use crate::config::{InstanceNames, LimitsConfig};
use crate::index::{AssetIndex, SplitIndex};
use crate::observe::labels::Traffic;
use crate::route::{Actions, Blobs};
use crate::serve::action_cache::ActionCache;
use crate::serve::admission::{Admission, Bounds as AdmissionBounds, Door, Entry};
use crate::serve::asset_fetch::Fetch;
use crate::serve::asset_push::Push;
use crate::serve::bytestream::ByteStream;
use crate::serve::bytestream_read::ByteStreamRead;
use crate::serve::capabilities::Capabilities;
use crate::serve::cas::{Cas, MAX_MESSAGE_BYTES};
use crate::serve::chunks::Chunks;
use crate::serve::completeness::Completeness;
use crate::serve::compression::Compression;
use crate::serve::instances::Instances;

/// What the services work on.
pub struct Parts {
    /// The blobs.
    pub blobs: Blobs,
    /// The assets.
    pub assets: AssetIndex,
    /// The results of actions.
    pub actions: Actions,
    /// The chunks of blobs.
    pub splits: SplitIndex,
    /// Bytes that the store may take.
    pub capacity_bytes: u64,
    /// How long a used blob stays at least.
    pub retention_floor: Duration,
    /// The instance names that are served.
    pub instances: InstanceNames,
    /// How much is taken on at once.
    pub limits: LimitsConfig,
    /// Whether there are other nodes.
    pub has_peers: bool,
}

/// The services, and who is let in to them.
pub type Served = Entry<Routes>;

/// The names under which health is asked for: of the whole, and of each service.
pub const HEALTH_NAMES: [&str; 7] = [
    "",
    CapabilitiesServer::<Capabilities>::NAME,
    ContentAddressableStorageServer::<Cas>::NAME,
    ActionCacheServer::<ActionCache>::NAME,
    ByteStreamServer::<ByteStream>::NAME,
    FetchServer::<Fetch>::NAME,
    PushServer::<Push>::NAME,
];

/// The route table, and the one who says whether the services are well.
pub async fn services(parts: Parts) -> (Served, HealthReporter) {
    let Parts { blobs, assets, actions, splits, capacity_bytes, retention_floor, instances, limits, has_peers } = parts;
    let instances = Instances::new(instances);
    let completeness = Arc::new(Completeness::new(blobs.clone(), retention_floor));
    let capabilities =
        CapabilitiesServer::new(Capabilities { max_blob_bytes: capacity_bytes, instances: instances.clone() });
    let chunks = Chunks::new(blobs.clone(), splits, capacity_bytes);
    let compression = Compression::new();
    let cas = Cas { blobs: blobs.clone(), instances: instances.clone(), chunks, compression: compression.clone() };
    let cas = ContentAddressableStorageServer::new(cas)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let cache = ActionCache {
        actions,
        blobs: blobs.clone(),
        completeness: Arc::clone(&completeness),
        instances: instances.clone(),
    };
    let action_cache = ActionCacheServer::new(cache).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let bytestream = ByteStreamRead::new(ByteStream::new(blobs, compression, capacity_bytes, instances.clone()));
    let fetch = Fetch { index: assets.clone(), completeness: Arc::clone(&completeness), instances: instances.clone() };
    let fetch = FetchServer::new(fetch).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let push =
        PushServer::new(Push { index: assets, completeness, instances }).max_decoding_message_size(MAX_MESSAGE_BYTES);

    let (reporter, health) = tonic_health::server::health_reporter();
    for name in HEALTH_NAMES {
        reporter.set_service_status(name, ServingStatus::Serving).await;
    }

    let mut routes = Routes::builder();
    routes.add_service(health).add_service(reflection_v1()).add_service(reflection_v1alpha());
    routes.add_service(capabilities).add_service(cas).add_service(action_cache).add_service(bytestream);
    routes.add_service(fetch).add_service(push);
    (entry(routes.routes(), &limits, has_peers), reporter)
}

fn entry(routes: Routes, limits: &LimitsConfig, has_peers: bool) -> Served {
    // What is other nodes' is asked for by `peer::services`.
    let of_peers = if has_peers { limits.memory_bytes / PEER_MEMORY_SHARE } else { 0 };
    let LimitsConfig { memory_bytes, waiting, patience, stall } = *limits;
    let bounds = AdmissionBounds { memory_bytes: memory_bytes - of_peers, waiting, patience };
    Entry::new(routes, Door::Clients { has_peers }, Admission::new(Traffic::Clients, bounds), stall)
}

/// What describes the services, to those whom their listener lets ask.
fn reflection_v1() -> v1::ServerReflectionServer<impl v1::ServerReflection> {
    reflection().build_v1().expect("descriptors that were compiled in can be read")
}

/// The same for older clients.
fn reflection_v1alpha() -> v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection> {
    reflection().build_v1alpha().expect("descriptors that were compiled in can be read")
}

/// Of the services that are served: the descriptors have Execution as well.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    let builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(casbah_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name("grpc.health.v1.Health");
    HEALTH_NAMES
        .into_iter()
        .filter(|name| !name.is_empty())
        .fold(builder, |builder, name| builder.with_service_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptors_can_be_read() {
        let _built = (reflection_v1(), reflection_v1alpha());
    }
}
