//! `casbah ring plan` and `casbah ring apply`: what a change of the layout would move, and that it be made.

use std::collections::BTreeMap;

use casbah_cluster::membership::{Epoch, Layout, LayoutNode, NodeId};
use casbah_cluster::ring::{PARTITIONS, Placement, Plan};
use serde::Serialize;

use super::args::{RingApplyArguments, RingPlanArguments};
use super::ask;
use super::cluster::find;
use super::error::Failure;
use super::output::Colours;
use super::table::table;
use crate::observe::cluster::{Cluster, Layouts, Share};
use crate::observe::orders::Order;
use crate::observe::summary::{count, size};

/// What `casbah ring plan --output json` prints: a contract.
#[derive(Debug, PartialEq, Serialize)]
struct Planned {
    /// Of the newest layout.
    epoch: u64,
    /// What `ring apply` would be told; `None` where there is nothing to apply.
    apply: Option<u64>,
    /// Partitions that get another owner.
    partitions: u64,
    /// Copies of partitions that are made.
    copies: u64,
    /// Bytes that are copied, as far as can be told.
    bytes: u64,
    nodes: Vec<NodePlan>,
}

#[derive(Debug, PartialEq, Serialize)]
struct NodePlan {
    id: u64,
    name: String,
    weight_now: Option<u32>,
    weight_then: Option<u32>,
    partitions_now: u64,
    partitions_then: u64,
    gains: u64,
    gives_up: u64,
    gains_bytes: u64,
}

/// `casbah ring plan`.
///
/// # Errors
/// When no node can be asked, or a node that is named is unknown.
pub(super) fn plan(arguments: &RingPlanArguments) -> Result<(), Failure> {
    let RingPlanArguments { without, weight, ask } = arguments;
    let cluster = ask::cluster(ask)?;
    let (mut layouts, _): (Layouts, String) = ask::page(&ask::admin(&ask.admin)?, "/layout.json")?;
    let is_question = !without.is_empty() || !weight.is_empty();
    for node in without {
        let id = find(&cluster, node)?.id;
        layouts.next.retain(|share| share.id != id);
    }
    for text in weight {
        let (node, weight) = weighed(text)?;
        let id = find(&cluster, node)?.id;
        let share = layouts.next.iter_mut().find(|share| share.id == id);
        let share = share.ok_or_else(|| Failure::new(format!("{node} is in no further layout")))?;
        share.weight = weight;
    }
    if layouts.next.is_empty() {
        return Err(Failure::new("nobody would be left to hold blobs"));
    }
    let planned = compare(&cluster, &layouts, is_question);
    ask::show(ask.output, &planned, || words(&planned, is_question, layouts.on_apply, Colours::of_stdout()))
}

/// `casbah ring apply`.
///
/// # Errors
/// When it is refused: the plan is stale, or there is nothing to apply.
pub(super) fn apply(arguments: &RingApplyArguments) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Applied {
        epoch: u64,
    }
    let RingApplyArguments { epoch, ask } = arguments;
    let hint = "casbah ring plan prints what would be done now";
    ask::order(&ask::admin(&ask.admin)?, &Order::Apply { epoch: *epoch }, hint)?;
    ask::show(ask.output, &Applied { epoch: *epoch }, || {
        format!("blobs move to the layout of epoch {epoch}; casbah status says when none lies by an older one\n")
    })
}

/// `NODE=WEIGHT`
fn weighed(text: &str) -> Result<(&str, u32), Failure> {
    let parts = text.rsplit_once('=').and_then(|(node, weight)| Some((node, weight.parse().ok()?)));
    parts.filter(|(_, weight)| (1..=10_000).contains(weight)).ok_or_else(|| {
        Failure::new(format!("\"{text}\" is no weight of a node")).hint("write NODE=WEIGHT, a weight from 1 to 10000")
    })
}

fn compare(cluster: &Cluster, layouts: &Layouts, is_question: bool) -> Planned {
    let placement = |epoch: u64, shares: &[Share]| {
        let node = |share: &Share| (NodeId(share.id), LayoutNode { zone: share.zone.clone(), weight: share.weight });
        let layout = Layout { epoch: Epoch(epoch), nodes: shares.iter().map(node).collect() };
        Placement::of(&layout, layouts.copies)
    };
    let (now, then) = (placement(layouts.epoch, &layouts.now), placement(layouts.planned, &layouts.next));
    let plan = Plan::between(&now, &then);
    let (owned_now, owned_then) = (owned(&now), owned(&then));
    // As if all partitions were alike, and whoever does not tell held as much as the others.
    let told = cluster.members.iter().filter_map(|member| Some((NodeId(member.id), member.numbers?)));
    let (held, bytes) = told.fold((0, 0_u64), |(held, bytes), (id, numbers)| {
        let partitions = owned_now.get(&id).copied().unwrap_or(0);
        if partitions == 0 { (held, bytes) } else { (held + partitions, bytes.saturating_add(numbers.used_bytes)) }
    });
    let bytes_of = |partitions: u64| {
        let bytes = u128::from(bytes) * u128::from(partitions) / u128::from(held.max(1));
        u64::try_from(bytes).unwrap_or(u64::MAX)
    };
    let weight = |shares: &[Share], id: u64| shares.iter().find(|share| share.id == id).map(|share| share.weight);
    let nodes = cluster.members.iter().map(|member| {
        let id = NodeId(member.id);
        let change = plan.nodes.get(&id).copied().unwrap_or_default();
        NodePlan {
            id: member.id,
            name: member.name.clone(),
            weight_now: weight(&layouts.now, member.id),
            weight_then: weight(&layouts.next, member.id),
            partitions_now: owned_now.get(&id).copied().unwrap_or(0),
            partitions_then: owned_then.get(&id).copied().unwrap_or(0),
            gains: change.gained as u64,
            gives_up: change.lost as u64,
            gains_bytes: bytes_of(change.gained as u64),
        }
    });
    let copies = plan.copies_moved() as u64;
    let waits = !is_question && layouts.now != layouts.next;
    Planned {
        epoch: layouts.epoch,
        apply: waits.then_some(layouts.planned),
        partitions: plan.partitions.len() as u64,
        copies,
        bytes: bytes_of(copies),
        nodes: nodes.collect(),
    }
}

