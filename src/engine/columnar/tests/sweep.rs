//! Every disk call of a run fails, in every way, once and from there on, and again in the recovery after
//! it; nothing that a checkpoint confirmed is lost.

use std::path::{Path, PathBuf};

use super::*;
use crate::testing::{Fault, SimDisk};

const DIR: &str = "node/engine";

/// The log: the point at time 1 in three records, two days, a dropped database, one whose first day is
/// too old by the end.
fn log() -> Vec<Operation> {
    vec![
        batch("db", &[(1, "x", Some(1.0), Some(1.0)), (DAY, "x", Some(1.0), None)]),
        batch("gone", &[(1, "x", Some(1.0), None)]),
        batch("db", &[(1, "x", None, Some(3.0)), (2, "y", Some(3.0), None)]),
        Operation::DropDatabase { database: "gone".into() },
        batch("db", &[(1, "x", Some(5.0), None)]),
        batch("old", &[(1, "x", Some(1.0), None), (3 * DAY, "x", Some(1.0), None)]),
        Operation::SetRetention { database: "old".into(), keep_ns: Some(DAY) },
        Operation::Expire { now_ns: 3 * DAY },
        Operation::Nothing,
    ]
}

fn sidecar(position: Lsn) -> Bytes {
    if position == Lsn::ZERO { Bytes::new() } else { Bytes::from(position.to_string()) }
}

/// Opens, applies what is missing and takes a checkpoint after each record; returns the last
/// position that was confirmed.
async fn run(disk: &SimDisk, retries: u32) -> (Lsn, Result<(), EngineError>) {
    let mut confirmed = Lsn::ZERO;
    let mut left = retries;
    let engine = loop {
        let disk = Arc::new(disk.clone());
        match ColumnarEngine::open(disk, PathBuf::from(DIR), ColumnarConfig::default()).await {
            Ok(engine) => break engine,
            Err(_) if left > 0 => left -= 1,
            Err(error) => return (confirmed, Err(error)),
        }
    };
    confirmed = confirmed.max(engine.recovered().0);
    assert_eq!(engine.recovered().1, sidecar(confirmed), "sidecar and position belong together");
    for (record, seq) in log().iter().zip(1..) {
        if at(seq) <= confirmed {
            continue;
        }
        engine.apply(at(seq), record).unwrap();
        loop {
            match engine.checkpoint(sidecar(at(seq))).await {
                Ok(position) => break confirmed = position,
                Err(_) if left > 0 => left -= 1,
                Err(error) => return (confirmed, Err(error)),
            }
        }
        assert_eq!(engine.recovered().0, confirmed);
    }
    (confirmed, Ok(()))
}

async fn check(disk: &SimDisk, confirmed: Lsn, what: &str) {
    let booted = disk.boot();
    let engine = ColumnarEngine::open(Arc::new(booted.clone()), DIR.into(), ColumnarConfig::default()).await;
    let engine = engine.unwrap_or_else(|e| panic!("{what}: {e}"));
    let recovered = engine.recovered().0;
    assert!(recovered >= confirmed, "{what}: {confirmed} was confirmed, {recovered} is there");
    for (record, seq) in log().iter().zip(1..) {
        if at(seq) > recovered {
            engine.apply(at(seq), record).unwrap();
        }
    }
    let host = |h: &str| h.to_owned();
    let wanted = [
        (1, host("x"), Some(5.0), Some(3.0)),
        (2, host("y"), Some(3.0), None),
        (DAY, host("x"), Some(1.0), None),
    ];
    assert_eq!(points(&engine).await, wanted, "{what}");
    assert_eq!(engine.databases(), ["db", "old"], "{what}");
    let last = at(log().len() as u64);
    engine.checkpoint(sidecar(last)).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(points(&engine).await, wanted, "{what}");
    drop(engine);
    let again = ColumnarEngine::open(Arc::new(booted), DIR.into(), ColumnarConfig::default()).await.unwrap();
    assert_eq!(points(&again).await, wanted, "{what}");
    let old = again.scan("old", "cpu").await.unwrap().unwrap().1;
    assert_eq!(old.iter().map(RecordBatch::num_rows).sum::<usize>(), 1, "{what}");
    let named = again.survey_databases().iter().map(|db| db.files as usize).sum::<usize>();
    let there = disk.files().iter().filter(|path| path.extension().is_some_and(|e| e == "parquet")).count();
    assert_eq!(there, named, "{what}: {:?}", disk.files());
    let stray =
        |path: &PathBuf| path.extension().is_some_and(|e| e == "tmp") && path != Path::new("MANIFEST.tmp");
    assert!(!disk.files().iter().any(stray), "{what}: {:?}", disk.files());
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_at_any_call_loses_nothing_confirmed() {
    let calls = {
        let disk = SimDisk::new();
        run(&disk.boot(), 0).await.1.unwrap();
        disk.calls()
    };
    assert!(calls > 100, "{calls}");
    for call in 0..=calls {
        for seed in 0..3 {
            let disk = SimDisk::new();
            disk.fail_at(call, Fault::PowerCut, false);
            let (confirmed, _) = run(&disk.boot(), 0).await;
            disk.crash(seed);
            disk.clear_faults();
            check(&disk, confirmed, &format!("power cut at call {call}, seed {seed}")).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_call_is_made_good_by_the_next_checkpoint() {
    let calls = {
        let disk = SimDisk::new();
        run(&disk.boot(), 0).await.1.unwrap();
        disk.calls()
    };
    for fault in [Fault::Enospc, Fault::Eio, Fault::Short] {
        for call in 0..=calls {
            let disk = SimDisk::new();
            disk.fail_at(call, fault, false);
            let (confirmed, result) = run(&disk.boot(), 3).await;
            let what = format!("{fault:?} at call {call}");
            result.unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(confirmed, at(log().len() as u64), "{what}");
            disk.crash(call);
            check(&disk, confirmed, &what).await;
        }
    }
}

/// The trouble stays until the end of the process, and the next one meets it too while it opens what is
/// there, or a little later.
#[tokio::test(start_paused = true)]
async fn trouble_that_stays_and_comes_back_in_the_recovery_loses_nothing_confirmed() {
    let calls = {
        let disk = SimDisk::new();
        run(&disk.boot(), 0).await.1.unwrap();
        disk.calls()
    };
    for fault in [Fault::Enospc, Fault::Eio, Fault::Short, Fault::PowerCut] {
        let (mut failed, mut recovered) = (0, 0);
        for call in 0..=calls {
            let what = format!("{fault:?} from call {call} on");
            let disk = SimDisk::new();
            let end = |seed: u64| if seed.is_multiple_of(2) { disk.crash(seed) } else { disk.kill() };
            disk.fail_at(call, fault, true);
            let (confirmed, result) = run(&disk.boot(), 3).await;
            failed += u32::from(result.is_err());
            end(call);
            disk.fail_at(disk.calls() + 1 + call % 29, fault, true);
            let (again, result) = run(&disk.boot(), 3).await;
            recovered += u32::from(result.is_ok() || again > confirmed);
            end(call / 2 + 1);
            check(&disk, confirmed.max(again), &what).await;
        }
        assert!(failed as u64 >= calls / 2 && recovered > 0, "{fault:?}: {failed} of {calls}, {recovered}");
    }
}
