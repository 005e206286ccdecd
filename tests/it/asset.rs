//! Remote Asset: names of content, kept whole.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use casbah_tests::clients::reapi::Digest;
use casbah_tests::clients::{AssetName, Client, Tree, asset, digest_of, refused_with};
use casbah_tests::deadline::eventually;
use casbah_tests::load::new_bytes;
use casbah_tests::target::{Node, Target};
use prost_types::Timestamp;
use tonic::{Code, Status};

/// The node of the tests about eviction: what BuildStream's own tests use, and everything may go at once.
const SMALL: [&str; 2] = ["store.capacity=22MB", "store.retention_floor=0s"];

fn timestamp(time: SystemTime) -> Option<Timestamp> {
    Some(Timestamp::from(time))
}

fn in_an_hour() -> SystemTime {
    SystemTime::now() + Duration::from_secs(3600)
}

fn an_hour_ago() -> SystemTime {
    SystemTime::now() - Duration::from_secs(3600)
}

/// A new blob of the server's, under a new name.
async fn pushed_blob(client: &Client) -> Result<(AssetName, Digest)> {
    let (name, digest) = (AssetName::unique(), client.upload(new_bytes(100)).await?);
    client.push_blob(&name, &digest).await?;
    Ok((name, digest))
}

fn some_tree() -> Tree {
    Tree::builder()
        .file("usr/share/doc/readme", new_bytes(500))
        .executable("usr/bin/tool", new_bytes(5000))
        .file("usr/include/empty.h", Bytes::new())
        .symlink("bin", "usr/bin")
        .directory("var")
        .build()
}

async fn fetched_blob(client: &Client, name: &AssetName) -> Result<Digest> {
    client.fetch_blob(name).await?.blob_digest.context("no digest")
}

/// Refused as incomplete, by name.
fn refused_for<T>(digest: &Digest, answer: Result<T, Status>) -> Result<()> {
    let status = answer.err().context("an incomplete asset was taken")?;
    let codes = [Code::FailedPrecondition, Code::NotFound, Code::InvalidArgument];
    assert!(codes.contains(&status.code()), "{status:?}");
    assert!(status.message().contains(&digest.hash), "does not name {}: {status:?}", digest.hash);
    Ok(())
}

// === push and fetch ===

#[tokio::test]
async fn a_pushed_blob_is_fetched_under_its_name() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let name = AssetName::unique().qualified("resource_type", "application/x-git");
    let digest = client.upload(new_bytes(100)).await?;
    client.push_blob(&name, &digest).await?;
    let answer = client.fetch_blob(&name).await?;
    assert_eq!(answer.blob_digest, Some(digest));
    assert_eq!(answer.uri, name.uris[0]);
    Ok(())
}

#[tokio::test]
async fn a_pushed_directory_is_fetched_under_its_name() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let (name, tree) = (AssetName::unique(), some_tree());
    client.upload_tree(&tree).await?;
    client.push_directory(&name, &tree.root).await?;
    let answer = client.fetch_directory(&name).await?;
    assert_eq!(answer.root_directory_digest, Some(tree.root));
    assert_eq!(answer.uri, name.uris[0]);
    Ok(())
}

/// "errors outside the server's control will be returned inline"; that nobody has pushed it is not one of them, and Bazel
/// misreads a status inside of an OK answer.
#[tokio::test]
async fn a_name_that_nobody_pushed_is_not_found_by_the_calls_own_status() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let name = AssetName::unique();
    // Bazel misreads a NOT_FOUND inside of an OK answer: the call itself must fail.
    refused_with(Code::NotFound, client.fetch().fetch_blob(client.fetch_blob_request(&name)).await)?;
    refused_with(Code::NotFound, client.fetch().fetch_directory(client.fetch_directory_request(&name)).await)?;
    Ok(())
}

