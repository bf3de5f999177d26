//! Reading the segments of a log one after the other, up to the first record that does not verify,
//! and the judgement on it: a torn tail, or damage (the rule is in `recovery.rs`).

use std::{collections::VecDeque, path::Path};

use bytes::Bytes;

use super::{
    WalError,
    base::Base,
    cut::zero,
    quarantine::BadRecords,
    recovery::io,
    segment::{
        Behind, Cursor, FOUND, NoRecord, OTHER_FORMAT, SEGMENT_HEADER, Segment, SegmentHeader, look_behind,
        segment_name,
    },
    watermark::Watermark,
};
use crate::{
    disk::{Create, Disk, Durability},
    types::{ClusterId, EpochTable, Lsn},
};

/// Bytes written again at once.
const CHUNK: usize = 1 << 20;

/// What the segments read so far have told.
pub(super) struct Scan {
    mark: Watermark,
    /// Whose log it is, if that is known yet.
    pub(super) cluster: Option<ClusterId>,
    pub(super) segments: VecDeque<Segment>,
    pub(super) end: Lsn,
    pub(super) digest: u32,
    pub(super) epochs: EpochTable,
    pub(super) truncated: u64,
    /// Offset, in the segment read last, of the first record above the watermark.
    unsure: u64,
    /// Range in the segment read last in which a torn tail lies.
    torn: Option<(u64, u64)>,
}

/// Why reading ends early.
pub(super) enum Stop {
    Bad(BadRecords),
    Error(WalError),
}

impl From<WalError> for Stop {
    fn from(error: WalError) -> Self {
        Self::Error(error)
    }
}

impl Scan {
    pub(super) fn new(base: &Base, mark: Watermark, cluster: Option<ClusterId>) -> Self {
        let (end, digest, epochs) = (base.lsn, base.chain, base.epochs.clone());
        let (segments, truncated, unsure, torn) = (VecDeque::new(), 0, SEGMENT_HEADER, None);
        Self { mark, cluster, segments, end, digest, epochs, truncated, unsure, torn }
    }

    /// Reads the segments that begin with these seqs.
    pub(super) async fn all(&mut self, disk: &dyn Disk, dir: &Path, live: &[u64]) -> Result<(), Stop> {
        for (nth, first) in live.iter().enumerate() {
            self.segment(disk, dir, *first, live.get(nth + 1).copied()).await?;
        }
        if self.end.seq < self.mark.durable.seq {
            let segment = segment_name(live.last().copied().unwrap_or(self.end.seq + 1));
            return Err(self.bad(segment, "the log ends before its watermark", self.end.seq));
        }
        Ok(())
    }

    /// Reads the segment that starts with `first`; `next` is where the one behind it starts.
    async fn segment(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        first: u64,
        next: Option<u64>,
    ) -> Result<(), Stop> {
        let name = segment_name(first);
        if first != self.end.seq + 1 {
            return Err(self.bad(name, "the segment before it is missing or ends early", first));
        }
        let path = dir.join(&name);
        let file = disk.open(&path, Create::No).await.map_err(io("opening a log segment"))?;
        let len = file.len().await.map_err(io("opening a log segment"))?;
        let bytes = file.read(0, SEGMENT_HEADER as usize).await.map_err(io("reading a log segment"))?;
        let header = match SegmentHeader::decode(&bytes) {
            Ok(header) => header,
            Err(OTHER_FORMAT) => {
                return Err(WalError::OtherVersion { segment: name, reason: OTHER_FORMAT.to_owned() }.into());
            }
            Err(reason) => return Err(self.bad(name, reason, first)),
        };
        if *self.cluster.get_or_insert(header.cluster) != header.cluster {
            return Err(WalError::OtherCluster { found: header.cluster }.into());
        }
        if (header.first_seq, header.epoch, header.chain) != (first, self.end.epoch, self.digest) {
            return Err(self.bad(name, "the segment does not continue the log", first));
        }
        let mut segment = Segment::new(path, file, header, len);
        let read = self.records(&mut segment, next).await;
        self.segments.push_back(segment);
        read
    }

