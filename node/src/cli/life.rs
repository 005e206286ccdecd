//! `casbah node drain|undrain|remove` and `casbah raft transfer`: what is done to nodes.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::args::{AskArguments, NodeArguments, NodeDrainArguments, NodeRemoveArguments};
use super::ask;
use super::cluster::find;
use super::error::Failure;
use crate::observe::cluster::{Cluster, ClusterMember, RepairProgress};
use crate::observe::orders::Order;
use crate::observe::summary::{count, repair_line, size};

/// Between two looks at a node that drains.
const PAUSE: Duration = Duration::from_secs(1);

/// Between two lines about it where nobody looks on.
const LINE_PAUSE: Duration = Duration::from_secs(10);

/// Looks in a row that may come to nothing: the node that is asked may be restarted meanwhile.
const FAILURES_MAX: u32 = 30;

/// What these commands print with `--output json`: a contract.
#[derive(Debug, Serialize)]
struct Done<'a> {
    node_id: u64,
    node: &'a str,
    /// `draining`, `drained`, `serving`, `removed` or `leader`.
    state: &'static str,
}

/// How far a node is that drains.
#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// In words.
    Under(String),
    Drained,
}

/// `casbah node drain`.
///
/// # Errors
/// When it is refused, and, while it is waited for, when it is revoked, or the node is lost.
pub(super) fn drain(arguments: &NodeDrainArguments) -> Result<(), Failure> {
    let ask = &arguments.ask;
    let admin = ask::admin(&ask.admin)?;
    let cluster = ask::cluster(ask)?;
    let member = find(&cluster, &arguments.node)?;
    ask::order(&admin, &Order::Drain { node: member.id }, "casbah node list says which nodes serve")?;
    if arguments.wait {
        wait_for(ask, member.id)?;
    }
    let done =
        Done { node_id: member.id, node: &member.name, state: if arguments.wait { "drained" } else { "draining" } };
    ask::show(ask.output, &done, || match arguments.wait {
        true => format!(
            "{0} has no part of the blobs any more: it may be stopped, and then be taken out of the cluster with\n\n    \
             casbah node remove {0}\n",
            member.name
        ),
        false => format!(
            "{0} leaves: what it has is moved to others. Wait for the end with\n\n    casbah node drain {0} --wait\n",
            member.name
        ),
    })
}

/// `casbah node undrain`.
///
/// # Errors
/// When it is refused.
pub(super) fn undrain(arguments: &NodeArguments) -> Result<(), Failure> {
    let order = |node| Order::Undrain { node };
    simple(arguments, (order, "casbah node list says how the nodes are"), "serving", |name| {
        format!("{name} stays, and gets its part of the blobs again\n")
    })
}

/// `casbah node remove`.
///
/// # Errors
/// When it is refused.
pub(super) fn remove(arguments: &NodeRemoveArguments) -> Result<(), Failure> {
    let NodeRemoveArguments { node, force, ask } = arguments;
    let cluster = ask::cluster(ask)?;
    let member = find(&cluster, node)?;
    let name = &member.name;
    let hint = match member.holds && !force {
        true => {
            format!("casbah node drain {name} --wait moves its blobs first; with --force what nobody else has is lost")
        }
        false => "casbah node list says how the nodes are".to_owned(),
    };
    ask::order(&ask::admin(&ask.admin)?, &Order::Remove { node: member.id, force: *force }, &hint)?;
    let done = Done { node_id: member.id, node: &member.name, state: "removed" };
    ask::show(ask.output, &done, || {
        format!(
            "{} is no member any more. Its directory is of no use: a node that begins with it is refused\n",
            member.name
        )
    })
}

/// `casbah raft transfer`.
///
/// # Errors
/// When it is refused.
pub(super) fn transfer(arguments: &NodeArguments) -> Result<(), Failure> {
    let order = |node| Order::Lead { node };
    let hint = "casbah raft status says who leads, and who votes; --admin names another node";
    simple(arguments, (order, hint), "leader", |name| format!("{name} leads\n"))
}

fn simple(
    arguments: &NodeArguments,
    (order, hint): (impl Fn(u64) -> Order, &str),
    state: &'static str,
    text: impl Fn(&str) -> String,
) -> Result<(), Failure> {
    let NodeArguments { node, ask } = arguments;
    let cluster = ask::cluster(ask)?;
    let member = find(&cluster, node)?;
    ask::order(&ask::admin(&ask.admin)?, &order(member.id), hint)?;
    let done = Done { node_id: member.id, node: &member.name, state };
    ask::show(ask.output, &done, || text(&member.name))
}

/// Waits until a node has no part of the blobs and does not lead.
fn wait_for(ask: &AskArguments, node: u64) -> Result<(), Failure> {
    let is_watched = stderr().is_terminal();
    let (mut shown, mut shown_at) = (String::new(), None::<Instant>);
    let mut failures = 0;
    loop {
        match ask::cluster(ask) {
            Ok(cluster) => {
                failures = 0;
                let stage = stage(&cluster, node)?;
                let Stage::Under(words) = stage else { break };
                let is_due = is_watched || shown_at.is_none_or(|at| at.elapsed() >= LINE_PAUSE);
                if words != shown && is_due {
                    let (begin, end) = if is_watched { ("\r\u{1b}[K", "") } else { ("", "\n") };
                    let _nobody_reads = write!(stderr(), "{begin}{words}{end}").and_then(|()| stderr().flush());
                    (shown, shown_at) = (words, Some(Instant::now()));
                }
            }
            Err(failure) => {
                failures += 1;
                if failures >= FAILURES_MAX {
                    return Err(failure);
                }
            }
        }
        thread::sleep(PAUSE);
    }
    if is_watched && !shown.is_empty() {
        let _nobody_reads = write!(stderr(), "\r\u{1b}[K").and_then(|()| stderr().flush());
    }
    Ok(())
}

