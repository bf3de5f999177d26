//! Segment files: the header, the local part of a record, and reading records out of a file.
//!
//! A segment is named `{first seq, 20 digits}.wal` and starts with a header of 4096 bytes, little
//! endian: magic `SKEINWAL` 8, format version u32, CRC-32C u32 over the other fields, cluster id
//! 16, nonce u64, first seq u64, epoch u64 and chain u32 of the record before the first (0 when
//! there is none), zeros. Records follow without gaps, each as
//!
//! | at | size | field |
//! |---:|-----:|---|
//! | 0  | 8 | group: first seq of the group that was fsynced together on this node |
//! | 8  | 4 | CRC-32C seeded with the segment's nonce, over group and the 72-byte header behind |
//! | 12 | 4 | zero |
//! | 16 |   | the replicated part (`record.rs`) |
//!
//! The nonce is drawn anew for each segment, so that nothing in a recycled file's former life
//! verifies. A group never spans two segments, and a segment is begun only after everything
//! before it is durable.

use std::{io, path::PathBuf, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use crc32c::{crc32c, crc32c_append};

use super::record::{Fields, Header, RECORD_HEADER, Record, RecordError, replicated_len};
use crate::{
    disk::DiskFile,
    types::{ClusterId, Lsn},
};

/// What [`SegmentHeader::decode`] says of a header that is whole and not of this version.
pub(super) const OTHER_FORMAT: &str = "segment format of another version";
/// Bytes of a segment before its first record.
pub(super) const SEGMENT_HEADER: u64 = 4096;
/// Bytes of a record before its replicated part.
pub(super) const LOCAL_PART: usize = 16;
/// Bytes that are checked together when a record is found.
pub(super) const FOUND: usize = LOCAL_PART + RECORD_HEADER;

const MAGIC: &[u8; 8] = b"SKEINWAL";
const VERSION: u32 = 1;
const FIELDS: usize = 60;
/// Distance in bytes of the entries of [`Segment::index`].
const INDEX_STEP: u64 = 256 * 1024;
/// Bytes read at once.
const BLOCK: usize = 256 * 1024;

/// A segment that is part of the log.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) header: SegmentHeader,
    /// Length of the file.
    pub(super) len: u64,
    /// Offset behind its last record on disk.
    pub(super) end: u64,
    /// Seq of that record, first seq - 1 if there is none.
    pub(super) last_seq: u64,
    /// (seq, offset) of some records, increasing, the first record's among them.
    pub(super) index: Vec<(u64, u64)>,
}

impl Segment {
    pub(super) fn new(path: PathBuf, file: Arc<dyn DiskFile>, header: SegmentHeader, len: u64) -> Self {
        let last_seq = header.first_seq.saturating_sub(1);
        let index = vec![(header.first_seq, SEGMENT_HEADER)];
        Self { path, file, header, len, end: SEGMENT_HEADER, last_seq, index }
    }

    /// Notes that a record of `len` stored bytes lies at the end.
    pub(super) fn note(&mut self, seq: u64, len: u64) {
        if self.index.last().is_none_or(|(_, offset)| self.end - offset >= INDEX_STEP) {
            self.index.push((seq, self.end));
        }
        self.end += len;
        self.last_seq = seq;
    }

    /// Forgets the records from `offset` on, where `seq` would lie.
    pub(super) fn cut(&mut self, seq: u64, offset: u64) {
        self.index.retain(|(s, _)| *s < seq || *s == self.header.first_seq);
        self.end = offset;
        self.last_seq = seq.saturating_sub(1);
    }

    /// Where to start looking for a record.
    pub(super) fn near(&self, seq: u64) -> (u64, u64) {
        let before = self.index.partition_point(|(s, _)| *s <= seq);
        let entry = self.index.get(before.saturating_sub(1)).copied();
        entry.unwrap_or((self.header.first_seq, SEGMENT_HEADER))
    }
}

