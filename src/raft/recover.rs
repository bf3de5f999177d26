//! Raft of a node that does not run: what its files say, and how they become those of a cluster of
//! one.
//!
//! **What is kept.** Every entry of the log, also those that this node does not know to be
//! committed: the voters that are gone may have committed them and told somebody. Dropping the
//! entry that removed a member, for example, would let that member in again.
//!
//! **What is written.** A snapshot of all of it, behind the last entry, of a term above any this
//! node has seen, with the survivor as the only voter, the recovery, and a register whose next
//! epoch is the first of the new generation. The members stay members: the keeper makes learners
//! of them, and voters again when they have caught up, as it would of newcomers.
//!
//! **In which order.** Vote, snapshot, log; each replaced as a whole. The vote alone is one that
//! the node might have cast for itself. The snapshot decides: before it this is the old cluster,
//! after it the new one. Raft would purge the old log by itself, since all of it lies below the
//! snapshot; it is replaced here all the same, so that what is left depends on nobody. Doing it all
//! again after a kill at any point ends in the same state.
//!
//! Terms and votes of the two worlds would clash; that they never meet is the fence's business
//! ([`crate::types::Recovery`]).

use std::{collections::BTreeSet, io, path::PathBuf, sync::Arc};

use openraft::{Membership, vote::leader_id_std::CommittedLeaderId};
use tokio::sync::watch;

use super::{
    LogError, State,
    applied::Applied,
    control::ControlError,
    log_store::{LogStore, replace_log},
    snapshot::Snapshots,
    state_machine::apply_entry,
    type_config::{LogId, Snapshot, SnapshotMeta, StoredMembership, Vote, membership_id},
    vote,
};
use crate::{
    disk::Disk,
    protocol::frame,
    types::{BootId, ClusterView, NodeId, Office, Recovery, Why},
};

/// The recovery that the raft files in `dir` have come through, if they say anything: a node that
/// has just joined has no snapshot yet.
pub async fn recovery_in(
    disk: Arc<dyn Disk>,
    dir: PathBuf,
) -> Result<Option<Option<Recovery>>, ControlError> {
    let opened = Snapshots::open(disk, dir.join("snapshot")).await;
    let (snapshots, applied) = opened.map_err(ControlError::Snapshot)?;
    Ok(snapshots.current().await.map(|_| applied.state.recovery.clone()))
}

/// The raft files of a node that does not run.
#[derive(Debug)]
pub struct Survivor {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    snapshots: Snapshots,
    /// Everything in snapshot and log.
    applied: Applied,
    vote: Option<Vote>,
    /// The log ends below the snapshot: it is of before.
    stale_log: bool,
}

impl Survivor {
    /// Reads the files, and settles a log whose end is torn, as a start of the node would.
    pub async fn open(disk: Arc<dyn Disk>, dir: PathBuf) -> Result<Self, ControlError> {
        // The driver of the log is not run: nothing is queued for it.
        let (log, _driver) = LogStore::open(disk.clone(), &dir, watch::Sender::new(None)).await?;
        let opened = Snapshots::open(disk.clone(), dir.join("snapshot")).await;
        let (snapshots, mut applied) = opened.map_err(ControlError::Snapshot)?;
        let damaged = |reason| ControlError::Log(LogError::Damaged { dir: dir.clone(), reason });
        log.check_snapshot(applied.last.as_ref()).map_err(damaged)?;
        let (vote, entries, last) = log.content();
        let stale_log = last < applied.last;
        for entry in entries {
            let next = applied.last.as_ref().map_or(0, |id| id.index + 1);
            if entry.log_id.index > next {
                return Err(damaged(format!("entry {next} is missing")));
            }
            if entry.log_id.index == next {
                apply_entry(&mut applied, entry);
            }
        }
        Ok(Self { disk, dir, snapshots, applied, vote, stale_log })
    }

    /// The state, with every entry of the log applied.
    pub fn state(&self) -> &State {
        &self.applied.state
    }

    /// The view of that state.
    pub fn view(&self) -> ClusterView {
        self.applied.view(None, self.vote.as_ref().map_or(0, |vote| vote.leader_id.term))
    }

    /// Makes these files those of a cluster whose only voter is `me`. Done again with the same
    /// recovery after a kill at any point it ends in the same state.
    pub async fn carry_on_alone(self, me: NodeId, recovery: &Recovery) -> Result<(), ControlError> {
        let io = |source| ControlError::Log(LogError::Io { dir: self.dir.clone(), source });
        let decided = self.state().recovery.as_ref() == Some(recovery);
        let at = match self.applied.last {
            Some(at) if decided => at,
            _ => self.decide(me, recovery).await.map_err(io)?,
        };
        if !decided || self.stale_log {
            replace_log(&*self.disk, &self.dir, at).await.map_err(io)?;
        }
        Ok(())
    }

    async fn decide(&self, me: NodeId, recovery: &Recovery) -> io::Result<LogId> {
        let seen = self.applied.last.as_ref().map_or(0, |id| id.leader_id.term);
        let term = self.vote.as_ref().map_or(0, |vote| vote.leader_id.term).max(seen) + 1;
        let index = self.applied.last.as_ref().map_or(0, |id| id.index + 1);
        let at = LogId::new(CommittedLeaderId::new(term), index);
        let alone = Membership::new_with_defaults(vec![BTreeSet::from([me])], [me]);
        let last_membership = StoredMembership::new(Some(at), alone);
        let mut state = (*self.applied.state).clone();
        state.recovery = Some(recovery.clone());
        // Nobody's office: no process ever draws boot 0, so the first leader starts a round.
        // A cluster whose data was restored from one of a later generation has epochs above those of its own.
        let above = state.writer.map_or(0, |office| ((office.epoch >> 32) + 1) << 32);
        state.writer = Some(Office {
            epoch: Recovery::first_epoch(recovery.generation).max(above),
            node: me,
            boot: BootId(0),
            membership: membership_id(&last_membership),
            at_ms: 0,
            why: Why::Recovered,
        });
        // A log never reaches a term above the vote, so the vote is first.
        vote::replace(&*self.disk, &self.dir, Some(Vote::new(term, me))).await?;
        let meta = SnapshotMeta { last_log_id: Some(at), last_membership };
        self.snapshots.save(Snapshot { meta, snapshot: frame::encode(&state) }).await?;
        Ok(at)
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests;
