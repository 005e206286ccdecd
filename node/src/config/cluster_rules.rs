//! What must hold of `[cluster]` and `[peers]`.

use std::time::Duration;

use casbah_cluster::membership::LEARNERS_MAX;

use super::file::{ClusterSection, File, ListenerSection};
use super::keys::KeyPath;
use super::resolve::{ClusterConfig, ListenAddress, PeersConfig, PodConfig, RepairConfig};
use super::rules::{Broken, Checker, is_name, path};
use super::units::{ByteSize, TimeSpan};

/// More copies than this cost more than the loss that they save from.
const COPIES_MAX: u64 = 8;

/// Nodes of a cluster; the design is for up to 100.
const NODES_MAX: u64 = 100;

/// The heaviest node: enough for any mixture of disks, and few enough tokens on the ring.
const WEIGHT_MAX: u64 = 10_000;

/// At a lower rate than this, what a lost node held is not made up for within a week.
const REPAIR_RATE_MIN: ByteSize = ByteSize::from_bytes(64 << 10);

/// Below this, nodes would ask each other all the time; above it, what went amiss unseen would stay so for too long.
const REPAIR_INTERVAL_MIN: TimeSpan = TimeSpan::from_millis(1_000);
const REPAIR_INTERVAL_MAX: TimeSpan = TimeSpan::from_hours(24);

/// No node is given up within the time that a missed heartbeat or two take.
const LOST_AFTER_MIN: Duration = Duration::from_secs(2);

/// In less time no other node hears that one leaves.
const DRAIN_DEADLINE_MIN: Duration = Duration::from_secs(1);

/// A rule that is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokenCluster {
    /// A name for a cluster or a zone that is none.
    #[error("\"{name}\" is not a name for a {what}")]
    Name {
        /// As it was given.
        name: String,
        /// `cluster` or `zone`.
        what: &'static str,
    },
    /// A number out of its range.
    #[error("{given} is not between {least} and {most}")]
    Range {
        /// As it was given.
        given: u64,
        /// The least that works.
        least: u64,
        /// The most that works.
        most: u64,
    },
    /// An upload that waits for copies that nobody makes.
    #[error("an upload cannot wait for {write_quorum} of {copies} copies")]
    WriteQuorum {
        /// As it was given.
        write_quorum: u64,
        /// As it was given, or its default.
        copies: u64,
    },
    /// Copies that come too slowly.
    #[error("{given} a second is less than {REPAIR_RATE_MIN}")]
    RepairRate {
        /// As it was given.
        given: ByteSize,
    },
    /// Comparisons too often, or too seldom.
    #[error("the interval is not between {REPAIR_INTERVAL_MIN} and {REPAIR_INTERVAL_MAX}")]
    RepairInterval,
    /// A node would be given up before it is known to be away.
    #[error("a node cannot be given up so soon")]
    LostAfter,
    /// A node could never leave so soon.
    #[error("a node cannot leave so soon")]
    DrainDeadline,
    /// A name that tells no place in a StatefulSet.
    #[error("\"{name}\" is not the name of a pod of a StatefulSet")]
    NotAPod {
        /// Of the node.
        name: String,
    },
    /// Other nodes that cannot be reached.
    #[error("there is no way to other nodes without [peers]")]
    NoPeers,
    /// A node that could never begin.
    #[error("the node would neither form a cluster nor join one")]
    NeverPart,
    /// A part of `[peers]` that is not there.
    #[error("[peers] has no {missing}")]
    PeersIncomplete {
        /// The key.
        missing: &'static str,
    },
    /// One file that decides both who is a client and who is a peer.
    #[error("these authorities are those of a listener's clients, each of whom would be a peer")]
    SharedAuthorities,
    /// An address that others cannot connect to.
    #[error("{address} is not an address that other nodes can connect to")]
    NotReachable {
        /// As it was given.
        address: String,
    },
}

// === impl BrokenCluster ===