#[tokio::test]
async fn blobs_and_directories_are_separate_name_spaces() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let tree = some_tree();
    client.upload_tree(&tree).await?;
    let blob = client.upload(new_bytes(10)).await?;
    let (as_blob, as_directory, as_both) = (AssetName::unique(), AssetName::unique(), AssetName::unique());
    client.push_blob(&as_blob, &blob).await?;
    refused_with(Code::NotFound, client.fetch_directory(&as_blob).await)?;
    client.push_directory(&as_directory, &tree.root).await?;
    refused_with(Code::NotFound, client.fetch_blob(&as_directory).await)?;
    client.push_blob(&as_both, &blob).await?;
    client.push_directory(&as_both, &tree.root).await?;
    assert_eq!(fetched_blob(client, &as_both).await?, blob);
    assert_eq!(client.fetch_directory(&as_both).await?.root_directory_digest, Some(tree.root));
    Ok(())
}

#[tokio::test]
async fn the_last_push_wins() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let name = AssetName::unique();
    for _ in 0..20 {
        let digest = client.upload(new_bytes(10)).await?;
        client.push_blob(&name, &digest).await?;
        assert_eq!(fetched_blob(client, &name).await?, digest);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_pushes_that_meet_one_wins_for_everybody() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let name = AssetName::unique();
    let mut digests = Vec::new();
    for _ in 0..20 {
        digests.push(client.upload(new_bytes(10)).await?);
    }
    for answer in futures_util::future::join_all(digests.iter().map(|digest| client.push_blob(&name, digest))).await {
        answer?;
    }
    let winner = fetched_blob(client, &name).await?;
    assert!(digests.contains(&winner));
    for _ in 0..10 {
        assert_eq!(fetched_blob(client, &name).await?, winner);
    }
    Ok(())
}

#[tokio::test]
async fn an_asset_of_one_instance_is_unknown_to_another() -> Result<()> {
    let target = Target::start().await?;
    let (ours, theirs) = (target.client().with_instance("team/a"), target.client().with_instance("team/b"));
    let (name, digest) = pushed_blob(&ours).await?;
    refused_with(Code::NotFound, theirs.fetch_blob(&name).await)?;
    refused_with(Code::NotFound, target.client().fetch_blob(&name).await)?;
    assert_eq!(fetched_blob(&ours, &name).await?, digest);
    Ok(())
}

// === URIs and qualifiers ===

/// "Qualifiers may be supplied in any order."
#[tokio::test]
async fn qualifiers_are_a_set_and_their_order_is_nothing() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let name = AssetName::unique();
    let ab = name.clone().qualified("a", "1").qualified("b", "2").qualified("c", "3");
    let ba = name.clone().qualified("c", "3").qualified("b", "2").qualified("a", "1");
    let digest = client.upload(new_bytes(10)).await?;
    client.push_blob(&ab, &digest).await?;
    assert_eq!(fetched_blob(client, &ba).await?, digest);
    // And a push in another order replaces, it does not add.
    let newer = client.upload(new_bytes(10)).await?;
    client.push_blob(&ba, &newer).await?;
    assert_eq!(fetched_blob(client, &ab).await?, newer);
    Ok(())
}

#[tokio::test]
async fn other_qualifiers_name_another_asset() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let name = AssetName::unique();
    let pushed = name.clone().qualified("branch", "main").qualified("arch", "x86");
    let digest = client.upload(new_bytes(10)).await?;
    client.push_blob(&pushed, &digest).await?;
    for other in [
        name.clone(),
        name.clone().qualified("branch", "main"),
        name.clone().qualified("branch", "main").qualified("arch", "arm"),
        name.clone().qualified("branch", "main").qualified("arch", "x86").qualified("os", "linux"),
        // What a key without lengths between its parts would take for the same.
        name.clone().qualified("branch", "mainarch").qualified("", "x86"),
        name.clone().qualified("branc", "hmain").qualified("arch", "x86"),
        name.clone().qualified("branch=main", "").qualified("arch", "x86"),
        name.clone().qualified("branch", "x86").qualified("arch", "main"),
        AssetName::new(&format!("{}branch", name.uris[0])).qualified("", "main").qualified("arch", "x86"),
    ] {
        match client.fetch_blob(&other).await {
            Err(status) => assert!([Code::NotFound, Code::InvalidArgument].contains(&status.code()), "{status:?}"),
            Ok(_) => panic!("{other:?} was answered with {pushed:?}"),
        }
    }
    assert_eq!(fetched_blob(client, &pushed).await?, digest);
    Ok(())
}

