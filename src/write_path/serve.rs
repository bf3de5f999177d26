//! The writer's end of a forwarded write. It commits here or not at all: the hop limit is one.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::{
    protocol::{
        forward::{AckLevel, ForwardRequest, ForwardResponse},
        frame::{MAX_MESSAGE, MAX_PAYLOAD},
        request_id::RequestId,
    },
    replication::Replica,
    transport::{Handler, Peer, Stream, StreamError},
    types::Lsn,
    wal::DedupKey,
};

use super::{
    commit::{Batch, CommitError, Writer},
    policy,
};

/// Longest wait that an edge may ask for: the longest that its clients may.
const LONGEST: Duration = Duration::from_secs(600);

/// Handles `Forward` streams.
#[derive(Debug, Clone)]
pub struct ForwardHandler {
    /// Commits.
    pub writer: Arc<Writer>,
    /// Names the epoch in refusals.
    pub replica: Arc<Replica>,
}

impl Handler for ForwardHandler {
    fn handle(&self, peer: Peer, stream: Stream) -> BoxFuture<'static, ()> {
        let this = self.clone();
        Box::pin(async move {
            if let Err(error) = this.serve(&peer, stream).await {
                tracing::debug!(edge = %peer.node(), %error, "forwarded write ended");
            }
        })
    }
}

impl ForwardHandler {
    async fn serve(&self, peer: &Peer, mut stream: Stream) -> Result<(), StreamError> {
        let request = stream.recv.read_message::<ForwardRequest>(MAX_MESSAGE).await;
        let payload = stream.recv.read_frame(MAX_PAYLOAD).await?;
        let response = match request {
            Ok(request) => self.answer(peer, request, payload).await,
            // Of a later version, about a level or a kind of key that this one has not.
            Err(StreamError::Decode(error)) => ForwardResponse::Invalid {
                reason: format!("the writer's version does not know what this write asks for ({error})"),
            },
            Err(error) => return Err(error),
        };
        stream.send.write_message(&response).await?;
        stream.send.finish()
    }

    async fn answer(&self, peer: &Peer, request: ForwardRequest, payload: Bytes) -> ForwardResponse {
        if !own_key(&request.key, peer) || !request.also.is_none_or(|key| own_key(&key, peer)) {
            return ForwardResponse::Invalid { reason: "the batch id names another edge".to_owned() };
        }
        // It brings points in. What is done to databases as a whole a node with data asks for, once it
        // has seen an admin token.
        if request.encoding == policy::ENCODING && self.replica.view.borrow().is_gateway(peer.node()) {
            return ForwardResponse::Invalid { reason: "a gateway changes no database".to_owned() };
        }
        // An edge with a bug must not put into the log what no replica can apply.
        if let Err(reason) = self.writer.validate(request.encoding, &payload) {
            return ForwardResponse::Invalid { reason };
        }
        let wait = Duration::from_millis(request.timeout_ms.into()).min(LONGEST);
        let batch = Batch {
            key: request.key,
            also: request.also,
            encoding: request.encoding,
            payload,
            ack: request.ack,
            deadline: Instant::now() + wait,
            request: None,
            kept: request.kept,
        };
        let done = self.writer.commit(request.epoch, batch).await;
        if let Some(id) = &request.request {
            log(id, peer, &done);
        }
        match done {
            Ok((at, ack)) => ForwardResponse::Written { at, ack },
            Err(error) => self.refusal(error),
        }
    }

    fn refusal(&self, error: CommitError) -> ForwardResponse {
        match error {
            CommitError::NotWriter => ForwardResponse::NotWriter { epoch: self.replica.fence.promised() },
            CommitError::LostOffice => ForwardResponse::LostOffice,
            CommitError::SchemaChanged(schema) => ForwardResponse::SchemaChanged { schema: schema.to_vec() },
            CommitError::Invalid(reason) => ForwardResponse::Invalid { reason },
            CommitError::Full => ForwardResponse::Full,
            CommitError::KeyReused => ForwardResponse::KeyReused,
            CommitError::Busy => ForwardResponse::Busy,
            CommitError::Unknown(None) => ForwardResponse::Unknown,
            CommitError::Unknown(Some(progress)) => ForwardResponse::Unreached(progress),
        }
    }
}

/// The writer's line of a request that another edge took.
fn log(id: &RequestId, edge: &Peer, done: &Result<(Lsn, AckLevel), CommitError>) {
    let (edge, told) = (edge.node(), id.is_worth_a_line());
    match done {
        Ok((at, ack)) if told => tracing::info!(request = %id, %edge, %at, %ack, "wrote what was forwarded"),
        Ok((at, ack)) => tracing::debug!(request = %id, %edge, %at, %ack, "wrote what was forwarded"),
        Err(error) if told => {
            tracing::info!(request = %id, %edge, %error, "did not write what was forwarded")
        }
        Err(error) => tracing::debug!(request = %id, %edge, %error, "did not write what was forwarded"),
    }
}

/// A batch id may only name the edge it comes from, by the identity of its connection.
fn own_key(key: &DedupKey, peer: &Peer) -> bool {
    match key {
        DedupKey::Batch(id) => id.edge == peer.node(),
        DedupKey::Client { .. } => true,
    }
}
