//! What is counted while the node runs: plain atomics, which cost the hot path some nanoseconds each.
//!
//! There is one set a process, as there is one log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::labels::{
    CallCode, Class, Encoding, Lookup, Method, Presence, Refused, Stalled, Traffic, Transport, TurnedAway,
};

/// The counters of this process.
pub static COUNTERS: Counters = Counters::new();

/// Upper bounds of the buckets of durations, in microseconds: from a call that is answered from memory to an upload of the
/// largest blobs on a slow line.
pub const DURATION_BOUNDS_US: [u64; 14] = [
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    50_000,
    100_000,
    500_000,
    1_000_000,
    5_000_000,
    30_000_000,
    300_000_000,
];

/// One more for what is longer than all bounds.
const BUCKETS: usize = DURATION_BOUNDS_US.len() + 1;

/// All that is counted.
pub struct Counters {
    /// Calls that began.
    pub calls_begun: Counter,
    calls_ended: [Counts<{ CallCode::COUNT }>; Method::COUNT],
    durations: [Histogram; Class::COUNT],
    /// Bytes of blobs that came, as they travelled.
    pub received_bytes: Counts<{ Encoding::COUNT }>,
    /// Bytes of blobs that went, as they travelled.
    pub sent_bytes: Counts<{ Encoding::COUNT }>,
    /// Connections that were accepted.
    pub connections_accepted: Counts<{ Transport::COUNT }>,
    connections_closed: Counts<{ Transport::COUNT }>,
    /// Connections that came to nothing.
    pub connections_refused: Counts<{ Refused::COUNT }>,
    /// Digests that FindMissingBlobs was asked for.
    pub find_missing: Counts<{ Presence::COUNT }>,
    /// Results of actions that were asked for.
    pub action_lookups: Counts<{ Lookup::COUNT }>,
    /// Assets that were asked for.
    pub asset_lookups: Counts<{ Lookup::COUNT }>,
    /// Times that assets were looked up in what this node knew, since no leader could be found.
    pub asset_stale_reads: Counter,
    /// Calls that were ended because their clients did not go on.
    pub stalled: Counts<{ Stalled::COUNT }>,
    /// Blobs that this node has called present and that are missing within the retention floor.
    pub broken_promises: Counter,
    admission: [AdmissionCounters; Traffic::COUNT],
}

/// How much is let in, of one kind of calls.
pub struct AdmissionCounters {
    /// What calls may hold.
    pub memory_bytes: Gauge,
    /// What those that were let in are charged with.
    pub held_bytes: Gauge,
    /// Calls that were let in and have not ended.
    pub calls: Gauge,
    /// Calls that wait.
    pub waiting: Gauge,
    /// Calls that were told to come again.
    pub turned_away: Counts<{ TurnedAway::COUNT }>,
}

/// Goes up and down.
#[derive(Debug)]
pub struct Gauge(AtomicU64);

/// Counts up.
#[derive(Debug)]
pub struct Counter(AtomicU64);

/// One counter for each value of a label, which is given as its number.
#[derive(Debug)]
pub struct Counts<const N: usize>([Counter; N]);

/// How often something took how long.
#[derive(Debug)]
pub struct Histogram {
    buckets: Counts<BUCKETS>,
    sum_ns: Counter,
}

/// A connection that is counted as open until this is dropped.
pub struct OpenConnection {
    transport: Transport,
}

// === impl Counters ===

impl Counters {
    /// All at zero.
    pub const fn new() -> Counters {
        Counters {
            calls_begun: Counter::new(),
            calls_ended: [const { Counts::new() }; Method::COUNT],
            durations: [const { Histogram::new() }; Class::COUNT],
            received_bytes: Counts::new(),
            sent_bytes: Counts::new(),
            connections_accepted: Counts::new(),
            connections_closed: Counts::new(),
            connections_refused: Counts::new(),
            find_missing: Counts::new(),
            action_lookups: Counts::new(),
            asset_lookups: Counts::new(),
            asset_stale_reads: Counter::new(),
            stalled: Counts::new(),
            broken_promises: Counter::new(),
            admission: [const { AdmissionCounters::new() }; Traffic::COUNT],
        }
    }

    /// How much is let in of these calls.
    pub fn admission(&self, traffic: Traffic) -> &AdmissionCounters {
        let [clients, nodes] = &self.admission;
        match traffic {
            Traffic::Clients => clients,
            Traffic::Nodes => nodes,
        }
    }

    /// Takes note of a call that has ended.
    pub fn call_ended(&self, method: Method, code: CallCode, took: Duration) {
        if let Some(codes) = self.calls_ended.get(method as usize) {
            codes.add(code as usize, 1);
        }
        if let Some(durations) = method.class().and_then(|class| self.durations.get(class as usize)) {
            durations.observe(took);
        }
    }

    /// Calls of this method that ended with this code.
    pub fn calls(&self, method: usize, code: usize) -> u64 {
        self.calls_ended.get(method).map_or(0, |codes| codes.get(code))
    }

