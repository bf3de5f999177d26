//! The writer: lets a batch in, gives it its position, and answers when the wanted level is
//! reached. What it answers is never more than what happened.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, timeout_at},
};

use crate::{
    engine::{Refused, StorageEngine},
    protocol::{
        forward::{AckLevel, Progress},
        frame::MAX_PAYLOAD,
        replication::Mark,
        request_id::RequestId,
    },
    replication::{Replica, Tenure, fence::FenceError},
    types::{Epoch, Lsn, MembershipId, Office},
    wal::{DedupKey, Draft, RecordKind, WalError},
};

use super::{
    apply::Apply,
    dedup::Seen,
    levels::Wait,
    policy::{self, Change},
    waits::CommitWaits,
};

/// Wall clock for record timestamps: nanoseconds since 1970. Never used for an order.
pub type WallClock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// How long a writer that hands over lets nothing in.
const DRAIN: Duration = Duration::from_secs(5);

/// A batch as it reaches the writer.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Makes a retry harmless.
    pub key: DedupKey,
    /// Another key under which it may have come before.
    pub also: Option<DedupKey>,
    /// Encoding byte of the payload.
    pub encoding: u8,
    /// The bytes.
    pub payload: Bytes,
    /// Level wanted; `None` for the default of this cluster.
    pub ack: Option<AckLevel>,
    /// When whoever asked gives up.
    pub deadline: Instant,
    /// What the request is called in logs.
    pub request: Option<RequestId>,
    /// The edge that forwarded it keeps the payload ([`Draft::kept`]).
    pub kept: bool,
}

/// Why the writer did not acknowledge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Not in office: nothing was written here.
    #[error("this process is not the writer")]
    NotWriter,
    /// In the log, but the office ended before the level was reached: the next writer knows what
    /// became of it, if it is asked with the same key.
    #[error("this process lost office before the write was acknowledged")]
    LostOffice,
    /// Parse again against this schema; nothing was written.
    #[error("the schema has changed")]
    SchemaChanged(Bytes),
    /// Malformed, or over a limit; nothing was written.
    #[error("{0}")]
    Invalid(String),
    /// No space; nothing was written.
    #[error("the writer's disk is full")]
    Full,
    /// The key was used with another body; nothing was written.
    #[error("this idempotency key came with another body before")]
    KeyReused,
    /// The writer has as much in its log that is not committed as it may; nothing was written.
    #[error("the writer waits for commits and takes nothing more in")]
    Busy,
    /// In the log, but the level was not reached in time; without progress nothing is known, not
    /// even whether it is in the log.
    #[error("not acknowledged in time: the outcome is unknown")]
    Unknown(Option<Progress>),
}

/// The writing side of a node.
#[derive(Debug)]
pub struct Writer {
    pub(super) replica: Arc<Replica>,
    apply: Arc<Apply>,
    engine: Arc<dyn StorageEngine>,
    clock: ClockBox,
    draining: Mutex<Option<Instant>>,
    waits: CommitWaits,
}

struct ClockBox(WallClock);

impl std::fmt::Debug for ClockBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WallClock")
    }
}

enum Admission {
    Applied(Lsn),
    Pending { at: Lsn, told: oneshot::Receiver<Lsn> },
}

impl Writer {
    /// A writer that is not in office yet.
    pub fn new(
        replica: Arc<Replica>,
        apply: Arc<Apply>,
        engine: Arc<dyn StorageEngine>,
        clock: WallClock,
    ) -> Arc<Self> {
        Arc::new(Self {
            replica,
            apply,
            engine,
            clock: ClockBox(clock),
            draining: Mutex::new(None),
            waits: CommitWaits::default(),
        })
    }

    /// How long batches that were acknowledged had waited.
    pub const fn waits(&self) -> &CommitWaits {
        &self.waits
    }

