//! `casbah node`, `casbah ring` and `casbah raft`, as far as they only look: the cluster, as any of its nodes sees it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::args::{AskArguments, NodeArguments, NodeCommand, OutputFormat, RaftCommand, RingCommand};
use super::ask;
use super::error::Failure;
use super::life;
use super::output::{self, Colours};
use super::plan;
use super::table::table;
use crate::observe::cluster::{Cluster, ClusterMember, Raft, Ring};
use crate::observe::summary::{condition, count, repair_line, size};

/// `casbah node`.
///
/// # Errors
/// When no node can be asked, or the one that is shown is unknown.
pub fn node(command: &NodeCommand) -> Result<(), Failure> {
    match command {
        NodeCommand::List(arguments) => {
            let cluster = ask::cluster(arguments)?;
            ask::show(arguments.output, &cluster.members, || list(&cluster, Colours::of_stdout()))
        }
        NodeCommand::Show(NodeArguments { node, ask: arguments }) => {
            let cluster = ask::cluster(arguments)?;
            let member = find(&cluster, node)?;
            ask::show(arguments.output, member, || show(&cluster, member))
        }
        NodeCommand::Drain(arguments) => life::drain(arguments),
        NodeCommand::Undrain(arguments) => life::undrain(arguments),
        NodeCommand::Remove(arguments) => life::remove(arguments),
    }
}

/// `casbah ring`.
///
/// # Errors
/// When no node can be asked.
pub fn ring(command: &RingCommand) -> Result<(), Failure> {
    match command {
        RingCommand::Show(arguments) => ring_show(arguments),
        RingCommand::Plan(arguments) => plan::plan(arguments),
        RingCommand::Apply(arguments) => plan::apply(arguments),
    }
}

fn ring_show(arguments: &AskArguments) -> Result<(), Failure> {
    let (ring, _): (Ring, String) = ask::page(&ask::admin(&arguments.admin)?, "/ring.json")?;
    match arguments.output {
        OutputFormat::Json => output::print_json(&ring),
        OutputFormat::Text => {
            let cluster = ask::cluster(arguments)?;
            output::print(&shares(&cluster, &ring, Colours::of_stdout()))
        }
    }
}

/// How like a name has to be to be meant.
const LIKENESS_MIN: f64 = 0.5;

/// What `casbah raft status --output json` prints: a contract.
#[derive(Serialize)]
struct RaftStatus<'a> {
    node_id: u64,
    #[serde(flatten)]
    raft: &'a Raft,
}

/// `casbah raft`.
///
/// # Errors
/// When no node can be asked.
pub fn raft(command: &RaftCommand) -> Result<(), Failure> {
    match command {
        RaftCommand::Status(arguments) => status(arguments),
        RaftCommand::Transfer(arguments) => life::transfer(arguments),
    }
}

fn status(arguments: &AskArguments) -> Result<(), Failure> {
    let cluster = ask::cluster(arguments)?;
    let data = RaftStatus { node_id: cluster.node_id, raft: &cluster.raft };
    ask::show(arguments.output, &data, || raft_status(&cluster))
}

/// The member with this name or id.
pub(super) fn find<'c>(cluster: &'c Cluster, node: &str) -> Result<&'c ClusterMember, Failure> {
    let by_name = cluster.members.iter().find(|member| member.name == node);
    by_name.or_else(|| cluster.members.iter().find(|member| member.id.to_string() == node)).ok_or_else(|| {
        let known: Vec<&str> = cluster.members.iter().map(|member| member.name.as_str()).collect();
        let likeness = |name: &str| strsim::normalized_damerau_levenshtein(node, name);
        let nearest = known.iter().filter(|name| likeness(name) > LIKENESS_MIN);
        let nearest = nearest.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        let hint = match nearest {
            Some(name) => format!("did you mean \"{name}\"? its nodes are {}", known.join(", ")),
            None => format!("its nodes are {}", known.join(", ")),
        };
        Failure::new(format!("the cluster has no node \"{node}\"")).hint(hint)
    })
}

fn list(cluster: &Cluster, colours: Colours) -> String {
    let heads = ["ID", "NODE", "ZONE", "STATE", "RAFT", "PARTITIONS", "BLOBS", "USED", "CAPACITY", "ADDRESS"];
    let right = [true, false, false, false, false, true, true, true, true, false];
    let rows: Vec<Vec<String>> = cluster
        .members
        .iter()
        .map(|member| {
            let number = |of: fn(&crate::observe::cluster::MemberNumbers) -> String| {
                member.numbers.as_ref().map_or_else(|| "-".to_owned(), of)
            };
            let leads = cluster.raft.leader == Some(member.id);
            vec![
                member.id.to_string(),
                format!("{}{}", member.name, if member.is_self { " *" } else { "" }),
                or_dash(&member.zone),
                condition(member).to_owned(),
                if leads { "leader".to_owned() } else { member.part.clone() },
                count(member.partitions),
                number(|numbers| count(numbers.blobs)),
                number(|numbers| size(numbers.used_bytes)),
                number(|numbers| size(numbers.capacity_bytes)),
                or_dash(&member.address),
            ]
        })
        .collect();
    table(&heads, &right, &rows, colours)
}

