//! A record: what every replica holds byte for byte ([`Record::raw`]), and its parsed fields.
//!
//! The **replicated part**, little endian, a multiple of 8 bytes long:
//!
//! | at | size | field |
//! |---:|-----:|---|
//! | 0  | 4  | length of the payload in bytes, at most `MAX_PAYLOAD` |
//! | 4  | 1  | kind: 1 Batch, 2 Control, 3 EpochStart, 4 ConfigMark |
//! | 5  | 1  | flags: bits 0-1 = kind of dedup key (0 none, 1 batch id, 2 client key), rest zero |
//! | 6  | 1  | encoding of the payload |
//! | 7  | 1  | zero |
//! | 8  | 8  | epoch |
//! | 16 | 8  | seq |
//! | 24 | 8  | timestamp, signed ns since 1970, the writer's |
//! | 32 | 32 | dedup key: batch id = node 16, boot 8, counter 8; client key = hash of key 16, hash of body 16 |
//! | 64 | 4  | CRC-32C of the payload |
//! | 68 | 4  | chain: CRC-32C of the previous record's replicated part, 0 in the first record |
//! | 72 | n  | payload |
//! |    |    | zeros up to a multiple of 8 |
//!
//! The header has no checksum of its own here: on disk the local part covers it (`segment.rs`),
//! and the next record's chain covers all of it.

mod raw;

use std::fmt;

use bytes::Bytes;
use crc32c::crc32c;

pub use raw::Raw;

use crate::{
    protocol::{
        forward::{BatchId, DedupKey},
        frame::MAX_PAYLOAD,
    },
    types::{BootId, Epoch, Lsn, NodeId},
};

/// Bytes of a replicated part before its payload.
pub const RECORD_HEADER: usize = 72;

/// A payload of so many bytes is not copied behind its header but shared with whoever made it, if its length is a
/// multiple of 8 and there is nothing to pad.
const SHARED_FROM: usize = 4_096;

/// A record of the log; clones share the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// Position.
    pub lsn: Lsn,
    /// What it is for.
    pub kind: RecordKind,
    /// Encoding byte of the payload.
    pub encoding: u8,
    /// The writer's clock when it was made, ns since 1970.
    pub timestamp: i64,
    /// Makes a retry harmless.
    pub key: Option<DedupKey>,
    /// Chain value before this record: CRC-32C of the previous record's replicated part.
    pub chain: u32,
    /// Chain value after it: CRC-32C of `raw`, which the next record carries as its `chain`.
    pub digest: u32,
    /// The replicated part: what goes over the wire.
    pub raw: Raw,
    /// The payload within `raw`.
    pub payload: Bytes,
}

/// A record that has no position yet.
#[derive(Clone, PartialEq, Eq)]
pub struct Draft {
    /// What it is for.
    pub kind: RecordKind,
    /// Encoding byte of the payload.
    pub encoding: u8,
    /// The writer's clock, ns since 1970.
    pub timestamp: i64,
    /// Makes a retry harmless.
    pub key: Option<DedupKey>,
    /// At most `protocol::frame::MAX_PAYLOAD` bytes. The record shares them if they are not few, so what they are a
    /// part of stays in memory as long as it does.
    pub payload: Bytes,
    /// The edge that its batch id names keeps the payload, and can do without it in the record
    /// (`replication/forwarded.rs`). Known only as long as the record is in memory.
    pub kept: bool,
}

/// What a record is for. The number is on disk and on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// Points of a client.
    Batch = 1,
    /// Drop, retention, schema.
    Control = 2,
    /// First record of an epoch.
    EpochStart = 3,
    /// A membership counts from here on.
    ConfigMark = 4,
}

/// Bytes that are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Fewer bytes than the record needs.
    #[error("{have} bytes where a record needs {need}")]
    Short {
        /// Bytes the record needs, as far as is known.
        need: usize,
        /// Bytes there are.
        have: usize,
    },
    /// The declared payload is over its limit; nothing was allocated for it.
    #[error("payload of {0} bytes, limit {MAX_PAYLOAD}")]
    TooLong(usize),
    /// A field has a value that no record has.
    #[error("field {0} has an impossible value")]
    Field(&'static str),
    /// The payload does not match its checksum.
    #[error("payload checksum does not match")]
    Payload,
}

