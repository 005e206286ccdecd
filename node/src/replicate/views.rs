//! Which views of the cluster are still decided by.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use casbah_cluster::membership::Epoch;
use casbah_cluster::view::View;

/// The views that operations of this node have been given. Whoever decides by one holds it until it has decided.
#[derive(Debug, Default)]
pub(super) struct Views {
    /// Where the one that was given last is: nearly always the next one too.
    last: AtomicUsize,
    /// Those that somebody may hold. What is in here is not freed, so that `last` is of no other view than it was.
    given: Mutex<Vec<Weak<View>>>,
}

// === impl Views ===

impl Views {
    /// Takes note of a view that is given to an operation.
    pub(super) fn note(&self, view: &Arc<View>) {
        let at = Arc::as_ptr(view).addr();
        if self.last.load(Ordering::Relaxed) == at {
            return;
        }
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.retain(|other| other.strong_count() > 0);
        if !given.iter().any(|other| other.as_ptr().addr() == at) {
            given.push(Arc::downgrade(view));
        }
        self.last.store(at, Ordering::Relaxed);
    }

    /// The epoch of the oldest view that somebody decides by; `None` when nobody decides.
    pub(super) fn oldest(&self) -> Option<Epoch> {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.iter().filter_map(Weak::upgrade).map(|view| view.epoch()).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use casbah_cluster::membership::{ClusterState, Layout};
    use std::collections::BTreeMap;

    fn view(epoch: u64) -> Arc<View> {
        let none = View::none().state().clone();
        let layouts = vec![Layout { epoch: Epoch(epoch), nodes: BTreeMap::new() }];
        Arc::new(View::none().next(ClusterState { layouts, ..none }))
    }

    #[test]
    fn a_view_counts_for_as_long_as_somebody_holds_it() {
        let views = Views::default();
        assert_eq!(views.oldest(), None);
        let (one, two) = (view(1), view(2));
        views.note(&one);
        let operation = Arc::clone(&one);
        drop(one);
        views.note(&two);
        views.note(&two);
        assert_eq!(views.oldest(), Some(Epoch(1)));
        views.note(&operation);
        drop(operation);
        assert_eq!(views.oldest(), Some(Epoch(2)));
        drop(two);
        assert_eq!(views.oldest(), None);
    }

    #[test]
    fn a_view_that_lies_where_an_older_one_lay_is_noted_too() {
        let views = Views::default();
        for epoch in 1..100 {
            let view = view(epoch);
            views.note(&view);
            assert_eq!(views.oldest(), Some(Epoch(epoch)));
        }
        assert!(views.given.lock().unwrap().len() <= 2);
    }
}
