//! `casbah dev`: a whole cluster on this machine in one command.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use casbah_tests::authority::Identity;
use casbah_tests::clients::{AssetName, Client, Trust, refused_with};
use casbah_tests::deadline::eventually;
use casbah_tests::load::new_bytes;
use casbah_tests::process::{self, Process, Server};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tonic::Code;

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}

/// A running `casbah dev --output json`, and what it printed.
struct Dev {
    process: Process,
    printed: Value,
}

impl Dev {
    fn start(dir: &Path, options: &[&str]) -> Result<Dev> {
        let args = [&["dev", "--output", "json", "--port-base", "0", "--dir", text(dir)?], options].concat();
        let process = Process::spawn(process::command(&args))?;
        let line = process.wait_for_stdout("{")?;
        let printed = serde_json::from_str(&line).with_context(|| format!("not one line of JSON: {line}"))?;
        Ok(Dev { process, printed })
    }

    fn text(&self, path: &str) -> Result<String> {
        let value = self.printed.pointer(path).with_context(|| format!("no {path} in {}", self.printed))?;
        Ok(value.as_str().with_context(|| format!("{path} is not a string in {}", self.printed))?.to_owned())
    }

    /// `host:port`, whether or not a scheme stands before.
    fn authority(&self, path: &str) -> Result<String> {
        let address = self.text(path)?;
        Ok(address.rsplit_once("://").map_or(address.as_str(), |(_, authority)| authority).to_owned())
    }

    fn node_pids(&self) -> Result<Vec<u64>> {
        let nodes = self.printed.get("nodes").and_then(Value::as_array).context("no nodes")?;
        let pids = nodes.iter().map(|node| node.get("pid").and_then(Value::as_u64).context("no pid"));
        pids.collect()
    }

    /// `kill -9` of a node.
    fn kill(&self, place: usize) -> Result<()> {
        let pid = i32::try_from(*self.node_pids()?.get(place).context("no such node")?)?;
        // Ours: it is a child of the process that we started and have not reaped.
        Ok(kill_process(Pid::from_raw(pid).context("no pid")?, Signal::KILL)?)
    }

    /// SIGINT to the parent alone, as a supervisor does; the children must not outlive it.
    fn stop(self) -> Result<()> {
        self.stop_all_but(&[])
    }

