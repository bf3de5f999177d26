//! Cutting a tail off.
//!
//! Order on disk of a cut: what goes is written to `orphan/` and fsynced; the watermark, lowered,
//! announces the `end`; the rest of that segment is zeroed and later segments are removed, fsynced;
//! the watermark, in both slots, announces no end any more. A crash in between leaves the log
//! uncut, or with an announced end that recovery enforces before it judges records.
//!
//! An orphan file, named `{first}-{last}.orphan` by the positions of its records, is a header of
//! [`ORPHAN_HEADER`] bytes (magic `SKEINORP` 8, version u32 LE, zero u32, cluster id 16, epoch and
//! seq of the first and of the last record, u64 LE each) and the replicated parts one behind the
//! other ([`Record::decode_replicated`]).

use std::{io, path::PathBuf};

use bytes::{BufMut, BytesMut};

use super::{
    Wal, WalDriver, WalError,
    ahead::zeros,
    record::Record,
    segment::{Cursor, NoRecord, Segment},
    watermark::Watermark,
    writer::{Command, failed},
};
use crate::{
    disk::{Create, DiskFile, Durability, is_full},
    types::{Epoch, Lsn},
};

/// Bytes of an orphan file before its first record.
pub const ORPHAN_HEADER: usize = 64;
/// Orphaned bytes written at once.
const CHUNK: usize = 1 << 20;

/// What a cut removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CutReport {
    /// Number of records; 0 if there was nothing behind `keep`.
    pub records: u64,
    /// Bytes of their replicated parts.
    pub bytes: u64,
    /// Positions of the first and the last of them.
    pub range: Option<(Lsn, Lsn)>,
    /// Where they are kept.
    pub orphan: Option<PathBuf>,
}

/// What is about to be cut.
struct Tail {
    /// The segments that hold it.
    segments: Vec<Segment>,
    /// Where it starts in the first of them.
    offset: u64,
    /// Its first record.
    first: Record,
    /// Position of its last record.
    last: Lsn,
}

impl Wal {
    /// Gives up what is queued and no group was begun with, if all of it is of epochs below `below`,
    /// and returns how many records that were: they are on no file of this log and never will be.
    /// For a disk that has no space for them, when a promise has to be made that ends their epoch.
    ///
    /// [`WalError::Full`] if a record of `below` or a later epoch is queued; nothing is given up then.
    /// Dropping the future does not stop it.
    pub async fn drop_queued(&self, below: Epoch) -> Result<u64, WalError> {
        self.ask(|reply| Command::DropQueued { below, reply }).await
    }
}

impl WalDriver {
    /// See [`Wal::drop_queued`]. Runs between two groups, so nothing of the queue is half-written.
    pub(super) fn drop_queued(&mut self, below: Epoch) -> Result<u64, WalError> {
        let dropped = {
            let mut state = self.shared.lock();
            if state.end.epoch >= below && state.end != state.durable {
                return Err(WalError::Full);
            }
            let (durable, dropped) = (state.durable, state.end.seq - state.durable.seq);
            if let Some(chain) = state.in_tail(durable.seq + 1).map(|first| first.chain) {
                self.shared.shorten(&mut state, durable, chain);
            }
            dropped
        };
        self.shared.stalled.send_replace(false);
        Ok(dropped)
    }

    /// Removes every record behind `keep`.
    pub(super) async fn cut(&mut self, keep: u64) -> Result<CutReport, WalError> {
        self.shared.lock().closed = true;
        let done = self.cut_closed(keep).await;
        self.shared.lock().closed = false;
        done
    }

    /// As [`Self::cut`], of a log that takes no appends.
    pub(super) async fn cut_closed(&mut self, keep: u64) -> Result<CutReport, WalError> {
        while self.write_group().await? {}
        let (end, durable, commit, base) = {
            let state = self.shared.lock();
            (state.end, state.durable, state.commit, state.base.lsn)
        };
        if durable != end {
            // Stalled for want of space: nothing is removed that could not be kept.
            return Err(WalError::Full);
        }
        if keep >= end.seq {
            return Ok(CutReport::default());
        }
        if keep < base.seq || keep < commit.seq.min(end.seq) {
            let bound = base.seq.max(commit.seq.min(end.seq));
            return Err(WalError::Refused(format!(
                "a cut behind {keep} would remove records that are committed or in a snapshot (up to {bound})"
            )));
        }
        let tail = self.find_tail(keep).await?;
        let report = match self.save_orphan(&tail).await {
            Err(e) if is_full(&e) && self.release_spare().await? => self.save_orphan(&tail).await,
            done => done,
        };
        let report =
            report.map_err(|e| if is_full(&e) { WalError::Full } else { failed("saving orphans")(e) })?;

        // Model: cut_durable_before_adoption
        self.cut_off(keep, tail.first.chain, &tail.segments, tail.offset).await?;
        tracing::warn!(keep, records = report.records, orphan = ?report.orphan, "cut the tail of the log");
        Ok(report)
    }