    /// Reads the records of a segment, up to the first bad one.
    async fn records(&mut self, segment: &mut Segment, next: Option<u64>) -> Result<(), Stop> {
        self.unsure = SEGMENT_HEADER;
        let mut cursor = Cursor::new(segment, SEGMENT_HEADER, segment.len);
        let reason = loop {
            if self.mark.end == Some(self.end.seq) {
                return Ok(());
            }
            match cursor.next().await {
                Ok(record) => {
                    let at = record.lsn;
                    let continues = at.seq == self.end.seq + 1 && record.chain == self.digest;
                    if !continues || !self.epochs.note(at.epoch, at.seq) {
                        let reason = format!("record {at} does not continue the log");
                        return Err(self.bad_behind(segment, &reason, at.seq));
                    }
                    segment.note(at.seq, record.stored_len() as u64);
                    (self.end, self.digest) = (at, record.digest);
                    if at.seq <= self.mark.durable.seq {
                        self.unsure = segment.end;
                    }
                }
                Err(NoRecord::Io(error)) => return Err(io("reading a log segment")(error).into()),
                Err(NoRecord::Foreign(error)) => {
                    let segment = segment_name(segment.header.first_seq);
                    let reason = format!("record {} has a good checksum, but {error}", self.end.seq + 1);
                    return Err(WalError::OtherVersion { segment, reason }.into());
                }
                Err(NoRecord::Damaged(error)) => break error.to_string(),
                Err(NoRecord::Nothing) => break "its header does not verify".to_owned(),
            }
        };
        match next {
            // The next segment was begun when everything before it was durable.
            Some(next) if next != self.end.seq + 1 => {
                Err(self.bad_behind(segment, &reason, next.saturating_sub(1)))
            }
            Some(_) => Ok(()),
            None => self.judge(segment, &reason).await,
        }
    }

    /// Is the bad record behind the end of this, the last segment, a torn tail or damage?
    async fn judge(&mut self, segment: &Segment, reason: &str) -> Result<(), Stop> {
        let bad = self.end.seq + 1;
        let behind: Behind = look_behind(segment, segment.end).await.map_err(io("reading a log segment"))?;
        let damaged = behind.group > bad || bad <= self.mark.durable.seq;
        #[cfg(feature = "testing")]
        let damaged = damaged && !crate::types::planted::is("truncate_mid_log_corruption");
        if damaged {
            return Err(self.bad_behind(segment, reason, behind.last.seq));
        }
        if behind.extent > segment.end {
            self.truncated = behind.extent - segment.end;
            self.torn = Some((segment.end, behind.extent.max(segment.end + FOUND as u64).min(segment.len)));
        }
        Ok(())
    }

    /// Makes the last segment durable as it was read: nothing behind its end, and every record
    /// that may not have been durable before written once more.
    pub(super) async fn settle(&self, durable: u64) -> Result<(), WalError> {
        if self.truncated > 0 {
            tracing::warn!(bytes = self.truncated, after = %self.end, "dropped a torn tail of the log");
        }
        #[cfg(feature = "testing")]
        if crate::types::planted::is("recover_without_sync") {
            return Ok(());
        }
        let Some(last) = self.segments.back() else { return Ok(()) };
        let what = io("making the log durable");
        // What a cut that was under way left behind its `end` may be anywhere in the segment.
        let torn = if self.mark.end.is_some() { Some((last.end, last.len)) } else { self.torn };
        if let Some((from, to)) = torn {
            zero(&*last.file, from, to, Durability::Later).await.map_err(&what)?;
        }
        if self.end.seq > durable {
            let mut at = self.unsure;
            while at < last.end {
                let len = CHUNK.min(usize::try_from(last.end - at).unwrap_or(CHUNK));
                let bytes: Bytes = last.file.read(at, len).await.map_err(&what)?;
                if bytes.is_empty() {
                    break;
                }
                let written = bytes.len() as u64;
                last.file.write(at, vec![bytes], Durability::Later).await.map_err(&what)?;
                at += written;
            }
        }
        // Model: fsync_before_durable
        last.file.write(last.end, Vec::new(), Durability::Now).await.map_err(&what)
    }

    /// The records from here on are bad, and so is the whole segment of that name.
    /// `seen`: highest seq that is known to have been there, beside the watermark.
    fn bad(&self, segment: String, reason: &str, seen: u64) -> Stop {
        Stop::Bad(self.bad_records(segment, reason, seen, None))
    }

    /// The same, behind the last record of a segment that may have good ones before.
    fn bad_behind(&self, segment: &Segment, reason: &str, seen: u64) -> Stop {
        let first = segment.header.first_seq;
        Stop::Bad(self.bad_records(segment_name(first), reason, seen, Some((first, segment.end))))
    }

    fn bad_records(&self, segment: String, reason: &str, seen: u64, tail: Option<(u64, u64)>) -> BadRecords {
        let first_bad = self.end.seq + 1;
        let last = seen.max(self.mark.durable.seq).max(first_bad);
        BadRecords { segment, first_bad, last, reason: reason.to_owned(), tail }
    }
}
