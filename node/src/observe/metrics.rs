//! The catalogue: every metric there is, and where its values come from. `docs/reference/metrics.md` is made of it.
//!
//! A metric is added here, in [`CATALOGUE`] and in [`expose`], and nowhere else; a test proves that both have the same.

use std::fmt::Write as _;

use super::cluster::Cluster;
use super::counters::{AdmissionCounters, Counters, Counts};
use super::exposition::{Exposition, Kind, Metric};
use super::labels::{
    CallCode, Class, Encoding, IndexName, Label, Lookup, Method, Presence, ReadOnly, Refused, Stalled, Traffic,
    Transport, TurnedAway,
};
use super::snapshot::{Phase, ReadOnlyReason, Snapshot, Store};

const VERSION: Label = Label { name: "version", values: &[] };
const COMMIT: Label = Label { name: "commit", values: &[] };

const BUILD: Metric = gauge("casbah_build_info", "1; which program this is", &[VERSION, COMMIT]);
const UPTIME: Metric = gauge("casbah_uptime_seconds", "Since the process began to start", &[]);
const READY: Metric = gauge("casbah_node_ready", "1 while the node serves and is not draining, else 0", &[]);
const CALLS: Metric = counter("casbah_calls_total", "Calls that have ended", &[Method::LABEL, CallCode::LABEL]);
const UNDER_WAY: Metric = gauge("casbah_calls_under_way", "Calls that have begun and not ended", &[]);
const DURATIONS: Metric = Metric {
    name: "casbah_call_duration_seconds",
    kind: Kind::Histogram,
    help: "From the headers of a call to the end of its answer",
    labels: &[Class::LABEL],
};
const RECEIVED: Metric = counter(
    "casbah_blob_received_bytes_total",
    "Bytes of blobs that clients have sent with ByteStream and in batches, as they travelled",
    &[Encoding::LABEL],
);
const SENT: Metric = counter(
    "casbah_blob_sent_bytes_total",
    "Bytes of blobs sent to clients with ByteStream and in batches, as they travelled",
    &[Encoding::LABEL],
);
const ADMISSION_MEMORY: Metric =
    gauge("casbah_admission_memory_bytes", "What calls under way may hold of the memory", &[Traffic::LABEL]);
const ADMISSION_HELD: Metric = gauge(
    "casbah_admission_held_bytes",
    "What calls that were let in are charged with, which is what they may hold at the most",
    &[Traffic::LABEL],
);
const ADMISSION_CALLS: Metric =
    gauge("casbah_admission_calls", "Calls that were let in and have not ended", &[Traffic::LABEL]);
const ADMISSION_WAITING: Metric =
    gauge("casbah_admission_waiting_calls", "Calls that wait to be let in", &[Traffic::LABEL]);
const TURNED_AWAY: Metric = counter(
    "casbah_admission_turned_away_total",
    "Calls that were told to come again (UNAVAILABLE): too many waited already, they waited too long, or a message was too long for what was free",
    &[Traffic::LABEL, TurnedAway::LABEL],
);
const STALLED: Metric = counter(
    "casbah_calls_stalled_total",
    "Calls that were ended because their clients did not take the answer, or did not go on with the request",
    &[Stalled::LABEL],
);
const BROKEN_PROMISES: Metric = counter(
    "casbah_broken_promises_total",
    "Blobs that this node has called present, stored or sent, and that were missing within the retention floor",
    &[],
);
const OPEN: Metric = gauge("casbah_connections_open", "Connections of clients now", &[Transport::LABEL]);
const ACCEPTED: Metric =
    counter("casbah_connections_accepted_total", "Connections that clients have made", &[Transport::LABEL]);
