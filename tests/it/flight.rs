//! Flight on the HTTP port: statements, tickets and listings are answered by any node, under the
//! rules that hold for every other query.

use std::{collections::BTreeMap, sync::Arc};

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, cast::AsArray, types::Int64Type};
use arrow_flight::{
    FlightInfo, Ticket,
    error::FlightError,
    sql::{
        CommandGetDbSchemas, CommandGetTables, SqlInfo,
        client::{FlightSqlServiceClient, PreparedStatement},
    },
};
use arrow_schema::DataType;
use futures::TryStreamExt;
use serde_json::json;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

use crate::{
    cluster::Cluster,
    gateway::{follows, with},
    http::{Target, send},
    process::{Process, REQUEST},
};

type Client = FlightSqlServiceClient<Channel>;

/// A client with headers on every call.
async fn client(node: &Process, headers: &[(&str, &str)]) -> Client {
    let Target::Tcp(address) = node.tcp() else { panic!("tcp") };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap().timeout(REQUEST);
    let mut client = FlightSqlServiceClient::new(endpoint.connect().await.unwrap());
    for (name, value) in headers {
        client.set_header(*name, *value);
    }
    client
}

async fn fetch(client: &mut Client, info: FlightInfo) -> Result<RecordBatch, FlightError> {
    let schema = info.clone().try_decode_schema().unwrap();
    let [place] = &info.endpoint[..] else { panic!("one place: {info:?}") };
    let batch = redeem(client, place.ticket.clone().unwrap()).await?;
    assert_eq!(*batch.schema(), schema, "the columns are those that were announced");
    Ok(batch)
}

async fn redeem(client: &mut Client, ticket: Ticket) -> Result<RecordBatch, FlightError> {
    let rows = client.do_get(ticket).await?;
    assert!(rows.headers().get("x-skein-lsn").is_some() && rows.headers().get("x-skein-node").is_some());
    let batches: Vec<RecordBatch> = rows.try_collect().await?;
    let [batch] = &batches[..] else { panic!("one batch: {batches:?}") };
    Ok(batch.clone())
}

async fn ask(client: &mut Client, sql: &str) -> Result<RecordBatch, FlightError> {
    let info = client.execute(sql.to_owned(), None).await?;
    fetch(client, info).await
}

fn numbers(batch: &RecordBatch, at: usize) -> Vec<i64> {
    batch.column(at).as_primitive::<Int64Type>().iter().flatten().collect()
}

fn texts(batch: &RecordBatch, at: usize) -> Vec<&str> {
    batch.column(at).as_string::<i32>().iter().flatten().collect()
}

