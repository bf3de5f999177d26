//! Copying the log: the writer sends, followers append, acks come back, the commit position
//! goes out. Replication never asks raft: it is handed an epoch.
//!
//! - [`fence`]: promises, and what may still pass after one;
//! - [`acks`]: the commit position and the lease, from what followers acknowledge;
//! - [`sender`] and [`receiver`]: the two ends of an `Append` stream;
//! - `freshness`: how old what comes on it is;
//! - [`forwarded`]: what the writer need not send, since it came from here;
//! - [`catch_up`]: an engine snapshot for a follower that is behind retention;
//! - [`mend`]: the same for an engine whose files are damaged;
//! - [`read_index`]: the position a linearizable read must reach.

pub mod acks;
pub mod catch_up;
pub mod fence;
pub mod forwarded;
mod freshness;
mod incoming;
pub mod mend;
pub mod read_index;
pub mod receiver;
pub mod sender;
pub mod snapshot_meter;
#[cfg(all(test, feature = "testing"))]
mod tests;
pub mod voter;

use std::{
    collections::BTreeSet,
    fmt,
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::{Mutex as AsyncMutex, watch},
    time::{Duration, Instant},
};

use crate::{
    engine::{EngineError, Export},
    types::{BootId, ClusterView, Epoch, Lsn, MembershipId, NodeId},
    wal::Wal,
};

use acks::Acks;
use fence::Fence;
use forwarded::Forwarded;
use snapshot_meter::SnapshotMeter;

/// The replicated log of one process: what sender, receiver, commit and apply share.
#[derive(Debug)]
pub struct Replica {
    /// This node.
    pub node: NodeId,
    /// This process run.
    pub boot: BootId,
    /// The log.
    pub wal: Wal,
    /// What stands before it.
    pub fence: Fence,
    /// The cluster, as the applied raft state has it.
    pub view: watch::Receiver<Arc<ClusterView>>,
    /// L: how long a writer may be silent, and how long a lease lasts.
    pub lease_term: Duration,
    /// What this node forwarded and has not got back.
    pub forwarded: Forwarded,
    /// What engine snapshots cost.
    pub meter: SnapshotMeter,
    /// Held while an engine snapshot is installed, until engine and log belong together again.
    installing: AsyncMutex<()>,
    commit: watch::Sender<Lsn>,
    contact: watch::Sender<Option<Contact>>,
    tenure: watch::Sender<Option<Arc<Tenure>>>,
    snapshots: Mutex<Vec<(u64, Instant)>>,
}

/// The last message heard from a writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contact {
    /// Its stream epoch.
    pub epoch: Epoch,
    /// When it came.
    pub heard: Instant,
    /// When a majority last confirmed the writer, by this node's clock.
    pub confirmed: Option<Instant>,
}

/// One term of office of this process.
#[derive(Debug)]
pub struct Tenure {
    /// Its epoch.
    pub epoch: Epoch,
    /// Seq of its `EpochStart`.
    pub start: u64,
    /// When this process took it: a majority had sealed for it a moment before.
    pub since: Instant,
    acks: Mutex<Acks>,
    membership: watch::Sender<MembershipId>,
    pulse: watch::Sender<u64>,
    opened: watch::Sender<bool>,
    /// What [`Acks::everywhere`] came to last.
    everywhere: watch::Sender<u64>,
}

