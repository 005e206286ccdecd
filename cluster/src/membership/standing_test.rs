//! Members that leave, are lost, return, and wait; and what holds whatever is done to a cluster.

use rand::RngExt as _;
use rand::rngs::SmallRng;

use super::change::{LAYOUTS_MAX, Refusal};
use super::change_test::{formed, joiner, layouts, three};
use super::ids::{Epoch, NodeId};
use super::introduction::Joiner;
use super::state::{ClusterState, Rebalance, Standing};
use crate::consensus::{MemberCommand, MemberReply, apply_member};
use crate::testing::{random, seed};

/// Formed of three, where changes wait to be applied.
fn three_on_apply() -> ClusterState {
    ClusterState { rebalance: Rebalance::OnApply, ..three() }
}

/// All that are not lost report to have what the newest layout gives them.
fn sync(state: &mut ClusterState) {
    let newest = state.layouts.last().unwrap().epoch;
    let there = state.members.iter().filter(|(_, member)| member.standing != Standing::Lost);
    let nodes: Vec<NodeId> = there.map(|(id, _)| *id).collect();
    for node in nodes {
        state.synced(node, newest).unwrap();
    }
}

fn standing(state: &ClusterState, node: u64) -> Standing {
    state.members[&NodeId(node)].standing
}

#[test]
fn a_node_that_drains_is_in_no_further_layout_and_may_go_when_the_old_ones_are_retired() {
    let mut state = three();
    state.drain(NodeId(2)).unwrap();
    assert_eq!(layouts(&state), [(1, vec![1, 2, 3]), (2, vec![1, 3])]);
    assert_eq!(state.remove(NodeId(2), false), Err(Refusal::HoldsBlobs { node: NodeId(2) }));
    for node in [1, 3] {
        state.synced(NodeId(node), Epoch(2)).unwrap();
    }
    assert_eq!(layouts(&state).len(), 2, "it decides too, and is waited for");
    state.synced(NodeId(2), Epoch(2)).unwrap();
    assert_eq!(layouts(&state), [(2, vec![1, 3])]);
    assert_eq!(state.remove(NodeId(2), false), Ok(()));
    assert_eq!(layouts(&state), [(2, vec![1, 3])]);
}

#[test]
fn a_node_that_is_to_stay_after_all_gets_its_part_again() {
    let mut state = three();
    state.drain(NodeId(2)).unwrap();
    state.drain(NodeId(2)).unwrap();
    state.undrain(NodeId(2)).unwrap();
    state.undrain(NodeId(2)).unwrap();
    assert_eq!(layouts(&state), [(1, vec![1, 2, 3]), (2, vec![1, 3]), (3, vec![1, 2, 3])]);
    assert_eq!(standing(&state, 2), Standing::Serving);
}

#[test]
fn the_last_node_that_serves_neither_drains_nor_is_lost_nor_goes() {
    let mut state = three();
    state.drain(NodeId(1)).unwrap();
    state.drain(NodeId(3)).unwrap();
    let before = state.clone();
    let refused = Err(Refusal::LastServing { node: NodeId(2) });
    assert_eq!(state.drain(NodeId(2)), refused);
    assert_eq!(state.lost(NodeId(2)), refused);
    assert_eq!(state.remove(NodeId(2), true), refused);
    assert_eq!(state, before);
    let mut single = formed(1);
    assert_eq!(single.drain(NodeId(1)), Err(Refusal::LastServing { node: NodeId(1) }));
    assert_eq!(single, formed(1));
}

#[test]
fn a_node_that_waits_for_its_part_does_not_stand_in_for_the_last_that_serves() {
    let mut state = ClusterState { rebalance: Rebalance::OnApply, ..formed(1) };
    state.admit(joiner("b", 2), None).unwrap();
    assert_eq!(state.drain(NodeId(1)), Err(Refusal::LastServing { node: NodeId(1) }));
    state.apply(state.planned).unwrap();
    assert_eq!(state.drain(NodeId(1)), Ok(()));
}

#[test]
fn nobody_leaves_or_is_lost_before_blobs_have_a_place() {
    let mut state = formed(3);
    state.admit(joiner("b", 2), None).unwrap();
    let before = state.clone();
    assert_eq!(state.drain(NodeId(2)), Err(Refusal::Forming));
    assert_eq!(state.lost(NodeId(2)), Err(Refusal::Forming));
    assert_eq!(state.apply(state.planned), Err(Refusal::NothingToApply));
    assert_eq!(state, before);
    assert_eq!(state.remove(NodeId(2), false), Ok(()));
}

