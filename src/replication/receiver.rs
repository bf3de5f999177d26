//! The follower's end of an `Append` stream: subscribes with its own durable position, cuts what
//! the writer's epoch table says was never committed, appends, fsyncs, acknowledges.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use tokio::{
    sync::watch,
    time::{Duration, Instant},
};

use crate::{
    protocol::{
        Lane, StreamKind,
        frame::{MAX_MESSAGE, MAX_RAFT, MAX_RECORDS},
        replication::{Ack, Append, Subscribe, Subscribed},
    },
    transport::{LinkInfo, Mesh, OpenError, RecvStream, SendStream, Stream, StreamError},
    types::{Lsn, NodeId, Office},
    wal::{ReadError, Wal, WalError},
};

use super::{
    Applier, Contact, Replica,
    catch_up::{self, CatchUpError},
    fence::{FenceError, Session},
    forwarded::{FrameError, Whole},
    freshness::SentAcks,
};

/// Between two attempts to subscribe: doubles from the first to the last while they fail at once.
const RETRY: (Duration, Duration) = (Duration::from_millis(25), Duration::from_secs(1));
/// Bytes received and not yet fsynced at most: beyond it the stream waits for the disk.
const UNSYNCED: usize = 16 * 1024 * 1024;

/// Follows whoever holds office, for as long as the process runs.
#[derive(Debug)]
pub struct Receiver {
    replica: Arc<Replica>,
    applier: Arc<dyn Applier>,
    mesh: Mesh,
    fetch: catch_up::Fetch,
}

/// Following cannot go on: the node must stop serving and say so.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// Asked to cut what is applied, or the log failed.
    #[error(transparent)]
    Fence(FenceError),
    /// This log and the writer's differ where they must be equal.
    #[error(
        "this node's log differs from the writer's at {0}: stop it, keep its data directory for inspection, \
         remove it with `skein node remove`, and start it with an empty data directory and a new token"
    )]
    Diverged(Lsn),
    /// The log failed.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// A snapshot could not be installed.
    #[error(transparent)]
    CatchUp(CatchUpError),
}

/// What was received and may not be on disk yet.
#[derive(Default)]
struct Unsynced {
    frames: VecDeque<(u64, usize)>,
    bytes: usize,
}

impl Unsynced {
    fn add(&mut self, end: Lsn, len: usize) {
        self.frames.push_back((end.seq, len));
        self.bytes += len;
    }

    /// Waits until the disk is close enough behind.
    async fn wait(&mut self, wal: &Wal) {
        let mut durable = wal.watch_durable();
        loop {
            let synced = durable.borrow_and_update().seq;
            while let Some((_, len)) = self.frames.pop_front_if(|frame| frame.0 <= synced) {
                self.bytes -= len;
            }
            // A log that has failed tells of nothing more; the next append says so.
            if self.bytes <= UNSYNCED || durable.changed().await.is_err() {
                return;
            }
        }
    }
}

enum End {
    Final(FollowError),
    Retry(String),
}

impl From<StreamError> for End {
    fn from(error: StreamError) -> Self {
        Self::Retry(error.to_string())
    }
}

impl From<OpenError> for End {
    fn from(error: OpenError) -> Self {
        Self::Retry(error.to_string())
    }
}

impl From<WalError> for End {
    fn from(error: WalError) -> Self {
        match error {
            // Goes away by itself: space comes back, a cut comes to its end, damage is set aside.
            WalError::Full | WalError::Closed | WalError::Read(ReadError::Damaged { .. }) => {
                Self::Retry(error.to_string())
            }
            error => Self::Final(error.into()),
        }
    }
}

impl From<FenceError> for End {
    fn from(error: FenceError) -> Self {
        match error {
            FenceError::Fenced { .. } => Self::Retry(error.to_string()),
            FenceError::Wal(error) => error.into(),
            error => Self::Final(FollowError::Fence(error)),
        }
    }
}

impl From<FrameError> for End {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::NotKept | FrameError::Malformed(_) => Self::Retry(error.to_string()),
            FrameError::Record(error) => WalError::from(error).into(),
        }
    }
}

impl Receiver {
    /// Follows into `replica`; `fetch` says where a snapshot's files are put meanwhile.
    pub fn new(replica: Arc<Replica>, applier: Arc<dyn Applier>, mesh: Mesh, fetch: catch_up::Fetch) -> Self {
        Self { replica, applier, mesh, fetch }
    }

