//! What a running node does about stored bytes that do not verify any more.
//!
//! # A record of the log
//!
//! **What is applied comes into a checkpoint**, and the log may begin behind that (retention): the
//! damaged segment goes before its time, nothing is lacking, and whoever would have needed it gets a
//! snapshot. So it is on every node, also the writer and a lone one. Only a segment that is still
//! written waits until it is full.
//!
//! **What is not applied** this node does not have. It sets the record and all behind it aside, owes
//! them, and fetches them again like a follower that was away; no restart, and the same argument as
//! at a start (`wal/quarantine.rs`). A writer cannot: others and its own count rely on its log. It
//! gives up office first, if enough others are there to name another writer. Where nobody can supply
//! the record the node goes on for as long as it does not need it; the apply loop of a lone node ends
//! the process there, and the next start says what can be done.
//!
//! # A data file
//!
//! Queries that need it fail from the moment on that the damage is seen. The node takes the writer's
//! snapshot in the place of what it has (`replication/mend.rs`); the writer hands over first, if
//! another voter is level with it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::time::{Duration, Instant, sleep};

use crate::{
    replication::{
        Applier,
        catch_up::{CatchUpError, Fetch},
        fence::FenceError,
        mend::mend,
        receiver::FollowError,
    },
    wal::{DamagedRecord, WalError},
    write_path::apply::AppliedState,
};

use super::{NodeError, local::ThisNode};

/// Between two attempts to mend.
const AGAIN: Duration = Duration::from_secs(1);
/// Between two looks at whether a data file is damaged; while one is, it doubles up to the second.
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Between two attempts of a writer to hand over for the sake of a data file: writes wait meanwhile.
const HAND_OVER_AGAIN: Duration = Duration::from_secs(60);

/// What was found, for status and metrics.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Records of the log at which damage was met while the process ran.
    pub(super) records: AtomicU64,
    /// Times that damaged data files were replaced.
    pub(super) replaced: AtomicU64,
    /// What the scrub has done.
    pub(super) scrub: super::scrub::Progress,
}

/// Mends the log whenever a reader finds damage in it.
pub(super) async fn mend_log(this: Arc<ThisNode>) -> Result<(), NodeError> {
    let mut damage = this.replica.wal.watch_damage();
    let mut told = None;
    loop {
        let found = damage.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
        let Some(found) = found else { return std::future::pending().await };
        let news = told.as_ref() != Some(&found);
        if news {
            this.findings.records.fetch_add(1, Ordering::AcqRel);
            let DamagedRecord { seq, segment, reason } = &found;
            tracing::error!(node = %this.identity.node(), seq, segment, reason, "a record of the log is damaged");
            told = Some(found.clone());
        }
        match mend_record(&this, &found).await? {
            Mended::Yes => told = None,
            Mended::NotYet(why) if news => tracing::warn!(seq = found.seq, why, "not mended yet"),
            Mended::NotYet(_) => {}
        }
        sleep(AGAIN).await;
    }
}

enum Mended {
    Yes,
    NotYet(String),
}

