//! What a backup is made of: a checkpoint that holds all that was acknowledged when it was asked for.

use std::time::Duration;

use bytes::Bytes;

use super::{Consistency, Node, ReadError};
use crate::{
    engine::{EngineError, Export},
    types::{EpochTable, Lsn},
    write_path::apply::portable_sidecar,
};

/// A checkpoint, and what makes a history of it.
#[derive(Debug)]
pub struct Backup {
    /// Its files. They stay until this is dropped.
    pub export: Export,
    /// What clients' idempotency keys have come to up to there: the sidecar for another cluster. Nothing in
    /// it speaks of this cluster's nodes.
    pub sidecar: Bytes,
    /// The epochs up to its position.
    pub epochs: EpochTable,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// What it should hold could not be told or is not here.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The engine could not give its files.
    #[error("node {node}: {error}")]
    Engine {
        /// This node.
        node: String,
        /// Why.
        error: EngineError,
    },
    /// The log does not hold the position: it is repaired, or a snapshot is installed.
    #[error("the log of node {node} does not hold {position} just now; ask again, or another node")]
    Unsettled {
        /// This node.
        node: String,
        /// The checkpoint's.
        position: Lsn,
    },
}

impl Node {
    /// Makes a checkpoint of this node, if the last one is not new enough, and holds its files. It has
    /// everything that was acknowledged before the call ([`Consistency::Linearizable`]), or what this node
    /// has applied ([`Consistency::Local`]), all databases at one position. Writes go on meanwhile.
    ///
    /// Dropping the future does not end a checkpoint that has begun.
    ///
    /// # Errors
    /// No writer answers in time, or this node's disk is damaged or full.
    pub async fn backup(&self, consistency: Consistency, timeout: Duration) -> Result<Backup, BackupError> {
        let this = self.this();
        let node = || self.id().short();
        let engine = |error| BackupError::Engine { node: node(), error };
        let point = self.read_point(consistency, timeout).await?;
        this.apply.checkpoint_through(point.applied.seq).await.map_err(engine)?;
        let export = this.engine.export().await.map_err(engine)?;
        let sidecar = portable_sidecar(&export.sidecar).map_err(engine)?;
        let (position, mut epochs) = (export.position, this.replica.wal.epochs());
        epochs.cut_after(position.seq);
        if epochs.holds(position, position.seq) {
            Ok(Backup { export, sidecar, epochs })
        } else {
            Err(BackupError::Unsettled { node: node(), position })
        }
    }
}
