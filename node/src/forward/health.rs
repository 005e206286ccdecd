//! Whether another node is there, and how it is, by what was heard of it.

use std::time::{Duration, Instant};

use casbah_cluster::membership::Epoch;
use casbah_proto::peer::v1::NodeReport;

use crate::config::limits::AWAY_AFTER;

/// The weight of a new measurement in the average: of about the last eight.
const LATENCY_SHARE: u32 = 8;

/// How another node is, as far as is known here. Nothing is certain about what is elsewhere: a node that is called reachable
/// may fail the next call, and one that is called away may be well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// It has answered lately, or was not asked long enough to know better.
    pub reachable: bool,
    /// It takes writes, by its own word.
    pub writable: bool,
    /// It is about to end, by its own word: new work goes elsewhere.
    pub draining: bool,
    /// How long its answers to heartbeats took lately, on an average; zero before the first.
    pub latency: Duration,
    /// The newest layout that it has answered by.
    pub epoch: Epoch,
}

/// A change that others should know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It was away, and has answered.
    Back,
    /// It is away now.
    Away,
}

/// Decides whether another node is there: by answers, refusals and silence.
#[derive(Debug)]
pub(super) struct Machine {
    reachable: bool,
    /// When it answered last, or was met first.
    heard: Instant,
    latency: Option<Duration>,
    epoch: Epoch,
    report: Option<NodeReport>,
    /// By how much its clock and this node's differ, by its last heartbeat.
    apart: Duration,
}

// === impl Health ===

impl Health {
    /// Of a node that is none.
    pub(super) const NOBODY: Health =
        Health { reachable: false, writable: false, draining: false, latency: Duration::ZERO, epoch: Epoch(0) };
}

// === impl Machine ===

impl Machine {
    /// A node that is heard of for the first time: it is taken to be there until it has been silent for long enough.
    pub(super) fn new(now: Instant) -> Machine {
        Machine { reachable: true, heard: now, latency: None, epoch: Epoch(0), report: None, apart: Duration::ZERO }
    }

    /// How it is.
    pub(super) fn health(&self) -> Health {
        let report = self.report.as_ref();
        Health {
            reachable: self.reachable,
            writable: report.is_none_or(|report| report.writable),
            draining: report.is_some_and(|report| report.draining),
            latency: self.latency.unwrap_or_default(),
            epoch: self.epoch,
        }
    }

    /// Whether it has been heard of lately: by the clock, for this node may have slept since it looked last.
    pub(super) fn is_there(&self, now: Instant) -> bool {
        self.reachable && self.latency.is_some() && now < self.away_at()
    }

    /// By how much its clock and this node's differ.
    pub(super) fn apart(&self) -> Duration {
        self.apart
    }

    /// Its clock differs from this node's by so much.
    pub(super) fn reads_clock(&mut self, apart: Duration) {
        self.apart = apart;
    }

    /// What it has said of itself last.
    pub(super) fn report(&self) -> Option<&NodeReport> {
        self.report.as_ref()
    }

    /// It has answered a call of any kind.
    pub(super) fn answered(&mut self, now: Instant, epoch: Option<Epoch>) -> Option<Turn> {
        self.heard = self.heard.max(now);
        self.epoch = self.epoch.max(epoch.unwrap_or_default());
        let was_away = !std::mem::replace(&mut self.reachable, true);
        was_away.then_some(Turn::Back)
    }

    /// It has answered a heartbeat, which took this long.
    pub(super) fn beat(&mut self, now: Instant, took: Duration, report: Option<NodeReport>) -> Option<Turn> {
        self.latency = Some(match self.latency {
            Some(average) => (average * (LATENCY_SHARE - 1) + took) / LATENCY_SHARE,
            None => took,
        });
        let epoch = report.as_ref().map(|report| Epoch(report.epoch));
        self.report = report;
        self.answered(now, epoch)
    }

    /// Nobody listens where it should be, or it is somebody else: there is nothing to wait for.
    pub(super) fn refused(&mut self) -> Option<Turn> {
        let was_there = std::mem::replace(&mut self.reachable, false);
        was_there.then_some(Turn::Away)
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant) -> Option<Turn> {
        if now < self.away_at() {
            return None;
        }
        self.refused()
    }

