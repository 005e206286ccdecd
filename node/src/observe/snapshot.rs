//! The node in numbers, at one moment. The admin port gives it as `/status.json`, and everything else that it says of
//! the node is made of it.

use casbah_cluster::digest::Digest;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::cluster::{Cluster, Layouts, Ring, Whereabouts};
use super::orders::{Order, OrderError};

/// The number of this format. Keys may be added under the same number; it grows when one goes or changes its meaning.
pub const FORMAT: u32 = 1;

/// What the admin port asks the node for.
pub trait Observed: Send + Sync {
    /// How far it is. Never waits.
    fn phase(&self) -> Phase;

    /// The whole. May wait for the disk.
    fn snapshot(&self) -> Snapshot;

    /// Which node owns what; `None` while there is no cluster. Never waits.
    fn ring(&self) -> Option<Ring>;

    /// How blobs are placed, and how they would be if all that waits were applied; `None` while there is no cluster. Never waits.
    fn layout(&self) -> Option<Layouts>;

    /// Does something to the cluster; `None` while there is none.
    fn carry_out(&self, order: Order) -> BoxFuture<'_, Option<Result<(), OrderError>>>;

    /// Which nodes have a copy of this blob, by asking them; `None` while there is no cluster.
    fn whereabouts<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Option<Whereabouts>>;
}

/// How far a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It has its addresses and opens what it keeps.
    Starting,
    /// It looks for its place in a cluster, and answers other nodes only.
    Joining,
    /// It answers.
    Serving,
    /// It finishes what is under way and takes nothing new.
    Draining,
}

/// A node at one moment. Sizes are in bytes; counters are since the start of the process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`FORMAT`].
    pub format: u32,
    /// As configured.
    pub name: String,
    /// Of the program.
    pub version: String,
    /// What the program was built from, where that is known.
    pub commit: Option<String>,
    /// Of the process.
    pub pid: u32,
    /// How far it is.
    pub phase: Phase,
    /// Since the process began to start.
    pub uptime_seconds: f64,
    /// The directory that holds everything.
    pub dir: String,
    /// Where clients connect to.
    pub listeners: Vec<Listener>,
    /// From clients.
    pub connections: Connections,
    /// Of clients.
    pub calls: Calls,
    /// Bytes of blobs on the network, as they travelled.
    pub traffic: Traffic,
    /// `None` while it is opened, and where another process owns the directory.
    pub store: Option<Store>,
    /// As [`Snapshot::store`].
    pub indexes: Option<Indexes>,
    /// What the node waits for before it serves, for people; `None` when it waits for nothing.
    pub waits_for: Option<String>,
    /// `None` while the node has not found or formed one.
    pub cluster: Option<Cluster>,
}

/// An address that clients connect to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// `grpcs://localhost:11002`
    pub url: String,
    /// `TLS, certificate, read+write`
    pub description: String,
}

/// Connections from clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// Now.
    pub open: u64,
    /// So far.
    pub accepted: u64,
    /// Came to nothing so far.
    pub refused: u64,
}

/// Calls of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    /// Now.
    pub under_way: u64,
    /// So far.
    pub begun: u64,
    /// Ended in `INTERNAL`, `UNAVAILABLE` or `DATA_LOSS` so far.
    pub failed: u64,
}

/// Bytes of blobs on the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// From clients.
    pub received_bytes: u64,
    /// To clients.
    pub sent_bytes: u64,
}

