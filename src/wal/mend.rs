//! Going on without records that nobody can supply: `skein inspect wal --repair --accept-loss`.
//!
//! The log is cut back to its last good record, the bytes are kept in `quarantine/`, and the debt
//! (`quarantine.rs`) is struck out. If the engine's checkpoint reaches beyond that record, nothing
//! at or below it is lost: then the log begins anew behind the checkpoint, with the records behind
//! it that verify. A log that ended below what is applied could not go on: the next record would
//! get a position that the engine has seen.

use std::{path::Path, sync::Arc};

use super::{
    Record, RecordKind, Wal, WalConfig, WalError,
    base::Base,
    quarantine::{Damage, Debt, Part, Remains},
    recovery::{Reading, io, read},
    segment::{Cursor, NoRecord, SEGMENT_HEADER, Segment, SegmentHeader, parse_segment_name, segment_name},
};
use crate::{
    disk::{Create, Disk},
    types::{Epoch, Lsn},
};

/// What has to be given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// First and last seq of the records that are lost, as far as is known; `None` if none is.
    pub records: Option<(u64, u64)>,
    /// Bytes of the log that are set aside, damaged or behind the damage.
    pub bytes: u64,
    /// Where the log ends afterwards.
    pub end: Lsn,
    /// Set if the log is to begin behind the engine's checkpoint: its position.
    pub checkpoint: Option<Lsn>,
}

/// How a log is mended.
struct Plan {
    promise: Epoch,
    commit: Lsn,
    remains: Remains,
    /// Records behind the checkpoint that go back into the log.
    kept: Vec<Record>,
    loss: Loss,
}

/// Mends the log in `dir`, whose engine has everything up to `flushed` in a checkpoint, after
/// `accept` has seen what is lost and agreed. `None`: there is nothing to mend. The caller holds the
/// data directory's lock. Stopped in between, it may be called again; records that were about to be
/// put back behind a checkpoint are in `quarantine/` only then.
pub async fn accept_loss(
    disk: Arc<dyn Disk>,
    dir: &Path,
    flushed: Lsn,
    nonce: Box<dyn FnMut() -> u64 + Send + Sync>,
    accept: impl FnOnce(&Loss) -> bool,
) -> Result<Option<Loss>, WalError> {
    let reading = read(&*disk, dir, None).await?;
    let Some(plan) = plan(&*disk, dir, &reading, flushed).await? else { return Ok(None) };
    let Plan { promise, commit, remains, kept, loss } = plan;
    if !accept(&loss) {
        return Ok(Some(loss));
    }
    let what = io("setting damaged records aside (there must be space for a copy of them)");
    remains.cut_back(&*disk, dir, promise, commit).await.map_err(what)?;
    let Some(cluster) = reading.scan.cluster else { return Ok(Some(loss)) };
    // Opening it finishes the cut, and finds whatever is still wrong.
    let config = WalConfig { quarantine: true, ..WalConfig::new(dir) };
    let (wal, driver, _) = Wal::open(disk, config, cluster, nonce).await?;
    let driver = tokio::spawn(driver.run());
    for record in kept {
        wal.append_replica(record.raw.to_bytes())?;
    }
    wal.settle().await?;
    wal.clear_debt().await?;
    drop(wal);
    match driver.await {
        Ok(ended) => ended.map(|()| Some(loss)),
        Err(error) => Err(WalError::Failed(error.to_string())),
    }
}

async fn plan(
    disk: &dyn Disk,
    dir: &Path,
    reading: &Reading,
    flushed: Lsn,
) -> Result<Option<Plan>, WalError> {
    let what = io("looking for damage");
    if reading.damage.is_empty() && reading.promise.debt.is_none() {
        return Ok(None);
    }
    let mut remains = Remains::of(disk, dir, reading).await.map_err(&what)?;
    let known = remains.debt.map_or(Lsn::ZERO, |debt: Debt| debt.reach).seq.max(remains.end.seq);
    let mut kept = Vec::new();
    let checkpoint = (flushed.seq > remains.end.seq).then_some(flushed);
    let mut end = remains.end;
    if let Some(at) = checkpoint {
        let found = Found::behind(disk, dir, at).await?;
        remains.parts = Part::all(disk, dir, &reading.damage).await.map_err(&what)?;
        remains.base = Some(found.base(reading, at)?);
        remains.end = at;
        kept = found.kept;
        end = kept.last().map_or(at, |record| record.lsn);
    } else {
        remains.debt = None;
    }
    let lost = (known > end.seq).then_some((end.seq + 1, known));
    let loss = Loss { records: lost, bytes: remains.bytes(), end, checkpoint };
    // A commit position that this log no longer reaches would keep every leader from naming a writer.
    let commit = if reading.mark.commit.seq > remains.end.seq { remains.end } else { reading.mark.commit };
    Ok(Some(Plan { promise: reading.promise.epoch, commit, remains, kept, loss }))
}

