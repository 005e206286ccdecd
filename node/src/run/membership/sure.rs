//! Whether this node may go by what it knows of its cluster: it asks for all that was agreed on, again and again.

use std::time::Duration;

use crate::index::{Group, GroupError};

use super::place::Place;

/// For how long a node that has just started waits until it knows all. It then serves all the same: it gives what it has.
const PATIENCE: Duration = Duration::from_secs(2);

/// After a question without an answer.
const ASK_AGAIN: Duration = Duration::from_millis(100);

impl Place {
    /// Keeps what is known here as late as others take it to be, for as long as this runs. It does not end by itself.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub(super) async fn keep_sure(&self, group: Group) {
        loop {
            let asked_ms = self.now_ms();
            let pause = match self.know_all(&group).await {
                Ok(()) => {
                    self.inner.certainty.send_modify(|certainty| certainty.confirmed(asked_ms));
                    Duration::from_millis(self.inner.certainty.borrow().ask_every_ms())
                }
                Err(error) => {
                    tracing::debug!(%error, "it is not known what the others have agreed on meanwhile");
                    ASK_AGAIN
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Waits until all that was agreed on before this was called is known to all of this node.
    ///
    /// # Errors
    /// [`GroupError`] when no leader can be asked.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub(super) async fn know_all(&self, group: &Group) -> Result<(), GroupError> {
        group.linearizable().await?;
        let mut view = self.view();
        loop {
            let state = group.state().borrow().clone();
            if state.is_some_and(|state| view.borrow_and_update().state() == &*state) {
                return Ok(());
            }
            view.changed().await.map_err(|_| GroupError::Closed)?;
        }
    }

    /// Whether others may have given this node up: then they hold what it has, and write what it does not hear of.
    pub(in crate::run) fn is_in_doubt(&self) -> bool {
        self.inner.certainty.borrow().is_in_doubt(self.now_ms())
    }

    /// Waits until the node is not in doubt; not for long, as without a leader it goes on being so. One that takes itself to be alone
    /// needs nobody for that, or is not alone any more and would not ask anybody: it waits.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub(in crate::run) async fn sure(&self) {
        let mut certainty = self.inner.certainty.subscribe();
        let mut is_sure = async || drop(certainty.wait_for(|certainty| !certainty.is_in_doubt(self.now_ms())).await);
        if tokio::time::timeout(PATIENCE, is_sure()).await.is_ok() {
            return;
        }
        if self.view().borrow().is_single() {
            self.waits_for(Some("a leader: this node knows of no other one".to_owned()));
            is_sure().await;
            self.waits_for(None);
        } else {
            tracing::warn!(
                "nobody leads the group: until somebody does, this node gives what it has, takes nothing, and calls nothing missing"
            );
        }
    }
}
