//! Opening a log: finishing a cut that was under way, telling a torn tail from damage, and making
//! durable what is there before anything is said about it.
//!
//! At the first bad record s it is a **torn tail** if s is above the watermark and every record
//! behind it that still verifies was in a group that began at or below s: that group never came
//! back from its fsync. Anything else is **damage** to records that were durable: a group behind
//! was only written once the one with s was. Damage to the very last group cannot be told from a
//! torn tail, unless the watermark knows it.
//!
//! Looking ([`read`]) changes nothing, so that `skein inspect` may look too. What is found is then
//! refused, or set aside (`quarantine.rs`) and looked at again.

use std::{collections::VecDeque, path::Path, sync::Arc};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{
    Recovered, WalConfig, WalDriver, WalError,
    base::{BASE, Base},
    cut::zero,
    error::NO_PROMISE,
    quarantine::{BadRecords, Damage, Remains, contents},
    segment::{
        Behind, Cursor, FOUND, NoRecord, OTHER_FORMAT, SEGMENT_HEADER, Segment, SegmentHeader, look_behind,
        parse_segment_name, segment_name,
    },
    slots::{Slots, SlotsError, Values},
    state::{Shared, State},
    watermark::{PROMISE, Promise, WATERMARK, Watermark},
    writer::{Command, Nonces, Parts, allocate_spare},
};
use crate::{
    disk::{Create, Disk, Durability},
    types::{ClusterId, EpochTable, Lsn},
};

/// Bytes written again at once.
const CHUNK: usize = 1 << 20;
/// Damage is set aside so often at most. Once is enough for a disk that reads the same twice.
const TRIES: u32 = 3;

/// A log that is ready for its driver.
pub(super) struct Opened {
    parts: Parts,
    recovered: Recovered,
}

impl Opened {
    pub(super) fn into_driver(self, commands: mpsc::Receiver<Command>) -> (WalDriver, Recovered) {
        (WalDriver::new(self.parts, commands), self.recovered)
    }
}

/// Opens or makes the log.
pub(super) async fn recover(
    disk: Arc<dyn Disk>,
    config: WalConfig,
    cluster: ClusterId,
    nonce: Nonces,
) -> Result<Opened, WalError> {
    let dir = &config.dir;
    disk.create_dir(dir).await.map_err(io("making the log's directory"))?;
    let mut reading = read(&*disk, dir, Some(cluster)).await?;
    let mut tries = 0;
    while let Some(damage) = reading.damage.first() {
        if !config.quarantine || tries == TRIES {
            return Err(damage.clone().refuse(dir));
        }
        tries += 1;
        set_aside(&*disk, dir, &reading).await?;
        reading = read(&*disk, dir, Some(cluster)).await?;
    }
    if let Some(debt) = reading.promise.debt.filter(|_| !config.quarantine) {
        return Err(WalError::Owes(debt));
    }
    make_lasting(disk, config, cluster, nonce, reading).await
}

async fn set_aside(disk: &dyn Disk, dir: &Path, reading: &Reading) -> Result<(), WalError> {
    let what = io("setting damaged records aside (there must be space for a copy of them)");
    let remains = Remains::of(disk, dir, reading).await.map_err(&what)?;
    tracing::error!(
        damage = ?reading.damage,
        kept = %remains.end,
        bytes = remains.bytes(),
        "the log is damaged: cut behind its last good record; the rest is kept in quarantine/ and fetched \
         again from the writer; until then this node answers no seal"
    );
    remains.cut_back(disk, dir, reading.promise.epoch, reading.mark.commit).await.map_err(&what)
}

