//! The group after each step, from any state it may be in.

use std::collections::BTreeSet;

use rand::RngExt as _;

use super::group::{GroupStep, LEARNERS_MAX, can_do_without, next_step};
use super::ids::NodeId;
use super::state::{ClusterState, Part, Standing};
use crate::testing::{layout, random, seed, state};

struct Group {
    state: ClusterState,
    leader: NodeId,
    voters: BTreeSet<NodeId>,
    learners: BTreeSet<NodeId>,
    alive: BTreeSet<NodeId>,
    learners_max: usize,
}

impl Group {
    /// Node 1 leads and votes alone; the others are members in zones, by turns.
    fn new(nodes: u64, zones: &[&str]) -> Group {
        let zone = |id: u64| zones[usize::try_from(id).unwrap() % zones.len()];
        let nodes = (1..=nodes).map(|id| (id, zone(id), 100));
        let mut state = state(2, 2, vec![layout(1, nodes)]);
        state.members.values_mut().for_each(|member| member.part = Part::Watcher);
        let alive = state.members.keys().copied().collect();
        let (leader, voters, learners) = (NodeId(1), BTreeSet::from([NodeId(1)]), BTreeSet::new());
        Group { state, leader, voters, learners, alive, learners_max: LEARNERS_MAX }
    }

    fn step(&self) -> Option<GroupStep> {
        next_step(&self.state, self.leader, &self.voters, &self.learners, &self.alive, self.learners_max)
    }

    /// Steps until there is nothing to do. Returns how many voters there were at the least.
    fn settle(&mut self) -> usize {
        let mut fewest = self.voters.len();
        for _ in 0..500 {
            let Some(step) = self.step() else { return fewest };
            let voters = self.voters.len();
            match step {
                GroupStep::AddLearner(node) => assert!(!self.voters.contains(&node) && self.learners.insert(node)),
                GroupStep::AddVoter(node) => {
                    assert!(self.alive.contains(&node), "{node} is not there");
                    assert!(self.learners.remove(&node) && self.voters.insert(node));
                }
                GroupStep::RemoveVoter(node) => {
                    assert_ne!(node, self.leader);
                    // Whoever loses the vote learns on.
                    assert!(self.voters.remove(&node) && self.learners.insert(node));
                }
                GroupStep::RemoveLearner(node) => assert!(self.learners.remove(&node)),
                GroupStep::HandOver(node) => {
                    assert!(self.voters.contains(&node) && self.alive.contains(&node));
                    self.leader = node;
                }
                GroupStep::Record(node, part) => self.state.set_part(node, part),
            }
            assert!(self.voters.len().abs_diff(voters) <= 1);
            fewest = fewest.min(self.voters.len());
        }
        panic!("it does not come to rest: {:?} {:?}", self.voters, self.learners);
    }

    fn parts(&self, part: Part) -> usize {
        self.state.members.values().filter(|member| member.part == part).count()
    }

    fn zones(&self) -> BTreeSet<&str> {
        self.voters.iter().map(|voter| self.state.members[voter].zone.as_str()).collect()
    }
}

#[test]
fn three_vote_five_from_ten_nodes_on_and_a_dozen_learn() {
    for (nodes, voters, learners) in
        [(1, 1, 0), (2, 2, 0), (3, 3, 0), (4, 3, 1), (9, 3, 6), (10, 5, 5), (17, 5, 12), (18, 5, 12), (100, 5, 12)]
    {
        let mut group = Group::new(nodes, &[""]);
        group.settle();
        assert_eq!((group.voters.len(), group.learners.len()), (voters, learners), "{nodes} nodes");
        assert_eq!(group.parts(Part::Voter), voters);
        assert_eq!(group.parts(Part::Learner), learners);
        assert_eq!(group.parts(Part::Watcher), nodes as usize - voters - learners);
    }
    assert_eq!(LEARNERS_MAX, 12);
}

#[test]
fn voters_are_spread_over_zones() {
    for nodes in 3..=12 {
        let mut group = Group::new(nodes, &["a", "b", "c"]);
        group.settle();
        assert_eq!(group.zones().len(), 3, "{nodes} nodes: {:?}", group.voters);
    }
}

