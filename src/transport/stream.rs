//! One stream of a link: frames and messages, every length checked before it means anything.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use quinn::VarInt;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    close::Closed,
    lanes::{PIECE, Pacer, Sample, paced},
    traffic::LaneBytes,
};
use crate::protocol::{
    DecodeError, Lane,
    frame::{self, StreamHeader},
};

/// Code a stream is reset or stopped with when its work is abandoned.
const ABANDONED: VarInt = VarInt::from_u32(1);
/// Code a stream of a kind nobody here serves is refused with.
pub(super) const NOT_SERVED: VarInt = VarInt::from_u32(2);

/// A stream that did not carry what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer ended the stream at a frame boundary.
    #[error("the peer ended the stream")]
    Finished,
    /// The peer ended the stream within a frame.
    #[error("the peer ended the stream within a frame")]
    Truncated,
    /// The peer abandoned the stream.
    #[error("the peer abandoned the stream")]
    Abandoned,
    /// The peer does not serve this kind of stream: an older or newer version, or another role.
    #[error("the peer does not serve this kind of stream")]
    NotServed,
    /// The connection ended.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// Too long or malformed.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Already finished or reset on this side.
    #[error("the stream is already finished on this side")]
    Ended,
}

impl StreamError {
    fn from_code(code: VarInt) -> Self {
        if code == NOT_SERVED { Self::NotServed } else { Self::Abandoned }
    }
}

/// Both directions of a stream.
#[derive(Debug)]
pub struct Stream {
    /// To the peer.
    pub send: SendStream,
    /// From the peer.
    pub recv: RecvStream,
}

impl Stream {
    /// Wraps an accepted or opened stream. `used` counts live handles of the connection.
    pub(super) fn new(
        (send, recv): (quinn::SendStream, quinn::RecvStream),
        conn: &quinn::Connection,
        pacer: &Arc<Pacer>,
        sent: &[LaneBytes; 2],
        used: &Arc<()>,
    ) -> Self {
        let send = SendStream {
            inner: send,
            conn: conn.clone(),
            pacer: pacer.clone(),
            lane: Lane::Request,
            sent: sent.clone(),
            _used: used.clone(),
        };
        let recv = RecvStream { inner: recv, budget: None, partial: Partial::default(), _used: used.clone() };
        Self { send, recv }
    }

    /// Turns the stream down: its opener reads [`StreamError::NotServed`].
    pub fn refuse(mut self) {
        // Either fails only for a stream that is gone already.
        let _ = self.send.inner.reset(NOT_SERVED);
        let _ = self.recv.inner.stop(NOT_SERVED);
    }

    /// Writes one message, ends this direction and reads one message of at most `limit` bytes.
    pub async fn exchange<Q, A>(&mut self, message: &Q, limit: usize) -> Result<A, StreamError>
    where
        Q: Serialize,
        A: DeserializeOwned,
    {
        self.send.write_message(message).await?;
        self.send.finish()?;
        self.recv.read_message(limit).await
    }
}

/// The sending direction. Dropping it ends it as [`SendStream::finish`] does; a frame cut short by
/// that is an error at the peer.
pub struct SendStream {
    inner: quinn::SendStream,
    conn: quinn::Connection,
    pacer: Arc<Pacer>,
    lane: Lane,
    /// Counters of the connection and of the mesh.
    sent: [LaneBytes; 2],
    _used: Arc<()>,
}

impl std::fmt::Debug for SendStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SendStream({}, {:?})", self.inner.id(), self.lane)
    }
}

impl SendStream {
    /// Writes a message as one frame. Not cancel-safe: a cancelled write leaves half a frame.
    pub async fn write_message<T: Serialize>(&mut self, message: &T) -> Result<(), StreamError> {
        self.write_frame(frame::encode(message)).await
    }

    /// Writes one frame. Not cancel-safe.
    pub async fn write_frame(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        self.write_parts(vec![prefix(bytes.len())?, bytes]).await
    }

