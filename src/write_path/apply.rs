//! Applying: every node hands committed records to its engine, in order, once.
//!
//! A record is applied only at or below both the known commit position and this node's durable
//! position (6.4.6), on the writer too and for every ack level, so that no cut ever has to be
//! undone.

mod room;

use std::{
    collections::BTreeMap,
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use bytes::Bytes;
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::Duration,
};

use crate::{
    engine::{EngineError, Export, Operation, Room, StorageEngine, Work},
    protocol::{frame, replication::Mark},
    replication::{Applier, Replica, mend},
    types::{Lsn, MembershipId},
    wal::{ReadError, Record, RecordKind, WalReader},
};

use super::{
    checkpoints::Checkpointer,
    dedup::{Dedup, Seen},
    in_flight::InFlight,
    policy::Change,
};

/// Bytes of records read from the log at a time.
const BATCH: usize = 4 * 1024 * 1024;
/// Where there is little room for records, this many bytes of them are applied, and then none for so long.
const SLOW: (usize, Duration) = (256 << 10, Duration::from_millis(20));
/// How soon a record that was damaged is looked for again.
const DAMAGE_LOOK: Duration = Duration::from_millis(100);
/// How often an idle node asks its engine whether a checkpoint is due.
pub(super) const CHECKPOINT_TICK: Duration = Duration::from_secs(1);

/// The applied state of one node.
#[derive(Debug)]
pub struct Apply {
    engine: Arc<dyn StorageEngine>,
    applied: watch::Sender<Lsn>,
    marked: watch::Sender<MembershipId>,
    ledger: Mutex<Ledger>,
    /// Held while records are applied, and while a snapshot replaces everything.
    exclusive: AsyncMutex<()>,
    checkpoints: mpsc::UnboundedSender<(Work<Lsn>, OwnedSemaphorePermit)>,
    /// One checkpoint at a time.
    one_checkpoint: Arc<Semaphore>,
    waits_for_room: AtomicBool,
}

/// What is known of keys, and who waits for which record.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Shared with a checkpoint for as long as it takes to make bytes of it, outside the lock: the
    /// apply loop alone feeds it, and does not while it is shared, so nothing is ever copied.
    pub(super) dedup: Arc<Dedup>,
    pub(super) in_flight: InFlight,
    waiters: BTreeMap<u64, Vec<oneshot::Sender<Lsn>>>,
}

impl Ledger {
    /// Resolves when the record at `seq` has been applied; fails when the office ends before.
    pub(super) fn wait_for(&mut self, seq: u64) -> oneshot::Receiver<Lsn> {
        let (tell, told) = oneshot::channel();
        let waiters = self.waiters.entry(seq).or_default();
        // Commits may stall for long, and whoever gives up asks again.
        waiters.retain(|waiter| !waiter.is_closed());
        waiters.push(tell);
        told
    }

    /// The office is over: what its records come to is the next writer's business.
    pub(super) fn abandon(&mut self) {
        self.in_flight.clear();
        self.waiters.clear();
    }
}

/// Applying cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The log could not be read.
    #[error("cannot read the log at {seq}: {error}")]
    Read {
        /// Next seq to apply.
        seq: u64,
        /// Why.
        error: ReadError,
    },
    /// The engine failed, or did not take what the writer had let in.
    #[error("cannot apply {at}: {error}")]
    Engine {
        /// Which record.
        at: Lsn,
        /// Why.
        error: EngineError,
    },
    /// A record does not follow the one before it.
    #[error("record {got} where {want} was due")]
    Gap {
        /// Expected seq.
        want: u64,
        /// What came.
        got: Lsn,
    },
}

