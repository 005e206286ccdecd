//! The cluster as one node of it sees it at one moment: part of the snapshot, and what is asked for by itself.

use serde::{Deserialize, Serialize};

/// A cluster, by one of its nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// Drawn when the cluster was formed, 32 hexadecimal digits.
    pub id: String,
    /// As configured.
    pub name: String,
    /// The node that tells.
    pub node_id: u64,
    /// Of the newest layout.
    pub epoch: u64,
    /// Of every layout in force, oldest first: more than one while blobs move.
    pub epochs: Vec<u64>,
    /// Copies of a blob, where there are as many nodes.
    pub copies: u8,
    /// Copies that make an upload acknowledged.
    pub write_quorum: u8,
    /// The version of the peer protocol that it works by: the newest that all members have spoken at one time.
    #[serde(default)]
    pub protocol: u32,
    /// The epoch of the layout that waits to be applied, where one does.
    #[serde(default)]
    pub waits: Option<u64>,
    /// By id.
    pub members: Vec<ClusterMember>,
    /// The Raft group.
    pub raft: Raft,
    /// How the node that tells gets what it should have, and gives away what it should not.
    #[serde(default)]
    pub repair: RepairProgress,
}

/// How far a node is with having the copies that it should have, and no others. Counters are since the start of the process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RepairProgress {
    /// The newest layout, if the node has all that it gives it; `None` otherwise.
    pub synced_epoch: Option<u64>,
    /// Partitions of the newest layout that the node has not compared with all who may have copies of them.
    pub partitions_left: u64,
    /// Partitions of which others are known to have copies that are missing here.
    pub partitions_to_pull: u64,
    /// How many copies they have more, as far as is known; of those, some may be left out, which would be evicted next.
    pub copies_to_pull: u64,
    /// About how many bytes these have.
    pub bytes_to_pull: u64,
    /// Ids of nodes that hold it up: they do not answer, or have not heard of the newest layout.
    pub waits_for: Vec<u64>,
    /// Copies that other nodes own: to be handed over, and then dropped.
    pub held: u64,
    /// Blobs and results that were copied here.
    pub copies_pulled: u64,
    /// Blobs and results that were given to others.
    pub copies_given: u64,
    /// Copies that were dropped, as their owners have them.
    pub copies_dropped: u64,
    /// Bytes of what was copied here and given to others.
    pub moved_bytes: u64,
    /// The same in a second, lately.
    pub bytes_per_second: u64,
    /// Until there is nothing left to pull, at that rate; `None` while nothing moves.
    pub seconds_left: Option<u64>,
    /// Since there was nothing left to pull last; `None` if there always was.
    pub completed_seconds_ago: Option<u64>,
}

/// A member, by the node that tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterMember {
    /// Never given twice.
    pub id: u64,
    /// As configured.
    pub name: String,
    /// Where its peers reach it; empty where it has none.
    pub address: String,
    /// As configured; may be empty.
    pub zone: String,
    /// As configured.
    pub weight: u32,
    /// `voter`, `learner` or `watcher`.
    pub part: String,
    /// `serving`, `draining` or `lost`.
    #[serde(default)]
    pub standing: String,
    /// It has a part of the blobs by a layout in force.
    #[serde(default)]
    pub holds: bool,
    /// What ails it, by its own word or by what is seen of it.
    #[serde(default)]
    pub ailment: Option<String>,
    /// The versions of the peer protocol that it speaks: `1`, or `1-2`.
    #[serde(default)]
    pub protocols: String,
    /// The version of its program; `None` when it did not say.
    #[serde(default)]
    pub program: Option<String>,
    /// It is the node that tells.
    pub is_self: bool,
    /// It has answered lately.
    pub reachable: bool,
    /// It takes writes.
    pub writable: bool,
    /// It is about to end.
    pub draining: bool,
    /// How long it takes to answer; `None` for the node itself, and before the first answer.
    pub latency_ms: Option<f64>,
    /// Of how many partitions it is an owner, by the newest layout.
    pub partitions: u64,
    /// As it last said; `None` when it never did.
    pub numbers: Option<MemberNumbers>,
    /// How far it is with having the copies that it should have; `None` when it did not say.
    #[serde(default)]
    pub repair: Option<RepairProgress>,
}

/// What a member says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberNumbers {
    /// Blobs that it holds.
    pub blobs: u64,
    /// Bytes of disk that they take.
    pub used_bytes: u64,
    /// Bytes of disk that they may take.
    pub capacity_bytes: u64,
    /// The newest layout that it knows.
    pub epoch: u64,
}

