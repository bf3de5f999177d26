//! Damage: set aside, owed, fetched again; or accepted as lost.

use super::*;

/// Opens as a node with peers does.
pub(super) async fn open_with_peers(disk: &SimDisk) -> Result<(Wal, Recovered), WalError> {
    let config = WalConfig { quarantine: true, ..config() };
    open_with(disk, config).await.map(|(wal, _, recovered)| (wal, recovered))
}

/// The segment files, oldest first.
pub(super) fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    let files = disk.files().into_iter();
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    files.filter(|path| segment::parse_segment_name(&name(path)).is_some()).collect()
}

/// File and offset of a record's replicated part.
pub(super) fn place(disk: &SimDisk, record: &Record) -> (PathBuf, u64) {
    let raw = record.raw.to_bytes();
    for path in segments(disk) {
        let content = disk.content(&path).unwrap();
        if let Some(at) = content.windows(raw.len()).position(|w| w == raw) {
            return (path, at as u64);
        }
    }
    panic!("{record:?} is nowhere");
}

/// Flips a bit of a record's payload.
pub(super) fn spoil(disk: &SimDisk, record: &Record) {
    let (path, at) = place(disk, record);
    assert!(disk.flip(&path, at + RECORD_HEADER as u64, 1));
}

/// Everything in quarantine, one file behind the other.
pub(super) fn quarantined(disk: &SimDisk) -> Vec<u8> {
    let dir = Path::new(DIR).join("quarantine");
    disk.files().iter().filter(|path| path.starts_with(&dir)).flat_map(|p| disk.content(p).unwrap()).collect()
}

pub(super) fn contains(bytes: &[u8], record: &Record) -> bool {
    let raw = record.raw.to_bytes();
    bytes.windows(raw.len()).any(|w| w == raw)
}

