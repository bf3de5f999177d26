//! Statements made to do harm: to write, to read what is not a table, to take all memory or never
//! to end being planned. All are refused or end within bounds.

use std::{fs, process::Command, time::Duration};

use super::{
    super::{QueryError, QueryStream, SqlOptions},
    at, csv, filled, options,
};
use crate::engine::{StorageEngine, columnar::tests::table_batch};

/// What a query may take by its options.
const MEMORY: usize = 64 << 20;
/// What a process may take for a query beyond that: batches under way, at a few times
/// what one may hold, and what the allocator keeps.
const CEILING: usize = 192 << 20;
/// Says to the test that it is the child.
const CHILD: &str = "SKEIN_HOSTILE_CHILD";

/// Statements that do anything but read.
const NOT_QUERIES: &[&str] = &[
    "create table t (a int)",
    "create table t as select * from cpu",
    "create external table t stored as csv location '/etc/passwd'",
    "create view v as select * from cpu",
    "create schema s",
    "create database d",
    "create function f(int) returns int return $1",
    "create index i on cpu (a)",
    "drop table cpu",
    "drop schema db cascade",
    "drop view v",
    "alter table cpu add column c int",
    "truncate table cpu",
    "insert into cpu (a) values (1)",
    "insert into cpu select * from cpu",
    "update cpu set a = 1",
    "delete from cpu",
    "merge into cpu using cpu c on true when matched then delete",
    "copy cpu to '/tmp/out.parquet'",
    "copy (select * from cpu) to '/tmp/out.csv' stored as csv",
    "copy cpu from '/etc/passwd'",
    "set datafusion.execution.batch_size = 1",
    "set time zone = 'x'",
    "reset datafusion.execution.batch_size",
    "show all",
    "show datafusion.execution.batch_size",
    "show functions",
    "show create table cpu",
    "begin",
    "commit",
    "prepare p as select 1",
    "execute p",
    "deallocate p",
    "use other",
    "analyze table cpu",
    "vacuum",
    "grant select on cpu to x",
    "kill 1",
    "call f()",
    "declare c cursor for select 1",
    "explain insert into cpu (a) values (1)",
    "explain analyze delete from cpu",
    "explain copy cpu to '/tmp/out.parquet'",
    "explain explain copy cpu to '/tmp/out.parquet'",
    "select 1; drop table cpu",
    "select 1; select 2",
    "select * into t from cpu",
    "with recursive r as (select 1 as n union all select n + 1 from r) select * from r",
    "copy cpu to 's3://bucket/out' stored as parquet",
    "copy (values (1)) to '/tmp/x.json'",
    "create external table t (a int) stored as parquet location 'https://example.com/x'",
    "create unbounded external table t (a int) stored as csv location '/dev/zero'",
    "create or replace table cpu as select 1",
    "create temporary table t as select 1",
    "create type t as (a int)",
    "create role r",
    "create user u",
    "create trigger t before insert on cpu execute function f()",
    "create sequence s",
    "create extension x",
    "load 'x'",
    "install httpfs",
    "attach 'other.db' as o",
    "detach o",
    "pragma database_list",
    "drop database db",
    "drop function abs",
    "alter table cpu rename to mem",
    "insert overwrite cpu select * from cpu",
    "with x as (select 1) insert into cpu select * from x",
    "replace into cpu (a) values (1)",
    "set variable x = 1",
    "set session authorization x",
    "start transaction",
    "rollback",
    "savepoint s",
    "lock tables cpu write",
    "comment on table cpu is 'x'",
    "explain verbose insert into cpu (a) values (1)",
    "explain create table t (a int)",
    "explain analyze create view v as select 1",
    "explain set datafusion.execution.batch_size = 1",
    "select * from cpu for update; select 1",
    "/* */ drop /* x */ table cpu",
    "-- select 1\ndrop table cpu",
    "select 1 into outfile '/tmp/x'",
    "with recursive r(n) as (values (1) union all select n + 1 from r) select count(*) from r",
    "explain verbose explain analyze delete from cpu",
    "explain format tree copy cpu to '/tmp/x.csv'",
    "select $1; drop table cpu",
    "insert into cpu values ($1, $2, $3)",
    "copy (select $1) to '/tmp/x.parquet'",
    "prepare p (int) as insert into cpu (a) values ($1)",
    "execute immediate 'drop table cpu'",
    "explain with recursive r as (select 1 as n union all select n from r) select * from r",
];

