//! The log on disk: one sequence of records in segment files, written in groups that are fsynced
//! together, with the promise that fences it. It does not know what a record means.
//!
//! [`Wal`] is the handle, [`WalDriver`] does the writing, [`WalReader`] reads from any position.
//! A directory holds, beside the segments (`{first seq}.wal`, see `segment.rs` and `record.rs` for
//! the bytes):
//!
//! - `promise`, `watermark`: two-slot files (`disk/slots.rs`, `watermark.rs`);
//! - `base`: where the log begins and the epoch starts before that (`base.rs`); `base.next`: where it
//!   is to begin when an engine snapshot is installed (`anew.rs`);
//! - `spare.wal`: the next segment, allocated in advance; the reserve for a full disk;
//! - `orphan/`: records that were cut off (`cut.rs`);
//! - `quarantine/`: bytes that did not verify, and what lay behind them (`quarantine.rs`,
//!   `set_aside.rs`).
//!
//! Any error of a write or sync is final (fail-stop): the page cache may have dropped the data and
//! a second fsync would wrongly succeed. Only running out of space while *allocating* is not.

mod ahead;
mod anew;
mod base;
mod cut;
mod error;
mod mend;
mod quarantine;
mod reader;
mod record;
mod recovery;
mod retention;
mod scan;
mod scrub;
mod segment;
mod set_aside;
mod state;
mod survey;
#[cfg(all(test, feature = "testing"))]
mod tests;
mod watermark;
mod writer;

use std::{fmt, path::PathBuf, sync::Arc};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    disk::Disk,
    telemetry::Histogram,
    types::{ClusterId, Epoch, EpochTable, Lsn},
};

pub use crate::protocol::forward::DedupKey;
pub use cut::{CutReport, ORPHAN_HEADER};
pub use error::WalError;
pub use mend::{Loss, accept_loss};
pub use quarantine::Debt;
pub use reader::{ReadError, WalReader};
pub(crate) use record::is_shared;
pub use record::{Draft, RECORD_HEADER, Raw, Record, RecordError, RecordKind};
pub use scrub::{Scrubbed, Sealed};
pub use set_aside::DamagedRecord;
pub use survey::{DamageSurvey, SegmentSurvey, Survey, survey};
pub use writer::WalDriver;

use state::{Shared, State};
use writer::Command;

/// Where a log lies and how large its parts are.
#[derive(Debug, Clone)]
pub struct WalConfig {
    /// The directory; made if missing.
    pub dir: PathBuf,
    /// Length of a segment file. A record that does not fit gets a longer one.
    pub segment_bytes: u64,
    /// Most bytes that are written and fsynced together (one record at least).
    pub group_bytes: usize,
    /// Durable records kept in memory for readers.
    pub tail_bytes: usize,
    /// True on a node that can follow another voter: damage is set aside and the log opened without
    /// it, owing a [`Debt`]. Else damage is refused.
    pub quarantine: bool,
}

impl WalConfig {
    /// Segments of 64 MiB, groups of 1 MiB, a tail of 16 MiB; damage is refused.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let (segment_bytes, group_bytes, tail_bytes) = (64 << 20, 1 << 20, 16 << 20);
        Self { dir: dir.into(), segment_bytes, group_bytes, tail_bytes, quarantine: false }
    }
}

/// What was found on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// Last record.
    pub end: Lsn,
    /// Last durable record; equal to `end`, because recovery fsyncs before it says so.
    pub durable: Lsn,
    /// Highest epoch promised.
    pub promise: Epoch,
    /// Last commit position that was noted; may be behind, never ahead of the truth.
    pub commit: Lsn,
    /// Bytes of a torn tail that were dropped; none of them was ever called durable.
    pub truncated: u64,
    /// No record, no snapshot base and no debt: a new log.
    pub empty: bool,
    /// What this log must reach again before its node answers a seal.
    pub debt: Option<Debt>,
    /// Bytes under `quarantine/`.
    pub quarantined: u64,
}

/// A handle to the log; clones are the same log. When the last one is dropped, the driver writes
/// what is queued and ends.
#[derive(Clone)]
pub struct Wal {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

impl Wal {
    /// Opens the log in `config.dir`, or makes it. `nonce` draws segment nonces.
    ///
    /// Recovery finishes a cut that was under way, drops a torn tail, and fsyncs log and directory
    /// before it states a position. Damage is set aside or refused, as the configuration says; if
    /// refused ([`WalError::Corrupt`]), nothing is changed. Nothing is written until the driver runs.
    pub async fn open(
        disk: Arc<dyn Disk>,
        config: WalConfig,
        cluster: ClusterId,
        nonce: Box<dyn FnMut() -> u64 + Send + Sync>,
    ) -> Result<(Self, WalDriver, Recovered), WalError> {
        let opened = recovery::recover(disk, config, cluster, nonce).await?;
        let (commands, receiver) = mpsc::channel(16);
        let (driver, recovered) = opened.into_driver(receiver);
        Ok((Self { shared: driver.shared().clone(), commands }, driver, recovered))
    }

