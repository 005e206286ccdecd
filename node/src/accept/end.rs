//! The end of listeners and connections: told once, heard by all.

use tokio::sync::watch;

/// Tells every listener and connection that holds an [`Ended`]: no new connection, no new request on an old one, and
/// what is under way is finished. Dropped, it tells the same.
pub struct End {
    told: watch::Sender<bool>,
}

/// Hears of the end.
#[derive(Clone)]
pub struct Ended {
    told: watch::Receiver<bool>,
}

// === impl End ===

impl End {
    /// An end that has not come, and the way to hear of it.
    pub fn new() -> (End, Ended) {
        let (told, heard) = watch::channel(false);
        (End { told }, Ended { told: heard })
    }

    /// Tells everybody.
    pub fn tell(&self) {
        self.told.send_replace(true);
    }
}

// === impl Ended ===

impl Ended {
    /// Returns when the end has come.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn reached(&mut self) {
        // An error means that the other side is gone, which is an end as well.
        drop(self.told.wait_for(|told| *told).await);
    }
}
