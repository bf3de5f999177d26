//! What is there before is there after, and whatever happens meanwhile.

use std::{collections::BTreeMap, path::Path};

use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::super::{
    ColumnarConfig, ColumnarEngine,
    data_file::DAY,
    merge::times,
    tests::{Row, batch, open},
};
use super::*;
use crate::{
    disk::RealDisk,
    engine::{Operation, StorageEngine},
    types::Lsn,
};

type Points = BTreeMap<(i64, String), (Option<f64>, Option<f64>)>;

fn at(seq: u64) -> Lsn {
    Lsn::new(1, seq)
}

fn points_of(batches: &[RecordBatch]) -> Points {
    use arrow_array::{cast::AsArray, types::Float64Type};
    let mut found = Points::new();
    for batch in batches {
        let float = |name: &str, row: usize| {
            let column = batch.column_by_name(name)?.as_primitive::<Float64Type>();
            column.is_valid(row).then(|| column.value(row))
        };
        let hosts = arrow_cast::cast(batch.column_by_name("host").unwrap(), &DataType::Utf8).unwrap();
        let hosts = hosts.as_string::<i32>();
        for (row, time) in times(batch).unwrap().iter().enumerate() {
            let name = (*time, hosts.value(row).to_owned());
            assert!(found.insert(name, (float("a", row), float("b", row))).is_none(), "a point comes once");
        }
    }
    found
}

async fn scanned(engine: &ColumnarEngine) -> Points {
    points_of(&engine.scan("db", "cpu").await.unwrap().unwrap().1)
}

/// By SQL, over files and memory, with conditions that leave out parts of files.
#[cfg(feature = "sql")]
async fn check_sql(engine: &Arc<ColumnarEngine>, wanted: &Points, rng: &mut StdRng) {
    use super::super::sql::SqlOptions;
    let host = HOSTS[rng.random_range(0..HOSTS.len())];
    let from = rng.random_range(0..3 * DAY);
    let to = from + rng.random_range(0..DAY);
    type Fits = Box<dyn Fn(&(i64, String)) -> bool>;
    let between = format!("time between to_timestamp_nanos({from}) and to_timestamp_nanos({to})");
    let cases: [(String, Fits); 3] = [
        ("true".to_owned(), Box::new(|_| true)),
        (format!("host = '{host}'"), Box::new(move |name| name.1 == host)),
        (
            format!("{between} and host <> '{host}'"),
            Box::new(move |name| (from..=to).contains(&name.0) && name.1 != host),
        ),
    ];
    for (condition, fits) in cases {
        let sql = format!("select time, host, a, b from db.cpu where {condition}");
        let rows = engine.query(&sql, SqlOptions::default()).await.unwrap().collect().await.unwrap();
        let wanted: Points =
            wanted.iter().filter(|(name, _)| fits(name)).map(|(n, v)| (n.clone(), *v)).collect();
        assert!(points_of(&rows) == wanted, "{sql}");
    }
}

const HOSTS: [&str; 5] = ["u", "v", "x", "y", "z"];

/// Compacts until there is nothing to do; how often.
async fn until_still(engine: &ColumnarEngine) -> u64 {
    let before = engine.compactions().runs;
    for _ in 0..200 {
        if !engine.maintain().await.unwrap() {
            return engine.compactions().runs - before;
        }
    }
    panic!("it does not come to an end");
}

fn committed(engine: &ColumnarEngine) -> Vec<Arc<DataFile>> {
    engine.inner.state().committed.clone()
}

#[tokio::test]
async fn queries_are_the_same_before_and_after() {
    let mut runs = 0;
    let mut by_tags = 0;
    for seed in 0..6 {
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let mut engine = open(Arc::new(RealDisk), dir.path()).await;
        let mut wanted = Points::new();
        for seq in 1..=40u64 {
            let day = i64::from(rng.random_range(0..3u8));
            let most = if rng.random_bool(0.2) { 4_000 } else { 300 };
            let rows: Vec<Row> = (0..rng.random_range(1..most))
                .map(|_| {
                    let time = day * DAY + rng.random_range(0..2_000) * 1_000;
                    let mut value = |likely| rng.random_bool(likely).then(|| f64::from(rng.random::<u8>()));
                    let (a, b) = (value(0.6), value(0.4));
                    (time, HOSTS[rng.random_range(0..HOSTS.len())], a, b)
                })
                .collect();
            for &(time, host, a, b) in &rows {
                let held = wanted.entry((time, host.to_owned())).or_default();
                *held = (a.or(held.0), b.or(held.1));
            }
            engine.apply(at(seq), &batch("db", &rows)).unwrap();
            if rng.random_bool(0.6) {
                engine.checkpoint(Bytes::new()).await.unwrap();
            }
            if rng.random_bool(0.3) {
                runs += until_still(&engine).await;
            }
            if rng.random_bool(0.2) {
                engine.checkpoint(Bytes::new()).await.unwrap();
                engine = open(Arc::new(RealDisk), dir.path()).await;
                assert_eq!(engine.applied(), at(seq));
            }
            if seq % 4 == 0 {
                assert!(scanned(&engine).await == wanted, "seed {seed}, record {seq}");
                #[cfg(feature = "sql")]
                check_sql(&engine, &wanted, &mut rng).await;
            }
        }
        engine.checkpoint(Bytes::new()).await.unwrap();
        runs += until_still(&engine).await;
        let files = committed(&engine);
        by_tags += files.iter().filter(|file| file.entry.windows.len() > 1).count();
        assert!(files.len() <= 12, "{} files of three days", files.len());
        assert!(scanned(&open(Arc::new(RealDisk), dir.path()).await.clone()).await == wanted, "seed {seed}");
    }
    assert!(runs > 10 && by_tags > 2, "{runs} compactions, {by_tags} files of several windows");
}

