//! What Arc's clients send is taken at any node as they send it, and found again.

use std::{io::Write, time::Duration};

use serde::Deserialize;
use serde_bytes::ByteBuf;
use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    http::{Answer, send},
    process::Process,
};

const HOME: (&str, &str) = ("x-arc-database", "it");

fn post(node: &Process, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    send(&node.tcp(), "POST", path, headers, body, Duration::from_secs(30)).unwrap()
}

fn packed(body: &Value) -> Vec<u8> {
    rmp_serde::to_vec(body).unwrap()
}

#[test]
fn message_pack_in_every_shape_and_line_protocol_by_header() {
    let cluster = Cluster::of(3);
    let [edge, other] = cluster.others(cluster.writer())[..] else { panic!("three nodes") };
    let (edge, path) = (&cluster[edge], "/api/v1/write/msgpack");
    let second = 1_700_000_000u64;
    let columns = json!({ "m": "cpu", "columns": {
        "time": [second, second + 1], "host": ["a", "b"], "usage": [0.5, null], "n": [1, 2],
    }});
    assert!(post(edge, path, &[HOME], &packed(&columns)).expect(204).header("x-skein-lsn").is_some());
    let row = json!({ "m": "cpu", "t": (second + 2) * 1_000, "h": "c", "fields": { "usage": 1.5, "n": 3 } });
    post(edge, path, &[HOME], &packed(&row)).expect(204);
    let batch = json!({ "batch": [
        { "m": "cpu", "t": (second + 3) * 1_000_000, "h": "d", "fields": { "n": 4 } },
        { "m": "cpu", "columns": { "time": [second + 4], "host": ["e"], "n": [5] } },
    ]});
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&packed(&batch)).unwrap();
    // Known by its first bytes, as Arc knows it.
    post(edge, path, &[HOME], &gzip.finish().unwrap()).expect(204);
    let lines = "cpu,host=f n=6i 1700000005000000000";
    post(edge, "/api/v1/write/line-protocol", &[HOME], lines.as_bytes()).expect(204);
    for node in [edge, &cluster[other]] {
        assert_eq!(node.numbers("SELECT n FROM cpu ORDER BY time"), [1, 2, 3, 4, 5, 6]);
        let at = "SELECT DISTINCT time::bigint - n * 1000000000 FROM cpu";
        assert_eq!(node.numbers(at), [(second - 1) * 1_000_000_000], "each unit was understood");
    }

    let partly = json!([row, { "m": "cpu", "fields": { "n": "many" } }, 7]);
    let answer = post(edge, path, &[HOME], &packed(&partly)).expect(400);
    assert_eq!(answer.bad_lines(), [2, 3], "items by number");
    assert!(answer.header("x-skein-lsn").is_some(), "the good one is in");
    for body in [&b""[..], b"cpu n=1", b"\xdd\xff\xff\xff\xff", &packed(&columns)[..40]] {
        let answer = post(edge, path, &[HOME], body).expect(400);
        assert!(answer.json()["error"].as_str().unwrap().contains("MessagePack"), "{answer:?}");
    }

    let listed = edge.get("/api/v1/measurements?database=it").expect(200).json();
    assert_eq!(listed["measurements"], json!([{ "database": "it", "measurement": "cpu" }]));
    let listed = edge.get("/api/v1/databases").expect(200).json();
    let one = &listed["databases"][0];
    assert_eq!(
        (&listed["count"], &one["name"], &one["measurement_count"]),
        (&json!(1), &json!("it"), &json!(1))
    );
    edge.get("/api/v1/measurements?database=nope").expect(404);
    let sql = json!({ "sql": "SELECT n FROM cpu" }).to_string();
    let answer =
        post(edge, "/api/v1/query/arrow", &[HOME, ("content-type", "application/json")], sql.as_bytes());
    assert_eq!(answer.expect(200).header("content-type"), Some("application/vnd.apache.arrow.stream"));
}

type Columns =
    (Vec<Extension>, Vec<Option<String>>, Vec<f64>, Vec<i64>, Vec<Option<u64>>, Vec<bool>, Vec<String>);

/// Arc's answer in MessagePack: values column by column, times as the specification's extension.
#[derive(Debug, Deserialize, PartialEq)]
struct Packed {
    success: bool,
    columns: Vec<String>,
    types: Vec<String>,
    data: Columns,
    row_count: u64,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename = "_ExtStruct")]
struct Extension((i8, ByteBuf));

#[test]
fn answers_in_message_pack_and_estimates() {
    let cluster = Cluster::of(1);
    let node = &cluster[0];
    node.write(
        "every,host=a f=0.5,i=-9223372036854775808i,u=18446744073709551615u,b=t,s=\"x\" 1700000000000000001\n\
         every f=2,i=1i,b=f,s=\"y\" 1700000001000000000",
    );
    let ask = |path: &str, sql: &str| post(node, path, &[HOME], json!({ "sql": sql }).to_string().as_bytes());
    let sql = "SELECT time, host, f, i, u, b, s FROM every ORDER BY time";
    let answer = ask("/api/v1/query/msgpack", sql).expect(200);
    assert_eq!(answer.header("content-type"), Some("application/msgpack"));
    assert!(answer.header("x-skein-lsn").is_some());
    let time = |bytes: &[u8]| Extension((-1, ByteBuf::from(bytes.to_vec())));
    let second = 1_700_000_000u64;
    let packed: Packed = rmp_serde::from_slice(&answer.bytes).unwrap();
    let wanted = Packed {
        success: true,
        columns: ["time", "host", "f", "i", "u", "b", "s"].map(str::to_owned).to_vec(),
        types: ["timestamp[ns]", "utf8", "float64", "int64", "uint64", "bool", "utf8"]
            .map(str::to_owned)
            .to_vec(),
        data: (
            vec![time(&(1 << 34 | second).to_be_bytes()), time(&(second as u32 + 1).to_be_bytes())],
            vec![Some("a".into()), None],
            vec![0.5, 2.0],
            vec![i64::MIN, 1],
            vec![Some(u64::MAX), None],
            vec![true, false],
            vec!["x".into(), "y".into()],
        ),
        row_count: 2,
    };
    assert_eq!(packed, wanted);
    // No more than fits is kept, whatever the answer would be.
    let text = "x".repeat(20_000);
    node.write(&(0..100).map(|n| format!("long s=\"{text}\" {n}")).collect::<Vec<_>>().join("\n"));
    let times = |n: usize| {
        let columns: Vec<String> = (0..n).map(|n| format!("s AS c{n}")).collect();
        format!("SELECT {} FROM long", columns.join(", "))
    };
    assert_eq!(ask("/api/v1/query/msgpack", &times(40)).status, 422, "80 MB");
    assert_eq!(ask("/api/v1/query/msgpack", &times(4)).status, 200, "8 MB");

    let estimate = |sql: &str| ask("/api/v1/query/estimate", sql);
    for sql in [sql, "SELECT * FROM every;", "SELECT * FROM every -- all"] {
        let answer = estimate(sql).expect(200).json();
        assert_eq!((&answer["estimated_rows"], &answer["warning_level"]), (&json!(2), &json!("none")));
    }
    // What is a statement only together with what counts it is none.
    for wrong in
        ["SELECT 1) t UNION ALL SELECT count(*) FROM (SELECT 2", "DROP TABLE every", "SELECT nope FROM every"]
    {
        estimate(wrong).expect(400);
    }
    estimate("").expect(400);
}
