//! What lies in the directory of a log, for people who look: read, never changed.

use std::path::Path;

use super::{
    Debt, WalError,
    quarantine::{Damage, Remains, contents, list_with_lengths},
    recovery::read,
    segment::Segment,
};
use crate::{
    disk::Disk,
    types::{ClusterId, Epoch, EpochTable, Lsn},
};

/// A log as it lies on disk.
#[derive(Debug, Clone)]
pub struct Survey {
    /// Whose it is; unknown if there is no segment.
    pub cluster: Option<ClusterId>,
    /// Highest epoch promised.
    pub promise: Epoch,
    /// What the log must reach again before its node answers a seal.
    pub debt: Option<Debt>,
    /// What was surely durable when the watermark was written.
    pub watermark: Lsn,
    /// Last commit position that was noted.
    pub commit: Lsn,
    /// A cut behind this seq is under way; the next start finishes it.
    pub cut: Option<u64>,
    /// The position before the first record.
    pub base: Lsn,
    /// The last record, or the last before the damage.
    pub end: Lsn,
    /// Where epochs start, up to there.
    pub epochs: EpochTable,
    /// The segments that verify, the last one up to the damage.
    pub segments: Vec<SegmentSurvey>,
    /// Bytes of a torn tail, which the next start drops.
    pub torn: u64,
    /// What is wrong.
    pub damage: Vec<DamageSurvey>,
    /// Bytes that are damaged or lie behind damage.
    pub damaged_bytes: u64,
    /// Files under `orphan/`, and their lengths.
    pub orphans: Vec<(String, u64)>,
    /// Files under `quarantine/`, and their lengths.
    pub quarantine: Vec<(String, u64)>,
}

/// One segment file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentSurvey {
    /// Its name.
    pub file: String,
    /// First record in it, or where it would be.
    pub first: u64,
    /// Last record in it; first - 1 if there is none.
    pub last: u64,
    /// Epochs of its records, oldest first.
    pub epochs: Vec<Epoch>,
    /// Bytes up to behind its last record, header included.
    pub bytes: u64,
    /// Length of the file.
    pub len: u64,
}

/// Something that was durable and is not what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamageSurvey {
    /// In which file, or where it should be.
    pub file: String,
    /// From which byte of it on, if it is records.
    pub offset: Option<u64>,
    /// First and last seq, if it is records; what lies between them may be whole.
    pub records: Option<(u64, u64)>,
    /// What is wrong with the first.
    pub reason: String,
}

/// Looks at the log in `dir`. It must not be open in another process.
pub async fn survey(disk: &dyn Disk, dir: &Path) -> Result<Survey, WalError> {
    let reading = read(disk, dir, None).await?;
    let what = |source| WalError::Io { what: "looking into the log's directory".to_owned(), source };
    let damaged_bytes = match reading.damage.is_empty() {
        true => 0,
        false => Remains::of(disk, dir, &reading).await.map_err(what)?.bytes(),
    };
    let segments: Vec<SegmentSurvey> =
        reading.scan.segments.iter().map(|segment| describe(segment, &reading.scan.epochs)).collect();
    let damage = reading.damage.iter().map(|damage| match damage {
        Damage::File(name, reason) => DamageSurvey {
            file: (*name).to_owned(),
            offset: None,
            records: None,
            reason: (*reason).to_owned(),
        },
        Damage::Records(bad) => DamageSurvey {
            offset: segments.iter().find(|segment| segment.file == bad.segment).map(|segment| segment.bytes),
            file: bad.segment.clone(),
            records: Some((bad.first_bad, bad.last)),
            reason: bad.reason.clone(),
        },
    });
    Ok(Survey {
        cluster: reading.scan.cluster,
        promise: reading.promise.epoch,
        debt: reading.promise.debt,
        watermark: reading.mark.durable,
        commit: reading.mark.commit,
        cut: reading.mark.end,
        base: reading.base.lsn,
        end: reading.scan.end,
        damage: damage.collect(),
        segments,
        torn: reading.scan.truncated,
        damaged_bytes,
        orphans: list_with_lengths(disk, &dir.join("orphan")).await.map_err(what)?,
        quarantine: contents(disk, dir).await.map_err(what)?,
        epochs: reading.scan.epochs,
    })
}

fn describe(segment: &Segment, epochs: &EpochTable) -> SegmentSurvey {
    let (first, last) = (segment.header.first_seq, segment.last_seq);
    let file = segment.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let inside = epochs.entries().iter().filter(|(_, start)| (first..=last).contains(start));
    let mut of: Vec<Epoch> = epochs.epoch_at(first).filter(|_| last >= first).into_iter().collect();
    of.extend(inside.map(|(epoch, _)| *epoch));
    of.dedup();
    SegmentSurvey { file, first, last, epochs: of, bytes: segment.end, len: segment.len }
}
