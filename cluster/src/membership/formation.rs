//! How fresh nodes become one cluster, and never two.
//!
//! A node that sees as many fresh nodes as are expected, and is the first of them by name, draws an id and becomes its
//! *founder*. Others, when they hear of it, *pledge* themselves to that id, on disk before they say so. A founder that has been told
//! of as many pledges as are expected, its own included, *forms* the cluster, of itself alone; the others join it. All that is
//! believed are answers to calls of one's own: what they say was so after the call was made.
//!
//! What holds, whatever is lost, delayed or repeated and whoever crashes:
//!
//! - A pledge is for one id. It is taken back only when its founder, asked after the pledge was made, says something else: it
//!   has given that id up and will never use it again; or when there is another directory under the founder's name: then the
//!   founder's is gone. So each directory counts for one cluster at most that is formed: two clusters take twice as many
//!   directories as are expected, of different names.
//! - A node that asks to join a cluster takes part in forming none until it has given the attempt up, and an answer that comes
//!   later is not heard. A node with a pledge joins no other cluster than that.
//! - A node that is in a cluster never leaves it for another: nothing here is asked any more.
//!
//! So with fewer nodes than twice those expected there is one cluster at most. With exactly as many as are expected this is so
//! even if directories are wiped meanwhile: each cluster takes every name, and a name has one directory at a time.

use std::collections::{BTreeMap, BTreeSet};

use super::ids::{ClusterId, VolumeId};
use super::introduction::{Introduction, Pledge};

/// For how long what a node has said of itself is taken to be so: some rounds of introductions, with room for lost ones.
pub const HEARD_LATELY_MS: u64 = 10_000;

/// A founder that has been stopped for longer asks again before it forms a cluster: those who pledged may have been wiped since.
pub const CONFIRMED_LATELY_MS: u64 = 5_000;

/// How many nodes are kept in mind: far more than any group has, so that strangers cannot fill memory.
const NODES_HEARD_MAX: usize = 1_000;

/// A node that is in no cluster yet.
#[derive(Debug, Clone)]
pub struct Formation {
    own: Introduction,
    /// By directory, without its own.
    heard: BTreeMap<VolumeId, Heard>,
    /// To another node. As it is on disk.
    pledge: Option<Pledge>,
    /// When it was made: calls made before do not bear on it.
    pledged_ms: u64,
    /// The founder has given it up.
    is_void: bool,
    founding: Option<Founding>,
    /// A call to join is under way.
    is_joining: bool,
    has_formed: bool,
}

#[derive(Debug, Clone)]
struct Heard {
    introduction: Introduction,
    /// When it was asked.
    asked_ms: u64,
}

#[derive(Debug, Clone)]
struct Founding {
    cluster: ClusterId,
    /// Those who have said that they are pledged to it, and when they were asked.
    confirmed_ms: BTreeMap<VolumeId, u64>,
}

/// What a fresh node does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FormationStep {
    /// Goes on asking.
    Wait(Waiting),
    /// Writes this pledge, or that there is none, to disk; then says [`kept`](Formation::kept).
    Keep(Option<Pledge>),
    /// Asks to be let into this cluster, at this address. Then either it is in, or [`join_failed`](Formation::join_failed).
    Join {
        /// The cluster that it is to be: another one is not to be joined.
        cluster: ClusterId,
        /// The address of a node that is in it.
        address: String,
    },
    /// Writes to disk that it is the first node of this cluster, and is in it. It cannot change its mind.
    Form(ClusterId),
}

/// What a fresh node waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waiting {
    /// Its call to join.
    Joining,
    /// A cluster to join: it is not to form one.
    Cluster,
    /// Several clusters have its name: a person has to say which is meant.
    SeveralClusters(BTreeSet<ClusterId>),
    /// More fresh nodes.
    Nodes {
        /// How many it sees, itself included.
        seen: u32,
        /// How many there are to be.
        expected: u32,
    },
    /// The founder that it is pledged to, or would follow.
    Founder {
        /// Its name.
        name: String,
    },
    /// The pledges of those whom it sees.
    Pledges {
        /// How many there are, its own included.
        count: u32,
        /// How many there are to be.
        expected: u32,
    },
    /// An answer of every address that it was given: alone it forms a cluster only when nobody can be in one already.
    Seeds {
        /// How many have not answered.
        silent: usize,
    },
}

