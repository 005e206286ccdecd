//! What clients did to a cluster and what they were told, and the checkers that hold the cluster to its guarantees.
//!
//! A write that was not acknowledged may have happened or not, or happen later: it proves nothing either way. A read that
//! was refused proves nothing about data, and counts against availability.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tonic::{Code, Status};

use crate::clients::is_transport_error;
use crate::load::Content;
use crate::register;

/// Updates of results that follow each other this closely may be ordered either way: their order is that of clocks of
/// milliseconds.
const CLOCK_SLACK: Duration = Duration::from_millis(5);

/// Findings that a failed check shows; the rest is counted.
const SHOWN_COUNT: usize = 10;

/// Everything that happened, in the order in which it ended.
pub struct History {
    started: Instant,
    records: Mutex<Vec<Record>>,
}

/// One call of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What the client wanted, over several attempts: unique in the history.
    pub task: u64,
    /// Through which node.
    pub node: usize,
    /// Since the start of the history.
    pub begun: Duration,
    /// The same.
    pub ended: Duration,
    /// What was asked.
    pub call: Call,
    /// What was answered.
    pub outcome: Outcome,
}

/// What a client asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// To keep this blob.
    Store(Content),
    /// For this blob's bytes.
    Load(Content),
    /// Whether this blob is there.
    Find(Content),
    /// To keep a result of an action. No other update of the history has this value.
    Update {
        /// Which action.
        key: u64,
        /// Which result.
        value: u64,
    },
    /// For the result of an action.
    Result {
        /// Which action.
        key: u64,
    },
    /// To name a blob. No other push of the history has this value.
    Push {
        /// By which name.
        key: u64,
        /// Which blob.
        value: u64,
    },
    /// For the blob of a name.
    Fetch {
        /// Which name.
        key: u64,
    },
}

/// What a client was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A write: acknowledged.
    Acknowledged,
    /// Bytes came, each of them right; or the blob is said to be there.
    Present,
    /// NOT_FOUND, or the blob is said to be missing.
    Absent,
    /// This value.
    Value(u64),
    /// It was not done, now: trying again is sensible.
    Unavailable(String),
    /// What no client should ever be told here.
    Wrong(String),
}

/// A kind of [`Call`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// [`Call::Store`].
    Store,
    /// [`Call::Load`].
    Load,
    /// [`Call::Find`].
    Find,
    /// [`Call::Update`].
    Update,
    /// [`Call::Result`].
    Result,
    /// [`Call::Push`].
    Push,
    /// [`Call::Fetch`].
    Fetch,
}

/// How often clients had to try again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attempts {
    /// Things that clients wanted.
    pub tasks: usize,
    /// Those that did not work at once.
    pub retried: usize,
    /// Attempts at one of them, at the most.
    pub most: usize,
    /// Those that never worked.
    pub given_up: usize,
}

/// How much of each kind happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary(BTreeMap<Kind, (usize, usize)>);

// === impl Call and Outcome ===

impl Call {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Call::Store(_) => Kind::Store,
            Call::Load(_) => Kind::Load,
            Call::Find(_) => Kind::Find,
            Call::Update { .. } => Kind::Update,
            Call::Result { .. } => Kind::Result,
            Call::Push { .. } => Kind::Push,
            Call::Fetch { .. } => Kind::Fetch,
        }
    }
}

impl Kind {
    /// Whether it changes something.
    pub fn writes(self) -> bool {
        matches!(self, Kind::Store | Kind::Update | Kind::Push)
    }
}

impl Outcome {
    /// What a status other than NOT_FOUND means to a client.
    pub fn of(status: &Status) -> Outcome {
        let told = || format!("{:?}: {}", status.code(), status.message());
        let passing = [Code::Unavailable, Code::ResourceExhausted, Code::DeadlineExceeded, Code::Aborted];
        // A connection that breaks becomes whatever status the client's library makes of it.
        if passing.contains(&status.code()) || is_transport_error(status) {
            Outcome::Unavailable(told())
        } else {
            Outcome::Wrong(told())
        }
    }

