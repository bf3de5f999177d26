//! Damage that is met while the log is open: looked at again and, if it is still there, set aside as
//! at a start (`quarantine.rs` says why that is safe), without closing the log.
//!
//! Order: the damaged records and all behind them are copied to `quarantine/` and fsynced; the debt is
//! noted beside the promise, fsynced; then they are cut off like any tail (`cut.rs`), but for the
//! orphan file. A crash or a full disk before the debt changes nothing, and the next look finds the
//! damage again; after it, recovery finds the damage, or the announced cut, and a debt in either case.

use std::io;

use super::{
    Debt, Wal, WalDriver, WalError,
    quarantine::{Part, QUARANTINE},
    recovery,
    segment::{Cursor, NoRecord, SEGMENT_HEADER, Segment, SegmentHeader},
    watermark::Promise,
    writer::Command,
};
use crate::disk::is_full;

/// A record, in the log while it is open, that does not verify on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedRecord {
    /// Which one; those before it may be damaged too.
    pub seq: u64,
    /// In which file.
    pub segment: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Where a segment stops to verify.
struct Sound {
    /// Seq of the last good record in it; first seq - 1 if there is none.
    keep: u64,
    /// The chain value behind that record.
    digest: u32,
    /// Offset behind it.
    offset: u64,
}

impl Wal {
    /// Follows what readers have found to be damaged, the first of it, until it is set aside, cut off
    /// or retired.
    pub fn watch_damage(&self) -> tokio::sync::watch::Receiver<Option<DamagedRecord>> {
        self.shared.damage.subscribe()
    }

    /// Notes that every record up to `seq` is in a checkpoint, from which others can be given it.
    pub fn note_checkpoint(&self, seq: u64) {
        self.shared.lock().checkpoint = seq;
    }

    /// The first record that is known to be damaged, if it is in no checkpoint: this node does not have
    /// it.
    pub fn lacks(&self) -> Option<u64> {
        let checkpoint = self.shared.lock().checkpoint;
        self.shared.damage.borrow().as_ref().map(|found| found.seq).filter(|seq| *seq > checkpoint)
    }

    /// Lets the segment with the damage go, and those before it, if all of it is at or below `free` and in
    /// a checkpoint, and it is not the one that is written. True if no damage is known any more.
    pub async fn retire_damage(&self, free: u64) -> Result<bool, WalError> {
        let Some(seq) = self.shared.damage.borrow().as_ref().map(|found| found.seq) else { return Ok(true) };
        let last = {
            let state = self.shared.lock();
            let segment = state.segment_of(seq).map(|segment| segment.last_seq);
            segment.filter(|last| *last <= state.checkpoint.min(free))
        };
        if let Some(last) = last {
            self.retire(last).await?;
        }
        Ok(self.shared.damage.borrow().is_none())
    }

    /// Looks at the segment with record `seq` again. If it does not verify, everything from its first
    /// bad record on is kept under `quarantine/` and cut off, and the log owes it from then on: durable
    /// when this returns. `None` if all of it verifies, or if that record is not there any more.
    ///
    /// What is cut may be committed and applied. The caller keeps everybody away who relies on the end
    /// of this log: streams, seals, an office. [`WalError::Full`] if there is no space for the copy;
    /// nothing is changed then. Dropping the future does not stop it.
    pub async fn set_aside(&self, seq: u64) -> Result<Option<Debt>, WalError> {
        self.ask(|reply| Command::SetAside { seq, reply }).await
    }
}

impl WalDriver {
    /// See [`Wal::set_aside`].
    pub(super) async fn set_aside(&mut self, seq: u64) -> Result<Option<Debt>, WalError> {
        self.shared.lock().closed = true;
        let done = self.set_aside_closed(seq).await;
        self.shared.lock().closed = false;
        done
    }

