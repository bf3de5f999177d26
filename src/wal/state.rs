//! What the handles, readers and the driver of one log share.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    sync::{Notify, watch},
    task::yield_now,
    time::Instant,
};

use super::{
    DamagedRecord, Debt, WalError,
    base::Base,
    record::{Record, RecordKind},
    segment::Segment,
};
use crate::{
    telemetry::Histogram,
    types::{Epoch, EpochTable, Lsn},
};

/// A record of fewer bytes comes in company.
const SMALL: usize = 4_096;

/// One log's state and the channels on which it is announced.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    pub(super) end: watch::Sender<Lsn>,
    pub(super) durable: watch::Sender<Lsn>,
    pub(super) failed: watch::Sender<Option<String>>,
    /// Only the reserve is left: no spare segment, and no space to make one.
    pub(super) full: watch::Sender<bool>,
    /// Queued records cannot be written for want of space.
    pub(super) stalled: watch::Sender<bool>,
    /// Wakes the driver: records are queued or the watermark is to be written.
    pub(super) work: Notify,
    /// The first record that a reader found damaged, while it is still part of the log.
    pub(super) damage: watch::Sender<Option<DamagedRecord>>,
    /// Bytes under `quarantine/`: found at start, and put there since.
    quarantined: AtomicU64,
    tail_limit: usize,
    /// How long writing and syncing a group takes.
    pub(super) group_seconds: Histogram,
}

/// The log in memory. Invariant: `tail` ends with the record at `end` and holds at least every
/// record behind `durable`; those are the queue of the driver.
#[derive(Debug)]
pub(super) struct State {
    /// Where the log begins; `base.epochs` is only what was saved, `epochs` is the whole table.
    pub(super) base: Base,
    pub(super) segments: VecDeque<Segment>,
    pub(super) tail: VecDeque<Record>,
    tail_bytes: usize,
    pub(super) end: Lsn,
    /// Chain value at `end`.
    pub(super) digest: u32,
    pub(super) durable: Lsn,
    /// Bytes that the records behind `durable` take in a segment.
    queued: u64,
    pub(super) epochs: EpochTable,
    pub(super) promise: Epoch,
    pub(super) debt: Option<Debt>,
    pub(super) commit: Lsn,
    /// Every record up to here is in a checkpoint of the engine.
    pub(super) checkpoint: u64,
    /// The watermark on disk is behind.
    pub(super) watermark_due: bool,
    /// The `keep` of every cut of this process, so that readers see what they missed.
    pub(super) cuts: Vec<u64>,
    /// A cut or reset is under way: no appends.
    pub(super) closed: bool,
}

impl Shared {
    pub(super) fn new(state: State, full: bool, tail_limit: usize, quarantined: u64) -> Self {
        Self {
            end: watch::Sender::new(state.end),
            durable: watch::Sender::new(state.durable),
            failed: watch::Sender::new(None),
            full: watch::Sender::new(full),
            stalled: watch::Sender::new(false),
            work: Notify::new(),
            damage: watch::Sender::new(None),
            quarantined: AtomicU64::new(quarantined),
            group_seconds: Histogram::new(Histogram::FINE_SECONDS),
            tail_limit,
            state: Mutex::new(state),
        }
    }

    pub(super) fn quarantined(&self) -> u64 {
        self.quarantined.load(Ordering::Acquire)
    }

    pub(super) fn note_quarantined(&self, bytes: u64) {
        self.quarantined.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Notes damage, unless it is known from an earlier record on. Under the lock that showed the record
    /// to be part of the log, so that no cut comes in between.
    pub(super) fn note_damage(&self, _state: &State, found: DamagedRecord) {
        self.damage.send_if_modified(|known| {
            let news = known.as_ref().is_none_or(|known| known.seq > found.seq);
            if news {
                *known = Some(found);
            }
            news
        });
    }

    /// Forgets damage to records that are not part of the log any more.
    pub(super) fn forget_damage(&self, state: &State) {
        let there = state.first_seq()..=state.end.seq;
        self.damage.send_if_modified(|known| known.take_if(|known| !there.contains(&known.seq)).is_some());
    }

    /// Lets those go first who are about to append, if the newest record is small and waits for its group. Whoever
    /// writes little seldom writes alone, and what one group holds costs hardly more than one record. Large records
    /// take their time to be made, and are not waited for. Others go first as far as this thread has them in its
    /// queue; which they are is the scheduler's business, and no promise: in the first turn those that can run, in
    /// the second those whose bytes had come by the end of it. Cancel-safe.
    pub(super) async fn gather(&self) {
        let in_company = {
            let state = self.lock();
            state.durable != state.end && state.tail.back().is_some_and(|newest| newest.raw.len() < SMALL)
        };
        if in_company {
            yield_now().await;
            yield_now().await;
        }
    }

    /// Notes how long writing and syncing a group took.
    pub(super) async fn timed<T>(&self, written: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let done = written.await;
        self.group_seconds.observe_duration(began.elapsed());
        done
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fail-stop: the first reason stays.
    pub(super) fn fail(&self, reason: &str) {
        self.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            if first {
                *failed = Some(reason.to_owned());
            }
            first
        });
    }

