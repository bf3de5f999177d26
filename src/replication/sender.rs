//! The writer's end of an `Append` stream: one per follower, from memory if the follower is
//! recent and from segment files if it is not. A slow follower lags; it is never dropped and
//! never costs memory beyond the stream's window.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::{
    protocol::{
        Lane,
        frame::{MAX_MESSAGE, MAX_RAFT},
        replication::{Ack, Append, Subscribe, Subscribed},
    },
    transport::{Handler, Peer, RecvStream, SendStream, Stream, StreamError},
    types::{BootId, Lsn, NodeId},
    wal::{DedupKey, ReadError, Record, WalError, WalReader},
};

use super::{Applier, Replica, Tenure, freshness::Echo};

/// Bytes of records put into one frame.
const BATCH: usize = 1024 * 1024;
/// A follower that is further behind than this is served on the catch-up lane.
const BEHIND: u64 = 1_000;

/// Serves `Append` streams while this process is the writer.
#[derive(Debug)]
pub struct Sender {
    replica: Arc<Replica>,
    applier: Arc<dyn Applier>,
}

/// Why a stream to a follower ended.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error("an ack of stream epoch {got} on the stream of {want}")]
    WrongEpoch { got: u64, want: u64 },
    #[error("the log of {0} has diverged from this one at {1}: its chain value differs")]
    Diverged(NodeId, Lsn),
}

impl Sender {
    /// Serves from `replica`; `applier` tells what must never be cut.
    pub fn new(replica: Arc<Replica>, applier: Arc<dyn Applier>) -> Self {
        Self { replica, applier }
    }
}

impl Handler for Sender {
    fn handle(&self, peer: Peer, stream: Stream) -> BoxFuture<'static, ()> {
        let (replica, applier) = (self.replica.clone(), self.applier.clone());
        Box::pin(async move {
            let follower = peer.node();
            if let Err(error) = serve(&replica, &*applier, follower, stream).await {
                match error {
                    SendError::Diverged(..) => tracing::error!(%follower, %error, "follower refused"),
                    SendError::Read(ReadError::Damaged { .. })
                    | SendError::Wal(WalError::Read(ReadError::Damaged { .. })) => {
                        tracing::warn!(%follower, %error, "a follower needs a record that is damaged here");
                    }
                    _ => tracing::debug!(%follower, %error, "follower's stream ended"),
                }
            }
        })
    }
}

async fn serve(
    replica: &Replica,
    applier: &dyn Applier,
    follower: NodeId,
    mut stream: Stream,
) -> Result<(), SendError> {
    let subscribe: Subscribe = stream.recv.read_message(MAX_RAFT).await?;
    let tenure =
        replica.tenure().filter(|t| t.epoch == subscribe.epoch && replica.boot == subscribe.writer_boot);
    let Some(tenure) = tenure else {
        let refusal = Subscribed::NotWriter { promise: replica.fence.promised() };
        stream.send.write_message(&refusal).await?;
        return Ok(stream.send.finish()?);
    };
    let answer = position(replica, applier, &subscribe).await?;
    stream.send.write_message(&answer).await?;
    let keep = match answer {
        Subscribed::Resume { keep, .. } => keep,
        Subscribed::Diverged { at } => return Err(SendError::Diverged(follower, at)),
        _ => return Ok(stream.send.finish()?),
    };
    tracing::info!(%follower, from = keep + 1, epoch = tenure.epoch, "follower subscribed");
    let Stream { send, recv } = stream;
    let echo = Echo::default();
    let mut office = replica.watch_tenure();
    let edge = Edge { node: follower, boot: subscribe.boot, keeps_from: subscribe.keeps_from };
    let reader = replica.wal.reader(keep + 1);
    tokio::select! {
        ended = send_records(replica, &tenure, &echo, &edge, reader, send) => ended,
        ended = take_acks(replica, &tenure, follower, &echo, recv) => ended,
        // The stream epoch is over: the follower hears of the next office through raft.
        _ = office.wait_for(|held| held.as_ref().is_none_or(|held| held.epoch != tenure.epoch)) => Ok(()),
    }
}

/// Where the follower goes on: judged by epoch starts, checked by chain values.
pub(super) async fn position(
    replica: &Replica,
    applier: &dyn Applier,
    subscribe: &Subscribe,
) -> Result<Subscribed, WalError> {
    let wal = &replica.wal;
    let epochs = wal.epochs();
    // Model: cut_by_epoch_table
    let keep = epochs.common_prefix(&subscribe.epochs, subscribe.durable.seq);
    if keep + 1 < wal.first_seq() || keep > wal.end().seq {
        return Ok(Subscribed::SnapshotNeeded { first: wal.first_seq() });
    }
    // What cannot be sent is in the checkpoint, unless it was never committed.
    let damaged = wal.watch_damage().borrow().as_ref().map(|found| found.seq);
    if let Some(damaged) = damaged.filter(|damaged| keep < *damaged && wal.lacks().is_none()) {
        return Ok(Subscribed::SnapshotNeeded { first: damaged + 1 });
    }
    // Compared only at or below the cut point: every legal divergent tail lies behind it.
    let applied = applier.applied().min(subscribe.applied);
    for (at, theirs) in [(subscribe.durable, subscribe.chain), (subscribe.applied, subscribe.applied_chain)] {
        let comparable = at.seq <= keep || (at == subscribe.applied && at.seq <= applied.seq);
        if comparable && wal.chain_at(at.seq).await?.is_some_and(|ours| ours != theirs) {
            return Ok(Subscribed::Diverged { at });
        }
    }
    match wal.chain_at(keep).await? {
        Some(chain) => Ok(Subscribed::Resume { keep, chain, epochs, end: Some(wal.end()) }),
        None => Ok(Subscribed::SnapshotNeeded { first: wal.first_seq() }),
    }
}

