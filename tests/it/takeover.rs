//! Two instances on one directory, when clients are slow, or the owner goes while requests are under way.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use casbah_tests::clients::bytestream::{ReadRequest, ReadResponse};
use casbah_tests::clients::reapi::Digest;
use casbah_tests::clients::{Client, is_transport_error};
use casbah_tests::deadline::within_deadline;
use casbah_tests::load::new_bytes;
use casbah_tests::process::Server;
use rustix::process::Signal;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

const MIB: usize = 1 << 20;

/// Far above what a stop or a takeover takes where nothing is waited for, and below the shortest wait that was too long.
const PROMPT: Duration = Duration::from_secs(10);

/// Large enough that it lies in no window and no buffer.
const LARGE: usize = 24 * MIB;

fn start(dir: &Path) -> Result<Server> {
    let dir = dir.to_str().context("the path is not UTF-8")?;
    Server::start(&["bst-artifact-server", "--port", "0", "--enable-push", "--log-level", "info", dir])
}

async fn client(server: &Server) -> Result<Client> {
    Client::plaintext(&format!("127.0.0.1:{}", server.port(0))).await
}

/// A Read of which the first message was taken, and no more.
async fn slow_read(client: &Client, digest: &Digest) -> Result<(Streaming<ReadResponse>, usize)> {
    let request = ReadRequest { resource_name: client.blob_name(digest), read_offset: 0, read_limit: 0 };
    let mut answer = client.bytestream().read(request).await?.into_inner();
    let first = answer.message().await?.context("an empty answer")?;
    Ok((answer, first.data.len()))
}

/// The bytes that are left of an answer.
async fn rest(answer: &mut Streaming<ReadResponse>) -> Result<usize, Status> {
    let mut bytes = 0;
    while let Some(message) = answer.message().await? {
        bytes += message.data.len();
    }
    Ok(bytes)
}

/// Waits until it is served, which has to be soon. Only what a retry heals may be seen before.
async fn soon_served(client: &Client, within: Duration) -> Result<()> {
    let began = Instant::now();
    loop {
        match within_deadline("an answer", client.find_missing(&[])).await? {
            Ok(_) => break,
            Err(status) if status.code() == Code::Unavailable || is_transport_error(&status) => {}
            Err(status) => return Err(status.into()),
        }
        tokio::time::sleep(Duration::from_millis(20)).await; // why: the pause between attempts, or what a slow client does
    }
    ensure!(began.elapsed() < within, "served after {:?}", began.elapsed());
    Ok(())
}