#[test]
fn nothing_is_done_to_a_stranger() {
    let mut state = three();
    let node = NodeId(9);
    let refused = Err(Refusal::UnknownNode { node });
    assert_eq!(state.drain(node), refused);
    assert_eq!(state.undrain(node), refused);
    assert_eq!(state.lost(node), refused);
    assert_eq!(state.returned(node), refused);
    assert_eq!(state.remove(node, true), refused);
    assert_eq!(state, three());
}

#[test]
fn a_lost_node_is_not_waited_for_and_may_be_removed() {
    let mut state = three();
    state.admit(joiner("d", 4), None).unwrap();
    state.lost(NodeId(2)).unwrap();
    state.lost(NodeId(2)).unwrap();
    assert_eq!(layouts(&state), [(1, vec![1, 2, 3]), (2, vec![1, 2, 3, 4]), (3, vec![1, 3, 4])]);
    sync(&mut state);
    assert_eq!(layouts(&state), [(3, vec![1, 3, 4])]);
    assert_eq!(state.remove(NodeId(2), false), Ok(()));
    assert_eq!(layouts(&state), [(3, vec![1, 3, 4])]);
}

#[test]
fn that_a_node_is_lost_can_be_what_a_layout_waited_for() {
    let mut state = three();
    state.admit(joiner("d", 4), None).unwrap();
    for node in [1, 3, 4] {
        state.synced(NodeId(node), Epoch(2)).unwrap();
    }
    state.lost(NodeId(2)).unwrap();
    assert_eq!(layouts(&state), [(2, vec![1, 2, 3, 4]), (3, vec![1, 3, 4])]);
}

#[test]
fn a_node_that_returns_is_filled_again_and_one_that_was_leaving_goes_on_leaving() {
    let mut state = three();
    state.lost(NodeId(2)).unwrap();
    sync(&mut state);
    state.returned(NodeId(2)).unwrap();
    state.returned(NodeId(2)).unwrap();
    assert_eq!(layouts(&state), [(2, vec![1, 3]), (3, vec![1, 2, 3])]);
    sync(&mut state);
    state.drain(NodeId(2)).unwrap();
    state.lost(NodeId(2)).unwrap();
    assert_eq!(standing(&state, 2), Standing::Lost);
    state.returned(NodeId(2)).unwrap();
    assert_eq!(standing(&state, 2), Standing::Draining);
    assert_eq!(layouts(&state), [(3, vec![1, 2, 3]), (4, vec![1, 3])]);
}

#[test]
fn a_lost_node_is_asked_to_leave_or_to_stay_when_it_returns() {
    let mut state = three();
    state.lost(NodeId(2)).unwrap();
    let before = layouts(&state);
    state.drain(NodeId(2)).unwrap();
    assert_eq!((standing(&state, 2), layouts(&state)), (Standing::Lost, before.clone()));
    state.undrain(NodeId(2)).unwrap();
    assert_eq!((standing(&state, 2), layouts(&state)), (Standing::Lost, before));
    state.returned(NodeId(2)).unwrap();
    assert_eq!(standing(&state, 2), Standing::Serving);
}

#[test]
fn no_more_nodes_are_lost_than_writes_can_do_without() {
    let mut state = three();
    state.lost(NodeId(2)).unwrap();
    let before = state.clone();
    let refused = Refusal::TooFewLeft { node: NodeId(3), left: 1, write_quorum: 2 };
    assert_eq!(state.lost(NodeId(3)), Err(refused));
    assert_eq!(state, before);
}

#[test]
fn that_a_lost_node_says_anew_where_it_is_does_not_bring_it_back() {
    let mut state = three();
    state.lost(NodeId(2)).unwrap();
    let moved = Joiner { address: "elsewhere.test:7980".to_owned(), ..joiner("b", 2) };
    assert_eq!(state.admit(moved, None), Ok(NodeId(2)));
    assert_eq!(standing(&state, 2), Standing::Lost);
}

