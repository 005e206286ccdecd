//! The real Bazel against the server: what its users do (docs/clients/bazel.md), and what goes wrong for them.

use anyhow::{Result, ensure};
use casbah_tests::authority::Authority;
use casbah_tests::bazel::{Bazel, Outcome, Processes, RemoteCache, Workspace};
use casbah_tests::clients::{AssetName, Client};
use casbah_tests::load::new_bytes;
use casbah_tests::process::{Config, Listener};
use casbah_tests::target::Node;
use sha2::{Digest as _, Sha256};

/// Actions of the sample workspace, its tests included.
const ACTIONS: u32 = 110;

const ALL: [&str; 1] = ["//..."];

/// One more action of the sample workspace.
const COUNT: &str = r#"
genrule(
    name = "count",
    srcs = [":forest", "large-0.bin"],
    outs = ["count.txt"],
    cmd = "cat $(location :forest)/*/trunk $(location large-0.bin) | wc -c > $@",
)
"#;

/// Cold: everything is run here, and its results are sent to the cache.
fn build_cold(bazel: &Bazel, cache: &RemoteCache) -> Result<Outcome> {
    let built = bazel.test(cache, &ALL)?.succeeded()?.no_hits()?;
    ensure!(built.processes()?.local >= ACTIONS, "{:?}", built.processes()?);
    Ok(built)
}

/// With nothing at hand but the cache: nothing is run.
fn build_warm(bazel: &Bazel, cache: &RemoteCache) -> Result<Outcome> {
    bazel.clean()?;
    let built = bazel.test(cache, &ALL)?.succeeded()?.all_hits()?;
    ensure!(built.processes()?.hits >= ACTIONS, "{:?}", built.processes()?);
    ensure!(built.stdout.contains("(cached) PASSED"), "the tests were run again\n{}", built.stdout);
    Ok(built)
}

fn cache_of(node: &Node) -> RemoteCache {
    RemoteCache::of(node.server().endpoint(0))
}

// === what is built once ===

#[test]
fn what_one_machine_has_built_another_gets_to_the_last_byte_and_runs_nothing() -> Result<()> {
    let node = Node::start(&[])?;
    let workspace = Workspace::sample()?;
    let builder = Bazel::new(&workspace)?;
    let cold = build_cold(&builder, &cache_of(&node))?.processes()?;
    let built = builder.outputs()?;

    let other = Bazel::new(&workspace)?;
    let warm = other.test(&cache_of(&node), &ALL)?.succeeded()?.all_hits()?;
    assert_eq!(warm.processes()?, Processes { hits: cold.local, local: 0, internal: cold.internal });
    // The tree artifact's files, the large ones, those of a hundred actions.
    assert!(built.count() > 130, "{}", built.count());
    other.outputs()?.same_as(&built)
}

#[test]
fn minimal_and_toplevel_downloads_bring_what_was_asked_for_and_no_more() -> Result<()> {
    let node = Node::start(&[])?;
    let workspace = Workspace::sample()?;
    let bazel = Bazel::new(&workspace)?;
    let cache = cache_of(&node);
    build_cold(&bazel, &cache)?;
    let built = bazel.outputs()?;

    let minimal = cache.clone().with("--remote_download_minimal");
    build_warm(&bazel, &minimal)?;
    for output in ["leaf-7.txt", "bundle.txt", "large-0.bin", "forest/climb", "walk.txt"] {
        assert!(!bazel.has_output(output), "{output} was downloaded");
    }
    bazel.clean()?;
    let toplevel = cache.clone().with("--remote_download_toplevel");
    bazel.test(&toplevel, &["//:walk", "//:large-1", "//:bundle_test"])?.succeeded()?.all_hits()?;
    for (output, wanted) in [("walk.txt", true), ("large-1.bin", true), ("leaf-7.txt", false), ("large-0.bin", false)] {
        assert_eq!(bazel.has_output(output), wanted, "{output}");
    }
    build_warm(&bazel, &cache)?;
    bazel.outputs()?.same_as(&built)?;

    bazel.clean()?;
    // An action that nobody has run before needs the tree and a file, which have never been here.
    workspace.append("BUILD", COUNT)?;
    let built_more = bazel.test(&minimal, &["//:count", "//:bundle_test"])?.succeeded()?;
    assert_eq!(built_more.processes()?.local, 1);
    assert_eq!(bazel.read_output("count.txt")?.trim(), "3492765");
    Ok(())
}

#[test]
fn a_client_that_does_not_upload_leaves_nothing_and_profits_from_others() -> Result<()> {
    let node = Node::start(&[])?;
    let bazel = Bazel::new(&Workspace::sample()?)?;
    let cache = cache_of(&node);
    build_cold(&bazel, &cache.clone().not_uploading())?;
    bazel.clean()?;
    build_cold(&bazel, &cache)?;
    build_warm(&bazel, &cache.not_uploading())?;
    Ok(())
}

// === what is fetched ===

