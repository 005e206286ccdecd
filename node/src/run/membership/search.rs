//! How a node finds its cluster: by what its directory says, by asking around, or by forming one with others.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use casbah_cluster::membership::{ClusterId, ClusterState, FormationStep, NodeId, Protocols, Waiting};
use futures_util::future::join_all;

use super::identity::Membership;
use super::place::{Place, PlaceError};
use super::words;
use crate::config::ListenAddress;
use crate::forward::{Discovery, Found};
use crate::index::Group;

/// Between two rounds of questions: a cluster forms within a few of them.
const ROUND_PAUSE: Duration = Duration::from_millis(300);

/// Addresses that are asked in one round: a name may stand for any number of them.
const ASKED_MAX: usize = 200;

/// What a member says to a node that it lets in.
struct Joined {
    node: NodeId,
    state: ClusterState,
    /// The state, as it came.
    encoded: Bytes,
    /// The position of the log that it is of.
    position: u64,
}

impl Place {
    /// Becomes a member of a cluster, or goes on being one: returns when this node knows who belongs to it and how blobs are
    /// placed. May take for ever, when others are waited for.
    ///
    /// # Errors
    /// [`PlaceError`] when its disk fails, or its cluster refuses it.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub(in crate::run) async fn enter(&self) -> Result<Group, PlaceError> {
        let member = self.identity().member;
        let (member, joined) = match member {
            Some(member) => (member, None),
            None => self.find().await?,
        };
        let group = self.settle(member).await?;
        if let Some(joined) = joined {
            self.keep_state(&group, &joined).await;
        }
        let state = group.state().borrow().clone();
        match state {
            Some(state) => self.learn(member.node, &state),
            None => self.hear_of(member).await,
        }
        Ok(group)
    }

    /// Has the node start by this state next time, unless its group knows of a later one.
    async fn keep_state(&self, group: &Group, joined: &Joined) {
        if let Err(error) = group.heard(joined.position, &joined.encoded).await {
            tracing::warn!(%error, "what a member has told of the cluster cannot be kept");
        }
    }

    /// Asks around until this node has a place. When it returns, the place is on disk; where another node has given it, that
    /// one's word of the cluster comes along.
    async fn find(&self) -> Result<(Membership, Option<Joined>), PlaceError> {
        loop {
            let asked_ms = self.now_ms();
            let (found, silent) = self.ask_around().await;
            let step = {
                let mut formation = self.formation();
                let Some(formation) = formation.as_mut() else { continue };
                for answer in found.iter().filter_map(|found| words::from_message(found.introduction.clone())) {
                    formation.heard(answer, asked_ms);
                }
                formation.decide(self.now_ms(), ClusterId(rand::random()), silent)
            };
            match step {
                FormationStep::Wait(waiting) => {
                    self.waits_for(Some(words_for(&waiting) + &self.foreign(&found)));
                    tokio::time::sleep(self.pause(&waiting)).await;
                }
                FormationStep::Keep(pledge) => {
                    let mut identity = self.identity();
                    identity.pledge.clone_from(&pledge);
                    identity.keep(&self.inner.dir)?;
                    drop(identity);
                    if let Some(formation) = self.formation().as_mut() {
                        formation.kept(pledge, self.now_ms());
                    }
                }
                FormationStep::Form(cluster) => {
                    return Ok((self.keep(Membership { cluster, node: NodeId(1), founder: true })?, None));
                }
                FormationStep::Join { cluster, address } => match self.join(&found, cluster, &address).await {
                    Some(joined) => {
                        let member = self.keep(Membership { cluster, node: joined.node, founder: false })?;
                        self.learn(joined.node, &joined.state);
                        return Ok((member, Some(joined)));
                    }
                    None => {
                        if let Some(formation) = self.formation().as_mut() {
                            formation.join_failed();
                        }
                        tokio::time::sleep(ROUND_PAUSE).await;
                    }
                },
            }
        }
    }

    /// Who answers and cannot be in one cluster with this node, for people; empty when nobody does.
    fn foreign(&self, found: &[Found]) -> String {
        let own = self.inner.joiner.protocols;
        let spoken = |found: &Found| Protocols::of_list(&found.introduction.protocols).ok();
        let foreign = found.iter().filter(|found| spoken(found).is_none_or(|theirs| !theirs.meet(&own)));
        let names: Vec<&str> = foreign.map(|found| found.introduction.node_name.as_str()).collect();
        match names.as_slice() {
            [] => String::new(),
            names => {
                format!("; {} speaks no version of the peer protocol that this node does ({own})", names.join(", "))
            }
        }
    }

    /// A single node waits for nobody; those that wait for others give them time.
    fn pause(&self, waiting: &Waiting) -> Duration {
        match waiting {
            Waiting::Pledges { .. } => ROUND_PAUSE / 3,
            _ => ROUND_PAUSE,
        }
    }

    fn keep(&self, member: Membership) -> Result<Membership, PlaceError> {
        let mut identity = self.identity();
        identity.member = Some(member);
        identity.pledge = None;
        identity.keep(&self.inner.dir)?;
        drop(identity);
        *self.formation() = None;
        self.waits_for(None);
        tracing::info!(cluster = %member.cluster, node = %member.node, "this node belongs to a cluster");
        Ok(member)
    }

    /// Introduces this node to everybody who may be there; who has answered, and how many of the configured addresses
    /// nobody has answered at.
    async fn ask_around(&self) -> (Vec<Found>, usize) {
        let Some(discovery) = &self.inner.discovery else { return (Vec::new(), 0) };
        let own = words::to_message(&self.introduction(), &self.inner.config);
        let own = &own;
        let look_ups = self.inner.seeds.iter().map(|seed| look_up(discovery, seed));
        let places: Vec<Vec<SocketAddr>> = join_all(look_ups).await;
        let distinct: BTreeSet<SocketAddr> = places.iter().flatten().copied().take(ASKED_MAX).collect();
        let asked = distinct.into_iter().map(|at| async move {
            let answer = discovery.introduce(at, own).await;
            answer.inspect_err(|error| tracing::debug!(%error, "nobody answers")).ok()
        });
        let found: Vec<Found> = join_all(asked).await.into_iter().flatten().collect();
        let answered = |places: &&Vec<SocketAddr>| places.iter().any(|at| found.iter().any(|found| found.at == *at));
        let silent = places.iter().filter(|places| !answered(places)).count();
        (found, silent)
    }

    /// Asks members of this cluster to be let in, the one at `address` first.
    async fn join(&self, found: &[Found], cluster: ClusterId, address: &str) -> Option<Joined> {
        let discovery = self.inner.discovery.as_ref()?;
        let members = || found.iter().filter(|found| found.introduction.cluster_id == cluster.0.as_slice());
        let named = members().filter(|found| found.introduction.address == address);
        let others = members().filter(|found| found.introduction.address != address);
        let own = words::to_message(&self.introduction(), &self.inner.config);
        for member in named.chain(others) {
            let answer = match discovery.join(member.at, &own).await {
                Ok(answer) => answer,
                Err(error) => {
                    self.waits_for(Some(format!("the cluster \"{}\" to let it in: {error}", self.inner.config.name)));
                    continue;
                }
            };
            let is_it = words::sixteen(&answer.cluster_id) == Some(cluster.0);
            let state = ClusterState::decode(&answer.state);
            match state {
                Ok(state) if is_it && answer.node_id > 0 => {
                    let (node, position) = (NodeId(answer.node_id), answer.position);
                    return Some(Joined { node, state, encoded: answer.state, position });
                }
                _ => tracing::warn!(at = %member.at, "a node has let this one in, and does not say to what"),
            }
        }
        None
    }

    /// Waits until a member that has no state yet is told of it: by the log, or by another member.
    async fn hear_of(&self, member: Membership) {
        self.waits_for(Some("the cluster that it belongs to".to_owned()));
        let Some(group) = self.group().cloned() else { return };
        let mut states = group.state();
        let by_log = async {
            let heard = states.wait_for(|state| state.is_some()).await.is_ok();
            if !heard {
                std::future::pending::<()>().await;
            }
        };
        let by_others = async {
            while !self.knows_its_cluster() {
                let (found, _) = self.ask_around().await;
                if let Some(joined) = self.join(&found, member.cluster, "").await
                    && joined.node == member.node
                {
                    self.learn(joined.node, &joined.state);
                    self.keep_state(&group, &joined).await;
                    return;
                }
                tokio::time::sleep(ROUND_PAUSE).await;
            }
        };
        tokio::select! {
            () = by_log => {}
            () = by_others => {}
        }
        self.waits_for(None);
    }
}