    /// Commits one batch in the office of `epoch`.
    ///
    /// Cancel-safe in that dropping the future never un-writes: a batch that was let in stays in
    /// the log and may commit.
    pub async fn commit(&self, epoch: Epoch, batch: Batch) -> Result<(Lsn, AckLevel), CommitError> {
        let tenure =
            self.replica.tenure().filter(|held| held.epoch == epoch).ok_or(CommitError::NotWriter)?;
        self.until_open(&tenure, batch.deadline).await?;
        let several = self.replica.view.borrow().has_several_voters();
        let default = if several { AckLevel::Quorum } else { AckLevel::Local };
        #[cfg(feature = "testing")]
        let default = if crate::types::planted::is("default_is_local") { AckLevel::Local } else { default };
        let wanted = batch.ack.unwrap_or(default);
        let wait = |at| Wait { at, asked: wanted, deadline: batch.deadline };
        let admitted = Instant::now();
        let admission = self.admit(&tenure, &batch)?;
        // What was there already says nothing of how long it took.
        let is_new = matches!(admission, Admission::Pending { .. });
        let at = match admission {
            // Committed, whatever was asked for when it was let in; `all` is more than that.
            Admission::Applied(at) => at,
            Admission::Pending { at, .. } if wanted == AckLevel::Memory => at,
            // A lone voter's own fdatasync is the majority: waiting until it is applied costs
            // nothing and makes the write visible.
            Admission::Pending { at, told } if wanted == AckLevel::Local && several => {
                self.until_local(&tenure, wait(at), told).await?;
                at
            }
            Admission::Pending { at, told } => {
                self.until_applied(&tenure, wait(at), told).await?;
                at
            }
        };
        if wanted == AckLevel::All {
            self.until_everywhere(&tenure, wait(at)).await?;
        }
        if is_new {
            self.waits.note(wanted, admitted);
        }
        Ok((at, wanted))
    }

    /// Judges a batch that another node has encoded, before it is let in.
    pub fn validate(&self, encoding: u8, payload: &Bytes) -> Result<(), String> {
        if encoding == policy::ENCODING {
            return Change::check_asked(payload);
        }
        self.engine.validate(encoding, payload)
    }

    /// Whether this process has begun to hand over.
    pub fn is_draining(&self) -> bool {
        self.until().is_some_and(|until| Instant::now() < until)
    }

    /// Lets nothing more in, so that another voter can draw level and take over. If none does
    /// within a few seconds, writes are let in again. Nothing happens while another process writes.
    pub fn drain(&self) {
        if self.replica.tenure().is_some() {
            *self.until() = Some(Instant::now() + DRAIN);
        }
    }

    /// Lets writes in again.
    pub fn stop_draining(&self) {
        *self.until() = None;
    }

    fn until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.draining.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No write is admitted before `EpochStart` is applied: only then do the dedup table and the
    /// schemas cover everything that earlier offices have committed.
    async fn until_open(&self, tenure: &Tenure, deadline: Instant) -> Result<(), CommitError> {
        #[cfg(feature = "testing")]
        if crate::types::planted::is("retry_not_checked_against_tail") {
            return Ok(());
        }
        // Model: admit_after_epoch_start
        if tenure.is_open() {
            // That it is still in force is looked at where the batch is let in.
            return Ok(());
        }
        let mut opened = tenure.watch_opened();
        let mut office = self.replica.watch_tenure();
        let open = async {
            tokio::select! {
                open = opened.wait_for(|open| *open) => open.is_ok(),
                _ = office.wait_for(|held| held.as_ref().is_none_or(|held| held.epoch != tenure.epoch)) => false,
            }
        };
        match timeout_at(deadline, open).await {
            Ok(true) => Ok(()),
            _ => Err(CommitError::NotWriter),
        }
    }