    /// Runs until following cannot go on.
    pub async fn run(self) -> Result<(), FollowError> {
        let mut view = self.replica.view.clone();
        let mut links = self.mesh.links();
        let mut pause = RETRY.0;
        loop {
            let office = view.borrow_and_update().writer.filter(|office| office.node != self.replica.node);
            let linked = |office: &Office, links: &mut watch::Receiver<Arc<BTreeMap<NodeId, LinkInfo>>>| {
                links.borrow_and_update().contains_key(&office.node)
            };
            let Some(office) = office.filter(|office| linked(office, &mut links)) else {
                tokio::select! {
                    changed = view.changed() => if changed.is_err() { return Ok(()) },
                    changed = links.changed() => if changed.is_err() { return Ok(()) },
                }
                continue;
            };
            let mut other_office = view.clone();
            let began = Instant::now();
            let ended = tokio::select! {
                ended = self.follow(office) => ended,
                _ = other_office.wait_for(|view| view.writer != Some(office)) => continue,
            };
            match ended {
                Ok(()) => {}
                Err(End::Retry(reason)) => {
                    tracing::debug!(writer = %office.node, reason, "subscription ended")
                }
                Err(End::Final(error)) => return Err(error),
            }
            pause = if began.elapsed() > RETRY.1 { RETRY.0 } else { (pause * 2).min(RETRY.1) };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // A new office or link is a new chance.
                _ = view.changed() => pause = RETRY.0,
                _ = links.changed() => pause = RETRY.0,
            }
        }
    }

    async fn follow(&self, office: Office) -> Result<(), End> {
        let replica = &*self.replica;
        if replica.fence.promised() > office.epoch {
            // Sealed for a later epoch already: its writer is about to be named.
            return Err(End::Retry("a higher epoch is promised".into()));
        }
        // What an earlier office's snapshot began to change, changes to its end.
        self.fetch.quiet().await;
        let mut stream = self.mesh.open(office.node, StreamKind::Append, Lane::Live).await?;
        let durable = replica.wal.settle().await?;
        // After a crash between the install of a snapshot and the reset of the log, the engine is
        // ahead of the log; only what the log holds can be compared.
        let applied = self.applier.applied();
        let held = if applied.seq <= durable.seq { applied } else { Lsn::ZERO };
        let (compared, applied_chain) = match replica.wal.chain_at(held.seq).await? {
            Some(chain) => (held, chain),
            None => (Lsn::ZERO, 0), // retired here: nothing to compare with
        };
        let subscribe = Subscribe {
            epoch: office.epoch,
            writer_boot: office.boot,
            boot: replica.boot,
            durable,
            epochs: replica.wal.epochs(),
            chain: self.chain_of_end(durable).await?,
            applied: compared,
            applied_chain,
            keeps_from: replica.forwarded.from(),
        };
        stream.send.write_message(&subscribe).await?;
        match stream.recv.read_message(MAX_RAFT).await? {
            Subscribed::NotWriter { promise } => {
                Err(End::Retry(format!("not in office (it promised epoch {promise})")))
            }
            Subscribed::Diverged { at } => Err(End::Final(FollowError::Diverged(at))),
            Subscribed::SnapshotNeeded { first } => {
                tracing::info!(ours = %durable, first, "behind the writer's log: fetching a snapshot");
                let fetched =
                    catch_up::fetch(&self.fetch, &self.replica, &self.applier, &self.mesh, office).await;
                fetched.map_err(|e| {
                    if e.passes() { End::Retry(e.to_string()) } else { End::Final(FollowError::CatchUp(e)) }
                })
            }
            Subscribed::Resume { keep, chain, epochs, end } => {
                // Model: serve_after_epoch_start
                if keep > durable.seq || epochs.last_epoch() != office.epoch {
                    return Err(End::Retry("the writer's answer contradicts its office".into()));
                }
                if replica.wal.chain_at(keep).await?.is_some_and(|ours| ours != chain) {
                    return Err(End::Final(FollowError::Diverged(Lsn::new(
                        epochs.epoch_at(keep).unwrap_or(0),
                        keep,
                    ))));
                }
                // The office must still be what the applied raft state names, now.
                if replica.view.borrow().writer != Some(office) {
                    return Err(End::Retry("the office has changed".into()));
                }
                let session = replica.fence.adopt(office.epoch, keep, held).await?;
                replica.meter.end();
                tracing::info!(writer = %office.node, epoch = office.epoch, from = keep + 1, "following");
                self.take(office, session, end, stream).await
            }
        }
    }

    /// The chain value of the last durable record, which a log always knows unless it is cut or
    /// reset at this very moment.
    async fn chain_of_end(&self, durable: Lsn) -> Result<u32, End> {
        let chain = self.replica.wal.chain_at(durable.seq).await?;
        chain.ok_or_else(|| End::Retry("the log was cut meanwhile".into()))
    }

    async fn take(
        &self,
        office: Office,
        session: Session,
        end: Option<Lsn>,
        stream: Stream,
    ) -> Result<(), End> {
        let (rounds, seen) = watch::channel(0);
        let sent = SentAcks::default();
        let Stream { send, recv } = stream;
        tokio::select! {
            ended = self.append(session, rounds, &sent, recv) => ended,
            ended = self.acknowledge(office, seen, &sent, send) => ended,
            ended = self.repair(session, end) => ended,
        }
    }

    async fn append(
        &self,
        session: Session,
        rounds: watch::Sender<u64>,
        acks: &SentAcks,
        mut recv: RecvStream,
    ) -> Result<(), End> {
        let replica = &*self.replica;
        let mut unsynced = Unsynced::default();
        loop {
            unsynced.wait(&replica.wal).await;
            let head: Append = recv.read_message(MAX_MESSAGE).await?;
            if head.epoch != session.epoch {
                return Err(End::Retry(format!("a message of epoch {} on this stream", head.epoch)));
            }
            if head.count > 0 {
                let frame = recv.read_frame(MAX_RECORDS).await?;
                let Whole { records, len, own } =
                    replica.forwarded.complete(frame, head.count, &head.left_out)?;
                unsynced.add(replica.fence.append_replica(session, records)?, len);
                replica.forwarded.came(&own);
            }
            // Believed only while this session is the adopted one: its cut is done.
            // Model: commit_believed_after_cut
            if !replica.fence.is_current(session) {
                return Err(End::Retry("sealed".into()));
            }
            let heard = Instant::now();
            let age = head.confirmed_age_ms.map(Duration::from_millis);
            replica.note_commit(head.commit);
            replica.note_contact(Contact {
                epoch: head.epoch,
                heard,
                confirmed: age.and_then(|age| acks.confirmed(head.echo, age)),
            });
            rounds.send_if_modified(|seen| head.round > std::mem::replace(seen, head.round.max(*seen)));
        }
    }

    /// Pays the debt of a log that was damaged: the records are there again once everything is that
    /// the writer's log held when this stream was subscribed (`wal/quarantine.rs` says why). Never
    /// returns unless the stream has ended.
    async fn repair(&self, session: Session, end: Option<Lsn>) -> Result<(), End> {
        let replica = &*self.replica;
        let (Some(debt), Some(end)) = (replica.wal.debt(), end) else { return std::future::pending().await };
        tracing::warn!(lost_from = debt.lost_from, until = %end, "fetching the records that were damaged here");
        let mut durable = replica.wal.watch_durable();
        if durable.wait_for(|at| at.seq >= end.seq).await.is_err() || !replica.fence.pay_debt(session).await?
        {
            return Err(End::Retry("sealed".into()));
        }
        tracing::warn!(
            lost_from = debt.lost_from,
            end = %replica.wal.durable(),
            "the log is repaired: every record is here again, and this node answers seals"
        );
        std::future::pending().await
    }

    async fn acknowledge(
        &self,
        office: Office,
        mut rounds: watch::Receiver<u64>,
        acks: &SentAcks,
        mut send: SendStream,
    ) -> Result<(), End> {
        let replica = &*self.replica;
        let mut durable = replica.wal.watch_durable();
        let mut sent = None;
        loop {
            durable.mark_unchanged();
            let round = *rounds.borrow_and_update();
            // Model: no_ack_below_promise
            let Some(at) = replica.fence.durable_for(office.epoch) else {
                return Err(End::Retry("a higher epoch is promised".into()));
            };
            let ack = Ack {
                epoch: office.epoch,
                durable: at,
                applied: self.applier.applied(),
                chain: self.chain_of_end(at).await?,
                round,
            };
            if sent != Some((at, round)) {
                // The promise to stand by this writer for the lease term begins before the ack that
                // lets the writer count on it.
                let voter = replica.view.borrow().is_voter(replica.node);
                if voter && !replica.fence.grant_lease(office.epoch, office.boot, replica.lease_term) {
                    return Err(End::Retry("a higher epoch is promised".into()));
                }
                acks.note(round, Instant::now());
                send.write_message(&ack).await?;
                sent = Some((at, round));
            }
            tokio::select! {
                changed = durable.changed() => if changed.is_err() { return Err(End::from(WalError::Closed)) },
                changed = rounds.changed() => if changed.is_err() { return Ok(()) },
            }
        }
    }
}
