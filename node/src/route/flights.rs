//! Reads of small blobs from other nodes, merged: what one call is fetching already, others wait for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use tokio::sync::watch;

use crate::forward::Form;

/// A blob, and whether it may come in zstd frames.
type Key = (Digest, bool);

/// What came, for whoever waits.
type Landing = watch::Receiver<Option<(Bytes, Form)>>;

/// Reads under way. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Flights {
    under_way: Arc<Mutex<HashMap<Key, Landing>>>,
}

/// Who fetches a blob.
pub(super) enum Seat {
    /// The caller, for all that come meanwhile.
    Pilot(Flight),
    /// Somebody else does.
    Passenger(Passenger),
}

/// A read that others may wait for. Dropped before it has landed, they have to see to it themselves.
pub(super) struct Flight {
    flights: Flights,
    key: Key,
    landing: watch::Sender<Option<(Bytes, Form)>>,
}

/// One who waits.
pub(super) struct Passenger(Landing);

// === impl Flights ===

impl Flights {
    /// Begins to fetch a blob, or finds who does.
    pub(super) fn board(&self, digest: &Digest, takes_zstd: bool) -> Seat {
        let key = (*digest, takes_zstd);
        let mut under_way = self.lock();
        if let Some(landing) = under_way.get(&key) {
            return Seat::Passenger(Passenger(landing.clone()));
        }
        let (landing, waiting) = watch::channel(None);
        under_way.insert(key, waiting);
        Seat::Pilot(Flight { flights: self.clone(), key, landing })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Landing>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Flight ===

impl Flight {
    /// Gives the blob to those who wait.
    pub(super) fn land(self, data: &Bytes, form: Form) {
        self.landing.send_replace(Some((data.clone(), form)));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.key);
    }
}

// === impl Passenger ===

impl Passenger {
    /// The blob; `None` when it did not come.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub(super) async fn wait(mut self) -> Option<(Bytes, Form)> {
        let landed = self.0.wait_for(Option::is_some).await.ok()?;
        landed.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use casbah_cluster::digest::DigestFunction;

    fn digest(text: &str) -> Digest {
        Digest::of(DigestFunction::Sha256, text.as_bytes())
    }

    fn pilot(seat: Seat) -> Flight {
        match seat {
            Seat::Pilot(flight) => flight,
            Seat::Passenger(_) => panic!("somebody else fetches it"),
        }
    }

    fn passenger(seat: Seat) -> Passenger {
        match seat {
            Seat::Passenger(passenger) => passenger,
            Seat::Pilot(_) => panic!("nobody else fetches it"),
        }
    }

    #[tokio::test]
    async fn all_who_come_meanwhile_get_what_one_has_fetched() {
        let flights = Flights::default();
        let flight = pilot(flights.board(&digest("a"), false));
        let others: Vec<_> = (0..3).map(|_| passenger(flights.board(&digest("a"), false))).collect();
        flight.land(&Bytes::from_static(b"a"), Form::Identity);
        for other in others {
            assert_eq!(other.wait().await, Some((Bytes::from_static(b"a"), Form::Identity)));
        }
        // It is over: the next one fetches anew.
        pilot(flights.board(&digest("a"), false));
    }

    #[tokio::test]
    async fn who_waits_for_one_that_gives_up_is_told() {
        let flights = Flights::default();
        let flight = pilot(flights.board(&digest("a"), false));
        let other = passenger(flights.board(&digest("a"), false));
        drop(flight);
        assert_eq!(other.wait().await, None);
        assert!(flights.lock().is_empty());
    }

    #[tokio::test]
    async fn blobs_and_forms_are_told_apart() {
        let flights = Flights::default();
        let _a = pilot(flights.board(&digest("a"), false));
        let _zstd = pilot(flights.board(&digest("a"), true));
        let _b = pilot(flights.board(&digest("b"), false));
    }
}
