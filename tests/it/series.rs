//! A limit on series: each node refuses the lines of its own clients, and the writer what a gateway brings.

use crate::{cluster::Cluster, gateway::with, http::send, process::REQUEST};

#[test]
fn a_series_too_many_is_refused_wherever_it_is_written() {
    let mut cluster = Cluster::empty();
    for joins in [false, true] {
        let node = cluster.add();
        cluster.processes()[node].env.push(("SKEIN_STORAGE_MAX_SERIES".into(), "2".into()));
        if joins {
            let (token, seed) = (cluster[0].token(1), cluster[0].mesh.clone());
            cluster[node].start(&["--join", &token, "--seed", &seed]);
        } else {
            cluster[node].start(&["--new-cluster"]);
        }
    }
    cluster.settled();
    let gateway = with(&mut cluster, "gateway", "127.0.0.1:0");
    let writer = cluster.writer();
    let edge = cluster.others(writer).into_iter().find(|node| *node != gateway).unwrap();
    let at = cluster[writer].write("cpu,host=a v=1 1\ncpu,host=b v=1 1").lsn();
    let applied = format!("{}.{}", at.0, at.1);
    cluster[edge].ask("SELECT * FROM cpu", &[("min_lsn", &applied)]).expect(200);

    for node in [writer, edge] {
        let answer = cluster[node].post("/write?db=it", "cpu,host=a v=2 2\ncpu,host=c v=2 2").expect(400);
        assert_eq!(answer.bad_lines(), [2], "{answer:?}");
        let why = answer.json()["lines"][0]["error"].as_str().unwrap().to_owned();
        assert!(why.contains("storage.max_series") && why.contains("cpu,host=c"), "{why}");
        assert!(answer.header("x-skein-lsn").is_some(), "the other line is written: {answer:?}");
    }
    // A key stands for a whole body: what is refused of it cannot be taken for written later.
    let (headers, body) = ([("idempotency-key", "once")], b"cpu,host=a v=9 9\ncpu,host=c v=9 9");
    let answer = send(&cluster[edge].tcp(), "POST", "/write?db=it", &headers, body, REQUEST);
    let answer = answer.unwrap().expect(400);
    assert_eq!(answer.bad_lines(), [2], "{answer:?}");
    assert!(answer.header("x-skein-lsn").is_none(), "nothing of it is written: {answer:?}");
    // A gateway knows no series: the writer refuses the body.
    let answer = cluster[gateway].post("/write?db=it", "cpu,host=a v=3 3\ncpu,host=c v=3 3").expect(400);
    let why = answer.json()["error"].as_str().unwrap().to_owned();
    assert!(why.contains("storage.max_series") && why.contains("cpu,host=c"), "{why}");
    cluster[gateway].post("/write?db=it", "cpu,host=a v=4 4").expect(204);
    assert!(cluster[edge].get("/metrics").expect(200).body.contains("\nskein_series 2\n"));
    let points = "SELECT count(*) FROM cpu GROUP BY host ORDER BY host";
    assert_eq!(cluster[writer].numbers(points), [3, 1], "of a and b");
}
