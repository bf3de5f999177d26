//! Checkpoints, one after the other, beside the apply loop.

use std::sync::Arc;

use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, watch},
    time::Instant,
};

use super::apply::CHECKPOINT_TICK;
use crate::{engine::Work, replication::Replica, types::Lsn};

/// Runs checkpoints beside the apply loop and lets the log go behind them.
#[derive(Debug)]
pub struct Checkpointer {
    pub(super) jobs: mpsc::UnboundedReceiver<(Work<Lsn>, OwnedSemaphorePermit)>,
    pub(super) flushed: watch::Sender<Lsn>,
}

impl Checkpointer {
    /// Follows the flushed position.
    pub fn watch(&self) -> watch::Receiver<Lsn> {
        self.flushed.subscribe()
    }

    /// Runs until the apply loop is gone. A failed checkpoint is logged and tried again when the
    /// engine next asks: the records stay in the log until one succeeds. `keep_bytes` of the log
    /// stay behind a checkpoint for followers that were away.
    pub async fn run(mut self, replica: Arc<Replica>, keep_bytes: u64) {
        while let Some((job, permit)) = self.jobs.recv().await {
            let started = Instant::now();
            match job.await {
                Ok(at) => {
                    self.flushed.send_replace(at);
                    replica.wal.note_checkpoint(at.seq);
                    tracing::info!(flushed = %at, millis = started.elapsed().as_millis() as u64, "checkpoint");
                    if let Err(error) =
                        replica.wal.retire_keeping(at.seq.min(replica.free_through()), keep_bytes).await
                    {
                        tracing::warn!(%error, "could not retire log segments");
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "checkpoint failed; it is tried again");
                    tokio::time::sleep(CHECKPOINT_TICK).await;
                }
            }
            drop(permit);
        }
    }
}