    async fn set_aside_closed(&mut self, seq: u64) -> Result<Option<Debt>, WalError> {
        while self.write_group().await? {}
        let (segments, end) = {
            let state = self.shared.lock();
            if state.durable != state.end {
                return Err(WalError::Full);
            }
            let from = state.segments.partition_point(|segment| segment.last_seq < seq);
            (state.segments.range(from..).cloned().collect::<Vec<_>>(), state.end)
        };
        let here = segments.first().filter(|segment| segment.header.first_seq <= seq);
        let Some(sound) = (match here {
            Some(segment) => look_again(segment).await.map_err(recovery::io("reading a log segment"))?,
            None => None,
        }) else {
            self.shared.damage.send_replace(None);
            return Ok(None);
        };
        self.copy_aside(&segments, sound.offset).await?;
        let owes = Debt { lost_from: sound.keep + 1, reach: end };
        let debt = self.shared.lock().debt.map_or(owes, |debt| debt.and(owes));
        let epoch = self.shared.lock().promise;
        self.write_promise(Promise { epoch, debt: Some(debt) }).await?;
        self.cut_off(sound.keep, sound.digest, &segments, sound.offset).await?;
        tracing::error!(
            lost_from = owes.lost_from,
            until = %end,
            "the log is damaged: cut behind its last good record; the rest is kept in quarantine/ and fetched \
             again from the writer; until then this node answers no seal"
        );
        Ok(Some(debt))
    }

    /// Copies the first of these segments from `offset` on, and the others whole.
    async fn copy_aside(&mut self, segments: &[Segment], offset: u64) -> Result<(), WalError> {
        let mut copied = self.try_copy_aside(segments, offset).await;
        if copied.as_ref().is_err_and(is_full) && self.release_spare().await? {
            copied = self.try_copy_aside(segments, offset).await;
        }
        let bytes = copied.map_err(|error| match is_full(&error) {
            true => WalError::Full,
            false => recovery::io("setting damaged records aside")(error),
        })?;
        self.shared.note_quarantined(bytes);
        Ok(())
    }

    /// Returns how many bytes were copied. What was copied before an error is removed again.
    async fn try_copy_aside(&self, segments: &[Segment], offset: u64) -> io::Result<u64> {
        let aside = self.config.dir.join(QUARANTINE);
        self.disk.create_dir(&aside).await?;
        let (mut copies, mut bytes) = (Vec::new(), 0);
        for (nth, segment) in segments.iter().enumerate() {
            let from = if nth == 0 { offset } else { 0 };
            let copied = async {
                let Some(part) = Part::of(&*self.disk, segment.path.clone(), from).await? else {
                    return Ok(None);
                };
                Ok(Some((part.copy(&*self.disk, &aside).await?, part.len)))
            };
            match copied.await {
                Ok(Some((copy, len))) => {
                    copies.push(copy);
                    bytes += len;
                }
                Ok(None) => {}
                Err(error) => {
                    for copy in copies {
                        // Best effort: a copy that stays takes space and says nothing untrue.
                        let _ = self.disk.remove(&copy).await;
                    }
                    return Err(error);
                }
            }
        }
        Ok(bytes)
    }
}

/// Reads a segment from its start; `None` if all of it verifies.
async fn look_again(segment: &Segment) -> io::Result<Option<Sound>> {
    let header = &segment.header;
    let mut sound = Sound { keep: header.first_seq.saturating_sub(1), digest: header.chain, offset: 0 };
    if !header_verifies(segment).await? {
        return Ok(Some(sound));
    }
    sound.offset = SEGMENT_HEADER;
    let mut cursor = Cursor::new(segment, SEGMENT_HEADER, segment.end);
    while sound.keep < segment.last_seq {
        match cursor.next().await {
            Ok(record) if record.lsn.seq == sound.keep + 1 && record.chain == sound.digest => {
                sound = Sound { keep: record.lsn.seq, digest: record.digest, offset: cursor.offset };
            }
            Err(NoRecord::Io(error)) => return Err(error),
            _ => return Ok(Some(sound)),
        }
    }
    Ok(None)
}

/// Without its header, of which the nonce is a part, no record of a segment verifies at the next start.
pub(super) async fn header_verifies(segment: &Segment) -> io::Result<bool> {
    let bytes = segment.file.read(0, SEGMENT_HEADER as usize).await?;
    Ok(SegmentHeader::decode(&bytes).is_ok_and(|header| header == segment.header))
}
