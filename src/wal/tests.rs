//! The log on the simulated disk: crashes at every call, flipped bits, cuts, retirement, full disk.

mod bits;
mod faults;
mod format;
mod idle;
mod live;
mod repair;

use std::{collections::BTreeSet, path::Path, time::Duration};

use bytes::BytesMut;

use super::*;
use crate::{
    disk::RealDisk,
    testing::{Fault, SimDisk},
};

const CLUSTER: ClusterId = ClusterId([9; 16]);
const DIR: &str = "/wal";

fn config() -> WalConfig {
    WalConfig { segment_bytes: 4096 + 1500, group_bytes: 600, tail_bytes: 400, ..WalConfig::new(DIR) }
}

type Running = tokio::task::JoinHandle<Result<(), WalError>>;

async fn open_with(disk: &SimDisk, config: WalConfig) -> Result<(Wal, Running, Recovered), WalError> {
    let mut nonce = disk.calls();
    let draw = Box::new(move || {
        nonce += 1;
        nonce.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    let (wal, driver, recovered) = Wal::open(Arc::new(disk.boot()), config, CLUSTER, draw).await?;
    Ok((wal, tokio::spawn(driver.run()), recovered))
}

async fn open(disk: &SimDisk) -> Result<(Wal, Recovered), WalError> {
    open_with(disk, config()).await.map(|(wal, _, recovered)| (wal, recovered))
}

fn draft(kind: RecordKind, len: usize, tag: u64) -> Draft {
    let payload: Vec<u8> = (0..len as u64).map(|n| (n * 31 + tag * 7 + 1) as u8).collect();
    Draft::unkeyed(kind, 1, tag as i64, payload.into())
}

fn batch(len: usize, tag: u64) -> Draft {
    draft(RecordKind::Batch, len, tag)
}

/// Everything in the log, read through one reader.
async fn all(wal: &Wal) -> Vec<Record> {
    let mut reader = wal.reader(wal.first_seq());
    let mut records = Vec::new();
    loop {
        let more = reader.read(300).await.unwrap();
        if more.is_empty() {
            return records;
        }
        records.extend(more);
    }
}

fn check_sequence(records: &[Record], first_seq: u64) {
    for (record, seq) in records.iter().zip(first_seq..) {
        assert_eq!(record.lsn.seq, seq);
    }
    for pair in records.windows(2) {
        assert_eq!(pair[1].chain, pair[0].digest);
    }
}

/// What may be found after a crash: a prefix of one of these logs, not shorter than its floor.
#[derive(Default)]
struct Model {
    versions: Vec<(Vec<Record>, u64)>,
    promise: Epoch,
    base: Lsn,
    /// A base that a call in flight may have made.
    next_base: Option<Lsn>,
}

impl Model {
    fn log(&mut self) -> &mut (Vec<Record>, u64) {
        if self.versions.is_empty() {
            self.versions.push(Default::default());
        }
        self.versions.last_mut().unwrap()
    }

    async fn append(&mut self, wal: &Wal, epoch: Epoch, len: usize) -> Result<(), WalError> {
        let tag = wal.end().seq;
        self.log().0.push(wal.append(epoch, batch(len, tag))?);
        Ok(())
    }

    async fn settle(&mut self, wal: &Wal) -> Result<(), WalError> {
        let durable = wal.settle().await?;
        self.log().1 = durable.seq;
        Ok(())
    }

    async fn cut(&mut self, wal: &Wal, keep: u64) -> Result<(), WalError> {
        let whole = self.log().0.clone();
        let kept = whole.iter().filter(|r| r.lsn.seq <= keep).cloned().collect();
        // Either everything is there, as far as it was durable, or exactly what is kept.
        self.versions.push((kept, keep.min(self.versions[0].1)));
        let report = wal.cut(keep).await?;
        assert_eq!(report.records, whole.last().unwrap().lsn.seq - keep);
        self.versions.remove(0);
        self.log().1 = keep;
        Ok(())
    }

    async fn promise(&mut self, wal: &Wal, epoch: Epoch) -> Result<(), WalError> {
        wal.set_promise(epoch).await?;
        self.promise = epoch;
        Ok(())
    }

    fn check(&self, recovered: &Recovered, records: &[Record], first_seq: u64) {
        assert!(recovered.promise >= self.promise, "a promise is lost");
        assert_eq!(recovered.end, recovered.durable);
        check_sequence(records, first_seq);
        assert_eq!(first_seq + records.len() as u64, recovered.end.seq + 1);
        if self.next_base.is_some_and(|base| recovered.end == base) {
            assert!(records.is_empty());
            return;
        }
        assert!(first_seq > self.base.seq);
        let fits = |(log, floor): &(Vec<Record>, u64)| {
            recovered.end.seq >= *floor
                && records.iter().all(|r| log.iter().any(|known| known == r))
                && (records.is_empty() || records.last().unwrap().lsn == recovered.end)
        };
        assert!(
            self.versions.is_empty() || self.versions.iter().any(fits),
            "found {recovered:?}, records {:?}, wanted one of {:?}",
            records,
            self.versions
        );
    }
}

/// One of everything, with several groups per segment and several segments.
async fn script(wal: &Wal, model: &mut Model) -> Result<(), WalError> {
    model.promise(wal, 1).await?;
    for len in [0, 5, 100, 300, 64] {
        model.append(wal, 1, len).await?;
    }
    model.settle(wal).await?;
    wal.note_commit(Lsn::new(1, 4));
    tokio::time::sleep(Duration::from_secs(1)).await;
    for len in [700, 33, 400, 1, 2, 900] {
        model.append(wal, 1, len).await?;
        model.settle(wal).await?;
    }
    // The last is long enough to be shared with its record.
    for len in [1400, 200, 4_096] {
        model.append(wal, 1, len).await?;
    }
    model.promise(wal, 2).await?;
    model.cut(wal, 9).await?;
    for len in [10, 20, 500] {
        model.append(wal, 2, len).await?;
    }
    model.settle(wal).await?;
    model.cut(wal, 11).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    for len in [600, 600, 600, 40] {
        model.append(wal, 3, len).await?;
        model.settle(wal).await?;
    }
    wal.retire(8).await?;
    model.append(wal, 3, 77).await?;
    model.settle(wal).await?;
    let base = Lsn::new(4, 100);
    model.next_base = Some(base);
    let mut epochs = wal.epochs();
    epochs.note(4, 90);
    wal.announce(base, 0xfeed, epochs).await?;
    wal.begin_anew(base).await?;
    *model = Model { promise: model.promise, base, next_base: Some(base), ..Default::default() };
    for len in [600, 600, 600] {
        model.append(wal, 4, len).await?;
        model.settle(wal).await?;
        model.next_base = None;
    }
    Ok(())
}

/// Runs the script until call `stop` and recovers after a crash or kill, twice, once with another
/// stop in between.
async fn stop_at(stop: u64, crash: bool, seed: u64) {
    let disk = SimDisk::new();
    let down = |seed| if crash { disk.crash(seed) } else { disk.kill() };
    disk.fail_at(stop, Fault::PowerCut, true);
    let mut model = Model::default();
    if let Ok((wal, _)) = open(&disk).await {
        let _ = script(&wal, &mut model).await;
    }
    down(seed);
    disk.fail_at(disk.calls() + 1 + seed % 37, Fault::PowerCut, true);
    let _ = open(&disk).await;
    down(seed + 1);
    let (wal, first) = open(&disk).await.unwrap_or_else(|e| panic!("stop {stop}: {e}"));
    model.check(&first, &all(&wal).await, wal.first_seq());
    let before = (all(&wal).await, wal.epochs(), wal.first_seq());
    // What was found must survive the loss of everything that recovery did not make durable.
    disk.crash(seed + 2);
    let (wal, second) = open(&disk).await.unwrap_or_else(|e| panic!("stop {stop}, again: {e}"));
    assert_eq!((second.end, second.promise, second.truncated), (first.end, first.promise, 0));
    assert_eq!((all(&wal).await, wal.epochs(), wal.first_seq()), before);
    // And the log goes on.
    let epoch = second.end.epoch.max(second.promise).max(1);
    let next = wal.append(epoch, batch(50, 1)).unwrap();
    assert_eq!(wal.settle().await.unwrap(), next.lsn);
}

async fn calls_of_script() -> u64 {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk).await.unwrap();
    script(&wal, &mut Model::default()).await.unwrap();
    disk.calls()
}

#[tokio::test(start_paused = true)]
async fn power_may_go_at_every_call() {
    let calls = calls_of_script().await;
    assert!(calls > 100, "{calls}");
    for stop in 1..=calls {
        for seed in 0..4 {
            stop_at(stop, true, stop * 101 + seed * 7).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_process_may_be_killed_at_every_call() {
    for stop in 1..=calls_of_script().await {
        stop_at(stop, false, stop).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_at_every_call_stops_the_log_and_loses_nothing() {
    for stop in 1..=calls_of_script().await {
        let disk = SimDisk::new();
        disk.fail_at(stop, Fault::Eio, false);
        let mut model = Model::default();
        if let Ok((wal, _)) = open(&disk).await
            && let Err(error) = script(&wal, &mut model).await
        {
            assert!(matches!(error, WalError::Failed(_) | WalError::Read(_)), "call {stop}: {error}");
            assert!(wal.failed().borrow().is_some());
            assert!(matches!(wal.append(99, batch(1, 1)), Err(WalError::Failed(_))));
            assert!(matches!(wal.settle().await, Err(WalError::Failed(_))));
        }
        disk.kill();
        let (wal, recovered) = open(&disk).await.unwrap_or_else(|e| panic!("call {stop}: {e}"));
        model.check(&recovered, &all(&wal).await, wal.first_seq());
        // A failed fsync marked pages clean that are not on disk: recovery must not believe them.
        disk.crash(stop);
        let (_, after) = open(&disk).await.unwrap_or_else(|e| panic!("call {stop}, crashed: {e}"));
        assert_eq!((after.end, after.promise), (recovered.end, recovered.promise), "call {stop}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_torn_tail_is_dropped_once() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..40 {
        let disk = SimDisk::new();
        let (wal, driver, _) =
            open_with(&disk, WalConfig { segment_bytes: 65_536, ..config() }).await.unwrap();
        wal.append(1, batch(10, 0)).unwrap();
        wal.settle().await.unwrap();
        disk.fail_at(disk.calls() + 1, Fault::PowerCut, true);
        for _ in 0..2 {
            wal.append(1, batch(200, 1)).unwrap();
        }
        assert!(driver.await.unwrap().is_err());
        disk.crash(seed);
        let config = WalConfig { segment_bytes: 65_536, ..config() };
        let (wal, _, recovered) = open_with(&disk, config).await.unwrap();
        assert!(recovered.end.seq >= 1);
        outcomes.insert((recovered.end.seq, recovered.truncated > 0));
        assert_eq!(all(&wal).await.len() as u64, recovered.end.seq);
    }
    assert!(outcomes.contains(&(1, false)) && outcomes.contains(&(3, false)), "{outcomes:?}");
    assert!(outcomes.iter().any(|o| o.1), "nothing was torn: {outcomes:?}");
}

/// Two segments; the watermark knows everything but the last two records, which are two groups.
async fn small_log() -> (SimDisk, Vec<Record>) {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk).await.unwrap();
    wal.set_promise(5).await.unwrap();
    for (n, len) in [90, 0, 900, 33, 13].into_iter().enumerate() {
        wal.append(5, batch(len, n as u64)).unwrap();
        wal.settle().await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for n in 0..2 {
        wal.append(6, batch(20, n)).unwrap();
        wal.settle().await.unwrap();
    }
    let records = all(&wal).await;
    disk.kill();
    (disk, records)
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_is_never_believed() {
    let (disk, records) = small_log().await;
    let (mut refused, mut shorter, mut harmless) = (0, 0, 0);
    for path in disk.files() {
        let content = disk.content(&path).unwrap();
        let used: Vec<usize> = (0..content.len()).filter(|at| content[*at] != 0 || at % 64 == 0).collect();
        for at in used {
            let copy = disk.fork();
            assert!(copy.flip(&path, at as u64, (at % 8) as u8));
            match open(&copy).await {
                Err(WalError::Io { .. }) => panic!("{} byte {at}: not an I/O error", path.display()),
                Err(_) => refused += 1,
                Ok((wal, recovered)) => {
                    let found = all(&wal).await;
                    assert_eq!(found[..], records[..found.len()], "{} byte {at}", path.display());
                    assert_eq!(recovered.promise, 5, "{} byte {at}", path.display());
                    if found.len() < records.len() {
                        // Only the very last group cannot be told from a torn tail.
                        assert_eq!(found.len(), records.len() - 1, "{} byte {at}", path.display());
                        shorter += 1;
                    } else {
                        harmless += 1;
                    }
                }
            }
        }
    }
    assert!(refused > 800 && shorter > 30 && harmless > 50, "{refused} {shorter} {harmless}");
}

#[tokio::test(start_paused = true)]
async fn damage_is_told_from_a_torn_tail_by_groups_and_watermark() {
    let (disk, records) = small_log().await;
    let last = disk.files().into_iter().rev().find(|p| p.to_string_lossy().contains("000")).unwrap();
    let flip_payload = |copy: &SimDisk, record: &Record| {
        let content = copy.content(&last).unwrap();
        let raw = record.raw.to_bytes();
        let at = content.windows(raw.len()).position(|w| w == raw).unwrap();
        copy.flip(&last, (at + RECORD_HEADER) as u64, 0);
    };
    // The last but one: above the watermark, but the last was written after its group was durable.
    let copy = disk.fork();
    flip_payload(&copy, &records[5]);
    let before = copy.content(&last);
    let error = open(&copy).await.unwrap_err();
    assert!(matches!(error, WalError::Corrupt { first_bad: 6, last: 7, .. }), "{error}");
    assert!(error.to_string().contains("skein inspect wal --repair"));
    assert_eq!(copy.content(&last), before, "a refused log is left as it is");
    // The last: a torn tail, as far as anyone can tell.
    let copy = disk.fork();
    flip_payload(&copy, &records[6]);
    let (_, recovered) = open(&copy).await.unwrap();
    assert_eq!((recovered.end.seq, recovered.truncated > 0), (6, true));
    // The same with a watermark that knows better.
    let (wal, recovered) = open(&disk).await.unwrap();
    assert_eq!(recovered.end.seq, 7);
    drop(wal);
    disk.kill();
    flip_payload(&disk, &records[6]);
    assert!(matches!(open(&disk).await, Err(WalError::Corrupt { first_bad: 7, last: 7, .. })));
    // A whole segment gone.
    disk.remove(&last).await.unwrap();
    assert!(matches!(open(&disk).await, Err(WalError::Corrupt { last: 7, .. })));
}

#[tokio::test(start_paused = true)]
async fn a_reader_reports_damage_under_it() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk).await.unwrap();
    for n in 0..12 {
        wal.append(1, batch(150, n)).unwrap();
    }
    wal.settle().await.unwrap();
    let records = all(&wal).await;
    assert_eq!(records.len(), 12);
    let path = Path::new(DIR).join(segment::segment_name(1));
    let content = disk.content(&path).unwrap();
    let raw = records[2].raw.to_bytes();
    let at = content.windows(raw.len()).position(|w| w == raw).unwrap();
    disk.flip(&path, at as u64 + 90, 3);
    let mut reader = wal.reader(1);
    assert_eq!(reader.read(10_000).await.unwrap(), records[..2]);
    assert!(matches!(reader.read(10_000).await, Err(ReadError::Damaged { seq: 3, .. })));
    assert!(matches!(wal.chain_at(3).await, Err(WalError::Read(ReadError::Damaged { seq: 3, .. }))));
    // Records in memory do not need the file.
    assert_eq!(wal.reader(11).read(10_000).await.unwrap(), records[10..]);
}

#[tokio::test(start_paused = true)]
async fn files_and_memory_tell_the_same() {
    let disk = SimDisk::new();
    let big = WalConfig { tail_bytes: 1 << 20, ..config() };
    let (wal, _, _) = open_with(&disk, big).await.unwrap();
    for n in 0..40 {
        let key = [None, Some(DedupKey::Client { key: [n as u8; 16], body: [1; 16] })][n as usize % 2];
        wal.append(1 + n / 15, Draft { key, ..batch((n * 37 % 500) as usize, n) }).unwrap();
    }
    let queued = all(&wal).await;
    assert_eq!(queued.len(), 40, "readers see records before they are durable");
    assert_eq!(wal.durable(), Lsn::ZERO);
    wal.settle().await.unwrap();
    let memory = all(&wal).await;
    let epochs = wal.epochs();
    disk.kill();
    let (wal, recovered) = open(&disk).await.unwrap();
    let files = all(&wal).await;
    assert_eq!(files, memory);
    assert_eq!(queued, memory);
    check_sequence(&files, 1);
    assert_eq!((wal.epochs(), recovered.end), (epochs, Lsn::new(3, 40)));
    for from in 1..=41 {
        let read = wal.reader(from).read(700).await.unwrap();
        assert_eq!(read.first(), files.get(from as usize - 1));
        let bytes: usize = read.iter().map(|r| r.raw.len()).sum();
        assert!(read.len() <= 1 || bytes <= 700);
    }
    for record in &files {
        assert_eq!(wal.chain_at(record.lsn.seq).await.unwrap(), Some(record.digest));
    }
    assert_eq!((wal.chain_at(0).await.unwrap(), wal.chain_at(41).await.unwrap()), (Some(0), None));
}

#[tokio::test(start_paused = true)]
async fn a_cut_keeps_orphans_and_tells_readers() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk).await.unwrap();
    for n in 0..20 {
        wal.append(1, batch(200, n)).unwrap();
    }
    wal.settle().await.unwrap();
    let before = all(&wal).await;
    let (mut behind, mut level) = (wal.reader(1), wal.reader(1));
    behind.read(1).await.unwrap();
    while level.position() <= 9 {
        level.read(1).await.unwrap();
    }
    wal.note_commit(Lsn::new(1, 7));
    assert!(matches!(wal.cut(6).await, Err(WalError::Refused(_))));
    assert_eq!(wal.cut(20).await.unwrap(), CutReport::default());
    let report = wal.cut(7).await.unwrap();
    assert_eq!((report.records, report.range), (13, Some((Lsn::new(1, 8), Lsn::new(1, 20)))));
    let orphan = disk.content(&report.orphan.unwrap()).unwrap();
    let raw: Vec<u8> = before[7..].iter().flat_map(|r| r.raw.to_bytes().to_vec()).collect();
    assert_eq!(orphan[ORPHAN_HEADER..], raw);
    assert_eq!(report.bytes, raw.len() as u64);
    assert_eq!(
        (wal.end(), wal.durable(), wal.chain_at(8).await.unwrap()),
        (Lsn::new(1, 7), Lsn::new(1, 7), None)
    );
    assert!(matches!(level.read(1).await, Err(ReadError::Cut { keep: 7 })));

    let next = wal.append(2, batch(300, 99)).unwrap();
    assert_eq!((next.lsn, next.chain), (Lsn::new(2, 8), before[6].digest));
    wal.settle().await.unwrap();
    let mut seen = Vec::new();
    while behind.position() <= 8 {
        seen.extend(behind.read(500).await.unwrap());
    }
    assert_eq!(seen[..6], before[1..7]);
    assert_eq!(seen[6], next);
    assert_eq!(wal.epochs().entries(), [(1, 1), (2, 8)]);
    disk.crash(3);
    let (wal, recovered) = open(&disk).await.unwrap();
    assert_eq!((recovered.end, recovered.commit), (Lsn::new(2, 8), Lsn::new(1, 7)));
    assert_eq!(all(&wal).await.last(), Some(&next));
}

#[tokio::test(start_paused = true)]
async fn retirement_keeps_epochs_and_recycles() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk).await.unwrap();
    for n in 0..30 {
        wal.append(1 + n / 7, batch(200, n)).unwrap();
        wal.settle().await.unwrap();
    }
    let (epochs, digest) = (wal.epochs(), wal.chain_at(19).await.unwrap());
    let mut reader = wal.reader(1);
    assert_eq!(wal.retire(0).await.unwrap(), 1);
    let first = wal.retire(19).await.unwrap();
    assert!((10..=20).contains(&first), "{first}");
    assert_eq!(wal.first_seq(), first);
    assert!(matches!(reader.read(1).await, Err(ReadError::Retired { first_seq }) if first_seq == first));
    assert_eq!(wal.chain_at(1).await.unwrap(), None);
    assert!(wal.chain_at(first - 1).await.unwrap().is_some());
    let records = all(&wal).await;
    disk.crash(1);
    let (wal, recovered) = open(&disk).await.unwrap();
    assert_eq!((wal.first_seq(), wal.epochs(), recovered.end), (first, epochs, Lsn::new(5, 30)));
    assert_eq!(all(&wal).await, records);
    assert_eq!(wal.chain_at(19).await.unwrap(), digest);
    // Everything durable may go but the segment being written.
    assert!(wal.retire(u64::MAX).await.unwrap() <= 30);
    assert_eq!(wal.end(), Lsn::new(5, 30));
}

#[tokio::test(start_paused = true)]
async fn a_promise_is_kept_and_a_log_without_it_refuses() {
    let disk = SimDisk::new();
    let (wal, recovered) = open(&disk).await.unwrap();
    assert!(recovered.empty && recovered.end == Lsn::ZERO);
    wal.set_promise(7).await.unwrap();
    wal.set_promise(3).await.unwrap();
    assert_eq!(wal.promise(), 7);
    assert!(matches!(wal.append(6, batch(1, 1)), Err(WalError::OldEpoch { epoch: 6, newest: 7 })));
    wal.append(7, batch(1, 1)).unwrap();
    wal.settle().await.unwrap();
    disk.crash(2);
    let (_, recovered) = open(&disk).await.unwrap();
    assert_eq!((recovered.promise, recovered.empty), (7, false));
    disk.kill();
    for (file, missing) in [("promise", true), ("watermark", false)] {
        let copy = disk.fork();
        copy.remove(&Path::new(DIR).join(file)).await.unwrap();
        match open(&copy).await {
            Err(WalError::MissingPromise { .. }) => assert!(missing),
            Err(WalError::DamagedFile { .. }) => assert!(!missing),
            other => panic!("{file}: {other:?}"),
        }
    }
    let other = Wal::open(Arc::new(disk.boot()), config(), ClusterId([1; 16]), Box::new(|| 1)).await;
    assert!(matches!(other, Err(WalError::OtherCluster { found: CLUSTER })));
}

#[tokio::test(start_paused = true)]
async fn a_reset_survives_and_the_log_goes_on_behind_it() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk).await.unwrap();
    for n in 0..20 {
        wal.append(1, batch(200, n)).unwrap();
    }
    let epochs = EpochTable::from_entries(vec![(1, 1), (3, 12)]).unwrap();
    assert!(matches!(wal.announce(Lsn::new(1, 20), 5, epochs.clone()).await, Err(WalError::Refused(_))));
    assert!(matches!(wal.announce(Lsn::new(4, 50), 5, epochs.clone()).await, Err(WalError::Refused(_))));
    assert_eq!(wal.begin_anew(Lsn::new(9, 99)).await.unwrap(), None, "nothing is announced");
    // Given up, for the engine has come to nothing.
    wal.announce(Lsn::new(3, 15), 5, epochs.clone()).await.unwrap();
    assert_eq!(wal.begin_anew(Lsn::new(3, 14)).await.unwrap(), None);
    assert_eq!(wal.begin_anew(Lsn::new(3, 15)).await.unwrap(), None);
    assert_eq!(wal.end(), Lsn::new(1, 20));
    // Beyond the end by epoch, though shorter: what is behind it is cut. Announced in a former life.
    wal.announce(Lsn::new(3, 15), 5, epochs.clone()).await.unwrap();
    disk.crash(3);
    let (wal, recovered) = open(&disk).await.unwrap();
    assert_eq!(recovered.end, Lsn::new(1, 20));
    assert_eq!(wal.begin_anew(Lsn::new(3, 15)).await.unwrap(), Some(Lsn::new(3, 15)));
    assert_eq!(wal.commit(), Lsn::new(3, 15));
    assert!(!disk.files().iter().any(|path| path.ends_with("base.next")));
    let check = async |wal: &Wal| {
        assert_eq!((wal.end(), wal.durable(), wal.first_seq()), (Lsn::new(3, 15), Lsn::new(3, 15), 16));
        assert_eq!(wal.epochs(), EpochTable::from_entries(vec![(1, 1), (3, 12)]).unwrap());
        assert_eq!(wal.chain_at(15).await.unwrap(), Some(5));
        assert!(matches!(wal.reader(3).read(1).await, Err(ReadError::Retired { first_seq: 16 })));
        assert!(wal.reader(16).read(1).await.unwrap().is_empty());
    };
    check(&wal).await;
    disk.crash(4);
    let (wal, recovered) = open(&disk).await.unwrap();
    assert_eq!(
        (recovered.end, recovered.durable, recovered.empty),
        (Lsn::new(3, 15), Lsn::new(3, 15), false)
    );
    check(&wal).await;
    let next = wal.append(3, batch(9, 9)).unwrap();
    assert_eq!((next.lsn, next.chain), (Lsn::new(3, 16), 5));
    wal.settle().await.unwrap();
    disk.crash(5);
    let (wal, _) = open(&disk).await.unwrap();
    assert_eq!(all(&wal).await, [next]);
}

