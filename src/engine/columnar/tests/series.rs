//! A limit on series: which points it refuses, and how series are counted.

use tokio::time::{Duration, advance};

use super::{
    super::{
        SeriesGate,
        ingest::{Options, Parsed, Precision, agree, line_protocol, msgpack},
    },
    *,
};

async fn limited(dir: &Path, max_series: usize) -> Arc<ColumnarEngine> {
    let config = ColumnarConfig { max_series, ..ColumnarConfig::default() };
    ColumnarEngine::open(real(), dir.to_owned(), config).await.unwrap()
}

fn options(engine: &ColumnarEngine) -> Options {
    Options {
        database: "db".into(),
        precision: Precision::Nanosecond,
        now_ns: 0,
        accept_partial: true,
        series: engine.series_gate("db"),
    }
}

fn parse(engine: &ColumnarEngine, body: &str) -> Parsed {
    let (options, schemas) = (options(engine), engine.schemas());
    let parsed = line_protocol::parse(body.as_bytes(), &options, &schemas, &mut |_| true);
    agree(&parsed, &line_protocol::encode(body.as_bytes(), &options, &schemas, &mut |_| true));
    parsed.unwrap()
}

fn refused(parsed: &Parsed) -> Vec<usize> {
    parsed.rejected.iter().map(|bad| bad.line).collect()
}

fn payload(parsed: Parsed) -> Operation {
    Operation::Batch { encoding: 1, payload: encode(&parsed.batch.unwrap()).unwrap() }
}

fn counted(engine: &ColumnarEngine) -> usize {
    engine.series().into_iter().find(|(name, _)| name == "db").map_or(0, |(_, series)| series)
}

#[tokio::test]
async fn a_point_of_one_series_too_many_is_refused_with_its_line_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = limited(dir.path(), 3).await;
    let first = parse(&engine, "cpu,host=x,rack=1 a=1 1\n\ncpu,rack=1,host=x a=2 2\ncpu,host=x a=1 1");
    assert_eq!(first.rejected_total, 0);
    engine.apply(at(1), &payload(first)).unwrap();
    assert_eq!(counted(&engine), 2, "the order of tags makes no series");

    // There is room for one more; a bad line between them keeps its place.
    let body =
        "mem,host=y a=1 1\ncpu,host=x a=3 3\n\ncpu,host=z,zone=u b=1 1\nbad\nmem,host=y a=2 2\ncpu a=1 1";
    let parsed = parse(&engine, body);
    assert_eq!(refused(&parsed), [4, 5, 7]);
    assert_eq!((parsed.rows, parsed.rejected_total), (3, 3));
    let why = &parsed.rejected[0].error;
    assert!(
        why.contains("database \"db\" has 3 series") && why.ends_with("cpu,host=z,zone=u is none of them")
    );
    let batch = parsed.batch.as_ref().unwrap();
    let cpu = batch.tables.iter().find(|table| table.table == "cpu").unwrap();
    assert_eq!((cpu.schema.position("zone"), cpu.schema.position("b")), (None, None), "{:?}", cpu.schema);
    engine.apply(at(2), &payload(parsed)).unwrap();

    // Full: what is known goes on, all of a body or nothing where that is asked.
    let parsed = parse(&engine, "mem,host=y a=3 3\nmem,host=new a=1 1");
    assert_eq!((refused(&parsed), parsed.rows), (vec![2], 1));
    let strict = Options { accept_partial: false, ..options(&engine) };
    let body = b"mem,host=y a=3 3\nmem,host=new a=1 1";
    let parsed = line_protocol::parse(body, &strict, &engine.schemas(), &mut |_| true).unwrap();
    assert_eq!((parsed.batch, parsed.rejected_total), (None, 1));
    // A key stands for a whole body.
    let gate = engine.series_gate("db").map(SeriesGate::all_or_nothing);
    let parsed = line_protocol::parse(
        body,
        &Options { series: gate, ..options(&engine) },
        &engine.schemas(),
        &mut |_| true,
    );
    let parsed = parsed.unwrap();
    assert_eq!((&parsed.batch, refused(&parsed)), (&None, vec![2]));
    let long = format!("mem,host={} a=1 1", "x".repeat(5_000));
    assert!(parse(&engine, &long).rejected[0].error.len() < 400);
    let parsed = parse(&engine, "mem,host=new a=1 1");
    assert_eq!((&parsed.batch, refused(&parsed)), (&None, vec![1]));

    // Another database has its own, and a dropped one begins anew.
    let other = Options { database: "other".into(), series: engine.series_gate("other"), ..options(&engine) };
    let parsed = line_protocol::parse(b"mem,host=new a=1 1", &other, &engine.schemas(), &mut |_| true);
    assert_eq!(parsed.unwrap().rejected_total, 0);
    engine.apply(at(3), &Operation::DropDatabase { database: "db".into() }).unwrap();
    assert_eq!(parse(&engine, "a,h=1 f=1 1\na,h=2 f=1 1\na,h=3 f=1 1\na,h=4 f=1 1").rejected_total, 1);
}