    /// Writes a message and, behind it, a frame made of `parts`, which are not copied. On a lane that is not
    /// paced both are handed over together, so that they can share a packet. [`StreamError::Decode`] if one of
    /// them is over [`frame::MAX_RECORDS`]: nothing of either is sent then. Not cancel-safe.
    pub async fn write_message_and_parts<T: Serialize>(
        &mut self,
        message: &T,
        mut parts: Vec<Bytes>,
    ) -> Result<(), StreamError> {
        let message = frame::encode(message);
        let len = parts.iter().map(Bytes::len).sum();
        let front = [prefix(message.len())?, message, prefix(len)?].concat();
        parts.insert(0, front.into());
        self.write_parts(parts).await
    }

    async fn write_parts(&mut self, mut parts: Vec<Bytes>) -> Result<(), StreamError> {
        if !paced(self.lane) {
            let len = parts.iter().map(Bytes::len).sum();
            self.inner.write_all_chunks(&mut parts).await.map_err(write_error)?;
            self.note_sent(len);
            return Ok(());
        }
        for mut part in parts {
            while !part.is_empty() {
                let piece = part.split_to(part.len().min(PIECE));
                let conn = &self.conn;
                let bytes = piece.len();
                self.pacer.take(bytes, || sample(conn)).await;
                self.inner.write_chunk(piece).await.map_err(write_error)?;
                self.note_sent(bytes);
            }
        }
        Ok(())
    }

    fn note_sent(&self, bytes: usize) {
        self.sent.iter().for_each(|sent| sent.add(self.lane, bytes));
    }

    pub(super) async fn write_header(&mut self, header: StreamHeader) -> Result<(), StreamError> {
        self.inner.write_all(&header.encode()).await.map_err(write_error)
    }

    /// Moves what is written from now on to another lane.
    pub fn set_lane(&mut self, lane: Lane) {
        self.lane = lane;
        // Fails only for a stream that is already gone, where priority means nothing.
        let _ = self.inner.set_priority(lane.priority());
    }

    /// Says that nothing more comes. What was written is still delivered.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.inner.finish().map_err(|_| StreamError::Ended)
    }

    /// Resolves when the peer has received everything after [`SendStream::finish`], or wants no
    /// more. Cancel-safe.
    pub async fn delivered(&self) -> Result<(), StreamError> {
        match self.inner.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) => Err(StreamError::from_code(code)),
            Err(quinn::StoppedError::ConnectionLost(error)) => Err(Closed::from(error).into()),
            Err(quinn::StoppedError::ZeroRttRejected) => Err(StreamError::Ended),
        }
    }

    /// Abandons the stream: what the peer has not read yet is lost.
    pub fn abandon(&mut self) {
        let _ = self.inner.reset(ABANDONED);
    }
}

/// The receiving direction. Dropping it before the end tells the peer to stop.
pub struct RecvStream {
    inner: quinn::RecvStream,
    /// Bytes that may still come, for those who are not admitted.
    budget: Option<usize>,
    partial: Partial,
    _used: Arc<()>,
}

impl std::fmt::Debug for RecvStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecvStream({})", self.inner.id())
    }
}

/// A frame of which some bytes have arrived; kept here so that reading is cancel-safe.
#[derive(Default)]
struct Partial {
    prefix: [u8; 4],
    prefix_len: usize,
    body: BytesMut,
}

impl Partial {
    /// Adds bytes of the body, of which so many are missing. It never has room for more than the frame: as a record's
    /// payload it may stay in memory, and only its bytes count there.
    fn take(&mut self, chunk: &[u8], missing: usize) {
        let has = self.body.len();
        if has + chunk.len() > self.body.capacity() {
            let room = has + missing.min(has.max(chunk.len()));
            let mut longer = BytesMut::with_capacity(room);
            longer.extend_from_slice(&self.body);
            self.body = longer;
        }
        self.body.extend_from_slice(chunk);
    }
}

