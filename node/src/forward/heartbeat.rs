//! Heartbeats: each node asks each other one how it is, twice a second.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use casbah_cluster::membership::NodeId;
use casbah_proto::peer::v1 as api;
use casbah_proto::peer::v1::membership_client::MembershipClient;
use tokio::task::{AbortHandle, JoinSet};

use crate::config::limits;
use crate::forward::link::Link;
use crate::forward::peers::{Inner, Peers, origin};

/// Clocks of two nodes that differ by more than this are told of: what is written last would not win.
pub const CLOCK_SKEW_MAX_MS: u64 = 5_000;

impl Peers {
    /// Asks the other members how they are, for as long as this runs. It does not end by itself.
    ///
    /// # Cancel safety
    /// May be dropped, and then nothing more is heard of how others are.
    pub async fn watch(&self) {
        let inner = self.inner();
        let mut roster = inner.roster.clone();
        let mut tasks = JoinSet::new();
        let mut watched: HashMap<NodeId, (String, AbortHandle)> = HashMap::new();
        loop {
            let members: HashMap<NodeId, String> = {
                let roster = roster.borrow_and_update();
                roster.others().map(|(node, address)| (node, address.to_owned())).collect()
            };
            watched.retain(|node, (address, task)| {
                let stays = members.get(node) == Some(address);
                if !stays {
                    task.abort();
                }
                stays
            });
            inner.keep_members();
            for (node, address) in members {
                watched.entry(node).or_insert_with(|| (address, tasks.spawn(beat(Arc::clone(inner), node))));
            }
            loop {
                tokio::select! {
                    changed = roster.changed() => match changed {
                        Ok(()) => break,
                        // Nobody tells of changes any more: what is known stays.
                        Err(_closed) => std::future::pending().await,
                    },
                    // Those that were aborted.
                    Some(_) = tasks.join_next() => {}
                }
            }
        }
    }
}

/// Asks one node, as long as it is a member at the same address.
async fn beat(inner: Arc<Inner>, node: NodeId) {
    let Ok(link) = inner.link(node) else { return };
    let mut clocks_differ = false;
    loop {
        let began = Instant::now();
        // To the moment at which silence counts. A node that is away is given time for a connection, which takes long when it,
        // or this one, is busy.
        let deadline = match link.health().reachable {
            true => (began + limits::AWAY_AFTER).min(link.away_at().max(began + limits::HEARTBEAT_INTERVAL)),
            false => began + limits::AWAY_AFTER,
        };
        let answer = tokio::time::timeout_at(deadline.into(), ask(&inner, &link)).await;
        if let Ok(Some(answer)) = answer {
            let took = began.elapsed();
            let apart = answer.time_ms.abs_diff(now_ms());
            if (apart > CLOCK_SKEW_MAX_MS) != clocks_differ {
                clocks_differ = !clocks_differ;
                match clocks_differ {
                    true => tracing::warn!(%node, apart_ms = apart, "the clocks of this node and another one differ"),
                    false => tracing::info!(%node, "the clocks of this node and another one agree again"),
                }
            }
            link.reads_clock(Duration::from_millis(apart));
            link.beat(took, answer.report);
        }
        link.tick().await;
        tokio::time::sleep_until((began + limits::HEARTBEAT_INTERVAL).into()).await;
    }
}

async fn ask(inner: &Arc<Inner>, link: &Arc<Link>) -> Option<api::HeartbeatResponse> {
    let mut client = MembershipClient::with_origin(inner.control(link), origin());
    let request = api::HeartbeatRequest { time_ms: now_ms(), report: Some((inner.report)()) };
    match client.heartbeat(request).await {
        Ok(answer) => Some(answer.into_inner()),
        Err(error) => {
            tracing::debug!(node = %link.node(), %error, "a heartbeat was not answered");
            None
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