    /// Whether the client was told something, and need not try again.
    pub fn is_answer(&self) -> bool {
        matches!(self, Outcome::Acknowledged | Outcome::Present | Outcome::Absent | Outcome::Value(_))
    }
}

// === impl History ===

impl Default for History {
    fn default() -> History {
        History::new()
    }
}

impl History {
    /// Nothing has happened; time begins.
    pub fn new() -> History {
        History { started: Instant::now(), records: Mutex::default() }
    }

    /// How long it has gone on.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Adds a call that ends now.
    pub fn record(&self, task: u64, node: usize, begun: Duration, call: Call, outcome: Outcome) {
        let record = Record { task, node, begun, ended: self.now(), call, outcome };
        self.records.lock().expect("nobody panics with the lock").push(record);
    }

    /// All calls so far.
    pub fn records(&self) -> Vec<Record> {
        self.records.lock().expect("nobody panics with the lock").clone()
    }

    /// How many acknowledged calls of this kind there were so far.
    pub fn acknowledged_count(&self, kind: Kind) -> usize {
        let records = self.records.lock().expect("nobody panics with the lock");
        records.iter().filter(|record| record.call.kind() == kind && record.outcome.is_answer()).count()
    }

    /// Blobs whose upload was acknowledged, each once.
    pub fn acknowledged_blobs(&self) -> Vec<Content> {
        let records = self.records.lock().expect("nobody panics with the lock");
        let acknowledged = records.iter().filter(|record| record.outcome == Outcome::Acknowledged);
        let mut contents: Vec<Content> = Vec::new();
        let mut seen = BTreeSet::new();
        for record in acknowledged {
            if let Call::Store(content) = record.call
                && seen.insert(content.key())
            {
                contents.push(content);
            }
        }
        contents
    }

    /// How much of each kind there was.
    pub fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        for record in self.records.lock().expect("nobody panics with the lock").iter() {
            let (answered, all) = summary.0.entry(record.call.kind()).or_default();
            *answered += usize::from(record.outcome.is_answer());
            *all += 1;
        }
        summary
    }

    /// All of the guarantees that hold whatever fails, as long as fewer than W holders of a blob are lost for good.
    ///
    /// # Errors
    /// Those that do not.
    pub fn check(&self) -> Result<()> {
        let records = self.records();
        let checked = check_words(&records)
            .and_then(|()| check_blobs(&records))
            .and_then(|()| check_results(&records))
            .and_then(|()| check_assets(&records));
        checked.with_context(|| format!("in a history of {}", self.summary()))
    }

    /// That no download failed which was sent to one of these nodes within this time, of a blob that had been acknowledged.
    ///
    /// # Errors
    /// Those that did.
    pub fn check_readable(&self, nodes: &[usize], during: std::ops::Range<Duration>) -> Result<()> {
        let records = self.records();
        let acknowledged = acknowledged_since(&records);
        let failed = records.iter().filter(|record| match record.call {
            Call::Load(content) if nodes.contains(&record.node) && during.contains(&record.begun) => {
                let known = acknowledged.get(&content.key()).is_some_and(|since| *since < record.begun);
                known && record.outcome != Outcome::Present
            }
            _ => false,
        });
        none(&failed.collect::<Vec<_>>(), "downloads failed at nodes that were there")
    }

    /// How often clients had to try again what they wanted of these kinds.
    pub fn attempts(&self, kinds: &[Kind]) -> Attempts {
        let mut tasks: BTreeMap<u64, (usize, bool)> = BTreeMap::new();
        for record in self.records().iter().filter(|record| kinds.contains(&record.call.kind())) {
            let (attempts, answered) = tasks.entry(record.task).or_default();
            *attempts += 1;
            *answered |= record.outcome.is_answer();
        }
        Attempts {
            tasks: tasks.len(),
            retried: tasks.values().filter(|(attempts, _)| *attempts > 1).count(),
            most: tasks.values().map(|(attempts, _)| *attempts).max().unwrap_or_default(),
            given_up: tasks.values().filter(|(_, answered)| !answered).count(),
        }
    }

    /// The longest that a client had to wait for what it wanted, its further attempts included; for those that were given up,
    /// until then.
    pub fn longest_wait(&self, kinds: &[Kind]) -> Duration {
        let mut tasks: BTreeMap<u64, (Duration, Duration)> = BTreeMap::new();
        for record in self.records().iter().filter(|record| kinds.contains(&record.call.kind())) {
            let (begun, ended) = tasks.entry(record.task).or_insert((record.begun, record.ended));
            *begun = (*begun).min(record.begun);
            *ended = (*ended).max(record.ended);
        }
        tasks.values().map(|(begun, ended)| *ended - *begun).max().unwrap_or_default()
    }
}