const REFUSED: Metric = counter(
    "casbah_connections_refused_total",
    "Connections that came to nothing; a reason that begins with tls_ is a handshake that failed",
    &[Refused::LABEL],
);
const FIND_MISSING: Metric = counter(
    "casbah_find_missing_digests_total",
    "Digests that FindMissingBlobs was asked for, each once a call",
    &[Presence::LABEL],
);
const ACTION_LOOKUPS: Metric = counter(
    "casbah_action_lookups_total",
    "Results of actions that were asked for; incomplete: an output has gone, and it counts as a miss for the client",
    &[Lookup::LABEL],
);
const ASSET_LOOKUPS: Metric = counter(
    "casbah_asset_lookups_total",
    "Assets that were asked for; incomplete: a blob has gone, and it counts as a miss for the client",
    &[Lookup::LABEL],
);
const ASSET_STALE_READS: Metric = counter(
    "casbah_asset_stale_reads_total",
    "Calls that looked assets up in what this node knew, which may have been behind, since the cluster had no leader",
    &[],
);
const STORE_BLOBS: Metric = gauge("casbah_store_blobs", "Blobs in the store", &[]);
const STORE_BYTES: Metric = gauge("casbah_store_used_bytes", "Bytes of disk that blobs take", &[]);
const STORE_CAPACITY: Metric = gauge("casbah_store_capacity_bytes", "Bytes of disk that blobs may take", &[]);
const STORE_USABLE: Metric =
    gauge("casbah_store_usable_bytes", "The same, or less when the disk has no room for as much", &[]);
const STORE_RESERVED: Metric = gauge("casbah_store_reserved_bytes", "Bytes set aside for uploads under way", &[]);
const STORE_SEGMENT: Metric =
    gauge("casbah_store_segment_bytes", "Bytes of the files that small blobs lie in, live or dead", &[]);
const STORE_DEAD: Metric = gauge("casbah_store_dead_bytes", "Bytes of these files that are dead", &[]);
const STORE_MEMORY: Metric =
    gauge("casbah_store_index_memory_bytes", "Bytes of memory that the index of the blobs takes", &[]);
const STORE_OLDEST: Metric = gauge(
    "casbah_store_oldest_use_age_seconds",
    "Since the least recently used blob was used: what is evicted next; 0 in an empty store",
    &[],
);
const STORE_READ_ONLY: Metric =
    gauge("casbah_store_read_only", "1 while the store takes no writes for this reason, else 0", &[ReadOnly::LABEL]);
const STORE_EVICTED: Metric = counter("casbah_store_evicted_blobs_total", "Blobs evicted to make room", &[]);
const STORE_EVICTED_BYTES: Metric = counter("casbah_store_evicted_bytes_total", "Bytes of blobs evicted", &[]);
const STORE_DAMAGED: Metric = counter("casbah_store_damaged_blobs_total", "Blobs found damaged and dropped", &[]);
const STORE_REPAIRED: Metric =
    counter("casbah_store_repaired_blobs_total", "Blobs that were found damaged and are there again", &[]);
const STORE_GIVEN_UP: Metric =
    counter("casbah_store_given_up_blobs_total", "Blobs that were found damaged and are on no other node either", &[]);
const STORE_LOST: Metric =
    gauge("casbah_store_lost_blobs", "Blobs that were found damaged and may be on other nodes", &[]);
const STORE_UNSURE: Metric = gauge(
    "casbah_store_unsure",
    "1 when so much was lost that of no blob that is not there it can be said that it never was",
    &[],
);
const STORE_SCRUBBED: Metric = counter("casbah_store_scrubbed_bytes_total", "Bytes of blobs checked at leisure", &[]);
const INDEX_RECORDS: Metric = gauge("casbah_index_records", "Records in an index", &[IndexName::LABEL]);
const INDEX_CAPACITY: Metric =
    gauge("casbah_index_capacity_records", "Records that an index may have", &[IndexName::LABEL]);
const INDEX_EVICTED: Metric =
    counter("casbah_index_evicted_records_total", "Records that made room for others", &[IndexName::LABEL]);
const INDEX_EXPIRED: Metric =
    counter("casbah_index_expired_records_total", "Records whose time was over", &[IndexName::LABEL]);
const MEMBERS: Metric = gauge("casbah_cluster_members", "Nodes of the cluster", &[]);
const REACHABLE: Metric =
    gauge("casbah_cluster_members_reachable", "Nodes of the cluster that have answered this one lately", &[]);
const EPOCH: Metric = gauge("casbah_cluster_epoch", "The newest layout that the node knows", &[]);
const LAYOUTS: Metric =
    gauge("casbah_cluster_layouts", "Layouts in force: more than one while blobs still lie by an older one", &[]);
