//! Digest functions: every advertised one through every service, and none taken for another.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use casbah_tests::clients::reapi::action_cache_client::ActionCacheClient;
use casbah_tests::clients::reapi::{
    ActionResult, BatchReadBlobsRequest, BatchUpdateBlobsRequest, Digest, Directory, DirectoryNode, FileNode,
    FindMissingBlobsRequest, GetActionResultRequest, GetTreeRequest, OutputDirectory, OutputFile, Tree,
    UpdateActionResultRequest, batch_update_blobs_request,
};
use casbah_tests::clients::{AssetName, Client, asset, digest_of, hex, refused_with, write_requests};
use casbah_tests::load::new_bytes;
use casbah_tests::target::{Node, Target};
use md5::Digest as _;
use prost::Message as _;
use tokio_stream::StreamExt as _;
use tonic::{Code, Status};

/// A digest function as the API has it, computed without the server's code.
#[derive(Clone, Copy)]
struct Function {
    number: i32,
    name: &'static str,
    hash: fn(&[u8]) -> String,
    /// Whether clients may leave its name out.
    is_implied: bool,
}

const SHA256: Function =
    Function { number: 1, name: "sha256", hash: |bytes| hex(&sha2::Sha256::digest(bytes)), is_implied: true };
const BLAKE3: Function =
    Function { number: 9, name: "blake3", hash: |bytes| hex(blake3::hash(bytes).as_bytes()), is_implied: false };

const FUNCTIONS: [Function; 6] = [
    SHA256,
    BLAKE3,
    Function { number: 5, name: "sha384", hash: |bytes| hex(&sha2::Sha384::digest(bytes)), is_implied: true },
    Function { number: 6, name: "sha512", hash: |bytes| hex(&sha2::Sha512::digest(bytes)), is_implied: true },
    Function { number: 2, name: "sha1", hash: |bytes| hex(&sha1::Sha1::digest(bytes)), is_implied: true },
    Function { number: 3, name: "md5", hash: |bytes| hex(&md5::Md5::digest(bytes)), is_implied: true },
];

/// Functions of the API that are not offered, and a number that it does not have, with a hash of the right length.
const NOT_OFFERED: [(i32, &str, usize); 5] =
    [(4, "vso", 66), (7, "murmur3", 32), (8, "sha256tree", 64), (10, "gitsha1", 40), (99, "sha3", 64)];

/// Blobs that go into a segment of the store, and into a file.
const SIZES: [usize; 2] = [2000, 300_000];

// === calls of one function ===

impl Function {
    fn digest(&self, bytes: &[u8]) -> Digest {
        Digest { hash: (self.hash)(bytes), size_bytes: bytes.len().try_into().unwrap_or(i64::MAX) }
    }

    /// What requests may carry: the number, and where it is implied, none.
    fn numbers(&self) -> Vec<i32> {
        if self.is_implied { vec![self.number, 0] } else { vec![self.number] }
    }

    /// What a resource name may have before the hash.
    fn segments(&self) -> Vec<String> {
        let named = format!("{}/", self.name);
        if self.is_implied { vec![named, String::new()] } else { vec![named] }
    }

    async fn put(&self, client: &Client, bytes: &Bytes) -> Result<Digest> {
        let digest = self.digest(bytes);
        let status = update(client, self.number, &digest, bytes).await?;
        assert_eq!(status, 0, "{}", self.name);
        Ok(digest)
    }
}

async fn missing(client: &Client, digest_function: i32, digests: Vec<Digest>) -> Result<Vec<Digest>, Status> {
    let request = FindMissingBlobsRequest { blob_digests: digests, digest_function, ..Default::default() };
    Ok(client.cas().find_missing_blobs(request).await?.into_inner().missing_blob_digests)
}

async fn has(client: &Client, digest_function: i32, digest: &Digest) -> Result<bool> {
    Ok(missing(client, digest_function, vec![digest.clone()]).await?.is_empty())
}

fn no_answer() -> Status {
    Status::internal("the blob of the batch is not answered")
}

/// BatchUpdateBlobs with one blob: the code of its status.
async fn update(client: &Client, digest_function: i32, digest: &Digest, data: &Bytes) -> Result<i32, Status> {
    let request =
        batch_update_blobs_request::Request { digest: Some(digest.clone()), data: data.clone(), ..Default::default() };
    let request = BatchUpdateBlobsRequest { requests: vec![request], digest_function, ..Default::default() };
    let answer = client.cas().batch_update_blobs(request).await?.into_inner().responses.into_iter().next();
    Ok(answer.ok_or_else(no_answer)?.status.unwrap_or_default().code)
}