async fn mend_record(this: &ThisNode, found: &DamagedRecord) -> Result<Mended, NodeError> {
    let (replica, wal) = (&this.replica, &this.replica.wal);
    if found.seq <= this.apply.watch().borrow().seq {
        if wal.lacks().is_some() {
            match this.apply.checkpoint_now().await {
                Ok(at) => wal.note_checkpoint(at.seq),
                Err(error) => return Ok(Mended::NotYet(error.to_string())),
            }
        }
        // Not what a snapshot that is being mended with, or given, is to be followed by.
        return match wal.retire_damage(replica.free_through()).await {
            Ok(true) => {
                tracing::warn!(
                    seq = found.seq,
                    first = wal.first_seq(),
                    "the damaged part of the log is in the checkpoint and was retired; nothing is lost"
                );
                Ok(Mended::Yes)
            }
            Ok(false) => {
                Ok(Mended::NotYet("it is in the checkpoint; its segment goes when it is full".into()))
            }
            Err(WalError::Full) => Ok(Mended::NotYet("the disk is full".into())),
            Err(error) => Err(error.into()),
        };
    }
    if !replica.has_peers() {
        return Ok(Mended::NotYet("no other voter holds this log".into()));
    }
    match replica.fence.set_aside(found.seq).await {
        Ok(Some(_)) => Ok(Mended::Yes),
        Ok(None) => {
            tracing::warn!(seq = found.seq, "the damaged record verifies now: look at memory and cables too");
            Ok(Mended::Yes)
        }
        Err(FenceError::InOffice(epoch)) if this.others_are_enough() => {
            tracing::warn!(
                epoch,
                seq = found.seq,
                "giving up the office of writer: a record is damaged here"
            );
            match replica.fence.step_down(epoch).await {
                Ok(()) | Err(WalError::Full) => {
                    Ok(Mended::NotYet("it is the writer's, and another is to be named".into()))
                }
                Err(error) => Err(error.into()),
            }
        }
        Err(FenceError::InOffice(_)) => Ok(Mended::NotYet(
            "this node is the writer, and too few other voters are up to name another".into(),
        )),
        Err(FenceError::Wal(WalError::Full)) => {
            Ok(Mended::NotYet("there is no space for a copy of it".into()))
        }
        Err(FenceError::Wal(error)) => Err(error.into()),
        Err(error) => Ok(Mended::NotYet(error.to_string())),
    }
}

/// Replaces the engine's content whenever a file of it is found to be damaged.
pub(super) async fn mend_files(this: Arc<ThisNode>, into: Fetch) -> Result<(), NodeError> {
    let applier: Arc<dyn Applier> = Arc::new(AppliedState(this.apply.clone()));
    let (mut told, mut asked, mut pause) = (None, None::<Instant>, LOOK.0);
    loop {
        sleep(pause).await;
        let damaged = this.engine.damaged();
        if damaged.is_empty() {
            (told, pause) = (None, LOOK.0);
            continue;
        }
        pause = (pause * 2).min(LOOK.1);
        let writer = this.control.view().borrow().writer;
        let not_yet = match writer {
            Some(office) if office.node != this.identity.node() => {
                match mend(&into, &this.replica, &applier, &this.mesh, office).await {
                    Ok(at) => {
                        this.findings.replaced.fetch_add(1, Ordering::AcqRel);
                        tracing::warn!(snapshot = %at, ?damaged, "damaged data files are replaced");
                        continue;
                    }
                    // The engine has changed half-way.
                    Err(error @ CatchUpError::Engine(_)) if !error.passes() => {
                        return Err(FollowError::CatchUp(error).into());
                    }
                    Err(error) => error.to_string(),
                }
            }
            Some(_) if !this.is_linked_to_voters() => "no other voter is up to take them from".to_owned(),
            Some(_) => {
                if asked.is_none_or(|asked| asked.elapsed() > HAND_OVER_AGAIN) {
                    asked = Some(Instant::now());
                    this.writer.drain();
                }
                "this node is the writer, and hands over first".to_owned()
            }
            None => "there is no writer".to_owned(),
        };
        if told.as_ref() != Some(&not_yet) {
            tracing::warn!(node = %this.identity.node(), ?damaged, why = not_yet, "damaged data files are not replaced yet");
            told = Some(not_yet);
        }
    }
}

impl ThisNode {
    fn is_linked_to_voters(&self) -> bool {
        let links = self.mesh.links().borrow().clone();
        self.control.view().borrow().all_voters().iter().any(|voter| links.contains_key(voter))
    }

    /// True if the voters that this node has links to can name a writer without it.
    fn others_are_enough(&self) -> bool {
        let others = self.mesh.links().borrow().keys().copied().collect();
        self.control.view().borrow().is_quorum(&others)
    }
}