#[test]
fn a_zone_that_comes_later_gets_a_voter_of_one_that_has_two() {
    let mut group = Group::new(5, &["a", "b"]);
    group.settle();
    assert_eq!(group.voters.len(), 3);
    group.state.members.get_mut(&NodeId(5)).unwrap().zone = "c".to_owned();
    let fewest = group.settle();
    assert_eq!((group.zones().len(), group.voters.len(), fewest), (3, 3, 3));
    assert!(group.voters.contains(&group.leader));
}

#[test]
fn a_voter_that_is_lost_is_replaced_and_never_are_there_fewer() {
    let mut group = Group::new(6, &[""]);
    group.settle();
    let lost = *group.voters.last().unwrap();
    group.alive.remove(&lost);
    assert_eq!(group.settle(), 3);
    assert!(!group.voters.contains(&lost));
    assert_eq!(group.voters.len(), 3);
}

#[test]
fn a_voter_that_is_lost_stays_one_where_nobody_can_take_its_place() {
    let mut group = Group::new(3, &[""]);
    group.settle();
    group.alive.remove(&NodeId(3));
    assert_eq!(group.step(), None);
}

#[test]
fn a_node_that_is_a_member_no_more_leaves_the_group() {
    let mut group = Group::new(5, &[""]);
    group.settle();
    group.state.members.remove(&NodeId(2));
    assert_eq!(group.step(), Some(GroupStep::RemoveVoter(NodeId(2))));
    group.settle();
    assert_eq!(group.voters, BTreeSet::from([1, 3, 4].map(NodeId)));
    group.state.members.remove(&NodeId(5));
    assert_eq!(group.step(), Some(GroupStep::RemoveLearner(NodeId(5))));
}

#[test]
fn a_node_that_is_to_leave_hands_over_and_gives_its_vote_to_one_that_stays() {
    let mut group = Group::new(5, &[""]);
    group.settle();
    group.state.members.get_mut(&NodeId(1)).unwrap().standing = Standing::Draining;
    assert_eq!(group.step(), Some(GroupStep::HandOver(NodeId(2))));
    assert_eq!(group.settle(), 3);
    assert_eq!(group.voters, BTreeSet::from([2, 3, 4].map(NodeId)));
    assert!(group.learners.contains(&NodeId(1)), "it has the log as long as it is there");
}

#[test]
fn a_node_that_is_to_leave_votes_while_nobody_can_take_its_place() {
    let mut group = Group::new(3, &[""]);
    group.settle();
    group.state.members.get_mut(&NodeId(1)).unwrap().standing = Standing::Draining;
    assert_eq!(group.settle(), 3);
    assert_eq!((group.leader, group.voters.len()), (NodeId(2), 3));
    group.state.members.remove(&NodeId(1));
    group.settle();
    assert_eq!(group.voters, BTreeSet::from([2, 3].map(NodeId)));
}

#[test]
fn nodes_that_have_left_vote_no_more_before_they_end() {
    for (nodes, leave) in [(3, 1..=1), (3, 1..=2), (3, 2..=3), (5, 1..=4), (10, 6..=10)] {
        let mut group = Group::new(nodes, &[""]);
        group.settle();
        for id in leave.clone().map(NodeId) {
            group.state.members.get_mut(&id).unwrap().standing = Standing::Draining;
            group.state.layouts.iter_mut().for_each(|layout| drop(layout.nodes.remove(&id)));
        }
        group.settle();
        let left: Vec<NodeId> = group.voters.iter().copied().filter(|id| leave.contains(&id.0)).collect();
        assert_eq!(left, [], "{leave:?} of {nodes} leave");
        let stay = usize::try_from(nodes - (leave.end() - leave.start() + 1)).unwrap();
        assert_eq!(group.voters.len(), stay.min(3), "{leave:?} of {nodes} leave");
    }
}

#[test]
fn a_leader_that_was_removed_hands_over_first() {
    let mut group = Group::new(3, &[""]);
    group.settle();
    group.state.members.remove(&NodeId(1));
    assert_eq!(group.step(), Some(GroupStep::HandOver(NodeId(2))));
    group.settle();
    assert_eq!(group.voters, BTreeSet::from([2, 3].map(NodeId)));
}

#[test]
fn a_learner_that_is_lost_makes_room_for_a_watcher_only() {
    let mut group = Group::new(18, &[""]);
    group.settle();
    let lost = *group.learners.first().unwrap();
    group.alive.remove(&lost);
    group.settle();
    assert!(!group.learners.contains(&lost) && group.learners.len() == LEARNERS_MAX);
    let another = *group.learners.first().unwrap();
    group.alive.remove(&another);
    assert_eq!(group.step(), None, "nobody waits for its place");
}

