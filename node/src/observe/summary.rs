//! The snapshot for eyes: groups of rows, which the status page and `casbah status` both show.

use super::cluster::{Cluster, ClusterMember, RepairProgress};
use super::snapshot::{Index, Snapshot, Store};

/// Rows that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// What they are about.
    pub title: &'static str,
    /// Name and value.
    pub rows: Vec<(&'static str, String)>,
    /// The part of a whole that is used, in percent, where there is one.
    pub used_percent: Option<u64>,
}

/// Everything, in the order in which it is read.
pub fn groups(snapshot: &Snapshot) -> Vec<Group> {
    let Snapshot { connections, calls, traffic, .. } = snapshot;
    let commit = snapshot.commit.as_ref().map(|commit| format!(" ({commit})")).unwrap_or_default();
    let node = vec![
        ("phase", snapshot.phase.name().to_owned()),
        ("version", format!("{}{commit}", snapshot.version)),
        ("uptime", span(snapshot.uptime_seconds as u64)),
        ("process", snapshot.pid.to_string()),
        ("directory", snapshot.dir.clone()),
    ];
    let listeners =
        snapshot.listeners.iter().map(|listener| ("", format!("{} ({})", listener.url, listener.description)));
    let clients = vec![
        (
            "connections",
            format!(
                "{} open, {} so far, {} came to nothing",
                count(connections.open),
                count(connections.accepted),
                count(connections.refused)
            ),
        ),
        (
            "calls",
            format!(
                "{} under way, {} so far, {} failed here",
                count(calls.under_way),
                count(calls.begun),
                count(calls.failed)
            ),
        ),
        ("blobs received", size(traffic.received_bytes)),
        ("blobs sent", size(traffic.sent_bytes)),
    ];
    let group = |title, rows| Group { title, rows, used_percent: None };
    let mut groups =
        vec![group("node", node), group("listeners", listeners.collect::<Vec<_>>()), group("clients", clients)];
    match &snapshot.store {
        Some(store) => groups.push(Group {
            title: "store",
            rows: store_rows(store),
            used_percent: store.bytes.saturating_mul(100).checked_div(store.usable_bytes.max(1)),
        }),
        None => groups.push(group("store", vec![("", "none in this process (yet)".to_owned())])),
    }
    if let Some(indexes) = &snapshot.indexes {
        let rows = vec![("assets", index(&indexes.assets)), ("results of actions", index(&indexes.actions))];
        groups.push(group("index", rows));
    }
    groups.push(group("cluster", snapshot.cluster.as_ref().map_or_else(|| no_cluster(snapshot), cluster_rows)));
    groups
}

fn no_cluster(snapshot: &Snapshot) -> Vec<(&'static str, String)> {
    let waiting = snapshot.waits_for.as_ref().map(|what| format!("none yet: waiting for {what}"));
    vec![("", waiting.unwrap_or_else(|| "none in this process (yet)".to_owned()))]
}

fn cluster_rows(cluster: &Cluster) -> Vec<(&'static str, String)> {
    let raft = &cluster.raft;
    let here = cluster.members.iter().filter(|member| member.reachable).count();
    let named = |id: u64| cluster.members.iter().find(|member| member.id == id).map(|member| member.name.as_str());
    let leader = raft.leader.and_then(named).unwrap_or("nobody");
    let term = raft.term.map(|term| format!(" in term {term}")).unwrap_or_default();
    let epoch = match cluster.epochs.len() {
        0 | 1 => cluster.epoch.to_string(),
        _ => format!("{} (blobs still lie by older layouts too)", cluster.epoch),
    };
    let mut rows = vec![
        ("name", format!("{} ({})", cluster.name, cluster.id)),
        ("nodes", format!("{here} of {} reachable", cluster.members.len())),
        ("copies", format!("{}, of which {} before an answer", cluster.copies, cluster.write_quorum)),
        ("layout", format!("epoch {epoch}")),
        ("protocol", protocol(cluster)),
        ("raft", format!("{}{term}, led by {leader}; {} applied", raft.role, count(raft.applied))),
    ];
    if let Some(epoch) = cluster.waits {
        rows.push(("waits", format!("epoch {epoch}, to be applied: casbah ring plan")));
    }
    rows.push(("repair", repair_line(&cluster.repair, named)));
    rows.extend(cluster.members.iter().map(|member| ("", member_line(member))));
    rows
}