/// Tables and functions that lead out of the engine, or make rows of nothing.
const NOT_HERE: &[&str] = &[
    "select * from '@FILE'",
    "select * from \"@FILE\"",
    "select * from `@FILE`",
    "select * from \"file://@FILE\"",
    "select * from 'FILE:///@FILE'",
    "select * from \"/proc/self/environ\"",
    "select * from \"../secret.csv\"",
    "with f as (select * from '@FILE') select * from f",
    "select * from cpu union all select * from '@FILE'",
    "select (select max(a) from '@FILE')",
    "select * from cpu where exists (select 1 from \"@FILE\")",
    "explain select * from '@FILE'",
    "explain analyze select * from \"@FILE\"",
    "select * from read_csv('@FILE')",
    "select * from read_csv_auto('@FILE')",
    "select * from read_parquet('@FILE')",
    "select * from read_json('@FILE')",
    "select * from read_blob('@FILE')",
    "select * from glob('/etc/*')",
    "select * from parquet_metadata('@FILE')",
    "select * from parquet_scan('@FILE')",
    "select * from metadata_cache()",
    "select * from statistics_cache()",
    "select read_text('@FILE')",
    "select pg_read_file('@FILE')",
    "select pg_ls_dir('/')",
    "select lo_import('@FILE')",
    "select load_extension('@FILE')",
    "select load_file('@FILE')",
    "select input_file_name() from cpu",
    "select file_row_index() from cpu",
    "select getenv('PATH')",
    "select current_setting('x')",
    "select * from \"https://example.com/a.parquet\"",
    "select * from \"s3://bucket/a.parquet\"",
    "select * from generate_series(1, 1000000000000)",
    "select * from range(1000000000000)",
    "select * from unnest([1, 2, 3])",
    "select unnest(array_agg(a)) from cpu",
    "select generate_series(1, 1000000000000)",
    "select range(1000000000000)",
    "select array_repeat('x', 1000000000)",
    "select array_resize([1], 1000000000)",
    "select make_array(1, 2)",
    "select flatten(make_array(make_array(1)))",
    "select map(['a'], [1])",
    "select struct(1, 2)",
    "select named_struct('a', 1)",
    "select repeat('x', 2000000000)",
    "select lpad('x', 2000000000, 'y')",
    "select rpad('x', 2000000000)",
    "select space(2000000000)",
    "select levenshtein(host, host) from cpu",
    "select arrow_cast('x', 'Dictionary(Int32, Utf8)')",
    "select * from skein2.db.cpu",
    "select * from datafusion.public.cpu",
    "select * from information_schema.nothing",
    "select * from db.information_schema.tables",
    "select * from cpu tablesample reservoir (5 rows)",
    "select host from cpu where host ~ host",
    "select host from cpu where host similar to host",
    "select regexp_like(host, host) from cpu",
    "select regexp_replace(host, host, 'x') from cpu",
    "select regexp_like(host, '(((a{1000}){1000}){1000}){1000}') from cpu",
    "select date_bin(interval '1 nanosecond', time, timestamp '0001-01-01') from cpu",
    "select time + interval '9223372036854775807 years' from cpu",
    "select count(*) from cpu group by cube (time, host, a, b, time, host, a, b, time, host, a, b, time, host)",
    "select count(*) from cpu group by rollup (time, host, a), rollup (time, host, a), rollup (time, host, a, b)",
    "select count(*) from cpu group by grouping sets ((a), (b)), cube (a, b, host), cube (a, b, time)",
];