/// Finishes what was under way, and makes durable what was read before anything is said of it.
async fn make_lasting(
    disk: Arc<dyn Disk>,
    config: WalConfig,
    cluster: ClusterId,
    nonce: Nonces,
    reading: Reading,
) -> Result<Opened, WalError> {
    let Reading { promise, mark, base, gone, scan, .. } = reading;
    let dir = &config.dir;
    for first in gone {
        disk.remove(&dir.join(segment_name(first))).await.map_err(io("removing a log segment"))?;
    }
    disk.sync_dir(dir).await.map_err(io("syncing the log's directory"))?;
    scan.settle(mark.durable.seq).await?;

    // Only now is anything durable said: again, because a failed fsync of a former life may have
    // left these files readable but not on disk. The promise first: a log without it is refused.
    let durable = scan.end;
    let lasting = Watermark { durable, commit: mark.commit, end: None };
    let promise_slots = rewrite(&*disk, dir, PROMISE, promise.values(), "writing the promise").await?;
    let mark_slots = rewrite(&*disk, dir, WATERMARK, lasting.values(), "writing the watermark").await?;
    let spare = allocate_spare(&*disk, &config).await.map_err(io("allocating a log segment"))?;
    disk.sync_dir(dir).await.map_err(io("syncing the log's directory"))?;

    let aside = contents(&*disk, dir).await.map_err(io("looking into the quarantine"))?;
    let recovered = Recovered {
        end: durable,
        durable,
        promise: promise.epoch,
        commit: mark.commit,
        truncated: scan.truncated,
        empty: durable == Lsn::ZERO && promise.debt.is_none(),
        debt: promise.debt,
        quarantined: aside.iter().map(|file| file.1).sum(),
    };
    let mut state = State::recovered(base, scan.segments, durable, scan.digest);
    (state.epochs, state.promise, state.debt) = (scan.epochs, promise.epoch, promise.debt);
    state.commit = mark.commit;
    let shared = Arc::new(Shared::new(state, spare.is_none(), config.tail_bytes, recovered.quarantined));
    let (watermark, promise) = (mark_slots, promise_slots);
    Ok(Opened { parts: Parts { shared, disk, config, cluster, watermark, promise, spare, nonce }, recovered })
}

/// Writes both slots of a file, and makes it if it is not there.
async fn rewrite(
    disk: &dyn Disk,
    dir: &Path,
    (name, magic): (&str, [u8; 4]),
    values: Values,
    what: &'static str,
) -> Result<Slots, WalError> {
    let path = dir.join(name);
    match Slots::open(disk, &path, magic).await {
        Ok((mut slots, _)) => {
            slots.write_both(values).await.map_err(io(what))?;
            Ok(slots)
        }
        Err(SlotsError::Io(e)) if e.kind() == std::io::ErrorKind::NotFound => {
            Slots::create(disk, &path, magic, values).await.map_err(io(what))?;
            Slots::open(disk, &path, magic).await.map(|opened| opened.0).map_err(slots(what))
        }
        Err(error) => Err(slots(what)(error)),
    }
}

/// What lies in the directory of a log.
pub(super) struct Reading {
    pub(super) promise: Promise,
    pub(super) mark: Watermark,
    pub(super) base: Base,
    /// First seqs of segments that a cut, a retirement or a reset left over.
    pub(super) gone: Vec<u64>,
    /// The log, up to the first damage in it.
    pub(super) scan: Scan,
    /// What is wrong.
    pub(super) damage: Vec<Damage>,
    /// If something is: the highest position that is found anywhere in the segments.
    pub(super) seen: Lsn,
}