impl Record {
    /// Takes one replicated part off the front of `bytes` and returns the rest. Checks limits,
    /// field values, payload checksum and padding; position and chain are the caller's to check.
    pub fn decode_replicated(bytes: Bytes) -> Result<(Self, Bytes), RecordError> {
        let header = Header::parse(&bytes)?;
        let need = replicated_len(header.len);
        let is_short = bytes.len() < need;
        #[cfg(feature = "testing")]
        let is_short = is_short && !crate::types::planted::is("record_length_trusted");
        if is_short {
            return Err(RecordError::Short { need, have: bytes.len() });
        }
        let rest = bytes.slice(need..);
        let raw = bytes.slice(..need);
        let payload = raw.slice(RECORD_HEADER..RECORD_HEADER + header.len);
        if crc32c(&payload) != header.payload_crc {
            return Err(RecordError::Payload);
        }
        if raw.iter().skip(RECORD_HEADER + header.len).any(|b| *b != 0) {
            return Err(RecordError::Field("padding"));
        }
        Ok((header.record(raw.into(), payload), rest))
    }

    /// The replicated parts that stand one behind the other in `bytes`.
    pub(crate) fn decode_all(mut bytes: Bytes) -> Result<Vec<Self>, RecordError> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let (record, rest) = Self::decode_replicated(bytes)?;
            records.push(record);
            bytes = rest;
        }
        Ok(records)
    }

    /// Takes a replicated part without its payload, which is kept here, off the front of `bytes`. `kept`
    /// finds it by its batch id and length; `None` if it does not, or finds another payload.
    pub(crate) fn decode_kept(
        bytes: &Bytes,
        kept: impl FnOnce(&BatchId, usize) -> Option<Bytes>,
    ) -> Result<Option<(Self, Bytes)>, RecordError> {
        let header = Header::parse(bytes)?;
        let Some(DedupKey::Batch(id)) = &header.key else { return Err(RecordError::Field("dedup key")) };
        let Some(payload) = kept(id, header.len) else { return Ok(None) };
        let is_it = crc32c(&payload) == header.payload_crc;
        #[cfg(feature = "testing")]
        let is_it = is_it || crate::types::planted::is("any_forwarded_payload");
        if !is_it || payload.len() != header.len || !is_shared(header.len) {
            return Ok(None);
        }
        let raw = Raw::two(bytes.slice(..RECORD_HEADER), payload.clone(), false);
        Ok(Some((header.record(raw, payload), bytes.slice(RECORD_HEADER..))))
    }

    /// Bytes it takes in a segment file.
    pub(super) fn stored_len(&self) -> usize {
        super::segment::LOCAL_PART + self.raw.len()
    }
}

impl Draft {
    /// Of the writer's own: nobody tries it again.
    pub const fn unkeyed(kind: RecordKind, encoding: u8, timestamp: i64, payload: Bytes) -> Self {
        Self { kind, encoding, timestamp, key: None, payload, kept: false }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Record({} {:?}, {} bytes)", self.lsn, self.kind, self.payload.len())
    }
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Draft({:?}, {} bytes)", self.kind, self.payload.len())
    }
}

impl RecordKind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Batch, Self::Control, Self::EpochStart, Self::ConfigMark]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// Whether a record shares a payload of `len` bytes with whoever made it.
pub(crate) const fn is_shared(len: usize) -> bool {
    len >= SHARED_FROM && replicated_len(len) == RECORD_HEADER + len
}

/// Bytes of a replicated part with a payload of `len` bytes.
pub(super) const fn replicated_len(len: usize) -> usize {
    RECORD_HEADER + len.next_multiple_of(8)
}

/// A replicated part in the making: the payload's checksum is taken before the position is known, so
/// that this work is done outside the log's lock.
pub(super) struct Unplaced {
    draft: Draft,
    /// The header; behind it payload and padding, unless the draft's payload is shared.
    raw: Vec<u8>,
    shares: bool,
}

