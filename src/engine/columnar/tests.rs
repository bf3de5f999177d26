//! The engine as a whole: applied, flushed, reopened, exported.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arrow_array::{Array, ArrayRef, Float64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use bytes::Bytes;

use super::{
    ColumnarConfig, ColumnarEngine,
    batch::{Batch, TableBatch, encode},
    data_file::DAY,
    merge::times,
    schema::{ColumnKind, FieldType, TableSchema},
};
use crate::{
    disk::{Create, Disk, DiskFile, Io, RealDisk},
    engine::{EngineError, Operation, Refused, Room, StorageEngine},
    types::Lsn,
};

#[cfg(feature = "testing")]
mod bits;
#[cfg(feature = "testing")]
mod kept;
mod replicas;
mod series;
#[cfg(feature = "testing")]
mod sweep;
mod tables;

/// A row of the test table: time, host, a, b.
pub(super) type Row = (i64, &'static str, Option<f64>, Option<f64>);

/// A batch of rows for table `cpu`; a field that no row has is not in the batch, and an empty tag is none.
pub(super) fn batch(database: &str, rows: &[Row]) -> Operation {
    table_batch(database, "cpu", rows)
}

pub(super) fn table_batch(database: &str, table: &str, rows: &[Row]) -> Operation {
    let float = ColumnKind::Field(FieldType::Float);
    let mut columns = vec![("host".to_owned(), ColumnKind::Tag)];
    let mut arrays: Vec<ArrayRef> = vec![
        Arc::new(TimestampNanosecondArray::from_iter_values(rows.iter().map(|r| r.0))),
        Arc::new(StringArray::from_iter(rows.iter().map(|r| (!r.1.is_empty()).then_some(r.1)))),
    ];
    let fields: [(&str, Vec<Option<f64>>); 2] =
        [("a", rows.iter().map(|r| r.2).collect()), ("b", rows.iter().map(|r| r.3).collect())];
    for (name, values) in fields {
        if values.iter().any(Option::is_some) {
            columns.push((name.to_owned(), float));
            arrays.push(Arc::new(Float64Array::from(values)));
        }
    }
    let schema = TableSchema::new(columns).unwrap();
    let rows = RecordBatch::try_new(schema.to_arrow(), arrays).unwrap();
    let table = TableBatch { table: table.into(), schema: schema.into(), assigned: 0, rows };
    let payload = encode(&Batch { database: database.into(), tables: vec![table] }).unwrap();
    Operation::Batch { encoding: 1, payload }
}

pub(super) async fn open(disk: Arc<dyn Disk>, dir: &Path) -> Arc<ColumnarEngine> {
    ColumnarEngine::open(disk, dir.to_owned(), ColumnarConfig::default()).await.unwrap()
}

async fn points(engine: &ColumnarEngine) -> Vec<(i64, String, Option<f64>, Option<f64>)> {
    use arrow_array::{cast::AsArray, types::Float64Type};
    let mut found = Vec::new();
    let Some((_, batches)) = engine.scan("db", "cpu").await.unwrap() else { return found };
    for batch in batches {
        let float = |name: &str, row: usize| {
            let column = batch.column_by_name(name)?.as_primitive::<Float64Type>();
            column.is_valid(row).then(|| column.value(row))
        };
        for (row, time) in times(&batch).unwrap().iter().enumerate() {
            let host = batch.column_by_name("host").unwrap().as_string::<i32>().value(row);
            found.push((*time, host.to_owned(), float("a", row), float("b", row)));
        }
    }
    found.sort_by(|x, y| (x.0, &x.1).cmp(&(y.0, &y.1)));
    found
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { dirs.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

fn parquet_files(dir: &Path) -> usize {
    files(dir).iter().filter(|path| path.extension().is_some_and(|e| e == "parquet")).count()
}

fn real() -> Arc<dyn Disk> {
    Arc::new(RealDisk)
}

fn at(seq: u64) -> Lsn {
    Lsn::new(1, seq)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_applied_is_there_after_flush_and_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(real(), dir.path()).await;
    assert_eq!(engine.recovered(), (Lsn::ZERO, Bytes::new()));
    engine.apply(at(1), &batch("db", &[(1, "x", Some(1.0), Some(1.0)), (2, "x", Some(2.0), None)])).unwrap();
    engine.apply(at(2), &batch("db", &[(2, "x", None, Some(9.0)), (DAY, "y", Some(3.0), None)])).unwrap();
    let host = |h: &str| h.to_owned();
    let mut wanted = vec![
        (1, host("x"), Some(1.0), Some(1.0)),
        (2, host("x"), Some(2.0), Some(9.0)),
        (DAY, host("y"), Some(3.0), None),
    ];
    assert_eq!(points(&engine).await, wanted);

    let flush = engine.checkpoint(Bytes::from_static(b"side"));
    engine.apply(at(3), &batch("db", &[(1, "x", Some(5.0), None)])).unwrap();
    wanted[0].2 = Some(5.0);
    assert_eq!(points(&engine).await, wanted, "while the flush waits");
    assert_eq!(flush.await.unwrap(), at(2));
    assert_eq!(points(&engine).await, wanted, "over file and memory");
    assert_eq!(parquet_files(dir.path()), 2, "one per day");
    assert_eq!(engine.row_count("db", "cpu"), Some(4));

    let engine = open(real(), dir.path()).await;
    assert_eq!(engine.recovered(), (at(2), Bytes::from_static(b"side")));
    assert_eq!(engine.applied(), at(2));
    engine.apply(at(3), &batch("db", &[(1, "x", Some(5.0), None)])).unwrap();
    assert_eq!(points(&engine).await, wanted, "after the log was applied again");
    engine.checkpoint(Bytes::new()).await.unwrap();
    assert_eq!(points(&engine).await, wanted);
    assert_eq!(parquet_files(dir.path()), 2, "small files of one day are put together");
    assert_eq!(engine.row_count("db", "cpu"), Some(3), "and their points merged");
    assert_eq!((engine.databases(), engine.tables("db")), (vec![host("db")], Some(vec![host("cpu")])));
    assert!(engine.tables("no").is_none() && engine.row_count("db", "no").is_none());
}

#[tokio::test]
async fn late_data_never_overtakes_what_was_written_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(real(), dir.path()).await;
    let mut wanted = std::collections::BTreeMap::new();
    for seq in 1..=40u64 {
        // Some flushes are large, some small, and all write to the same few points.
        let rows: Vec<Row> = (0..if seq % 7 == 0 { 500 } else { 5 })
            .map(|n| (n * 7 + i64::try_from(seq % 3).unwrap() * DAY, "x", Some(seq as f64), None))
            .collect();
        for row in &rows {
            wanted.insert(row.0, seq as f64);
        }
        engine.apply(at(seq), &batch("db", &rows)).unwrap();
        engine.checkpoint(Bytes::new()).await.unwrap();
    }
    let wanted: Vec<_> = wanted.into_iter().map(|(t, v)| (t, "x".to_owned(), Some(v), None)).collect();
    assert_eq!(points(&engine).await, wanted);
    assert!(parquet_files(dir.path()) < 15, "{} files", parquet_files(dir.path()));
    assert_eq!(points(&open(real(), dir.path()).await.clone()).await, wanted);
}

/// A real disk that fails to rename anything over the manifest while told so.
#[derive(Debug, Default)]
struct NoManifest {
    disk: RealDisk,
    failing: AtomicBool,
}

impl Disk for NoManifest {
    fn open(&self, path: &Path, how: Create) -> Io<Arc<dyn DiskFile>> {
        self.disk.open(path, how)
    }
    fn list(&self, dir: &Path) -> Io<Vec<String>> {
        self.disk.list(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> Io<()> {
        if self.failing.load(Ordering::SeqCst) && to.ends_with("MANIFEST") {
            return Box::pin(async { Err(io::Error::other("told to fail")) });
        }
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> Io<()> {
        self.disk.remove(path)
    }
    fn create_dir(&self, dir: &Path) -> Io<()> {
        self.disk.create_dir(dir)
    }
    fn sync_dir(&self, dir: &Path) -> Io<()> {
        self.disk.sync_dir(dir)
    }
}

#[tokio::test]
async fn files_without_manifest_do_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(NoManifest::default());
    let engine = open(disk.clone(), dir.path()).await;
    engine.apply(at(1), &batch("db", &[(1, "x", Some(1.0), None)])).unwrap();
    engine.checkpoint(Bytes::from_static(b"one")).await.unwrap();
    engine.apply(at(2), &batch("db", &[(1, "x", Some(2.0), None)])).unwrap();
    disk.failing.store(true, Ordering::SeqCst);
    engine.checkpoint(Bytes::new()).await.unwrap_err();
    let wanted = [(1, "x".to_owned(), Some(2.0), None)];
    assert_eq!(points(&engine).await, wanted, "what was frozen stays");
    assert_eq!(engine.recovered().0, at(1));

    // A crash here: the orphan goes, the log is applied again.
    let image = tempfile::tempdir().unwrap();
    copy(dir.path(), image.path());
    assert_eq!(parquet_files(image.path()), 2);
    let after = open(real(), image.path()).await;
    assert_eq!(after.recovered(), (at(1), Bytes::from_static(b"one")));
    assert_eq!(parquet_files(image.path()), 1);
    after.apply(at(2), &batch("db", &[(1, "x", Some(2.0), None)])).unwrap();
    assert_eq!(points(&after).await, wanted);

    // No crash: the next try holds everything, also what came meanwhile.
    engine.apply(at(3), &batch("db", &[(2, "x", Some(3.0), None)])).unwrap();
    disk.failing.store(false, Ordering::SeqCst);
    assert_eq!(engine.checkpoint(Bytes::new()).await.unwrap(), at(3));
    let wanted = [wanted[0].clone(), (2, "x".to_owned(), Some(3.0), None)];
    assert_eq!(points(&engine).await, wanted);
    assert_eq!(points(&open(real(), dir.path()).await.clone()).await, wanted);
    assert_eq!(parquet_files(dir.path()), 1);
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let copy = to.join(file.strip_prefix(from).unwrap());
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::copy(file, copy).unwrap();
    }
}

#[tokio::test]
async fn a_missing_or_cut_file_is_noticed_at_open_and_only_what_needs_it_fails() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(real(), dir.path()).await;
    engine.apply(at(1), &batch("db", &[(1, "x", Some(1.0), None)])).unwrap();
    engine.apply(at(2), &table_batch("db", "other", &[(1, "x", Some(1.0), None)])).unwrap();
    engine.checkpoint(Bytes::new()).await.unwrap();
    let file = files(&dir.path().join("data")).remove(0);
    assert!(file.parent().unwrap().ends_with("cpu"));
    let bytes = std::fs::read(&file).unwrap();
    let damaged = async || {
        let engine = open(real(), dir.path()).await;
        assert!(engine.scan("db", "other").await.unwrap().is_some());
        let names = engine.damaged();
        if let [name] = &names[..] {
            assert!(file.ends_with(name), "{name}");
            assert!(engine.scan("db", "cpu").await.is_err());
            assert!(matches!(engine.export().await, Err(EngineError::Damaged(..))), "nobody else gets it");
        }
        names.len()
    };
    std::fs::write(&file, &bytes[1..]).unwrap();
    assert_eq!(damaged().await, 1);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(damaged().await, 1);
    std::fs::write(&file, &bytes).unwrap();
    assert_eq!(damaged().await, 0);
}

#[tokio::test]
async fn a_dropped_database_is_gone_at_its_position() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(real(), dir.path()).await;
    let drop = Operation::DropDatabase { database: "db".into() };
    engine.apply(at(1), &batch("db", &[(1, "x", Some(1.0), None)])).unwrap();
    engine.apply(at(2), &batch("other", &[(1, "x", Some(1.0), None)])).unwrap();
    engine.checkpoint(Bytes::new()).await.unwrap();
    engine.apply(at(3), &batch("db", &[(2, "x", Some(1.0), None)])).unwrap();
    let flush = engine.checkpoint(Bytes::new());
    engine.apply(at(4), &drop).unwrap();
    assert_eq!(engine.databases(), ["other"]);
    engine.apply(at(5), &batch("db", &[(9, "x", None, Some(1.0))])).unwrap();
    assert_eq!(flush.await.unwrap(), at(3));
    // The flush was of the dropped table; the new one of that name has none of its rows.
    let wanted = [(9, "x".to_owned(), None, Some(1.0))];
    assert_eq!(points(&engine).await, wanted);
    let crashed = open(real(), dir.path()).await;
    assert_eq!(crashed.row_count("db", "cpu"), Some(2));
    crashed.apply(at(4), &drop).unwrap();
    assert_eq!(crashed.row_count("db", "cpu"), None);

    engine.checkpoint(Bytes::new()).await.unwrap();
    assert_eq!(points(&open(real(), dir.path()).await.clone()).await, wanted);
    assert_eq!(parquet_files(dir.path()), 2);
}

#[tokio::test]
async fn schemas_are_judged_before_a_batch_gets_its_position() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(real(), dir.path()).await;
    let payload = |operation: &Operation| match operation {
        Operation::Batch { payload, .. } => payload.clone(),
        _ => panic!("the operation is one of the two"),
    };
    let float = payload(&batch("db", &[(1, "x", Some(1.0), None)]));
    let schema = TableSchema::new([("a".to_owned(), ColumnKind::Field(FieldType::Int))]).unwrap();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(TimestampNanosecondArray::from(vec![1])),
        Arc::new(arrow_array::Int64Array::from(vec![1])),
    ];
    let rows = RecordBatch::try_new(schema.to_arrow(), columns).unwrap();
    let table = TableBatch { table: "cpu".into(), schema: schema.into(), assigned: 0, rows };
    let int = encode(&Batch { database: "db".into(), tables: vec![table] }).unwrap();

    engine.admit(1, &float).unwrap();
    let Err(Refused::SchemaChanged(bytes)) = engine.admit(1, &int) else { panic!("a clash") };
    assert!(engine.schemas().get("db", "cpu").is_none(), "nothing was applied yet");
    engine.absorb_schema(&bytes).unwrap();
    let kind = engine.schemas().get("db", "cpu").unwrap().kind("a");
    assert_eq!(kind, Some(ColumnKind::Field(FieldType::Float)));
    assert!(engine.absorb_schema(b"x").is_err());
    engine.forget_reservations();
    engine.admit(1, &int).unwrap();
    assert!(matches!(engine.admit(9, &int), Err(Refused::Invalid(_))));
    assert!(matches!(engine.admit(1, &int.slice(..9)), Err(Refused::Invalid(_))));

    engine.apply(at(1), &Operation::Batch { encoding: 1, payload: int }).unwrap();
    let clash = Operation::Batch { encoding: 1, payload: float };
    assert!(matches!(engine.apply(at(2), &clash), Err(EngineError::Broken(_))));
    assert!(matches!(engine.apply(at(1), &Operation::Nothing), Err(EngineError::Broken(_))));
}

