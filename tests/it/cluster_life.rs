//! Nodes come and go, by command and for good (G8): nobody loses anything, and no request fails that a retry does not heal.

use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use casbah_tests::admin;
use casbah_tests::clients::{AssetName, Client, digest_of};
use casbah_tests::cluster::{Cluster, ClusterOptions};
use casbah_tests::deadline::eventually;
use casbah_tests::load::new_bytes;
use casbah_tests::process;
use casbah_tests::proxy::Mode;
use serde_json::Value;

/// The shortest that a node may be given up after.
const LOST_SOON: &str = "cluster.lost_after = \"2s\"";

const ON_APPLY: &str = "cluster.rebalance = \"on_apply\"";

/// Far longer than it takes to give a node up.
const NOTICE: Duration = Duration::from_secs(6);

/// Gives a command to a node.
fn give(cluster: &Cluster, place: usize, args: &[&str]) -> Result<Output> {
    let admin = cluster.admin(place).to_string();
    let args: Vec<&str> = args.iter().copied().chain(["--admin", &admin]).collect();
    process::run(&args)
}

fn succeeds(cluster: &Cluster, place: usize, args: &[&str]) -> Result<String> {
    let output = give(cluster, place, args)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{args:?} failed:\n{said}");
    Ok(String::from_utf8(output.stdout)?)
}

/// A command that is refused, and what is said.
fn refused(cluster: &Cluster, place: usize, args: &[&str]) -> Result<String> {
    let output = give(cluster, place, args)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "{args:?} was not refused:\n{}", String::from_utf8_lossy(&output.stdout));
    ensure!(said.starts_with("error:") && said.contains("hint:"), "{args:?}: {said}");
    Ok(said)
}

fn json(cluster: &Cluster, place: usize, args: &[&str]) -> Result<Value> {
    let args: Vec<&str> = args.iter().copied().chain(["--output", "json"]).collect();
    Ok(serde_json::from_str(&succeeds(cluster, place, &args)?)?)
}

/// What a node says of a member.
fn member(cluster: &Cluster, asked: usize, name: &str) -> Result<Value> {
    let status = cluster.status(asked)?;
    let members = status.pointer("/cluster/members").and_then(Value::as_array).context("no members")?;
    let of_name = |member: &&Value| member.get("name").and_then(Value::as_str) == Some(name);
    let found = members.iter().find(of_name);
    found.cloned().with_context(|| format!("no member {name}"))
}

fn epoch(cluster: &Cluster, place: usize) -> Result<u64> {
    cluster.status(place)?.pointer("/cluster/epoch").and_then(Value::as_u64).context("no epoch")
}

/// The names of the nodes of the newest layout.
fn nodes_of_layout(cluster: &Cluster, place: usize) -> Result<Vec<u64>> {
    let answer = admin::get(cluster.admin(place), "/layout.json")?;
    let layouts: Value = serde_json::from_str(&answer.body)?;
    let now = layouts.get("now").and_then(Value::as_array).context("no layout")?;
    Ok(now.iter().filter_map(|share| share.get("id")?.as_u64()).collect())
}

fn id(cluster: &Cluster, asked: usize, name: &str) -> Result<u64> {
    member(cluster, asked, name)?.get("id").and_then(Value::as_u64).context("no id")
}

/// Waits until a node is of this standing, as another one sees it.
async fn until(cluster: &Cluster, asked: usize, name: &str, standing: &str) -> Result<()> {
    eventually(&format!("{name} is {standing}"), || async {
        let is_so = |member: Value| member.get("standing").and_then(Value::as_str) == Some(standing);
        Ok(member(cluster, asked, name).is_ok_and(is_so))
    })
    .await
}

/// That this stays so.
async fn stays(what: impl Fn() -> Result<()>, time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        what()?;
        tokio::time::sleep(Duration::from_millis(200)).await; // why: that nothing happens has no event
    }
    Ok(())
}

