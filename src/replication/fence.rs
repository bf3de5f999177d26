//! What a promise stops, on this node.
//!
//! A [`Fence`] is the one place that decides whether a record may enter the log, whether an ack
//! may leave, and what a voter answers when it is asked to seal (sections 6.4.2 and 6.4.5). Its
//! order on disk is: promise, orphan file, watermark, cut, appends.
//!
//! Two locks. `steps` (asynchronous) makes seal, adoption of a stream, taking office and setting a
//! damaged log aside exclude each other, because each of them fsyncs. `state` (never held across an
//! await) is what every append and every ack checks: raising `promised` in it is the moment from
//! which nothing of a lower stream epoch passes, and it happens before the position that a report
//! states is read.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::{
    sync::{Mutex as AsyncMutex, MutexGuard as AsyncGuard, watch},
    time::{Duration, Instant},
};

use crate::{
    protocol::replication::{Report, Seal, Sealed},
    types::{BootId, ClusterView, Epoch, EpochTable, Lsn, NodeId},
    wal::{Debt, Draft, Record, Wal, WalError},
};

/// Guards the log of this process against messages of past epochs.
#[derive(Debug)]
pub struct Fence {
    wal: Wal,
    node: NodeId,
    boot: BootId,
    steps: AsyncMutex<()>,
    state: Mutex<State>,
    promised: watch::Sender<Epoch>,
}

#[derive(Debug)]
struct State {
    /// Highest epoch promised, or about to be: never behind the promise on disk.
    promised: Epoch,
    /// The adopted stream; its records alone may enter.
    session: Option<Session>,
    next_session: u64,
    /// Epoch of the office that this process has taken and not left.
    office: Option<Epoch>,
    lease: Option<Lease>,
    /// A restarted voter does not know what it granted before.
    hold_off: Option<Instant>,
    /// Newest raft term a seal came with, and from whom.
    newest: (u64, Option<NodeId>),
}

/// The right to append records of one stream, ended by a newer session, seal or office.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Stream epoch.
    pub epoch: Epoch,
    number: u64,
}

/// An engine snapshot that may be installed: the epoch of its last record is promised, and the log
/// knows where it is to begin behind it.
#[derive(Debug)]
pub struct Admitted {
    epoch: Epoch,
    base: Lsn,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    epoch: Epoch,
    boot: BootId,
    until: Instant,
}

/// Why something did not pass.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// A higher epoch was promised, or the session was replaced.
    #[error("fenced: promised epoch {promised}, this was of epoch {epoch}")]
    Fenced {
        /// Highest promise.
        promised: Epoch,
        /// What was tried.
        epoch: Epoch,
    },
    /// A cut at or below an applied record was asked for: a bug somewhere. Stop and alarm.
    #[error("told to cut the log behind {keep}, but record {applied} is applied: refusing to serve")]
    CutsApplied {
        /// Last seq that would be kept.
        keep: u64,
        /// Last applied seq.
        applied: Lsn,
    },
    /// A writer does not set its own log aside: its followers and its own count rely on it.
    #[error("this process is the writer of epoch {0}")]
    InOffice(Epoch),
    /// The log failed.
    #[error(transparent)]
    Wal(#[from] WalError),
}

impl Fence {
    /// A fence before `wal`. `hold_off`: how long a restarted voter waits before it answers a
    /// seal, because a lease it granted in its former life may still bind.
    pub fn new(wal: Wal, node: NodeId, boot: BootId, hold_off: Option<Duration>) -> Self {
        let promised = wal.promise();
        Self {
            wal,
            node,
            boot,
            steps: AsyncMutex::new(()),
            state: Mutex::new(State {
                promised,
                session: None,
                next_session: 1,
                office: None,
                lease: None,
                hold_off: hold_off.map(|wait| Instant::now() + wait),
                newest: (0, None),
            }),
            promised: watch::Sender::new(promised),
        }
    }

    /// Highest epoch promised, also while its fsync runs.
    pub fn promised(&self) -> Epoch {
        self.state().promised
    }

