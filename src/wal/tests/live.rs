//! Damage met while the log is open: found by readers and by the scrub, set aside and fetched again
//! without a restart, or retired when it is in a checkpoint.

use super::{
    repair::{contains, open_with_peers, place, quarantined, segments, send_rest, spoil},
    *,
};

/// Opens a log whose record `seq` rots after that, and lets a reader meet it.
async fn met(disk: &SimDisk, records: &[Record], seq: usize) -> Wal {
    let (wal, _) = open_with_peers(disk).await.unwrap();
    spoil(disk, &records[seq - 1]);
    let mut reader = wal.reader(seq as u64);
    assert!(matches!(reader.read(1).await, Err(ReadError::Damaged { seq: met, .. }) if met == seq as u64));
    let known = wal.watch_damage().borrow().clone().unwrap();
    assert_eq!((known.seq, known.segment.as_str()), (seq as u64, "00000000000000000001.wal"));
    wal
}

#[tokio::test(start_paused = true)]
async fn damage_in_an_open_log_is_set_aside_owed_and_fetched_again() {
    let (disk, records) = small_log().await;
    let wal = met(&disk, &records, 3).await;
    assert_eq!(wal.lacks(), Some(3));
    // What a reader has given before stays given; what it would give next is gone.
    let mut behind = wal.reader(6);
    assert_eq!(behind.read(1).await.unwrap(), records[5..6]);
    let before = wal.quarantined();

    let debt = Debt { lost_from: 3, reach: Lsn::new(6, 7) };
    assert_eq!(wal.set_aside(3).await.unwrap(), Some(debt));
    assert_eq!((wal.end(), wal.durable(), wal.debt()), (Lsn::new(5, 2), Lsn::new(5, 2), Some(debt)));
    assert_eq!((wal.epochs().entries(), wal.lacks()), (&[(5, 1)][..], None));
    assert_eq!(all(&wal).await, records[..2]);
    assert!(matches!(behind.read(1).await, Err(ReadError::Cut { keep: 2 })));
    let aside = quarantined(&disk);
    assert!(records[3..].iter().all(|record| contains(&aside, record)) && !contains(&aside, &records[2]));
    assert_eq!(wal.quarantined() - before, aside.len() as u64);
    assert!(matches!(wal.append(7, batch(1, 1)), Err(WalError::Refused(_))), "no writer's log");

    // A follower's it is, at once; what comes is what was there, or it does not chain.
    let other = Record::decode_replicated(records[3].raw.to_bytes()).unwrap().0;
    assert!(matches!(wal.append_replica(other.raw.to_bytes()), Err(WalError::Gap { .. })));
    send_rest(&wal, &records[..5]).await;
    disk.crash(3);
    let (wal, recovered) = open_with_peers(&disk).await.unwrap();
    assert_eq!((recovered.end.seq, recovered.debt, recovered.promise), (5, Some(debt), 5));
    send_rest(&wal, &records).await;
    wal.clear_debt().await.unwrap();
    assert_eq!(all(&wal).await, records);
    drop(wal);
    disk.crash(4);
    assert_eq!(open(&disk).await.unwrap().1.end, Lsn::new(6, 7));
}

#[tokio::test(start_paused = true)]
async fn damage_before_the_record_that_was_met_goes_too_and_none_is_not_invented() {
    let (disk, records) = small_log().await;
    let wal = met(&disk, &records, 4).await;
    spoil(&disk, &records[0]);
    assert_eq!(wal.set_aside(4).await.unwrap().unwrap().lost_from, 1);
    assert_eq!((wal.end(), wal.first_seq()), (Lsn::ZERO, 1));
    send_rest(&wal, &records).await;
    assert_eq!(all(&wal).await, records);
    drop(wal);
    disk.kill();

    // A reader that met what is not on the platter: nothing is owed.
    let (disk, records) = small_log().await;
    let (path, at) = place(&disk, &records[2]);
    let wal = met(&disk, &records, 3).await;
    assert!(disk.flip(&path, at + RECORD_HEADER as u64, 1));
    assert_eq!(wal.set_aside(3).await.unwrap(), None);
    assert_eq!((wal.debt(), wal.watch_damage().borrow().clone()), (None, None));
    assert_eq!(all(&wal).await, records);
}

/// Power may go at every call, and every call may fail, while an open log is set aside: nothing is
/// gone that is not kept and owed, and a full disk changes nothing.
#[tokio::test(start_paused = true)]
async fn every_call_may_fail_while_an_open_log_is_set_aside() {
    let (disk, records) = small_log().await;
    let undisturbed = disk.fork();
    let wal = met(&undisturbed, &records, 3).await;
    let before = undisturbed.calls();
    wal.set_aside(3).await.unwrap();
    let calls = undisturbed.calls() - before;
    assert!(calls > 12, "{calls}");
    let mut failed = 0;
    for (stop, fault) in (1..=calls).flat_map(|stop| {
        [Fault::PowerCut, Fault::Eio, Fault::Enospc, Fault::Short].map(|fault| (stop, fault))
    }) {
        for seed in 0..4 {
            let disk = disk.fork();
            let context = format!("{fault:?} at call {stop}, seed {seed}");
            let wal = met(&disk, &records, 3).await;
            disk.fail_at(disk.calls() + stop, fault, seed % 2 == 1);
            match wal.set_aside(3).await {
                Ok(debt) => assert_eq!(debt.unwrap().lost_from, 3, "{context}"),
                Err(_) => failed += 1,
            }
            drop(wal);
            disk.crash(stop * 31 + seed);
            let (wal, found) = open_with_peers(&disk).await.unwrap_or_else(|e| panic!("{context}: {e}"));
            assert_eq!((found.end.seq, found.promise), (2, 5), "{context}");
            assert_eq!(found.debt.map(|debt| debt.lost_from), Some(3), "{context}");
            let aside = quarantined(&disk);
            assert!(records[3..].iter().all(|record| contains(&aside, record)), "{context}");
            send_rest(&wal, &records).await;
            assert_eq!(all(&wal).await, records, "{context}");
        }
    }
    assert!(failed > 40, "{failed}");
}

