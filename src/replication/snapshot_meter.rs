//! What engine snapshots cost this node, and how far the one is that it fetches.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::{
    sync::watch,
    time::{Duration, Instant},
};

use crate::{
    protocol::status::SnapshotProgress,
    types::{Lsn, NodeId},
};

/// Between two lines in the log.
const TELL: Duration = Duration::from_secs(10);

/// Bytes of snapshots since the process began, and the progress of the newest one fetched.
#[derive(Debug, Default)]
pub struct SnapshotMeter {
    sent: AtomicU64,
    received: AtomicU64,
    progress: watch::Sender<Option<SnapshotProgress>>,
}

impl SnapshotMeter {
    /// Bytes of files sent to other nodes.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Bytes of files received.
    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// The snapshot that is being fetched, or was when its source went away; `None` when it is
    /// installed, or not needed any more.
    pub fn progress(&self) -> Option<SnapshotProgress> {
        *self.progress.borrow()
    }

    pub(super) fn note_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Relaxed);
    }

    pub(super) fn end(&self) {
        self.progress.send_replace(None);
    }

    /// Begins to count a snapshot of `total` bytes.
    pub(super) fn begin(&self, source: NodeId, position: Lsn, total: u64) -> Fetched<'_> {
        let progress = SnapshotProgress { source, position, done: 0, total };
        self.progress.send_replace(Some(progress));
        Fetched { meter: self, progress, told: Instant::now() }
    }
}

/// The snapshot that is being fetched.
#[derive(Debug)]
pub(super) struct Fetched<'a> {
    meter: &'a SnapshotMeter,
    progress: SnapshotProgress,
    told: Instant,
}

impl Fetched<'_> {
    /// These bytes were here already.
    pub(super) fn found(&mut self, bytes: u64) {
        self.progress.done += bytes;
        self.meter.progress.send_replace(Some(self.progress));
    }

    /// These bytes have come.
    pub(super) fn came(&mut self, bytes: u64) {
        self.meter.received.fetch_add(bytes, Relaxed);
        self.found(bytes);
        if self.told.elapsed() >= TELL {
            self.told = Instant::now();
            self.tell("fetching a snapshot");
        }
    }

    /// A line in the log.
    pub(super) fn tell(&self, what: &str) {
        let SnapshotProgress { source, position, done, total } = self.progress;
        tracing::info!(%source, %position, done, total, "{what}");
    }
}