#[tokio::test(start_paused = true)]
async fn a_replica_takes_only_what_continues_its_log() {
    let (one, two) = (SimDisk::new(), SimDisk::new());
    let (writer, _) = open(&one).await.unwrap();
    let (replica, _) = open(&two).await.unwrap();
    for n in 0..9 {
        writer.append(1 + n / 4, batch(100, n)).unwrap();
    }
    writer.settle().await.unwrap();
    let records = all(&writer).await;
    let bytes = |range: std::ops::Range<usize>| {
        let mut bytes = BytesMut::new();
        records[range].iter().for_each(|r| bytes.extend_from_slice(&r.raw.to_bytes()));
        bytes.freeze()
    };
    assert!(matches!(replica.append_replica(bytes(1..2)), Err(WalError::Gap { expected: 1, .. })));
    assert_eq!(replica.append_replica(bytes(0..3)).unwrap(), Lsn::new(1, 3));
    assert!(matches!(replica.append_replica(bytes(2..4)), Err(WalError::Gap { expected: 4, .. })));
    assert!(matches!(replica.append_replica(bytes(4..5)), Err(WalError::Gap { expected: 4, .. })));
    // All or none.
    let mut torn = bytes(3..6).to_vec();
    torn.truncate(torn.len() - 8);
    assert!(matches!(replica.append_replica(torn.into()), Err(WalError::Record(RecordError::Short { .. }))));
    let mut wrong = bytes(3..6).to_vec();
    let len = wrong.len();
    wrong[len - 10] ^= 1;
    assert!(matches!(replica.append_replica(wrong.into()), Err(WalError::Record(_))));
    assert_eq!(replica.end(), Lsn::new(1, 3));
    // Another history with the right position.
    let draft = batch(100, 77);
    let other = record::Unplaced::new(draft.clone()).unwrap().place(Lsn::new(1, 4), 0x1234);
    assert!(
        matches!(replica.append_replica(other.raw.to_bytes()), Err(WalError::Chain { at }) if at == Lsn::new(1, 4))
    );
    assert_eq!(replica.append_replica(bytes(3..9)).unwrap(), Lsn::new(3, 9));
    let old = record::Unplaced::new(draft).unwrap().place(Lsn::new(2, 10), records[8].digest);
    assert!(matches!(
        replica.append_replica(old.raw.to_bytes()),
        Err(WalError::OldEpoch { epoch: 2, newest: 3 })
    ));
    replica.settle().await.unwrap();
    assert_eq!(all(&replica).await, records);
    assert_eq!(replica.epochs(), writer.epochs());
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_batches_and_heals_without_restart() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk).await.unwrap();
    wal.append(1, batch(600, 0)).unwrap();
    wal.settle().await.unwrap();
    disk.set_limit(Some(disk.used()));
    let mut full = wal.watch_full();
    assert!(!*full.borrow());
    // The next segment is the spare; no other can be made behind it.
    wal.append(1, batch(900, 1)).unwrap();
    wal.settle().await.unwrap();
    assert!(*full.borrow_and_update());
    assert!(matches!(wal.append(1, batch(1, 2)), Err(WalError::Full)));
    wal.append(2, draft(RecordKind::EpochStart, 20, 3)).unwrap();
    wal.set_promise(2).await.unwrap();
    let end = wal.settle().await.unwrap();
    assert!(matches!(wal.append(2, draft(RecordKind::Control, 1000, 3)), Err(WalError::Full)));
    assert_eq!(all(&wal).await.len(), 3);
    // A restart finds the same.
    let copy = disk.fork();
    copy.kill();
    let (again, _) = open(&copy).await.unwrap();
    assert!(matches!(again.append(2, batch(1, 2)), Err(WalError::Full)));
    // Retiring makes space, and needs none.
    assert_eq!(again.retire(1).await.unwrap(), 2);
    again.append(2, batch(600, 2)).unwrap();
    assert_eq!(again.settle().await.unwrap().seq, end.seq + 1);

    disk.set_limit(None);
    full.changed().await.unwrap();
    assert!(!*full.borrow());
    wal.append(2, batch(1400, 4)).unwrap();
    assert_eq!(wal.settle().await.unwrap(), Lsn::new(2, end.seq + 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_queued_when_the_disk_fills_waits_for_space() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk).await.unwrap();
    disk.set_limit(Some(disk.used()));
    for n in 0..4 {
        wal.append(1, batch(1200, n)).unwrap();
    }
    assert!(matches!(wal.settle().await, Err(WalError::Full)));
    assert_eq!((wal.durable(), wal.end()), (Lsn::new(1, 1), Lsn::new(1, 4)));
    assert!(matches!(wal.cut(1).await, Err(WalError::Full)));
    disk.set_limit(None);
    let mut durable = wal.watch_durable();
    tokio::time::timeout(Duration::from_secs(5), durable.wait_for(|d| d.seq == 4)).await.unwrap().unwrap();
    assert_eq!(wal.settle().await.unwrap(), Lsn::new(1, 4));
}