/// The part of the node that applies records, as catch-up needs it.
pub trait Applier: fmt::Debug + Send + Sync + 'static {
    /// Last applied position.
    fn applied(&self) -> Lsn;
    /// Replaces everything applied by the engine snapshot at `position` whose files lie under `from`,
    /// unless that much is applied by then: for catching up the engine goes back for nobody. Resolves to
    /// what is applied, and on disk. Not cancel-safe: engine and position change together or not at all.
    fn install(
        &self,
        from: PathBuf,
        position: Lsn,
    ) -> Pin<Box<dyn Future<Output = Result<Lsn, EngineError>> + Send>>;
    /// Replaces everything applied by the engine snapshot at `at` whose files lie under `from`, which may
    /// be behind what is applied: the log of `replica` has what follows, and it is applied again. False,
    /// and nothing is changed, if it has not, or if this process is the writer. Not cancel-safe.
    fn mend(
        &self,
        from: PathBuf,
        at: Lsn,
        replica: Arc<Replica>,
    ) -> Pin<Box<dyn Future<Output = Result<bool, EngineError>> + Send>>;
    /// Puts everything applied into a checkpoint; resolves to its position.
    fn checkpoint(&self) -> Pin<Box<dyn Future<Output = Result<Lsn, EngineError>> + Send>>;
    /// Files of the newest checkpoint.
    fn export(&self) -> Pin<Box<dyn Future<Output = Result<Export, EngineError>> + Send>>;
}

impl Replica {
    /// Puts the parts together. `commit` is what the watermark knew.
    pub fn new(
        fence: Fence,
        wal: Wal,
        (node, boot): (NodeId, BootId),
        commit: Lsn,
        view: watch::Receiver<Arc<ClusterView>>,
        lease_term: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            node,
            boot,
            wal,
            fence,
            view,
            lease_term,
            forwarded: Forwarded::new((node, boot)),
            meter: SnapshotMeter::default(),
            installing: AsyncMutex::default(),
            commit: watch::Sender::new(commit),
            contact: watch::Sender::new(None),
            tenure: watch::Sender::new(None),
            snapshots: Mutex::new(Vec::new()),
        })
    }

    /// Last position known committed.
    pub fn commit(&self) -> Lsn {
        *self.commit.borrow()
    }

    /// True if there is a voter beside this node: one that may hold what this node lacks.
    pub fn has_peers(&self) -> bool {
        self.view.borrow().all_voters().iter().any(|voter| *voter != self.node)
    }

    /// Follows the commit position.
    pub fn watch_commit(&self) -> watch::Receiver<Lsn> {
        self.commit.subscribe()
    }

    /// Takes note of a commit position that may be believed (6.4.6). It never goes back.
    pub fn note_commit(&self, commit: Lsn) {
        let advanced = self.commit.send_if_modified(|known| {
            let higher = commit.seq > known.seq;
            if higher {
                *known = commit;
            }
            higher
        });
        if advanced {
            self.wal.note_commit(commit);
        }
    }

    /// Keeps the log behind `seq` until then: a follower is given a snapshot that ends there, and will
    /// ask for what follows.
    pub fn keep_behind(&self, seq: u64, until: Instant) {
        let mut snapshots = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        snapshots.retain(|kept| kept.1 > Instant::now() && kept.0 != seq);
        snapshots.push((seq, until));
    }

    /// The last seq that no follower with a snapshot will ask for.
    pub fn free_through(&self) -> u64 {
        let mut snapshots = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        snapshots.retain(|kept| kept.1 > Instant::now());
        snapshots.iter().map(|kept| kept.0).min().unwrap_or(u64::MAX)
    }

    /// The writer this node last heard.
    pub fn watch_contact(&self) -> watch::Receiver<Option<Contact>> {
        self.contact.subscribe()
    }

    pub(crate) fn note_contact(&self, contact: Contact) {
        self.contact.send_replace(Some(contact));
    }

    /// The office this process holds, if any.
    pub fn tenure(&self) -> Option<Arc<Tenure>> {
        self.tenure.borrow().clone()
    }

    /// Follows the office of this process.
    pub fn watch_tenure(&self) -> watch::Receiver<Option<Arc<Tenure>>> {
        self.tenure.subscribe()
    }

    /// Begins a term of office. Its `EpochStart` is in the log already (6.4.4: no subscription is
    /// served before).
    pub fn begin_tenure(
        &self,
        epoch: Epoch,
        start: u64,
        membership: MembershipId,
        voters: Vec<BTreeSet<NodeId>>,
    ) -> Arc<Tenure> {
        let tenure = Arc::new(Tenure {
            epoch,
            start,
            since: Instant::now(),
            acks: Mutex::new(Acks::new(epoch, start, self.node, voters)),
            membership: watch::Sender::new(membership),
            pulse: watch::Sender::new(0),
            opened: watch::Sender::new(false),
            everywhere: watch::Sender::new(0),
        });
        self.tenure.send_replace(Some(tenure.clone()));
        self.forwarded.forget_all();
        tenure
    }

    /// Ends the term of office of `epoch`, if it is the one in force.
    pub fn end_tenure(&self, epoch: Epoch) {
        self.tenure.send_if_modified(|held| {
            let ours = held.as_ref().is_some_and(|tenure| tenure.epoch == epoch);
            if ours {
                *held = None;
            }
            ours
        });
    }

    /// When a majority last confirmed that this process is the writer. `None` before the start of the
    /// office is committed: until then the commit position may be behind what an earlier office
    /// acknowledged, however fresh the contact is.
    pub fn confirmed(&self, tenure: &Tenure, now: Instant) -> Option<Instant> {
        let confirmed = tenure.acks().confirmed(now);
        confirmed.filter(|_| tenure.has_begun(self.commit()))
    }

    /// Recounts what is committed and what is on every voter after an ack, an fsync or a change of
    /// voters.
    pub fn recount(&self, tenure: &Tenure) {
        // Read under the fence: a fenced writer no longer counts its own vote, and what it has
        // counted before the promise is covered by the report it gives after.
        // Model: no_own_vote_below_promise
        let own = self.fence.durable_for(tenure.epoch);
        let commit = tenure.count(own);
        if let Some(commit) = commit {
            self.note_commit(commit);
        }
    }
}

