//! What a former life left that ended between engine and log while it installed a snapshot
//! (`wal/anew.rs` says why the log knows of it).

use super::NodeError;
use crate::{
    types::Lsn,
    wal::{Recovered, Wal, WalDriver, WalError},
};

/// Finishes it or gives it up, at the start of a node; `checkpoint` is the last position in a checkpoint
/// of its engine.
pub(super) async fn finish(wal: &Wal, checkpoint: Lsn) -> Result<(), NodeError> {
    match wal.begin_anew(checkpoint).await {
        Ok(None) => {}
        Ok(Some(at)) => tracing::info!(%at, "finished what was being installed: the log begins behind it"),
        // The engine is ahead of its log until the writer's log has made that good.
        Err(WalError::Full) => tracing::warn!("disk full: the log does not begin behind the snapshot yet"),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// The same on the log of a node that is to go on without the others; what the log says after that.
pub(super) async fn finish_alone(
    (wal, driver, mut log): (Wal, WalDriver, Recovered),
    checkpoint: Lsn,
) -> Result<Recovered, NodeError> {
    let settled = async move {
        let begun = wal.begin_alone(checkpoint).await;
        (begun, wal.durable(), wal.commit())
    };
    // The driver ends when the handle is gone.
    let ((begun, durable, commit), ended) = tokio::join!(settled, driver.run());
    begun?;
    ended?;
    (log.end, log.durable, log.commit) = (durable, durable, commit);
    Ok(log)
}
