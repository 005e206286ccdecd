//! How many bytes repair moves in a second.

/// A full bucket lasts so long at the full rate: what may be moved at once after a rest.
const BURST_MS: u64 = 250;

/// Calls of clients under way up to which repair has its full rate: a node that is at rest has a few.
const CLIENTS_AT_REST: u64 = 8;

/// The rate is halved for each doubling beyond that, so often at the most: repair has to come to an end under load too.
const HALVINGS_MAX: u32 = 3;

/// A bucket that fills with bytes as time goes on, and that may be overdrawn by whoever then waits.
#[derive(Debug, Clone)]
pub struct Pace {
    rate_bytes: u64,
    /// What may be moved at once, in bytes; below zero: what has been moved too early.
    room_bytes: i128,
    at_ms: u64,
}

// === impl Pace ===

impl Pace {
    /// So many bytes in a second, from now on.
    pub fn new(rate_bytes: u64, now_ms: u64) -> Pace {
        let rate_bytes = rate_bytes.max(1);
        Pace { rate_bytes, room_bytes: burst(rate_bytes), at_ms: now_ms }
    }

    /// Takes note of bytes that are to be moved now; for how many milliseconds to wait before. `clients` is how many calls of
    /// clients are under way, to which repair yields.
    pub fn take(&mut self, bytes: u64, clients: u64, now_ms: u64) -> u64 {
        let rate = self.rate_beside(clients);
        let passed_ms = now_ms.saturating_sub(self.at_ms);
        self.at_ms = self.at_ms.max(now_ms);
        let filled = i128::from(rate) * i128::from(passed_ms) / 1000;
        self.room_bytes = (self.room_bytes + filled).min(burst(rate)) - i128::from(bytes);
        let debt = self.room_bytes.min(0).unsigned_abs();
        u64::try_from((debt * 1000).div_ceil(u128::from(rate))).unwrap_or(u64::MAX)
    }

    /// The rate while so many calls of clients are under way.
    fn rate_beside(&self, clients: u64) -> u64 {
        let doublings = (clients / CLIENTS_AT_REST).checked_ilog2().map_or(0, |doublings| doublings + 1);
        let doublings = if clients > CLIENTS_AT_REST { doublings } else { 0 };
        (self.rate_bytes >> doublings.min(HALVINGS_MAX)).max(1)
    }
}

fn burst(rate_bytes: u64) -> i128 {
    i128::from(rate_bytes) * i128::from(BURST_MS) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Moves as fast as it may for a while; what was moved.
    fn moved_in(pace: &mut Pace, seconds: u64, piece: u64, clients: u64) -> u64 {
        let (mut now_ms, mut moved) = (0, 0);
        loop {
            now_ms += pace.take(piece, clients, now_ms);
            if now_ms > seconds * 1000 {
                return moved;
            }
            moved += piece;
        }
    }

    #[test]
    fn in_the_long_run_it_is_the_rate_whatever_the_pieces() {
        for piece in [1000, 64 << 10, MIB, 100 * MIB] {
            let moved = moved_in(&mut Pace::new(64 * MIB, 0), 60, piece, 0);
            let most = 64 * MIB * 60 + 16 * MIB;
            assert!(moved <= most + piece && moved + piece >= 64 * MIB * 59, "{piece}: {moved}");
        }
    }

    #[test]
    fn the_first_is_not_waited_for_and_a_rest_is_not_saved_up() {
        let mut pace = Pace::new(MIB, 0);
        assert_eq!(pace.take(1000, 0, 0), 0);
        assert_eq!(pace.take(MIB, 0, 3_600_000), 750, "a quarter of a second's worth is at hand");
        assert_eq!(pace.take(MIB, 0, 3_600_000), 1750);
        assert_eq!(pace.take(0, 0, 3_601_750), 0);
    }

    #[test]
    fn the_more_clients_wait_the_slower_it_is_but_never_at_rest() {
        let moved = |clients| moved_in(&mut Pace::new(64 * MIB, 0), 60, MIB, clients) / (6 * MIB);
        assert_eq!([0, 8, 9, 15].map(moved), [642, 642, 321, 321]);
        assert_eq!([16, 32, 64, 10_000].map(moved), [160, 80, 80, 80]);
    }

    #[test]
    fn a_clock_that_stands_or_goes_back_gives_nothing() {
        let mut pace = Pace::new(1000, 10_000);
        assert_eq!(pace.take(250, 0, 10_000), 0);
        assert_eq!(pace.take(100, 0, 5_000), 100);
        assert_eq!(pace.take(0, 0, 10_000), 100);
        assert_eq!(pace.take(0, 0, 10_100), 0);
    }

    #[test]
    fn even_the_smallest_rate_gets_on() {
        let mut pace = Pace::new(0, 0);
        assert!(pace.take(10, 1000, 0) >= 10_000);
        assert_eq!(pace.take(0, 1000, 10_000), 0);
    }
}
