//! When each peer was last heard: a status page says "down, last heard 12 s ago".
//!
//! A peer is heard when it answers a status request. While nobody asks for the status, the moment its
//! link was given up stands in for that; it is later than the last packet by at most the idle timeout
//! of the mesh.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::types::NodeId;

use super::{NodeError, local::ThisNode};

/// Moments by peer; none for a peer that was never heard since this process started.
#[derive(Debug, Default)]
pub(super) struct LastHeard(Mutex<BTreeMap<NodeId, Instant>>);

impl LastHeard {
    /// It has just answered.
    pub(super) fn answered(&self, peer: NodeId, at: Instant) {
        self.lock().insert(peer, at);
    }

    /// Its link is gone at `at`; a link outlives its peer by `idle` at most.
    fn lost(&self, peer: NodeId, at: Instant, idle: Duration) {
        let mut heard = self.lock();
        // Whoever was asked in the meantime is known better.
        let known = heard.get(&peer).is_some_and(|known| *known + 2 * idle > at);
        if !known {
            heard.insert(peer, at);
        }
    }

    /// How long ago.
    pub(super) fn ago(&self, peer: NodeId, now: Instant) -> Option<Duration> {
        self.lock().get(&peer).map(|at| now.saturating_duration_since(*at))
    }

    /// Forgets whoever is not among these.
    pub(super) fn keep(&self, members: impl Fn(&NodeId) -> bool) {
        self.lock().retain(|id, _| members(id));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes the links that go.
pub(super) async fn watch_links(this: Arc<ThisNode>) -> Result<(), NodeError> {
    let mut links = this.mesh.links();
    let mut known = BTreeSet::new();
    loop {
        let now: BTreeSet<NodeId> = links.borrow_and_update().keys().copied().collect();
        let idle = this.control.view().borrow().profile.timing().idle;
        for peer in known.difference(&now) {
            this.heard.lost(*peer, Instant::now(), idle);
        }
        known = now;
        if links.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_better_than_a_lost_link_unless_it_is_old() {
        let (heard, start, peer) = (LastHeard::default(), Instant::now(), NodeId([1; 16]));
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(heard.ago(peer, start), None);
        heard.answered(peer, start);
        heard.lost(peer, after(6), IDLE);
        assert_eq!(heard.ago(peer, after(8)), Some(Duration::from_secs(8)));
        heard.lost(peer, after(60), IDLE);
        assert_eq!(heard.ago(peer, after(62)), Some(Duration::from_secs(2)));
        heard.keep(|_| false);
        assert_eq!(heard.ago(peer, after(62)), None);
    }
}