/// "Specified qualifier names *MUST* be unique."
#[tokio::test]
async fn a_qualifier_that_is_given_twice_is_refused_by_name() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let digest = client.upload(new_bytes(10)).await?;
    for second in ["main", "next"] {
        let name = AssetName::unique().qualified("branch", "main").qualified("os", "x").qualified("branch", second);
        for answer in [client.push_blob(&name, &digest).await, client.fetch_blob(&name).await.map(drop)] {
            let message = refused_with(Code::InvalidArgument, answer)?;
            assert!(message.contains("\"branch\""), "{message}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_qualifiers_of_an_asset_come_back_with_it() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let name = AssetName::unique().qualified("b", "2").qualified("a", "1");
    client.push_blob(&name, &client.upload(new_bytes(10)).await?).await?;
    let mut qualifiers: Vec<(String, String)> =
        client.fetch_blob(&name).await?.qualifiers.into_iter().map(|q| (q.name, q.value)).collect();
    qualifiers.sort();
    assert_eq!(qualifiers, [("a", "1"), ("b", "2")].map(|(name, value)| (name.to_owned(), value.to_owned())));
    Ok(())
}

/// "Servers *MAY* match any one of the supplied URIs", and answer with "the uri from the request that resulted in a
/// successful retrieval".
#[tokio::test]
async fn of_several_uris_the_first_known_one_answers_and_is_named() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let (first, first_digest) = pushed_blob(client).await?;
    let (second, second_digest) = pushed_blob(client).await?;
    let unknown = AssetName::unique();
    let asked = |names: &[&AssetName]| AssetName {
        uris: names.iter().flat_map(|name| name.uris.clone()).collect(),
        qualifiers: Vec::new(),
    };
    for (names, uri, digest) in [
        (asked(&[&unknown, &first, &second]), &first.uris[0], &first_digest),
        (asked(&[&second, &unknown, &first]), &second.uris[0], &second_digest),
        (asked(&[&unknown, &unknown, &second]), &second.uris[0], &second_digest),
    ] {
        let answer = client.fetch_blob(&names).await?;
        assert_eq!((&answer.uri, answer.blob_digest.as_ref()), (uri, Some(digest)));
    }
    refused_with(Code::NotFound, client.fetch_blob(&asked(&[&unknown, &AssetName::unique()])).await)?;
    Ok(())
}

#[tokio::test]
async fn an_asset_pushed_under_several_uris_is_known_by_each() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let uris = [AssetName::unique().uris, AssetName::unique().uris, AssetName::unique().uris].concat();
    let digest = client.upload(new_bytes(10)).await?;
    client.push_blob(&AssetName { uris: uris.clone(), qualifiers: Vec::new() }, &digest).await?;
    for uri in &uris {
        let answer = client.fetch_blob(&AssetName::new(uri)).await?;
        assert_eq!((&answer.uri, answer.blob_digest.as_ref()), (uri, Some(&digest)));
    }
    Ok(())
}

/// "Clients *MUST* supply at least one URI."
#[tokio::test]
async fn calls_without_a_uri_are_invalid_which_is_how_buildstream_probes() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let nameless = AssetName { uris: Vec::new(), qualifiers: Vec::new() };
    let tree = some_tree();
    client.upload_tree(&tree).await?;
    refused_with(Code::InvalidArgument, client.fetch_blob(&nameless).await)?;
    refused_with(Code::InvalidArgument, client.fetch_directory(&nameless).await)?;
    refused_with(Code::InvalidArgument, client.push_blob(&nameless, &tree.root).await)?;
    refused_with(Code::InvalidArgument, client.push_directory(&nameless, &tree.root).await)?;
    // The probe has nothing in it at all.
    refused_with(Code::InvalidArgument, client.fetch().fetch_blob(asset::FetchBlobRequest::default()).await)?;
    refused_with(Code::InvalidArgument, client.push().push_blob(asset::PushBlobRequest::default()).await)?;
    Ok(())
}

