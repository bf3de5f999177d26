//! Beginning anew behind an engine snapshot.
//!
//! The engine is one place and the log another, and a crash may come between. An engine that is ahead of
//! its log would skip what a later office of this node writes at positions that it has. So the base that
//! the log is to have is announced before the engine changes, in the file `base.next`; whoever opens the
//! log next tells it how far the engine has come, and the beginning is finished if the engine has the
//! snapshot, and given up if not.
//!
//! Order on disk: `base.next`; the engine's snapshot; a cut of what lies behind the base; `base`; the
//! segments go; the watermark; `base.next` goes.

use std::{io, path::Path};

use super::{
    Wal, WalDriver, WalError,
    base::{BASE, Base, NEXT},
    recovery,
    writer::{Command, failed},
};
use crate::{
    disk::Disk,
    types::{EpochTable, Lsn},
};

impl Wal {
    /// Announces, durably, that an engine snapshot is about to be installed that lies beyond the log's
    /// end: its last record is `base`, with the chain value `chain`, and `epochs` are the epoch starts up
    /// to it. Nothing of the log changes. Dropping the future does not undo it.
    pub async fn announce(&self, base: Lsn, chain: u32, epochs: EpochTable) -> Result<(), WalError> {
        let base = Base { lsn: base, chain, epochs };
        self.ask(|reply| Command::Announce { base, reply }).await
    }

    /// What was announced is finished if the engine's last checkpoint, which is at `reached`, holds it
    /// and this log does not: the log is empty then and reports the base as its end, as durable and as
    /// committed; records behind the base are cut first, what is at or below it is in the snapshot. Else
    /// it is given up. Returns the base that the log has begun behind, if it has. Dropping the future does
    /// not stop it.
    pub async fn begin_anew(&self, reached: Lsn) -> Result<Option<Lsn>, WalError> {
        self.ask(|reply| Command::BeginAnew { reached, alone: false, reply }).await
    }

    /// As [`Self::begin_anew`], for a node that goes on without the others: it also forgets, durably, a
    /// commit position beyond the end of this log. Those records are given up, and others take their
    /// positions.
    pub async fn begin_alone(&self, reached: Lsn) -> Result<Option<Lsn>, WalError> {
        self.ask(|reply| Command::BeginAnew { reached, alone: true, reply }).await
    }
}

impl WalDriver {
    pub(super) async fn announce(&mut self, mut base: Base) -> Result<(), WalError> {
        let lsn = base.lsn;
        base.epochs.cut_after(lsn.seq);
        let (end, first) = {
            let state = self.shared.lock();
            (state.end, state.first_seq())
        };
        // Model: snapshot_beyond_log_end
        if lsn <= end || lsn.seq + 1 < first {
            return Err(WalError::Refused(format!(
                "snapshot {lsn} is not beyond the log, which ends at {end}"
            )));
        }
        if base.epochs.last_epoch() != lsn.epoch {
            return Err(WalError::Refused(format!("the epoch starts given do not tell the epoch of {lsn}")));
        }
        self.save_base(NEXT, &base).await?;
        self.announced = Some(base);
        Ok(())
    }

    pub(super) async fn begin_anew(&mut self, reached: Lsn) -> Result<Option<Lsn>, WalError> {
        let Some(base) = self.announced.clone() else { return Ok(None) };
        let lsn = base.lsn;
        let beyond = {
            let state = self.shared.lock();
            lsn > state.end && lsn.seq >= state.base.lsn.seq
        };
        // Model: install_is_announced
        let begins = beyond && reached.seq >= lsn.seq;
        if begins {
            self.shared.lock().closed = true;
            let done = self.replace_by(base).await;
            self.shared.lock().closed = false;
            done?;
        }
        self.forget_announced().await?;
        Ok(begins.then_some(lsn))
    }

    pub(super) async fn begin_alone(&mut self, reached: Lsn) -> Result<Option<Lsn>, WalError> {
        let begun = self.begin_anew(reached).await?;
        {
            let mut state = self.shared.lock();
            // Model: recovery_forgets_commit
            if state.commit.seq > state.durable.seq {
                state.commit = state.durable;
            }
        }
        self.clear_watermark().await?;
        Ok(begun)
    }

    async fn replace_by(&mut self, base: Base) -> Result<(), WalError> {
        // Records behind the base would be taken for its continuation.
        self.cut_closed(base.lsn.seq).await?;
        self.save_base(BASE, &base).await?;
        let segments = {
            let mut state = self.shared.lock();
            let segments = std::mem::take(&mut state.segments);
            state.commit = state.commit.max(base.lsn);
            self.shared.rebase(&mut state, base);
            segments
        };
        self.remove(segments).await?;
        self.clear_watermark().await
    }

    async fn forget_announced(&mut self) -> Result<(), WalError> {
        let what = failed("removing what was announced");
        match self.disk.remove(&self.config.dir.join(NEXT)).await {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(what(e)),
            _ => {}
        }
        self.disk.sync_dir(&self.config.dir).await.map_err(what)?;
        self.announced = None;
        Ok(())
    }
}

/// The base that is announced in the log's directory. One that does not verify counts as none: the engine
/// is then perhaps ahead of the log, which the writer's log makes good.
pub(super) async fn announced(disk: &dyn Disk, dir: &Path) -> Result<Option<Base>, WalError> {
    match Base::load(disk, dir, NEXT).await {
        Ok(None) => {
            tracing::warn!(file = %dir.join(NEXT).display(), "does not verify, and is not used");
            Ok(None)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        loaded => loaded.map_err(recovery::io("reading what was announced")),
    }
}
