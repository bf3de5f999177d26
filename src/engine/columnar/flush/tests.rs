//! What is put together and what is not.

use std::{collections::BTreeMap, path::Path};

use super::*;
use crate::{
    disk::RealDisk,
    engine::{
        Operation, StorageEngine,
        columnar::{
            ColumnarEngine,
            schema::{ColumnKind, FieldType, TableSchema},
            tests::{Row, batch, open, table_batch},
        },
    },
};

fn at(seq: u64) -> Lsn {
    Lsn::new(1, seq)
}

async fn engine(dir: &Path) -> Arc<ColumnarEngine> {
    open(Arc::new(RealDisk), dir).await
}

async fn flushed(engine: &ColumnarEngine, seq: u64, record: &Operation) {
    engine.apply(at(seq), record).unwrap();
    engine.checkpoint(Bytes::new()).await.unwrap();
}

fn file_list(engine: &ColumnarEngine) -> Vec<Arc<DataFile>> {
    engine.inner.state().committed.clone()
}

/// Time and `a` of every point.
async fn values(engine: &ColumnarEngine) -> BTreeMap<i64, f64> {
    use arrow_array::{cast::AsArray, types::Float64Type};
    let mut found = BTreeMap::new();
    for batch in engine.scan("db", "cpu").await.unwrap().unwrap().1 {
        let values = batch.column_by_name("a").unwrap().as_primitive::<Float64Type>();
        found.extend(times(&batch).unwrap().iter().copied().zip(values.values().iter().copied()));
    }
    found
}

#[tokio::test]
async fn a_damaged_file_is_left_out_and_told_and_not_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    flushed(&engine, 1, &batch("db", &[(1, "x", Some(1.0), None), (2, "x", Some(1.0), None)])).await;
    let old = file_list(&engine).remove(0);
    let good = std::fs::read(&old.path).unwrap();
    let mut bad = good.clone();
    // A value, not the metadata: it would decode, and be wrong.
    bad[10] ^= 1;
    std::fs::write(&old.path, &bad).unwrap();
    for seq in 2..6 {
        flushed(&engine, seq, &batch("db", &[(seq as i64, "x", Some(2.0), None)])).await;
    }
    assert_eq!(engine.damaged_files(), 1);
    let files = file_list(&engine);
    assert!(files.iter().any(|file| file.path == old.path), "{files:?}");
    assert!(files.len() <= 3, "the others are still put together: {files:?}");
    assert_eq!(std::fs::read(&old.path).unwrap(), bad, "what is left of it is kept");
    // Its points are neither given as they are nor left out without a word once it does not decode.
    std::fs::write(&old.path, vec![0; bad.len()]).unwrap();
    assert!(matches!(engine.scan("db", "cpu").await, Err(EngineError::Damaged(..))));
    std::fs::write(&old.path, &good).unwrap();
    let wanted = [(1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0), (5, 2.0)];
    assert_eq!(values(&engine).await, BTreeMap::from(wanted), "later writes still win");
}

#[tokio::test]
async fn flushes_over_many_days_are_put_together_too() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let mut wanted = BTreeMap::new();
    for seq in 1..=40u64 {
        let value = seq as f64;
        let rows: Vec<Row> = match seq % 5 {
            // One day, in the middle of the others.
            0 => vec![(100 * DAY, "x", Some(value), None), (100 * DAY + 1, "x", Some(value), None)],
            // Years, a point each.
            1 => (0..40).map(|n| (n * 366 * DAY, "x", Some(value), None)).collect(),
            _ => (0..200).map(|n| (n * DAY, "x", Some(value), None)).collect(),
        };
        wanted.extend(rows.iter().map(|row| (row.0, value)));
        flushed(&engine, seq, &batch("db", &rows)).await;
    }
    assert_eq!(values(&engine).await, wanted);
    let count = file_list(&engine).len();
    assert!(count < 100, "{count} files");
    assert_eq!(values(&*self::engine(dir.path()).await).await, wanted);
}

#[tokio::test]
async fn what_is_large_in_memory_is_not_loaded_however_small_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let long: &'static str = Box::leak("x".repeat(50_000).into_boxed_str());
    let rows: Vec<Row> = (0..400).map(|n| (n, long, Some(1.0), None)).collect();
    flushed(&engine, 1, &table_batch("db", "log", &rows)).await;
    let file = file_list(&engine).remove(0);
    assert!(file.entry.size < 100_000, "{} bytes", file.entry.size);
    engine.apply(at(2), &table_batch("db", "log", &[(5, "x", Some(1.0), None)])).unwrap();
    let frozen = engine.inner.state().freeze(tokio::time::Instant::now()).unwrap();
    let part = &frozen.parts[0];
    assert!(load(&engine.inner, part, &file, 19 << 20).await.is_none());
    let (rows, bytes) = load(&engine.inner, part, &file, 21 << 20).await.unwrap();
    assert!((20_000_000..20_100_000).contains(&bytes), "{bytes}");
    assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 400);
}

#[tokio::test]
async fn rows_become_files_by_what_they_take_with_all_columns() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    // Narrow rows, before the table becomes wide.
    let rows: Vec<Row> = (0..40_000).map(|n| (n, "x", Some(n as f64), None)).collect();
    engine.apply(at(1), &batch("db", &rows[..20_000])).unwrap();
    engine.apply(at(2), &batch("db", &rows[20_000..])).unwrap();
    let mut view = engine.inner.state().view("db", "cpu").unwrap().unwrap();
    assert_eq!(groups(&view).unwrap().len(), 1);
    let wide = (0..900).map(|n| (format!("c{n}"), ColumnKind::Field(FieldType::Float)));
    let wide = TableSchema::new(
        wide.chain([("host".into(), ColumnKind::Tag), ("a".into(), ColumnKind::Field(FieldType::Float))]),
    );
    view.schema = Arc::new(wide.unwrap());
    let groups = groups(&view).unwrap();
    let width = width(&view.schema);
    for group in &groups {
        let rows: usize = group.iter().map(RecordBatch::num_rows).sum();
        assert!(rows * width <= GROUP_BYTES, "{rows} rows of {width} bytes");
    }
    assert!(groups.len() <= 8, "{} groups", groups.len());
    let order: Vec<i64> = groups.iter().flatten().flat_map(|batch| times(batch).unwrap().to_vec()).collect();
    assert!(order.is_sorted() && order.len() == 40_000);
}

#[test]
fn pieces_are_days_or_as_much_more_as_it_takes() {
    let schema =
        TableSchema::new([("a".to_owned(), ColumnKind::Field(FieldType::Float))]).unwrap().to_arrow();
    let rows = |times: Vec<i64>| {
        let values = arrow_array::Float64Array::from(vec![1.0; times.len()]);
        let times = arrow_array::TimestampNanosecondArray::from(times);
        RecordBatch::try_new(schema.clone(), vec![Arc::new(times), Arc::new(values)]).unwrap()
    };
    for (days, span, count) in [
        ((0..64).collect::<Vec<i64>>(), 1, 64),
        ((0..65).collect(), 64, 2),
        ((-1..64).collect(), 64, 2),
        ((0..20_000).collect(), 4_096, 5),
        ((-106_751..106_751).step_by(100).collect(), 4_096, 54),
    ] {
        let rows = rows(days.iter().map(|day| day * DAY).collect());
        let (got, pieces) = pieces(&schema, &[rows]).unwrap();
        assert_eq!((got / DAY, pieces.len()), (span, count), "{} days", days.len());
    }
}
