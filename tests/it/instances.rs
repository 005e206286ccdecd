//! Instances: names with slashes, kept apart where they must be, and refused where they are not known.

use anyhow::{Context as _, Result, ensure};
use casbah_tests::clients::reapi::action_cache_client::ActionCacheClient;
use casbah_tests::clients::reapi::{
    ActionResult, BatchReadBlobsRequest, Digest, GetActionResultRequest, GetTreeRequest, SpliceBlobRequest,
    SplitBlobRequest, UpdateActionResultRequest,
};
use casbah_tests::clients::{AssetName, Client, Tree, digest_of, refused_with, write_requests};
use casbah_tests::load::new_bytes;
use casbah_tests::process::{Config, Listener, Server};
use casbah_tests::target::Target;
use tonic::{Code, Status};

const LISTED: &str = "[{ name = \"main\" }, { name = \"team/a\" }]";

fn with_listed_instances() -> Result<(Config, Server)> {
    let config = Config::new()?.set("instance", LISTED).listener(&Listener::plaintext());
    let server = config.start()?;
    Ok((config, server))
}

async fn client_of(server: &Server) -> Result<Client> {
    Client::plaintext(&server.endpoint(0).authority()).await
}

async fn update(client: &Client, action: &Digest, exit_code: i32) -> Result<(), Status> {
    let request = UpdateActionResultRequest {
        instance_name: client.instance().to_owned(),
        action_digest: Some(action.clone()),
        action_result: Some(ActionResult { exit_code, ..Default::default() }),
        ..Default::default()
    };
    ActionCacheClient::new(client.channel()).update_action_result(request).await.map(drop)
}

async fn exit_code(client: &Client, action: &Digest) -> Result<i32, Status> {
    let request = GetActionResultRequest {
        instance_name: client.instance().to_owned(),
        action_digest: Some(action.clone()),
        ..Default::default()
    };
    Ok(ActionCacheClient::new(client.channel()).get_action_result(request).await?.into_inner().exit_code)
}

/// What every call answers for this instance, by the call's name. What is named in the calls is in the store.
async fn every_call(client: &Client, tree: &Tree) -> Vec<(&'static str, Result<(), Status>)> {
    let (instance_name, root) = (client.instance().to_owned(), tree.root.clone());
    let (blob, name) = (new_bytes(100), AssetName::unique());
    let read = BatchReadBlobsRequest {
        instance_name: instance_name.clone(),
        digests: vec![root.clone()],
        ..Default::default()
    };
    let get_tree =
        GetTreeRequest { instance_name: instance_name.clone(), root_digest: Some(root.clone()), ..Default::default() };
    let split = SplitBlobRequest {
        instance_name: instance_name.clone(),
        blob_digest: Some(root.clone()),
        ..Default::default()
    };
    let splice = SpliceBlobRequest {
        instance_name,
        blob_digest: Some(root.clone()),
        chunk_digests: vec![root.clone()],
        ..Default::default()
    };
    let write = write_requests(client.upload_name(&digest_of(&blob)), blob.clone(), 50).collect::<Vec<_>>();
    vec![
        ("GetCapabilities", client.capabilities().await.map(drop)),
        ("FindMissingBlobs", client.find_missing(std::slice::from_ref(&root)).await.map(drop)),
        ("BatchUpdateBlobs", client.batch_update(vec![(digest_of(&blob), blob)]).await.map(drop)),
        ("BatchReadBlobs", client.cas().batch_read_blobs(read).await.map(drop)),
        ("GetTree", client.cas().get_tree(get_tree).await.map(drop)),
        ("SplitBlob", client.cas().split_blob(split).await.map(drop)),
        ("SpliceBlob", client.cas().splice_blob(splice).await.map(drop)),
        ("Read", client.download(&root).await.map(drop)),
        ("Write", client.bytestream().write(tokio_stream::iter(write)).await.map(drop)),
        ("QueryWriteStatus", client.query_write(&client.upload_name(&root)).await.map(drop)),
        ("UpdateActionResult", update(client, &root, 1).await),
        ("GetActionResult", exit_code(client, &root).await.map(drop)),
        ("PushBlob", client.push_blob(&name, &root).await),
        ("FetchBlob", client.fetch_blob(&name).await.map(drop)),
        ("PushDirectory", client.push_directory(&name, &root).await),
        ("FetchDirectory", client.fetch_directory(&name).await.map(drop)),
    ]
}

