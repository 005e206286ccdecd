//! ActionCache: a hit is whole (G5), and results are kept per instance and action.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use casbah_tests::clients::reapi::action_cache_client::ActionCacheClient;
use casbah_tests::clients::reapi::{
    ActionResult, Digest, Directory, ExecutedActionMetadata, GetActionResultRequest, NodeProperties, OutputDirectory,
    OutputFile, OutputSymlink, Tree as TreeMessage, UpdateActionResultRequest,
};
use casbah_tests::clients::{Client, Tree, digest_of, refused_with};
use casbah_tests::load::new_bytes;
use casbah_tests::process::{Config, Listener};
use casbah_tests::target::{Node, Target};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use prost::Message as _;
use tonic::{Code, Status};

/// An action nobody has asked for before.
fn new_action() -> Digest {
    digest_of(&new_bytes(32))
}

async fn update(client: &Client, action: &Digest, result: ActionResult) -> Result<ActionResult, Status> {
    let request = UpdateActionResultRequest {
        instance_name: client.instance().to_owned(),
        action_digest: Some(action.clone()),
        action_result: Some(result),
        ..Default::default()
    };
    Ok(ActionCacheClient::new(client.channel()).update_action_result(request).await?.into_inner())
}

async fn get(client: &Client, action: &Digest) -> Result<ActionResult, Status> {
    get_with(client, GetActionResultRequest { action_digest: Some(action.clone()), ..Default::default() }).await
}

async fn get_with(client: &Client, request: GetActionResultRequest) -> Result<ActionResult, Status> {
    let request = GetActionResultRequest { instance_name: client.instance().to_owned(), ..request };
    Ok(ActionCacheClient::new(client.channel()).get_action_result(request).await?.into_inner())
}

fn file(path: &str, digest: Digest) -> OutputFile {
    OutputFile { path: path.to_owned(), digest: Some(digest), ..Default::default() }
}

fn timestamp(seconds: i64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds, nanos: 6 }
}

/// The `Tree` message of a tree: its directories in one blob.
fn tree_message(tree: &Tree) -> Vec<u8> {
    let directories = || tree.blobs.iter().filter_map(|blob| Directory::decode(blob.clone()).ok());
    let root = directories().find(|directory| digest_of(&directory.encode_to_vec()) == tree.root);
    TreeMessage { root, children: directories().collect() }.encode_to_vec()
}

#[tokio::test]
async fn a_result_comes_back_as_it_was_given() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let output = client.upload(new_bytes(100)).await?;
    let result = ActionResult { output_files: vec![file("out/a", output)], exit_code: 3, ..Default::default() };
    let action = new_action();
    assert_eq!(update(client, &action, result.clone()).await?, result);
    assert_eq!(get(client, &action).await?, result);
    Ok(())
}

/// `NOT_FOUND`: "The requested `ActionResult` is not in the cache."
#[tokio::test]
async fn an_unknown_action_is_not_found_and_named() -> Result<()> {
    let target = Target::start().await?;
    let action = new_action();
    let message = refused_with(Code::NotFound, get(target.client(), &action).await)?;
    assert!(message.contains(&action.hash), "{message}");
    Ok(())
}

#[tokio::test]
async fn the_last_update_wins() -> Result<()> {
    let target = Target::start().await?;
    let action = new_action();
    for exit_code in [1, 2, 3] {
        update(target.client(), &action, ActionResult { exit_code, ..Default::default() }).await?;
    }
    assert_eq!(get(target.client(), &action).await?.exit_code, 3);
    Ok(())
}

/// "A server may support multiple instances of the execution system (with their own workers, storage, caches, etc.)."
#[tokio::test]
async fn instances_do_not_see_each_others_results() -> Result<()> {
    let target = Target::start().await?;
    let (one, other) = (target.client().with_instance("team/a"), target.client().with_instance("team/b"));
    let action = new_action();
    update(&one, &action, ActionResult { exit_code: 7, ..Default::default() }).await?;
    assert_eq!(get(&one, &action).await?.exit_code, 7);
    refused_with(Code::NotFound, get(&other, &action).await)?;
    refused_with(Code::NotFound, get(target.client(), &action).await)?;
    Ok(())
}

