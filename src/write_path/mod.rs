//! What happens to a write. [`Submitter::submit`] is the whole path on one screen.

pub mod apply;
pub mod checkpoints;
pub mod commit;
pub mod dedup;
pub mod forward;
mod in_flight;
mod levels;
pub mod policy;
pub mod serve;
#[cfg(all(test, feature = "testing"))]
mod tests;
mod waits;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};

use crate::{
    protocol::{
        forward::{AckLevel, BatchId, KEYS_BY_DATABASE, Progress},
        frame::MAX_PAYLOAD,
        request_id::RequestId,
    },
    replication::Replica,
    telemetry::Histogram,
    transport::Mesh,
    types::{BootId, ClusterView, Epoch, Lsn, NodeId, Office},
    wal::DedupKey,
};

use commit::{Batch, CommitError, Writer};
use forward::Forwarding;
pub use waits::CommitWaits;

/// Bytes of writes an edge holds at a time while they wait for a writer or an answer.
const HELD_BYTES: usize = 64 * 1024 * 1024;
/// Before an unanswered question is asked again of a writer that may just have begun.
/// Doubles from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

/// Takes writes on any node and brings them to the writer.
#[derive(Debug)]
pub struct Submitter {
    /// In whose name batches are numbered.
    edge: (NodeId, BootId),
    view: watch::Receiver<Arc<ClusterView>>,
    /// Commits here, while this node is in office; a gateway never is.
    writer: Option<Arc<Writer>>,
    mesh: Mesh,
    counter: AtomicU64,
    /// How long the writer's answer to what was forwarded takes.
    answers: Histogram,
    held: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
}

/// A write, parsed and encoded at the edge.
#[derive(Debug, Clone)]
pub struct Write {
    /// Encoding byte of the payload, below [`policy::ENCODING`].
    pub encoding: u8,
    /// The bytes. If they are not few, the log shares them and does not copy them: they must never change, and what
    /// they are a slice of stays in memory until the record is written, sent and applied; on a node that forwards them,
    /// until the record is in its own log too (16 MiB of them at most).
    pub payload: Bytes,
    /// Level wanted; `None` for the default.
    pub ack: Option<AckLevel>,
    /// How long to wait for a writer and for the level.
    pub timeout: Duration,
    /// The client's idempotency key, if it sent one.
    pub key: Option<ClientKey>,
    /// What the request is called in the logs of this node and of the writer, if it has a name.
    pub request: Option<RequestId>,
}

impl Write {
    /// A write at the cluster's default level, without an idempotency key of its own.
    pub fn new(encoding: u8, payload: impl Into<Bytes>, timeout: Duration) -> Self {
        Self { encoding, payload: payload.into(), ack: None, timeout, key: None, request: None }
    }
}

/// A client's idempotency key: hashes of the key and of the body it came with. Who chooses keys for
/// more than one database, or who lets others choose them, hashes the database with both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientKey {
    /// First 128 bits of a SHA-256.
    pub key: [u8; 16],
    /// What versions before made of the same key, if that is something else: a repetition of what such a
    /// version took is known by it. It takes the place of `key` until every member is of this version.
    pub former: Option<[u8; 16]>,
    /// First 128 bits of the SHA-256 of the body.
    pub body: [u8; 16],
}

/// An acknowledged write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Its position.
    pub at: Lsn,
    /// Level reached: the one asked for, or the cluster's default.
    pub ack: AckLevel,
    /// Who wrote it.
    pub writer: NodeId,
    /// True when that was another node.
    pub forwarded: bool,
}

/// Why a write was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Parse the body again against this schema; nothing was written.
    #[error("the schema has changed")]
    SchemaChanged(Bytes),
    /// Malformed, or over a limit; nothing was written.
    #[error("{0}")]
    Invalid(String),
    /// No writer was found in that time; nothing was written.
    #[error("no writer for {} ms: {}", .waited.as_millis(), "a majority of voters is needed; see `skein status`")]
    NoWriter {
        /// How long was waited.
        waited: Duration,
    },
    /// This edge holds as many waiting writes as it may; nothing was written.
    #[error("too many writes are waiting at this node")]
    Busy,
    /// The writer's disk is full; nothing was written.
    #[error("the writer's disk is full")]
    Full,
    /// The writer has as much in its log that is not committed as it may; nothing was written.
    #[error("the writer waits for commits and takes nothing more in")]
    WriterBusy,
    /// Sent, but not acknowledged at its level in time: it may or may not have been written. With
    /// progress, it is in the writer's log at that position, and at that level so far.
    #[error("not acknowledged in time, outcome: unknown; a retry with the same Idempotency-Key is safe")]
    Unknown(Option<Progress>),
    /// The idempotency key came with another body before.
    #[error("this Idempotency-Key was used with another body")]
    KeyReused,
    /// This node is stopping; nothing was written.
    #[error("this node is stopping")]
    Stopping,
}