impl Unplaced {
    /// `None` if the payload is over its limit.
    pub(super) fn new(draft: Draft) -> Option<Self> {
        let len = draft.payload.len();
        if len > MAX_PAYLOAD {
            return None;
        }
        let shares = is_shared(len);
        let mut raw = Vec::with_capacity(if shares { RECORD_HEADER } else { replicated_len(len) });
        let (flags, key) = encode_key(draft.key.as_ref());
        raw.extend_from_slice(&(len as u32).to_le_bytes());
        raw.extend_from_slice(&[draft.kind as u8, flags, draft.encoding, 0]);
        raw.extend_from_slice(&[0; 16]);
        raw.extend_from_slice(&draft.timestamp.to_le_bytes());
        raw.extend_from_slice(&key);
        raw.extend_from_slice(&crc32c(&draft.payload).to_le_bytes());
        raw.extend_from_slice(&[0; 4]);
        if !shares {
            raw.extend_from_slice(&draft.payload);
            raw.resize(replicated_len(len), 0);
        }
        Some(Self { draft, raw, shares })
    }

    /// Bytes it will take in a segment file.
    pub(super) fn stored_len(&self) -> usize {
        super::segment::LOCAL_PART + replicated_len(self.draft.payload.len())
    }

    /// The record at this position behind a record with that digest.
    pub(super) fn place(mut self, lsn: Lsn, chain: u32) -> Record {
        self.raw[8..16].copy_from_slice(&lsn.epoch.to_le_bytes());
        self.raw[16..24].copy_from_slice(&lsn.seq.to_le_bytes());
        self.raw[68..72].copy_from_slice(&chain.to_le_bytes());
        let raw = Bytes::from(self.raw);
        let Draft { kind, encoding, timestamp, key, mut payload, kept } = self.draft;
        let raw = if self.shares {
            Raw::two(raw, payload.clone(), kept)
        } else {
            payload = raw.slice(RECORD_HEADER..RECORD_HEADER + payload.len());
            Raw::from(raw)
        };
        let digest = raw.digest();
        Record { lsn, kind, encoding, timestamp, key, chain, digest, raw, payload }
    }
}

/// The fixed part of a replicated part, its fields checked one by one.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub(super) len: usize,
    pub(super) lsn: Lsn,
    pub(super) chain: u32,
    kind: RecordKind,
    encoding: u8,
    timestamp: i64,
    key: Option<DedupKey>,
    payload_crc: u32,
}

impl Header {
    /// Reads the first [`RECORD_HEADER`] bytes.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let short = RecordError::Short { need: RECORD_HEADER, have: bytes.len() };
        let mut fields = Fields(bytes.get(..RECORD_HEADER).ok_or(short)?);
        let len = u32::from_le_bytes(fields.take()) as usize;
        let [kind, flags, encoding, zero] = fields.take();
        let epoch = u64::from_le_bytes(fields.take());
        let seq = u64::from_le_bytes(fields.take());
        let timestamp = i64::from_le_bytes(fields.take());
        let key = fields.take::<32>();
        let payload_crc = u32::from_le_bytes(fields.take());
        let chain = u32::from_le_bytes(fields.take());
        if len > MAX_PAYLOAD {
            return Err(RecordError::TooLong(len));
        }
        let kind = RecordKind::from_byte(kind).ok_or(RecordError::Field("kind"))?;
        if zero != 0 {
            return Err(RecordError::Field("reserved"));
        }
        if epoch == 0 || seq == 0 {
            return Err(RecordError::Field("position"));
        }
        let key = decode_key(flags, key)?;
        Ok(Self { len, lsn: Lsn::new(epoch, seq), chain, kind, encoding, timestamp, key, payload_crc })
    }

    fn record(self, raw: Raw, payload: Bytes) -> Record {
        let Self { lsn, chain, kind, encoding, timestamp, key, .. } = self;
        let digest = raw.digest();
        Record { lsn, kind, encoding, timestamp, key, chain, digest, raw, payload }
    }
}

/// Takes fixed-size fields off a slice that is known to be long enough; zeros behind its end.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => {
                debug_assert!(false, "the caller checks the length first");
                [0; N]
            }
        }
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    pub(super) fn lsn(&mut self) -> Lsn {
        let (epoch, seq): (Epoch, u64) = (self.u64(), self.u64());
        Lsn { epoch, seq }
    }
}

