//! Queries over a whole engine.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use arrow_array::RecordBatch;
use bytes::Bytes;
use futures::StreamExt;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    QueryError, SqlOptions,
    output::{Format, encode},
};
use crate::{
    disk::RealDisk,
    engine::{
        Operation, StorageEngine,
        columnar::{
            ColumnarEngine,
            data_file::DAY,
            tests::{Row, batch, open, table_batch},
        },
    },
    types::Lsn,
};

mod codes;
mod gaps;
mod hostile;
mod latest;
mod parameters;
mod tags;
mod visible;
mod zones;

fn options() -> SqlOptions {
    SqlOptions { database: Some("db".into()), ..SqlOptions::default() }
}

async fn engine(dir: &Path) -> Arc<ColumnarEngine> {
    open(Arc::new(RealDisk), dir).await
}

async fn written(engine: &Arc<ColumnarEngine>, sql: &str, format: Format) -> Result<String, QueryError> {
    let mut rows = std::pin::pin!(encode(engine.query(sql, options()).await?, format));
    let mut bytes = Vec::new();
    while let Some(part) = rows.next().await {
        bytes.extend_from_slice(&part?);
    }
    Ok(String::from_utf8(bytes).unwrap())
}

async fn csv(engine: &Arc<ColumnarEngine>, sql: &str) -> String {
    written(engine, sql, Format::Csv).await.unwrap_or_else(|e| panic!("{sql}: {e}"))
}

fn at(seq: u64) -> Lsn {
    Lsn::new(1, seq)
}