#[test]
fn joins_weights_and_zones_wait_to_be_applied_and_go_into_one_layout() {
    let mut state = three_on_apply();
    assert!(!state.waits_to_be_applied());
    state.admit(joiner("d", 4), None).unwrap();
    state.admit(Joiner { weight: 300, ..joiner("a", 1) }, None).unwrap();
    state.admit(Joiner { zone: "z".to_owned(), ..joiner("b", 2) }, None).unwrap();
    assert_eq!(layouts(&state), [(1, vec![1, 2, 3])]);
    assert!(state.waits_to_be_applied() && state.has_changes());
    let planned = state.planned;
    state.apply(planned).unwrap();
    assert_eq!(layouts(&state), [(1, vec![1, 2, 3]), (planned.0, vec![1, 2, 3, 4])]);
    let newest = &state.layouts[1].nodes;
    assert_eq!((newest[&NodeId(1)].weight, newest[&NodeId(2)].zone.as_str()), (300, "z"));
    assert!(!state.waits_to_be_applied() && !state.has_changes());
}

#[test]
fn a_plan_is_stale_when_another_layout_would_be_made() {
    let mut state = three_on_apply();
    assert_eq!(state.apply(state.planned), Err(Refusal::NothingToApply));
    state.admit(joiner("d", 4), None).unwrap();
    let looked_at = state.planned;
    let moved = Joiner { address: "elsewhere.test:7980".to_owned(), ..joiner("b", 2) };
    state.admit(moved, None).unwrap();
    assert_eq!(state.planned, looked_at, "an address is no matter of layouts");
    state.admit(joiner("e", 5), None).unwrap();
    let before = state.clone();
    let stale = Refusal::StalePlan { epoch: looked_at, planned: state.planned };
    assert_eq!(state.apply(looked_at), Err(stale));
    assert!(state.apply(Epoch(99)).is_err());
    assert_eq!(state, before);
    assert_eq!(state.apply(state.planned), Ok(()));
}

#[test]
fn leaving_and_losing_move_blobs_at_once_and_nothing_that_waits() {
    let mut state = three_on_apply();
    state.admit(joiner("d", 4), None).unwrap();
    let looked_at = state.planned;
    state.drain(NodeId(2)).unwrap();
    assert_eq!(state.layouts[1].nodes.keys().map(|id| id.0).collect::<Vec<_>>(), [1, 3]);
    assert!(matches!(state.apply(looked_at), Err(Refusal::StalePlan { .. })));
    state.undrain(NodeId(2)).unwrap();
    assert_eq!(state.layouts[2].nodes.keys().map(|id| id.0).collect::<Vec<_>>(), [1, 2, 3]);
    state.lost(NodeId(3)).unwrap();
    assert_eq!(state.layouts[3].nodes.keys().map(|id| id.0).collect::<Vec<_>>(), [1, 2]);
    assert!(state.waits_to_be_applied());
}

#[test]
fn who_takes_a_gone_nodes_place_has_its_part_without_being_applied_and_goes_on_leaving() {
    let mut state = three_on_apply();
    assert_eq!(state.admit(joiner("b", 9), Some(NodeId(2))), Ok(NodeId(4)));
    assert_eq!(layouts(&state), [(1, vec![1, 2, 3]), (2, vec![1, 3, 4])]);
    state.drain(NodeId(4)).unwrap();
    assert_eq!(state.admit(joiner("b", 10), Some(NodeId(4))), Ok(NodeId(5)));
    assert_eq!(standing(&state, 5), Standing::Draining);
}

