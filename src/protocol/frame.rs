//! Stream headers, length-prefixed frames, and every limit on what a peer may send.
//!
//! A stream starts with [`StreamHeader`]: 4 bytes. After it come frames: a 4-byte big-endian
//! length, then that many bytes. Messages are rmp-serde maps with named fields, so that unknown
//! fields are ignored and versions can mix; bulk payloads are raw bytes in frames of their own.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// The ALPN protocol of the mesh: the major version of everything below it.
pub const ALPN: &[u8] = b"skein/1";

/// Longest control message (hello, votes, acks, status, join).
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Longest raft message: append entries, or a chunk of a raft snapshot.
pub const MAX_RAFT: usize = 16 * 1024 * 1024;
/// Longest payload of one record, and so of one forwarded batch.
pub const MAX_PAYLOAD: usize = 32 * 1024 * 1024;
/// Longest frame of records on a replication stream: one record of the largest payload, or many
/// small ones.
pub const MAX_RECORDS: usize = MAX_PAYLOAD + 64 * 1024;
/// All that a stranger may send on its one stream.
pub const MAX_JOIN: usize = 64 * 1024;
/// Bytes of a chunk of an engine snapshot.
pub const MAX_CHUNK: usize = 1024 * 1024;
/// Levels of maps, arrays, variants and options within each other in a message. A message that can hold
/// itself (a relayed join request) would otherwise be read as deep as a stranger likes, on a stack that
/// is not so deep; the deepest of ours has about a dozen.
pub const MAX_DEPTH: usize = 64;

/// What a stream is for. The number is on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum StreamKind {
    /// First stream of a link: ids and boot ids.
    Hello = 1,
    /// Raft RPCs.
    Raft = 2,
    /// WAL replication: the follower subscribes, the writer sends.
    Append = 3,
    /// A write on its way to the writer.
    Forward = 4,
    /// A stranger or lapsed member asks to be let in.
    Join = 5,
    /// The cluster view, for members that are not in raft.
    View = 6,
    /// An engine snapshot.
    Snapshot = 7,
    /// Positions and health of a node.
    Status = 8,
    /// Promise an epoch and report the last durable position.
    Seal = 9,
    /// Read index: asks the writer, and the writer its voters.
    Read = 10,
    /// Control commands for the raft leader (members, tokens, addresses).
    Control = 11,
    /// A client's request, from a gateway to a node with data.
    Http = 12,
    /// A protocol of an embedder's own, named in the first frame: see [`super::custom`].
    Custom = 13,
}

impl StreamKind {
    /// Every kind, for tables and tests.
    pub const ALL: [Self; 13] = [
        Self::Hello,
        Self::Raft,
        Self::Append,
        Self::Forward,
        Self::Join,
        Self::View,
        Self::Snapshot,
        Self::Status,
        Self::Seal,
        Self::Read,
        Self::Control,
        Self::Http,
        Self::Custom,
    ];

    /// Its name, as in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Raft => "raft",
            Self::Append => "append",
            Self::Forward => "forward",
            Self::Join => "join",
            Self::View => "view",
            Self::Snapshot => "snapshot",
            Self::Status => "status",
            Self::Seal => "seal",
            Self::Read => "read",
            Self::Control => "control",
            Self::Http => "http",
            Self::Custom => "custom",
        }
    }

    /// The kind with this number on the wire.
    pub fn from_wire(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    /// The lane its streams use unless the opener says otherwise.
    pub const fn lane(self) -> Lane {
        match self {
            Self::Hello | Self::Raft | Self::Seal | Self::Read | Self::View | Self::Status => Lane::Consensus,
            Self::Forward | Self::Join | Self::Control => Lane::Request,
            Self::Append => Lane::Live,
            // Answers of queries, and what an embedder sends, may be long: they hold up neither the
            // log nor a write.
            Self::Http | Self::Custom => Lane::CatchUp,
            Self::Snapshot => Lane::Bulk,
        }
    }
}

/// Priority lanes of one connection. Priority orders only what still sits in the sender's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Raft votes and heartbeats, seals, read confirmations.
    Consensus,
    /// Forwarded requests and WAL acks.
    Request,
    /// Live WAL.
    Live,
    /// WAL a follower catches up on, and answers of queries.
    CatchUp,
    /// Snapshots.
    Bulk,
}

impl Lane {
    /// Every lane, the most urgent first.
    pub const ALL: [Self; 5] = [Self::Consensus, Self::Request, Self::Live, Self::CatchUp, Self::Bulk];

    /// Its name, as in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Consensus => "consensus",
            Self::Request => "request",
            Self::Live => "live",
            Self::CatchUp => "catch-up",
            Self::Bulk => "bulk",
        }
    }

    /// The QUIC stream priority of the lane.
    pub const fn priority(self) -> i32 {
        match self {
            Self::Consensus => 100,
            Self::Request => 80,
            Self::Live => 60,
            Self::CatchUp => 40,
            Self::Bulk => 20,
        }
    }
}

