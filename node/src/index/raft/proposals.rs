//! Commands on their way into the log: gathered into entries, and sent to whoever leads.
//!
//! One that comes while nothing is under way is an entry of its own at once. While entries are under way, what comes is
//! gathered: for a moment, or until an entry is full.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use casbah_cluster::consensus::{
    COMMAND_BYTES_MAX, COMMANDS_PER_ENTRY_MAX, Command, ENTRY_BYTES_MAX, Proposal, ProposalAnswer, Reply,
};
use casbah_cluster::membership::{NodeId, Protocol};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::index::raft::core::{Boxed, Core, unreadable};
use crate::index::raft::error::GroupError;
use crate::index::raft::network::{NetworkError, RaftCall};

/// Commands that wait to be gathered; beyond this, one is told to come back.
pub(super) const WAITING_MAX: usize = 4096;

/// How long a command waits for others while an entry is under way: less than the disk takes.
const GATHER: Duration = Duration::from_millis(2);

/// Entries under way at once, so that the time to the other nodes does not bound the rate.
const UNDER_WAY_MAX: usize = 16;

/// A command, and who waits for its reply.
pub(super) struct Waiting {
    pub(super) command: Command,
    pub(super) done: oneshot::Sender<Result<Reply, GroupError>>,
}

type Done = Vec<oneshot::Sender<Result<Reply, GroupError>>>;

/// Commands that become one entry.
#[derive(Default)]
struct Gathered {
    commands: Vec<Command>,
    done: Done,
    bytes: usize,
}

// === impl Gathered ===

impl Gathered {
    fn push(&mut self, waiting: Waiting) {
        self.bytes += waiting.command.size_bytes();
        self.commands.push(waiting.command);
        self.done.push(waiting.done);
    }

    fn has_room_for(&self, next: &Waiting) -> bool {
        self.commands.is_empty()
            || (self.commands.len() < COMMANDS_PER_ENTRY_MAX
                && self.bytes + next.command.size_bytes() <= ENTRY_BYTES_MAX)
    }

    fn is_full(&self) -> bool {
        self.commands.len() >= COMMANDS_PER_ENTRY_MAX || self.bytes >= ENTRY_BYTES_MAX
    }
}

/// A command that is small enough, and known to all nodes of a cluster that works by this version, or why not.
///
/// # Errors
/// [`GroupError::TooLarge`], [`GroupError::TooEarly`].
pub(super) fn check(command: &Command, protocol: Protocol) -> Result<(), GroupError> {
    let (size_bytes, since) = (command.size_bytes(), command.since());
    if size_bytes > COMMAND_BYTES_MAX {
        return Err(GroupError::TooLarge { size_bytes, limit_bytes: COMMAND_BYTES_MAX });
    }
    // The version is never lowered: what may be proposed by what is known here may be by all that is agreed on later.
    if since > protocol {
        return Err(GroupError::TooEarly { protocol, since });
    }
    Ok(())
}

/// Gathers and sends until no more can come and everything is answered.
pub(super) async fn run(core: Arc<Core>, mut waiting: mpsc::Receiver<Waiting>) {
    let mut under_way: FuturesUnordered<Boxed<()>> = FuturesUnordered::new();
    let mut next = None;
    let mut is_open = true;
    while is_open || next.is_some() {
        let first = match next.take() {
            Some(first) => first,
            None => tokio::select! {
                first = waiting.recv() => match first {
                    Some(first) => first,
                    None => { is_open = false; continue; }
                },
                Some(()) = under_way.next(), if !under_way.is_empty() => continue,
            },
        };
        let mut gathered = Gathered::default();
        gathered.push(first);
        let gather_until = Instant::now() + GATHER;
        loop {
            // What is there already goes along.
            while next.is_none()
                && !gathered.is_full()
                && let Ok(more) = waiting.try_recv()
            {
                if gathered.has_room_for(&more) { gathered.push(more) } else { next = Some(more) }
            }
            let is_complete = next.is_some() || gathered.is_full();
            if under_way.is_empty() || (is_complete && under_way.len() < UNDER_WAY_MAX) {
                break;
            }
            let is_late = Instant::now() >= gather_until;
            if is_late && under_way.len() < UNDER_WAY_MAX {
                break;
            }
            tokio::select! {
                Some(()) = under_way.next() => {}
                more = waiting.recv(), if is_open && !is_complete => match more {
                    Some(more) if gathered.has_room_for(&more) => gathered.push(more),
                    Some(more) => next = Some(more),
                    None => is_open = false,
                },
                () = tokio::time::sleep_until(gather_until), if !is_late => {}
            }
        }
        let Gathered { commands, done, .. } = gathered;
        under_way.push(Box::pin(send(Arc::clone(&core), commands, done)));
    }
    while under_way.next().await.is_some() {}
}