    pub(super) fn check(&self) -> Result<(), WalError> {
        match &*self.failed.borrow() {
            Some(reason) => Err(WalError::Failed(reason.clone())),
            None => Ok(()),
        }
    }

    /// Refuses what the space left is not meant for.
    pub(super) fn admit(&self, state: &State, kinds: &[RecordKind], bytes: u64) -> Result<(), WalError> {
        if state.closed {
            return Err(WalError::Closed);
        }
        if *self.full.borrow() && (kinds.contains(&RecordKind::Batch) || bytes > state.reserve()) {
            return Err(WalError::Full);
        }
        Ok(())
    }

    /// Queues a record that continues the log and announces it.
    pub(super) fn push(&self, state: &mut State, record: Record) {
        state.epochs.note(record.lsn.epoch, record.lsn.seq);
        state.queued += record.stored_len() as u64;
        state.tail_bytes += record.raw.len();
        state.end = record.lsn;
        state.digest = record.digest;
        state.tail.push_back(record);
        self.end.send_replace(state.end);
    }

    /// Notes that a group is durable.
    pub(super) fn written(&self, state: &mut State, group: &[Record]) {
        for record in group {
            let len = record.stored_len() as u64;
            state.queued = state.queued.saturating_sub(len);
            if let Some(active) = state.segments.back_mut() {
                active.note(record.lsn.seq, len);
            }
            state.durable = record.lsn;
        }
        state.watermark_due = true;
        while state.tail_bytes > self.tail_limit {
            match state.tail.front() {
                Some(oldest) if oldest.lsn.seq <= state.durable.seq => {
                    state.tail_bytes -= oldest.raw.len();
                    state.tail.pop_front();
                }
                _ => break,
            }
        }
        self.durable.send_replace(state.durable);
    }

    /// Everything behind `end`, whose chain value is `digest`, is gone. It was durable, or all that
    /// is queued goes.
    pub(super) fn shorten(&self, state: &mut State, end: Lsn, digest: u32) {
        while let Some(last) = state.tail.pop_back_if(|r| r.lsn.seq > end.seq) {
            state.tail_bytes -= last.raw.len();
        }
        state.epochs.cut_after(end.seq);
        state.cuts.push(end.seq);
        state.queued = 0;
        (state.end, state.durable, state.digest) = (end, end, digest);
        self.forget_damage(state);
        self.end.send_replace(end);
        self.durable.send_replace(end);
    }

    /// The log is empty and begins behind `base`. Nothing is queued.
    pub(super) fn rebase(&self, state: &mut State, base: Base) {
        state.tail.clear();
        state.tail_bytes = 0;
        state.segments.clear();
        state.epochs = base.epochs.clone();
        (state.end, state.durable, state.digest) = (base.lsn, base.lsn, base.chain);
        state.base = base;
        self.forget_damage(state);
        self.end.send_replace(state.end);
        self.durable.send_replace(state.durable);
    }
}

impl State {
    /// A log that ends, durably, at `end`.
    pub(super) fn recovered(base: Base, segments: VecDeque<Segment>, end: Lsn, digest: u32) -> Self {
        Self {
            epochs: base.epochs.clone(),
            base,
            segments,
            tail: VecDeque::new(),
            tail_bytes: 0,
            end,
            digest,
            durable: end,
            queued: 0,
            promise: 0,
            debt: None,
            commit: Lsn::ZERO,
            checkpoint: 0,
            watermark_due: false,
            cuts: Vec::new(),
            closed: false,
        }
    }

    pub(super) fn first_seq(&self) -> u64 {
        self.base.lsn.seq + 1
    }

    /// The record in memory with that seq.
    pub(super) fn in_tail(&self, seq: u64) -> Option<&Record> {
        let first = self.tail.front()?.lsn.seq;
        self.tail.get(usize::try_from(seq.checked_sub(first)?).ok()?)
    }

    /// The records in memory from that seq on, none if it is not in memory.
    pub(super) fn tail_from(&self, seq: u64) -> impl Iterator<Item = &Record> {
        let first = self.tail.front().map_or(u64::MAX, |record| record.lsn.seq);
        let skip = seq.checked_sub(first).and_then(|n| usize::try_from(n).ok()).unwrap_or(self.tail.len());
        self.tail.iter().skip(skip)
    }

    /// The segment that holds the record with that seq on disk.
    pub(super) fn segment_of(&self, seq: u64) -> Option<&Segment> {
        let before = self.segments.partition_point(|s| s.header.first_seq <= seq);
        self.segments.get(before.checked_sub(1)?)
    }

    /// Bytes left in the active segment, behind what is written.
    pub(super) fn room(&self) -> u64 {
        self.segments.back().map_or(0, |active| active.len.saturating_sub(active.end))
    }

    /// Bytes left in the active segment, behind what is queued.
    fn reserve(&self) -> u64 {
        self.room().saturating_sub(self.queued)
    }

    /// The position of a record of this log, at or behind the base.
    pub(super) fn lsn_of(&self, seq: u64) -> Lsn {
        match self.epochs.epoch_at(seq) {
            Some(epoch) => Lsn::new(epoch, seq),
            None => Lsn::new(self.base.lsn.epoch, seq),
        }
    }
}