fn stage(cluster: &Cluster, node: u64) -> Result<Stage, Failure> {
    let Some(member) = cluster.members.iter().find(|member| member.id == node) else {
        return Err(
            Failure::new(format!("node {node} is no member any more")).hint("somebody has removed it meanwhile")
        );
    };
    match member.standing.as_str() {
        "draining" => {}
        "lost" => {
            return Err(Failure::new(format!("{} is lost", member.name))
                .hint(format!("it is back, or: casbah node remove {}", member.name)));
        }
        _ => {
            return Err(Failure::new(format!("{} is to stay", member.name)).hint("somebody has asked it to meanwhile"));
        }
    }
    if !member.holds && cluster.raft.leader != Some(node) {
        return Ok(Stage::Drained);
    }
    Ok(Stage::Under(progress(cluster, member)))
}

/// `node-3 leaves: 1,234 blobs (3.0 GiB) there, epochs in force 3..4; 812 partitions to compare, 12,000 copies to fetch (3.0 GiB, at
/// 32.0 MiB/s 1m 36s); waits for node-2, away`
fn progress(cluster: &Cluster, member: &ClusterMember) -> String {
    let there = member.numbers.map_or_else(
        || "it does not say what it has".to_owned(),
        |numbers| format!("{} blobs ({}) there", count(numbers.blobs), size(numbers.used_bytes)),
    );
    let away: Vec<&str> = cluster
        .members
        .iter()
        .filter(|other| other.standing != "lost" && !other.reachable)
        .map(|other| other.name.as_str())
        .collect();
    let waits = match away.as_slice() {
        [] => String::new(),
        names => format!("; waits for {}, away", names.join(", ")),
    };
    let left = match left(cluster) {
        Some(left) => format!("; {}", repair_line(&left, |_| None)),
        None => String::new(),
    };
    format!("{} leaves: {there}, epochs in force {}..{}{left}{waits}", member.name, first(cluster), cluster.epoch)
}

/// What all members together have yet to get, by their own words, and until the last one has it; `None` when that is nothing.
fn left(cluster: &Cluster) -> Option<RepairProgress> {
    let told = || cluster.members.iter().filter_map(|member| member.repair.as_ref());
    let sum = |of: fn(&RepairProgress) -> u64| told().map(of).sum();
    let left = RepairProgress {
        partitions_left: sum(|repair| repair.partitions_left),
        copies_to_pull: sum(|repair| repair.copies_to_pull),
        bytes_to_pull: sum(|repair| repair.bytes_to_pull),
        bytes_per_second: sum(|repair| repair.bytes_per_second),
        seconds_left: told().filter_map(|repair| repair.seconds_left).max(),
        ..RepairProgress::default()
    };
    (left.partitions_left > 0 || left.copies_to_pull > 0).then_some(left)
}

fn first(cluster: &Cluster) -> u64 {
    cluster.epochs.first().copied().unwrap_or(cluster.epoch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::Colours;

    fn draining() -> Cluster {
        let mut cluster = Cluster::sample();
        cluster.members[1].standing = "draining".into();
        cluster.epochs = vec![3, 4];
        cluster
    }

    #[test]
    fn a_node_drains_until_it_holds_nothing_and_does_not_lead() {
        let mut cluster = draining();
        let words = "node-2 leaves: 1,234,567 blobs (3.0 GiB) there, epochs in force 3..4; waits for node-3, away";
        assert_eq!(stage(&cluster, 2).unwrap(), Stage::Under(words.into()));
        cluster.members[0].repair = Some(cluster.repair.clone());
        cluster.members[2].repair = Some(RepairProgress { seconds_left: Some(30), ..cluster.repair.clone() });
        let words = "node-2 leaves: 1,234,567 blobs (3.0 GiB) there, epochs in force 3..4; 1,624 partitions to compare; \
                     24,000 copies to fetch (6.0 GiB, at 64.0 MiB/s 1m 36s); waits for node-3, away";
        assert_eq!(stage(&cluster, 2).unwrap(), Stage::Under(words.into()));
        cluster.members[1].holds = false;
        assert!(matches!(stage(&cluster, 2).unwrap(), Stage::Under(_)), "it leads");
        cluster.raft.leader = Some(1);
        assert_eq!(stage(&cluster, 2).unwrap(), Stage::Drained);
    }

    #[test]
    fn who_waits_is_told_when_it_will_not_come_to_pass() {
        let mut cluster = draining();
        let told = |cluster: &Cluster| stage(cluster, 2).unwrap_err().render(Colours::NONE);
        cluster.members[1].standing = "lost".into();
        assert_eq!(told(&cluster), "error: node-2 is lost\nhint: it is back, or: casbah node remove node-2\n");
        cluster.members[1].standing = "serving".into();
        assert!(told(&cluster).starts_with("error: node-2 is to stay\n"));
        cluster.members.remove(1);
        assert!(told(&cluster).starts_with("error: node 2 is no member any more\n"));
    }
}
