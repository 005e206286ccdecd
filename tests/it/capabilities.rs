//! What the server says of itself must be what it does: clients configure themselves by it.

use anyhow::{Context as _, Result};
use casbah_tests::clients::asset::{FetchBlobRequest, FetchDirectoryRequest, PushBlobRequest, PushDirectoryRequest};
use casbah_tests::clients::bytestream::{QueryWriteStatusRequest, ReadRequest, WriteRequest};
use casbah_tests::clients::reapi::action_cache_client::ActionCacheClient;
use casbah_tests::clients::reapi::digest_function::Value as DigestFunction;
use casbah_tests::clients::reapi::symlink_absolute_path_strategy::Value as SymlinkStrategy;
use casbah_tests::clients::reapi::{
    BatchReadBlobsRequest, BatchUpdateBlobsRequest, Digest, FindMissingBlobsRequest, GetActionResultRequest,
    GetTreeRequest, SpliceBlobRequest, SplitBlobRequest, UpdateActionResultRequest,
};
use casbah_tests::clients::{Client, digest_of, refused_with};
use casbah_tests::deadline::within_deadline;
use casbah_tests::load::new_bytes;
use casbah_tests::process::{Config, Listener};
use casbah_tests::target::{Node, Target};
use tonic::{Code, Status};

#[tokio::test]
async fn sha256_is_listed_or_buildstream_would_disable_the_remote() -> Result<()> {
    let target = Target::start().await?;
    let capabilities = target.client().capabilities().await?;
    let cache = capabilities.cache_capabilities.context("no cache capabilities")?;
    assert!(cache.digest_functions.contains(&DigestFunction::Sha256.into()), "{cache:?}");
    Ok(())
}

/// "A value of 0 means no limit is set, although in practice there will always be a message size limitation".
#[tokio::test]
async fn the_batch_limit_is_said_and_leaves_room_for_a_grpc_message() -> Result<()> {
    let target = Target::start().await?;
    let cache = target.client().capabilities().await?.cache_capabilities.context("no cache capabilities")?;
    // 0 would mean "none", and clients then make batches as large as their own limits, 4 MiB by gRPC's default.
    assert!((1 << 20..=64 << 20).contains(&cache.max_batch_total_size_bytes), "{cache:?}");
    Ok(())
}

/// "Earliest non-deprecated RE API version supported", and the latest.
#[tokio::test]
async fn the_versions_are_those_that_clients_of_version_2_accept() -> Result<()> {
    let target = Target::start().await?;
    let capabilities = target.client().capabilities().await?;
    let low = capabilities.low_api_version.context("no lowest version")?;
    let high = capabilities.high_api_version.context("no highest version")?;
    assert_eq!((low.major, low.minor), (2, 0));
    assert_eq!(high.major, 2);
    assert!(high.minor >= low.minor);
    // Nothing that works is deprecated: Bazel warns of what lies between the two.
    assert!(capabilities.deprecated_api_version.is_none_or(|deprecated| deprecated == low));
    Ok(())
}

#[tokio::test]
async fn a_reader_is_told_that_it_may_not_update_and_a_writer_that_it_may() -> Result<()> {
    let config = Config::new()?.listener(&Listener::plaintext()).listener(&Listener::plaintext().allow(&["read"]));
    let server = config.start()?;
    for (place, may_update) in [(0, true), (1, false)] {
        let client = Client::plaintext(&server.endpoint(place).authority()).await?;
        let cache = client.capabilities().await?.cache_capabilities.context("no cache capabilities")?;
        let update = cache.action_cache_update_capabilities.context("nothing is said of updates")?;
        assert_eq!(update.update_enabled, may_update);
    }
    Ok(())
}

#[tokio::test]
async fn what_is_not_done_is_not_promised() -> Result<()> {
    let target = Target::start().await?;
    let cache = target.client().capabilities().await?.cache_capabilities.context("no cache capabilities")?;
    // What is least recently used goes first, whatever its priority.
    assert!(cache.cache_priority_capabilities.is_none_or(|priorities| priorities.priorities.is_empty()));
    // Links are stored as they are.
    assert_eq!(cache.symlink_absolute_path_strategy, i32::from(SymlinkStrategy::Allowed));
    Ok(())
}

/// `max_cas_blob_size_bytes`: "a larger one is an INVALID_ARGUMENT".
#[tokio::test]
async fn a_blob_above_the_largest_size_is_refused_before_its_bytes_have_come() -> Result<()> {
    let node = Node::start(&["store.capacity=20MB"])?;
    let client = node.client().await?;
    let cache = client.capabilities().await?.cache_capabilities.context("no cache capabilities")?;
    let largest = cache.max_cas_blob_size_bytes;
    assert_eq!(largest, 20_000_000);
    for size_bytes in [largest + 1, i64::MAX] {
        let digest = Digest { size_bytes, ..digest_of(b"some") };
        let upload = client.begin_upload();
        upload.send_bytes(&client.upload_name(&digest), 0, b"some", false).await;
        // The client's side stays open.
        let answer = within_deadline("a refusal", upload.answer()).await?;
        refused_with(Code::InvalidArgument, answer)?;
        let answers = client.batch_update(vec![(digest.clone(), new_bytes(10))]).await?;
        let code = answers.first().and_then(|answer| answer.status.as_ref()).map(|status| status.code);
        assert_eq!(code, Some(Code::InvalidArgument as i32));
        assert!(!client.has(&digest).await?);
    }
    Ok(())
}