#[test]
fn as_many_learn_as_are_wanted_and_never_more_than_a_dozen() {
    for (wanted, learners) in [(0, 0), (1, 1), (12, 12), (50, 12)] {
        let mut group = Group { learners_max: wanted, ..Group::new(30, &["a", "b"]) };
        group.settle();
        assert_eq!((group.voters.len(), group.learners.len()), (5, learners), "{wanted} wanted");
        assert_eq!(group.parts(Part::Watcher), 25 - learners);
        // Fewer than there are.
        group.learners_max = wanted / 2;
        group.settle();
        assert_eq!(group.parts(Part::Learner), learners.min(wanted / 2));
    }
}

#[test]
fn a_voter_that_is_replaced_does_not_make_a_learner_too_many() {
    let mut group = Group { learners_max: 0, ..Group::new(5, &[""]) };
    group.settle();
    let lost = *group.voters.last().unwrap();
    group.alive.remove(&lost);
    group.settle();
    assert_eq!((group.voters.len(), group.learners.len()), (3, 0));
    assert_eq!(group.state.members[&lost].part, Part::Watcher);
}

#[test]
fn whatever_happens_the_group_comes_to_rest_with_as_many_living_voters_as_there_can_be() {
    let mut random = random(seed());
    for _ in 0..300 {
        let nodes = random.random_range(1..=20_u64);
        let zones: Vec<&str> = ["a", "b", "c", "d"].into_iter().take(random.random_range(1..=4)).collect();
        let learners_max = random.random_range(0..=LEARNERS_MAX);
        let mut group = Group { learners_max, ..Group::new(nodes, &zones) };
        for _ in 0..5 {
            group.settle();
            let ids: Vec<NodeId> = group.state.members.keys().copied().collect();
            for id in ids.into_iter().filter(|id| *id != group.leader) {
                // Without a majority nothing is decided.
                let alive = group.voters.iter().filter(|voter| **voter != id && group.alive.contains(voter)).count();
                let may_die = alive * 2 > group.voters.len();
                let may_go = may_die && can_do_without(&group.voters, id, |voter| group.alive.contains(&voter));
                match random.random_range(0..10) {
                    0 if may_die => drop(group.alive.remove(&id)),
                    1 => drop(group.alive.insert(id)),
                    2 if may_go && group.state.members.len() > 1 => drop(group.state.members.remove(&id)),
                    _ => {}
                }
            }
        }
        group.settle();
        let members = group.state.members.len();
        let living = group.state.members.keys().filter(|id| group.alive.contains(id)).count();
        let wanted = members.min(if members >= 10 { 5 } else { 3 });
        assert!(group.voters.len() <= wanted);
        assert!(group.learners.len() <= learners_max);
        let there = group.voters.iter().filter(|id| group.alive.contains(id)).count();
        let (voters, alive, members) = (&group.voters, &group.alive, group.state.members.keys());
        // One that was taken out may vote on, where the others could not decide without it.
        assert!(there >= wanted.min(living), "{voters:?} of {members:?}, alive are {alive:?}");
    }
}

#[test]
fn who_was_taken_out_votes_until_the_others_can_decide_without_it() {
    let mut group = Group::new(3, &["a"]);
    group.settle();
    group.state.members.remove(&NodeId(2));
    group.alive.remove(&NodeId(3));
    assert_eq!(group.step(), Some(GroupStep::RemoveVoter(NodeId(3))), "without node 2 one of two would be no majority");
    group.voters.remove(&NodeId(3));
    assert_eq!(group.step(), Some(GroupStep::RemoveVoter(NodeId(2))));
}

#[test]
fn a_voter_can_be_done_without_while_most_of_the_others_are_alive() {
    let voters = |count: u64| (1..=count).map(NodeId).collect::<BTreeSet<_>>();
    let first = |alive: u64| move |node: NodeId| node.0 <= alive;
    assert!(can_do_without(&voters(3), NodeId(3), first(2)));
    assert!(!can_do_without(&voters(3), NodeId(2), first(2)), "of 1 and 3 one is gone");
    assert!(can_do_without(&voters(5), NodeId(5), first(3)));
    assert!(!can_do_without(&voters(5), NodeId(1), first(3)));
    assert!(can_do_without(&voters(1), NodeId(1), first(1)), "nobody is left to decide");
}