    /// Tells of every rise of the promise.
    pub fn watch_promised(&self) -> watch::Receiver<Epoch> {
        self.promised.subscribe()
    }

    /// The single answer a voter gives to a leader that asks it to seal.
    pub async fn seal(
        &self,
        from: NodeId,
        seal: Seal,
        view: &ClusterView,
        commit: Lsn,
    ) -> Result<Sealed, WalError> {
        let _step = self.steps.lock().await;
        // Rule H12: what this node reports would not cover what it has acknowledged. A log is set aside
        // in a step of its own, so nothing changes behind this look. What is known to be damaged and
        // still lies there does not count as had. (A lone voter has nobody to be unfair to.)
        let damaged = self.wal.lacks().is_some() && view.has_several_voters();
        if self.wal.debt().is_some() || damaged {
            return Ok(Sealed::Damaged);
        }
        if let Some(refusal) = self.judge(from, &seal, view) {
            return Ok(refusal);
        }
        self.raise(seal.epoch);
        // What is queued may still come to the disk, and then must be covered by the report. From here
        // on nothing is queued any more, and what is gets no ack.
        match self.wal.settle().await {
            // No space for it, perhaps for long, but the promise needs none. All of it is of epochs
            // that end with this promise: it is given up before the promise is made, so that nothing
            // reaches the disk behind the report. (Others may have it on disk, for the writer sends
            // before it syncs; then one of any majority reports it.) Records of the very epoch that is
            // sealed mean that this process is in its office already: those stay, and this is late.
            Err(WalError::Full) => {
                let dropped = self.wal.drop_queued(seal.epoch).await?;
                tracing::warn!(
                    epoch = seal.epoch,
                    dropped,
                    "sealed with a full disk: gave up queued records"
                );
            }
            settled => drop(settled?),
        }
        #[cfg(feature = "testing")]
        if crate::types::planted::is("seal_before_promise_fsync") {
            return Ok(self.report(seal.epoch, commit));
        }
        // Model: promise_before_report
        self.wal.set_promise(seal.epoch).await?;
        Ok(self.report(seal.epoch, commit))
    }

    fn report(&self, promise: Epoch, commit: Lsn) -> Sealed {
        // Model: report_last_record_epoch
        let (node, boot, durable) = (self.node, self.boot, self.wal.durable());
        Sealed::Report(Report { node, boot, promise, durable, commit })
    }

    fn judge(&self, from: NodeId, seal: &Seal, view: &ClusterView) -> Option<Sealed> {
        let mut state = self.state();
        let (mut term, mut leader) = state.newest;
        if view.term > term {
            (term, leader) = (view.term, view.leader);
        } else if view.term == term && leader.is_none() {
            leader = view.leader;
        }
        if seal.term > term {
            (term, leader) = (seal.term, Some(from));
        }
        state.newest = (term, leader);
        if seal.term < term || leader.is_some_and(|known| known != from) {
            return Some(Sealed::NotLeader { term });
        }
        state.newest.1 = Some(from);
        if state.promised > seal.epoch {
            return Some(Sealed::Promised { promise: state.promised });
        }
        let only_voter = !view.has_several_voters();
        let now = Instant::now();
        let resigned = |lease: &Lease| seal.resigned == Some((lease.epoch, lease.boot));
        let lease =
            state.lease.filter(|lease| lease.epoch < seal.epoch && !resigned(lease)).map(|lease| lease.until);
        let hold_off = state.hold_off.filter(|_| seal.resigned.is_none());
        let bound = if only_voter { None } else { lease.max(hold_off) };
        bound.filter(|until| *until > now).map(|until| Sealed::LeaseHeld {
            remaining_ms: u64::try_from((until - now).as_millis()).unwrap_or(u64::MAX).saturating_add(1),
        })
    }

