//! `casbah blob verify`: what is damaged in the directory of a stopped node, and nothing else, is named.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use casbah_tests::clients::reapi::Digest;
use casbah_tests::load::new_bytes;
use casbah_tests::process;
use casbah_tests::target::Node;
use serde_json::Value;

const MIB: usize = 1 << 20;

fn verify(dir: &Path, options: &[&str]) -> Result<Output> {
    let dir = dir.to_str().context("the path is not UTF-8")?;
    process::run(&[&["blob", "verify", dir], options].concat())
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A node that holds these blobs and has been stopped.
async fn stopped_node(sizes: &[usize]) -> Result<(Node, Vec<(Digest, Bytes)>)> {
    let node = Node::start(&[])?;
    let client = node.client().await?;
    let mut blobs = Vec::new();
    for size in sizes {
        let bytes = new_bytes(*size);
        blobs.push((client.upload(bytes.clone()).await?, bytes));
    }
    drop(client);
    node.server().stop()?;
    Ok((node, blobs))
}

/// Every file below a directory.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut directories) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() { directories.push(path) } else { found.push(path) }
        }
    }
    Ok(found)
}

/// Flips a bit in the one place of the store that has these bytes.
fn flip(node: &Node, bytes: &[u8]) -> Result<()> {
    let part = bytes.get(bytes.len() / 2..bytes.len() / 2 + 64).context("too short to be found")?;
    for path in files(&node.dir().join("store"))? {
        let content = std::fs::read(&path)?;
        if let Some(at) = content.windows(part.len()).position(|window| window == part) {
            let file = std::fs::OpenOptions::new().write(true).open(path)?;
            file.write_all_at(&[part.first().context("empty")? ^ 0x10], at as u64)?;
            return Ok(());
        }
    }
    anyhow::bail!("the bytes are in no file")
}

