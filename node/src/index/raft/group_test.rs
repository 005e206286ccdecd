//! Groups of one and of several nodes: what they agree on, and what they survive.

use std::time::{Duration, Instant};

use casbah_cluster::asset::Moment;
use casbah_cluster::consensus::{COMMAND_BYTES_MAX, Command, LogId};
use casbah_cluster::membership::NodeId;
use tokio::time::timeout;

use super::error::GroupError;
use super::group::Timing;
use super::status::Role;
use super::testing::{DEADLINE, Nodes, cluster, get, put, stale, timing};

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);
const THREE: NodeId = NodeId(3);
const FOUR: NodeId = NodeId(4);

/// Elections that nobody would wait for.
fn patient() -> Timing {
    Timing {
        heartbeat: Duration::from_secs(10),
        election_min: Duration::from_secs(100),
        election_max: Duration::from_secs(200),
        ..timing()
    }
}

fn others(leader: NodeId) -> Vec<NodeId> {
    [ONE, TWO, THREE].into_iter().filter(|node| *node != leader).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_alone_leads_at_once_and_again_after_each_restart() {
    let mut nodes = Nodes::new(0, patient());
    let group = nodes.start(ONE).await;
    assert!(group.state().borrow().is_none());
    group.form(cluster()).await.unwrap();
    assert_eq!(group.state().borrow().as_deref(), Some(&cluster()));
    put(&group, "a", "1").await.unwrap();
    drop(group);
    nodes.kill(ONE).await;
    let group = nodes.start(ONE).await;
    assert_eq!(get(&group, "a").await.unwrap().as_deref(), Some("1"));
    put(&group, "a", "2").await.unwrap();
    drop(group);
    nodes.stop(ONE).await;
    let group = nodes.start(ONE).await;
    assert_eq!(get(&group, "a").await.unwrap().as_deref(), Some("2"));
    assert_eq!(group.state().borrow().as_deref(), Some(&cluster()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forming_twice_changes_nothing() {
    let mut nodes = Nodes::new(0, patient());
    let group = nodes.start(ONE).await;
    group.form(cluster()).await.unwrap();
    let mut other = cluster();
    other.name = "another".into();
    group.form(other).await.unwrap();
    assert_eq!(group.state().borrow().as_deref(), Some(&cluster()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_in_no_cluster_says_that_nobody_leads() {
    let short = Timing { leader_wait: Duration::from_millis(50), ..timing() };
    let mut nodes = Nodes::new(0, short);
    let group = nodes.start(ONE).await;
    assert!(matches!(put(&group, "a", "1").await, Err(GroupError::NoLeader)));
    assert!(matches!(get(&group, "a").await, Err(GroupError::NoLeader)));
    assert_eq!(stale(&group, "a"), None);
    assert_eq!(group.status().role, Role::Learner);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_put_through_one_node_is_read_through_every_other() {
    let nodes = Nodes::formed(3, 0, timing()).await;
    for writer in [ONE, TWO, THREE] {
        put(&nodes.get(writer), "a", &writer.to_string()).await.unwrap();
        for reader in [ONE, TWO, THREE] {
            let found = get(&nodes.get(reader), "a").await.unwrap();
            assert_eq!(found, Some(writer.to_string()), "put through {writer}, read through {reader}");
        }
    }
    let status = nodes.get(nodes.leader(&[ONE, TWO, THREE]).await).status();
    assert_eq!(status.voters, [ONE, TWO, THREE].into());
    assert_eq!(status.behind.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_through_all_nodes_are_all_done() {
    let nodes = Nodes::formed(3, 0, timing()).await;
    let puts = (0..1_500_u64).map(|number| {
        let group = nodes.get(NodeId(number % 3 + 1));
        async move { put(&group, &format!("{number}"), &format!("{number}")).await }
    });
    for outcome in futures_util::future::join_all(puts).await {
        outcome.unwrap();
    }
    for node in [ONE, TWO, THREE] {
        nodes.get(node).linearizable().await.unwrap();
        assert_eq!(nodes.get(node).counts().records, Some(1_500));
    }
    let entries = nodes.get(ONE).status().last_log.unwrap();
    assert!(entries < 1_000, "1500 puts made {entries} entries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_is_replaced_and_follows_when_it_is_back() {
    let nodes = Nodes::formed(3, 0, timing()).await;
    put(&nodes.get(ONE), "a", "1").await.unwrap();
    let old = nodes.leader(&[ONE, TWO, THREE]).await;
    nodes.wires.isolate(&[old]);
    let rest = others(old);
    let began = Instant::now();
    // The first one may have been on its way to the one that is cut off.
    let again = async { while put(&nodes.get(rest[0]), "a", "2").await.is_err() {} };
    timeout(DEADLINE, again).await.expect("nobody else has taken the lead");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(get(&nodes.get(rest[1]), "a").await.unwrap().as_deref(), Some("2"));
    // It may think that it leads, and is not sure enough of it to answer.
    let cut_off = get(&nodes.get(old), "a").await;
    assert!(matches!(cut_off, Err(GroupError::NoLeader)), "{cut_off:?}");
    assert_eq!(stale(&nodes.get(old), "a").as_deref(), Some("1"));
    let push = put(&nodes.get(old), "a", "of the one cut off").await;
    assert!(matches!(push, Err(GroupError::Unknown | GroupError::NoLeader)), "{push:?}");
    nodes.wires.heal();
    nodes.until_as_far(old, rest[0]).await;
    for node in [ONE, TWO, THREE] {
        let again = timeout(DEADLINE, async { while nodes.get(node).linearizable().await.is_err() {} });
        again.await.expect("reads did not come back");
        assert_eq!(stale(&nodes.get(node), "a").as_deref(), Some("2"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_waited_for_once_and_then_told_at_once() {
    let nodes = Nodes::formed(3, 0, timing()).await;
    let leader = nodes.leader(&[ONE, TWO, THREE]).await;
    let alone = others(leader)[0];
    nodes.wires.isolate(&[alone]);
    let group = nodes.get(alone);
    assert!(matches!(group.linearizable().await, Err(GroupError::NoLeader)));
    let began = Instant::now();
    for _ in 0..100 {
        assert!(matches!(group.linearizable().await, Err(GroupError::NoLeader)));
    }
    assert!(began.elapsed() < timing().leader_wait, "{:?}", began.elapsed());
    nodes.wires.heal();
    let back = timeout(DEADLINE, async { while group.linearizable().await.is_err() {} });
    back.await.expect("reads did not come back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_all_at_once_they_have_all_that_was_acknowledged() {
    let mut nodes = Nodes::formed(3, 0, timing()).await;
    for number in 0..50 {
        put(&nodes.get(NodeId(number % 3 + 1)), &format!("{number}"), "1").await.unwrap();
    }
    for node in [ONE, TWO, THREE] {
        nodes.kill(node).await;
    }
    for node in [ONE, TWO, THREE] {
        nodes.start(node).await;
    }
    for node in [ONE, TWO, THREE] {
        nodes.get(node).linearizable().await.unwrap();
        for number in 0..50 {
            assert!(stale(&nodes.get(node), &format!("{number}")).is_some(), "node {node} lacks {number}");
        }
        assert_eq!(nodes.get(node).state().borrow().as_deref(), Some(&cluster()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_when_the_log_was_cut_gets_a_snapshot() {
    let mut nodes = Nodes::formed(3, 0, timing()).await;
    for number in 0..100 {
        put(&nodes.get(ONE), &format!("{number}"), &"x".repeat(10_000)).await.unwrap();
    }
    let leader = nodes.get(nodes.leader(&[ONE, TWO, THREE]).await);
    cut_log(&leader).await;
    // A follower loses its disk: it is a new node, under a new number.
    let lost = others(leader.node())[0];
    nodes.kill(lost).await;
    nodes.wipe(lost);
    nodes.start(FOUR).await;
    leader.add_learner(FOUR).await.unwrap();
    nodes.until_as_far(FOUR, leader.node()).await;
    let rest: Vec<NodeId> = others(lost).into_iter().chain([FOUR]).collect();
    leader.change_voters(&rest.iter().copied().collect()).await.unwrap();
    leader.remove_learner(lost).await.unwrap();
    let fourth = nodes.get(FOUR);
    assert!(get(&fourth, "99").await.unwrap().is_some());
    assert_eq!(fourth.state().borrow().as_deref(), Some(&cluster()));
    assert!(fourth.status().purged >= Some(100), "it had the entries one by one");
    assert_eq!(leader.status().voters, rest.into_iter().collect());
    assert_eq!(leader.status().learners, [].into());
    // What it was given is on its disk.
    drop(fourth);
    nodes.kill(FOUR).await;
    let fourth = nodes.start(FOUR).await;
    assert!(stale(&fourth, "99").is_some());
    put(&fourth, "100", "1").await.unwrap();
    assert!(get(&leader, "100").await.unwrap().is_some());
}

/// Cuts the log to nothing.
async fn cut_log(group: &super::Group) {
    let raft = &group.inner.core.raft;
    let last = group.status().applied;
    let reached = |id: Option<LogId>| id.map(|id| id.index()) >= last;
    raft.trigger().snapshot().await.unwrap();
    let waited = raft.wait(Some(DEADLINE));
    waited.metrics(|metrics| reached(metrics.snapshot), "a snapshot").await.unwrap();
    raft.trigger().purge_log(last.unwrap()).await.unwrap();
    waited.metrics(|metrics| reached(metrics.purged), "a log that is cut").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_log_is_cut_by_itself_and_everything_is_there_after_a_kill() {
    let short = Timing { log_bytes: 1 << 20, ..timing() };
    let mut nodes = Nodes::new(0, short);
    let group = nodes.start(ONE).await;
    group.form(cluster()).await.unwrap();
    let value = "x".repeat(4_000);
    let mut number = 0;
    while group.status().purged.is_none() {
        put(&group, &format!("{number}"), &value).await.unwrap();
        number += 1;
        assert!(number < 20_000, "the log is not cut");
    }
    drop(group);
    nodes.kill(ONE).await;
    let group = nodes.start(ONE).await;
    group.linearizable().await.unwrap();
    assert_eq!(group.counts().records, Some(number));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lead_is_handed_over_without_waiting_for_an_election() {
    let nodes = Nodes::formed(3, 0, timing()).await;
    let old = nodes.leader(&[ONE, TWO, THREE]).await;
    let term = nodes.get(old).status().term;
    nodes.get(old).transfer_leadership().await.unwrap();
    let new = nodes.leader(&others(old)).await;
    put(&nodes.get(old), "a", "1").await.unwrap();
    assert_eq!(nodes.get(new).status().term, term + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_stopped_one_after_the_other_keep_the_group_going() {
    let mut nodes = Nodes::formed(3, 0, timing()).await;
    for node in [ONE, TWO, THREE] {
        nodes.stop(node).await;
        let other = nodes.get(nodes.running()[0]);
        put(&other, &node.to_string(), "1").await.unwrap();
        nodes.start(node).await;
    }
    for node in [ONE, TWO, THREE] {
        assert!(get(&nodes.get(node), "3").await.unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_are_changed_by_the_leader_and_only_to_those_who_keep_up() {
    let mut nodes = Nodes::formed(3, 0, timing()).await;
    let leader = nodes.get(nodes.leader(&[ONE, TWO, THREE]).await);
    let follower = nodes.get(others(leader.node())[0]);
    let all = [ONE, TWO, THREE, FOUR].into();
    assert!(matches!(leader.change_voters(&all).await, Err(GroupError::Voters { .. })), "it is not in the group");
    assert!(matches!(leader.change_voters(&[].into()).await, Err(GroupError::Voters { .. })));
    assert!(matches!(follower.change_voters(&all).await, Err(GroupError::NotLeader { .. })));
    assert!(matches!(follower.add_learner(FOUR).await, Err(GroupError::NotLeader { .. })));
    assert!(matches!(leader.remove_learner(follower.node()).await, Err(GroupError::Voters { .. })), "it votes");
    nodes.start(FOUR).await;
    leader.add_learner(FOUR).await.unwrap();
    leader.add_learner(FOUR).await.unwrap();
    nodes.until_as_far(FOUR, leader.node()).await;
    leader.change_voters(&all).await.unwrap();
    leader.change_voters(&[leader.node(), FOUR].into()).await.unwrap();
    let status = leader.status();
    assert_eq!((status.voters.len(), status.learners.len()), (2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_ended_is_removed_by_the_leader_everywhere() {
    let nodes = Nodes::formed(3, 0, timing()).await;
    let ended = Some(Moment(crate::index::now().0 - 1));
    for command in Command::put_assets(vec![b"a".to_vec(), b"b".to_vec()], b"1", ended) {
        nodes.get(TWO).propose(command).await.unwrap();
    }
    put(&nodes.get(TWO), "c", "1").await.unwrap();
    for node in [ONE, TWO, THREE] {
        let group = nodes.get(node);
        let mut applied = group.inner.core.state.applied();
        let gone = applied.wait_for(|_| group.counts().records == Some(1));
        timeout(DEADLINE, gone).await.expect("what has ended was not removed").unwrap();
        assert_eq!(group.counts().expired, 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_too_large_is_refused_before_it_goes_anywhere() {
    let mut nodes = Nodes::new(0, patient());
    let group = nodes.start(ONE).await;
    group.form(cluster()).await.unwrap();
    let last = group.status().last_log;
    let command = Command::TouchAssets { keys: vec![vec![0; COMMAND_BYTES_MAX]] };
    assert!(matches!(group.propose(command).await, Err(GroupError::TooLarge { .. })));
    assert_eq!(group.status().last_log, last);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_group_says_so() {
    let mut nodes = Nodes::new(0, patient());
    let group = nodes.start(ONE).await;
    group.form(cluster()).await.unwrap();
    nodes.stop(ONE).await;
    assert!(matches!(put(&group, "a", "1").await, Err(GroupError::Closed)));
    assert!(matches!(get(&group, "a").await, Err(GroupError::Closed)));
    assert_eq!(group.status().role, Role::Stopped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payloads_that_cannot_be_read_are_refused_and_harm_nothing() {
    use super::network::RaftCall;
    let mut nodes = Nodes::new(0, patient());
    let group = nodes.start(ONE).await;
    group.form(cluster()).await.unwrap();
    for call in [RaftCall::Append, RaftCall::Vote, RaftCall::TransferLeader, RaftCall::Propose] {
        let answer = group.answer(call, bytes::Bytes::from_static(b"\x01nonsense")).await;
        assert!(matches!(answer, Err(GroupError::Record(_))), "{call:?}");
    }
    let data = futures_util::stream::iter([Ok::<_, std::io::Error>(bytes::Bytes::from_static(b"nonsense"))]);
    assert!(group.answer_snapshot(bytes::Bytes::from_static(b"\x01"), data).await.is_err());
    put(&group, "a", "1").await.unwrap();
}