/// `sha256-BASE64`, the form of Bazel's qualifier `checksum.sri`.
fn sri(bytes: &[u8]) -> String {
    const DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = "sha256-".to_owned();
    for group in Sha256::digest(bytes).chunks(3) {
        let bits = (0..3).fold(0, |bits, place| bits << 8 | usize::from(group.get(place).copied().unwrap_or(0)));
        for place in 0..4 {
            let digit = DIGITS.chars().nth(bits >> (18 - 6 * place) & 63).expect("six bits are below 64");
            text.push(if place > group.len() { '=' } else { digit });
        }
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_fetched_by_its_url_once_it_was_pushed() -> Result<()> {
    const URL: &str = "https://archive.invalid/notice.txt";
    let node = Node::start(&[])?;
    let client = node.client().await?;
    let notice = b"a file from elsewhere\n".as_slice();
    let digest = client.upload(notice).await?;
    let workspace = Workspace::sample()?;
    workspace.append(
        "WORKSPACE",
        &format!(
            "load(\"@bazel_tools//tools/build_defs/repo:http.bzl\", \"http_file\")\n\
             http_file(name = \"notice\", sha256 = \"{}\", urls = [\"{URL}\"])\n",
            digest.hash
        ),
    )?;
    let copy = "genrule(name = \"copy\", srcs = [\"@notice//file\"], outs = [\"copy.txt\"], cmd = \"cat $< > $@\")\n";
    workspace.append("BUILD", copy)?;
    let bazel = Bazel::new(&workspace)?;
    let downloader = format!("--experimental_remote_downloader=grpc://localhost:{}", node.server().port(0));
    let cache = cache_of(&node).with(&downloader);

    bazel.build(&cache, &["//:copy"])?.failed()?.saying("NOT_FOUND")?;
    client.push_blob(&AssetName::new(URL).qualified("checksum.sri", &sri(notice)), &digest).await?;
    bazel.build(&cache, &["//:copy"])?.succeeded()?;
    assert_eq!(bazel.read_output("copy.txt")?.as_bytes(), notice);
    Ok(())
}

// === who may ===

#[test]
fn results_are_written_with_a_certificate_and_read_by_everybody() -> Result<()> {
    let authority = Authority::new("the company")?;
    let config = Config::new()?;
    let server = authority.server()?.write(config.dir(), "server")?;
    let client = authority.client("ci-1")?.write(config.dir(), "client")?;
    let trusted = config.dir().join("ca.crt");
    std::fs::write(&trusted, authority.certificate_pem())?;
    let config = config
        .listener(&Listener::tls(&server)?.authorities(&trusted)?)
        .listener(&Listener::tls(&server)?.allow(&["read"]))
        .listener(&Listener::plaintext().allow(&["read"]));
    let server = config.start()?;
    let [writing, public, plaintext] = [0, 1, 2].map(|place| RemoteCache::of(server.endpoint(place)));
    let writing = writing.trusting(&trusted);

    let bazel = Bazel::new(&Workspace::sample()?)?;
    bazel.test(&writing, &ALL)?.failed()?.saying("certificate required")?;
    build_cold(&bazel, &writing.clone().showing(&client))?;
    let built = bazel.outputs()?;
    build_warm(&bazel, &writing.showing(&client))?;
    for reading in [public.trusting(&trusted), plaintext] {
        // Bazel says so before it has begun.
        bazel.test(&reading, &ALL)?.failed()?.saying("not authorized to write local results")?;
        build_warm(&bazel, &reading.not_uploading())?;
        bazel.outputs()?.same_as(&built)?;
    }
    Ok(())
}

#[test]
fn instances_with_slashes_in_their_names_do_not_see_each_other() -> Result<()> {
    let node = Node::start(&[])?;
    let bazel = Bazel::new(&Workspace::sample()?)?;
    let [ours, theirs] = ["team/a/linux", "team/a"].map(|name| cache_of(&node).instance(name));
    build_cold(&bazel, &ours)?;
    let built = bazel.outputs()?;
    bazel.clean()?;
    build_cold(&bazel, &theirs.clone().not_uploading())?;
    build_warm(&bazel, &ours)?;
    bazel.outputs()?.same_as(&built)
}

// === what goes wrong ===

#[test]
fn results_outlive_a_crash_of_the_server() -> Result<()> {
    let mut node = Node::start(&[])?;
    let bazel = Bazel::new(&Workspace::sample()?)?;
    build_cold(&bazel, &cache_of(&node))?;
    let built = bazel.outputs()?;
    let gone = cache_of(&node);
    node.server().kill9()?;

    bazel.clean()?;
    bazel.test(&gone, &ALL)?.failed()?;
    build_cold(&bazel, &gone.with("--remote_local_fallback"))?;
    node.start_again(&[])?;
    build_warm(&bazel, &cache_of(&node))?;
    bazel.outputs()?.same_as(&built)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_whose_files_were_evicted_is_built_again() -> Result<()> {
    let node = Node::start(&["store.capacity=22MB", "store.retention_floor=0s"])?;
    let client: Client = node.client().await?;
    let bazel = Bazel::new(&Workspace::sample()?)?;
    let cache = cache_of(&node);
    // The large ones come last and are evicted last.
    bazel.test(&cache, &["//:walk", "//:pair", "//:bundle_test", "//:forest_test"])?.succeeded()?;
    bazel.test(&cache, &ALL)?.succeeded()?;
    let built = bazel.outputs()?;
    for _ in 0..14 {
        client.upload(new_bytes(1_000_000)).await?;
    }

    bazel.clean()?;
    let again = bazel.test(&cache, &ALL)?.succeeded()?.processes()?;
    assert!(again.local >= 100, "nothing was evicted: {again:?}");
    bazel.outputs()?.same_as(&built)?;
    // And is there for the next one.
    build_warm(&bazel, &cache)?;
    bazel.outputs()?.same_as(&built)
}
