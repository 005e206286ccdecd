//! What the log says of calls: who, for which build, and how it ended.

use anyhow::{Context as _, Result, ensure};
use casbah_tests::clients::reapi::{FindMissingBlobsRequest, RequestMetadata, ToolDetails};
use casbah_tests::clients::{Client, digest_of, refused_with};
use casbah_tests::load::new_bytes;
use casbah_tests::target::Node;
use prost::Message as _;
use tonic::metadata::{BinaryMetadataValue, MetadataValue};
use tonic::{Code, Request};

const METADATA: &str = "build.bazel.remote.execution.v2.requestmetadata-bin";

fn metadata() -> BinaryMetadataValue {
    let metadata = RequestMetadata {
        tool_details: Some(ToolDetails { tool_name: "bazel".into(), tool_version: "9.1.0".into() }),
        action_id: "action-1".into(),
        tool_invocation_id: "invocation-1".into(),
        correlated_invocations_id: "correlated-1".into(),
        action_mnemonic: "CppCompile".into(),
        target_id: "//a:b".into(),
        ..Default::default()
    };
    MetadataValue::from_bytes(&metadata.encode_to_vec())
}

async fn find_with(client: &Client, metadata: BinaryMetadataValue) -> Result<()> {
    let mut request = Request::new(FindMissingBlobsRequest {
        instance_name: "team/a".into(),
        blob_digests: vec![digest_of(b"some")],
        ..Default::default()
    });
    request.metadata_mut().insert_bin(METADATA, metadata);
    client.cas().find_missing_blobs(request).await?;
    Ok(())
}

#[tokio::test]
async fn at_debug_each_call_is_one_line_that_says_for_which_build_it_was() -> Result<()> {
    let node = Node::start(&["log.level=debug"])?;
    let client = node.client().await?;
    find_with(&client, metadata()).await?;
    let line = node.server().wait_for_stderr("FindMissingBlobs")?;
    for part in [
        "DEBUG",
        "method=\"/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs\"",
        "who=\"anyone\"",
        "instance=\"team/a\"",
        "tool_name=\"bazel\"",
        "tool_version=\"9.1.0\"",
        "action_id=\"action-1\"",
        "tool_invocation_id=\"invocation-1\"",
        "correlated_invocations_id=\"correlated-1\"",
        "action_mnemonic=\"CppCompile\"",
        "target_id=\"//a:b\"",
        "code=Ok",
        "duration_us=",
    ] {
        ensure!(line.contains(part), "no {part}: {line}");
    }
    // Streams too, with the instance from their resource names, and whatever ends them.
    let client = client.with_instance("team/b");
    let digest = client.upload(new_bytes(5 << 20)).await?;
    let line = node.server().wait_for_stderr("ByteStream/Write")?;
    ensure!(line.contains("instance=\"team/b\"") && line.contains("code=Ok"), "{line}");
    client.download(&digest).await?;
    let line = node.server().wait_for_stderr("ByteStream/Read")?;
    ensure!(line.contains("instance=\"team/b\"") && line.contains("code=Ok"), "{line}");
    refused_with(Code::NotFound, client.download(&digest_of(&new_bytes(10))).await)?;
    node.server().wait_for_stderr("code=NotFound")?;
    Ok(())
}

#[tokio::test]
async fn json_has_the_same_fields() -> Result<()> {
    let node = Node::start(&["log.level=debug", "log.format=json"])?;
    find_with(&node.client().await?, metadata()).await?;
    let line = node.server().wait_for_stderr("FindMissingBlobs")?;
    let line: serde_json::Value = serde_json::from_str(&line).with_context(|| line.clone())?;
    let text = |pointer: &str| line.pointer(pointer).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
    assert_eq!(
        (text("/code"), text("/span/action_id"), text("/span/instance")),
        ("Ok".into(), "action-1".into(), "team/a".into())
    );
    ensure!(line.pointer("/duration_us").is_some_and(serde_json::Value::is_u64), "{line}");
    Ok(())
}

#[tokio::test]
async fn calls_and_clients_that_say_nonsense_of_themselves_are_no_news() -> Result<()> {
    let node = Node::start(&[])?;
    let client = node.client().await?;
    find_with(&client, metadata()).await?;
    find_with(&client, MetadataValue::from_bytes(&[0xff; 100])).await?;
    find_with(&client, MetadataValue::from_bytes(&[0x0a; 40_000])).await?;
    refused_with(Code::NotFound, client.download(&digest_of(&new_bytes(10))).await)?;
    let log = node.server().stderr();
    ensure!(!log.contains("FindMissingBlobs") && !log.contains("code="), "{log}");
    Ok(())
}
