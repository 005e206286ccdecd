//! Clients that do as they are told: they come again when a node has too much to do, and from where one says that they are.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use casbah_proto::google::rpc;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::net::{TcpSocket, TcpStream};
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use crate::admin;
use crate::clients::Client;
use crate::process::{DEADLINE, Process};

const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";

/// Windows of clients, as [`Client::plaintext`] has them.
const WINDOWS: (u32, u32) = (2 << 20, 8 << 20);

/// Connects without TLS from another loopback address, which makes another client of it.
///
/// # Errors
/// When nobody listens.
pub async fn client_from(source: Ipv4Addr, authority: &str) -> Result<Client> {
    let to: SocketAddr = authority.parse()?;
    let connect = tower::service_fn(move |_| async move {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((source, 0)))?;
        let stream: TcpStream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        Ok::<_, std::io::Error>(TokioIo::new(stream))
    });
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))?
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1);
    Ok(Client::on(endpoint.connect_with_connector(connect).await?))
}

/// When the node says that it is worth another try; `None` when it does not say so.
pub fn retry_after(status: &Status) -> Option<Duration> {
    let details = rpc::Status::decode(status.details()).ok()?.details;
    let info = details.iter().find(|detail| detail.type_url == RETRY_INFO)?;
    let info = rpc::RetryInfo::decode(&*info.value).ok()?;
    Duration::try_from(info.retry_delay?).ok()
}

/// Calls again and again while the node says that it has too much to do, which must be said in the right way.
///
/// # Errors
/// Any other status; one that says nothing of another try; and when it has not worked within [`DEADLINE`].
pub async fn until_let_in<T, F>(what: &str, mut call: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T, Status>>,
{
    let until = Instant::now() + DEADLINE;
    loop {
        let status = match call().await {
            Ok(answer) => return Ok(answer),
            Err(status) => status,
        };
        ensure!(status.code() == Code::Unavailable, "{what}: {status:?}");
        let after = retry_after(&status).with_context(|| format!("{what}: {status:?}"))?;
        ensure!(Instant::now() < until, "{what}: still not let in after {DEADLINE:?}: {status:?}");
        tokio::time::sleep(after).await; // why: the node has said so
    }
}

/// Where the admin port of a process is, by what it has printed.
///
/// # Errors
/// When it has none.
pub fn admin_of(process: &Process) -> Result<SocketAddr> {
    let stdout = process.stdout();
    let url = stdout.lines().find_map(|line| line.strip_prefix("admin port on http://"));
    Ok(url.context("no admin port was printed")?.parse()?)
}

/// What `/metrics` says, by series.
///
/// # Errors
/// When it does not answer.
pub fn metrics(admin: SocketAddr) -> Result<BTreeMap<String, f64>> {
    let page = admin::get(admin, "/metrics")?.body;
    let samples = page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    Ok(samples.filter_map(|(series, value)| Some((series.to_owned(), value.parse().ok()?))).collect())
}

/// One of them; 0 if it is not there.
///
/// # Errors
/// As [`metrics`].
pub fn metric(admin: SocketAddr, series: &str) -> Result<f64> {
    Ok(metrics(admin)?.get(series).copied().unwrap_or_default())
}
