//! Who is let in, and how layouts follow from members.

use super::change::{LAYOUTS_MAX, MEMBERS_MAX, Refusal};
use super::ids::{ClusterId, Epoch, NodeId, VolumeId};
use super::introduction::Joiner;
use super::protocol::{Protocol, Protocols};
use super::state::{ClusterState, Layout, Part};

pub(super) fn joiner(name: &str, volume: u8) -> Joiner {
    let address = format!("{name}.test:7980");
    Joiner {
        name: name.to_owned(),
        address,
        volume: VolumeId([volume; 16]),
        zone: String::new(),
        weight: 100,
        protocols: Protocols::SPOKEN,
    }
}

pub(super) fn formed(expected: u32) -> ClusterState {
    ClusterState::formed(ClusterId([1; 16]), "farm".to_owned(), (2, 2), expected, joiner("a", 1))
}

/// Formed of three.
pub(super) fn three() -> ClusterState {
    let mut state = formed(3);
    state.admit(joiner("b", 2), None).unwrap();
    state.admit(joiner("c", 3), None).unwrap();
    state
}

pub(super) fn layouts(state: &ClusterState) -> Vec<(u64, Vec<u64>)> {
    let nodes = |layout: &Layout| layout.nodes.keys().map(|node| node.0).collect();
    state.layouts.iter().map(|layout| (layout.epoch.0, nodes(layout))).collect()
}

#[test]
fn a_cluster_of_one_places_blobs_at_once() {
    for expected in [0, 1] {
        let state = formed(expected);
        assert_eq!(layouts(&state), [(1, vec![1])]);
        assert_eq!(state.members[&NodeId(1)].part, Part::Voter);
    }
}

#[test]
fn a_cluster_of_several_begins_with_one_layout_of_all() {
    let mut state = formed(3);
    assert_eq!(layouts(&state), []);
    assert_eq!(state.admit(joiner("b", 2), None), Ok(NodeId(2)));
    assert_eq!(layouts(&state), []);
    assert_eq!(state.admit(joiner("c", 3), None), Ok(NodeId(3)));
    assert_eq!(layouts(&state), [(1, vec![1, 2, 3])]);
    assert_eq!(state, three());
}

#[test]
fn a_founder_may_begin_with_those_who_came() {
    let mut state = formed(3);
    state.admit(joiner("b", 2), None).unwrap();
    state.begin();
    assert_eq!(layouts(&state), [(1, vec![1, 2])]);
    state.begin();
    state.admit(joiner("c", 3), None).unwrap();
    assert_eq!(layouts(&state), [(1, vec![1, 2]), (2, vec![1, 2, 3])]);
}

#[test]
fn a_node_whose_directory_is_known_gets_its_old_id_and_says_anew_where_it_is() {
    let mut state = three();
    let moved = Joiner { address: "elsewhere.test:7980".to_owned(), ..joiner("b", 2) };
    assert_eq!(state.admit(moved, None), Ok(NodeId(2)));
    assert_eq!(state.members[&NodeId(2)].address, "elsewhere.test:7980");
    assert_eq!(layouts(&state).len(), 1, "an address is no matter of layouts");
    let heavier = Joiner { weight: 300, name: "b2".to_owned(), ..joiner("b", 2) };
    assert_eq!(state.admit(heavier, None), Ok(NodeId(2)));
    assert_eq!(layouts(&state).len(), 2);
    assert_eq!(state.layouts[1].nodes[&NodeId(2)].weight, 300);
    assert_eq!(state.next_node_id, NodeId(4));
}

#[test]
fn a_node_that_comes_back_with_an_empty_directory_takes_the_place_of_the_old_one() {
    let mut state = three();
    assert_eq!(state.admit(joiner("b", 9), Some(NodeId(2))), Ok(NodeId(4)));
    assert_eq!(state.members.keys().map(|id| id.0).collect::<Vec<_>>(), [1, 3, 4]);
    // The old one's place stays asked for until the new one has been filled.
    assert_eq!(layouts(&state), [(1, vec![1, 2, 3]), (2, vec![1, 3, 4])]);
}

#[test]
fn a_name_is_not_taken_from_a_node_that_is_there() {
    let mut state = three();
    let before = state.clone();
    let taken = Refusal::NameTaken { name: "b".to_owned(), node: NodeId(2) };
    assert_eq!(state.admit(joiner("b", 9), None), Err(taken.clone()));
    assert_eq!(state.admit(joiner("b", 9), Some(NodeId(3))), Err(taken.clone()));
    assert_eq!(state.admit(joiner("b", 3), None), Err(taken), "nor by a member");
    assert_eq!(state.admit(joiner("", 9), None), Err(Refusal::NoName));
    assert_eq!(state, before);
}

