//! GetTree: every distinct directory once, in pages.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use casbah_tests::clients::reapi::{Digest, Directory, DirectoryNode, GetTreeRequest, GetTreeResponse};
use casbah_tests::clients::{Client, Tree, digest_of, refused_with};
use casbah_tests::load::new_bytes;
use casbah_tests::target::Target;
use prost::Message as _;
use tokio_stream::StreamExt as _;
use tonic::{Code, Status};

async fn pages(client: &Client, root: &Digest, page_size: i32, token: &str) -> Result<Vec<GetTreeResponse>, Status> {
    let request = GetTreeRequest {
        instance_name: client.instance().to_owned(),
        root_digest: Some(root.clone()),
        page_size,
        page_token: token.to_owned(),
        ..Default::default()
    };
    client.cas().get_tree(request).await?.into_inner().collect().await
}

fn directories(pages: Vec<GetTreeResponse>) -> Vec<Directory> {
    pages.into_iter().flat_map(|page| page.directories).collect()
}

/// The server "will enumerate the `Directory` tree recursively and return every node descended from the root".
#[tokio::test]
async fn every_directory_comes_once_and_the_root_first() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let tree = Tree::builder().file("a/b/c/file", new_bytes(10)).file("d/file", new_bytes(10)).directory("e").build();
    client.upload_tree(&tree).await?;
    let all = directories(pages(client, &tree.root, 0, "").await?);
    assert_eq!(digest_of(&all[0].encode_to_vec()), tree.root);
    let mut names: Vec<String> = all.iter().flat_map(|d| d.directories.iter().map(|node| node.name.clone())).collect();
    names.sort();
    assert_eq!((all.len(), names), (6, ["a", "b", "c", "d", "e"].map(String::from).to_vec()));
    Ok(())
}

#[tokio::test]
async fn a_tree_of_shared_subtrees_takes_time_for_the_distinct_ones_alone() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    // 40 levels, each naming the one below twice: 2^40 paths, 41 directories.
    let mut digest = client.upload(Directory::default().encode_to_vec()).await?;
    for _ in 0..40 {
        let node = |name: &str| DirectoryNode { name: name.into(), digest: Some(digest.clone()) };
        let level = Directory { directories: vec![node("left"), node("right")], ..Default::default() };
        digest = client.upload(Bytes::from(level.encode_to_vec())).await?;
    }
    assert_eq!(directories(pages(client, &digest, 0, "").await?).len(), 41);
    Ok(())
}

/// "the server will request no more than this many items", and an empty `next_page_token` "signifies that this is the last
/// page of results".
#[tokio::test]
async fn pages_have_the_size_asked_for_and_go_on_from_their_token() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let tree = (0..10).fold(Tree::builder(), |tree, n| tree.file(&format!("{n}/file"), new_bytes(10))).build();
    client.upload_tree(&tree).await?;
    let all = pages(client, &tree.root, 4, "").await?;
    assert_eq!(all.iter().map(|page| page.directories.len()).collect::<Vec<_>>(), [4, 4, 3]);
    assert!(all[2].next_page_token.is_empty());
    let rest = pages(client, &tree.root, 4, &all[0].next_page_token).await?;
    assert_eq!(directories(rest), directories(all[1..].to_vec()));
    Ok(())
}

/// "If part of the tree is missing from the CAS, the server will return the portion present and omit the rest." Only the
/// root's absence is an error.
#[tokio::test]
async fn what_is_missing_is_left_out_and_a_missing_root_is_not_found() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let tree = Tree::builder().file("there/file", new_bytes(10)).directory("gone/below").build();
    let gone = tree.blobs.iter().position(|blob| {
        Directory::decode(blob.clone()).is_ok_and(|d| d.directories.first().is_some_and(|node| node.name == "below"))
    });
    for (place, blob) in tree.blobs.iter().enumerate() {
        if Some(place) != gone {
            client.upload(blob.clone()).await?;
        }
    }
    assert_eq!(directories(pages(client, &tree.root, 0, "").await?).len(), 2);
    let absent = digest_of(&new_bytes(10));
    let message = refused_with(Code::NotFound, pages(client, &absent, 0, "").await)?;
    assert!(message.contains(&absent.hash), "{message}");
    Ok(())
}