fn show(cluster: &Cluster, member: &ClusterMember) -> String {
    let latency = member.latency_ms.map_or_else(|| "-".to_owned(), |latency| format!("{latency:.1} ms"));
    let mut rows = vec![
        ("id", member.id.to_string()),
        ("name", member.name.clone()),
        ("address", or_dash(&member.address)),
        ("zone", or_dash(&member.zone)),
        ("weight", member.weight.to_string()),
        ("state", condition(member).to_owned()),
        ("ailment", member.ailment.clone().unwrap_or_else(|| "-".to_owned())),
        ("raft", member.part.clone()),
        ("program", or_dash(member.program.as_deref().unwrap_or_default())),
        ("protocol", format!("{} (it speaks {})", cluster.protocol, or_dash(&member.protocols))),
        ("partitions", count(member.partitions)),
        ("latency", latency),
    ];
    if let Some(numbers) = member.numbers {
        rows.push(("blobs", count(numbers.blobs)));
        rows.push(("disk", format!("{} of {}", size(numbers.used_bytes), size(numbers.capacity_bytes))));
        rows.push(("layout", format!("epoch {}", numbers.epoch)));
    }
    if let Some(repair) = &member.repair {
        rows.push(("repair", repair_line(repair, |id| name_of(cluster, id))));
    }
    lines(&rows)
}

fn shares(cluster: &Cluster, ring: &Ring, colours: Colours) -> String {
    let mut owned: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for owners in &ring.partitions {
        for (place, owner) in owners.iter().enumerate() {
            let (all, first) = owned.entry(*owner).or_default();
            *all += 1;
            *first += u64::from(place == 0);
        }
    }
    let copies: u64 = owned.values().map(|(all, _)| all).sum();
    let rows: Vec<Vec<String>> = owned
        .iter()
        .map(|(id, (all, first))| {
            let member = cluster.members.iter().find(|member| member.id == *id);
            let name = member.map_or_else(|| "gone".to_owned(), |member| member.name.clone());
            vec![
                id.to_string(),
                name,
                or_dash(member.map_or("", |member| &member.zone)),
                member.map_or_else(|| "-".to_owned(), |member| member.weight.to_string()),
                count(*all),
                count(*first),
                format!("{:.1} %", *all as f64 * 100.0 / copies.max(1) as f64),
            ]
        })
        .collect();
    let heads = ["ID", "NODE", "ZONE", "WEIGHT", "PARTITIONS", "AS FIRST", "SHARE"];
    let right = [true, false, false, true, true, true, true];
    let partitions = ring.partitions.len();
    format!(
        "epoch {}: {} partitions, {} copies of each\n\n{}",
        ring.epoch,
        count(partitions as u64),
        copies.checked_div(partitions as u64).unwrap_or(0),
        table(&heads, &right, &rows, colours)
    )
}

fn raft_status(cluster: &Cluster) -> String {
    let raft = &cluster.raft;
    let name = |id: &u64| {
        let member = cluster.members.iter().find(|member| member.id == *id);
        member.map_or_else(|| id.to_string(), |member| member.name.clone())
    };
    let names = |ids: &[u64]| or_dash(&ids.iter().map(name).collect::<Vec<_>>().join(", "));
    let of_log = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    lines(&[
        ("asked", format!("{} ({})", name(&cluster.node_id), raft.role)),
        ("leader", raft.leader.as_ref().map_or_else(|| "nobody".to_owned(), name)),
        ("term", of_log(raft.term)),
        ("voters", names(&raft.voters)),
        ("learners", names(&raft.learners)),
        ("last entry", of_log(raft.last_log)),
        ("committed", of_log(raft.committed)),
        ("applied", raft.applied.to_string()),
        ("snapshot", of_log(raft.snapshot)),
    ])
}

fn name_of(cluster: &Cluster, id: u64) -> Option<&str> {
    cluster.members.iter().find(|member| member.id == id).map(|member| member.name.as_str())
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn lines(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        let _infallible = writeln!(text, "{name:width$}  {value}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::reference::assert_same;

    #[test]
    fn tables_are_for_eyes() {
        let mut cluster = Cluster::sample();
        cluster.members[1].repair = Some(cluster.repair.clone());
        let ring = Ring { epoch: 4, copies: 2, partitions: vec![vec![1, 2], vec![2, 3], vec![3, 9]] };
        let shown = [
            list(&cluster, Colours::NONE),
            show(&cluster, find(&cluster, "node-2").unwrap()),
            show(&cluster, find(&cluster, "node-3").unwrap()),
            shares(&cluster, &ring, Colours::NONE),
            raft_status(&cluster),
        ];
        assert_same("node/src/cli/snapshots/cluster.txt", &shown.join("\n"));
    }

    #[test]
    fn a_node_without_the_log_has_no_entries_of_it() {
        let mut cluster = Cluster::sample();
        let raft = &mut cluster.raft;
        (raft.role, raft.term, raft.last_log, raft.committed, raft.snapshot) =
            ("watcher".to_owned(), None, None, None, None);
        let shown = raft_status(&cluster);
        let value = |name: &str| {
            let line = shown.lines().find(|line| line.starts_with(name)).unwrap();
            line.strip_prefix(name).unwrap().trim().to_owned()
        };
        assert_eq!(value("asked"), "node-1 (watcher)");
        assert_eq!(["term", "last entry", "committed", "snapshot"].map(value), ["-"; 4]);
        assert_eq!((value("leader"), value("applied")), ("node-2".to_owned(), "1198".to_owned()));
    }

    #[test]
    fn a_node_is_found_by_name_and_by_id_and_an_unknown_one_is_told() {
        let cluster = Cluster::sample();
        assert_eq!(find(&cluster, "2").unwrap().name, "node-2");
        let told = |node| find(&cluster, node).unwrap_err().render(Colours::NONE);
        assert_eq!(told("x"), "error: the cluster has no node \"x\"\nhint: its nodes are node-1, node-2, node-3\n");
        assert!(told("nod-2").ends_with("hint: did you mean \"node-2\"? its nodes are node-1, node-2, node-3\n"));
    }
}