#[tokio::test]
async fn a_push_without_a_digest_or_with_a_malformed_one_is_invalid() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let name = AssetName::unique();
    let good = client.upload(new_bytes(10)).await?;
    let mut digests = vec![None];
    for hash in [String::new(), "abc".to_owned(), good.hash.to_uppercase(), "g".repeat(64)] {
        digests.push(Some(Digest { hash, size_bytes: 10 }));
    }
    digests.push(Some(Digest { size_bytes: -1, ..good.clone() }));
    for digest in digests {
        let blob = asset::PushBlobRequest { blob_digest: digest.clone(), ..client.push_blob_request(&name, &good) };
        refused_with(Code::InvalidArgument, client.push().push_blob(blob).await)?;
        let directory = asset::PushDirectoryRequest {
            root_directory_digest: digest.clone(),
            ..client.push_directory_request(&name, &good)
        };
        refused_with(Code::InvalidArgument, client.push().push_directory(directory).await)?;
        if let Some(digest) = digest {
            let mut blob = client.push_blob_request(&name, &good);
            blob.references_blobs = vec![digest];
            refused_with(Code::InvalidArgument, client.push().push_blob(blob).await)?;
        }
    }
    refused_with(Code::NotFound, client.fetch_blob(&name).await)?;
    Ok(())
}

// === time ===

#[tokio::test]
async fn an_expired_asset_is_not_found() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let (name, digest) = pushed_blob(client).await?;
    let mut request = client.push_blob_request(&name, &digest);
    request.expire_at = timestamp(an_hour_ago());
    // Whether it is taken or refused as past: it is never served, and the older asset of this name is no stand-in if
    // it is taken.
    match client.push().push_blob(request).await {
        Ok(_) => refused_with(Code::NotFound, client.fetch_blob(&name).await).map(|_| ())?,
        Err(status) => assert_eq!(status.code(), Code::InvalidArgument, "{status:?}"),
    }
    Ok(())
}

#[tokio::test]
async fn an_asset_is_served_until_it_expires_and_says_when() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let (name, digest) = (AssetName::unique(), client.upload(new_bytes(10)).await?);
    let mut request = client.push_blob_request(&name, &digest);
    request.expire_at = timestamp(in_an_hour());
    client.push().push_blob(request.clone()).await?;
    let answer = client.fetch_blob(&name).await?;
    assert_eq!(answer.blob_digest, Some(digest));
    assert_eq!(answer.expires_at.map(|time| time.seconds), request.expire_at.map(|time| time.seconds));
    // A second is enough to be served once, unless the machine sleeps.
    let soon = SystemTime::now() + Duration::from_secs(1);
    request.expire_at = timestamp(soon);
    client.push().push_blob(request).await?;
    eventually("the asset has expired", || async {
        let answer = client.fetch_blob(&name).await;
        Ok(match answer {
            Ok(_) => {
                assert!(SystemTime::now() < soon + Duration::from_secs(5), "served long after it expired");
                false
            }
            Err(status) => {
                assert_eq!(status.code(), Code::NotFound, "{status:?}");
                assert!(SystemTime::now() >= soon, "expired early");
                true
            }
        })
    })
    .await
}

#[tokio::test]
async fn an_expired_asset_gives_way_to_the_next_uri() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let (expired, digest) = pushed_blob(client).await?;
    let mut request = client.push_blob_request(&expired, &digest);
    request.expire_at = timestamp(an_hour_ago());
    if client.push().push_blob(request).await.is_err() {
        return Ok(());
    }
    let (known, known_digest) = pushed_blob(client).await?;
    let both = AssetName { uris: [expired.uris, known.uris.clone()].concat(), qualifiers: Vec::new() };
    let answer = client.fetch_blob(&both).await?;
    assert_eq!((&answer.uri, answer.blob_digest), (&known.uris[0], Some(known_digest)));
    Ok(())
}

/// "The oldest content the client is willing to accept, as measured from the time it was Push'd".
#[tokio::test]
async fn content_older_than_the_client_accepts_is_not_found() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let (name, digest) = pushed_blob(client).await?;
    let mut request = client.fetch_blob_request(&name);
    request.oldest_content_accepted = timestamp(an_hour_ago());
    assert_eq!(client.fetch().fetch_blob(request.clone()).await?.into_inner().blob_digest, Some(digest));
    request.oldest_content_accepted = timestamp(in_an_hour());
    refused_with(Code::NotFound, client.fetch().fetch_blob(request).await)?;

    let (name, tree) = (AssetName::unique(), some_tree());
    client.upload_tree(&tree).await?;
    client.push_directory(&name, &tree.root).await?;
    let mut request = client.fetch_directory_request(&name);
    request.oldest_content_accepted = timestamp(in_an_hour());
    refused_with(Code::NotFound, client.fetch().fetch_directory(request).await)?;
    Ok(())
}