    /// Removes what lies behind `keep`, whose chain value is `chain`, and has been saved: the first of
    /// `segments` from `offset` on, if it has records that are kept, and all others.
    pub(super) async fn cut_off(
        &mut self,
        keep: u64,
        chain: u32,
        segments: &[Segment],
        offset: u64,
    ) -> Result<(), WalError> {
        let new_end = self.shared.lock().lsn_of(keep);
        self.write_watermark(Some(new_end)).await?;
        let gone = {
            let mut state = self.shared.lock();
            self.shared.shorten(&mut state, new_end, chain);
            let kept = state.segments.partition_point(|s| s.header.first_seq <= keep);
            let gone = state.segments.split_off(kept);
            if let Some(last) = state.segments.back_mut().filter(|s| s.last_seq > keep) {
                last.cut(keep + 1, offset);
            }
            gone
        };
        if let Some(cut) = segments.first().filter(|s| s.header.first_seq <= keep) {
            let zeroed = zero(&*cut.file, offset, cut.end, Durability::Now).await;
            zeroed.map_err(failed("zeroing what was cut"))?;
        }
        self.remove(gone).await?;
        self.clear_watermark().await
    }

    /// Says in both slots that no cut is under way, so that damage to one cannot bring it back.
    pub(super) async fn clear_watermark(&mut self) -> Result<(), WalError> {
        let values = {
            let mut state = self.shared.lock();
            state.watermark_due = false;
            Watermark { durable: state.durable, commit: state.commit, end: None }.values()
        };
        self.watermark.write_both(values).await.map_err(failed("writing the watermark"))
    }

    pub(super) async fn remove(
        &mut self,
        segments: impl IntoIterator<Item = Segment>,
    ) -> Result<(), WalError> {
        let what = failed("removing a log segment");
        for segment in segments {
            self.disk.remove(&segment.path).await.map_err(&what)?;
        }
        self.disk.sync_dir(&self.config.dir).await.map_err(&what)
    }

    async fn find_tail(&mut self, keep: u64) -> Result<Tail, WalError> {
        let (segments, last) = {
            let state = self.shared.lock();
            let segments: Vec<Segment> =
                state.segments.iter().filter(|s| s.last_seq > keep).cloned().collect();
            (segments, state.end)
        };
        let lost = || WalError::Failed(format!("record {} is not where it was written", keep + 1));
        let segment = segments.first().ok_or_else(lost)?;
        let mut cursor = Cursor::new(segment, segment.near(keep + 1).1, segment.end);
        loop {
            let offset = cursor.offset;
            let record = cursor.next().await.map_err(|e| WalError::Failed(unreadable(e).to_string()))?;
            if record.lsn.seq == keep + 1 {
                return Ok(Tail { segments, offset, first: record, last });
            }
            if record.lsn.seq > keep {
                return Err(lost());
            }
        }
    }

    async fn save_orphan(&mut self, tail: &Tail) -> io::Result<CutReport> {
        let (first, last) = (tail.first.lsn, tail.last);
        let dir = self.config.dir.join("orphan");
        self.disk.create_dir(&dir).await?;
        let path = dir.join(format!("{first}-{last}.orphan"));
        // A file of that name is what an earlier try at this very cut left: positions tell records.
        match self.disk.remove(&path).await {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = self.disk.open(&path, Create::New).await?;
        let saved = self.copy_orphans(&*file, tail).await;
        if saved.is_err() {
            // Best effort: the error that counts is the one returned.
            let _ = self.disk.remove(&path).await;
        }
        let bytes = saved?;
        self.disk.sync_dir(&dir).await?;
        let records = last.seq + 1 - first.seq;
        Ok(CutReport { records, bytes, range: Some((first, last)), orphan: Some(path) })
    }

    /// Returns the bytes of the records.
    async fn copy_orphans(&mut self, file: &dyn DiskFile, tail: &Tail) -> io::Result<u64> {
        let mut header = BytesMut::with_capacity(ORPHAN_HEADER);
        header.put_slice(b"SKEINORP");
        header.put_u64_le(1);
        header.put_slice(&self.cluster.0);
        for lsn in [tail.first.lsn, tail.last] {
            header.put_u64_le(lsn.epoch);
            header.put_u64_le(lsn.seq);
        }
        let (mut parts, mut held, mut offset) = (vec![header.freeze()], ORPHAN_HEADER, 0);
        for (nth, segment) in tail.segments.iter().enumerate() {
            let from = if nth == 0 { tail.offset } else { super::segment::SEGMENT_HEADER };
            let mut cursor = Cursor::new(segment, from, segment.end);
            while cursor.offset < segment.end {
                let record = cursor.next().await.map_err(unreadable)?;
                held += record.raw.len();
                parts.extend(record.raw.into_parts());
                if held >= CHUNK {
                    file.write(offset, std::mem::take(&mut parts), Durability::Later).await?;
                    offset += std::mem::take(&mut held) as u64;
                }
            }
        }
        file.write(offset, parts, Durability::Now).await?;
        Ok(offset + held as u64 - ORPHAN_HEADER as u64)
    }
}

/// Zeros a range of a file.
pub(super) async fn zero(file: &dyn DiskFile, from: u64, to: u64, durability: Durability) -> io::Result<()> {
    let mut at = from;
    for part in zeros(to.saturating_sub(from)) {
        at += part.len() as u64;
        file.write(at - part.len() as u64, vec![part], Durability::Later).await?;
    }
    file.write(to, Vec::new(), durability).await
}

fn unreadable(error: NoRecord) -> io::Error {
    match error {
        NoRecord::Io(error) => error,
        NoRecord::Nothing => io::Error::other("a record is not where it was written"),
        NoRecord::Damaged(error) | NoRecord::Foreign(error) => io::Error::other(error),
    }
}