/// Each step of a chain of subqueries that reads only the one before: what comes of `s`.
const STEPS: &[&str] = &[
    "s || s",
    "concat(s, s)",
    "concat_ws(s, s, s)",
    "replace(s, 'x', 'xx')",
    "replace(s, '', 'xx')",
    "regexp_replace(s, 'x', 'xx', 'g')",
    "regexp_replace(s, '(.+)', '\\1\\1')",
    "overlay(s placing s || s from 1 for 0)",
    "case when length(s) > 0 then s || s else s end",
    "coalesce(s || s, s)",
    "upper(s || lower(s))",
    "translate(s || s, 'x', 'y')",
    "to_char(to_timestamp_nanos(1), s || s)",
    "(s || s)::varchar",
    "regexp_match(s || s, '.*')::varchar",
    "nullif(s || s, 'y')",
    "reverse(s) || s",
    "min(s || s) over ()",
    "max(s || s)",
    "string_agg(s || s, 'xxxxxxxxxx')",
    "first_value(s || s)",
];

fn chain(seed: &str, step: &str, steps: usize) -> String {
    let seed = format!("c0 as ({seed})");
    let steps: Vec<_> =
        (1..=steps).map(|i| format!("c{i} as (select {step} as s from c{})", i - 1)).collect();
    format!("with {seed}, {} select max(length(s)) from c{}", steps.join(", "), steps.len())
}