#[test]
fn a_member_that_is_gone_is_replaced_only_by_its_name() {
    let mut state = three();
    assert_eq!(state.admit(joiner("d", 9), Some(NodeId(2))), Ok(NodeId(4)));
    assert!(state.members.contains_key(&NodeId(2)));
}

#[test]
fn an_id_is_never_given_again() {
    let mut state = three();
    state.remove(NodeId(3), true).unwrap();
    assert_eq!(state.admit(joiner("c", 3), None), Ok(NodeId(4)));
    assert_eq!(layouts(&state), [(1, vec![1, 2, 3]), (2, vec![1, 2]), (3, vec![1, 2, 4])]);
}

#[test]
fn neither_a_stranger_nor_the_last_node_is_removed() {
    let mut state = formed(1);
    assert_eq!(state.remove(NodeId(7), true), Err(Refusal::UnknownNode { node: NodeId(7) }));
    assert_eq!(state.remove(NodeId(1), true), Err(Refusal::LastNode { node: NodeId(1) }));
    assert_eq!(state, formed(1));
}

#[test]
fn an_older_layout_is_retired_when_all_have_synced_and_not_before() {
    let mut state = three();
    state.admit(joiner("d", 4), None).unwrap();
    for node in [1, 2, 3] {
        state.synced(NodeId(node), Epoch(2)).unwrap();
        state.synced(NodeId(node), Epoch(2)).unwrap();
        assert_eq!(state.layouts.len(), 2);
    }
    state.synced(NodeId(4), Epoch(1)).unwrap();
    assert_eq!(state.layouts.len(), 2);
    state.synced(NodeId(4), Epoch(2)).unwrap();
    assert_eq!(layouts(&state), [(2, vec![1, 2, 3, 4])]);
}

#[test]
fn who_has_synced_to_a_later_layout_has_not_filled_the_one_before() {
    let mut state = three();
    state.admit(joiner("d", 4), None).unwrap();
    state.drain(NodeId(4)).unwrap();
    // By the third layout it is given nothing, and so it lacks nothing; by the second it does.
    state.synced(NodeId(4), Epoch(3)).unwrap();
    (1..=3).for_each(|node| state.synced(NodeId(node), Epoch(2)).unwrap());
    assert_eq!(state.layouts.len(), 3);
    (1..=3).for_each(|node| state.synced(NodeId(node), Epoch(3)).unwrap());
    assert_eq!(layouts(&state), [(3, vec![1, 2, 3])]);
}

#[test]
fn who_is_given_nothing_by_a_layout_need_not_say_so_when_it_has_synced_to_a_later_one() {
    let mut state = three();
    state.drain(NodeId(3)).unwrap();
    state.admit(joiner("d", 4), None).unwrap();
    state.synced(NodeId(3), Epoch(3)).unwrap();
    [1, 2].into_iter().for_each(|node| state.synced(NodeId(node), Epoch(2)).unwrap());
    assert_eq!(layouts(&state)[0].0, 1, "the new node decides by the older layout yet");
    state.synced(NodeId(4), Epoch(2)).unwrap();
    assert_eq!(layouts(&state), [(2, vec![1, 2]), (3, vec![1, 2, 4])]);
}

#[test]
fn a_node_that_is_removed_is_not_waited_for() {
    let mut state = three();
    state.admit(joiner("d", 4), None).unwrap();
    for node in [1, 2, 3] {
        state.synced(NodeId(node), Epoch(2)).unwrap();
    }
    state.remove(NodeId(4), true).unwrap();
    assert_eq!(layouts(&state), [(2, vec![1, 2, 3, 4]), (3, vec![1, 2, 3])]);
}

#[test]
fn nobody_syncs_to_a_layout_that_is_not_in_force() {
    let mut state = three();
    assert_eq!(state.synced(NodeId(1), Epoch(2)), Err(Refusal::UnknownLayout { epoch: Epoch(2) }));
    assert_eq!(state.synced(NodeId(8), Epoch(1)), Err(Refusal::UnknownNode { node: NodeId(8) }));
    assert_eq!(state, three());
}

#[test]
fn beyond_so_many_layouts_changes_wait_and_then_go_into_one() {
    let mut state = formed(1);
    for at in 2..=9_u8 {
        state.admit(joiner(&format!("n{at}"), at), None).unwrap();
    }
    assert_eq!(state.members.len(), 9);
    assert_eq!(state.layouts.len(), LAYOUTS_MAX);
    let newest = state.layouts.last().unwrap();
    assert_eq!((newest.epoch, newest.nodes.len()), (Epoch(4), 4));
    for node in 1..=9 {
        state.synced(NodeId(node), Epoch(4)).unwrap();
    }
    assert_eq!(layouts(&state), [(4, (1..=4).collect()), (5, (1..=9).collect())]);
}

