//! Raft snapshots: the whole state with its position, in one small file.

use std::{io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use openraft::RaftSnapshotBuilder;
use serde::{Deserialize, Serialize};
use tokio::{sync::Mutex, time::Duration};

use super::{
    applied::Applied,
    type_config::{Snapshot, SnapshotMeta, TypeConfig},
    types::State,
};
use crate::{
    disk::{Disk, is_full, read_file, replace_file},
    protocol::frame,
};

/// Longest encoded state: thousands of members.
pub(super) const MAX_SNAPSHOT: usize = 64 * 1024 * 1024;
/// How often a full disk is tried again.
const FULL_RETRY: Duration = Duration::from_secs(1);
/// First bytes of the file: magic and format version.
const MAGIC: [u8; 8] = *b"sksnap\x00\x01";

/// The newest snapshot, in memory and on disk.
#[derive(Debug, Clone)]
pub(super) struct Snapshots {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    current: Arc<Mutex<Option<Snapshot>>>,
}

#[derive(Serialize, Deserialize)]
struct SnapshotFile {
    meta: SnapshotMeta,
    state: serde_bytes::ByteBuf,
}

impl Snapshots {
    /// Reads the snapshot of an earlier run, if there is one, and what it says. A file that does
    /// not verify is `InvalidData`: the log before it is gone, so nothing can replace it.
    pub(super) async fn open(disk: Arc<dyn Disk>, path: PathBuf) -> io::Result<(Self, Applied)> {
        let bad = |what: &str| {
            io::Error::new(io::ErrorKind::InvalidData, format!("raft snapshot {}: {what}", path.display()))
        };
        let bytes = match read_file(&*disk, &path, MAX_SNAPSHOT as u64 + 64 * 1024).await {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok((Self { disk, path, current: Arc::default() }, Applied::default()));
            }
            Err(e) => return Err(e),
        };
        let (crc, payload) = bytes
            .strip_prefix(&MAGIC)
            .and_then(|rest| rest.split_first_chunk::<4>())
            .ok_or_else(|| bad("not a snapshot of this version"))?;
        if crc32c::crc32c(payload) != u32::from_le_bytes(*crc) {
            return Err(bad("the checksum is wrong"));
        }
        let file: SnapshotFile = frame::decode(payload, payload.len()).map_err(|e| bad(&e.to_string()))?;
        let applied = decode_state(&file.meta, &file.state)?;
        let snapshot = Snapshot { meta: file.meta, snapshot: file.state.into_vec().into() };
        Ok((Self { disk, path, current: Arc::new(Mutex::new(Some(snapshot))) }, applied))
    }

    /// The newest snapshot.
    pub(super) async fn current(&self) -> Option<Snapshot> {
        self.current.lock().await.clone()
    }

    /// Makes a snapshot durable and current, unless the current one is as new: building runs
    /// beside installing.
    pub(super) async fn save(&self, snapshot: Snapshot) -> io::Result<Snapshot> {
        let mut current = self.current.lock().await;
        if let Some(current) = current.as_ref().filter(|c| c.meta.last_log_id >= snapshot.meta.last_log_id) {
            return Ok(current.clone());
        }
        let file = SnapshotFile {
            meta: snapshot.meta.clone(),
            state: serde_bytes::ByteBuf::from(snapshot.snapshot.to_vec()),
        };
        let payload = frame::encode(&file);
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
        bytes.extend_from_slice(&payload);
        replace_file(&*self.disk, &self.path, bytes.into()).await?;
        *current = Some(snapshot.clone());
        Ok(snapshot)
    }

    /// As [`Snapshots::save`], and waits while the disk is full. This node votes, and keeps its log,
    /// meanwhile.
    pub(super) async fn save_patiently(&self, snapshot: Snapshot) -> io::Result<Snapshot> {
        let mut warned = false;
        loop {
            match self.save(snapshot.clone()).await {
                Err(error) if is_full(&error) => {
                    if !std::mem::replace(&mut warned, true) {
                        tracing::warn!("disk full: a snapshot of the raft state waits for space");
                    }
                    tokio::time::sleep(FULL_RETRY).await;
                }
                saved => return saved,
            }
        }
    }
}

/// What a snapshot's bytes say. `InvalidData` if they are not a state.
pub(super) fn decode_state(meta: &SnapshotMeta, state: &[u8]) -> io::Result<Applied> {
    let state: State = frame::decode(state, MAX_SNAPSHOT)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("raft snapshot: {e}")))?;
    Ok(Applied { state: Arc::new(state), last: meta.last_log_id, membership: meta.last_membership.clone() })
}

/// Builds a snapshot of one applied value; applying goes on meanwhile.
pub(super) struct SnapshotBuilder {
    pub(super) applied: Applied,
    pub(super) snapshots: Snapshots,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let meta =
            SnapshotMeta { last_log_id: self.applied.last, last_membership: self.applied.membership.clone() };
        let snapshot = Snapshot { meta, snapshot: frame::encode(&*self.applied.state) };
        match self.snapshots.save(snapshot).await {
            // The log keeps its entries a while longer; raft asks again. What it is given instead is no
            // newer than what it has, which changes nothing.
            Err(error) if is_full(&error) => {
                tracing::warn!("disk full: no space for a snapshot of the raft state");
                let nothing = || Snapshot { meta: SnapshotMeta::default(), snapshot: Bytes::new() };
                Ok(self.snapshots.current().await.unwrap_or_else(nothing))
            }
            saved => saved,
        }
    }
}