fn name(digest: &Digest) -> String {
    format!("{}/{}", digest.hash, digest.size_bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_a_segment_and_one_in_a_large_file_are_named_and_nothing_else() -> Result<()> {
    let (node, blobs) = stopped_node(&[1000, 5000, 3 * MIB, 70_000, MIB, 200]).await?;
    let output = verify(node.dir(), &[])?;
    ensure!(output.status.code() == Some(0), "{}{}", stdout(&output), stderr(&output));
    let total: usize = blobs.iter().map(|(_, bytes)| bytes.len()).sum();
    assert_eq!(stdout(&output), format!("6 blobs ({total} bytes) are good, 0 are not\n"));
    assert_eq!(stderr(&output), "", "no progress into a pipe");

    let damaged: BTreeSet<String> = [1, 2].iter().map(|at| name(&blobs[*at].0)).collect();
    flip(&node, &blobs[1].1)?;
    flip(&node, &blobs[2].1)?;
    // It changes nothing, so that it finds the same again; and the directory of the store does as well.
    for dir in [node.dir().to_owned(), node.dir().join("store")] {
        let output = verify(&dir, &[])?;
        assert_eq!(output.status.code(), Some(1));
        let printed = stdout(&output);
        let lines: Vec<&str> = printed.lines().collect();
        let (last, findings) = lines.split_last().context("nothing was printed")?;
        let named: BTreeSet<String> =
            findings.iter().filter_map(|line| line.split_once(':')).map(|(digest, _)| digest.to_owned()).collect();
        assert_eq!((findings.len(), named), (2, damaged.clone()), "{printed}");
        ensure!(last.starts_with("4 blobs (") && last.ends_with("2 are not"), "{last}");
        let said = stderr(&output);
        ensure!(said.starts_with("error: 2 of 6 blobs") && said.contains("hint:"), "{said}");
    }
    let output = verify(node.dir(), &["--output", "json"])?;
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["good_blobs"], 4);
    assert_eq!(report["index_damaged"], false);
    let findings = report["findings"].as_array().context("no findings")?;
    let named: BTreeSet<String> =
        findings.iter().filter_map(|found| found["blob"].as_str()).map(str::to_owned).collect();
    assert_eq!((findings.len(), named), (2, damaged));
    ensure!(findings.iter().all(|found| found["kind"] == "damaged"), "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_compresses_serves_what_it_was_given_and_uses_less_of_the_disk() -> Result<()> {
    let mut node = Node::start(&["store.compression=zstd"])?;
    let client = node.client().await?;
    let mut blobs = Vec::new();
    for size in [300, 5000, 100_000, 3 * MIB] {
        // Half of each byte is the same everywhere.
        let bytes: Bytes = new_bytes(size).iter().map(|byte| b'a' + byte % 16).collect::<Vec<u8>>().into();
        blobs.push((client.upload(bytes.clone()).await?, bytes));
    }
    node.server().stop()?;
    let used: u64 =
        files(&node.dir().join("store/blobs"))?.iter().map(|path| path.metadata().map_or(0, |m| m.len())).sum();
    ensure!((1..2 * MIB as u64).contains(&used), "3 MiB take {used} bytes");
    let output = verify(node.dir(), &[])?;
    ensure!(output.status.code() == Some(0) && stdout(&output).starts_with("4 blobs ("), "{}", stdout(&output));
    // Whatever is configured later.
    for settings in [&["store.compression=none"][..], &["store.compression=zstd"]] {
        node.start_again(settings)?;
        let client = node.client().await?;
        for (digest, bytes) in &blobs {
            assert!(client.download(digest).await? == *bytes);
            let half = bytes.len() / 2;
            let part = client.read(&client.blob_name(digest), half as i64, 10).await?;
            assert_eq!(part, bytes.slice(half..half + 10));
        }
        drop(client);
        node.server().stop()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_gone_and_one_that_is_cut_are_named() -> Result<()> {
    let (node, blobs) = stopped_node(&[MIB, MIB, MIB, 1000]).await?;
    let file_of = |at: usize| -> Result<PathBuf> {
        let hash = &blobs[at].0.hash;
        let mut all = files(&node.dir().join("store/blobs"))?.into_iter();
        all.find(|path| path.to_string_lossy().contains(hash.as_str())).context("the blob has no file")
    };
    std::fs::remove_file(file_of(0)?)?;
    std::fs::OpenOptions::new().write(true).open(file_of(2)?)?.set_len(5000)?;
    let output = verify(node.dir(), &[])?;
    let printed = stdout(&output);
    assert_eq!(printed.lines().count(), 3, "{printed}");
    for at in [0, 2] {
        ensure!(printed.contains(&name(&blobs[at].0)), "{printed}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_is_said_and_costs_no_blob() -> Result<()> {
    let (node, _) = stopped_node(&[1000, MIB]).await?;
    std::fs::remove_dir_all(node.dir().join("store/index"))?;
    std::fs::create_dir(node.dir().join("store/index"))?;
    let output = verify(node.dir(), &[])?;
    assert_eq!(output.status.code(), Some(1));
    let printed = stdout(&output);
    ensure!(printed.starts_with("the index is damaged") && printed.ends_with("are good, 0 are not\n"), "{printed}");
    ensure!(printed.contains("\n2 blobs ("), "{printed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_in_use_is_refused_with_the_process_that_uses_it() -> Result<()> {
    let node = Node::start(&[])?;
    for dir in [node.dir().to_owned(), node.dir().join("store")] {
        let output = verify(&dir, &[])?;
        assert_eq!(output.status.code(), Some(1));
        let said = stderr(&output);
        ensure!(said.contains(&format!("in use by process {}", node.server().pid())), "{said}");
        ensure!(said.contains("hint:") && output.stdout.is_empty(), "{said}");
    }
    node.server().stop()?;
    assert_eq!(verify(node.dir(), &[])?.status.code(), Some(0));
    Ok(())
}

#[test]
fn a_directory_without_a_store_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for (path, part) in [(dir.path().to_owned(), "no blob store"), (dir.path().join("nowhere"), "nowhere")] {
        let output = verify(&path, &[])?;
        assert_eq!(output.status.code(), Some(1));
        ensure!(stderr(&output).contains(part), "{}", stderr(&output));
    }
    std::fs::create_dir(dir.path().join("store"))?;
    std::fs::write(dir.path().join("store/format"), "casbah store 99\n")?;
    let output = verify(dir.path(), &[])?;
    ensure!(stderr(&output).contains("casbah store 99"), "{}", stderr(&output));
    Ok(())
}
