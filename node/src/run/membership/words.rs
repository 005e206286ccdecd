//! Introductions, between what travels and what is decided by.

use casbah_cluster::membership::{ClusterId, Introduction, Joiner, NodeId, Pledge, Protocols, VolumeId};
use casbah_proto::peer::v1 as api;

use crate::config::{ClusterConfig, Config, PeersConfig};
use crate::observe::cluster::RepairProgress;

/// What this node would be a member as.
pub(super) fn joiner(
    config: &Config,
    peers: Option<(&PeersConfig, u16)>,
    volume: VolumeId,
    protocols: Protocols,
) -> Joiner {
    // A port of the system's choice is known only now.
    let address = peers.map_or_else(String::new, |(peers, port)| {
        let mut advertise = peers.advertise.clone();
        if advertise.port == 0 {
            advertise.port = port;
        }
        advertise.to_string()
    });
    Joiner {
        name: config.node.name.clone(),
        address,
        volume,
        zone: config.cluster.zone.clone(),
        weight: config.cluster.weight,
        protocols,
    }
}

/// As it travels.
pub(super) fn to_message(introduction: &Introduction, config: &ClusterConfig) -> api::Introduction {
    let Introduction { cluster_name, joiner, bootstrap_expect, identity, pledge, fresh_peers } = introduction;
    api::Introduction {
        cluster_name: cluster_name.clone(),
        node_name: joiner.name.clone(),
        address: joiner.address.clone(),
        zone: joiner.zone.clone(),
        weight: joiner.weight,
        volume_id: joiner.volume.0.to_vec().into(),
        bootstrap_expect: *bootstrap_expect,
        cluster_id: identity.map_or_else(Vec::new, |(cluster, _)| cluster.0.to_vec()).into(),
        node_id: identity.map_or(0, |(_, node)| node.0),
        fresh_peers: fresh_peers.iter().map(|volume| volume.0.to_vec().into()).collect(),
        protocols: (joiner.protocols.oldest.0..=joiner.protocols.newest.0).collect(),
        program_version: env!("CARGO_PKG_VERSION").to_owned(),
        copies: u32::from(config.copies),
        write_quorum: u32::from(config.write_quorum),
        pledged_cluster_id: pledge.as_ref().map_or_else(Vec::new, |pledge| pledge.cluster.0.to_vec()).into(),
        pledged_founder: pledge.as_ref().map_or_else(Vec::new, |pledge| pledge.founder.0.to_vec()).into(),
        pledged_founder_name: pledge.as_ref().map_or_else(String::new, |pledge| pledge.founder_name.clone()),
    }
}

/// As it is decided by; `None` when an id in it is none, or it says no versions.
pub(super) fn from_message(message: api::Introduction) -> Option<Introduction> {
    let identity = match message.cluster_id.is_empty() {
        true => None,
        false => Some((ClusterId(sixteen(&message.cluster_id)?), NodeId(message.node_id))),
    };
    let pledge = match message.pledged_cluster_id.is_empty() {
        true => None,
        false => Some(Pledge {
            cluster: ClusterId(sixteen(&message.pledged_cluster_id)?),
            founder: VolumeId(sixteen(&message.pledged_founder)?),
            founder_name: message.pledged_founder_name,
        }),
    };
    let fresh_peers = message.fresh_peers.iter().map(|volume| sixteen(volume).map(VolumeId)).collect::<Option<_>>()?;
    Some(Introduction {
        cluster_name: message.cluster_name,
        joiner: Joiner {
            name: message.node_name,
            address: message.address,
            volume: VolumeId(sixteen(&message.volume_id)?),
            zone: message.zone,
            weight: message.weight,
            protocols: Protocols::of_list(&message.protocols).ok()?,
        },
        bootstrap_expect: message.bootstrap_expect,
        identity,
        pledge,
        fresh_peers,
    })
}