/// "Implementations SHOULD ensure that any blobs referenced from the" CAS "are available at the time of returning the"
/// result.
#[tokio::test]
async fn a_result_is_not_a_hit_while_anything_it_names_is_absent() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let absent = || digest_of(&new_bytes(10));
    let directory = |tree: Option<Digest>, root: Option<Digest>| OutputDirectory {
        path: "d".into(),
        tree_digest: tree,
        root_directory_digest: root,
        ..Default::default()
    };
    // A tree whose directories are there, and whose one file is not.
    let hollow = Tree::builder().file("a/b/file", new_bytes(20)).build();
    let message = client.upload(tree_message(&hollow)).await?;
    // A tree that names a directory and does not hold it; its files and the directory are there.
    let whole = Tree::builder().file("a/b/file", new_bytes(20)).build();
    client.upload_tree(&whole).await?;
    let torn = TreeMessage { children: Vec::new(), ..TreeMessage::decode(tree_message(&whole).as_slice())? };
    let torn = client.upload(torn.encode_to_vec()).await?;
    for blob in &hollow.blobs {
        if Directory::decode(blob.clone()).is_ok_and(|directory| directory.encoded_len() == blob.len()) {
            client.upload(blob.clone()).await?;
        }
    }
    let results = [
        ActionResult { output_files: vec![file("a", absent())], ..Default::default() },
        ActionResult { stdout_digest: Some(absent()), ..Default::default() },
        ActionResult { stderr_digest: Some(absent()), ..Default::default() },
        ActionResult { output_directories: vec![directory(Some(absent()), None)], ..Default::default() },
        ActionResult { output_directories: vec![directory(Some(message), None)], ..Default::default() },
        ActionResult { output_directories: vec![directory(Some(torn), None)], ..Default::default() },
        ActionResult { output_directories: vec![directory(None, Some(absent()))], ..Default::default() },
        ActionResult { output_directories: vec![directory(None, Some(hollow.root))], ..Default::default() },
    ];
    for result in results {
        let action = new_action();
        update(client, &action, result.clone()).await?;
        let message = refused_with(Code::NotFound, get(client, &action).await)?;
        assert!(message.contains("no longer whole"), "{result:?}: {message}");
    }
    Ok(())
}

/// UpdateActionResult: "Action, Command and outputs are uploaded before". Those who do not keep to it harm nobody: what
/// counts is what is there when the result is asked for.
#[tokio::test]
async fn a_result_becomes_a_hit_when_what_it_names_has_come() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let (output, action) = (new_bytes(100), new_action());
    let result = ActionResult { output_files: vec![file("a", digest_of(&output))], ..Default::default() };
    update(client, &action, result.clone()).await?;
    refused_with(Code::NotFound, get(client, &action).await)?;
    client.upload(output).await?;
    assert_eq!(get(client, &action).await?, result);
    Ok(())
}

#[tokio::test]
async fn what_is_not_content_comes_back_untouched() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let link = |path: &str, target: &str| OutputSymlink {
        path: path.into(),
        target: target.into(),
        node_properties: Some(NodeProperties { mtime: Some(timestamp(5)), ..Default::default() }),
    };
    let links = vec![link("out/absolute", "/usr/bin/env"), link("out/upward", "../../x"), link("out/dangling", "gone")];
    let root = Tree::builder().directory("empty").build();
    client.upload_tree(&root).await?;
    #[allow(deprecated, reason = "clients of version 2.0 send them")]
    let result = ActionResult {
        output_symlinks: links.clone(),
        output_file_symlinks: links.clone(),
        output_directory_symlinks: links,
        output_directories: vec![OutputDirectory {
            root_directory_digest: Some(root.root),
            is_topologically_sorted: true,
            ..Default::default()
        }],
        exit_code: -1,
        execution_metadata: Some(ExecutedActionMetadata {
            worker: "worker-7".into(),
            queued_timestamp: Some(timestamp(1)),
            worker_completed_timestamp: Some(timestamp(2)),
            virtual_execution_duration: Some(prost_types::Duration { seconds: 3, nanos: 4 }),
            auxiliary_metadata: vec![prost_types::Any { type_url: "x/y".into(), value: vec![0, 255] }],
            ..Default::default()
        }),
        ..Default::default()
    };
    let action = new_action();
    assert_eq!(update(client, &action, result.clone()).await?, result);
    assert_eq!(get(client, &action).await?, result);
    Ok(())
}