    /// Calls that ended, of all methods, with one of these codes.
    pub fn calls_with(&self, codes: &[CallCode]) -> u64 {
        let of =
            |method: &Counts<{ CallCode::COUNT }>| codes.iter().map(|code| method.get(*code as usize)).sum::<u64>();
        self.calls_ended.iter().map(of).sum()
    }

    /// Calls that have begun and not ended.
    pub fn calls_under_way(&self) -> u64 {
        // In this order: what ends in between has begun.
        let ended: u64 = self.calls_ended.iter().map(Counts::total).sum();
        self.calls_begun.get().saturating_sub(ended)
    }

    /// The durations of this class.
    pub fn durations(&self, class: usize) -> Option<&Histogram> {
        self.durations.get(class)
    }

    /// Connections that are open.
    pub fn connections_open(&self, transport: usize) -> u64 {
        let closed = self.connections_closed.get(transport);
        self.connections_accepted.get(transport).saturating_sub(closed)
    }
}

impl Default for Counters {
    fn default() -> Counters {
        Counters::new()
    }
}

// === impl Counter ===

impl Counter {
    /// At zero.
    pub const fn new() -> Counter {
        Counter(AtomicU64::new(0))
    }

    /// Counts up.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// As counted so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Default for Counter {
    fn default() -> Counter {
        Counter::new()
    }
}

// === impl AdmissionCounters ===

impl AdmissionCounters {
    const fn new() -> AdmissionCounters {
        AdmissionCounters {
            memory_bytes: Gauge::new(),
            held_bytes: Gauge::new(),
            calls: Gauge::new(),
            waiting: Gauge::new(),
            turned_away: Counts::new(),
        }
    }
}

// === impl Gauge ===

impl Gauge {
    /// At zero.
    pub const fn new() -> Gauge {
        Gauge(AtomicU64::new(0))
    }

    /// It is this now.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// As it is now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Default for Gauge {
    fn default() -> Gauge {
        Gauge::new()
    }
}

// === impl Counts ===

impl<const N: usize> Counts<N> {
    /// All at zero.
    pub const fn new() -> Counts<N> {
        Counts([const { Counter::new() }; N])
    }

    /// Counts up one of them.
    pub fn add(&self, place: usize, count: u64) {
        if let Some(counter) = self.0.get(place) {
            counter.add(count);
        }
    }

    /// One of them, as counted so far.
    pub fn get(&self, place: usize) -> u64 {
        self.0.get(place).map_or(0, Counter::get)
    }

    /// All together.
    pub fn total(&self) -> u64 {
        self.0.iter().map(Counter::get).sum()
    }
}

impl<const N: usize> Default for Counts<N> {
    fn default() -> Counts<N> {
        Counts::new()
    }
}

// === impl Histogram ===

impl Histogram {
    /// Empty.
    pub const fn new() -> Histogram {
        Histogram { buckets: Counts::new(), sum_ns: Counter::new() }
    }

    /// Takes note of one.
    pub fn observe(&self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = DURATION_BOUNDS_US.iter().position(|bound| nanoseconds <= bound * 1000);
        self.buckets.add(bucket.unwrap_or(BUCKETS - 1), 1);
        self.sum_ns.add(nanoseconds);
    }

    /// How many fell into each bucket alone, the last one for what is longer than all bounds.
    pub fn buckets(&self) -> [u64; BUCKETS] {
        std::array::from_fn(|bucket| self.buckets.get(bucket))
    }

    /// All together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns.get())
    }
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram::new()
    }
}

// === impl OpenConnection ===

impl OpenConnection {
    /// One more, from now on.
    pub fn begin(transport: Transport) -> OpenConnection {
        COUNTERS.connections_accepted.add(transport as usize, 1);
        OpenConnection { transport }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        COUNTERS.connections_closed.add(self.transport as usize, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_under_way_until_it_ends() {
        let counters = Counters::new();
        counters.calls_begun.add(2);
        assert_eq!(counters.calls_under_way(), 2);
        counters.call_ended(Method::Read, CallCode::NotFound, Duration::from_millis(1));
        assert_eq!(counters.calls_under_way(), 1);
        assert_eq!(counters.calls(Method::Read as usize, CallCode::NotFound as usize), 1);
        assert_eq!(counters.calls_with(&[CallCode::NotFound, CallCode::Ok]), 1);
        assert_eq!(counters.calls_with(&[CallCode::Internal]), 0);
    }

    #[test]
    fn a_duration_on_the_bound_is_within_it() {
        let histogram = Histogram::new();
        for microseconds in [0, 100, 101, 300_000_000, 300_000_001] {
            histogram.observe(Duration::from_micros(microseconds));
        }
        let buckets = histogram.buckets();
        assert_eq!((buckets[0], buckets[1], buckets[BUCKETS - 2], buckets[BUCKETS - 1]), (2, 1, 1, 1));
        assert_eq!(histogram.sum(), Duration::from_micros(600_000_202));
    }

    #[test]
    fn what_has_no_end_of_its_own_has_no_duration() {
        let counters = Counters::new();
        counters.call_ended(Method::Watch, CallCode::Cancelled, Duration::from_secs(1000));
        assert!(counters.durations.iter().all(|histogram| histogram.sum().is_zero()));
    }
}