const PARTITIONS: Metric = gauge("casbah_node_partitions", "Partitions that the node is an owner of", &[]);
const REPAIR_LEFT: Metric = gauge(
    "casbah_repair_partitions_left",
    "Partitions of the newest layout that the node has not compared with all who may have copies of them",
    &[],
);
const REPAIR_PULLS: Metric = gauge(
    "casbah_repair_partitions_to_pull",
    "Partitions of which others are known to have copies that are missing here",
    &[],
);
const REPAIR_PULL_COPIES: Metric =
    gauge("casbah_repair_copies_to_pull", "How many copies they have more, as far as is known", &[]);
const REPAIR_PULL_BYTES: Metric = gauge("casbah_repair_to_pull_bytes", "About how many bytes these have", &[]);
const REPAIR_HELD: Metric =
    gauge("casbah_repair_copies_held", "Copies that other nodes own, which are to be handed over", &[]);
const REPAIR_PULLED: Metric =
    counter("casbah_repair_copies_pulled_total", "Blobs and results of actions that were copied here", &[]);
const REPAIR_GIVEN: Metric =
    counter("casbah_repair_copies_given_total", "Blobs and results of actions that were given to others", &[]);
const REPAIR_DROPPED: Metric =
    counter("casbah_repair_copies_dropped_total", "Copies that were dropped, as their owners have them", &[]);
const REPAIR_MOVED: Metric =
    counter("casbah_repair_moved_bytes_total", "Bytes of what was copied here and given to others", &[]);
const RAFT_LEADER: Metric = gauge("casbah_raft_has_leader", "1 while the node knows a leader of the Raft group", &[]);
const RAFT_LEADS: Metric = gauge("casbah_raft_is_leader", "1 while the node leads the Raft group", &[]);
const RAFT_TERM: Metric = gauge("casbah_raft_term", "The term of the Raft group that the node is in", &[]);
const RAFT_COMMITTED: Metric = gauge("casbah_raft_committed_entry", "The last entry known to be committed", &[]);
const RAFT_APPLIED: Metric = gauge("casbah_raft_applied_entry", "The last entry that the node's state has", &[]);

/// Every metric, in the order in which they are exposed.
pub const CATALOGUE: &[Metric] = &[
    BUILD,
    UPTIME,
    READY,
    CALLS,
    UNDER_WAY,
    DURATIONS,
    ADMISSION_MEMORY,
    ADMISSION_HELD,
    ADMISSION_CALLS,
    ADMISSION_WAITING,
    TURNED_AWAY,
    STALLED,
    BROKEN_PROMISES,
    RECEIVED,
    SENT,
    OPEN,
    ACCEPTED,
    REFUSED,
    FIND_MISSING,
    ACTION_LOOKUPS,
    ASSET_LOOKUPS,
    ASSET_STALE_READS,
    STORE_BLOBS,
    STORE_BYTES,
    STORE_CAPACITY,
    STORE_USABLE,
    STORE_RESERVED,
    STORE_SEGMENT,
    STORE_DEAD,
    STORE_MEMORY,
    STORE_OLDEST,
    STORE_READ_ONLY,
    STORE_EVICTED,
    STORE_EVICTED_BYTES,
    STORE_DAMAGED,
    STORE_REPAIRED,
    STORE_GIVEN_UP,
    STORE_LOST,
    STORE_UNSURE,
    STORE_SCRUBBED,
    INDEX_RECORDS,
    INDEX_CAPACITY,
    INDEX_EVICTED,
    INDEX_EXPIRED,
    MEMBERS,
    REACHABLE,
    EPOCH,
    LAYOUTS,
    PARTITIONS,
    REPAIR_LEFT,
    REPAIR_PULLS,
    REPAIR_PULL_COPIES,
    REPAIR_PULL_BYTES,
    REPAIR_HELD,
    REPAIR_PULLED,
    REPAIR_GIVEN,
    REPAIR_DROPPED,
    REPAIR_MOVED,
    RAFT_LEADER,
    RAFT_LEADS,
    RAFT_TERM,
    RAFT_COMMITTED,
    RAFT_APPLIED,
];

const fn counter(name: &'static str, help: &'static str, labels: &'static [Label]) -> Metric {
    Metric { name, kind: Kind::Counter, help, labels }
}

