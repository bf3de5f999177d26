//! API tokens: good at every node once made and at none once taken back, for their scope and their
//! databases only, in every form that clients know, and seen nowhere.

use std::{fs, path::Path, time::Duration};

use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, within},
    http::{Answer, send},
    process::{Process, REQUEST},
};

/// Until every node has applied what the cluster agreed on.
const APPLIED: Duration = Duration::from_secs(5);

/// So many nodes that ask everybody for a token.
fn closed(count: usize, env: &[(&str, &str)]) -> Cluster {
    let mut cluster = Cluster::empty();
    for _ in 0..count {
        let node = cluster.add();
        cluster[node].listen = "0.0.0.0:0".into();
        cluster[node].env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        if node == 0 {
            cluster[node].start(&["--new-cluster"]);
        } else {
            let (token, seed) = (cluster[0].token(1), cluster[0].mesh.clone());
            cluster[node].start(&["--join", &token, "--seed", &seed]);
        }
    }
    cluster.settled();
    cluster
}

fn made(node: &Process, flags: &[&str]) -> String {
    let token = node.skein_says(&[&["auth", "create"], flags].concat());
    assert!(token.starts_with("skein_") && token.lines().count() == 1, "the token alone: {token:?}");
    token.trim().to_owned()
}

fn listed(node: &Process) -> Vec<Value> {
    let list: Value = serde_json::from_str(&node.skein_says(&["auth", "list", "--json"])).unwrap();
    list["tokens"].as_array().unwrap().clone()
}

fn bearer(secret: &str) -> String {
    format!("Bearer {secret}")
}

fn asked(node: &Process, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    send(&node.tcp(), method, path, headers, body.as_bytes(), REQUEST)
        .unwrap_or_else(|e| panic!("{method} {path}: {e}"))
}

/// What a query in `home` comes to with that token.
fn query(node: &Process, secret: &str) -> Answer {
    let path = "/api/v3/query_sql?db=home&q=select%201";
    asked(node, "GET", path, &[("authorization", &bearer(secret))], "")
}

#[test]
fn good_everywhere_once_made_and_nowhere_once_taken_back() {
    let mut cluster = closed(3, &[]);
    // Made and taken back at any node, whoever leads.
    for (maker, taker) in [(0, 1), (1, 2), (2, 0)] {
        let name = format!("made-at-{maker}");
        let secret = made(&cluster[maker], &["--scope", "read", "--database", "home", "--name", &name]);
        query(&cluster[maker], &secret).expect(200);
        for node in 0..3 {
            let good = || (query(&cluster[node], &secret).status == 200).then_some(());
            within(APPLIED, "the token is good everywhere", good);
        }
        let tokens = listed(&cluster[taker]);
        let token = tokens.iter().find(|token| token["name"] == name.as_str()).unwrap();
        assert_eq!((&token["scopes"], &token["databases"]), (&json!(["read"]), &json!(["home"])));
        assert!(!format!("{tokens:?}").contains(&secret), "no list shows a token");
        let table = cluster[taker].skein_says(&["auth", "list"]);
        assert!(table.contains(&name) && !table.contains(&secret), "{table}");
        let again = cluster[taker].skein(&["auth", "create", "--scope", "read", "--name", &name]);
        assert!(String::from_utf8_lossy(&again.stderr).contains("name"), "no name twice: {again:?}");

        let id = token["id"].as_str().unwrap();
        // One of them sleeps meanwhile, and hears of it when it comes back.
        let asleep = (taker + 1) % 3;
        cluster[asleep].kill();
        within(APPLIED * 3, "taken back", || {
            let done = cluster[taker].skein(&["auth", "revoke", id]);
            // A try before may have done it without hearing so.
            let gone = String::from_utf8_lossy(&done.stderr).contains("there is no API token");
            (done.status.success() || gone).then_some(())
        });
        within(APPLIED, "refused", || (query(&cluster[taker], &secret).status == 401).then_some(()));
        let other = 3 - taker - asleep;
        within(APPLIED, "refused", || (query(&cluster[other], &secret).status == 401).then_some(()));
        cluster[asleep].start(&[]);
        within(APPLIED, "refused", || (query(&cluster[asleep], &secret).status == 401).then_some(()));
        cluster.settled();
        let none = cluster[taker].skein(&["auth", "revoke", id]);
        assert_eq!(none.status.code(), Some(1), "{none:?}");
        for node in 0..3 {
            assert_eq!(kept(&cluster[node].dir, &secret), Vec::<String>::new(), "only a hash is kept");
        }
    }
    let secret = made(&cluster[1], &["--scope", "read", "--ttl", "1s"]);
    let over = within(APPLIED, "it ends", || {
        let answer = query(&cluster[1], &secret);
        (answer.status == 401).then_some(answer)
    });
    assert!(over.body.contains("expired"), "{over:?}");
    assert!(
        listed(&cluster[2]).iter().all(|token| !token["expires_ms"].is_null() || token["name"] == "admin")
    );
    // Who is cut off cannot say that there is no such token: others may have made it since. The writer
    // cannot either, though nobody told it that it is one no more.
    let wrong = format!("skein_{}", "a".repeat(43));
    let writer = cluster.writer();
    for alone in [writer, (writer + 1) % 3] {
        let others = cluster.others(alone);
        others.iter().for_each(|node| cluster[*node].kill());
        let cannot_tell = within(APPLIED, "it cannot tell", || {
            let answer = query(&cluster[alone], &wrong);
            (answer.status == 503).then_some(answer)
        });
        assert!(cannot_tell.body.contains("not up to date"), "{cannot_tell:?}");
        others.iter().for_each(|node| cluster[*node].start(&[]));
        cluster.settled();
    }
}

