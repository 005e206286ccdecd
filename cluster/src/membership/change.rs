//! Changes of the cluster's state: each is a committed command, and does the same on every node.
//!
//! Layouts follow from members by one rule, [`ClusterState::settle`]: whenever the newest layout is not what the members make,
//! another one is appended, and the older ones stay in force until every member has synced to it. A cluster begins without
//! a layout: the first one is made when the expected members are there, so that no blob ever lies by fewer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ids::{ClusterId, Epoch, NodeId};
use super::introduction::Joiner;
use super::protocol::{Protocol, Protocols};
use super::state::{ClusterState, Layout, LayoutNode, Member, Part, Rebalance, Standing};

/// Nodes of a cluster, at the most. What placement and the group are made and tested for.
pub const MEMBERS_MAX: usize = 100;

/// Layouts in force at one time, at the most: each has to be asked on a miss. Further changes wait for one to be retired, and
/// then go into one layout together.
pub const LAYOUTS_MAX: usize = 4;

/// For how long a leader waits for the expected members before it begins with those who have come. They were all there when
/// the cluster was formed, and join within a moment; one that was lost in it must not keep the others from serving.
pub const FIRST_LAYOUT_PATIENCE_MS: u64 = 60_000;

/// Why the cluster's state is not changed. Part of the format of answers between nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// A node is of another cluster.
    #[error("the cluster's name is \"{name}\"")]
    ClusterName {
        /// This cluster's.
        name: String,
    },
    /// It has a name that a node has that is there.
    #[error("node {node} has the name \"{name}\", and another directory")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        node: NodeId,
    },
    /// It does not say its name.
    #[error("a node needs a name")]
    NoName,
    /// It does not speak the version that the cluster works by.
    #[error("the cluster works by version {protocol} of the peer protocol, and the node speaks {spoken}")]
    Protocol {
        /// The cluster's.
        protocol: Protocol,
        /// The node's.
        spoken: Protocols,
    },
    /// There are as many nodes as there can be.
    #[error("a cluster has {MEMBERS_MAX} nodes at the most")]
    Full,
    /// There is no such node.
    #[error("there is no node {node}")]
    UnknownNode {
        /// As asked for.
        node: NodeId,
    },
    /// It would leave nobody.
    #[error("node {node} is the last one of the cluster")]
    LastNode {
        /// As asked for.
        node: NodeId,
    },
    /// Nobody leaves, or is given up, before there is something to leave.
    #[error("the cluster is being formed: blobs have no place yet")]
    Forming,
    /// It would leave nobody to hold blobs.
    #[error("no other node that serves has a part of the blobs than node {node}")]
    LastServing {
        /// As asked for.
        node: NodeId,
    },
    /// It holds blobs by a layout that is in force.
    #[error("node {node} has a part of the blobs")]
    HoldsBlobs {
        /// As asked for.
        node: NodeId,
    },
    /// Too few would be left to acknowledge writes.
    #[error("without node {node} {left} nodes would serve, and a write needs {write_quorum}")]
    TooFewLeft {
        /// As asked for.
        node: NodeId,
        /// Nodes that would serve.
        left: usize,
        /// Copies that make a write acknowledged.
        write_quorum: u8,
    },
    /// What was looked at is not what would be done now.
    #[error("the plan for epoch {epoch} is stale: the next layout would be that of epoch {planned}")]
    StalePlan {
        /// As asked for.
        epoch: Epoch,
        /// Of the plan as it is now.
        planned: Epoch,
    },
    /// Blobs lie as the members want it.
    #[error("nothing waits to be applied")]
    NothingToApply,
    /// Nothing moves to a layout that is not in force.
    #[error("the layout of epoch {epoch} is not in force")]
    UnknownLayout {
        /// As reported.
        epoch: Epoch,
    },
}

impl ClusterState {
    /// A cluster that its founder forms, of itself alone; so many members are expected before blobs are placed.
    pub fn formed(
        id: ClusterId,
        name: String,
        (copies, write_quorum): (u8, u8),
        expected_members: u32,
        founder: Joiner,
    ) -> ClusterState {
        let mut state = ClusterState {
            id,
            name,
            copies,
            write_quorum,
            // Those who come may be older.
            protocol: founder.protocols.oldest,
            next_node_id: NodeId(1),
            expected_members,
            rebalance: Rebalance::Automatic,
            planned: Epoch(1),
            members: BTreeMap::new(),
            layouts: Vec::new(),
        };
        let founder = state.add(founder, None);
        state.set_part(founder, Part::Voter);
        state.settle(&BTreeMap::new());
        state
    }