fn encode_key(key: Option<&DedupKey>) -> (u8, [u8; 32]) {
    let mut bytes = [0; 32];
    let flags = match key {
        None => 0,
        Some(DedupKey::Batch(id)) => {
            bytes[..16].copy_from_slice(&id.edge.0);
            bytes[16..24].copy_from_slice(&id.boot.0.to_le_bytes());
            bytes[24..].copy_from_slice(&id.counter.to_le_bytes());
            1
        }
        Some(DedupKey::Client { key, body }) => {
            bytes[..16].copy_from_slice(key);
            bytes[16..].copy_from_slice(body);
            2
        }
    };
    (flags, bytes)
}

fn decode_key(flags: u8, bytes: [u8; 32]) -> Result<Option<DedupKey>, RecordError> {
    let mut fields = Fields(&bytes);
    match flags {
        0 if bytes == [0; 32] => Ok(None),
        0 => Err(RecordError::Field("dedup key")),
        1 => Ok(Some(DedupKey::Batch(BatchId {
            edge: NodeId(fields.take()),
            boot: BootId(fields.u64()),
            counter: fields.u64(),
        }))),
        2 => Ok(Some(DedupKey::Client { key: fields.take(), body: fields.take() })),
        _ => Err(RecordError::Field("flags")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: Option<DedupKey>, payload: &[u8]) -> Record {
        let payload = Bytes::copy_from_slice(payload);
        let draft = Draft { kind: RecordKind::Batch, encoding: 7, timestamp: -5, key, payload, kept: false };
        Unplaced::new(draft).unwrap().place(Lsn::new(3, 9), 0xabcd)
    }

    #[test]
    fn a_record_survives_its_bytes() {
        let id = BatchId { edge: NodeId([1; 16]), boot: BootId(2), counter: 3 };
        for key in [None, Some(DedupKey::Batch(id)), Some(DedupKey::Client { key: [4; 16], body: [5; 16] })] {
            for len in [0, 1, 8, 13, SHARED_FROM - 1, SHARED_FROM, SHARED_FROM + 1] {
                let made = record(key, &vec![6; len]);
                assert_eq!(
                    (made.raw.len() % 8, made.raw.parts().count()),
                    (0, 1 + usize::from(len == SHARED_FROM))
                );
                assert_eq!(made.digest, crc32c(&made.raw.to_bytes()));
                let mut two = made.raw.to_bytes().to_vec();
                two.extend_from_slice(b"rest");
                let (read, rest) = Record::decode_replicated(two.into()).unwrap();
                assert_eq!((read, &rest[..]), (made, &b"rest"[..]));
            }
        }
    }

    #[test]
    fn a_long_payload_is_not_copied() {
        let payload = Bytes::from(vec![6; SHARED_FROM]);
        let at = payload.as_ptr();
        let draft = Draft::unkeyed(RecordKind::Batch, 7, -5, payload);
        let record = Unplaced::new(draft).unwrap().place(Lsn::new(3, 9), 0);
        assert_eq!(record.payload.as_ptr(), at);
        assert_eq!(record.raw.parts().map(|part| part.as_ptr()).last(), Some(at));
    }

    #[test]
    fn wrong_bytes_are_refused() {
        let good = record(None, b"hello");
        let whole = good.raw.to_bytes();
        for cut in 0..whole.len() {
            assert!(Record::decode_replicated(whole.slice(..cut)).is_err(), "cut at {cut}");
        }
        let mut long = whole.to_vec();
        long[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let refused = Record::decode_replicated(long.into());
        assert_eq!(refused, Err(RecordError::TooLong(u32::MAX as usize)));
        for at in 0..whole.len() {
            let mut bytes = whole.to_vec();
            bytes[at] ^= 1;
            // Header fields that have no check of their own are covered by the digest.
            if let Ok((read, _)) = Record::decode_replicated(bytes.into()) {
                assert_ne!(read.digest, good.digest, "byte {at}");
            }
        }
        let over = Bytes::from(vec![0; MAX_PAYLOAD + 1]);
        let draft = Draft::unkeyed(RecordKind::Batch, 0, 0, over);
        assert!(Unplaced::new(draft).is_none());
    }
}