impl Tenure {
    /// Acks of this office.
    pub fn acks(&self) -> MutexGuard<'_, Acks> {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True once its own `EpochStart` is at or below the position known committed. Until then that
    /// position may lack what earlier offices acknowledged: however lately a majority has confirmed
    /// this writer, nobody may call its data fresh.
    pub const fn has_begun(&self, committed: Lsn) -> bool {
        committed.epoch == self.epoch
    }

    /// The membership this office counts with.
    pub fn membership(&self) -> MembershipId {
        *self.membership.borrow()
    }

    /// Counts with another membership from now on.
    pub fn set_membership(&self, membership: MembershipId, voters: Vec<BTreeSet<NodeId>>) {
        let mut acks = self.acks();
        acks.set_voters(voters);
        // What was on every voter may not be on a new one.
        self.everywhere.send_replace(0);
        drop(acks);
        self.membership.send_replace(membership);
    }

    /// The seq up to which every voter of the membership in force has this log on disk, as far as
    /// is known; falls when a voter comes that has less. Only of use for committed records.
    pub fn watch_everywhere(&self) -> watch::Receiver<u64> {
        self.everywhere.subscribe()
    }

    /// The commit position; announces what is everywhere.
    fn count(&self, own: Option<Lsn>) -> Option<Lsn> {
        let acks = self.acks();
        // Under the lock: a count with former voters must not come after one with the new ones.
        let everywhere = acks.everywhere(own);
        self.everywhere.send_if_modified(|known| std::mem::replace(known, everywhere) != everywhere);
        acks.commit(own)
    }

    /// Lets writes in: everything earlier offices committed is applied.
    pub fn open(&self) {
        self.opened.send_replace(true);
    }

    /// True once writes are let in.
    pub fn is_open(&self) -> bool {
        *self.opened.borrow()
    }

    /// Turns true when writes are let in.
    pub fn watch_opened(&self) -> watch::Receiver<bool> {
        self.opened.subscribe()
    }

    /// Starts a lease round: every sender carries it to its follower at once.
    pub fn beat(&self) {
        let round = self.acks().begin_round(Instant::now());
        self.pulse.send_replace(round);
    }

    pub(crate) fn watch_pulse(&self) -> watch::Receiver<u64> {
        self.pulse.subscribe()
    }
}