async fn send_records(
    replica: &Replica,
    tenure: &Tenure,
    echo: &Echo,
    edge: &Edge,
    mut reader: WalReader,
    mut send: SendStream,
) -> Result<(), SendError> {
    let mut end = replica.wal.watch_end();
    let mut commit = replica.watch_commit();
    let mut pulse = tenure.watch_pulse();
    let mut lane = Lane::Live;
    let mut told = None;
    loop {
        end.mark_unchanged();
        commit.mark_unchanged();
        pulse.mark_unchanged();
        let records = reader.read(BATCH).await?;
        let behind = replica.wal.end().seq.saturating_sub(reader.position());
        let wanted = if behind > BEHIND { Lane::CatchUp } else { Lane::Live };
        if wanted != lane {
            send.set_lane(wanted);
            lane = wanted;
        }
        let now = Instant::now();
        let round = tenure.acks().round();
        // Model: read_after_epoch_start_commits
        let confirmed = replica.confirmed(tenure, now);
        let committed = replica.commit();
        // Sealed for a later epoch: what is in the log from now on, and what is known committed, may
        // not be of this stream. Asked when both have been read.
        // Model: commit_believed_after_cut
        if replica.fence.promised() > tenure.epoch {
            return Ok(());
        }
        let count = u32::try_from(records.len()).unwrap_or(u32::MAX);
        let (parts, left_out) = edge.parts(records);
        let head = Append {
            epoch: tenure.epoch,
            commit: committed,
            count,
            round,
            echo: echo.get(),
            confirmed_age_ms: confirmed.map(|at| u64::try_from((now - at).as_millis()).unwrap_or(u64::MAX)),
            left_out,
        };
        // Behind records there is seldom anything else to say at once.
        let news = Some((head.commit, head.round, head.echo));
        let is_news = std::mem::replace(&mut told, news) != news;
        if count > 0 {
            send.write_message_and_parts(&head, parts).await?;
            continue;
        }
        if is_news {
            send.write_message(&head).await?;
        }
        tokio::select! {
            _ = end.changed() => replica.wal.gather().await,
            _ = commit.changed() => {}
            _ = pulse.changed() => {}
        }
    }
}

/// A follower as the edge it is too.
struct Edge {
    node: NodeId,
    boot: BootId,
    keeps_from: u64,
}

impl Edge {
    /// The bytes of these records, and the places of those without the payload, which this edge keeps.
    fn parts(&self, records: Vec<Record>) -> (Vec<Bytes>, Vec<u32>) {
        let (mut parts, mut left_out) = (Vec::with_capacity(2 * records.len()), Vec::new());
        for (place, record) in (0..).zip(records) {
            match record.raw.for_its_edge().filter(|_| self.keeps(&record)) {
                Some(header) => {
                    parts.push(header.clone());
                    left_out.push(place);
                }
                None => parts.extend(record.raw.into_parts()),
            }
        }
        (parts, left_out)
    }

    /// True if the batch came from this very process, since it last had to give up what it kept.
    fn keeps(&self, record: &Record) -> bool {
        matches!(&record.key, Some(DedupKey::Batch(id))
            if (id.edge, id.boot) == (self.node, self.boot) && id.counter >= self.keeps_from)
    }
}

async fn take_acks(
    replica: &Replica,
    tenure: &Tenure,
    follower: NodeId,
    echo: &Echo,
    mut recv: RecvStream,
) -> Result<(), SendError> {
    loop {
        let ack: Ack = recv.read_message(MAX_MESSAGE).await?;
        // Model: ack_names_stream_epoch
        if ack.epoch != tenure.epoch {
            return Err(SendError::WrongEpoch { got: ack.epoch, want: tenure.epoch });
        }
        // The chain value at the follower's durable position is the divergence digest.
        if let Some(ours) = replica.wal.chain_at(ack.durable.seq).await?
            && ours != ack.chain
        {
            return Err(SendError::Diverged(follower, ack.durable));
        }
        echo.note(ack.round);
        tenure.acks().note(follower, ack.durable, ack.applied, ack.round);
        replica.recount(tenure);
    }
}