#[track_caller]
fn refused(answer: Result<impl std::fmt::Debug, FlightError>, want: Code, says: &str) {
    match answer {
        Err(FlightError::Tonic(status)) => {
            assert_eq!(status.code(), want, "{status:?}");
            assert!(status.message().contains(says), "{status:?}");
        }
        other => panic!("not refused by {want:?}: {other:?}"),
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Runtime::new().unwrap().block_on(test);
}

#[test]
fn statements_tickets_and_listings_at_a_node_that_does_not_write() {
    let cluster = Cluster::of(3);
    let [edge, other] = cluster.others(cluster.writer())[..] else { panic!("three nodes") };
    cluster[edge].write("cpu,host=a n=1i 1\ncpu,host=b n=2i 2\nmem free=0.5 1");
    let fresh = [("database", "it"), ("x-skein-consistency", "linearizable")];
    run(async {
        let mut client = client(&cluster[other], &fresh).await;
        let rows = ask(&mut client, "SELECT n, host FROM cpu ORDER BY n").await.unwrap();
        assert_eq!((numbers(&rows, 0), texts(&rows, 1)), (vec![1, 2], vec!["a", "b"]));

        let mut prepared: PreparedStatement<Channel> =
            client.prepare("SELECT count(*) AS n FROM cpu".to_owned(), None).await.unwrap();
        assert_eq!(prepared.dataset_schema().unwrap().field(0).name(), "n");
        let info = prepared.execute().await.unwrap();
        assert_eq!(numbers(&fetch(&mut client, info).await.unwrap(), 0), [2]);
        prepared.close().await.unwrap();

        // What is bound goes into the handle: it holds at the other node too.
        let sql = "SELECT n FROM cpu WHERE host = $host AND n >= $least";
        let mut prepared = client.prepare(sql.to_owned(), None).await.unwrap();
        let named: Vec<_> = prepared.parameter_schema().unwrap().fields().iter().cloned().collect();
        let named: Vec<_> = named.iter().map(|field| (field.name().as_str(), field.data_type())).collect();
        assert_eq!(named, [("host", &DataType::Utf8), ("least", &DataType::Int64)]);
        assert_eq!(prepared.dataset_schema().unwrap().field(0).name(), "n");
        refused(prepared.execute().await, Code::InvalidArgument, "$host has no value");
        let values: [(&str, ArrayRef); 2] = [
            ("host", Arc::new(StringArray::from(vec!["b"]))),
            ("least", Arc::new(Int64Array::from(vec![2]))),
        ];
        prepared.set_parameters(RecordBatch::try_from_iter(values.clone()).unwrap()).unwrap();
        let info = prepared.execute().await.unwrap();
        let ticket = info.endpoint[0].ticket.clone().unwrap();
        assert_eq!(numbers(&fetch(&mut client, info).await.unwrap(), 0), [2]);
        let mut elsewhere = self::client(&cluster[edge], &fresh[1..]).await;
        assert_eq!(numbers(&redeem(&mut elsewhere, ticket).await.unwrap(), 0), [2]);
        let [host, _] = values;
        prepared.set_parameters(RecordBatch::try_from_iter([host]).unwrap()).unwrap();
        refused(prepared.execute().await, Code::InvalidArgument, "bind values by these names");

        // As influxdb3-python asks.
        let ticket = json!({
            "database": "it", "sql_query": "SELECT n FROM cpu WHERE host = $host", "query_type": "sql",
            "params": { "host": "a" },
        });
        let rows = redeem(&mut client, Ticket::new(ticket.to_string())).await.unwrap();
        assert_eq!(numbers(&rows, 0), [1]);
        let ticket =
            json!({ "database": "it", "sql_query": "SELECT n FROM cpu ORDER BY n", "query_type": "sql" });
        let rows = redeem(&mut client, Ticket::new(ticket.to_string())).await.unwrap();
        assert_eq!(numbers(&rows, 0), [1, 2]);

        let info = client.get_catalogs().await.unwrap();
        assert_eq!(texts(&fetch(&mut client, info).await.unwrap(), 0), ["skein"]);
        let info = client.get_db_schemas(CommandGetDbSchemas::default()).await.unwrap();
        assert_eq!(texts(&fetch(&mut client, info).await.unwrap(), 1), ["it"]);
        let asked = CommandGetTables { include_schema: true, ..CommandGetTables::default() };
        let info = client.get_tables(asked).await.unwrap();
        assert_eq!(texts(&fetch(&mut client, info).await.unwrap(), 2), ["cpu", "mem"]);
        let info = client.get_sql_info(vec![SqlInfo::FlightSqlServerName]).await.unwrap();
        assert_eq!(fetch(&mut client, info).await.unwrap().num_rows(), 1);
    });
}

#[test]
fn the_rules_of_every_query_hold() {
    let mut cluster = Cluster::empty();
    let node = cluster.add();
    cluster[node].env =
        [("SKEIN_HTTP_QUERY_ROWS", "1000"), ("SKEIN_HTTP_QUERY_TIMEOUT", "5s")].map(own).to_vec();
    cluster[node].start(&["--new-cluster"]);
    cluster.settled();
    let lines: Vec<String> = (0..1_500).map(|n| format!("cpu n={n}i {n}")).collect();
    cluster[node].write(&lines.join("\n"));
    run(async {
        let node = &cluster[node];
        let mut it = client(node, &[("database", "it")]).await;
        for (sql, code, says) in [
            ("DROP TABLE cpu", Code::InvalidArgument, "not allowed"),
            ("COPY cpu TO 'x.csv'", Code::InvalidArgument, "not allowed"),
            ("SELECT nope FROM cpu", Code::InvalidArgument, "nope"),
            ("SELECT * FROM nope", Code::NotFound, "nope"),
            ("SELEC 1", Code::InvalidArgument, "SELEC"),
        ] {
            refused(it.execute(sql.to_owned(), None).await, code, says);
            let ticket = json!({ "database": "it", "sql_query": sql }).to_string();
            refused(redeem(&mut it, Ticket::new(ticket)).await, code, says);
        }
        refused(ask(&mut it, "SELECT * FROM cpu").await, Code::ResourceExhausted, "more than 1000 rows");
        refused(it.execute_update("DELETE FROM cpu".into(), None).await, Code::Unimplemented, "only reads");
        refused(it.begin_transaction().await, Code::Unimplemented, "BeginTransaction");
        refused(redeem(&mut it, Ticket::new("")).await, Code::InvalidArgument, "Flight SQL");
        let long = format!("SELECT {} FROM cpu", vec!["n"; 1 << 20].join(","));
        refused(it.execute(long, None).await, Code::ResourceExhausted, "longer than 1MiB");

        // One table in no database, then in the one that the statement names.
        let mut nowhere = client(node, &[]).await;
        refused(ask(&mut nowhere, "SELECT * FROM cpu").await, Code::InvalidArgument, "database");
        assert_eq!(numbers(&ask(&mut nowhere, "SELECT count(*) FROM it.cpu").await.unwrap(), 0), [1_500]);
        let mut later = client(node, &[("x-skein-min-lsn", "1.999999"), ("x-skein-timeout", "300ms")]).await;
        refused(ask(&mut later, "SELECT 1").await, Code::Unavailable, "not there yet");
        let mut nonsense = client(node, &[("x-skein-consistency", "strong")]).await;
        refused(nonsense.get_catalogs().await, Code::InvalidArgument, "strong");

        // HTTP/1 has no trailers to say in how it ended; a browser is kept out as everywhere.
        let path = "/arrow.flight.protocol.FlightService/DoGet";
        let plain = send(&node.tcp(), "POST", path, &[], b"", REQUEST).unwrap().expect(400);
        assert!(plain.body.contains("HTTP/2"), "{plain:?}");
        let mut foreign = client(node, &[("origin", "http://evil.example")]).await;
        refused(ask(&mut foreign, "SELECT 1").await, Code::PermissionDenied, "origin");
        // An error is counted as one, although HTTP calls it 200.
        let metrics = node.get("/metrics").expect(200).body;
        let counted: BTreeMap<&str, &str> =
            metrics.lines().filter_map(|line| line.rsplit_once(' ')).collect();
        let bad = counted.iter().find(|(name, _)| name.contains("FlightService") && name.contains("4xx"));
        assert!(bad.is_some_and(|(_, count)| *count != "0"), "{bad:?}");
    });
}

#[test]
fn a_token_is_asked_for_where_others_can_reach_it() {
    let mut cluster = Cluster::empty();
    let node = cluster.add();
    cluster[node].listen = "0.0.0.0:0".into();
    cluster[node].start(&["--new-cluster"]);
    cluster.settled();
    let node = &cluster[node];
    let admin = std::fs::read_to_string(node.dir.join("admin.token")).unwrap();
    let bearer = format!("Bearer {}", admin.trim());
    run(async {
        let mut nobody = client(node, &[]).await;
        refused(ask(&mut nobody, "SELECT 1").await, Code::Unauthenticated, "API token");
        let mut wrong = client(node, &[("authorization", "Bearer wrong")]).await;
        refused(ask(&mut wrong, "SELECT 1").await, Code::Unauthenticated, "not known");
        let mut right = client(node, &[("authorization", &bearer)]).await;
        assert_eq!(numbers(&ask(&mut right, "SELECT 1").await.unwrap(), 0), [1]);
        // A name and a password, as JDBC and ADBC begin; the password is the token.
        assert!(nobody.handshake("user", "wrong").await.is_err());
        nobody.handshake("user", admin.trim()).await.unwrap();
        assert_eq!(numbers(&ask(&mut nobody, "SELECT 1").await.unwrap(), 0), [1]);
    });
    assert!(!node.said().contains(admin.trim()), "a secret in the log");
}

#[test]
fn a_token_for_one_database_sees_no_other() {
    let mut cluster = Cluster::empty();
    let node = cluster.add();
    cluster[node].listen = "0.0.0.0:0".into();
    cluster[node].start(&["--new-cluster"]);
    cluster.settled();
    let node = &cluster[node];
    let admin = std::fs::read_to_string(node.dir.join("admin.token")).unwrap();
    let admin = format!("Bearer {}", admin.trim());
    for database in ["it", "other"] {
        let path = format!("/write?db={database}");
        send(&node.tcp(), "POST", &path, &[("authorization", &admin)], b"cpu v=1i 1", REQUEST)
            .unwrap()
            .expect(204);
    }
    let limited = node.skein_says(&["auth", "create", "--scope", "read", "--database", "it"]);
    let limited = format!("Bearer {}", limited.trim());
    let fresh = ("x-skein-consistency", "linearizable");
    run(async {
        let mut one = client(node, &[("authorization", &limited), ("database", "it"), fresh]).await;
        assert_eq!(numbers(&ask(&mut one, "SELECT v FROM cpu").await.unwrap(), 0), [1]);
        refused(ask(&mut one, "SELECT v FROM other.cpu").await, Code::PermissionDenied, "other");
        let ticket = json!({ "database": "other", "sql_query": "SELECT v FROM cpu" });
        refused(redeem(&mut one, Ticket::new(ticket.to_string())).await, Code::PermissionDenied, "other");
        let mut all = client(node, &[("authorization", &admin), fresh]).await;
        for (client, wanted) in [(&mut one, vec!["it"]), (&mut all, vec!["it", "other"])] {
            let info = client.get_db_schemas(CommandGetDbSchemas::default()).await.unwrap();
            assert_eq!(texts(&fetch(client, info).await.unwrap(), 1), wanted);
            let info = client.get_tables(CommandGetTables::default()).await.unwrap();
            assert_eq!(texts(&fetch(client, info).await.unwrap(), 1), wanted);
        }
    });
}

#[test]
fn a_client_that_stops_reading_holds_a_place_until_it_goes() {
    let mut cluster = Cluster::empty();
    let node = cluster.add();
    cluster[node].env = [("SKEIN_HTTP_MAX_QUERIES", "1")].map(own).to_vec();
    cluster[node].start(&["--new-cluster"]);
    cluster.settled();
    let text = "x".repeat(20_000);
    let lines: Vec<String> = (0..100).map(|n| format!("long s=\"{text}\" {n}")).collect();
    cluster[node].write(&lines.join("\n"));
    run(async {
        let node = &cluster[node];
        let mut reader = client(node, &[("database", "it")]).await;
        // 20 MB: more than all buffers between here and the query hold.
        let columns: Vec<String> = (0..10).map(|n| format!("s AS c{n}")).collect();
        let ticket = json!({ "sql_query": format!("SELECT {} FROM long", columns.join(", ")) });
        let unread = reader.do_get(Ticket::new(ticket.to_string())).await.unwrap();
        let mut other = client(node, &[("x-skein-timeout", "500ms")]).await;
        refused(ask(&mut other, "SELECT 1").await, Code::Unavailable, "max_queries");
        drop(unread);
        let mut patient = client(node, &[("x-skein-timeout", "15s")]).await;
        assert_eq!(numbers(&ask(&mut patient, "SELECT 1").await.unwrap(), 0), [1]);
        // Read to its end the same answer is whole.
        let whole = reader.do_get(Ticket::new(ticket.to_string())).await.unwrap();
        let batches: Vec<RecordBatch> = whole.try_collect().await.unwrap();
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 100);
    });
}

