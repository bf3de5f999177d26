//! A gateway: a member without data that takes writes and queries and loses none of them when nodes die.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{
    cluster::{Cluster, eventually, within},
    http::{Answer, send},
    process::{Process, REQUEST, column},
};

const SOON: Duration = Duration::from_secs(30);

/// Another node of that role, joined through node 0.
pub fn with(cluster: &mut Cluster, role: &str, listen: &str) -> usize {
    let token = cluster[0].skein_says(&["token", "create", "--role", role]).trim().to_owned();
    let (seed, node) = (cluster[0].mesh.clone(), cluster.add());
    cluster[node].listen = listen.to_owned();
    cluster[node].start(&["--join", &token, "--seed", &seed]);
    node
}

/// What a node says of another one.
pub fn shown(by: &Process, of: &Process) -> Option<Value> {
    let status = by.status()?;
    status["nodes"].as_array()?.iter().find(|node| node["id"] == of.id.as_str()).cloned()
}

fn asked(node: &Process, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    send(&node.tcp(), method, path, headers, body.as_bytes(), REQUEST)
        .unwrap_or_else(|e| panic!("{method} {path}: {e}"))
}

/// Whose view it follows, once it is ready.
pub fn follows(gateway: &Process) -> String {
    within(SOON, "the gateway is ready", || {
        let answer = gateway.get("/readyz?verbose");
        let line = answer.body.lines().find_map(|line| line.strip_prefix("follows "))?;
        (answer.status == 200).then(|| line.split(',').next().unwrap().to_owned())
    })
}

fn ready(gateway: &Process) -> Option<()> {
    (gateway.get("/readyz").status == 200).then_some(())
}

fn place(cluster: &Cluster, id: &str) -> usize {
    cluster.running().find(|node| cluster[*node].id == id).unwrap_or_else(|| panic!("{id} does not run"))
}

/// Three voters, a reader that is level, and a gateway.
fn world() -> (Cluster, usize, usize) {
    let mut cluster = Cluster::of(3);
    let reader = with(&mut cluster, "reader", "127.0.0.1:0");
    let gateway = with(&mut cluster, "gateway", "127.0.0.1:0");
    follows(&cluster[gateway]);
    within(SOON, "the reader is ready", || (cluster[reader].get("/readyz").status == 200).then_some(()));
    (cluster, reader, gateway)
}