/// Repair, as it travels.
pub(super) fn repair_to_message(progress: RepairProgress) -> api::RepairReport {
    api::RepairReport {
        synced_epoch: progress.synced_epoch.unwrap_or(0),
        partitions_left: progress.partitions_left,
        partitions_to_pull: progress.partitions_to_pull,
        copies_to_pull: progress.copies_to_pull,
        bytes_to_pull: progress.bytes_to_pull,
        waits_for: progress.waits_for,
        held: progress.held,
        copies_pulled: progress.copies_pulled,
        copies_given: progress.copies_given,
        copies_dropped: progress.copies_dropped,
        moved_bytes: progress.moved_bytes,
        bytes_per_second: progress.bytes_per_second,
        seconds_left: progress.seconds_left,
        completed_seconds_ago: progress.completed_seconds_ago,
    }
}

/// Repair, as it is shown.
pub(in crate::run) fn repair_from_message(report: api::RepairReport) -> RepairProgress {
    RepairProgress {
        synced_epoch: (report.synced_epoch > 0).then_some(report.synced_epoch),
        partitions_left: report.partitions_left,
        partitions_to_pull: report.partitions_to_pull,
        copies_to_pull: report.copies_to_pull,
        bytes_to_pull: report.bytes_to_pull,
        waits_for: report.waits_for,
        held: report.held,
        copies_pulled: report.copies_pulled,
        copies_given: report.copies_given,
        copies_dropped: report.copies_dropped,
        moved_bytes: report.moved_bytes,
        bytes_per_second: report.bytes_per_second,
        seconds_left: report.seconds_left,
        completed_seconds_ago: report.completed_seconds_ago,
    }
}

pub(super) fn sixteen(bytes: &[u8]) -> Option<[u8; 16]> {
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RebalancePolicy;
    use std::collections::BTreeSet;

    #[test]
    fn an_introduction_survives_its_way() {
        let config = ClusterConfig {
            name: "farm".into(),
            copies: 2,
            write_quorum: 2,
            bootstrap_expect: 3,
            join: vec![],
            zone: "z".into(),
            weight: 7,
            rebalance: RebalancePolicy::Automatic,
            lost_after: None,
            learners: 12,
        };
        let whole = Introduction {
            cluster_name: "farm".into(),
            joiner: Joiner {
                name: "a".into(),
                address: "a:7980".into(),
                volume: VolumeId([1; 16]),
                zone: "z".into(),
                weight: 7,
                protocols: "3-5".parse().unwrap(),
            },
            bootstrap_expect: 3,
            identity: Some((ClusterId([2; 16]), NodeId(5))),
            pledge: Some(Pledge { cluster: ClusterId([3; 16]), founder: VolumeId([4; 16]), founder_name: "b".into() }),
            fresh_peers: BTreeSet::from([VolumeId([5; 16]), VolumeId([6; 16])]),
        };
        let bare = Introduction { identity: None, pledge: None, fresh_peers: BTreeSet::new(), ..whole.clone() };
        for introduction in [whole, bare] {
            let message = to_message(&introduction, &config);
            assert_eq!(from_message(message).as_ref(), Some(&introduction));
        }
    }

    #[test]
    fn how_far_repair_is_survives_its_way() {
        let sample = crate::observe::cluster::Cluster::sample().repair;
        let synced = RepairProgress { synced_epoch: Some(4), seconds_left: None, ..sample.clone() };
        for progress in [sample, synced, RepairProgress::default()] {
            assert_eq!(repair_from_message(repair_to_message(progress.clone())), progress);
        }
    }

    #[test]
    fn ids_of_another_length_and_no_versions_are_no_introduction() {
        let good =
            api::Introduction { volume_id: vec![1; 16].into(), protocols: vec![1], ..api::Introduction::default() };
        assert!(from_message(good.clone()).is_some());
        for bad in [
            api::Introduction::default(),
            api::Introduction { volume_id: vec![1; 17].into(), ..good.clone() },
            api::Introduction { protocols: vec![], ..good.clone() },
            api::Introduction { cluster_id: vec![1; 3].into(), ..good.clone() },
            api::Introduction { fresh_peers: vec![vec![1].into()], ..good.clone() },
            api::Introduction { pledged_cluster_id: vec![1; 16].into(), ..good },
        ] {
            assert_eq!(from_message(bad), None);
        }
    }
}