impl Formation {
    /// A fresh node, which has this pledge on its disk. `own` says nothing of identity, pledge or peers.
    pub fn new(own: Introduction, pledge: Option<Pledge>) -> Formation {
        Formation {
            own,
            heard: BTreeMap::new(),
            pledge,
            pledged_ms: 0,
            is_void: false,
            founding: None,
            is_joining: false,
            has_formed: false,
        }
    }

    /// What it says of itself now, to those who ask and those whom it asks.
    pub fn introduction(&self) -> Introduction {
        let mut own = self.own.clone();
        own.fresh_peers = self.fresh().map(|heard| heard.introduction.joiner.volume).collect();
        if self.is_joining {
            own.bootstrap_expect = 0;
        } else {
            own.pledge = match &self.founding {
                Some(founding) => Some(self.own_pledge(founding.cluster)),
                None => self.pledge.clone(),
            };
        }
        own
    }

    /// A node has answered a call that was made at `asked_ms`. Times are of a clock that never goes back.
    pub fn heard(&mut self, answer: Introduction, asked_ms: u64) {
        let volume = answer.joiner.volume;
        if volume == self.own.joiner.volume || answer.cluster_name != self.own.cluster_name {
            return;
        }
        // Those could not be members of one cluster. One that is in a cluster says why it lets this node not in.
        if answer.identity.is_none() && !answer.joiner.protocols.meet(&self.own.joiner.protocols) {
            return;
        }
        if let Some(pledge) = &self.pledge {
            let is_founder = volume == pledge.founder;
            let follows = answer.cluster() == Some(pledge.cluster)
                || (answer.identity.is_none() && answer.founding() == Some(pledge.cluster));
            let is_successor = !is_founder && answer.joiner.name == pledge.founder_name;
            self.is_void |= asked_ms >= self.pledged_ms && ((is_founder && !follows) || is_successor);
        }
        if let Some(founding) = &mut self.founding {
            let pledged_to = answer.pledge.as_ref().map(|pledge| (pledge.cluster, pledge.founder));
            let is_pledged = pledged_to == Some((founding.cluster, self.own.joiner.volume));
            if answer.is_fresh() && is_pledged {
                founding.confirmed_ms.insert(volume, asked_ms);
            } else {
                founding.confirmed_ms.remove(&volume);
            }
        }
        // Another directory under its name: the old one is gone.
        let stays = |other: &VolumeId, heard: &Heard| {
            *other == volume || heard.introduction.joiner.name != answer.joiner.name || heard.asked_ms > asked_ms
        };
        self.heard.retain(|other, heard| stays(other, heard));
        let is_newer = self.heard.get(&volume).is_none_or(|heard| heard.asked_ms <= asked_ms);
        if is_newer && (self.heard.contains_key(&volume) || self.heard.len() < NODES_HEARD_MAX) {
            self.heard.insert(volume, Heard { introduction: answer, asked_ms });
        }
    }

    /// What [`FormationStep::Keep`] was about is on disk.
    pub fn kept(&mut self, pledge: Option<Pledge>, now_ms: u64) {
        (self.pledge, self.pledged_ms, self.is_void) = (pledge, now_ms, false);
    }

    /// It has not been let in, or does not know it: the call has ended, and whatever it still brings is not heard.
    pub fn join_failed(&mut self) {
        self.is_joining = false;
    }

