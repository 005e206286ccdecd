//! The places there are, who has them, and who waits.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tonic::Status;

use crate::observe::counters::COUNTERS;
use crate::observe::labels::{Traffic, TurnedAway};
use crate::serve::admission::turns::{Client, Cost, LineBounds, Ticket, Turn, Turns};
use crate::serve::status_map;

/// When to come again after being sent away: a while in which a good part of what is under way has ended.
const COME_AGAIN: Duration = Duration::from_secs(1);

/// What calls that wait may have sent already, together, as a part of what those may have that are let in.
const WAITING_SHARE: u64 = 2;

/// How much is let in.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// What all calls together may hold.
    pub memory_bytes: u64,
    /// How many calls may wait for it.
    pub waiting: usize,
    /// For how long each may.
    pub patience: Duration,
}

/// Lets calls in. Cheap to clone.
#[derive(Clone)]
pub struct Admission {
    inner: Arc<Inner>,
}

struct Inner {
    traffic: Traffic,
    patience: Duration,
    state: Mutex<State>,
}

struct State {
    turns: Turns,
    /// Those who wait, to be told that it is their turn.
    waiting: HashMap<Ticket, oneshot::Sender<()>>,
}

/// Leave to hold so many bytes; given back when it is dropped.
pub(super) struct Place {
    inner: Arc<Inner>,
    client: Client,
    bytes: AtomicU64,
}

/// A call that waits. Dropped, it does so no longer.
struct Waiting<'a> {
    inner: &'a Arc<Inner>,
    client: &'a Client,
    ticket: Ticket,
    bytes: u64,
    /// Somebody else looks after what it was given.
    is_over: bool,
}

// === impl Admission ===

impl Admission {
    /// All places are free.
    pub fn new(traffic: Traffic, bounds: Bounds) -> Admission {
        let line = LineBounds { calls: bounds.waiting, bytes: bounds.memory_bytes / WAITING_SHARE };
        let state = State { turns: Turns::new(bounds.memory_bytes, line), waiting: HashMap::new() };
        let inner = Inner { traffic, patience: bounds.patience, state: Mutex::new(state) };
        COUNTERS.admission(traffic).memory_bytes.set(bounds.memory_bytes);
        Admission { inner: Arc::new(inner) }
    }

    /// A place for a call that costs so much; waited for, if need be.
    ///
    /// # Errors
    /// `UNAVAILABLE` when there is none, to be tried again later.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub(super) async fn admit(&self, client: Client, cost: Cost) -> Result<Place, Status> {
        let inner = &self.inner;
        let (told, bytes, ticket) = {
            let mut state = inner.lock();
            let bytes = state.turns.charge_bytes(cost.held_bytes);
            let turn = state.turns.ask(&client, Cost { held_bytes: bytes, ..cost });
            let told = match turn {
                Turn::Now => None,
                Turn::Waits(ticket) => {
                    let (tell, told) = oneshot::channel();
                    state.waiting.insert(ticket, tell);
                    Some((told, ticket))
                }
                Turn::Never => return Err(inner.turned_away(TurnedAway::LineFull, &state)),
            };
            inner.count(&state);
            match told {
                None => return Ok(Place { inner: Arc::clone(inner), client, bytes: AtomicU64::new(bytes) }),
                Some((told, ticket)) => (told, bytes, ticket),
            }
        };
        let mut waiting = Waiting { inner, client: &client, ticket, bytes, is_over: false };
        match tokio::time::timeout(inner.patience, told).await {
            Ok(Ok(())) => {
                waiting.is_over = true;
                Ok(Place { inner: Arc::clone(inner), client: client.clone(), bytes: AtomicU64::new(bytes) })
            }
            _ => {
                drop(waiting);
                Err(inner.turned_away(TurnedAway::TooLong, &inner.lock()))
            }
        }
    }
}

// === impl Inner ===

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turned_away(&self, why: TurnedAway, state: &State) -> Status {
        COUNTERS.admission(self.traffic).turned_away.add(why as usize, 1);
        let (calls, waiting) = (state.turns.held_calls(), state.turns.waiting_calls());
        let text = format!("this node has too much to do: {calls} calls are under way and {waiting} wait");
        status_map::unavailable_for(text, COME_AGAIN)
    }

    /// Gives back what a call had, and lets others in.
    fn give_back(&self, client: &Client, bytes: u64) {
        let mut state = self.lock();
        let tickets = state.turns.give_back(client, bytes);
        self.let_in(&mut state, &tickets);
    }

    fn let_in(&self, state: &mut State, tickets: &[Ticket]) {
        for ticket in tickets {
            if let Some(tell) = state.waiting.remove(ticket) {
                // Whoever does not listen any more gives it back when it finds that it was let in.
                let _is_heard = tell.send(());
            }
        }
        self.count(state);
    }

    fn count(&self, state: &State) {
        let counted = COUNTERS.admission(self.traffic);
        counted.held_bytes.set(state.turns.held_bytes());
        counted.calls.set(state.turns.held_calls() as u64);
        counted.waiting.set(state.turns.waiting_calls() as u64);
    }
}