#[test]
fn through_a_gateway_as_at_a_node_with_data() {
    let mut cluster = Cluster::of(1);
    let gateway = with(&mut cluster, "gateway", "0.0.0.0:0");
    follows(&cluster[gateway]);
    let admin = std::fs::read_to_string(cluster[0].dir.join("admin.token")).unwrap();
    let bearer = format!("Bearer {}", admin.trim());
    let text = "x".repeat(20_000);
    let lines: Vec<String> = (0..100).map(|n| format!("long s=\"{text}\" {n}")).collect();
    cluster[0].write(&lines.join("\n"));
    cluster[0].write("cpu,host=a n=1i 1\ncpu,host=b n=2i 2\nmem free=0.5 1");
    let all = [("authorization", &*bearer), ("database", "it"), ("x-skein-consistency", "linearizable")];
    run(async {
        let mut edge = client(&cluster[gateway], &all).await;
        let rows = ask(&mut edge, "SELECT n, host FROM cpu ORDER BY n").await.unwrap();
        assert_eq!((numbers(&rows, 0), texts(&rows, 1)), (vec![1, 2], vec!["a", "b"]));
        let mut prepared: PreparedStatement<Channel> =
            edge.prepare("SELECT count(*) AS n FROM cpu".to_owned(), None).await.unwrap();
        let info = prepared.execute().await.unwrap();
        assert_eq!(numbers(&fetch(&mut edge, info).await.unwrap(), 0), [2]);
        prepared.close().await.unwrap();
        let info = edge.get_tables(CommandGetTables::default()).await.unwrap();
        assert_eq!(texts(&fetch(&mut edge, info).await.unwrap(), 2), ["cpu", "long", "mem"]);

        // As influxdb3-python asks; the answer comes in many pieces, from the node with data.
        let ticket =
            json!({ "database": "it", "sql_query": "SELECT n FROM cpu ORDER BY n", "query_type": "sql" });
        assert_eq!(numbers(&redeem(&mut edge, Ticket::new(ticket.to_string())).await.unwrap(), 0), [1, 2]);
        let ticket = Ticket::new(json!({ "sql_query": "SELECT s FROM long" }).to_string());
        let long = edge.do_get(ticket).await.unwrap();
        assert_eq!(long.headers().get("x-skein-node").unwrap().to_str().unwrap(), cluster[0].id);
        let batches: Vec<RecordBatch> = long.try_collect().await.unwrap();
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 100);

        // The rules are the same, and so is how a refusal is said.
        refused(ask(&mut edge, "SELECT nothing FROM cpu").await, Code::InvalidArgument, "nothing");
        let late =
            [("authorization", &*bearer), ("x-skein-min-lsn", "1.999999"), ("x-skein-timeout", "300ms")];
        let mut later = client(&cluster[gateway], &late).await;
        refused(ask(&mut later, "SELECT 1").await, Code::Unavailable, "not there yet");
        let mut nobody = client(&cluster[gateway], &[]).await;
        refused(ask(&mut nobody, "SELECT 1").await, Code::Unauthenticated, "API token");
        assert!(nobody.handshake("user", "wrong").await.is_err());
        nobody.handshake("user", admin.trim()).await.unwrap();
        assert_eq!(numbers(&ask(&mut nobody, "SELECT 1").await.unwrap(), 0), [1]);
    });
    cluster[0].kill();
    run(async {
        // Nobody can answer, or tell what the token may do.
        let mut edge = client(&cluster[gateway], &all).await;
        refused(ask(&mut edge, "SELECT 1").await, Code::Unavailable, "");
    });
}

fn own((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}
