//! Who votes in the Raft group, who learns, and who only watches: one step at a time.

use std::collections::BTreeSet;

use super::ids::NodeId;
use super::state::{ClusterState, Part, Standing};

/// Voters of a cluster that has as many nodes: one may be lost.
const VOTERS: usize = 3;
/// Voters of a large one: two may be lost.
const VOTERS_OF_MANY: usize = 5;
/// From so many nodes on a cluster is a large one.
const MANY_NODES: usize = 10;
/// Nodes beside the voters that have the log, at the most. Each costs the leader a stream; a dozen answer the reads of a hundred.
pub const LEARNERS_MAX: usize = 12;

/// For how long a voter is away before another one takes its place: longer than a restart takes, shorter than it takes
/// people to come.
pub const VOTER_LOST_AFTER_MS: u64 = 60_000;

/// A change of the group. To be confirmed before the next one is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupStep {
    /// Have a member learn the log.
    AddLearner(NodeId),
    /// Have a learner vote.
    AddVoter(NodeId),
    /// Have a voter vote no longer. Whether it learns then is another step's matter.
    RemoveVoter(NodeId),
    /// Have a learner learn no longer.
    RemoveLearner(NodeId),
    /// Have another voter lead: this one is to leave.
    HandOver(NodeId),
    /// Note a member's part in the cluster's state: it is so already.
    Record(NodeId, Part),
}

/// The group as it is, and who is there.
struct Group<'a> {
    state: &'a ClusterState,
    leader: NodeId,
    voters: &'a BTreeSet<NodeId>,
    learners: &'a BTreeSet<NodeId>,
    alive: &'a BTreeSet<NodeId>,
    learners_max: usize,
}

/// What the leader changes next, if anything. `alive` are the members that have been heard from within
/// [`VOTER_LOST_AFTER_MS`], the leader among them; of those that do not vote, `learners_max` have the log, and no more than
/// [`LEARNERS_MAX`].
///
/// A voter is replaced by adding before removing, so that there are never fewer than wanted; each step changes one voter, so
/// that any majority before and any after it have a node in common.
pub fn next_step(
    state: &ClusterState,
    leader: NodeId,
    voters: &BTreeSet<NodeId>,
    learners: &BTreeSet<NodeId>,
    alive: &BTreeSet<NodeId>,
    learners_max: usize,
) -> Option<GroupStep> {
    let group = Group { state, leader, voters, learners, alive, learners_max: learners_max.min(LEARNERS_MAX) };
    let steps = [
        Group::hand_over,
        Group::former_member,
        Group::voter,
        Group::surplus_voter,
        Group::surplus_learner,
        Group::learner,
        Group::record,
    ];
    steps.iter().find_map(|step| step(&group))
}

/// How many of so many members are to vote.
pub fn voters_of(members: usize) -> usize {
    members.min(if members >= MANY_NODES { VOTERS_OF_MANY } else { VOTERS })
}

/// Whether the others could still decide if this voter did not vote: most of them are alive. Otherwise nothing could be agreed on
/// any more, not even who is to vote in the place of those who are gone.
pub fn can_do_without(voters: &BTreeSet<NodeId>, node: NodeId, is_alive: impl Fn(NodeId) -> bool) -> bool {
    let others = || voters.iter().filter(|voter| **voter != node);
    let alive = others().filter(|voter| is_alive(**voter)).count();
    others().count() == 0 || alive * 2 > others().count()
}