/// Statements that would take much memory or much time to plan. What they may do is end.
fn bombs() -> Vec<String> {
    let x = |n: usize| "x".repeat(n);
    let mut all = Vec::new();
    for step in STEPS {
        all.push(chain("select 'xxxxxxxxxx' as s", step, 28));
        all.push(chain("select host as s from log", step, 12));
    }
    for (step, end) in [
        ("a + a", "a"),
        ("coalesce(a, a)", "a"),
        ("case when a > 0 then a else a end", "a"),
        ("case a when a then a else a end", "a"),
        ("a between a and a", "a"),
        ("a in (a, a)", "a"),
        ("sqrt(a * a)", "a"),
        ("nvl2(a, a, a)", "a"),
        ("greatest(a, a, a)", "a"),
    ] {
        let chain: Vec<_> =
            (1..=24).map(|i| format!("c{i} as (select {step} as a, time from c{})", i - 1)).collect();
        let chain = format!("with c0 as (select a, time from cpu), {}", chain.join(", "));
        all.push(format!("{chain} select * from c24 where {end} is not null"));
        all.push(format!("{chain} select count(*) from c24 where {end} is null or {end} is not null"));
    }
    let many = |what: &str, n: usize| {
        let columns: Vec<_> = (0..n).map(|n| format!("{what} as c{n}")).collect();
        columns.join(", ")
    };
    all.extend([
        // Constants as long as a statement may be, for every row.
        format!("select '{}' from cpu a, cpu b, cpu c", x(200_000)),
        format!("select '{}', a.* from cpu a, cpu b", x(200_000)),
        format!("select case when a.a > 0 then '{}' end from cpu a, cpu b, cpu c", x(200_000)),
        format!("select coalesce(a.host, '{}') || b.host from cpu a, cpu b, cpu c", x(200_000)),
        format!("select {} from (select '{}' as s) t, cpu a, cpu b", many("s", 900), x(100_000)),
        format!("select {} from (select '{}' as s, a from cpu) t", many("s", 900), x(1_000)),
        format!("select string_agg(host, '{}') from (select a.host from cpu a, cpu b, cpu c) t", x(200_000)),
        format!("select replace('{}', 'x', '{}')", x(100_000), x(100_000)),
        format!("select replace(b.host, 'x', '{}') from cpu a, log b", x(200_000)),
        format!("select to_char(a.time, '{}') from cpu a, cpu b", "%c".repeat(100_000)),
        format!("select lag(host, 1, '{}') over () from (select a.host from cpu a, cpu b) t", x(200_000)),
        format!("select regexp_match(host, '{}.*{}') from log", "(".repeat(200), ")".repeat(200)),
        // Long columns, many times.
        format!("select {} from log", many("host", 5_000)),
        format!("select {} from log a, log b", many("a.host", 500)),
        format!("select {} from log", many("upper(host)", 250)),
        "select a.host, b.host from log a, log b, log c".into(),
        "select max(a.host || b.host) from log a, log b, log c, log d".into(),
        "select a.host from log a, cpu b, cpu c, cpu d".into(),
        "select a.host from log a join log b on a.host = b.host join cpu c on c.a > b.a".into(),
        "select a.host from log a left join cpu c on c.time > a.time left join cpu d on d.time > c.time"
            .into(),
        "select distinct a.host || b.host || c.host from log a, log b, log c".into(),
        "select string_agg(a.host, '') from log a, log b, log c".into(),
        "select array_agg(a.host) from log a, log b, log c".into(),
        "select array_agg(a.host || b.host) from log a, log b, log c".into(),
        "select array_agg(x) from (select array_agg(a.a) as x from cpu a, cpu b group by a.time) t, cpu c"
            .into(),
        "select max(s) from (select string_agg(host, '') as s from log) t, cpu a, cpu b".into(),
        "select s, a.* from (select string_agg(host, ',') as s from log) t, cpu a, cpu b".into(),
        "select first_value(a.host || b.host) from log a, log b, cpu c group by c.time, b.time".into(),
        "select a.host from log a, log b, log c order by a.host || b.host".into(),
        "select a.host, count(*) over (partition by b.host) from log a, log b, log c".into(),
        "select min(a.host || b.host) over (order by a.time rows between 9 preceding and 9 following) \
         from log a, log b, log c"
            .into(),
        "select sum(a.a) over () from cpu a, cpu b, cpu c, cpu d".into(),
        "select sum(a.a) over (partition by a.host) from cpu a, cpu b, cpu c, cpu d".into(),
        "select sum(a.a) over (order by a.time rows between 1 preceding and 1000000000 following) \
         from cpu a, cpu b, cpu c, cpu d"
            .into(),
        "select row_number() over (), ntile(7) over (), lead(a.host) over () from cpu a, cpu b, cpu c, cpu d"
            .into(),
        "select median(a.a + b.a) from cpu a, cpu b, cpu c, cpu d".into(),
        "select percentile_cont(0.5) within group (order by a.a + b.a) from cpu a, cpu b, cpu c, cpu d"
            .into(),
        "select count(distinct a.a + b.a + c.time::bigint) from cpu a, cpu b, cpu c, cpu d".into(),
        "select approx_distinct(a.host || b.host) from log a, log b, cpu c".into(),
        // Many rows.
        "select count(*) from cpu a, cpu b, cpu c, cpu d, cpu e, cpu f".into(),
        "select * from cpu a, cpu b, cpu c, cpu d order by a.a + b.a + c.a + d.a".into(),
        "select a.time, b.time, c.time, count(*) from cpu a, cpu b, cpu c, cpu d group by 1, 2, 3".into(),
        "select distinct a.time, b.time, c.time, d.time from cpu a, cpu b, cpu c, cpu d".into(),
        "select * from cpu a full join cpu b on a.a + b.a > 0 full join cpu c on c.a + a.a > 0".into(),
        "select (select max(b.a) from cpu b, cpu c where b.time = a.time) from cpu a, cpu d, cpu e".into(),
        "select * from cpu where a in (select b.a from cpu b, cpu c, cpu d)".into(),
        "select * from cpu a where exists (select 1 from cpu b, cpu c where b.time > a.time)".into(),
        "select * from cpu a, cpu b, cpu c except select * from cpu a, cpu b, cpu c".into(),
        "select * from cpu a, cpu b, cpu c intersect select * from cpu a, cpu b, cpu c".into(),
        "select count(*) from cpu a, cpu b group by cube (a.time, b.time, a.host, b.host, a.a)".into(),
        "select * from cpu limit 9223372036854775807 offset 9223372036854775807".into(),
        "select count(*) from cpu a join cpu b on a.host = b.host join cpu c on c.host = b.host join cpu d on d.host = c.host"
            .into(),
        // Patterns.
        "select count(*) from log where host like '%x%x%x%x%x%x%x%x%x%x%y'".into(),
        format!("select count(*) from log where host ~ '({}y)+$'", "x?".repeat(500)),
        "select regexp_count(host, '(x|xx)*y') from log".into(),
        "select count(*) from cpu where host similar to '(x|y|z)*'".into(),
        // Asking how it would be done.
        format!("explain verbose {}", chain("select host as s from cpu", "s || s", 14)),
        format!("explain analyze {}", chain("select host as s from log", "s || s", 14)),
        format!("explain select {} from log", many("host", 5_000)),
        "explain analyze select sum(a.a) over () from cpu a, cpu b, cpu c, cpu d".into(),
        // Numbers.
        "select factorial(a::bigint) from cpu".into(),
        "select power(9223372036854775807, 9223372036854775807)".into(),
        "select date_bin(interval '1 nanosecond', time) from cpu".into(),
        "select round(a, 2147483647), log(0, a), a / 0 from cpu".into(),
    ]);
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_query_or_no_table_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = filled(dir.path()).await;
    for sql in NOT_QUERIES {
        let answer = engine.query(sql, options()).await.map(|_| ());
        let fine = matches!(&answer, Err(QueryError::NotAllowed(_) | QueryError::Invalid(_)));
        assert!(fine, "{sql}: {answer:?}");
    }
    let file = dir.path().join("secret.csv");
    fs::write(&file, "a\n1\n").unwrap();
    for sql in NOT_HERE {
        let sql = sql.replace("@FILE", &file.display().to_string());
        let answer = match engine.query(&sql, options()).await {
            Ok(rows) => rows.collect().await.map(|_| ()),
            Err(error) => Err(error),
        };
        let fine = matches!(&answer, Err(error) if !matches!(error, QueryError::Internal(_) | QueryError::TimedOut(_)));
        assert!(fine, "{sql}: {answer:?}");
    }
    assert_eq!(csv(&engine, "select count(*) as n from cpu").await, "n\n133\n", "nothing was changed");
    let counts = (NOT_QUERIES.len(), NOT_HERE.len(), bombs().len());
    println!("not queries, not here, bombs: {counts:?}");
    assert!(counts.0 + counts.1 >= 150 && counts.2 >= 120, "the corpus only grows: {counts:?}");
}

