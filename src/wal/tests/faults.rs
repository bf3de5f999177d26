//! Errors at every call, once and from there on, in the script and in the recovery after it.

use super::*;
use crate::{
    disk::{Create, Disk, Durability, Slots},
    wal::watermark::{WATERMARK, Watermark},
};

/// Whatever fails: what the log said was durable is there afterwards, and nothing else is.
async fn fail_at_every_call(fault: Fault) {
    for stop in 1..=calls_of_script().await {
        for (persistent, power) in [(false, false), (false, true), (true, false), (true, true)] {
            let disk = SimDisk::new();
            // The process ends, or the machine.
            let end = |seed| if power { disk.crash(seed) } else { disk.kill() };
            disk.fail_at(stop, fault, persistent);
            let mut model = Model::default();
            if let Ok((wal, _)) = open(&disk).await {
                let patience = Duration::from_secs(30);
                // A log without space waits for it; it is found as it stands then.
                let _ = tokio::time::timeout(patience, script(&wal, &mut model)).await;
            }
            end(stop);
            // The recovery meets the same trouble.
            disk.fail_at(disk.calls() + 1 + stop % 23, fault, persistent);
            let _ = open(&disk).await;
            end(stop + 1);
            let context = format!("{fault:?} at call {stop}, persistent {persistent}, power {power}");
            let (wal, found) = open(&disk).await.unwrap_or_else(|e| panic!("{context}: {e}"));
            model.check(&found, &all(&wal).await, wal.first_seq());
            drop(wal);
            disk.crash(stop + 2);
            let (_, again) = open(&disk).await.unwrap_or_else(|e| panic!("{context}, again: {e}"));
            assert_eq!((again.end, again.promise), (found.end, found.promise), "{context}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_input_output_error_loses_nothing_also_if_it_stays() {
    fail_at_every_call(Fault::Eio).await;
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_cut_short_loses_nothing_at_whichever_call() {
    fail_at_every_call(Fault::Short).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_loses_nothing_at_whichever_call_it_fills() {
    fail_at_every_call(Fault::Enospc).await;
}

#[tokio::test(start_paused = true)]
async fn a_log_opened_on_a_full_disk_finds_space_once_there_is_some() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk).await.unwrap();
    wal.append(1, batch(600, 0)).unwrap();
    wal.settle().await.unwrap();
    disk.set_limit(Some(disk.used()));
    // Takes the spare, behind which no other can be made.
    wal.append(1, batch(900, 1)).unwrap();
    wal.settle().await.unwrap();
    drop(wal);
    disk.kill();
    let (again, _) = open(&disk).await.unwrap();
    let mut full = again.watch_full();
    assert!(matches!(again.append(1, batch(1, 2)), Err(WalError::Full)));
    disk.set_limit(None);
    // Nothing is appended meanwhile: a follower that may not append has nobody to try for it.
    let healed = full.wait_for(|full| !full);
    tokio::time::timeout(Duration::from_secs(5), healed).await.unwrap().unwrap();
    again.append(1, batch(1, 2)).unwrap();
    again.settle().await.unwrap();
}

/// A node that was killed while it announced a cut leaves an announcement that is readable only. Recovery
/// acts on it, so power may go at any of its calls.
#[tokio::test(start_paused = true)]
async fn a_cut_that_was_announced_and_not_synced_is_finished_whenever_the_power_goes() {
    let disk = SimDisk::new();
    let (wal, _) = open(&disk).await.unwrap();
    for tag in 0..4 {
        wal.append(1, batch(100, tag)).unwrap();
        wal.settle().await.unwrap();
    }
    let keep = Lsn::new(1, 2);
    let (path, magic) = (config().dir.join(WATERMARK.0), WATERMARK.1);
    drop(wal);
    disk.kill();
    // Its watermark is whole, and says that all four are durable.
    assert_eq!(open(&disk).await.unwrap().1.end, Lsn::new(1, 4));
    disk.kill();
    let other = disk.fork();
    let (mut slots, _) = Slots::open(&other.boot(), &path, magic).await.unwrap();
    let announced = Watermark { durable: keep, commit: Lsn::ZERO, end: Some(keep.seq) };
    slots.write(announced.values()).await.unwrap();
    let bytes = other.content(&path).unwrap().into();
    let file = disk.boot().open(&path, Create::No).await.unwrap();
    file.write(0, vec![bytes], Durability::Later).await.unwrap();
    disk.kill();

    let calls = {
        let whole = disk.fork();
        let before = whole.calls();
        assert_eq!(open(&whole).await.unwrap().1.end, keep);
        whole.calls() - before
    };
    for stop in 1..=calls {
        for seed in 0..8 {
            let cut = disk.fork();
            cut.fail_at(cut.calls() + stop, Fault::PowerCut, false);
            let _ = open(&cut).await;
            cut.crash(seed);
            let end = open(&cut).await.unwrap_or_else(|e| panic!("call {stop}, seed {seed}: {e}")).1.end;
            assert!([keep, Lsn::new(1, 4)].contains(&end), "call {stop}, seed {seed}: {end}");
        }
    }
}