impl BrokenCluster {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            BrokenCluster::Name { .. } => "use letters, digits, `.`, `-` and `_`".into(),
            BrokenCluster::Range { least, most, .. } => format!("write a number from {least} to {most}"),
            BrokenCluster::WriteQuorum { copies, .. } => {
                format!("write a number from 1 to {copies}, or leave it out for {}", majority(*copies))
            }
            BrokenCluster::RepairRate { .. } => "leave it out for 64MiB".into(),
            BrokenCluster::RepairInterval => "leave it out for 1m".into(),
            BrokenCluster::LostAfter => "write 2s or more, or 0s to give no node up".into(),
            BrokenCluster::DrainDeadline => "write 1s or more, or 0s to leave never".into(),
            BrokenCluster::NotAPod { .. } => "set node.name to the name of the pod, such as casbah-3".into(),
            BrokenCluster::NoPeers => {
                "set address, tls and authorities under [peers], or leave this out for a cluster of \
                                       one"
                .into()
            }
            BrokenCluster::NeverPart => {
                "set join = [\"node-1.example.org:7980\"], or bootstrap_expect to the number of \
                                         nodes"
                    .into()
            }
            BrokenCluster::PeersIncomplete { missing } => match *missing {
                "address" => "set address = \"0.0.0.0:7980\"".into(),
                "tls" => "set tls = { certificate = \"peer.crt\", key = \"peer.key\" }".into(),
                _ => "set authorities = \"peers-ca.crt\"".into(),
            },
            BrokenCluster::SharedAuthorities => "make an authority of its own for the nodes".into(),
            BrokenCluster::NotReachable { .. } => {
                "set advertise = \"HOST:PORT\", a name or an address of this machine that other nodes know, and a port \
                 that is not 0"
                    .into()
            }
        }
    }
}