/// `1; node-3 speaks nothing newer`
fn protocol(cluster: &Cluster) -> String {
    let newest = |member: &ClusterMember| member.protocols.rsplit('-').next().and_then(|newest| newest.parse().ok());
    let behind =
        cluster.members.iter().filter(|member| newest(member).is_some_and(|newest: u32| newest <= cluster.protocol));
    let names: Vec<&str> = behind.map(|member| member.name.as_str()).collect();
    match names.len() {
        behind if behind == cluster.members.len() || behind == 0 => cluster.protocol.to_string(),
        _ => format!("{}; {} speaks nothing newer", cluster.protocol, names.join(", ")),
    }
}

/// `812 partitions to compare, 12,000 copies to fetch (3.0 GiB, at 32.0 MiB/s 1m 36s), waiting for node-3; 17 copies to hand over`
pub fn repair_line<'n>(repair: &RepairProgress, named: impl Fn(u64) -> Option<&'n str>) -> String {
    let mut parts = Vec::new();
    if repair.partitions_left > 0 {
        parts.push(format!("{} partitions to compare", count(repair.partitions_left)));
    }
    if repair.copies_to_pull > 0 {
        let rest = repair
            .seconds_left
            .map_or_else(String::new, |seconds| format!(", at {}/s {}", size(repair.bytes_per_second), span(seconds)));
        parts.push(format!("{} copies to fetch ({}{rest})", count(repair.copies_to_pull), size(repair.bytes_to_pull)));
    }
    if !repair.waits_for.is_empty() {
        let names: Vec<String> =
            repair.waits_for.iter().map(|id| named(*id).map_or_else(|| id.to_string(), str::to_owned)).collect();
        parts.push(format!("waiting for {}", names.join(", ")));
    }
    if repair.held > 0 {
        parts.push(format!("{} copies to hand over", count(repair.held)));
    }
    match parts.is_empty() {
        true => "nothing to do".to_owned(),
        false => parts.join("; "),
    }
}

/// `node-2 (id 2, zone-2): 1,234,567 blobs, 3.0 GiB of 10.0 GiB`
fn member_line(member: &ClusterMember) -> String {
    let zone = if member.zone.is_empty() { String::new() } else { format!(", {}", member.zone) };
    let itself = if member.is_self { ", this node" } else { "" };
    let numbers = member.numbers.map_or_else(
        || "no numbers".to_owned(),
        |numbers| {
            let (used, capacity) = (size(numbers.used_bytes), size(numbers.capacity_bytes));
            format!("{} blobs, {used} of {capacity}", count(numbers.blobs))
        },
    );
    let ailment = member.ailment.as_ref().map(|ailment| format!(" ({ailment})")).unwrap_or_default();
    format!("{} (id {}{zone}{itself}): {}{ailment}, {numbers}", member.name, member.id, condition(member))
}

/// How a member is, in a word or two.
pub fn condition(member: &ClusterMember) -> &'static str {
    match (member.standing.as_str(), member.reachable, member.draining, member.writable) {
        ("lost", ..) => "lost",
        (_, false, ..) => "away",
        (_, true, true, _) => "stopping",
        ("draining", ..) if member.holds => "draining",
        ("draining", ..) => "drained",
        (_, true, false, false) => "read-only",
        (_, true, false, true) if member.ailment.is_some() => "ailing",
        (_, true, false, true) => "well",
    }
}