/// The blob store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Store {
    /// Blobs that are here.
    pub blobs: u64,
    /// Bytes of disk that they take.
    pub bytes: u64,
    /// Bytes of disk that they may take.
    pub capacity_bytes: u64,
    /// The same, or less when the disk has no room for as much.
    pub usable_bytes: u64,
    /// Bytes set aside for uploads under way.
    pub reserved_bytes: u64,
    /// Bytes of files that small blobs lie in, live or dead.
    pub segment_bytes: u64,
    /// Bytes of them that are dead.
    pub dead_bytes: u64,
    /// Bytes of memory that the index takes.
    pub index_memory_bytes: u64,
    /// Blobs evicted.
    pub evicted_blobs: u64,
    /// Bytes of them.
    pub evicted_bytes: u64,
    /// Blobs found damaged and dropped.
    pub damaged_blobs: u64,
    /// Those of them that are there again.
    pub repaired_blobs: u64,
    /// Those of them that turned out to be nowhere.
    pub given_up_blobs: u64,
    /// Those of them that may be on other nodes.
    pub lost_blobs: u64,
    /// Whether anything that is not there may have been, and be on other nodes.
    pub is_unsure: bool,
    /// Bytes checked at leisure.
    pub scrubbed_bytes: u64,
    /// Since the least recently used blob was used; `None` when there is none.
    pub oldest_use_age_seconds: Option<u64>,
    /// Why no writes are taken; `None` when they are.
    pub read_only: Option<ReadOnlyReason>,
}

/// Why the store takes no writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadOnlyReason {
    /// The file system is full and nothing may be evicted.
    DiskFull,
    /// The disk refused a write or a sync.
    DiskFailed,
}

/// What is known by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Indexes {
    /// The Remote Asset index.
    pub assets: Index,
    /// The ActionCache's.
    pub actions: Index,
}

/// One index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// Records that are here; `None` when the database does not say.
    pub records: Option<u64>,
    /// Records that it may have.
    pub capacity: u64,
    /// Records that went because they were the least recently used.
    pub evicted: u64,
    /// Records that went because their time was over.
    pub expired: u64,
}

// === impl Phase ===

impl Phase {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Joining => "joining",
            Phase::Serving => "serving",
            Phase::Draining => "draining",
        }
    }
}

// === impl ReadOnlyReason ===

impl ReadOnlyReason {
    /// For people.
    pub fn phrase(self) -> &'static str {
        match self {
            ReadOnlyReason::DiskFull => "the disk is full",
            ReadOnlyReason::DiskFailed => "the disk failed",
        }
    }
}

