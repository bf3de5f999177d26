//! Coming back to a cluster that was recovered without this node.
//!
//! Everything this node has of raft, log and engine is of a history that the cluster has left.
//! How much of it is still true could be worked out from the two logs; what it applied beyond that
//! point could not be taken out of its engine. So all of it is put aside, whole, where an operator
//! can look at it, and the node gets what it needs from the writer, as a newcomer does. It keeps
//! its keys, its name and its membership: the recovered cluster knows it, takes it in as a learner,
//! and makes a voter of it again when it has caught up.
//!
//! Order on disk: the directories, then `cluster.json` (from there on this is a member of the new world),
//! then the view, then the note that brought it here. A kill at any point is finished by the next
//! start.

use std::{io, path::Path};

use super::{NodeError, surroundings::Surroundings};
use crate::{
    disk::Disk,
    identity::{ClusterRecord, DataDir, Store, StoreError},
    types::{ClusterView, Recovery},
};

/// What is put aside: everything but who this node is.
const HISTORY: [&str; 5] = ["raft", "wal", "engine", "incoming", "mending"];

/// What is added to the names of directories that are put aside.
pub(super) fn suffix(recovery: &Recovery) -> String {
    format!(".before-recovery-{}", recovery.generation)
}

/// Renames whole directories within their parent, so that a power cut leaves each of them under one
/// name or the other. What an earlier attempt has moved is not there any more.
async fn put_aside(disk: &dyn Disk, dir: &Path, suffix: &str) -> io::Result<()> {
    for part in HISTORY {
        match disk.rename(&dir.join(part), &dir.join(format!("{part}{suffix}"))).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    disk.sync_dir(dir).await
}

/// Gives way to a recovery that this node has heard of, if it has. To be called before the engine
/// is opened in `engine` of the data directory; an engine that lies elsewhere must be emptied by
/// whoever put it there. Returns the recovery when there was one.
pub async fn come_back(dir: &DataDir, surroundings: &Surroundings) -> Result<Option<Recovery>, NodeError> {
    let store = Store::new(surroundings.disk.clone(), dir.path());
    let Some(recovery) = store.superseded().await? else { return Ok(None) };
    let suffix = suffix(&recovery);
    put_aside(&*surroundings.disk, dir.path(), &suffix).await.map_err(|source| StoreError::Io {
        what: "put aside the data in",
        path: dir.path().to_path_buf(),
        source,
    })?;
    let record = store.cluster().await?;
    let record = record.ok_or_else(|| NodeError::LostRecord { dir: dir.path().to_path_buf() })?;
    store.set_cluster(&ClusterRecord { recovery: Some(recovery.clone()), ..record }).await?;
    // Whom to look for; who votes and how far it was applied is of the other world.
    if let Some(view) = store.view().await? {
        let first = ClusterView {
            cluster: view.cluster,
            name: view.name,
            members: view.members,
            roots: view.roots,
            profile: view.profile,
            recovery: Some(recovery.clone()),
            ..ClusterView::default()
        };
        store.set_view(&first).await?;
    }
    store.clear_superseded().await?;
    tracing::warn!(
        generation = recovery.generation, by = %recovery.by, suffix,
        "the cluster was recovered without this node: its raft state, log and data are put aside, and it comes back \
         as a learner"
    );
    Ok(Some(recovery))
}

#[cfg(test)]
mod tests;
