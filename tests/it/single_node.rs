//! One node: what it acknowledged is there after SIGKILL, and, once stopped and flushed to
//! Parquet, there once.

use std::path::Path;

use serde_json::json;

use crate::{cluster::Cluster, process::Process};

#[test]
fn rows_of_three_apis_survive_a_kill_and_a_flush() {
    let mut cluster = Cluster::of(1);
    let node = &cluster[0];
    let v1 =
        node.post("/write?db=it&precision=s", "cpu,host=a usage=0.5 1\ncpu,host=b usage=1 1").expect(204);
    let v2 = node.post("/api/v2/write?bucket=it&org=x&precision=ms", "cpu,host=a usage=2 2000").expect(204);
    let v3 = node
        .post("/api/v3/write_lp?db=it&precision=nanosecond", "cpu,host=a usage=3,note=\"x\ny\" 3000000000")
        .expect(204);
    assert!(v1.lsn() < v2.lsn() && v2.lsn() < v3.lsn());
    assert_eq!(v3.header("x-skein-ack"), Some("local"), "one node has no quorum to wait for");
    assert_eq!(v3.header("x-skein-node"), Some(node.id.as_str()));
    four_rows(node);

    cluster[0].kill();
    let id = cluster[0].id.clone();
    cluster[0].start(&[]);
    assert_eq!(cluster[0].id, id, "the same directory is the same node");
    cluster.settled();
    four_rows(&cluster[0]);
    let again = cluster[0].write("cpu,host=c usage=4 4000000000");
    assert!(again.lsn().0 > v3.lsn().0, "each process run that writes has an epoch of its own");
    assert!(again.lsn().1 > v3.lsn().1);

    assert!(
        parquet(&cluster[0].dir.join("engine")).is_empty(),
        "flushed too early to test what is in the log"
    );
    let took = cluster[0].stop();
    println!("SIGTERM took {took:?}");
    assert!(!parquet(&cluster[0].dir.join("engine")).is_empty(), "SIGTERM flushes");
    cluster[0].start(&[]);
    cluster.settled();
    let node = &cluster[0];
    let rows = node.ask("SELECT host, usage FROM cpu ORDER BY time, host", &[]).expect(200).json();
    let want = json!([
        { "host": "a", "usage": 0.5 }, { "host": "b", "usage": 1.0 }, { "host": "a", "usage": 2.0 },
        { "host": "a", "usage": 3.0 }, { "host": "c", "usage": 4.0 },
    ]);
    assert_eq!(rows, want);
    // A point written again is the same point, also across file and memory.
    node.write("cpu,host=c usage=5 4000000000");
    assert_eq!(node.numbers("SELECT count(*) FROM cpu"), [5]);
    let last = node.ask("SELECT usage FROM cpu WHERE host = 'c'", &[]).expect(200).json();
    assert_eq!(last, json!([{ "usage": 5.0 }]));
}

fn four_rows(node: &Process) {
    assert_eq!(node.numbers("SELECT count(*) FROM cpu"), [4]);
    let sql = "SELECT host, usage, note FROM cpu WHERE time >= '1970-01-01T00:00:02Z' ORDER BY time";
    let asked = json!({ "sql": sql }).to_string();
    let headers = [("x-arc-database", "it"), ("content-type", "application/json")];
    let arc = crate::http::send(
        &node.tcp(),
        "POST",
        "/api/v1/query",
        &headers,
        asked.as_bytes(),
        crate::process::REQUEST,
    );
    let answer = arc.unwrap().expect(200).json();
    assert_eq!(answer["columns"], json!(["host", "usage", "note"]));
    assert_eq!(answer["data"], json!([["a", 2.0, null], ["a", 3.0, "x\ny"]]));
}

fn parquet(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(parquet(&path));
        } else if path.extension().is_some_and(|end| end == "parquet") {
            found.push(path.display().to_string());
        }
    }
    found
}