    /// Lets a node in: under its old id if its directory is known, and then by what it says now of its name, address, zone and
    /// weight; under a new one otherwise. `replaces` is a member that is known to be gone: whose name it may take, and whose
    /// place it takes.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub fn admit(&mut self, joiner: Joiner, replaces: Option<NodeId>) -> Result<NodeId, Refusal> {
        if joiner.name.is_empty() {
            return Err(Refusal::NoName);
        }
        let (protocol, spoken) = (self.protocol, joiner.protocols);
        if !spoken.speak(protocol) {
            return Err(Refusal::Protocol { protocol, spoken });
        }
        let known = self.members.iter().find(|(_, member)| member.volume == joiner.volume).map(|(id, _)| *id);
        let namesake = self.members.iter().find(|(id, member)| member.name == joiner.name && Some(**id) != known);
        let namesake = namesake.map(|(id, _)| *id);
        match namesake {
            Some(node) if replaces != Some(node) => return Err(Refusal::NameTaken { name: joiner.name, node }),
            None if known.is_none() && self.members.len() >= MEMBERS_MAX => return Err(Refusal::Full),
            _ => {}
        }
        // A member that takes another one's name is to hold blobs if nobody else would.
        if let Some(node) = namesake
            && let Some(id) = known
            && self.members.get(&id).is_some_and(|member| member.standing != Standing::Serving)
        {
            self.leaves_others(node)?;
        }
        let before = self.proposed();
        let replaced = namesake.and_then(|node| self.members.remove(&node));
        let id = match known.and_then(|id| Some((id, self.members.get_mut(&id)?))) {
            Some((id, member)) => {
                let Joiner { name, address, volume, zone, weight, protocols } = joiner;
                (member.name, member.address, member.volume) = (name, address, volume);
                (member.zone, member.weight, member.protocols) = (zone, weight, protocols);
                member.placed = member.placed.take().or_else(|| replaced?.placed);
                id
            }
            None => self.add(joiner, replaced),
        };
        self.settle(&before);
        Ok(id)
    }

    /// Takes a node out: one that holds nothing by any layout in force, or is lost; or any, if that is forced. It is not let
    /// in again under this id.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub fn remove(&mut self, node: NodeId, force: bool) -> Result<(), Refusal> {
        let member = self.members.get(&node).ok_or(Refusal::UnknownNode { node })?;
        if self.members.len() == 1 {
            return Err(Refusal::LastNode { node });
        }
        if !force && member.standing != Standing::Lost && self.holds_blobs(node) {
            return Err(Refusal::HoldsBlobs { node });
        }
        self.leaves_others(node)?;
        let before = self.proposed();
        self.members.remove(&node);
        self.settle(&before);
        Ok(())
    }

    /// Places blobs on the members that there are, without waiting for others. For a founder whose peers are late.
    pub fn begin(&mut self) {
        if self.layouts.is_empty() {
            let before = self.proposed();
            self.expected_members = 0;
            self.settle(&before);
        }
    }

    /// A node has all that the layout of this epoch gives it, and decides by nothing older. When every member has, the older
    /// layouts are retired: also those members that hold nothing, as they decide too, but not those that are lost. It says
    /// nothing of what older layouts gave it.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub fn synced(&mut self, node: NodeId, epoch: Epoch) -> Result<(), Refusal> {
        if !self.layouts.iter().any(|layout| layout.epoch == epoch) {
            return Err(Refusal::UnknownLayout { epoch });
        }
        let member = self.members.get_mut(&node).ok_or(Refusal::UnknownNode { node })?;
        member.synced = member.synced.max(epoch);
        let unchanged = self.proposed();
        self.settle(&unchanged);
        Ok(())
    }

    /// Notes what part a node has in the Raft group.
    pub fn set_part(&mut self, node: NodeId, part: Part) {
        if let Some(member) = self.members.get_mut(&node) {
            member.part = part;
        }
    }

    /// The nodes of the layout that all that is configured now would make.
    pub fn proposed(&self) -> BTreeMap<NodeId, LayoutNode> {
        let serving = self.members.iter().filter(|(_, member)| member.standing == Standing::Serving);
        serving.map(|(id, member)| (*id, member.configured())).collect()
    }

    /// The nodes of the layout that is made now: those that serve, as they were placed last.
    pub(super) fn wanted(&self) -> BTreeMap<NodeId, LayoutNode> {
        let serving = self.members.iter().filter(|(_, member)| member.standing == Standing::Serving);
        serving.filter_map(|(id, member)| Some((*id, member.placed.clone()?))).collect()
    }

    /// Whether a node is in a layout in force.
    pub fn holds_blobs(&self, node: NodeId) -> bool {
        self.layouts.iter().any(|layout| layout.nodes.contains_key(&node))
    }

    /// How many others hold blobs if this node does not: some, or none while the cluster is formed.
    ///
    /// # Errors
    /// [`Refusal::LastServing`] when nobody would be left.
    pub(super) fn leaves_others(&self, node: NodeId) -> Result<usize, Refusal> {
        let others = self.wanted().into_keys().filter(|other| *other != node).count();
        if self.layouts.is_empty() || others > 0 { Ok(others) } else { Err(Refusal::LastServing { node }) }
    }

    /// A new member; in the place of another one it has that one's part of the blobs, and goes on leaving.
    fn add(&mut self, joiner: Joiner, replaced: Option<Member>) -> NodeId {
        let id = self.next_node_id;
        self.next_node_id = NodeId(id.0 + 1);
        let Joiner { name, address, volume, zone, weight, protocols } = joiner;
        let leaves = replaced.as_ref().is_some_and(|replaced| replaced.leaves);
        let member = Member {
            name,
            address,
            volume,
            zone,
            weight,
            protocols,
            part: Part::Watcher,
            synced: Epoch::default(),
            standing: if leaves { Standing::Draining } else { Standing::Serving },
            leaves,
            placed: replaced.and_then(|replaced| replaced.placed),
        };
        self.members.insert(id, member);
        id
    }

    /// Does what follows from a change: retires layouts, appends the layout that the members make, if it is another one than the
    /// newest and there is room for it, and raises the version that the cluster works by, if all members speak a newer one. `before` is what was [proposed](ClusterState::proposed) before the change.
    pub(super) fn settle(&mut self, before: &BTreeMap<NodeId, LayoutNode>) {
        self.place(before);
        self.raise();
    }

    fn place(&mut self, before: &BTreeMap<NodeId, LayoutNode>) {
        self.retire();
        let waits = self.rebalance == Rebalance::OnApply && !self.layouts.is_empty();
        if !waits {
            self.place_all();
        }
        let is_forming = self.layouts.is_empty() && (self.members.len() as u64) < u64::from(self.expected_members);
        let newest = self.layouts.last();
        let next = Epoch(newest.map_or(0, |layout| layout.epoch.0) + 1).max(self.planned);
        let nodes = self.wanted();
        let is_same = newest.is_some_and(|layout| layout.nodes == nodes);
        if is_forming || is_same || nodes.is_empty() || self.layouts.len() >= LAYOUTS_MAX {
            let is_another_plan = waits && self.proposed() != *before;
            self.planned = if is_another_plan { Epoch(next.0 + 1) } else { next };
            return;
        }
        self.planned = Epoch(next.0 + 1);
        self.layouts.push(Layout { epoch: next, nodes });
    }

    /// Has the next layout made with what is configured.
    pub(super) fn place_all(&mut self) {
        for member in self.members.values_mut() {
            member.placed = Some(member.configured());
        }
    }

    /// Not before all expected members are there, of which some may be older. A lost one counts: it may return as it is.
    fn raise(&mut self) {
        let newest = self.members.values().map(|member| member.protocols.newest).min();
        if let Some(newest) = newest.filter(|_| !self.layouts.is_empty()) {
            self.protocol = self.protocol.max(newest);
        }
    }

    /// Drops the layouts before the newest one that all members have synced to. Whoever has synced to a later one decides by nothing
    /// older; but what an older one gives it, it need not have pulled.
    fn retire(&mut self) {
        let waited_for = || self.members.iter().filter(|(_, member)| member.standing != Standing::Lost);
        let is_filled = |layout: &Layout| {
            waited_for().all(|(id, member)| {
                member.synced == layout.epoch || member.synced > layout.epoch && !layout.nodes.contains_key(id)
            })
        };
        if waited_for().next().is_some()
            && let Some(at) = self.layouts.iter().rposition(is_filled)
        {
            self.layouts.drain(..at);
        }
    }
}