impl RecvStream {
    /// Reads one frame of at most `limit` bytes. [`StreamError::Finished`] when the peer has ended
    /// the stream. Cancel-safe. Memory is taken as bytes arrive, never for what is only announced.
    pub async fn read_frame(&mut self, limit: usize) -> Result<Bytes, StreamError> {
        let len = self.read_prefix(limit).await?;
        while self.partial.body.len() < len {
            let missing = len - self.partial.body.len();
            let Some(chunk) = self.read_chunk(missing).await? else { return Err(StreamError::Truncated) };
            if chunk.len() == len {
                // The whole frame in one piece needs no copy.
                self.partial = Partial::default();
                return Ok(chunk);
            }
            self.partial.take(&chunk, missing);
        }
        Ok(std::mem::take(&mut self.partial).body.freeze())
    }

    /// Reads one frame and decodes it. Cancel-safe.
    pub async fn read_message<T: DeserializeOwned>(&mut self, limit: usize) -> Result<T, StreamError> {
        let bytes = self.read_frame(limit).await?;
        Ok(frame::decode(&bytes, limit)?)
    }

    /// Tells the peer to stop sending.
    pub fn stop(&mut self) {
        let _ = self.inner.stop(ABANDONED);
    }

    pub(super) fn limit_to(&mut self, bytes: usize) {
        self.budget = Some(bytes);
    }

    async fn read_prefix(&mut self, limit: usize) -> Result<usize, StreamError> {
        while self.partial.prefix_len < 4 {
            let Some(chunk) = self.read_chunk(4 - self.partial.prefix_len).await? else {
                let clean = self.partial.prefix_len == 0;
                return Err(if clean { StreamError::Finished } else { StreamError::Truncated });
            };
            let free = self.partial.prefix.iter_mut().skip(self.partial.prefix_len);
            for (to, from) in free.zip(&chunk) {
                *to = *from;
            }
            self.partial.prefix_len += chunk.len();
        }
        let len = frame::frame_len(self.partial.prefix, limit)?;
        if len == 0 {
            self.partial = Partial::default();
            return Ok(0);
        }

        Ok(len)
    }

    async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, StreamError> {
        let chunk = self.inner.read_chunk(max, true).await.map_err(read_error)?.map(|c| c.bytes);
        if let (Some(budget), Some(bytes)) = (&mut self.budget, &chunk) {
            *budget = budget
                .checked_sub(bytes.len())
                .ok_or(DecodeError::TooLong(frame::MAX_JOIN + 1, frame::MAX_JOIN))?;
        }
        Ok(chunk)
    }
}

/// Reads the header of a stream just accepted.
pub(super) async fn read_header(recv: &mut quinn::RecvStream) -> Result<StreamHeader, StreamError> {
    let mut bytes = [0; StreamHeader::LEN];
    recv.read_exact(&mut bytes).await.map_err(|error| match error {
        quinn::ReadExactError::FinishedEarly(0) => StreamError::Finished,
        quinn::ReadExactError::FinishedEarly(_) => StreamError::Truncated,
        quinn::ReadExactError::ReadError(error) => read_error(error),
    })?;
    Ok(StreamHeader::decode(bytes)?)
}

/// What stands before a frame of that length.
fn prefix(len: usize) -> Result<Bytes, StreamError> {
    if len > frame::MAX_RECORDS {
        return Err(DecodeError::TooLong(len, frame::MAX_RECORDS).into());
    }
    Ok(Bytes::copy_from_slice(&(len as u32).to_be_bytes()))
}

fn sample(conn: &quinn::Connection) -> Sample {
    let stats = conn.stats();
    Sample { rtt: stats.path.rtt, min_rtt: stats.path.min_rtt, sent: stats.udp_tx.bytes }
}

fn write_error(error: quinn::WriteError) -> StreamError {
    match error {
        quinn::WriteError::Stopped(code) => StreamError::from_code(code),
        quinn::WriteError::ConnectionLost(error) => Closed::from(error).into(),
        quinn::WriteError::ClosedStream | quinn::WriteError::ZeroRttRejected => StreamError::Ended,
    }
}

fn read_error(error: quinn::ReadError) -> StreamError {
    match error {
        quinn::ReadError::Reset(code) => StreamError::from_code(code),
        quinn::ReadError::ConnectionLost(error) => Closed::from(error).into(),
        _ => StreamError::Ended,
    }
}
