//! The edge's end of a forwarded write: one stream, one request, one answer.

use tokio::time::Instant;

use crate::{
    protocol::{
        Lane, StreamKind,
        forward::{AckLevel, ForwardRequest, ForwardResponse},
        frame::MAX_RAFT,
    },
    transport::{Mesh, StreamError},
    types::{Lsn, Office},
};

use super::commit::{Batch, CommitError};

/// Why there is no answer.
#[derive(Debug)]
pub enum ForwardError {
    /// Not a byte left this node.
    NotSent(String),
    /// The batch may have arrived.
    Unanswered(String),
}

/// Sends a batch to the writer and waits for its answer, without a bound of its own: the caller
/// stops waiting when its deadline passes or a later epoch appears.
pub async fn forward(
    mesh: &Mesh,
    office: Office,
    batch: &Batch,
) -> Result<Result<(Lsn, AckLevel), CommitError>, ForwardError> {
    let opened = mesh.open(office.node, StreamKind::Forward, Lane::Request).await;
    let mut stream = opened.map_err(|e| ForwardError::NotSent(e.to_string()))?;
    let left = batch.deadline.saturating_duration_since(Instant::now());
    let request = ForwardRequest {
        epoch: office.epoch,
        key: batch.key,
        ack: batch.ack,
        encoding: batch.encoding,
        timeout_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
    };
    let exchange = async {
        stream.send.write_message(&request).await?;
        stream.send.write_frame(batch.payload.clone()).await?;
        stream.send.finish()?;
        stream.recv.read_message::<ForwardResponse>(MAX_RAFT).await
    };
    let response = exchange.await.map_err(|e: StreamError| ForwardError::Unanswered(e.to_string()))?;
    Ok(match response {
        ForwardResponse::Written { at, ack } => Ok((at, ack)),
        ForwardResponse::NotWriter { .. } => Err(CommitError::NotWriter),
        ForwardResponse::LostOffice => Err(CommitError::LostOffice),
        ForwardResponse::SchemaChanged { schema } => Err(CommitError::SchemaChanged(schema.into())),
        ForwardResponse::Invalid { reason } => Err(CommitError::Invalid(reason)),
        ForwardResponse::Full => Err(CommitError::Full),
        ForwardResponse::KeyReused => Err(CommitError::KeyReused),
        ForwardResponse::Unknown => Err(CommitError::Unknown),
    })
}