impl Checker<'_> {
    pub(super) fn cluster(&mut self, file: &File) -> ClusterConfig {
        let section = &file.cluster;
        let at = KeyPath::default().name("cluster");
        if !is_name(&section.name) {
            self.broken(at.name("name"), BrokenCluster::Name { name: section.name.clone(), what: "cluster" });
        }
        if !section.zone.is_empty() && !is_name(&section.zone) {
            self.broken(at.name("zone"), BrokenCluster::Name { name: section.zone.clone(), what: "zone" });
        }
        let copies = self.range(&at.name("copies"), section.copies, 1, COPIES_MAX);
        let write_quorum = section.write_quorum.unwrap_or_else(|| majority(section.copies));
        if !(1..=section.copies).contains(&write_quorum) {
            let copies = section.copies;
            self.broken(at.name("write_quorum"), BrokenCluster::WriteQuorum { write_quorum, copies });
        }
        let alone = if section.join.is_empty() { 1 } else { 0 };
        let bootstrap_expect = section.bootstrap_expect.unwrap_or(alone);
        let expected = self.range(&at.name("bootstrap_expect"), bootstrap_expect, 0, NODES_MAX);
        if bootstrap_expect == 0 && section.join.is_empty() {
            self.broken(at.name("bootstrap_expect"), BrokenCluster::NeverPart);
        }
        if !has_peers(file) {
            let wants_peers = [("bootstrap_expect", bootstrap_expect > 1), ("join", !section.join.is_empty())];
            for (key, _) in wants_peers.into_iter().filter(|(_, wanted)| *wanted) {
                self.broken(at.name(key), BrokenCluster::NoPeers);
            }
        }
        if let Some(address) = section.join.iter().find(|address| !can_be_dialled(address)) {
            self.broken(at.name("join"), BrokenCluster::NotReachable { address: address.to_string() });
        }
        ClusterConfig {
            name: section.name.clone(),
            copies: u8::try_from(copies).unwrap_or(u8::MAX),
            write_quorum: u8::try_from(write_quorum).unwrap_or(u8::MAX),
            bootstrap_expect: expected,
            join: section.join.clone(),
            zone: section.zone.clone(),
            weight: self.range(&at.name("weight"), section.weight, 1, WEIGHT_MAX),
            rebalance: section.rebalance,
            lost_after: self.lost_after(&at, section),
            learners: self.range(&at.name("learners"), section.learners, 0, LEARNERS_MAX as u64),
        }
    }

    pub(super) fn repair(&mut self, file: &File) -> RepairConfig {
        let section = &file.repair;
        let at = KeyPath::default().name("repair");
        if section.rate < REPAIR_RATE_MIN {
            self.broken(at.name("rate"), BrokenCluster::RepairRate { given: section.rate });
        }
        if !(REPAIR_INTERVAL_MIN..=REPAIR_INTERVAL_MAX).contains(&section.interval) {
            self.broken(at.name("interval"), BrokenCluster::RepairInterval);
        }
        RepairConfig { rate_bytes: section.rate.bytes(), interval: section.interval.duration() }
    }

    fn lost_after(&mut self, at: &KeyPath, section: &ClusterSection) -> Option<Duration> {
        let lost_after = section.lost_after.duration();
        if !lost_after.is_zero() && lost_after < LOST_AFTER_MIN {
            self.broken(at.name("lost_after"), BrokenCluster::LostAfter);
        }
        Some(lost_after).filter(|lost_after| !lost_after.is_zero())
    }

    pub(super) fn pod(&mut self, file: &File) -> Option<PodConfig> {
        let drain_deadline = file.kubernetes.drain_deadline.duration();
        if drain_deadline.is_zero() {
            return None;
        }
        let at = KeyPath::from_dotted("kubernetes.drain_deadline");
        if drain_deadline < DRAIN_DEADLINE_MIN {
            self.broken(at.clone(), BrokenCluster::DrainDeadline);
        }
        if !has_peers(file) {
            self.broken(at.clone(), BrokenCluster::NoPeers);
        }
        let name = file.node.name.as_deref().unwrap_or_default();
        let parts = name.rsplit_once('-').and_then(|(set, ordinal)| Some((set, ordinal.parse().ok()?)));
        match parts.filter(|(set, _): &(&str, u32)| !set.is_empty()) {
            Some((set, ordinal)) => Some(PodConfig { stateful_set: set.to_owned(), ordinal, drain_deadline }),
            None => {
                self.broken(at, BrokenCluster::NotAPod { name: name.to_owned() });
                None
            }
        }
    }

    pub(super) fn peers(&mut self, file: &File) -> Option<PeersConfig> {
        let at = KeyPath::default().name("peers");
        // What is known to be wrong would only bring up further errors that are none.
        if !has_peers(file) || self.layers.is_broken(&at) {
            return None;
        }
        let section = &file.peers;
        let parts = [
            ("address", section.address.is_some()),
            ("tls", section.tls.is_some()),
            ("authorities", section.authorities.is_some()),
        ];
        for (missing, _) in parts.into_iter().filter(|(_, there)| !there) {
            self.broken(at.clone(), BrokenCluster::PeersIncomplete { missing });
        }
        let for_clients =
            |listener: &ListenerSection| [&listener.authorities, &listener.authorized].contains(&&section.authorities);
        if section.authorities.is_some() && file.listener.iter().any(for_clients) {
            self.broken(at.name("authorities"), BrokenCluster::SharedAuthorities);
        }
        let tls = section.tls.as_ref().map(|tls| self.tls(&at, tls));
        let address = section.address.clone()?;
        if let Some(admin) = file.admin.address.as_ref().filter(|admin| admin.overlaps(&address)) {
            let (address, other) = (address.clone(), admin.clone());
            self.broken(at.name("address"), Broken::AddressTaken { address, what: "admin port", other });
        }
        let own_name = file.node.name.as_deref().unwrap_or_default();
        let by_name = || format!("{own_name}:{}", address.port).parse::<ListenAddress>().ok();
        let advertise = section.advertise.clone().or_else(by_name);
        match advertise.filter(can_be_dialled) {
            Some(advertise) => {
                let (tls, authorities) = (tls?, path(&section.authorities)?);
                Some(PeersConfig { address, advertise, dial_from: section.dial_from, tls, authorities })
            }
            None => {
                let as_given = section.advertise.as_ref().map(ListenAddress::to_string);
                let address = as_given.unwrap_or_else(|| format!("{own_name}:{}", address.port));
                self.broken(at.name("advertise"), BrokenCluster::NotReachable { address });
                None
            }
        }
    }

    fn range(&mut self, key: &KeyPath, given: u64, least: u64, most: u64) -> u32 {
        if !(least..=most).contains(&given) {
            self.broken(key.clone(), BrokenCluster::Range { given, least, most });
        }
        u32::try_from(given).unwrap_or(u32::MAX)
    }
}

fn has_peers(file: &File) -> bool {
    let peers = &file.peers;
    peers.address.is_some() || peers.advertise.is_some() || peers.tls.is_some() || peers.authorities.is_some()
}

fn can_be_dialled(address: &ListenAddress) -> bool {
    address.port != 0 && !matches!(&*address.host, "0.0.0.0" | "::")
}

fn majority(copies: u64) -> u64 {
    copies / 2 + 1
}