    /// Accepts a stream of `epoch`: a promise too. Fsyncs the promise, then cuts the log behind
    /// `keep`, and only then lets records of the stream in.
    pub async fn adopt(&self, epoch: Epoch, keep: u64, applied: Lsn) -> Result<Session, FenceError> {
        let _step = self.steps.lock().await;
        self.check(epoch)?;
        self.raise(epoch);
        self.wal.settle().await?;
        // Model: accepting_is_promising
        self.wal.set_promise(epoch).await?;
        if keep < applied.seq {
            return Err(FenceError::CutsApplied { keep, applied });
        }
        #[cfg(feature = "testing")]
        let keep =
            if crate::types::planted::is("keep_the_tail") { keep.max(self.wal.end().seq) } else { keep };
        if keep < self.wal.end().seq {
            // Model: cut_durable_before_adoption
            let report = self.wal.cut(keep).await?;
            tracing::warn!(
                keep,
                epoch,
                ?report,
                "cut records that were never committed; they are kept in orphan/"
            );
        }
        let mut state = self.state();
        let session = Session { epoch, number: state.next_session };
        state.next_session += 1;
        state.session = Some(session);
        Ok(session)
    }

    /// Makes way for an engine snapshot that ends with the record `base`, sent by the node in office
    /// in `epoch`: promises the later of their epochs, before anything of it is installed.
    ///
    /// That node may have lost office and followed a later one before it took the snapshot, so `base`
    /// may be of a later epoch. Having its records is a promise of that epoch: the writer of one in
    /// between would ask for a cut below what is applied.
    ///
    /// Then announces to the log where it is to begin (`chain` and `epochs` are those at `base`). A crash
    /// may leave the engine with the snapshot and the log without its position, but never without the
    /// promise, and the next start finishes it ([`Wal::begin_anew`]).
    pub async fn admit_snapshot(
        &self,
        epoch: Epoch,
        base: Lsn,
        chain: u32,
        epochs: EpochTable,
    ) -> Result<Admitted, FenceError> {
        let _step = self.steps.lock().await;
        self.check(epoch)?;
        let epoch = epoch.max(base.epoch);
        self.raise(epoch);
        self.wal.settle().await?;
        // Model: installing_is_promising
        self.wal.set_promise(epoch).await?;
        // Model: install_is_announced
        self.wal.announce(base, chain, epochs).await?;
        Ok(Admitted { epoch, base })
    }

    /// Replaces the whole log by the position of an engine snapshot, under the same exclusion.
    /// `reached`: up to where the engine has everything on disk. Refused if a higher epoch was promised
    /// since the snapshot was admitted.
    pub async fn reset(&self, admitted: Admitted, reached: Lsn) -> Result<(), FenceError> {
        let _step = self.steps.lock().await;
        self.check(admitted.epoch)?;
        self.raise(admitted.epoch);
        self.wal.settle().await?;
        match self.wal.begin_anew(reached).await? {
            Some(base) if base == admitted.base => Ok(()),
            _ => {
                let why = format!("the log does not begin behind {} any more", admitted.base);
                Err(WalError::Refused(why).into())
            }
        }
    }

    /// Takes office: promises the epoch and appends its first record. From here on nothing of an
    /// older epoch enters this log.
    pub async fn take_office(&self, epoch: Epoch, start: Draft) -> Result<Record, FenceError> {
        let _step = self.steps.lock().await;
        self.check(epoch)?;
        self.raise(epoch);
        self.wal.settle().await?;
        self.wal.set_promise(epoch).await?;
        let record = self.append(epoch, start)?;
        self.state().office = Some(epoch);
        Ok(record)
    }

    /// The office of `epoch` is over: nothing is appended in it any more.
    pub fn leave_office(&self, epoch: Epoch) {
        let mut state = self.state();
        state.office = state.office.filter(|held| *held != epoch);
    }

    /// True while this process holds office, or is about to leave it.
    pub fn in_office(&self) -> bool {
        self.state().office.is_some()
    }