/// BatchReadBlobs with one blob: the code of its status, and its bytes.
async fn read(client: &Client, digest_function: i32, digest: &Digest) -> Result<(i32, Bytes), Status> {
    let request = BatchReadBlobsRequest { digests: vec![digest.clone()], digest_function, ..Default::default() };
    let answer = client.cas().batch_read_blobs(request).await?.into_inner().responses.into_iter().next();
    let answer = answer.ok_or_else(no_answer)?;
    Ok((answer.status.unwrap_or_default().code, answer.data))
}

async fn get_tree(client: &Client, digest_function: i32, root: &Digest) -> Result<Vec<Directory>, Status> {
    let request = GetTreeRequest { root_digest: Some(root.clone()), digest_function, ..Default::default() };
    let mut pages = client.cas().get_tree(request).await?.into_inner();
    let mut directories = Vec::new();
    while let Some(page) = pages.next().await {
        directories.extend(page?.directories);
    }
    Ok(directories)
}

async fn get_result(client: &Client, digest_function: i32, action: &Digest) -> Result<ActionResult, Status> {
    let request = GetActionResultRequest { action_digest: Some(action.clone()), digest_function, ..Default::default() };
    Ok(ActionCacheClient::new(client.channel()).get_action_result(request).await?.into_inner())
}

async fn update_result(
    client: &Client,
    digest_function: i32,
    action: &Digest,
    result: ActionResult,
) -> Result<ActionResult, Status> {
    let request = UpdateActionResultRequest {
        action_digest: Some(action.clone()),
        action_result: Some(result),
        digest_function,
        ..Default::default()
    };
    Ok(ActionCacheClient::new(client.channel()).update_action_result(request).await?.into_inner())
}

async fn upload(client: &Client, name: &str, bytes: &Bytes) -> Result<i64, Status> {
    let requests = write_requests(name.to_owned(), bytes.clone(), 100_000);
    Ok(client.bytestream().write(tokio_stream::iter(requests)).await?.into_inner().committed_size)
}

fn upload_name(segment: &str, digest: &Digest) -> String {
    format!("uploads/{}/blobs/{segment}{}/{}", uuid::Uuid::new_v4(), digest.hash, digest.size_bytes)
}

fn blob_name(segment: &str, digest: &Digest) -> String {
    format!("blobs/{segment}{}/{}", digest.hash, digest.size_bytes)
}

/// A root with a file and a subdirectory with a file: the messages, the files, the root's digest, and the subdirectory's.
fn tree(function: &Function) -> (Vec<Bytes>, Digest, Digest) {
    let file = |name: &str, bytes: &Bytes| FileNode {
        name: name.into(),
        digest: Some(function.digest(bytes)),
        ..Default::default()
    };
    let files = [new_bytes(100), new_bytes(200)];
    let below = Directory { files: vec![file("inner", &files[1])], ..Default::default() };
    let below = Bytes::from(below.encode_to_vec());
    let node = DirectoryNode { name: "below".into(), digest: Some(function.digest(&below)) };
    let root = Directory { files: vec![file("outer", &files[0])], directories: vec![node], ..Default::default() };
    let root = Bytes::from(root.encode_to_vec());
    let (root_digest, below_digest) = (function.digest(&root), function.digest(&below));
    let [outer, inner] = files;
    (vec![outer, inner, below, root], root_digest, below_digest)
}

// === capabilities ===

#[tokio::test]
async fn exactly_the_functions_that_are_served_are_advertised_and_sha256_comes_first() -> Result<()> {
    let target = Target::start().await?;
    let cache = target.client().capabilities().await?.cache_capabilities.context("no cache capabilities")?;
    assert_eq!(cache.digest_functions, FUNCTIONS.map(|function| function.number));
    Ok(())
}

// === blobs ===

