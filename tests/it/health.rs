//! grpc.health.v1, for load balancers and probes.

use anyhow::Result;
use casbah_tests::clients::refused_with;
use casbah_tests::target::Target;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

const SERVICES: [&str; 7] = [
    "",
    "build.bazel.remote.execution.v2.Capabilities",
    "build.bazel.remote.execution.v2.ContentAddressableStorage",
    "build.bazel.remote.execution.v2.ActionCache",
    "google.bytestream.ByteStream",
    "build.bazel.remote.asset.v1.Fetch",
    "build.bazel.remote.asset.v1.Push",
];

#[tokio::test]
async fn a_running_server_serves_and_so_does_each_of_its_services() -> Result<()> {
    let target = Target::start().await?;
    let mut health = HealthClient::new(target.client().channel());
    for service in SERVICES {
        let answer = health.check(HealthCheckRequest { service: service.to_owned() }).await?.into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service:?}");
    }
    Ok(())
}

/// "If the service name is not registered, the server returns a NOT_FOUND GRPC status."
#[tokio::test]
async fn a_service_that_does_not_exist_is_not_found() -> Result<()> {
    let target = Target::start().await?;
    let mut health = HealthClient::new(target.client().channel());
    let request = HealthCheckRequest { service: "build.bazel.remote.execution.v2.Nonsense".to_owned() };
    refused_with(Code::NotFound, health.check(request).await)?;
    Ok(())
}

/// "The server will immediately send back a message indicating the current serving status."
#[tokio::test]
async fn a_watcher_is_told_the_state_at_once() -> Result<()> {
    let target = Target::start().await?;
    let mut health = HealthClient::new(target.client().channel());
    let mut states = health.watch(HealthCheckRequest::default()).await?.into_inner();
    assert_eq!(states.message().await?.map(|state| state.status()), Some(ServingStatus::Serving));
    Ok(())
}
