//! What clients send, and what becomes of it: line protocol, MessagePack, payloads of records, statements.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::engine::columnar::{
    batch::{self, Batch},
    ingest::{BodyError, Encoded, MAX_REPORTED, Options, Parsed, Precision, line_protocol, msgpack},
    schema::Schemas,
};

/// Line protocol; a first byte that is odd asks for all points or none.
pub fn lines(data: &[u8]) {
    let Some((first, body)) = data.split_first() else { return };
    let options = options(first % 2 == 0);
    let parsed = line_protocol::parse(body, &options, &Schemas::default(), &mut |_| true);
    let encoded = line_protocol::encode(body, &options, &Schemas::default(), &mut |_| true);
    holds_together(parsed, encoded, &options);
}

/// MessagePack in Arc's shapes; the first byte as with [`lines`].
pub fn packed(data: &[u8]) {
    let Some((first, body)) = data.split_first() else { return };
    let options = options(first % 2 == 0);
    let parsed = msgpack::parse(body, &options, &Schemas::default(), &mut |_| true);
    let encoded = msgpack::encode(body, &options, &Schemas::default(), &mut |_| true);
    holds_together(parsed, encoded, &options);
}

/// The payload of a record, as it comes from an edge or from a disk.
pub fn payload(data: &[u8]) {
    if let Ok(batch) = batch::decode(&Bytes::copy_from_slice(data)) {
        is_said_again(&batch);
    }
}

/// A statement, as far as it is looked at before anything is planned.
#[cfg(feature = "sql")]
pub fn statement(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(names) = crate::engine::columnar::sql::parameter_names(&text) {
        assert!(names.len() <= text.len(), "{} parameters of {} bytes", names.len(), text.len());
    }
}

fn options(accept_partial: bool) -> Options {
    Options {
        database: "home".into(),
        precision: Precision::Nanosecond,
        now_ns: 42,
        accept_partial,
        series: None,
    }
}

fn holds_together(parsed: Result<Parsed, BodyError>, encoded: Result<Encoded, BodyError>, options: &Options) {
    let Ok(Parsed { batch, rows, rejected, rejected_total }) = parsed else {
        return assert_eq!(parsed.err(), encoded.err(), "both ways");
    };
    let payload =
        batch.as_ref().map(|batch| batch::encode(batch).unwrap_or_else(|e| panic!("{e}: {batch:?}")));
    assert_eq!(
        encoded,
        Ok(Encoded { payload, rows, rejected: rejected.clone(), rejected_total }),
        "both ways"
    );
    assert_eq!(rejected.len(), rejected_total.min(MAX_REPORTED), "bad points that are told");
    assert!(rejected.iter().all(|bad| bad.line > 0 && !bad.error.is_empty()), "{rejected:?}");
    assert!(rejected.is_sorted_by_key(|bad| bad.line), "in order: {rejected:?}");
    assert_eq!(batch.as_ref().map_or(0, Batch::rows), rows, "points that are taken");
    assert!(options.accept_partial || rejected_total == 0 || batch.is_none(), "all or nothing");
    if let Some(batch) = batch {
        assert_eq!(batch.database, options.database);
        is_said_again(&batch);
    }
}

fn is_said_again(batch: &Batch) {
    assert!(!batch.tables.is_empty() && batch.tables.iter().all(|table| table.rows.num_rows() > 0));
    let payload = batch::encode(batch).unwrap_or_else(|e| panic!("{e}: {batch:?}"));
    let again = batch::decode(&payload).unwrap_or_else(|e| panic!("{e}: {batch:?}"));
    assert_eq!(again.rows(), batch.rows());
    let names = |batch: &Batch| batch.tables.iter().map(|table| table.table.clone()).collect::<Vec<_>>();
    assert_eq!(names(&again), names(batch));
}

/// Whole inputs of a target of this file.
pub(super) fn samples(target: &str) -> Vec<Vec<u8>> {
    match target {
        "lines" => line_bodies(),
        "packed" => shapes().iter().flat_map(|shape| rmp_serde::to_vec(shape).ok()).map(marked).collect(),
        "payload" => payloads(),
        "statement" => STATEMENTS.iter().map(|text| text.as_bytes().to_vec()).collect(),
        _ => Vec::new(),
    }
}

fn marked(body: Vec<u8>) -> Vec<u8> {
    [vec![0], body].concat()
}

const LINES: [&str; 8] = [
    "cpu,host=a usage=0.5,n=7i,u=9u,up=t,s=\"x\\\"y\" 1700000000000000000\n",
    "cpu,host=b,rack=1 usage=1e-3\r\nmem free=1i -5\n",
    "# a comment\n\nwe\\ ather,lo\\,c=a\\=b te\\ mp=1 2\n",
    "t s=\"a\nb\",v=-0.0 9223372036854775807\n",
    "a b=1 1\na b=2i 2\na b=\"x\" 3\n",
    "a,x=1,x=2 v=1\na v=nan\na v=\na v=1 x\n",
    "a v=T\na v=false\na v=True 1700000000\n",
    "a,t=\u{e9} f\u{fc}=\"\u{1f980}\" 5",
];

fn line_bodies() -> Vec<Vec<u8>> {
    LINES.iter().map(|lines| marked(lines.as_bytes().to_vec())).collect()
}

fn shapes() -> [Value; 6] {
    let columns = json!({ "m": "cpu", "columns": { "time": [1_700_000_000, 1_700_000_001], "host": ["a", null],
        "v": [0.5, 1], "n": [-1, 2], "up": [true, null] } });
    let row = json!({ "m": "cpu", "t": 1_700_000_000_000i64, "h": "a", "fields": { "v": 1.5, "s": "x" }, "tags": { "r": "eu" } });
    let compact = json!({ "m": 3, "h": 9, "f": [1, null, 2.5] });
    [
        json!([columns, row, compact]),
        json!({ "batch": [row, columns] }),
        json!({ "m": "m", "columns": { "host": ["a"], "x": ["y"] }, "tag_keys": ["host"] }),
        columns,
        row,
        compact,
    ]
}

fn payloads() -> Vec<Vec<u8>> {
    let parse = |body: &str| {
        line_protocol::parse(body.as_bytes(), &options(true), &Schemas::default(), &mut |_| true)
    };
    let batches = LINES.iter().filter_map(|lines| parse(lines).ok()?.batch);
    batches.filter_map(|batch| Some(batch::encode(&batch).ok()?.to_vec())).collect()
}

const STATEMENTS: [&str; 6] = [
    "SELECT * FROM cpu WHERE host = $host AND n > ? ORDER BY time DESC LIMIT 5",
    "select \"a\"\"b\", 'it''s', $1 from home.cpu -- a comment\n",
    "/* a /* nested */ comment */ WITH x AS (SELECT 1) SELECT count(*) FROM x",
    "SELECT date_bin(INTERVAL '1 minute', time), avg(v)::float FROM cpu GROUP BY 1",
    "SHOW TABLES",
    "SELECT $$text$$, U&'\\0041', X'ff', 1e5, .5, a.b.c['d'] FROM t",
];
