//! Opening a log: finishing a cut that was under way, telling a torn tail from damage, and making
//! durable what is there before anything is said about it.
//!
//! At the first bad record s it is a **torn tail** if s is above the watermark and every record
//! behind it that still verifies was in a group that began at or below s: that group never came
//! back from its fsync. Anything else is **damage** to records that were durable: a group behind
//! was only written once the one with s was. Damage to the very last group cannot be told from a
//! torn tail, unless the watermark knows it.

use std::{collections::VecDeque, path::Path, sync::Arc};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{
    Recovered, WalConfig, WalDriver, WalError,
    base::{BASE, Base},
    cut::zero,
    segment::{
        Behind, Cursor, FOUND, NoRecord, SEGMENT_HEADER, Segment, SegmentHeader, look_behind,
        parse_segment_name, segment_name,
    },
    slots::{Slots, SlotsError},
    state::{Shared, State},
    watermark::{PROMISE, WATERMARK, Watermark, promise_values},
    writer::{Command, Nonces, Parts, allocate_spare},
};
use crate::{
    disk::{Create, Disk, Durability},
    types::{ClusterId, Epoch, EpochTable, Lsn},
};

/// Bytes written again at once.
const CHUNK: usize = 1 << 20;

/// A log that is ready for its driver.
pub(super) struct Opened {
    parts: Parts,
    recovered: Recovered,
}

impl Opened {
    pub(super) fn into_driver(self, commands: mpsc::Receiver<Command>) -> (WalDriver, Recovered) {
        (WalDriver::new(self.parts, commands), self.recovered)
    }
}

/// Opens or makes the log.
pub(super) async fn recover(
    disk: Arc<dyn Disk>,
    config: WalConfig,
    cluster: ClusterId,
    nonce: Nonces,
) -> Result<Opened, WalError> {
    let dir = &config.dir;
    disk.create_dir(dir).await.map_err(io("making the log's directory"))?;
    let names = disk.list(dir).await.map_err(io("listing the log's directory"))?;
    let mut files = SmallFiles::open(&*disk, dir, &names).await?;
    let mark = files.mark;

    // What a retirement or a reset left over is told by the base; what a cut left over, by its end.
    let firsts = names.iter().filter_map(|name| parse_segment_name(name));
    let cut_at = mark.end.unwrap_or(u64::MAX);
    let (live, gone): (Vec<u64>, Vec<u64>) =
        firsts.partition(|first| *first > files.base.lsn.seq && *first <= cut_at);
    for first in gone {
        disk.remove(&dir.join(segment_name(first))).await.map_err(io("removing a log segment"))?;
    }
    disk.sync_dir(dir).await.map_err(io("syncing the log's directory"))?;

    let mut scan = Scan::new(&files.base, mark);
    for (nth, first) in live.iter().enumerate() {
        scan.segment(&*disk, dir, cluster, *first, live.get(nth + 1).copied()).await?;
    }
    if scan.end.seq < mark.durable.seq {
        let segment = segment_name(live.last().copied().unwrap_or(scan.end.seq + 1));
        return Err(scan.corrupt(segment, "the log ends before its watermark", scan.end.seq));
    }
    scan.settle(mark.durable.seq).await?;

    // Only now is anything durable said: again, because a failed fsync of a former life may have
    // left these files readable but not on disk.
    let (durable, promise) = (scan.end, files.promise);
    let lasting = Watermark { durable, commit: mark.commit, end: None };
    files.promise_slots.write_both(promise_values(promise)).await.map_err(io("writing the promise"))?;
    files.mark_slots.write_both(lasting.values()).await.map_err(io("writing the watermark"))?;
    let spare = allocate_spare(&*disk, &config).await.map_err(io("allocating a log segment"))?;
    disk.sync_dir(dir).await.map_err(io("syncing the log's directory"))?;

    let recovered = Recovered {
        end: durable,
        durable,
        promise,
        commit: mark.commit,
        truncated: scan.truncated,
        empty: durable == Lsn::ZERO,
    };
    let mut state = State::recovered(files.base, scan.segments, durable, scan.digest);
    (state.epochs, state.promise, state.commit) = (scan.epochs, promise, mark.commit);
    let shared = Arc::new(Shared::new(state, spare.is_none(), config.tail_bytes));
    let (watermark, promise) = (files.mark_slots, files.promise_slots);
    Ok(Opened { parts: Parts { shared, disk, config, cluster, watermark, promise, spare, nonce }, recovered })
}