// === whole or not at all (G7) ===

#[tokio::test]
async fn an_asset_whose_blob_was_never_uploaded_is_refused() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let (name, absent) = (AssetName::unique(), digest_of(&new_bytes(10)));
    refused_for(&absent, client.push_blob(&name, &absent).await)?;
    refused_for(&absent, client.push_directory(&name, &absent).await)?;
    refused_with(Code::NotFound, client.fetch_blob(&name).await)?;
    refused_with(Code::NotFound, client.fetch_directory(&name).await)?;
    Ok(())
}

#[tokio::test]
async fn a_refused_push_leaves_the_asset_as_it_was() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let (name, digest) = pushed_blob(client).await?;
    let absent = digest_of(&new_bytes(10));
    refused_for(&absent, client.push_blob(&name, &absent).await)?;
    assert_eq!(fetched_blob(client, &name).await?, digest);
    Ok(())
}

#[tokio::test]
async fn a_tree_that_lacks_any_of_its_blobs_is_refused() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blob_count = some_tree().blobs.len();
    for lacking in 0..blob_count {
        let tree = some_tree();
        // The empty file needs no upload: every server has it.
        if tree.blobs[lacking].is_empty() {
            continue;
        }
        // Random files make every directory but the empty one a new blob.
        let absent = digest_of(&tree.blobs[lacking]);
        if client.has(&absent).await? {
            continue;
        }
        for (place, blob) in tree.blobs.iter().enumerate() {
            if place != lacking {
                client.upload(blob.clone()).await?;
            }
        }
        let name = AssetName::unique();
        refused_for(&absent, client.push_directory(&name, &tree.root).await)?;
        refused_with(Code::NotFound, client.fetch_directory(&name).await)?;
        client.upload(tree.blobs[lacking].clone()).await?;
        client.push_directory(&name, &tree.root).await?;
        assert_eq!(client.fetch_directory(&name).await?.root_directory_digest, Some(tree.root));
    }
    Ok(())
}

#[tokio::test]
async fn a_directory_that_is_none_is_refused() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let noise = client.upload(Bytes::from_static(b"\xff\xff\xff\xffnot a Directory message")).await?;
    let status = client.push_directory(&AssetName::unique(), &noise).await.expect_err("it is no directory");
    assert!([Code::InvalidArgument, Code::FailedPrecondition].contains(&status.code()), "{status:?}");
    assert!(status.message().contains(&noise.hash), "{status:?}");
    Ok(())
}

#[tokio::test]
async fn references_are_checked_like_the_asset_itself() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let (name, blob, tree) = (AssetName::unique(), client.upload(new_bytes(10)).await?, some_tree());
    let referenced = new_bytes(200);
    let referenced_digest = digest_of(&referenced);
    let mut request = client.push_blob_request(&name, &blob);
    request.references_blobs = vec![blob.clone(), referenced_digest.clone()];
    refused_for(&referenced_digest, client.push().push_blob(request.clone()).await)?;
    client.upload(referenced).await?;
    client.push().push_blob(request.clone()).await?;

    request.references_directories = vec![tree.root.clone()];
    refused_for(&tree.root, client.push().push_blob(request.clone()).await)?;
    // All but one file deep inside.
    let (deep, others) = tree.blobs.split_first().context("a tree has blobs")?;
    for blob in others {
        client.upload(blob.clone()).await?;
    }
    refused_for(&digest_of(deep), client.push().push_blob(request.clone()).await)?;
    client.upload(deep.clone()).await?;
    client.push().push_blob(request).await?;
    assert_eq!(fetched_blob(client, &name).await?, blob);

    let mut request = client.push_directory_request(&name, &tree.root);
    let absent = digest_of(&new_bytes(10));
    request.references_blobs = vec![absent.clone()];
    refused_for(&absent, client.push().push_directory(request).await)?;
    Ok(())
}