#[tokio::test]
async fn an_export_installs_elsewhere_and_a_partial_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(real(), dir.path()).await;
    engine.apply(at(1), &batch("db", &[(1, "x", Some(1.0), None), (DAY, "x", Some(2.0), None)])).unwrap();
    engine.checkpoint(Bytes::from_static(b"side")).await.unwrap();
    let export = engine.export().await.unwrap();
    assert_eq!((export.position, &export.sidecar[..], export.files.len()), (at(1), &b"side"[..], 3));
    let wanted = points(&engine).await;

    // What is exported stays, whatever happens to the data.
    engine.apply(at(2), &Operation::DropDatabase { database: "db".into() }).unwrap();
    engine.checkpoint(Bytes::new()).await.unwrap();
    let other = tempfile::tempdir().unwrap();
    let incoming = other.path().join("incoming");
    for file in &export.files {
        let copy = incoming.join(&file.name);
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        assert_eq!(std::fs::copy(&file.path, &copy).unwrap(), file.len);
        let content = std::fs::read(copy).unwrap();
        assert_eq!(ring::digest::digest(&ring::digest::SHA256, &content).as_ref(), file.hash);
    }
    drop(export);
    engine.apply(at(3), &Operation::Nothing).unwrap();
    engine.checkpoint(Bytes::new()).await.unwrap();
    assert_eq!(files(dir.path()).len(), 1, "only the manifest is left");

    let target = open(real(), &other.path().join("data")).await;
    target.apply(Lsn::new(0, 1), &batch("db", &[(5, "old", Some(1.0), None)])).unwrap();
    target.checkpoint(Bytes::new()).await.unwrap();
    let before = points(&target).await;
    let file = files(&incoming.join("data")).remove(0);
    let bytes = std::fs::read(&file).unwrap();
    let mut flipped = bytes.clone();
    flipped[20] ^= 1;
    for spoiled in [Some(&flipped[..]), Some(&bytes[..9]), None] {
        match spoiled {
            Some(bytes) => std::fs::write(&file, bytes).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        let refused = target.install(incoming.clone()).await;
        assert!(matches!(refused, Err(EngineError::Damaged(..))), "{refused:?}");
        assert_eq!(points(&target).await, before, "nothing was changed");
    }
    std::fs::write(&file, &bytes).unwrap();
    assert_eq!(target.install(incoming).await.unwrap(), at(1));
    for engine in [target.clone(), open(real(), &other.path().join("data")).await] {
        assert_eq!(points(&engine).await, wanted);
        assert_eq!(engine.recovered(), (at(1), Bytes::from_static(b"side")));
    }
    assert_eq!(parquet_files(&other.path().join("data")), 2, "the old file is gone");
    target.apply(at(2), &batch("db", &[(1, "x", Some(7.0), None)])).unwrap();
    target.checkpoint(Bytes::new()).await.unwrap();
    assert_eq!(points(&target).await[0].2, Some(7.0));
}