#[tokio::test]
async fn a_result_with_a_whole_tree_is_a_hit() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let tree = Tree::builder().file("a/b/c", new_bytes(20)).file("a/d", new_bytes(30)).directory("empty").build();
    client.upload_tree(&tree).await?;
    let message = client.upload(tree_message(&tree)).await?;
    let result = ActionResult {
        output_directories: vec![OutputDirectory {
            path: "out".into(),
            tree_digest: Some(message),
            root_directory_digest: Some(tree.root),
            ..Default::default()
        }],
        ..Default::default()
    };
    let action = new_action();
    update(client, &action, result.clone()).await?;
    assert_eq!(get(client, &action).await?, result);
    Ok(())
}

/// "Server implementations MAY modify the `UpdateActionResultRequest.action_result` and return an equivalent value."
#[tokio::test]
async fn what_is_sent_inside_a_result_is_moved_into_the_store() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let (stdout, content) = (new_bytes(50), new_bytes(60));
    let named = OutputFile { contents: content.clone(), ..file("a", digest_of(&content)) };
    let result = ActionResult { output_files: vec![named], stdout_raw: stdout.clone(), ..Default::default() };
    let action = new_action();
    update(client, &action, result).await?;
    let back = get(client, &action).await?;
    assert_eq!(back.stdout_digest, Some(digest_of(&stdout)));
    assert!(back.stdout_raw.is_empty());
    assert_eq!(client.download(&digest_of(&stdout)).await?, stdout);
    assert_eq!(client.download(&digest_of(&content)).await?, content);
    Ok(())
}

/// "A hint to the server to inline the contents of the listed output files."
#[tokio::test]
async fn outputs_are_sent_along_when_asked_for() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let blobs = [new_bytes(50), new_bytes(60), new_bytes(70), new_bytes(80)];
    let mut digests = Vec::new();
    for blob in &blobs {
        digests.push(client.upload(blob.clone()).await?);
    }
    let result = ActionResult {
        stdout_digest: Some(digests[0].clone()),
        stderr_digest: Some(digests[1].clone()),
        output_files: vec![file("wanted", digests[2].clone()), file("unwanted", digests[3].clone())],
        ..Default::default()
    };
    let action = new_action();
    update(client, &action, result).await?;
    let request = GetActionResultRequest {
        action_digest: Some(action.clone()),
        inline_stdout: true,
        inline_stderr: true,
        inline_output_files: vec!["wanted".into()],
        ..Default::default()
    };
    let back = get_with(client, request).await?;
    assert_eq!((&back.stdout_raw, &back.stderr_raw), (&blobs[0], &blobs[1]));
    assert_eq!((&back.output_files[0].contents, back.output_files[1].contents.len()), (&blobs[2], 0));
    assert!(get(client, &action).await?.stdout_raw.is_empty(), "nobody asked");
    Ok(())
}

