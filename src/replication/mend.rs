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

use tokio::{sync::OwnedMutexGuard, time::Instant};

use crate::{
    protocol::{
        Lane, StreamKind,
        frame::MAX_RAFT,
        replication::{SnapshotOffer, SnapshotRequest},
    },
    transport::Mesh,
    types::{Lsn, Office},
};

use super::{
    Applier, Replica,
    catch_up::{CatchUpError, Fetch, SENDING, receive},
    fence::FenceError,
    incoming::Incoming,
};

/// Fetches the writer's snapshot and puts it in the place of everything the engine holds; returns its
/// position. The caller is not the writer. What an earlier attempt has left is not fetched again.
///
/// Dropping the future ends the fetching, but not an installation that has begun. After an error that
/// does not [pass](CatchUpError::passes) and is the engine's, the engine must be opened anew.
pub async fn mend(
    into: &Fetch,
    replica: &Arc<Replica>,
    applier: &Arc<dyn Applier>,
    mesh: &Mesh,
    office: Office,
) -> Result<Lsn, CatchUpError> {
    let busy = into.busy.clone().lock_owned().await;
    let mut stream = mesh.open(office.node, StreamKind::Snapshot, Lane::Bulk).await?;
    stream.send.write_message(&SnapshotRequest::default()).await?;
    let offer: SnapshotOffer = stream.recv.read_message(MAX_RAFT).await?;
    check(replica, &offer).await?;
    // Retention would take what has to be applied again.
    replica.keep_behind(offer.position.seq, Instant::now() + SENDING);
    let received = receive(&into.incoming, replica, office.node, &offer, stream).await;
    if let Err(error) = received {
        replica.keep_behind(offer.position.seq, Instant::now());
        return Err(error);
    }
    let (incoming, replica, applier) = (into.incoming.clone(), replica.clone(), applier.clone());
    let mended = tokio::spawn(async move {
        let _busy: OwnedMutexGuard<()> = busy;
        let mended = replace(&incoming, &replica, &*applier, offer.position).await;
        replica.keep_behind(offer.position.seq, Instant::now());
        mended
    });
    mended.await.unwrap_or_else(|e| Err(CatchUpError::Retry(format!("the mending was cut short: {e}"))))
}

/// Puts what was received in the place of everything the engine holds.
async fn replace(
    incoming: &Incoming,
    replica: &Arc<Replica>,
    applier: &dyn Applier,
    at: Lsn,
) -> Result<Lsn, CatchUpError> {
    // A snapshot for catching up may be in the engine already, while the log is about to begin behind it.
    let _alone = replica.installing.lock().await;
    let mended = applier.mend(incoming.dir.clone(), at, replica.clone()).await?;
    replica.meter.end();
    incoming.clear().await?;
    if mended {
        return Ok(at);
    }
    Err(CatchUpError::Retry("the log or the office has changed meanwhile".into()))
}

async fn check(replica: &Replica, offer: &SnapshotOffer) -> Result<(), CatchUpError> {
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
