//! An engine snapshot for a follower that is behind the writer's retention: applied records
//! only, with their position, epoch starts and the dedup table inside; then the WAL from there.

use std::{
    io,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard},
    time::{Duration, Instant},
};

use crate::{
    disk::{Create, Disk, Durability, remove_files_below},
    engine::EngineError,
    protocol::{
        Lane, StreamKind,
        frame::{MAX_CHUNK, MAX_RAFT},
    },
    transport::{Handler, Mesh, OpenError, Peer, RecvStream, Stream, StreamError},
    types::{Epoch, EpochTable, Lsn, Office},
    wal::WalError,
};

use super::{Applier, Replica, fence::FenceError};

/// For so long the log behind a snapshot is kept while it is sent...
const SENDING: Duration = Duration::from_secs(3600);
/// ...and after, until the follower has installed it and subscribes.
const INSTALLING: Duration = Duration::from_secs(120);
/// Most files of one snapshot.
const MAX_FILES: usize = 100_000;

/// Where the files of a snapshot are put while they are fetched, by one at a time.
#[derive(Debug, Clone)]
pub struct Fetch {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Held from the offer until everything is installed, also by whoever no longer waits for that.
    busy: Arc<AsyncMutex<()>>,
}

impl Fetch {
    /// Files go to `dir`, which holds nothing else.
    pub fn new(disk: Arc<dyn Disk>, dir: PathBuf) -> Self {
        Self { disk, dir, busy: Arc::default() }
    }

    /// Waits until nothing is being installed.
    pub(super) async fn quiet(&self) {
        drop(self.busy.lock().await);
    }
}

/// First frame of the answer: what follows.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) position: Lsn,
    /// Chain value at `position`.
    pub(super) chain: u32,
    pub(super) epochs: EpochTable,
    pub(super) files: Vec<(String, u64)>,
}

/// Why a snapshot was not installed.
#[derive(Debug, thiserror::Error)]
pub enum CatchUpError {
    /// Try again later.
    #[error("{0}")]
    Retry(String),
    /// This node's disk failed.
    #[error("cannot store the snapshot: {0}")]
    Disk(#[from] io::Error),
    /// The engine did not take it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The log could not be reset.
    #[error(transparent)]
    Fence(#[from] FenceError),
}

impl CatchUpError {
    /// True for what goes away by itself: a seal in between, a cut under way, a full disk.
    pub(super) fn passes(&self) -> bool {
        let full = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        };
        match self {
            Self::Retry(_)
            | Self::Fence(FenceError::Fenced { .. } | FenceError::Wal(WalError::Full | WalError::Closed)) => {
                true
            }
            // An engine without space for what it is given has what it had.
            Self::Disk(error) | Self::Engine(EngineError::Io(error)) => full(error),
            // One that failed half-way through an installation starts anew.
            Self::Engine(_) | Self::Fence(_) => false,
        }
    }
}

impl From<StreamError> for CatchUpError {
    fn from(error: StreamError) -> Self {
        Self::Retry(error.to_string())
    }
}

impl From<OpenError> for CatchUpError {
    fn from(error: OpenError) -> Self {
        Self::Retry(error.to_string())
    }
}

/// Fetches a snapshot from the writer and installs it, if it lies beyond this node's log end. A log
/// that was cut back for damage may end below what the engine has: then only the log begins anew.
///
/// Dropping the future ends the fetching, but not an installation that has begun.
pub async fn fetch(
    into: &Fetch,
    replica: &Arc<Replica>,
    applier: &Arc<dyn Applier>,
    mesh: &Mesh,
    office: Office,
) -> Result<(), CatchUpError> {
    let busy = into.busy.clone().lock_owned().await;
    let mut stream = mesh.open(office.node, StreamKind::Snapshot, Lane::Bulk).await?;
    stream.send.finish()?;
    let offer: Offer = stream.recv.read_message(MAX_RAFT).await?;
    // Model: snapshot_beyond_log_end
    if offer.position <= replica.wal.end() || offer.files.len() > MAX_FILES {
        return Err(CatchUpError::Retry(format!("the snapshot at {} is of no use here", offer.position)));
    }
    if applier.applied().seq < offer.position.seq {
        tracing::info!(position = %offer.position, files = offer.files.len(), "fetching a snapshot");
        receive(into, &offer, &mut stream.recv).await?;
    }
    let (into, replica, applier) = (into.clone(), replica.clone(), applier.clone());
    let installed = tokio::spawn(async move {
        let _busy: OwnedMutexGuard<()> = busy;
        let installed = install(&into, &replica, &*applier, office.epoch, offer).await;
        if let Err(error) = &installed {
            tracing::warn!(%error, "the snapshot was not installed");
        }
        installed
    });
    installed
        .await
        .unwrap_or_else(|e| Err(CatchUpError::Retry(format!("the installation was cut short: {e}"))))
}

/// Puts the offered files where they are installed from.
async fn receive(into: &Fetch, offer: &Offer, recv: &mut RecvStream) -> Result<(), CatchUpError> {
    clear(into).await?;
    for (name, len) in &offer.files {
        let path = safe_path(&into.dir, name)
            .ok_or_else(|| CatchUpError::Retry(format!("the snapshot names a file {name:?}")))?;
        if let Some(parent) = path.parent() {
            into.disk.create_dir(parent).await?;
        }
        let file = into.disk.open(&path, Create::New).await?;
        let mut at = 0;
        while at < *len {
            let chunk = recv.read_frame(MAX_CHUNK).await?;
            if chunk.is_empty() || at + chunk.len() as u64 > *len {
                return Err(CatchUpError::Retry(format!("{name} is not as long as offered")));
            }
            let next = at + chunk.len() as u64;
            let durability = if next == *len { Durability::Now } else { Durability::Later };
            file.write(at, vec![chunk], durability).await?;
            at = next;
        }
        if let Some(parent) = path.parent() {
            into.disk.sync_dir(parent).await?;
        }
    }
    Ok(())
}

/// Installs the files, in this order: promise, engine, log. A crash in between leaves an engine that
/// is ahead of its log, which a later snapshot or the writer's log makes good, and never one that
/// holds records of an epoch this node has not promised.
pub(super) async fn install(
    into: &Fetch,
    replica: &Replica,
    applier: &dyn Applier,
    epoch: Epoch,
    offer: Offer,
) -> Result<(), CatchUpError> {
    let Offer { position, chain, epochs, .. } = offer;
    let admitted = replica.fence.admit_snapshot(epoch, position).await?;
    // What is applied is committed, so it is the same history, and the engine goes back for nobody.
    if applier.applied().seq < position.seq {
        let applied = applier.install(into.dir.clone(), position).await?;
        if applied.seq < position.seq {
            return Err(CatchUpError::Retry(format!("installed {applied}, offered {position}")));
        }
    }
    replica.fence.reset(admitted, chain, epochs).await?;
    replica.note_commit(position);
    clear(into).await?;
    tracing::info!(%position, "snapshot installed");
    Ok(())
}

async fn clear(into: &Fetch) -> std::io::Result<()> {
    into.disk.create_dir(&into.dir).await?;
    remove_files_below(&*into.disk, &into.dir).await
}

/// The path below `dir` that `name` means, unless it would lead out of it.
fn safe_path(dir: &Path, name: &str) -> Option<PathBuf> {
    let relative = Path::new(name);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && !name.is_empty() && name.len() <= 512).then(|| dir.join(relative))
}