#[test]
fn a_gateway_holds_nothing_and_does_everything() {
    let (cluster, reader, gateway) = world();
    let edge = &cluster[gateway];
    for none in ["raft", "wal", "engine"] {
        assert!(!edge.dir.join(none).exists(), "{none} in a gateway's directory");
    }
    let told = within(SOON, "a voter shows it", || {
        shown(&cluster[0], edge).filter(|node| node["state"] == "up" && !node["follows"].is_null())
    });
    assert_eq!((&told["role"], &told["wants"]), (&"gateway".into(), &"gateway".into()));
    assert!(told["applied"].is_null() && told["lag_records"].is_null(), "{told}");

    // Every way to write, with the positions and the levels of any other edge.
    let mut last = (0, 0);
    for (n, path) in ["/write?db=it", "/api/v2/write?bucket=it", "/api/v3/write_lp?db=it"].iter().enumerate()
    {
        let written = edge.post(path, &format!("cpu,n={n} v={n}i {}", n + 1)).expect(204);
        assert_eq!(written.header("x-skein-forwarded"), Some("true"));
        assert_eq!(written.header("x-skein-ack"), Some("quorum"));
        last = written.lsn();
    }
    let arc = [("x-arc-database", "it")];
    asked(edge, "POST", "/api/v1/write/line-protocol", &arc, "cpu,n=3 v=3i 4").expect(204);
    let item = serde_json::json!({ "m": "cpu", "columns": { "time": [5_000_000], "n": ["4"], "v": [4] } });
    let packed = rmp_serde::to_vec(&item).unwrap();
    let sent = send(&edge.tcp(), "POST", "/api/v1/write/msgpack", &arc, &packed, REQUEST).unwrap();
    sent.expect(204);
    let all = edge.post("/write?db=it&ack=all", "cpu,n=5 v=5i 6").expect(204);
    assert_eq!(all.header("x-skein-ack"), Some("all"), "no lower promise than asked for");
    // A column has one type, whoever knows it: a gateway learns it from the writer and parses again.
    edge.write("load v=0.5 1");
    edge.write("load v=1i 2");
    let mixed = edge.post("/write?db=it", "load v=\"word\" 3").expect(400);
    assert!(mixed.body.contains("float"), "{mixed:?}");
    let key = [("idempotency-key", "once")];
    let once = asked(edge, "POST", "/write?db=it", &key, "mem free=1 1").expect(204);
    let twice = asked(edge, "POST", "/write?db=it", &key, "mem free=1 1").expect(204);
    assert_eq!(once.lsn(), twice.lsn(), "one write under one key");
    asked(edge, "POST", "/write?db=it", &key, "mem free=2 1").expect(409);

    // Every way to ask. The reader answers, and says so.
    let min = format!("{}.{}", all.lsn().0, all.lsn().1);
    assert!(all.lsn() > last);
    let rows = edge.ask("SELECT v FROM cpu ORDER BY v", &[("min_lsn", &min)]).expect(200);
    assert_eq!(column(&rows), [0, 1, 2, 3, 4, 5]);
    assert_eq!(rows.header("x-skein-node"), Some(&cluster[reader].id[..]), "readers first");
    assert_eq!(edge.numbers("SELECT count(*) FROM cpu"), [6]);
    let sql = |sql: &str| serde_json::json!({ "sql": sql }).to_string();
    let count = sql("SELECT count(*) AS n FROM cpu");
    for (path, says) in [
        ("/api/v1/query", "\"n\""),
        ("/api/v1/query/arrow", ""),
        ("/api/v1/query/msgpack", ""),
        ("/api/v1/query/estimate", "1"),
    ] {
        let answer = asked(edge, "POST", path, &arc, &count).expect(200);
        assert!(!answer.bytes.is_empty() && answer.body.contains(says), "{path}: {answer:?}");
    }
    for format in ["json", "jsonl", "csv", "pretty", "parquet"] {
        let path = format!("/api/v3/query_sql?db=it&q=select%20v%20from%20cpu&format={format}");
        assert!(!edge.get(&path).expect(200).bytes.is_empty(), "{format}");
    }
    for (path, says) in [
        ("/query?q=SHOW%20DATABASES", "it"),
        ("/api/v1/databases", "it"),
        ("/api/v1/measurements?database=it", "load"),
        ("/api/v1/cluster", &edge.id),
        ("/api/v1/nodes", &edge.id),
        ("/metrics", "skein_gateway_view_age_seconds"),
        ("/health", "pass"),
        ("/", "<html"),
    ] {
        let answer = edge.get(path).expect(200);
        assert!(answer.body.contains(says), "{path}: {answer:?}");
    }
    let wrong = edge.ask("SELECT nothing FROM cpu", &[]);
    assert_eq!(wrong.status, 400, "{wrong:?}");
    edge.get("/api/v3/query_sql?db=it&q=select%201&consistency=king").expect(400);
    // The owner of a gateway's files is nobody's administrator.
    let token = edge.skein(&["token", "create"]);
    assert!(String::from_utf8_lossy(&token.stderr).contains("admin API token"), "{token:?}");
    assert!(edge.skein_says(&["status"]).contains("gateway"));
}

