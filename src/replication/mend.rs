//! Replacing an engine's damaged data by the writer's, while the log stays.
//!
//! Each replica flushes and puts files together by itself, so nobody else has the file that is damaged;
//! but the writer's snapshot has its rows. It is of the writer's last checkpoint and so mostly
//! *behind* what this node has applied. That is no harm to the log: nothing of it is cut, and no
//! acknowledgement was about the engine. The engine goes back to the snapshot and is given the records
//! behind it again, from this node's own log; until it has what it had shown, it answers no query.
//!
//! So the snapshot is of use only if this log holds its position, and everything behind it.

use std::sync::Arc;

use tokio::time::Instant;

use crate::{
    protocol::{Lane, StreamKind, frame::MAX_RAFT},
    transport::Mesh,
    types::{Lsn, Office},
};

use super::{
    Applier, Replica,
    catch_up::{CatchUpError, Fetch, MAX_FILES, Offer, SENDING, clear, fetch_files},
    fence::FenceError,
};

/// Fetches the writer's snapshot and puts it in the place of everything the engine holds; returns its
/// position. The caller is not the writer. Dropping the future leaves the engine as it is, or mended.
pub async fn mend(
    into: &Fetch,
    replica: &Arc<Replica>,
    applier: &dyn Applier,
    mesh: &Mesh,
    office: Office,
) -> Result<Lsn, CatchUpError> {
    let mut stream = mesh.open(office.node, StreamKind::Snapshot, Lane::Bulk).await?;
    stream.send.finish()?;
    let offer: Offer = stream.recv.read_message(MAX_RAFT).await?;
    if offer.files.len() > MAX_FILES {
        return Err(CatchUpError::Retry(format!("the snapshot has {} files", offer.files.len())));
    }
    check(replica, &offer).await?;
    // Retention would take what has to be applied again.
    replica.keep_behind(offer.position.seq, Instant::now() + SENDING);
    fetch_files(into, &offer, &mut stream).await?;
    let mended = applier.mend(into.dir.clone(), offer.position, replica.clone()).await;
    replica.keep_behind(offer.position.seq, Instant::now());
    clear(into).await?;
    match mended? {
        true => Ok(offer.position),
        false => Err(CatchUpError::Retry("the log or the office has changed meanwhile".into())),
    }
}

async fn check(replica: &Replica, offer: &Offer) -> Result<(), CatchUpError> {
    let (wal, at) = (&replica.wal, offer.position);
    if wal.debt().is_some() {
        return Err(CatchUpError::Retry("the log has to be repaired first".into()));
    }
    if !reaches(replica, at) {
        return Err(CatchUpError::Retry(format!(
            "the snapshot is at {at}, this log has records {} to {}",
            wal.first_seq(),
            wal.durable()
        )));
    }
    match wal.chain_at(at.seq).await.map_err(FenceError::from)? {
        Some(chain) if chain == offer.chain => Ok(()),
        _ => Err(CatchUpError::Retry(format!("this log does not show that it is the writer's at {at}"))),
    }
}

/// True if this log holds `at`, on disk, and every record behind it.
pub fn reaches(replica: &Replica, at: Lsn) -> bool {
    let wal = &replica.wal;
    wal.epochs().holds(at, wal.durable().seq) && wal.first_seq() <= at.seq + 1
}
