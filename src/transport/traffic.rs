//! What went over the mesh, for those who watch it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    protocol::{Lane, StreamKind},
    telemetry::Counter,
};

/// Bytes of frames that were written, by lane. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct LaneBytes(Arc<[AtomicU64; Lane::ALL.len()]>);

impl LaneBytes {
    pub(super) fn add(&self, lane: Lane, bytes: usize) {
        self.of(lane).fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes on that lane.
    pub fn get(&self, lane: Lane) -> u64 {
        self.of(lane).load(Ordering::Relaxed)
    }

    /// Bytes on each lane, in the order of [`Lane::ALL`].
    pub fn all(&self) -> Vec<u64> {
        Lane::ALL.map(|lane| self.get(lane)).into()
    }

    fn of(&self, lane: Lane) -> &AtomicU64 {
        let [consensus, request, live, catch_up, bulk] = &*self.0;
        match lane {
            Lane::Consensus => consensus,
            Lane::Request => request,
            Lane::Live => live,
            Lane::CatchUp => catch_up,
            Lane::Bulk => bulk,
        }
    }
}

/// Traffic of a mesh since it was bound.
#[derive(Debug)]
pub struct MeshTraffic {
    /// Frames that this node wrote, on all connections.
    pub sent: LaneBytes,
    opened: BTreeMap<StreamKind, Counter>,
    accepted: BTreeMap<StreamKind, Counter>,
}

impl Default for MeshTraffic {
    fn default() -> Self {
        let counters = || StreamKind::ALL.into_iter().map(|kind| (kind, Counter::default())).collect();
        Self { sent: LaneBytes::default(), opened: counters(), accepted: counters() }
    }
}

impl MeshTraffic {
    /// Streams that this node opened to members, by kind.
    pub fn opened(&self) -> impl Iterator<Item = (StreamKind, &Counter)> {
        self.opened.iter().map(|(kind, count)| (*kind, count))
    }

    /// Streams that others opened here, by kind; strangers too, who may only ask to join.
    pub fn accepted(&self) -> impl Iterator<Item = (StreamKind, &Counter)> {
        self.accepted.iter().map(|(kind, count)| (*kind, count))
    }

    pub(super) fn note_opened(&self, kind: StreamKind) {
        if let Some(count) = self.opened.get(&kind) {
            count.add(1);
        }
    }

    pub(super) fn note_accepted(&self, kind: StreamKind) {
        if let Some(count) = self.accepted.get(&kind) {
            count.add(1);
        }
    }
}
