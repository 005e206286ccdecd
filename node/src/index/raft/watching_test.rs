//! Nodes without the log: what they are told, whom they ask, and how they get it and lose it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use casbah_cluster::asset::{AssetKey, AssetKind, AssetRecord};
use casbah_cluster::consensus::{Command, MemberCommand};
use casbah_cluster::digest::{Digest, DigestFunction};
use casbah_cluster::membership::{ClusterId, ClusterState, Joiner, NodeId, Part, Protocols, VolumeId};
use tokio::time::timeout;

use super::Group;
use super::error::GroupError;
use super::status::Role;
use super::testing::{DEADLINE, Nodes, get, put, timing};
use crate::index::{AssetIndex, IndexError, now};

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);
const THREE: NodeId = NodeId(3);
const FOUR: NodeId = NodeId(4);
const FIVE: NodeId = NodeId(5);

fn joiner(node: NodeId) -> Joiner {
    Joiner {
        name: format!("node-{node}"),
        address: format!("node-{node}:7980"),
        volume: VolumeId([u8::try_from(node.0).unwrap(); 16]),
        zone: String::new(),
        weight: 100,
        protocols: Protocols::SPOKEN,
    }
}

/// On a machine that is busy with other things, the lead may change under any of these: they are tried again.
async fn change(group: &Group, command: MemberCommand) {
    at_last(|| group.propose(Command::Member(command.clone()))).await;
}

async fn admit(group: &Group, node: NodeId) {
    change(group, MemberCommand::Admit { joiner: joiner(node), replaces: None }).await;
}

async fn record(group: &Group, node: NodeId, part: Part) {
    change(group, MemberCommand::SetPart { node, part }).await;
}

async fn pushed(group: &Group, value: &str) {
    at_last(|| put(group, "a", value)).await;
}

async fn fetched(group: &Group) -> Option<String> {
    at_last(|| get(group, "a")).await
}

/// Whether a state has the node that was admitted by this number.
fn has(state: &ClusterState, node: u64) -> bool {
    state.by_name(&format!("node-{node}")).is_some()
}

/// Three voters, and so many others that run and have heard of the cluster.
async fn with_watchers(count: u64) -> Nodes {
    let mut nodes = Nodes::new(0, timing());
    let first = nodes.start(ONE).await;
    let state = ClusterState::formed(ClusterId([7; 16]), "test".into(), (2, 2), 1, joiner(ONE));
    first.form(state).await.unwrap();
    for node in (2..=3 + count).map(NodeId) {
        admit(&first, node).await;
        let group = nodes.start(node).await;
        if node <= THREE {
            first.add_learner(node).await.unwrap();
            nodes.until_as_far(node, ONE).await;
        } else {
            let (position, state) = first.known().unwrap();
            group.heard(position, &state.encode().unwrap()).await.unwrap();
        }
    }
    first.change_voters(&BTreeSet::from([ONE, TWO, THREE])).await.unwrap();
    for node in [TWO, THREE] {
        record(&first, node, Part::Voter).await;
    }
    for node in [TWO, THREE] {
        until_it_has(&nodes.get(node), true).await;
    }
    nodes
}

/// Waits until this node knows of a state like that.
async fn until(group: &Group, is_so: impl Fn(&ClusterState) -> bool) {
    let mut states = group.state();
    let reached = states.wait_for(|state| state.as_ref().is_some_and(|state| is_so(state)));
    timeout(DEADLINE, reached).await.expect("a node was not told in time").unwrap();
}

