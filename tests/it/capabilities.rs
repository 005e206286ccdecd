//! What the server says of itself must be what it does: clients configure themselves by it.

use anyhow::{Context as _, Result};
use casbah_tests::clients::reapi::digest_function::Value as DigestFunction;
use casbah_tests::load::new_bytes;
use casbah_tests::target::Target;

#[tokio::test]
async fn sha256_is_listed_or_buildstream_would_disable_the_remote() -> Result<()> {
    let target = Target::start().await?;
    let capabilities = target.client().capabilities().await?;
    let cache = capabilities.cache_capabilities.context("no cache capabilities")?;
    assert!(cache.digest_functions.contains(&DigestFunction::Sha256.into()), "{cache:?}");
    Ok(())
}

#[tokio::test]
async fn the_batch_limit_is_said_and_leaves_room_for_a_grpc_message() -> Result<()> {
    let target = Target::start().await?;
    let cache = target.client().capabilities().await?.cache_capabilities.context("no cache capabilities")?;
    // 0 would mean "none", and clients then make batches as large as their own limits, 4 MiB by gRPC's default.
    assert!((1 << 20..=64 << 20).contains(&cache.max_batch_total_size_bytes), "{cache:?}");
    Ok(())
}

#[tokio::test]
async fn the_versions_are_those_that_clients_of_version_2_accept() -> Result<()> {
    let target = Target::start().await?;
    let capabilities = target.client().capabilities().await?;
    let low = capabilities.low_api_version.context("no lowest version")?;
    let high = capabilities.high_api_version.context("no highest version")?;
    assert_eq!((low.major, low.minor), (2, 0));
    assert_eq!(high.major, 2);
    assert!(high.minor >= low.minor);
    Ok(())
}

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