/// Two readers have the queries between them, whichever way a gateway goes by.
#[test]
fn queries_are_spread_over_the_readers() {
    let (mut cluster, reader, gateway) = world();
    let other = with(&mut cluster, "reader", "127.0.0.1:0");
    let token = cluster[0].skein_says(&["token", "create", "--role", "gateway"]).trim().to_owned();
    let (seed, least) = (cluster[0].mesh.clone(), cluster.add());
    cluster[least].env.push(("SKEIN_HTTP_BALANCE".into(), "least-connections".into()));
    cluster[least].start(&["--join", &token, "--seed", &seed]);
    cluster[gateway].write("cpu v=1i 1");
    for through in [gateway, least] {
        follows(&cluster[through]);
        // It may have to hear of the second one first.
        within(SOON, "both readers answer, and nobody else", || {
            let mut answered = std::collections::BTreeMap::<String, u32>::new();
            for _ in 0..12 {
                let answer = cluster[through].ask("SELECT 1", &[]).expect(200);
                *answered.entry(answer.header("x-skein-node").unwrap().to_owned()).or_default() += 1;
            }
            let share = |node: usize| answered.get(&cluster[node].id).copied().unwrap_or(0);
            (answered.len() == 2 && share(reader) >= 4 && share(other) >= 4).then_some(())
        });
    }
}

#[test]
fn nodes_die_and_the_gateway_moves_on() {
    let (mut cluster, reader, gateway) = world();
    cluster[gateway].write("cpu v=1i 1");
    let mut rows = 1;

    // The node it follows dies, in the midst of writes. None of them fails.
    let followed = follows(&cluster[gateway]);
    let victim = place(&cluster, &followed);
    cluster[victim].kill();
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(3) {
        rows += 1;
        cluster[gateway].post("/write?db=it&timeout=20s", &format!("cpu v={rows}i {rows}")).expect(204);
    }
    let now = follows(&cluster[gateway]);
    assert_ne!(now, followed);
    assert_eq!(cluster[gateway].numbers("SELECT count(*) FROM cpu"), [rows]);
    cluster[victim].start(&[]);

    // The reader dies. The next query goes to a voter, and not to the writer while there is another.
    cluster[reader].kill();
    let since = Instant::now();
    for _ in 0..3 {
        let answer =
            cluster[gateway].ask("SELECT count(*) FROM cpu", &[("consistency", "linearizable")]).expect(200);
        assert_eq!(column(&answer), [rows], "after {:?}", since.elapsed());
        assert_ne!(answer.header("x-skein-node"), Some(&cluster[reader].id[..]));
    }
    let metrics = cluster[gateway].get("/metrics").body;
    let passed = metrics.lines().find_map(|line| line.strip_prefix("skein_gateway_passed_over_total "));
    assert!(passed.is_some_and(|n| n != "0"), "{metrics}");

    // It starts again from what it remembers: neither token nor seed.
    cluster[gateway].kill();
    cluster[gateway].start(&[]);
    follows(&cluster[gateway]);
    rows += 1;
    cluster[gateway].post("/write?db=it&timeout=20s", &format!("cpu v={rows}i {rows}")).expect(204);
    assert_eq!(cluster[gateway].numbers("SELECT count(*) FROM cpu"), [rows]);

    // Removed, it is cut off, and stays out.
    let id = cluster[gateway].id.clone();
    cluster[0].skein_says(&["node", "remove", &id]);
    let ended = cluster[gateway].ended(Duration::from_secs(5));
    assert!(ended.code == Some(1) && ended.said.contains("was removed from its cluster"), "{ended:?}");
    let again = cluster[gateway].try_start(&[]).unwrap_err();
    assert!(again.said.contains("new token"), "{again:?}");
}

#[test]
fn without_a_node_with_data_it_says_so_and_waits() {
    let mut cluster = Cluster::of(1);
    let gateway = with(&mut cluster, "gateway", "127.0.0.1:0");
    follows(&cluster[gateway]);
    cluster[gateway].write("cpu v=1i 1");
    cluster[0].kill();
    let unready = within(SOON, "it is not ready", || {
        Some(cluster[gateway].get("/readyz")).filter(|answer| answer.status == 503)
    });
    assert!(unready.body.contains("heard"), "{unready:?}");
    cluster[gateway].get("/livez").expect(200);
    let query = cluster[gateway].ask("SELECT 1", &[]).expect(503);
    assert!(query.body.contains("did not answer") || query.body.contains("no node with data"), "{query:?}");
    let write = cluster[gateway].post("/write?db=it&timeout=1s", "cpu v=2i 2");
    assert!([503, 504].contains(&write.status), "{write:?}");

    // Started while there is nobody, it is up, and not ready.
    cluster[gateway].stop();
    cluster[gateway].start(&[]);
    assert!(cluster[gateway].get("/readyz").expect(503).body.contains("yet"));
    cluster[gateway].ask("SELECT 1", &[]).expect(503);
    cluster[0].start(&[]);
    eventually("it is ready again", || ready(&cluster[gateway]));
    cluster[gateway].write("cpu v=3i 3");
    cluster[gateway].stop();
}