impl Apply {
    /// Starts from the engine's last checkpoint. The second value runs checkpoints.
    pub fn new(engine: Arc<dyn StorageEngine>) -> Result<(Arc<Self>, Checkpointer), EngineError> {
        let (at, sidecar) = engine.recovered();
        let dedup = load_sidecar(&sidecar)?;
        // Unbounded, but each job holds the one permit.
        let (checkpoints, jobs) = mpsc::unbounded_channel();
        let apply = Arc::new(Self {
            engine: engine.clone(),
            applied: watch::Sender::new(at),
            marked: watch::Sender::new(dedup.marked()),
            ledger: Mutex::new(Ledger { dedup: Arc::new(dedup), ..Ledger::default() }),
            exclusive: AsyncMutex::new(()),
            checkpoints,
            one_checkpoint: Arc::new(Semaphore::new(1)),
            waits_for_room: AtomicBool::new(false),
        });
        let flushed = watch::Sender::new(at);
        Ok((apply, Checkpointer { jobs, flushed }))
    }

    /// Follows the applied position.
    pub fn watch(&self) -> watch::Receiver<Lsn> {
        self.applied.subscribe()
    }

    /// Membership id of the newest `EpochStart` or `ConfigMark` applied, and so committed.
    pub fn marked(&self) -> MembershipId {
        *self.marked.borrow()
    }

    /// Applies for as long as the process runs.
    pub async fn run(self: Arc<Self>, replica: Arc<Replica>) -> Result<(), ApplyError> {
        let (mut commit, mut durable) = (replica.watch_commit(), replica.wal.watch_durable());
        let mut reader: Option<WalReader> = None;
        let mut tick = tokio::time::interval(CHECKPOINT_TICK);
        replica.wal.note_checkpoint(self.engine.recovered().0.seq);
        loop {
            // The commit position first: it rises only when a cut is done, so the durable position read
            // after it is not that of a log that was still to be cut.
            // Model: apply_committed_only
            let limit = commit.borrow_and_update().seq.min(durable.borrow_and_update().seq);
            #[cfg(feature = "testing")]
            let limit =
                if crate::types::planted::is("apply_beyond_commit") { durable.borrow().seq } else { limit };
            let next = self.applied.borrow().seq + 1;
            if limit < next {
                tokio::select! {
                    changed = commit.changed() => if changed.is_err() { return Ok(()) },
                    changed = durable.changed() => if changed.is_err() { return Ok(()) },
                    _ = tick.tick() => {}
                }
            } else {
                self.wait_for_room(&replica).await;
                let exclusive = self.exclusive.lock().await;
                // A snapshot may have been installed while this waited.
                let next = self.applied.borrow().seq + 1;
                let from_here = reader.take().filter(|reader| reader.position() == next);
                let mut here = from_here.unwrap_or_else(|| replica.wal.reader(next));
                let records = match here.read(BATCH).await {
                    Ok(records) => records,
                    // A cut behind the commit position moved the end: start over from the log.
                    Err(ReadError::Cut { .. }) => continue,
                    // Set aside by a task of its own, and fetched again, if there is anybody who has it.
                    Err(ReadError::Damaged { .. }) if replica.has_peers() => {
                        drop(exclusive);
                        tokio::time::sleep(DAMAGE_LOOK).await;
                        continue;
                    }
                    Err(error) => return Err(ApplyError::Read { seq: next, error }),
                };
                let (mut took, mut bytes, all) = (0, 0, records.len());
                for record in records.into_iter().take_while(|record| record.lsn.seq <= limit) {
                    self.apply(&record)?;
                    (took, bytes) = (took + 1, bytes + record.raw.len());
                    match self.engine.room() {
                        Room::Enough => {}
                        Room::Little if bytes < SLOW.0 => {}
                        Room::Little | Room::None => break,
                    }
                }
                reader = (took == all).then_some(here);
            }
            self.checkpoint_if_due();
            tokio::task::yield_now().await;
        }
    }