#[cfg(test)]
impl Snapshot {
    /// One in which nothing is missing.
    pub fn sample() -> Snapshot {
        let index = Index { records: Some(3), capacity: 10, evicted: 2, expired: 1 };
        Snapshot {
            format: FORMAT,
            name: "node-1".into(),
            version: "0.1.0".into(),
            commit: None,
            pid: 4711,
            phase: Phase::Serving,
            uptime_seconds: 93_784.5,
            dir: "/var/lib/casbah".into(),
            listeners: vec![Listener {
                url: "grpcs://localhost:11002".into(),
                description: "TLS, certificate, read+write".into(),
            }],
            connections: Connections { open: 2, accepted: 5, refused: 1 },
            calls: Calls { under_way: 1, begun: 1234, failed: 0 },
            traffic: Traffic { received_bytes: 5 << 30, sent_bytes: 700 },
            store: Some(Store {
                blobs: 1_234_567,
                bytes: 3 << 30,
                capacity_bytes: 10 << 30,
                usable_bytes: 10 << 30,
                reserved_bytes: 0,
                segment_bytes: 1 << 30,
                dead_bytes: 1 << 20,
                index_memory_bytes: 70 << 20,
                evicted_blobs: 0,
                evicted_bytes: 0,
                damaged_blobs: 3,
                repaired_blobs: 1,
                given_up_blobs: 0,
                lost_blobs: 2,
                is_unsure: false,
                scrubbed_bytes: 2 << 30,
                oldest_use_age_seconds: Some(7200),
                read_only: Some(ReadOnlyReason::DiskFull),
            }),
            indexes: Some(Indexes { assets: index, actions: index }),
            waits_for: None,
            cluster: Some(Cluster::sample()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_the_format_are_a_contract() {
        let text = serde_json::to_string(&Snapshot::sample()).unwrap();
        let index = r#"{"records":3,"capacity":10,"evicted":2,"expired":1}"#;
        let numbers = r#"{"blobs":1234567,"used_bytes":3221225472,"capacity_bytes":10737418240,"epoch":4}"#;
        let program = |up: bool| if up { r#""0.1.0""# } else { "null" };
        let repair = |up: bool| match up {
            true => [
                r#"{"synced_epoch":4,"partitions_left":0,"partitions_to_pull":0,"copies_to_pull":0,"bytes_to_pull":0,"#,
                r#""waits_for":[],"held":0,"copies_pulled":0,"copies_given":0,"copies_dropped":0,"moved_bytes":0,"#,
                r#""bytes_per_second":0,"seconds_left":null,"completed_seconds_ago":null}"#,
            ]
            .concat(),
            false => "null".to_owned(),
        };
        let member = |id: u64, is_self: &str, up: bool, latency: &str, numbers: &str| {
            [
                format!(r#"{{"id":{id},"name":"node-{id}","address":"node-{id}.example:7980","zone":"zone-{id}","#),
                r#""weight":100,"part":"voter","standing":"serving","holds":true,"ailment":null,"#.to_owned(),
                format!(r#""protocols":"{}","program":{},"#, if id == 3 { "1" } else { "1-2" }, program(up)),
                format!(r#""is_self":{is_self},"reachable":{up},"writable":{up},"#),
                format!(r#""draining":false,"latency_ms":{latency},"partitions":2731,"numbers":{numbers},"#),
                format!(r#""repair":{}}}"#, repair(up)),
            ]
            .concat()
        };
        let expected = [
            r#"{"format":1,"name":"node-1","version":"0.1.0","commit":null,"pid":4711,"phase":"serving","#,
            r#""uptime_seconds":93784.5,"dir":"/var/lib/casbah","#,
            r#""listeners":[{"url":"grpcs://localhost:11002","description":"TLS, certificate, read+write"}],"#,
            r#""connections":{"open":2,"accepted":5,"refused":1},"calls":{"under_way":1,"begun":1234,"failed":0},"#,
            r#""traffic":{"received_bytes":5368709120,"sent_bytes":700},"#,
            r#""store":{"blobs":1234567,"bytes":3221225472,"capacity_bytes":10737418240,"usable_bytes":10737418240,"#,
            r#""reserved_bytes":0,"segment_bytes":1073741824,"dead_bytes":1048576,"index_memory_bytes":73400320,"#,
            r#""evicted_blobs":0,"evicted_bytes":0,"damaged_blobs":3,"repaired_blobs":1,"#,
            r#""given_up_blobs":0,"lost_blobs":2,"is_unsure":false,"scrubbed_bytes":2147483648,"#,
            r#""oldest_use_age_seconds":7200,"read_only":"disk_full"},"#,
            &format!(r#""indexes":{{"assets":{index},"actions":{index}}},"#),
            r#""waits_for":null,"cluster":{"id":"0123456789abcdef0123456789abcdef","name":"casbah","node_id":1,"epoch":4,"epochs":[4],"#,
            r#""copies":2,"write_quorum":2,"protocol":1,"waits":null,"members":["#,
            &member(1, "true", true, "null", numbers),
            ",",
            &member(2, "false", true, "0.4", numbers),
            ",",
            &member(3, "false", false, "null", "null"),
            r#"],"raft":{"role":"follower","term":7,"leader":2,"last_log":1200,"committed":1199,"applied":1198,"#,
            r#""snapshot":1000,"voters":[1,2,3],"learners":[]},"repair":{"synced_epoch":null,"partitions_left":812,"#,
            r#""partitions_to_pull":40,"copies_to_pull":12000,"bytes_to_pull":3221225472,"waits_for":[3],"held":17,"#,
            r#""copies_pulled":5000,"copies_given":300,"copies_dropped":290,"moved_bytes":1073741824,"#,
            r#""bytes_per_second":33554432,"seconds_left":96,"completed_seconds_ago":4000}}}"#,
        ];
        assert_eq!(text, expected.concat());
        assert_eq!(serde_json::from_str::<Snapshot>(&text).unwrap(), Snapshot::sample());
    }

    #[test]
    fn a_key_that_is_new_harms_no_reader() {
        let mut value = serde_json::to_value(Snapshot::sample()).unwrap();
        value["new"] = 1.into();
        value["store"]["new"] = 1.into();
        assert_eq!(serde_json::from_value::<Snapshot>(value).unwrap(), Snapshot::sample());
    }
}
