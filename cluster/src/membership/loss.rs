//! When a member is given up, and when it is taken back.
//!
//! Every node looks, so that a new leader need not begin to wait anew; the leader alone has something done about it. One that
//! wakes up from a sleep begins anew.

use std::collections::{BTreeMap, BTreeSet};

use super::ids::NodeId;
use super::state::{ClusterState, Standing};

/// A look that comes so long after the one before tells that this node itself has slept: what it knew of others is worth nothing.
pub const LOOK_AGAIN_MS: u64 = 10_000;

/// Whom each member reaches that can be asked: this node itself among them.
pub type Sights = BTreeMap<NodeId, BTreeSet<NodeId>>;

/// What is to be done about a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossStep {
    /// Give it up.
    Lost(NodeId),
    /// Take it back.
    Returned(NodeId),
}

/// Who has been out of everybody's reach, and since when.
#[derive(Debug, Clone, Default)]
pub struct Losses {
    since_ms: BTreeMap<NodeId, u64>,
    looked_ms: u64,
}

impl Losses {
    /// Takes note of who reaches whom now.
    pub fn look(&mut self, state: &ClusterState, sights: &Sights, now_ms: u64) {
        if now_ms.saturating_sub(self.looked_ms) > LOOK_AGAIN_MS {
            self.since_ms.clear();
        }
        self.looked_ms = now_ms;
        let is_reached = |node: &NodeId| sights.iter().any(|(by, reached)| by == node || reached.contains(node));
        self.since_ms.retain(|node, _| state.members.contains_key(node) && !is_reached(node));
        for node in state.members.keys().filter(|node| !is_reached(node)) {
            self.since_ms.entry(*node).or_insert(now_ms);
        }
    }

    /// What the leader does next, if anything: one member at a time. A member is given up when nobody has reached it for so long
    /// and a majority of the voters say so now; not so many that writes could not be acknowledged. It is taken back as soon as the
    /// leader reaches it.
    pub fn next_step(
        &self,
        state: &ClusterState,
        leader: NodeId,
        voters: &BTreeSet<NodeId>,
        sights: &Sights,
        lost_after_ms: u64,
    ) -> Option<LossStep> {
        let own = sights.get(&leader);
        let is_back = |node: &NodeId| *node == leader || own.is_some_and(|own| own.contains(node));
        let mut lost = state.members.iter().filter(|(_, member)| member.standing == Standing::Lost);
        if let Some((node, _)) = lost.find(|(node, _)| is_back(node)) {
            return Some(LossStep::Returned(*node));
        }
        let silent = self.since_ms.iter().filter(|(_, since)| self.looked_ms.saturating_sub(**since) >= lost_after_ms);
        let due = silent.map(|(node, _)| *node).filter(|node| {
            let agree = voters
                .iter()
                .filter(|voter| *voter != node)
                .filter(|voter| sights.get(voter).is_some_and(|reached| !reached.contains(node)));
            agree.count() > voters.len() / 2
        });
        // Where one cannot be given up, another one may be.
        let may_be_lost = |node: &NodeId| {
            let is_lost = state.members.get(node).is_none_or(|member| member.standing == Standing::Lost);
            !is_lost && state.clone().lost(*node).is_ok()
        };
        due.into_iter().find(may_be_lost).map(LossStep::Lost)
    }