/// First four bytes of every stream: kind, protocol version of that kind, two zero bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamHeader {
    /// What the stream is for.
    pub kind: StreamKind,
    /// Version of the messages on it.
    pub version: u8,
}

impl StreamHeader {
    /// Length on the wire.
    pub const LEN: usize = 4;

    /// The bytes on the wire.
    pub const fn encode(self) -> [u8; Self::LEN] {
        [self.kind as u8, self.version, 0, 0]
    }

    /// Reads a header; unknown kinds and non-zero reserved bytes are errors.
    pub fn decode(bytes: [u8; Self::LEN]) -> Result<Self, DecodeError> {
        let kind = StreamKind::from_wire(bytes[0]).ok_or(DecodeError::UnknownKind(bytes[0]))?;
        if bytes[2..] != [0, 0] {
            return Err(DecodeError::Malformed("reserved header bytes are not zero".into()));
        }
        Ok(Self { kind, version: bytes[1] })
    }
}

/// Bytes from a peer that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No such stream kind.
    #[error("unknown stream kind {0}")]
    UnknownKind(u8),
    /// A declared length is over its limit; nothing was allocated for it.
    #[error("frame of {0} bytes, limit {1}")]
    TooLong(usize, usize),
    /// Not a message of the expected form.
    #[error("malformed message: {0}")]
    Malformed(String),
}

/// Encodes a message as an rmp-serde map with named fields.
pub fn encode<T: Serialize>(message: &T) -> Bytes {
    let mut bytes = Vec::with_capacity(128);
    // Writing to a Vec fails only for values serde cannot express; the message types have none,
    // which the round-trip tests show.
    if let Err(error) = rmp_serde::encode::write_named(&mut bytes, message) {
        debug_assert!(false, "message does not encode: {error}");
    }
    bytes.into()
}

/// Decodes a message of at most `limit` bytes and [`MAX_DEPTH`] levels.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, DecodeError> {
    if bytes.len() > limit {
        return Err(DecodeError::TooLong(bytes.len(), limit));
    }
    let mut decoder = rmp_serde::Deserializer::from_read_ref(bytes);
    decoder.set_max_depth(MAX_DEPTH);
    T::deserialize(&mut decoder).map_err(|e| DecodeError::Malformed(e.to_string()))
}

/// A frame's length prefix, checked against `limit` before anything is allocated.
pub fn frame_len(prefix: [u8; 4], limit: usize) -> Result<usize, DecodeError> {
    let len = u32::from_be_bytes(prefix) as usize;
    if len > limit { Err(DecodeError::TooLong(len, limit)) } else { Ok(len) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip_and_refuse_what_they_do_not_know() {
        for kind in StreamKind::ALL {
            let header = StreamHeader { kind, version: 1 };
            assert_eq!(StreamHeader::decode(header.encode()), Ok(header));
        }
        assert_eq!(StreamHeader::decode([0, 1, 0, 0]), Err(DecodeError::UnknownKind(0)));
        assert!(StreamHeader::decode([1, 1, 0, 7]).is_err());
    }

    /// The example of docs/wire.md.
    #[test]
    fn a_message_is_a_map_with_the_names_of_its_fields() {
        let seal = crate::protocol::replication::Seal { epoch: 7, term: 3, resigned: None };
        let bytes = encode(&seal);
        assert_eq!(&bytes[..], b"\x83\xa5epoch\x07\xa4term\x03\xa8resigned\xc0");
        assert_eq!(bytes.len(), 24);
        // A version that knows more says more: what is not known here is skipped.
        let newer = b"\x84\xa5epoch\x07\xa4term\x03\xa8resigned\xc0\xa5later\x01";
        assert_eq!(decode::<crate::protocol::replication::Seal>(newer, 64), Ok(seal));
    }

    #[test]
    fn lengths_are_checked_before_they_mean_anything() {
        assert_eq!(frame_len([0, 0, 1, 0], 256), Ok(256));
        assert_eq!(frame_len([255; 4], 256), Err(DecodeError::TooLong(u32::MAX as usize, 256)));
    }

    /// Within what a stranger may send a stack can be filled: it must not be tried.
    #[test]
    fn a_message_within_itself_without_end_is_refused() {
        use crate::protocol::join::JoinRequest;
        let relayed = b"\x81\xa7Relayed\x83\xa7request";
        for times in [MAX_DEPTH, 500, MAX_JOIN / relayed.len()] {
            let refused = decode::<JoinRequest>(&relayed.repeat(times), MAX_JOIN);
            let said = refused.as_ref().map_err(DecodeError::to_string);
            assert!(said.as_ref().is_err_and(|said| said.contains("depth")), "{times}: {said:?}");
        }
    }
}