const fn gauge(name: &'static str, help: &'static str, labels: &'static [Label]) -> Metric {
    Metric { name, kind: Kind::Gauge, help, labels }
}

/// The page `/metrics`. Metrics of the store, the indexes and the cluster are left out where this process does not have them.
pub fn expose(counters: &Counters, snapshot: &Snapshot) -> String {
    let mut text = Exposition::default();
    let commit = snapshot.commit.as_deref().unwrap_or_default();
    text.metric(&BUILD);
    text.sample(&BUILD, &[&snapshot.version, commit], 1);
    one(&mut text, &UPTIME, snapshot.uptime_seconds);
    one(&mut text, &READY, u64::from(snapshot.phase == Phase::Serving));
    calls(&mut text, counters);
    admission(&mut text, counters);
    each(&mut text, &STALLED, &counters.stalled);
    one(&mut text, &BROKEN_PROMISES, counters.broken_promises.get());
    each(&mut text, &RECEIVED, &counters.received_bytes);
    each(&mut text, &SENT, &counters.sent_bytes);
    by_label(&mut text, &OPEN, |transport| counters.connections_open(transport));
    each(&mut text, &ACCEPTED, &counters.connections_accepted);
    each(&mut text, &REFUSED, &counters.connections_refused);
    each(&mut text, &FIND_MISSING, &counters.find_missing);
    each(&mut text, &ACTION_LOOKUPS, &counters.action_lookups);
    each(&mut text, &ASSET_LOOKUPS, &counters.asset_lookups);
    one(&mut text, &ASSET_STALE_READS, counters.asset_stale_reads.get());
    if let Some(numbers) = &snapshot.store {
        store(&mut text, numbers);
    }
    if let Some(indexes) = &snapshot.indexes {
        let both = [&indexes.assets, &indexes.actions];
        text.metric(&INDEX_RECORDS);
        for (name, index) in IndexName::LABEL.values.iter().zip(both) {
            if let Some(records) = index.records {
                text.sample(&INDEX_RECORDS, &[name], records);
            }
        }
        let of =
            |number: fn(&super::snapshot::Index) -> u64| move |place: usize| both.get(place).map_or(0, |i| number(i));
        by_label(&mut text, &INDEX_CAPACITY, of(|index| index.capacity));
        by_label(&mut text, &INDEX_EVICTED, of(|index| index.evicted));
        by_label(&mut text, &INDEX_EXPIRED, of(|index| index.expired));
    }
    if let Some(numbers) = &snapshot.cluster {
        cluster(&mut text, numbers);
    }
    text.finish()
}

fn cluster(text: &mut Exposition, cluster: &Cluster) {
    let here = cluster.members.iter().filter(|member| member.reachable).count();
    let owned = cluster.members.iter().find(|member| member.is_self).map_or(0, |member| member.partitions);
    one(text, &MEMBERS, cluster.members.len());
    one(text, &REACHABLE, here);
    one(text, &EPOCH, cluster.epoch);
    one(text, &LAYOUTS, cluster.epochs.len());
    one(text, &PARTITIONS, owned);
    let repair = &cluster.repair;
    one(text, &REPAIR_LEFT, repair.partitions_left);
    one(text, &REPAIR_PULLS, repair.partitions_to_pull);
    one(text, &REPAIR_PULL_COPIES, repair.copies_to_pull);
    one(text, &REPAIR_PULL_BYTES, repair.bytes_to_pull);
    one(text, &REPAIR_HELD, repair.held);
    one(text, &REPAIR_PULLED, repair.copies_pulled);
    one(text, &REPAIR_GIVEN, repair.copies_given);
    one(text, &REPAIR_DROPPED, repair.copies_dropped);
    one(text, &REPAIR_MOVED, repair.moved_bytes);
    one(text, &RAFT_LEADER, u64::from(cluster.raft.leader.is_some()));
    one(text, &RAFT_LEADS, u64::from(cluster.raft.leader == Some(cluster.node_id)));
    // A node without the log has neither.
    let of_log = [(&RAFT_TERM, cluster.raft.term), (&RAFT_COMMITTED, cluster.raft.committed)];
    for (metric, value) in of_log {
        if let Some(value) = value {
            one(text, metric, value);
        }
    }
    one(text, &RAFT_APPLIED, cluster.raft.applied);
}