#[tokio::test]
async fn a_batch_of_every_function_is_held_and_comes_back() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for function in FUNCTIONS {
        for number in function.numbers() {
            for size in SIZES {
                let bytes = new_bytes(size);
                let digest = function.digest(&bytes);
                assert!(!has(client, number, &digest).await?, "{}", function.name);
                assert_eq!(read(client, number, &digest).await?.0, Code::NotFound as i32);
                assert_eq!(update(client, number, &digest, &bytes).await?, 0, "{}", function.name);
                assert!(has(client, number, &digest).await?, "{}", function.name);
                assert_eq!(read(client, number, &digest).await?, (0, bytes), "{}", function.name);
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_of_every_function_is_held_and_comes_back() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for function in FUNCTIONS {
        for segment in function.segments() {
            for size in SIZES {
                let bytes = new_bytes(size);
                let digest = function.digest(&bytes);
                let name = upload_name(&segment, &digest);
                assert_eq!(client.query_write(&name).await?.committed_size, 0);
                assert_eq!(upload(client, &name, &bytes).await?, digest.size_bytes, "{name}");
                let status = client.query_write(&name).await?;
                assert_eq!((status.committed_size, status.complete), (digest.size_bytes, true), "{name}");
                assert_eq!(client.read(&blob_name(&segment, &digest), 0, 0).await?, bytes, "{name}");
                assert_eq!(client.read(&blob_name(&segment, &digest), 5, 7).await?, bytes[5..12], "{name}");
                assert!(has(client, function.number, &digest).await?, "{name}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_empty_blob_is_present_in_every_function() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for function in FUNCTIONS {
        let empty = function.digest(b"");
        assert!(has(client, function.number, &empty).await?, "{}", function.name);
        assert_eq!(read(client, function.number, &empty).await?, (0, Bytes::new()), "{}", function.name);
        assert_eq!(client.read(&blob_name(&format!("{}/", function.name), &empty), 0, 0).await?, b"");
        let something = Digest { size_bytes: 0, ..function.digest(b"something") };
        assert!(!has(client, function.number, &something).await?, "{}", function.name);
    }
    Ok(())
}

#[tokio::test]
async fn wrong_bytes_are_refused_in_every_function_and_nothing_of_them_is_held() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for function in FUNCTIONS {
        for size in SIZES {
            let (digest, bytes) = (function.digest(&new_bytes(size)), new_bytes(size));
            assert_eq!(update(client, function.number, &digest, &bytes).await?, Code::InvalidArgument as i32);
            let name = upload_name(&format!("{}/", function.name), &digest);
            refused_with(Code::InvalidArgument, upload(client, &name, &bytes).await)?;
            assert!(!has(client, function.number, &digest).await?, "{}", function.name);
        }
    }
    Ok(())
}

#[tokio::test]
async fn blobs_of_every_function_survive_kill_minus_nine() -> Result<()> {
    let mut node = Node::start(&[])?;
    let client = node.client().await?;
    let blobs = SIZES.map(new_bytes);
    for function in FUNCTIONS {
        for bytes in &blobs {
            function.put(&client, bytes).await?;
        }
    }
    node.kill9_and_restart(&[])?;
    let client = node.client().await?;
    for function in FUNCTIONS {
        for bytes in &blobs {
            assert_eq!(read(&client, function.number, &function.digest(bytes)).await?, (0, bytes.clone()));
        }
    }
    Ok(())
}

// === never mixed up ===

#[tokio::test]
async fn sha256_and_blake3_of_one_length_are_never_taken_for_each_other() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for (own, other) in [(SHA256, BLAKE3), (BLAKE3, SHA256)] {
        let bytes = new_bytes(1000);
        let digest = own.put(client, &bytes).await?;
        assert!(!has(client, other.number, &digest).await?, "{}", own.name);
        assert!(!has(client, other.number, &other.digest(&bytes)).await?, "{}", own.name);
        assert_eq!(read(client, other.number, &digest).await?.0, Code::NotFound as i32);
        assert_eq!(update(client, other.number, &digest, &bytes).await?, Code::InvalidArgument as i32);
        refused_with(Code::NotFound, client.read(&blob_name(&format!("{}/", other.name), &digest), 0, 0).await)?;
        assert_eq!(client.read(&blob_name(&format!("{}/", own.name), &digest), 0, 0).await?, bytes);
    }
    Ok(())
}

#[tokio::test]
async fn blake3_without_its_name_is_taken_for_sha256_as_the_api_has_it() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let bytes = new_bytes(1000);
    let digest = BLAKE3.put(client, &bytes).await?;
    assert!(!has(client, 0, &digest).await?);
    refused_with(Code::NotFound, client.read(&blob_name("", &digest), 0, 0).await)?;
    assert_eq!(update(client, 0, &digest, &bytes).await?, Code::InvalidArgument as i32);
    refused_with(Code::InvalidArgument, upload(client, &upload_name("", &digest), &bytes).await)?;
    Ok(())
}

#[tokio::test]
async fn a_long_hash_that_only_begins_like_a_held_one_is_absent_and_leaves_that_one_alone() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for function in FUNCTIONS {
        for size in SIZES {
            let bytes = new_bytes(size);
            let digest = function.put(client, &bytes).await?;
            let end = if digest.hash.ends_with('0') { "1" } else { "0" };
            let other = Digest { hash: format!("{}{end}", &digest.hash[..digest.hash.len() - 1]), ..digest.clone() };
            assert!(!has(client, function.number, &other).await?, "{}", function.name);
            assert_eq!(read(client, function.number, &other).await?.0, Code::NotFound as i32, "{}", function.name);
            assert_eq!(read(client, function.number, &digest).await?, (0, bytes), "{}", function.name);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_hash_of_another_length_than_the_functions_is_refused_by_name() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for function in FUNCTIONS {
        for other in FUNCTIONS {
            let digest = other.digest(b"x");
            if digest.hash.len() == function.digest(b"x").hash.len() {
                continue;
            }
            let asked = missing(client, function.number, vec![digest.clone()]).await;
            let message = refused_with(Code::InvalidArgument, asked)?;
            assert!(message.contains(&digest.hash), "{message}");
            let name = blob_name(&format!("{}/", function.name), &digest);
            refused_with(Code::InvalidArgument, client.read(&name, 0, 0).await)?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn one_request_without_a_function_may_not_mix_two() -> Result<()> {
    let target = Target::start().await?;
    let mixed = vec![FUNCTIONS[4].digest(b"x"), SHA256.digest(b"y")];
    let message = refused_with(Code::InvalidArgument, missing(target.client(), 0, mixed.clone()).await)?;
    assert!(message.contains(&mixed[1].hash), "{message}");
    Ok(())
}

#[tokio::test]
async fn a_function_that_is_not_offered_is_refused_by_every_call() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for (number, name, hash_characters) in NOT_OFFERED {
        let digest = Digest { hash: "a".repeat(hash_characters), size_bytes: 1 };
        let message = refused_with(Code::InvalidArgument, missing(client, number, vec![digest.clone()]).await)?;
        assert!(message.contains(&number.to_string()) && message.contains("SHA256"), "{message}");
        refused_with(Code::InvalidArgument, update(client, number, &digest, &Bytes::from_static(b"x")).await)?;
        refused_with(Code::InvalidArgument, read(client, number, &digest).await)?;
        refused_with(Code::InvalidArgument, get_tree(client, number, &digest).await)?;
        refused_with(Code::InvalidArgument, get_result(client, number, &digest).await)?;
        let updated = update_result(client, number, &digest, ActionResult::default()).await;
        refused_with(Code::InvalidArgument, updated)?;
        let asset = AssetName::unique();
        let push = asset::PushBlobRequest { digest_function: number, ..client.push_blob_request(&asset, &digest) };
        refused_with(Code::InvalidArgument, client.push().push_blob(push).await)?;
        let push =
            asset::PushDirectoryRequest { digest_function: number, ..client.push_directory_request(&asset, &digest) };
        refused_with(Code::InvalidArgument, client.push().push_directory(push).await)?;
        let fetch = asset::FetchBlobRequest { digest_function: number, ..client.fetch_blob_request(&asset) };
        refused_with(Code::InvalidArgument, client.fetch().fetch_blob(fetch).await)?;
        let fetch = asset::FetchDirectoryRequest { digest_function: number, ..client.fetch_directory_request(&asset) };
        refused_with(Code::InvalidArgument, client.fetch().fetch_directory(fetch).await)?;
        let segment = format!("{name}/");
        refused_with(Code::InvalidArgument, client.read(&blob_name(&segment, &digest), 0, 0).await)?;
        refused_with(
            Code::InvalidArgument,
            upload(client, &upload_name(&segment, &digest), &Bytes::from_static(b"x")).await,
        )?;
    }
    Ok(())
}

// === trees, results, assets ===

#[tokio::test]
async fn trees_of_every_function_are_walked() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for function in FUNCTIONS {
        let (blobs, root, _) = tree(&function);
        for blob in &blobs {
            function.put(client, blob).await?;
        }
        for number in function.numbers() {
            let directories = get_tree(client, number, &root).await?;
            let encoded: Vec<_> =
                directories.iter().map(|directory| function.digest(&directory.encode_to_vec())).collect();
            assert_eq!(encoded, [root.clone(), function.digest(&blobs[2])], "{}", function.name);
        }
    }
    Ok(())
}

#[tokio::test]
async fn results_of_every_function_are_held_apart_and_whole() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for function in FUNCTIONS {
        let action = function.digest(&new_bytes(32));
        let output = function.put(client, &new_bytes(1000)).await?;
        let (blobs, root, _) = tree(&function);
        let decode = |blob: &Bytes| Directory::decode(blob.clone());
        let message = Tree { root: Some(decode(&blobs[3])?), children: vec![decode(&blobs[2])?] };
        let message = function.put(client, &Bytes::from(message.encode_to_vec())).await?;
        let directory = OutputDirectory {
            path: "out".into(),
            tree_digest: Some(message),
            root_directory_digest: Some(root),
            ..Default::default()
        };
        let file = OutputFile { path: "file".into(), digest: Some(output), ..Default::default() };
        let result =
            ActionResult { output_files: vec![file], output_directories: vec![directory], ..Default::default() };
        for number in function.numbers() {
            update_result(client, number, &action, result.clone()).await?;
        }
        // Nothing of the tree is there yet.
        refused_with(Code::NotFound, get_result(client, function.number, &action).await)?;
        for blob in &blobs {
            function.put(client, blob).await?;
        }
        for number in function.numbers() {
            assert_eq!(get_result(client, number, &action).await?, result, "{}", function.name);
        }
        for other in [SHA256, BLAKE3].iter().filter(|other| other.number != function.number) {
            if other.digest(b"").hash.len() == action.hash.len() {
                refused_with(Code::NotFound, get_result(client, other.number, &action).await)?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_a_result_carries_inline_is_held_under_its_own_function() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for function in FUNCTIONS {
        let (action, stdout) = (function.digest(&new_bytes(32)), new_bytes(500));
        let result = ActionResult { stdout_raw: stdout.clone(), ..Default::default() };
        let stored = update_result(client, function.number, &action, result).await?;
        assert_eq!(stored.stdout_digest, Some(function.digest(&stdout)), "{}", function.name);
        assert_eq!(read(client, function.number, &function.digest(&stdout)).await?, (0, stdout));
    }
    Ok(())
}

#[tokio::test]
async fn one_name_of_an_asset_has_a_content_in_every_function() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let name = AssetName::unique();
    let bytes = new_bytes(1000);
    for function in FUNCTIONS {
        let fetch = asset::FetchBlobRequest { digest_function: function.number, ..client.fetch_blob_request(&name) };
        refused_with(Code::NotFound, client.fetch().fetch_blob(fetch).await)?;
        let push = asset::PushBlobRequest {
            digest_function: function.number,
            ..client.push_blob_request(&name, &function.digest(&bytes))
        };
        refused_with(Code::FailedPrecondition, client.push().push_blob(push.clone()).await)?;
        function.put(client, &bytes).await?;
        client.push().push_blob(push).await?;
    }
    for function in FUNCTIONS {
        let request = asset::FetchBlobRequest { digest_function: function.number, ..client.fetch_blob_request(&name) };
        let answer = client.fetch().fetch_blob(request).await?.into_inner();
        assert_eq!(answer.blob_digest, Some(function.digest(&bytes)), "{}", function.name);
        assert_eq!(answer.digest_function, function.number);
    }
    // A client that names none means SHA-256.
    let answer = client.fetch_blob(&name).await?;
    assert_eq!((answer.blob_digest, answer.digest_function), (Some(digest_of(&bytes)), SHA256.number));
    Ok(())
}

#[tokio::test]
async fn a_pushed_directory_is_whole_in_every_function() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    for function in FUNCTIONS {
        for number in function.numbers() {
            let name = AssetName::unique();
            let (blobs, root, below) = tree(&function);
            let push =
                asset::PushDirectoryRequest { digest_function: number, ..client.push_directory_request(&name, &root) };
            for blob in blobs.iter().filter(|blob| function.digest(blob) != below) {
                function.put(client, blob).await?;
            }
            let message = refused_with(Code::FailedPrecondition, client.push().push_directory(push.clone()).await)?;
            assert!(message.contains(&below.hash), "{message}");
            function.put(client, &blobs[2]).await?;
            client.push().push_directory(push).await?;
            let fetch = asset::FetchDirectoryRequest {
                digest_function: function.number,
                ..client.fetch_directory_request(&name)
            };
            let answer = client.fetch().fetch_directory(fetch).await?.into_inner();
            assert_eq!((answer.root_directory_digest, answer.digest_function), (Some(root), function.number));
        }
    }
    Ok(())
}
