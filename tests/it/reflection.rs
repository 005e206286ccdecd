//! gRPC reflection: where it is offered, and to whom.

use anyhow::{Context as _, Result, bail};
use casbah_tests::clients::{Client, refused_with};
use casbah_tests::process::{Config, Listener};
use casbah_tests::target::Target;
use prost::Message as _;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
use tonic_reflection::pb::v1alpha;

async fn ask(channel: Channel, question: MessageRequest) -> Result<ServerReflectionResponse, Status> {
    let request = ServerReflectionRequest { message_request: Some(question), ..Default::default() };
    let requests = tokio_stream::once(request);
    let mut answers = ServerReflectionClient::new(channel).server_reflection_info(requests).await?.into_inner();
    answers.message().await?.ok_or_else(|| Status::unknown("no answer"))
}

async fn list(channel: Channel) -> Result<Vec<String>, Status> {
    match ask(channel, MessageRequest::ListServices(String::new())).await?.message_response {
        Some(MessageResponse::ListServicesResponse(list)) => {
            Ok(list.service.into_iter().map(|service| service.name).collect())
        }
        other => Err(Status::unknown(format!("{other:?}"))),
    }
}

#[tokio::test]
async fn the_services_that_are_served_are_listed_and_no_others() -> Result<()> {
    let config = Config::new()?.listener(&Listener::plaintext().with("reflection = true").allow(&["read"]));
    let server = config.start()?;
    let client = Client::plaintext(&server.endpoint(0).authority()).await?;
    let mut services = list(client.channel()).await?;
    services.retain(|name| !name.starts_with("grpc.reflection."));
    services.sort();
    let expected = [
        "build.bazel.remote.asset.v1.Fetch",
        "build.bazel.remote.asset.v1.Push",
        "build.bazel.remote.execution.v2.ActionCache",
        "build.bazel.remote.execution.v2.Capabilities",
        "build.bazel.remote.execution.v2.ContentAddressableStorage",
        "google.bytestream.ByteStream",
        "grpc.health.v1.Health",
    ];
    assert_eq!(services, expected);
    // With their messages, and those of other packages that they need.
    for (symbol, file) in [
        ("google.bytestream.ByteStream", "google/bytestream/bytestream.proto"),
        ("build.bazel.remote.execution.v2.Digest", "build/bazel/remote/execution/v2/remote_execution.proto"),
        ("google.protobuf.Timestamp", "google/protobuf/timestamp.proto"),
    ] {
        let answer = ask(client.channel(), MessageRequest::FileContainingSymbol(symbol.into())).await?;
        let Some(MessageResponse::FileDescriptorResponse(files)) = answer.message_response else {
            bail!("{symbol}: {answer:?}");
        };
        let bytes = files.file_descriptor_proto.first().context("a file")?;
        assert_eq!(prost_types::FileDescriptorProto::decode(bytes.as_slice())?.name(), file);
    }
    Ok(())
}

#[tokio::test]
async fn the_older_version_is_answered_as_well() -> Result<()> {
    let config = Config::new()?.listener(&Listener::plaintext().with("reflection = true"));
    let server = config.start()?;
    let client = Client::plaintext(&server.endpoint(0).authority()).await?;
    let question = v1alpha::server_reflection_request::MessageRequest::ListServices(String::new());
    let request = v1alpha::ServerReflectionRequest { message_request: Some(question), ..Default::default() };
    let mut reflection = v1alpha::server_reflection_client::ServerReflectionClient::new(client.channel());
    let mut answers = reflection.server_reflection_info(tokio_stream::once(request)).await?.into_inner();
    let answer = answers.message().await?.context("an answer")?;
    assert!(format!("{answer:?}").contains("google.bytestream.ByteStream"), "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn it_is_offered_where_that_is_configured_and_to_readers_alone() -> Result<()> {
    refused_with(Code::Unimplemented, list(Target::start().await?.client().channel()).await)?;
    let writers = Listener::plaintext().with("reflection = true").allow(&["write"]);
    let config = Config::new()?.listener(&Listener::plaintext().with("reflection = false")).listener(&writers);
    let server = config.start()?;
    let client = Client::plaintext(&server.endpoint(0).authority()).await?;
    refused_with(Code::Unimplemented, list(client.channel()).await)?;
    let writer = Client::plaintext(&server.endpoint(1).authority()).await?;
    refused_with(Code::PermissionDenied, list(writer.channel()).await)?;
    Ok(())
}