#[test]
fn tokens_count_at_a_gateway_as_everywhere_and_none_is_kept_there() {
    let mut cluster = Cluster::of(1);
    let gateway = with(&mut cluster, "gateway", "0.0.0.0:0");
    follows(&cluster[gateway]);
    let made =
        |flags: &[&str]| cluster[0].skein_says(&[&["auth", "create"], flags].concat()).trim().to_owned();
    let bearer = |secret: &str| format!("Bearer {secret}");
    let edge = &cluster[gateway];
    let both = made(&["--scope", "read,write", "--database", "it"]);
    let read = made(&["--scope", "read"]);
    let admin = made(&["--scope", "admin"]);
    let unknown = format!("skein_{}", "a".repeat(52));
    let write = |secret: &str, db: &str| {
        asked(edge, "POST", &format!("/write?db={db}"), &[("authorization", &bearer(secret))], "cpu v=1i 1")
            .status
    };
    let query = |secret: &str, db: &str| {
        let path = format!("/api/v3/query_sql?db={db}&q=select%201");
        asked(edge, "GET", &path, &[("authorization", &bearer(secret))], "").status
    };
    let tokens = |secret: &str| {
        asked(edge, "GET", "/api/v1/auth/tokens", &[("authorization", &bearer(secret))], "").status
    };
    asked(edge, "POST", "/write?db=it", &[], "cpu v=1i 1").expect(401);
    asked(edge, "GET", "/api/v3/query_sql?db=it&q=select%201", &[], "").expect(401);
    for (secret, writes, queries, elsewhere, lists) in [
        (&both, 204, 200, 403, 403),
        (&read, 403, 200, 200, 403),
        (&admin, 204, 200, 200, 200),
        (&unknown, 401, 401, 401, 401),
    ] {
        let got = (write(secret, "it"), query(secret, "it"), query(secret, "elsewhere"), tokens(secret));
        assert_eq!(got, (writes, queries, elsewhere, lists), "{secret}");
    }
    let changed =
        asked(edge, "POST", "/api/v1/tokens", &[("authorization", &bearer(&admin))], r#"{"role":"reader"}"#);
    assert_eq!(changed.status, 201, "an administrator's word is passed on: {changed:?}");

    // Taken back, it counts nowhere once the gateway has heard of it.
    let list: Value = serde_json::from_str(&cluster[0].skein_says(&["auth", "list", "--json"])).unwrap();
    let listed = list["tokens"].as_array().unwrap();
    let id = listed.iter().find(|token| token["databases"].is_array()).unwrap()["id"].as_str().unwrap();
    cluster[0].skein_says(&["auth", "revoke", id]);
    within(Duration::from_secs(5), "it is refused", || (write(&both, "it") == 401).then_some(()));
    assert_eq!((query(&both, "it"), write(&admin, "it")), (401, 204));

    let files = std::fs::read_dir(&edge.dir).unwrap().map(|entry| entry.unwrap().path());
    for file in files.filter(|path| path.is_file()) {
        let bytes = std::fs::read(&file).unwrap();
        for secret in [&both, &read, &admin] {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "a token in {}", file.display());
        }
    }
    assert!(!edge.said().contains(&admin), "a token in the log");

    // With nobody to ask, an old word is no word.
    cluster[0].kill();
    let edge = &cluster[gateway];
    within(SOON, "it cannot tell", || {
        let headers = [("authorization", &*bearer(&admin))];
        let answer = asked(edge, "POST", "/write?db=it&timeout=1s", &headers, "cpu v=1i 1");
        (answer.status == 503 && answer.body.contains("cannot tell")).then_some(())
    });
}
