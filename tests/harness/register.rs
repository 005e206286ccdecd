//! Whether a history of reads and writes of one register is linearizable: whether every operation can be thought to have
//! happened at one moment between its begin and its end, so that each read sees the write before it.
//!
//! After Wing and Gong, "Testing and Verifying Concurrent Objects" (1993), and Lowe, "Testing for linearizability" (2017):
//! a search over what could have happened first, which never looks twice at the same set of operations done and the same
//! value. Each write of a history has a value of its own, which makes the search short.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, bail};

/// States that are looked at before the search gives up: minutes of it, and far more than a history of some hundred
/// operations by ten clients needs.
const STATES_MAX: usize = 3_000_000;

/// Operations that are shown around the point where no order fits any more.
const SHOWN_COUNT: usize = 12;

/// A read or a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// When it was sent.
    pub begun: Duration,
    /// When its answer came. `None`: nobody knows whether and when it happens, from its begin on.
    pub ended: Option<Duration>,
    /// What it was.
    pub action: Action,
}

/// What an operation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// This value was written; no other write has it.
    Write(u64),
    /// This value was read; `None`: the register had never been written.
    Read(Option<u64>),
}

/// The operations that have been put in order, one bit each.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Done(Vec<u64>);

// === the search ===

/// That the history is linearizable, the register being empty before it.
///
/// # Errors
/// When it is not, with the place where it went wrong; when two writes have one value; when the search takes too long.
pub fn check(history: &[Operation]) -> Result<()> {
    let operations = relevant(history)?;
    let mut seen = HashSet::new();
    let mut states = vec![(Done::none(operations.len()), None)];
    let mut furthest = None;
    while let Some((done, value)) = states.pop() {
        let open = || operations.iter().enumerate().filter(|(place, _)| !done.has(*place));
        // What begins after another one has ended comes after it.
        let horizon = open().filter_map(|(_, operation)| operation.ended).min();
        // Those of which nobody knows may as well never happen.
        let Some(horizon) = horizon else { return Ok(()) };
        if furthest.as_ref().is_none_or(|(furthest, _): &(Done, Option<u64>)| done.count() > furthest.count()) {
            furthest = Some((done.clone(), value));
        }
        let next = open().take_while(|(_, operation)| operation.begun <= horizon);
        // A read that fits changes nothing, so it may be first whenever it can be.
        let fitting = next.clone().find(|(_, operation)| operation.action == Action::Read(value));
        let steps: Vec<(Done, Option<u64>)> = match fitting {
            Some((place, _)) => vec![(done.with(place), value)],
            None => next
                .filter_map(|(place, operation)| match operation.action {
                    Action::Write(written) => Some((done.with(place), Some(written))),
                    Action::Read(_) => None,
                })
                .collect(),
        };
        states.extend(steps.into_iter().filter(|state| seen.insert(state.clone())));
        if seen.len() > STATES_MAX {
            bail!("the history of {} operations was not understood in {STATES_MAX} steps", operations.len());
        }
    }
    bail!("no order of these operations is possible:\n{}", explain(&operations, furthest));
}

/// In the order of their begins, without what can make no difference.
fn relevant(history: &[Operation]) -> Result<Vec<Operation>> {
    let mut written = BTreeSet::new();
    let mut read = BTreeSet::new();
    for operation in history {
        match operation.action {
            Action::Write(value) if !written.insert(value) => bail!("the value {value} was written twice"),
            Action::Write(_) => {}
            Action::Read(value) => drop(read.insert(value)),
        }
    }
    let matters = |operation: &&Operation| match (operation.action, operation.ended) {
        // Such a write may have happened after everything else.
        (Action::Write(value), None) => read.contains(&Some(value)),
        (Action::Read(_), None) => false,
        (_, Some(_)) => true,
    };
    let mut operations: Vec<Operation> = history.iter().filter(matters).copied().collect();
    operations.sort_by_key(|operation| operation.begun);
    Ok(operations)
}