    fn apply(&self, record: &Record) -> Result<(), ApplyError> {
        let at = record.lsn;
        let want = self.applied.borrow().seq + 1;
        if at.seq != want {
            return Err(ApplyError::Gap { want, got: at });
        }
        // What has left the window was refused when it was admitted, if it was too old then.
        let twice = record
            .key
            .is_some_and(|key| matches!(self.ledger().dedup.look_up(&key), Seen::At(_) | Seen::OtherBody));
        let operation = match record.kind {
            // The writer's own check makes this impossible; applying twice is what it guards.
            RecordKind::Batch | RecordKind::Control if twice => {
                tracing::error!(%at, "a write is in the log a second time; not applied again");
                Operation::Nothing
            }
            RecordKind::Batch => {
                Operation::Batch { encoding: record.encoding, payload: record.payload.clone() }
            }
            RecordKind::Control => Change::decode(record.encoding, &record.payload)
                .map(Change::into_operation)
                .map_err(|why| ApplyError::Engine { at, error: EngineError::Broken(why) })?,
            RecordKind::EpochStart | RecordKind::ConfigMark => Operation::Nothing,
        };
        self.engine.apply(at, &operation).map_err(|error| ApplyError::Engine { at, error })?;
        let mut ledger = self.ledger();
        if matches!(record.kind, RecordKind::EpochStart | RecordKind::ConfigMark)
            && let Ok(mark) = frame::decode::<Mark>(&record.payload, frame::MAX_MESSAGE)
        {
            Arc::make_mut(&mut ledger.dedup).mark(mark.membership);
            self.marked.send_replace(mark.membership);
        }
        let key = record.key;
        #[cfg(feature = "testing")]
        let key = key.filter(|key| {
            !crate::types::planted::is("dedup_not_replicated") || ledger.in_flight.seq_of(key).is_some()
        });
        if let Some(key) = key {
            Arc::make_mut(&mut ledger.dedup).feed(&key, at, record.timestamp);
            ledger.in_flight.remove(&key);
        }
        self.applied.send_replace(at);
        let mut due = Vec::new();
        while let Some(next) = ledger.waiters.first_entry().filter(|next| *next.key() <= at.seq) {
            due.append(&mut next.remove());
        }
        drop(ledger);
        for waiter in due {
            // Whoever waited may have given up.
            let _ = waiter.send(at);
        }
        Ok(())
    }

    fn checkpoint_if_due(&self) {
        if !self.engine.checkpoint_due() {
            return;
        }
        if let Ok(permit) = self.one_checkpoint.clone().try_acquire_owned() {
            let sidecar = self.sidecar();
            // Fails only when the checkpointer is gone, and then the node is stopping.
            let _ = self.checkpoints.send((self.engine.checkpoint(sidecar), permit));
        }
    }

    /// Makes everything applied so far durable.
    pub async fn checkpoint_now(&self) -> Result<Lsn, EngineError> {
        // The semaphore is never closed.
        let _permit = self.one_checkpoint.acquire().await;
        let checkpoint = {
            let _exclusive = self.exclusive.lock().await;
            let sidecar = self.sidecar();
            self.engine.checkpoint(sidecar)
        };
        checkpoint.await
    }

    /// Has a checkpoint that holds everything up to `seq`, which has been applied: the last one, or one
    /// that is made now.
    pub async fn checkpoint_through(&self, seq: u64) -> Result<(), EngineError> {
        // The semaphore is never closed.
        let Ok(permit) = self.one_checkpoint.clone().acquire_owned().await else { return Ok(()) };
        if self.engine.recovered().0.seq >= seq {
            return Ok(());
        }
        let (tell, told) = oneshot::channel();
        let work = {
            let _exclusive = self.exclusive.lock().await;
            let sidecar = self.sidecar();
            self.engine.checkpoint(sidecar)
        };
        // Run where every other one is, so that the log may go behind it.
        let job: Work<Lsn> = Box::pin(async move {
            let done = work.await;
            let _ = tell.send(done.as_ref().map(|_| ()).map_err(twin));
            done
        });
        let _ = self.checkpoints.send((job, permit));
        match told.await {
            Ok(done) => done,
            Err(_) => Err(EngineError::Broken("this node is stopping".into())),
        }
    }