async fn look_up(discovery: &Discovery, seed: &ListenAddress) -> Vec<SocketAddr> {
    match discovery.look_up(seed).await {
        Ok(places) => places,
        Err(error) => {
            tracing::debug!(%seed, %error, "an address of cluster.join leads nowhere");
            Vec::new()
        }
    }
}

/// For people.
fn words_for(waiting: &Waiting) -> String {
    match waiting {
        Waiting::Joining => "a cluster to let it in".to_owned(),
        Waiting::Cluster => "a cluster that it can join: it is not to form one (cluster.bootstrap_expect)".to_owned(),
        Waiting::SeveralClusters(clusters) => {
            let clusters: Vec<String> = clusters.iter().map(ToString::to_string).collect();
            format!("somebody to choose: several clusters have its name ({})", clusters.join(", "))
        }
        Waiting::Nodes { seen, expected } => {
            format!("other nodes: {seen} of {expected} are here (cluster.bootstrap_expect, cluster.join)")
        }
        Waiting::Founder { name } => format!("{name}, which forms the cluster"),
        Waiting::Pledges { count, expected } => format!("the word of the others: {count} of {expected} have given it"),
        Waiting::Seeds { silent } => {
            format!("an answer at each address of cluster.join: {silent} are silent, and one may be in a cluster")
        }
    }
}
