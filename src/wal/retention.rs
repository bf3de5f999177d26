//! Letting old segments go. The position and the epoch starts they leave behind are in the file
//! `base` before the first of them goes; recovery removes what a crash left over.

use super::{
    WalDriver, WalError,
    base::{BASE, Base},
    segment::Segment,
    writer::{SPARE, failed},
};
use crate::disk::is_full;

impl WalDriver {
    /// Lets segments go whose records are all durable and at or below `through`.
    pub(super) async fn retire(&mut self, through: u64) -> Result<u64, WalError> {
        let (count, base) = {
            let state = self.shared.lock();
            let through = through.min(state.durable.seq);
            let old = state.segments.iter().take_while(|s| s.last_seq <= through).count();
            let count = old.min(state.segments.len().saturating_sub(1));
            let last = count.checked_sub(1).and_then(|n| state.segments.get(n));
            let (Some(last), Some(next)) = (last, state.segments.get(count)) else {
                return Ok(state.first_seq());
            };
            let mut epochs = state.epochs.clone();
            epochs.cut_after(last.last_seq);
            (count, Base { lsn: state.lsn_of(last.last_seq), chain: next.header.chain, epochs })
        };
        self.save_base(BASE, &base).await?;
        let old: Vec<Segment> = {
            let mut state = self.shared.lock();
            state.base = base;
            self.shared.forget_damage(&state);
            state.segments.drain(..count).collect()
        };
        let what = failed("retiring a log segment");
        for segment in old {
            if self.spare.is_some() {
                self.disk.remove(&segment.path).await.map_err(&what)?;
            } else {
                self.disk.rename(&segment.path, &self.config.dir.join(SPARE)).await.map_err(&what)?;
                self.spare = Some(segment.file);
                if self.fit_spare(self.config.segment_bytes).await? {
                    self.note_full(false, false);
                } else {
                    self.release_spare().await?;
                }
            }
        }
        self.disk.sync_dir(&self.config.dir).await.map_err(&what)?;
        Ok(self.shared.lock().first_seq())
    }

    /// Retiring is what makes space, and so does beginning anew behind a snapshot: it must work without
    /// any. The spare is given up for it, or else what is left of the active segment. A retired segment
    /// becomes the spare in its place.
    pub(super) async fn save_base(&mut self, name: &str, base: &Base) -> Result<(), WalError> {
        let mut saved = base.save(&*self.disk, &self.config.dir, name).await;
        if saved.as_ref().is_err_and(is_full) {
            if !self.release_spare().await? {
                self.shorten_active().await?;
            }
            saved = base.save(&*self.disk, &self.config.dir, name).await;
        }
        saved.map_err(|e| if is_full(&e) { WalError::Full } else { failed("writing the base of the log")(e) })
    }

    /// Returns the active segment's free space to the file system.
    async fn shorten_active(&mut self) -> Result<(), WalError> {
        let active = self.shared.lock().segments.back().map(|s| (s.file.clone(), s.end));
        let Some((file, end)) = active else { return Ok(()) };
        file.resize(end).await.map_err(failed("shortening a log segment"))?;
        if let Some(active) = self.shared.lock().segments.back_mut() {
            active.len = end;
        }
        Ok(())
    }
}