/// Without `exec_enabled` a client does not try to execute.
#[tokio::test]
async fn no_execution_is_offered() -> Result<()> {
    let target = Target::start().await?;
    let execution = target.client().capabilities().await?.execution_capabilities;
    assert!(execution.is_none_or(|execution| !execution.exec_enabled));
    Ok(())
}

#[tokio::test]
async fn instance_names_with_slashes_are_served_like_any_other() -> Result<()> {
    let target = Target::start().await?;
    for instance in ["main", "team/a", "team/a/b-c.d_e"] {
        let client = target.client().with_instance(instance);
        client.capabilities().await?.cache_capabilities.with_context(|| format!("none for {instance}"))?;
        let blob = new_bytes(1000);
        let digest = client.upload(blob.clone()).await?;
        assert!(client.has(&digest).await?, "{instance}");
        assert_eq!(client.download(&digest).await?, blob, "{instance}");
        assert_eq!(client.batch_read(&[digest]).await?[0].data, blob, "{instance}");
    }
    Ok(())
}

/// "Servers SHOULD reject blob uploads over the `max_cas_blob_size_bytes` limit with response code `INVALID_ARGUMENT`".
#[tokio::test]
async fn a_blob_over_the_advertised_size_is_refused_before_its_bytes_come() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let cache = client.capabilities().await?.cache_capabilities.context("no cache capabilities")?;
    // 0 means "no limit".
    if let Some(size_bytes) = cache.max_cas_blob_size_bytes.checked_add(1).filter(|size| *size > 1) {
        let blob = new_bytes(1000);
        let digest = Digest { size_bytes, ..digest_of(&blob) };
        let upload = client.begin_upload();
        upload.send_bytes(&client.upload_name(&digest), 0, &blob, false).await;
        // The client's side stays open: nothing more is waited for.
        let answer = within_deadline("a refusal", upload.answer()).await?;
        refused_with(Code::InvalidArgument, answer)?;
    }
    Ok(())
}

/// What is served answers something else than UNIMPLEMENTED to a request without anything in it. Of SplitBlob and
/// SpliceBlob: "Servers which implement this functionality MUST declare that they support it", and no others.
#[tokio::test]
async fn no_call_of_these_services_is_unimplemented_unless_capabilities_say_so() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let cache = client.capabilities().await?.cache_capabilities.context("no cache capabilities")?;
    let code = |answer: Result<(), Status>| answer.map_or_else(|status| status.code(), |()| Code::Ok);
    let (mut cas, mut bytestream) = (client.cas(), client.bytestream());
    let mut actions = ActionCacheClient::new(client.channel());
    let (mut fetch, mut push) = (client.fetch(), client.push());
    let write = tokio_stream::iter([WriteRequest::default()]);
    let answers = [
        ("FindMissingBlobs", code(cas.find_missing_blobs(FindMissingBlobsRequest::default()).await.map(drop))),
        ("BatchUpdateBlobs", code(cas.batch_update_blobs(BatchUpdateBlobsRequest::default()).await.map(drop))),
        ("BatchReadBlobs", code(cas.batch_read_blobs(BatchReadBlobsRequest::default()).await.map(drop))),
        ("GetTree", code(cas.get_tree(GetTreeRequest::default()).await.map(drop))),
        ("Read", code(bytestream.read(ReadRequest::default()).await.map(drop))),
        ("Write", code(bytestream.write(write).await.map(drop))),
        ("QueryWriteStatus", code(bytestream.query_write_status(QueryWriteStatusRequest::default()).await.map(drop))),
        ("GetActionResult", code(actions.get_action_result(GetActionResultRequest::default()).await.map(drop))),
        (
            "UpdateActionResult",
            code(actions.update_action_result(UpdateActionResultRequest::default()).await.map(drop)),
        ),
        ("FetchBlob", code(fetch.fetch_blob(FetchBlobRequest::default()).await.map(drop))),
        ("FetchDirectory", code(fetch.fetch_directory(FetchDirectoryRequest::default()).await.map(drop))),
        ("PushBlob", code(push.push_blob(PushBlobRequest::default()).await.map(drop))),
        ("PushDirectory", code(push.push_directory(PushDirectoryRequest::default()).await.map(drop))),
    ];
    for (call, code) in answers {
        assert!([Code::Ok, Code::InvalidArgument].contains(&code), "{call}: {code:?}");
    }
    let split = code(cas.split_blob(SplitBlobRequest::default()).await.map(drop));
    let splice = code(cas.splice_blob(SpliceBlobRequest::default()).await.map(drop));
    for (call, offered, code) in
        [("SplitBlob", cache.split_blob_support, split), ("SpliceBlob", cache.splice_blob_support, splice)]
    {
        assert_eq!(code, if offered { Code::InvalidArgument } else { Code::Unimplemented }, "{call}");
    }
    Ok(())
}