/// Serves snapshots of this node's newest checkpoint.
#[derive(Debug)]
pub struct SnapshotSource {
    /// Its log tells chain and epochs of the position.
    pub replica: Arc<Replica>,
    /// Its engine has the files.
    pub applier: Arc<dyn Applier>,
    /// How they are read.
    pub disk: Arc<dyn Disk>,
}

impl Handler for SnapshotSource {
    fn handle(&self, peer: Peer, stream: Stream) -> BoxFuture<'static, ()> {
        let (replica, applier, disk) = (self.replica.clone(), self.applier.clone(), self.disk.clone());
        Box::pin(async move {
            let follower = peer.node();
            match send(&replica, &*applier, &*disk, stream).await {
                Ok(position) => tracing::info!(%follower, %position, "sent a snapshot"),
                Err(error) => tracing::warn!(%follower, %error, "could not send a snapshot"),
            }
        })
    }
}

async fn send(
    replica: &Replica,
    applier: &dyn Applier,
    disk: &dyn Disk,
    mut stream: Stream,
) -> Result<Lsn, CatchUpError> {
    // Model: snapshot_of_applied
    let export = applier.export().await?;
    replica.keep_behind(export.position.seq, Instant::now() + SENDING);
    let chain = replica.wal.chain_at(export.position.seq).await.map_err(FenceError::from)?;
    let chain = chain.ok_or_else(|| {
        CatchUpError::Retry(format!("the log no longer knows its chain value at {}", export.position))
    })?;
    let mut epochs = replica.wal.epochs();
    epochs.cut_after(export.position.seq);
    let files = export.files.iter().map(|(name, _, len)| (name.clone(), *len)).collect();
    stream.send.write_message(&Offer { position: export.position, chain, epochs, files }).await?;
    for (_, path, len) in &export.files {
        let file = disk.open(path, Create::No).await?;
        let mut at = 0;
        while at < *len {
            let want = (MAX_CHUNK as u64).min(*len - at) as usize;
            let chunk: Bytes = file.read(at, want).await?;
            if chunk.is_empty() {
                return Err(CatchUpError::Retry(format!(
                    "{} is shorter than its manifest says",
                    path.display()
                )));
            }
            at += chunk.len() as u64;
            stream.send.write_frame(chunk).await?;
        }
    }
    stream.send.finish()?;
    replica.keep_behind(export.position.seq, Instant::now() + INSTALLING);
    Ok(export.position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offered_names_stay_below_the_directory() {
        let dir = Path::new("/data/incoming");
        assert!(safe_path(dir, "db/cpu/1.parquet").is_some());
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "./a"] {
            assert_eq!(safe_path(dir, bad), None, "{bad}");
        }
    }
}
