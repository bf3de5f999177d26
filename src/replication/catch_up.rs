//! An engine snapshot for a follower that is behind the writer's retention: applied records
//! only, with their position, epoch starts and the dedup table inside; then the WAL from there.

use std::{io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard},
    time::{Duration, Instant},
};

use crate::{
    disk::{Create, Disk, is_full},
    engine::{EngineError, ExportFile},
    protocol::{
        Lane, StreamKind,
        frame::{MAX_CHUNK, MAX_MESSAGE, MAX_RAFT},
        replication::{SnapshotOffer, SnapshotRequest, SnapshotWanted},
    },
    transport::{Handler, Mesh, OpenError, Peer, SendStream, Stream, StreamError},
    types::{Epoch, Lsn, NodeId, Office},
    wal::WalError,
};

use super::{
    Applier, Replica,
    fence::FenceError,
    incoming::{Incoming, OfferedFile},
};

/// For so long the log behind a snapshot is kept while one of its files is sent...
pub(super) const SENDING: Duration = Duration::from_secs(3600);
/// ...and after, until the follower has installed it and subscribes.
const INSTALLING: Duration = Duration::from_secs(120);

/// Where the files of a snapshot are put while they are fetched, by one at a time.
#[derive(Debug, Clone)]
pub struct Fetch {
    pub(super) incoming: Incoming,
    /// Held from the offer until everything is installed, also by whoever no longer waits for that.
    pub(super) busy: Arc<AsyncMutex<()>>,
}

impl Fetch {
    /// Files go to `dir`, which holds nothing else.
    pub fn new(disk: Arc<dyn Disk>, dir: PathBuf) -> Self {
        Self { incoming: Incoming::new(disk, dir), busy: Arc::default() }
    }

    /// Waits until nothing is being installed.
    pub(super) async fn quiet(&self) {
        drop(self.busy.lock().await);
    }
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
    /// A file came whole, and is not what its source says it is: the disk there is damaged.
    #[error(
        "file {file} of the snapshot is damaged on node {node}: see to the disk there, or let another node be the writer"
    )]
    Damaged {
        /// Its name in the snapshot.
        file: String,
        /// Where it comes from.
        node: NodeId,
    },
    /// The engine did not take it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The log could not be reset.
    #[error(transparent)]
    Fence(#[from] FenceError),
}