/// What a segment file starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) cluster: ClusterId,
    pub(super) nonce: u64,
    pub(super) first_seq: u64,
    /// Epoch of the record before the first.
    pub(super) epoch: u64,
    /// Chain value before the first record.
    pub(super) chain: u32,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> Bytes {
        let mut fields = BytesMut::with_capacity(FIELDS);
        fields.put_slice(MAGIC);
        fields.put_u32_le(VERSION);
        fields.put_u32_le(0);
        fields.put_slice(&self.cluster.0);
        fields.put_u64_le(self.nonce);
        fields.put_u64_le(self.first_seq);
        fields.put_u64_le(self.epoch);
        fields.put_u32_le(self.chain);
        let crc = crc32c(&fields).to_le_bytes();
        fields[12..16].copy_from_slice(&crc);
        fields.resize(SEGMENT_HEADER as usize, 0);
        fields.freeze()
    }

    /// `Err` says what is wrong with it.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let bytes = bytes.get(..FIELDS).ok_or("segment header is cut short")?;
        let mut fields = Fields(bytes);
        if &fields.take::<8>() != MAGIC {
            return Err("not a segment file");
        }
        let (version, crc) = (fields.u32(), fields.u32());
        let mut check = crc32c(&bytes[..12]);
        check = crc32c_append(check, &[0; 4]);
        if crc32c_append(check, &bytes[16..]) != crc {
            return Err("segment header checksum does not match");
        }
        if version != VERSION {
            return Err(OTHER_FORMAT);
        }
        let cluster = ClusterId(fields.take());
        let (nonce, first_seq, epoch) = (fields.u64(), fields.u64(), fields.u64());
        Ok(Self { cluster, nonce, first_seq, epoch, chain: fields.u32() })
    }

    /// The bytes of a group: each record behind its local part, in the pieces that it is in.
    pub(super) fn group(&self, first: u64, records: &[Record]) -> Vec<Bytes> {
        let mut locals = BytesMut::with_capacity(records.len() * LOCAL_PART);
        records.iter().for_each(|record| self.local_part(first, record, &mut locals));
        let mut locals = locals.freeze();
        let mut parts = Vec::with_capacity(3 * records.len());
        for record in records {
            parts.push(locals.split_to(LOCAL_PART));
            parts.extend(record.raw.parts().cloned());
        }
        parts
    }

    /// The local part that a record gets in this segment.
    fn local_part(&self, group: u64, record: &Record, out: &mut BytesMut) {
        out.put_u64_le(group);
        out.put_u32_le(self.header_crc(group, record.raw.header()));
        out.put_u32_le(0);
    }

    fn header_crc(&self, group: u64, replicated: &[u8]) -> u32 {
        let seeded = crc32c_append(crc32c(&self.nonce.to_le_bytes()), &group.to_le_bytes());
        crc32c_append(seeded, replicated.get(..RECORD_HEADER).unwrap_or(replicated))
    }

    /// Whether these bytes could begin a record at `offset`, whatever their checksum. All records of a
    /// segment have one seq more than the one before and take at least [`FOUND`] bytes, epochs never fall,
    /// and no version has a kind 0. The seqs of a former life are all lower, and of other bytes hardly any
    /// pass: times, floats and text are far above every seq.
    fn could_hold(&self, offset: u64, bytes: &[u8]) -> bool {
        let mut fields = Fields(bytes);
        let (group, _crc, zero) = (fields.u64(), fields.u32(), fields.u32());
        let (_len, [kind, ..]) = (fields.u32(), fields.take::<4>());
        let (epoch, seq) = (fields.u64(), fields.u64());
        let before = offset.saturating_sub(SEGMENT_HEADER) / FOUND as u64;
        let seqs = self.first_seq..=self.first_seq.saturating_add(before);
        zero == 0
            && kind != 0
            && epoch >= self.epoch
            && group <= seq
            && seqs.contains(&group)
            && seqs.contains(&seq)
    }

    /// Whether a look behind the end would know each of these records, written as one group at `offset`.
    pub(super) fn could_hold_all(&self, mut offset: u64, group: &[Record]) -> bool {
        let first = group.first().map_or(0, |record| record.lsn.seq);
        group.iter().all(|record| {
            let mut bytes = BytesMut::new();
            self.local_part(first, record, &mut bytes);
            bytes.put_slice(record.raw.header());
            let at = offset;
            offset += record.stored_len() as u64;
            self.could_hold(at, &bytes) && self.find(&bytes).is_some()
        })
    }

    /// Group and header of the record that starts at the front of `bytes`, if the checksum over
    /// both verifies in this segment. Says nothing about the payload.
    pub(super) fn find(&self, bytes: &[u8]) -> Option<(u64, Result<Header, RecordError>)> {
        let mut fields = Fields(bytes.get(..LOCAL_PART)?);
        let replicated = bytes.get(LOCAL_PART..FOUND)?;
        let (group, crc, zero) = (fields.u64(), fields.u32(), fields.u32());
        if group == 0 || zero != 0 || self.header_crc(group, replicated) != crc {
            return None;
        }
        Some((group, Header::parse(replicated)))
    }
}

