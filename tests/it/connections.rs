//! Connections: clients that ping, and connections that come of age.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use casbah_tests::clients::{Client, digest_of, is_transport_error};
use casbah_tests::deadline::{eventually, within_deadline};
use casbah_tests::load::new_bytes;
use casbah_tests::process::{Config, Listener};
use casbah_tests::target::Target;
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use tokio::net::TcpStream;
use tonic::transport::Endpoint;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

/// A client that connects again whenever its connection has ended, and how often it has connected.
async fn counting_client(authority: &str, keepalive: Option<Duration>) -> Result<(Client, Arc<AtomicUsize>)> {
    let connections = Arc::new(AtomicUsize::new(0));
    let (address, count) = (authority.to_owned(), Arc::clone(&connections));
    let connect = tower::service_fn(move |_| {
        let address = address.clone();
        count.fetch_add(1, Ordering::SeqCst);
        async move { TcpStream::connect(address).await.map(TokioIo::new) }
    });
    let mut endpoint = Endpoint::from_shared(format!("http://{authority}"))?;
    if let Some(interval) = keepalive {
        endpoint = endpoint.http2_keep_alive_interval(interval).keep_alive_while_idle(true);
    }
    Ok((Client::on(endpoint.connect_with_connector(connect).await?), connections))
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_ping_every_second_without_a_call_keep_their_connection() -> Result<()> {
    let target = Target::start().await?;
    // grpc-java and gRPC's C core answer pings without calls with GOAWAY too_many_pings after the second one.
    let (client, connections) = counting_client(target.authority(), Some(Duration::from_millis(100))).await?;
    let digest = client.upload(new_bytes(10)).await?;
    // why: 30 pings, and nothing else may happen in this time
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(client.has(&digest).await?);
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_on_a_connection_of_age_is_finished_and_new_calls_go_to_a_new_one() -> Result<()> {
    let config = Config::new()?.listener(&Listener::plaintext().with("connection_age = \"1s\""));
    let server = config.start()?;
    let (client, connections) = counting_client(&server.endpoint(0).authority(), None).await?;
    let (blob, began) = (new_bytes(1000), Instant::now());
    let digest = digest_of(&blob);
    let upload = client.begin_upload();
    ensure!(upload.send_bytes(&client.upload_name(&digest), 0, &blob[..500], false).await, "ended early");
    // A call every moment. At some time they go to a new connection. What the client had in its hands when it was told has not
    // been sent, and that client (hyper) does not try it again by itself: one call, and at the most one more, which comes when the
    // first has failed and the task that would send it has not ended yet.
    let failed = AtomicUsize::new(0);
    eventually("a second connection", || async {
        match client.has(&digest).await {
            Ok(is_held) => ensure!(!is_held, "nobody has finished it"),
            Err(status) => {
                ensure!(is_transport_error(&status), "{status:?}");
                failed.fetch_add(1, Ordering::SeqCst);
            }
        }
        Ok(connections.load(Ordering::SeqCst) > 1)
    })
    .await?;
    assert!(failed.into_inner() <= 2, "more calls failed than it had in its hands");
    ensure!(began.elapsed() >= Duration::from_millis(900), "after {:?}", began.elapsed());
    ensure!(upload.send_bytes("", 500, &blob[500..], true).await, "ended early");
    assert_eq!(upload.finish().await?.committed_size, 1000);
    assert_eq!(client.download(&digest).await?, blob);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_an_age_stays() -> Result<()> {
    let config = Config::new()?.listener(&Listener::plaintext().with("connection_age = \"0s\""));
    let server = config.start()?;
    let (client, connections) = counting_client(&server.endpoint(0).authority(), None).await?;
    let digest = client.upload(new_bytes(10)).await?;
    // why: the shortest age that can be configured, and half of it
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(client.has(&digest).await?);
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_reflection_stream_does_not_keep_the_process_from_stopping() -> Result<()> {
    let config = Config::new()?.listener(&Listener::plaintext().with("reflection = true"));
    let server = config.start()?;
    let client = Client::plaintext(&server.endpoint(0).authority()).await?;
    let (requests, receiver) = tokio::sync::mpsc::channel(1);
    requests.send(ServerReflectionRequest::default()).await?;
    let requests_stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut reflection = ServerReflectionClient::new(client.channel());
    let answers = reflection.server_reflection_info(requests_stream);
    let _stream = within_deadline("reflection", answers).await?.context("an answer")?;
    server.signal(Signal::TERM)?;
    let began = Instant::now();
    server.wait_exit()?;
    ensure!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    drop(requests);
    Ok(())
}