impl Submitter {
    /// Submits for one node; `stopping` turns true when it shuts down.
    pub fn new(
        replica: Arc<Replica>,
        writer: Arc<Writer>,
        mesh: Mesh,
        stopping: watch::Receiver<bool>,
    ) -> Arc<Self> {
        let edge = (replica.node, replica.boot);
        Self::of(edge, replica.view.clone(), Some(writer), mesh, stopping)
    }

    /// Submits for a gateway, by the view it follows: every write goes to another node.
    pub fn forwarding(
        edge: (NodeId, BootId),
        view: watch::Receiver<Arc<ClusterView>>,
        mesh: Mesh,
        stopping: watch::Receiver<bool>,
    ) -> Arc<Self> {
        Self::of(edge, view, None, mesh, stopping)
    }

    fn of(
        edge: (NodeId, BootId),
        view: watch::Receiver<Arc<ClusterView>>,
        writer: Option<Arc<Writer>>,
        mesh: Mesh,
        stopping: watch::Receiver<bool>,
    ) -> Arc<Self> {
        let held = Arc::new(Semaphore::new(HELD_BYTES));
        let answers = Histogram::new(Histogram::FINE_SECONDS);
        Arc::new(Self { edge, view, writer, mesh, counter: AtomicU64::new(0), answers, held, stopping })
    }

    /// How long the writer's answers to what was forwarded took.
    pub const fn answers(&self) -> &Histogram {
        &self.answers
    }