/// The file name of the segment that starts with `first_seq`.
pub(super) fn segment_name(first_seq: u64) -> String {
    format!("{first_seq:020}.wal")
}

/// The first seq in a segment's file name.
pub(super) fn parse_segment_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal").filter(|d| d.len() == 20)?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

/// Reads records one behind the other out of one segment file.
#[derive(Debug)]
pub(super) struct Cursor {
    file: Arc<dyn DiskFile>,
    header: SegmentHeader,
    /// Where the next record starts.
    pub(super) offset: u64,
    /// Bytes behind this are not looked at.
    limit: u64,
    block: Bytes,
    block_at: u64,
}

/// Why a [`Cursor`] gives no record.
#[derive(Debug)]
pub(super) enum NoRecord {
    /// Nothing here verifies: the end, or damage.
    Nothing,
    /// A header verifies, and what it heads is damaged.
    Damaged(RecordError),
    /// A header verifies and says what no record of this version says.
    Foreign(RecordError),
    /// The disk.
    Io(io::Error),
}

impl From<io::Error> for NoRecord {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Cursor {
    pub(super) fn new(segment: &Segment, offset: u64, limit: u64) -> Self {
        let (file, header) = (segment.file.clone(), segment.header);
        Self { file, header, offset, limit, block: Bytes::new(), block_at: offset }
    }