async fn stops_promptly(server: &Server, signals: &[Signal]) -> Result<()> {
    for signal in signals {
        server.signal(*signal)?;
    }
    let status = tokio::task::block_in_place(|| server.exit_within(PROMPT))?;
    ensure!(status.context("still there")?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_stop_reading_stop_nobody_else() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _owner = start(dir.path())?;
    let second = start(dir.path())?;
    let other = client(&second).await?;
    let digest = other.upload(new_bytes(LARGE)).await?;
    let mut slow = Vec::new();
    for _ in 0..12 {
        slow.push(slow_read(&client(&second).await?, &digest).await?);
    }
    // Until everything that lies between the two is full.
    tokio::time::sleep(Duration::from_secs(1)).await; // why: the pause between attempts, or what a slow client does
    let blob = new_bytes(3 * MIB);
    let calls = async {
        let uploaded = other.upload(blob.clone()).await?;
        ensure!(other.download(&uploaded).await? == blob);
        Ok(())
    };
    tokio::time::timeout(PROMPT, calls).await.context("other calls stand still")??;
    for (answer, first) in &mut slow {
        ensure!(*first + rest(answer).await? == LARGE);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_of_the_others_takes_over_the_rest_find_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let owner = start(dir.path())?;
    let others = [start(dir.path())?, start(dir.path())?];
    let clients = [client(&others[0]).await?, client(&others[1]).await?];
    for client in &clients {
        client.find_missing(&[]).await?;
    }
    owner.kill9()?;
    let within = Duration::from_secs(4);
    let (one, other) = tokio::join!(soon_served(&clients[0], within), soon_served(&clients[1], within));
    one?;
    other
}

#[tokio::test]
async fn a_directory_with_a_long_path_has_two_instances_as_well() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let long = dir.path().join("d".repeat(120)).join("repo");
    let owner = start(&long)?;
    let second = start(&long)?;
    let blob = new_bytes(100);
    let digest = client(&owner).await?.upload(blob.clone()).await?;
    ensure!(client(&second).await?.download(&digest).await? == blob);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_read_through_the_second_does_not_keep_the_owner() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let owner = start(dir.path())?;
    let second = start(dir.path())?;
    let other = client(&second).await?;
    let digest = other.upload(new_bytes(LARGE)).await?;
    let (mut answer, _) = slow_read(&client(&second).await?, &digest).await?;
    stops_promptly(&owner, &[Signal::TERM]).await?;
    soon_served(&other, PROMPT).await?;
    let status = rest(&mut answer).await.expect_err("it was cut off");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_owner_finishes_its_own_requests_it_serves_the_second() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let owner = start(dir.path())?;
    let second = start(dir.path())?;
    let (direct, other) = (client(&owner).await?, client(&second).await?);
    let digest = direct.upload(new_bytes(LARGE)).await?;
    let (mut answer, first) = slow_read(&direct, &digest).await?;
    owner.signal(Signal::TERM)?;
    owner.wait_for_stderr("stopping")?;
    for _ in 0..20 {
        other.find_missing(&[]).await?;
        tokio::time::sleep(Duration::from_millis(20)).await; // why: the pause between attempts, or what a slow client does
    }
    ensure!(first + rest(&mut answer).await? == LARGE);
    ensure!(owner.wait_exit()?.success());
    soon_served(&other, PROMPT).await
}

#[tokio::test]
async fn a_read_through_the_second_that_the_owners_death_breaks_off_is_to_be_tried_again() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let owner = start(dir.path())?;
    let second = start(dir.path())?;
    let client = client(&second).await?;
    let digest = client.upload(new_bytes(LARGE)).await?;
    let (mut answer, _) = slow_read(&client, &digest).await?;
    owner.kill9()?;
    let status = rest(&mut answer).await.expect_err("the owner is gone");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    ensure!(!is_transport_error(&status), "{status:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_health_watcher_is_told_and_let_go() -> Result<()> {
    for service in ["", "google.bytestream.ByteStream"] {
        let dir = tempfile::tempdir()?;
        let owner = start(dir.path())?;
        let mut health = HealthClient::new(client(&owner).await?.channel());
        let mut states = health.watch(HealthCheckRequest { service: service.to_owned() }).await?.into_inner();
        assert_eq!(states.message().await?.map(|state| state.status()), Some(ServingStatus::Serving));
        stops_promptly(&owner, &[Signal::TERM]).await?;
        assert_eq!(states.message().await?.map(|state| state.status()), Some(ServingStatus::NotServing));
        assert!(states.message().await?.is_none());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_health_watcher_does_not_keep_the_second_either() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _owner = start(dir.path())?;
    let second = start(dir.path())?;
    let mut health = HealthClient::new(client(&second).await?.channel());
    let mut states = health.watch(HealthCheckRequest::default()).await?.into_inner();
    assert_eq!(states.message().await?.map(|state| state.status()), Some(ServingStatus::Serving));
    stops_promptly(&second, &[Signal::TERM]).await?;
    let status = states.message().await.expect_err("it was cut off");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    Ok(())
}

#[tokio::test]
async fn two_signals_at_once_are_one_and_a_later_one_asks_for_haste() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start(dir.path())?;
    let client = client(&server).await?;
    let digest = client.upload(new_bytes(LARGE)).await?;
    let (mut answer, first) = slow_read(&client, &digest).await?;
    server.signal(Signal::TERM)?;
    server.signal(Signal::INT)?;
    server.wait_for_stderr("stopping")?;
    tokio::time::sleep(Duration::from_millis(300)).await; // why: the pause between attempts, or what a slow client does
    ensure!(first + rest(&mut answer).await? == LARGE);
    ensure!(server.wait_exit()?.success());

    let server = start(dir.path())?;
    let client = self::client(&server).await?;
    let _under_way = slow_read(&client, &digest).await?;
    server.signal(Signal::TERM)?;
    server.wait_for_stderr("stopping")?;
    tokio::time::sleep(Duration::from_millis(1500)).await; // why: the pause between attempts, or what a slow client does
    ensure!(server.is_running());
    server.signal(Signal::TERM)?;
    ensure!(server.exit_within(PROMPT)?.context("still there")?.success());
    Ok(())
}
