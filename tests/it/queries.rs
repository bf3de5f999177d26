//! Queries over HTTP: values for parameters on every route, and what becomes of one whose client goes.

use std::{io::Write, net::TcpStream, time::Instant};

use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, eventually},
    http::{Answer, Target, send},
    process::{Process, REQUEST},
};

const JSON: (&str, &str) = ("content-type", "application/json");

fn post(node: &Process, path: &str, asked: &Value) -> Answer {
    let headers = [JSON, ("x-arc-database", "it")];
    send(&node.tcp(), "POST", path, &headers, asked.to_string().as_bytes(), REQUEST).unwrap()
}

#[test]
fn parameters_on_every_route_and_a_client_that_goes() {
    let mut cluster = Cluster::empty();
    let node = cluster.add();
    // One place, and nothing but its client's going gives it back within this test.
    cluster[node].env =
        [("SKEIN_HTTP_MAX_QUERIES", "1"), ("SKEIN_HTTP_QUERY_TIMEOUT", "1h")].map(own).to_vec();
    cluster[node].start(&["--new-cluster"]);
    cluster.settled();
    let node = &cluster[node];
    let lines: Vec<String> = (0..1_000).map(|n| format!("cpu,host=h{} n={n}i {n}", n % 4)).collect();
    node.write(&lines.join("\n"));
    eventually("the rows are there", || (node.numbers("SELECT count(*) FROM cpu") == [1_000]).then_some(()));
    parameters(node);
    a_client_that_goes(node);
}

fn parameters(node: &Process) {
    let sql = "SELECT n FROM cpu WHERE host = $host AND n < $most ORDER BY n";
    let values = json!({ "host": "h1", "most": 6 });
    let influx = "/api/v3/query_sql";
    let found = post(node, influx, &json!({ "db": "it", "q": sql, "params": values })).expect(200);
    assert_eq!(found.body, r#"[{"n":1},{"n":5}]"#);
    // As text in a query string and in a form.
    let encoded = "db=it&q=SELECT%20n%20FROM%20cpu%20WHERE%20host%20%3D%20%24host%20AND%20n%20%3C%206&format=csv\
                   &params=%7B%22host%22%3A%22h1%22%7D";
    assert_eq!(node.get(&format!("{influx}?{encoded}")).expect(200).body, "n\n1\n5\n");
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let found = send(&node.tcp(), "POST", influx, &form, encoded.as_bytes(), REQUEST).unwrap().expect(200);
    assert_eq!(found.body, "n\n1\n5\n");
    let positions = json!({ "sql": sql.replace("$host", "$1").replace("$most", "$2"), "params": ["h1", 6] });
    for asked in [json!({ "sql": sql, "params": values }), positions] {
        let rows = post(node, "/api/v1/query", &asked).expect(200).json();
        assert_eq!(rows["data"], json!([[1], [5]]));
        let estimate = post(node, "/api/v1/query/estimate", &asked).expect(200).json();
        assert_eq!(estimate["estimated_rows"], 2);
        for path in ["/api/v1/query/arrow", "/api/v1/query/msgpack"] {
            assert!(!post(node, path, &asked).expect(200).bytes.is_empty());
        }
    }
    let wrong = |values: Value, says: &str| {
        for (path, name) in [(influx, "q"), ("/api/v1/query", "sql"), ("/api/v1/query/estimate", "sql")] {
            let asked = json!({ "db": "it", name: sql, "params": values });
            let answer = post(node, path, &asked).expect(400);
            assert!(answer.json()["error"].as_str().unwrap().contains(says), "{answer:?}");
        }
    };
    wrong(Value::Null, "$host has no value");
    wrong(json!({ "host": "h1" }), "$most has no value");
    wrong(json!({ "host": "h1", "most": 6, "least": 0 }), "no parameter $least");
    wrong(json!({ "host": ["h1"], "most": 6 }), "$host: a list");
    wrong(json!("h1"), "params: ");
    wrong(json!(7), "by name");
    // What would end a text written out ends none here.
    let hostile = json!({ "sql": sql, "params": { "host": "h1' OR '1'='1", "most": 6 } });
    assert_eq!(post(node, "/api/v1/query", &hostile).expect(200).json()["data"], json!([]));
    let said =
        node.skein_says(&["query", "-d", "it", "--format", "csv", "-p", "host=h1", "-p", "most=6", sql]);
    assert_eq!(said, "n\n1\n5\n");
}

/// It computes for an hour unless somebody ends it.
fn a_client_that_goes(node: &Process) {
    let Target::Tcp(address) = node.tcp() else { panic!("tcp") };
    let sql = "SELECT count(*) FROM cpu a, cpu b, cpu c, cpu d WHERE a.n + b.n + c.n + d.n = -1";
    let asked = json!({ "db": "it", "q": sql }).to_string();
    let mut client = TcpStream::connect(address).unwrap();
    let len = asked.len();
    let head = format!(
        "POST /api/v3/query_sql HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len}\r\n\r\n"
    );
    client.write_all(head.as_bytes()).and_then(|()| client.write_all(asked.as_bytes())).unwrap();
    eventually("it has the only place", || {
        (node.ask("SELECT 1 AS one", &[("timeout", "200ms")]).status == 429).then_some(())
    });
    // Writes do not wait behind it.
    node.write("cpu,host=h9 n=1i 1");
    drop(client);
    // The place comes back, and what held it does not go on.
    let began = Instant::now();
    assert_eq!(node.ask("SELECT 1 AS one", &[("timeout", "60s")]).expect(200).body, r#"[{"one":1}]"#);
    println!("the place was free {} ms after its client went", began.elapsed().as_millis());
    eventually("the node has nothing to do", || node.threads("skein-query").is_empty().then_some(()));
}

fn own((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}