    /// What is applied of keys, as bytes. Called by whoever keeps records from being applied meanwhile;
    /// admission goes on, for a large table takes a while.
    fn sidecar(&self) -> Bytes {
        let applied = self.ledger().dedup.clone();
        applied.save()
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn replace_all(&self, from: PathBuf, position: Lsn) -> Result<Lsn, EngineError> {
        // A checkpoint that runs would save what is about to be replaced. The semaphore is never closed.
        let permit = self.one_checkpoint.acquire().await;
        let exclusive = self.exclusive.lock().await;
        // While the files were fetched, or behind another snapshot that was being installed, more may
        // have been applied than this one holds.
        // Model: snapshot_beyond_log_end
        if self.applied.borrow().seq >= position.seq {
            drop((permit, exclusive));
            return self.checkpoint_now().await;
        }
        self.install(from).await
    }

    /// The caller holds what keeps records from being applied and checkpoints from being taken.
    async fn install(&self, from: PathBuf) -> Result<Lsn, EngineError> {
        let at = self.engine.install(from).await?;
        let (_, sidecar) = self.engine.recovered();
        // The engine has changed already: not the kind of damage that leaves everything as it was.
        let dedup = load_sidecar(&sidecar).map_err(|e| EngineError::Broken(e.to_string()))?;
        self.marked.send_replace(dedup.marked());
        self.ledger().dedup = Arc::new(dedup);
        self.applied.send_replace(at);
        Ok(at)
    }

    /// See [`Applier::mend`]. Whoever takes office after the look at it admits nothing before its own
    /// start is applied, and so everything that is applied again here.
    async fn mend(&self, from: PathBuf, at: Lsn, replica: &Replica) -> Result<bool, EngineError> {
        let _permit = self.one_checkpoint.acquire().await;
        let _exclusive = self.exclusive.lock().await;
        if replica.fence.in_office() || !mend::reaches(replica, at) {
            return Ok(false);
        }
        let installed = self.install(from).await?;
        replica.wal.note_checkpoint(installed.seq);
        if installed == at {
            return Ok(true);
        }
        Err(EngineError::Broken(format!("the snapshot was offered at {at} and is at {installed}")))
    }
}

/// The same error for somebody else who waits for it.
fn twin(error: &EngineError) -> EngineError {
    match error {
        EngineError::Io(e) => EngineError::Io(std::io::Error::new(e.kind(), e.to_string())),
        EngineError::Damaged(what, why) => EngineError::Damaged(what.clone(), why.clone()),
        EngineError::Broken(why) => EngineError::Broken(why.clone()),
    }
}

/// What of a checkpoint's sidecar is true in any cluster that has its data.
pub fn portable_sidecar(sidecar: &Bytes) -> Result<Bytes, EngineError> {
    load_sidecar(sidecar).map(|dedup| dedup.portable().save())
}

fn load_sidecar(sidecar: &Bytes) -> Result<Dedup, EngineError> {
    #[cfg(feature = "testing")]
    if crate::types::planted::is("dedup_not_saved") {
        return Ok(Dedup::default());
    }
    Dedup::load(sidecar)
        .map_err(|e| EngineError::Damaged("the checkpoint's dedup table".into(), e.to_string()))
}

/// [`Applier`] for the replication layer.
#[derive(Debug, Clone)]
pub struct AppliedState(pub Arc<Apply>);

impl Applier for AppliedState {
    fn applied(&self) -> Lsn {
        *self.0.applied.borrow()
    }

    fn install(
        &self,
        from: PathBuf,
        position: Lsn,
    ) -> Pin<Box<dyn Future<Output = Result<Lsn, EngineError>> + Send>> {
        let apply = self.0.clone();
        Box::pin(async move { apply.replace_all(from, position).await })
    }

    fn mend(
        &self,
        from: PathBuf,
        at: Lsn,
        replica: Arc<Replica>,
    ) -> Pin<Box<dyn Future<Output = Result<bool, EngineError>> + Send>> {
        let apply = self.0.clone();
        Box::pin(async move { apply.mend(from, at, &replica).await })
    }

    fn checkpoint(&self) -> Pin<Box<dyn Future<Output = Result<Lsn, EngineError>> + Send>> {
        let apply = self.0.clone();
        Box::pin(async move { apply.checkpoint_now().await })
    }

    fn export(&self) -> Pin<Box<dyn Future<Output = Result<Export, EngineError>> + Send>> {
        self.0.engine.export()
    }
}