#[tokio::test(start_paused = true)]
async fn what_is_queued_on_a_full_disk_can_be_given_up() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk).await.unwrap();
    disk.set_limit(Some(disk.used()));
    let kept = wal.append(1, batch(1200, 0)).unwrap();
    let mut reader = wal.reader(1);
    for n in 1..4 {
        wal.append(1, batch(1200, n)).unwrap();
    }
    assert!(matches!(wal.settle().await, Err(WalError::Full)));
    while reader.position() <= 4 {
        reader.read(1 << 20).await.unwrap();
    }
    // Not while the epoch may go on: a reader has passed on what is at these positions.
    assert!(matches!(wal.drop_queued(1).await, Err(WalError::Full)));
    assert_eq!(wal.end(), Lsn::new(1, 4));
    assert_eq!(wal.drop_queued(2).await.unwrap(), 3);
    assert_eq!((wal.durable(), wal.end()), (Lsn::new(1, 1), Lsn::new(1, 1)));
    assert_eq!(wal.settle().await.unwrap(), Lsn::new(1, 1));
    assert!(matches!(reader.read(1 << 20).await, Err(ReadError::Cut { keep: 1 })));
    wal.set_promise(2).await.unwrap();
    disk.set_limit(None);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(wal.durable(), Lsn::new(1, 1), "given up is given up");
    // The log goes on where it ends, and a restart finds what it holds.
    let next = wal.append(2, batch(300, 9)).unwrap();
    assert_eq!((next.lsn, next.chain), (Lsn::new(2, 2), kept.digest));
    wal.settle().await.unwrap();
    assert_eq!(wal.drop_queued(9).await.unwrap(), 0);
    disk.crash(3);
    let (again, recovered) = open(&disk).await.unwrap();
    assert_eq!((recovered.end, recovered.promise), (Lsn::new(2, 2), 2));
    assert_eq!(all(&again).await, [kept, next]);
}

