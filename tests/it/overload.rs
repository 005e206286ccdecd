//! Overload (G10): what is too much waits its turn or is told to come again, in time and in the right words; nobody is starved,
//! nothing is held for clients that do not go on, and it heals by itself.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use casbah_tests::clients::bytestream::{ReadRequest, ReadResponse};
use casbah_tests::clients::reapi::Digest;
use casbah_tests::clients::{Client, digest_of};
use casbah_tests::cluster::{Cluster, ClusterOptions};
use casbah_tests::deadline::{eventually, within_deadline};
use casbah_tests::load::{Content, new_bytes};
use casbah_tests::retry::{admin_of, client_from, metric, retry_after, until_let_in};
use casbah_tests::target::Node;
use futures_util::future::join_all;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::{Code, Status, Streaming};

const MIB: usize = 1 << 20;
const ADMIN: &str = "admin.address=127.0.0.1:0";

/// Who is not 127.0.0.1.
const ANOTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

const HELD: &str = "casbah_admission_held_bytes{traffic=\"clients\"}";
const STALLED_READERS: &str = "casbah_calls_stalled_total{client=\"reader\"}";
const STALLED_WRITERS: &str = "casbah_calls_stalled_total{client=\"writer\"}";

fn start(settings: &[&str]) -> Result<(Node, String, SocketAddr)> {
    let settings: Vec<&str> = settings.iter().copied().chain([ADMIN]).collect();
    let node = Node::start(&settings)?;
    let (authority, admin) = (node.server().endpoint(0).authority(), admin_of(node.server())?);
    Ok((node, authority, admin))
}

async fn begin_download(client: &Client, digest: &Digest) -> Result<Streaming<ReadResponse>, Status> {
    let request = ReadRequest { resource_name: client.blob_name(digest), ..Default::default() };
    Ok(client.bytestream().read(request).await?.into_inner())
}

/// Nothing is held for anybody.
async fn is_idle(admin: SocketAddr) -> Result<()> {
    eventually("nothing is held", || async { Ok(metric(admin, HELD)? == 0.0) }).await
}

/// This process has both ends of many connections.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit });
}

// === many connections ===

/// What an HTTP/2 client sends first, and then nothing.
async fn idle_connection(authority: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(authority).await?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
    Ok(stream)
}

/// One round of what a client does, all of which must be right.
async fn use_everything(client: &Client, known: &[(Digest, Bytes)]) -> Result<()> {
    let digests: Vec<Digest> = known.iter().map(|(digest, _)| digest.clone()).collect();
    let absent = digest_of(&new_bytes(100));
    let asked: Vec<Digest> = digests.iter().cloned().chain([absent.clone()]).collect();
    let missing = until_let_in("find", || client.find_missing(&asked)).await?;
    ensure!(missing == [absent], "{missing:?}");
    for (digest, blob) in known {
        let read = until_let_in("download", || client.download(digest)).await?;
        ensure!(read == *blob, "other bytes");
    }
    let blob = new_bytes(200_000);
    let digest = until_let_in("upload", || client.upload(blob.clone())).await?;
    let batch = until_let_in("batch", || client.batch_read(std::slice::from_ref(&digest))).await?;
    ensure!(batch.iter().all(|answer| answer.data == blob), "other bytes in a batch");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_and_two_hundred_busy_connections_cost_bounded_memory() -> Result<()> {
    raise_descriptors();
    let (node, authority, admin) = start(&["limits.memory=64MiB"])?;
    let client = Client::plaintext(&authority).await?;
    let mut known = Vec::new();
    for size in [100, 60_000, 2 * MIB] {
        let blob = new_bytes(size);
        known.push((client.upload(blob.clone()).await?, blob));
    }
    use_everything(&client, &known).await?;
    let before = node.server().rss_bytes()?;
    let mut idle = Vec::new();
    for _ in 0..1000 {
        idle.push(idle_connection(&authority).await?);
    }
    eventually("all are there", || async {
        Ok(metric(admin, "casbah_connections_open{transport=\"plaintext\"}")? >= 1001.0)
    })
    .await?;
    let with_idle = node.server().rss_bytes()?;
    node.server().reset_peak_rss()?;
    let busy = (0..200_u8).map(|number| {
        let (authority, known) = (authority.clone(), known.clone());
        async move {
            let source = Ipv4Addr::new(127, 0, 1, number % 20 + 1);
            let client = client_from(source, &authority).await?;
            use_everything(&client, &known).await?;
            Ok::<_, anyhow::Error>(client)
        }
    });
    let began = Instant::now();
    let busy = join_all(busy).await.into_iter().collect::<Result<Vec<Client>>>()?;
    let peak = node.server().peak_rss_bytes()?;
    let each_idle = with_idle.saturating_sub(before) / 1000;
    let growth = peak.saturating_sub(with_idle);
    eprintln!(
        "{} MiB before; {} KiB for each idle connection; {} MiB more while 200 were busy for {:?}",
        before >> 20,
        each_idle >> 10,
        growth >> 20,
        began.elapsed()
    );
    assert!(each_idle < 100 << 10, "{each_idle} bytes for a connection that does nothing");
    // What calls are charged with, 200 connections of a hundred KiB or so, what uploads gather, and what the allocator keeps.
    assert!(growth < 256 << 20, "{growth} bytes more");
    assert_eq!(busy.len(), 200);
    is_idle(admin).await
}

// === fairness ===

/// How long each of these calls took, in order.
async fn measured<F>(count: usize, mut call: impl FnMut() -> F) -> Result<Vec<Duration>>
where
    F: Future<Output = Result<()>>,
{
    let mut took = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        call().await?;
        took.push(began.elapsed());
    }
    took.sort();
    Ok(took)
}

