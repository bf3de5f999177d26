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

use std::{path::Path, sync::Arc};

use tokio::sync::mpsc;

use super::{
    Recovered, WalConfig, WalDriver, WalError,
    anew::announced,
    base::{BASE, Base},
    error::NO_PROMISE,
    quarantine::{Damage, Remains, contents},
    scan::{Scan, Stop},
    segment::{SEGMENT_HEADER, Segment, SegmentHeader, look_behind, parse_segment_name, segment_name},
    state::{Shared, State},
    watermark::{PROMISE, Promise, WATERMARK, Watermark},
    writer::{Command, Nonces, Parts, allocate_spare},
};
use crate::{
    disk::{Create, Disk, SlotValues, Slots, SlotsError},
    types::{ClusterId, Lsn},
};

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
    // A cut that was announced may be readable and not on disk, after a kill or a failed fsync: nothing
    // goes before it is.
    if mark.end.is_some() {
        rewrite(&*disk, dir, WATERMARK, mark.values(), "writing the watermark").await?;
    }
    for first in gone {
        disk.remove(&dir.join(segment_name(first))).await.map_err(io("removing a log segment"))?;
    }
    disk.sync_dir(dir).await.map_err(io("syncing the log's directory"))?;
    scan.settle(mark.durable.seq).await?;

    // Only now is anything durable said: again, because a failed fsync of a former life may have
    // left these files readable but not on disk. The promise first: a log without it is refused.
    let durable = scan.end;
    // What a log begins behind is in a checkpoint, and so was committed.
    let commit = mark.commit.max(base.lsn);
    let lasting = Watermark { durable, commit, end: None };
    let promise_slots = rewrite(&*disk, dir, PROMISE, promise.values(), "writing the promise").await?;
    let mark_slots = rewrite(&*disk, dir, WATERMARK, lasting.values(), "writing the watermark").await?;
    let spare = allocate_spare(&*disk, &config).await.map_err(io("allocating a log segment"))?;
    disk.sync_dir(dir).await.map_err(io("syncing the log's directory"))?;

    let announced = announced(&*disk, dir).await?;
    let aside = contents(&*disk, dir).await.map_err(io("looking into the quarantine"))?;
    let recovered = Recovered {
        end: durable,
        durable,
        promise: promise.epoch,
        commit,
        truncated: scan.truncated,
        empty: durable == Lsn::ZERO && promise.debt.is_none(),
        debt: promise.debt,
        quarantined: aside.iter().map(|file| file.1).sum(),
    };
    let mut state = State::recovered(base, scan.segments, durable, scan.digest);
    (state.epochs, state.promise, state.debt) = (scan.epochs, promise.epoch, promise.debt);
    state.commit = commit;
    let shared = Arc::new(Shared::new(state, spare.is_none(), config.tail_bytes, recovered.quarantined));
    let (watermark, promise) = (mark_slots, promise_slots);
    let parts = Parts { shared, disk, config, cluster, watermark, promise, spare, announced, nonce };
    Ok(Opened { parts, recovered })
}

/// Writes both slots of a file, and makes it if it is not there.
async fn rewrite(
    disk: &dyn Disk,
    dir: &Path,
    (name, magic): (&str, [u8; 4]),
    values: SlotValues,
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
        true => Base::load(disk, dir, BASE).await.map_err(io("reading the base of the log"))?,
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