#[test]
fn a_cluster_has_an_end() {
    let mut state = formed(1);
    let name = |at: usize| format!("n{at}");
    for at in 1..MEMBERS_MAX {
        state.admit(joiner(&name(at), u8::try_from(at + 1).unwrap()), None).unwrap();
    }
    assert_eq!(state.admit(joiner("more", 200), None), Err(Refusal::Full));
    assert_eq!(state.admit(joiner(&name(1), 201), Some(NodeId(2))), Ok(NodeId(101)), "one for another");
    assert!(state.admit(joiner("a", 1), None).is_ok(), "those who are in it");
}

/// A node whose program speaks these versions.
fn speaking(name: &str, volume: u8, protocols: &str) -> Joiner {
    Joiner { protocols: protocols.parse().unwrap(), ..joiner(name, volume) }
}

/// Of three, whose programs speak these.
fn three_speaking(protocols: [&str; 3]) -> ClusterState {
    let [a, b, c] = protocols;
    let founder = speaking("a", 1, a);
    let mut state = ClusterState::formed(ClusterId([1; 16]), "farm".to_owned(), (2, 2), 3, founder);
    state.admit(speaking("b", 2, b), None).unwrap();
    state.admit(speaking("c", 3, c), None).unwrap();
    state
}

#[test]
fn a_cluster_works_by_the_newest_version_that_all_speak_whoever_founded_it() {
    for (spoken, works_by) in [(["1"; 3], 1), (["1-2"; 3], 2), (["1-2", "1", "1-3"], 1), (["2-3", "1-3", "2-4"], 3)] {
        assert_eq!(three_speaking(spoken).protocol, Protocol(works_by), "{spoken:?}");
    }
    let forming = ClusterState::formed(ClusterId([1; 16]), "farm".to_owned(), (2, 2), 3, speaking("a", 1, "1-2"));
    assert_eq!(forming.protocol, Protocol(1), "the others may be older");
}

#[test]
fn the_version_is_raised_when_the_last_one_is_new_and_until_then_there_is_a_way_back() {
    let mut state = three_speaking(["1"; 3]);
    let say = |state: &mut ClusterState, name: &str, volume, protocols: &str| {
        state.admit(speaking(name, volume, protocols), None).map(|_| state.protocol)
    };
    assert_eq!(say(&mut state, "a", 1, "1-2"), Ok(Protocol(1)));
    assert_eq!(say(&mut state, "b", 2, "1-2"), Ok(Protocol(1)));
    assert_eq!(say(&mut state, "b", 2, "1"), Ok(Protocol(1)), "it goes back");
    assert_eq!(say(&mut state, "c", 3, "1-2"), Ok(Protocol(1)));
    assert_eq!(layouts(&state).len(), 1, "what is spoken is no matter of layouts");
    assert_eq!(say(&mut state, "b", 2, "1-2"), Ok(Protocol(2)));
    let before = state.clone();
    let refused = Refusal::Protocol { protocol: Protocol(2), spoken: "1".parse().unwrap() };
    assert_eq!(say(&mut state, "b", 2, "1"), Err(refused.clone()), "it has gone too far");
    assert_eq!(say(&mut state, "d", 4, "1"), Err(refused));
    assert_eq!(state, before);
    assert_eq!(say(&mut state, "c", 3, "2-3"), Ok(Protocol(2)));
}

#[test]
fn a_node_that_has_forgotten_the_version_of_the_cluster_is_not_let_in_yet() {
    let mut state = three_speaking(["1-2", "1", "1-2"]);
    let refused = Refusal::Protocol { protocol: Protocol(1), spoken: "2".parse().unwrap() };
    assert_eq!(state.admit(speaking("d", 4, "2"), None), Err(refused));
    state.admit(speaking("b", 2, "1-2"), None).unwrap();
    assert_eq!(state.admit(speaking("d", 4, "2"), None), Ok(NodeId(4)));
}

#[test]
fn an_old_program_that_is_lost_holds_the_version_until_it_is_removed() {
    let mut state = three_speaking(["1-2", "1-2", "1"]);
    state.lost(NodeId(3)).unwrap();
    assert_eq!(state.protocol, Protocol(1), "it may return");
    state.remove(NodeId(3), false).unwrap();
    assert_eq!(state.protocol, Protocol(2));
}