// === impl Place ===

impl Place {
    /// Takes more, if there is so much at once.
    pub(super) fn grow(&self, bytes: u64) -> Result<(), Status> {
        let mut state = self.inner.lock();
        if !state.turns.grow(&self.client, bytes) {
            return Err(self.inner.turned_away(TurnedAway::Grown, &state));
        }
        self.inner.count(&state);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.inner.give_back(&self.client, self.bytes.load(Ordering::Relaxed));
    }
}

// === impl Waiting ===

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut state = self.inner.lock();
        state.waiting.remove(&self.ticket);
        let tickets = match state.turns.give_up(self.client, self.ticket) {
            Some(tickets) => tickets,
            // It was let in at the last moment.
            None => state.turns.give_back(self.client, self.bytes),
        };
        self.inner.let_in(&mut state, &tickets);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    const PATIENCE: Duration = Duration::from_millis(50);

    fn admission(memory_bytes: u64) -> Admission {
        Admission::new(Traffic::Clients, Bounds { memory_bytes, waiting: 10, patience: PATIENCE })
    }

    fn cost(held_bytes: u64) -> Cost {
        Cost { held_bytes, sent_bytes: 0 }
    }

    fn client(name: &str) -> Client {
        Client::Named(name.into())
    }

    fn held(admission: &Admission) -> u64 {
        admission.inner.lock().turns.held_bytes()
    }

    async fn refused(admission: &Admission, name: &str, bytes: u64) -> Status {
        match admission.admit(client(name), cost(bytes)).await {
            Ok(_) => panic!("it was let in"),
            Err(status) => status,
        }
    }

    #[tokio::test]
    async fn a_call_that_waits_is_let_in_when_another_one_ends() {
        let admission = admission(100);
        let first: Vec<Place> = [
            admission.admit(client("a"), cost(25)).await.unwrap(),
            admission.admit(client("a"), cost(25)).await.unwrap(),
        ]
        .into();
        let (waiter, ending) = tokio::join!(admission.admit(client("a"), cost(25)), async move { drop(first) });
        assert!(waiter.is_ok());
        let () = ending;
        assert_eq!(held(&admission), 25);
        drop(waiter);
        assert_eq!(held(&admission), 0);
    }

    #[tokio::test]
    async fn whoever_waits_too_long_is_told_to_come_again() {
        let admission = admission(100);
        let _held = [admission.admit(client("a"), cost(25)).await, admission.admit(client("a"), cost(25)).await];
        let status = refused(&admission, "a", 25).await;
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status_map::retry_after_ms(&status), 1000);
        let state = admission.inner.lock();
        assert_eq!((state.turns.waiting_calls(), state.waiting.len()), (0, 0));
    }

    #[tokio::test]
    async fn whoever_goes_away_while_waiting_leaves_nothing_behind() {
        let admission = admission(100);
        let held_places = [admission.admit(client("a"), cost(25)).await, admission.admit(client("a"), cost(25)).await];
        {
            let waiting = admission.admit(client("a"), cost(25));
            tokio::pin!(waiting);
            assert!(futures_util::poll!(waiting.as_mut()).is_pending());
            // It is let in and does not know yet.
            drop(held_places);
            assert_eq!(held(&admission), 25);
        }
        assert_eq!(held(&admission), 0);
    }

    #[tokio::test]
    async fn a_place_grows_only_by_what_is_free() {
        let admission = admission(100);
        let place = admission.admit(client("a"), cost(20)).await.unwrap();
        place.grow(80).unwrap();
        assert_eq!(place.grow(1).unwrap_err().code(), Code::Unavailable);
        drop(place);
        assert_eq!(held(&admission), 0);
    }

    #[tokio::test]
    async fn a_call_that_is_larger_than_all_there_is_is_let_in_when_a_good_part_is_free() {
        let admission = admission(100);
        let place = admission.admit(client("a"), cost(1000)).await.unwrap();
        assert_eq!(held(&admission), 25);
        drop(place);
    }
}