fn explain(operations: &[Operation], furthest: Option<(Done, Option<u64>)>) -> String {
    let Some((done, value)) = furthest else { return "there are none".to_owned() };
    let mut text =
        format!("after {} of {}, with the value {value:?}, none of these fits:\n", done.count(), operations.len());
    let open = operations.iter().enumerate().filter(|(place, _)| !done.has(*place));
    for (_, operation) in open.take(SHOWN_COUNT) {
        let Operation { begun, ended, action } = operation;
        let ended = ended.map_or_else(|| "never answered".to_owned(), |ended| format!("{ended:?}"));
        let _infallible = writeln!(text, "  {begun:?} to {ended}: {action:?}");
    }
    text
}

// === impl Done ===

impl Done {
    fn none(count: usize) -> Done {
        Done(vec![0; count.div_ceil(64)])
    }

    fn has(&self, place: usize) -> bool {
        self.0.get(place / 64).is_some_and(|word| word & (1 << (place % 64)) != 0)
    }

    fn with(&self, place: usize) -> Done {
        let mut done = self.clone();
        if let Some(word) = done.0.get_mut(place / 64) {
            *word |= 1 << (place % 64);
        }
        done
    }

    fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;
    use crate::load::test_seed;

    /// `begun..ended`, in milliseconds.
    fn write(begun: u64, ended: u64, value: u64) -> Operation {
        let (begun, ended) = (Duration::from_millis(begun), Some(Duration::from_millis(ended)));
        Operation { begun, ended, action: Action::Write(value) }
    }

    fn lost_write(begun: u64, value: u64) -> Operation {
        Operation { ended: None, ..write(begun, begun, value) }
    }

    fn read(begun: u64, ended: u64, value: impl Into<Option<u64>>) -> Operation {
        Operation { action: Action::Read(value.into()), ..write(begun, ended, 0) }
    }

    fn refused(history: &[Operation]) -> String {
        check(history).unwrap_err().to_string()
    }

    #[test]
    fn a_read_sees_the_write_before_it() {
        check(&[]).unwrap();
        check(&[read(0, 1, None), write(2, 3, 7), read(4, 5, 7)]).unwrap();
        check(&[write(0, 1, 1), write(2, 3, 2), read(4, 5, 2), read(4, 6, 2)]).unwrap();
    }

    #[test]
    fn a_stale_read_is_found() {
        let told = refused(&[write(0, 1, 1), write(2, 3, 2), read(4, 5, 1)]);
        assert!(told.contains("with the value Some(2)") && told.contains("4ms to 5ms: Read(Some(1))"), "{told}");
        refused(&[write(0, 1, 7), read(2, 3, None)]);
    }

    #[test]
    fn a_value_out_of_nowhere_is_found() {
        refused(&[write(0, 1, 1), read(2, 3, 9)]);
        // From the future.
        refused(&[read(0, 1, 7), write(2, 3, 7)]);
    }

    #[test]
    fn reads_during_a_write_may_see_either_and_do_not_go_back() {
        check(&[write(0, 1, 1), write(2, 9, 2), read(3, 4, 1), read(5, 6, 2)]).unwrap();
        refused(&[write(0, 1, 1), write(2, 9, 2), read(3, 4, 2), read(5, 6, 1)]);
    }

    #[test]
    fn concurrent_writes_happen_in_one_order_for_all() {
        check(&[write(0, 9, 1), write(0, 9, 2), read(10, 11, 1), read(12, 13, 1)]).unwrap();
        refused(&[write(0, 9, 1), write(0, 9, 2), read(10, 11, 1), read(12, 13, 2)]);
        refused(&[write(0, 9, 1), write(0, 9, 2), read(1, 2, 1), read(3, 4, 2), read(5, 6, 1)]);
    }

    #[test]
    fn a_write_of_which_nobody_knows_may_happen_once_at_any_time_or_never() {
        check(&[lost_write(0, 1), read(1, 2, None)]).unwrap();
        check(&[lost_write(0, 1), read(1, 2, None), read(50, 51, 1)]).unwrap();
        check(&[lost_write(0, 1), write(1, 2, 2), read(3, 4, 2), read(5, 6, 1), read(7, 8, 1)]).unwrap();
        // Having happened, it does not happen again.
        refused(&[lost_write(0, 1), read(1, 2, 1), write(3, 4, 2), read(5, 6, 1)]);
        // Not before it was sent.
        refused(&[read(0, 1, 1), lost_write(2, 1)]);
    }

    #[test]
    fn a_read_without_an_answer_says_nothing() {
        check(&[write(0, 1, 1), Operation { ended: None, ..read(2, 2, 9) }]).unwrap();
    }

