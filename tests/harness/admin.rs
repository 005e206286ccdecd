//! One GET from the admin port of a node.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// How long each step may take. A node that was stopped does not answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// `200`
    pub status: u16,
    /// As text.
    pub body: String,
}

/// Asks for this path.
///
/// # Errors
/// When nobody answers, or not as a web server does.
pub fn get(admin: SocketAddr, path: &str) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok(Answer { status, body: body.to_owned() })
}

/// What the node says of itself.
///
/// # Errors
/// As [`get`], and when it is no JSON.
pub fn status(admin: SocketAddr) -> Result<Value> {
    let answer = get(admin, "/status.json")?;
    ensure!(answer.status == 200, "/status.json answered {}", answer.status);
    Ok(serde_json::from_str(&answer.body)?)
}