/// Inlining is "a hint": a result that does not fit into a message helps nobody.
#[tokio::test]
async fn what_is_sent_along_never_makes_an_answer_that_clients_do_not_take() -> Result<()> {
    const CLIENT_MESSAGE_BYTES: usize = 4 << 20;
    let target = Target::start().await?;
    let client = target.client();
    let stdout = client.upload(new_bytes(900 << 10)).await?;
    let output = client.upload(new_bytes(10)).await?;
    // A result of 3.5 MiB, in which each output could be sent along, if not all of them.
    let path = |place: usize| format!("{place:07}/{}", "p".repeat(900));
    let output_files: Vec<OutputFile> = (0..3500).map(|place| file(&path(place), output.clone())).collect();
    let result = ActionResult { output_files, stdout_digest: Some(stdout), ..Default::default() };
    assert!(result.encoded_len() > CLIENT_MESSAGE_BYTES - (900 << 10));
    let action = new_action();
    update(client, &action, result).await?;
    let request = GetActionResultRequest {
        action_digest: Some(action),
        inline_stdout: true,
        inline_output_files: (0..3500).map(path).collect(),
        ..Default::default()
    };
    let back = get_with(client, request).await?;
    assert!(back.encoded_len() <= CLIENT_MESSAGE_BYTES, "{}", back.encoded_len());
    assert!(back.stdout_raw.is_empty(), "there was no room");
    assert!(back.output_files.iter().all(|file| file.contents.len() == 10), "there was room");
    Ok(())
}

#[tokio::test]
async fn what_is_too_large_to_be_sent_along_is_left_to_be_read() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let large = client.upload(new_bytes(5 << 20)).await?;
    let action = new_action();
    update(client, &action, ActionResult { stdout_digest: Some(large.clone()), ..Default::default() }).await?;
    let request = GetActionResultRequest { action_digest: Some(action), inline_stdout: true, ..Default::default() };
    let back = get_with(client, request).await?;
    assert_eq!((back.stdout_digest, back.stdout_raw.len()), (Some(large), 0));
    Ok(())
}

/// `INVALID_ARGUMENT`: "One or more arguments are invalid."
#[tokio::test]
async fn a_result_that_is_of_no_use_is_refused() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let nameless = ActionResult {
        output_files: vec![OutputFile { path: "a".into(), ..Default::default() }],
        ..Default::default()
    };
    let message = refused_with(Code::InvalidArgument, update(client, &new_action(), nameless).await)?;
    assert!(message.contains("\"a\""), "{message}");
    let output = client.upload(new_bytes(10)).await?;
    let link = |path: &str, target: &str| {
        vec![OutputSymlink { path: path.into(), target: target.into(), ..Default::default() }]
    };
    let directory =
        |path: &str| OutputDirectory { path: path.into(), tree_digest: Some(output.clone()), ..Default::default() };
    #[allow(deprecated, reason = "clients of version 2.0 send them")]
    let misplaced = [
        ActionResult { output_files: vec![file("", output.clone())], ..Default::default() },
        ActionResult { output_files: vec![file("/a", output.clone())], ..Default::default() },
        ActionResult { output_directories: vec![directory("/a")], ..Default::default() },
        ActionResult { output_directories: vec![OutputDirectory::default()], ..Default::default() },
        ActionResult { output_symlinks: link("", "target"), ..Default::default() },
        ActionResult { output_symlinks: link("/a", "target"), ..Default::default() },
        ActionResult { output_symlinks: link("a", ""), ..Default::default() },
        ActionResult { output_file_symlinks: link("a", ""), ..Default::default() },
        ActionResult { output_directory_symlinks: link("", "target"), ..Default::default() },
    ];
    for result in misplaced {
        let action = new_action();
        refused_with(Code::InvalidArgument, update(client, &action, result.clone()).await)
            .with_context(|| format!("{result:?}"))?;
        refused_with(Code::NotFound, get(client, &action).await)?;
    }
    let lying = ActionResult {
        output_files: vec![OutputFile { contents: new_bytes(5), ..file("b", digest_of(b"other")) }],
        ..Default::default()
    };
    refused_with(Code::InvalidArgument, update(client, &new_action(), lying).await)?;
    let bad_action = Digest { hash: "xyz".into(), size_bytes: 1 };
    refused_with(Code::InvalidArgument, update(client, &bad_action, ActionResult::default()).await)?;
    refused_with(Code::InvalidArgument, get(client, &bad_action).await)?;
    Ok(())
}