/// Files below `dir` that hold this text.
fn kept(dir: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(kept(&path, text));
        } else if fs::read(&path).is_ok_and(|all| all.windows(text.len()).any(|w| w == text.as_bytes())) {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn every_form_of_every_client_and_no_trace_of_it() {
    let filter = "trace,quinn=error,quinn_proto=error,openraft=debug";
    let cluster = closed(1, &[("SKEIN_LOG_FILTER", filter)]);
    let node = &cluster[0];
    let secret = made(node, &["--scope", "read,write"]);
    let wrong = format!("skein_{}", "a".repeat(secret.len() - 6));
    let basic = |secret: &str| {
        let both = data_encoding::BASE64.encode(format!("user:{secret}").as_bytes());
        format!("Basic {both}")
    };
    for (token, good) in [(&secret, true), (&wrong, false)] {
        let forms = [
            ("authorization", format!("Bearer {token}"), String::new()),
            ("authorization", format!("Token {token}"), String::new()),
            ("authorization", format!("token user:{token}"), String::new()),
            ("authorization", token.to_string(), String::new()),
            ("authorization", basic(token), String::new()),
            ("x-api-key", token.to_string(), String::new()),
            ("x-none", String::new(), format!("&u=user&p={token}")),
            ("x-none", String::new(), format!("&p={token}")),
        ];
        for (name, value, query) in &forms {
            for (method, path) in [
                ("POST", "/write?db=home"),
                ("POST", "/api/v2/write?bucket=home"),
                ("POST", "/api/v3/write_lp?db=home"),
                ("POST", "/api/v1/write/line-protocol?db=home"),
                ("GET", "/query?q=SHOW%20DATABASES"),
                ("GET", "/api/v3/query_sql?db=home&q=select%201"),
                ("GET", "/api/v1/databases?x=y"),
                ("GET", "/metrics?x=y"),
            ] {
                let answer = asked(node, method, &format!("{path}{query}"), &[(name, value)], "cpu v=1 1");
                // 429 once there were too many wrong ones.
                let right = if good { answer.status < 300 } else { [401, 429].contains(&answer.status) };
                assert!(right, "{name}: {value}{query} at {path}: {answer:?}");
                assert!(!answer.body.contains(token.as_str()), "{path}: {answer:?}");
            }
        }
    }
    // Credentials come from one place: a wrong header is not made good by a parameter.
    let both = asked(node, "GET", &format!("/metrics?p={secret}"), &[("authorization", &bearer(&wrong))], "");
    assert!([401, 429].contains(&both.status), "{both:?}");
    let metrics = asked(node, "GET", "/metrics", &[("authorization", &bearer(&secret))], "").expect(200).body;
    assert!(metrics.contains("skein_http_auth_failures_total{why=\"unknown\"}"), "{metrics}");
    let said = node.said();
    assert!(said.contains("TRACE") || said.contains("DEBUG"), "the log is as loud as it was told to be");
    for (what, text) in [("the log", &said), ("the metrics", &metrics)] {
        assert!(!text.contains(&secret) && !text.contains(&wrong), "a token in {what}");
        assert!(!text.contains(basic(&secret).trim_start_matches("Basic ")), "a password in {what}");
    }
}

#[test]
fn a_token_for_one_database_sees_and_touches_no_other() {
    let cluster = closed(1, &[]);
    let node = &cluster[0];
    let admin = bearer(&made(node, &["--scope", "admin"]));
    for db in ["home", "secretlab"] {
        let path = format!("/api/v3/write_lp?db={db}");
        asked(node, "POST", &path, &[("authorization", &admin)], &format!("of_{db} v=1 1")).expect(204);
    }
    let reader = bearer(&made(node, &["--scope", "read", "-d", "home"]));
    let writer = bearer(&made(node, &["--scope", "write", "-d", "home"]));
    within(APPLIED, "both are there", || {
        let all = asked(node, "GET", "/api/v1/databases", &[("authorization", &admin)], "");
        (all.json()["count"] == 2).then_some(())
    });

    // Every way in: for `home` with a token to write it, and only so.
    let packed = rmp_serde::to_vec(&json!({ "m": "cpu", "t": 1, "h": "a", "fields": { "v": 1.0 } })).unwrap();
    let ways = |db: &str| {
        [
            (format!("/write?db={db}"), None),
            (format!("/api/v2/write?bucket={db}"), None),
            (format!("/api/v3/write_lp?db={db}"), None),
            (format!("/api/v1/write/line-protocol?db={db}"), None),
            ("/api/v1/write/line-protocol".to_owned(), Some(db.to_owned())),
            ("/api/v1/write/msgpack".to_owned(), Some(db.to_owned())),
            // A header that says otherwise goes before the parameter.
            (format!("/write?db={}", if db == "home" { "secretlab" } else { "home" }), Some(db.to_owned())),
        ]
    };
    for (db, token, want) in [
        ("home", &writer, 204),
        ("home", &reader, 403),
        ("secretlab", &writer, 403),
        ("fresh", &writer, 403),
        ("secretlab", &admin, 204),
    ] {
        for (path, header) in ways(db) {
            let mut headers = vec![("authorization", token.as_str())];
            headers.extend(header.as_deref().map(|db| ("x-arc-database", db)));
            let body: &[u8] = if path.contains("msgpack") { &packed } else { b"cpu v=1 2" };
            let answer = send(&node.tcp(), "POST", &path, &headers, body, REQUEST).unwrap();
            assert_eq!(answer.status, want, "{path} {header:?}: {answer:?}");
        }
    }
    let create = |db: &str, token: &str| {
        asked(node, "GET", &format!("/query?q=CREATE%20DATABASE%20{db}"), &[("authorization", token)], "")
            .status
    };
    assert_eq!([create("home", &writer), create("home", &reader), create("fresh", &writer)], [200, 403, 403]);

    // Every way out.
    let json = ("content-type", "application/json");
    let sql = |path: &str, sql: &str, token: &str| {
        let body = json!({ "q": sql, "sql": sql, "db": "home" }).to_string();
        asked(node, "POST", path, &[("authorization", token), ("x-arc-database", "home"), json], &body)
    };
    for path in ["/api/v3/query_sql", "/api/v1/query", "/api/v1/query/arrow"] {
        for statement in
            ["select * from of_home", "select * from home.of_home", "select * from \"home\".of_home"]
        {
            sql(path, statement, &reader).expect(200);
            sql(path, statement, &writer).expect(403);
        }
        for statement in [
            "select * from secretlab.of_secretlab",
            "select * from skein.secretlab.of_secretlab",
            "select * from of_home where v in (select v from secretlab.of_secretlab)",
            "with x as (select * from secretlab.of_secretlab) select * from x",
            "explain select * from secretlab.of_secretlab",
            "show tables from secretlab",
            "describe secretlab.of_secretlab",
        ] {
            sql(path, statement, &reader).expect(403);
            sql(path, &statement.replace("secretlab", "absent"), &reader).expect(403);
            let all = sql(path, statement, &admin);
            assert_eq!(all.status, 200, "{statement}: {all:?}");
        }
        for statement in ["show databases", "select * from information_schema.tables"] {
            let seen = sql(path, statement, &reader).expect(200);
            assert!(seen.body.contains("home") && !seen.body.contains("secretlab"), "{statement}: {seen:?}");
        }
    }
    // Arc's clients name the database in the statement and nowhere else.
    let unnamed = |sql: &str| {
        let body = json!({ "sql": sql }).to_string();
        asked(node, "POST", "/api/v1/query", &[("authorization", &reader), json], &body).status
    };
    assert_eq!([unnamed("select * from home.of_home"), unnamed("select * from of_default")], [200, 403]);
    for (path, status) in [
        ("/api/v3/query_sql?db=secretlab&q=select%201", 403),
        ("/api/v1/measurements?database=secretlab", 403),
        ("/api/v1/measurements?database=absent", 403),
        ("/api/v1/measurements?database=home", 200),
        ("/api/v1/measurements", 200),
        ("/api/v1/databases", 200),
        ("/query?q=SHOW%20DATABASES", 200),
        ("/api/v1/cluster", 200),
    ] {
        let answer = asked(node, "GET", path, &[("authorization", &reader)], "").expect(status);
        let named = path.contains("secretlab") || !answer.body.contains("secretlab");
        assert!(named && !answer.body.contains("of_secretlab"), "{path}: {answer:?}");
    }
}