/// In a process of its own, where nothing else takes memory, and which may not take the machine's.
#[tokio::test(flavor = "multi_thread")]
async fn bombs_take_no_more_memory_than_a_query_may() {
    if std::env::var_os(CHILD).is_none() {
        let name = "engine::columnar::sql::tests::hostile::bombs_take_no_more_memory_than_a_query_may";
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let most = rustix::process::Rlimit { current: Some(12 << 30), maximum: Some(12 << 30) };
    rustix::process::setrlimit(rustix::process::Resource::As, most).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let engine = filled(dir.path()).await;
    let long: &'static str = Box::leak("x".repeat(40_000).into_boxed_str());
    let rows: Vec<_> = (0..200).map(|n| (n, long, Some(n as f64), None)).collect();
    engine.apply(at(7), &table_batch("db", "log", &rows)).unwrap();
    // What is loaded and built once counts for none of them.
    csv(&engine, "select max(length(a.host || b.host)) from log a join log b using (time)").await;
    let mut worst = (0, String::new());
    for sql in bombs() {
        let start: String = sql.chars().take(100).collect();
        let before = memory("VmRSS");
        // Begins a new peak.
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let bounds = SqlOptions {
            memory_limit: MEMORY,
            timeout: Duration::from_secs(1),
            max_rows: Some(1_000_000),
            ..options()
        };
        let answer = match engine.query(&sql, bounds).await {
            Ok(rows) => rows.count().await,
            Err(error) => Err(error),
        };
        let grown = memory("VmHWM").saturating_sub(before);
        println!("{:>4} MiB  {start}  {answer:?}", grown >> 20);
        // A slip in the statement would hide what it is here for.
        let understood = !matches!(answer, Err(QueryError::Internal(_) | QueryError::Invalid(_)));
        assert!(understood, "{start}: {answer:?}");
        assert!(grown < MEMORY + CEILING, "{start}: {} MiB", grown >> 20);
        if grown > worst.0 {
            worst = (grown, start);
        }
    }
    println!("worst: {} MiB, {}", worst.0 >> 20, worst.1);
    assert_eq!(csv(&engine, "select count(*) as n from cpu").await, "n\n133\n", "it still answers");
}

/// A figure of this process's memory, in bytes.
fn memory(figure: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(figure)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

impl QueryStream {
    /// Reads it as a client would, keeping nothing.
    async fn count(mut self) -> Result<usize, QueryError> {
        use futures::StreamExt;
        let mut rows = 0;
        while let Some(batch) = self.next().await {
            rows += batch?.num_rows();
        }
        Ok(rows)
    }
}