/// What a damaged log tells of the position of a checkpoint and of what lies behind.
#[derive(Default)]
struct Found {
    /// Epoch starts at or below it.
    starts: Vec<Lsn>,
    /// Chain value at it.
    chain: Option<u32>,
    /// Records that continue from it without a hole.
    kept: Vec<Record>,
}

impl Found {
    async fn behind(disk: &dyn Disk, dir: &Path, checkpoint: Lsn) -> Result<Self, WalError> {
        let mut found = Self::default();
        let names = disk.list(dir).await.map_err(io("listing the log's directory"))?;
        for first in names.iter().filter_map(|name| parse_segment_name(name)) {
            let path = dir.join(segment_name(first));
            let what = io("reading a log segment");
            let file = disk.open(&path, Create::No).await.map_err(&what)?;
            let len = file.len().await.map_err(&what)?;
            let head = file.read(0, SEGMENT_HEADER as usize).await.map_err(&what)?;
            // Without its nonce nothing in a segment verifies.
            let Ok(header) = SegmentHeader::decode(&head) else { continue };
            let segment = Segment::new(path, file, header, len);
            let mut cursor = Cursor::new(&segment, SEGMENT_HEADER, len);
            while cursor.offset < len {
                match cursor.next().await {
                    Ok(record) => found.note(record, checkpoint),
                    Err(NoRecord::Io(error)) => return Err(what(error)),
                    // Records begin at multiples of eight.
                    Err(_) => cursor.offset += 8,
                }
            }
        }
        Ok(found)
    }

    fn note(&mut self, record: Record, checkpoint: Lsn) {
        let at = record.lsn;
        if at.seq <= checkpoint.seq && record.kind == RecordKind::EpochStart {
            self.starts.push(at);
        }
        if at == checkpoint {
            self.chain = Some(record.digest);
        }
        let (next, chain) = match self.kept.last() {
            Some(last) => (last.lsn.seq + 1, Some(last.digest)),
            None => (checkpoint.seq + 1, self.chain),
        };
        if at.seq == next && chain.is_none_or(|chain| chain == record.chain) {
            self.kept.push(record);
        }
    }

    /// The base of a log that begins behind the checkpoint.
    fn base(&self, reading: &Reading, checkpoint: Lsn) -> Result<Base, WalError> {
        let mut epochs = reading.scan.epochs.clone();
        epochs.cut_after(checkpoint.seq);
        for start in &self.starts {
            epochs.note(start.epoch, start.seq);
        }
        if epochs.last_epoch() < checkpoint.epoch {
            // Its first record is among the damaged ones: somewhere behind the last good one.
            let last = epochs.entries().last().map_or(0, |entry| entry.1);
            epochs.note(checkpoint.epoch, (reading.scan.end.seq + 1).max(last + 1).min(checkpoint.seq));
        }
        if !epochs.holds(checkpoint, checkpoint.seq) {
            return Err(WalError::Refused(format!(
                "the engine's checkpoint at {checkpoint} is not of this log, whose last epoch there is {}",
                epochs.last_epoch()
            )));
        }
        // Nobody else holds the record to compare with.
        let chain = self.chain.or(self.kept.first().map(|record| record.chain)).unwrap_or(0);
        Ok(Base { lsn: checkpoint, chain, epochs })
    }
}

impl Part {
    /// Every segment, and the small files that are damaged.
    async fn all(disk: &dyn Disk, dir: &Path, damage: &[Damage]) -> std::io::Result<Vec<Self>> {
        let mut parts = Vec::new();
        for name in disk.list(dir).await? {
            let damaged = damage.iter().any(|d| matches!(d, Damage::File(file, _) if *file == name));
            if damaged || parse_segment_name(&name).is_some() {
                parts.extend(Self::of(disk, dir.join(name), 0).await?);
            }
        }
        Ok(parts)
    }
}