    /// Everything after this may only fail by losing office, time or the disk.
    fn admit(&self, tenure: &Tenure, batch: &Batch) -> Result<Admission, CommitError> {
        if batch.payload.len() > MAX_PAYLOAD {
            return Err(CommitError::Invalid(format!(
                "a batch of {} bytes, limit {MAX_PAYLOAD}: send smaller bodies",
                batch.payload.len()
            )));
        }
        // One lock from the look at the table to the append: the order in which batches are
        // admitted is the order of their positions.
        let mut ledger = self.apply.ledger();
        // The office may have ended since it was looked up, and its waiters been let go under this
        // very lock: who came after that would wait for somebody else's record.
        if self.replica.tenure().is_none_or(|held| held.epoch != tenure.epoch) {
            return Err(CommitError::NotWriter);
        }
        if let Some(also) = &batch.also {
            // With another body it stands for something else: of this key it says nothing.
            if let Seen::At(at) = ledger.dedup.look_up(also) {
                return Ok(Admission::Applied(at));
            }
            if let Some(seq) = ledger.in_flight.seq_of(also) {
                let at = Lsn::new(tenure.epoch, seq);
                return Ok(Admission::Pending { at, told: ledger.wait_for(seq) });
            }
        }
        match ledger.dedup.look_up(&batch.key) {
            Seen::At(at) => return Ok(Admission::Applied(at)),
            Seen::OtherBody => return Err(CommitError::KeyReused),
            Seen::TooOld => return Err(CommitError::Unknown(None)),
            Seen::New => {}
        }
        if let Some(seq) = ledger.in_flight.seq_of(&batch.key) {
            return Ok(Admission::Pending { at: Lsn::new(tenure.epoch, seq), told: ledger.wait_for(seq) });
        }
        if ledger.in_flight.has_other_body(&batch.key) {
            return Err(CommitError::KeyReused);
        }
        if self.is_draining() {
            return Err(CommitError::NotWriter);
        }
        if !ledger.in_flight.has_room(batch.payload.len()) {
            return Err(CommitError::Busy);
        }
        let is_change = batch.encoding == policy::ENCODING;
        if !is_change {
            self.engine.admit(batch.encoding, &batch.payload).map_err(|refused| match refused {
                Refused::SchemaChanged(schema) => CommitError::SchemaChanged(schema),
                Refused::Invalid(reason) => CommitError::Invalid(reason),
            })?;
        }
        let draft = Draft {
            kind: if is_change { RecordKind::Control } else { RecordKind::Batch },
            encoding: batch.encoding,
            timestamp: (self.clock.0)(),
            key: Some(batch.key),
            payload: batch.payload.clone(),
            kept: batch.kept,
        };
        let record = self.replica.fence.append(tenure.epoch, draft).map_err(|error| {
            // Under the same lock as its admission: no other batch was judged in between.
            if !is_change {
                self.engine.withdraw(batch.encoding, &batch.payload);
            }
            match error {
                FenceError::Wal(WalError::Full) => CommitError::Full,
                error => {
                    tracing::debug!(%error, "append refused");
                    CommitError::NotWriter
                }
            }
        })?;
        let at = record.lsn;
        ledger.in_flight.insert(batch.key, at.seq, batch.payload.len());
        Ok(Admission::Pending { at, told: ledger.wait_for(at.seq) })
    }

