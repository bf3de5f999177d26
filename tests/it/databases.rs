//! `skein db`: what one node is told to drop or to keep, every node does, also one that was away or
//! comes later, and nobody is told to without being allowed.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, eventually},
    http::send,
    process::{Process, REQUEST},
};

#[test]
fn what_one_node_is_told_of_a_database_every_node_does() {
    let mut cluster = Cluster::of(3);
    let writer = cluster.writer();
    let [asked, away] = cluster.others(writer)[..] else { panic!("three nodes") };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    cluster[asked].write(&format!("cpu v=1 1000\ncpu v=2 {now}"));
    cluster[asked].post("/write?db=gone", "cpu v=1 1").expect(204);

    // Told to a node that does not write, while a replica is down.
    cluster[away].kill();
    let node = &cluster[asked];
    assert_eq!(node.skein_says(&["db", "retention", "it", "1h"]), "database it keeps its points for 1h\n");
    assert_eq!(node.skein_says(&["db", "drop", "gone"]), "database gone is dropped\n");
    assert_eq!(listed(node)[0]["name"], "it", "done here once it is answered");
    let again = node.skein(&["db", "drop", "gone"]);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    assert!(String::from_utf8_lossy(&again.stderr).contains("there is no database gone"), "{again:?}");
    assert_eq!(node.skein(&["db", "retention", "it", "1s"]).status.code(), Some(1), "too short");
    // Written again it begins anew: with another type in the same column.
    node.post("/write?db=gone", "cpu v=\"text\" 5").expect(204);
    node.skein_says(&["db", "retention", "later", "30d"]);

    cluster[away].start(&[]);
    cluster.settled();
    same_everywhere(&cluster);
    // And from the logs and files alone, after everything was down; by a newcomer too.
    cluster.processes().iter_mut().for_each(Process::kill);
    for node in 0..3 {
        cluster[node].start(&[]);
    }
    cluster.settled();
    // Two, for a fourth voter waits for a fifth.
    cluster.join(2);
    same_everywhere(&cluster);

    for node in cluster.running() {
        let node = &cluster[node];
        for (method, path) in [("DELETE", "/api/v1/databases/it"), ("PUT", "/api/v1/databases/it/retention")]
        {
            let body = br#"{"keep":"2h"}"#;
            let answer = send(&node.tcp(), method, path, &[], body, REQUEST).unwrap();
            assert_eq!(answer.status, 401, "{method} {path} without a token: {answer:?}");
        }
        assert_eq!(node.skein(&["db", "drop", "../tokens"]).status.code(), Some(2));
    }
    same_everywhere(&cluster);
}

/// The old point is gone and the new one is there, and so on, as soon as a node has come to it.
#[track_caller]
fn same_everywhere(cluster: &Cluster) {
    for node in cluster.running() {
        let node = &cluster[node];
        eventually("the node has done it too", || {
            let listed = listed(node);
            let keeps: Vec<_> = listed.iter().map(|db| (&db["name"], &db["keep"])).collect();
            let horizon = listed.iter().find(|db| db["name"] == "it")?["horizon"].is_string();
            let want =
                [(json!("gone"), Value::Null), (json!("it"), json!("1h")), (json!("later"), json!("30d"))];
            (horizon && keeps.into_iter().eq(want.iter().map(|(a, b)| (a, b)))).then_some(())
        });
        assert_eq!(node.numbers("SELECT count(*) FROM cpu"), [1], "{}", node.name);
        let text = node.ask("SELECT v FROM gone.cpu", &[("consistency", "linearizable")]).expect(200).json();
        assert_eq!(text, json!([{ "v": "text" }]));
    }
}

#[track_caller]
fn listed(node: &Process) -> Vec<Value> {
    serde_json::from_str(&node.skein_says(&["db", "list", "--json"])).unwrap()
}