#[test]
fn a_member_that_takes_the_name_of_the_last_that_serves_is_refused_unless_it_serves_too() {
    let mut state = three();
    state.drain(NodeId(1)).unwrap();
    state.drain(NodeId(3)).unwrap();
    let before = state.clone();
    assert_eq!(state.admit(joiner("b", 1), Some(NodeId(2))), Err(Refusal::LastServing { node: NodeId(2) }));
    assert_eq!(state, before);
    let mut waiting = ClusterState { rebalance: Rebalance::OnApply, ..formed(1) };
    waiting.admit(joiner("b", 2), None).unwrap();
    assert_eq!(waiting.admit(joiner("a", 2), Some(NodeId(1))), Ok(NodeId(2)));
    assert_eq!(waiting.layouts.last().unwrap().nodes.keys().map(|id| id.0).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_node_that_never_had_a_part_may_go_at_once() {
    let mut state = three_on_apply();
    state.admit(joiner("d", 4), None).unwrap();
    assert_eq!(state.remove(NodeId(4), false), Ok(()));
    assert_eq!(layouts(&state), [(1, vec![1, 2, 3])]);
    assert!(!state.waits_to_be_applied());
}

/// Any command, most often one that is taken.
fn any_command(state: &ClusterState, random: &mut SmallRng) -> MemberCommand {
    let node = NodeId(random.random_range(1..=state.next_node_id.0));
    let number = random.random_range(1..=12_u8);
    let some_joiner = |random: &mut SmallRng| Joiner {
        weight: random.random_range(1..=3) * 100,
        zone: ["", "y", "z"][random.random_range(0..3)].to_owned(),
        ..joiner(&format!("n{number}"), random.random_range(1..=16))
    };
    match random.random_range(0..16) {
        0..=3 => {
            let joiner = some_joiner(random);
            MemberCommand::Admit { joiner, replaces: random.random_bool(0.3).then_some(node) }
        }
        4 => MemberCommand::Remove { node, force: random.random_bool(0.5) },
        5 | 6 => MemberCommand::Drain { node },
        7 => MemberCommand::Undrain { node },
        8 => MemberCommand::Lost { node },
        9 => MemberCommand::Returned { node },
        10 => MemberCommand::Begin,
        11 => MemberCommand::Apply { epoch: Epoch(state.planned.0 - random.random_range(0..2)) },
        _ => {
            let epochs: Vec<Epoch> = state.layouts.iter().map(|layout| layout.epoch).collect();
            let some = epochs.get(random.random_range(0..epochs.len().max(1))).copied();
            MemberCommand::Synced { node, epoch: some.unwrap_or_default() }
        }
    }
}

fn check(before: &ClusterState, command: &MemberCommand, after: &ClusterState) {
    let epochs = |state: &ClusterState| state.layouts.iter().map(|layout| layout.epoch).collect::<Vec<_>>();
    let (old, new) = (epochs(before), epochs(after));
    assert!(new.len() <= LAYOUTS_MAX);
    assert!(new.windows(2).all(|pair| pair[0] < pair[1]), "{new:?}");
    assert!(old.is_empty() || !new.is_empty(), "blobs have lost their place");
    assert!(old.last() <= new.last(), "{old:?} {new:?}");
    assert!(after.planned > new.last().copied().unwrap_or_default() && after.planned >= before.planned);
    for layout in &after.layouts {
        assert!(!layout.nodes.is_empty());
        let same = before.layouts.iter().find(|other| other.epoch == layout.epoch);
        assert!(same.is_none_or(|other| other == layout), "a layout was changed");
        assert!(same.is_some() || Some(&layout.epoch) > old.last(), "a layout was put before others");
    }
    // Retired is only what all that are to be waited for have left behind.
    let oldest = new.first().copied().unwrap_or_default();
    let all = || after.members.values().filter(|member| member.standing != Standing::Lost);
    if old.first().is_some_and(|first| *first < oldest) {
        assert!(all().all(|member| member.synced >= oldest), "{command:?}");
    }
    if let Some(newest) = after.layouts.last() {
        let serving = after.wanted();
        assert!(!serving.is_empty());
        assert!(newest.nodes == serving || new.len() == LAYOUTS_MAX, "{command:?}: {newest:?} {serving:?}");
        let automatic = after.rebalance == Rebalance::Automatic;
        assert!(!automatic || serving == after.proposed());
        assert_eq!(after.waits_to_be_applied(), serving != after.proposed());
    } else {
        assert!((after.members.len() as u64) < u64::from(after.expected_members));
    }
    // One plan, one epoch.
    if after.planned == before.planned && !after.layouts.is_empty() {
        let same = after.proposed() == before.proposed() || after.rebalance == Rebalance::Automatic;
        assert!(same, "{command:?} has changed the plan of epoch {}", after.planned);
    }
    for (id, member) in &after.members {
        assert!(*id < after.next_node_id);
        assert_eq!(after.by_name(&member.name).map(|(id, _)| id), Some(*id));
        assert!(member.standing != Standing::Serving || !member.leaves);
        assert!(member.standing != Standing::Draining || member.leaves);
    }
}

#[test]
fn whatever_is_done_to_a_cluster_its_layouts_follow_from_its_members() {
    let mut random = random(seed());
    for _ in 0..300 {
        let expected = random.random_range(0..4);
        let rebalance = if random.random_bool(0.5) { Rebalance::OnApply } else { Rebalance::Automatic };
        let mut state = ClusterState { rebalance, ..formed(expected) };
        for _ in 0..80 {
            let command = any_command(&state, &mut random);
            let (after, reply) = apply_member(Some(&state), &command);
            let refused = matches!(reply, MemberReply::Refused(_));
            assert!(!refused || after.is_none(), "{command:?} was refused and changes something");
            if let Some(after) = after {
                check(&state, &command, &after);
                assert_eq!(ClusterState::decode(&after.encode().unwrap()).unwrap(), after);
                state = after;
            }
        }
    }
}
