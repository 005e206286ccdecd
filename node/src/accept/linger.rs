//! The end of a connection that loses nothing of what was sent: the client is the one to hang up.
//!
//! A socket that is closed while the client still sends (acknowledgements of what it reads, say) answers with a reset, at
//! which the client's kernel throws away what the client has not read yet: the end of an answer that was under way. So our
//! side is closed first, and the socket only after the client's (RFC 9112, section 9.6, has the same advice).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long a client that does not hang up may be silent. One that reads acknowledges what it has read far more often.
const SILENCE: Duration = Duration::from_secs(3);

/// How long it may take to read what is on its way, which is one window at most.
const DEADLINE: Duration = Duration::from_secs(60);

/// Room for what is read and thrown away.
const SCRAP_BYTES: usize = 4096;

/// A stream that, shut down, waits for its other side to be closed too.
pub(super) struct Lingering<I> {
    io: I,
    /// [`SILENCE`] and [`DEADLINE`].
    bounds: (Duration, Duration),
    /// Set when this side has been closed.
    wait: Option<Wait>,
}

struct Wait {
    silence: Pin<Box<Sleep>>,
    deadline: Instant,
}

// === impl Lingering ===

impl<I> Lingering<I> {
    /// Around this stream.
    pub(super) fn new(io: I) -> Lingering<I> {
        Lingering { io, bounds: (SILENCE, DEADLINE), wait: None }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Lingering<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<I> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Lingering { io, bounds: (silence, deadline), wait } = &mut *self;
        let wait = match wait {
            Some(wait) => wait,
            None => {
                ready!(Pin::new(&mut *io).poll_shutdown(context))?;
                let now = Instant::now();
                wait.insert(Wait { silence: Box::pin(tokio::time::sleep(*silence)), deadline: now + *deadline })
            }
        };
        loop {
            let mut scrap = [0; SCRAP_BYTES];
            let mut buffer = ReadBuf::new(&mut scrap);
            match Pin::new(&mut *io).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    let now = Instant::now();
                    if now >= wait.deadline {
                        return Poll::Ready(Ok(()));
                    }
                    wait.silence.as_mut().reset(wait.deadline.min(now + *silence));
                }
                // It has hung up, this way or that.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return wait.silence.as_mut().poll(context).map(Ok),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    const ANSWER_BYTES: usize = 1 << 20;

    async fn pair() -> (Lingering<TcpStream>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Lingering::new(listener.accept().await.unwrap().0), client)
    }

    #[tokio::test]
    async fn a_client_that_still_sends_reads_its_answer_to_the_end() {
        let (mut server, mut client) = pair().await;
        let serving = tokio::spawn(async move {
            server.write_all(&vec![7; ANSWER_BYTES]).await.unwrap();
            server.shutdown().await.unwrap();
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
        let (mut server, client) = pair().await;
        server.bounds = (Duration::from_millis(50), DEADLINE);
        server.shutdown().await.unwrap();
        drop(client);
    }

    #[tokio::test]
    async fn a_client_that_sends_on_and_on_is_not_listened_to_for_ever() {
        let (mut server, mut client) = pair().await;
        server.bounds = (SILENCE, Duration::from_millis(50));
        let sending = tokio::spawn(async move { while client.write_all(&[0; 1000]).await.is_ok() {} });
        server.shutdown().await.unwrap();
        drop(server);
        sending.await.unwrap();
    }
}