    /// When it will be away unless it is heard of.
    pub(super) fn away_at(&self) -> Instant {
        self.heard + AWAY_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn report(writable: bool, draining: bool) -> Option<NodeReport> {
        Some(NodeReport { writable, draining, epoch: 3, ..NodeReport::default() })
    }

    #[test]
    fn a_node_that_was_never_heard_of_is_given_the_time_of_three_heartbeats() {
        let start = Instant::now();
        let mut machine = Machine::new(start);
        assert_eq!(machine.tick(start + 1499 * MS), None);
        assert!(machine.health().reachable);
        assert_eq!(machine.tick(start + 1500 * MS), Some(Turn::Away));
        assert!(!machine.health().reachable);
    }

    #[test]
    fn silence_is_told_once_and_so_is_the_return() {
        let start = Instant::now();
        let mut machine = Machine::new(start);
        assert_eq!(machine.beat(start + 400 * MS, MS, report(true, false)), None);
        assert_eq!(machine.tick(start + 1899 * MS), None);
        assert_eq!(machine.tick(start + 1900 * MS), Some(Turn::Away));
        assert_eq!(machine.tick(start + 5000 * MS), None);
        assert_eq!(machine.answered(start + 6000 * MS, None), Some(Turn::Back));
        assert_eq!(machine.answered(start + 6001 * MS, None), None);
        assert_eq!(machine.tick(start + 7499 * MS), None);
    }

    #[test]
    fn any_answer_counts_as_a_sign_of_life() {
        let start = Instant::now();
        let mut machine = Machine::new(start);
        for at in 1..100 {
            assert_eq!(machine.tick(start + at * 1000 * MS), None, "{at}");
            assert_eq!(machine.answered(start + at * 1000 * MS, None), None);
        }
    }

    #[test]
    fn a_refusal_is_not_waited_for() {
        let start = Instant::now();
        let mut machine = Machine::new(start);
        machine.beat(start, MS, report(true, false));
        assert_eq!(machine.refused(), Some(Turn::Away));
        assert_eq!(machine.refused(), None);
        assert!(!machine.health().reachable);
        assert_eq!(machine.beat(start + 10 * MS, MS, report(true, false)), Some(Turn::Back));
    }

    #[test]
    fn an_answer_that_comes_late_does_not_turn_the_clock_back() {
        let start = Instant::now();
        let mut machine = Machine::new(start);
        machine.answered(start + 1000 * MS, None);
        machine.answered(start, None);
        assert_eq!(machine.tick(start + 2400 * MS), None);
        assert_eq!(machine.tick(start + 2500 * MS), Some(Turn::Away));
    }

    #[test]
    fn what_a_node_says_of_itself_is_believed_until_it_says_otherwise() {
        let start = Instant::now();
        let mut machine = Machine::new(start);
        let said = |machine: &Machine| (machine.health().writable, machine.health().draining);
        assert_eq!(said(&machine), (true, false));
        machine.beat(start, MS, report(false, true));
        assert_eq!(said(&machine), (false, true));
        machine.refused();
        assert_eq!(said(&machine), (false, true));
        machine.beat(start, MS, report(true, false));
        assert_eq!(said(&machine), (true, false));
    }

    #[test]
    fn a_node_is_there_when_it_has_been_heard_of_lately_whoever_has_slept() {
        let start = Instant::now();
        let mut machine = Machine::new(start);
        assert!(!machine.is_there(start), "nothing was heard of it");
        machine.beat(start, MS, None);
        assert!(machine.is_there(start + 1499 * MS));
        assert!(!machine.is_there(start + 1500 * MS), "although nobody has looked at the clock");
        machine.answered(start + 2000 * MS, None);
        assert!(machine.is_there(start + 2000 * MS));
        machine.refused();
        assert!(!machine.is_there(start + 2000 * MS));
    }

    #[test]
    fn the_newest_epoch_is_remembered() {
        let start = Instant::now();
        let mut machine = Machine::new(start);
        machine.answered(start, Some(Epoch(5)));
        machine.answered(start, Some(Epoch(4)));
        machine.beat(start, MS, report(true, false));
        assert_eq!(machine.health().epoch, Epoch(5));
    }

    #[test]
    fn the_latency_is_an_average_that_forgets() {
        let start = Instant::now();
        let mut machine = Machine::new(start);
        machine.beat(start, 8 * MS, None);
        assert_eq!(machine.health().latency, 8 * MS);
        machine.beat(start, 16 * MS, None);
        assert_eq!(machine.health().latency, 9 * MS);
        for _ in 0..100 {
            machine.beat(start, MS, None);
        }
        assert!(machine.health().latency < 2 * MS);
    }
}
