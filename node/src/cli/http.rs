//! One request over plain HTTP, for an admin port: no more than a probe needs, and quick to start.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use crate::config::ListenAddress;

/// How long each step may take. A probe is to say no, not to hang.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long an order may take: until a majority has it on disk, or there is none for long.
const ORDER_PATIENCE: Duration = Duration::from_secs(20);

/// The longest answer that is read; the metrics have some 50 KiB.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// `200`
    pub(super) status: u16,
    /// As text.
    pub(super) body: String,
}

/// Asks for a page.
///
/// # Errors
/// When nobody answers in time, or not in HTTP.
pub(super) fn get(address: &ListenAddress, path: &str) -> io::Result<Answer> {
    // Of version 1.0, so that the answer is in one piece and ends with the connection.
    ask(address, PATIENCE, &format!("GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n"))
}

/// Gives an order.
///
/// # Errors
/// When nobody answers in time, or not in HTTP: it may be carried out all the same.
pub(super) fn order(address: &ListenAddress, json: &str) -> io::Result<Answer> {
    let length = json.len();
    let head = format!(
        "POST /orders HTTP/1.0\r\nhost: {address}\r\ncasbah-order: 1\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n"
    );
    ask(address, ORDER_PATIENCE, &(head + json))
}

fn ask(address: &ListenAddress, patience: Duration, request: &str) -> io::Result<Answer> {
    let mut stream = connect(address)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    parse(&String::from_utf8_lossy(&answer)).ok_or_else(|| io::Error::other("the answer is not HTTP"))
}

/// The first address of the name that answers; `localhost` has two.
fn connect(address: &ListenAddress) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the name has no address");
    for socket in (address.host.as_str(), address.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&socket, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut words = head.lines().next()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    let status = words.next()?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn an_answer_is_understood() {
        let answer = parse("HTTP/1.0 503 Service Unavailable\r\na: b\r\n\r\nnot ready\n\r\n\r\nx").unwrap();
        assert_eq!(answer, Answer { status: 503, body: "not ready\n\r\n\r\nx".into() });
    }

    #[test]
    fn what_is_not_http_is_no_answer() {
        for text in
            ["", "HTTP/1.1 200 OK\r\n", "HTTP/2 200\r\n\r\n", "HTTP/1.1 x\r\n\r\n", "hello\r\n\r\n", "HTTP/1.1\r\n\r\n"]
        {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_server_that_says_something_else_is_told_from_one() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address: ListenAddress = socket.local_addr().unwrap().to_string().parse().unwrap();
        let serve = thread::spawn(move || {
            let (mut stream, _) = socket.accept().unwrap();
            let mut request = [0; 512];
            let length = stream.read(&mut request).unwrap();
            stream.write_all(b"\x00\x00\x12\x04").unwrap();
            String::from_utf8(request[..length].to_vec()).unwrap()
        });
        assert_eq!(get(&address, "/readyz").unwrap_err().to_string(), "the answer is not HTTP");
        assert!(serve.join().unwrap().starts_with("GET /readyz HTTP/1.0\r\nhost: 127.0.0.1:"));
    }
}
