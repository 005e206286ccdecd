//! What goes wrong between a client and a server.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::deadline::within_deadline;

/// A stretch of network between a client and a server that can be cut.
pub struct Wire {
    address: SocketAddr,
    relay: JoinHandle<()>,
    cut: watch::Sender<bool>,
    /// Bytes handed to the server's socket.
    sent_bytes: Arc<watch::Sender<u64>>,
}

// === impl Wire ===

impl Wire {
    /// A wire to this `host:port`.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn to(authority: &str) -> Result<Wire> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let sent_bytes = Arc::new(watch::Sender::new(0));
        let cut = watch::Sender::new(false);
        let relay = relay(listener, authority.to_owned(), cut.subscribe(), Arc::clone(&sent_bytes));
        Ok(Wire { address, relay: tokio::spawn(relay), cut, sent_bytes })
    }

    /// What the client connects to.
    pub fn authority(&self) -> String {
        self.address.to_string()
    }

    /// Waits until the server has been handed this many bytes.
    ///
    /// # Errors
    /// When it takes longer than the deadline.
    pub async fn has_sent(&self, bytes: u64) -> Result<()> {
        let mut sent_bytes = self.sent_bytes.subscribe();
        within_deadline("bytes reach the server", sent_bytes.wait_for(|sent| *sent >= bytes)).await??;
        Ok(())
    }

    /// Ends every connection in the middle of whatever it carries, and takes no more. What was handed to the server
    /// before still reaches it, followed by the end of the stream and no farewell of HTTP/2.
    pub async fn cut(self) {
        let _ = self.cut.send(true);
        let _ = self.relay.await;
    }
}

async fn relay(
    listener: TcpListener,
    authority: String,
    mut cut: watch::Receiver<bool>,
    sent_bytes: Arc<watch::Sender<u64>>,
) {
    let mut connections = JoinSet::new();
    loop {
        let client = tokio::select! {
            client = listener.accept() => client,
            _ = cut.wait_for(|cut| *cut) => break,
        };
        let Ok((client, _)) = client else { break };
        let (authority, cut, sent_bytes) = (authority.clone(), cut.clone(), Arc::clone(&sent_bytes));
        connections.spawn(async move { connection(client, authority, cut, sent_bytes).await });
    }
    while connections.join_next().await.is_some() {}
}

async fn connection(
    client: TcpStream,
    authority: String,
    mut cut: watch::Receiver<bool>,
    sent_bytes: Arc<watch::Sender<u64>>,
) -> std::io::Result<()> {
    let server = TcpStream::connect(authority).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    {
        let up = pump(&mut from_client, &mut to_server, Some(&sent_bytes));
        let down = pump(&mut from_server, &mut to_client, None);
        tokio::select! {
            _ = up => {}
            _ = down => {}
            _ = cut.wait_for(|cut| *cut) => {}
        }
    }
    drop((from_client, to_client));
    // A socket closed with unread bytes would be reset, and the server would lose what it has not yet read.
    to_server.shutdown().await?;
    let mut rest = vec![0; 64 << 10];
    while from_server.read(&mut rest).await? > 0 {}
    Ok(())
}

async fn pump(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    count: Option<&watch::Sender<u64>>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let size = from.read(&mut buffer).await?;
        if size == 0 {
            return Ok(());
        }
        to.write_all(buffer.get(..size).unwrap_or_default()).await?;
        if let Some(count) = count {
            count.send_modify(|sent| *sent += size as u64);
        }
    }
}
