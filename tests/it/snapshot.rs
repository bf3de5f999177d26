//! A node that joins when the log no longer reaches back to the first record fetches a snapshot,
//! goes on with the log from there, holds everything, knows the keys of clients and votes.

use std::fmt::Write;

use crate::{
    cluster::{Cluster, eventually},
    http::{Answer, send},
    process::{Process, REQUEST, column},
};

/// Rows of one body.
const ROWS: u64 = 2_000;

#[test]
fn a_node_behind_retention_fetches_a_snapshot() {
    let mut cluster = Cluster::empty();
    let first = cluster.add();
    frugal(&mut cluster[first]);
    cluster[first].start(&["--new-cluster"]);
    // Without a time of its own: applied twice, it would be two points.
    let once = keyed(&cluster[first], "once v=1u").expect(204).lsn();
    let mut rows = 0;
    fill(&cluster[first], &mut rows);
    retired(&cluster[first]);

    let seed = cluster[first].mesh.clone();
    let mut newcomers = Vec::new();
    for _ in 0..2 {
        let node = cluster.add();
        frugal(&mut cluster[node]);
        let token = cluster[first].token(1);
        cluster[node].start(&["--join", &token, "--seed", &seed]);
        eventually("the newcomer has everything", || holds(&cluster[node], rows));
        // Its rows are seen a moment before its log begins behind it.
        eventually("it says so", || (snapshots(&cluster[node]) > 0).then_some(()));
        assert_eq!(snapshots(&cluster[node]), 1, "{}", cluster[node].said());
        newcomers.push(node);
    }
    cluster.settled();

    // They are no mere copies: with the first one gone they are the majority.
    cluster[first].kill();
    let last = cluster[newcomers[0]].write("t,late=yes n=0u 1").lsn();
    let lsn = format!("{}.{}", last.0, last.1);
    let found = cluster[newcomers[1]].ask("SELECT count(*) FROM t", &[("min_lsn", &lsn)]).expect(200);
    assert_eq!(column(&found), [rows + 1]);

    // What they know of the key came with the snapshot: the record that had it is gone.
    for node in newcomers {
        assert_eq!(keyed(&cluster[node], "once v=1u").expect(204).lsn(), once);
        keyed(&cluster[node], "once v=2u").expect(409);
        let found = cluster[node].ask("SELECT count(*) FROM once", &[("min_lsn", &lsn)]).expect(200);
        assert_eq!(column(&found), [1]);
    }
}

/// Sent with a key of the client's, always the same.
fn keyed(node: &Process, line: &str) -> Answer {
    let headers = [("idempotency-key", "before the snapshot")];
    send(&node.tcp(), "POST", "/api/v3/write_lp?db=it", &headers, line.as_bytes(), REQUEST).unwrap()
}

/// Little log is kept, and what is in memory is soon in files.
fn frugal(node: &mut Process) {
    for (key, value) in [("FLUSH_AGE", "300ms"), ("WAL_SEGMENT", "64KiB"), ("WAL_KEEP_BYTES", "64KiB")] {
        node.env.push((format!("SKEIN_STORAGE_{key}"), value.to_owned()));
    }
}

/// Some megabytes of log.
fn fill(node: &Process, rows: &mut u64) {
    for _ in 0..20 {
        let mut body = String::new();
        for n in *rows..*rows + ROWS {
            writeln!(body, "t,host=h{} n={n}u,text=\"{n:040}\" {}", n % 7, n + 1).unwrap();
        }
        *rows += ROWS;
        node.post("/api/v3/write_lp?db=it&precision=nanosecond", &body).expect(204);
    }
}

/// Waits until the log on disk begins behind its first record.
fn retired(node: &Process) {
    eventually("old segments are gone", || {
        let first = node.dir.join("wal/00000000000000000001.wal");
        (!first.exists()).then_some(())
    });
}

fn holds(node: &Process, rows: u64) -> Option<()> {
    let found = node.ask("SELECT count(*) FROM t", &[]);
    (found.status == 200 && column(&found) == [rows]).then_some(())
}

/// How often this run of the node installed a snapshot.
fn snapshots(node: &Process) -> usize {
    node.said().matches("snapshot installed").count()
}
