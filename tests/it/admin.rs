//! The admin port: probes, metrics and status tell the truth, and nothing else goes through it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use casbah_tests::authority::Authority;
use casbah_tests::clients::reapi::GetActionResultRequest;
use casbah_tests::clients::reapi::action_cache_client::ActionCacheClient;
use casbah_tests::clients::{AssetName, Client, digest_of, refused_with};
use casbah_tests::load::new_bytes;
use casbah_tests::process::{Config, Listener, Process, Server, command, run};
use casbah_tests::target::Node;
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

const ADMIN: &str = "admin.address=127.0.0.1:0";

/// More than the port lets live at once.
const MANY_CONNECTIONS: usize = 100;

/// A client that stalls is cut off well within this time.
const STALL_DEADLINE: Duration = Duration::from_secs(9);

struct Answer {
    status: u16,
    head: String,
    body: String,
}

/// Where the admin port is, by what the process has printed.
fn admin_of(process: &Process) -> Result<SocketAddr> {
    let stdout = process.stdout();
    let url = stdout.lines().find_map(|line| line.strip_prefix("admin port on http://"));
    Ok(url.context("no admin port was printed")?.parse()?)
}

/// Sends these bytes, and reads until the port closes the connection.
async fn exchange(admin: SocketAddr, request: &[u8]) -> Result<String> {
    let mut stream = TcpStream::connect(admin).await?;
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    match tokio::time::timeout(STALL_DEADLINE, stream.read_to_end(&mut answer)).await {
        Ok(_closed_or_reset) => Ok(String::from_utf8_lossy(&answer).into_owned()),
        Err(_elapsed) => anyhow::bail!("the port did not close the connection"),
    }
}

async fn ask(admin: SocketAddr, method: &str, path: &str) -> Result<Answer> {
    let text = exchange(admin, format!("{method} {path} HTTP/1.1\r\nhost: {admin}\r\n\r\n").as_bytes()).await?;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no answer: {text:?}"))?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok(Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
}

async fn get(admin: SocketAddr, path: &str) -> Result<Answer> {
    ask(admin, "GET", path).await
}

async fn status(admin: SocketAddr) -> Result<Value> {
    Ok(serde_json::from_str(&get(admin, "/status.json").await?.body)?)
}

/// Every sample of `/metrics`, by its series.
async fn metrics(admin: SocketAddr) -> Result<BTreeMap<String, f64>> {
    let page = get(admin, "/metrics").await?.body;
    let samples = page.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let (series, value) = line.rsplit_once(' ').context("no value")?;
        Ok((series.to_owned(), value.parse()?))
    });
    samples.collect()
}

/// By how much each series has grown that did.
fn growth(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>, of: &str) -> BTreeMap<String, f64> {
    let grown = after.iter().filter(|(series, _)| series.starts_with(of));
    let grown = grown.map(|(series, value)| (series.clone(), value - before.get(series).unwrap_or(&0.0)));
    grown.filter(|(_, by)| *by != 0.0).collect()
}

fn counts(expected: &[(&str, f64)]) -> BTreeMap<String, f64> {
    expected.iter().map(|(series, by)| ((*series).to_owned(), *by)).collect()
}