    /// For how long a member has been out of everybody's reach.
    pub fn silent_ms(&self, node: NodeId) -> Option<u64> {
        self.since_ms.get(&node).map(|since| self.looked_ms.saturating_sub(*since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{plain_layout, state};

    const LEADER: NodeId = NodeId(1);
    const LOST_AFTER_MS: u64 = 60_000;

    /// Five members of two copies, the first three of which vote.
    struct Scene {
        state: ClusterState,
        losses: Losses,
        now_ms: u64,
        dead: BTreeSet<NodeId>,
        /// Who is silent only to whom.
        cut: BTreeSet<(NodeId, NodeId)>,
    }

    impl Scene {
        fn new() -> Scene {
            let state = state(2, 2, vec![plain_layout(1, 1..=5)]);
            let (dead, cut) = (BTreeSet::new(), BTreeSet::new());
            Scene { state, losses: Losses::default(), now_ms: 1_000_000, dead, cut }
        }

        fn sights(&self) -> Sights {
            let all = || self.state.members.keys().copied().filter(|node| !self.dead.contains(node));
            let can_be_asked = |by: &NodeId| *by == LEADER || !self.cut.contains(&(LEADER, *by));
            let reached = |by: NodeId| all().filter(|node| *node != by && !self.cut.contains(&(by, *node))).collect();
            all().filter(can_be_asked).map(|by| (by, reached(by))).collect()
        }

        fn step(&self) -> Option<LossStep> {
            let voters = [1, 2, 3].map(NodeId).into();
            self.losses.next_step(&self.state, LEADER, &voters, &self.sights(), LOST_AFTER_MS)
        }

        /// Time passes, a second at a time; what the leader does is done.
        fn pass(&mut self, ms: u64) -> Vec<LossStep> {
            let mut steps = Vec::new();
            for _ in 0..ms / 1_000 {
                self.now_ms += 1_000;
                let sights = self.sights();
                self.losses.look(&self.state, &sights, self.now_ms);
                while let Some(step) = self.step() {
                    match step {
                        LossStep::Lost(node) => self.state.lost(node).unwrap(),
                        LossStep::Returned(node) => self.state.returned(node).unwrap(),
                    }
                    steps.push(step);
                }
            }
            steps
        }
    }

    #[test]
    fn a_member_that_nobody_reaches_is_given_up_after_a_while_and_not_before() {
        let mut scene = Scene::new();
        assert_eq!(scene.pass(100_000), []);
        scene.dead.insert(NodeId(4));
        assert_eq!(scene.pass(60_000), []);
        assert_eq!(scene.pass(1_000), [LossStep::Lost(NodeId(4))]);
        assert_eq!(scene.pass(600_000), []);
        scene.dead.clear();
        assert_eq!(scene.pass(1_000), [LossStep::Returned(NodeId(4))]);
    }

    #[test]
    fn a_voter_is_given_up_by_the_others() {
        let mut scene = Scene::new();
        scene.dead.insert(NodeId(2));
        assert_eq!(scene.pass(61_000), [LossStep::Lost(NodeId(2))]);
    }

    #[test]
    fn a_member_that_somebody_reaches_is_there() {
        let mut scene = Scene::new();
        scene.cut = [1, 2, 3].map(|by| (NodeId(by), NodeId(4))).into();
        assert_eq!(scene.pass(600_000), [], "the fifth reaches it");
        scene.cut.insert((NodeId(5), NodeId(4)));
        assert_eq!(scene.pass(60_000), []);
        assert_eq!(scene.pass(1_000), [LossStep::Lost(NodeId(4))]);
        // That others reach it does not bring it back: the leader has to.
        scene.cut.remove(&(NodeId(5), NodeId(4)));
        assert_eq!(scene.pass(10_000), []);
        scene.cut.clear();
        assert_eq!(scene.pass(1_000), [LossStep::Returned(NodeId(4))]);
    }

    #[test]
    fn a_return_in_time_is_as_if_nothing_had_been() {
        let mut scene = Scene::new();
        scene.dead.insert(NodeId(4));
        assert_eq!(scene.pass(59_000), []);
        scene.dead.clear();
        assert_eq!(scene.pass(1_000), []);
        scene.dead.insert(NodeId(4));
        assert_eq!(scene.pass(60_000), []);
    }

    #[test]
    fn without_a_majority_of_voters_nobody_is_given_up() {
        let mut scene = Scene::new();
        scene.dead = [2, 3, 4].map(NodeId).into();
        assert_eq!(scene.pass(600_000), []);
        scene.dead.remove(&NodeId(3));
        assert_eq!(scene.pass(1_000), [LossStep::Lost(NodeId(2)), LossStep::Lost(NodeId(4))]);
    }

    #[test]
    fn no_more_are_given_up_than_writes_can_do_without() {
        let mut scene = Scene::new();
        scene.state.drain(NodeId(3)).unwrap();
        scene.dead = [4, 5].map(NodeId).into();
        assert_eq!(scene.pass(61_000), [LossStep::Lost(NodeId(4)), LossStep::Lost(NodeId(5))]);
        scene.dead.insert(NodeId(2));
        assert_eq!(scene.pass(600_000), [], "one node alone acknowledges no write of two copies");
    }

    #[test]
    fn a_node_that_has_slept_begins_to_look_anew() {
        let mut scene = Scene::new();
        scene.dead.insert(NodeId(4));
        assert_eq!(scene.pass(50_000), []);
        scene.now_ms += 1_000_000;
        assert_eq!(scene.pass(60_000), []);
        assert_eq!(scene.pass(1_000), [LossStep::Lost(NodeId(4))]);
    }

    #[test]
    fn a_member_that_is_removed_is_forgotten() {
        let mut scene = Scene::new();
        scene.dead.insert(NodeId(4));
        assert_eq!(scene.pass(50_000), []);
        assert!(scene.losses.silent_ms(NodeId(4)).is_some());
        scene.state.remove(NodeId(4), true).unwrap();
        assert_eq!(scene.pass(60_000), []);
        assert_eq!(scene.losses.silent_ms(NodeId(4)), None);
    }
}