/// The Raft group, by one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raft {
    /// `leader`, `follower`, `candidate`, `learner`, `watcher` for a node without the log, or `stopped`.
    pub role: String,
    /// The term that the node is in; a watcher has none.
    pub term: Option<u64>,
    /// Who leads, as far as the node knows.
    pub leader: Option<u64>,
    /// The last entry of the node's log; a watcher has none.
    pub last_log: Option<u64>,
    /// The last entry that the node knows to be committed; a watcher has none.
    pub committed: Option<u64>,
    /// The last entry that its state has.
    pub applied: u64,
    /// The last entry of its snapshot; a watcher has none.
    pub snapshot: Option<u64>,
    /// Who votes.
    pub voters: Vec<u64>,
    /// Who has the log and does not vote.
    pub learners: Vec<u64>,
}

/// Which node owns what: the page `/ring.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// Of the newest layout.
    pub epoch: u64,
    /// Copies of a blob.
    pub copies: u8,
    /// By partition (the first 12 bits of a hash): the ids of its owners, the first one first.
    pub partitions: Vec<Vec<u64>>,
}

/// How blobs are placed and how they would be: the page `/layout.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layouts {
    /// Of the newest layout.
    pub epoch: u64,
    /// That the next layout will have.
    pub planned: u64,
    /// Copies of a blob, where there are as many nodes.
    pub copies: u8,
    /// Whether changes wait to be applied by a person.
    pub on_apply: bool,
    /// The nodes of the newest layout.
    pub now: Vec<Share>,
    /// The nodes of the layout that all members make, as they are configured.
    pub next: Vec<Share>,
}

/// A node that holds blobs, or would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Its id.
    pub id: u64,
    /// What fails together with it.
    pub zone: String,
    /// Its share, relative to others.
    pub weight: u32,
}

/// Where a blob is: the page `/blobs/DIGEST`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whereabouts {
    /// `HASH/SIZE`
    pub digest: String,
    /// The first 12 bits of the hash.
    pub partition: u64,
    /// Every node that may have a copy, owners first.
    pub nodes: Vec<Holder>,
}

/// A node that may have a copy of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// A layout in force says that it should have a copy; otherwise it may keep one for an owner that was away.
    pub owner: bool,
    /// `present`, `absent`, or `unknown` when it did not answer.
    pub copy: Copy,
}

/// Whether a node has a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Copy {
    /// It says so.
    Present,
    /// It says that it has none.
    Absent,
    /// It did not answer.
    Unknown,
}

// === impl Copy ===

impl Copy {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Copy::Present => "present",
            Copy::Absent => "absent",
            Copy::Unknown => "unknown: no answer",
        }
    }
}

#[cfg(test)]
impl Cluster {
    /// One of three nodes, of which one is away.
    pub fn sample() -> Cluster {
        let member = |id: u64, reachable: bool| ClusterMember {
            id,
            name: format!("node-{id}"),
            address: format!("node-{id}.example:7980"),
            zone: format!("zone-{id}"),
            weight: 100,
            part: "voter".into(),
            standing: "serving".into(),
            holds: true,
            ailment: None,
            protocols: if id == 3 { "1".into() } else { "1-2".into() },
            program: reachable.then(|| "0.1.0".into()),
            is_self: id == 1,
            reachable,
            writable: reachable,
            draining: false,
            latency_ms: (id == 2).then_some(0.4),
            partitions: 2731,
            numbers: reachable.then_some(MemberNumbers {
                blobs: 1_234_567,
                used_bytes: 3 << 30,
                capacity_bytes: 10 << 30,
                epoch: 4,
            }),
            repair: reachable.then(|| RepairProgress { synced_epoch: Some(4), ..RepairProgress::default() }),
        };
        Cluster {
            id: "0123456789abcdef0123456789abcdef".into(),
            name: "casbah".into(),
            node_id: 1,
            epoch: 4,
            epochs: vec![4],
            copies: 2,
            write_quorum: 2,
            protocol: 1,
            waits: None,
            members: vec![member(1, true), member(2, true), member(3, false)],
            raft: Raft {
                role: "follower".into(),
                term: Some(7),
                leader: Some(2),
                last_log: Some(1200),
                committed: Some(1199),
                applied: 1198,
                snapshot: Some(1000),
                voters: vec![1, 2, 3],
                learners: vec![],
            },
            repair: RepairProgress {
                synced_epoch: None,
                partitions_left: 812,
                partitions_to_pull: 40,
                copies_to_pull: 12_000,
                bytes_to_pull: 3 << 30,
                waits_for: vec![3],
                held: 17,
                copies_pulled: 5_000,
                copies_given: 300,
                copies_dropped: 290,
                moved_bytes: 1 << 30,
                bytes_per_second: 32 << 20,
                seconds_left: Some(96),
                completed_seconds_ago: Some(4_000),
            },
        }
    }
}
