//! What lies in the directory of the raft log, for people who look: read, never changed.

use std::{path::Path, sync::Arc};

use super::{
    ControlError, log_store::Content, snapshot::Snapshots, state_machine::apply_entry, type_config::LogId,
};
use crate::{disk::Disk, types::ClusterView};

/// A place in the raft log: term and index.
pub type LogAt = (u64, u64);

/// The raft log, vote and snapshot as they lie on disk.
#[derive(Debug, Clone)]
pub struct RaftSurvey {
    /// The last vote, as raft writes it.
    pub vote: Option<String>,
    /// The first entry that is kept.
    pub first: Option<LogAt>,
    /// The last entry, which may be purged.
    pub last: Option<LogAt>,
    /// Entries up to this one are in the snapshot only.
    pub purged: Option<LogAt>,
    /// Entries up to this one were known to be committed.
    pub committed: Option<LogAt>,
    /// Bytes of a torn end, which the next start cuts.
    pub torn: u64,
    /// The cluster as the committed entries make it; its leader is not known.
    pub cluster: ClusterView,
    /// The snapshot.
    pub snapshot: Option<SnapshotSurvey>,
}

/// What a raft snapshot holds.
#[derive(Debug, Clone)]
pub struct SnapshotSurvey {
    /// The last entry in it.
    pub at: Option<LogAt>,
    /// Bytes of the state in it.
    pub bytes: u64,
    /// The cluster at that entry.
    pub cluster: ClusterView,
    /// Join tokens, spent and revoked ones included.
    pub tokens: usize,
    /// API tokens.
    pub api_tokens: usize,
    /// Members for which the CA key is sealed.
    pub sealed_ca: usize,
}

/// Looks at the raft log in `dir`. It must not be open in another process.
pub async fn survey(disk: Arc<dyn Disk>, dir: &Path) -> Result<RaftSurvey, ControlError> {
    let content = Content::read(&*disk, dir).await?;
    let (snapshots, mut applied) =
        Snapshots::open(disk, dir.join("snapshot")).await.map_err(ControlError::Snapshot)?;
    let snapshot = snapshots.current().await.map(|snapshot| SnapshotSurvey {
        at: snapshot.meta.last_log_id.as_ref().map(place),
        bytes: snapshot.snapshot.len() as u64,
        cluster: applied.view(None, 0),
        tokens: applied.state.tokens.len(),
        api_tokens: applied.state.api_tokens.len(),
        sealed_ca: applied.state.sealed_ca.len(),
    });
    let memory = content.memory;
    let known = memory.committed.as_ref().map_or(0, |id| id.index);
    let from = applied.last.as_ref().map_or(0, |id| id.index + 1);
    for held in memory.entries.range(from..).map(|(_, held)| held) {
        if held.entry.log_id.index <= known {
            apply_entry(&mut applied, held.entry.clone());
        }
    }
    Ok(RaftSurvey {
        vote: memory.vote.map(|vote| vote.to_string()),
        first: memory.entries.values().next().map(|held| place(&held.entry.log_id)),
        last: memory.last().as_ref().map(place),
        purged: memory.purged.as_ref().map(place),
        committed: memory.committed.as_ref().map(place),
        torn: (content.written - content.end) as u64,
        cluster: applied.view(None, 0),
        snapshot,
    })
}

fn place(id: &LogId) -> LogAt {
    (id.leader_id.term, id.index)
}
