//! Bins that no point is in.

use super::*;

const MINUTE: i64 = 60_000_000_000;

/// Host x in the minutes 1, 2 and 5, host y in minute 4.
async fn with_gaps(dir: &Path) -> Arc<ColumnarEngine> {
    let engine = engine(dir).await;
    let rows: [Row; 5] = [
        (MINUTE, "x", Some(10.0), Some(1.0)),
        (MINUTE + 1, "x", Some(20.0), None),
        (2 * MINUTE, "x", Some(12.0), None),
        (5 * MINUTE, "x", Some(24.0), Some(4.0)),
        (4 * MINUTE, "y", Some(3.0), None),
    ];
    engine.apply(at(1), &batch("db", &rows)).unwrap();
    engine
}

async fn asked(engine: &Arc<ColumnarEngine>, sql: &str) -> Vec<String> {
    csv(engine, sql).await.lines().skip(1).map(|line| line.replace("1970-01-01T00:", "")).collect()
}

const FROM_1_TO_6: &str =
    "time >= to_timestamp_nanos(60000000000) and time < to_timestamp_nanos(360000000000)";

#[tokio::test(flavor = "multi_thread")]
async fn every_bin_of_every_series_has_a_row() {
    let dir = tempfile::tempdir().unwrap();
    let engine = with_gaps(dir.path()).await;
    let sql = format!(
        "select date_bin_gapfill(interval '1 minute', time) as t, host, avg(a) as a, count(a) as n, locf(avg(a)) as l, \
         interpolate(avg(a)) as i, interpolate(max(b)) * 2.0 as b from cpu where {FROM_1_TO_6} \
         group by t, host order by host, t"
    );
    assert_eq!(
        asked(&engine, &sql).await,
        [
            "01:00,x,15.0,2,15.0,15.0,2.0",
            "02:00,x,12.0,1,12.0,12.0,3.5",
            "03:00,x,,,12.0,16.0,5.0",
            "04:00,x,,,12.0,20.0,6.5",
            "05:00,x,24.0,1,24.0,24.0,8.0",
            "01:00,y,,,,,",
            "02:00,y,,,,,",
            "03:00,y,,,,,",
            "04:00,y,3.0,1,3.0,3.0,",
            "05:00,y,,,3.0,,",
        ]
    );
    // Without series, from another origin, and with what is said the other way round.
    let sql = "select date_bin_gapfill(interval '2 minutes', time, to_timestamp_nanos(60000000000)) as t, count(*) as n \
         from cpu where time between to_timestamp_nanos(0) and to_timestamp_nanos(420000000000) group by 1 order by 1";
    assert_eq!(
        asked(&engine, sql).await,
        ["1969-12-31T23:59:00,", "01:00,3", "03:00,1", "05:00,1", "07:00,"]
    );
    // Without times it is from the first row of a series to its last.
    let sql = "select date_bin_gapfill(interval '1 minute', time) as t, host, sum(a) as s from cpu group by host, t \
         order by host, t";
    assert_eq!(
        asked(&engine, sql).await,
        ["01:00,x,30.0", "02:00,x,12.0", "03:00,x,", "04:00,x,", "05:00,x,24.0", "04:00,y,3.0"]
    );
    // What HAVING leaves out is a gap.
    let sql = format!(
        "select date_bin_gapfill(interval '1 minute', time) as t, locf(max(a)) as a from cpu \
         where {FROM_1_TO_6} and host = 'x' group by t having max(a) < 20 order by t limit 3"
    );
    assert_eq!(asked(&engine, &sql).await, ["01:00,", "02:00,12.0", "03:00,12.0"]);
    // A statement around it, and times as text and as a parameter.
    let sql = "with g as (select date_bin_gapfill(interval '1 minute', time) as t, count(*) as n from cpu \
         where time >= '1970-01-01T00:00:00Z' and time < $end and host = 'y' group by t) \
         select count(*) as bins, sum(n) as n from g";
    let parameters = r#"{ "end": "1970-01-01T00:10:00Z" }"#;
    let parameters = super::super::Parameters::from_json(parameters).unwrap();
    let rows =
        engine.query(sql, SqlOptions { parameters, ..options() }).await.unwrap().collect().await.unwrap();
    let text = arrow_cast::pretty::pretty_format_batches(&rows).unwrap().to_string();
    assert!(text.contains("| 10   | 1 |"), "{text}");
    // Nothing there, no rows: no series is known.
    let sql = format!(
        "select date_bin_gapfill(interval '1 minute', time) as t, count(*) from cpu where {FROM_1_TO_6} and host = 'z' \
         group by t"
    );
    assert_eq!(asked(&engine, &sql).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_many_batches_come_together() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    // Every third minute of some days.
    for (seq, host) in [(1, "x"), (2, "y"), (3, "z")] {
        let rows: Vec<Row> = (0..5000).map(|n| (n * 3 * MINUTE, host, Some(n as f64), None)).collect();
        engine.apply(at(seq), &batch("db", &rows)).unwrap();
    }
    let sql = "select host, count(*) as bins, count(a) as there, sum(i) as i, max(l) as l from (select \
         date_bin_gapfill(interval '1 minute', time) as t, host, avg(a) as a, interpolate(avg(a)) as i, locf(avg(a)) as l \
         from cpu group by t, host) g group by host order by host";
    // 0, 1/3, 2/3, 1, .. 4999.
    let sum = (0..=3 * 4999).map(|n| f64::from(n) / 3.0).sum::<f64>();
    for (line, host) in csv(&engine, sql).await.lines().skip(1).zip(["x", "y", "z"]) {
        let words: Vec<&str> = line.split(',').collect();
        assert_eq!((words[0], words[1], words[2], words[4]), (host, "14998", "5000", "4999.0"));
        assert!((words[3].parse::<f64>().unwrap() - sum).abs() < 1.0, "{line}: {sum}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bounds_are_those_of_the_column_that_is_binned() {
    let dir = tempfile::tempdir().unwrap();
    let engine = with_gaps(dir.path()).await;
    let bins = |from: &str, condition: &str| {
        format!(
            "select count(*) as bins from (select date_bin_gapfill(interval '1 minute', c.time) as t, avg(c.a) as a \
             from {from} where c.host = 'x' and {condition} group by t) g"
        )
    };
    let second = |n: i64| format!("to_timestamp_nanos({})", n * MINUTE);
    for (from, condition, wanted) in [
        // Rows lie in the minutes from 1 to 5.
        ("cpu c", "true".to_owned(), "5"),
        ("cpu c", format!("c.time >= {} and {} > c.time", second(-2), second(7)), "9"),
        ("cpu c", format!("c.time > {} and c.time <= {}", second(0), second(7)), "8"),
        ("cpu c", format!("(c.time >= {} or c.a > 0)", second(-2)), "5"),
        ("cpu c", format!("not (c.time < {})", second(-2)), "5"),
        ("(select * from cpu) c", format!("c.time >= {}", second(-2)), "8"),
        (
            "(select host, a, time as time from cpu where time >= to_timestamp_nanos(-120000000000)) c",
            "true".into(),
            "8",
        ),
        (
            "(select host, a, time as at, time + interval '1 minute' as time from cpu) c",
            format!("c.at >= {}", second(-2)),
            "5",
        ),
        // Of the other table nothing follows.
        ("cpu c join cpu o on c.host = o.host", format!("o.time >= {}", second(-5)), "5"),
        (
            "cpu c join cpu o on c.host = o.host",
            format!("c.time >= {} and o.time >= {}", second(1), second(4)),
            "5",
        ),
        // Known only when it is read.
        ("cpu c", "c.time > (select min(time) from cpu) - interval '3 minutes'".into(), "5"),
        ("cpu c", format!("c.time between {} and {}", second(0), second(6)), "7"),
    ] {
        let sql = bins(from, &condition);
        assert_eq!(csv(&engine, &sql).await, format!("bins\n{wanted}\n"), "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_types_times_and_values_have() {
    let dir = tempfile::tempdir().unwrap();
    let engine = with_gaps(dir.path()).await;
    // What an expression is becomes clear when its parts are made alike.
    let sql = "select date_bin_gapfill(interval '2 minutes', time) as t, \
         locf(max(case when a > 15 then 1 else 0.5 end)) as l, interpolate(count(*)) as n, locf(max(host)) as h \
         from cpu group by t order by t";
    assert_eq!(asked(&engine, sql).await, ["00:00,1.0,2,x", "02:00,0.5,1,x", "04:00,1.0,2,y"]);
    // Times with a zone, and in other units.
    let sql = "select date_bin_gapfill(interval '1 minute', to_timestamp_seconds(to_unixtime(time))) as t, count(*) as n \
         from cpu where host = 'x' group by t order by t";
    assert_eq!(asked(&engine, sql).await, ["01:00,2", "02:00,1", "03:00,", "04:00,", "05:00,1"]);
    // A row without a time stays what it is, and is no bin of 1970.
    let sql = "select date_bin_gapfill(interval '1 minute', o.time) as t, c.host, count(o.a) as n, locf(max(o.a)) as l \
         from (select distinct host from cpu) c left join (select * from cpu where host = 'y') o on c.host = o.host \
         group by t, c.host order by c.host, t";
    assert_eq!(asked(&engine, sql).await, [",x,0,", "04:00,y,1,3.0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_long_series_are_made_piece_by_piece() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let names: Vec<&'static str> = (0..4_000).map(|n| &*format!("h{n}").leak()).collect();
    let rows: Vec<Row> = names.iter().map(|host| (0, *host, Some(1.0), None)).collect();
    engine.apply(at(1), &batch("db", &rows)).unwrap();
    // 90,000 bins each: 360 million rows, of which ten are wanted, with 20,000 bytes of text in each.
    let sql = "select date_bin_gapfill(interval '1 second', time) as t, host, \
         concat(host, 'LONG') as long, locf(avg(a)) as a from cpu \
         where time >= to_timestamp_nanos(0) and time < to_timestamp_nanos(90000000000000) \
         group by t, host, long limit 10";
    let sql = sql.replace("LONG", &"x".repeat(20_000));
    let memory = super::super::QueryMemory::new(64 << 20);
    let limited = SqlOptions { memory_limit: 64 << 20, memory: memory.clone(), ..options() };
    // Ordering them all takes more than there is, and that is said.
    let failed = match engine.query(&sql, limited.clone()).await {
        Ok(rows) => rows.collect().await.err(),
        Err(error) => Some(error),
    };
    assert!(matches!(failed, Some(QueryError::TooLarge(_) | QueryError::Busy(_))), "{failed:?}");
    let some = sql.replace("where", "where host < 'h1001' and");
    let rows = engine.query(&some, limited).await.unwrap().collect().await.unwrap();
    assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 10);
    nothing_stays(&memory).await;
}

/// The threads of a query that has failed end at their next step, and give back what they hold.
pub(super) async fn nothing_stays(memory: &super::super::QueryMemory) {
    let gone = async {
        while memory.taken() > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), gone).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_filled_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let engine = with_gaps(dir.path()).await;
    let bin = "date_bin_gapfill(interval '1 minute', time)";
    for (sql, says) in [
        (format!("select {bin} from cpu"), "grouped by"),
        (format!("select count(*) from cpu where {bin} > to_timestamp_nanos(0)"), "grouped by"),
        ("select locf(a) from cpu".into(), "around an aggregate"),
        ("select host, interpolate(avg(a)) from cpu group by host".into(), "around an aggregate"),
        (format!("select {bin} as t, locf(host) from cpu group by t, host"), "around an aggregate"),
        (format!("select {bin} as t, interpolate(max(host)) from cpu group by t"), "interpolate"),
        (
            format!(
                "select {bin} as t, date_bin_gapfill(interval '1 hour', time) as u, count(*) from cpu group by t, u"
            ),
            "once",
        ),
        (
            "select date_bin_gapfill(interval '1 month', time) as t, count(*) from cpu group by t".into(),
            "equally long",
        ),
        (
            "select date_bin_gapfill(interval '1500 milliseconds', to_timestamp_seconds(to_unixtime(time))) as t, \
             count(*) from cpu group by t"
                .into(),
            "whole units",
        ),
        (
            "select date_bin_gapfill(interval '0 minutes', time) as t, count(*) from cpu group by t".into(),
            "longer than",
        ),
        (
            "select date_bin_gapfill(interval '-1 minute', time) as t, count(*) from cpu group by t".into(),
            "longer than",
        ),
        (
            "select date_bin_gapfill(interval '1 microsecond', time) as t, count(*) from cpu group by t"
                .into(),
            "100000 are possible",
        ),
        (
            format!("select {bin} as t, count(*) from cpu where time >= '1678-01-01T00:00:00Z' group by t"),
            "100000 are possible",
        ),
    ] {
        let failed = match engine.query(&sql, options()).await {
            Ok(rows) => rows.collect().await.err(),
            Err(error) => Some(error),
        };
        let error = failed.unwrap_or_else(|| panic!("{sql} has an answer"));
        assert!(
            matches!(error, QueryError::Invalid(_)) && error.to_string().contains(says),
            "{sql}: {error:?}"
        );
    }
}
