//! The edge's end of a forwarded write: one stream, one request, one answer.

use tokio::time::{Duration, Instant};

use crate::{
    protocol::{
        Lane, StreamKind,
        forward::{AckLevel, ForwardRequest, ForwardResponse, Progress},
        frame::MAX_RAFT,
    },
    transport::{Mesh, OpenError, Stream, StreamError},
    types::{Lsn, Office},
};

use super::commit::{Batch, CommitError};

/// How long before the edge gives up the writer does, at most: by then its last word, which says
/// how far the write got, is here.
const LAST_WORD: Duration = Duration::from_millis(100);

/// A stream to the writer on which nothing has been sent.
#[derive(Debug)]
pub struct Forwarding {
    office: Office,
    stream: Stream,
}

impl Forwarding {
    /// Opens a stream to whoever is in that office. Not a byte of a batch leaves this node.
    pub async fn open(mesh: &Mesh, office: Office) -> Result<Self, OpenError> {
        let stream = mesh.open(office.node, StreamKind::Forward, Lane::Request).await?;
        Ok(Self { office, stream })
    }

    /// Sends the batch and waits for the answer, without a bound of its own: the caller stops
    /// waiting when its deadline passes or a later epoch appears. After an error, or when the
    /// future is dropped, the batch may have arrived. `kept`: the payload is, until the batch comes
    /// back in the log.
    pub async fn exchange(
        mut self,
        batch: &Batch,
        kept: bool,
    ) -> Result<Result<(Lsn, AckLevel), CommitError>, StreamError> {
        let left = batch.deadline.saturating_duration_since(Instant::now());
        let left = left - LAST_WORD.min(left / 8);
        let request = ForwardRequest {
            epoch: self.office.epoch,
            key: batch.key,
            also: batch.also,
            ack: batch.ack,
            encoding: batch.encoding,
            timeout_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
            request: batch.request.clone(),
            kept,
        };
        self.stream.send.write_message(&request).await?;
        self.stream.send.write_frame(batch.payload.clone()).await?;
        self.stream.send.finish()?;
        let response = self.stream.recv.read_message::<ForwardResponse>(MAX_RAFT).await?;
        Ok(judge(response, batch.ack))
    }
}

fn judge(response: ForwardResponse, asked: Option<AckLevel>) -> Result<(Lsn, AckLevel), CommitError> {
    match response {
        // A lower level than the one asked for is not what was asked for, whoever answers so.
        ForwardResponse::Written { at, ack } => match asked.filter(|asked| ack < *asked) {
            Some(asked) => Err(CommitError::Unknown(Some(Progress { at, asked, reached: ack }))),
            None => Ok((at, ack)),
        },
        ForwardResponse::NotWriter { .. } => Err(CommitError::NotWriter),
        ForwardResponse::LostOffice => Err(CommitError::LostOffice),
        ForwardResponse::SchemaChanged { schema } => Err(CommitError::SchemaChanged(schema.into())),
        ForwardResponse::Invalid { reason } => Err(CommitError::Invalid(reason)),
        ForwardResponse::Full => Err(CommitError::Full),
        ForwardResponse::Busy => Err(CommitError::Busy),
        ForwardResponse::KeyReused => Err(CommitError::KeyReused),
        ForwardResponse::Unknown => Err(CommitError::Unknown(None)),
        ForwardResponse::Unreached(progress) => Err(CommitError::Unknown(Some(progress))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_level_is_no_acknowledgement() {
        let at = Lsn::new(2, 9);
        let answer = |ack, asked| judge(ForwardResponse::Written { at, ack }, asked);
        let progress = Progress { at, asked: AckLevel::All, reached: AckLevel::Quorum };
        assert_eq!(answer(AckLevel::Quorum, Some(AckLevel::All)), Err(CommitError::Unknown(Some(progress))));
        assert_eq!(answer(AckLevel::Quorum, Some(AckLevel::Quorum)), Ok((at, AckLevel::Quorum)));
        assert_eq!(answer(AckLevel::Local, None), Ok((at, AckLevel::Local)));
    }
}