    /// Gives up the office of `epoch` as if a leader had sealed it: promises the next one.
    pub async fn step_down(&self, epoch: Epoch) -> Result<(), WalError> {
        let _step = self.steps.lock().await;
        self.raise(epoch + 1);
        self.wal.settle().await?;
        self.wal.set_promise(epoch + 1).await
    }

    /// Sets the damaged record `seq` and all behind it aside ([`Wal::set_aside`]), in no office. The
    /// stream that is followed ends, and the next one begins with what is left.
    pub async fn set_aside(&self, seq: u64) -> Result<Option<Debt>, FenceError> {
        let _step = self.steps.lock().await;
        {
            let mut state = self.state();
            if let Some(epoch) = state.office {
                return Err(FenceError::InOffice(epoch));
            }
            state.session = None;
        }
        Ok(self.wal.set_aside(seq).await?)
    }

    /// The debt of the log is paid by what came in this session; false if the session has ended.
    pub async fn pay_debt(&self, session: Session) -> Result<bool, WalError> {
        let _step = self.steps.lock().await;
        if !self.is_current(session) {
            return Ok(false);
        }
        self.wal.clear_debt().await?;
        Ok(true)
    }

    /// Appends a record of the writer's own, unless its epoch is fenced.
    pub fn append(&self, epoch: Epoch, draft: Draft) -> Result<Record, FenceError> {
        let state = self.state();
        if state.promised != epoch {
            return Err(FenceError::Fenced { promised: state.promised, epoch });
        }
        // The lock is held over the append: a seal that raises the promise after this call finds
        // the record queued, and settles it.
        Ok(self.wal.append(epoch, draft)?)
    }

    /// Appends records of an adopted stream, unless the session has ended.
    pub(crate) fn append_replica(&self, session: Session, records: Vec<Record>) -> Result<Lsn, FenceError> {
        let state = self.state();
        // Model: promise_against_stream_epoch
        if state.session != Some(session) || state.promised > session.epoch {
            return Err(FenceError::Fenced { promised: state.promised, epoch: session.epoch });
        }
        Ok(self.wal.append_records(records)?)
    }

    /// True while records and commit notices of this session may be believed.
    pub fn is_current(&self, session: Session) -> bool {
        let state = self.state();
        state.session == Some(session) && state.promised == session.epoch
    }

    /// What this node has durable, for an ack of stream epoch `epoch` that is about to be sent or
    /// counted; `None` once a higher epoch is promised.
    pub fn durable_for(&self, epoch: Epoch) -> Option<Lsn> {
        let state = self.state();
        // Model: no_ack_below_promise
        (state.promised <= epoch).then(|| self.wal.durable())
    }

    /// Binds this voter to the writer of `epoch` for `term` from now; called before the ack that
    /// carries it leaves. False once a higher epoch is promised.
    pub fn grant_lease(&self, epoch: Epoch, boot: BootId, term: Duration) -> bool {
        let mut state = self.state();
        if state.promised > epoch {
            return false;
        }
        state.lease = Some(Lease { epoch, boot, until: Instant::now() + term });
        true
    }

    fn check(&self, epoch: Epoch) -> Result<(), FenceError> {
        let promised = self.state().promised;
        if promised > epoch { Err(FenceError::Fenced { promised, epoch }) } else { Ok(()) }
    }

    /// From here on no record and no ack of a lower epoch passes.
    fn raise(&self, epoch: Epoch) {
        let mut state = self.state();
        state.promised = state.promised.max(epoch);
        state.session = None;
        let promised = state.promised;
        drop(state);
        self.promised.send_if_modified(|seen| std::mem::replace(seen, promised) != promised);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no seal, adoption or office is being worked on. For tests and shutdown.
    pub async fn quiet(&self) -> AsyncGuard<'_, ()> {
        self.steps.lock().await
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        testing::{DiskLatency, SimDisk},
        types::ClusterId,
        wal::{RecordKind, WalConfig},
    };

    const ME: NodeId = NodeId([1; 16]);
    const LEADER: NodeId = NodeId([2; 16]);