async fn until_it_has(group: &Group, has_log: bool) {
    let waited = async {
        while group.has_log() != has_log {
            // why: nobody is told of it.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, waited).await.expect("a node does not get or lose the log in time");
}

/// What one who tries again gets in the end.
async fn at_last<T, E, F: Future<Output = Result<T, E>>>(attempt: impl Fn() -> F) -> T {
    let again = async {
        loop {
            if let Ok(done) = attempt().await {
                return done;
            }
            // why: whoever was refused comes back a little later.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, again).await.expect("it did not work in time")
}

/// A state that is told, with this name.
fn named(name: &str) -> Vec<u8> {
    let state = ClusterState::formed(ClusterId([7; 16]), name.into(), (2, 2), 1, joiner(ONE));
    state.encode().unwrap()
}

fn name_known(group: &Group) -> (u64, String) {
    let (position, state) = group.known().unwrap();
    (position, state.name.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_states_the_later_one_is_known_and_still_so_after_a_restart() {
    let mut nodes = Nodes::new(0, timing());
    let group = nodes.start(NodeId(9)).await;
    for (position, name, known) in [(5, "a", "a"), (5, "b", "a"), (4, "c", "a"), (6, "d", "d"), (0, "e", "d")] {
        group.heard(position, &named(name)).await.unwrap();
        assert_eq!(name_known(&group).1, known);
    }
    let nonsense = group.heard(7, b"nonsense").await;
    assert!(matches!(nonsense, Err(GroupError::Record(_))), "{nonsense:?}");
    assert_eq!(name_known(&group), (6, "d".into()));
    drop(group);
    nodes.kill(NodeId(9)).await;
    assert_eq!(name_known(&nodes.start(NodeId(9)).await), (6, "d".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_is_told_of_every_change_and_pushes_and_fetches_through_those_with_the_log() {
    let nodes = with_watchers(2).await;
    let (four, five) = (nodes.get(FOUR), nodes.get(FIVE));
    assert!(!four.has_log() && !five.has_log());
    assert_eq!(four.status().role, Role::Watcher);
    until(&four, |state| state.members.contains_key(&FIVE)).await;
    pushed(&four, "1").await;
    assert_eq!(fetched(&five).await.as_deref(), Some("1"));
    assert_eq!(fetched(&nodes.get(TWO)).await.as_deref(), Some("1"));
    pushed(&nodes.get(THREE), "2").await;
    assert_eq!(fetched(&four).await.as_deref(), Some("2"));
    assert_eq!(at_last(|| get(&four, "b")).await, None);
    // What one of them changes, all hear of.
    admit(&five, NodeId(6)).await;
    for group in [&four, &five, &nodes.get(TWO)] {
        until(group, |state| has(state, 6)).await;
    }
    until(&four, |state| state.members[&THREE].part == Part::Voter).await;
    assert_eq!(four.status().voters, [ONE, TWO, THREE].into());
    assert_eq!(four.counts().records, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_knows_at_once_what_it_asks_for() {
    let nodes = with_watchers(1).await;
    let four = nodes.get(FOUR);
    for node in 10..30 {
        admit(&nodes.get(TWO), NodeId(node)).await;
        at_last(|| four.linearizable()).await;
        let members = four.known().unwrap().1.members.len();
        assert_eq!(members as u64, node - 5, "after the {node}th");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_forwards_for_a_watcher_what_he_would_have_to_forward() {
    let nodes = with_watchers(1).await;
    let refused = nodes.get(FOUR).watch().err();
    assert!(matches!(refused, Some(GroupError::NoLog)), "{refused:?}");
    let call = casbah_cluster::consensus::ReadCall::of([&b"a"[..]], false).encode().unwrap();
    let answer = nodes.get(FOUR).answer(super::RaftCall::Read, call.into()).await.unwrap();
    let answer = casbah_cluster::consensus::ReadAnswer::decode(&answer).unwrap();
    assert_eq!(answer, casbah_cluster::consensus::ReadAnswer::NoLog);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_goes_on_when_the_leader_is_killed_and_when_the_one_that_it_follows_is() {
    let mut nodes = with_watchers(2).await;
    let (four, five) = (nodes.get(FOUR), nodes.get(FIVE));
    pushed(&four, "1").await;
    until(&four, |state| state.members.contains_key(&FIVE)).await;
    let leader = nodes.leader(&[ONE, TWO, THREE]).await;
    nodes.kill(leader).await;
    pushed(&four, "2").await;
    assert_eq!(fetched(&five).await.as_deref(), Some("2"));
    nodes.start(leader).await;
    // Now each of those that are followed.
    for watcher in [&four, &five] {
        let followed = nodes.wires.watched_by(watcher.node()).unwrap();
        if !nodes.running().contains(&followed) {
            continue;
        }
        nodes.kill(followed).await;
        pushed(watcher, "3").await;
        assert_eq!(fetched(watcher).await.as_deref(), Some("3"));
        nodes.start(followed).await;
    }
    let other = nodes.running().into_iter().find(|node| *node <= THREE).unwrap();
    let group = nodes.get(other);
    change(&group, MemberCommand::Remove { node: FIVE, force: true }).await;
    until(&four, |state| !state.members.contains_key(&FIVE)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_leaves_a_node_that_is_cut_off_from_the_leader_for_another_one() {
    let nodes = with_watchers(1).await;
    let four = nodes.get(FOUR);
    until(&four, |state| state.members.contains_key(&FOUR)).await;
    pushed(&four, "1").await;
    let followed = followed_by(&nodes, FOUR).await;
    // The watcher still reaches it: it is told what is old, and that it may be.
    let rest: Vec<NodeId> = [ONE, TWO, THREE].into_iter().filter(|node| *node != followed).collect();
    nodes.wires.cut_between(&[followed], &rest);
    pushed(&nodes.get(rest[0]), "2").await;
    assert_eq!(fetched(&four).await.as_deref(), Some("2"));
    admit(&nodes.get(rest[0]), NodeId(6)).await;
    until(&four, |state| has(state, 6)).await;
}

/// Whom this node watches, once it does.
async fn followed_by(nodes: &Nodes, node: NodeId) -> NodeId {
    let waited = async {
        loop {
            if let Some(followed) = nodes.wires.watched_by(node) {
                return followed;
            }
            // why: nobody is told of it.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, waited).await.expect("a node follows nobody")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_cut_is_taken_for_broken() {
    let nodes = with_watchers(1).await;
    let four = nodes.get(FOUR);
    pushed(&four, "1").await;
    let followed = followed_by(&nodes, FOUR).await;
    // Only the leader writes, and it is to be reached.
    while nodes.leader(&[ONE, TWO, THREE]).await == followed {
        drop(nodes.get(followed).transfer_leadership().await);
    }
    nodes.wires.cut_between(&[FOUR], &[followed]);
    admit(&nodes.get(ONE), NodeId(6)).await;
    until(&four, |state| has(state, 6)).await;
    assert_ne!(nodes.wires.watched_by(FOUR), Some(followed));
    pushed(&four, "2").await;
    assert_eq!(fetched(&four).await.as_deref(), Some("2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_does_not_reach_the_leader_fetches_by_others_and_pushes_nothing() {
    let nodes = with_watchers(1).await;
    let four = nodes.get(FOUR);
    pushed(&four, "1").await;
    let leader = nodes.leader(&[ONE, TWO, THREE]).await;
    nodes.wires.cut_between(&[FOUR], &[leader]);
    pushed(&nodes.get(leader), "2").await;
    assert_eq!(fetched(&four).await.as_deref(), Some("2"));
    // Nobody hands on what was handed to him.
    let push = put(&four, "a", "3").await;
    let has_moved = nodes.leader(&[ONE, TWO, THREE]).await != leader;
    assert!(has_moved || matches!(push, Err(GroupError::NoLeader | GroupError::Unknown)), "{push:?}");
    nodes.wires.heal();
    pushed(&four, "4").await;
    assert_eq!(fetched(&nodes.get(TWO)).await.as_deref(), Some("4"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_is_started_again_knows_what_it_knew_and_hears_of_the_rest() {
    let mut nodes = with_watchers(1).await;
    until(&nodes.get(FOUR), |state| state.members[&THREE].part == Part::Voter).await;
    pushed(&nodes.get(FOUR), "1").await;
    nodes.kill(FOUR).await;
    admit(&nodes.get(ONE), NodeId(6)).await;
    nodes.wires.cut_between(&[ONE, TWO, THREE], &[FOUR]);
    let four = nodes.start(FOUR).await;
    let (_, known) = four.known().unwrap();
    assert_eq!(known.members[&THREE].part, Part::Voter);
    assert!(!has(&known, 6));
    nodes.wires.heal();
    until(&four, |state| has(state, 6)).await;
    assert_eq!(fetched(&four).await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_becomes_a_learner_and_a_voter_and_a_watcher_again_and_loses_nothing() {
    let nodes = with_watchers(1).await;
    let four = nodes.get(FOUR);
    pushed(&four, "1").await;
    let one = nodes.get(ONE);
    let all = [ONE, TWO, THREE, FOUR];
    let leader = || async { nodes.get(nodes.leader(&all).await) };
    at_last(|| async { leader().await.add_learner(FOUR).await }).await;
    record(&one, FOUR, Part::Learner).await;
    until_it_has(&four, true).await;
    assert_eq!(four.status().role, Role::Learner);
    assert_eq!(fetched(&four).await.as_deref(), Some("1"));
    pushed(&four, "2").await;
    at_last(|| async { leader().await.change_voters(&BTreeSet::from(all)).await }).await;
    record(&one, FOUR, Part::Voter).await;
    pushed(&four, "3").await;
    let (strict, lenient) = (AssetIndex::new(four.clone(), false), AssetIndex::new(four.clone(), true));
    at_last(|| async { strict.push(&[key("x")], &asset("1")).await }).await;
    // And back.
    at_last(|| async { leader().await.change_voters(&BTreeSet::from([ONE, TWO, THREE])).await }).await;
    at_last(|| async { leader().await.remove_learner(FOUR).await }).await;
    record(&one, FOUR, Part::Watcher).await;
    pushed(&nodes.get(TWO), "4").await;
    let pushing = AssetIndex::new(nodes.get(TWO), false);
    at_last(|| async { pushing.push(&[key("x")], &asset("2")).await }).await;
    assert_eq!(at_last(|| fetch(&lenient, "x")).await.unwrap().target, asset("2").target);
    // The log does not tell it; it finds out, and until then says nothing that is old.
    assert_eq!(fetched(&four).await.as_deref(), Some("4"));
    until_it_has(&four, false).await;
    until(&four, |state| state.members[&FOUR].part == Part::Watcher).await;
    at_last(|| put(&four, "b", "5")).await;
    assert_eq!(at_last(|| get(&four, "b")).await.as_deref(), Some("5"));
    // Once more: the log that it had is behind.
    at_last(|| async { leader().await.add_learner(FOUR).await }).await;
    record(&one, FOUR, Part::Learner).await;
    until_it_has(&four, true).await;
    assert_eq!(at_last(|| get(&four, "b")).await.as_deref(), Some("5"));
}

fn key(uri: &str) -> AssetKey {
    AssetKey::new("", AssetKind::Blob, uri, []).unwrap()
}

fn asset(text: &str) -> AssetRecord {
    AssetRecord {
        target: Digest::of(DigestFunction::Sha256, text.as_bytes()),
        referenced_blobs: Vec::new(),
        referenced_directories: Vec::new(),
        pushed_at: now(),
        expires_at: None,
    }
}

async fn fetch(index: &AssetIndex, uri: &str) -> Result<Option<AssetRecord>, IndexError> {
    index.view(&[key(uri)]).await?.get(0).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_leader_a_watcher_fetches_what_others_know_if_that_is_allowed_and_pushes_nothing() {
    let nodes = with_watchers(1).await;
    let (lenient, strict) = (AssetIndex::new(nodes.get(FOUR), true), AssetIndex::new(nodes.get(FOUR), false));
    at_last(|| async { lenient.push(&[key("a")], &asset("1")).await }).await;
    let leader = nodes.leader(&[ONE, TWO, THREE]).await;
    for node in [ONE, TWO, THREE] {
        nodes.until_as_far(node, leader).await;
    }
    nodes.wires.cut_between(&[ONE], &[TWO, THREE]);
    nodes.wires.cut_between(&[TWO], &[THREE]);
    assert_eq!(fetch(&lenient, "a").await.unwrap().unwrap().target, asset("1").target);
    let unknown = fetch(&strict, "a").await;
    assert!(matches!(unknown, Err(IndexError::Group(GroupError::NoLeader))), "{unknown:?}");
    // Such an outage is waited for once.
    let began = Instant::now();
    for _ in 0..20 {
        assert!(fetch(&lenient, "a").await.unwrap().is_some());
    }
    assert!(began.elapsed() < timing().leader_wait, "{:?}", began.elapsed());
    let push = lenient.push(&[key("a")], &asset("2")).await;
    assert!(matches!(push, Err(IndexError::Group(GroupError::NoLeader | GroupError::Unknown))), "{push:?}");
    // Nor does one that reaches nobody know anything.
    nodes.wires.isolate(&[FOUR]);
    let unknown = fetch(&lenient, "a").await;
    assert!(matches!(unknown, Err(IndexError::Group(GroupError::NoLeader))), "{unknown:?}");
    nodes.wires.heal();
    at_last(|| async { lenient.push(&[key("a")], &asset("3")).await }).await;
    assert_eq!(at_last(|| fetch(&strict, "a")).await.unwrap().target, asset("3").target);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_asset_under_many_long_names_is_fetched_under_each_through_a_watcher() {
    let nodes = with_watchers(1).await;
    let index = AssetIndex::new(nodes.get(FOUR), false);
    let mut pushed = asset("a");
    pushed.referenced_blobs =
        (0..10_000).map(|at| Digest::of(DigestFunction::Sha256, format!("{at}").as_bytes())).collect();
    let uris: Vec<String> = (0..300).map(|number| format!("https://{number}.test/{}", "x".repeat(5_000))).collect();
    let keys: Vec<AssetKey> = uris.iter().map(|uri| key(uri)).collect();
    let some: Vec<AssetKey> = keys.iter().step_by(50).cloned().collect();
    at_last(|| index.push(&some, &pushed)).await;
    let mut view = index.view(&keys).await.unwrap();
    for at in 0..keys.len() {
        let found = view.get(at).await.unwrap();
        assert_eq!(found.is_some(), at % 50 == 0, "the {at}th");
        assert!(found.is_none_or(|found| found == pushed));
    }
    index.used(&keys[0]);
    index.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_when_the_node_that_is_followed_stops() {
    use futures_util::StreamExt as _;
    let nodes = with_watchers(0).await;
    let mut parts = nodes.get(TWO).watch().unwrap();
    let first = parts.next().await.unwrap();
    assert_eq!(ClusterState::decode(&first.state.unwrap()).unwrap().members.len(), 3);
    let confirmed = async { while !parts.next().await.unwrap().is_current {} };
    timeout(DEADLINE, confirmed).await.expect("no sign of life says that the node is not cut off");
    nodes.get(TWO).close().await;
    let ended = async { while parts.next().await.is_some() {} };
    timeout(DEADLINE, ended).await.expect("the stream goes on");
}