    /// Last appended record; maybe not durable.
    pub fn end(&self) -> Lsn {
        self.shared.lock().end
    }

    /// Follows [`Wal::end`]; goes back at a cut.
    pub fn watch_end(&self) -> watch::Receiver<Lsn> {
        self.shared.end.subscribe()
    }

    /// Lets those go first who are about to append, if the newest record is small and not durable yet
    /// ([`Shared::gather`]).
    pub(crate) async fn gather(&self) {
        self.shared.gather().await;
    }

    /// Last record that is on this disk for sure.
    pub fn durable(&self) -> Lsn {
        self.shared.lock().durable
    }

    /// Follows [`Wal::durable`]; goes back at a cut.
    pub fn watch_durable(&self) -> watch::Receiver<Lsn> {
        self.shared.durable.subscribe()
    }

    /// Set once, on the first error of a write or sync: every later call errors.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.shared.failed.subscribe()
    }

    /// True while the disk has no space for another segment: batches are refused, what is left of
    /// the reserve is for the other kinds of records.
    pub fn watch_full(&self) -> watch::Receiver<bool> {
        self.shared.full.subscribe()
    }

    /// Seq of the first record still there (or the next to come, if there is none).
    pub fn first_seq(&self) -> u64 {
        self.shared.lock().first_seq()
    }

    /// Where each epoch starts, those of retired segments included.
    pub fn epochs(&self) -> EpochTable {
        self.shared.lock().epochs.clone()
    }

    /// Highest epoch promised, durably.
    pub fn promise(&self) -> Epoch {
        self.shared.lock().promise
    }

    /// Last commit position noted.
    pub fn commit(&self) -> Lsn {
        self.shared.lock().commit
    }

    /// Promises `epoch`: durable when this returns. Waits for the fsync in flight. A promise is
    /// never lowered: a lower epoch changes nothing. Dropping the future does not undo it.
    pub async fn set_promise(&self, epoch: Epoch) -> Result<(), WalError> {
        self.ask(|reply| Command::Promise { epoch, reply }).await
    }

    /// What this log must reach again before its node answers a seal.
    pub fn debt(&self) -> Option<Debt> {
        self.shared.lock().debt
    }

    /// Bytes under `quarantine/`: found at start, and put there since.
    pub fn quarantined(&self) -> u64 {
        self.shared.quarantined()
    }

    /// How long writing and syncing a group of records takes.
    pub fn group_seconds(&self) -> &Histogram {
        &self.shared.group_seconds
    }

    /// The debt is paid: this log holds, on disk, all that a writer's log held when this node
    /// subscribed to it. Durable when this returns. Dropping the future does not undo it.
    pub async fn clear_debt(&self) -> Result<(), WalError> {
        self.ask(|reply| Command::ClearDebt { reply }).await
    }

