//! Records of many tables, and what becomes of a table's columns.

use super::{
    super::ingest::{Options, Precision, line_protocol},
    *,
};

fn lines(engine: &ColumnarEngine, body: &str) -> Operation {
    let options = Options {
        database: "db".into(),
        precision: Precision::Nanosecond,
        now_ns: 0,
        accept_partial: false,
        series: None,
    };
    let encoded = line_protocol::encode(body.as_bytes(), &options, &engine.schemas(), &mut |_| true);
    Operation::Batch { encoding: 1, payload: encoded.unwrap().payload.unwrap() }
}

fn kind(engine: &ColumnarEngine, table: &str, column: &str) -> Option<ColumnKind> {
    engine.schemas().get("db", table)?.kind(column)
}

/// Names of files differ from one node to the next, and nothing else does.
fn manifest(engine: &ColumnarEngine) -> (Bytes, Vec<(String, u64, i64, i64)>) {
    let manifest = engine.inner.state().manifest.clone();
    let files = manifest.files.iter().map(|f| (f.table.clone(), f.size, f.min_time, f.max_time)).collect();
    (manifest.schemas.to_bytes().unwrap(), files)
}

#[tokio::test]
async fn checkpoints_of_many_tables_are_the_same_on_two_nodes() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let engines = [open(real(), dirs[0].path()).await, open(real(), dirs[1].path()).await];
    for seq in 1..=3 {
        let body: String = (0..40).rev().map(|n| format!("t{n},host=h{seq} v={n} {seq}\n")).collect();
        let record = lines(&engines[0], &body);
        for engine in &engines {
            engine.apply(at(seq), &record).unwrap();
        }
    }
    for engine in &engines {
        engine.checkpoint(Bytes::new()).await.unwrap();
    }
    let [one, two] = engines.each_ref().map(|engine| manifest(engine));
    assert_eq!(one, two);
    assert_eq!(one.1.len(), 40);
    assert!(one.1.is_sorted(), "by table");
    assert_eq!(engines[0].row_count("db", "t7"), Some(3));
}

#[tokio::test]
async fn a_record_that_is_refused_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(real(), dir.path()).await;
    engine.apply(at(1), &lines(&engine, "b v=1 1")).unwrap();
    // Such a record is let in by nobody.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = open(real(), elsewhere.path()).await;
    let clash = lines(&other, "a v=1 1\nb v=2i 1\nc v=1 1");
    let error = engine.apply(at(2), &clash).unwrap_err().to_string();
    assert!(error.contains("table \"b\"") && error.contains("int"), "{error}");
    assert_eq!((engine.applied(), engine.tables("db")), (at(1), Some(vec!["b".to_owned()])));
    engine.checkpoint(Bytes::new()).await.unwrap();
    let again = open(real(), dir.path()).await;
    assert_eq!(
        (again.applied(), again.row_count("db", "b"), again.row_count("db", "a")),
        (at(1), Some(1), None)
    );
}

#[tokio::test]
async fn columns_of_a_table_that_was_dropped_say_nothing_of_one_of_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(real(), dir.path()).await;
    let (float, int) = (ColumnKind::Field(FieldType::Float), ColumnKind::Field(FieldType::Int));
    let record = lines(&engine, "a v=1 1\nb v=1 1");
    engine.apply(at(1), &record).unwrap();
    engine.apply(at(2), &lines(&engine, "a v=2 2")).unwrap();
    assert_eq!(kind(&engine, "a", "v"), Some(float));
    engine.apply(at(3), &Operation::DropDatabase { database: "db".into() }).unwrap();
    engine.apply(at(4), &lines(&engine, "a v=3i 1\na w=3i 2")).unwrap();
    engine.apply(at(5), &lines(&engine, "a v=4i 3")).unwrap();
    assert_eq!((kind(&engine, "a", "v"), kind(&engine, "a", "w")), (Some(int), Some(int)));
    assert_eq!(engine.row_count("db", "a"), Some(3));
    // A record of the old columns that comes behind is refused, whatever was known of it once.
    assert!(engine.apply(at(6), &record).is_err());
    engine.checkpoint(Bytes::new()).await.unwrap();
    let again = open(real(), dir.path()).await;
    assert_eq!((kind(&again, "a", "v"), again.row_count("db", "a")), (Some(int), Some(3)));
    again.apply(at(6), &lines(&again, "a v=5i 4\nb v=1 1")).unwrap();
    assert_eq!((again.row_count("db", "a"), again.row_count("db", "b")), (Some(4), Some(1)));
}

#[tokio::test]
async fn what_is_let_in_without_a_look_is_judged_once_something_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(real(), dir.path()).await;
    let payload = |body: &str| match lines(&engine, body) {
        Operation::Batch { payload, .. } => payload,
        other => panic!("{other:?}"),
    };
    let first = payload("a v=1 1\nb v=1 1");
    engine.admit(1, &first).unwrap();
    engine.apply(at(1), &Operation::Batch { encoding: 1, payload: first.clone() }).unwrap();
    // All of its columns are known: nothing is reserved, and nothing taken back.
    engine.admit(1, &first).unwrap();
    engine.withdraw(1, &first);
    engine.admit(1, &first).unwrap();
    let (int, float) = (payload("c v=1i 1"), payload("c v=1 1"));
    engine.admit(1, &int).unwrap();
    assert!(matches!(engine.admit(1, &float), Err(Refused::SchemaChanged(_))));
    engine.apply(at(2), &Operation::Batch { encoding: 1, payload: first.clone() }).unwrap();
    engine.apply(at(3), &Operation::Batch { encoding: 1, payload: int }).unwrap();
    engine.admit(1, &first).unwrap();
    assert!(matches!(engine.admit(1, &float), Err(Refused::SchemaChanged(_))));
}