    /// Brings a write to whoever holds office, wherever that is, until it is acknowledged or
    /// `write.timeout` has passed. While there is no writer it is held; a batch that was sent and
    /// not answered is sent again, under the same id, as soon as the view shows a later epoch.
    ///
    /// Dropping the future stops waiting, not the write.
    pub async fn submit(&self, write: Write) -> Result<Receipt, SubmitError> {
        if write.payload.len() > MAX_PAYLOAD {
            return Err(SubmitError::Invalid(format!(
                "a batch of {} bytes, limit {MAX_PAYLOAD}: send smaller ones",
                write.payload.len()
            )));
        }
        if write.encoding == policy::ENCODING {
            policy::Change::check_asked(&write.payload).map_err(SubmitError::Invalid)?;
        }
        let started = Instant::now();
        let batch = self.number(&write, started + write.timeout);
        let size = u32::try_from(write.payload.len()).unwrap_or(u32::MAX);
        let _held = self.held.try_acquire_many(size.max(1)).map_err(|_| SubmitError::Busy)?;
        let mut view = self.view.clone();
        let (mut sent, mut pause) = (None, RETRY.0);
        loop {
            let office = view.borrow_and_update().writer;
            if *self.stopping.borrow() {
                return Err(if sent.is_some() { SubmitError::Unknown(None) } else { SubmitError::Stopping });
            }
            let attempt = tokio::select! {
                biased;
                outcome = self.attempt(office, &batch, &mut sent) => outcome,
                () = tokio::time::sleep_until(batch.deadline) => Err(CommitError::Unknown(None)),
                // A later epoch: whoever was asked may never answer.
                _ = view.wait_for(|view| view.writer.map(|w| w.epoch) > office.map(|o| o.epoch)) => continue,
            };
            match attempt {
                Ok((at, ack)) => {
                    let writer = office.map_or(self.edge.0, |o| o.node);
                    return Ok(Receipt { at, ack, writer, forwarded: writer != self.edge.0 });
                }
                Err(CommitError::NotWriter | CommitError::LostOffice) if Instant::now() < batch.deadline => {
                    tokio::select! {
                        _ = view.changed() => pause = RETRY.0,
                        () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY.1),
                    }
                }
                Err(error) => return Err(outcome(error, sent, office, started.elapsed())),
            }
        }
    }

    /// One attempt in one office. `sent` is the newest office in whose log the batch may be without
    /// a word about it; it stays when the future is dropped half-way.
    async fn attempt(
        &self,
        office: Option<Office>,
        batch: &Batch,
        sent: &mut Option<Epoch>,
    ) -> Result<(Lsn, AckLevel), CommitError> {
        let Some(office) = office else { return Err(CommitError::NotWriter) };
        let before = *sent;
        let answer = if office.node == self.edge.0 {
            let Some(writer) = &self.writer else { return Err(CommitError::NotWriter) };
            *sent = Some(office.epoch);
            writer.commit(office.epoch, batch.clone()).await
        } else {
            let Ok(forwarding) = Forwarding::open(&self.mesh, office).await else {
                return Err(CommitError::NotWriter);
            };
            *sent = Some(office.epoch);
            let began = Instant::now();
            let forwarded = self.writer.as_ref().map(|writer| &writer.replica.forwarded);
            let kept = forwarded.is_some_and(|forwarded| forwarded.keep(&batch.key, &batch.payload));
            let answer = forwarding.exchange(batch, kept).await;
            if kept && answer.as_ref().is_ok_and(|answer| self.comes_no_more(answer)) {
                forwarded.inspect(|forwarded| forwarded.forget(&batch.key));
            }
            if answer.is_ok() {
                self.answers.observe_duration(began.elapsed());
            }
            answer.unwrap_or_else(|reason| {
                tracing::debug!(writer = %office.node, %reason, "forwarded write unanswered");
                Err(CommitError::LostOffice)
            })
        };
        if !matches!(answer, Err(CommitError::LostOffice | CommitError::Unknown(_))) {
            *sent = before;
        }
        answer
    }

    /// True if no record of the batch is on its way to this node: it is refused, or here already.
    fn comes_no_more(&self, answer: &Result<(Lsn, AckLevel), CommitError>) -> bool {
        match answer {
            Ok((at, _)) => self.writer.as_ref().is_some_and(|writer| writer.replica.wal.end() >= *at),
            Err(error) => !matches!(error, CommitError::LostOffice | CommitError::Unknown(_)),
        }
    }

    fn number(&self, write: &Write, deadline: Instant) -> Batch {
        let mut also = None;
        let key = match write.key {
            Some(ClientKey { key, former, body }) => {
                let all_know = self.view.borrow().all_have(KEYS_BY_DATABASE);
                // What the log has must be known to the edges of every version, and each asks for what
                // it knows.
                let (key, other) = match former {
                    Some(former) if !all_know => (former, Some(key)),
                    former => (key, former),
                };
                also = other.map(|key| DedupKey::Client { key, body });
                DedupKey::Client { key, body }
            }
            None => DedupKey::Batch(BatchId {
                edge: self.edge.0,
                boot: self.edge.1,
                counter: self.counter.fetch_add(1, Ordering::Relaxed) + 1,
            }),
        };
        Batch {
            key,
            also,
            encoding: write.encoding,
            payload: write.payload.clone(),
            ack: write.ack,
            deadline,
            request: write.request.clone(),
            kept: false,
        }
    }
}

/// What a client is told of the last answer, which came from `office`. `sent`: the newest office in
/// whose log the batch may be.
///
/// What an office refuses that has opened is in no log that counts: it would have known the batch, and
/// what only a former office has is cut. But an earlier question to this very office may still be
/// under way to it, and be let in after this refusal.
fn outcome(error: CommitError, sent: Option<Epoch>, office: Option<Office>, waited: Duration) -> SubmitError {
    let under_way = sent.is_some() && sent == office.map(|office| office.epoch);
    match error {
        CommitError::SchemaChanged(schema) => SubmitError::SchemaChanged(schema),
        CommitError::Invalid(reason) => SubmitError::Invalid(reason),
        CommitError::KeyReused => SubmitError::KeyReused,
        CommitError::Full | CommitError::Busy if under_way => SubmitError::Unknown(None),
        CommitError::Full => SubmitError::Full,
        CommitError::Busy => SubmitError::WriterBusy,
        CommitError::Unknown(Some(progress)) => SubmitError::Unknown(Some(progress)),
        CommitError::NotWriter | CommitError::LostOffice | CommitError::Unknown(None) if sent.is_some() => {
            SubmitError::Unknown(None)
        }
        CommitError::NotWriter | CommitError::LostOffice | CommitError::Unknown(None) => {
            SubmitError::NoWriter { waited }
        }
    }
}