    /// The chain value after record `seq`: CRC-32C of its replicated part. 0 for seq 0, `None` for
    /// a record that is retired or not there.
    pub async fn chain_at(&self, seq: u64) -> Result<Option<u32>, WalError> {
        self.shared.check()?;
        {
            let state = self.shared.lock();
            match seq {
                0 => return Ok(Some(0)),
                _ if seq == state.base.lsn.seq => return Ok(Some(state.base.chain)),
                _ if seq < state.base.lsn.seq || seq > state.end.seq => return Ok(None),
                _ => {}
            }
            if let Some(record) = state.in_tail(seq) {
                return Ok(Some(record.digest));
            }
        }
        match self.reader(seq).read(1).await {
            Ok(records) => Ok(records.first().map(|record| record.digest)),
            Err(ReadError::Retired { .. } | ReadError::Cut { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The writer's append: gives the draft the next seq and queues it. Returns at once; readers
    /// see the record before it is durable.
    pub fn append(&self, epoch: Epoch, draft: Draft) -> Result<Record, WalError> {
        self.shared.check()?;
        let (kind, len) = (draft.kind, draft.payload.len());
        let unplaced = record::Unplaced::new(draft).ok_or(WalError::TooLarge(len))?;
        let mut state = self.shared.lock();
        self.shared.admit(&state, &[kind], unplaced.stored_len() as u64)?;
        if state.debt.is_some() {
            return Err(WalError::Refused(
                "a log that lacks records it once held cannot be a writer's".into(),
            ));
        }
        let newest = state.end.epoch.max(state.promise);
        if epoch < newest || epoch == 0 {
            return Err(WalError::OldEpoch { epoch, newest });
        }
        let record = unplaced.place(Lsn::new(epoch, state.end.seq + 1), state.digest);
        self.shared.push(&mut state, record.clone());
        drop(state);
        self.shared.work.notify_one();
        Ok(record)
    }

    /// A follower's append: one or more replicated parts that continue this log, all or none.
    /// Returns the new end at once.
    pub fn append_replica(&self, records: Bytes) -> Result<Lsn, WalError> {
        self.append_records(Record::decode_all(records)?)
    }

    /// The same for records that were taken out of their bytes.
    pub(crate) fn append_records(&self, records: Vec<Record>) -> Result<Lsn, WalError> {
        self.shared.check()?;
        let mut state = self.shared.lock();
        let kinds: Vec<RecordKind> = records.iter().map(|r| r.kind).collect();
        let bytes = records.iter().map(|r| r.stored_len() as u64).sum();
        self.shared.admit(&state, &kinds, bytes)?;
        let (mut end, mut digest) = (state.end, state.digest);
        for record in &records {
            let at = record.lsn;
            if at.seq != end.seq + 1 {
                return Err(WalError::Gap { expected: end.seq + 1, found: at });
            }
            if at.epoch < end.epoch {
                return Err(WalError::OldEpoch { epoch: at.epoch, newest: end.epoch });
            }
            if record.chain != digest {
                return Err(WalError::Chain { at });
            }
            (end, digest) = (at, record.digest);
        }
        for record in records {
            self.shared.push(&mut state, record);
        }
        drop(state);
        self.shared.work.notify_one();
        Ok(end)
    }

    /// Waits until everything appended so far is durable and returns the durable position.
    /// [`WalError::Full`] if the disk has no space for it now; it stays queued then.
    pub async fn settle(&self) -> Result<Lsn, WalError> {
        let target = self.end();
        let mut durable = self.watch_durable();
        let mut failed = self.failed();
        let mut stalled = self.shared.stalled.subscribe();
        loop {
            self.shared.check()?;
            let reached = *durable.borrow_and_update();
            if reached.seq >= target.seq {
                return Ok(reached);
            }
            if *stalled.borrow_and_update() {
                return Err(WalError::Full);
            }
            // The senders live as long as this handle; a change is all that can end the wait.
            tokio::select! {
                _ = durable.changed() => {}
                _ = failed.changed() => {}
                _ = stalled.changed() => {}
            }
        }
    }

    /// Removes every record behind `keep`. They are saved under `orphan/` first; the order on disk
    /// is orphan, watermark, log. Refused if a record that is known to be committed would go.
    /// Dropping the future does not stop it.
    pub async fn cut(&self, keep: u64) -> Result<CutReport, WalError> {
        self.ask(|reply| Command::Cut { keep, reply }).await
    }

    /// Notes a commit position; it goes into the watermark within a second.
    pub fn note_commit(&self, commit: Lsn) {
        let mut state = self.shared.lock();
        if commit > state.commit {
            state.commit = commit;
            if !std::mem::replace(&mut state.watermark_due, true) {
                drop(state);
                self.shared.work.notify_one();
            }
        }
    }

    /// A reader that starts with record `from_seq`.
    pub fn reader(&self, from_seq: u64) -> WalReader {
        WalReader::new(self.shared.clone(), from_seq)
    }

    /// Like [`Wal::retire`], but the newest `keep_bytes` of segments stay, for followers that were
    /// away.
    pub async fn retire_keeping(&self, through_seq: u64, keep_bytes: u64) -> Result<u64, WalError> {
        let beyond_window = {
            let state = self.shared.lock();
            let mut kept = 0;
            let newest_first = state.segments.iter().rev();
            newest_first
                .skip_while(|segment| {
                    kept += segment.len;
                    kept <= keep_bytes
                })
                .map(|segment| segment.last_seq)
                .next()
                .unwrap_or(0)
        };
        self.retire(through_seq.min(beyond_window)).await
    }

    /// Lets segments go that hold only durable records at or below `through_seq`; the last segment
    /// stays. Returns the new first seq. Dropping the future does not stop it.
    pub async fn retire(&self, through_seq: u64) -> Result<u64, WalError> {
        self.ask(|reply| Command::Retire { through: through_seq, reply }).await
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, WalError>>) -> Command,
    ) -> Result<T, WalError> {
        self.shared.check()?;
        let (reply, answer) = oneshot::channel();
        if self.commands.send(command(reply)).await.is_ok()
            && let Ok(answer) = answer.await
        {
            return answer;
        }
        self.shared.check()?;
        Err(WalError::Failed("the driver of the log has ended".into()))
    }
}

impl fmt::Debug for Wal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state: &State = &self.shared.lock();
        f.debug_struct("Wal")
            .field("end", &state.end)
            .field("durable", &state.durable)
            .finish_non_exhaustive()
    }
}