#[tokio::test]
async fn room_ends_with_what_checkpoints_do_not_take() {
    let dir = tempfile::tempdir().unwrap();
    let config = ColumnarConfig { flush_bytes: 1000, ..ColumnarConfig::default() };
    let engine = ColumnarEngine::open(real(), dir.path().to_owned(), config).await.unwrap();
    let rows = batch("db", &[(1, "x", Some(1.0), None); 25]);
    let fill = |seqs: std::ops::RangeInclusive<u64>| {
        let mut seen = Vec::new();
        for seq in seqs {
            engine.apply(at(seq), &rows).unwrap();
            let room = engine.room();
            seen.extend((seen.last() != Some(&room)).then_some(room));
        }
        seen
    };
    let shrinks = [Room::Enough, Room::Little, Room::None];
    assert_eq!(fill(1..=20), shrinks);
    let one = engine.checkpoint(Bytes::new());
    assert_eq!(engine.room(), Room::Enough, "what it holds is not counted while it runs");
    assert_eq!(fill(21..=40), shrinks);
    drop(one);
    let two = engine.checkpoint(Bytes::new());
    assert_eq!(engine.room(), Room::Enough);
    drop(two);
    assert_eq!((engine.room(), engine.inner.state().live_bytes()), (Room::None, 0), "they failed");
    engine.checkpoint(Bytes::new()).await.unwrap();
    assert_eq!((engine.room(), engine.inner.state().frozen_bytes()), (Room::Enough, 0));
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_is_due_by_age_or_size() {
    let dir = tempfile::tempdir().unwrap();
    let config = ColumnarConfig { flush_bytes: 1000, ..ColumnarConfig::default() };
    let engine = ColumnarEngine::open(real(), dir.path().to_owned(), config).await.unwrap();
    assert!(!engine.checkpoint_due());
    engine.apply(at(1), &batch("db", &[(1, "x", Some(1.0), None)])).unwrap();
    assert!(!engine.checkpoint_due());
    tokio::time::advance(std::time::Duration::from_secs(61)).await;
    assert!(engine.checkpoint_due());
    let first = engine.checkpoint(Bytes::new());
    assert!(!engine.checkpoint_due());
    assert!(engine.checkpoint(Bytes::new()).await.is_err(), "one at a time");
    first.await.unwrap();
    assert!(!engine.checkpoint_due());
    engine.apply(at(2), &batch("db", &[(1, "x", Some(1.0), None); 100])).unwrap();
    assert!(engine.checkpoint_due(), "by size");
}