/// Two flushed files and rows in memory; one point is in all three.
async fn filled(dir: &Path) -> Arc<ColumnarEngine> {
    let engine = engine(dir).await;
    let many: Vec<Row> = (10..40).map(|n| (n, "y", Some(0.5), None)).collect();
    engine.apply(at(1), &batch("db", &[(1, "x", Some(1.0), Some(1.0)), (2, "x", Some(2.0), None)])).unwrap();
    engine.apply(at(2), &batch("db", &many)).unwrap();
    engine.checkpoint(Bytes::new()).await.unwrap();
    engine.apply(at(3), &batch("db", &[(2, "x", None, Some(7.0)); 2])).unwrap();
    engine.apply(at(4), &table_batch("other", "Ünïque Täble", &[(DAY, "z", Some(4.0), None)])).unwrap();
    engine
        .apply(at(5), &batch("db", &(50..150).map(|n| (n, "y", Some(0.5), None)).collect::<Vec<_>>()))
        .unwrap();
    engine.checkpoint(Bytes::new()).await.unwrap();
    engine.apply(at(6), &batch("db", &[(2, "x", Some(5.0), None), (DAY, "w", None, Some(9.0))])).unwrap();
    engine
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_see_each_point_once_with_its_last_values() {
    let dir = tempfile::tempdir().unwrap();
    let engine = filled(dir.path()).await;
    let narrow = "select time, host, a, b from cpu where host in ('x', 'w') order by time";
    assert_eq!(
        csv(&engine, narrow).await,
        "time,host,a,b\n1970-01-01T00:00:00.000000001,x,1.0,1.0\n1970-01-01T00:00:00.000000002,x,5.0,7.0\n\
         1970-01-02T00:00:00,w,,9.0\n"
    );
    assert_eq!(csv(&engine, "select count(*) as n from cpu").await, "n\n133\n");
    // The value that was written over must not come back through a condition on the field.
    assert_eq!(csv(&engine, "select b from cpu where a = 2.0").await, "b\n");
    assert_eq!(csv(&engine, "select b from cpu where b = 7").await, "b\n7.0\n");
    assert_eq!(
        csv(&engine, "select count(a) as n from db.cpu where time < to_timestamp_nanos(2)").await,
        "n\n1\n"
    );
    let joined =
        "select sum(a.a + o.a) as s from cpu a cross join other.\"Ünïque Täble\" o where a.host = 'x'";
    assert_eq!(csv(&engine, joined).await, "s\n14.0\n");
    let latest = "with l as (select * from cpu order by time desc limit 2) select host from l order by host";
    assert_eq!(csv(&engine, latest).await, "host\nw\ny\n");
    assert_eq!(csv(&engine, "select max(time) as t from cpu").await, "t\n1970-01-02T00:00:00\n");
    let buckets =
        "select date_bin(interval '1 day', time) as day, count(*) as n from cpu group by day order by day";
    assert_eq!(csv(&engine, buckets).await, "day,n\n1970-01-01T00:00:00,132\n1970-01-02T00:00:00,1\n");
    assert_eq!(engine.query("select 1", options()).await.unwrap().applied(), at(6));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_overlaps_is_merged() {
    let dir = tempfile::tempdir().unwrap();
    let engine = filled(dir.path()).await;
    let plan = csv(&engine, "explain select * from cpu").await;
    assert!(plan.contains("OverlapExec"), "{plan}");
    // Only the time at which nothing overlaps is asked for.
    let plan = csv(&engine, "explain select * from cpu where time >= to_timestamp_nanos(1000)").await;
    assert!(!plan.contains("OverlapExec") && plan.contains("DataSourceExec"), "{plan}");
    let plan = csv(&engine, "explain select * from other.\"Ünïque Täble\"").await;
    assert!(!plan.contains("OverlapExec") && plan.contains("DataSourceExec"), "{plan}");
    // Counting a table without overlap does not read it.
    let plan = csv(&engine, "explain select count(*) from other.\"Ünïque Täble\"").await;
    assert!(plan.contains("PlaceholderRowExec"), "{plan}");
}

/// Of how many of them a plan that has run has read how many, by one of its metrics.
fn read_of(plan: &str, metric: &str) -> (u64, u64) {
    let (_, after) = plan.split_once(&format!("{metric}=")).unwrap_or_else(|| panic!("{metric}: {plan}"));
    let number = |text: &str| -> u64 {
        let digits: String = text.trim_start().chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or_else(|_| panic!("{metric}: {plan}"))
    };
    let (total, read) = after.split_once('→').unwrap_or_else(|| panic!("{metric}: {plan}"));
    (number(total), number(read))
}

#[tokio::test(flavor = "multi_thread")]
async fn time_and_tags_leave_out_files_and_parts_of_files() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let hosts = ["h0", "h1", "h2", "h3", "h4", "h5", "h6", "h7"];
    for day in 0..3 {
        let rows: Vec<Row> = (0..16_000)
            .map(|n| (day * DAY + n * 1_000_000_000, hosts[n as usize % 8], Some(n as f64), None))
            .collect();
        engine.apply(at(day as u64 + 1), &batch("db", &rows)).unwrap();
    }
    engine.checkpoint(Bytes::new()).await.unwrap();
    while engine.maintain().await.unwrap() {}
    let files = |plan: &str| plan.matches(".parquet").count();
    let all = csv(&engine, "explain select a from cpu").await;
    assert_eq!(files(&all), 3, "{all}");
    let second = format!(
        "from cpu where time >= to_timestamp_nanos({}) and time < to_timestamp_nanos({})",
        DAY,
        DAY + 500_000_000_000
    );
    let plan = csv(&engine, &format!("explain select a {second}")).await;
    assert_eq!(files(&plan), 1, "{plan}");
    let plan = csv(&engine, &format!("explain analyze select a {second}")).await;
    let (windows, read) = read_of(&plan, "row_groups_pruned_statistics");
    assert!(windows > 10 && read <= 2, "{read} of {windows}: {plan}");
    // In the days that are over rows lie by host; in the last one every page has every host.
    let sql = format!("select a from cpu where time < to_timestamp_nanos({}) and host = 'h3'", 2 * DAY);
    let plan = csv(&engine, &format!("explain analyze {sql}")).await;
    let (pages, read) = read_of(&plan, "page_index_pages_pruned");
    assert!(pages > 100 && read < pages / 4, "{read} of {pages}: {plan}");
    assert_eq!(csv(&engine, &format!("select count(*) as n from ({sql}) as q")).await, "n\n4000\n");
    // Least and greatest value of a field are known of every window.
    let sql = format!("select a from cpu where time < to_timestamp_nanos({}) and a >= 15999", 2 * DAY);
    let plan = csv(&engine, &format!("explain analyze {sql}")).await;
    let (windows, read) = read_of(&plan, "row_groups_pruned_statistics");
    assert!(windows > 20 && read == 2, "{read} of {windows}: {plan}");
    assert_eq!(csv(&engine, &sql).await, "a\n15999.0\n15999.0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn agrees_with_a_map_of_points_however_it_is_flushed() {
    let mut rng = StdRng::seed_from_u64(11);
    for round in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let mut engine = engine(dir.path()).await;
        let mut wanted = BTreeMap::<(i64, &str), (Option<f64>, Option<f64>)>::new();
        let mut log = Vec::new();
        let mut flushed = 0;
        for seq in 1..=rng.random_range(3..25u64) {
            let start = rng.random_range(0..400);
            let mut rows: Vec<Row> = Vec::new();
            for n in 0..rng.random_range(1..60) {
                let time = if rng.random_bool(0.2) { rng.random_range(0..400) } else { start + n };
                let host = ["a", "b"][rng.random_range(0..2)];
                let value =
                    |rng: &mut StdRng| rng.random_bool(0.7).then(|| f64::from(rng.random_range(0..4)));
                let row = (time * (DAY / 150), host, value(&mut rng), value(&mut rng));
                let point = wanted.entry((row.0, host)).or_default();
                *point = (row.2.or(point.0), row.3.or(point.1));
                rows.push(row);
            }
            let record = batch("db", &rows);
            engine.apply(at(seq), &record).unwrap();
            log.push((seq, record));
            if rng.random_bool(0.5) {
                engine.checkpoint(Bytes::new()).await.unwrap();
                flushed = seq;
            }
            if rng.random_bool(0.1) {
                engine = self::engine(dir.path()).await;
                for (seq, record) in log.iter().filter(|(seq, _)| *seq > flushed) {
                    engine.apply(at(*seq), record).unwrap();
                }
            }
        }
        let (from, to) = (rng.random_range(0..200) * (DAY / 150), rng.random_range(100..450) * (DAY / 150));
        type Keep = fn(&(Option<f64>, Option<f64>), i64, i64, i64) -> bool;
        let conditions: [(String, Keep); 4] = [
            ("true".into(), |_, _, _, _| true),
            (
                format!("time >= to_timestamp_nanos({from}) and time < to_timestamp_nanos({to})"),
                |_, t, from, to| t >= from && t < to,
            ),
            ("a = 1".into(), |p, _, _, _| p.0 == Some(1.0)),
            (format!("b is null and time > to_timestamp_nanos({from})"), |p, t, from, _| {
                p.1.is_none() && t > from
            }),
        ];
        for (condition, keep) in conditions {
            let sql = format!(
                "select cast(time as bigint) as t, host, a, b from cpu where {condition} order by time, host"
            );
            let got = csv(&engine, &sql).await;
            let value = |v: Option<f64>| v.map_or(String::new(), |v| format!("{v:.1}"));
            let mut expected = "t,host,a,b\n".to_owned();
            for ((time, host), point) in &wanted {
                if keep(point, *time, from, to) {
                    expected += &format!("{time},{host},{},{}\n", value(point.0), value(point.1));
                }
            }
            assert_eq!(got, expected, "round {round}: {condition}");
            let count = csv(&engine, &format!("select count(*) as n from cpu where {condition}")).await;
            assert_eq!(count, format!("n\n{}\n", expected.lines().count() - 1), "round {round}: {condition}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_has_its_snapshot_while_files_go() {
    let dir = tempfile::tempdir().unwrap();
    let engine = filled(dir.path()).await;
    let rows = engine.query("select * from cpu order by a", options()).await.unwrap();
    engine.apply(at(7), &Operation::DropDatabase { database: "db".into() }).unwrap();
    engine.checkpoint(Bytes::new()).await.unwrap();
    let rows: usize = rows.collect().await.unwrap().iter().map(RecordBatch::num_rows).sum();
    assert_eq!(rows, 133);
    assert!(matches!(
        engine.query("select * from cpu", options()).await,
        Err(QueryError::UnknownDatabase(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_as_written() {
    let dir = tempfile::tempdir().unwrap();
    let engine = filled(dir.path()).await;
    engine.apply(at(7), &table_batch("db", "CPU", &[(1, "x", Some(3.0), None)])).unwrap();
    assert_eq!(csv(&engine, "select a from CPU").await, "a\n3.0\n");
    assert_eq!(csv(&engine, "SELECT Count(*) AS N FROM CPU").await, "N\n1\n");
    let error = |sql: &'static str| {
        let engine = engine.clone();
        async move { engine.query(sql, options()).await.map(|_| ()).unwrap_err() }
    };
    assert!(
        matches!(error("select * from Cpu").await, QueryError::UnknownTable { table, .. } if table == "Cpu")
    );
    assert!(matches!(error("select * from nope.cpu").await, QueryError::UnknownDatabase(db) if db == "nope"));
    let wrong = error("select A from CPU").await;
    assert!(matches!(&wrong, QueryError::Invalid(why) if why.contains("No field named")), "{wrong}");
    let wrong = error("selec 1").await;
    assert!(matches!(&wrong, QueryError::Invalid(_)), "{wrong}");
    let none = SqlOptions::default();
    let nowhere = engine.query("select * from cpu", none.clone()).await.map(|_| ()).unwrap_err();
    assert!(matches!(&nowhere, QueryError::Invalid(why) if why.contains("no database")), "{nowhere}");
    assert_eq!(engine.query("select * from db.CPU", none).await.unwrap().collect().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_can_be_shown() {
    let dir = tempfile::tempdir().unwrap();
    let engine = filled(dir.path()).await;
    assert_eq!(csv(&engine, "SHOW DATABASES").await, "database\ndb\nother\n");
    assert_eq!(csv(&engine, "show tables").await, "database,table_name\ndb,cpu\n");
    assert_eq!(csv(&engine, "show tables from other;").await, "database,table_name\nother,Ünïque Täble\n");
    let columns = "column_name,data_type,kind\ntime,Timestamp(ns),time\nhost,Utf8,tag\na,Float64,field\nb,Float64,field\n";
    for sql in ["show columns from cpu", "show columns in db.cpu", "describe cpu", "DESCRIBE db.cpu"] {
        assert_eq!(csv(&engine, sql).await, columns, "{sql}");
    }
    let listed = "select table_schema, table_name from information_schema.tables \
                  where table_schema <> 'information_schema' order by 1, 2";
    assert_eq!(csv(&engine, listed).await, "table_schema,table_name\ndb,cpu\nother,Ünïque Täble\n");
    let listed = "select column_name from information_schema.columns where table_name = 'cpu' order by 1";
    assert_eq!(csv(&engine, listed).await, "column_name\na\nb\nhost\ntime\n");
    for sql in ["show tables like 'c%'", "show columns from a.b.c", "show tables from nope", "describe nope"]
    {
        assert!(engine.query(sql, options()).await.is_err(), "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_made_to_exhaust_are_refused_or_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let engine = filled(dir.path()).await;
    let chain = |n: usize| format!("select {}1 as n", "1 + ".repeat(n));
    assert_eq!(csv(&engine, &chain(500)).await, "n\n501\n");
    let ors =
        |n: usize| format!("select count(*) as n from cpu where {} host = 'x'", "host = 'q' or ".repeat(n));
    assert_eq!(csv(&engine, &ors(290)).await, "n\n2\n");
    // Nothing of this can be folded away before it runs.
    let deep = format!(
        "select sum(a{}) as n from cpu where host = 'x' and time < to_timestamp_nanos(2)",
        " + b * a".repeat(250)
    );
    assert_eq!(csv(&engine, &deep).await, "n\n251.0\n");
    let unions = |n: usize| format!("select 1 as n{}", " union all select 1".repeat(n));
    let doubling = |n: usize| {
        let steps: Vec<_> =
            (1..=n).map(|i| format!("c{i} as (select a.x from c{} a, c{} b)", i - 1, i - 1)).collect();
        format!("with c0 as (select 1 as x), {} select count(*) from c{n}", steps.join(", "))
    };
    let refused = [
        chain(100_000),
        ors(60_000),
        unions(10_000),
        doubling(40),
        doubling(25),
        format!("select {}1{}", "(".repeat(60_000), ")".repeat(60_000)),
        format!("select {} 1", "not ".repeat(20_000)),
        format!("select {} 1", "- ".repeat(20_000)),
        format!("select 1{}", "::int".repeat(20_000)),
        format!("select a{} from cpu", "[1]".repeat(20_000)),
        format!("select 1 where 1{}", " is null".repeat(20_000)),
        format!("select * from {} cpu", "cpu, ".repeat(200)),
        format!("select true{} as n", " between false and true".repeat(60)),
        format!("select true{} as n", " in (false, true)".repeat(60)),
        format!("select {}a{} from cpu", "coalesce(".repeat(20), ", b)".repeat(20)),
        format!("select {} 1 {}", "case when true then ".repeat(5_000), "end ".repeat(5_000)),
        format!("select '{}'", "x".repeat(300_000)),
        String::new(),
        ";;".into(),
        "select \u{0}".into(),
        "select '".into(),
        "/* select 1".into(),
    ];
    for sql in refused {
        let started = std::time::Instant::now();
        let start: String = sql.chars().take(60).collect();
        let answer = engine.query(&sql, options()).await.map(|_| ());
        let fine = matches!(
            &answer,
            Err(QueryError::TooLarge(_) | QueryError::Invalid(_) | QueryError::NotAllowed(_))
        );
        assert!(fine, "{start}: {answer:?}");
        assert!(started.elapsed() < Duration::from_secs(3), "{start}");
    }
    let nested =
        format!("select {}a{} as n from cpu where host = 'w'", "coalesce(".repeat(8), ", b)".repeat(8));
    assert_eq!(csv(&engine, &nested).await, "n\n9.0\n");
    assert_eq!(csv(&engine, &doubling(5)).await, "count(*)\n1\n");
    let shadowing = "with cpu as (select * from cpu where host = 'x') select count(*) as n from cpu";
    assert_eq!(csv(&engine, shadowing).await, "n\n2\n");
    // Much work ends by its time, much memory by its limit, many rows by theirs.
    let cross =
        "select count(*) from cpu a, cpu b, cpu c, cpu d, cpu e where a.a + b.a + c.a + d.a + e.a = 0.123";
    let short = SqlOptions { timeout: Duration::from_millis(300), memory_limit: 8 << 30, ..options() };
    let started = std::time::Instant::now();
    let late = match engine.query(cross, short).await {
        Ok(rows) => rows.collect().await.map(|_| ()),
        Err(error) => Err(error),
    };
    assert!(matches!(late, Err(QueryError::TimedOut(_))), "{late:?}");
    assert!(started.elapsed() < Duration::from_secs(5));
    let small = SqlOptions { memory_limit: 1000, ..options() };
    let grouped =
        engine.query("select time, count(*) from cpu group by time order by 2", small).await.unwrap();
    assert!(matches!(grouped.collect().await, Err(QueryError::TooLarge(_))));
    // What others hold is no fault of the query, and nothing of it stays when it has failed.
    let memory = super::QueryMemory::new(1000);
    let shared = SqlOptions { memory: memory.clone(), ..options() };
    let grouped =
        engine.query("select time, count(*) from cpu group by time order by 2", shared).await.unwrap();
    let refused = grouped.collect().await;
    assert!(
        matches!(&refused, Err(QueryError::Busy(why)) if why.contains("http.queries_memory")),
        "{refused:?}"
    );
    assert_eq!(memory.taken(), 0);
    let few = SqlOptions { max_rows: Some(132), ..options() };
    assert!(matches!(
        engine.query("select * from cpu", few.clone()).await.unwrap().collect().await,
        Err(QueryError::TooLarge(_))
    ));
    engine.query("select * from cpu limit 132", few).await.unwrap().collect().await.unwrap();
    let zero = engine
        .query("select 1 / (a - 5) from cpu where host = 'x'", options())
        .await
        .unwrap()
        .collect()
        .await;
    assert!(zero.is_ok(), "floats divide by zero");
    let zero = "select 1 / (cast(a as int) - 5) from cpu where host = 'x'";
    let zero = engine.query(zero, options()).await.unwrap().collect().await;
    assert!(matches!(zero, Err(QueryError::Invalid(_))), "{zero:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_writes_the_same_answer() {
    let dir = tempfile::tempdir().unwrap();
    let engine = filled(dir.path()).await;
    let sql = "select time, host, a from cpu where host in ('x', 'w') order by time desc limit 2";
    let json = r#"{"time":"1970-01-02T00:00:00","host":"w","a":null}"#;
    let second = r#"{"time":"1970-01-01T00:00:00.000000002","host":"x","a":5.0}"#;
    assert_eq!(written(&engine, sql, Format::Json).await.unwrap(), format!("[{json},{second}]"));
    assert_eq!(written(&engine, sql, Format::Jsonl).await.unwrap(), format!("{json}\n{second}\n"));
    let pretty = written(&engine, sql, Format::Pretty).await.unwrap();
    assert!(
        pretty.starts_with("+--") && pretty.contains("| 1970-01-02T00:00:00           | w    |     |"),
        "{pretty}"
    );

    let empty = "select time, host from cpu where host = 'nobody'";
    assert_eq!(written(&engine, empty, Format::Json).await.unwrap(), "[]");
    assert_eq!(written(&engine, empty, Format::Jsonl).await.unwrap(), "");
    assert_eq!(written(&engine, empty, Format::Csv).await.unwrap(), "time,host\n");
    assert!(written(&engine, empty, Format::Pretty).await.unwrap().contains("| time | host |"));

    for format in [Format::Arrow, Format::Parquet] {
        for (sql, rows) in [(sql, 2), (empty, 0)] {
            let parts: Vec<_> = encode(engine.query(sql, options()).await.unwrap(), format).collect().await;
            let bytes: Vec<u8> = parts.into_iter().flat_map(|part| part.unwrap().to_vec()).collect();
            let read: Vec<RecordBatch> = match format {
                Format::Arrow => {
                    let reader = arrow_ipc::reader::StreamReader::try_new(&bytes[..], None).unwrap();
                    assert_eq!(reader.schema().field(1).name(), "host");
                    reader.map(Result::unwrap).collect()
                }
                _ => crate::engine::columnar::parquet::decode(bytes.into()).unwrap(),
            };
            assert_eq!(read.iter().map(RecordBatch::num_rows).sum::<usize>(), rows);
        }
    }
    assert_eq!("csv".parse(), Ok(Format::Csv));
    assert!("xml".parse::<Format>().is_err());
}
