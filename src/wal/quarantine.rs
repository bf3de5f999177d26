//! Damage: telling what is wrong with a log, and opening it without what is wrong.
//!
//! A node with peers does not stay down for a bad sector. Everything from the first bad record on
//! is copied to `quarantine/` and cut off, and the node fetches it again from the writer like any
//! follower that is behind: from its log, or, if that no longer reaches back, by snapshot. Chain
//! values at both ends make sure that it is the same history: the writer compares the one at the
//! cut on subscribe, and every record that comes must carry the chain value of the one before it.
//! Damage in the middle is treated like damage up to the end, although records behind it may be
//! whole: one path instead of two, and the one that is walked every day.
//!
//! What makes this safe is the **debt**. This node may have acknowledged records that it no longer
//! has; a commit may rest on them, at this moment even: the writer does not forget an
//! acknowledgement. If the node answered a seal with what is left, a majority could name a writer
//! that lacks a committed record. So the debt is noted beside the promise, durably and before
//! anything is cut, and while it stands the node answers no seal (rule H12 of the protocol model),
//! and so cannot be named writer. It is to the others as if it were down, but for two things that
//! harm nobody: it acknowledges what it has on disk, and it confirms reads by its promise, which
//! it still has. (A log whose *promise* is damaged is refused: that cannot be fetched anywhere.)
//!
//! The debt is paid when the log holds everything that the log of a writer held **when this node
//! subscribed to it**. That covers every record this node has acknowledged and that can still
//! count:
//!
//! - The writer's epoch is not below this node's promise, so not below the epoch of any record it
//!   has acknowledged.
//! - A record acknowledged to this very writer is in the writer's log, before the acknowledgement
//!   was, in the same process run.
//! - A record of an older epoch that was committed is in this writer's log, by the rule that named
//!   it: this node did not answer that seal after the damage, so its reports were true.
//! - A record of an older epoch that was not committed when this writer was named never will be.
//!
//! The position that was known to be reached before (`reach`) is for people: the watermark may be
//! late by up to a second, so it could not decide. What is applied or flushed may lie above the
//! cut: it was committed, so the same records come again, and the engine takes none a second time.
//!
//! Damage that is met while the log is open takes the same way without a restart (`set_aside.rs`). To
//! the argument it makes no difference: between two of its steps no seal is answered and no stream
//! goes on (`replication/fence.rs`), and the writer does not set its own log aside.

use std::{
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{
    WalError,
    base::{BASE, Base},
    recovery::Reading,
    segment::{parse_segment_name, segment_name},
    watermark::{PROMISE, Promise, WATERMARK, Watermark},
};
use crate::{
    disk::{Create, Disk, Durability, Slots, SlotsError},
    types::{Epoch, Lsn},
};

/// Directory, below that of the log, of what was set aside.
pub(super) const QUARANTINE: &str = "quarantine";
/// Bytes copied at once.
const CHUNK: usize = 1 << 20;

/// What a log once held and must hold again before its node answers a seal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Debt {
    /// Seq of the first record that was lost.
    pub lost_from: u64,
    /// The last position of which is known that it was reached; it may have been higher.
    pub reach: Lsn,
}

impl Debt {
    /// Both debts.
    pub(super) fn and(self, other: Self) -> Self {
        Self { lost_from: self.lost_from.min(other.lost_from), reach: self.reach.max(other.reach) }
    }
}

/// Something that was durable and is not what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Damage {
    /// The watermark or the base: its name, and what is wrong with it.
    File(&'static str, &'static str),
    /// Records.
    Records(BadRecords),
}

/// Records that are damaged or missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BadRecords {
    /// Name of the file in which the first of them lies or should lie.
    pub(super) segment: String,
    /// Seq of the first.
    pub(super) first_bad: u64,
    /// Highest seq that is known to have been written.
    pub(super) last: u64,
    /// What is wrong with the first.
    pub(super) reason: String,
    /// First seq of the segment that has good records before the first bad one, and where in it
    /// they end.
    pub(super) tail: Option<(u64, u64)>,
}

impl Damage {
    /// Of a log that nobody can supply.
    pub(super) fn refuse(self, dir: &Path) -> WalError {
        match self {
            Self::File(name, reason) => {
                WalError::DamagedFile { file: dir.join(name), reason, advice: super::error::ACCEPT_LOSS }
            }
            Self::Records(BadRecords { segment, first_bad, last, reason, .. }) => {
                WalError::Corrupt { segment, first_bad, last, reason }
            }
        }
    }
}

/// A file, or the rest of one, that is set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    path: PathBuf,
    /// From here to the eight bytes with its last that is not zero.
    from: u64,
    /// How many bytes those are.
    pub(super) len: u64,
}

/// What is left of a damaged log once the damage is set aside.
pub(super) struct Remains {
    /// Last good position.
    pub(super) end: Lsn,
    /// What this node owes, if its peers can supply what is gone.
    pub(super) debt: Option<Debt>,
    /// What takes the place of the base.
    pub(super) base: Option<Base>,
    /// What goes.
    pub(super) parts: Vec<Part>,
}