    /// Takes office when raft says so, counts, marks changes of membership, and steps down.
    /// Runs as long as the process.
    pub async fn hold_office(self: Arc<Self>, heartbeat: Duration) -> Result<(), WalError> {
        let mut view = self.replica.view.clone();
        let mut promised = self.replica.fence.watch_promised();
        let mut last_taken = 0;
        loop {
            let now = view.borrow_and_update().clone();
            // Model: office_bound_to_boot
            let mine = |office: &Office| office.node == self.replica.node && self.is_boot_of(office);
            let fresh = now.writer.filter(|o| mine(o) && o.epoch > last_taken);
            if let Some(office) = fresh.filter(|o| o.epoch >= *promised.borrow_and_update()) {
                last_taken = office.epoch;
                match self
                    .serve(office, now.membership, now.voters.clone(), heartbeat, &mut view, &mut promised)
                    .await
                {
                    Ok(()) => tracing::info!(epoch = office.epoch, "left office"),
                    // Another voter has space, or this one will: the leader tries again.
                    Err(FenceError::Wal(error @ (WalError::Full | WalError::Closed))) => {
                        tracing::warn!(epoch = office.epoch, %error, "cannot hold office");
                    }
                    // Its log was damaged after it had reported: the leader names another.
                    Err(FenceError::Wal(error @ WalError::Refused(_))) => {
                        tracing::warn!(epoch = office.epoch, %error, "cannot take office");
                    }
                    Err(FenceError::Wal(error)) => return Err(error),
                    Err(error) => tracing::warn!(epoch = office.epoch, %error, "could not take office"),
                }
                self.replica.end_tenure(office.epoch);
                self.replica.fence.leave_office(office.epoch);
                self.apply.ledger().abandon();
                self.stop_draining();
                continue;
            }
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return Ok(()) },
                changed = promised.changed() => if changed.is_err() { return Ok(()) },
            }
        }
    }

    /// An office belongs to one process run.
    fn is_boot_of(&self, office: &Office) -> bool {
        #[cfg(feature = "testing")]
        if crate::types::planted::is("office_survives_restart") {
            return true;
        }
        office.boot == self.replica.boot
    }

    async fn serve(
        &self,
        office: Office,
        membership: MembershipId,
        voters: Vec<std::collections::BTreeSet<crate::types::NodeId>>,
        heartbeat: Duration,
        view: &mut watch::Receiver<Arc<crate::types::ClusterView>>,
        promised: &mut watch::Receiver<Epoch>,
    ) -> Result<(), FenceError> {
        // What is in flight belongs to an office that is over.
        self.apply.ledger().abandon();
        let start = self.mark(RecordKind::EpochStart, membership);
        let start = self.replica.fence.take_office(office.epoch, start).await?;
        // Model: serve_after_epoch_start
        let tenure = self.replica.begin_tenure(office.epoch, start.lsn.seq, membership, voters);
        tracing::info!(epoch = office.epoch, start = %start.lsn, "took office as writer");
        let mut durable = self.replica.wal.watch_durable();
        let mut applied = self.apply.watch();
        let mut pulse = tokio::time::interval(heartbeat);
        let mut opened = false;
        let mut expired = start.lsn;
        loop {
            if *promised.borrow_and_update() > office.epoch {
                return Ok(());
            }
            let now = view.borrow_and_update().clone();
            // Model: view_is_one_value
            if now.writer.is_some_and(|w| w.epoch > office.epoch) {
                return Ok(());
            }
            if now.membership > tenure.membership() {
                // Register and voters come from one view, so this office is still in force under
                // the new membership.
                tenure.set_membership(now.membership, now.voters.clone());
                let mark = self.mark(RecordKind::ConfigMark, now.membership);
                self.replica.fence.append(office.epoch, mark)?;
            }
            durable.mark_unchanged();
            self.replica.recount(&tenure);
            if !opened && applied.borrow_and_update().seq >= tenure.start {
                // Nothing has been admitted in this office yet, so no reservation of it is lost.
                self.engine.forget_reservations();
                tenure.open();
                opened = true;
            }
            tokio::select! {
                _ = durable.changed() => {}
                _ = applied.changed(), if !opened => {}
                _ = pulse.tick() => {
                    tenure.beat();
                    if opened && applied.borrow().seq >= expired.seq {
                        expired = self.expire(office.epoch)?.unwrap_or(expired);
                    }
                }
                changed = view.changed() => if changed.is_err() { return Ok(()) },
                changed = promised.changed() => if changed.is_err() { return Ok(()) },
            }
        }
    }

    /// Says in the log what time it is, if something is too old by now. One such record at a time;
    /// without space there is none, and things stay as they are.
    fn expire(&self, epoch: Epoch) -> Result<Option<Lsn>, FenceError> {
        let now_ns = (self.clock.0)();
        if self.is_draining() || !self.engine.expiry_due(now_ns) {
            return Ok(None);
        }
        let payload = Change::Expire { now_ns }.encode();
        let draft = Draft::unkeyed(RecordKind::Control, policy::ENCODING, now_ns, payload);
        match self.replica.fence.append(epoch, draft) {
            Ok(record) => Ok(Some(record.lsn)),
            Err(FenceError::Wal(WalError::Full)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn mark(&self, kind: RecordKind, membership: MembershipId) -> Draft {
        let mark = Mark { membership, node: self.replica.node, boot: self.replica.boot };
        let payload = crate::protocol::frame::encode(&mark);
        Draft::unkeyed(kind, 0, (self.clock.0)(), payload)
    }
}