#[tokio::test]
async fn every_call_of_an_instance_that_is_not_listed_is_refused() -> Result<()> {
    let (_config, server) = with_listed_instances()?;
    let client = client_of(&server).await?;
    let tree = Tree::builder().file("a/b", new_bytes(100)).build();
    client.with_instance("team/a").upload_tree(&tree).await?;
    for instance in ["", "team", "team/a/b", "Main", "team/b"] {
        for (call, answer) in every_call(&client.with_instance(instance), &tree).await {
            let is_offered = answer.as_ref().err().is_none_or(|status| status.code() != Code::Unimplemented);
            if is_offered {
                let message = refused_with(Code::InvalidArgument, answer).with_context(|| call.to_owned())?;
                ensure!(message.contains("instance") && !message.contains("team/a\""), "{call}: {message}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn every_call_of_an_instance_that_is_listed_is_served() -> Result<()> {
    let (_config, server) = with_listed_instances()?;
    let tree = Tree::builder().file("a/b", new_bytes(100)).build();
    for instance in ["main", "team/a"] {
        let client = client_of(&server).await?.with_instance(instance);
        client.upload_tree(&tree).await?;
        for (call, answer) in every_call(&client, &tree).await {
            let is_offered = answer.as_ref().err().is_none_or(|status| status.code() != Code::Unimplemented);
            // What cannot be split has no chunks.
            if is_offered && call != "SplitBlob" {
                answer.with_context(|| format!("{call} of {instance}"))?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn clients_that_send_no_name_have_an_instance_where_it_is_listed() -> Result<()> {
    let config = Config::new()?.set("instance", "[{ name = \"\" }]").listener(&Listener::plaintext());
    let server = config.start()?;
    let client = client_of(&server).await?;
    let digest = client.upload(new_bytes(100)).await?;
    assert!(client.has(&digest).await?);
    refused_with(Code::InvalidArgument, client.with_instance("main").capabilities().await)?;
    Ok(())
}

#[tokio::test]
async fn results_and_assets_of_one_instance_are_not_seen_in_another() -> Result<()> {
    let target = Target::start().await?;
    let instances = ["", "a", "team", "team/a", "team/a/b", "team/b"];
    let (action, name) = (digest_of(&new_bytes(32)), AssetName::unique());
    let tree = Tree::builder().file("f", new_bytes(10)).build();
    target.client().upload_tree(&tree).await?;
    for (place, instance) in instances.into_iter().enumerate() {
        let client = target.client().with_instance(instance);
        update(&client, &action, i32::try_from(place)?).await?;
        for later in &instances[place + 1..] {
            let other = target.client().with_instance(later);
            refused_with(Code::NotFound, exit_code(&other, &action).await).with_context(|| format!("{later:?}"))?;
        }
        let blob = client.upload(new_bytes(20)).await?;
        client.push_blob(&name, &blob).await?;
        client.push_directory(&name, &tree.root).await?;
        for later in &instances[place + 1..] {
            let other = target.client().with_instance(later);
            refused_with(Code::NotFound, other.fetch_blob(&name).await).with_context(|| format!("{later:?}"))?;
            refused_with(Code::NotFound, other.fetch_directory(&name).await).with_context(|| format!("{later:?}"))?;
        }
    }
    // Nor are those of the earlier ones changed by the later ones.
    for (place, instance) in instances.into_iter().enumerate() {
        let client = target.client().with_instance(instance);
        assert_eq!(exit_code(&client, &action).await?, i32::try_from(place)?, "{instance:?}");
    }
    Ok(())
}

#[tokio::test]
async fn blobs_are_shared_by_all_instances() -> Result<()> {
    let target = Target::start().await?;
    let blob = new_bytes(1000);
    let digest = target.client().with_instance("team/a").upload(blob.clone()).await?;
    let other = target.client().with_instance("team/b");
    assert!(other.has(&digest).await?);
    assert_eq!(other.download(&digest).await?, blob);
    Ok(())
}

#[tokio::test]
async fn an_instance_name_without_end_is_refused() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client().with_instance(&"i".repeat(100_000));
    let action = digest_of(&new_bytes(32));
    refused_with(Code::InvalidArgument, update(&client, &action, 1).await)?;
    refused_with(Code::InvalidArgument, client.find_missing(&[action]).await)?;
    Ok(())
}
