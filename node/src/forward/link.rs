//! The way to one other node: a few connections, made when they are needed and again when they broke, and what is known of how
//! the node is.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use casbah_cluster::membership::{Epoch, NodeId};
use casbah_proto::peer::v1::NodeReport;
use hyper::client::conn::http2::SendRequest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::body::Body;

use crate::config::limits;
use crate::forward::channel::CallError;
use crate::forward::dial::{Connection, DialError, Dialler};
use crate::forward::error::PeerError;
use crate::forward::health::{Health, Machine, Turn};

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Heartbeats, the log, and what else must not wait behind blobs.
    Control,
    /// Blobs and results of actions.
    Data,
}

/// The way to one other node.
pub(super) struct Link {
    node: NodeId,
    address: String,
    dialler: Dialler,
    control: Line,
    data: [Line; limits::PEER_DATA_CONNECTIONS],
    /// Whose turn it is of the lines for data.
    turn: AtomicUsize,
    machine: Mutex<Machine>,
    /// Whether the node is there: calls under way are given up when it is not.
    reachable: watch::Sender<bool>,
    /// Counts changes of any node, for those who wait for one.
    changes: watch::Sender<u64>,
    places: Arc<Semaphore>,
}

/// One connection, if there is one.
#[derive(Default)]
struct Line {
    state: tokio::sync::Mutex<LineState>,
}

#[derive(Default)]
enum LineState {
    #[default]
    Idle,
    Live(Connection),
    Failed {
        at: Instant,
        error: Arc<DialError>,
    },
}

// === impl Link ===

impl Link {
    /// The way to a node; nothing is connected yet. `changes` is counted up whenever the node goes or comes back.
    pub(super) fn new(node: NodeId, address: &str, dialler: Dialler, changes: watch::Sender<u64>) -> Link {
        Link {
            node,
            address: address.to_owned(),
            dialler,
            control: Line::default(),
            data: std::array::from_fn(|_| Line::default()),
            turn: AtomicUsize::new(0),
            machine: Mutex::new(Machine::new(Instant::now())),
            reachable: watch::Sender::new(true),
            changes,
            places: Arc::new(Semaphore::new(limits::PEER_CALLS_MAX)),
        }
    }

    /// The node that it leads to.
    pub(super) fn node(&self) -> NodeId {
        self.node
    }

    /// Where it leads.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// How the node is.
    pub(super) fn health(&self) -> Health {
        self.machine().health()
    }

    /// What the node has said of itself last.
    pub(super) fn report(&self) -> Option<NodeReport> {
        self.machine().report().cloned()
    }

    /// Whether the node has been heard of lately. One that was never heard of has not.
    pub(super) fn is_there(&self) -> bool {
        self.machine().is_there(Instant::now())
    }

    /// By how much the node's clock and this one's differ.
    pub(super) fn apart(&self) -> Duration {
        self.machine().apart()
    }

    /// The node's clock differs from this one's by so much.
    pub(super) fn reads_clock(&self, apart: Duration) {
        self.machine().reads_clock(apart);
    }

    /// A place among the calls under way; waited for, within the deadline of a call.
    pub(super) async fn place(&self) -> Result<OwnedSemaphorePermit, PeerError> {
        let place = Arc::clone(&self.places).acquire_owned();
        match tokio::time::timeout(limits::PEER_CALL_DEADLINE, place).await {
            Ok(place) => Ok(place.expect("this semaphore is never closed")),
            Err(_elapsed) => Err(PeerError::TimedOut),
        }
    }

    /// A connection that lives, made now if there is none.
    pub(super) async fn sender(&self, lane: Lane) -> Result<SendRequest<Body>, CallError> {
        let sender = self.line(lane).sender(&self.dialler, &self.address).await;
        sender.map_err(|error| {
            if error.is_certain() {
                let turn = self.machine().refused();
                self.turned(turn);
            }
            CallError::Dial(error)
        })
    }

    /// Returns when the node is away. While it was away already, only when it has come back and gone again: whoever calls it
    /// then wants to know.
    pub(super) async fn lost(&self) {
        let mut reachable = self.reachable.subscribe();
        // The sender lives as long as this.
        drop(reachable.wait_for(|reachable| *reachable).await);
        drop(reachable.wait_for(|reachable| !*reachable).await);
    }

    /// The node has answered a call.
    pub(super) fn answered(&self, epoch: Option<Epoch>) {
        let turn = self.machine().answered(Instant::now(), epoch);
        self.turned(turn);
    }

    /// Somebody has answered at its address that it is not the node that is meant.
    pub(super) fn denied(&self) {
        let turn = self.machine().refused();
        self.turned(turn);
    }

    /// The node has answered a heartbeat.
    pub(super) fn beat(&self, took: Duration, report: Option<NodeReport>) {
        let turn = self.machine().beat(Instant::now(), took, report);
        self.turned(turn);
    }

    /// When the node is away unless it is heard of.
    pub(super) fn away_at(&self) -> Instant {
        self.machine().away_at()
    }

    /// Looks at the clock. Connections to a node that has been silent for too long are given up: they may be half open.
    pub(super) async fn tick(&self) {
        let turn = self.machine().tick(Instant::now());
        self.turned(turn);
        if turn == Some(Turn::Away) {
            for line in std::iter::once(&self.control).chain(&self.data) {
                *line.state.lock().await = LineState::Idle;
            }
        }
    }

    fn turned(&self, turn: Option<Turn>) {
        let Some(turn) = turn else { return };
        let (node, address) = (self.node, &self.address);
        match turn {
            Turn::Back => tracing::info!(%node, address, "a node is back"),
            Turn::Away => tracing::warn!(%node, address, "a node is away"),
        }
        self.reachable.send_replace(turn == Turn::Back);
        self.changes.send_modify(|count| *count += 1);
    }

    fn line(&self, lane: Lane) -> &Line {
        if lane == Lane::Control {
            return &self.control;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % limits::PEER_DATA_CONNECTIONS;
        self.data.get(turn).unwrap_or(&self.control)
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        // A panic in there leaves nothing half done.
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Line ===

impl Line {
    /// Whoever comes while a connection is being made waits for it.
    async fn sender(&self, dialler: &Dialler, address: &str) -> Result<SendRequest<Body>, Arc<DialError>> {
        let mut state = self.state.lock().await;
        match &*state {
            LineState::Live(connection) if !connection.sender.is_closed() => return Ok(connection.sender.clone()),
            LineState::Failed { at, error } if at.elapsed() < limits::PEER_RECONNECT_PAUSE => {
                return Err(Arc::clone(error));
            }
            _ => {}
        }
        match dialler.dial(address).await {
            Ok(connection) => {
                let sender = connection.sender.clone();
                *state = LineState::Live(connection);
                Ok(sender)
            }
            Err(error) => {
                let error = Arc::new(error);
                *state = LineState::Failed { at: Instant::now(), error: Arc::clone(&error) };
                Err(error)
            }
        }
    }
}