fn median(sorted: &[Duration]) -> Duration {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Finds a blob, reads it, and stores another one.
async fn one_of_each(client: &Client, known: &(Digest, Bytes)) -> Result<()> {
    ensure!(until_let_in("find", || client.has(&known.0)).await?);
    ensure!(until_let_in("download", || client.download(&known.0)).await? == known.1);
    let blob = new_bytes(10_000);
    until_let_in("upload", || client.upload(blob.clone())).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_hundreds_of_streams_makes_itself_wait_and_not_others() -> Result<()> {
    let (_node, authority, admin) = start(&["limits.memory=64MiB", "limits.patience=20s"])?;
    let greedy = Client::plaintext(&authority).await?;
    let polite = client_from(ANOTHER, &authority).await?;
    let large = greedy.upload(new_bytes(2 * MIB)).await?;
    let blob = new_bytes(10_000);
    let known = (polite.upload(blob.clone()).await?, blob);
    let alone = measured(10, || one_of_each(&polite, &known)).await?;

    let (is_over, downloads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut streams = JoinSet::new();
    for _ in 0..200 {
        let (client, large) = (greedy.clone(), large.clone());
        let (is_over, downloads) = (Arc::clone(&is_over), Arc::clone(&downloads));
        streams.spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                let read = until_let_in("a download", || client.download(&large)).await?;
                ensure!(read.len() == 2 * MIB, "{}", read.len());
                downloads.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }
    eventually("the greedy one is at work", || async { Ok(downloads.load(Ordering::Relaxed) >= 50) }).await?;
    let waiting = metric(admin, "casbah_admission_waiting_calls{traffic=\"clients\"}")?;
    let (beside, own) =
        tokio::join!(measured(10, || one_of_each(&polite, &known)), measured(2, || one_of_each(&greedy, &known)));
    let (beside, own) = (beside?, own?);
    is_over.store(true, Ordering::Relaxed);
    while let Some(ended) = streams.join_next().await {
        ended??;
    }
    eprintln!(
        "alone {:?}; beside the greedy one {:?}, {:?} at the most; the greedy one itself {:?}; {waiting} calls waited",
        median(&alone),
        median(&beside),
        beside.last(),
        median(&own)
    );
    assert!(waiting > 50.0, "{waiting} calls waited");
    // The same calls, at the same time, on the same node.
    assert!(median(&beside) * 3 < median(&own), "{beside:?}, and the greedy one itself {own:?}");
    is_idle(admin).await
}

// === clients that do not go on ===

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_do_not_read_hold_bounded_memory_and_are_ended() -> Result<()> {
    let (node, authority, admin) = start(&["limits.memory=64MiB", "limits.patience=500ms", "limits.stall=2s"])?;
    let client = Client::plaintext(&authority).await?;
    let digest = Content::new(64 << 20).upload(&client).await?;
    Content::new(16 << 20).upload(&client).await?;
    let before = node.server().rss_bytes()?;
    node.server().reset_peak_rss()?;
    let mut begun = JoinSet::new();
    for _ in 0..8 {
        let client = Client::plaintext(&authority).await?;
        for _ in 0..25 {
            let (client, digest) = (client.clone(), digest.clone());
            begun.spawn(async move { begin_download(&client, &digest).await });
        }
    }
    let (mut streams, mut refused) = (Vec::new(), 0);
    while let Some(begun) = begun.join_next().await {
        match begun? {
            Ok(stream) => streams.push(stream),
            Err(status) => {
                ensure!(status.code() == Code::Unavailable && retry_after(&status).is_some(), "{status:?}");
                refused += 1;
            }
        }
    }
    eprintln!("{} downloads were let in, {refused} were told to come again", streams.len());
    assert!(refused > 0 && !streams.is_empty());
    // Somebody else is served meanwhile.
    let other = client_from(ANOTHER, &authority).await?;
    let content = Content::new(4 << 20);
    until_let_in("an upload", || content.upload(&other)).await?;
    until_let_in("a download", || content.verify(&other)).await?;
    let growth = node.server().peak_rss_bytes()?.saturating_sub(before);
    eprintln!("{} MiB more", growth >> 20);
    assert!(growth < 128 << 20, "{growth} bytes more");
    // They are ended although nobody has read a byte, and what they held is given back.
    eventually("they have been ended", || async { Ok(metric(admin, STALLED_READERS)? >= streams.len() as f64) })
        .await?;
    is_idle(admin).await?;
    for stream in &mut streams {
        let ended = async {
            while stream.message().await?.is_some() {}
            Ok::<_, Status>(())
        };
        ensure!(within_deadline("the end", ended).await?.is_err(), "it went on");
    }
    until_let_in("a download", || client.download(&digest)).await?;
    is_idle(admin).await
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_one_message_that_nobody_reads_are_held_within_bounds_and_ended() -> Result<()> {
    let (node, authority, admin) = start(&["limits.memory=64MiB", "limits.patience=500ms", "limits.stall=2s"])?;
    let client = Client::plaintext(&authority).await?;
    let blobs: Vec<Bytes> = (0..4).map(|_| new_bytes(MIB - 100)).collect();
    let mut digests = Vec::new();
    for blob in &blobs {
        digests.push(client.upload(blob.clone()).await?);
    }
    client.batch_read(&digests).await?;
    let before = node.server().rss_bytes()?;
    node.server().reset_peak_rss()?;
    // A connection whose window is full after the first answer takes nothing of the others.
    let mut channels = Vec::new();
    for _ in 0..4 {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{authority}"))?
            .initial_stream_window_size(65_535)
            .initial_connection_window_size(65_535);
        let stopped = Client::on(endpoint.connect().await?);
        let mut held = begin_download(&stopped, &digests[0]).await?;
        held.message().await.ok();
        channels.push((stopped, held));
    }
    let mut calls = JoinSet::new();
    for (stopped, _) in channels.iter().cycle().take(80) {
        let (stopped, digests) = (stopped.clone(), digests.clone());
        calls.spawn(async move { stopped.batch_read(&digests).await });
    }
    let mut outcomes = Vec::new();
    while let Some(answer) = calls.join_next().await {
        outcomes.push(answer?.map(drop));
    }
    let growth = node.server().peak_rss_bytes()?.saturating_sub(before);
    let answered = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    eprintln!("{} MiB more; {answered} of {} were answered", growth >> 20, outcomes.len());
    assert!(growth < 128 << 20, "{growth} bytes more");
    drop(channels);
    is_idle(admin).await
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_that_do_not_go_on_hold_bounded_memory_and_may_go_on_later() -> Result<()> {
    let (node, authority, admin) = start(&["limits.memory=64MiB", "limits.patience=500ms", "limits.stall=2s"])?;
    let client = Client::plaintext(&authority).await?;
    Content::new(16 << 20).upload(&client).await?;
    let before = node.server().rss_bytes()?;
    node.server().reset_peak_rss()?;
    let half = new_bytes(MIB);
    let mut uploads = Vec::new();
    for _ in 0..4 {
        let client = Client::plaintext(&authority).await?;
        for _ in 0..25 {
            let blob: Bytes = [half.clone(), new_bytes(MIB)].concat().into();
            let (name, upload) = (client.upload_name(&digest_of(&blob)), client.begin_upload());
            upload.send_bytes(&name, 0, &half, false).await;
            uploads.push((client.clone(), name, blob, upload));
        }
    }
    let other = client_from(ANOTHER, &authority).await?;
    let content = Content::new(4 << 20);
    until_let_in("an upload", || content.upload(&other)).await?;
    let mut kept = 0;
    for (client, name, blob, upload) in uploads {
        let status = upload.answer().await.expect_err("it was never finished");
        ensure!(status.code() == Code::Unavailable && retry_after(&status).is_some(), "{status:?}");
        let written = usize::try_from(until_let_in("a query", || client.query_write(&name)).await?.committed_size)?;
        if written == half.len() && kept == 0 {
            kept += 1;
            let rest = blob.get(written..).context("too much")?;
            let gone_on = || async {
                let upload = client.begin_upload();
                upload.send_bytes(&name, written, rest, true).await;
                upload.finish().await
            };
            assert_eq!(until_let_in("the rest", gone_on).await?.committed_size, i64::try_from(blob.len())?);
            let digest = digest_of(&blob);
            assert_eq!(until_let_in("a download", || client.download(&digest)).await?, blob);
        }
    }
    let growth = node.server().peak_rss_bytes()?.saturating_sub(before);
    eprintln!("{} MiB more", growth >> 20);
    assert!(growth < 192 << 20, "{growth} bytes more");
    assert_eq!(kept, 1, "none could be gone on with");
    assert!(metric(admin, STALLED_WRITERS)? >= 1.0);
    is_idle(admin).await
}

// === what is always let in ===

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_no_room_says_so_at_once_and_still_says_how_it_is() -> Result<()> {
    let settings = ["limits.memory=32MiB", "limits.patience=300ms", "limits.waiting=10", "limits.stall=3s"];
    let (_node, authority, admin) = start(&settings)?;
    let client = Client::plaintext(&authority).await?;
    let digest = Content::new(16 << 20).upload(&client).await?;
    let others = Ipv4Addr::new(127, 0, 2, 1).octets();
    let (mut streams, mut refused) = (Vec::new(), Vec::new());
    for number in 1..20 {
        let [a, b, c, _] = others;
        let one = client_from(Ipv4Addr::new(a, b, c, number), &authority).await?;
        for _ in 0..2 {
            match begin_download(&one, &digest).await {
                Ok(stream) => streams.push((one.clone(), stream)),
                Err(status) => refused.push(status),
            }
        }
    }
    ensure!(!refused.is_empty(), "{} were let in", streams.len());
    for status in &refused {
        ensure!(status.code() == Code::Unavailable && retry_after(status).is_some(), "{status:?}");
    }
    // What there is not room for now is no miss, and what costs nothing is answered.
    let one_more = client_from(ANOTHER, &authority).await?;
    within_deadline("capabilities", one_more.capabilities()).await??;
    match client.download(&digest).await {
        Ok(blob) => ensure!(blob.len() == 16 << 20),
        Err(status) => ensure!(status.code() == Code::Unavailable, "{status:?}"),
    }
    let turned_away =
        metric(admin, "casbah_admission_turned_away_total{traffic=\"clients\",reason=\"waited_too_long\"}")?;
    assert!(turned_away >= 1.0);
    drop(streams);
    is_idle(admin).await?;
    client.download(&digest).await?;
    Ok(())
}

// === several nodes ===

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_that_are_full_do_not_wait_for_each_other() -> Result<()> {
    let options = ClusterOptions::nodes(3)
        .set("limits.memory = \"32MiB\"")
        .set("limits.patience = \"1s\"")
        .set("limits.waiting = 50");
    let cluster = Cluster::start(&options)?;
    let authorities = cluster.authorities();
    let refusals = Arc::new(AtomicU64::new(0));
    let mut work = JoinSet::new();
    for number in 0..90_u8 {
        let authority = authorities.get(usize::from(number) % 3).context("no node")?.clone();
        let other = authorities.get((usize::from(number) + 1) % 3).context("no node")?.clone();
        let refusals = Arc::clone(&refusals);
        work.spawn(async move {
            let source = Ipv4Addr::new(127, 0, 3, number % 10 + 1);
            let client = client_from(source, &authority).await?;
            let reader = client_from(source, &other).await?;
            for round in 0..3_u64 {
                let content = Content::new(1000 + (u64::from(number) * 7 + round * 13) % 40 * 20_000);
                until_let_in("an upload", || async {
                    let outcome = content.upload(&client).await;
                    refusals.fetch_add(u64::from(outcome.is_err()), Ordering::Relaxed);
                    outcome
                })
                .await?;
                until_let_in("a download", || async {
                    let outcome = content.verify(&reader).await;
                    refusals.fetch_add(u64::from(outcome.is_err()), Ordering::Relaxed);
                    outcome
                })
                .await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    let began = Instant::now();
    while let Some(ended) = work.join_next().await {
        ended??;
    }
    eprintln!("{:?}, {} calls were told to come again", began.elapsed(), refusals.load(Ordering::Relaxed));
    // It is over, and nothing is left of it.
    for place in cluster.places() {
        is_idle(cluster.admin(place)).await?;
        let client = cluster.client(place).await?;
        client.upload(new_bytes(100_000)).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_do_not_read_do_not_stop_what_comes_between_nodes() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions { copies: 1, ..ClusterOptions::nodes(2) })?;
    let clients = cluster.clients().await?;
    let [here, there] = clients.as_slice() else { anyhow::bail!("not two nodes") };
    // With one copy, half of these are on the other node.
    let mut digests = Vec::new();
    for _ in 0..16 {
        digests.push(Content::new(6 << 20).upload(there).await?);
    }
    let mut streams = Vec::new();
    for digest in &digests {
        let stopped = cluster.client(0).await?;
        let stream = within_deadline("a first byte", begin_download(&stopped, digest)).await??;
        streams.push((stopped, stream));
    }
    for _ in 0..10 {
        let content = Content::new(3 << 20);
        within_deadline("an upload", content.upload(there)).await??;
        within_deadline("a download", content.verify(here)).await??;
    }
    Ok(())
}