#[tokio::test]
async fn every_page_is_there_and_says_what_it_is() -> Result<()> {
    let node = Node::start(&[ADMIN, "node.name=node-7"])?;
    let admin = admin_of(node.server())?;
    for (path, content_type, part) in [
        ("/livez", "text/plain; charset=utf-8", "alive"),
        ("/readyz", "text/plain; charset=utf-8", "ready"),
        ("/startupz", "text/plain; charset=utf-8", "started"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8", "# TYPE casbah_calls_total counter"),
        ("/status.json", "application/json", "\"name\": \"node-7\""),
        ("/", "text/html; charset=utf-8", "<title>node-7"),
    ] {
        let answer = get(admin, path).await?;
        assert_eq!(answer.status, 200, "{path}");
        ensure!(answer.head.contains(&format!("content-type: {content_type}")), "{path}: {}", answer.head);
        ensure!(answer.body.contains(part), "{path}: {}", answer.body);
        // A HEAD is the same without the page.
        let head = ask(admin, "HEAD", path).await?;
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
    }
    let status = status(admin).await?;
    let text = |pointer: &str| status.pointer(pointer).cloned().unwrap_or_default();
    assert_eq!((text("/format"), text("/phase")), (1.into(), "serving".into()));
    assert_eq!(text("/pid"), Value::from(node.server().pid()));
    assert_eq!(text("/listeners/0/url"), Value::from(node.server().endpoint(0).to_string()));
    assert_eq!((text("/store/blobs"), text("/indexes/assets/records")), (0.into(), 0.into()));
    Ok(())
}

#[tokio::test]
async fn other_paths_are_not_found_and_other_methods_are_not_allowed() -> Result<()> {
    let node = Node::start(&[ADMIN])?;
    let admin = admin_of(node.server())?;
    for path in ["/nothing", "/livez/", "/METRICS", "//", "/../livez", "/status", "/debug/pprof"] {
        assert_eq!(get(admin, path).await?.status, 404, "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let answer = ask(admin, method, "/readyz").await?;
        assert_eq!(answer.status, 405, "{method}");
        ensure!(answer.head.contains("allow: get, head"), "{}", answer.head);
    }
    Ok(())
}

#[tokio::test]
async fn without_the_setting_there_is_no_admin_port() -> Result<()> {
    let node = Node::start(&[])?;
    ensure!(!node.server().stdout().contains("admin"), "{}", node.server().stdout());
    Ok(())
}

#[tokio::test]
async fn an_address_that_is_taken_keeps_the_node_from_starting() -> Result<()> {
    let other = std::net::TcpListener::bind("127.0.0.1:0")?;
    let dir = tempfile::tempdir()?;
    let dir = dir.path().to_str().context("not UTF-8")?;
    let set = format!("admin.address={}", other.local_addr()?);
    let output = run(&["serve", "--dir", dir, "--listen", "127.0.0.1:0", "--set", &set])?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && told.contains(&format!("cannot listen on {}", other.local_addr()?)), "{told}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_stream_is_drained_the_node_is_alive_and_not_ready() -> Result<()> {
    let node = Node::start(&[ADMIN])?;
    let admin = admin_of(node.server())?;
    let client = node.client().await?;
    assert_eq!(get(admin, "/readyz").await?.status, 200);
    let blob = new_bytes(3 << 20);
    let upload = client.begin_upload();
    let name = client.upload_name(&digest_of(&blob));
    ensure!(upload.send_bytes(&name, 0, &blob[..1 << 20], false).await);
    // It is under way when the node has some of it.
    while client.query_write(&name).await?.committed_size == 0 {}

    node.server().signal(Signal::TERM)?;
    node.server().wait_for_stderr("stopping")?;
    let ready = get(admin, "/readyz").await?;
    assert_eq!((ready.status, ready.body.as_str()), (503, "not ready: the node is stopping\n"));
    assert_eq!((get(admin, "/livez").await?.status, get(admin, "/startupz").await?.status), (200, 200));
    let status = status(admin).await?;
    assert_eq!(status.pointer("/phase"), Some(&"draining".into()));
    assert_eq!(status.pointer("/calls/under_way"), Some(&1.into()));
    assert_eq!(metrics(admin).await?.get("casbah_node_ready"), Some(&0.0));
    let answer = run(&["status", "--ready", "--admin", &admin.to_string()])?;
    assert_eq!(answer.status.code(), Some(1));
    let answer = run(&["status", "--live", "--admin", &admin.to_string()])?;
    assert_eq!(answer.status.code(), Some(0), "a node that finishes its work is not to be killed");

    ensure!(upload.send_bytes(&name, 1 << 20, &blob[1 << 20..], true).await);
    upload.finish().await?;
    drop(client);
    ensure!(node.server().wait_exit()?.success());
    ensure!(TcpStream::connect(admin).await.is_err(), "the port outlives the node");
    Ok(())
}

#[tokio::test]
async fn counts_go_up_by_exactly_what_a_client_did() -> Result<()> {
    let node = Node::start(&[ADMIN])?;
    let admin = admin_of(node.server())?;
    let client = node.client().await?;
    let before = metrics(admin).await?;

    let (small, large) = (new_bytes(1000), new_bytes(5 << 20));
    let (small_digest, large_digest) = (digest_of(&small), digest_of(&large));
    let absent = digest_of(&new_bytes(10));
    client.batch_update(vec![(small_digest.clone(), small.clone())]).await?;
    client.upload(large.clone()).await?;
    client.find_missing(&[small_digest.clone(), absent.clone(), absent.clone(), large_digest.clone()]).await?;
    client.batch_read(&[small_digest.clone(), absent.clone()]).await?;
    client.download(&large_digest).await?;
    refused_with(Code::NotFound, client.download(&absent).await)?;
    let asset = AssetName::unique();
    refused_with(Code::NotFound, client.fetch_blob(&asset).await)?;
    client.push_blob(&asset, &small_digest).await?;
    client.fetch_blob(&asset).await?;
    let action = GetActionResultRequest { action_digest: Some(absent), ..Default::default() };
    refused_with(Code::NotFound, ActionCacheClient::new(client.channel()).get_action_result(action).await)?;

    let after = metrics(admin).await?;
    let grown = |of: &str| growth(&before, &after, of);
    assert_eq!(
        grown("casbah_calls_total"),
        counts(&[
            ("casbah_calls_total{method=\"ContentAddressableStorage.BatchUpdateBlobs\",code=\"OK\"}", 1.0),
            ("casbah_calls_total{method=\"ContentAddressableStorage.FindMissingBlobs\",code=\"OK\"}", 1.0),
            ("casbah_calls_total{method=\"ContentAddressableStorage.BatchReadBlobs\",code=\"OK\"}", 1.0),
            ("casbah_calls_total{method=\"ByteStream.Write\",code=\"OK\"}", 1.0),
            ("casbah_calls_total{method=\"ByteStream.Read\",code=\"OK\"}", 1.0),
            ("casbah_calls_total{method=\"ByteStream.Read\",code=\"NOT_FOUND\"}", 1.0),
            ("casbah_calls_total{method=\"Fetch.FetchBlob\",code=\"OK\"}", 1.0),
            ("casbah_calls_total{method=\"Fetch.FetchBlob\",code=\"NOT_FOUND\"}", 1.0),
            ("casbah_calls_total{method=\"Push.PushBlob\",code=\"OK\"}", 1.0),
            ("casbah_calls_total{method=\"ActionCache.GetActionResult\",code=\"NOT_FOUND\"}", 1.0),
        ])
    );
    assert_eq!(
        grown("casbah_call_duration_seconds_count"),
        counts(&[
            ("casbah_call_duration_seconds_count{class=\"batch_write\"}", 1.0),
            ("casbah_call_duration_seconds_count{class=\"find\"}", 1.0),
            ("casbah_call_duration_seconds_count{class=\"batch_read\"}", 1.0),
            ("casbah_call_duration_seconds_count{class=\"stream_write\"}", 1.0),
            ("casbah_call_duration_seconds_count{class=\"stream_read\"}", 2.0),
            ("casbah_call_duration_seconds_count{class=\"fetch\"}", 2.0),
            ("casbah_call_duration_seconds_count{class=\"push\"}", 1.0),
            ("casbah_call_duration_seconds_count{class=\"result_get\"}", 1.0),
        ])
    );
    let bytes = (small.len() + large.len()) as f64;
    assert_eq!(grown("casbah_blob_"), {
        let (received, sent) = ("casbah_blob_received_bytes_total", "casbah_blob_sent_bytes_total");
        let identity = |name: &str| (format!("{name}{{encoding=\"identity\"}}"), bytes);
        BTreeMap::from([identity(received), identity(sent)])
    });
    assert_eq!(
        grown("casbah_find_missing"),
        counts(&[
            ("casbah_find_missing_digests_total{outcome=\"present\"}", 2.0),
            ("casbah_find_missing_digests_total{outcome=\"missing\"}", 1.0),
        ])
    );
    assert_eq!(
        grown("casbah_asset_lookups"),
        counts(&[
            ("casbah_asset_lookups_total{outcome=\"hit\"}", 1.0),
            ("casbah_asset_lookups_total{outcome=\"miss\"}", 1.0),
        ])
    );
    assert_eq!(grown("casbah_action_lookups"), counts(&[("casbah_action_lookups_total{outcome=\"miss\"}", 1.0)]));
    assert_eq!(grown("casbah_store_blobs"), counts(&[("casbah_store_blobs", 2.0)]));
    assert_eq!(grown("casbah_index_records"), counts(&[("casbah_index_records{index=\"assets\"}", 1.0)]));
    assert_eq!(grown("casbah_calls_under_way"), counts(&[]));
    Ok(())
}

#[tokio::test]
async fn a_handshake_that_fails_is_counted_with_its_reason() -> Result<()> {
    let config = Config::new()?.set("admin.address", "'127.0.0.1:0'");
    let server = Authority::new("tests")?.server()?.write(config.dir(), "server")?;
    let config = config.listener(&Listener::tls(&server)?);
    let server = config.start()?;
    let admin = admin_of(&server)?;
    let mut stream = TcpStream::connect(server.endpoint(0).authority()).await?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
    server.wait_for_stderr("a client was not let in")?;
    let metrics = metrics(admin).await?;
    assert_eq!(metrics.get("casbah_connections_refused_total{reason=\"tls_not_spoken\"}"), Some(&1.0));
    assert_eq!(metrics.get("casbah_connections_accepted_total{transport=\"tls\"}"), Some(&1.0));
    Ok(())
}

#[tokio::test]
async fn no_blob_goes_through_the_port_and_no_name_is_told() -> Result<()> {
    let node = Node::start(&[ADMIN])?;
    let admin = admin_of(node.server())?;
    let client = node.client().await?.with_instance("secret-team");
    let blob = new_bytes(1000);
    let digest = client.upload(blob).await?;
    let asset = AssetName::new("https://secret.example/thing");
    client.push_blob(&asset, &digest).await?;
    client.fetch_blob(&asset).await?;
    let hash = &digest.hash;
    for path in [
        format!("/secret-team/blobs/{hash}/1000"),
        format!("/cas/{hash}"),
        "/google.bytestream.ByteStream/Read".to_owned(),
    ] {
        for method in ["GET", "POST", "PUT"] {
            assert_eq!(ask(admin, method, &path).await?.status, 404, "{method} {path}");
        }
    }
    // Which nodes have it is told to who knows its digest, and nothing of what it is.
    let whereabouts: Value = serde_json::from_str(&get(admin, &format!("/blobs/{hash}/1000")).await?.body)?;
    ensure!(whereabouts["nodes"][0]["copy"] == "present" && whereabouts["nodes"][1].is_null(), "{whereabouts}");
    match Client::plaintext(&admin.to_string()).await {
        Ok(client) => ensure!(client.download(&digest).await.is_err(), "a gRPC client was served"),
        Err(_refused) => {}
    }
    for path in ["/", "/metrics", "/status.json"] {
        let page = get(admin, path).await?.body;
        for word in [hash.as_str(), "secret"] {
            ensure!(!page.contains(word), "{path} tells {word}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_is_not_http_is_closed_and_harms_nobody() -> Result<()> {
    let node = Node::start(&[ADMIN])?;
    let admin = admin_of(node.server())?;
    let long = format!("GET /livez HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(1 << 20));
    let many = format!("GET /livez HTTP/1.1\r\n{}\r\n", "x: a\r\n".repeat(1000));
    for garbage in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"GET /livez HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        long.as_bytes(),
        many.as_bytes(),
    ] {
        let mut stream = TcpStream::connect(admin).await?;
        // The port may close the connection before it has everything.
        let _sent = stream.write_all(garbage).await;
        let _closed = stream.shutdown().await;
        let mut answer = Vec::new();
        let _reset = tokio::time::timeout(STALL_DEADLINE, stream.read_to_end(&mut answer)).await?;
        let answer = String::from_utf8_lossy(&answer);
        ensure!(!answer.contains(" 200 "), "{garbage:?}: {answer}");
        assert_eq!(get(admin, "/livez").await?.status, 200);
    }
    Ok(())
}

#[tokio::test]
async fn a_probe_comes_through_however_many_connections_say_nothing() -> Result<()> {
    let node = Node::start(&[ADMIN])?;
    let admin = admin_of(node.server())?;
    let mut silent = Vec::new();
    for _ in 0..MANY_CONNECTIONS {
        silent.push(TcpStream::connect(admin).await?);
        assert_eq!(get(admin, "/livez").await?.status, 200);
    }
    // The oldest was cut for it.
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_secs(2), silent[0].read(&mut byte)).await?;
    ensure!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    Ok(())
}

#[tokio::test]
async fn a_client_that_stalls_is_cut_off() -> Result<()> {
    let node = Node::start(&[ADMIN])?;
    let admin = admin_of(node.server())?;
    let began = Instant::now();
    let answer = exchange(admin, b"GET /livez HTT").await?;
    ensure!(!answer.contains(" 200 ") && began.elapsed() < STALL_DEADLINE, "{answer}");
    Ok(())
}

#[tokio::test]
async fn a_second_process_on_the_directory_is_ready_and_says_that_it_has_no_store() -> Result<()> {
    let node = Node::start(&[ADMIN])?;
    let dir = node.dir().to_str().context("not UTF-8")?;
    let second = Server::start(&["serve", "--dir", dir, "--listen", "127.0.0.1:0", "--set", ADMIN])?;
    let admin = admin_of(&second)?;
    assert_eq!(get(admin, "/readyz").await?.status, 200);
    let before = status(admin).await?;
    ensure!(before["store"].is_null() && before["indexes"].is_null(), "{before}");
    // A call through it is counted by both.
    let client = Client::plaintext(&second.endpoint(0).authority()).await?;
    client.find_missing(&[digest_of(b"x")]).await?;
    for admin in [admin, admin_of(node.server())?] {
        assert_eq!(status(admin).await?.pointer("/calls/begun"), Some(&1.into()));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_command_reads_it_for_people_machines_and_probes() -> Result<()> {
    let node = Node::start(&[ADMIN, "node.name=node-7"])?;
    let admin = admin_of(node.server())?.to_string();
    let client = node.client().await?;
    client.upload(new_bytes(2000)).await?;
    let text = |args: &[&str]| -> Result<String> {
        let output = run(&[&["status", "--admin", &admin], args].concat())?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let table = text(&[])?;
    for part in ["node-7", "serving", "1 open, 1 so far", "store", "results of actions"] {
        ensure!(table.contains(part), "no {part}: {table}");
    }
    let json: Value = serde_json::from_str(&text(&["--output", "json"])?)?;
    assert_eq!((json.pointer("/name"), json.pointer("/store/blobs")), (Some(&"node-7".into()), Some(&1.into())));
    assert_eq!(text(&["--ready"])?, "ready\n");
    assert_eq!(text(&["--live"])?, "alive\n");

    let watch = Process::spawn(command(&["status", "--admin", &admin, "--output", "json", "--watch"]))?;
    watch.wait_for_stdout("\"phase\":\"serving\"")?;
    watch.kill9()?;

    node.server().kill9()?;
    for args in [&["status", "--admin", &admin][..], &["status", "--ready", "--admin", &admin]] {
        let output = run(args)?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1) && told.contains("cannot ask the node"), "{told}");
    }
    Ok(())
}