    async fn fence(disk: &SimDisk) -> Fence {
        let config = WalConfig { segment_bytes: 4096 + 1500, group_bytes: 600, ..WalConfig::new("/wal") };
        let mut nonce = 0;
        let draw = Box::new(move || {
            nonce += 1;
            nonce
        });
        let (wal, driver, _) =
            Wal::open(Arc::new(disk.boot()), config, ClusterId([9; 16]), draw).await.unwrap();
        tokio::spawn(driver.run());
        Fence::new(wal, ME, BootId(1), None)
    }

    fn draft(kind: RecordKind, len: usize) -> Draft {
        Draft::unkeyed(kind, 1, 0, vec![7; len].into())
    }

    async fn seal(fence: &Fence, epoch: Epoch) -> Result<Sealed, WalError> {
        let view = ClusterView { voters: vec![[ME, LEADER].into()], ..ClusterView::default() };
        fence.seal(LEADER, Seal { epoch, term: 1, resigned: None }, &view, Lsn::ZERO).await
    }

    fn durable(sealed: &Sealed) -> Lsn {
        match sealed {
            Sealed::Report(report) => report.durable,
            other => panic!("not a report: {other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_voter_promises_and_what_was_queued_never_comes_to_its_disk() {
        let disk = SimDisk::new();
        let fence = fence(&disk).await;
        fence.take_office(1, draft(RecordKind::EpochStart, 20)).await.unwrap();
        fence.wal.settle().await.unwrap();
        disk.set_limit(Some(disk.used()));
        for _ in 0..4 {
            fence.append(1, draft(RecordKind::Batch, 1200)).unwrap();
        }
        assert!(matches!(fence.wal.settle().await, Err(WalError::Full)));
        let last = fence.wal.durable();
        assert!(last < fence.wal.end());

        let sealed = seal(&fence, 2).await.unwrap();
        assert_eq!(durable(&sealed), last, "the report is what is on disk");
        assert_eq!(fence.wal.promise(), 2);
        assert_eq!(fence.durable_for(1), None, "and nothing of it counts for the old office");
        assert!(matches!(
            fence.append(1, draft(RecordKind::Batch, 1)),
            Err(FenceError::Fenced { promised: 2, .. })
        ));
        // Asked again, the answer is the same; with space again too.
        assert_eq!(durable(&seal(&fence, 2).await.unwrap()), last);
        disk.set_limit(None);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!((fence.wal.durable(), fence.wal.end()), (last, last));
        assert_eq!(durable(&seal(&fence, 2).await.unwrap()), last);
        disk.crash(1);
        let again = self::fence(&disk).await;
        assert_eq!((again.wal.durable(), again.wal.promise()), (last, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_seal_of_an_epoch_takes_nothing_from_its_writer() {
        let disk = SimDisk::new();
        let fence = fence(&disk).await;
        seal(&fence, 2).await.unwrap();
        fence.take_office(2, draft(RecordKind::EpochStart, 20)).await.unwrap();
        fence.wal.settle().await.unwrap();
        disk.set_limit(Some(disk.used()));
        for _ in 0..4 {
            fence.append(2, draft(RecordKind::Batch, 1200)).unwrap();
        }
        let end = fence.wal.end();
        // It has been sent to followers: another record must not take its position.
        assert!(matches!(seal(&fence, 2).await, Err(WalError::Full)));
        assert_eq!(fence.wal.end(), end);
        disk.set_limit(None);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(durable(&seal(&fence, 2).await.unwrap()), end);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_disk_is_waited_for_and_its_records_are_reported() {
        let disk = SimDisk::new();
        let fence = fence(&disk).await;
        fence.take_office(1, draft(RecordKind::EpochStart, 20)).await.unwrap();
        fence.wal.settle().await.unwrap();
        disk.set_latency(DiskLatency { sync: Duration::from_secs(2), ..DiskLatency::default() });
        let queued = fence.append(1, draft(RecordKind::Batch, 100)).unwrap().lsn;
        assert_eq!(durable(&seal(&fence, 2).await.unwrap()), queued);
    }
}