    /// What to do now. `draw` is a random id, for the case that one is needed; `silent_seeds` is the number of configured
    /// addresses that no node has answered at lately.
    pub fn decide(&mut self, now_ms: u64, draw: ClusterId, silent_seeds: usize) -> FormationStep {
        if let (true, Some(founding)) = (self.has_formed, &self.founding) {
            return FormationStep::Form(founding.cluster);
        }
        if self.is_joining {
            return FormationStep::Wait(Waiting::Joining);
        }
        self.heard.retain(|_, heard| heard.asked_ms.saturating_add(HEARD_LATELY_MS) >= now_ms);
        if self.is_void {
            return FormationStep::Keep(None);
        }
        if let Some(step) = self.join() {
            return step;
        }
        if let Some(pledge) = &self.pledge {
            return FormationStep::Wait(Waiting::Founder { name: pledge.founder_name.clone() });
        }
        if self.own.bootstrap_expect == 0 {
            return FormationStep::Wait(Waiting::Cluster);
        }
        let rank = |introduction: &Introduction| (introduction.joiner.name.clone(), introduction.joiner.volume);
        let own_rank = rank(&self.own);
        let earlier = || self.fresh().map(|heard| &heard.introduction).filter(|other| rank(other) < own_rank);
        // A founder that comes before is followed, and an own attempt given up for it.
        let founder = earlier().filter(|other| other.founding().is_some()).min_by_key(|other| rank(other));
        if let Some((founder, cluster)) = founder.and_then(|founder| Some((founder, founder.founding()?))) {
            let (founder, founder_name) = (founder.joiner.volume, founder.joiner.name.clone());
            let pledge = Pledge { cluster, founder, founder_name };
            self.founding = None;
            return FormationStep::Keep(Some(pledge));
        }
        let seen = u32::try_from(self.fresh().count()).unwrap_or(u32::MAX).saturating_add(1);
        let expected = self.own.bootstrap_expect;
        if self.founding.is_none() {
            if seen < expected {
                return FormationStep::Wait(Waiting::Nodes { seen, expected });
            }
            if let Some(first) = earlier().min_by_key(|other| rank(other)) {
                return FormationStep::Wait(Waiting::Founder { name: first.joiner.name.clone() });
            }
            if expected == 1 && silent_seeds > 0 {
                return FormationStep::Wait(Waiting::Seeds { silent: silent_seeds });
            }
            self.founding = Some(Founding { cluster: draw, confirmed_ms: BTreeMap::new() });
        }
        self.form(now_ms)
    }

    /// What there is to do if nodes have been heard from that are in a cluster.
    fn join(&mut self) -> Option<FormationStep> {
        let members = || self.heard.values().filter_map(|heard| Some((heard, heard.introduction.cluster()?)));
        let clusters: BTreeSet<ClusterId> = members().map(|(_, cluster)| cluster).collect();
        let cluster = match &self.pledge {
            Some(pledge) => clusters.get(&pledge.cluster).copied()?,
            None if clusters.len() > 1 => {
                self.founding = None;
                return Some(FormationStep::Wait(Waiting::SeveralClusters(clusters)));
            }
            None => clusters.first().copied()?,
        };
        // The one that was heard from last: the likeliest to be there.
        let (member, _) = members().filter(|(_, of)| *of == cluster).max_by_key(|(heard, _)| heard.asked_ms)?;
        let address = member.introduction.joiner.address.clone();
        (self.founding, self.is_joining) = (None, true);
        Some(FormationStep::Join { cluster, address })
    }

    fn form(&mut self, now_ms: u64) -> FormationStep {
        let expected = self.own.bootstrap_expect;
        let Some(founding) = &self.founding else {
            return FormationStep::Wait(Waiting::Nodes { seen: 1, expected });
        };
        let lately = |asked_ms: &u64| asked_ms.saturating_add(CONFIRMED_LATELY_MS) >= now_ms;
        let pledged = self.fresh().filter(|heard| {
            let volume = heard.introduction.joiner.volume;
            founding.confirmed_ms.get(&volume).is_some_and(lately)
        });
        // Itself, too. Names are counted: two directories of one name are never both there.
        let names: BTreeSet<&str> = pledged
            .map(|heard| heard.introduction.joiner.name.as_str())
            .chain([self.own.joiner.name.as_str()])
            .collect();
        let count = u32::try_from(names.len()).unwrap_or(u32::MAX);
        if count < expected {
            return FormationStep::Wait(Waiting::Pledges { count, expected });
        }
        self.has_formed = true;
        FormationStep::Form(founding.cluster)
    }

    /// Those heard from who are there to form the same cluster.
    fn fresh(&self) -> impl Iterator<Item = &Heard> {
        let expected = self.own.bootstrap_expect;
        let own_name = &self.own.joiner.name;
        self.heard.values().filter(move |heard| {
            let other = &heard.introduction;
            other.is_fresh() && other.bootstrap_expect == expected && other.joiner.name != *own_name
        })
    }

    fn own_pledge(&self, cluster: ClusterId) -> Pledge {
        Pledge { cluster, founder: self.own.joiner.volume, founder_name: self.own.joiner.name.clone() }
    }
}