/// Three files of the first day, which is over.
async fn three_files(engine: &ColumnarEngine) {
    let mut seq = engine.applied().seq;
    for (count, value) in [(40i64, 1.0), (15, 2.0), (5, 3.0)] {
        seq += 1;
        let rows: Vec<Row> = (0..count).map(|n| (n, "x", Some(value), None)).collect();
        let later: Row = (2 * DAY + seq as i64, "x", Some(value), None);
        engine.apply(at(seq), &batch("db", &[rows, vec![later]].concat())).unwrap();
        engine.checkpoint(Bytes::new()).await.unwrap();
    }
}

fn three_files_hold() -> Points {
    let value = |n| match n {
        0..5 => 3.0,
        5..15 => 2.0,
        _ => 1.0,
    };
    let first = (0..40).map(|n| ((n, "x".to_owned()), (Some(value(n)), None)));
    let later = (1..=3).map(|seq| ((2 * DAY + seq, "x".to_owned()), (Some(seq as f64), None)));
    first.chain(later).collect()
}

#[tokio::test]
async fn exports_of_one_position_are_each_whole() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(Arc::new(RealDisk), dir.path()).await;
    three_files(&engine).await;
    let before = engine.export().await.unwrap();
    assert_eq!(until_still(&engine).await, 1);
    let after = engine.export().await.unwrap();
    assert_eq!(before.position, after.position);
    assert!(after.files.len() < before.files.len());
    // The flush that follows replaces the manifest again.
    engine.apply(at(9), &batch("db", &[(2 * DAY + 9, "x", Some(9.0), None)])).unwrap();
    engine.checkpoint(Bytes::new()).await.unwrap();
    for export in [before, after] {
        let other = tempfile::tempdir().unwrap();
        let incoming = other.path().join("incoming");
        for file in &export.files {
            let copy = incoming.join(&file.name);
            std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
            assert_eq!(std::fs::copy(&file.path, copy).unwrap(), file.len, "{}", file.name);
        }
        let target = open(Arc::new(RealDisk), &other.path().join("engine")).await;
        assert_eq!(target.install(incoming).await.unwrap(), export.position);
        assert!(scanned(&target).await == three_files_hold());
    }
    // Nobody holds the old files any more.
    engine.apply(at(10), &Operation::Nothing).unwrap();
    engine.checkpoint(Bytes::new()).await.unwrap();
    assert_eq!(files_there(dir.path()), committed(&engine).len());
}

fn files_there(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("data/db/cpu")).unwrap().count()
}

#[tokio::test]
async fn what_is_flushed_or_dropped_meanwhile_counts() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(Arc::new(RealDisk), dir.path()).await;
    three_files(&engine).await;
    let inner = engine.inner.clone();
    let begin = || {
        let (table, files) = tier::choose(inner.state().tables_on_disk(), u64::MAX).expect("something to do");
        (table, Claim::take(&inner, files).expect("no flush is under way"))
    };
    let mut wanted = three_files_hold();

    // A flush to the same day leaves the claimed files alone and is not waited for.
    let (table, claim) = begin();
    engine.apply(at(4), &batch("db", &[(1, "x", None, Some(4.0))])).unwrap();
    wanted.insert((1, "x".to_owned()), (Some(3.0), Some(4.0)));
    engine.checkpoint(Bytes::new()).await.unwrap();
    assert!(claim.files.iter().all(|file| committed(&engine).iter().any(|other| Arc::ptr_eq(file, other))));
    assert!(Claim::take(&inner, claim.files.clone()).is_none(), "one at a time");
    // While a flush is under way nothing is claimed; and it keeps what a compaction makes meanwhile.
    engine.apply(at(5), &batch("db", &[(2, "x", None, Some(5.0))])).unwrap();
    wanted.insert((2, "x".to_owned()), (Some(3.0), Some(5.0)));
    let flush = engine.checkpoint(Bytes::new());
    assert!(!engine.maintain().await.unwrap());
    let mut written = None;
    assert!(run(&inner, &table, claim, 256 << 20, &mut written).await.unwrap());
    assert!(scanned(&engine).await == wanted);
    flush.await.unwrap();
    assert!(scanned(&engine).await == wanted);
    drop(table);
    let made = written.take().unwrap();
    assert!(committed(&engine).iter().any(|file| Arc::ptr_eq(file, &made)));
    assert!(scanned(&open(Arc::new(RealDisk), dir.path()).await.clone()).await == wanted);
    drop(made);

    // Dropped while it is compacted, and written anew: the result is thrown away.
    let (table, claim) = begin();
    engine.apply(at(6), &Operation::DropDatabase { database: "db".into() }).unwrap();
    engine.apply(at(7), &batch("db", &[(7, "x", None, Some(7.0))])).unwrap();
    assert!(!run(&inner, &table, claim, 256 << 20, &mut written).await.unwrap());
    inner.state().retire(written.take().into_iter().collect());
    drop(table);
    let wanted = Points::from([((7, "x".to_owned()), (None, Some(7.0)))]);
    assert!(scanned(&engine).await == wanted);
    engine.checkpoint(Bytes::new()).await.unwrap();
    assert!(scanned(&engine).await == wanted);
    assert_eq!(files_there(dir.path()), 1);
}