fn owned(placement: &Placement) -> BTreeMap<NodeId, u64> {
    let mut owned = BTreeMap::new();
    for owner in (0..PARTITIONS).flat_map(|partition| placement.owners(partition)) {
        *owned.entry(*owner).or_default() += 1;
    }
    owned
}

fn words(planned: &Planned, is_question: bool, on_apply: bool, colours: Colours) -> String {
    if planned.apply.is_none() && !is_question {
        return format!("blobs lie by the layout of epoch {}, and nothing waits to be applied\n", planned.epoch);
    }
    let heads = ["ID", "NODE", "WEIGHT", "PARTITIONS", "GAINS", "GIVES UP", "BYTES"];
    let right = [true, false, true, true, true, true, true];
    let weight = |weight: Option<u32>| weight.map_or_else(|| "-".to_owned(), |weight| weight.to_string());
    let change = |now: String, then: String| if now == then { now } else { format!("{now} > {then}") };
    let rows: Vec<Vec<String>> = planned
        .nodes
        .iter()
        .map(|node| {
            vec![
                node.id.to_string(),
                node.name.clone(),
                change(weight(node.weight_now), weight(node.weight_then)),
                change(count(node.partitions_now), count(node.partitions_then)),
                count(node.gains),
                count(node.gives_up),
                size(node.gains_bytes),
            ]
        })
        .collect();
    let end = match planned.apply {
        None => "nothing is changed: this is what would be\n".to_owned(),
        Some(epoch) if on_apply => format!("have it done with\n\n    casbah ring apply --epoch {epoch}\n"),
        Some(epoch) => format!("it is done by itself, as epoch {epoch}, when older layouts have been left behind\n"),
    };
    format!(
        "{} of {} partitions get other owners: {} copies of one are made, about {}\n\n{}\n{end}",
        count(planned.partitions),
        count(PARTITIONS as u64),
        count(planned.copies),
        size(planned.bytes),
        table(&heads, &right, &rows, colours)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::reference::assert_same;

    fn layouts(now: &[(u64, u32)], next: &[(u64, u32)]) -> Layouts {
        let share = |(id, weight): &(u64, u32)| Share { id: *id, zone: String::new(), weight: *weight };
        let shares = |shares: &[(u64, u32)]| shares.iter().map(share).collect();
        Layouts { epoch: 4, planned: 6, copies: 2, on_apply: true, now: shares(now), next: shares(next) }
    }

    #[test]
    fn a_plan_is_for_eyes() {
        let cluster = Cluster::sample();
        let joined = layouts(&[(1, 100), (2, 100)], &[(1, 100), (2, 100), (3, 200)]);
        let same = layouts(&[(1, 100), (2, 100)], &[(1, 100), (2, 100)]);
        let shown = [(&joined, false, true), (&joined, false, false), (&joined, true, true), (&same, false, true)];
        let shown = shown.map(|(layouts, is_question, on_apply)| {
            words(&compare(&cluster, layouts, is_question), is_question, on_apply, Colours::NONE)
        });
        assert_same("node/src/cli/snapshots/plan.txt", &shown.join("\n"));
    }

    #[test]
    fn what_moves_is_counted_and_what_does_not_is_not() {
        let cluster = Cluster::sample();
        let planned = compare(&cluster, &layouts(&[(1, 100), (2, 100)], &[(1, 100), (2, 100)]), false);
        assert_eq!((planned.partitions, planned.copies, planned.bytes, planned.apply), (0, 0, 0, None));
        let planned = compare(&cluster, &layouts(&[(1, 100), (2, 100)], &[(1, 100), (2, 100), (3, 100)]), false);
        let gains: u64 = planned.nodes.iter().map(|node| node.gains).sum();
        assert_eq!((gains, planned.apply), (planned.copies, Some(6)));
        assert_eq!(planned.nodes[2].partitions_then, planned.nodes[2].gains);
        // Two nodes hold everything, 3 GiB each, in 4096 partitions.
        assert_eq!(planned.bytes, planned.copies * (3 << 30) / 4096);
    }

    #[test]
    fn a_weight_is_a_node_and_a_number() {
        assert_eq!(weighed("node-1=300").unwrap(), ("node-1", 300));
        for text in ["node-1", "node-1=", "node-1=x", "=", "node-1=0", "node-1=10001", "node-1=-3"] {
            assert!(weighed(text).is_err(), "{text}");
        }
    }
}
