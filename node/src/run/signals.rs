//! What the system tells the process: to stop, or to read its certificates again.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;

/// Signals to stop that come within this time are one: timeout(1) sends two, and so does a shell with its own.
const ONE_SIGNAL: Duration = Duration::from_secs(1);

/// SIGTERM, SIGINT and SIGHUP.
pub(super) struct Signals {
    hangup: Signal,
    reload_now: watch::Sender<()>,
    terminate: Signal,
    interrupt: Signal,
}

// === impl Signals ===

impl Signals {
    /// From now on these signals no longer end the process by themselves.
    pub(super) fn install() -> io::Result<Signals> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            reload_now: watch::Sender::new(()),
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Changes at every SIGHUP, while somebody waits in [`Signals::stop`].
    pub(super) fn reload_now(&self) -> watch::Receiver<()> {
        self.reload_now.subscribe()
    }

    /// The next signal to stop, by name.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn stop(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => {
                    tracing::info!("SIGHUP: looking at the certificates");
                    self.reload_now.send_replace(());
                }
            }
        }
    }

    /// A further signal to stop, right after [`Signals::stop`] has told of the first, by name.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn stop_again(&mut self) -> &'static str {
        let first = Instant::now();
        loop {
            let signal = self.stop().await;
            if first.elapsed() >= ONE_SIGNAL {
                return signal;
            }
        }
    }
}