/// A page token "must be a value received in a previous" response, the root a `Directory`.
#[tokio::test]
async fn malformed_requests_are_refused() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let root = client.upload(Directory::default().encode_to_vec()).await?;
    refused_with(Code::InvalidArgument, pages(client, &root, -1, "").await)?;
    refused_with(Code::InvalidArgument, pages(client, &root, 0, "no token").await)?;
    let malformed = Digest { hash: "xyz".into(), size_bytes: 0 };
    refused_with(Code::InvalidArgument, pages(client, &malformed, 0, "").await)?;
    let no_directory = client.upload(vec![0xff; 10]).await?;
    refused_with(Code::InvalidArgument, pages(client, &no_directory, 0, "").await)?;
    Ok(())
}

/// "If empty, signifies that this is the last page of results": also when all that would follow is missing.
#[tokio::test]
async fn the_last_page_says_so_though_what_would_follow_is_missing() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let tree = (0..4).fold(Tree::builder(), |tree, n| tree.file(&format!("{n}/file"), new_bytes(10))).build();
    // The children come in the order of their names: the last two are missing.
    let root = Directory::decode(tree.blobs.last().context("no root")?.clone())?;
    let missing: Vec<_> = root.directories[2..].iter().filter_map(|node| node.digest.clone()).collect();
    for blob in tree.blobs.iter().filter(|blob| !missing.contains(&digest_of(blob))) {
        client.upload(blob.clone()).await?;
    }
    let pages = pages(client, &tree.root, 3, "").await?;
    assert_eq!(pages.iter().map(|page| page.directories.len()).collect::<Vec<_>>(), [3]);
    assert_eq!(pages[0].next_page_token, "");
    Ok(())
}

/// "the server will use that token as an offset, returning only that page and the ones that succeed it": what has become
/// complete meanwhile shifts nothing.
#[tokio::test]
async fn a_token_goes_on_where_its_page_ended_though_the_tree_has_changed_in_the_store() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let tree = (0..8).fold(Tree::builder(), |tree, n| tree.file(&format!("{n}/file"), new_bytes(10))).build();
    let root = Directory::decode(tree.blobs.last().context("no root")?.clone())?;
    let late = root.directories[1].digest.clone().context("no digest")?;
    for blob in tree.blobs.iter().filter(|blob| digest_of(blob) != late) {
        client.upload(blob.clone()).await?;
    }
    let before = pages(client, &tree.root, 3, "").await?;
    client.upload_tree(&tree).await?;
    let rest = pages(client, &tree.root, 3, &before[0].next_page_token).await?;
    assert_eq!(directories(rest), directories(before[1..].to_vec()));
    Ok(())
}

/// A page token "must be a value received in a previous" response, for this tree.
#[tokio::test]
async fn the_token_of_another_tree_is_refused() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let [one, other] = [0, 1].map(|_| Tree::builder().file("a/b/file", new_bytes(10)).build());
    client.upload_tree(&one).await?;
    client.upload_tree(&other).await?;
    let token = pages(client, &one.root, 2, "").await?.remove(0).next_page_token;
    assert!(!token.is_empty());
    let message = refused_with(Code::InvalidArgument, pages(client, &other.root, 2, &token).await)?;
    assert!(message.contains(&token), "{message}");
    Ok(())
}

/// "the server may place its own limit on the number of items": a page fits into a message of gRPC's default, 4 MiB.
#[tokio::test]
async fn pages_of_large_directories_fit_into_a_message() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let file = new_bytes(10);
    let tree = (0..40).fold(Tree::builder(), |tree, folder| {
        (0..2000).fold(tree, |tree, n| tree.file(&format!("{folder}/{folder}-file-{n:060}"), file.clone()))
    });
    let tree = tree.build();
    for blob in tree.blobs.iter().filter(|blob| **blob != file) {
        client.upload(blob.clone()).await?;
    }
    let pages = pages(client, &tree.root, 0, "").await?;
    assert!(pages.iter().all(|page| page.encoded_len() < 4 << 20));
    assert_eq!(directories(pages).len(), 41);
    Ok(())
}