/// Uploads through one node, reads through another.
async fn works(through: &Client, other: &Client) -> Result<()> {
    let bytes = new_bytes(20_000);
    let digest = through.upload(bytes.clone()).await?;
    assert_eq!(other.download(&digest).await?, bytes);
    let name = AssetName::unique();
    through.push_blob(&name, &digest).await?;
    assert_eq!(other.fetch_blob(&name).await?.blob_digest, Some(digest_of(&bytes)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_drains_is_in_no_further_layout_and_may_be_asked_to_stay() -> Result<()> {
    // What it has takes a while to move.
    let cluster = Cluster::start(&ClusterOptions::nodes(3).set("repair.rate = \"64KiB\""))?;
    let before = epoch(&cluster, 0)?;
    let leader = cluster.leader()?;
    let name = format!("node-{}", leader + 1);
    let asked = cluster.follower()?;
    for _ in 0..20 {
        cluster.client(asked).await?.upload(new_bytes(500_000)).await?;
    }
    let drained = json(&cluster, asked, &["node", "drain", &name])?;
    assert_eq!((drained["node"].as_str(), drained["state"].as_str()), (Some(name.as_str()), Some("draining")));
    ensure!(epoch(&cluster, asked)? > before);
    ensure!(!nodes_of_layout(&cluster, asked)?.contains(&id(&cluster, asked, &name)?));
    // The lead goes to one that stays.
    eventually("another node leads", || async { Ok(cluster.leader().is_ok_and(|now| now != leader)) }).await?;
    works(&cluster.client(leader).await?, &cluster.client(asked).await?).await?;
    let said = refused(&cluster, asked, &["node", "remove", &name])?;
    ensure!(said.contains("has a part of the blobs") && said.contains("drain"), "{said}");
    succeeds(&cluster, asked, &["node", "undrain", &name])?;
    ensure!(nodes_of_layout(&cluster, asked)?.contains(&id(&cluster, asked, &name)?));
    until(&cluster, asked, &name, "serving").await?;
    works(&cluster.client(asked).await?, &cluster.client(leader).await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_make_no_sense_are_refused_with_a_reason() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions::nodes(3))?;
    let said = refused(&cluster, 0, &["node", "drain", "nod-2"])?;
    ensure!(said.contains("did you mean \"node-2\"?"), "{said}");
    let said = refused(&cluster, 0, &["node", "remove", "node-2"])?;
    ensure!(said.contains("node drain node-2 --wait"), "{said}");
    let said = refused(&cluster, 0, &["ring", "apply", "--epoch", "9"])?;
    ensure!(said.contains("nothing waits to be applied"), "{said}");
    succeeds(&cluster, 0, &["node", "drain", "node-1"])?;
    succeeds(&cluster, 1, &["node", "drain", "node-2"])?;
    let said = refused(&cluster, 1, &["node", "drain", "node-3"])?;
    ensure!(said.contains("no other node"), "{said}");
    // From a browser, whatever page it shows, nothing is taken.
    let order = r#"{"order":"undrain","node":1}"#;
    for (header, status) in [("origin: http://localhost", 403), ("accept: */*", 403), ("casbah-order: 1", 200)] {
        assert_eq!(post(&cluster, 0, header, order)?, status, "{header}");
    }
    Ok(())
}

/// The status of the answer to an order with this header.
fn post(cluster: &Cluster, place: usize, header: &str, body: &str) -> Result<u16> {
    use std::io::{Read as _, Write as _};
    let address = cluster.admin(place);
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(process::DEADLINE))?;
    let length = body.len();
    let head = format!("POST /orders HTTP/1.0\r\nhost: {address}\r\n{header}\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split(' ').nth(1).context("no status")?.parse()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_gone_for_good_is_given_up_and_one_that_returns_is_a_member_again() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::nodes(4).set(LOST_SOON))?;
    let victim = cluster.follower()?;
    let asked = cluster.others(victim)[0];
    let name = format!("node-{}", victim + 1);
    let lost = id(&cluster, asked, &name)?;
    cluster.kill9(victim)?;
    until(&cluster, asked, &name, "lost").await?;
    ensure!(!nodes_of_layout(&cluster, asked)?.contains(&lost));
    works(&cluster.client(asked).await?, &cluster.client(cluster.others(victim)[1]).await?).await?;
    cluster.restart(victim)?;
    until(&cluster, asked, &name, "serving").await?;
    ensure!(nodes_of_layout(&cluster, asked)?.contains(&lost), "under its old id");
    let (through, other) = (cluster.client(victim).await?, cluster.client(asked).await?);
    // On a busy machine it is in doubt of what it knows for a moment.
    eventually("it works again", || async { Ok(works(&through, &other).await.is_ok()) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_gone_for_good_is_given_up_too_and_may_then_be_removed() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::nodes(4).set(LOST_SOON))?;
    let victim = cluster.leader()?;
    let name = format!("node-{}", victim + 1);
    let asked = cluster.others(victim)[0];
    cluster.kill9(victim)?;
    until(&cluster, asked, &name, "lost").await?;
    succeeds(&cluster, asked, &["node", "remove", &name])?;
    ensure!(member(&cluster, asked, &name).is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_nodes_are_not_given_up_that_writes_could_not_be_acknowledged() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::nodes(3).set(LOST_SOON))?;
    let stays_up = cluster.leader()?;
    let gone = cluster.others(stays_up);
    cluster.kill9(gone[0])?;
    until(&cluster, stays_up, &format!("node-{}", gone[0] + 1), "lost").await?;
    cluster.kill9(gone[1])?;
    let second = format!("node-{}", gone[1] + 1);
    let is_kept = || {
        ensure!(member(&cluster, stays_up, &second)?["standing"] == "serving", "it was given up");
        Ok(())
    };
    stays(is_kept, NOTICE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_which_the_others_could_agree_on_nothing_is_not_removed() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::nodes(3))?;
    let asked = cluster.leader()?;
    let (gone, other) = (cluster.others(asked)[0], cluster.others(asked)[1]);
    let (gone_name, name) = (format!("node-{}", gone + 1), format!("node-{}", other + 1));
    cluster.kill9(gone)?;
    eventually("it is away", || async { Ok(member(&cluster, asked, &gone_name)?["reachable"] == false) }).await?;
    let reason = refused(&cluster, asked, &["node", "remove", &name, "--force"])?;
    ensure!(reason.contains("could agree on nothing") && reason.contains(&gone_name), "{reason}");
    member(&cluster, asked, &name)?;

    cluster.restart(gone)?;
    cluster.wait_formed(&cluster.places())?;
    succeeds(&cluster, asked, &["node", "remove", &name, "--force"])?;
    ensure!(member(&cluster, asked, &name).is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_only_some_cannot_reach_is_not_given_up() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions::nodes(4).set(LOST_SOON))?;
    let victim = cluster.follower()?;
    let bridge = cluster.others(victim).into_iter().find(|place| Some(*place) != cluster.leader().ok());
    let bridge = bridge.context("three others")?;
    for other in cluster.others(victim).into_iter().filter(|other| *other != bridge) {
        cluster.proxies().set(other, victim, Mode::Cut);
        cluster.proxies().set(victim, other, Mode::Cut);
    }
    let name = format!("node-{}", victim + 1);
    let is_kept = || {
        ensure!(member(&cluster, bridge, &name)?["standing"] == "serving", "it was given up");
        Ok(())
    };
    stays(is_kept, NOTICE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn where_changes_wait_a_join_moves_nothing_until_it_is_applied() -> Result<()> {
    let options = ClusterOptions { bootstrap_expect: Some(3), ..ClusterOptions::nodes(4).set(ON_APPLY) };
    let mut cluster = Cluster::prepare(&options)?;
    for place in 0..3 {
        cluster.restart(place)?;
    }
    cluster.wait_formed(&[0, 1, 2])?;
    let before = epoch(&cluster, 0)?;
    assert_eq!(json(&cluster, 0, &["ring", "plan"])?["apply"], Value::Null);
    cluster.restart(3)?;
    cluster.wait_formed(&cluster.places())?;
    works(&cluster.client(3).await?, &cluster.client(0).await?).await?;
    assert_eq!(epoch(&cluster, 0)?, before);
    let plan = json(&cluster, 0, &["ring", "plan"])?;
    let planned = plan["apply"].as_u64().context("nothing waits")?;
    ensure!(plan["partitions"].as_u64() > Some(1000), "{plan}");
    let gains = plan["nodes"].as_array().context("no nodes")?.iter().find(|node| node["name"] == "node-4");
    ensure!(gains.context("no node-4")?["gains"].as_u64() > Some(1000), "{plan}");
    let said = refused(&cluster, 0, &["ring", "apply", "--epoch", &(planned + 1).to_string()])?;
    ensure!(said.contains("stale"), "{said}");
    // A drain takes effect at once, and makes the plan another one.
    succeeds(&cluster, 0, &["node", "drain", "node-2"])?;
    let said = refused(&cluster, 0, &["ring", "apply", "--epoch", &planned.to_string()])?;
    ensure!(said.contains("stale"), "{said}");
    ensure!(!nodes_of_layout(&cluster, 0)?.contains(&id(&cluster, 0, "node-4")?));
    let plan = json(&cluster, 0, &["ring", "plan"])?;
    let planned = plan["apply"].as_u64().context("nothing waits")?.to_string();
    succeeds(&cluster, 0, &["ring", "apply", "--epoch", &planned])?;
    ensure!(nodes_of_layout(&cluster, 0)?.contains(&id(&cluster, 0, "node-4")?));
    assert_eq!(json(&cluster, 0, &["ring", "plan"])?["apply"], Value::Null);
    works(&cluster.client(0).await?, &cluster.client(3).await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_moved_can_be_asked_without_moving_it() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions::nodes(3))?;
    let before = epoch(&cluster, 0)?;
    let without = json(&cluster, 0, &["ring", "plan", "--without", "node-2"])?;
    let weighed = json(&cluster, 0, &["ring", "plan", "--weight", "node-2=300"])?;
    ensure!(without["partitions"].as_u64() > Some(0) && weighed["partitions"].as_u64() > Some(0));
    let of = |plan: &Value, key: &str| {
        let node = plan["nodes"].as_array()?.iter().find(|node| node["name"] == "node-2")?;
        node[key].as_u64()
    };
    assert_eq!(of(&without, "partitions_then"), Some(0));
    ensure!(of(&weighed, "partitions_then") > of(&weighed, "partitions_now"), "{weighed}");
    assert_eq!(epoch(&cluster, 0)?, before);
    let said = refused(&cluster, 0, &["ring", "plan", "--weight", "node-2"])?;
    ensure!(said.contains("NODE=WEIGHT"), "{said}");
    let all = ["ring", "plan", "--without", "node-1", "--without", "node-2", "--without", "node-3"];
    let output = give(&cluster, 0, &all)?;
    ensure!(!output.status.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lead_goes_to_the_node_that_is_to_have_it() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions::nodes(3))?;
    let leader = cluster.leader()?;
    let next = cluster.follower()?;
    let name = format!("node-{}", next + 1);
    let output = give(&cluster, next, &["raft", "transfer", &name])?;
    ensure!(!output.status.success(), "only the leader can");
    succeeds(&cluster, leader, &["raft", "transfer", &name])?;
    eventually("it leads", || async { Ok(cluster.leader().is_ok_and(|now| now == next)) }).await
}
