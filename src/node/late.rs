//! Handlers that are there before what they hand to: the mesh must listen before a node knows
//! whether it is a member, and raft and log exist only after.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use futures::future::BoxFuture;

use crate::{
    protocol::StreamKind,
    transport::{Handler, Peer, Router, Stream},
};

/// One slot per stream kind. A stream that comes before its slot is filled is dropped, which its
/// opener sees as reset and tries again.
///
/// The mesh holds the slots, and what is filled in holds the mesh: dropping this value empties
/// them, or neither would ever go, and the mesh's port with them.
#[derive(Debug, Default)]
pub(super) struct LateHandlers {
    slots: BTreeMap<StreamKind, Arc<Slot>>,
}

#[derive(Default)]
struct Slot(RwLock<Option<Arc<dyn Handler>>>);

impl Slot {
    fn get(&self) -> Option<Arc<dyn Handler>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, handler: Option<Arc<dyn Handler>>) {
        let before = std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), handler);
        // Outside of the lock: this may be the last reference to much of the node.
        drop(before);
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.get().is_some() { "filled" } else { "empty" })
    }
}

impl Handler for Slot {
    fn handle(&self, peer: Peer, stream: Stream) -> BoxFuture<'static, ()> {
        match self.get() {
            Some(handler) => handler.handle(peer, stream),
            None => Box::pin(async move { drop(stream) }),
        }
    }
}

impl LateHandlers {
    /// Slots for `kinds`, and the router that leads to them.
    pub(super) fn new(kinds: &[StreamKind]) -> (Self, Router) {
        let mut late = Self::default();
        let mut router = Router::new();
        for kind in kinds {
            let slot = Arc::new(Slot::default());
            late.slots.insert(*kind, slot.clone());
            router = router.on(*kind, slot);
        }
        (late, router)
    }

    /// Fills a slot.
    pub(super) fn fill(&self, kind: StreamKind, handler: Arc<dyn Handler>) {
        if let Some(slot) = self.slots.get(&kind) {
            slot.set(Some(handler));
        }
    }

    /// Takes a handler out again.
    pub(super) fn empty(&self, kind: StreamKind) {
        if let Some(slot) = self.slots.get(&kind) {
            slot.set(None);
        }
    }
}

impl Drop for LateHandlers {
    fn drop(&mut self) {
        self.slots.values().for_each(|slot| slot.set(None));
    }
}
