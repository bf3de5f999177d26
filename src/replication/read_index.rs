//! Linearizable reads: the writer notes its commit position, then asks a majority whether it
//! still follows this epoch. Only answers to questions sent **after** the read arrived count, and
//! only once the office's own `EpochStart` is committed.

use std::{collections::BTreeSet, sync::Arc};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::Duration;

use crate::{
    protocol::{
        StreamKind,
        frame::MAX_MESSAGE,
        replication::{ReadRequest, ReadResponse},
    },
    transport::{CallError, Handler, Mesh, Peer, Stream},
    types::Lsn,
};

use super::Replica;

/// Answers `Read` streams: the index if this process is the writer, a confirmation if a voter.
#[derive(Debug)]
pub struct ReadIndex {
    replica: Arc<Replica>,
    mesh: Mesh,
    timeout: Duration,
}

/// Why there is no read index.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadIndexError {
    /// This process is not the writer, or its office has not begun to commit.
    #[error("not the writer")]
    NotWriter,
    /// No majority confirmed in time.
    #[error("no majority confirmed the writer")]
    NoQuorum,
    /// The writer could not be asked.
    #[error("the writer could not be asked: {0}")]
    Unreachable(String),
}

impl From<CallError> for ReadIndexError {
    fn from(error: CallError) -> Self {
        Self::Unreachable(error.to_string())
    }
}

impl ReadIndex {
    /// `timeout` bounds the round trip to each voter.
    pub fn new(replica: Arc<Replica>, mesh: Mesh, timeout: Duration) -> Self {
        Self { replica, mesh, timeout }
    }

    /// A position that covers every write acknowledged at `quorum` before the call, asked of the
    /// writer wherever it is.
    pub async fn current(&self) -> Result<Lsn, ReadIndexError> {
        let office = self.replica.view.borrow().writer.ok_or(ReadIndexError::NotWriter)?;
        if office.node == self.replica.node {
            return self.index().await;
        }
        match self.mesh.request(office.node, StreamKind::Read, &ReadRequest::Index, self.timeout).await? {
            ReadResponse::Index(at) => Ok(at),
            _ => Err(ReadIndexError::NotWriter),
        }
    }

    /// The index, on the writer itself.
    async fn index(&self) -> Result<Lsn, ReadIndexError> {
        let tenure = self.replica.tenure().ok_or(ReadIndexError::NotWriter)?;
        let index = self.replica.commit();
        // Model: read_after_epoch_start_commits
        let begun = tenure.has_begun(index);
        #[cfg(feature = "testing")]
        let begun = begun || crate::types::planted::is("read_before_epoch_start");
        if !begun {
            return Err(ReadIndexError::NotWriter);
        }
        #[cfg(feature = "testing")]
        if crate::types::planted::is("read_without_majority") {
            return Ok(index);
        }
        let view = self.replica.view.borrow().clone();
        let mut confirmed = BTreeSet::new();
        if self.replica.fence.promised() <= tenure.epoch {
            confirmed.insert(self.replica.node);
        }
        // Model: confirmed_after_the_question
        let question = ReadRequest::Confirm { epoch: tenure.epoch };
        let mut answers: FuturesUnordered<_> =
            view.all_voters()
                .into_iter()
                .filter(|voter| *voter != self.replica.node)
                .map(|voter| {
                    let question = &question;
                    async move {
                        (voter, self.mesh.request(voter, StreamKind::Read, question, self.timeout).await)
                    }
                })
                .collect();
        // Model: read_confirmed_by_majority
        while !view.is_quorum(&confirmed) {
            match answers.next().await {
                Some((voter, Ok(ReadResponse::Confirmed))) => drop(confirmed.insert(voter)),
                Some(_) => {}
                None => return Err(ReadIndexError::NoQuorum),
            }
        }
        Ok(index)
    }

    fn confirm(&self, epoch: u64) -> ReadResponse {
        let promise = self.replica.fence.promised();
        if promise <= epoch { ReadResponse::Confirmed } else { ReadResponse::Refused { promise } }
    }
}

/// The handler of `Read` streams.
#[derive(Debug, Clone)]
pub struct ReadHandler(pub Arc<ReadIndex>);

impl Handler for ReadHandler {
    fn handle(&self, peer: Peer, mut stream: Stream) -> BoxFuture<'static, ()> {
        let reads = self.0.clone();
        Box::pin(async move {
            let Ok(request) = stream.recv.read_message::<ReadRequest>(MAX_MESSAGE).await else { return };
            let refused = ReadResponse::Refused { promise: reads.replica.fence.promised() };
            let answer = match request {
                ReadRequest::Index => reads.index().await.map_or(refused, ReadResponse::Index),
                // Only the node that the applied state names writer of that epoch may ask.
                ReadRequest::Confirm { epoch } => {
                    let office = reads.replica.view.borrow().writer;
                    let names =
                        office.is_none_or(|o| o.epoch < epoch || (o.epoch == epoch && o.node == peer.node()));
                    if names { reads.confirm(epoch) } else { refused }
                }
            };
            if stream.send.write_message(&answer).await.is_ok() {
                let _ = stream.send.finish();
            }
        })
    }
}