    #[test]
    fn a_value_that_is_written_twice_is_the_callers_mistake() {
        assert!(refused(&[write(0, 1, 1), write(2, 3, 1)]).contains("twice"));
    }

    #[test]
    fn operations_that_touch_each_other_in_time_are_concurrent() {
        check(&[write(0, 2, 1), read(2, 3, None)]).unwrap();
    }

    /// Eight clients, one register: what it says when it is one, and what it says when one answer is another's.
    #[test]
    fn long_histories_of_a_real_register_pass_and_a_stale_answer_in_them_does_not() {
        let mut random = SmallRng::seed_from_u64(test_seed());
        for _ in 0..20 {
            let mut history = simulated(&mut random, 400, 8);
            check(&history).unwrap();
            // An old value, read again after everything.
            let value = history.iter().find_map(|operation| match (operation.action, operation.ended) {
                (Action::Write(value), Some(_)) => Some(value),
                _ => None,
            });
            history.push(write(100_000, 100_001, 1_000_000));
            check(&history).unwrap();
            history.push(read(100_002, 100_003, value));
            refused(&history);
        }
    }

    #[test]
    fn short_histories_are_judged_as_by_trying_every_order() {
        let mut random = SmallRng::seed_from_u64(test_seed());
        let (mut good, mut bad) = (0, 0);
        for _ in 0..20_000 {
            let history = noise(&mut random);
            let expected = some_order_fits(&history, &mut Vec::new(), None);
            assert_eq!(check(&history).is_ok(), expected, "{history:?}");
            if expected { good += 1 } else { bad += 1 }
        }
        assert!(good > 1000 && bad > 1000, "{good} good, {bad} bad");
    }

    /// Operations of clients, each of which happens at a moment of its own between its begin and its end.
    fn simulated(random: &mut SmallRng, count: usize, clients: usize) -> Vec<Operation> {
        let mut free_at = vec![0_u64; clients];
        let mut planned = Vec::new();
        for value in 0..count as u64 {
            let client = random.random_range(0..clients);
            let begun = free_at[client] + random.random_range(1..20);
            let ended = begun + random.random_range(1..30);
            free_at[client] = ended;
            let is_lost = random.random_ratio(1, 20);
            planned.push((random.random_range(begun..=ended), begun, ended, value, random.random_bool(0.4), is_lost));
        }
        planned.sort_unstable();
        let mut current = None;
        let mut history = Vec::new();
        for (_, begun, ended, value, writes, is_lost) in planned {
            if writes && is_lost {
                // Half of those that nobody answers never arrive.
                current = if random.random_bool(0.5) { Some(value) } else { current };
                history.push(lost_write(begun, value));
            } else if writes {
                current = Some(value);
                history.push(write(begun, ended, value));
            } else {
                history.push(read(begun, ended, current));
            }
        }
        history
    }

    /// Up to six operations that may mean anything.
    fn noise(random: &mut SmallRng) -> Vec<Operation> {
        let count = random.random_range(1..=6);
        let mut history: Vec<Operation> = Vec::new();
        for value in 0..count {
            let begun = random.random_range(0..12);
            let ended = begun + random.random_range(0..6);
            history.push(match random.random_range(0..6_u32) {
                0..2 => write(begun, ended, value),
                2 => lost_write(begun, value),
                _ => read(begun, ended, random.random_range(0..=count).checked_sub(1)),
            });
        }
        history
    }

    /// Every order of all operations that have ended and any of those that have not.
    fn some_order_fits(history: &[Operation], order: &mut Vec<usize>, value: Option<u64>) -> bool {
        let open: Vec<usize> = (0..history.len()).filter(|place| !order.contains(place)).collect();
        if open.iter().all(|place| history[*place].ended.is_none()) {
            return true;
        }
        for place in open.iter().copied() {
            let operation = history[place];
            let too_early = |other: &usize| history[*other].ended.is_some_and(|ended| ended < operation.begun);
            let value = match operation.action {
                _ if open.iter().any(too_early) => continue,
                Action::Write(written) => Some(written),
                Action::Read(read) if read == value => value,
                Action::Read(_) => continue,
            };
            order.push(place);
            let fits = some_order_fits(history, order, value);
            order.pop();
            if fits {
                return true;
            }
        }
        false
    }
}