// === checkers ===

/// G2 and G3: nobody was told anything that is untrue or makes no sense.
fn check_words(records: &[Record]) -> Result<()> {
    let wrong: Vec<&Record> = records.iter().filter(|record| matches!(record.outcome, Outcome::Wrong(_))).collect();
    none(&wrong, "wrong answers")
}

/// G1 and G3: what was acknowledged before a read began is not NOT_FOUND.
fn check_blobs(records: &[Record]) -> Result<()> {
    let acknowledged = acknowledged_since(records);
    let is_lost = |record: &&Record| match (record.call, &record.outcome) {
        // FindMissingBlobs may call a blob missing while in doubt.
        (Call::Load(content), Outcome::Absent) => {
            acknowledged.get(&content.key()).is_some_and(|since| *since < record.begun)
        }
        _ => false,
    };
    none(&records.iter().filter(is_lost).collect::<Vec<_>>(), "acknowledged blobs were not found")
}

/// Since when each blob is acknowledged.
fn acknowledged_since(records: &[Record]) -> BTreeMap<(u64, u64), Duration> {
    let mut acknowledged: BTreeMap<(u64, u64), Duration> = BTreeMap::new();
    for record in records {
        if let (Call::Store(content), Outcome::Acknowledged) = (record.call, &record.outcome) {
            let since = acknowledged.entry(content.key()).or_insert(record.ended);
            *since = (*since).min(record.ended);
        }
    }
    acknowledged
}

/// The newest result wins: nobody reads an older one, or none, once a newer one was acknowledged.
fn check_results(records: &[Record]) -> Result<()> {
    /// What is known of an update.
    struct Update {
        key: u64,
        begun: Duration,
        /// Until when it was given its place in the order; `None`: nobody knows.
        ended: Option<Duration>,
    }
    let mut updates: BTreeMap<u64, Update> = BTreeMap::new();
    for record in records {
        if let Call::Update { key, value } = record.call {
            let ended = (record.outcome == Outcome::Acknowledged).then_some(record.ended);
            let known = updates.insert(value, Update { key, begun: record.begun, ended });
            ensure!(known.is_none(), "two updates have the value {value}");
        }
    }
    let acknowledged = |key: u64| updates.values().filter(move |update| update.key == key && update.ended.is_some());
    let is_stale = |record: &&Record| {
        let Call::Result { key } = record.call else { return false };
        let mut before = acknowledged(key).filter(|update| update.ended.is_some_and(|ended| ended < record.begun));
        match record.outcome {
            Outcome::Absent => before.next().is_some(),
            Outcome::Value(value) => match updates.get(&value) {
                None => true,
                Some(read) if read.key != key || read.begun > record.ended => true,
                Some(Update { ended: None, .. }) => false,
                Some(Update { ended: Some(ended), .. }) => before.any(|newer| newer.begun > *ended + CLOCK_SLACK),
            },
            _ => false,
        }
    };
    none(&records.iter().filter(is_stale).collect::<Vec<_>>(), "results were older than others or came from nowhere")
}

/// G6: for each name, there is one order of all pushes and fetches that explains what everybody saw.
fn check_assets(records: &[Record]) -> Result<()> {
    let mut histories: BTreeMap<u64, Vec<register::Operation>> = BTreeMap::new();
    for record in records {
        let (key, action, answered) = match (record.call, &record.outcome) {
            (Call::Push { key, value }, outcome) => {
                (key, register::Action::Write(value), *outcome == Outcome::Acknowledged)
            }
            (Call::Fetch { key }, Outcome::Value(value)) => (key, register::Action::Read(Some(*value)), true),
            (Call::Fetch { key }, Outcome::Absent) => (key, register::Action::Read(None), true),
            _ => continue,
        };
        let ended = answered.then_some(record.ended);
        histories.entry(key).or_default().push(register::Operation { begun: record.begun, ended, action });
    }
    for (key, history) in histories {
        register::check(&history).with_context(|| format!("the asset {key} is not linearizable"))?;
    }
    Ok(())
}

