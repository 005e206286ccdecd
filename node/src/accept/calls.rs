//! The tasks of calls: each is ended when its client takes nothing of the answer any more.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::observe::counters::COUNTERS;
use crate::observe::labels::Stalled;
use crate::observe::throttle::Throttle;
use crate::serve::{READER, Reader};

/// Lines about clients that stand still.
static STALLED: Throttle = Throttle::new();

/// Begins the tasks of calls.
#[derive(Debug, Clone, Copy)]
pub(super) struct Calls {
    stall: Duration,
}

/// Goes off when a client has taken nothing for too long.
struct Alarm {
    reader: Arc<Reader>,
    stall: Duration,
    /// There once the client was waited for.
    sleep: Option<Pin<Box<Sleep>>>,
}

// === impl Calls ===

impl Calls {
    /// Whose clients may take nothing for so long.
    pub(super) fn new(stall: Duration) -> Calls {
        Calls { stall }
    }
}

impl<F> hyper::rt::Executor<F> for Calls
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, call: F) {
        let reader = Arc::new(Reader::new());
        let mut alarm = Alarm { reader: Arc::clone(&reader), stall: self.stall, sleep: None };
        tokio::spawn(async move {
            let mut call = pin!(call);
            let went_off =
                poll_fn(|context| match READER.sync_scope(Arc::clone(&reader), || call.as_mut().poll(context)) {
                    Poll::Ready(_) => Poll::Ready(false),
                    Poll::Pending => alarm.poll(context).map(|()| true),
                })
                .await;
            if went_off {
                COUNTERS.stalled.add(Stalled::Reader as usize, 1);
                // Dropped now, its stream is reset, and what was to be sent is given up.
                STALLED.line(|left_out| {
                    tracing::info!(left_out, "a call was ended whose client took nothing of the answer any more");
                });
            }
        });
    }
}

// === impl Alarm ===

impl Alarm {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(since) = self.reader.waited_for_since() else { return Poll::Pending };
            let Some(until) = Instant::from_std(since).checked_add(self.stall) else { return Poll::Pending };
            if Instant::now() >= until {
                return Poll::Ready(());
            }
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
            // Set again only when it has gone off, and not with each piece that goes.
            if sleep.is_elapsed() {
                sleep.as_mut().reset(until);
            }
            if sleep.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_goes_off_while_nobody_waits_for_the_client() {
        let (reader, stall) = (Arc::new(Reader::new()), Duration::ZERO);
        let mut alarm = Alarm { reader: Arc::clone(&reader), stall, sleep: None };
        assert!(futures_util::poll!(poll_fn(|context| alarm.poll(context))).is_pending());
    }

    #[tokio::test]
    async fn the_longest_stall_there_is_never_ends() {
        let mut alarm = Alarm { reader: Arc::new(Reader::new()), stall: Duration::MAX, sleep: None };
        assert!(futures_util::poll!(poll_fn(|context| alarm.poll(context))).is_pending());
    }
}