impl CatchUpError {
    /// True for what goes away by itself: a seal in between, a cut under way, a full disk, damage elsewhere.
    pub fn passes(&self) -> bool {
        match self {
            Self::Retry(_)
            | Self::Fence(FenceError::Fenced { .. } | FenceError::Wal(WalError::Full | WalError::Closed)) => {
                true
            }
            // An engine without space for what it is given has what it had.
            Self::Disk(error) | Self::Engine(EngineError::Io(error)) => is_full(error),
            // What came was damaged where it comes from, and nothing was changed: that node finds out, and a
            // damaged disk there is no reason to end here.
            Self::Damaged { .. } | Self::Engine(EngineError::Damaged(..)) => true,
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
/// What an earlier attempt has left, also that of an earlier process, is not fetched again.
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
    stream.send.write_message(&SnapshotRequest::default()).await?;
    let offer: SnapshotOffer = stream.recv.read_message(MAX_RAFT).await?;
    // Model: snapshot_beyond_log_end
    if offer.position <= replica.wal.end() {
        return Err(CatchUpError::Retry(format!("the snapshot at {} is of no use here", offer.position)));
    }
    if applier.applied().seq < offer.position.seq {
        receive(&into.incoming, replica, office.node, &offer, stream).await?;
    } else {
        stream.send.finish()?;
    }
    let (incoming, replica, applier) = (into.incoming.clone(), replica.clone(), applier.clone());
    let installed = tokio::spawn(async move {
        let _busy: OwnedMutexGuard<()> = busy;
        let installed = install(&incoming, &replica, &*applier, office.epoch, offer).await;
        if let Err(error) = &installed {
            tracing::warn!(%error, "the snapshot was not installed");
        }
        installed
    });
    installed
        .await
        .unwrap_or_else(|e| Err(CatchUpError::Retry(format!("the installation was cut short: {e}"))))
}

/// Brings the offered files to where they are installed from: those that are not there, and the rest
/// of the one that was under way.
pub(super) async fn receive(
    incoming: &Incoming,
    replica: &Replica,
    source: NodeId,
    offer: &SnapshotOffer,
    mut stream: Stream,
) -> Result<(), CatchUpError> {
    let files = OfferedFile::of(offer, &incoming.dir).map_err(CatchUpError::Retry)?;
    let mut fetched = replica.meter.begin(source, offer.position, files.iter().map(|file| file.len).sum());
    incoming.keep(&files).await?;
    let mut wanted = SnapshotWanted::default();
    for (at, file) in (0..).zip(&files) {
        match incoming.missing(file).await? {
            None => fetched.found(file.len),
            Some(from) => {
                fetched.found(from);
                wanted.files.push((at, from));
            }
        }
    }
    fetched.tell("fetching a snapshot");
    if !offer.hashes.is_empty() {
        stream.send.write_message(&wanted).await?;
    }
    stream.send.finish()?;
    for (at, from) in wanted.files {
        if let Some(file) = files.get(at as usize) {
            let whole = incoming.take(file, from, &mut stream.recv, |bytes| fetched.came(bytes)).await?;
            if !whole && from == 0 {
                tracing::warn!(node = %source, file = file.name, "a file of the snapshot is damaged there");
                return Err(CatchUpError::Damaged { file: file.name.clone(), node: source });
            } else if !whole {
                // A beginning that a power cut left in pieces is no fault of the source.
                return Err(CatchUpError::Retry(format!(
                    "what was here of {} was not as it came",
                    file.name
                )));
            }
        }
    }
    fetched.tell("the snapshot is here");
    Ok(())
}

/// Installs the files, in this order: promise, announcement to the log, engine, log. A crash in between
/// never leaves an engine that holds records of an epoch this node has not promised; one that is ahead of
/// its log leaves the announcement too, by which the next start goes on here.
pub(super) async fn install(
    incoming: &Incoming,
    replica: &Replica,
    applier: &dyn Applier,
    epoch: Epoch,
    offer: SnapshotOffer,
) -> Result<(), CatchUpError> {
    let SnapshotOffer { position, chain, epochs, .. } = offer;
    // Between engine and log a mending would take the engine back below where the log is to begin.
    let _alone = replica.installing.lock().await;
    let admitted = replica.fence.admit_snapshot(epoch, position, chain, epochs).await?;
    // What is applied is committed, so it is the same history, and the engine goes back for nobody. But
    // the log may only go when what it had is in a checkpoint.
    let fresh = applier.applied().seq < position.seq;
    let reached = match fresh {
        true => applier.install(incoming.dir.clone(), position).await?,
        false => applier.checkpoint().await?,
    };
    if reached.seq < position.seq {
        return Err(CatchUpError::Retry(format!("installed {reached}, offered {position}")));
    }
    // Model: engine_before_log
    replica.fence.reset(admitted, reached).await?;
    replica.note_commit(position);
    replica.meter.end();
    incoming.clear().await?;
    let what = if fresh { "snapshot installed" } else { "the log begins behind the writer's snapshot" };
    tracing::info!(%position, "{what}");
    Ok(())
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
    let listens = match stream.recv.read_message::<SnapshotRequest>(MAX_MESSAGE).await {
        Ok(_) => true,
        Err(StreamError::Finished) => false,
        Err(error) => return Err(error.into()),
    };
    // Model: snapshot_of_applied
    let export = applier.export().await?;
    let position = export.position;
    replica.keep_behind(position.seq, Instant::now() + SENDING);
    let chain = replica.wal.chain_at(position.seq).await.map_err(FenceError::from)?;
    let chain = chain.ok_or_else(|| {
        CatchUpError::Retry(format!("the log no longer knows its chain value at {position}"))
    })?;
    let mut epochs = replica.wal.epochs();
    epochs.cut_after(position.seq);
    let files = export.files.iter().map(|file| (file.name.clone(), file.len)).collect();
    let hashes = export.files.iter().flat_map(|file| file.hash).collect();
    stream.send.write_message(&SnapshotOffer { position, chain, epochs, files, hashes }).await?;
    let wanted = match listens {
        false => (0..).zip(&export.files).map(|(at, _)| (at, 0)).collect(),
        true => match stream.recv.read_message::<SnapshotWanted>(MAX_RAFT).await {
            Ok(wanted) => wanted.files,
            // It needs the position only.
            Err(StreamError::Finished) => Vec::new(),
            Err(error) => return Err(error.into()),
        },
    };
    let mut next = 0;
    for (at, from) in wanted {
        let file = export.files.get(at as usize).filter(|file| from <= file.len && at >= next);
        next = at.saturating_add(1);
        let file = file.ok_or_else(|| CatchUpError::Retry(format!("asked for byte {from} of file {at}")))?;
        replica.keep_behind(position.seq, Instant::now() + SENDING);
        send_file(replica, disk, file, from, &mut stream.send).await?;
    }
    stream.send.finish()?;
    replica.keep_behind(position.seq, Instant::now() + INSTALLING);
    Ok(position)
}

/// Sends a file from byte `from` on.
async fn send_file(
    replica: &Replica,
    disk: &dyn Disk,
    file: &ExportFile,
    from: u64,
    send: &mut SendStream,
) -> Result<(), CatchUpError> {
    let open = disk.open(&file.path, Create::No).await?;
    let mut at = from;
    while at < file.len {
        let want = (MAX_CHUNK as u64).min(file.len - at) as usize;
        let chunk: Bytes = open.read(at, want).await?;
        if chunk.is_empty() {
            let name = file.path.display();
            return Err(CatchUpError::Retry(format!("{name} is shorter than its manifest says")));
        }
        let len = chunk.len() as u64;
        send.write_frame(chunk).await?;
        at += len;
        replica.meter.note_sent(len);
    }
    Ok(())
}