/// Everything in the directory that is not a segment.
struct SmallFiles {
    promise_slots: Slots,
    promise: Epoch,
    mark_slots: Slots,
    mark: Watermark,
    base: Base,
}

impl SmallFiles {
    /// Makes what a new log needs: the promise first, because a log without it is refused.
    async fn open(disk: &dyn Disk, dir: &Path, names: &[String]) -> Result<Self, WalError> {
        let has = |name: &str| names.iter().any(|n| n == name);
        let (promise_path, mark_path) = (dir.join(PROMISE.0), dir.join(WATERMARK.0));
        let begun = has(BASE) || names.iter().any(|name| parse_segment_name(name).is_some());
        if !has(PROMISE.0) {
            // Model: promise_fsynced
            if begun || has(WATERMARK.0) {
                return Err(WalError::MissingPromise { dir: dir.to_owned() });
            }
            let made = Slots::create(disk, &promise_path, PROMISE.1, promise_values(0)).await;
            made.map_err(io("making the promise"))?;
        }
        if !has(WATERMARK.0) {
            if begun {
                return Err(WalError::DamagedFile { file: mark_path, reason: "the watermark is missing" });
            }
            let made = Slots::create(disk, &mark_path, WATERMARK.1, Watermark::default().values()).await;
            made.map_err(io("making the watermark"))?;
        }
        let (promise_slots, [promise, ..]) =
            Slots::open(disk, &promise_path, PROMISE.1).await.map_err(slots("reading the promise"))?;
        let (mark_slots, values) =
            Slots::open(disk, &mark_path, WATERMARK.1).await.map_err(slots("reading the watermark"))?;
        let base = if has(BASE) {
            let base = Base::load(disk, dir).await.map_err(io("reading the base of the log"))?;
            base.ok_or_else(|| WalError::DamagedFile {
                file: dir.join(BASE),
                reason: "its checksum does not match",
            })?
        } else {
            Base::default()
        };
        Ok(Self { promise_slots, promise, mark_slots, mark: Watermark::from_values(values), base })
    }
}

/// What the segments read so far have told.
struct Scan {
    mark: Watermark,
    segments: VecDeque<Segment>,
    end: Lsn,
    digest: u32,
    epochs: EpochTable,
    truncated: u64,
    /// Offset, in the segment read last, of the first record above the watermark.
    unsure: u64,
    /// Range in the segment read last in which a torn tail lies.
    torn: Option<(u64, u64)>,
}

impl Scan {
    fn new(base: &Base, mark: Watermark) -> Self {
        let (end, digest, epochs) = (base.lsn, base.chain, base.epochs.clone());
        let (segments, truncated, unsure, torn) = (VecDeque::new(), 0, SEGMENT_HEADER, None);
        Self { mark, segments, end, digest, epochs, truncated, unsure, torn }
    }