    /// The same; these nodes have been killed before, and their numbers may be others'.
    fn stop_all_but(self, gone: &[usize]) -> Result<()> {
        let pids = self.node_pids()?;
        ensure!(!pids.is_empty(), "no nodes in {}", self.printed);
        let pids = pids.into_iter().enumerate().filter(|(place, _)| !gone.contains(place)).map(|(_, pid)| pid);
        self.process.signal(Signal::INT)?;
        self.process.wait_exit()?;
        for pid in pids {
            ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is left");
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_starts_a_node_that_serves_writers_by_certificate_and_readers_without() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dev = Dev::start(dir.path(), &[])?;
    let read = |path: String| std::fs::read_to_string(&path).with_context(|| path.clone());
    let trust = Trust::Authority(read(dev.text("/ca")?)?);
    let identity =
        Identity { certificate_pem: read(dev.text("/client_cert")?)?, key_pem: read(dev.text("/client_key")?)? };
    let writer = Client::tls(&dev.authority("/nodes/0/client")?, &trust, Some(&identity)).await?;
    let blob = new_bytes(1000);
    let digest = writer.upload(blob.clone()).await?;
    let name = AssetName::unique();
    writer.push_blob(&name, &digest).await?;

    let public = dev.text("/nodes/0/public")?;
    let authority = dev.authority("/nodes/0/public")?;
    let reader = match Client::plaintext(&authority).await {
        Ok(client) if !public.starts_with("grpcs") && client.capabilities().await.is_ok() => client,
        _ => Client::tls(&authority, &trust, None).await?,
    };
    assert_eq!(reader.download(&digest).await?, blob);
    assert_eq!(reader.fetch_blob(&name).await?.blob_digest, Some(digest));
    refused_with(Code::PermissionDenied, reader.upload(new_bytes(10)).await)?;

    let stranger = Client::tls(&dev.authority("/nodes/0/client")?, &trust, None).await;
    if let Ok(stranger) = stranger {
        stranger.capabilities().await.expect_err("no certificate");
    }
    for path in ["/dir", "/nodes/0/name", "/nodes/0/config", "/nodes/0/dir", "/nodes/0/admin"] {
        dev.text(path)?;
    }
    dev.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_insecure_needs_no_certificate() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dev = Dev::start(dir.path(), &["--insecure"])?;
    let client = Client::plaintext(&dev.authority("/nodes/0/client")?).await?;
    let digest = client.upload(new_bytes(1000)).await?;
    assert!(client.has(&digest).await?);
    dev.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_keeps_its_certificates_and_its_blobs_in_its_directory() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut kept = None;
    for _ in 0..2 {
        // Alone, since members of a cluster know each other by ports, which are others each time here.
        let dev = Dev::start(dir.path(), &["--nodes", "1"])?;
        let [ca, certificate, key] =
            [dev.text("/ca")?, dev.text("/client_cert")?, dev.text("/client_key")?].map(std::fs::read_to_string);
        let (ca, identity) = (ca?, Identity { certificate_pem: certificate?, key_pem: key? });
        let trust = Trust::Authority(ca.clone());
        let client = Client::tls(&dev.authority("/nodes/0/client")?, &trust, Some(&identity)).await?;
        match &kept {
            None => kept = Some((ca, identity, client.upload(new_bytes(1000)).await?)),
            Some((first_ca, first_identity, digest)) => {
                assert!(client.has(digest).await?, "the blob is gone");
                // Or clients would have to be told again.
                assert_eq!(*first_ca, ca);
                assert_eq!(first_identity.certificate_pem, identity.certificate_pem);
            }
        }
        dev.stop()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_dev_that_is_killed_starts_again_by_the_printed_configuration() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dev = Dev::start(dir.path(), &["--insecure"])?;
    let authority = dev.authority("/nodes/0/client")?;
    let digest = Client::plaintext(&authority).await?.upload(new_bytes(1000)).await?;
    dev.kill(0)?;
    eventually("the node is down", || async { Ok(tokio::net::TcpStream::connect(&authority).await.is_err()) }).await?;
    let again = Server::start(&["serve", "--config", &dev.text("/nodes/0/config")?])?;
    let client = Client::plaintext(&authority).await?;
    assert!(client.has(&digest).await?);
    again.stop()?;
    dev.process.signal(Signal::INT)?;
    dev.process.wait_exit()?;
    Ok(())
}

#[test]
fn dev_for_eyes_prints_the_lines_to_paste_and_the_way_to_stop_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let process = Process::spawn(process::command(&["dev", "--port-base", "0", "--dir", text(dir.path())?]))?;
    for part in ["url:", "client-cert", "--remote_cache=grpcs://", "--tls_certificate="] {
        process.wait_for_stdout(part)?;
    }
    process.signal(Signal::INT)?;
    process.wait_exit()?;
    Ok(())
}

/// What dev says when a node goes, and what the others do.
#[tokio::test(flavor = "multi_thread")]
async fn dev_is_a_cluster_of_three_that_goes_on_without_one_of_them() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dev = Dev::start(dir.path(), &["--insecure"])?;
    let mut clients = Vec::new();
    for place in 0..3 {
        ensure!(dev.text(&format!("/nodes/{place}/peer"))?.starts_with("localhost:"));
        clients.push(Client::plaintext(&dev.authority(&format!("/nodes/{place}/client"))?).await?);
    }
    ensure!(dev.node_pids()?.len() == 3);
    let [first, second, third] = clients.as_slice() else { anyhow::bail!("{} nodes", clients.len()) };
    let (blob, name) = (new_bytes(100_000), AssetName::unique());
    let digest = first.upload(blob.clone()).await?;
    second.push_blob(&name, &digest).await?;
    assert_eq!(third.fetch_blob(&name).await?.blob_digest.as_ref(), Some(&digest));
    assert_eq!(third.download(&digest).await?, blob);

    dev.kill(0)?;
    dev.process.wait_for_stderr("node-1 is down (signal: 9 (SIGKILL))")?;
    let again = dev.process.wait_for_stderr("start it again:")?;
    ensure!(again.ends_with(&format!("serve --config {}", dev.text("/nodes/0/config")?)), "{again}");
    for client in [second, third] {
        assert_eq!(client.download(&digest).await?, blob);
        eventually("there is a leader", || async { Ok(client.fetch_blob(&name).await.is_ok()) }).await?;
        client.upload(new_bytes(1000)).await?;
    }
    let again = Server::start(&["serve", "--config", &dev.text("/nodes/0/config")?])?;
    let first = Client::plaintext(&dev.authority("/nodes/0/client")?).await?;
    eventually("the node has found the others", || async { Ok(first.fetch_blob(&name).await.is_ok()) }).await?;
    assert_eq!(first.download(&digest).await?, blob);
    again.stop()?;
    dev.stop_all_but(&[0])
}

/// It would not become the cluster that is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn dev_with_other_nodes_than_its_directory_was_made_for_says_so() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dev = Dev::start(dir.path(), &["--insecure", "--nodes", "1"])?;
    ensure!(dev.printed.pointer("/nodes/0/peer") == Some(&Value::Null));
    dev.stop()?;
    let output = process::run(&["dev", "--port-base", "0", "--dir", text(dir.path())?, "--nodes", "3"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("hint: take --nodes 1, or another directory"), "{said}");
    Dev::start(dir.path(), &["--insecure", "--nodes", "1"])?.stop()
}
