//! Data that was restored from a backup into an empty directory, until a cluster is founded on it.
//!
//! `skein restore` lays the files down where the engine has them, and beside them `restored.json`: while
//! that says that they are not all there, the directory starts nothing. Once they are, the only thing to
//! start is a new cluster, whose log begins behind the position of the data and whose epochs begin behind
//! its epoch. The other nodes get the data as any newcomer does.

use std::{io, path::Path};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{NodeConfig, NodeError};
use crate::{
    disk::{Disk, read_file, replace_file},
    engine::StorageEngine,
    identity::Store,
    types::{Epoch, EpochTable, Lsn},
    wal::Wal,
};

/// The file, in the data directory.
pub const RESTORED_FILE: &str = "restored.json";
/// More epochs than any history has.
const MAX_LEN: u64 = 64 << 20;

/// What `restored.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// True when every file is there, durably.
    pub whole: bool,
    /// The file that was restored, for people.
    pub backup: String,
    /// Last record in the data.
    pub position: Lsn,
    /// The epochs up to there.
    pub epochs: EpochTable,
}

impl Restored {
    /// What the directory says, if anything.
    ///
    /// # Errors
    /// The disk fails, or the file is not one.
    pub async fn find(disk: &dyn Disk, dir: &Path) -> io::Result<Option<Self>> {
        let bytes = match read_file(disk, &dir.join(RESTORED_FILE), MAX_LEN).await {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        let damaged = |why: String| {
            let file = dir.join(RESTORED_FILE);
            let what =
                format!("{} is damaged ({why}): empty the directory and restore again", file.display());
            io::Error::new(io::ErrorKind::InvalidData, what)
        };
        let restored: Self = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        let entries = restored.epochs.entries().to_vec();
        let last = entries.last().is_none_or(|(_, start)| *start <= restored.position.seq);
        let holds = restored.epochs.holds(restored.position, restored.position.seq);
        if EpochTable::from_entries(entries).is_none() || !last || !holds {
            return Err(damaged("its position is not in its epochs".to_owned()));
        }
        Ok(Some(restored))
    }

    /// Writes it, durably and at once.
    ///
    /// # Errors
    /// The disk fails.
    pub async fn save(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        replace_file(disk, &dir.join(RESTORED_FILE), Bytes::from(bytes)).await
    }

    /// The epoch behind which those of the new cluster begin.
    pub(super) fn after(restored: Option<&Self>) -> Epoch {
        restored.map_or(0, |restored| restored.position.epoch)
    }

    /// Whether the node may start like this. Asked before anything is written.
    pub(super) async fn check(
        disk: &dyn Disk,
        config: &NodeConfig,
        store: &Store,
    ) -> Result<Option<Self>, NodeError> {
        let (dir, member) = (config.dir.path(), store.cluster().await?.is_some());
        let failed = |e: io::Error| NodeError::Usage(format!("cannot read what was restored: {e}"));
        let Some(restored) = Self::find(disk, dir).await.map_err(failed)? else { return Ok(None) };
        if !restored.whole {
            return Err(NodeError::Usage(format!(
                "{} holds a part of {}: the restore was cut short. Give the command again, it goes on: skein restore \
                 {} --data-dir {}",
                dir.display(),
                restored.backup,
                restored.backup,
                dir.display()
            )));
        }
        if !member && (config.join.is_some() || config.bootstrap_expect.is_some()) {
            return Err(NodeError::Usage(format!(
                "{} holds what was restored from {}, and a node that joins gets its data from the cluster: start this \
                 one with --new-cluster and let the others join it, or restore into the running cluster (skein restore \
                 without --data-dir)",
                dir.display(),
                restored.backup
            )));
        }
        Ok(Some(restored))
    }

    /// Begins the log behind the data, unless that was done before a restart; the position that is
    /// committed then. In this order: promise, log, and only then the file goes.
    pub(super) async fn begin_log(
        &self,
        disk: &dyn Disk,
        dir: &Path,
        wal: &Wal,
        engine: &dyn StorageEngine,
    ) -> Result<Lsn, NodeError> {
        let commit = if wal.end() == Lsn::ZERO && self.position != Lsn::ZERO {
            let (at, _) = engine.recovered();
            if at != self.position {
                return Err(NodeError::Usage(format!(
                    "{} holds data up to {at}, and what was restored from {} ends at {}: empty the directory and restore \
                     again",
                    dir.display(),
                    self.backup,
                    self.position
                )));
            }
            wal.set_promise(self.position.epoch).await?;
            wal.announce(self.position, 0, self.epochs.clone()).await?;
            if wal.begin_anew(at).await? != Some(at) {
                return Err(NodeError::Task(format!("the log does not begin behind {at}")));
            }
            tracing::info!(backup = self.backup, position = %at, "the log begins behind what was restored");
            self.position
        } else {
            wal.commit()
        };
        let gone = async {
            disk.remove(&dir.join(RESTORED_FILE)).await?;
            disk.sync_dir(dir).await
        };
        gone.await.map_err(|e| NodeError::Task(format!("cannot remove {RESTORED_FILE}: {e}")))?;
        Ok(commit)
    }
}