    /// Reads the segment that starts with `first`; `next` is where the one behind it starts.
    async fn segment(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        cluster: ClusterId,
        first: u64,
        next: Option<u64>,
    ) -> Result<(), WalError> {
        let name = segment_name(first);
        if first != self.end.seq + 1 {
            return Err(self.corrupt(name, "the segment before it is missing or ends early", first));
        }
        let path = dir.join(&name);
        let file = disk.open(&path, Create::No).await.map_err(io("opening a log segment"))?;
        let len = file.len().await.map_err(io("opening a log segment"))?;
        let bytes = file.read(0, SEGMENT_HEADER as usize).await.map_err(io("reading a log segment"))?;
        let header =
            SegmentHeader::decode(&bytes).map_err(|reason| self.corrupt(name.clone(), reason, first))?;
        if header.cluster != cluster {
            return Err(WalError::OtherCluster { found: header.cluster });
        }
        if (header.first_seq, header.epoch, header.chain) != (first, self.end.epoch, self.digest) {
            return Err(self.corrupt(name, "the segment does not continue the log", first));
        }
        let mut segment = Segment::new(path, file, header, len);
        self.unsure = SEGMENT_HEADER;
        let mut cursor = Cursor::new(&segment, SEGMENT_HEADER, len);
        let bad = loop {
            if self.mark.end == Some(self.end.seq) {
                break None;
            }
            match cursor.next().await {
                Ok(record) => {
                    let at = record.lsn;
                    let continues = at.seq == self.end.seq + 1 && record.chain == self.digest;
                    if !continues || !self.epochs.note(at.epoch, at.seq) {
                        let reason = format!("record {at} does not continue the log");
                        return Err(self.corrupt(name, &reason, at.seq));
                    }
                    segment.note(at.seq, record.stored_len() as u64);
                    (self.end, self.digest) = (at, record.digest);
                    if at.seq <= self.mark.durable.seq {
                        self.unsure = segment.end;
                    }
                }
                Err(NoRecord::Io(error)) => return Err(io("reading a log segment")(error)),
                Err(NoRecord::Foreign(error)) => {
                    return Err(self.corrupt(name, &error.to_string(), self.end.seq + 1));
                }
                Err(NoRecord::Damaged(error)) => break Some(error.to_string()),
                Err(NoRecord::Nothing) => break Some("its header does not verify".to_owned()),
            }
        };
        match (bad, next) {
            // The next segment was begun when everything before it was durable.
            (Some(reason), Some(next)) if next != self.end.seq + 1 => {
                return Err(self.corrupt(name, &reason, next.saturating_sub(1)));
            }
            (Some(reason), None) => self.judge(&segment, &reason).await?,
            _ => {}
        }
        self.segments.push_back(segment);
        Ok(())
    }

    /// Is the bad record behind the end of this, the last segment, a torn tail or damage?
    async fn judge(&mut self, segment: &Segment, reason: &str) -> Result<(), WalError> {
        let bad = self.end.seq + 1;
        let behind: Behind = look_behind(segment, segment.end).await.map_err(io("reading a log segment"))?;
        if behind.group > bad || bad <= self.mark.durable.seq {
            return Err(self.corrupt(segment_name(segment.header.first_seq), reason, behind.last.seq));
        }
        if behind.extent > segment.end {
            self.truncated = behind.extent - segment.end;
            self.torn = Some((segment.end, behind.extent.max(segment.end + FOUND as u64).min(segment.len)));
            tracing::warn!(bytes = self.truncated, after = %self.end, "dropped a torn tail of the log");
        }
        Ok(())
    }

    /// Makes the last segment durable as it was read: nothing behind its end, and every record
    /// that may not have been durable before written once more.
    async fn settle(&self, durable: u64) -> Result<(), WalError> {
        let Some(last) = self.segments.back() else { return Ok(()) };
        let what = io("making the log durable");
        // What a cut that was under way left behind its `end` may be anywhere in the segment.
        let torn = if self.mark.end.is_some() { Some((last.end, last.len)) } else { self.torn };
        if let Some((from, to)) = torn {
            zero(&*last.file, from, to, Durability::Later).await.map_err(&what)?;
        }
        if self.end.seq > durable {
            let mut at = self.unsure;
            while at < last.end {
                let len = CHUNK.min(usize::try_from(last.end - at).unwrap_or(CHUNK));
                let bytes: Bytes = last.file.read(at, len).await.map_err(&what)?;
                if bytes.is_empty() {
                    break;
                }
                let written = bytes.len() as u64;
                last.file.write(at, vec![bytes], Durability::Later).await.map_err(&what)?;
                at += written;
            }
        }
        // Model: fsync_before_durable
        last.file.write(last.end, Vec::new(), Durability::Now).await.map_err(&what)
    }

    /// `seen`: highest seq that is known to have been there, beside the watermark.
    fn corrupt(&self, segment: String, reason: &str, seen: u64) -> WalError {
        let first_bad = self.end.seq + 1;
        let last = seen.max(self.mark.durable.seq).max(first_bad);
        WalError::Corrupt { segment, first_bad, last, reason: reason.to_owned() }
    }
}

fn io(what: &'static str) -> impl Fn(std::io::Error) -> WalError {
    move |source| WalError::Io { what: what.to_owned(), source }
}

fn slots(what: &'static str) -> impl Fn(SlotsError) -> WalError {
    move |error| match error {
        SlotsError::Damaged(file) => WalError::DamagedFile { file, reason: "neither copy in it is whole" },
        SlotsError::Io(source) => WalError::Io { what: what.to_owned(), source },
    }
}