impl Group<'_> {
    /// Has a voter lead that stays, if the leader is to leave.
    fn hand_over(&self) -> Option<GroupStep> {
        if self.stays(self.leader) {
            return None;
        }
        let mut others = self.voters.iter().filter(|voter| **voter != self.leader && self.is_fit(**voter));
        others.next().map(|voter| GroupStep::HandOver(*voter))
    }

    /// Removes who is no member any more, voters last, and those only if the others can decide without them.
    fn former_member(&self) -> Option<GroupStep> {
        let gone = |nodes: &BTreeSet<NodeId>| nodes.iter().find(|node| !self.is_member(**node)).copied();
        let learner = gone(self.learners).map(GroupStep::RemoveLearner);
        // Where too few would be left, one who stays votes first.
        let can_go =
            |voter: &NodeId| self.voters.len() > 1 && can_do_without(self.voters, *voter, |other| self.is_alive(other));
        let voter = || gone(self.voters).filter(can_go).map(GroupStep::RemoveVoter);
        learner.or_else(voter)
    }

    /// Adds a voter where one is wanted: there are too few, one is lost, or a zone without one could have one of two.
    fn voter(&self) -> Option<GroupStep> {
        let living = self.voters.iter().filter(|voter| self.alive.contains(voter) && self.is_fit(**voter)).count();
        let is_wanted = living < self.wanted_voters() && self.voters.len() <= self.wanted_voters();
        let candidates = self.state.members.keys().filter(|node| !self.voters.contains(node) && self.is_fit(**node));
        // From the zone with the fewest living voters; those who learn before others; the oldest first.
        let rank = |node: &NodeId| (self.voters_in(self.zone(*node)), !self.learners.contains(node), *node);
        let best = candidates.min_by_key(|node| rank(node)).copied()?;
        let evens_out = self.voters.len() == self.wanted_voters()
            && self.voters_in(self.zone(best)) == 0
            && self.voters.iter().any(|voter| *voter != self.leader && self.voters_in(self.zone(*voter)) > 1);
        if !is_wanted && !evens_out {
            return None;
        }
        Some(if self.learners.contains(&best) { GroupStep::AddVoter(best) } else { GroupStep::AddLearner(best) })
    }

    /// Removes a voter where there are too many: a lost one or one that is to leave, or else one of the zone that has most. Never
    /// the leader.
    fn surplus_voter(&self) -> Option<GroupStep> {
        if self.voters.len() <= self.wanted_voters() {
            return None;
        }
        let others = self.voters.iter().filter(|voter| **voter != self.leader);
        let rank =
            |node: &NodeId| (!self.is_alive(*node), !self.is_fit(*node), self.voters_in(self.zone(*node)), *node);
        let can_go = |voter: &&NodeId| can_do_without(self.voters, **voter, |other| self.is_alive(other));
        others.max_by_key(|voter| rank(voter)).filter(can_go).map(|voter| GroupStep::RemoveVoter(*voter))
    }

    /// Removes a learner where there are too many, as whoever loses the vote learns on: a lost one, or else the newest.
    fn surplus_learner(&self) -> Option<GroupStep> {
        if self.learners.len() <= self.learners_max {
            return None;
        }
        let rank = |node: &NodeId| (!self.is_alive(*node), *node);
        self.learners.iter().max_by_key(|learner| rank(learner)).map(|learner| GroupStep::RemoveLearner(*learner))
    }

    /// Has living members learn while there is room, and lost learners give theirs to others.
    fn learner(&self) -> Option<GroupStep> {
        let mut outside = self.state.members.keys().filter(|node| !self.has_log(**node) && self.is_alive(**node));
        let next = *outside.next()?;
        if self.learners.len() < self.learners_max {
            return Some(GroupStep::AddLearner(next));
        }
        let lost = self.learners.iter().find(|learner| !self.is_alive(**learner))?;
        Some(GroupStep::RemoveLearner(*lost))
    }

    fn record(&self) -> Option<GroupStep> {
        let part = |node: &NodeId| {
            if self.voters.contains(node) {
                Part::Voter
            } else if self.learners.contains(node) {
                Part::Learner
            } else {
                Part::Watcher
            }
        };
        let mut stale = self.state.members.iter().filter(|(node, member)| member.part != part(node));
        stale.next().map(|(node, _)| GroupStep::Record(*node, part(node)))
    }

    fn wanted_voters(&self) -> usize {
        voters_of(self.state.members.keys().filter(|node| !self.has_left(**node)).count().max(1))
    }

    fn is_member(&self, node: NodeId) -> bool {
        self.state.members.contains_key(&node)
    }

    /// Whether it is a member, and is to remain one.
    fn stays(&self, node: NodeId) -> bool {
        self.state.members.get(&node).is_some_and(|member| member.standing != Standing::Draining)
    }

    /// Whether it was to leave and has given away all it had: it is about to end, and its vote must not end with it.
    fn has_left(&self, node: NodeId) -> bool {
        !self.stays(node) && !self.state.holds_blobs(node)
    }

    /// Whether it may vote.
    fn is_fit(&self, node: NodeId) -> bool {
        self.is_alive(node) && self.stays(node)
    }

    fn is_alive(&self, node: NodeId) -> bool {
        node == self.leader || self.alive.contains(&node)
    }

    fn has_log(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.learners.contains(&node)
    }

    fn zone(&self, node: NodeId) -> &str {
        self.state.members.get(&node).map_or("", |member| member.zone.as_str())
    }

    /// Living voters in a zone.
    fn voters_in(&self, zone: &str) -> usize {
        self.voters.iter().filter(|voter| self.is_fit(**voter) && self.zone(**voter) == zone).count()
    }
}