#[tokio::test(start_paused = true)]
async fn without_space_for_the_copy_nothing_changes_until_there_is_some() {
    let (disk, records) = small_log().await;
    let wal = met(&disk, &records, 3).await;
    disk.set_limit(Some(0));
    for _ in 0..2 {
        assert!(matches!(wal.set_aside(3).await, Err(WalError::Full)));
        assert_eq!((wal.end(), wal.debt(), wal.lacks()), (Lsn::new(6, 7), None, Some(3)));
    }
    let names = disk.files();
    assert!(names.iter().all(|path| !path.to_string_lossy().contains(".wal@")), "{names:?}");
    disk.set_limit(None);
    assert_eq!(wal.set_aside(3).await.unwrap().unwrap().lost_from, 3);
    // The spare segment went for the copy; it is tried again soon.
    tokio::time::sleep(Duration::from_secs(2)).await;
    send_rest(&wal, &records).await;
    assert_eq!(all(&wal).await, records);
}

#[tokio::test(start_paused = true)]
async fn what_is_in_a_checkpoint_is_retired_and_nothing_is_owed() {
    let (disk, records) = small_log().await;
    let wal = met(&disk, &records, 3).await;
    wal.note_checkpoint(4);
    assert_eq!(wal.lacks(), None);
    assert!(!wal.retire_damage(u64::MAX).await.unwrap(), "a record of its segment is in no checkpoint");
    wal.note_checkpoint(6);
    assert!(!wal.retire_damage(4).await.unwrap(), "somebody is about to ask for one");
    assert!(wal.watch_damage().borrow().is_some() && wal.first_seq() == 1);
    assert!(wal.retire_damage(u64::MAX).await.unwrap());
    assert_eq!(wal.first_seq(), 6);
    assert_eq!((wal.watch_damage().borrow().clone(), wal.debt()), (None, None));
    assert_eq!(all(&wal).await, records[5..]);
    drop(wal);
    disk.crash(1);
    assert_eq!(open(&disk).await.unwrap().1.end, Lsn::new(6, 7), "also for a lone node");
}

/// Goes through the whole log; the records that are damaged, by what the scrub says of them.
async fn scrub(wal: &Wal, bytes: u64) -> (u64, Option<u64>) {
    let (mut next, mut read) = (Some(0), 0);
    while let Some(from) = next {
        match wal.scrub(from, bytes).await {
            Ok(step) => (next, read) = (step.next, read + step.bytes),
            Err(ReadError::Damaged { seq, .. }) => return (read, Some(seq)),
            Err(error) => panic!("{error}"),
        }
    }
    (read, None)
}

#[tokio::test(start_paused = true)]
async fn a_scrub_reads_the_files_although_memory_has_the_records() {
    let disk = SimDisk::new();
    let big = WalConfig { tail_bytes: 1 << 20, quarantine: true, ..config() };
    let (wal, _, _) = open_with(&disk, big).await.unwrap();
    let records: Vec<Record> = (0..24).map(|n| wal.append(1, batch(150, n)).unwrap()).collect();
    wal.settle().await.unwrap();
    let sealed = segments(&disk).len() as u64 - 1;
    assert!(sealed > 2);
    for step in [1, 300, 1 << 20] {
        let (read, damaged) = scrub(&wal, step).await;
        assert_eq!((read, damaged), (wal.sealed().bytes - sealed * segment::SEGMENT_HEADER, None), "{step}");
    }
    // Every byte of the first segment that is not free space, its header's reserved zeros included.
    let first = &segments(&disk)[0];
    let last =
        segment::parse_segment_name(&segments(&disk)[1].file_name().unwrap().to_string_lossy()).unwrap();
    let (_, at) = place(&disk, &records[last as usize - 2]);
    let end = at + records[last as usize - 2].raw.len() as u64;
    let harmless = |at: u64| (60..segment::SEGMENT_HEADER).contains(&at);
    for at in (0..end).filter(|at| at % 7 == 0 && !harmless(*at)) {
        assert!(disk.flip(first, at, (at % 8) as u8));
        let (_, damaged) = scrub(&wal, 1 << 20).await;
        assert!(damaged.is_some(), "byte {at}");
        assert_eq!(all(&wal).await, records, "memory still has them");
        assert!(disk.flip(first, at, (at % 8) as u8));
        assert_eq!(wal.set_aside(damaged.unwrap()).await.unwrap(), None);
    }
    // The header of a segment counts with its records: without it none of them would verify.
    assert!(disk.flip(first, 30, 1));
    assert_eq!(scrub(&wal, 1 << 20).await.1, Some(1));
    assert_eq!(wal.set_aside(1).await.unwrap().unwrap().lost_from, 1);
    assert_eq!((wal.end(), all(&wal).await.len()), (Lsn::ZERO, 0));
    send_rest(&wal, &records).await;
    assert_eq!(scrub(&wal, 1 << 20).await.1, None);
}