fn calls(text: &mut Exposition, counters: &Counters) {
    text.metric(&CALLS);
    for (method, method_name) in Method::LABEL.values.iter().enumerate() {
        for (code, code_name) in CallCode::LABEL.values.iter().enumerate() {
            let count = counters.calls(method, code);
            // A method and a code that never met are no series: there would be some hundred of them.
            if count > 0 || code == CallCode::Ok as usize {
                text.sample(&CALLS, &[method_name, code_name], count);
            }
        }
    }
    one(text, &UNDER_WAY, counters.calls_under_way());
    text.metric(&DURATIONS);
    for (class, name) in Class::LABEL.values.iter().enumerate() {
        if let Some(durations) = counters.durations(class) {
            text.histogram(&DURATIONS, &[name], &durations.buckets(), durations.sum().as_secs_f64());
        }
    }
}

fn admission(text: &mut Exposition, counters: &Counters) {
    type Value = fn(&AdmissionCounters) -> u64;
    let gauges: [(&Metric, Value); 4] = [
        (&ADMISSION_MEMORY, |counted| counted.memory_bytes.get()),
        (&ADMISSION_HELD, |counted| counted.held_bytes.get()),
        (&ADMISSION_CALLS, |counted| counted.calls.get()),
        (&ADMISSION_WAITING, |counted| counted.waiting.get()),
    ];
    let both = [Traffic::Clients, Traffic::Nodes].map(|traffic| counters.admission(traffic));
    for (metric, value) in gauges {
        by_label(text, metric, |place| both.get(place).map_or(0, |counted| value(counted)));
    }
    text.metric(&TURNED_AWAY);
    for (counted, traffic) in both.iter().zip(Traffic::LABEL.values) {
        for (place, reason) in TurnedAway::LABEL.values.iter().enumerate() {
            text.sample(&TURNED_AWAY, &[traffic, reason], counted.turned_away.get(place));
        }
    }
}

fn store(text: &mut Exposition, store: &Store) {
    one(text, &STORE_BLOBS, store.blobs);
    one(text, &STORE_BYTES, store.bytes);
    one(text, &STORE_CAPACITY, store.capacity_bytes);
    one(text, &STORE_USABLE, store.usable_bytes);
    one(text, &STORE_RESERVED, store.reserved_bytes);
    one(text, &STORE_SEGMENT, store.segment_bytes);
    one(text, &STORE_DEAD, store.dead_bytes);
    one(text, &STORE_MEMORY, store.index_memory_bytes);
    one(text, &STORE_OLDEST, store.oldest_use_age_seconds.unwrap_or(0));
    let reason = store.read_only.map(|reason| match reason {
        ReadOnlyReason::DiskFull => ReadOnly::DiskFull as usize,
        ReadOnlyReason::DiskFailed => ReadOnly::DiskFailed as usize,
    });
    by_label(text, &STORE_READ_ONLY, |place| u64::from(reason == Some(place)));
    one(text, &STORE_EVICTED, store.evicted_blobs);
    one(text, &STORE_EVICTED_BYTES, store.evicted_bytes);
    one(text, &STORE_DAMAGED, store.damaged_blobs);
    one(text, &STORE_REPAIRED, store.repaired_blobs);
    one(text, &STORE_GIVEN_UP, store.given_up_blobs);
    one(text, &STORE_LOST, store.lost_blobs);
    one(text, &STORE_UNSURE, u64::from(store.is_unsure));
    one(text, &STORE_SCRUBBED, store.scrubbed_bytes);
}

/// A metric without labels.
fn one(text: &mut Exposition, metric: &Metric, value: impl std::fmt::Display) {
    text.metric(metric);
    text.sample(metric, &[], value);
}

/// A metric with one label, of counters.
fn each<const N: usize>(text: &mut Exposition, metric: &Metric, counts: &Counts<N>) {
    by_label(text, metric, |place| counts.get(place));
}

/// A metric with one label, whose values are asked for by number.
fn by_label(text: &mut Exposition, metric: &Metric, value: impl Fn(usize) -> u64) {
    text.metric(metric);
    let values = metric.labels.first().map_or(&[] as &[&str], |label| label.values);
    for (place, name) in values.iter().enumerate() {
        text.sample(metric, &[name], value(place));
    }
}