fn none(found: &[&Record], what: &str) -> Result<()> {
    if found.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = found.iter().take(SHOWN_COUNT).map(ToString::to_string).collect();
    bail!("{} {what}:\n{}", found.len(), lines.join("\n"));
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { task, node, begun, ended, call, outcome } = self;
        write!(f, "  {begun:.3?} to {ended:.3?}, node {node}, task {task}: {call:?}: {outcome:?}")
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (kind, (answered, all))) in self.0.iter().enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            write!(f, "{comma}{kind:?} {answered} of {all}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A history of calls that took a second each, ten seconds after one another.
    fn history(calls: &[(Call, Outcome)]) -> Vec<Record> {
        let records = calls.iter().enumerate().map(|(place, (call, outcome))| {
            let begun = Duration::from_secs(place as u64 * 10);
            let ended = begun + Duration::from_secs(1);
            Record { task: place as u64, node: 0, begun, ended, call: *call, outcome: outcome.clone() }
        });
        records.collect()
    }

    fn unavailable() -> Outcome {
        Outcome::Unavailable(String::new())
    }

    fn refused(checked: Result<()>, part: &str) {
        let told = format!("{:#}", checked.unwrap_err());
        assert!(told.contains(part), "{told}");
    }

    #[test]
    fn an_acknowledged_blob_has_to_be_found() {
        let blob = Content::new(10);
        let read = |first: Outcome, then: Outcome| {
            check_blobs(&history(&[
                (Call::Load(blob), Outcome::Absent),
                (Call::Store(blob), first),
                (Call::Load(blob), then),
            ]))
        };
        read(Outcome::Acknowledged, Outcome::Present).unwrap();
        read(Outcome::Acknowledged, unavailable()).unwrap();
        read(unavailable(), Outcome::Absent).unwrap();
        refused(read(Outcome::Acknowledged, Outcome::Absent), "1 acknowledged blobs were not found");
        // In doubt, a client is asked to send it again.
        check_blobs(&history(&[(Call::Store(blob), Outcome::Acknowledged), (Call::Find(blob), Outcome::Absent)]))
            .unwrap();
    }

    #[test]
    fn a_read_that_began_before_the_acknowledgement_may_miss() {
        let blob = Content::new(10);
        let mut records = history(&[(Call::Store(blob), Outcome::Acknowledged), (Call::Load(blob), Outcome::Absent)]);
        records[1].begun = records[0].ended;
        check_blobs(&records).unwrap();
    }

    #[test]
    fn the_newest_result_wins() {
        let (old, new) = (Call::Update { key: 1, value: 1 }, Call::Update { key: 1, value: 2 });
        let read = |second: Outcome, then: Outcome| {
            check_results(&history(&[(old, Outcome::Acknowledged), (new, second), (Call::Result { key: 1 }, then)]))
        };
        read(Outcome::Acknowledged, Outcome::Value(2)).unwrap();
        read(Outcome::Acknowledged, unavailable()).unwrap();
        refused(read(Outcome::Acknowledged, Outcome::Value(1)), "results were older");
        refused(read(Outcome::Acknowledged, Outcome::Absent), "results were older");
        // Whether the second one happened, nobody knows; the first one did.
        read(unavailable(), Outcome::Value(1)).unwrap();
        read(unavailable(), Outcome::Value(2)).unwrap();
        refused(read(unavailable(), Outcome::Absent), "results were older");
        refused(read(Outcome::Acknowledged, Outcome::Value(3)), "came from nowhere");
        let others = [(old, Outcome::Acknowledged), (Call::Result { key: 2 }, Outcome::Value(1))];
        refused(check_results(&history(&others)), "came from nowhere");
    }

    #[test]
    fn updates_at_the_same_time_may_win_either_way() {
        let updates = [(1, 0), (2, 500)].map(|(value, begun)| Record {
            task: value,
            node: 0,
            begun: Duration::from_millis(begun),
            ended: Duration::from_secs(1),
            call: Call::Update { key: 1, value },
            outcome: Outcome::Acknowledged,
        });
        for value in [1, 2] {
            let mut records = history(&[(Call::Result { key: 1 }, Outcome::Value(value))]);
            records[0].begun = Duration::from_secs(10);
            records[0].ended = Duration::from_secs(11);
            records.extend(updates.clone());
            check_results(&records).unwrap();
        }
    }

    #[test]
    fn assets_are_checked_name_by_name() {
        let push = |key, value| (Call::Push { key, value }, Outcome::Acknowledged);
        let fetch = |key, value| (Call::Fetch { key }, Outcome::Value(value));
        check_assets(&history(&[push(1, 1), push(2, 2), fetch(1, 1), fetch(2, 2)])).unwrap();
        refused(check_assets(&history(&[push(1, 1), push(2, 2), fetch(1, 2)])), "the asset 1 is not linearizable");
        refused(check_assets(&history(&[push(1, 1), (Call::Fetch { key: 1 }, Outcome::Absent)])), "not linearizable");
        check_assets(&history(&[push(1, 1), (Call::Fetch { key: 1 }, unavailable())])).unwrap();
        let unknown = (Call::Push { key: 1, value: 2 }, unavailable());
        check_assets(&history(&[push(1, 1), unknown.clone(), fetch(1, 1), fetch(1, 2)])).unwrap();
        refused(check_assets(&history(&[push(1, 1), unknown, fetch(1, 2), fetch(1, 1)])), "not linearizable");
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_wrong_and_a_broken_connection_is_not() {
        assert!(matches!(Outcome::of(&Status::unavailable("")), Outcome::Unavailable(_)));
        for status in
            [Status::internal(""), Status::data_loss(""), Status::failed_precondition(""), Status::unknown("")]
        {
            assert!(matches!(Outcome::of(&status), Outcome::Wrong(_)), "{status:?}");
        }
        refused(
            check_words(&history(&[(Call::Fetch { key: 1 }, Outcome::Wrong("other bytes".into()))])),
            "other bytes",
        );
    }

    #[test]
    fn a_wait_is_as_long_as_all_attempts() {
        let history = History::new();
        let push = |value| Call::Push { key: 1, value };
        let begun = history.now();
        history.record(1, 0, begun, push(1), unavailable());
        history.record(1, 1, begun, push(2), Outcome::Acknowledged);
        assert_eq!(history.longest_wait(&[Kind::Push]), history.records()[1].ended - begun);
        assert_eq!(history.longest_wait(&[Kind::Store]), Duration::ZERO);
        history.record(2, 0, begun, push(3), unavailable());
        history.record(3, 0, begun, push(4), Outcome::Acknowledged);
        let attempts = Attempts { tasks: 3, retried: 1, most: 2, given_up: 1 };
        assert_eq!(history.attempts(&[Kind::Push]), attempts);
        assert_eq!(history.summary().to_string(), "Push 2 of 4");
        assert_eq!(history.acknowledged_count(Kind::Push), 2);
    }

    #[test]
    fn an_acknowledged_blob_is_to_be_read_through_every_node_that_is_there() {
        let (blob, other) = (Content::new(10), Content::new(20));
        let history = History::new();
        for (node, call, outcome) in [
            (0, Call::Load(blob), unavailable()),
            (0, Call::Store(blob), Outcome::Acknowledged),
            (0, Call::Load(blob), Outcome::Present),
            (1, Call::Load(blob), unavailable()),
            (0, Call::Load(other), unavailable()),
        ] {
            history.record(0, node, history.now(), call, outcome);
        }
        let always = Duration::ZERO..Duration::MAX;
        history.check_readable(&[0], always.clone()).unwrap();
        refused(history.check_readable(&[0, 1], always), "1 downloads failed");
        history.check_readable(&[0, 1], history.now()..Duration::MAX).unwrap();
    }
}
