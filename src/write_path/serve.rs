//! The writer's end of a forwarded write. It commits here or not at all: the hop limit is one.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::{
    protocol::{
        forward::{ForwardRequest, ForwardResponse},
        frame::{MAX_MESSAGE, MAX_PAYLOAD},
    },
    replication::Replica,
    transport::{Handler, Peer, Stream, StreamError},
    wal::DedupKey,
};

use super::commit::{Batch, CommitError, Writer};

/// Longest wait that an edge may ask for.
const LONGEST: Duration = Duration::from_secs(60);

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
        let request: ForwardRequest = stream.recv.read_message(MAX_MESSAGE).await?;
        let payload = stream.recv.read_frame(MAX_PAYLOAD).await?;
        let refused = if own_key(&request.key, peer) {
            // An edge with a bug must not put into the log what no replica can apply.
            self.writer.validate(request.encoding, &payload).err()
        } else {
            Some("the batch id names another edge".to_owned())
        };
        let response = if refused.is_none() {
            let wait = Duration::from_millis(request.timeout_ms.into()).min(LONGEST);
            let batch = Batch {
                key: request.key,
                encoding: request.encoding,
                payload,
                ack: request.ack,
                deadline: Instant::now() + wait,
            };
            match self.writer.commit(request.epoch, batch).await {
                Ok((at, ack)) => ForwardResponse::Written { at, ack },
                Err(error) => self.refusal(error),
            }
        } else {
            ForwardResponse::Invalid { reason: refused.unwrap_or_default() }
        };
        stream.send.write_message(&response).await?;
        stream.send.finish()
    }

    fn refusal(&self, error: CommitError) -> ForwardResponse {
        match error {
            CommitError::NotWriter => ForwardResponse::NotWriter { epoch: self.replica.fence.promised() },
            CommitError::LostOffice => ForwardResponse::LostOffice,
            CommitError::SchemaChanged(schema) => ForwardResponse::SchemaChanged { schema: schema.to_vec() },
            CommitError::Invalid(reason) => ForwardResponse::Invalid { reason },
            CommitError::Full => ForwardResponse::Full,
            CommitError::KeyReused => ForwardResponse::KeyReused,
            CommitError::Unknown => ForwardResponse::Unknown,
        }
    }
}

/// A batch id may only name the edge it comes from, by the identity of its connection.
fn own_key(key: &DedupKey, peer: &Peer) -> bool {
    match key {
        DedupKey::Batch(id) => id.edge == peer.node(),
        DedupKey::Client { .. } => true,
    }
}
