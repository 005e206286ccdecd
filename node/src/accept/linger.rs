//! The end of a connection that loses nothing of what was sent: the client is the one to hang up.
//!
//! A socket that is closed while the client still sends (acknowledgements of what it reads, say) answers with a reset, at
//! which the client's kernel throws away what the client has not read yet: the end of an answer that was under way. So our
//! side is closed first, and the socket only after the client's (RFC 9112, section 9.6, has the same advice).

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long a client that does not hang up may be silent. One that reads acknowledges what it has read far more often.
const SILENCE: Duration = Duration::from_secs(3);

/// How long it may take to read what is on its way, which is one window at most.
const DEADLINE: Duration = Duration::from_secs(60);

/// Room for what is read and thrown away.
const SCRAP_BYTES: usize = 4096;

/// Waits for the client to hang up, once our side is closed.
pub(super) struct Linger {
    silence: Duration,
    until_silent: Pin<Box<Sleep>>,
    deadline: Instant,
}

// === impl Linger ===

impl Linger {
    /// Begins to wait.
    pub(super) fn begin() -> Linger {
        Linger::within(SILENCE, DEADLINE)
    }

    fn within(silence: Duration, deadline: Duration) -> Linger {
        let now = Instant::now();
        Linger { silence, until_silent: Box::pin(tokio::time::sleep_until(now + silence)), deadline: now + deadline }
    }

    /// Ready when the client has hung up, or is not waited for any longer. What it sends is thrown away.
    pub(super) fn poll(&mut self, io: &mut (impl AsyncRead + Unpin), context: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut scrap = [0; SCRAP_BYTES];
            let mut buffer = ReadBuf::new(&mut scrap);
            match Pin::new(&mut *io).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    let now = Instant::now();
                    if now >= self.deadline {
                        return Poll::Ready(());
                    }
                    self.until_silent.as_mut().reset(self.deadline.min(now + self.silence));
                }
                // It has hung up, this way or that.
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.until_silent.as_mut().poll(context),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    const ANSWER_BYTES: usize = 1 << 20;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (listener.accept().await.unwrap().0, client)
    }

    async fn close(mut server: TcpStream, mut linger: Linger) {
        server.shutdown().await.unwrap();
        poll_fn(|context| linger.poll(&mut server, context)).await;
    }

    #[tokio::test]
    async fn a_client_that_still_sends_reads_its_answer_to_the_end() {
        let (mut server, mut client) = pair().await;
        let serving = tokio::spawn(async move {
            server.write_all(&vec![7; ANSWER_BYTES]).await.unwrap();
            close(server, Linger::begin()).await;
        });
        let mut answer = vec![0; ANSWER_BYTES];
        for piece in answer.chunks_mut(ANSWER_BYTES / 64) {
            client.write_all(b"an acknowledgement").await.unwrap();
            client.read_exact(piece).await.unwrap();
        }
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        // More of it comes after our side was closed.
        client.write_all(b"an acknowledgement").await.unwrap();
        drop(client);
        serving.await.unwrap();
        assert!(answer.iter().all(|byte| *byte == 7));
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_is_not_waited_for_for_ever() {
        let (server, client) = pair().await;
        close(server, Linger::within(Duration::from_millis(50), DEADLINE)).await;
        drop(client);
    }

    #[tokio::test]
    async fn a_client_that_sends_on_and_on_is_not_listened_to_for_ever() {
        let (server, mut client) = pair().await;
        let sending = tokio::spawn(async move { while client.write_all(&[0; 1000]).await.is_ok() {} });
        close(server, Linger::within(SILENCE, Duration::from_millis(50))).await;
        sending.await.unwrap();
    }
}