/// Has commands committed, and answers those who wait for them.
async fn send(core: Arc<Core>, commands: Vec<Command>, done: Done) {
    match commit(&core, commands).await {
        Ok(replies) => {
            for (done, reply) in done.into_iter().zip(replies) {
                // A client that went away does not wait for the outcome.
                drop(done.send(Ok(reply)));
            }
        }
        Err(error) => {
            for done in done {
                drop(done.send(Err(error.clone())));
            }
        }
    }
}

/// Has commands committed by whoever leads. What is known not to have been done is tried again while there is time, what may
/// have been done is not: the same push a second time could undo a later one.
async fn commit(core: &Core, commands: Vec<Command>) -> Result<Vec<Reply>, GroupError> {
    let deadline = Instant::now() + core.timing.leader_wait;
    let mut payload = None;
    let mut asked = None;
    loop {
        let known = core.leader();
        // A node without the log may not have been told who leads: others know.
        let leader = known.or_else(|| if core.has_log() { None } else { core.somebody() });
        let answer = match leader {
            None => None,
            Some(leader) if leader == core.node => Some(core.commit(commands.clone()).await?),
            Some(leader) => {
                let payload = match &payload {
                    Some(payload) => Bytes::clone(payload),
                    None => {
                        let encoded = Bytes::from(Proposal { commands: commands.clone() }.encode()?);
                        payload.insert(encoded).clone()
                    }
                };
                forward(core, leader, known.is_some(), payload).await?
            }
        };
        let named = match answer {
            Some(ProposalAnswer::Done { replies }) if replies.len() == commands.len() => return Ok(replies),
            Some(ProposalAnswer::Done { .. } | ProposalAnswer::Unknown) => return Err(GroupError::Unknown),
            Some(ProposalAnswer::Busy) => return Err(GroupError::Busy),
            Some(ProposalAnswer::NotLeader { leader }) => leader.map(NodeId),
            None => None,
        };
        if let Some(leader) = leader {
            core.watching.no_leader(leader, named);
            asked = Some(leader);
        }
        if Instant::now() >= deadline {
            return Err(GroupError::NoLeader);
        }
        core.leader_changes(asked, deadline).await;
    }
}

/// The leader's answer, or that of one who knows who leads; `None` when it was not reached.
async fn forward(
    core: &Core,
    leader: NodeId,
    is_known: bool,
    payload: Bytes,
) -> Result<Option<ProposalAnswer>, GroupError> {
    let call = core.network.call(leader, RaftCall::Propose, payload, core.timing.proposal);
    let answer = tokio::select! {
        answer = call => answer,
        // One that leads no more answers nothing that could be waited for.
        () = core.another_leads(Some(leader)), if is_known => return Err(GroupError::Unknown),
    };
    match answer {
        Ok(answer) => match ProposalAnswer::decode(&answer) {
            Ok(answer) => Ok(Some(answer)),
            Err(error) => {
                unreadable(&error, leader);
                Err(GroupError::Unknown)
            }
        },
        Err(NetworkError::Unreachable { .. }) => Ok(None),
        Err(NetworkError::TimedOut { .. } | NetworkError::Failed { .. }) => Err(GroupError::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_not_proposed_before_all_nodes_know_it() {
        let command = Command::TouchAssets { keys: vec![b"key".to_vec()] };
        let since = command.since();
        assert!(check(&command, since).is_ok());
        let older = Protocol(since.0 - 1);
        let error = check(&command, older).unwrap_err();
        assert!(
            matches!(error, GroupError::TooEarly { protocol, since: asked } if protocol == older && asked == since)
        );
    }
}