#[tokio::test]
async fn a_tree_with_shared_subtrees_is_checked_in_no_time() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    // 60 levels, each naming the level below twice: 2^60 paths, 61 directories.
    let mut tree = Tree::builder().file("leaf", new_bytes(10)).build();
    client.upload_tree(&tree).await?;
    for _ in 0..60 {
        let node = |name: &str| casbah_tests::clients::reapi::DirectoryNode {
            name: name.to_owned(),
            digest: Some(tree.root.clone()),
        };
        let directories = vec![node("left"), node("right")];
        let parent = casbah_tests::clients::reapi::Directory { directories, ..Default::default() };
        let encoded = Bytes::from(prost::Message::encode_to_vec(&parent));
        tree.root = client.upload(encoded).await?;
    }
    let name = AssetName::unique();
    client.push_directory(&name, &tree.root).await?;
    assert_eq!(client.fetch_directory(&name).await?.root_directory_digest, Some(tree.root));
    Ok(())
}

/// "Servers *SHOULD* ensure that referenced files are present in the CAS at the time of the response".
#[tokio::test]
async fn an_asset_whose_blob_has_been_evicted_is_not_found() -> Result<()> {
    let node = Node::start(&SMALL)?;
    let client = node.client().await?;
    let (name, digest) = pushed_blob(&client).await?;
    let (tree_name, tree) = (AssetName::unique(), some_tree());
    client.upload_tree(&tree).await?;
    client.push_directory(&tree_name, &tree.root).await?;
    for _ in 0..50 {
        client.upload(new_bytes(1 << 20)).await?;
    }
    assert!(!client.has(&digest).await?, "50 MB did not evict it from 22 MB");
    refused_with(Code::NotFound, client.fetch_blob(&name).await)?;
    refused_with(Code::NotFound, client.fetch_directory(&tree_name).await)?;
    // And with the blob, the asset may be pushed again.
    client.upload_tree(&tree).await?;
    client.push_directory(&tree_name, &tree.root).await?;
    client.fetch_directory(&tree_name).await?;
    Ok(())
}

/// "The lifetimes of the referenced blobs *SHOULD* be increased if necessary and applicable."
#[tokio::test]
async fn an_asset_that_is_fetched_keeps_all_its_blobs() -> Result<()> {
    let node = Node::start(&SMALL)?;
    let client = node.client().await?;
    let (name, digest) = pushed_blob(&client).await?;
    let (referenced, tree) = (client.upload(new_bytes(50)).await?, some_tree());
    client.upload_tree(&tree).await?;
    let mut request = client.push_blob_request(&name, &digest);
    request.references_blobs = vec![referenced.clone()];
    request.references_directories = vec![tree.root.clone()];
    client.push().push_blob(request).await?;
    for _ in 0..50 {
        client.upload(new_bytes(1 << 20)).await?;
        client.fetch_blob(&name).await?;
    }
    assert_eq!(client.find_missing(&[vec![digest, referenced], tree.digests()].concat()).await?, []);
    Ok(())
}

// === restarts ===

#[tokio::test]
async fn assets_survive_kill_9() -> Result<()> {
    let mut node = Node::start(&[])?;
    let client = node.client().await?;
    let mut pushed = Vec::new();
    for _ in 0..50 {
        pushed.push(pushed_blob(&client).await?);
    }
    let (tree_name, tree) = (AssetName::unique().qualified("a", "1").qualified("b", "2"), some_tree());
    client.upload_tree(&tree).await?;
    client.push_directory(&tree_name, &tree.root).await?;
    let (replaced, _) = pushed[0].clone();
    let newer = client.upload(new_bytes(10)).await?;
    client.push_blob(&replaced, &newer).await?;
    pushed[0].1 = newer;
    node.kill9_and_restart(&[])?;
    let client = node.client().await?;
    for (name, digest) in &pushed {
        assert_eq!(fetched_blob(&client, name).await?, *digest);
    }
    assert_eq!(client.fetch_directory(&tree_name).await?.root_directory_digest, Some(tree.root));
    Ok(())
}