    /// Allows it to go as far as the segment has grown meanwhile.
    pub(super) fn extend(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// The next record. Its checksums are good; position and chain are the caller's to check.
    pub(super) async fn next(&mut self) -> Result<Record, NoRecord> {
        let head = self.look(FOUND).await?;
        let (group, header) = self.header.find(&head).ok_or(NoRecord::Nothing)?;
        let header = header.map_err(NoRecord::Foreign)?;
        if group > header.lsn.seq {
            return Err(NoRecord::Foreign(RecordError::Field("group")));
        }
        let need = LOCAL_PART + replicated_len(header.len);
        let stored = self.look(need).await?;
        if stored.len() < need {
            return Err(NoRecord::Damaged(RecordError::Short { need, have: stored.len() }));
        }
        let (record, _) =
            Record::decode_replicated(stored.slice(LOCAL_PART..need)).map_err(NoRecord::Damaged)?;
        self.offset += need as u64;
        Ok(record)
    }

    /// Up to `want` bytes from the offset on; fewer only at the limit or the end of the file.
    pub(super) async fn look(&mut self, want: usize) -> io::Result<Bytes> {
        let there = usize::try_from(self.limit.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        let want = want.min(there);
        let skip = self.offset.checked_sub(self.block_at).and_then(|s| usize::try_from(s).ok());
        if let Some(skip) = skip.filter(|s| s.saturating_add(want) <= self.block.len()) {
            return Ok(self.block.slice(skip..skip + want));
        }
        self.block = self.file.read(self.offset, want.max(BLOCK.min(there))).await?;
        self.block_at = self.offset;
        Ok(self.block.slice(..want.min(self.block.len())))
    }
}

/// What lies behind a bad record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Behind {
    /// Offset behind the last header that verifies, 0 if none does.
    pub(super) extent: u64,
    /// Highest group among them.
    pub(super) group: u64,
    /// Highest position among them.
    pub(super) last: Lsn,
}

/// Looks at every place behind `offset` where a record could start.
///
/// Most of what lies there is of a recycled file's former life: eight million places, each of which
/// could have the right checksum by chance. So what is found must also be what this segment could hold
/// there ([`SegmentHeader::could_hold`]). A payload that happens to hold a record of the same segment
/// would be taken for one; the nonce, which never leaves the node, keeps that from happening on purpose.
pub(super) async fn look_behind(segment: &Segment, offset: u64) -> io::Result<Behind> {
    let mut behind = Behind::default();
    let mut at = offset;
    while at + FOUND as u64 <= segment.len {
        let block = segment.file.read(at, BLOCK + FOUND).await?;
        let places = block.len().saturating_sub(FOUND - 1).min(BLOCK);
        for place in (0..places).step_by(8) {
            let Some(bytes) = block.get(place..place + FOUND) else { break };
            let offset = at + place as u64;
            if !segment.header.could_hold(offset, bytes) {
                continue;
            }
            if let Some((group, header)) = segment.header.find(bytes) {
                let (len, last) = header.map_or((0, Lsn::ZERO), |h| (h.len, h.lsn));
                let end = offset + (LOCAL_PART + replicated_len(len)) as u64;
                behind.extent = behind.extent.max(end.min(segment.len));
                behind.group = behind.group.max(group);
                behind.last = behind.last.max(last);
            }
        }
        if places == 0 {
            break;
        }
        at += BLOCK as u64;
    }
    Ok(behind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        disk::{Create, Disk, Durability},
        testing::SimDisk,
    };

    #[test]
    fn names_and_headers_round_trip_and_refuse_other_bytes() {
        assert_eq!(parse_segment_name(&segment_name(42)), Some(42));
        for wrong in ["42.wal", "spare.wal", "0000000000000000004x.wal", "00000000000000000042.tmp"] {
            assert_eq!(parse_segment_name(wrong), None);
        }
        let header =
            SegmentHeader { cluster: ClusterId([3; 16]), nonce: 77, first_seq: 5, epoch: 2, chain: 0xdead };
        let bytes = header.encode();
        assert_eq!(bytes.len() as u64, SEGMENT_HEADER);
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
        for at in 0..FIELDS {
            let mut wrong = bytes.to_vec();
            wrong[at] ^= 16;
            assert!(SegmentHeader::decode(&wrong).is_err(), "byte {at}");
        }
    }

    /// What [`look_behind`] sees in a file with one header at `at`, whose checksum is right.
    async fn behind(at: u64, group: u64, kind: u8, (epoch, seq): (u64, u64)) -> Behind {
        let header =
            SegmentHeader { cluster: ClusterId([3; 16]), nonce: 7, first_seq: 100, epoch: 2, chain: 0 };
        let mut replicated = BytesMut::new();
        replicated.put_slice(&[16, 0, 0, 0, kind, 0, 1, 0]);
        replicated.put_u64_le(epoch);
        replicated.put_u64_le(seq);
        replicated.resize(RECORD_HEADER, 0);
        let mut bytes = BytesMut::new();
        bytes.put_u64_le(group);
        bytes.put_u32_le(header.header_crc(group, &replicated));
        bytes.put_u32_le(0);
        bytes.put_slice(&replicated);
        let disk = SimDisk::new();
        let file = disk.open("/x.wal".as_ref(), Create::New).await.unwrap();
        file.resize(65_536).await.unwrap();
        file.write(at, vec![bytes.freeze()], Durability::Later).await.unwrap();
        let segment = Segment::new("/x.wal".into(), file, header, 65_536);
        look_behind(&segment, SEGMENT_HEADER).await.unwrap()
    }

    #[tokio::test]
    async fn only_what_a_segment_could_hold_there_is_found() {
        let second = SEGMENT_HEADER + FOUND as u64;
        let nothing = Behind::default();
        let found = behind(second, 100, 1, (2, 101)).await;
        assert_eq!((found.group, found.last), (100, Lsn::new(2, 101)));
        assert_eq!(found.extent, second + FOUND as u64 + 16);
        assert_eq!(behind(second, 101, 9, (3, 101)).await.group, 101, "a kind of a later version");
        // Of a former life, or of bytes that have the right checksum by chance.
        assert_eq!(behind(second, 99, 1, (2, 101)).await, nothing);
        assert_eq!(behind(second, 101, 1, (2, 100)).await, nothing, "a group begins with one of its records");
        assert_eq!(behind(second, 100, 1, (2, 102)).await, nothing, "there is room for one record before it");
        assert_eq!(behind(second, 100, 1, (1, 101)).await, nothing, "epochs do not fall");
        assert_eq!(behind(second, 100, 0, (2, 101)).await, nothing, "no version has this kind");
    }
}