/// Reads a log, which may be empty; changes nothing. `cluster`: whose it must be, if that is known.
pub(super) async fn read(
    disk: &dyn Disk,
    dir: &Path,
    cluster: Option<ClusterId>,
) -> Result<Reading, WalError> {
    let names = disk.list(dir).await.map_err(io("listing the log's directory"))?;
    let has = |name: &str| names.iter().any(|n| n == name);
    let firsts: Vec<u64> = names.iter().filter_map(|name| parse_segment_name(name)).collect();
    let begun = has(BASE) || !firsts.is_empty();
    let mut damage = Vec::new();

    let promise = if has(PROMISE.0) {
        let read = Slots::open(disk, &dir.join(PROMISE.0), PROMISE.1).await;
        Promise::from_values(read.map_err(slots("reading the promise"))?.1)
    } else if begun || has(WATERMARK.0) {
        // Model: promise_fsynced
        return Err(WalError::MissingPromise { dir: dir.to_owned() });
    } else {
        Promise::default()
    };
    let mark = match Slots::open(disk, &dir.join(WATERMARK.0), WATERMARK.1).await {
        _ if !has(WATERMARK.0) => {
            damage.extend(begun.then_some(Damage::File(WATERMARK.0, "it is missing")));
            Watermark::default()
        }
        Ok((_, values)) => Watermark::from_values(values),
        Err(SlotsError::Damaged(_)) => {
            damage.push(Damage::File(WATERMARK.0, "neither copy in it is whole"));
            Watermark::default()
        }
        Err(SlotsError::Io(error)) => return Err(io("reading the watermark")(error)),
    };
    let base = match has(BASE) {
        true => Base::load(disk, dir).await.map_err(io("reading the base of the log"))?,
        false => Some(Base::default()),
    };
    let Some(base) = base else {
        damage.push(Damage::File(BASE, "its checksum does not match"));
        let scan = Scan::new(&Base::default(), mark, cluster);
        let seen = highest(disk, dir, &firsts).await?;
        return Ok(Reading { promise, mark, base: Base::default(), gone: Vec::new(), scan, damage, seen });
    };

    // What a retirement or a reset left over is told by the base; what a cut left over, by its end.
    let cut_at = mark.end.unwrap_or(u64::MAX);
    let (live, gone): (Vec<u64>, Vec<u64>) =
        firsts.into_iter().partition(|first| *first > base.lsn.seq && *first <= cut_at);
    let mut scan = Scan::new(&base, mark, cluster);
    let mut seen = Lsn::ZERO;
    match scan.all(disk, dir, &live).await {
        Ok(()) => {}
        Err(Stop::Bad(mut bad)) => {
            seen = highest(disk, dir, &live).await?;
            bad.last = bad.last.max(seen.seq);
            damage.push(Damage::Records(bad));
        }
        Err(Stop::Error(error)) => return Err(error),
    }
    Ok(Reading { promise, mark, base, gone, scan, damage, seen })
}

/// The highest position of a record whose header verifies, in segments of which some may be damaged.
async fn highest(disk: &dyn Disk, dir: &Path, firsts: &[u64]) -> Result<Lsn, WalError> {
    let mut highest = Lsn::ZERO;
    for first in firsts {
        let path = dir.join(segment_name(*first));
        let file = disk.open(&path, Create::No).await.map_err(io("opening a log segment"))?;
        let len = file.len().await.map_err(io("opening a log segment"))?;
        let head = file.read(0, SEGMENT_HEADER as usize).await.map_err(io("reading a log segment"))?;
        if let Ok(header) = SegmentHeader::decode(&head) {
            let segment = Segment::new(path, file, header, len);
            let found = look_behind(&segment, SEGMENT_HEADER).await.map_err(io("reading a log segment"))?;
            highest = highest.max(found.last);
        }
    }
    Ok(highest)
}

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
enum Stop {
    Bad(BadRecords),
    Error(WalError),
}

impl From<WalError> for Stop {
    fn from(error: WalError) -> Self {
        Self::Error(error)
    }
}

impl Scan {
    fn new(base: &Base, mark: Watermark, cluster: Option<ClusterId>) -> Self {
        let (end, digest, epochs) = (base.lsn, base.chain, base.epochs.clone());
        let (segments, truncated, unsure, torn) = (VecDeque::new(), 0, SEGMENT_HEADER, None);
        Self { mark, cluster, segments, end, digest, epochs, truncated, unsure, torn }
    }

    /// Reads the segments that begin with these seqs.
    async fn all(&mut self, disk: &dyn Disk, dir: &Path, live: &[u64]) -> Result<(), Stop> {
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
    async fn settle(&self, durable: u64) -> Result<(), WalError> {
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

/// Says what was tried when the disk failed.
pub(super) fn io(what: &'static str) -> impl Fn(std::io::Error) -> WalError {
    move |source| WalError::Io { what: what.to_owned(), source }
}

fn slots(what: &'static str) -> impl Fn(SlotsError) -> WalError {
    move |error| match error {
        SlotsError::Damaged(file) => {
            WalError::DamagedFile { file, reason: "neither copy in it is whole", advice: NO_PROMISE }
        }
        SlotsError::Io(source) => WalError::Io { what: what.to_owned(), source },
    }
}
