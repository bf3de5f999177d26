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
use tokio::time::{Duration, Instant};

use crate::{
    disk::{Create, Disk, Durability, remove_files_below},
    engine::EngineError,
    protocol::{
        Lane, StreamKind,
        frame::{MAX_CHUNK, MAX_RAFT},
    },
    transport::{Handler, Mesh, OpenError, Peer, Stream, StreamError},
    types::{EpochTable, Lsn, Office},
    wal::WalError,
};

use super::{Applier, Replica, fence::FenceError};

/// For so long the log behind a snapshot is kept while it is sent...
pub(super) const SENDING: Duration = Duration::from_secs(3600);
/// ...and after, until the follower has installed it and subscribes.
const INSTALLING: Duration = Duration::from_secs(120);
/// Most files of one snapshot.
pub(super) const MAX_FILES: usize = 100_000;

/// Where the files of a snapshot are put while they are fetched.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// A directory that holds nothing else.
    pub dir: PathBuf,
}

/// First frame of the answer: what follows.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) position: Lsn,
    /// Chain value at `position`.
    pub(super) chain: u32,
    epochs: EpochTable,
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
            // An engine that failed half-way through an installation starts anew.
            Self::Disk(error) => full(error),
            // What came was damaged where it comes from, and nothing was changed: that node finds out.
            Self::Engine(EngineError::Damaged(..)) => true,
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
pub async fn fetch(
    into: &Fetch,
    replica: &Replica,
    applier: &dyn Applier,
    mesh: &Mesh,
    office: Office,
) -> Result<(), CatchUpError> {
    let mut stream = mesh.open(office.node, StreamKind::Snapshot, Lane::Bulk).await?;
    stream.send.finish()?;
    let offer: Offer = stream.recv.read_message(MAX_RAFT).await?;
    // Model: snapshot_beyond_log_end
    if offer.position <= replica.wal.end() || offer.files.len() > MAX_FILES {
        return Err(CatchUpError::Retry(format!("the snapshot at {} is of no use here", offer.position)));
    }
    if applier.applied().seq >= offer.position.seq {
        // Applied is committed, so it is the same history, and the engine goes back for nobody.
        replica.fence.reset(office.epoch, offer.position, offer.chain, offer.epochs).await?;
        replica.note_commit(offer.position);
        tracing::info!(position = %offer.position, "the log begins behind the writer's snapshot");
        return Ok(());
    }
    fetch_files(into, &offer, &mut stream).await?;
    let installed = applier.install(into.dir.clone()).await?;
    if installed != offer.position {
        return Err(CatchUpError::Retry(format!("installed {installed}, offered {}", offer.position)));
    }
    replica.fence.reset(office.epoch, offer.position, offer.chain, offer.epochs).await?;
    replica.note_commit(offer.position);
    clear(into).await?;
    tracing::info!(position = %offer.position, "snapshot installed");
    Ok(())
}

/// Puts the files that are offered under `into`, durably, and nothing else.
pub(super) async fn fetch_files(
    into: &Fetch,
    offer: &Offer,
    stream: &mut Stream,
) -> Result<(), CatchUpError> {
    tracing::info!(position = %offer.position, files = offer.files.len(), "fetching a snapshot");
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
            let chunk = stream.recv.read_frame(MAX_CHUNK).await?;
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

pub(super) async fn clear(into: &Fetch) -> std::io::Result<()> {
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