/// The page `docs/reference/metrics.md`.
#[must_use]
pub fn markdown() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         <!-- Generated from node/src/observe/metrics.rs; CASBAH_BLESS=1 cargo test -p casbah --lib reference writes it anew. -->\n\n\
         What `/metrics` of the [admin port](../operations/monitoring.md) says, in Prometheus's text format 0.0.4. Counters\n\
         begin at 0 when the process starts. Metrics of the store, the indexes and the cluster are there in the process that\n\
         owns the directory; where several share one, the others have none.\n\n\
         Labels have no other values than those listed here: no client can make a series.\n",
    );
    for metric in CATALOGUE {
        let _infallible = write!(page, "\n## `{}`\n\n*{}*\n\n{}.\n", metric.name, metric.kind.name(), metric.help);
        for label in metric.labels.iter() {
            let values: Vec<String> = label.values.iter().map(|value| format!("`{value}`")).collect();
            let values = if values.is_empty() { "as built".to_owned() } else { values.join(", ") };
            let _infallible = write!(page, "\n- `{}`: {values}\n", label.name);
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::time::Duration;

    /// The names of metrics that a page has, in its order.
    fn exposed(page: &str) -> Vec<&str> {
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
    }

    #[test]
    fn what_is_exposed_is_what_the_catalogue_has() {
        let page = expose(&Counters::new(), &Snapshot::sample());
        let catalogue: Vec<&str> = CATALOGUE.iter().map(|metric| metric.name).collect();
        assert_eq!(exposed(&page), catalogue);
    }

    #[test]
    fn names_tell_what_they_are() {
        let mut seen = BTreeSet::new();
        for Metric { name, kind, help, labels } in CATALOGUE {
            assert!(seen.insert(name), "{name} is there twice");
            assert!(name.starts_with("casbah_") && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert!(!help.is_empty() && !help.ends_with('.'), "{name}");
            assert!(labels.iter().all(|label| label.name != "le"), "{name}");
        }
    }

    #[test]
    fn every_line_is_a_comment_or_a_sample_of_the_metric_above() {
        let counters = Counters::new();
        counters.calls_begun.add(3);
        counters.call_ended(Method::Read, CallCode::NotFound, Duration::from_micros(300));
        let page = expose(&counters, &Snapshot::sample());
        let mut current = String::new();
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                current = rest.split(' ').next().unwrap().to_owned();
            }
            if line.starts_with('#') {
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(series.starts_with(&current), "{line}");
            assert!(value.parse::<f64>().unwrap().is_finite(), "{line}");
        }
        for line in [
            "casbah_calls_total{method=\"ByteStream.Read\",code=\"NOT_FOUND\"} 1",
            "casbah_calls_total{method=\"ByteStream.Read\",code=\"OK\"} 0",
            "casbah_calls_under_way 2",
            "casbah_call_duration_seconds_bucket{class=\"stream_read\",le=\"0.0005\"} 1",
            "casbah_call_duration_seconds_count{class=\"stream_read\"} 1",
            "casbah_store_blobs 1234567",
            "casbah_store_read_only{reason=\"disk_full\"} 1",
            "casbah_store_read_only{reason=\"disk_failed\"} 0",
            "casbah_index_evicted_records_total{index=\"actions\"} 2",
            "casbah_build_info{version=\"0.1.0\",commit=\"\"} 1",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}:\n{page}");
        }
    }

    #[test]
    fn the_alerts_of_the_documentation_are_about_metrics_that_are_there() {
        let page = include_str!("../../../docs/operations/monitoring.md");
        let names =
            page.split(|c: char| !c.is_ascii_lowercase() && c != '_').filter(|word| word.starts_with("casbah_"));
        let mut found = 0;
        for name in names {
            assert!(CATALOGUE.iter().any(|metric| metric.name == name), "{name}");
            found += 1;
        }
        assert!(found > 5);
    }

    #[test]
    fn a_process_without_a_store_has_no_numbers_of_one() {
        let page =
            expose(&Counters::new(), &Snapshot { store: None, indexes: None, cluster: None, ..Snapshot::sample() });
        assert!(!page.contains("casbah_store") && !page.contains("casbah_index"), "{page}");
        assert!(page.contains("casbah_calls_total"));
    }
}