#[tokio::test(start_paused = true)]
async fn the_driver_ends_with_the_last_handle_and_writes_what_is_queued() {
    let disk = SimDisk::new();
    let (wal, driver, _) = open_with(&disk, config()).await.unwrap();
    let other = wal.clone();
    for n in 0..10 {
        wal.append(1, batch(300, n)).unwrap();
    }
    drop((wal, other));
    driver.await.unwrap().unwrap();
    disk.crash(0);
    let (wal, recovered) = open(&disk).await.unwrap();
    assert_eq!(recovered.end, Lsn::new(1, 10));
    // A driver that is dropped before stops the log.
    let (other, driver, _) = open_with(&SimDisk::new(), config()).await.unwrap();
    driver.abort();
    assert!(driver.await.is_err());
    assert!(matches!(other.append(1, batch(1, 1)), Err(WalError::Failed(_))));
    assert!(matches!(other.set_promise(3).await, Err(WalError::Failed(_))));
    drop(wal);
}

#[tokio::test]
async fn many_tasks_append_to_a_real_disk() {
    let home = tempfile::tempdir().unwrap();
    let config = WalConfig { segment_bytes: 64 << 10, ..WalConfig::new(home.path().join("wal")) };
    let open = async || {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        Wal::open(disk, config.clone(), CLUSTER, Box::new(|| 42)).await.unwrap()
    };
    let (wal, driver, _) = open().await;
    let driver = tokio::spawn(driver.run());
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let wal = wal.clone();
            tokio::spawn(async move {
                for n in 0..25 {
                    let record = wal.append(1, batch(700, task * 100 + n)).unwrap();
                    assert!(wal.settle().await.unwrap() >= record.lsn);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let records = all(&wal).await;
    check_sequence(&records, 1);
    assert_eq!(records.len(), 200);
    drop(wal);
    driver.await.unwrap().unwrap();
    let (wal, driver, recovered) = open().await;
    let driver = tokio::spawn(driver.run());
    assert_eq!((recovered.end, recovered.truncated), (Lsn::new(1, 200), 0));
    assert_eq!(all(&wal).await, records);
    drop(wal);
    driver.await.unwrap().unwrap();
}