#[tokio::test]
async fn of_a_result_that_is_refused_nothing_is_kept() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let (good, stdout) = (new_bytes(70), new_bytes(50));
    let good_file = OutputFile { contents: good.clone(), ..file("good", digest_of(&good)) };
    let named = |digest: Digest| ActionResult {
        output_files: vec![good_file.clone()],
        stdout_raw: stdout.clone(),
        stdout_digest: Some(digest),
        ..Default::default()
    };
    let nameless = OutputFile { path: "b".into(), ..Default::default() };
    let refused = [
        named(digest_of(b"other")),
        named(Digest { size_bytes: 49, ..digest_of(&stdout) }),
        named(Digest { hash: "x".into(), size_bytes: 50 }),
        ActionResult { output_files: vec![good_file.clone(), nameless], ..Default::default() },
    ];
    for result in refused {
        let action = new_action();
        refused_with(Code::InvalidArgument, update(client, &action, result).await)?;
        refused_with(Code::NotFound, get(client, &action).await)?;
        assert!(!client.has(&digest_of(&good)).await? && !client.has(&digest_of(&stdout)).await?);
    }
    let action = new_action();
    update(client, &action, named(digest_of(&stdout))).await?;
    assert!(client.has(&digest_of(&good)).await? && client.has(&digest_of(&stdout)).await?);
    assert_eq!(get(client, &action).await?.stdout_digest, Some(digest_of(&stdout)));
    Ok(())
}

#[tokio::test]
async fn a_reader_gets_results_and_updates_none() -> Result<()> {
    let config = Config::new()?.listener(&Listener::plaintext()).listener(&Listener::plaintext().allow(&["read"]));
    let server = config.start()?;
    let writer = Client::plaintext(&server.endpoint(0).authority()).await?;
    let reader = Client::plaintext(&server.endpoint(1).authority()).await?;
    let action = new_action();
    update(&writer, &action, ActionResult { exit_code: 5, ..Default::default() }).await?;
    assert_eq!(get(&reader, &action).await?.exit_code, 5);
    refused_with(Code::PermissionDenied, update(&reader, &action, ActionResult::default()).await)?;
    assert_eq!(get(&writer, &action).await?.exit_code, 5);
    Ok(())
}

#[tokio::test]
async fn results_survive_a_kill() -> Result<()> {
    let mut node = Node::start(&[])?;
    let action = new_action();
    update(&node.client().await?, &action, ActionResult { exit_code: 9, ..Default::default() }).await?;
    node.kill9_and_restart(&[])?;
    assert_eq!(get(&node.client().await?, &action).await?.exit_code, 9);
    Ok(())
}

/// "Each path needs to exactly match one file path": one that does not is a hint that nothing comes of.
#[tokio::test]
async fn a_file_that_the_result_does_not_have_cannot_be_sent_along_and_is_no_error() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let output = client.upload(new_bytes(100)).await?;
    let result = ActionResult { output_files: vec![file("out/a", output)], ..Default::default() };
    let action = new_action();
    update(client, &action, result.clone()).await?;
    let request = GetActionResultRequest {
        action_digest: Some(action),
        inline_stdout: true,
        inline_stderr: true,
        inline_output_files: vec!["a".into(), "out".into(), "out/a/".into(), String::new()],
        ..Default::default()
    };
    assert_eq!(get_with(client, request).await?, result);
    Ok(())
}

/// The cache "addresses the `ActionResult` by a digest of the encoded `Action`": of the digest the size is a part.
#[tokio::test]
async fn the_right_hash_with_another_size_is_another_action() -> Result<()> {
    let target = Target::start().await?;
    let client = target.client();
    let action = new_action();
    update(client, &action, ActionResult { exit_code: 4, ..Default::default() }).await?;
    let other = Digest { size_bytes: action.size_bytes + 1, ..action.clone() };
    refused_with(Code::NotFound, get(client, &other).await)?;
    assert_eq!(get(client, &action).await?.exit_code, 4);
    Ok(())
}