impl Remains {
    /// Judges what `reading` found; nothing is changed.
    pub(super) async fn of(disk: &dyn Disk, dir: &Path, reading: &Reading) -> io::Result<Self> {
        let base_gone = reading.damage.iter().any(|d| matches!(d, Damage::File(name, _) if *name == BASE));
        let bad = reading.damage.iter().find_map(|damage| match damage {
            Damage::Records(bad) => Some(bad),
            Damage::File(..) => None,
        });
        let end = if base_gone { Lsn::ZERO } else { reading.scan.end };
        let mut parts = Vec::new();
        for damage in &reading.damage {
            if let Damage::File(name, _) = damage {
                parts.extend(Part::of(disk, dir.join(name), 0).await?);
            }
        }
        let names = disk.list(dir).await?;
        for first in names.iter().filter_map(|name| parse_segment_name(name)) {
            let tail = bad.and_then(|bad| bad.tail).filter(|tail| tail.0 == first).map(|tail| tail.1);
            let from = if first > end.seq { Some(0) } else { tail };
            if let Some(from) = from.filter(|_| bad.is_some() || base_gone) {
                parts.extend(Part::of(disk, dir.join(segment_name(first)), from).await?);
            }
        }
        // Nothing that it could say is true any more.
        let base = base_gone.then(Base::default);
        let reach = reading.mark.durable.max(reading.scan.end).max(reading.seen);
        let reach = Lsn::new(reach.epoch, reach.seq.max(bad.map_or(0, |bad| bad.last)));
        let owes = Debt { lost_from: end.seq + 1, reach };
        let debt = reading.promise.debt.map_or(owes, |debt| debt.and(owes));
        Ok(Self { end, debt: Some(debt), base, parts })
    }

    /// Bytes that are set aside.
    pub(super) fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.len).sum()
    }

    /// Cuts the log back to what is left. In this order, each durable before the next: the debt,
    /// the copies, a watermark that announces a cut behind the last good record. What is left of
    /// that cut is the business of recovery, as after any crash in the middle of one, and so is a
    /// crash here: damage is found again, or the announced cut is.
    ///
    /// `commit`: what the watermark says of the commit position from now on.
    pub(super) async fn cut_back(
        self,
        disk: &dyn Disk,
        dir: &Path,
        promise: Epoch,
        commit: Lsn,
    ) -> io::Result<()> {
        let (mut slots, _) = Slots::open(disk, &dir.join(PROMISE.0), PROMISE.1).await.map_err(whole)?;
        slots.write_both(Promise { epoch: promise, debt: self.debt }.values()).await?;
        let aside = dir.join(QUARANTINE);
        if !self.parts.is_empty() {
            disk.create_dir(&aside).await?;
        }
        for part in &self.parts {
            part.copy(disk, &aside).await?;
        }
        if let Some(base) = &self.base {
            base.save(disk, dir, BASE).await?;
        }
        let mark = Watermark { durable: self.end, commit, end: Some(self.end.seq) };
        match Slots::open(disk, &dir.join(WATERMARK.0), WATERMARK.1).await {
            Ok((mut slots, _)) => slots.write_both(mark.values()).await,
            Err(_) => Slots::create(disk, &dir.join(WATERMARK.0), WATERMARK.1, mark.values()).await,
        }
    }
}

/// The promise was read a moment ago.
fn whole(error: SlotsError) -> io::Error {
    match error {
        SlotsError::Io(error) => error,
        SlotsError::Damaged(path) => io::Error::other(format!("{} cannot be read any more", path.display())),
    }
}

impl Part {
    /// The rest of a file from `from` on; `None` if it is not there or holds only zeros.
    pub(super) async fn of(disk: &dyn Disk, path: PathBuf, from: u64) -> io::Result<Option<Self>> {
        let file = match disk.open(&path, Create::No).await {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let (mut at, mut end) = (from, from);
        loop {
            let bytes = file.read(at, CHUNK).await?;
            if bytes.is_empty() {
                break;
            }
            if let Some(last) = last_used(&bytes) {
                // Records end at multiples of eight, perhaps with zeros.
                end = at + (last + 1).next_multiple_of(8).min(bytes.len()) as u64;
            }
            at += bytes.len() as u64;
        }
        Ok((end > from).then_some(Self { path, from, len: end - from }))
    }

    /// Copies it into `aside`, durably, under a name that was free: that of the file, with where
    /// in it the part begins, and a number; returns that. A part that is copied again after a crash is
    /// there twice.
    pub(super) async fn copy(&self, disk: &dyn Disk, aside: &Path) -> io::Result<PathBuf> {
        let name = self.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let names = disk.list(aside).await?;
        let mut free = (0u32..).map(|n| format!("{name}@{}.{n}", self.from));
        let free = free.find(|name| !names.contains(name)).unwrap_or_default();
        let unfinished = aside.join("copying");
        match disk.remove(&unfinished).await {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let (source, target) =
            (disk.open(&self.path, Create::No).await?, disk.open(&unfinished, Create::New).await?);
        let mut done = 0;
        while done < self.len {
            let want = usize::try_from(self.len - done).map_or(CHUNK, |left| left.min(CHUNK));
            let bytes = source.read(self.from + done, want).await?;
            if bytes.is_empty() {
                return Err(io::Error::other(format!(
                    "{} is shorter than a moment ago",
                    self.path.display()
                )));
            }
            let len = bytes.len() as u64;
            target.write(done, vec![bytes], Durability::Later).await?;
            done += len;
        }
        target.write(done, Vec::new(), Durability::Now).await?;
        let copy = aside.join(&free);
        disk.rename(&unfinished, &copy).await?;
        disk.sync_dir(aside).await?;
        Ok(copy)
    }
}

/// Number and bytes of the files in quarantine.
pub(super) async fn contents(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<(String, u64)>> {
    list_with_lengths(disk, &dir.join(QUARANTINE)).await
}

/// The files in a directory that may not be there.
pub(super) async fn list_with_lengths(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<(String, u64)>> {
    let names = match disk.list(dir).await {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        names => names?,
    };
    let mut files = Vec::with_capacity(names.len());
    for name in names {
        let len = disk.open(&dir.join(&name), Create::No).await?.len().await?;
        files.push((name, len));
    }
    Ok(files)
}

/// Index of the last byte that is not zero.
fn last_used(bytes: &Bytes) -> Option<usize> {
    bytes.iter().rposition(|b| *b != 0)
}