/// What the writer would send.
pub(super) async fn send_rest(wal: &Wal, records: &[Record]) {
    for record in records.iter().skip_while(|record| record.lsn.seq <= wal.end().seq) {
        wal.append_replica(record.raw.to_bytes()).unwrap();
    }
    wal.settle().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn damage_is_set_aside_and_owed_until_it_is_paid() {
    let (disk, records) = small_log().await;
    spoil(&disk, &records[2]);
    let (wal, recovered) = open_with_peers(&disk).await.unwrap();
    let debt = Debt { lost_from: 3, reach: Lsn::new(6, 7) };
    assert_eq!((recovered.end, recovered.debt, recovered.promise), (Lsn::new(5, 2), Some(debt), 5));
    assert_eq!(all(&wal).await, records[..2]);
    assert_eq!(wal.epochs().entries(), [(5, 1)]);
    // What was whole behind the damage is kept too, and the damaged record as it lay.
    let aside = quarantined(&disk);
    assert!(records[3..].iter().all(|record| contains(&aside, record)) && !contains(&aside, &records[2]));
    assert_eq!(recovered.quarantined, aside.len() as u64);
    // No writer's log, but a follower's.
    assert!(matches!(wal.append(7, batch(1, 1)), Err(WalError::Refused(_))));
    send_rest(&wal, &records[..5]).await;
    wal.set_promise(8).await.unwrap();
    drop(wal);
    disk.crash(1);
    assert!(matches!(open(&disk).await, Err(WalError::Owes(owed)) if owed == debt));
    let (wal, recovered) = open_with_peers(&disk).await.unwrap();
    assert_eq!((recovered.end.seq, recovered.debt, recovered.promise), (5, Some(debt), 8));
    send_rest(&wal, &records).await;
    assert_eq!(wal.debt(), Some(debt), "the log does not know when it is whole");
    wal.clear_debt().await.unwrap();
    assert_eq!((wal.debt(), wal.promise()), (None, 8));
    disk.crash(2);
    let (wal, recovered) = open(&disk).await.unwrap();
    assert_eq!((recovered.end.seq, recovered.debt), (7, None));
    assert_eq!(all(&wal).await, records);
    wal.append(8, batch(1, 1)).unwrap();
}

/// Ways to damage the log of [`small_log`], and the first record that is gone then.
async fn damages() -> Vec<(&'static str, SimDisk, Vec<Record>, u64)> {
    let mut made = Vec::new();
    for (what, first) in
        [("payload", 3), ("header", 4), ("segment header", 6), ("no segment", 1), ("base", 1)]
    {
        let (disk, mut records) = small_log().await;
        match what {
            "payload" => spoil(&disk, &records[first - 1]),
            "header" => {
                let (path, at) = place(&disk, &records[first - 1]);
                assert!(disk.flip(&path, at + 16, 0));
            }
            "segment header" => {
                let second = &segments(&disk)[1];
                assert_eq!(*second, Path::new(DIR).join(segment::segment_name(6)));
                assert!(disk.flip(second, 20, 0));
            }
            "no segment" => {
                disk.remove(&segments(&disk)[0]).await.unwrap();
                disk.sync_dir(Path::new(DIR)).await.unwrap();
            }
            _ => {
                let (wal, _) = open(&disk).await.unwrap();
                assert_eq!(wal.retire(5).await.unwrap(), 6);
                drop(wal);
                disk.kill();
                records.drain(..5);
                assert!(disk.flip(&Path::new(DIR).join("base"), 20, 0));
            }
        }
        made.push((what, disk, records, first as u64));
    }
    made
}

/// Power may go at every call while damage is set aside, and again in the recovery from that: the
/// debt is never forgotten once something is gone, and nothing is gone that is not kept.
#[tokio::test(start_paused = true)]
async fn power_may_go_at_every_call_while_damage_is_set_aside() {
    for (what, damaged, records, first) in damages().await {
        let undisturbed = damaged.fork();
        let before = undisturbed.calls();
        open_with_peers(&undisturbed).await.unwrap();
        let calls = undisturbed.calls() - before;
        assert!(calls > 10, "{what}: {calls}");
        for stop in 1..=calls {
            for seed in 0..6 {
                let disk = damaged.fork();
                for (depth, stop) in [stop, 1 + seed * 5].into_iter().enumerate() {
                    disk.fail_at(disk.calls() + stop, Fault::PowerCut, true);
                    let _ = open_with_peers(&disk).await;
                    disk.crash(stop * 31 + seed + depth as u64);
                }
                let context = format!("{what}, call {stop}, seed {seed}");
                let (wal, found) = open_with_peers(&disk).await.unwrap_or_else(|e| panic!("{context}: {e}"));
                assert_eq!(found.end.seq, first - 1, "{context}");
                assert_eq!(found.debt.map(|debt| debt.lost_from), Some(first), "{context}");
                assert_eq!((found.promise, found.empty), (5, false), "{context}");
                let aside = quarantined(&disk);
                let kept = |record: &Record| record.lsn.seq < first || contains(&aside, record);
                let spoiled = if what == "payload" || what == "header" { first } else { 0 };
                // With the first segment its records went before anybody looked.
                let gone = |record: &Record| what == "no segment" && record.lsn.seq <= 5;
                for record in records.iter().filter(|r| r.lsn.seq != spoiled && !gone(r)) {
                    assert!(kept(record), "{context}: {record:?} is gone");
                }
                disk.crash(seed);
                let (_, again) = open_with_peers(&disk).await.unwrap();
                assert_eq!((again.end, again.debt), (found.end, found.debt), "{context}");
                drop(wal);
            }
        }
    }
}

/// An error at a call while damage is set aside ends the start, and the next one comes through.
#[tokio::test(start_paused = true)]
async fn an_error_while_damage_is_set_aside_changes_nothing_for_the_next_start() {
    for (what, damaged, _, first) in damages().await {
        let undisturbed = damaged.fork();
        let before = undisturbed.calls();
        open_with_peers(&undisturbed).await.unwrap();
        let calls = undisturbed.calls() - before;
        for (stop, fault) in
            (1..=calls).flat_map(|stop| [Fault::Eio, Fault::Enospc, Fault::Short].map(|fault| (stop, fault)))
        {
            for persistent in [false, true] {
                let disk = damaged.fork();
                disk.fail_at(disk.calls() + stop, fault, persistent);
                if let Ok((wal, found)) = open_with_peers(&disk).await {
                    assert_eq!((wal.end().seq, found.debt.is_some()), (first - 1, true), "{what} {stop}");
                }
                disk.crash(stop);
                let (_, found) =
                    open_with_peers(&disk).await.unwrap_or_else(|e| panic!("{what} {stop}: {e}"));
                assert_eq!(found.end.seq, first - 1, "{what} {stop}");
                assert_eq!(found.debt.map(|debt| debt.lost_from), Some(first), "{what} {stop}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_watermark_is_owed_and_a_lost_promise_refused() {
    let (disk, records) = small_log().await;
    let damage = async |file: &str| {
        let copy = disk.fork();
        let path = Path::new(DIR).join(file);
        assert!(copy.flip(&path, 20, 0) && copy.flip(&path, 4096 + 20, 0));
        copy
    };
    let copy = damage("watermark").await;
    assert!(matches!(open(&copy).await, Err(WalError::DamagedFile { .. })));
    let (wal, recovered) = open_with_peers(&copy).await.unwrap();
    assert_eq!(all(&wal).await, records, "the records are whole");
    assert_eq!(recovered.debt.unwrap().lost_from, 8, "but which of them were durable is not known");
    let copy = damage("promise").await;
    for opened in [open(&copy).await, open_with_peers(&copy).await] {
        assert!(matches!(opened, Err(WalError::DamagedFile { .. })));
    }
}

/// What another version wrote is not damage.
#[tokio::test(start_paused = true)]
async fn a_newer_format_is_never_set_aside() {
    let (disk, _) = small_log().await;
    let path = &segments(&disk)[0];
    let mut header = disk.content(path).unwrap()[..60].to_vec();
    header[8] = 2;
    header[12..16].fill(0);
    let sum = crc32c::crc32c(&header);
    header[12..16].copy_from_slice(&sum.to_le_bytes());
    let file = disk.open(path, crate::disk::Create::No).await.unwrap();
    file.write(0, vec![header.into()], crate::disk::Durability::Now).await.unwrap();
    let before: Vec<_> = disk.files().iter().map(|path| disk.content(path)).collect();
    assert!(matches!(open_with_peers(&disk).await, Err(WalError::OtherVersion { .. })));
    assert_eq!(disk.files().iter().map(|path| disk.content(path)).collect::<Vec<_>>(), before);
}

async fn mend(disk: &SimDisk, flushed: Lsn, accept: bool) -> Option<Loss> {
    let mut nonce = 0x5eed;
    let draw = Box::new(move || {
        nonce += 2;
        nonce
    });
    accept_loss(Arc::new(disk.boot()), Path::new(DIR), flushed, draw, |_| accept).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn accepting_loss_says_before_what_goes_and_keeps_the_rest() {
    let (disk, records) = small_log().await;
    assert_eq!(mend(&disk, Lsn::ZERO, true).await, None, "there is nothing to mend");
    spoil(&disk, &records[2]);
    let untouched: Vec<_> = disk.files().iter().map(|path| disk.content(path)).collect();
    let loss = mend(&disk, Lsn::new(5, 1), false).await.unwrap();
    assert_eq!((loss.records, loss.end, loss.checkpoint), (Some((3, 7)), Lsn::new(5, 2), None));
    assert_eq!(disk.files().iter().map(|path| disk.content(path)).collect::<Vec<_>>(), untouched);
    assert_eq!(mend(&disk, Lsn::new(5, 1), true).await, Some(loss.clone()));
    assert_eq!(quarantined(&disk).len() as u64, loss.bytes);
    let (wal, recovered) = open(&disk).await.unwrap();
    assert_eq!((recovered.end, recovered.debt), (Lsn::new(5, 2), None));
    assert!(recovered.commit <= recovered.end, "a commit position beyond the end stops every failover");
    assert_eq!(all(&wal).await, records[..2]);
    assert_eq!(wal.append(7, batch(1, 1)).unwrap().lsn, Lsn::new(7, 3));
}

#[tokio::test(start_paused = true)]
async fn what_is_in_a_checkpoint_is_not_lost_with_the_log() {
    // Damage below the checkpoint: the records behind it stay.
    let (disk, records) = small_log().await;
    spoil(&disk, &records[0]);
    let loss = mend(&disk, Lsn::new(5, 4), true).await.unwrap();
    assert_eq!((loss.records, loss.end, loss.checkpoint), (None, Lsn::new(6, 7), Some(Lsn::new(5, 4))));
    let (wal, recovered) = open(&disk).await.unwrap();
    assert_eq!((recovered.end, recovered.debt, wal.first_seq()), (Lsn::new(6, 7), None, 5));
    assert_eq!(all(&wal).await, records[4..]);
    assert_eq!(wal.epochs().entries(), [(5, 1), (6, 6)]);
    assert_eq!(wal.chain_at(4).await.unwrap(), Some(records[3].digest));
    drop(wal);
    // A checkpoint at the very end, with nothing behind: the log goes on there.
    let (disk, records) = small_log().await;
    spoil(&disk, &records[0]);
    let loss = mend(&disk, Lsn::new(6, 7), true).await.unwrap();
    assert_eq!((loss.records, loss.end), (None, Lsn::new(6, 7)));
    let (wal, _) = open(&disk).await.unwrap();
    assert_eq!(wal.append(7, batch(1, 1)).unwrap().lsn, Lsn::new(7, 8));
    drop(wal);
    // Damage on both sides of it: what lies behind the second is lost.
    let (disk, records) = small_log().await;
    spoil(&disk, &records[0]);
    spoil(&disk, &records[5]);
    let loss = mend(&disk, Lsn::new(5, 4), true).await.unwrap();
    assert_eq!((loss.records, loss.end), (Some((6, 7)), Lsn::new(5, 5)));
    let (wal, _) = open(&disk).await.unwrap();
    assert_eq!(all(&wal).await, records[4..5]);
    drop(wal);
    // A node that waits for peers which never come back.
    let (disk, records) = small_log().await;
    spoil(&disk, &records[2]);
    drop(open_with_peers(&disk).await.unwrap());
    disk.kill();
    let loss = mend(&disk, Lsn::ZERO, true).await.unwrap();
    assert_eq!((loss.records, loss.bytes), (Some((3, 7)), 0));
    assert_eq!(open(&disk).await.unwrap().1.end, Lsn::new(5, 2));
}

#[tokio::test(start_paused = true)]
async fn a_survey_tells_what_is_there_and_changes_nothing() {
    let (disk, records) = small_log().await;
    let look = async |disk: &SimDisk| {
        let before: Vec<_> = disk.files().iter().map(|path| disk.content(path)).collect();
        let survey = survey(&disk.boot(), Path::new(DIR)).await.unwrap();
        assert_eq!(disk.files().iter().map(|path| disk.content(path)).collect::<Vec<_>>(), before);
        survey
    };
    let whole = look(&disk).await;
    assert_eq!((whole.cluster, whole.promise, whole.debt), (Some(CLUSTER), 5, None));
    assert_eq!((whole.base, whole.end, whole.watermark), (Lsn::ZERO, Lsn::new(6, 7), Lsn::new(5, 5)));
    let spans: Vec<_> = whole.segments.iter().map(|s| (s.first, s.last, s.epochs.clone())).collect();
    assert_eq!(spans, [(1, 5, vec![5]), (6, 7, vec![6])]);
    assert!(whole.damage.is_empty() && whole.quarantine.is_empty() && whole.orphans.is_empty());
    spoil(&disk, &records[3]);
    let damaged = look(&disk).await;
    assert_eq!(damaged.end, Lsn::new(5, 3));
    let [found] = &damaged.damage[..] else { panic!("{:?}", damaged.damage) };
    assert_eq!((found.file.as_str(), found.records), ("00000000000000000001.wal", Some((4, 7))));
    assert!(damaged.damaged_bytes >= records[3..].iter().map(|r| r.raw.len() as u64).sum());
}
