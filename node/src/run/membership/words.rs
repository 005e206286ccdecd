//! Introductions, between what travels and what is decided by.

use casbah_cluster::membership::{ClusterId, Introduction, Joiner, NodeId, Pledge, VolumeId};
use casbah_proto::peer::v1 as api;

use crate::config::{ClusterConfig, Config, PeersConfig};

/// What this node would be a member as.
pub(super) fn joiner(config: &Config, peers: Option<(&PeersConfig, u16)>, volume: VolumeId) -> Joiner {
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
        protocols: vec![1],
        program_version: env!("CARGO_PKG_VERSION").to_owned(),
        copies: u32::from(config.copies),
        write_quorum: u32::from(config.write_quorum),
        pledged_cluster_id: pledge.as_ref().map_or_else(Vec::new, |pledge| pledge.cluster.0.to_vec()).into(),
        pledged_founder: pledge.as_ref().map_or_else(Vec::new, |pledge| pledge.founder.0.to_vec()).into(),
        pledged_founder_name: pledge.as_ref().map_or_else(String::new, |pledge| pledge.founder_name.clone()),
    }
}

/// As it is decided by; `None` when an id in it is none.
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
        },
        bootstrap_expect: message.bootstrap_expect,
        identity,
        pledge,
        fresh_peers,
    })
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
    fn ids_of_another_length_are_no_introduction() {
        let good = api::Introduction { volume_id: vec![1; 16].into(), ..api::Introduction::default() };
        assert!(from_message(good.clone()).is_some());
        for bad in [
            api::Introduction::default(),
            api::Introduction { volume_id: vec![1; 17].into(), ..good.clone() },
            api::Introduction { cluster_id: vec![1; 3].into(), ..good.clone() },
            api::Introduction { fresh_peers: vec![vec![1].into()], ..good.clone() },
            api::Introduction { pledged_cluster_id: vec![1; 16].into(), ..good },
        ] {
            assert_eq!(from_message(bad), None);
        }
    }
}
