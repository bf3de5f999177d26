//! The reference engine with checkpoints so often that logs are retired, and whoever was away or is
//! new needs a snapshot.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use skeinmesh::{
    engine::{EngineError, Export, MemoryEngine, Operation, Refused, StorageEngine, Work},
    types::Lsn,
};

/// Records between two checkpoints.
const EVERY: u64 = 40;

#[derive(Debug)]
pub(crate) struct SimEngine {
    inner: Arc<MemoryEngine>,
    /// Seq of the last checkpoint that was begun.
    saved: Arc<AtomicU64>,
    installed: Arc<AtomicU64>,
}

impl SimEngine {
    pub(crate) fn new(inner: MemoryEngine) -> Self {
        let saved = Arc::new(AtomicU64::new(inner.recovered().0.seq));
        Self { inner: Arc::new(inner), saved, installed: Arc::default() }
    }

    /// The engine inside, to look at what it holds.
    pub(crate) fn contents(&self) -> Arc<MemoryEngine> {
        self.inner.clone()
    }

    /// How many snapshots were installed.
    pub(crate) fn installed(&self) -> u64 {
        self.installed.load(Ordering::Relaxed)
    }
}

impl StorageEngine for SimEngine {
    fn recovered(&self) -> (Lsn, Bytes) {
        self.inner.recovered()
    }

    fn applied(&self) -> Lsn {
        self.inner.applied()
    }

    fn admit(&self, encoding: u8, payload: &Bytes) -> Result<(), Refused> {
        self.inner.admit(encoding, payload)
    }

    fn forget_reservations(&self) {
        self.inner.forget_reservations();
    }

    fn apply(&self, at: Lsn, operation: &Operation) -> Result<(), EngineError> {
        self.inner.apply(at, operation)
    }

    fn checkpoint_due(&self) -> bool {
        self.inner.applied().seq >= self.saved.load(Ordering::Relaxed) + EVERY
    }

    fn checkpoint(&self, sidecar: Bytes) -> Work<Lsn> {
        self.saved.store(self.inner.applied().seq, Ordering::Relaxed);
        self.inner.checkpoint(sidecar)
    }

    fn export(&self) -> Work<Export> {
        self.inner.export()
    }

    fn install(&self, from: PathBuf) -> Work<Lsn> {
        let (saved, installed) = (self.saved.clone(), self.installed.clone());
        let done = self.inner.install(from);
        Box::pin(async move {
            let at = done.await?;
            saved.store(at.seq, Ordering::Relaxed);
            installed.fetch_add(1, Ordering::Relaxed);
            Ok(at)
        })
    }
}
