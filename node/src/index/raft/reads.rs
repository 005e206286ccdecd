//! Linearizable reads: those that come together share one question to the leader, which position to wait for.
//!
//! A round that begins after a read was asked for tells a position at or behind everything that was acknowledged before it. So
//! a read that comes while a round is under way waits for the next one.
//!
//! When no leader is found for as long as is waited for one, reads are told so at once, and one round after the other goes on
//! looking: an outage costs each read nothing but its answer.

use std::sync::Arc;

use bytes::Bytes;
use casbah_cluster::consensus::ReadIndexAnswer;
use casbah_cluster::membership::NodeId;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::index::raft::core::{Boxed, Core, unreadable};
use crate::index::raft::error::GroupError;
use crate::index::raft::network::RaftCall;

/// Reads that are handed over to a round at once; beyond this they wait in line.
pub(super) const WAITING_MAX: usize = 1024;

/// Reads that wait for the next round; beyond this, one is told to come back.
const NEXT_MAX: usize = 16 << 10;

/// Who waits for a position.
pub(super) type Waiting = oneshot::Sender<Result<u64, GroupError>>;

/// Answers reads until no more can come.
pub(super) async fn run(core: Arc<Core>, mut waiting: mpsc::Receiver<Waiting>) {
    let mut round: Option<Boxed<Result<u64, GroupError>>> = None;
    let mut asked: Vec<Waiting> = Vec::new();
    let mut next: Vec<Waiting> = Vec::new();
    let mut is_lost = false;
    loop {
        tokio::select! {
            read = waiting.recv() => {
                let Some(read) = read else { return };
                let mut read = Some(read);
                while let Some(one) = read.take() {
                    if is_lost {
                        drop(one.send(Err(GroupError::NoLeader)));
                    } else if next.len() >= NEXT_MAX {
                        drop(one.send(Err(GroupError::Busy)));
                    } else {
                        next.push(one);
                    }
                    read = waiting.try_recv().ok();
                }
            }
            outcome = async { match &mut round { Some(round) => round.await, None => std::future::pending().await } } => {
                round = None;
                is_lost = matches!(outcome, Err(GroupError::NoLeader));
                for read in asked.drain(..) {
                    // Whoever went away does not wait for the outcome.
                    drop(read.send(outcome.clone()));
                }
                if is_lost {
                    for read in next.drain(..) {
                        drop(read.send(Err(GroupError::NoLeader)));
                    }
                }
            }
        }
        if round.is_none() && (is_lost || !next.is_empty()) {
            asked = std::mem::take(&mut next);
            round = Some(Box::pin(one_round(Arc::clone(&core))));
        }
    }
}

/// The position to wait for, from whoever leads within the time that is waited for a leader.
async fn one_round(core: Arc<Core>) -> Result<u64, GroupError> {
    let deadline = Instant::now() + core.timing.leader_wait;
    let mut asked = None;
    loop {
        let leader = core.leader();
        let answer = match leader {
            None => None,
            Some(leader) if leader == core.node => Some(core.read_index().await?),
            Some(leader) => ask(&core, leader, deadline).await,
        };
        if let Some(ReadIndexAnswer::Done { index }) = answer {
            return Ok(index);
        }
        asked = leader.or(asked);
        if Instant::now() >= deadline {
            return Err(GroupError::NoLeader);
        }
        core.leader_changes(asked, deadline).await;
    }
}

/// The leader's answer; `None` when there is none. Asking twice does no harm.
async fn ask(core: &Core, leader: NodeId, deadline: Instant) -> Option<ReadIndexAnswer> {
    let left = deadline.saturating_duration_since(Instant::now()).min(core.timing.read_index);
    let call = core.network.call(leader, RaftCall::ReadIndex, Bytes::new(), left);
    let answer = tokio::select! {
        answer = call => answer.ok()?,
        () = core.another_leads(Some(leader)) => return None,
    };
    ReadIndexAnswer::decode(&answer).inspect_err(|error| unreadable(error, leader)).ok()
}