#[tokio::test]
async fn what_there_is_no_memory_for_and_what_is_damaged_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        ColumnarConfig { compaction_memory: streams::WORKING_MEMORY + 1, ..ColumnarConfig::default() };
    let engine = ColumnarEngine::open(Arc::new(RealDisk), dir.path().to_owned(), config).await.unwrap();
    three_files(&engine).await;
    let names =
        |engine: &ColumnarEngine| -> Vec<_> { committed(engine).iter().map(|f| f.path.clone()).collect() };
    let before = names(&engine);
    assert_eq!(until_still(&engine).await, 0);
    assert_eq!(names(&engine), before);

    let engine = open(Arc::new(RealDisk), dir.path()).await;
    let old = committed(&engine).remove(0);
    let good = std::fs::read(&old.path).unwrap();
    let mut bad = good.clone();
    // A value, not the metadata: it would decode, and be wrong.
    bad[10] ^= 1;
    std::fs::write(&old.path, &bad).unwrap();
    until_still(&engine).await;
    assert_eq!(engine.damaged_files(), 1);
    assert!(names(&engine).contains(&old.path), "nothing is made of it that looks right");
    std::fs::write(&old.path, &good).unwrap();
    assert!(scanned(&engine).await == three_files_hold());
}

#[cfg(feature = "testing")]
#[tokio::test(start_paused = true)]
async fn a_power_cut_at_any_call_leaves_what_was_there() {
    use crate::testing::{Fault, SimDisk};

    let reopen = |disk: SimDisk| async move {
        ColumnarEngine::open(Arc::new(disk), "engine".into(), ColumnarConfig::default()).await
    };
    let prepared = |fault: Option<(u64, Fault)>| async move {
        let disk = SimDisk::new();
        let engine = reopen(disk.boot()).await.unwrap();
        three_files(&engine).await;
        let before = disk.calls();
        if let Some((call, fault)) = fault {
            disk.fail_at(before + call, fault, false);
        }
        let compacted = engine.maintain().await;
        (disk.calls() - before, disk, engine, compacted)
    };
    let (calls, _, engine, compacted) = prepared(None).await;
    assert!(compacted.unwrap() && engine.compactions().runs == 1 && calls > 10, "{calls} calls");
    for fault in [Fault::PowerCut, Fault::Eio, Fault::Enospc] {
        for call in 1..=calls {
            for seed in 0..3 {
                let what = format!("{fault:?} at call {call}, seed {seed}");
                let (_, disk, engine, _) = prepared(Some((call, fault))).await;
                if fault != Fault::PowerCut {
                    assert!(scanned(&engine).await == three_files_hold(), "{what}: while it runs");
                    // It goes on, and what it could not do it does later.
                    let seq = engine.applied().seq + 1;
                    engine.apply(at(seq), &Operation::Nothing).unwrap();
                    engine.checkpoint(Bytes::new()).await.unwrap_or_else(|e| panic!("{what}: {e}"));
                    while engine.maintain().await.unwrap_or_else(|e| panic!("{what}: {e}")) {}
                    assert!(scanned(&engine).await == three_files_hold(), "{what}: afterwards");
                    assert_eq!(committed(&engine).len(), 2, "{what}");
                }
                drop(engine);
                disk.crash(seed);
                disk.clear_faults();
                let engine = reopen(disk.boot()).await.unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(scanned(&engine).await == three_files_hold(), "{what}: after the crash");
                let there = disk.files().iter().filter(|path| path.starts_with("engine/data")).count();
                assert_eq!(there, committed(&engine).len(), "{what}: {:?}", disk.files());
                while engine.maintain().await.unwrap_or_else(|e| panic!("{what}: {e}")) {}
                assert!(scanned(&engine).await == three_files_hold(), "{what}: compacted after the crash");
                assert_eq!(committed(&engine).len(), 2, "{what}");
            }
        }
    }
}