#[tokio::test]
async fn an_item_of_many_rows_loses_only_those_of_new_series() {
    let dir = tempfile::tempdir().unwrap();
    let engine = limited(dir.path(), 2).await;
    let item = serde_json::json!([
        {"m": "cpu", "columns": {"time": [1, 2, 3, 4], "host": ["a", "b", "c", "a"], "v": [1.0, 2.0, 3.0, 4.0]}},
        {"m": "cpu", "t": 5, "h": "d", "fields": {"v": 5.0}},
        {"m": "cpu", "t": 6, "h": "b", "fields": {"v": 6.0}},
    ]);
    let body = rmp_serde::to_vec(&item).unwrap();
    let parsed = msgpack::parse(&body, &options(&engine), &engine.schemas(), &mut |_| true).unwrap();
    assert_eq!((refused(&parsed), parsed.rows), (vec![1, 2], 4));
}

#[tokio::test]
async fn what_was_there_at_the_start_is_counted_before_anything_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(real(), dir.path()).await;
    engine.apply(at(1), &batch("db", &[(1, "x", Some(1.0), None), (2, "y", Some(1.0), None)])).unwrap();
    engine.checkpoint(Bytes::new()).await.unwrap();
    assert!(engine.series_gate("db").is_none() && engine.series().is_empty());
    drop(engine);

    let engine = limited(dir.path(), 3).await;
    engine.apply(at(2), &batch("db", &[(3, "z", Some(1.0), None)])).unwrap();
    assert_eq!(parse(&engine, "cpu,host=new a=1 1").rejected_total, 0, "not counted yet");
    assert!(engine.maintain().await.unwrap());
    assert_eq!(counted(&engine), 3);
    assert_eq!(refused(&parse(&engine, "cpu,host=new a=1 1\ncpu,host=x a=1 1")), [1]);
    assert!(!engine.maintain().await.unwrap(), "once is enough");

    // What an edge has let in the writer judges as a whole.
    let payload = |rows: &[Row]| match batch("db", rows) {
        Operation::Batch { payload, .. } => payload,
        other => panic!("{other:?}"),
    };
    let known: Row = (4, "x", Some(1.0), None);
    assert_eq!(engine.admit(1, &payload(&[known])), Ok(()));
    let payload = payload(&[known, (4, "w", None, None)]);
    assert_eq!(engine.validate(1, &payload), Ok(()), "of a batch that is in the log already it says nothing");
    let refused = engine.admit(1, &payload);
    assert!(
        matches!(&refused, Err(Refused::Invalid(why)) if why.ends_with("cpu,host=w is none of them")),
        "{refused:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn series_that_retention_took_make_room() {
    let dir = tempfile::tempdir().unwrap();
    let engine = limited(dir.path(), 2).await;
    let minute = 60_000_000_000;
    engine.apply(at(1), &batch("db", &[(0, "old", Some(1.0), None)])).unwrap();
    engine.checkpoint(Bytes::new()).await.unwrap();
    engine.apply(at(2), &batch("db", &[(9 * minute, "live", Some(1.0), None)])).unwrap();
    let keep = Operation::SetRetention { database: "db".into(), keep_ns: Some(minute) };
    engine.apply(at(3), &keep).unwrap();
    engine.apply(at(4), &Operation::Expire { now_ns: 9 * minute }).unwrap();
    assert_eq!(refused(&parse(&engine, "cpu,host=new a=1 540000000000")), [1]);
    assert!(!engine.maintain().await.unwrap(), "it was counted a moment ago");

    advance(Duration::from_secs(601)).await;
    assert!(engine.maintain().await.unwrap());
    assert_eq!((counted(&engine), parse(&engine, "cpu,host=new a=1 540000000000").rejected_total), (1, 0));
    let _ = engine.apply(at(5), &batch("db", &[(9 * minute, "new", Some(1.0), None)]));
    advance(Duration::from_secs(601)).await;
    assert!(!engine.maintain().await.unwrap(), "nothing has gone since");
    assert_eq!(counted(&engine), 2);
}