/// `INVALID_ARGUMENT`: "One or more arguments are invalid."
#[tokio::test]
async fn a_request_without_an_action_or_without_a_result_is_refused() -> Result<()> {
    let target = Target::start().await?;
    let mut cache = ActionCacheClient::new(target.client().channel());
    let action_digest = Some(new_action());
    let without_result = UpdateActionResultRequest { action_digest, ..Default::default() };
    let without_action =
        UpdateActionResultRequest { action_result: Some(ActionResult::default()), ..Default::default() };
    for request in [without_result, without_action] {
        refused_with(Code::InvalidArgument, cache.update_action_result(request).await)?;
    }
    refused_with(Code::InvalidArgument, cache.get_action_result(GetActionResultRequest::default()).await)?;
    Ok(())
}

/// "The lifetimes of the referenced blobs SHOULD be increased if necessary and applicable."
#[tokio::test]
async fn a_result_that_is_asked_for_keeps_all_that_it_names() -> Result<()> {
    let node = Node::start(&["store.capacity=22MB", "store.retention_floor=0s"])?;
    let client = node.client().await?;
    let tree = Tree::builder().file("a/b/c", new_bytes(20_000)).file("d", new_bytes(300)).directory("empty").build();
    client.upload_tree(&tree).await?;
    let directory = OutputDirectory {
        path: "out".into(),
        tree_digest: Some(client.upload(tree_message(&tree)).await?),
        root_directory_digest: Some(tree.root),
        ..Default::default()
    };
    let result = ActionResult {
        output_files: vec![file("file", client.upload(new_bytes(2_000_000)).await?)],
        output_directories: vec![directory],
        stdout_digest: Some(client.upload(new_bytes(500)).await?),
        stderr_digest: Some(client.upload(new_bytes(600)).await?),
        ..Default::default()
    };
    let action = new_action();
    update(&client, &action, result.clone()).await?;
    let forgotten = client.upload(new_bytes(1_000_000)).await?;
    // Twice the quota passes through.
    for _ in 0..44 {
        client.upload(new_bytes(1_000_000)).await?;
        assert_eq!(get(&client, &action).await?, result);
    }
    assert!(!client.has(&forgotten).await?, "nothing was evicted");
    Ok(())
}

/// The processor time of the server for a call, over as many as show.
async fn cost_of_get(node: &Node, client: &Client, action: &Digest) -> Result<Duration> {
    const CALLS: u32 = 4000;
    const AT_ONCE: usize = 16;
    let before = node.server().cpu_time()?;
    let calls = stream::iter(0..CALLS).map(|_| async { get(client, action).await.map(drop) });
    calls.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    Ok((node.server().cpu_time()? - before) / CALLS)
}

#[tokio::test(flavor = "multi_thread")]
async fn to_look_for_a_hundred_outputs_costs_at_most_three_times_as_much_as_to_look_for_none() -> Result<()> {
    let node = Node::start(&[])?;
    let client = node.client().await?;
    let path = |number| format!("bazel-out/k8-fastbuild/bin/package/output-{number}.o");
    let mut files = Vec::new();
    for number in 0..100 {
        files.push(file(&path(number), client.upload(new_bytes(1000)).await?));
    }
    // As large, and nothing to look for.
    let link = |number| OutputSymlink { path: path(number), target: "t".repeat(70), ..Default::default() };
    let with = ActionResult { output_files: files, ..Default::default() };
    let without = ActionResult { output_symlinks: (0..100).map(link).collect(), ..Default::default() };
    ensure!(with.encoded_len() < without.encoded_len() * 5 / 4);
    let mut ratios = Vec::new();
    for _ in 0..3 {
        let mut costs = Vec::new();
        for result in [&without, &with] {
            let action = new_action();
            update(&client, &action, result.clone()).await?;
            costs.push(cost_of_get(&node, &client, &action).await?);
        }
        ratios.push(costs[1].as_secs_f64() / costs[0].as_secs_f64());
        eprintln!("{:?} without and {:?} with outputs, {:.2} times", costs[0], costs[1], ratios[ratios.len() - 1]);
    }
    // The machine is busy with other tests.
    ensure!(ratios.iter().any(|ratio| *ratio <= 3.0), "{ratios:?}");
    Ok(())
}