fn store_rows(store: &Store) -> Vec<(&'static str, String)> {
    let usable = match store.usable_bytes < store.capacity_bytes {
        true => format!(" ({} have room on the disk)", size(store.usable_bytes)),
        false => String::new(),
    };
    let writes = store.read_only.map_or_else(|| "taken".to_owned(), |reason| format!("refused: {}", reason.phrase()));
    let oldest = store.oldest_use_age_seconds.map_or_else(|| "none".to_owned(), |age| format!("{} ago", span(age)));
    vec![
        ("blobs", count(store.blobs)),
        ("disk", format!("{} of {}{usable}", size(store.bytes), size(store.capacity_bytes))),
        ("writes", writes),
        ("reserved", format!("{} for uploads under way", size(store.reserved_bytes))),
        ("small blobs", format!("{} in files, {} of them dead", size(store.segment_bytes), size(store.dead_bytes))),
        ("least recent use", oldest),
        ("evicted", format!("{} blobs, {}", count(store.evicted_blobs), size(store.evicted_bytes))),
        ("damaged", damaged(store)),
        ("checked", size(store.scrubbed_bytes)),
        ("memory", format!("{} for the index", size(store.index_memory_bytes))),
    ]
}

fn damaged(store: &Store) -> String {
    let [damaged, repaired] = [store.damaged_blobs, store.repaired_blobs].map(count);
    let [lost, given_up] = [store.lost_blobs, store.given_up_blobs].map(count);
    let doubt = if store.is_unsure { "; anything may have been lost" } else { "" };
    format!("{damaged} blobs; {repaired} there again, {lost} perhaps elsewhere, {given_up} nowhere{doubt}")
}

fn index(index: &Index) -> String {
    let records = index.records.map_or_else(|| "unknown".to_owned(), count);
    format!(
        "{records} of {}; {} evicted, {} expired",
        count(index.capacity),
        count(index.evicted),
        count(index.expired)
    )
}

/// `1,234,567`
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `3.2 GiB`
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// `1d 2h`: the two largest units.
fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, ..) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repair_has_to_do_is_told_in_a_line_and_so_is_that_there_is_nothing() {
        let named = |id: u64| (id == 3).then_some("node-3");
        assert_eq!(
            repair_line(&Cluster::sample().repair, named),
            "812 partitions to compare; 12,000 copies to fetch (3.0 GiB, at 32.0 MiB/s 1m 36s); waiting for node-3; \
             17 copies to hand over"
        );
        assert_eq!(repair_line(&RepairProgress::default(), named), "nothing to do");
        let unknown = RepairProgress { waits_for: vec![8], ..RepairProgress::default() };
        assert_eq!(repair_line(&unknown, named), "waiting for 8");
    }

    #[test]
    fn numbers_are_for_eyes() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0, 1023, 1024, 3 << 30, 5 << 40].map(size), ["0 B", "1023 B", "1.0 KiB", "3.0 GiB", "5.0 TiB"]);
        assert_eq!([59, 61, 3661, 93_784].map(span), ["59s", "1m 1s", "1h 1m", "1d 2h"]);
    }

    #[test]
    fn a_store_that_is_not_here_is_told_and_not_guessed_at() {
        let groups = groups(&Snapshot { store: None, indexes: None, ..Snapshot::sample() });
        let store = groups.iter().find(|group| group.title == "store").unwrap();
        assert_eq!(store.rows, [("", "none in this process (yet)".to_owned())]);
    }

    #[test]
    fn what_is_wrong_with_a_store_is_told() {
        let mut snapshot = Snapshot::sample();
        let store = snapshot.store.as_mut().unwrap();
        store.usable_bytes = 4 << 30;
        let groups = groups(&snapshot);
        let store = groups.iter().find(|group| group.title == "store").unwrap();
        assert!(store.rows.contains(&("disk", "3.0 GiB of 10.0 GiB (4.0 GiB have room on the disk)".to_owned())));
        assert!(store.rows.contains(&("writes", "refused: the disk is full".to_owned())));
        assert_eq!(store.used_percent, Some(75));
    }
}
